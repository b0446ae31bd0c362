"""What a run says about its data before the first step."""

from __future__ import annotations

import numpy as np

from jaxspec.data.packing import Documents, pack
from jaxspec.data.pipeline import Pipeline
from jaxspec.losses import LossConfig
from jaxspec.training.data_statistics import anchor_statistics, data_lines
from jaxspec.training.objectives import DrafterObjective, TargetObjective
from jaxspec.training.validation import HeldOut
from tests.training import tiny

# Rows of 24: a document of 18 tokens, 12 of them learned, and one of 6, of which 3 are.
LONG = (np.arange(18) + 5, np.arange(18) >= 6)
SHORT = (np.arange(6) + 5, np.arange(6) >= 3)
ROWS = pack(Documents.from_list([LONG, SHORT] * 5), sequence_length=24)
PIPELINE = Pipeline(ROWS, batch_size=2)


def objective(anchors: int) -> DrafterObjective:
    return DrafterObjective(
        target=tiny.TARGET, drafter=tiny.DRAFTER, loss=LossConfig(), anchors=anchors
    )


def test_anchors_of_an_epoch():
    found = anchor_statistics(PIPELINE, objective(100))
    assert found is not None
    assert sorted(found.per_document) == [2] * 5 + [11] * 5, "every candidate"
    assert found.covered == (2 + 11) / (3 + 12), "all but the first learned token of a document"
    few = anchor_statistics(PIPELINE, objective(2))
    assert few is not None and (few.per_document == 1).all()


def test_lines():
    held_out = HeldOut(rows=ROWS, digest="")
    first, second, third, last = data_lines(PIPELINE, objective(2), held_out=held_out, steps=1000)
    assert first.startswith("Data: 10 documents, 120 tokens in 5 rows of 24 (100.0% full)")
    assert second == "1,000 steps are 400.00 epochs of 2.5 steps."
    assert third.startswith("Anchors: one epoch drafts ")
    assert third.endswith("a document gets 1.0 anchors on average, from 1 to 1.")
    assert last.startswith("Held out for validation: 10 documents")


def test_a_target_has_no_anchors():
    assert len(data_lines(PIPELINE, TargetObjective(tiny.TARGET), held_out=None, steps=1)) == 2
