"""Prompt look-up against a search written out, and in the decoding loop."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.drafters.ngram import NGramProposer

CAPACITY = 48


def search(text: list[int], count: int, longest: int) -> list[int]:
    """What followed the latest of the longest matches of the end of `text`, anchor included."""
    best, place = 0, -1
    for end in range(len(text) - 1):
        length = 0
        while length < longest and length <= end and text[end - length] == text[-1 - length]:
            length += 1
        if length and length >= best:
            best, place = length, end
    if not best:
        return [text[-1]] * count
    grown = list(text)
    for step in range(count):
        grown.append(grown[place + 1 + step])
    return grown[len(text) :]


@pytest.mark.parametrize("longest", [1, 3])
def test_draft_is_what_a_search_finds(longest):
    rng = np.random.default_rng(longest)
    proposer = NGramProposer(block_size=6, longest=longest)
    lengths = np.array([1, 2, 5, 9, 17, 30, 30, 30])
    texts = rng.integers(0, 5, (len(lengths), 32)).astype(np.int32)
    texts[-1] = np.arange(32) + 40  # nothing repeats
    texts[-2] = 7  # nothing else
    state = proposer.begin({}, jnp.asarray(texts), None, jnp.asarray(lengths), capacity=CAPACITY)
    anchors = texts[np.arange(len(lengths)), lengths]
    draft, _ = jax.jit(proposer.propose)({}, state, jnp.asarray(anchors), None)
    assert draft.probs_BGV is None
    for row, length in enumerate(lengths):
        text = [*texts[row, :length].tolist(), int(anchors[row])]
        assert draft.tokens_BG[row].tolist() == search(text, 5, longest), text


def search_chains(text: list[int], count: int, longest: int, number: int) -> list[list[int]]:
    """The continuations of the best matches, each with a next token of its own."""
    matches = []
    for end in range(len(text) - 1):
        length = 0
        while length < longest and length <= end and text[end - length] == text[-1 - length]:
            length += 1
        if length:
            matches.append((length, end))
    found, taken = [], set()
    for _, end in sorted(matches, reverse=True):
        grown = list(text)
        for step in range(count):
            grown.append(grown[end + 1 + step])
        if grown[end + 1] not in taken and len(found) < number:
            taken.add(grown[end + 1])
            found.append(grown[len(text) :])
    return found + [found[0] if found else [text[-1]] * count] * (number - len(found))


def test_several_continuations_begin_differently():
    rng = np.random.default_rng(0)
    proposer = NGramProposer(block_size=5)
    lengths = np.array([1, 4, 12, 25, 31, 31])
    texts = rng.integers(0, 4, (len(lengths), 32)).astype(np.int32)
    texts[-1] = np.arange(32)  # nothing repeats
    state = proposer.begin({}, jnp.asarray(texts), None, jnp.asarray(lengths), capacity=CAPACITY)
    anchors = texts[np.arange(len(lengths)), lengths]
    chains = jax.jit(functools.partial(proposer.chains, num_chains=3))
    found_BAG = np.array(chains({}, state, jnp.asarray(anchors)))
    draft, _ = jax.jit(proposer.propose)({}, state, jnp.asarray(anchors), None)
    assert (found_BAG[:, 0] == draft.tokens_BG).all()
    several = 0
    for row, length in enumerate(lengths):
        text = [*texts[row, :length].tolist(), int(anchors[row])]
        expected = search_chains(text, 4, proposer.longest, 3)
        assert found_BAG[row].tolist() == expected, text
        several += len({chain[0] for chain in expected}) == 3
    assert several >= 2


def test_commit_appends_what_was_kept():
    proposer = NGramProposer(block_size=3)
    state = proposer.begin({}, jnp.array([[4, 5, 0]]), None, jnp.array([2]), capacity=8)
    state = proposer.commit({}, state, jnp.array([[6, 7, 9]]), None, jnp.array([2]))
    assert state.lengths_B.tolist() == [4]
    assert state.tokens_BT[0, :4].tolist() == [4, 5, 6, 7]
