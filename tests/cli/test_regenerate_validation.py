"""jaxspec regenerate answers both parts of a source that has one for validation."""

import pytest

from jaxspec.config import DataConfig
from jaxspec.data.example_files import read_examples, read_manifest, write_examples
from jaxspec.data.examples import Example
from jaxspec.data.parts import training_examples, validation_examples
from tests.cli.test_regenerate_shared import shared_out
from tests.training import runs

LEARNED, HELD_OUT = 3, 2


def question(number: int) -> Example:
    turns = (("user", f"What is {number} plus 1?"), ("assistant", f"{number + 1}."))
    return Example(f"q{number}", turns, "own")


@pytest.fixture
def source(tmp_path):
    """A folder as `jaxspec import-data --validation` makes it."""
    folder = tmp_path / "source"
    examples = [question(number) for number in range(LEARNED + HELD_OUT)]
    write_examples(folder, examples[:LEARNED], manifest={"split": "train"})
    write_examples(folder / "validation", examples[LEARNED:], manifest={"split": "validation"})
    return str(folder)


def ids(examples) -> list[str]:
    return [example.id for example in examples]


def test_both_parts_are_answered(ask, source):
    folder, said = ask(source=source)
    said = [line for line in said if " asked: " in line]
    assert said[0].startswith(f"Questions asked: {LEARNED}; examples written: {LEARNED}, in ")
    assert f"Validation questions asked: {HELD_OUT}; examples written: {HELD_OUT}, " in said[-1]
    assert said[-1].endswith(f"Training on {folder} measures the loss on them")
    data = DataConfig(sources=(str(folder),))
    assert ids(training_examples(data)) == ["q0", "q1", "q2"]
    assert ids(validation_examples(data)) == ["q3", "q4"]
    assert all(example.turns[-1] not in question(3).turns for example in validation_examples(data))
    assert read_manifest(folder / "validation")["split"] == "validation"

    before = runs.contents(folder)
    _, said = ask(source=source)
    assert said[0] == f"All {LEARNED} questions have already been answered in {folder}."
    assert said[3].startswith(f"All {HELD_OUT} validation questions have already been answered in ")
    assert runs.contents(folder) == before


@pytest.mark.parametrize("lines", range(6))
def test_stopped_anywhere_it_goes_on(ask, source, lines):
    whole, said = ask("whole", source=source)
    assert len(said) == 7, "two shards and what is in them, one shard and what is in it"
    with pytest.raises(KeyboardInterrupt):
        ask("stopped", source=source, stop_after=lines)
    stopped, said = ask("stopped", source=source)
    assert any("Continuing after" in line or "already been answered" in line for line in said)
    for part in (".", "validation"):
        assert list(read_examples(stopped / part)) == list(read_examples(whole / part))
    assert sorted(runs.contents(stopped)) == sorted(runs.contents(whole))


def test_answers_of_an_older_version_get_the_second_part(ask, source, tmp_path):
    folder, _ = ask(source=source)
    whole = list(read_examples(folder / "validation"))
    for file in (folder / "validation").iterdir():
        file.unlink()
    (folder / "validation").rmdir()
    ask(source=source)
    assert list(read_examples(folder / "validation")) == whole


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_both_parts_out(ask, source, tmp_path, count):
    whole, _ = ask("whole", source=source, shard_prompts=1)
    said = shared_out(ask, count, "shared", source=source, shard_prompts=1)
    assert "Validation questions asked: 2;" in said[0][-1]
    for part in (".", "validation"):
        assert list(read_examples(tmp_path / "shared" / part)) == list(read_examples(whole / part))
    assert sorted(runs.contents(tmp_path / "shared")) == sorted(runs.contents(whole))


def test_a_part_without_usable_answers_is_no_failure(ask, tmp_path, source):
    other = tmp_path / "other"
    write_examples(other, [question(1)], manifest={"split": "train"})
    text = Example("t", (("assistant", "No question."),), "own")
    write_examples(other / "validation", [text], manifest={"split": "validation"})
    folder, said = ask(source=str(other))
    assert said[-1].startswith("Validation questions asked: 1; examples written: 0, in ")
    assert "1 no question" in said[-1] and "measures" not in said[-1]
    assert validation_examples(DataConfig(sources=(str(folder),))) == []
