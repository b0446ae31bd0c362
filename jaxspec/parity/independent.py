"""Drafts of the independent forward, and of the mistakes that trainers and servers make.

Dimension key: S tokens of a text, N blocks, K block slots, G = K - 1 drafted slots, D width,
E captured features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from jaxspec.parity.findings import Finding, judged
from jaxspec.parity.reference_drafter import AS_STATED, Reading, ReferenceDrafter
from jaxspec.parity.sources import Source
from jaxspec.training.draft_pass import Text

_CERTAIN, _LARGE = 3.0, 0.1
"""Standard errors, and share of what is accepted as stated, by which a mistake must do better
before it is believed."""
_BLOCKS_AT_ONCE = 8


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
    *(
        Variant("RoPE", Reading(rope_theta=theta), f"rope_theta should be {theta:.0f}")
        for theta in (1e4, 1e5, 5e5, 1e6, 5e6, 1e7)  # The usual ones.
    ),
    Variant("slot 0", Reading(is_anchor_first=False), "it was trained with a mask in slot 0"),
    Variant("context norm", Reading(has_context_norm=False), "it was trained without hidden_norm"),
    Variant("final norm", Reading(has_final_norm=False), "it was trained without the final norm"),
    Variant("causality", Reading(is_causal=True), "its blocks were causal in training"),
    Variant("causality", Reading(is_causal=False), "its blocks were not causal in training"),
    Variant("window", Reading(has_window=False), "its sliding layers saw everything in training"),
)


def drafted(
    drafter: ReferenceDrafter,
    source: Source,
    texts: Sequence[Text],
    reading: Reading = AS_STATED,
) -> np.ndarray:
    """What the head reads in the drafted slots of all blocks, float32 [N, G, D]."""
    layer_ids = [number + reading.layer_shift for number in drafter.layer_ids]
    found = []
    for text in texts:
        features_SE = source.features(text.tokens, layer_ids)
        blocks_NK = np.array(
            [drafter.block(text.tokens[anchor], reading) for anchor in text.anchors]
        )
        hidden_NKD = drafter(features_SE, text.anchors, source.embed(blocks_NK), reading)
        found.append(hidden_NKD[:, 1:])
    return np.concatenate(found)


def accepted(choices_NG: np.ndarray, texts: Sequence[Text]) -> np.ndarray:
    """Drafts of each block that the text goes on with, up to the first that it does not: [N]."""
    counts = []
    for choices, (text, anchor) in zip(choices_NG.tolist(), _blocks(texts), strict=True):
        same = [a == b for a, b in zip(choices, text.tokens[anchor + 1 :], strict=False)]
        counts.append(same.index(False) if False in same else len(same))
    return np.array(counts)


def variants(
    drafter: ReferenceDrafter,
    source: Source,
    texts: Sequence[Text],
    stated_NGD: np.ndarray,
    *,
    num_layers: int,
) -> list[Finding]:
    """A line for each kind of misreading: it fails if one of that kind drafts clearly better.

    Args:
      drafter: the independent forward.
      source: the target.
      texts: what is drafted in.
      stated_NGD: `drafted` as the checkpoint says.
      num_layers: of the target.
    """
    stated_N = accepted(_choices(source, stated_NGD), texts)
    best: dict[str, tuple[float, Finding]] = {}
    for variant in _VARIANTS:
        layer_ids = [number + variant.reading.layer_shift for number in drafter.layer_ids]
        if min(layer_ids) < 0 or max(layer_ids) >= num_layers:
            continue
        got_NGD = drafted(drafter, source, texts, variant.reading)
        if np.array_equal(got_NGD, stated_NGD):  # It is what the checkpoint says.
            continue
        gain_N = accepted(_choices(source, got_NGD), texts) - stated_N
        finding = _judged(variant, gain_N, stated_N)
        gain = float(gain_N.mean())
        if variant.name not in best or gain > best[variant.name][0]:
            best[variant.name] = gain, finding
    return [finding for _, finding in best.values()]


def _judged(variant: Variant, gain_N: np.ndarray, stated_N: np.ndarray) -> Finding:
    error = gain_N.std(ddof=1) / np.sqrt(len(gain_N)) if len(gain_N) > 1 else np.inf
    least = max(_CERTAIN * error, _LARGE * stated_N.mean())
    is_better = bool(gain_N.mean() > 0 and gain_N.mean() > least)
    stated, got = stated_N.mean(), (stated_N + gain_N).mean()
    detail = f"accepts {got:.2f} a block, as stated {stated:.2f}"
    if is_better:
        detail = f"{variant.meaning}: it then {detail}"
    return judged(f"trained as stated: {variant.name}", not is_better, detail)


def _choices(source: Source, hidden_NGD: np.ndarray) -> np.ndarray:
    """The likeliest ids, [N, G]. Logits of a few blocks at a time are held."""
    starts = range(0, len(hidden_NGD), _BLOCKS_AT_ONCE)
    parts = [hidden_NGD[start : start + _BLOCKS_AT_ONCE] for start in starts]
    return np.concatenate([source.logits(part).argmax(-1) for part in parts])


def _blocks(texts: Sequence[Text]) -> Iterator[tuple[Text, int]]:
    for text in texts:
        for anchor in text.anchors:
            yield text, anchor
