"""``jaxspec import-data``: what it writes, what it says, and what it refuses."""

import json

import pytest

from jaxspec.cli import import_data as module
from jaxspec.cli import main as console
from jaxspec.cli.configuration import run_as_command
from jaxspec.config import DataConfig
from jaxspec.data import heldout
from jaxspec.data.example_files import read_examples, read_manifest, write_examples
from jaxspec.data.examples import Example
from jaxspec.data.heldout import HeldOutPrompts
from jaxspec.data.imports import writing
from jaxspec.data.sources import load_examples
from jaxspec.data.validation import is_validation
from jaxspec.files import held_file


def line(question, answer="So."):
    turns = [{"role": "user", "content": question}]
    if answer is not None:
        turns.append({"role": "assistant", "content": answer})
    return json.dumps({"messages": turns}).encode() + b"\n"


BAD_ROWS = [
    line("no answer", None),
    b'{"messages": []}\n',
    b'{"messages": [{"role": "oracle", "content": "x"}]}\n',
    b'{"messages": [{"role": "assistant", "content": "answer first"}]}\n',
    b"not json\n",
    b'{"messages": [{"role": "user", "content": 5}, {"role": "assistant", "content": "b"}]}\n',
    b'{"messages": [{"role": "user", "content": "\xe9"}]}\n',
]


def run(*arguments):
    return run_as_command(console.dispatch, ["import-data", *map(str, arguments)])


def load(folder, split="train", **options):
    return load_examples(str(folder), split=split, data=DataConfig(), **options)


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "chats.jsonl"
    file.write_bytes(b"".join(line(f"{n}?") for n in (1, 2, 3, 1)))
    return file


def test_a_file_becomes_a_source(file, tmp_path, capsys, monkeypatch):
    table = HeldOutPrompts.from_table(heldout.table(["3?"]))
    monkeypatch.setattr(HeldOutPrompts, "load", lambda: table)
    assert run(file, "--output", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert f"{file}: 4 conversations in OpenAI's `messages` format\n" in said
    assert f"Imported 2 conversations with 4 turns into {tmp_path / 'out'} (4 rows in " in said
    assert "  duplicates left out: 1\n  rows with a benchmark's prompt left out: 1\n" in said
    assert "  bad rows left out: 0\n" in said
    assert f"--data.sources {tmp_path / 'out'}\n" in said
    assert f"--source {tmp_path / 'out'} --output ANSWERS\n" in said
    assert [example.user_turns for example in load(tmp_path / "out")] == [("1?",), ("2?",)]
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"text": "3?", "code": "3"}) + '\n{"text": "Once."}\n')
    assert run(texts, "--output", tmp_path / "texts") == 0
    assert "  rows with a benchmark's prompt left out: 1\n" in capsys.readouterr().out
    manifest = read_manifest(tmp_path / "out")
    assert "settings" not in manifest  # those of a target that answered
    record = manifest["import"]
    assert record["sources"][0]["files"][0]["file"] == "chats.jsonl"
    counts = {"rows": 4, "conversations": 2, "turns": 4, "duplicates": 1, "benchmark_prompts": 1}
    assert {name: record[name] for name in counts} == counts
    assert manifest["provenance"]["seed"] is None


@pytest.mark.parametrize("option", ["--on-bad-row", "--on_bad_row"])
def test_bad_rows_stop_the_import_or_are_left_out_and_said(tmp_path, capsys, option):
    file, output = tmp_path / "bad.jsonl", tmp_path / "out"
    file.write_bytes(line("a") + b"".join(BAD_ROWS) + b"\n\xef\xbb\xbf" + line("b")[:-1] + b"\r\n")
    assert run(file, "--output", output) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: line 2 of {file}: no answer: ")
    assert "Nothing was written." in error and "--on-bad-row skip" in error
    assert sorted(tmp_path.iterdir()) == [file]
    assert run(file, "--output", output, option, "skip") == 0
    said = capsys.readouterr().out
    assert "  bad rows left out: 7\n" in said
    for number, reason in enumerate(
        (
            *("no answer", "no turns", "unknown role", "roles out of order", "not JSON"),
            *("content that is not text", "not UTF-8"),
        ),
        start=2,
    ):
        assert f"    1 {reason}\n      line {number} of {file}" in said
    assert [example.user_turns for example in load(output)] == [("a",), ("b",)]


def test_one_bad_row_in_1000_is_found(tmp_path, capsys):
    file, output = tmp_path / "a.jsonl", tmp_path / "out"
    lines = [line(f"{n}?") for n in range(1000)]
    lines[777] = line("x", None)
    file.write_bytes(b"".join(lines))
    assert run(file, "--output", output) == 2
    message = capsys.readouterr().err
    assert f"line 778 of {file}: no answer" in message and "--use prompts" in message
    assert run(file, "--output", output, "--on-bad-row", "skip") == 0
    assert "  bad rows left out: 1\n" in capsys.readouterr().out
    assert len(load(output)) == 999


def test_the_validation_split_lies_in_the_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(writing, "SHARD_EXAMPLES", 16)
    file, output = tmp_path / "a.jsonl", tmp_path / "out"
    file.write_bytes(b"".join(line(f"{n}?") for n in range(100)))
    assert run(file, "--output", output, "--validation", 0.2) == 0
    training, validation = load(output), load(output, split="validation")
    assert len(training) + len(validation) == 100 and len(validation) > 5
    assert all(is_validation(example, 0.2) for example in validation)
    assert not any(is_validation(example, 0.2) for example in training)
    assert (
        f"  for validation: {len(validation)}, in {output}/validation\n" in capsys.readouterr().out
    )
    few = tmp_path / "few.jsonl"
    few.write_bytes(line("one?"))
    assert run(few, "--output", tmp_path / "few", "--validation", 1e-9) == 0
    assert "no prompt was chosen for validation" in capsys.readouterr().out
    assert run(few, "--output", tmp_path / "few", "--validation", 0.999999) == 0
    assert "every prompt was chosen for validation" in capsys.readouterr().out
    assert run(file, "--output", output) == 0  # an earlier import is replaced
    assert len(load(output)) == 100
    with pytest.raises(ValueError, match="has no validation split: import the files again"):
        load(output, split="validation")


def test_files_of_one_name_have_rows_of_different_names(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "q.jsonl").write_bytes(line(f"{folder}?"))
    output = tmp_path / "both"
    files = [tmp_path / folder / "q.jsonl" for folder in ("a", "b")]
    assert run(*files, "--output", output) == 0
    assert [example.id for example in read_examples(output)] == ["q.jsonl/1", "q.jsonl (2)/1"]


def test_a_source_of_which_nothing_is_left_stops_no_other(file, tmp_path, capsys):
    """Two sources with rows of their own, one of duplicates, one of bad rows, and an empty one."""
    names = {"copy": file.read_bytes(), "bad": b"x\nx\n", "empty": b"", "last": line("9?") + b"x\n"}
    sources = [file]
    for name, content in names.items():
        sources.append(tmp_path / f"{name}.jsonl")
        sources[-1].write_bytes(content)
    output = tmp_path / "out"
    assert run(*sources, "--output", output, "--on-bad-row", "skip") == 0
    said = capsys.readouterr().out
    assert f"Nothing is left of {tmp_path / 'copy.jsonl'}: 4 duplicates.\n" in said
    assert f"Nothing is left of {tmp_path / 'bad.jsonl'}: 2 bad rows.\n" in said
    assert f"{tmp_path / 'empty.jsonl'} is empty.\n" in said
    assert f"{tmp_path / 'last.jsonl'}: 1 conversation in" in said
    assert "  duplicates left out: 5\n" in said
    places = [f"      line {n} of {tmp_path / name}.jsonl" for n, name in ((1, "bad"), (2, "last"))]
    assert "    3 not JSON\n" in said and all(place in said for place in places)
    assert [example.user_turns for example in load(output)] == [("1?",), ("2?",), ("3?",), ("9?",)]
    record = read_manifest(output)["import"]
    assert (record["rows"], record["empty_files"]) == (12, ["empty.jsonl"])
    few = sources[2:4]
    assert run(*few, "--output", tmp_path / "none", "--on-bad-row", "skip") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: Nothing is left of {few[0]}, {few[1]}: 2 bad rows.\n")
    assert "  2 not JSON\n" in error and not (tmp_path / "none").exists()


def test_files_that_are_not_read_are_named(tmp_path, capsys):
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("chats", "more", "train_extra", "test"):
        (folder / f"{name}.jsonl").write_bytes(line(f"{name}?"))
    assert run(folder, "--output", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert f"{folder}: not read: chats.jsonl and 1 more. No split is in their names" in said
    assert len(load(folder)) == 1
    assert "not read: chats.jsonl and 1 more" in capsys.readouterr().out
    (folder / "train_extra.jsonl").unlink()
    assert len(load(folder)) == 2, "no file has the split's name: those that have none are read"
    assert "not read" not in capsys.readouterr().out


def test_texts_beside_files_with_rows_are_no_data(tmp_path, capsys):
    folder = tmp_path / "set"
    for name in ("LICENSE.txt", "docs/README.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"About {name}.")
    assert len(load(folder)) == 2, "texts alone are data"
    said = capsys.readouterr().out
    assert "not read" not in said
    assert f"{folder}: files of 2 folders are read: ., docs\n" in said
    (folder / "chats.jsonl").write_bytes(line("1?"))
    for use in ("training", "prompts"):
        output = tmp_path / use
        assert run(folder, "--output", output, "--use", use) == 0
        said = capsys.readouterr().out
        assert f"{folder}: not read: LICENSE.txt and 1 more. Plain text of a folder" in said
        assert [example.user_turns for example in read_examples(output)] == [("1?",)]
        assert len(load(folder, use=use)) == 1
        assert "not read: LICENSE.txt and 1 more" in capsys.readouterr().out


def test_a_benchmark_is_made_of_the_test_files(tmp_path, capsys):
    """As where the folder itself is named in --evaluation.benchmarks."""
    folder = tmp_path / "set"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text(json.dumps({"prompt": f"a {split} question"}) + "\n")
    for words, expected in (([], "test"), (["--split", "train"], "train")):
        output = tmp_path / f"bench-{expected}"
        assert run(folder, "--output", output, "--use", "benchmark", *words) == 0
        (example,) = read_examples(output)
        assert example.turns == (("user", f"a {expected} question"),)
    (folder / "test.jsonl").unlink()
    assert run(folder, "--output", tmp_path / "none", "--use", "benchmark") == 2
    assert "Choose one of them: jaxspec import-data ... --split NAME." in capsys.readouterr().err


def test_prompts_and_benchmarks_need_no_answers(tmp_path, capsys):
    file = tmp_path / "a.jsonl"
    file.write_bytes(line("1?", None))
    assert run(file, "--output", tmp_path / "prompts", "--use", "prompts") == 0
    assert "Let the target answer them: jaxspec regenerate" in capsys.readouterr().out
    assert len(load(tmp_path / "prompts", use="prompts")) == 1
    with pytest.raises(ValueError, match="holds prompts, not answers to learn"):
        load(tmp_path / "prompts")
    assert run(file, "--output", tmp_path / "bench", "--use", "benchmark") == 0
    assert f"--evaluation.benchmarks {tmp_path / 'bench'}\n" in capsys.readouterr().out
    assert len(load(tmp_path / "bench", split="test")) == 1
    with pytest.raises(ValueError, match="holds the test split"):
        load(tmp_path / "bench")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Nothing to import: name a file, a folder, or hf:NAME."),
        (["missing.jsonl"], "There is no file or folder 'missing.jsonl'"),
        (["empty.jsonl"], "empty.jsonl is empty"),
        (
            ["chats.jsonl", "--validation", "1"],
            "--validation must be at least 0 and below 1: got 1",
        ),
        (
            ["chats.jsonl", "--validation", "0.1", "--use", "prompts"],
            "--validation is for training",
        ),
    ],
)
def test_mistakes_are_one_message(file, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").write_bytes(b"")
    assert run(*arguments, "--output", "out") == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_else_is_refused(file, tmp_path, capsys):
    answers, notes = tmp_path / "answers", tmp_path / "notes"
    write_examples(answers, [Example("a", (("user", "1?"),), "a")], manifest={"settings": {}})
    assert run(file, "--output", answers) == 2
    assert "holds examples that `jaxspec import-data` did not write" in capsys.readouterr().err
    assert len(load(answers, use="prompts")) == 1
    notes.mkdir()
    (notes / "notes.txt").write_text("kept")
    assert run(file, "--output", notes) == 2
    assert "notes.txt" in capsys.readouterr().err and (notes / "notes.txt").exists()
    with held_file(tmp_path / "out", option="--output"):
        assert run(file, "--output", tmp_path / "out") == 2
    assert "is in use by process" in capsys.readouterr().err


def test_a_stopped_import_leaves_what_was_there(file, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out"
    assert run(file, "--output", output) == 0
    before = list(load(output))

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(writing, "is_validation", stop)
        assert run(file, "--output", output, "--validation", 0.5) == 130
    assert list(load(output)) == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["chats.jsonl", "out"]


def test_progress_is_said_while_it_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(writing, "_PROGRESS_SECONDS", 0.0)
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"".join(line(f"{n}?") for n in range(300)) + b"x\n" * 300)
    assert run(file, "--output", tmp_path / "out", "--on-bad-row", "skip") == 0
    said = capsys.readouterr().out
    assert "512 rows  " in said and " rows/s  212 bad\n" in said


def test_the_help_fits_a_terminal(capsys):
    with pytest.raises(SystemExit):
        module.main(["--help"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for option in ("--output", "--on_bad_row", "--use", "--validation", "--split", "--revision"):
        assert option in text


def test_names_of_files_cannot_write_to_the_terminal(tmp_path, capsys):
    name = "a" + chr(27) + "[2J" + chr(0x202E) + ".jsonl"
    (tmp_path / name).write_bytes(b"not json\n" + line("1?"))
    assert run(tmp_path / name, "--output", tmp_path / "out") == 2
    assert run(tmp_path / name, "--output", tmp_path / "out", "--on-bad-row", "skip") == 0
    said = "".join(capsys.readouterr())
    assert "a\\x1b[2J\\u202e.jsonl" in said
    assert all(char.isprintable() or char == "\n" for char in said)
