"""LLaDA: a diffusion language model with the layers of a Llama and no causal mask.

LLaDA (Nie et al. 2025, arXiv 2502.09992) takes a text with masks and predicts the token at each
mask. Every position sees every other one, and the model is not told the noise. That is
`jaxspec.models.bidirectional.BidirectionalTransformer` without norms on queries and keys; what is
LLaDA's own is its shape, its special tokens (here) and its tensor names
(`jaxspec.checkpoints.families.llada`).

Models that denoise block by block with Qwen3's layers (SDAR and others) are the same class under
``mask_BSS=block_causal_mask(...)``.

>>> model = BidirectionalTransformer(LLADA_8B)  # doctest: +SKIP
>>> logits_BSV = model.apply({"params": params}, tokens_BS).logits_BSV  # doctest: +SKIP
"""

from __future__ import annotations

from jaxspec.config import MaskedTransformerConfig

LLADA_8B = MaskedTransformerConfig(
    family="llama",
    vocab_size=126_464,
    hidden_size=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    intermediate_size=12_288,
    rms_norm_eps=1e-5,
    rope_theta=500_000.0,
    qk_norm=False,
    tie_embeddings=False,
    max_position_embeddings=4096,
    mask_token_id=126_336,
    dtype="bfloat16",
    param_dtype="bfloat16",
)
"""The shape of the released 8B models (Base, Instruct and 1.5)."""

EOS_ID = 126_081
"""Ends a text of the released models, and fills what comes after it: it is also the padding."""
END_OF_TURN_ID = 126_348
"""Ends an answer of the released Instruct models, before the padding."""
