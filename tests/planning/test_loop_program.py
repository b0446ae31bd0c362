"""The compiled loops of decoding read weights and caches once and copy none of them."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from jaxspec.config import TransformerConfig
from jaxspec.decoding import Autoregressive, DecodeRules, Prompts, Speculative
from jaxspec.decoding.layout import unrolls
from jaxspec.drafters.ngram import NGramProposer
from jaxspec.models.transformer import Transformer
from jaxspec.planning.gpu_compiler import h100
from jaxspec.planning.loop_program import LARGE, loop_turn
from jaxspec.planning.topologies import compiling_for, parse_topology, topology_devices
from tests.decoding import tiny

LAYERS, CAPACITY = 3, 256
LARGE_MODEL = 28
"""Layers of the model whose layout is tried; with fewer of them, compiling is faster."""


def target(*, unrolled):
    return Transformer(
        TransformerConfig(
            vocab_size=65_536,
            hidden_size=1024,
            num_layers=LAYERS,
            num_heads=8,
            num_kv_heads=2,
            head_dim=128,
            intermediate_size=5632,
            max_position_embeddings=1024,
            dtype="bfloat16",
            param_dtype="bfloat16",
            unroll_layers=unrolled,
        )
    )


def compiled_loop(strategy, params, *, batch, device, caches=True):
    """The loop of a strategy, and the shapes of its weights and cache."""
    shape = jax.ShapeDtypeStruct
    prompts = Prompts(
        tokens_BS=shape((batch, 128), jnp.int32),
        lengths_B=shape((batch,), jnp.int32),
        active_B=shape((batch,), jnp.bool_),
        keys_B=jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch)),
    )
    pieces = jax.eval_shape(strategy.prepare, params)
    state = jax.eval_shape(
        lambda params, prompts: strategy.start(params, prompts, capacity=CAPACITY), pieces, prompts
    )
    placed = jax.tree.map(
        lambda leaf: shape(leaf.shape, leaf.dtype, sharding=SingleDeviceSharding(device)),
        (pieces, state),
    )
    text = type(strategy).run.lower(strategy, *placed).compile().as_text()
    leaves = [leaf for leaf in jax.tree.leaves(params) if leaf.size]
    leaves += [state.cache.keys_LBRTC, state.cache.values_LBRTC] if caches else []
    # A stack, and a layer of it.
    large = [shape for leaf in leaves for shape in (leaf.shape, leaf.shape[1:])]
    needed = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    return loop_turn(text, large=large), needed


def check_both_programs(platform, device, *, batch):
    model = target(unrolled=unrolls(LARGE_MODEL, platform=platform))
    tokens = jnp.zeros((1, 4), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    rules = DecodeRules(64, stop_ids=(2,))
    programs = {
        "step": (Autoregressive(model, rules), params),
        "verification": (
            Speculative(model, NGramProposer(block_size=8), rules),
            {"target": params, "drafter": {}},
        ),
    }
    for name, (strategy, given) in programs.items():
        turn, needed = compiled_loop(strategy, given, batch=batch, device=device)
        assert not turn.copies, name
        if batch == 1:  # The logits of many rows are as large as a model with few layers.
            assert turn.memory_bytes <= 1.15 * needed, name


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, which compiles for TPUs, is missing"
)
def test_a_tpu_reads_every_weight_once():
    jax.devices()  # The CPU's flags have been read, and are hidden from libtpu.
    topology = parse_topology("v5e:2x2")
    with compiling_for(topology):
        check_both_programs("tpu", topology_devices(topology)[0], batch=1)


@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="jax-cuda12-plugin, which compiles for GPUs, is missing",
)
@pytest.mark.parametrize("batch", [1, 4])
def test_a_gpu_reads_every_weight_once(batch):
    with compiling_for(parse_topology("v5e:2x2")):  # Hides the CPU's flags.
        check_both_programs("gpu", h100(), batch=batch)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_cpu_copies_no_weight_of_a_small_model(batch):
    """And a scan does copy them: the reason for unrolling."""
    copied = {}
    for unrolled in (True, False):
        strategies = tiny.strategies(unroll_layers=unrolled)[:2]
        device = jax.devices("cpu")[0]
        copied[unrolled] = [
            compiled_loop(strategy, given, batch=batch, device=device, caches=False)[0].copied_bytes
            for strategy, given in strategies
        ]
    layers = strategies[0][1]["layers"]
    matrices = sum(leaf.nbytes for leaf in jax.tree.leaves(layers) if leaf[0].size >= LARGE)
    assert copied[True] == [0, 0]
    assert min(copied[False]) >= matrices > 0


def test_a_program_without_a_loop_is_refused():
    text = jax.jit(jnp.sin).lower(1.0).compile().as_text()
    with pytest.raises(ValueError, match="has no loop"):
        loop_turn(text, large=[])


def test_updates_in_place_are_no_copies():
    update = jax.jit(
        lambda cache, new: jax.lax.while_loop(
            lambda carry: carry[1] < 9,
            lambda carry: (
                jax.lax.dynamic_update_slice(carry[0], new, (carry[1], 0)),
                carry[1] + 1,
            ),
            (cache, jnp.int32(0)),
        ),
        donate_argnums=0,
    )
    text = update.lower(jnp.zeros((128, 64)), jnp.ones((1, 64))).compile().as_text()
    turn = loop_turn(text, large=[(128, 64)])
    assert not turn.copies
    assert turn.memory_bytes < 4 * 128 * 64
