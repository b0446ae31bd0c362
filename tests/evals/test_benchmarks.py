"""Which prompts are chosen, and how conversations of several turns are played."""

import json
import zlib

import numpy as np
import pytest

from jaxspec.config import DataConfig
from jaxspec.data.examples import Example
from jaxspec.data.tokenizer import Tokenizer
from jaxspec.decoding import Response
from jaxspec.evals.benchmarks import ask, load_benchmark, questions
from tests.data import templates

USER_ONLY = Example("mt/1", (("user", "First?"), ("user", "Second?")), "mt")
ONE_TURN = Example("mt/2", (("system", "Be brief."), ("user", "Only?")), "mt")
ANSWERED = Example("c/1", (("user", "A?"), ("assistant", "B.")), "c")
CONTINUED = Example("c/2", (*ANSWERED.turns, ("user", "C?")), "c")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load("embedded")


class Target:
    """Answers every prompt with its number, and remembers what it was asked."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.asked = []

    def __call__(self, prompts, ids):
        responses = []
        for prompt, name in zip(prompts, ids, strict=True):
            self.asked.append((name, self.tokenizer.decode(prompt, skip_special=False)))
            text = self.tokenizer.encode(f"Answer {len(self.asked)}.")
            responses.append(Response(name, (*text, self.tokenizer.eos_id), True))
        return responses


def play(examples, target, *, max_prompt_tokens=256, passage_tokens=8):
    return ask(
        examples,
        answer=target,
        tokenizer=target.tokenizer,
        max_prompt_tokens=max_prompt_tokens,
        passage_tokens=passage_tokens,
    )


def test_later_turns_hold_the_targets_own_answers(tokenizer):
    target = Target(tokenizer)
    reference = play([USER_ONLY, ONE_TURN, ANSWERED], target)
    assert reference.ids == ("mt/1", "mt/2", "c/1", "mt/1#2")
    assert [response.prompt_id for response in reference.responses] == list(reference.ids)
    assert (reference.conversations, reference.skipped) == (3, 0)
    asked = dict(target.asked)
    assert "Be brief." in asked["mt/2"]
    second = asked["mt/1#2"]
    places = [second.index(text) for text in ("First?", "Answer 1.", "Second?")]
    assert places == sorted(places)
    # The conversation is closed by the template, once, and not by the answer's own stop token.
    assert second.count("<|im_end|>") == 3
    whole = [
        {"role": "user", "content": "First?"},
        {"role": "assistant", "content": "Answer 1."},
        {"role": "user", "content": "Second?"},
    ]
    assert list(reference.prompts[-1]) == tokenizer.encode_prompt(whole)


def test_running_text_is_continued_from_its_first_tokens(tokenizer):
    text = "It was a long way to the lake, and <|im_end|> was nobody's name. They went on foot."
    passage = Example("text/1", (("assistant", text),), "text")
    short = Example("text/2", (("assistant", "It was"),), "text")
    reference = play([passage, USER_ONLY, short], Target(tokenizer))
    assert reference.ids == ("text/1", "mt/1", "text/2", "mt/1#2")
    encoded = tokenizer.encode(text)
    assert len(encoded) > 8 > len(tokenizer.encode("It was"))
    # No header of a turn, before or behind: the tokens that training has for the same text.
    assert list(reference.prompts[0]) == encoded[:8]
    assert list(reference.prompts[2]) == tokenizer.encode("It was")
    assert reference.conversations == 3
    with pytest.raises(ValueError, match="all 1 are longer than 7 tokens"):
        play([passage], Target(tokenizer), max_prompt_tokens=7)


def test_where_answers_are_given_only_the_first_question_is_asked():
    assert [turns[-1]["content"] for turns in questions(ANSWERED)] == ["A?"]
    assert [turns[-1]["content"] for turns in questions(USER_ONLY)] == ["First?", "Second?"]


def test_a_conversation_that_ends_with_a_question_is_asked_as_it_is(tokenizer):
    assert questions(CONTINUED) == [CONTINUED.conversation]
    reference = play([CONTINUED], Target(tokenizer))
    assert reference.prompts == (tuple(tokenizer.encode_prompt(CONTINUED.conversation)),)
    answered = Example("c/3", (*CONTINUED.turns, ("assistant", "D.")), "c")
    assert [turns[-1]["content"] for turns in questions(answered)] == ["A?"]


def test_a_conversation_that_ends_with_a_tools_turn_is_asked_as_it_is(tmp_path):
    folder = templates.tokenizer_folder(tmp_path / "tokenizer", templates.THINKING)
    tokenizer = Tokenizer.load(folder)
    call = {"function": {"name": "weather", "arguments": {}}}
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "4 C, rain"},
    ]
    example = Example.from_conversation(turns, id="w", source="demo", tools=[{"name": "weather"}])
    assert questions(example) == [turns]
    reference = play([example], Target(tokenizer))
    assert reference.ids == ("w",)
    assert "4 C, rain" in tokenizer.decode(reference.prompts[0])
    answered = [*turns, {"role": "assistant", "content": "Rain."}]
    example = Example.from_conversation(answered, id="w", source="demo")
    assert questions(example) == [turns[:2]]


def test_prompts_that_are_too_long_are_counted_and_left_out(tokenizer):
    long = Example("long", (("user", "word " * 400),), "mt")
    target = Target(tokenizer)
    limit = len(tokenizer.encode_prompt(USER_ONLY.prompt_turns)) + 2
    reference = play([long, USER_ONLY], target, max_prompt_tokens=limit)
    # The long one, and the second turn of the other.
    assert (reference.ids, reference.skipped, reference.conversations) == (("mt/1",), 2, 1)
    with pytest.raises(ValueError, match=f"all 1 are longer than {limit} tokens"):
        play([long], target, max_prompt_tokens=limit)


def test_the_choice_is_seeded_and_grows_at_its_end():
    def chosen(count, *, seed=0, **settings):
        examples = load_benchmark(
            "embedded/math", prompts=count, data=DataConfig(**settings), seed=seed
        )
        return [example.id for example in examples]

    few, many = chosen(4), chosen(9)
    assert many[:4] == few
    assert len(set(many)) == 9
    assert chosen(4, seed=1) != few
    assert chosen(4, max_examples=1) == few


def test_the_choice_does_not_depend_on_how_a_folder_is_typed(tmp_path, monkeypatch):
    folder = tmp_path / "bench"
    folder.mkdir()
    lines = [json.dumps({"prompt": f"Say {number}."}) for number in range(40)]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    data = DataConfig(data_dir=str(tmp_path / "data"))

    def chosen(name):
        return [each.id for each in load_benchmark(name, prompts=6, data=data, seed=0)]

    plain = chosen("bench")
    order = np.random.default_rng([0, zlib.crc32(b"bench")]).permutation(40)
    assert plain == [f"prompts.jsonl/{1 + number}" for number in order[:6]]
    for name in ("./bench", "bench/", str(folder), f"../{tmp_path.name}/bench"):
        assert chosen(name) == plain


def test_unknown_and_training_only_benchmarks_are_refused():
    for name, message in (("nonsense", "Unknown data set"), ("math", "no split 'test'")):
        with pytest.raises(ValueError, match=message):
            load_benchmark(name, prompts=2, data=DataConfig(), seed=0)


def test_an_empty_benchmark_is_refused(monkeypatch):
    monkeypatch.setattr("jaxspec.evals.benchmarks.load_examples", lambda *_, **__: [])
    with pytest.raises(ValueError, match="'gsm8k' holds no prompts"):
        load_benchmark("gsm8k", prompts=2, data=DataConfig(), seed=0)


def test_a_prompt_that_the_template_refuses_is_named(tmp_path):
    folder = templates.tokenizer_folder(tmp_path / "tokenizer", templates.BRACKETS)
    target = Target(Tokenizer.load(folder))
    with pytest.raises(
        ValueError, match=r"^Example 'mt/2' cannot be asked: .*\['system', 'user'\]"
    ):
        play([USER_ONLY, ONE_TURN], target)
