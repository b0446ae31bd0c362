"""Shapes of models that `jaxspec.config` hands on; apart from it, to keep that file readable.

Nothing here touches jax.

>>> DiTConfig().head_dim
64
"""

from __future__ import annotations

import dataclasses
from typing import Literal

Context = Literal["bidirectional", "causal"]


@dataclasses.dataclass(frozen=True)
class DiTConfig:
    """Shape of MDLM's diffusion transformer; the defaults are those of the released model.

    Raises:
      ValueError: a width that the heads do not divide into even parts, or sizes below 1.
    """

    vocab_size: int = 50_258
    """Rows of the embedding; the mask has one (the last in the released model)."""
    hidden_size: int = 768
    """Width of the residual stream."""
    num_layers: int = 12
    """Transformer blocks."""
    num_heads: int = 12
    """Attention heads; each is hidden_size / num_heads wide."""
    conditioning_size: int = 128
    """Width of the embedded noise, from which every layer's modulation is computed."""
    time_conditioning: bool = False
    """Whether the model sees the noise. If not, it is given 0, as the released model was."""
    max_position_embeddings: int = 1024
    """Longest sequence the model is made for."""
    mask_token_id: int | None = None
    """Id of the mask; None: the last row of the embedding, as in the released model."""
    context: Context = "bidirectional"
    """What clean tokens before a drafted block see: everything, the block's masks included, as in
    MDLM, or only what stands before them, as in block diffusion with blocks of one. Causal ones
    never change, so drafting keeps their keys and values and reads the block alone."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What matrix products compute in; parameters stay in `param_dtype`."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """What parameters and optimizer state are stored in."""
    unroll_layers: bool = False
    """Unroll the scan over layers: faster on a CPU, slower to compile."""
    remat: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations."""

    def __post_init__(self) -> None:
        if self.mask_token_id is not None and not 0 <= self.mask_token_id < self.vocab_size:
            raise ValueError(
                f"mask_token_id must lie in the vocabulary, 0..{self.vocab_size - 1}: got "
                f"{self.mask_token_id}."
            )
        sizes = ("vocab_size", "hidden_size", "num_layers", "num_heads", "conditioning_size")
        for field in sizes:
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1: got {getattr(self, field)}.")
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                "hidden_size must give every head an even width, for RoPE: got hidden_size "
                f"{self.hidden_size} for {self.num_heads} heads."
            )

    @property
    def mask_id(self) -> int:
        """Id of the mask."""
        return self.vocab_size - 1 if self.mask_token_id is None else self.mask_token_id

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_heads

    @property
    def num_kv_heads(self) -> int:
        """Every query head has keys and values of its own."""
        return self.num_heads

    @property
    def intermediate_size(self) -> int:
        """Width inside the MLP."""
        return 4 * self.hidden_size
