"""Decoding on several devices: what one device gives, with parameters and caches divided."""

import contextlib
import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.config import MeshConfig
from jaxspec.decoding import (
    Adaptive,
    Autoregressive,
    ChainSpeculative,
    Speculative,
    TreeSpeculative,
)
from jaxspec.decoding import rows as batch_rows
from jaxspec.decoding.generate import SMALLEST_BUCKET, generate, prefill_rows
from jaxspec.decoding.placement import mesh_of, on_mesh_of
from jaxspec.decoding.state import NO_LIMIT
from jaxspec.decoding.stream import stream
from jaxspec.drafters.ngram import NGramProposer
from jaxspec.ops.sampling import Sampling
from jaxspec.parallel.mesh import make_mesh
from jaxspec.parallel.rules import Rules
from tests.decoding import tiny
from tests.decoding.test_batching import MANY, NAMES
from tests.decoding.test_denoiser_drafter import proposer as denoiser

WIDE = dataclasses.replace(tiny.ARCHITECTURE, num_heads=16, num_kv_heads=8, hidden_size=64)
"""Heads for 8 devices."""
MESHES = {
    "tensor": MeshConfig(data=1, tensor=8),
    "both": MeshConfig(data=4, tensor=2),
    "data": MeshConfig(data=8),
}
SPLIT_WIDTHS = {
    "fsdp": MeshConfig(data=1, fsdp=8),
    "all three": MeshConfig(data=2, fsdp=2, tensor=2),
}
ROWS = 8
DATA_ALONE = pytest.mark.slow("rows along data are split on the mesh with tensor, too")
EACH_MESH = ["tensor", "both", pytest.param("data", marks=DATA_ALONE)]


def spread(params, config):
    """From the host: a device would cut its arrays with a program for each shape."""
    mesh = make_mesh(config, devices=jax.devices()[:8])
    return jax.device_put(jax.device_get(params), Rules().shardings(params, mesh))


@functools.cache
def spread_parameters(name, mesh):
    """A strategy's parameters on a mesh."""
    return spread(strategy_of(name)[1], {**MESHES, **SPLIT_WIDTHS}[mesh])


def strategy_of(name):
    """(strategy, params). A new one each time: `Adaptive` remembers."""
    model, params = tiny.target(WIDE)
    if name == "autoregressive":
        return Autoregressive(model, tiny.RULES), params
    if name == "ngram":
        lookup = {"target": params, "drafter": {}}
        return Speculative(model, NGramProposer(4), tiny.RULES), lookup
    if name == "mdlm":
        return with_denoiser("bidirectional", num_passes=2)
    if name == "cached mdlm":
        return with_denoiser("causal")
    proposer, drafter = tiny.dflash(model, suppressed_ids=tiny.RULES.suppressed_ids)
    both = {"target": params, "drafter": drafter}
    if name == "block":
        return Speculative(model, proposer, tiny.RULES), both
    if name == "tree":
        return TreeSpeculative(model, proposer, tiny.RULES, num_nodes=12), both
    assert name == "adaptive"
    return adaptive(model, proposer), both


@functools.cache
def alone(name):
    """What a strategy answers on one device."""
    strategy, params = strategy_of(name)
    return generate(strategy, params, MANY, ids=NAMES, batch_size=ROWS)


def with_denoiser(context, **settings):
    model, params = tiny.target(WIDE)
    suppressed = tiny.RULES.suppressed_ids
    drafter, weights = denoiser(
        tiny.VOCABULARY, context, block_size=4, suppressed_ids=suppressed, **settings
    )
    return Speculative(model, drafter, tiny.RULES), {"target": params, "drafter": weights}


def adaptive(model, proposer):
    """Two sizes whose costs are given, so that the choice is the same every time."""
    sizes = [dataclasses.replace(proposer, block_size=size) for size in (2, 5)]
    strategies = [Speculative(model, size, tiny.RULES) for size in sizes]
    return Adaptive(strategies, costs=(1.0, 1.5), stretch=3)


OTHER_MESH = pytest.mark.slow("this strategy on the mesh of data and tensor covers it")
CASES = [
    ("autoregressive", "tensor"),
    ("autoregressive", "both"),
    pytest.param("autoregressive", "data", marks=DATA_ALONE),
    ("autoregressive", "fsdp"),
    ("autoregressive", "all three"),
    ("block", "both"),
    pytest.param("tree", "both", marks=pytest.mark.slow("the samples of chains cover trees")),
    *((name, "both") for name in ("ngram", "mdlm", "cached mdlm", "adaptive")),
    *(
        pytest.param(name, mesh, marks=OTHER_MESH)
        for name in ("block", "tree", "ngram")
        for mesh in ("tensor", "data")
    ),
    *(pytest.param("block", mesh, marks=OTHER_MESH) for mesh in SPLIT_WIDTHS),
]


@pytest.mark.parametrize(("name", "mesh"), CASES)
def test_every_mesh_gives_the_output_of_one_device(name, mesh):
    assert len({len(response.tokens) for response in alone(name)}) > 3
    strategy, _ = strategy_of(name)
    split = spread_parameters(name, mesh)
    assert generate(strategy, split, MANY, ids=NAMES, batch_size=ROWS) == alone(name)


def test_samples_are_those_of_one_device():
    warm = Sampling(1.0)
    model, target = tiny.target(WIDE)
    proposer, drafter = tiny.dflash(model, sampling=warm)
    params = {"target": tiny.scaled(jax.device_get(target), 0.6), "drafter": drafter}
    strategy = ChainSpeculative(model, proposer, tiny.RULES, "recursive", warm, num_chains=2)
    alone = generate(strategy, params, MANY, ids=NAMES, batch_size=ROWS)
    split = spread(params, MESHES["both"])
    assert generate(strategy, split, MANY, ids=NAMES, batch_size=ROWS) == alone


AS_IN_GENERATE = {"leave_on_end": False, "max_rounds": NO_LIMIT}
"""Arguments with which `run` is the program that `generate` has compiled."""


@pytest.mark.parametrize("mesh", EACH_MESH)
def test_a_device_holds_its_part_of_parameters_and_caches(mesh):
    strategy, _ = strategy_of("block")
    split = spread_parameters("block", mesh)
    tensor = MESHES[mesh].tensor
    matrices = {name: split["target"]["layers"]["attention"][name]["kernel"] for name in "qkvo"}
    matrices |= {"embed": split["target"]["embed"]["embedding"]}
    for name, matrix in matrices.items():
        assert bytes_of_first(matrix) * tensor == matrix.nbytes, name
    with on_mesh_of(split):
        split = strategy.prepare(split)
        single = strategy.start(split, batch_of_one(), capacity=192)
        assert bytes_of_first(single.cache.keys_LBRTC) * tensor == single.cache.keys_LBRTC.nbytes
        state = batch_rows.vacant(single, rows=ROWS)
        # Wherever a state comes from, it lies where the loop wants it.
        for row in (0, 1):
            single = strategy.start(split, batch_of_one(), capacity=192)
            state = batch_rows.insert(state, single, batch_rows.places([row], of=single))
        check_parts(state, tensor)
        check_parts(strategy.run(split, state, **AS_IN_GENERATE), tensor)


def check_parts(state, tensor):
    """Each device has its part of the rows, and of the heads."""
    caches = [state.cache, state.drafter]
    # The drafter has fewer heads than there are devices along tensor.
    parts = [8, 8 // tensor * min(tensor, state.drafter.keys_LBRTC.shape[2])]
    for cache, part in zip(caches, parts, strict=True):
        for array in (cache.keys_LBRTC, cache.values_LBRTC):
            assert bytes_of_first(array) * part == array.nbytes
    assert bytes_of_first(state.tokens_BT) * (8 // tensor) == state.tokens_BT.nbytes


def bytes_of_first(array):
    return array.addressable_shards[0].data.nbytes


def batch_of_one():
    return tiny.batch(tiny.PROMPTS[:1], rows=1)[0]


@pytest.mark.parametrize("mesh", EACH_MESH)
def test_no_device_holds_the_whole_cache_while_it_runs(mesh):
    """The compiled programs: no array in them is larger than a device's part of the cache."""
    strategy, _ = strategy_of("autoregressive")
    split = spread_parameters("autoregressive", mesh)
    with on_mesh_of(split):
        split = strategy.prepare(split)
        single = strategy.start(split, batch_of_one(), capacity=192)
        state = batch_rows.vacant(single, rows=ROWS)
        places = batch_rows.places([1], of=single)
        programs = {
            "run": type(strategy).run.lower(strategy, split, state, **AS_IN_GENERATE),
            "vacant": batch_rows.vacant.lower(single, rows=ROWS),
            "insert": batch_rows.insert.lower(state, single, places),
        }
        texts = {name: lowered.compile().as_text() for name, lowered in programs.items()}
    whole = state.cache.keys_LBRTC.shape
    for name, text in texts.items():
        found = [
            tuple(map(int, shape.split(","))) for shape in re.findall(r"f32\[([\d,]+)\]", text)
        ]
        sizes = [math.prod(shape) for shape in found if whole[3] in shape]
        assert max(sizes) == math.prod(whole) // 8, name


@contextlib.contextmanager
def compiled():
    """Names of the functions that are compiled meanwhile."""
    names = []

    def listen(event, duration, *, fun_name="", **more):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_nothing_is_compiled_after_the_first_batch():
    strategy, _ = strategy_of("block")
    split = spread_parameters("block", "both")
    generate(strategy, split, MANY[:10], ids=NAMES[:10], batch_size=ROWS)
    with compiled() as names:
        generate(strategy, split, MANY, ids=NAMES, batch_size=ROWS)
    programs = ("start", "run", "vacant", "insert")
    assert not [name for name in names if any(program in name for program in programs)]
    with compiled() as names:
        jax.jit(lambda x: 2 * x)(jnp.ones(3))
    assert any("lambda" in name for name in names), "compilations are noticed"


def test_a_streamed_answer_is_that_of_one_device():
    strategy, params = strategy_of("autoregressive")
    split = spread_parameters("autoregressive", "tensor")
    for prompt, name in zip(MANY[:2], NAMES, strict=False):
        alone = [each.emitted for each in stream(strategy, params, prompt, name=name)]
        rounds = stream(strategy, split, prompt, name=name)
        assert [each.emitted for each in rounds] == alone
        # Between two rounds, the caller's programs run on one device.
        assert jax.sharding.get_abstract_mesh().empty


def test_prompts_that_are_prefilled_together_are_split_over_the_mesh():
    strategy, _ = strategy_of("autoregressive")
    split = spread_parameters("autoregressive", "both")
    together = 2
    assert prefill_rows(SMALLEST_BUCKET, rows=16 * together) == together
    found = generate(strategy, split, MANY, ids=NAMES, batch_size=16 * together)
    assert found == alone("autoregressive")


def test_a_batch_that_does_not_divide_is_decoded_whole():
    strategy, _ = strategy_of("autoregressive")
    split = spread_parameters("autoregressive", "both")
    found = generate(strategy, split, MANY[:3], ids=NAMES[:3], batch_size=3)
    assert found == alone("autoregressive")[:3]


def test_the_mesh_is_that_of_the_parameters():
    params = {"target": {"kernel": np.ones((4, 8))}, "drafter": {}}
    assert mesh_of(params) is None
    assert mesh_of(jax.device_put(params)) is None
    assert mesh_of(spread(params, MESHES["both"])).shape["tensor"] == 2
