import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.data import anchors as anchors_module
from jaxspec.data.anchors import block_labels, sample_anchors

BOTH = pytest.mark.parametrize("sampling", ["document", "row"])

# Two documents and padding; learned: 2-5 and 7 of the first, 10-13 of the second.
SEGMENTS = np.array([[1] * 8 + [2] * 6 + [0] * 2], np.int32)
LEARNED = np.zeros((1, 16), bool)
LEARNED[0, [2, 3, 4, 5, 7, 10, 11, 12, 13]] = True
TOKENS = np.arange(100, 116, dtype=np.int32)[None]
CANDIDATES = [2, 3, 4, 10, 11, 12]

sample = jax.jit(sample_anchors, static_argnames=("count", "sampling"))
label = jax.jit(block_labels, static_argnames="block_size")
coverage = jax.jit(anchors_module.coverage)


def _random_batch(seed, *, rows=4, length=40):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 50, (rows, length)).astype(np.int32)
    segments = np.zeros((rows, length), np.int32)
    for row in segments:
        start, segment = 0, 1
        while start < length - 3:
            stop = start + int(rng.integers(3, 20))
            row[start:stop] = segment
            start, segment = stop, segment + 1
        row[length - int(rng.integers(0, 5)) :] = 0
    learned = (rng.random((rows, length)) < 0.8) & (segments > 0)
    return tokens, learned, segments


def _slow_candidates(learned, segments):
    return {
        (row, a)
        for row in range(learned.shape[0])
        for a in range(learned.shape[1] - 1)
        if learned[row, a]
        and learned[row, a + 1]
        and segments[row, a] == segments[row, a + 1]
        and segments[row, a] > 0
    }


def _slow_labels(tokens, learned, segments, anchors, valid, *, block_size):
    labels = np.zeros((*anchors.shape, block_size - 1), np.int32)
    mask = np.zeros_like(labels, bool)
    for row, block in np.ndindex(anchors.shape):
        if not valid[row, block]:
            continue
        anchor = anchors[row, block]
        for slot in range(block_size - 1):
            position = anchor + 1 + slot
            if (
                position >= tokens.shape[1]
                or segments[row, position] != segments[row, anchor]
                or not learned[row, position]
            ):
                break
            labels[row, block, slot] = tokens[row, position]
            mask[row, block, slot] = True
    return labels, mask


@BOTH
def test_all_candidates_are_drawn_once_and_the_rest_is_invalid(sampling):
    anchors, valid = sample(jax.random.key(0), LEARNED, SEGMENTS, count=9, sampling=sampling)
    assert anchors.dtype == jnp.int32 and valid.dtype == jnp.bool_
    assert anchors[0].tolist() == [*CANDIDATES, 0, 0, 0]
    assert valid[0].tolist() == [True] * 6 + [False] * 3


@BOTH
def test_more_blocks_than_positions(sampling):
    anchors, valid = sample(jax.random.key(0), LEARNED, SEGMENTS, count=20, sampling=sampling)
    assert anchors.shape == valid.shape == (1, 20)
    assert int(valid.sum()) == 6


def test_labels_by_hand():
    labels, mask = label(
        TOKENS,
        LEARNED,
        SEGMENTS,
        np.array([[2, 4, 12, 0]], np.int32),
        np.array([[True, True, True, False]]),
        block_size=5,
    )
    # Position 6 is not learned: the block ends before it although 7 is. 14 and 15 are padding.
    assert labels[0].tolist() == [
        [103, 104, 105, 0],
        [105, 0, 0, 0],
        [113, 0, 0, 0],
        [0, 0, 0, 0],
    ]
    assert mask.astype(int).sum(-1).tolist() == [[3, 1, 1, 0]]


def test_a_block_at_the_end_of_the_row_is_short():
    tokens = np.arange(6, dtype=np.int32)[None]
    learned, segments = np.ones((1, 6), bool), np.ones((1, 6), np.int32)
    labels, mask = label(
        tokens, learned, segments, np.array([[3]], np.int32), np.array([[True]]), block_size=8
    )
    assert labels[0, 0].tolist() == [4, 5, 0, 0, 0, 0, 0]
    assert mask[0, 0].tolist() == [True, True, False, False, False, False, False]


@BOTH
@pytest.mark.parametrize("seed", range(3))
def test_equal_to_the_slow_form(seed, sampling):
    tokens, learned, segments = _random_batch(seed)
    drawn = sample(jax.random.key(seed), learned, segments, count=12, sampling=sampling)
    anchors, valid = map(np.asarray, drawn)
    candidates = _slow_candidates(learned, segments)
    drawn = [(row, int(anchors[row, block])) for row, block in np.argwhere(valid)]
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) <= candidates
    for row in range(4):
        available = sum(candidate[0] == row for candidate in candidates)
        assert valid[row].sum() == min(12, available)
    labels, mask = map(np.asarray, label(tokens, learned, segments, anchors, valid, block_size=6))
    expected_labels, expected_mask = _slow_labels(
        tokens, learned, segments, anchors, valid, block_size=6
    )
    np.testing.assert_array_equal(labels, expected_labels)
    np.testing.assert_array_equal(mask, expected_mask)
    assert mask[..., 0][valid].all()  # a valid block always has its first label
    assert not (mask[..., 1:] & ~mask[..., :-1]).any()  # counted slots are a prefix


def test_without_jit_the_same():
    key = jax.random.key(5)
    for jitted, plain in zip(
        sample(key, LEARNED, SEGMENTS, count=4),
        sample_anchors(key, jnp.asarray(LEARNED), jnp.asarray(SEGMENTS), count=4),
        strict=True,
    ):
        np.testing.assert_array_equal(jitted, plain)


def test_padding_a_row_changes_no_label():
    tokens, learned, segments = _random_batch(7)
    padded = [np.pad(array, ((0, 0), (0, 9))) for array in (tokens, learned, segments)]
    anchors, valid = sample(jax.random.key(1), learned, segments, count=8)
    plain = label(tokens, learned, segments, anchors, valid, block_size=6)
    for one, other in zip(plain, label(*padded, anchors, valid, block_size=6), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("count", [1, 2])
def test_draws_are_uniform_without_replacement(count):
    """Chi-square over all subsets of the six candidates; negative control: a biased sampler."""
    repeats = 4000
    learned = np.repeat(LEARNED, repeats, axis=0)
    segments = np.repeat(SEGMENTS, repeats, axis=0)
    anchors, valid = sample(jax.random.key(11), learned, segments, count=count, sampling="row")
    assert bool(valid.all())
    subsets = list(itertools.combinations(CANDIDATES, count))

    def chi_square(drawn):
        counts = [int((drawn == subset).all(axis=1).sum()) for subset in subsets]
        assert sum(counts) == len(drawn)
        expected = len(drawn) / len(subsets)
        return sum((observed - expected) ** 2 / expected for observed in counts)

    # 99.9% quantiles of chi-square with 5 and 14 degrees of freedom.
    limit = {1: 20.5, 2: 36.1}[count]
    drawn = np.asarray(anchors)
    assert chi_square(drawn) < limit
    biased = drawn[(drawn != CANDIDATES[0]).any(axis=1)][:-300]
    biased = np.concatenate([biased, np.repeat([subsets[-1]], 300, axis=0)])
    assert chi_square(biased) > limit


def row_of(*documents: tuple[int, int], length: int) -> tuple[np.ndarray, np.ndarray]:
    """(learned, segments) of a row of documents: (tokens, learned tokens at their end)."""
    learned, segments = np.zeros(length, bool), np.zeros(length, np.int32)
    start = 0
    for segment, (tokens, answer) in enumerate(documents, start=1):
        segments[start : start + tokens] = segment
        learned[start + tokens - answer : start + tokens] = True
        start += tokens
    return learned, segments


def anchors_per_document(*documents, length, count, repeats=2000, sampling="document"):
    """Anchors of each document, [repeats, documents]."""
    learned, segments = row_of(*documents, length=length)
    rows = [np.repeat(array[None], repeats, axis=0) for array in (learned, segments)]
    anchors, valid = sample(jax.random.key(3), *rows, count=count, sampling=sampling)
    drawn = np.where(valid, segments[np.asarray(anchors)], 0)
    return np.stack([(drawn == n).sum(axis=1) for n in range(1, len(documents) + 1)], axis=1)


SHORT, OTHERS = (32, 12), [[(224, 200)], [(224, 20)], [(100, 90), (124, 60)], [(56, 50)] * 4]


@pytest.mark.parametrize("others", OTHERS)
def test_a_documents_share_does_not_depend_on_its_neighbours(others):
    counts = anchors_per_document(SHORT, *others, length=256, count=32)
    if sum(answer - 1 for _, answer in (SHORT, *others)) < 32:  # All candidates are drawn.
        assert (counts == [11, 19]).all()
        return
    assert (counts.sum(axis=1) == 32).all()
    assert counts[:, 0].mean() == pytest.approx(32 * 32 / 256, abs=0.15)
    by_row = anchors_per_document(SHORT, *others, length=256, count=32, sampling="row")
    assert abs(by_row[:, 0].mean() - 4) > 1.5, "negative control"


def test_every_document_gets_an_anchor():
    documents = [(200, 180), (8, 2), (8, 2), (8, 3), (32, 2)]
    counts = anchors_per_document(*documents, length=256, count=8)
    assert counts.min() == 1
    assert (counts.sum(axis=1) == 8).all()
    by_row = anchors_per_document(*documents, length=256, count=8, sampling="row")
    assert by_row.min() == 0, "negative control"


def test_fewer_anchors_than_documents_are_shared_evenly():
    counts = anchors_per_document((100, 90), (20, 10), (20, 10), (8, 3), length=148, count=2)
    assert counts.max() == 1
    np.testing.assert_allclose(counts.mean(axis=0), 0.5, atol=0.05)


def test_what_a_document_cannot_use_goes_to_the_others():
    # Half of the row, but only 3 candidates; the other two share the rest like their lengths.
    counts = anchors_per_document((128, 4), (96, 90), (32, 30), length=256, count=32)
    assert (counts[:, 0] == 3).all()
    np.testing.assert_allclose(counts.mean(axis=0)[1:], [29 * 0.75, 29 * 0.25], atol=0.15)


def test_draws_are_uniform_within_a_document():
    learned, segments = row_of((10, 7), (30, 25), length=40)
    rows = [np.repeat(array[None], 6000, axis=0) for array in (learned, segments)]
    anchors, _ = sample(jax.random.key(4), *rows, count=4)
    drawn = np.bincount(np.asarray(anchors).ravel(), minlength=40)
    for candidates in (slice(3, 9), slice(15, 39)):
        expected = drawn[candidates].mean()
        # Six or 24 cells without replacement vary less than chi-square; its 99.9% quantiles.
        limit = 20.5 if candidates.stop == 9 else 49.7
        assert ((drawn[candidates] - expected) ** 2 / expected).sum() < limit


@BOTH
def test_an_empty_document_changes_nothing_for_the_others(sampling):
    learned, segments = row_of((10, 0), (20, 15), length=40)
    _, valid = sample(jax.random.key(0), learned[None], segments[None], count=6, sampling=sampling)
    assert bool(valid.all())


def test_no_anchor_in_rows_without_two_learned_neighbours():
    learned = np.array([[False, True, False, True, True], [False] * 5])
    segments = np.array([[1, 1, 1, 1, 2], [1] * 5], np.int32)  # 3 and 4: other documents
    _, valid = sample(jax.random.key(0), learned, segments, count=2)
    assert not bool(valid.any())


def test_coverage_by_hand_and_in_full():
    anchors = np.array([[2, 10]], np.int32)
    valid = np.ones((1, 2), bool)
    _, mask = label(TOKENS, LEARNED, SEGMENTS, anchors, valid, block_size=3)
    covered, learned = coverage(LEARNED, anchors, mask)  # 3, 4 and 11, 12 of nine
    assert (float(covered), float(learned)) == (4.0, 9.0)
    tokens, learned_mask, segments = _random_batch(3)
    anchors, valid = sample(jax.random.key(2), learned_mask, segments, count=39)
    _, mask = label(tokens, learned_mask, segments, anchors, valid, block_size=4)
    covered, _ = coverage(learned_mask, anchors, mask)
    # With an anchor everywhere, all but the first token of each learned run is a label.
    assert int(covered) == len(_slow_candidates(learned_mask, segments))


def test_a_count_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"data\.anchors"):
        anchors_module.sample_anchors(
            jax.random.key(0), jnp.asarray(LEARNED), jnp.asarray(SEGMENTS), count=0
        )
