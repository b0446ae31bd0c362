"""Which module computes which configuration.

The language models that can be targets have one interface: `__call__` with positions, segments, a
cache, captured layers and a mask of a tree; `logits`; `embed_tokens`. Denoisers have another:
`jaxspec.models.denoiser.Denoiser`.

>>> make_model(GPT2Config()).config.num_layers
12
"""

from __future__ import annotations

from jaxspec.config import (
    DiTConfig,
    GPT2Config,
    GPTNeoXConfig,
    LanguageModelConfig,
    MaskedTransformerConfig,
)
from jaxspec.models.bidirectional import BidirectionalTransformer
from jaxspec.models.dit import DiT
from jaxspec.models.gpt2 import GPT2
from jaxspec.models.gpt_neox import GPTNeoX
from jaxspec.models.transformer import Transformer

LanguageModel = Transformer | GPT2 | GPTNeoX
AnyDenoiser = DiT | BidirectionalTransformer
"""Each is a `Denoiser` with a head of its own (`logits`), and its configuration names the mask and
the context."""


def make_model(config: LanguageModelConfig) -> LanguageModel:
    """The module of a configuration."""
    if isinstance(config, GPTNeoXConfig):
        return GPTNeoX(config)
    return GPT2(config) if isinstance(config, GPT2Config) else Transformer(config)


def make_denoiser(config: DiTConfig | MaskedTransformerConfig) -> AnyDenoiser:
    """The denoiser of a configuration."""
    return DiT(config) if isinstance(config, DiTConfig) else BidirectionalTransformer(config)
