"""Transformers of the Hugging Face Hub, and how each differs from the others: one entry each.

An entry says what transformers computes for a config.json of its model type: what it assumes where
the file says nothing, what is fixed, and which parts of `features` read the rest.

>>> KINDS["gemma3_text"].fixed["norms"]
'around'
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from jaxspec.checkpoints.families import features
from jaxspec.checkpoints.families.features import Feature

ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Position scalings of most families. "dynamic" and "longrope" change with the text's length."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """What distinguishes one model type from another."""

    architecture: str
    """The class in transformers."""
    positions: int
    """What transformers assumes for a config.json without max_position_embeddings."""
    head_dim: int = 0
    """What it assumes for one without head_dim; 0: width / heads."""
    eps: float = 1e-6
    """What it assumes for one without rms_norm_eps."""
    theta: float = 10_000.0
    """What it assumes for one without rope_theta."""
    tied: bool = False
    """What it assumes for one without tie_word_embeddings."""
    bias: Literal["stated", "always", "never"] = "stated"
    """Whether queries, keys and values have biases; "stated": attention_bias says so, and then the
    output has one as well."""
    activation_key: str = "hidden_act"
    """Entry that names the activation."""
    rope_types: tuple[str, ...] = ROPE_TYPES
    """Position scalings that its code computes, and that are computed here."""
    rope_part: str = ""
    """Entry of rope_parameters that describes full layers; "": rope_parameters itself."""
    rope_type_key: str = "rope_type"
    """What rope_scaling calls its kind; transformers 4 reads an OLMo 2's only as "type"."""
    partial_rotary: bool = False
    """Whether it may rotate only the first channels of a head."""
    sliding: Feature = features.NO_SLIDING
    """How it says which layers slide."""
    more: tuple[Feature, ...] = ()
    """What else its config.json says."""
    fixed: Mapping[str, Any]
    """Fields of `TransformerConfig` that all models of the type share; `qk_norm` always."""


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "qwen3": Kind(
            architecture="Qwen3ForCausalLM",
            positions=32_768,
            head_dim=128,
            sliding=features.SWITCHED_SLIDING,
            fixed={"qk_norm": True},
        ),
        "llama": Kind(architecture="LlamaForCausalLM", positions=2_048, fixed={"qk_norm": False}),
        "qwen2": Kind(
            architecture="Qwen2ForCausalLM",
            positions=32_768,
            bias="always",
            sliding=features.SWITCHED_SLIDING,
            fixed={"qk_norm": False},
        ),
        "mistral": Kind(
            architecture="MistralForCausalLM",
            positions=131_072,
            bias="never",
            sliding=features.MISTRAL_SLIDING,
            fixed={"qk_norm": False},
        ),
        "qwen3_moe": Kind(
            architecture="Qwen3MoeForCausalLM",
            positions=32_768,
            sliding=features.QWEN3_MOE_SLIDING,
            more=(features.QWEN3_MOE_EXPERTS,),
            fixed={"qk_norm": True},
        ),
        "gemma3_text": Kind(
            architecture="Gemma3ForCausalLM",
            positions=131_072,
            head_dim=256,
            theta=1_000_000.0,
            tied=True,
            activation_key="hidden_activation",
            # transformers looks for YaRN's truncate outside the rule of a kind of layer.
            rope_types=("default", "linear", "llama3"),
            rope_part="full_attention",
            sliding=features.GEMMA3_SLIDING,
            more=(features.GEMMA3_SCORES,),
            fixed={
                "qk_norm": True,
                "norms": "around",
                "norm_offset": True,
                "activation": "gelu_tanh",
                "scale_embeddings": True,
            },
        ),
        "smollm3": Kind(
            architecture="SmolLM3ForCausalLM",
            positions=32_768,
            theta=2_000_000.0,
            tied=True,
            sliding=features.SMOLLM3_LAYERS,
            fixed={"qk_norm": False},
        ),
        "olmo2": Kind(
            architecture="Olmo2ForCausalLM",
            rope_type_key="type",
            positions=2_048,
            eps=1e-5,
            fixed={"qk_norm": True, "qk_norm_whole": True, "norms": "after"},
        ),
        "phi3": Kind(
            architecture="Phi3ForCausalLM",
            positions=4_096,
            eps=1e-5,
            bias="never",
            rope_types=("default",),
            partial_rotary=True,
            sliding=features.PHI3_SLIDING,
            more=(features.PHI3_ROTARY,),
            fixed={"qk_norm": False, "fused_projections": True},
        ),
    }
)
"""The model types, as `TransformerConfig.family` names them."""
