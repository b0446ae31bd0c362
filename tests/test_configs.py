"""The shipped configurations, by their shapes: nothing of full size is allocated."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxspec.checkpoints import key_maps
from jaxspec.checkpoints.families import dflash, qwen_llama
from jaxspec.checkpoints.shapes import compare_shapes, nest_paths
from jaxspec.config import RunConfig, TransformerConfig
from jaxspec.data.sources import SOURCES
from jaxspec.models.dflash import DFlash, resolve_config
from jaxspec.models.transformer import Transformer
from jaxspec.study.declaration import StudyConfig
from jaxspec.training.tasks.registry import task_of
from jaxspec.user_modules import execute

DFLASH_ROWS = dflash.FEATURES + dflash.BLOCK + dflash.QK_NORM + dflash.FINAL_NORM

CONFIGS = Path(__file__).parents[1] / "configs"
# Parameters of the published weights.
FULL_SIZE = {
    "llama3_8b": 8_030_261_248,
    "llama32_3b": 3_212_749_824,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
}


def read(name: str) -> Any:
    return execute(CONFIGS / f"{name}.py", name=f"config_{name}").get_config()


def architecture(config: RunConfig) -> TransformerConfig:
    assert config.target.architecture is not None
    return config.target.architecture


def count(shapes: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.py")))
def test_every_file_gives_a_config_and_says_how_to_run_it(name: str) -> None:
    config = read(name)
    assert isinstance(config, StudyConfig if name.startswith("study_") else RunConfig)
    assert config.name == name
    text = (CONFIGS / f"{name}.py").read_text(encoding="utf-8")
    assert f"--config configs/{name}.py" in text.split('"""')[1]


@pytest.mark.parametrize("name", FULL_SIZE)
def test_target_has_the_published_number_of_parameters(name: str) -> None:
    target = architecture(read(name))
    model = Transformer(target)
    tokens_BS = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens_BS)["params"]
    assert count(shapes) == FULL_SIZE[name]
    table = qwen_llama.layout(target).parameter_shapes
    assert compare_shapes(nest_paths(table), shapes) == []


def test_the_mdlm_has_the_released_number_of_parameters() -> None:
    """By its table of tensors: 12 layers of width 768, embedding and head of 50,258 rows."""
    config = read("gpt2_mdlm")
    shapes = jax.eval_shape(task_of(config).build(config).init, jax.random.key(0))
    layer = 2 * 768 + 4 * 768**2 + 8 * 768**2 + 5 * 768 + 128 * 6 * 768 + 6 * 768
    noise = 256 * 128 + 128 + 128 * 128 + 128
    head = 768 + 128 * 2 * 768 + 2 * 768 + 768 * 50_258 + 50_258
    assert count(shapes) == 50_258 * 768 + noise + 12 * layer + head


@pytest.mark.parametrize("name", FULL_SIZE)
def test_drafter_fits_its_target(name: str) -> None:
    config = read(name)
    target = architecture(config)
    drafter = resolve_config(config.drafter, target=target)
    features = len(drafter.target_layer_ids)
    assert (drafter.num_layers, drafter.block_size, features) == (4, 16, 4)
    model = DFlash(drafter, target.hidden_size)
    features_BSE = jax.ShapeDtypeStruct((1, 4, features * target.hidden_size), jnp.bfloat16)
    shapes = jax.eval_shape(
        lambda key, x: model.init(key, x, method="initialise"), jax.random.key(0), features_BSE
    )["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}

    width, heads = target.hidden_size, drafter.num_heads * drafter.head_dim
    kv_heads = drafter.num_kv_heads * drafter.head_dim
    layer = (
        2 * width * heads  # queries and output
        + 2 * width * kv_heads
        + 3 * width * drafter.intermediate_size
        + 2 * width
        + 2 * drafter.head_dim
    )
    assert count(shapes) == 4 * layer + features * width * width + 2 * width
    sizes = {
        "D": width,
        "F": drafter.intermediate_size,
        "C": drafter.head_dim,
        "QC": heads,
        "RC": kv_heads,
        "E": features * width,
    }
    table = key_maps.parameter_shapes(DFLASH_ROWS, sizes, num_layers=4)
    assert compare_shapes(nest_paths(table), shapes) == []


def test_every_option_of_a_target_has_its_rows() -> None:
    """The tables and the model agree on which parameters there are, for every combination."""
    for qk_norm, bias, tied in ((a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)):
        target = dataclasses.replace(
            TransformerConfig(),
            qk_norm=bool(qk_norm),
            attention_bias=bool(bias),
            tie_embeddings=bool(tied),
        )
        tokens_BS = jax.ShapeDtypeStruct((1, 4), jnp.int32)
        shapes = jax.eval_shape(Transformer(target).init, jax.random.key(0), tokens_BS)["params"]
        table = qwen_llama.layout(target).parameter_shapes
        assert compare_shapes(nest_paths(table), shapes) == []


def test_mask_tokens_are_rows_of_the_embedding() -> None:
    """Llama-3's next free id would lie outside: JAX gathers would clamp it silently."""
    masks = {name: read(name).drafter.mask_token_id for name in FULL_SIZE}
    assert masks["qwen3_4b"] == masks["qwen3_8b"] == 151_669
    assert masks["llama3_8b"] == masks["llama32_3b"] == 128_002
    config = read("llama3_8b")
    outside = dataclasses.replace(config.drafter, mask_token_id=128_256)
    with pytest.raises(ValueError, match=r"128256.*128256 rows"):
        resolve_config(outside, target=architecture(config))


@pytest.mark.parametrize("name", FULL_SIZE)
def test_data_sets_are_in_the_registry(name: str) -> None:
    config = read(name)
    for split, names in (("train", config.data.sources), ("test", config.evaluation.benchmarks)):
        assert [n for n in names if split not in SOURCES[n].splits] == []
