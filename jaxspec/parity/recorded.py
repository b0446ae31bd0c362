"""Compares a drafter with the record that its export carries (`jaxspec.training.draft_record`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxspec.evals.opening import DrafterBundle, TargetBundle
from jaxspec.parity.findings import Finding, judged
from jaxspec.training.draft_pass import Text
from jaxspec.training.draft_record import drafts_on, facts, orders, sizes

_NAMES = {
    "target_layer_ids": "layer ids",
    "mask_token_id": "mask token",
    "block_size": "block size",
    "rope_theta": "RoPE",
    "rope_scaling": "RoPE",
    "layer_types": "window",
    "sliding_window": "window",
    "is_causal": "causality",
}
"""Fact -> the line that it belongs to; others belong to "shape"."""
_PARTS = {"hidden_norm/scale": "context norm", "final_norm/scale": "final norm"}
"""Parameter -> its line; others belong to "weights"."""
_SIZE_TOLERANCE, _ROUNDED_SIZE_TOLERANCE = 1e-3, 4e-3
"""Of a parameter's size: float32, and rounded to bfloat16. Rounding moves an entry by at most 2**-8
of it, and the scales of a norm, which are all near 1, in the same direction."""
_ORDER_TOLERANCE = 5e-3
"""Of a parameter's size: the roundings of bfloat16 cancel for the most part."""
_LAYER_TOLERANCE = 1e-2
"""Of the size of a captured layer: computing in bfloat16 changes it by less."""
_EXACT, _ROUNDED = 0.01, 0.25
"""Nats by which the log-probability of a draft may differ: float32, and rounded to bfloat16."""


def as_recorded(
    record: Mapping[str, Any],
    target: TargetBundle,
    drafter: DrafterBundle,
    *,
    is_rounded: bool,
) -> list[Finding]:
    """A line for each part of the record.

    Args:
      record: what the export holds.
      target: as it is now.
      drafter: likewise.
      is_rounded: whether weights are stored, or were computed in, less than float32.

    Raises:
      ValueError: the record is damaged.
    """
    try:
        return list(_compared(record, target, drafter, is_rounded=is_rounded))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"The record of drafts in provenance.json is damaged ({type(error).__name__}: "
            f"{error}): export the drafter again."
        ) from error


def _compared(
    record: Mapping[str, Any],
    target: TargetBundle,
    drafter: DrafterBundle,
    *,
    is_rounded: bool,
) -> Iterator[Finding]:
    wrong: dict[str, list[str]] = {}
    now = facts(drafter.model.config)
    for name, value in record["config"].items():
        if now.get(name) != value:
            line = _NAMES.get(name, "shape")
            wrong.setdefault(line, []).append(f"{name} is {now.get(name)}, exported {value}")
    measured = sizes(drafter.params)
    tolerance = _ROUNDED_SIZE_TOLERANCE if is_rounded else _SIZE_TOLERANCE
    for path, size in record["parameters"].items():
        got = measured.get(path)
        if got is None or abs(got - size) > tolerance * max(size, 1e-9):
            line = _PARTS.get(path, "weights")
            wrong.setdefault(line, []).append(f"{path} has size {got}, exported {size}")
    ordered = orders(drafter.params)
    for path, order in record.get("orders", {}).items():  # Older records have none.
        size = record["parameters"][path]
        if path in measured and abs(ordered[path] - order) > _ORDER_TOLERANCE * size:
            line = _PARTS.get(path, "weights")
            wrong.setdefault(line, []).append(f"{path} has its entries in another order")
    for line in dict.fromkeys([*_NAMES.values(), "shape", *_PARTS.values(), "weights"]):
        reasons = wrong.get(line, [])
        yield judged(f"as exported: {line}", not reasons, "; ".join(reasons[:3]) or "the same")
    yield _same_prompts(record, target)
    if not wrong:
        yield from _same_computation(record, target, drafter, is_rounded=is_rounded)


def _same_prompts(record: Mapping[str, Any], target: TargetBundle) -> Finding:
    name = "as exported: chat template"
    prompts = record["prompts"]
    if not prompts or not target.tokenizer.has_template:
        return judged(name, not prompts, "none" if not prompts else "the target has none any more")
    for prompt in prompts:
        got = target.tokenizer.encode_prompt([{"role": "user", "content": prompt["content"]}])
        if got != prompt["ids"]:
            expected = target.tokenizer.decode(prompt["ids"], skip_special=False)
            now = target.tokenizer.decode(got, skip_special=False)
            return judged(name, False, f"a prompt is {now!r}, in training {expected!r}")
    return judged(name, True, f"the same ids of {len(prompts)} prompts")


def _same_computation(
    record: Mapping[str, Any],
    target: TargetBundle,
    drafter: DrafterBundle,
    *,
    is_rounded: bool,
) -> Iterator[Finding]:
    """What the target's layers and the drafter make of the recorded texts."""
    texts = [Text(tuple(t["tokens"]), tuple(t["anchors"])) for t in record["texts"]]
    found = drafts_on(
        texts, drafter.params, target.params, target=target.model, drafter=drafter.model
    )
    layers = [
        (number, size, expected)
        for text, recorded in zip(found, record["texts"], strict=True)
        for number, size, expected in zip(
            drafter.model.config.target_layer_ids, text["layers"], recorded["layers"], strict=True
        )
    ]
    wrong = [
        f"layer {number} has size {size}, exported {expected}: it is another target"
        for number, size, expected in layers
        if not abs(size - expected) <= _LAYER_TOLERANCE * expected
    ]
    yield judged("as exported: target", not wrong, wrong[0] if wrong else "the same")
    now_NGJ, ids_NGJ = (
        np.concatenate([np.array(text[key]) for text in found])
        for key in ("log_probabilities", "ids")
    )
    then_NGJ, expected_NGJ = (
        np.concatenate([np.array(text[key]) for text in record["texts"]])
        for key in ("log_probabilities", "ids")
    )
    same = int((ids_NGJ[..., 0] == expected_NGJ[..., 0]).sum())
    gap = float(np.abs(now_NGJ - then_NGJ).max())
    limit = _ROUNDED if is_rounded else _EXACT
    detail = f"{same} of {ids_NGJ[..., 0].size} equal, within {gap:.1e} nats"
    if not gap <= limit:
        detail += f" (allowed: {limit})"
    yield judged("as exported: drafts", gap <= limit, detail)
