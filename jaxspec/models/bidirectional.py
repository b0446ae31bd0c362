"""A `Transformer` without the causal mask, as a denoiser.

Its parameters are those of this library's `Transformer`, so that the weights of a target can be its
start. LLaDA and SDAR are this network as well.

Dimension key: B batch rows, S tokens of a pass, I rows that are asked for, D width, V vocabulary.

>>> import jax.numpy as jnp
>>> model = BidirectionalTransformer(MaskedTransformerConfig(vocab_size=12, num_layers=1))
>>> tokens_BS = jnp.zeros((1, 8), jnp.int32)
>>> params = model.init(jax.random.key(0), tokens_BS)["params"]
>>> model.apply({"params": params}, tokens_BS).logits_BSV.shape
(1, 8, 12)
"""

from __future__ import annotations

import jax
from flax import linen as nn

from jaxspec.config import MaskedTransformerConfig
from jaxspec.models.cache import KVCache
from jaxspec.models.denoiser import DenoiserOutput, take_rows, visible
from jaxspec.models.transformer import Transformer


class BidirectionalTransformer(nn.Module):
    """A `Transformer` in which every token sees every other; its parameters are the same tree.

    It is not told the noise: `sigma` is accepted and ignored, since the number of masks shows it
    (MDLM, appendix E.5).
    """

    config: MaskedTransformerConfig

    def setup(self) -> None:
        self.transformer = Transformer(self.config)
        nn.share_scope(self, self.transformer)

    def __call__(
        self,
        tokens_BS: jax.Array,
        *,
        positions_BS: jax.Array | None = None,
        segments_BS: jax.Array | None = None,
        mask_BSS: jax.Array | None = None,
        sigma: jax.Array | None = None,
        cache: KVCache | None = None,
        cache_mask_BST: jax.Array | None = None,
        cache_positions_BT: jax.Array | None = None,
        rows_BI: jax.Array | None = None,
        with_logits: bool = True,
    ) -> DenoiserOutput:
        """One pass; see `Denoiser`. Sliding layers keep their window towards earlier positions."""
        del sigma
        output = self.transformer(
            tokens_BS,
            positions_BS=positions_BS,
            cache=cache,
            cache_mask_BST=cache_mask_BST,
            cache_positions_BT=cache_positions_BT,
            mask_BSS=visible(tokens_BS, segments_BS=segments_BS, mask_BSS=mask_BSS),
        )
        hidden_BSD = take_rows(output.hidden_BSD, rows_BI)
        logits_BSV = self.logits(hidden_BSD if with_logits else hidden_BSD[:, :0])
        return DenoiserOutput(hidden_BSD, logits_BSV, output.keys_LBRSC, output.values_LBRSC)

    def logits(self, hidden_BSD: jax.Array) -> jax.Array:
        """The head alone, for callers that hold the logits of only a few positions at a time."""
        return self.transformer.logits(hidden_BSD)
