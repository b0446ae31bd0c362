"""Which module computes which configuration: the language models that can be targets.

All of them have one interface: `__call__` with positions, segments, a cache, captured layers and a
mask of a tree; `logits`; `embed_tokens`.

>>> make_model(GPT2Config()).config.num_layers
12
"""

from __future__ import annotations

from jaxspec.config import GPT2Config, LanguageModelConfig
from jaxspec.models.gpt2 import GPT2
from jaxspec.models.transformer import Transformer

LanguageModel = Transformer | GPT2


def make_model(config: LanguageModelConfig) -> LanguageModel:
    """The module of a configuration."""
    return GPT2(config) if isinstance(config, GPT2Config) else Transformer(config)
