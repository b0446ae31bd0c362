from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from types import SimpleNamespace

import pytest

from jaxspec.cli import answer_folder
from jaxspec.cli import main as console
from jaxspec.cli import regenerate as command
from jaxspec.cli.configuration import run_as_command
from jaxspec.cli.target_answers import Questions
from jaxspec.config import DataConfig, RunConfig, TargetConfig
from jaxspec.data import sources
from jaxspec.data.answer_journal import AnswerJournal
from jaxspec.data.example_files import MANIFEST, read_examples, read_manifest, write_examples
from jaxspec.data.examples import Example
from jaxspec.data.pipeline import make_pipeline
from jaxspec.data.sources import load_examples
from jaxspec.data.tokenizer import Tokenizer
from jaxspec.decoding import Response
from jaxspec.evals.progress import Pace
from jaxspec.files import InUse, held
from jaxspec.interruption import STOPPED_AND_SAVED
from tests.cli.regenerating import QUESTIONS
from tests.data import templates
from tests.training import runs


def test_answers_become_training_data(ask, target):
    folder, said = ask()
    assert said[0].startswith("2/5 questions  ")
    assert said[-1].startswith("Questions asked: 5; examples written: 5, in ")
    asked = load_examples("embedded/chat", split="train", data=DataConfig(max_examples=QUESTIONS))
    answered = list(read_examples(folder))
    assert [example.id for example in answered] == [example.id for example in asked]
    for before, after in zip(asked, answered, strict=True):
        assert after.prompt_turns == before.prompt_turns
        assert [role for role, _ in after.turns] == [role for role, _ in before.turns]
        assert after.turns[-1] != before.turns[-1], "the target's words, not the data set's"
    manifest = read_manifest(folder)
    assert manifest["split"] == "train"
    assert manifest["settings"]["top_p"] == 0.95
    assert manifest["provenance"]["config"]["data"]["sources"] == ["embedded/chat"]

    data = DataConfig(sources=(str(folder),), sequence_length=128, batch_size=2)
    batch = make_pipeline(data, Tokenizer.load(target)).batch(0)
    assert batch["loss_mask"].any()


def test_a_killed_run_goes_on(ask):
    whole, _ = ask("whole")
    with pytest.raises(KeyboardInterrupt):
        ask("killed", stop_after=1)
    killed, said = ask("killed")
    assert said[0].startswith("Continuing after 2 questions in ")
    assert said[0].endswith(", and 2 answers of the next shard are saved.")
    assert not (killed / command.JOURNAL).exists()
    assert list(read_examples(killed)) == list(read_examples(whole))
    assert read_manifest(killed)["shards"] == read_manifest(whole)["shards"]

    _, said = ask("killed")
    assert said[0].startswith("All 5 questions have already been answered")
    longer, _ = ask("killed", limit=QUESTIONS + 1)
    assert list(read_examples(longer))[:QUESTIONS] == list(read_examples(whole))
    assert len(read_examples(longer)) == QUESTIONS + 1

    other, _ = ask("other seed", seed=1, limit=2)
    texts = [example.turns[-1] for example in read_examples(other)]
    assert texts != [example.turns[-1] for example in read_examples(whole)][:2]

    before = runs.contents(whole)
    with pytest.raises(ValueError, match=r"other settings.*\n  temperature: got 0.5, expected 1.0"):
        ask("whole", temperature=0.5)
    assert runs.contents(whole) == before


def test_an_older_folder_suppressed_special_tokens(ask):
    folder, _ = ask("older", suppress="special")
    manifest = read_manifest(folder)
    assert manifest["settings"].pop("suppress") == "special"
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="suppress: got 'none', expected 'special'"):
        ask("older")
    _, said = ask("older", suppress="special")
    assert said[0].startswith("All 5 questions have already been answered")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "test"}, "the answers are for training"),
        ({"source": "math500"}, "for evaluation only"),
        ({"source": "gsm9k"}, "Unknown data set 'gsm9k'"),
        ({"temperature": float("nan")}, "temperature must be 0"),
        ({"top_p": 0.0}, "top_p must be in"),
        ({"batch_size": 0}, "--batch_size must be at least 1"),
        ({"batch_size": 10**9}, "--batch_size must be at most 4,096"),
        ({"max_new_tokens": 10**12}, "no room for a question"),
        ({"seed": 2**64}, "--seed must be from 0 to 4,294,967,295"),
        ({"seed": -1}, "--seed must be from 0 to 4,294,967,295"),
        ({"temperature": float("inf")}, "temperature must be 0"),
        ({"temperature": -1.0}, "temperature must be 0"),
        ({"top_p": 2.0}, "top_p must be in"),
        ({"top_p": float("nan")}, "top_p must be in"),
        ({"output": "/proc/answers"}, "--output /proc/answers cannot be written to"),
        ({"limit": -1}, "--limit must be 0"),
        ({"max_new_tokens": 256}, "no room for a question"),
        ({"run": RunConfig(target=TargetConfig(path="nowhere"))}, "no config.json in nowhere"),
    ],
)
def test_mistakes_write_nothing(ask, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        ask(**changes)
    assert not (tmp_path / "answers").exists()


def test_a_run_killed_in_its_first_shard_goes_on(ask, tmp_path):
    """Older versions left only this; now there is a manifest before the first answer."""
    folder = tmp_path / "answers"
    folder.mkdir()
    (folder / "examples-00000.array_record.partial").write_bytes(b"half")
    (folder / "tmpab12_x.partial").write_text("{")
    ask(limit=2)
    assert sorted(file.name for file in folder.iterdir()) == [
        "examples-00000.array_record", "manifest.json",
    ]  # fmt: skip
    assert len(read_examples(folder)) == 2


def test_one_process_writes_to_a_folder(ask, tmp_path):
    folder = tmp_path / "answers"
    with (
        held(folder, option="--output"),
        pytest.raises(InUse, match=r"--output .*answers is in use by process \d+"),
    ):
        ask(run=RunConfig(target=TargetConfig(path="nowhere")))
    assert not folder.exists()


def test_sigterm_keeps_what_was_answered(target, tmp_path, monkeypatch, capsys):
    output = tmp_path / "answers"
    arguments = ["regenerate", "--target.path", str(target), "--output", str(output)]
    arguments += ["--source", "embedded/math", "--max-new-tokens", "6", "--limit", "4"]
    arguments += ["--unfinished", "keep", "--shard_prompts", "2"]
    generate = command.Answers._generate
    calls = []

    def then_end(self, *call):
        responses = generate(self, *call)
        calls.append(len(responses))
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return responses

    monkeypatch.setattr(command.Answers, "_generate", then_end)
    assert run_as_command(console.dispatch, arguments) == STOPPED_AND_SAVED == 75
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert "Stopped: 2 of 4 questions are answered in" in said.out
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert run_as_command(console.dispatch, arguments) == 0
    assert len(read_examples(output)) == 4
    assert calls == [2, 2], "the kept answers are not asked again"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"questions_done": -1}, "got -1 as questions_done"),
        ({"questions_done": "2"}, "got '2' as questions_done"),
        ({"dropped": [1]}, r"\[1\] as dropped"),
        ({"dropped": {"empty": None}}, "None} as dropped"),
    ],
)
def test_damaged_counts_are_named(ask, tmp_path, change, message):
    folder = tmp_path / "answers"
    ask(limit=2)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(ValueError, match=rf"manifest\.json is damaged: .*{message}.*, expected"):
        ask(limit=2)


def test_other_questions_of_the_same_name_are_refused(ask, tmp_path):
    source, _ = ask("source", limit=3)
    folder, _ = ask("answers", source=str(source), limit=2)
    longer, _ = ask("source", limit=4)
    ask("answers", source=str(longer), limit=3)
    before = runs.contents(folder)
    shutil.rmtree(source)
    ask("source", source="embedded/math", limit=4)
    with pytest.raises(ValueError, match="holds answers to other questions"):
        ask("answers", source=str(source), limit=4)
    assert runs.contents(folder) == before


def test_a_question_with_several_answers_is_asked_once(ask, tmp_path, monkeypatch):
    def answered(name, question, answer):
        return Example(name, (("user", question), ("assistant", answer)), "own")

    examples = [answered("a", "Hi.", "1"), answered("b", "Hi.", "2"), answered("c", "Bye.", "3")]
    write_examples(tmp_path / "source", examples, manifest={"split": "train"})
    source = str(tmp_path / "source")
    with monkeypatch.context() as older:
        older.setattr(sources, "_asked_once", lambda examples: examples)
        unfinished, _ = ask("older", source=source, limit=2)
        every, _ = ask("every", source=source, limit=0)
        first, _ = ask("first", source=source, limit=1)
    for folder in (unfinished, every):
        with pytest.raises(ValueError, match="an older version asked some questions twice"):
            ask(folder.name, source=source, limit=0)
    _, said = ask("every", source=source, limit=1)
    assert said[0].startswith("All 1 questions have already been answered")
    # A run that was stopped before it asked any question twice continues.
    folder, said = ask("first", source=source, limit=0)
    assert folder == first and said[0].startswith("Continuing after 1 questions")
    assert [example.id for example in read_examples(folder)] == ["a", "c"]


def test_other_folders_are_left_alone(ask, tmp_path):
    folder = tmp_path / "answers"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds files that `jaxspec regenerate` did not write"):
        ask()
    (folder / "notes.txt").unlink()
    write_examples(folder, [Example("a", (("user", "x"),), "mine")], manifest={})
    before = runs.contents(folder)
    with pytest.raises(ValueError, match="not written by `jaxspec regenerate`"):
        ask()
    assert runs.contents(folder) == before


class Scripted(command.Answers):
    """Says "Yes." unless the question says otherwise; no model runs."""

    says = " Yes."

    def __init__(self, tokenizer: Tokenizer, *, unfinished: str) -> None:
        config = SimpleNamespace(max_position_embeddings=120)
        settings = SimpleNamespace(max_new_tokens=20, unfinished=unfinished)
        progress = Pace(9, unit="questions", echo=lambda line: None)
        strategy = SimpleNamespace(model=SimpleNamespace(config=config))
        super().__init__(strategy, None, tokenizer, settings, progress, AnswerJournal("nowhere"))
        self.prompts: list[str] = []
        self.given: list[list[int]] = []

    def _ask(self, prompts, names):
        responses = []
        for name, prompt in zip(names, prompts, strict=True):
            text = self._tokenizer.decode(prompt)
            self.prompts.append(text)
            question = text.rsplit("user", 1)[-1]
            answer = "" if "silence" in question else self.says
            tokens = [*self._tokenizer.encode(answer), self._tokenizer.eos_id]
            stopped = "endless" not in question
            responses.append(Response(name, tuple(tokens if stopped else tokens[:-1]), stopped))
            self.given.append([*prompt, *responses[-1].tokens])
        return responses


def conversation(name: str, *questions: str, system: str = "") -> Example:
    turns = [("system", system)] if system else []
    for question in questions:
        turns += [("user", question), ("assistant", "as the data set has it")]
    return Example(name, tuple(turns), "demo")


def test_conversations_go_on_with_the_targets_own_answers():
    answers = Scripted(Tokenizer.load("embedded"), unfinished="drop")
    asked = [conversation("a", "One?", "Two?", system="Be brief."), conversation("b", "Three?")]
    kept, lost = answers.of(asked)
    assert lost == {}
    assert kept[0].turns == (
        ("system", "Be brief."),
        ("user", "One?"),
        ("assistant", " Yes."),
        ("user", "Two?"),
        ("assistant", " Yes."),
    )
    assert kept[1] == Example("b", (("user", "Three?"), ("assistant", " Yes.")), "demo")
    assert " Yes." in answers.prompts[2]
    assert not any("as the data set has it" in prompt for prompt in answers.prompts)


def test_what_cannot_be_used_is_dropped_and_counted():
    answers = Scripted(Tokenizer.load("embedded"), unfinished="drop")
    kept, lost = answers.of(
        [
            conversation("endless", "An endless one?"),
            conversation("silent", "silence?"),
            conversation("long", "word " * 100),
            conversation("cut", "One?", "endless two?", "Three?"),
            Example("text", (("assistant", "Running text."),), "demo"),
        ]
    )
    assert lost == {
        "no_question": 1, "unfinished": 1, "empty": 1, "too_long": 1, "later_unfinished": 1,
    }  # fmt: skip
    assert [example.id for example in kept] == ["cut"]
    assert kept[0].turns == (("user", "One?"), ("assistant", " Yes.")), "what came before stays"


def test_a_folder_without_any_example_is_no_success(ask):
    """A study would go on with it, and its drafters would fail."""
    with pytest.raises(ValueError, match=r"contains no examples: .*'embedded/chat'.* unfinished"):
        ask(max_new_tokens=1, unfinished="drop")


def test_unfinished_answers_can_be_kept():
    answers = Scripted(Tokenizer.load("embedded"), unfinished="keep")
    kept, lost = answers.of([conversation("endless", "An endless one?")])
    assert lost == {}
    assert kept[0].turns[-1] == ("assistant", " Yes.")


def relearned(folder, tokenizer) -> list[list[int]]:
    """The rows of a folder up to their last learned id."""
    rows = []
    for example in read_examples(folder):
        learned = tokenizer.encode_turns(example.conversation, tools=example.tool_list)
        assert not learned.left_out
        rows += [row.ids[: row.answers[-1].stop] for row in learned.rows]
    return rows


def test_what_is_relearned_is_what_was_generated(ask, tmp_path, monkeypatch):
    """A random target, whose ids no text would give again, and a template that thinks."""
    target = runs.write_target(tmp_path / "target")
    (target / "chat_template.jinja").write_text(templates.THINKING)
    generate, made = command.Answers._generate, []

    def kept(self, prompts, names, answered):
        responses = generate(self, prompts, names, answered)
        pairs = zip(prompts, responses, strict=True)
        made.extend([*prompt, *reply.tokens] for prompt, reply in pairs if reply.stopped)
        return responses

    monkeypatch.setattr(command.Answers, "_generate", kept)
    config = RunConfig(target=TargetConfig(path=str(target)))
    settings = {"limit": 40, "batch_size": 20, "shard_prompts": 40, "max_new_tokens": 120}
    folder, said = ask(run=config, unfinished="drop", source="embedded/math", **settings)
    assert len(made) >= 3
    tokenizer = Tokenizer.load(target)
    assert sorted(relearned(folder, tokenizer)) == sorted(made)
    assert any("token_ids" in "".join(example.details) for example in read_examples(folder))
    assert f"{40 - len(made)} of 40 answers" in said[-2] and said[-2].startswith("Warning: ")
    assert "had not ended after 120 tokens and were dropped" in said[-2]
    assert "--target.enable_thinking False" in said[-2]
    assert read_manifest(folder)["ends"] == {"answers": 40, "cut": 40 - len(made)}


def test_thinking_is_kept_as_it_was_generated(tmp_path):
    folder = templates.tokenizer_folder(tmp_path / "tokenizer", templates.THINKING)
    asked = [conversation("a", "One?", "Two?")]
    for says in ("<think>\nHm.\n</think>\n\nYes.", "<think> Hm.</think>Yes. ", "\n\nYes."):
        tokenizer = Tokenizer.load(folder)
        answers = Scripted(tokenizer, unfinished="drop")
        answers.says = says
        kept, _ = answers.of(asked)
        assert [content for role, content in kept[0].turns if role == "assistant"] == [says, says]
        rows = tokenizer.encode_turns(kept[0].conversation).rows
        last = [row.ids[: row.answers[-1].stop] for row in rows]
        assert last == answers.given if len(last) == 2 else last[-1] == answers.given[-1]
        # Only where the template writes the text in another way.
        assert bool(kept[0].details) == (says != "<think>\nHm.\n</think>\n\nYes.")


def test_a_conversation_ends_before_a_tools_turn(tmp_path):
    folder = templates.tokenizer_folder(tmp_path / "tokenizer", templates.THINKING)
    answers = Scripted(Tokenizer.load(folder), unfinished="drop")
    call = {"function": {"name": "weather"}}
    turns = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "4 C, rain"},
        {"role": "assistant", "content": "Rain."},
    ]
    tools = [{"type": "function", "function": {"name": "weather"}}]
    example = Example.from_conversation(turns, id="w", source="demo", tools=tools)
    kept, lost = answers.of([example])
    assert lost == {"before_tool_turn": 1}
    assert kept[0].turns == (("user", "Weather?"), ("assistant", " Yes."))
    assert kept[0].tool_list == tools and '"weather"' in answers.prompts[0]


def test_prompts_that_the_template_refuses_are_counted(tmp_path):
    folder = templates.tokenizer_folder(tmp_path / "tokenizer", templates.BRACKETS)
    answers = Scripted(Tokenizer.load(folder), unfinished="drop")
    asked = [conversation("a", "One?"), conversation("b", "Two?", system="Be brief.")]
    kept, lost = answers.of(asked)
    assert [example.id for example in kept] == ["a"] and lost == {"refused": 1}


def test_another_template_is_not_mixed_in(ask, tmp_path):
    target = runs.write_target(tmp_path / "target")
    config = RunConfig(target=TargetConfig(path=str(target)))
    folder, _ = ask(limit=2, run=config)
    (target / "chat_template.jinja").write_text(templates.THINKING)
    before = runs.contents(folder)
    with pytest.raises(ValueError, match=r"other settings.*\n  chat template and tokenizer: got "):
        ask(limit=3, run=config)
    silent = dataclasses.replace(config.target, enable_thinking=False)
    with pytest.raises(ValueError, match="enable_thinking: got False, expected None"):
        ask(limit=3, run=dataclasses.replace(config, target=silent))
    assert runs.contents(folder) == before
    # Older versions kept no digest.
    manifest = read_manifest(folder)
    del manifest["settings"]["chat template and tokenizer"], manifest["ends"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    ask(limit=3, run=config)


def test_no_answer_is_longer_than_half_of_the_positions(target):
    config = RunConfig(target=TargetConfig(path=str(target)))
    asked = command.RegenerateCommand(source="gsm8k", output="x", run=config)
    assert command._with_length(asked, Tokenizer.load(target)).max_new_tokens == 128


@pytest.mark.parametrize(
    ("template", "thinking", "expected"),
    [
        (None, None, 1024),
        (templates.THINKING, None, 4096),
        (templates.THINKING, False, 1024),
        (templates.OPENING, None, 4096),
    ],
)
def test_a_target_that_thinks_may_answer_longer(tmp_path, template, thinking, expected):
    target = runs.write_target(tmp_path / "target")
    document = json.loads((target / "config.json").read_text())
    document["max_position_embeddings"] = 40_960
    (target / "config.json").write_text(json.dumps(document))
    if template:
        (target / "chat_template.jinja").write_text(template)
    config = TargetConfig(path=str(target), enable_thinking=thinking)
    asked = command.RegenerateCommand(source="gsm8k", output="x", run=RunConfig(target=config))
    tokenizer = Tokenizer.load(target, template_options=config.template_options)
    assert command._with_length(asked, tokenizer).max_new_tokens == expected
    longer = dataclasses.replace(asked, max_new_tokens=9)
    assert command._with_length(longer, tokenizer) is longer


def test_the_target_computes_in_its_own_type(tmp_path, monkeypatch):
    target = runs.write_target(tmp_path / "target")
    document = json.loads((target / "config.json").read_text())
    document["torch_dtype"] = document["dtype"] = "bfloat16"
    (target / "config.json").write_text(json.dumps(document))
    asked = []
    monkeypatch.setattr(command, "regenerate", asked.append)
    arguments = ["--source", "embedded/math", "--output", "x", "--target.path", str(target)]
    config = runs.write_config(tmp_path / "tiny.py", target=target)
    further = [[], ["--config", ""], ["--target.dtype", "float32"], ["--config", str(config)]]
    for more in further:
        command.main([*arguments, *more])
    dtypes = [each.run.target.dtype for each in asked]
    assert dtypes == ["bfloat16", "bfloat16", "float32", "float32"]


def test_fingerprints_tell_targets_apart(target, tmp_path):
    first = command.fingerprint(target)
    other = runs.write_target(tmp_path / "other")
    assert first == command.fingerprint(other), "the same weights"
    document = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**document, "rope_theta": 5.0}))
    assert first != command.fingerprint(other)


def test_the_command_line(target, tmp_path, capsys):
    output = tmp_path / "answers"
    arguments = ["regenerate", "--target.path", str(target), "--output", str(output)]
    arguments += ["--source", "embedded/math", "--max-new-tokens", "6"]
    assert run_as_command(console.dispatch, [*arguments, "--split", "test"]) == 2
    assert capsys.readouterr().err.startswith("error: --split is 'test'")
    assert run_as_command(console.dispatch, [*arguments, "--limmit", "2"]) == 2
    assert "Did you mean --limit?" in capsys.readouterr().err
    assert not output.exists()


def test_settings_of_the_config_are_recorded(target):
    call = command.RegenerateCommand(
        source="embedded/math",
        output="x",
        run=RunConfig(target=TargetConfig(path=str(target))),
        limit=3,
    )
    recorded = answer_folder._recorded(call)
    assert recorded.data == dataclasses.replace(
        RunConfig().data, sources=("embedded/math",), split="train", max_examples=3
    )


def test_questions_with_another_system_prompt_are_other_questions():
    """Digests of questions without one stay what they were."""

    def digest(*system):
        turns = (*(("system", text) for text in system), ("user", "1 + 1?"))
        return Questions([Example("a", turns, "math")]).digest

    assert len({digest(), digest("Be brief."), digest("Be verbose.")}) == 3
