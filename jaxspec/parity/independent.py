"""Drafts of the independent forward, and of the mistakes that trainers and servers make.

Dimension key: N blocks, G drafted slots, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from jaxspec.parity.findings import Finding, judged
from jaxspec.parity.reference_drafter import AS_STATED, Reading, ReferenceDrafter
from jaxspec.parity.sources import Source
from jaxspec.training.draft_pass import Text

_CERTAIN = 3.0
"""Standard errors by which a mistake must do better before it is believed."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to misread a checkpoint."""

    name: str
    reading: Reading
    meaning: str
    """What it says of the checkpoint if it drafts better."""


_VARIANTS = (
    Variant("layer ids", Reading(layer_shift=-1), "the layer ids are one too high"),
    Variant("layer ids", Reading(layer_shift=1), "the layer ids are one too low"),
    Variant("RoPE", Reading(theta_factor=10.0), "rope_theta is too low"),
    Variant("RoPE", Reading(theta_factor=0.1), "rope_theta is too high"),
    Variant("slot 0", Reading(is_anchor_first=False), "it was trained with a mask in slot 0"),
    Variant("context norm", Reading(has_context_norm=False), "it was trained without hidden_norm"),
    Variant("final norm", Reading(has_final_norm=False), "it was trained without the final norm"),
    Variant("causality", Reading(is_causal=True), "its blocks were causal in training"),
    Variant("causality", Reading(is_causal=False), "its blocks were not causal in training"),
    Variant("window", Reading(has_window=False), "its sliding layers saw everything in training"),
)


def drafts(
    drafter: ReferenceDrafter,
    source: Source,
    texts: Sequence[Text],
    reading: Reading = AS_STATED,
) -> np.ndarray:
    """Draft logits of all blocks, float32 [N, G, V]."""
    layer_ids = tuple(number + reading.layer_shift for number in drafter.layer_ids)
    found = []
    for text in texts:
        features_SE = source.features(text.tokens, layer_ids)
        for anchor in text.anchors:
            embeddings_KD = source.embed(drafter.block(text.tokens[anchor], reading))
            hidden_KD = drafter(features_SE[:anchor], embeddings_KD, reading)
            found.append(source.logits(hidden_KD[1:]))
    return np.stack(found)


def accepted(logits_NGV: np.ndarray, texts: Sequence[Text]) -> np.ndarray:
    """Drafts of each block that the text goes on with, up to the first that it does not: [N]."""
    choices_NG = logits_NGV.argmax(-1)
    counts = []
    for block, (text, anchor) in enumerate(_blocks(texts)):
        following = text.tokens[anchor + 1 :]
        same = [a == b for a, b in zip(choices_NG[block].tolist(), following, strict=False)]
        counts.append(same.index(False) if False in same else len(same))
    return np.array(counts)


def variants(
    drafter: ReferenceDrafter,
    source: Source,
    texts: Sequence[Text],
    stated_NGV: np.ndarray,
    *,
    num_layers: int,
) -> list[Finding]:
    """A line for each way to misread the checkpoint: it fails if that drafts clearly better."""
    stated_N = accepted(stated_NGV, texts)
    best: dict[str, Finding] = {}
    for variant in _VARIANTS:
        layer_ids = [number + variant.reading.layer_shift for number in drafter.layer_ids]
        if min(layer_ids) < 0 or max(layer_ids) >= num_layers:
            continue
        got_NGV = drafts(drafter, source, texts, variant.reading)
        if np.array_equal(got_NGV, stated_NGV):  # It is what the checkpoint says.
            continue
        got_N = accepted(got_NGV, texts)
        gain_N = got_N - stated_N
        error = gain_N.std(ddof=1) / np.sqrt(len(gain_N)) if len(gain_N) > 1 else np.inf
        is_better = bool(gain_N.mean() > 0 and gain_N.mean() > _CERTAIN * error)
        numbers = f"accepted {got_N.mean():.2f} of a block, as stated {stated_N.mean():.2f}"
        detail = f"{variant.meaning}: {numbers}" if is_better else f"otherwise {numbers}"
        finding = judged(f"trained as stated: {variant.name}", not is_better, detail)
        if variant.name not in best or finding.status == "FAIL":
            best[variant.name] = finding
    return list(best.values())


def _blocks(texts: Sequence[Text]) -> Iterator[tuple[Text, int]]:
    for text in texts:
        for anchor in text.anchors:
            yield text, anchor
