"""Learned documents against the prompts of evaluation, and answers that cannot be learned."""

import dataclasses

import numpy as np
import pytest

from jaxspec.config import DataConfig
from jaxspec.data import pipeline as pipeline_module
from jaxspec.data.examples import Example
from jaxspec.data.packing import Documents
from jaxspec.data.pipeline import make_pipeline, tokenize, tokenized_documents
from jaxspec.data.served_turns import REFUSED, THINKS
from jaxspec.data.template_parity import CHECKED, check_parity
from jaxspec.data.tokenizer import Tokenizer
from tests.data import templates

DATA = DataConfig(sources=("mine",), sequence_length=128, batch_size=2)


def example(number, *turns, system=""):
    told = [("user", "How far is it?"), ("assistant", "12 miles."), ("user", "And back?")]
    told = [("system", system)] * bool(system) + [*told, ("assistant", "24 miles."), *turns]
    return Example(f"mine/{number}", tuple(told), "mine")


def thinking(number):
    return Example(
        f"mine/{number}",
        (("user", "Is 9 prime?"), ("assistant", "<think>\n3 x 3\n</think>\n\nNo.")),
        "mine",
    )


@pytest.fixture(scope="module")
def silent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("silent") / "tokenizer"
    templates.tokenizer_folder(folder, templates.THINKING)
    return Tokenizer.load(folder, template_options={"enable_thinking": False})


def documents_of(examples, tokenizer):
    return tokenize(examples, tokenizer, loss_on="response", sequence_length=128).documents


def changed(documents, place, **change):
    """The documents with the one at a place changed."""
    all_ = [documents[number] for number in range(len(documents))]
    ids, mask = (array.copy() for array in all_[place])
    all_[place] = (change.get("ids", lambda x: x)(ids), change.get("mask", lambda x: x)(mask))
    return Documents.from_list(all_, names=documents.names)


def test_documents_follow_the_generation_prompt(silent):
    examples = [example(number) for number in range(5)]
    documents = documents_of(examples, silent)
    assert len(documents) == 10
    assert check_parity(examples, documents, silent) == 10
    many = [example(number) for number in range(3 * CHECKED)]
    assert check_parity(many, documents_of(many, silent), silent) == 2 * CHECKED


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"ids": lambda ids: np.roll(ids, 1)},
            r"differ at token 0: learned '<\|im_end\|>.*, generation prompt '<\|im_start\|>user",
        ),
        ({"ids": lambda ids: np.where(np.arange(len(ids)) == 9, 77, ids)}, "differ at token 9"),
        ({"ids": lambda ids: np.where(ids == 2, 7, ids)}, "differ at token"),
        (
            {"ids": lambda ids: ids[:-1], "mask": lambda mask: mask[:-1]},
            r"the learned answer ends with '.* miles\.', expected one of the stop tokens",
        ),
        ({"mask": np.zeros_like}, "not marked as learned"),
    ],
)
def test_a_difference_is_named(silent, change, message):
    examples = [example(number) for number in range(3)]
    documents = documents_of(examples, silent)
    with pytest.raises(ValueError, match=rf"^Example 'mine/1', turn 1: .*{message}"):
        check_parity(examples, changed(documents, 2, **change), silent)


def test_examples_of_one_name_are_told_apart(silent):
    """As of two files that are called alike."""
    one = [example(0), example(1)]
    other = [
        dataclasses.replace(each, id=f"mine/{n}") for n, each in enumerate([*map(example, (7, 8))])
    ]
    examples = one + other
    documents = documents_of(examples, silent)
    assert check_parity(examples, documents, silent) == len(documents)
    damaged = changed(documents, 4, mask=np.zeros_like)
    with pytest.raises(ValueError, match=r"^Example 'mine/0', turn 1: .*not marked"):
        check_parity(examples, damaged, silent)
    # An example without documents of its own: nobody knows whose the others are.
    assert check_parity([*examples, thinking(1)], documents, silent) == len(documents) // 2


def test_two_answers_in_a_row_are_learned(silent):
    twice = [example(0, ("assistant", "Or 15 miles."))]
    made = tokenize(twice, silent, loss_on="response", sequence_length=128)
    assert (made.answers, made.left_out) == (3, {})
    assert check_parity(twice, made.documents, silent) == 2


def test_documents_of_another_template_are_noticed(silent):
    examples = [example(number) for number in range(3)]
    other = Tokenizer.load("embedded")
    with pytest.raises(ValueError, match=r"'mine/0' was tokenized into 1 documents: expected 2"):
        check_parity(examples, documents_of(examples, other), silent)


def test_a_run_does_not_start_with_a_difference(silent, monkeypatch):
    examples = [example(number) for number in range(3)]
    monkeypatch.setattr(pipeline_module.sources, "load_examples", lambda *_, **__: examples)
    damaged = changed(documents_of(examples, silent), 0, ids=lambda ids: np.roll(ids, 1))
    made = pipeline_module.Tokenized(damaged, 6, {})
    monkeypatch.setattr(pipeline_module, "tokenize", lambda *_, **__: made)
    with pytest.raises(ValueError, match=r"^Example 'mine/0', turn 1: "):
        make_pipeline(DATA, silent)


def test_a_few_answers_are_left_out_and_counted(silent, monkeypatch):
    examples = [example(0), thinking(1), example(2)]
    monkeypatch.setattr(pipeline_module.sources, "load_examples", lambda *_, **__: examples)
    pipeline = make_pipeline(DATA, silent)
    assert pipeline.left_out == {THINKS: 1}
    assert pipeline.notes[0] == f"1 of 5 answers are left out: 1 ({THINKS})."
    assert pipeline.notes[1].startswith("4 learned answers were compared with the generation")
    assert pipeline.statistics.documents == 4


def test_most_answers_must_be_learned(silent, monkeypatch):
    examples = [example(0), *map(thinking, range(1, 4))]
    with pytest.raises(ValueError, match=r"3 of 5 .*'mine/1': Turn 1 has thinking of its own"):
        documents_of(examples, silent)


def test_roles_that_a_template_refuses(tmp_path):
    folder = templates.tokenizer_folder(tmp_path / "tokenizer", templates.BRACKETS)
    tokenizer = Tokenizer.load(folder)
    examples = [example(0), example(1, system="Be brief."), example(2)]
    made = tokenize(examples, tokenizer, loss_on="response", sequence_length=128)
    assert (made.answers, made.left_out) == (4, {REFUSED: 2})
    with pytest.raises(ValueError, match=r"'mine/1': .*roles \['system', 'user'\]: only user"):
        documents_of(examples[1:2], tokenizer)


def test_what_is_left_out_is_cached_with_the_documents(silent, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(pipeline_module, "CACHE_FROM", 1)
    data = dataclasses.replace(DATA, data_dir=str(tmp_path))
    examples = [example(0), thinking(1)]
    made, _ = tokenized_documents(examples, silent, data=data)
    (file,) = tmp_path.glob("tokenized/*.npz")
    with np.load(file) as arrays:
        older = {name: arrays[name] for name in arrays.files if name != "answers"}
    tokenized = pipeline_module.tokenize
    monkeypatch.setattr(pipeline_module, "tokenize", None)
    kept, _ = tokenized_documents(examples, silent, data=data)
    assert (kept.answers, kept.left_out) == (made.answers, made.left_out) == (2, {THINKS: 1})
    # Older versions counted nothing: their file is made again.
    with file.open("wb") as opened:
        np.savez(opened, **older)
    monkeypatch.setattr(pipeline_module, "tokenize", tokenized)
    again, _ = tokenized_documents(examples, silent, data=data)
    assert again.left_out == {THINKS: 1} and "damaged" not in caplog.text


def test_thinking_on_and_off_are_other_data(silent):
    spoken = Tokenizer.load(silent.folder)
    plain = [Example("a", (("user", "Hi."), ("assistant", "Hello.")), "mine")]
    digests = {tokenized_documents(plain, each, data=DATA)[1] for each in (silent, spoken)}
    assert len(digests) == 2


def test_loss_on_all_learns_a_repeated_prompt_once(silent):
    examples = [example(0)]
    made = tokenize(examples, silent, loss_on="all", sequence_length=128).documents
    (first, _), (second, mask) = made[0], made[1]
    start = int(np.argmax(mask))
    assert mask[start:].all() and np.array_equal(first[:start], second[:start])
    assert first[start] != second[start] and start > 10


def test_speech_of_tools_is_not_learned(silent):
    call = {"function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    turns = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "4 C, rain"},
        {"role": "assistant", "content": "Rain."},
    ]
    tools = [{"type": "function", "function": {"name": "weather"}}]
    asked = Example.from_conversation(turns, id="mine/0", source="mine", tools=tools)
    documents = documents_of([asked], silent)
    assert check_parity([asked], documents, silent) == 2
    learned = silent.decode(documents.tokens[documents.loss_mask])
    assert learned == '<call>weather({"city": "Oslo"})</call>Rain.'
