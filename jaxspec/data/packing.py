"""Packing of tokenized documents into rows of equal length.

A training step reads rows. A row holds several documents one after the other, distinguished by
their segment numbers; they never attend to each other. A document goes into the fullest row that
has room for it, so the result depends only on the lengths and the order.

>>> documents = Documents.from_list([([5, 6, 7], [False, True, True]), ([8, 9], [False, True])])
>>> rows = pack(documents, sequence_length=8)
>>> rows[0]["segments"].tolist()
[1, 1, 1, 2, 2, 0, 0, 0]

Dimension key: S positions per row.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Row = dict[str, NDArray]
"""tokens int32 [S], segments int32 [S] (1, 2, ... by document, 0 on padding), positions int32 [S]
(starting at 0 in each document) and loss_mask bool [S]."""

WINDOW = 1024
"""Documents that are sorted at a time, to place the longest first. Larger windows do not pack
tighter (measured)."""


@dataclasses.dataclass(frozen=True)
class Documents:
    """Tokenized documents, end to end in two flat arrays (small, and quick to write and read).

    `loss_mask` is True on tokens that are learned. The first token of a document never is: there is
    nothing before it to predict it from.
    """

    tokens: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    offsets: NDArray[np.int64]
    """Document i is [offsets[i], offsets[i + 1])."""
    names: tuple[str, ...] = ()
    """What each document is called in messages; (): they have no names."""

    @classmethod
    def from_list(
        cls, documents: Iterable[tuple[ArrayLike, ArrayLike]], *, names: Sequence[str] = ()
    ) -> Documents:
        """Joins (ids, loss mask) pairs.

        Args:
          documents: token ids and an equally long mask for each document.
          names: one name for each document, or ().

        Raises:
          ValueError: an empty document, or ids and mask of different lengths.
        """
        tokens: list[NDArray[np.int32]] = []
        masks: list[NDArray[np.bool_]] = []
        for index, (ids, mask) in enumerate(documents):
            ids_S = np.asarray(ids, np.int32)
            mask_S = np.array(mask, np.bool_)
            if ids_S.ndim != 1 or ids_S.size == 0 or ids_S.shape != mask_S.shape:
                name = names[index] if names else f"number {index}"
                raise ValueError(
                    f"Document {name} has ids of shape {ids_S.shape} and a loss mask of shape "
                    f"{mask_S.shape}: expected two equal shapes [S] with S >= 1."
                )
            mask_S[0] = False
            tokens.append(ids_S)
            masks.append(mask_S)
        lengths = [len(ids_S) for ids_S in tokens]
        return cls(
            tokens=np.concatenate(tokens) if tokens else np.zeros(0, np.int32),
            loss_mask=np.concatenate(masks) if masks else np.zeros(0, np.bool_),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            names=tuple(names),
        )

    def check(self, *, vocab_size: int) -> None:
        """Refuses arrays that are not documents, such as those of a damaged file.

        Args:
          vocab_size: ids must be below it.

        Raises:
          ValueError: the arrays do not fit together; the message says how.
        """
        kinds = {"tokens": np.int32, "loss_mask": np.bool_, "offsets": np.int64}
        for name, kind in kinds.items():
            array = getattr(self, name)
            if array.ndim != 1 or array.dtype != kind:
                raise ValueError(
                    f"{name}: got {array.dtype} {array.shape}, expected {np.dtype(kind)} [length]"
                )
        if not len(self.tokens) == len(self.loss_mask) or not len(self.offsets):
            raise ValueError(
                f"{len(self.tokens)} tokens, {len(self.loss_mask)} loss marks and "
                f"{len(self.offsets)} offsets do not fit together"
            )
        ends = (int(self.offsets[0]), int(self.offsets[-1]))
        if ends != (0, len(self.tokens)) or (self.lengths < 1).any():
            raise ValueError(f"offsets do not rise from 0 to {len(self.tokens)}")
        if len(self.names) not in (0, len(self)):
            raise ValueError(f"{len(self.names)} names for {len(self)} documents")
        if not all(isinstance(name, str) for name in self.names):
            raise ValueError("a name is not text")
        if self.tokens.size and not 0 <= self.tokens.min() <= self.tokens.max() < vocab_size:
            raise ValueError(f"token ids are outside the vocabulary of {vocab_size}")
        if self.loss_mask[self.offsets[:-1]].any():
            raise ValueError("a document's first token is learned")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        span = slice(self.offsets[index], self.offsets[index + 1])
        return self.tokens[span], self.loss_mask[span]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document."""
        return np.diff(self.offsets)


@dataclasses.dataclass(frozen=True)
class PackingStatistics:
    """What happened to the documents; the training log prints `summary`."""

    documents: int
    """Documents that are in a row."""
    dropped: int
    """Documents left out because none of the tokens that fit into a row is learned."""
    cut: int
    """Documents longer than a row, whose end was cut off."""
    cut_tokens: int
    """Tokens lost by cutting."""
    rows: int
    tokens: int
    """Tokens in rows, without padding."""
    supervised: int
    """Tokens that are learned."""
    sequence_length: int

    @property
    def efficiency(self) -> float:
        """Share of the rows that is not padding."""
        return self.tokens / max(1, self.rows * self.sequence_length)

    @property
    def supervised_share(self) -> float:
        """Share of the tokens that is learned."""
        return self.supervised / max(1, self.tokens)

    @property
    def summary(self) -> str:
        """One line for a log."""
        return (
            f"{self.documents:,} documents, {self.tokens:,} tokens in {self.rows:,} rows of "
            f"{self.sequence_length} ({self.efficiency:.1%} full), {self.supervised_share:.1%} "
            f"supervised; {self.cut:,} documents cut ({self.cut_tokens:,} tokens), "
            f"{self.dropped:,} dropped"
        )


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """Rows with random access; a row is built when it is needed."""

    documents: Documents
    row_documents: tuple[tuple[int, ...], ...]
    """Indices of the documents of each row, in the order of their segments."""
    statistics: PackingStatistics
    pad_id: int = 0
    fill_id: int | None = None
    """Token, also learned, that fills a row after its last document; None: padding instead."""

    def __len__(self) -> int:
        return len(self.row_documents)

    def __getitem__(self, index: int) -> Row:
        length = self.statistics.sequence_length
        row: Row = {
            "tokens": np.full(length, self.pad_id, np.int32),
            "segments": np.zeros(length, np.int32),
            "positions": np.zeros(length, np.int32),
            "loss_mask": np.zeros(length, np.bool_),
        }
        start = 0
        for segment, document in enumerate(self.row_documents[index], start=1):
            tokens, loss_mask = self.documents[document]
            stop = start + min(len(tokens), length)
            row["tokens"][start:stop] = tokens[: stop - start]
            row["loss_mask"][start:stop] = loss_mask[: stop - start]
            row["segments"][start:stop] = segment
            row["positions"][start:stop] = np.arange(stop - start)
            start = stop
        if self.fill_id is not None:
            row["tokens"][start:] = self.fill_id
            row["loss_mask"][start:] = True
            row["segments"][start:] = row["segments"][start - 1]
            row["positions"][start:] = row["positions"][start - 1] + np.arange(
                1, length - start + 1
            )
        return row

    def names(self, index: int) -> tuple[str, ...]:
        """Names of the documents of a row, for a message about a bad batch."""
        if not self.documents.names:
            return tuple(f"document {document}" for document in self.row_documents[index])
        return tuple(self.documents.names[document] for document in self.row_documents[index])


def best_fit(lengths: Sequence[int], *, capacity: int, window: int = WINDOW) -> list[list[int]]:
    """Assigns items to rows: each to the fullest row with room for it, or else to a new one.

    Items are placed in windows of `window`, the longest of each window first, so that short items
    fill the gaps that long ones leave.

    Args:
      lengths: length of each item, at most `capacity`.
      capacity: length of a row.
      window: how many items are sorted at a time.

    Returns:
      Indices into `lengths` for each row, every index exactly once.
    """
    rows: list[list[int]] = []
    open_rows: defaultdict[int, list[int]] = defaultdict(list)  # room -> heap of rows
    rooms = 0  # bit r: there are rows with room r
    for start in range(0, len(lengths), window):
        items = range(start, min(start + window, len(lengths)))
        for item in sorted(items, key=lambda index: -lengths[index]):
            fitting = rooms >> lengths[item]
            if fitting:
                room = lengths[item] + (fitting & -fitting).bit_length() - 1
                row = heapq.heappop(open_rows[room])
                if not open_rows[room]:
                    rooms ^= 1 << room
                rows[row].append(item)
            else:
                room, row = capacity, len(rows)
                rows.append([item])
            room -= lengths[item]
            if room:
                heapq.heappush(open_rows[room], row)
                rooms |= 1 << room
    return rows


def _supervised(documents: Documents, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of the first tokens of each document are learned, in little memory."""
    starts, mask = documents.offsets[:-1], documents.loss_mask
    bounds = np.stack([starts, starts + lengths], axis=1).ravel()
    if not len(mask) or not len(bounds):
        return np.zeros(len(lengths), np.int64)
    # A sum ends where the next one begins, and the last one at the end of the array.
    sums = np.add.reduceat(mask, bounds[bounds < len(mask)], dtype=np.int64)[::2]
    return np.where(lengths > 0, np.pad(sums, (0, len(lengths) - len(sums))), 0)


class NothingToLearn(ValueError):
    """Documents without a token to learn in their rows."""

    def __init__(self, documents: int, *, sequence_length: int) -> None:
        self.cause = (
            f"None of the {documents:,} documents has a token to learn within its first "
            f"{sequence_length} tokens: there are no assistant turns there."
        )
        super().__init__(
            f"{self.cause} Use a training source with answers, a larger data.sequence_length, or "
            "make answers with `jaxspec regenerate`."
        )


def pack(
    documents: Documents,
    *,
    sequence_length: int,
    seed: int | None = None,
    packing: bool = True,
    pad_id: int = 0,
    fill_id: int | None = None,
) -> PackedRows:
    """Packs documents into rows of `sequence_length` tokens.

    A document longer than a row loses its end; a document with nothing left to learn is left out.
    Both are counted in the statistics.

    Args:
      documents: what to pack.
      sequence_length: S, length of every row.
      seed: seed for the random order in which documents are placed, so that rows mix the sources;
        None: the given order.
      packing: False puts every document in a row of its own.
      pad_id: token that fills rows.
      fill_id: see `PackedRows`; the statistics do not count it.

    Raises:
      NothingToLearn: nothing is left to learn from.
    """
    lengths = np.minimum(documents.lengths, sequence_length)
    supervised = _supervised(documents, lengths)
    kept = np.flatnonzero(supervised)
    if len(kept) == 0:
        raise NothingToLearn(len(documents), sequence_length=sequence_length)
    if seed is not None:
        kept = np.random.default_rng(seed).permutation(kept)
    if packing:
        placed = best_fit(lengths[kept].tolist(), capacity=sequence_length)
        order = kept.tolist()
        row_documents = tuple(tuple(order[item] for item in row) for row in placed)
    else:
        row_documents = tuple((document,) for document in kept.tolist())
    excess = documents.lengths[kept] - lengths[kept]
    statistics = PackingStatistics(
        documents=len(kept),
        dropped=len(documents) - len(kept),
        cut=int(np.count_nonzero(excess)),
        cut_tokens=int(excess.sum()),
        rows=len(row_documents),
        tokens=int(lengths[kept].sum()),
        supervised=int(supervised[kept].sum()),
        sequence_length=sequence_length,
    )
    return PackedRows(
        documents=documents,
        row_documents=row_documents,
        statistics=statistics,
        pad_id=pad_id,
        fill_id=fill_id,
    )
