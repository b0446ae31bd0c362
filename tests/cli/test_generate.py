"""``jaxspec generate``: what it prints, what it compares, and what it refuses."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil

import pytest

import jaxspec
from jaxspec.cli import generate, generation_session
from jaxspec.cli import main as console
from jaxspec.cli.configuration import parse_command, run_as_command
from jaxspec.cli.terminal_tokens import LEGEND
from jaxspec.decoding import layout
from tests.data import templates
from tests.evals.diffusion_folders import write_model
from tests.evals.drafter_folders import write_folders

PROMPT = "What is 12 + 30?"
NEW = 24
"""Tokens of an answer; one number, so that little is compiled."""
GREEN, BOLD, STRUCK = "\x1b[32m", "\x1b[1m", "\x1b[2;9;31m"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("generate"))


@pytest.fixture
def ask(folders, capsys, monkeypatch):
    """Calls the command on the tiny target; returns (status, standard output, standard error)."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: str, target=folders[0], tell: str | bytes = ""):
        tell = tell.encode() if isinstance(tell, str) else tell
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(tell), encoding="utf-8"))
        line = [
            "generate",
            "--target.path",
            str(target),
            "--max_new_tokens",
            str(NEW),
            *map(str, arguments),
        ]
        status = run_as_command(console.dispatch, line)
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


@pytest.fixture
def refused(ask, monkeypatch):
    """The one message of a call that is refused before any weights are read."""

    def nothing_is_loaded(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr(generation_session, "open_target", nothing_is_loaded)

    def call(*arguments: str, **options) -> str:
        status, out, err = ask(*arguments, **options)
        assert (status, out) == (2, "")
        assert err.startswith("error: ") and err.count("\n") == 1
        return err

    return call


@pytest.fixture
def alone(ask):
    """The text of the target without a drafter."""
    status, out, err = ask("--prompt", PROMPT)
    assert status == 0 and re.search(rf"^{NEW - 1} tokens, [\d,]+ tokens/s$", err, re.MULTILINE)
    assert "target alone" not in err
    return out


def test_a_prompt_with_a_drafter_gives_the_text_of_the_target(ask, folders, alone):
    for drafter in (folders[1][0], folders[1][0] / "export", "ngram"):
        status, out, err = ask("--prompt", PROMPT, "--drafter", drafter)
        assert (status, out) == (0, alone)
        assert re.search(
            rf"^tau \d\.\d\d: {NEW - 1} tokens in \d+ rounds, [\d,]+ tokens/s$", err, re.M
        )
        assert re.search(
            r"^target alone: the same text, [\d,]+ tokens/s; speed-up \d+\.\d\dx$", err, re.M
        )
    _, out, err = ask("--prompt", PROMPT, "--drafter", "ngram", "--no-compare")
    assert out == alone and "target alone" not in err


def test_the_weights_are_in_memory_once(ask, monkeypatch, alone):
    """With a drafter and alone, the same ones are decoded with."""
    monkeypatch.setattr(layout, "_cut_now", lambda stack: pytest.fail("a copy of the weights"))
    status, out, err = ask("--prompt", PROMPT, "--drafter", "ngram")
    assert (status, out) == (0, alone) and "the same text" in err


def test_where_the_text_differs_from_that_of_the_target_is_said(ask, monkeypatch):
    """Weights in bfloat16 may do this; here an answer is changed."""
    generation = generation_session.Generator.generation

    def changed(self, rounds, **options):
        found = generation(self, rounds, **options)
        if self.drafter.kind == "none":
            return found
        tokens = (*found.tokens[:3], (found.tokens[3] + 1) % 200, *found.tokens[4:])
        return dataclasses.replace(found, tokens=tokens)

    monkeypatch.setattr(generation_session.Generator, "generation", changed)
    asked = ("--prompt", PROMPT, "--drafter", "ngram")
    status, _, err = ask(*asked)
    assert status == 0
    assert re.search(r"target alone: the text differs \(from token 4 on, .+ instead of ", err)
    baseline = json.loads(ask(*asked, "--json")[1])["baseline"]
    assert (baseline["equal"], baseline["first_difference"]) == (False, 3)


def test_json_is_one_object_a_prompt_and_nothing_else(ask, tmp_path, alone):
    file = tmp_path / "questions.txt"
    file.write_text(f"{PROMPT}\n\nName a colour.\n")
    status, out, err = ask("--prompts", file, "--drafter", "ngram", "--json")
    first, second = map(json.loads, out.splitlines())
    assert status == 0 and "target alone: the same 2 texts" in err
    assert (first["prompt"], second["prompt"]) == (PROMPT, "Name a colour.")
    assert f"{first['text']}\n" == alone
    emitted = [token for each in first["rounds"] for token in each["emitted"]]
    assert first["tokens"][1:] == emitted
    assert first["tau"] == len(emitted) / len(first["rounds"])
    assert first["baseline"]["tokens"] == first["tokens"] and first["baseline"]["equal"] is True
    assert first["baseline"]["first_difference"] is None
    for each in first["rounds"]:
        assert each["drafted"][: each["accepted"]] == each["emitted"][: each["accepted"]]
        assert len(each["emitted"]) - each["accepted"] in (0, 1)
    assert (first["target"], first["drafter"], first["block_size"]) == ("target", "ngram", 8)
    assert first["settings"]["max_new_tokens"] == NEW

    single = json.loads(ask("--prompt", PROMPT, "--json")[1])
    assert single["baseline"] is None and single["drafter"] is None
    assert single["tokens"] == first["tokens"] and len(single["rounds"]) == NEW - 1


def test_sampling_follows_the_seed_and_compares_no_texts(ask):
    asked = ("--prompt", PROMPT, "--drafter", "ngram", "--temperature", "1", "--json", "--seed")
    (_, first, err), (_, again, _), (_, other, _) = (ask(*asked, seed) for seed in "334")
    assert "target alone: another sample" in err
    first, again, other = map(json.loads, (first, again, other))
    assert first["tokens"] == again["tokens"] != other["tokens"]
    assert first["baseline"]["equal"] is None


def test_colours_are_for_terminals(ask, monkeypatch, alone):
    asked = ("--prompt", PROMPT, "--drafter", "ngram")
    _, plain, _ = ask(*asked)
    assert "\x1b" not in plain
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes any output for a terminal
    _, shown, _ = ask(*asked)
    assert all(style in shown for style in (GREEN, BOLD, STRUCK))
    answer, _, legend = shown.rstrip("\n").rpartition("\n")
    assert re.sub(r"\x1b\[[\d;]*m", "", legend) == LEGEND.plain
    kept = re.sub(r"\x1b\[2;9;31m.*?\x1b\[0m", "", answer)
    # But for spaces: a line may end at the space before a rejected draft.
    words = re.sub(r"\x1b\[[\d;]*m", "", kept).split()
    assert "".join(words) == "".join(plain.split())
    for other in (("--show", "text"), ("--json",)):
        assert "\x1b" not in ask(*asked, *other)[1]
    assert LEGEND.plain not in ask("--prompt", PROMPT)[1], "a target alone drafts nothing"
    monkeypatch.setenv("NO_COLOR", "1")
    assert ask(*asked)[1] == plain


def test_rounds_are_shown_with_all_drafts(ask):
    _, out, _ = ask("--prompt", PROMPT, "--drafter", "ngram", "--show", "rounds")
    first, *rounds = out.splitlines()
    assert first.startswith("prefill    0/0  target '")
    assert rounds and all(re.match(r"round +\d+  \d/7  ", line) for line in rounds)


def test_a_chat_reads_questions_until_the_end(ask, alone):
    chat = f"{PROMPT}\n\nAnd 3 more?\n/reset\n{PROMPT}\n/quit\nnot asked\n"
    status, out, err = ask("--drafter", "ngram", tell=chat)
    answers = out.splitlines()
    assert status == 0 and len(answers) == 3
    assert answers[0] == answers[2] == alone.rstrip("\n")
    assert answers[1] != answers[0], "the second answer follows the first"
    assert "/quit (or Ctrl-D) ends" in err and "target alone: the same 3 texts" in err

    long = "word " * 300
    status, out, err = ask(tell=f"{long}\n{PROMPT}\n")
    assert status == 0 and out == alone
    assert "tokens; with 24 new ones that is more than the target's 256 positions" in err
    assert ask(tell="")[:2] == (0, "")
    status, _, err = ask(tell=b"\xff\n")
    assert status == 2 and err.endswith("error: The input is not UTF-8 text: invalid start byte.\n")


def test_ctrl_c_ends_a_chat_with_its_figures(ask, monkeypatch):
    questions = iter([PROMPT])

    def typed(_prompt):
        for question in questions:
            return question
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", typed)
    status, out, err = ask()
    assert status == 0 and out.count("\n") == 1
    assert err.count(f"{NEW - 1} tokens, ") == 2, "after the answer, and at the end"


def test_files_of_conversations_are_asked_their_last_question(ask, tmp_path):
    file = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    rows = [{"messages": [*turns, {"role": "user", "content": PROMPT}]}, {"messages": turns}]
    share = {"conversations": [{"from": "human", "value": PROMPT}]}
    lines = [*rows, {"prompt": PROMPT}, share | {"id": 3}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines[:3]))
    _, out, _ = ask("--prompts", file, "--json", "--system", "Be brief.")
    system = {"role": "system", "content": "Be brief."}
    assert [json.loads(line)["messages"] for line in out.splitlines()] == [
        [system, *rows[0]["messages"]],
        [system, turns[0]],
        [system, {"role": "user", "content": PROMPT}],
    ]
    file.write_text(json.dumps(share))
    assert json.loads(ask("--prompts", file, "--json")[1])["prompt"] == PROMPT


def test_a_file_of_conversations_with_tools(ask, folders, tmp_path):
    target = tmp_path / "target"
    shutil.copytree(folders[0], target)
    (target / "chat_template.jinja").write_text(templates.THINKING)
    tools = [{"type": "function", "function": {"name": "weather", "description": "of a city"}}]
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    turns = [
        {"role": "user", "content": "Weather in Oslo?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "4 C, rain", "tool_call_id": "c1"},
    ]
    # What is answered: the tool's result, the question, and the question without tools.
    rows = [
        {"messages": [*turns, {"role": "assistant", "content": "4 degrees."}], "tools": tools},
        {"messages": turns[:1], "tools": tools},
        {"messages": turns[:1]},
    ]
    file = tmp_path / "tools.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--drafter", folders[1][0], "--json")
    status, out, _ = ask("--prompts", file, *options, target=target)
    after_tool, with_tools, without = map(json.loads, out.splitlines())
    assert status == 0
    assert [turn["role"] for turn in after_tool["messages"]] == ["user", "assistant", "tool"]
    assert after_tool["messages"][1]["tool_calls"][0]["function"]["name"] == "weather"
    assert with_tools["messages"] == without["messages"] == turns[:1]
    assert [len(answer["tools"]) for answer in (after_tool, with_tools, without)] == [1, 1, 0]
    bundle = jaxspec.open_target(str(target))
    for answer in (after_tool, with_tools, without):
        alone = jaxspec.generate(
            bundle, answer["messages"], tools=answer["tools"], max_new_tokens=NEW
        )
        assert answer["tokens"] == list(alone.tokens) and answer["baseline"]["equal"]
    assert with_tools["tokens"] != without["tokens"], "the target did not read the tools"
    # The embedded target's own template writes no tools.
    status, out, err = ask("--prompts", file, *options)
    assert (status, out) == (2, "") and "does not write the tools of a conversation" in err


def test_the_picture_shows_prompt_answer_and_figures(ask, tmp_path, alone):
    file = tmp_path / "answer.svg"
    status, out, _ = ask("--prompt", PROMPT, "--drafter", "ngram", "--picture", file)
    picture = file.read_text().replace("&#160;", " ")
    assert (status, out) == (0, alone)
    assert "url(http" not in picture and "line-through" in picture
    for text in (PROMPT, "drafted and accepted", "target alone: the same text"):
        assert text in picture


def test_none_is_a_prompt_like_any_other(refused):
    command = parse_command(
        generate.GenerateCommand, ["--prompt", "None", "--json"], program="generate"
    )
    (question,) = generate._questions(command)
    assert question.turns == [{"role": "user", "content": "None"}]
    assert "The prompt is empty" in refused("--prompt", "")
    assert "leave --prompt out for a chat" in refused("--prompt=", "--prompts", "b")


def test_bad_prompts_are_refused(refused, tmp_path):
    def file(content: bytes, name: str) -> str:
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    assert "The prompt is empty" in refused("--prompt", " ")
    assert "give one of them" in refused("--prompt", "a", "--prompts", "b")
    assert "--json needs --prompt or --prompts" in refused("--json")
    assert "There is no file" in refused("--prompts", tmp_path / "none.txt")
    for name in ("empty.txt", "empty.jsonl"):
        assert "is empty" in refused("--prompts", file(b"", name))
    for name in ("latin.txt", "latin.jsonl"):
        message = refused("--prompts", file(b'{"prompt": "caf\xe9"}\n', name))
        assert "UTF-8" in message and name in message
    row = file(b'{"prompt": "a"}\n{"question": 3}\n', "row.jsonl")
    assert f"line 2 of {row}" in refused("--prompts", row)
    # What Python makes of a byte of Latin-1 on a command line.
    assert "is not UTF-8 near 'caf\\udce9'" in refused("--prompt", "caf\udce9")
    assert "is not UTF-8 near" in refused("--prompt", "a", "--system", "caf\udce9")
    answer = file(b'{"text": "It was a dark night."}\n', "story.jsonl")
    assert "asks nothing" in refused("--prompts", answer)
    assert "'prompt/1' has" in refused("--prompt", "word " * 300)
    assert "--picture must be an .svg file" in refused("--prompt", "a", "--picture", "a.png")
    assert "name a --drafter" in refused("--prompt", "a", "--block-size", "4")
    drafted = ("--prompt", "a", "--drafter", "ngram")
    assert "--block-size counts the anchor" in refused(*drafted, "--block-size", "1")
    assert "--temperature" in refused("--prompt", "a", "--temperature", "-1")
    assert "at least 1e-06" in refused("--prompt", "a", "--temperature", "1e-9")


def test_models_that_do_not_fit_are_refused(refused, folders, tmp_path):
    run = folders[1][0]
    assert "nowhere" in refused("--prompt", PROMPT, target="nowhere")
    diffusion = write_model(tmp_path / "diffusion")
    assert "is a diffusion language model" in refused("--prompt", PROMPT, target=diffusion)
    assert "there is no folder" in refused("--prompt", PROMPT, "--drafter", "runs/none")
    assert "Did you mean" in refused("--prompt", PROMPT, "--drafter", "ngramm")
    (tmp_path / "stopped").mkdir()
    message = refused("--prompt", PROMPT, "--drafter", tmp_path / "stopped")
    assert "No exported weights" in message and "jaxspec export" in message
    message = refused("--prompt", PROMPT, "--drafter", run, target="embedded")
    assert "hidden_size" in message or "width" in message, message
