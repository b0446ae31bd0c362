from __future__ import annotations

import json

import pytest

from jaxspec.cli import import_data
from jaxspec.config import DataConfig
from jaxspec.data.example_files import read_examples, read_manifest, write_examples
from jaxspec.data.examples import Example
from jaxspec.data.sources import load_examples
from jaxspec.data.validation import is_validation
from jaxspec.evals.benchmarks import load_benchmark, load_benchmarks, own_name


def lines(*prompts, answer="Yes."):
    return "\n".join(json.dumps({"prompt": prompt, "response": answer}) for prompt in prompts)


@pytest.fixture
def chats(tmp_path):
    file = tmp_path / "chats.jsonl"
    file.write_text(lines(*(f"{number}?" for number in range(40))))
    return file


@pytest.fixture
def data(tmp_path):
    return DataConfig(data_dir=str(tmp_path / "data"))


def run(*arguments) -> None:
    import_data.main([str(argument) for argument in arguments])


def test_a_folder_that_training_reads(chats, tmp_path, capsys, data):
    run(chats, "--output", tmp_path / "own")
    printed = capsys.readouterr().out
    assert f"{chats}: 40 conversations in prompt/response pairs" in printed
    assert "--data.sources" in printed and "jaxspec regenerate" in printed
    examples = load_examples(str(tmp_path / "own"), split="train", data=data)
    assert [example.turns[0][1] for example in examples] == [f"{n}?" for n in range(40)]
    record = read_manifest(tmp_path / "own")["import"]
    assert (record["rows"], record["conversations"], record["duplicates"]) == (40, 40, 0)
    assert record["sources"][0]["files"][0]["sha256"]


def test_a_bad_row_stops_it_and_nothing_is_written(chats, tmp_path):
    chats.write_text(chats.read_text() + "\nnot json\n")
    with pytest.raises(ValueError, match=r"line 41 of .*Nothing was written.*--on-bad-row skip"):
        run(chats, "--output", tmp_path / "own")
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize("option", ["--on-bad-row", "--on_bad_row"])
def test_bad_rows_can_be_skipped(chats, tmp_path, capsys, option):
    chats.write_text(chats.read_text() + "\nnot json\n")
    run(chats, option, "skip", "--output", tmp_path / "own")
    printed = capsys.readouterr().out
    assert "bad rows left out: 1" in printed and "line 41" in printed
    assert len(read_examples(tmp_path / "own")) == 40


def test_a_hash_of_the_prompt_decides_what_is_for_validation(chats, tmp_path, data):
    run(chats, "--output", tmp_path / "own", "--validation", 0.25)
    train = load_examples(str(tmp_path / "own"), split="train", data=data)
    kept_out = load_examples(str(tmp_path / "own"), split="validation", data=data)
    assert len(train) + len(kept_out) == 40 and kept_out
    assert all(is_validation(example, 0.25) for example in kept_out)
    assert not any(is_validation(example, 0.25) for example in train)


def test_importing_again_replaces_an_import_and_nothing_else(chats, tmp_path):
    output = tmp_path / "own"
    run(chats, "--output", output)
    chats.write_text(lines("new?"))
    run(chats, "--output", output)
    assert len(read_examples(output)) == 1
    (output / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match=r"mine\.txt"):
        run(chats, "--output", output)
    answers = tmp_path / "answers"
    turns = (("user", "a"), ("assistant", "b"))
    write_examples(answers, [Example("a", turns, "a")], manifest={"split": "train"})
    with pytest.raises(ValueError, match="would be lost"):
        run(chats, "--output", answers)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--validation", "1"], "--validation must be"),
        (["--validation", "0.1", "--use", "benchmark"], "--validation is for training"),
    ],
)
def test_mistakes(chats, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        run(chats, "--output", tmp_path / "own", *arguments)


def test_a_file_is_a_source_and_a_changed_one_is_another(chats, data, capsys):
    first = load_examples(str(chats), split="train", data=data)
    assert len(first) == 40
    assert "40 conversations in prompt/response pairs" in capsys.readouterr().out
    chats.write_text(lines("other?"))
    (only,) = load_examples(str(chats), split="train", data=data)
    assert only.turns[0] == ("user", "other?")


def test_a_file_with_a_bad_row_says_how_to_leave_it_out(chats, data):
    chats.write_text("not json\n" + chats.read_text())
    with pytest.raises(ValueError, match=r"import-data .* --on-bad-row skip"):
        load_examples(str(chats), split="train", data=data)


def test_prompts_are_asked_and_not_learned(tmp_path, data):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a?"}\n{"prompt": "b?"}\n')
    assert len(load_examples(str(file), split="train", data=data, use="prompts")) == 2
    with pytest.raises(ValueError, match="no answer"):
        load_examples(str(file), split="train", data=data)
    run(file, "--use", "prompts", "--output", tmp_path / "own")
    with pytest.raises(ValueError, match="let the target answer them"):
        load_examples(str(tmp_path / "own"), split="train", data=data)


def test_a_file_is_a_benchmark_called_by_its_name(tmp_path, data, chats):
    assert own_name(str(chats)) == "chats.jsonl"
    assert own_name("gsm8k") == "gsm8k"
    asked = load_benchmark(str(chats), prompts=5, data=data, seed=0)
    assert len(asked) == 5
    other = tmp_path / "other" / "chats.jsonl"
    other.parent.mkdir()
    other.write_text(lines("x?"))
    from jaxspec.config import EvaluationConfig

    both = EvaluationConfig(benchmarks=(str(chats), str(other)), prompts=2)
    assert list(load_benchmarks(both, data=data)) == [str(chats), str(other)]


class FakeHub:
    """What `jaxspec.data.imports.hub` uses of huggingface_hub."""

    def __init__(self, folder, error=None):
        self.folder, self.error, self.asked = folder, error, []

    def dataset_info(self, name, revision):
        import types

        if self.error is not None:
            raise self.error
        self.asked.append((name, revision))
        names = ["README.md", "data/train-0.jsonl", "data/test-0.jsonl"]
        siblings = [types.SimpleNamespace(rfilename=each) for each in names]
        return types.SimpleNamespace(siblings=siblings, sha="abc")

    def fetch(self, name, *, filename, repo_type, revision):
        assert (repo_type, revision) == ("dataset", "abc")
        file = self.folder / filename.replace("/", "_")
        file.write_text(lines(f"{filename}?"))
        return str(file)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    import huggingface_hub

    fake = FakeHub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.fetch)
    return fake


def test_a_data_set_of_the_hub(hub, tmp_path):
    run("hf:me/chats", "--revision", "main", "--output", tmp_path / "own")
    assert hub.asked == [("me/chats", "main")]
    (only,) = read_examples(tmp_path / "own")
    assert only.turns[0] == ("user", "data/train-0.jsonl?")
    assert read_manifest(tmp_path / "own")["import"]["sources"][0]["revision"] == "abc"


def test_without_a_network_the_hub_is_one_message(hub, tmp_path):
    hub.error = ConnectionError("unreachable")
    with pytest.raises(ValueError, match="cannot be reached"):
        run("hf:me/chats", "--output", tmp_path / "own")
