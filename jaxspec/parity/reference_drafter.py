"""A DFlash drafter computed from its files alone, in plain numpy: a second opinion.

Nothing of jaxspec's readers, key maps or models is used. The files are read here, the blocks'
attention is computed one block at a time, and a block is handed only the context that it may see.
What is computed follows the paper (arXiv 2602.06036, section 3) and z-lab's description of its
checkpoints, in the format of z-lab and in that of speculators.

A `Reading` says how the files are understood. The default is what the formats say; others are the
mistakes that trainers and servers make. A drafter that does better under one of those was trained
with it.

Dimension key: S positions of a text, N blocks, K block slots, D width, E captured features, Q query
heads, R key/value heads, C head width, T keys of a block's attention (context, then block).

>>> drafter = ReferenceDrafter("runs/full/export")  # doctest: +SKIP
>>> hidden_NKD = drafter(features_SE, anchors, embeddings_NKD)  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

_STORED = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}
"""Types of safetensors files."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How a checkpoint is understood; the defaults are what the formats say."""

    layer_shift: int = 0
    """Added to the ids of the captured layers."""
    rope_theta: float | None = None
    """Base of the rotary positions; None: as the configuration says."""
    is_anchor_first: bool = True
    """Whether slot 0 holds the anchor; False: a mask, like all others."""
    has_context_norm: bool = True
    """Whether `hidden_norm` is applied to the context."""
    has_final_norm: bool = True
    """Whether `norm` is applied to what the head reads."""
    is_causal: bool | None = None
    """Whether a slot sees only slots before it; None: as the configuration says."""
    has_window: bool = True
    """Whether sliding layers forget; False: they are computed as full ones."""


AS_STATED = Reading()


class ReferenceDrafter:
    """A drafter's folder, ready to compute blocks in float32.

    Attributes:
      block_size: K.
      mask_token_id: the token of the slots to be drafted.
      layer_ids: blocks of the target whose output is read, counted from 0. Block i's output is
        `hidden_states[i + 1]` of transformers, which for the last block comes after the final norm.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Reads the files.

        Raises:
          ValueError: rotary positions of a kind that is not known here.
        """
        self._raw = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        self._weights = _read_tensors(Path(folder))
        inner = self._raw.get("transformer_layer_config", self._raw)
        self._shape: Mapping[str, Any] = inner
        special = self._raw.get("dflash_config") or {}
        self.block_size: int = _block_size(self._raw, special)
        mask = special.get("mask_token_id", self._raw.get("mask_token_id"))
        self.mask_token_id: int | None = mask
        self.layer_ids: tuple[int, ...] = _layer_ids(self._raw, special)
        self._head_dim: int = inner.get("head_dim") or 128
        self._eps: float = inner.get("rms_norm_eps", 1e-6)
        causal = self._raw.get("is_causal", special.get("causal"))
        if self._raw.get("sliding_window_non_causal"):
            causal = False
        self._causal: bool | None = causal
        layers: int = inner["num_hidden_layers"]
        self._kinds = inner.get("layer_types") or ["full_attention"] * layers

    def block(self, anchor: int, reading: Reading = AS_STATED) -> list[int]:
        """The ids of a block that starts with an anchor: [anchor, mask x (K - 1)]."""
        mask = self.mask_token_id
        assert mask is not None, "a drafter without a mask token is given one by its target"
        return [anchor if reading.is_anchor_first else mask, *[mask] * (self.block_size - 1)]

    def __call__(
        self,
        features_SE: np.ndarray,
        anchors: Sequence[int],
        embeddings_NKD: np.ndarray,
        reading: Reading = AS_STATED,
    ) -> np.ndarray:
        """What the target's head reads, float32 [N, K, D]; slot 0 means nothing.

        Args:
          features_SE: the captured layers' outputs side by side, at all positions of a text.
          anchors: N positions at which a block begins. It sees features of earlier ones only.
          embeddings_NKD: the target's embeddings of each `block`.
          reading: how the checkpoint is understood.
        """
        context_SD = self._linear(features_SE.astype(np.float32), "fc")
        if reading.has_context_norm:
            context_SD = self._norm(context_SD, "hidden_norm")
        x_NKD = embeddings_NKD.astype(np.float32)
        for number, kind in enumerate(self._kinds):
            x_NKD = x_NKD + self._attention(number, kind, x_NKD, context_SD, anchors, reading)
            normed_NKD = self._norm(x_NKD, f"layers.{number}.post_attention_layernorm")
            gate = self._linear(normed_NKD, f"layers.{number}.mlp.gate_proj")
            up = self._linear(normed_NKD, f"layers.{number}.mlp.up_proj")
            # SiLU; tanh does not overflow where exp would.
            mixed = gate * (0.5 + 0.5 * np.tanh(0.5 * gate)) * up
            x_NKD = x_NKD + self._linear(mixed, f"layers.{number}.mlp.down_proj")
        return self._norm(x_NKD, "norm") if reading.has_final_norm else x_NKD

    def _attention(
        self,
        number: int,
        kind: str,
        x_NKD: np.ndarray,
        context_SD: np.ndarray,
        anchors: Sequence[int],
        reading: Reading,
    ) -> np.ndarray:
        """What a layer's attention adds to the blocks."""
        name = f"layers.{number}.self_attn"
        own_NKD = self._norm(x_NKD, f"layers.{number}.input_layernorm")
        slots_K = np.arange(x_NKD.shape[1])
        places_NK = np.array(anchors)[:, None] + slots_K
        q_NKQC = self._turned_heads(own_NKD, f"{name}.q", places_NK, reading)
        k_NKRC = self._turned_heads(own_NKD, f"{name}.k", places_NK, reading)
        v_NKRC = self._heads(own_NKD, f"{name}.v_proj")
        # The context passes no input norm, and is the same in every layer.
        k_SRC = self._turned_heads(context_SD, f"{name}.k", np.arange(len(context_SD)), reading)
        v_SRC = self._heads(context_SD, f"{name}.v_proj")
        mixed = []
        for block, anchor in enumerate(anchors):
            k_TRC = np.concatenate([k_SRC[:anchor], k_NKRC[block]])
            v_TRC = np.concatenate([v_SRC[:anchor], v_NKRC[block]])
            visible_KT = self._visible(
                kind, anchor + slots_K, np.arange(anchor + len(slots_K)), reading
            )
            mixed.append(_attended(q_NKQC[block], k_TRC, v_TRC, visible_KT))
        return self._linear(np.stack(mixed), f"{name}.o_proj")

    def _heads(self, x: np.ndarray, name: str) -> np.ndarray:
        """[..., D] -> [..., heads, C]."""
        flat = self._linear(x, name)
        return flat.reshape(*flat.shape[:-1], -1, self._head_dim)

    def _turned_heads(
        self, x: np.ndarray, name: str, positions: np.ndarray, reading: Reading
    ) -> np.ndarray:
        """Queries or keys: normed if the folder has weights for that, and rotated."""
        heads = self._heads(x, f"{name}_proj")
        if f"{name}_norm.weight" in self._weights:
            heads = self._norm(heads, f"{name}_norm")
        return self._rotated(heads, positions, reading)

    def _visible(
        self, kind: str, positions_K: np.ndarray, positions_T: np.ndarray, reading: Reading
    ) -> np.ndarray:
        """[K, T], True where a slot sees a key.

        Unless told otherwise, sliding layers are causal inside a block and full ones are not
        (z-lab/dflash, model.py).
        """
        behind_KT = positions_K[:, None] - positions_T
        slides = kind == "sliding_attention"
        causal = slides if self._causal is None else self._causal
        if reading.is_causal is not None:
            causal = reading.is_causal
        visible_KT = behind_KT >= 0 if causal else np.ones_like(behind_KT, bool)
        if slides and reading.has_window:
            visible_KT = visible_KT & (np.abs(behind_KT) < self._shape["sliding_window"])
        return visible_KT

    def _rotated(self, x: np.ndarray, positions: np.ndarray, reading: Reading) -> np.ndarray:
        """Rotary positions (arXiv 2104.09864): channel c turns with channel c + C / 2.

        Args:
          x: [..., heads, C].
          positions: [...].
          reading: how the checkpoint is understood.
        """
        angles = positions[..., None, None] * np.tile(self._frequencies(reading), 2)
        first, second = np.split(x, 2, axis=-1)
        turned = np.concatenate([-second, first], axis=-1)
        return (x * np.cos(angles) + turned * np.sin(angles)).astype(np.float32)

    def _frequencies(self, reading: Reading) -> np.ndarray:
        """Radians per position, float64 [C / 2]; llama3 stretches the long waves (Llama 3.1)."""
        rope = {
            **(self._shape.get("rope_scaling") or {}),
            **(self._shape.get("rope_parameters") or {}),
        }
        stated = rope.get("rope_theta", self._shape.get("rope_theta", 10_000.0))
        theta = stated if reading.rope_theta is None else reading.rope_theta
        exponents = np.arange(0, self._head_dim, 2) / self._head_dim
        frequencies = theta**-exponents
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind == "default":
            return frequencies
        if kind != "llama3":
            raise ValueError(f"rope_type is {kind!r}: expected 'default' or 'llama3' in a drafter.")
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
        kept = np.clip((turns - low) / (high - low), 0, 1)
        return frequencies * (kept + (1 - kept) / rope["factor"])

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        """A product with a matrix that is stored as [outputs, inputs]."""
        rows = x.reshape(-1, x.shape[-1]) @ self._weights[f"{name}.weight"].T
        return rows.reshape(*x.shape[:-1], -1)

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        """RMSNorm over the last axis (arXiv 1910.07467)."""
        mean_square = np.mean(np.square(x), axis=-1, keepdims=True)
        normed: np.ndarray = x / np.sqrt(mean_square + self._eps) * self._weights[f"{name}.weight"]
        return normed


def _attended(
    q_KQC: np.ndarray, k_TRC: np.ndarray, v_TRC: np.ndarray, visible_KT: np.ndarray
) -> np.ndarray:
    """Attention of one block, all heads side by side."""
    group = q_KQC.shape[1] // k_TRC.shape[1]
    k_TQC, v_TQC = (np.repeat(array, group, axis=1) for array in (k_TRC, v_TRC))
    scores_QKT = np.einsum("kqc,tqc->qkt", q_KQC, k_TQC) / math.sqrt(q_KQC.shape[-1])
    scores_QKT = np.where(visible_KT, scores_QKT, -np.inf)
    weights_QKT = np.exp(scores_QKT - scores_QKT.max(-1, keepdims=True))
    weights_QKT /= weights_QKT.sum(-1, keepdims=True)
    mixed_KQC = np.einsum("qkt,tqc->kqc", weights_QKT, v_TQC)
    return mixed_KQC.reshape(len(q_KQC), -1)


def _block_size(raw: Mapping[str, Any], special: Mapping[str, Any]) -> int:
    """Slots of a block. In the format of speculators, servers are told how many to draft."""
    proposals = (raw.get("speculators_config") or {}).get("proposal_methods") or [{}]
    drafted = proposals[0].get("speculative_tokens")
    stated: int = raw.get("block_size") or special["block_size"]
    return stated if drafted is None else 1 + drafted


def _layer_ids(raw: Mapping[str, Any], special: Mapping[str, Any]) -> tuple[int, ...]:
    """Blocks of the target, counted from 0. speculators counts the embedding as 0."""
    if "speculators_model_type" in raw:
        return tuple(number - 1 for number in raw["aux_hidden_state_layer_ids"])
    stated = special.get("target_layer_ids", raw.get("target_layer_ids"))
    if stated is not None:
        return tuple(stated)
    layers, count = raw["num_target_layers"], raw["num_hidden_layers"]
    if count == 1:
        return (layers // 2,)
    return tuple(round(1 + i * (layers - 4) / (count - 1)) for i in range(count))


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of the folder's safetensors files, in float32.

    A file is the length of its header (8 bytes, little-endian), the header (JSON), and the bytes.
    """
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        content = np.memmap(path, np.uint8, "r")
        start = 8 + int.from_bytes(content[:8].tobytes(), "little")
        header = json.loads(content[8:start].tobytes())
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                flat = content[start + begin : start + end].view(_STORED[entry["dtype"]])
                tensors[name] = flat.reshape(entry["shape"]).astype(np.float32)
    return tensors
