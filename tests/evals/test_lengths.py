from __future__ import annotations

from jaxspec.decoding import Response
from jaxspec.evals.intervals import bootstrap_ratio
from jaxspec.evals.lengths import bounds_of, by_context, by_prompt, by_prompt_length


def response(name: str, *emitted: int) -> Response:
    return Response(name, tokens=(7,) * (1 + sum(emitted)), stopped=False, emitted=emitted)


PROMPTS = [(1,) * 22, (1,) * 30]
RESPONSES = [response("a", 2, 3, 1), response("b", 1)]


def test_bounds_cover_every_length_once():
    for length in range(2000):
        low, high = bounds_of(length)
        assert low <= length < high
        assert bounds_of(low) == bounds_of(high - 1) == (low, high)


def test_prompts_by_hand():
    assert by_prompt(PROMPTS, RESPONSES) == [
        {"prompt_id": "a", "prompt_tokens": 22, "tokens": 6, "rounds": 3},
        {"prompt_id": "b", "prompt_tokens": 30, "tokens": 1, "rounds": 1},
    ]


def test_contexts_by_hand():
    """The rounds of "a" begin at 23, 25 and 28 tokens, that of "b" at 31."""
    common = {"tau_ci95": None}
    assert by_context(PROMPTS, RESPONSES, seed=0) == [
        {"tokens_from": 16, "tokens_below": 24, "responses": 1, "rounds": 1, "tokens": 2, **common},
        {"tokens_from": 24, "tokens_below": 32, "responses": 2, "rounds": 3, "tokens": 5, **common},
    ]


def test_bins_add_up_and_have_intervals():
    responses = [response(str(n), *(1 + (n + i) % 4 for i in range(9))) for n in range(12)]
    prompts = [(1,) * (10 + n) for n in range(12)]
    for records in (
        by_context(prompts, responses, seed=0),
        by_prompt_length(by_prompt(prompts, responses), seed=0),
    ):
        assert sum(each["rounds"] for each in records) == 12 * 9
        assert sum(each["tokens"] for each in records) == sum(sum(r.emitted) for r in responses)
        known = [each for each in records if each["responses"] >= 6]
        assert known
        for each in known:
            low, high = each["tau_ci95"]
            assert low <= each["tokens"] / each["rounds"] <= high
    same = by_prompt_length(by_prompt([(1,) * 40] * 12, responses), seed=3)
    expected = bootstrap_ratio([sum(r.emitted) for r in responses], [9] * 12, seed=3)
    assert same[0]["tau_ci95"] == list(expected)


def test_a_response_without_rounds_is_in_no_bin():
    assert by_prompt_length(by_prompt(PROMPTS[:1], [response("a")]), seed=0) == []
    assert by_context(PROMPTS[:1], [response("a")], seed=0) == []
