"""The shapes that are timed, with random weights: the time does not depend on their values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxspec.checkpoints.folders import target_folder
from jaxspec.checkpoints.huggingface import read_config
from jaxspec.config import (
    DataConfig,
    DrafterConfig,
    Dtype,
    RunConfig,
    TargetConfig,
    TransformerConfig,
)


@dataclasses.dataclass(frozen=True)
class Shape:
    """A target, a drafter for it, and a training step."""

    target: TransformerConfig
    drafter: DrafterConfig
    data: DataConfig
    prefills: tuple[int, ...]
    """Prompt lengths."""

    def run(self, dtype: Dtype) -> RunConfig:
        """The training run of these shapes."""
        return RunConfig(
            target=TargetConfig(path="", architecture=self.target, dtype=dtype),
            drafter=dataclasses.replace(self.drafter, dtype=dtype),
            data=self.data,
        )

    def for_decoding(self, dtype: Dtype) -> tuple[TransformerConfig, DrafterConfig]:
        """Target and drafter in the type that they are decoded in."""
        return (
            dataclasses.replace(self.target, dtype=dtype, param_dtype=dtype),
            dataclasses.replace(self.drafter, dtype=dtype, param_dtype=dtype),
        )


def _embedded() -> Shape:
    target = read_config(target_folder("embedded"))
    assert isinstance(target, TransformerConfig)
    return Shape(
        target=dataclasses.replace(target, unroll_layers=True),
        drafter=DrafterConfig(block_size=16, num_features=3, num_layers=1, unroll_layers=True),
        data=DataConfig(sequence_length=256, batch_size=8, anchors=32),
        prefills=(128, 512),
    )


def _qwen25_coder_15b() -> Shape:
    """Figures of Qwen2.5-Coder-1.5B's config.json."""
    return Shape(
        target=TransformerConfig(
            vocab_size=151_936,
            hidden_size=1536,
            num_layers=28,
            num_heads=12,
            num_kv_heads=2,
            head_dim=128,
            intermediate_size=8960,
            rope_theta=1e6,
            qk_norm=False,
            attention_bias=True,
            max_position_embeddings=32_768,
            unroll_layers=True,
        ),
        drafter=DrafterConfig(block_size=16, num_features=5, num_layers=3, unroll_layers=True),
        data=DataConfig(sequence_length=1024, batch_size=32, anchors=96),
        prefills=(512, 4096),
    )


SHAPES: Mapping[str, Callable[[], Shape]] = {"embedded": _embedded, "1.5B": _qwen25_coder_15b}
"""By name."""


def random_like(shapes: Any, *, seed: int = 0) -> Any:
    """Normal arrays of these shapes and types, of the size of initial weights."""
    leaves, tree = jax.tree.flatten(shapes)

    @jax.jit
    def made(key: jax.Array) -> list[jax.Array]:
        return [
            (0.02 * jax.random.normal(jax.random.fold_in(key, number), leaf.shape)).astype(
                leaf.dtype
            )
            for number, leaf in enumerate(leaves)
        ]

    return jax.tree.unflatten(tree, made(jax.random.key(seed)))
