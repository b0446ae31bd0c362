"""From data sets to the batches of a training run: load, tokenize, pack, shuffle, slice.

The rows are packed once; grain shuffles them differently in every epoch and repeats them forever.
Row r of step k is entry ``k * batch_size + r`` of that stream, so a batch depends only on the data
settings and the step. The saved state is the step, so a run can continue from it with a different
number of processes.

>>> pipeline = make_pipeline(DataConfig(), Tokenizer.load("embedded"))       # doctest: +SKIP
>>> next(pipeline)["tokens"].shape                                           # doctest: +SKIP
(8, 256)

Dimension key: B rows of this process, S positions of a row.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import grain
import numpy as np
from numpy.typing import NDArray

from jaxspec.config import DataConfig
from jaxspec.data import sources
from jaxspec.data.examples import Example
from jaxspec.data.packing import Documents, PackedRows, PackingStatistics, Row, pack
from jaxspec.data.parts import training_examples
from jaxspec.data.served_turns import LeftOut
from jaxspec.data.template_parity import check_parity
from jaxspec.durations import duration
from jaxspec.files import replaced_file

if TYPE_CHECKING:
    from jaxspec.data.tokenizer import Tokenizer
from jaxspec.tokenizer_files import READ_FILES

Batch = dict[str, NDArray]
"""tokens, segments and positions int32 [B, S]; loss_mask bool [B, S]."""

CACHE_FROM = 5_000
"""Fewer examples than this are tokenized again each time instead of being cached on disk."""

_log = logging.getLogger(__name__)

_CACHE_FORMAT = "1"
_PROGRESS_S = 30.0
"""Seconds between two lines about how far tokenizing is."""


class Pipeline:
    """Batches of a training run, step after step, without end.

    Every process has the same rows and takes a contiguous slice of each global batch: process p of
    P takes rows [p * B / P, (p + 1) * B / P), the order in which
    ``jax.make_array_from_process_local_data`` joins them again.

    Args:
      rows: packed rows.
      batch_size: rows per step, over all processes.
      seed: seed for the order of rows, which differs between epochs.
      process_index: index of this process.
      process_count: number of processes; must divide `batch_size`.
      start_step: step of the first batch.
      fingerprint: identifies the data; a saved state with another fingerprint is refused.
      left_out: reason -> answers of the data that are not learned for it.
      notes: lines for the log about what was left out and checked.

    Raises:
      ValueError: `process_count` does not divide `batch_size`.
    """

    def __init__(
        self,
        rows: PackedRows,
        *,
        batch_size: int,
        seed: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        start_step: int = 0,
        fingerprint: str = "",
        left_out: Mapping[str, int] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        if batch_size % process_count or not 0 <= process_index < process_count:
            raise ValueError(
                f"data.batch_size must be a multiple of the number of processes: got batch_size "
                f"{batch_size} for process {process_index} of {process_count}."
            )
        if start_step < 0:
            raise ValueError(f"start_step must not be negative: got {start_step}.")
        self.rows = rows
        self.step = start_step
        self.batch_size = batch_size
        self.fingerprint = fingerprint
        self.left_out = dict(left_out or {})
        self.notes = tuple(notes)
        self._local = batch_size // process_count
        self._first = process_index * self._local
        self._shift = 0
        """Rows read before this batch size, less those that it would have read in as many steps."""
        # grain's seeds have 32 bits. Only row numbers are shuffled, which also serve to look up
        # names: the rows themselves are built only in the process that reads them.
        self._order = grain.MapDataset.range(len(rows)).shuffle(seed=seed % 2**32).repeat()

    @property
    def statistics(self) -> PackingStatistics:
        """What the rows contain, for the log."""
        return self.rows.statistics

    @property
    def steps_per_epoch(self) -> float:
        """Number of steps in which every row is read once."""
        return len(self.rows) / self.batch_size

    def rows_before(self, step: int) -> int:
        """The number of rows that are read before a step."""
        return step * self.batch_size + self._shift

    def epochs_at(self, step: int) -> float:
        """How often every row has been read before a step."""
        return self.rows_before(step) / len(self.rows)

    @property
    def local_rows(self) -> NDArray[np.int32]:
        """The rows that this process reads, by their numbers in the global batch."""
        return np.arange(self._first, self._first + self._local, dtype=np.int32)

    def row_numbers(self, step: int) -> list[int]:
        """Numbers of the packed rows in the whole batch of a step."""
        start = self.rows_before(step)
        return [int(self._order[index]) for index in range(start, start + self.batch_size)]

    def example_ids(self, step: int) -> list[tuple[str, ...]]:
        """Ids of the examples in each row of a step, for a message about a bad batch."""
        return [self.rows.names(number) for number in self.row_numbers(step)]

    def batch(self, step: int) -> Batch:
        """This process's rows of a step, independent of what was read before."""
        numbers = self.row_numbers(step)[self._first : self._first + self._local]
        rows: list[Row] = [self.rows[number] for number in numbers]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = self.batch(self.step)
        self.step += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """The position, in a form that JSON can hold; the same on every process."""
        rows = self.rows_before(self.step)
        return {"step": self.step, "rows": rows, "fingerprint": self.fingerprint}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a saved position; the number of processes may have changed since then.

        Without a fingerprint, the data may be other ones. They are read from the row at which the
        saved position was: with another batch size, no row is read twice or left out.

        Raises:
          ValueError: not a position, or a position in other data.
        """
        step = state.get("step")
        if not isinstance(step, int) or isinstance(step, bool) or step < 0:
            raise ValueError(
                f'A pipeline state must look like {{"step": 120, ...}}: got {state!r}.'
            )
        saved = state.get("fingerprint", self.fingerprint)
        if saved != self.fingerprint:
            raise ValueError(
                f"The saved position belongs to other data: got fingerprint {self.fingerprint}, "
                f"recorded {saved}. Use the data, its settings and the tokenizer of the run that "
                "saved it, or another --workdir."
            )
        self.step = step
        self._shift = state.get("rows", step * self.batch_size) - step * self.batch_size


def make_pipeline(
    data: DataConfig,
    tokenizer: Tokenizer,
    *,
    process_index: int = 0,
    process_count: int = 1,
    start_step: int = 0,
) -> Pipeline:
    """Loads, tokenizes and packs the data sets that `data` names.

    Args:
      data: the settings.
      tokenizer: the target's tokenizer.
      process_index: index of this process.
      process_count: number of processes; must divide ``data.batch_size``.
      start_step: step of the first batch.

    Raises:
      ValueError: an unknown source or split, missing files, nothing to learn from, more answers
        that cannot be learned than others, or a learned text that is not the generation prompt's.
    """
    examples = training_examples(data)
    rows, tokenized, digest = packed_rows(examples, tokenizer, data=data)
    checked = check_parity(examples, tokenized.documents, tokenizer)
    notes = tokenized.notes
    if checked:
        notes.append(
            f"{checked:,} learned answers were compared with the generation prompt: each follows "
            "exactly its ids and ends with a stop token."
        )
    settings = [digest, data.sequence_length, data.batch_size, data.packing, data.seed]
    if data.fill_rows:
        settings.append("filled")
    fingerprint = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    return Pipeline(
        rows,
        batch_size=data.batch_size,
        seed=data.seed,
        process_index=process_index,
        process_count=process_count,
        start_step=start_step,
        fingerprint=fingerprint,
        left_out=tokenized.left_out,
        notes=notes,
    )


@dataclasses.dataclass(frozen=True)
class Tokenized:
    """Documents, and what could not be one."""

    documents: Documents
    answers: int
    """Answers of conversations that are learned."""
    left_out: Mapping[str, int]
    """Reason -> answers that are not."""
    marked: int = 0
    """Running texts that hold the text of a special token."""
    first_mark: str = ""
    """Which token, and in which example."""

    @property
    def notes(self) -> list[str]:
        """Lines for a log about what is not learned, or not as it may have been meant."""
        lines = [self.left_out_line] if self.left_out else []
        if self.marked:
            lines.append(
                f"Warning: running texts that hold a special token's text: {self.marked:,} (first "
                f"{self.first_mark}). They are learned as ordinary characters. If they are chats "
                "that were rendered with a template, import their turns as `messages` instead."
            )
        return lines

    @property
    def left_out_line(self) -> str:
        """One line for a log about the answers that are not learned."""
        reasons = ", ".join(f"{count:,} ({reason})" for reason, count in self.left_out.items())
        lost = sum(self.left_out.values())
        return f"{lost:,} of {self.answers + lost:,} answers are left out: {reasons}."


def packed_rows(
    examples: Sequence[Example], tokenizer: Tokenizer, *, data: DataConfig
) -> tuple[PackedRows, Tokenized, str]:
    """The rows that examples make, their documents, and a digest of these.

    Raises:
      ValueError: nothing to learn from, or more answers that cannot be learned than others.
    """
    tokenized, digest = tokenized_documents(examples, tokenizer, data=data)
    rows = pack(
        tokenized.documents,
        sequence_length=data.sequence_length,
        seed=data.seed,
        packing=data.packing,
        pad_id=tokenizer.pad_id,
        fill_id=tokenizer.eos_id if data.fill_rows else None,
    )
    return rows, tokenized, digest


def tokenize(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    *,
    loss_on: Literal["response", "all"],
    sequence_length: int,
) -> Tokenized:
    """Turns examples into documents.

    Conversations go through the chat template, which makes one document of each, or one of each
    answer (`jaxspec.data.served_turns`). Running text does not: it begins as the tokenizer begins a
    text, is followed by the end token, all of it is learned, and it is split if it is longer than a
    row.

    Args:
      examples: what to tokenize.
      tokenizer: the target's tokenizer.
      loss_on: what to learn: "response": the assistant's tokens; "all": every token except the
        first one of a document, and what the conversation's document before has too.
      sequence_length: length of a row.

    Raises:
      ValueError: more answers cannot be learned than can.
    """
    documents: list[tuple[NDArray[np.int32], NDArray[np.bool_]]] = []
    names: list[str] = []
    answers = 0
    left_out: Counter[str] = Counter()
    first: tuple[str, LeftOut] | None = None
    marked, first_mark = 0, ""
    for example in _with_progress(examples):
        if example.is_running_text:
            text = example.running_text
            ids_S = np.asarray(
                [*tokenizer.text_start, *tokenizer.encode(text), tokenizer.eos_id], np.int32
            )
            if mark := tokenizer.special_text_in(text):
                marked += 1
                first_mark = first_mark or f"{mark!r} in example {example.id!r}"
            pieces = [
                ids_S[start : start + sequence_length]
                for start in range(0, len(ids_S), sequence_length)
            ]
            documents.extend((piece, np.ones(len(piece), np.bool_)) for piece in pieces)
            names.extend([example.id] * len(pieces))
            continue
        learned = tokenizer.encode_turns(example.conversation, tools=example.tool_list)
        before = np.zeros(0, np.int32)
        for row in learned.rows:
            ids_S = np.asarray(row.ids, np.int32)
            mask_S = np.asarray(row.learned, np.bool_)
            if loss_on == "all":
                mask_S = np.arange(len(ids_S)) >= _common_length(before, ids_S)
            documents.append((ids_S, mask_S))
            names.append(example.id)
            before = ids_S
            answers += len(row.answers)
        for error in learned.left_out:
            left_out[error.reason] += 1
            first = first or (example.id, error)
    made = Tokenized(
        Documents.from_list(documents, names=names),
        answers,
        dict(left_out.most_common()),
        marked=marked,
        first_mark=first_mark,
    )
    if first and left_out.total() > answers:
        raise ValueError(f"{made.left_out_line} The first is in example {first[0]!r}: {first[1]}")
    return made


def _with_progress(examples: Sequence[Example]) -> Iterator[Example]:
    """The examples; now and then, a line says how many are done and how long the rest takes."""
    started = said = time.monotonic()
    for done, example in enumerate(examples):
        now = time.monotonic()
        if done and now - said >= _PROGRESS_S:
            said, left = now, (now - started) / done * (len(examples) - done)
            print(
                f"Tokenized {done:,} of {len(examples):,} examples; about {duration(left)} left.",
                flush=True,
            )
        yield example


def _common_length(one_S: NDArray[np.int32], other_S: NDArray[np.int32]) -> int:
    """Ids that two documents have in common at their beginnings."""
    shorter = min(len(one_S), len(other_S))
    differs = np.flatnonzero(one_S[:shorter] != other_S[:shorter])
    return int(differs[0]) if len(differs) else shorter


def tokenized_documents(
    examples: Sequence[Example], tokenizer: Tokenizer, *, data: DataConfig
) -> tuple[Tokenized, str]:
    """The result of `tokenize`, cached on disk if there are `CACHE_FROM` examples or more.

    Returns:
      The result, and a digest of everything that the documents depend on.
    """
    digest = _digest(examples, tokenizer, data=data)
    if len(examples) < CACHE_FROM:
        made = tokenize(
            examples, tokenizer, loss_on=data.loss_on, sequence_length=data.sequence_length
        )
        return made, digest
    path = sources.data_folder(data) / "tokenized" / f"{digest}.npz"
    if path.is_file():
        kept = _load(path, vocab_size=tokenizer.vocab_size)
        if kept is not None:
            return kept, digest
    made = tokenize(examples, tokenizer, loss_on=data.loss_on, sequence_length=data.sequence_length)
    _save(made, path)
    return made, digest


def _digest(examples: Sequence[Example], tokenizer: Tokenizer, *, data: DataConfig) -> str:
    """Hash of the texts, the tokenizer's files and the settings that shape documents."""
    digest = hashlib.sha256(f"{_CACHE_FORMAT} {data.loss_on}".encode())
    if any(example.is_running_text for example in examples):
        digest.update(str(data.sequence_length).encode())  # running text is split by it
        if tokenizer.text_start:
            digest.update(json.dumps(tokenizer.text_start).encode())
    for file in READ_FILES:
        path = tokenizer.folder / file
        if path.is_file():
            digest.update(path.read_bytes())
    if tokenizer.template_options:
        digest.update(json.dumps(tokenizer.template_options, sort_keys=True).encode())
    # The code that reads those files may change, too: that shows in the ids of a few examples.
    for example in examples[:: max(1, len(examples) // 16)]:
        if not example.is_running_text:
            learned = tokenizer.encode_turns(example.conversation, tools=example.tool_list)
            for row in learned.rows:
                digest.update(json.dumps([row.ids, row.learned]).encode())
    for example in examples:
        fields = [example.id, example.turns, example.source]
        # Only where there are any: the digests of plain conversations stay what they were.
        further = [example.details, example.tools] if example.details or example.tools else []
        digest.update(json.dumps(fields + further).encode())
    return digest.hexdigest()[:32]


def _load(path: Path, *, vocab_size: int) -> Tokenized | None:
    """What the cache holds; None if it is damaged, which is logged, or made by an older version."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if "answers" not in arrays.files:
                return None
            documents = Documents(
                tokens=arrays["tokens"],
                loss_mask=arrays["loss_mask"],
                offsets=arrays["offsets"],
                names=tuple(json.loads(arrays["names"].tobytes())),
            )
            # Older versions did not count marked texts.
            answers, left_out, *marks = json.loads(arrays["answers"].tobytes())
            marked, first_mark = marks or (0, "")
        documents.check(vocab_size=vocab_size)
        if not all(type(count) is int for count in (answers, marked, *left_out.values())):
            raise ValueError("a number of answers or texts is not a whole number")
    except Exception as error:  # Damaged bytes make zipfile and numpy raise almost anything.
        _log.warning("%s is damaged (%s): tokenizing the examples again.", path, error)
        return None
    return Tokenized(documents, answers, left_out, marked=marked, first_mark=str(first_mark))


def _save(made: Tokenized, path: Path) -> None:
    """Caches documents for the next run; if that is impossible, this run continues without."""
    documents = made.documents
    counts = [made.answers, made.left_out, made.marked, made.first_mark]
    try:
        with replaced_file(path) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                tokens=documents.tokens,
                loss_mask=documents.loss_mask,
                offsets=documents.offsets,
                names=np.frombuffer(json.dumps(documents.names).encode(), np.uint8),
                answers=np.frombuffer(json.dumps(counts).encode(), np.uint8),
            )
    except OSError as error:
        _log.warning("Tokenized examples cannot be cached in %s: %s.", path.parent, error)
