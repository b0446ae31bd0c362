"""`jaxspec generate`: prompts, files of prompts and chats, what is shown, and what is refused."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil

import pytest
from rich.console import Console

import jaxspec
from jaxspec.cli import generate as command
from jaxspec.cli.generation_session import Session, open_models
from jaxspec.cli.terminal_tokens import ACCEPTED, REJECTED, coloured, make_view
from jaxspec.config import RunConfig, TargetConfig
from jaxspec.data.text_stream import TextStream
from jaxspec.decoding.stream import Round
from tests.evals.drafter_folders import write_folders

PROMPT = "What is 12 + 30?"
SHORT = ("--max-new-tokens", "8")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny target, and a drafter that was trained for it."""
    path, (run, _) = write_folders(tmp_path_factory.mktemp("folders"))
    return str(path), str(run)


@pytest.fixture(scope="module")
def expected(folders):
    """What the target answers alone."""
    return jaxspec.generate(jaxspec.open_target(folders[0]), PROMPT, max_new_tokens=8)


def run(folders, *arguments, drafter: bool = True) -> None:
    drafting = ("--drafter", folders[1]) if drafter else ()
    command.main(["--target.path", folders[0], *drafting, *SHORT, *map(str, arguments)])


def test_a_prompt_is_answered_on_standard_output_alone(folders, expected, capsys):
    run(folders, "--prompt", PROMPT)
    printed = capsys.readouterr()
    assert printed.out == f"{expected.text}\n"
    for said in ("Loading", "Compiling", "tau ", "tokens/s", "target alone: the same text"):
        assert said in printed.err


def test_json_is_one_object_a_prompt_and_nothing_else(folders, expected, tmp_path, capsys):
    file = tmp_path / "prompts.jsonl"
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    rows = [{"prompt": PROMPT}, {"messages": [*turns, {"role": "user", "content": "Bye."}]}]
    file.write_text("\n".join(map(json.dumps, rows)))
    run(folders, "--prompts", file, "--json")
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["prompt"], first["text"]) == (PROMPT, expected.text)
    assert tuple(first["tokens"]) == expected.tokens
    emitted = [token for each in first["rounds"] for token in each["emitted"]]
    assert first["tokens"][1:] == emitted and first["tau"] == len(emitted) / len(first["rounds"])
    assert all(each["accepted"] < len(each["emitted"]) + 1 for each in first["rounds"])
    assert first["baseline"]["equal"] is True and first["baseline"]["first_difference"] is None
    assert first["tokens_per_s"] > 0 and first["versions"]["jax"]
    assert [turn["content"] for turn in second["messages"]] == ["Hi.", "Hello.", "Bye."]


def test_a_text_file_has_a_prompt_a_line(folders, tmp_path, capsys):
    file = tmp_path / "prompts.txt"
    file.write_text("One?\n\nTwo?\n")
    run(folders, "--prompts", file, "--no-compare", drafter=False)
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) >= 2
    assert "[2/2] Two?" in printed.err and "target alone" not in printed.err


def test_rounds_are_lines(folders, capsys):
    run(folders, "--prompt", PROMPT, "--show", "rounds", "--no-compare")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("prefill") and lines[1].startswith("round   1")


def test_a_sample_is_the_seeds(folders, capsys):
    sampled = ("--prompt", PROMPT, "--temperature", "1", "--json", "--seed")
    texts = []
    for seed in (3, 3, 4):
        run(folders, *sampled, seed)
        answer = json.loads(capsys.readouterr().out)
        assert answer["baseline"]["equal"] is None, "another sample is another text"
        texts.append(answer["tokens"])
    assert texts[0] == texts[1] != texts[2]


def chat(folders, monkeypatch, *lines) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    run(folders, "--no-compare")


def test_a_chat_remembers_until_it_is_reset(folders, monkeypatch, capsys):
    asked: list[list[str]] = []
    original = Session._answer

    def watched(self, turns):
        asked.append([turn["content"] for turn in turns if turn["role"] == "user"])
        return original(self, turns)

    monkeypatch.setattr(Session, "_answer", watched)
    chat(folders, monkeypatch, "Hi.", "", "And you?", "/reset", "Bye.", "/quit", "never asked")
    assert asked == [["Hi."], ["Hi.", "And you?"], ["Bye."]]
    assert "/reset starts anew" in capsys.readouterr().err


def test_a_question_that_is_too_long_does_not_end_the_chat(folders, monkeypatch, capsys):
    chat(folders, monkeypatch, "long " * 500, "Hi.")
    printed = capsys.readouterr()
    assert "positions" in printed.err
    assert len(printed.out.splitlines()) >= 1


def a_round(tokenizer, accepted: str, bonus: str, rejected: str) -> Round:
    drafted = tuple(tokenizer.encode(accepted + rejected))
    kept = tuple(tokenizer.encode(accepted))
    assert drafted[: len(kept)] == kept
    return Round(
        drafted=drafted,
        verified=len(kept),
        emitted=(*kept, *tokenizer.encode(bonus)[:1]),
        seconds=0.1,
    )


def as_terminal(**options) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=80, **options)


def test_colours_say_where_a_token_comes_from(folders):
    tokenizer = jaxspec.open_target(folders[0]).tokenizer
    each = a_round(tokenizer, " one two", " three", " four")
    spans = {
        text.plain[span.start : span.end].strip(): str(span.style)
        for text in [coloured([each], tokenizer)]
        for span in text.spans
    }
    assert {style for style in spans.values()} >= {ACCEPTED, REJECTED}
    console = as_terminal(color_system="standard", no_color=False)
    view = make_view("tokens", tokenizer=tokenizer, console=console, has_drafter=True)
    view.add(each)
    view.end()
    assert "\x1b[32m" in console.file.getvalue() and "\x1b[2;9;31m" in console.file.getvalue()


@pytest.mark.parametrize("reason", ["no terminal", "no colours", "no drafter", "asked"])
def test_otherwise_the_text_is_plain(folders, reason):
    tokenizer = jaxspec.open_target(folders[0]).tokenizer
    console = as_terminal(color_system="standard", no_color=reason == "no colours")
    if reason == "no terminal":
        console = Console(file=io.StringIO())
    view = make_view(
        "text" if reason == "asked" else "tokens",
        tokenizer=tokenizer,
        console=console,
        has_drafter=reason != "no drafter",
    )
    each = a_round(tokenizer, " one two", " three", " four")
    view.add(each)
    view.end()
    text = TextStream(tokenizer)
    assert console.file.getvalue() == text.add(each.emitted) + text.end() + "\n"


def test_a_picture(folders, tmp_path, capsys):
    file = tmp_path / "a.svg"
    run(folders, "--prompt", PROMPT, "--picture", file)
    assert file.read_text().startswith("<svg") and "Written" in capsys.readouterr().err


def test_where_texts_differ_is_said(folders, monkeypatch, capsys):
    original = Session._compared

    def other(self, answer):
        compared = original(self, answer)
        tokens = compared.alone.tokens
        changed = (*tokens[:3], tokens[3] + 1, *tokens[4:])
        return dataclasses.replace(
            compared, alone=dataclasses.replace(compared.alone, tokens=changed)
        )

    monkeypatch.setattr(Session, "_compared", other)
    run(folders, "--prompt", PROMPT)
    assert "the text differs (from token 4 on" in capsys.readouterr().err


@pytest.fixture
def bad(folders, tmp_path):
    """Files and folders that are refused."""
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes("Grüße?".encode("latin-1"))
    (tmp_path / "rows.jsonl").write_text('{"prompt": 3}\n')
    (tmp_path / "answered.jsonl").write_text(
        '{"messages": [{"role": "assistant", "content": "a"}]}'
    )
    (tmp_path / "run").mkdir()
    other = tmp_path / "other"
    shutil.copytree(folders[1], other)
    export = other / "export" if (other / "export").is_dir() else other
    config = json.loads((export / "config.json").read_text())
    (export / "config.json").write_text(json.dumps({**config, "hidden_size": 96}))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt", " "), "The prompt is empty"),
        (("--prompt", "a", "--prompts", "b.txt"), "give one of them"),
        (("--json",), "--json needs --prompt or --prompts"),
        (("--prompts", "absent.txt"), "there is no file"),
        (("--prompts", "a.csv"), "there is no file"),
        (("--prompts", "{bad}/empty.txt"), "holds no prompt"),
        (("--prompts", "{bad}/latin.txt"), "is not UTF-8"),
        (("--prompts", "{bad}/rows.jsonl"), "line 1"),
        (("--prompts", "{bad}/answered.jsonl"), "ask nothing"),
        (("--prompt", "long " * 500), "positions"),
        (("--prompt", "a", "--drafter", "{bad}/absent"), "there is no folder"),
        (("--prompt", "a", "--drafter", "{bad}/run"), "No exported weights"),
        (("--prompt", "a", "--drafter", "{bad}/other"), "hidden_size"),
        (("--prompt", "a", "--target.path", "{bad}/absent"), "no config.json"),
        (("--prompt", "a", "--picture", "a.png"), "must be an .svg file"),
        (("--prompt", "a", "--max-new-tokens", "0"), "max_new_tokens"),
    ],
)
def test_mistakes_are_found_before_weights_are_read(folders, bad, monkeypatch, arguments, message):
    def never(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr("jaxspec.cli.generation_session.open_target", never)
    filled = [argument.replace("{bad}", str(bad)) for argument in arguments]
    with pytest.raises(ValueError, match=message):
        command.main(["--target.path", folders[0], *SHORT, *filled])


def test_diffusion_models_are_refused(monkeypatch, folders):
    monkeypatch.setattr("jaxspec.cli.generation_session.is_diffusion_target", lambda *_, **__: True)
    with pytest.raises(ValueError, match="is a diffusion language model"):
        run(folders, "--prompt", "a")


def test_opening_says_what_is_loaded(folders):
    said: list[str] = []
    asked = command.GenerateCommand(
        run=RunConfig(target=TargetConfig(path=folders[0])), drafter=folders[1]
    )
    target, drafter = open_models(asked, [], say=said.append)
    assert said[0].startswith("Loading") and drafter is not None
    assert drafter.trained_on_other_target in (None, False) and target.name
