"""Where the parameters of GPT-2 and GPT-Neo lie, and that they compute the same there."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxspec.checkpoints.shapes import flatten_paths
from jaxspec.config import (
    DataConfig,
    GPT2Config,
    MeshConfig,
    RunConfig,
    TrainingConfig,
    TransformerConfig,
)
from jaxspec.models.registry import make_model
from jaxspec.parallel.mesh import make_mesh
from jaxspec.parallel.rules import Rules, check_batch_size, replicated

SMALL = GPT2Config(
    vocab_size=64,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    intermediate_size=48,
    max_position_embeddings=18,
)
NEO = dataclasses.replace(
    SMALL,
    family="gpt_neo",
    layer_types=("full_attention", "sliding_attention"),
    sliding_window=4,
    tie_embeddings=False,
)

# fmt: off
COMMON = {
    "embed/embedding":        P("tensor", "fsdp"),
    "positions/embedding":    P(None, "fsdp"),
    "layers/attention/o/kernel": P(None, "tensor", "fsdp"),
    "layers/mlp/up/kernel":   P(None, "fsdp", "tensor"),
    "layers/mlp/down/kernel": P(None, "tensor", "fsdp"),
}
SPLIT = {
    "gpt2": {**COMMON, "layers/attention/qkv/kernel": P(None, "fsdp", None)},
    "gpt_neo": {
        **COMMON,
        "head/kernel": P("fsdp", "tensor"),
        "layers/attention/q/kernel": P(None, "fsdp", "tensor"),
        "layers/attention/k/kernel": P(None, "fsdp", "tensor"),
        "layers/attention/v/kernel": P(None, "fsdp", "tensor"),
    },
}
# fmt: on


def shapes_of(config):
    init = make_model(config).init
    return jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]


@pytest.mark.parametrize("config", [SMALL, NEO], ids=["gpt2", "gpt_neo"])
def test_every_matrix_is_split_and_every_vector_whole(config):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), devices=jax.devices()[:8])
    shapes = shapes_of(config)
    specs = {
        path: sharding.spec
        for path, sharding in flatten_paths(Rules().shardings(shapes, mesh)).items()
    }
    expected = SPLIT[config.family]
    assert {path: spec for path, spec in specs.items() if any(spec)} == expected
    # Norms and biases: one number a column, and stacked over layers below "layers".
    for path, shape in flatten_paths(shapes).items():
        matrix = len(shape.shape) == (3 if path.startswith("layers/") else 2)
        assert matrix == (path in expected), path


def test_fused_matrices_are_split_by_their_inputs_alone():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), devices=jax.devices()[:8])
    shapes = shapes_of(TransformerConfig(fused_projections=True))
    specs = {
        path: sharding.spec
        for path, sharding in flatten_paths(Rules().shardings(shapes, mesh)).items()
    }
    assert specs["layers/attention/qkv/kernel"] == P(None, "fsdp", None)
    assert specs["layers/mlp/gate_up/kernel"] == P(None, "fsdp", None)
    assert specs["layers/mlp/down/kernel"] == P(None, "tensor", "fsdp")


def test_an_axis_that_does_not_divide_is_left_whole():
    """GPT-2's 50,257 tokens are odd."""
    mesh = make_mesh(MeshConfig(tensor=2, fsdp=4), devices=jax.devices()[:8])
    specs = Rules().shardings(shapes_of(GPT2Config()), mesh)
    assert specs["embed"]["embedding"].spec == P(None, "fsdp")
    assert specs["positions"]["embedding"].spec == P(None, "fsdp")
    assert specs["layers"]["attention"]["qkv"]["kernel"].spec == P(None, "fsdp", None)
    assert specs["layers"]["mlp"]["up"]["kernel"].spec == P(None, "fsdp", "tensor")


@pytest.mark.parametrize("config", [SMALL, NEO], ids=["gpt2", "gpt_neo"])
def test_split_parameters_compute_what_whole_ones_do(config):
    model = make_model(config)
    generator = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: generator.normal(size=leaf.shape, scale=0.2).astype("float32"),
        shapes_of(config),
    )
    tokens_BS = jnp.asarray(generator.integers(0, config.vocab_size, (2, 12)), jnp.int32)

    @jax.jit
    def logits(params, tokens_BS):
        hidden_BSD = model.apply({"params": params}, tokens_BS).hidden_BSD
        return model.apply({"params": params}, hidden_BSD, method="logits")

    expected_BSV = logits(params, tokens_BS)
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=4), devices=jax.devices()[:8])
    split = jax.device_put(params, Rules().shardings(params, mesh))
    got_BSV = logits(split, jax.device_put(tokens_BS, replicated(mesh)))
    np.testing.assert_allclose(got_BSV, expected_BSV, atol=1e-5, rtol=1e-5)


def test_replicated_rules_split_nothing():
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=4), devices=jax.devices()[:8])
    shardings = jax.tree.leaves(Rules.replicated().shardings(shapes_of(SMALL), mesh))
    assert set(shardings) == {replicated(mesh)}


def test_only_the_jit_path_splits_parameters():
    assert Rules.of(MeshConfig(fsdp=8)) == Rules() != Rules.replicated()
    for path in ("shard_map", "pmap"):
        assert Rules.of(MeshConfig(path=path)) == Rules.replicated()


def test_a_batch_that_does_not_divide_names_the_axes():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4), devices=jax.devices()[:8])
    config = RunConfig(
        data=DataConfig(batch_size=24, sequence_length=16),
        training=TrainingConfig(gradient_accumulation=2),
    )
    with pytest.raises(ValueError, match=r"is 24, .* of 16: mesh.data 2 x mesh.fsdp 4 x 2 accum"):
        check_batch_size(config, mesh)
