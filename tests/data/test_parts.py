"""What is learned and what is held out."""

from __future__ import annotations

import dataclasses

import pytest

from jaxspec.config import DataConfig
from jaxspec.data import sources
from jaxspec.data.example_files import write_examples
from jaxspec.data.examples import Example
from jaxspec.data.parts import training_examples, validation_examples
from jaxspec.data.validation import is_validation

DATA = DataConfig(sources=("embedded/math", "embedded/chat"), embedded_examples=200)


def ids(examples) -> list[str]:
    return [f"{example.source} {example.id}" for example in examples]


def test_without_a_share_everything_is_learned():
    assert validation_examples(DATA) == []
    expected = [
        example
        for name in DATA.sources
        for example in sources.load_examples(name, split="train", data=DATA)
    ]
    assert list(training_examples(DATA)) == expected


def test_a_share_of_every_source_is_held_out():
    data = dataclasses.replace(DATA, validation=0.2)
    learned, held_out = list(training_examples(data)), validation_examples(data)
    assert sorted(ids(learned + held_out)) == sorted(ids(training_examples(DATA)))
    assert {example.source for example in held_out} == set(DATA.sources)
    assert 40 <= len(held_out) <= 120
    assert not {example.turns[0] for example in learned} & {e.turns[0] for e in held_out}


def test_a_folder_with_a_part_of_its_own_keeps_it(tmp_path, monkeypatch):
    folder = tmp_path / "own"
    example = Example("1", (("user", "Hi"), ("assistant", "Hello")), "own")
    write_examples(folder / "validation", [example], manifest={"split": "validation"})
    asked = []

    def load(name, *, split, data):
        asked.append((name, split))
        return [dataclasses.replace(example, id=split)]

    monkeypatch.setattr(sources, "load_examples", load)
    data = DataConfig(sources=(str(folder),), validation=0.9999)
    assert [e.id for e in training_examples(data)] == ["train"]
    assert [e.id for e in validation_examples(data)] == ["validation"]
    assert asked == [(str(folder), "train"), (str(folder), "validation")]


def conversation(number: int) -> Example:
    return Example(str(number), (("user", f"What is {number}?"), ("assistant", "So.")), "own")


@pytest.mark.parametrize("share", [0.0, 0.05, 0.4])
def test_what_one_source_holds_out_no_other_teaches(tmp_path, share):
    """As of a folder that is divided, and the file that it was made of."""
    everything = [conversation(number) for number in range(200)]
    held_out = [each for each in everything if is_validation(each, 0.2)]
    rest = [each for each in everything if each not in held_out]
    divided, whole = tmp_path / "divided", tmp_path / "whole"
    write_examples(divided, rest, manifest={"split": "train"})
    write_examples(divided / "validation", held_out, manifest={"split": "validation"})
    write_examples(whole, everything, manifest={"split": "train"})
    for names in ((divided, whole), (whole, divided), (divided, divided)):
        data = DataConfig(sources=tuple(map(str, names)), validation=share)
        learned, measured = training_examples(data), validation_examples(data)
        prompts = {example.turns[0] for example in learned}
        assert prompts and not prompts & {example.turns[0] for example in measured}
        assert list(learned) == [learned[place] for place in range(len(learned))] == learned[:]
        # Nothing is lost: what is not learned is measured.
        both = prompts | {example.turns[0] for example in measured}
        assert both == {example.turns[0] for example in everything}
    other = DataConfig(
        sources=(str(divided), "embedded/math"), embedded_examples=90, validation=share
    )
    own = [each for each in training_examples(other) if each.source == "own"]
    assert own == rest, "all of the divided folder's training part"


@pytest.mark.parametrize("split", ["test", "validation", "train_sft"])
def test_only_the_training_split_is_learned(split):
    with pytest.raises(ValueError, match=f"data.split is '{split}', but training reads only"):
        training_examples(dataclasses.replace(DATA, split=split))


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_is_a_share(share):
    with pytest.raises(ValueError, match=r"data\.validation"):
        DataConfig(validation=share)
