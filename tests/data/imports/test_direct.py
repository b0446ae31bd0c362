"""A user's own file is a source: for training, as prompts, and as a benchmark."""

import json
import shutil

import pytest

from jaxspec.config import DataConfig
from jaxspec.data import heldout
from jaxspec.data.example_files import write_examples
from jaxspec.data.heldout import HeldOutPrompts
from jaxspec.data.imports import direct
from jaxspec.data.pipeline import make_pipeline
from jaxspec.data.sources import load_examples
from jaxspec.data.tokenizer import Tokenizer
from jaxspec.evals.benchmarks import load_benchmark, load_benchmarks, own_name
from tests.fake_bucket import fake_bucket


def row(question, answer="So."):
    return {
        "messages": [
            {"role": "user", "content": question},
            *([{"role": "assistant", "content": answer}] if answer else []),
        ]
    }


@pytest.fixture
def data(tmp_path):
    return DataConfig(data_dir=str(tmp_path / "kept"))


@pytest.fixture
def file(tmp_path):
    """A file of four conversations, two of them alike."""
    return write(tmp_path / "chats.jsonl", [row(f"{n}?") for n in (1, 2, 3, 1)])


def write(path, rows):
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    return path


def load(path, data, split="train", **options):
    return load_examples(str(path), split=split, data=data, **options)


def test_a_file_is_a_source_and_is_read_once(file, data, capsys, monkeypatch):
    examples = load(file, data)
    assert [example.id for example in examples] == [f"chats.jsonl/{n}" for n in (1, 2, 3)]
    line = f"{file}: 4 conversations in OpenAI's `messages` format; left out: 1 duplicates\n"
    assert capsys.readouterr().out == line
    monkeypatch.setattr(direct, "import_files", None)
    assert list(load(file, data)) == list(examples)
    assert capsys.readouterr().out == line
    assert len(load(file, DataConfig(data_dir=data.data_dir, max_examples=2))) == 2


def test_a_changed_file_gives_other_data(file, data):
    tokenizer = Tokenizer.load("embedded")

    def fingerprint():
        settings = DataConfig(data_dir=data.data_dir, sources=(str(file),), batch_size=1)
        return make_pipeline(settings, tokenizer).fingerprint

    before = fingerprint()
    assert fingerprint() == before
    write(file, [row("1?"), row("2?"), row("3?", "Not so.")])
    assert fingerprint() != before


def test_what_is_kept_is_read_again_when_damaged(file, data, caplog):
    expected = list(load(file, data))
    (shard,) = (file.parent / "kept").rglob("*.array_record")
    shard.write_bytes(b"")
    assert list(load(file, data)) == expected
    assert "is damaged" in caplog.text


def test_what_another_process_is_uploading_is_not_removed(file, monkeypatch, caplog):
    data = DataConfig(data_dir="gs://bucket/kept")
    with fake_bucket(monkeypatch) as objects:
        expected = list(load(file, data))
        (manifest,) = (name for name in objects if name.endswith("/manifest.json"))
        del objects[manifest]  # It comes last.
        monkeypatch.setattr(direct, "remove_folder", None)
        assert list(load(file, data)) == expected
        assert manifest in objects and not caplog.records


def test_training_needs_answers_and_prompts_do_not(tmp_path, data):
    file = write(tmp_path / "a.jsonl", [row("1?"), row("2?", None)])
    with pytest.raises(ValueError, match=r"^line 2 of .*a\.jsonl: no answer") as caught:
        load(file, data)
    assert f"jaxspec import-data {file} --on-bad-row skip" in str(caught.value)
    assert not list((tmp_path / "kept").rglob("*.array_record"))
    assert len(load(file, data, use="prompts")) == 2
    assert len(load(file, data, split="test")) == 2


def test_a_question_with_several_answers_is_one_prompt(tmp_path, data, capsys):
    """For training, both answers are learned. What a tool says is never asked."""
    tool = {"name": "f", "parameters": {}}
    call = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {}}]}
    asked = {"role": "user", "content": "1?"}
    rows = [
        row("1?", "a"),
        row("1?", "b"),
        row("1?", None),
        row("2?"),
        {**row("1?"), "tools": [tool]},
    ]
    for result in ("x", "y"):
        turns = [asked, call, {"role": "tool", "content": result}, row("", result)["messages"][1]]
        rows.append({"tools": [tool], "messages": turns})
    for further in ("3?", "4?"):
        rows.append({"messages": row("1?")["messages"] + row(further)["messages"]})
    file = write(tmp_path / "a.jsonl", rows)
    ids = [each.id for each in load(file, data, use="prompts")]
    assert ids == [f"a.jsonl/{number}" for number in (1, 4, 5, 8, 9)]
    assert "left out: 4 duplicates" in capsys.readouterr().out
    del rows[2]
    folder = tmp_path / "folder"
    write_examples(folder, load(write(file, rows), data), manifest={"split": "train"})
    assert len(load(folder, data)) == 8
    again = load(folder, data, use="prompts")
    assert [each.id for each in again] == [f"a.jsonl/{number}" for number in (1, 3, 4, 7, 8)]


def test_every_line_of_a_text_is_a_prompt_for_the_target(tmp_path, data):
    """As for `jaxspec generate --prompts`; for training, the same file is running text."""
    file = tmp_path / "q.txt"
    file.write_text("Why?\n\n  Who is it?\r\n", encoding="utf-8")
    asked = load(file, data, use="prompts")
    assert [each.turns for each in asked] == [(("user", "Why?"),), (("user", "Who is it?"),)]
    assert [each.id for each in asked] == ["q.txt/1", "q.txt/3"]
    assert [each.is_running_text for each in load(file, data)] == [True]
    file.write_bytes(b"Why?\n\xff\n")
    with pytest.raises(ValueError, match=r"^line 2 of .*q\.txt: "):
        load(file, data, use="prompts")


def test_benchmarks_prompts_are_in_no_training_data(tmp_path, data, capsys, monkeypatch):
    table = HeldOutPrompts.from_table(heldout.table(["What is held out?"]))
    monkeypatch.setattr(HeldOutPrompts, "load", lambda: table)
    file = write(tmp_path / "a.jsonl", [row("1?"), row("what is  HELD out?")])
    for use in ("training", "prompts"):
        assert [e.user_turns for e in load(file, data, use=use)] == [("1?",)]
        assert "left out: 1 with a benchmark's prompt" in capsys.readouterr().out
    assert len(load(file, data, split="test")) == 2
    write(file, [row("what is held out?")])
    with pytest.raises(ValueError, match=r"Nothing is left of .*: 1 with a benchmark's prompt"):
        load(file, data)


def test_a_folder_of_files_is_a_source(file, data):
    shutil.copy(file, file.with_name("more.jsonl"))
    write(file.with_name("test.jsonl"), [row("9?")])
    folder = file.parent
    assert {e.source for e in load(folder, data)} == {"chats.jsonl"}  # the others are duplicates
    assert [e.user_turns for e in load(folder, data, split="test")] == [("9?",)]


def test_an_empty_file_of_a_folder_is_a_note(file, data, tmp_path, capsys):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "empty.jsonl").write_bytes(b"\n")
    with pytest.raises(ValueError, match=f"{folder} is empty: expected conversations"):
        load(folder, data)
    shutil.copy(file, folder)
    for _ in range(2):
        assert len(load(folder, data)) == 3
        assert f"1 duplicates\n{folder}: an empty file: empty.jsonl\n" in capsys.readouterr().out


def test_names_that_are_neither(data, file):
    with pytest.raises(ValueError, match=r"a file of conversations .*Did you mean 'gsm8k'"):
        load("gsm8", data)
    with pytest.raises(ValueError, match="Download it first: jaxspec import-data hf:a/b"):
        load("hf:a/b", data)
    with pytest.raises(ValueError, match="has no split 'validation': got a file"):
        load(file, data, split="validation")


def test_a_file_is_a_benchmark_of_its_own_name(tmp_path, data, monkeypatch):
    """The same prompts in the same order, however the path is written."""
    file = write(tmp_path / "own.jsonl", [row(f"{n}?", None) for n in range(20)])
    chosen = load_benchmark(str(file), prompts=5, data=data, seed=0)
    monkeypatch.chdir(tmp_path)
    assert load_benchmark("own.jsonl", prompts=5, data=data, seed=0) == chosen
    assert own_name(str(file)) == "own.jsonl" and own_name("gsm8k") == "gsm8k"
    assert load_benchmark(str(file), prompts=5, data=data, seed=0, split="train")  # calibration
    (tmp_path / "other").mkdir()
    other = shutil.copy(file, tmp_path / "other" / "own.jsonl")

    class Settings:
        prompts, seed = 2, 0
        benchmarks = (str(file), "embedded/math")

    assert [*load_benchmarks(Settings, data=data)] == ["own.jsonl", "embedded/math"]
    Settings.benchmarks = (str(file), str(other))
    assert [*load_benchmarks(Settings, data=data)] == [str(file), str(other)]
