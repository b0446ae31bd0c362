"""DFlash written out in torch from its description (arXiv 2602.06036), one block at a time.

It reads an exported folder in z-lab's format and knows nothing of jaxspec: this file also runs in
the environment of the third-party programs.

Dimension key: S context, K slots, T = S + K keys, D width, E captured features, Q query heads,
R key/value heads, C head width.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


class ReferenceDrafter:
    """One block of a drafter. `window_from_anchor`: speculators' rule for sliding layers.

    There, a slot sees the `window` positions before the anchor and all of its block; for servers,
    it sees the last `window` positions up to its own.
    """

    def __init__(self, folder: Path, *, window_from_anchor: bool = False) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.weights = load_file(folder / "model.safetensors")
        self.window_from_anchor = window_from_anchor

    def __call__(self, features_SE: torch.Tensor, embeddings_KD: torch.Tensor) -> torch.Tensor:
        """Hidden states [K, D] of the block after the context, for the target's head."""
        context_SD = self._norm(self._linear(features_SE, "fc"), "hidden_norm")
        context, slots = len(context_SD), len(embeddings_KD)
        positions_T = torch.arange(context + slots)
        x_KD = embeddings_KD
        for layer in range(self.config["num_hidden_layers"]):
            name = f"layers.{layer}"
            normed_KD = self._norm(x_KD, f"{name}.input_layernorm")
            mixed_KD = self._attention(
                normed_KD, context_SD, positions_T, f"{name}.self_attn", layer=layer
            )
            x_KD = x_KD + mixed_KD
            normed_KD = self._norm(x_KD, f"{name}.post_attention_layernorm")
            gate_KF = torch.nn.functional.silu(self._linear(normed_KD, f"{name}.mlp.gate_proj"))
            up_KF = self._linear(normed_KD, f"{name}.mlp.up_proj")
            x_KD = x_KD + self._linear(gate_KF * up_KF, f"{name}.mlp.down_proj")
        return self._norm(x_KD, "norm")

    def _attention(
        self,
        normed_KD: torch.Tensor,
        context_SD: torch.Tensor,
        positions_T: torch.Tensor,
        name: str,
        *,
        layer: int,
    ) -> torch.Tensor:
        width = self.config["head_dim"]
        groups = self.config["num_attention_heads"] // self.config["num_key_value_heads"]
        seen_TD = torch.cat([context_SD, normed_KD])
        q_KQC = self._linear(normed_KD, f"{name}.q_proj").unflatten(-1, (-1, width))
        k_TRC = self._linear(seen_TD, f"{name}.k_proj").unflatten(-1, (-1, width))
        v_TRC = self._linear(seen_TD, f"{name}.v_proj").unflatten(-1, (-1, width))
        slots_K = positions_T[len(context_SD) :]
        q_KQC = self._rotate(self._norm(q_KQC, f"{name}.q_norm"), slots_K)
        k_TRC = self._rotate(self._norm(k_TRC, f"{name}.k_norm"), positions_T)
        k_TQC, v_TQC = (each.repeat_interleave(groups, 1) for each in (k_TRC, v_TRC))
        scores_QKT = torch.einsum("kqc,tqc->qkt", q_KQC, k_TQC) / math.sqrt(width)
        visible_KT = self._visible(slots_K, positions_T, len(context_SD), layer=layer)
        weights_QKT = torch.softmax(scores_QKT.masked_fill(~visible_KT, -math.inf), -1)
        mixed_KQC = torch.einsum("qkt,tqc->kqc", weights_QKT, v_TQC)
        return self._linear(mixed_KQC.flatten(1), f"{name}.o_proj")

    def _visible(
        self, slots_K: torch.Tensor, positions_T: torch.Tensor, anchor: int, *, layer: int
    ) -> torch.Tensor:
        slides = self.config["layer_types"][layer] == "sliding_attention"
        causal = self.config.get("is_causal")
        ahead_KT = positions_T - slots_K[:, None]
        visible_KT = torch.ones_like(ahead_KT, dtype=torch.bool)
        if slides if causal is None else causal:
            visible_KT &= ahead_KT <= 0
        if slides and self.window_from_anchor:
            visible_KT &= positions_T >= anchor - self.config["sliding_window"]
        elif slides:
            visible_KT &= ahead_KT.abs() < self.config["sliding_window"]
        return visible_KT

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        mean_square = x.pow(2).mean(-1, keepdim=True)
        scale = self.weights[f"{name}.weight"]
        return x * torch.rsqrt(mean_square + self.config["rms_norm_eps"]) * scale

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ self.weights[f"{name}.weight"].T

    def _rotate(self, x_THC: torch.Tensor, positions_T: torch.Tensor) -> torch.Tensor:
        angles_TC = torch.outer(positions_T.float(), self._frequencies()).repeat(1, 2)[:, None]
        first, second = x_THC.chunk(2, -1)
        return x_THC * angles_TC.cos() + torch.cat([-second, first], -1) * angles_TC.sin()

    def _frequencies(self) -> torch.Tensor:
        width = self.config["head_dim"]
        frequencies = self.config["rope_theta"] ** -(torch.arange(0, width, 2).float() / width)
        rule = self.config["rope_scaling"]
        if rule is None:
            return frequencies
        # Llama 3.1: long waves are stretched, short ones stay, between them it is a mixture.
        turns = rule["original_max_position_embeddings"] * frequencies / (2 * math.pi)
        low, high = rule["low_freq_factor"], rule["high_freq_factor"]
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return frequencies * (kept + (1 - kept) / rule["factor"])
