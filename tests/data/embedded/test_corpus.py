"""The embedded corpus: right answers, splits that share nothing, and bytes that never change."""

import hashlib
import json
import re
import statistics
import subprocess
import sys

import pytest

from jaxspec.data.embedded import chat as embedded_chat
from jaxspec.data.embedded import code as embedded_code
from jaxspec.data.embedded import corpus as embedded
from jaxspec.data.embedded import math as embedded_math
from jaxspec.data.embedded.chat_people import FIELDS
from jaxspec.data.embedded.code_ops import OPERATIONS
from jaxspec.data.embedded.math_endings import STEPS
from jaxspec.data.embedded.math_steps import OPENINGS
from jaxspec.data.embedded.split import HELD_OUT_ONE_IN, members
from jaxspec.data.tokenizer import Tokenizer

# The shipped target was trained on this text: a change of it is a change of the release.
_DIGESTS = {
    "train": "a204832d764122701d116e09b22865ac2d29468c385135b3ecbc68a344fba8d6",
    "test": "050bdeb105bf9e788dbc08109c09ca9bfb70d1b4de47ba41ca448bb63004d351",
}


@pytest.fixture(scope="module")
def corpus():
    """20,000 mixed training examples, as a run reads them, and a larger test split than any."""
    train = embedded.generate_mixture("train", 20_000)
    test = [x for kind in embedded.KINDS for x in embedded.generate(kind, split="test", count=1000)]
    return {"train": train, "test": test}


def _of_kind(examples, kind):
    return [example for example in examples if example.source == f"embedded/{kind}"]


def _answers(example):
    return [content for role, content in example.turns if role == "assistant"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_text_is_frozen(split):
    digest = hashlib.sha256()
    for kind in embedded.KINDS:
        for example in embedded.generate(kind, split=split, count=3000):
            digest.update(json.dumps([example.id, example.turns]).encode())
    assert digest.hexdigest() == _DIGESTS[split]


@pytest.mark.parametrize("kind", embedded.KINDS)
def test_sequence_depends_on_split_and_seed_alone(kind):
    short = embedded.generate(kind, split="test", count=20, seed=3)
    assert short == embedded.generate(kind, split="test", count=50, seed=3)[:20]
    other = embedded.generate(kind, split="test", count=20, seed=4)
    assert not {x.turns for x in short} & {x.turns for x in other}
    assert embedded.generate(kind, split="test", count=0) == []


def test_mixture_takes_kinds_in_turn():
    mixture = embedded.generate_mixture("test", 8)
    assert [x.source.split("/")[1] for x in mixture] == [*embedded.KINDS, *embedded.KINDS][
        :6
    ] + list(embedded.KINDS[:2])
    assert mixture[3] == embedded.generate("math", split="test", count=2)[1]
    assert len({x.id for x in mixture}) == 8


def test_no_prompt_twice_and_none_in_both_splits(corpus):
    def key(example):
        # Case, punctuation and spacing do not make a prompt new.
        return re.sub(r"[^a-z0-9]+", " ", example.turns[0][1].lower())

    train, test = ([key(x) for x in corpus[split]] for split in ("train", "test"))
    # A few code prompts differ in a sign alone: joined by "-" or by "+".
    assert len(set(train)) > 0.999 * len(train)
    assert len(set(test)) > 0.999 * len(test)
    assert not set(train) & set(test)
    for examples in corpus.values():
        prompts = [x.turns[0][1] for x in examples]
        assert len(set(prompts)) == len(prompts)


def test_held_out_prompts_are_new_even_with_other_numbers(corpus):
    """The same story with a 7 for a 6 would not be held out."""

    def skeleton(example):
        return re.sub(r"\d+", "0", example.turns[0][1])

    train = {skeleton(x) for x in corpus["train"]}
    assert not [x.id for x in corpus["test"] if skeleton(x) in train]


def test_every_building_block_occurs_in_training():
    math = set().union(*members(embedded_math.structures(), label="math", split="train"))
    assert math == {*OPENINGS, *STEPS}
    code = set().union(*members(embedded_code.structures(), label="code", split="train"))
    assert code == set(OPERATIONS)
    chat = {key[1:3] for key in embedded_chat.split_structures("train")}
    assert chat == {
        (topic, aspect)
        for field in FIELDS.values()
        for topic in field.topics
        for aspect in field.aspects
    }


def test_structures_are_divided_without_overlap():
    for part in (embedded_math, embedded_code):
        everything = part.structures()
        split = [members(everything, label="x", split=name) for name in ("train", "test")]
        assert not set(split[0]) & set(split[1])
        assert len(split[0]) + len(split[1]) == len(everything) == len(set(everything))
        assert 0.5 < len(split[1]) * HELD_OUT_ONE_IN / len(everything) < 1.5
    train, test = (set(embedded_chat.split_structures(name)) for name in ("train", "test"))
    # Neither order of a held-out pair of questions is trained on.
    assert not train & {(field, topic, two, one) for field, topic, one, two in test}
    assert not train & test


def test_worked_arithmetic_is_right(corpus):
    operations = {
        "+": lambda a, b: a + b,
        "-": lambda a, b: a - b,
        "x": lambda a, b: a * b,
        "/": lambda a, b: a / b,
        "% of": lambda a, b: a * b / 100,
    }
    for example in _of_kind(corpus["train"], "math")[:2000] + _of_kind(corpus["test"], "math"):
        (answer,) = _answers(example)
        body, last = answer.rsplit("\n#### ", 1)
        found = re.findall(r"(\d+) ?(\+|-|x|/|% of) (\d+) (?:=|is|dollars are) (\d+)", body)
        assert len(found) >= 2, answer
        for left, operation, right, result in found:
            assert operations[operation](int(left), int(right)) == int(result), answer
        assert found[-1][3] == last
        # The sentence before the last line says the answer too.
        assert last in re.findall(r"\d+", body.splitlines()[-1]), answer
        for number in re.findall(r"\d+", body):
            assert int(number) < 1000


def test_functions_pass_their_asserts(corpus, tmp_path):
    examples = _of_kind(corpus["train"], "code")[:1500] + _of_kind(corpus["test"], "code")
    blocks = []
    for example in examples:
        (answer,) = _answers(example)
        code = answer.split("```python\n")[1].split("\n```")[0]
        name = re.search(r"def (\w+)\(", code).group(1)
        assert name in example.turns[0][1]
        assert code.count(f"assert {name}(") == 2
        blocks.append(code)
    # One process for all of them; each function is followed by its own asserts.
    file = tmp_path / "functions.py"
    file.write_text("\n\n".join([*blocks, "print('passed')"]))
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, check=False)
    assert done.stdout == "passed\n", done.stderr


def test_dialogues_answer_what_was_asked(corpus):
    topics = {
        topic: dict(zip(field.aspects, facts, strict=True))
        for field in FIELDS.values()
        for topic, facts in field.topics.items()
    }
    rounds = []
    for example in _of_kind(corpus["train"], "chat")[:2000] + _of_kind(corpus["test"], "chat"):
        roles = [role for role, _ in example.turns]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        rounds.append(len(roles) // 2)
        prompt, answer = example.turns[0][1], example.turns[1][1]
        facts = max((t for t in topics if t in prompt), key=len)
        assert sum(fact in answer for fact in topics[facts].values()) >= 2, (prompt, answer)
    assert set(rounds) == {1, 2}
    assert 1.2 < statistics.mean(rounds) < 1.5


@pytest.mark.parametrize("kind", embedded.KINDS)
def test_lengths_suit_a_row_of_256_tokens(corpus, kind):
    tokenizer = Tokenizer.load("embedded")
    lengths = [
        len(tokenizer.encode_conversation(x.conversation)[0])
        for x in _of_kind(corpus["test"], kind)[:300]
    ]
    assert min(lengths) >= 40
    assert max(lengths) <= 250
    assert 90 <= statistics.median(lengths) <= 180


def test_answers_do_not_loop(corpus):
    for example in corpus["test"]:
        for answer in _answers(example):
            sentences = [s for s in re.split(r"(?<=[.\n]) *", answer) if len(s) > 24]
            assert len(sentences) - len(set(sentences)) <= 1, answer


def test_wrong_requests_are_refused():
    with pytest.raises(ValueError, match=r"'poems'.*math"):
        embedded.generate("poems", split="train", count=1)
    with pytest.raises(ValueError, match=r"'validation'.*train"):
        embedded.generate("math", split="validation", count=1)
    with pytest.raises(ValueError, match="-1"):
        embedded.generate("math", split="train", count=-1)


def test_more_than_exist_is_an_error(monkeypatch):
    def write(rng, split):
        return (("user", f"Question {int(rng.random() * 5)}"), ("assistant", "Answer."))

    monkeypatch.setitem(embedded._WRITERS, "math", write)
    assert len(embedded.generate("math", split="test", count=5)) == 5
    with pytest.raises(ValueError, match=r"6 different math.* about 5 exist"):
        embedded.generate("math", split="test", count=6)
