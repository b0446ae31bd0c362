"""What is learned and what is held out."""

from __future__ import annotations

import dataclasses

import pytest

from jaxspec.config import DataConfig
from jaxspec.data import sources
from jaxspec.data.example_files import write_examples
from jaxspec.data.examples import Example
from jaxspec.data.parts import training_examples, validation_examples

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


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_is_a_share(share):
    with pytest.raises(ValueError, match=r"data\.validation"):
        DataConfig(validation=share)
