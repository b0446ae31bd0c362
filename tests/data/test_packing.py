import time

import numpy as np
import pytest

from jaxspec.data.packing import Documents, _supervised, best_fit, pack


def _documents(lengths, *, seed=0):
    rng = np.random.default_rng(seed)
    return Documents.from_list(
        [(rng.integers(1, 1000, length), np.arange(length) >= length // 2) for length in lengths]
    )


def test_two_documents_in_a_row_by_hand():
    documents = Documents.from_list(
        [([5, 6, 7], [False, True, True]), ([8, 9], [False, True])], names=["a", "b"]
    )
    rows = pack(documents, sequence_length=8, pad_id=99)
    row = rows[0]
    assert row["tokens"].tolist() == [5, 6, 7, 8, 9, 99, 99, 99]
    assert row["segments"].tolist() == [1, 1, 1, 2, 2, 0, 0, 0]
    assert row["positions"].tolist() == [0, 1, 2, 0, 1, 0, 0, 0]
    assert row["loss_mask"].tolist() == [False, True, True, False, True, False, False, False]
    assert rows.names(0) == ("a", "b")
    assert [row[name].dtype for name in ("tokens", "segments", "positions", "loss_mask")] == [
        np.int32,
        np.int32,
        np.int32,
        np.bool_,
    ]
    assert (rows.statistics.tokens, rows.statistics.supervised, rows.statistics.rows) == (5, 3, 1)
    assert rows.statistics.efficiency == 5 / 8


def test_every_document_stands_in_exactly_one_row_whole_and_in_one_piece():
    lengths = np.random.default_rng(1).integers(2, 40, 300)
    documents = _documents(lengths)
    rows = pack(documents, sequence_length=48, seed=3)
    seen = []
    for index in range(len(rows)):
        row = rows[index]
        segments = row["segments"]
        used = int((segments > 0).sum())
        assert (segments[:used] > 0).all() and (np.diff(segments[:used]) >= 0).all()
        assert not row["loss_mask"][used:].any()
        for segment, number in enumerate(rows.row_documents[index], start=1):
            tokens, loss_mask = documents[number]
            here = segments == segment
            np.testing.assert_array_equal(row["tokens"][here], tokens)
            np.testing.assert_array_equal(row["loss_mask"][here], loss_mask)
            np.testing.assert_array_equal(row["positions"][here], np.arange(len(tokens)))
            seen.append(number)
    assert sorted(seen) == list(range(300))
    assert rows.statistics.efficiency > 0.95


def _slow_best_fit(lengths, *, capacity, window):
    """The fullest row with room (the first such in case of a tie), tried one by one."""
    rows, room = [], []
    for start in range(0, len(lengths), window):
        items = list(range(start, min(start + window, len(lengths))))
        items.sort(key=lambda item: (-lengths[item], item))
        for item in items:
            fitting = [row for row in range(len(rows)) if room[row] >= lengths[item]]
            if fitting:
                row = min(fitting, key=lambda row: (room[row], row))
            else:
                row = len(rows)
                rows.append([])
                room.append(capacity)
            rows[row].append(item)
            room[row] -= lengths[item]
    return rows


@pytest.mark.parametrize("window", [1, 7, 1000])
def test_best_fit_equals_the_slow_form(window):
    lengths = np.random.default_rng(2).integers(1, 21, 200).tolist()
    assert best_fit(lengths, capacity=20, window=window) == _slow_best_fit(
        lengths, capacity=20, window=window
    )


def test_the_time_of_a_document_does_not_grow_with_their_number():
    """Rows whose room nothing fits into stay open: there are as many as documents."""

    def seconds(count):
        lengths = [900 + number % 30 for number in range(count)] + [1] * count
        started = time.process_time()
        best_fit(lengths, capacity=1000)
        return time.process_time() - started

    assert seconds(80_000) < 8 * seconds(20_000)


def test_long_documents_are_cut_and_counted():
    documents = Documents.from_list(
        [
            (np.arange(20), np.ones(20, bool)),
            (np.arange(30), np.arange(30) >= 15),  # nothing learned within the first 10
            (np.arange(10), np.ones(10, bool)),
        ]
    )
    rows = pack(documents, sequence_length=10)
    statistics = rows.statistics
    assert (statistics.documents, statistics.cut, statistics.cut_tokens) == (2, 1, 10)
    assert statistics.dropped == 1
    assert statistics.tokens == 20 and statistics.supervised == 18  # never a first token
    assert "1 documents cut (10 tokens), 1 dropped" in statistics.summary
    for index in range(2):
        assert rows[index]["tokens"].tolist() == list(range(10))


def test_without_packing_each_document_has_a_row():
    rows = pack(_documents([4, 5, 6]), sequence_length=16, packing=False)
    assert len(rows) == 3
    assert all(rows[index]["segments"].max() == 1 for index in range(3))


def test_rows_filled_with_the_end_of_text():
    """It goes on where the document ends, and is learned; a document as long as a row has none."""
    documents = Documents.from_list([([5, 6, 7], [False, True, True]), (range(9), [True] * 9)])
    rows = pack(documents, sequence_length=6, packing=False, pad_id=99, fill_id=2)
    first, full = rows[0], rows[1]
    assert first["tokens"].tolist() == [5, 6, 7, 2, 2, 2]
    assert first["positions"].tolist() == [0, 1, 2, 3, 4, 5]
    assert first["segments"].tolist() == [1] * 6
    assert first["loss_mask"].tolist() == [False] + [True] * 5
    assert full["tokens"].tolist() == full["positions"].tolist() == [0, 1, 2, 3, 4, 5]
    assert rows.statistics.tokens == 9


def test_the_order_depends_on_the_seed_alone():
    documents = _documents(np.random.default_rng(3).integers(2, 9, 100))
    one, same, other = (pack(documents, sequence_length=16, seed=seed) for seed in (0, 0, 1))
    assert one.row_documents == same.row_documents != other.row_documents


def test_nothing_to_learn_is_an_error_that_says_what_to_do():
    documents = Documents.from_list([([1, 2, 3], [False, False, False])])
    with pytest.raises(ValueError, match="jaxspec regenerate"):
        pack(documents, sequence_length=8)


@pytest.mark.parametrize("bad", [([], []), ([1, 2], [True])])
def test_documents_must_have_as_many_masks_as_ids(bad):
    with pytest.raises(ValueError, match="Document x has ids of shape"):
        Documents.from_list([bad], names=["x"])


def test_what_is_learned_of_each_document_is_counted_as_in_the_slow_form():
    generator = np.random.default_rng(3)
    for _ in range(50):
        sizes = generator.integers(1, 9, size=generator.integers(1, 12))
        documents = Documents.from_list(
            [(np.arange(size), generator.random(size) < 0.3) for size in sizes]
        )
        lengths = np.minimum(documents.lengths, generator.integers(1, 9))
        expected = [
            documents.loss_mask[start : start + length].sum()
            for start, length in zip(documents.offsets[:-1], lengths, strict=True)
        ]
        assert _supervised(documents, lengths).tolist() == expected
