"""Diffusion language models on several devices: the tokens, passes and graphs of one device."""

import dataclasses
import functools
import math
import re

import numpy as np
import pytest

from jaxspec.config import MaskedTransformerConfig
from jaxspec.decoding import BlockDiffusion, DiffusionRules, Spiffy, Threshold, generate_diffusion
from jaxspec.decoding import rows as batch_rows
from jaxspec.decoding.diffusion.calibration import count_formulas, rank_steps
from jaxspec.decoding.diffusion.draft_graph import chain
from jaxspec.decoding.diffusion.generate import decode_batches
from jaxspec.decoding.generate import pad_prompts
from jaxspec.decoding.placement import on_mesh_of
from tests.decoding.test_meshes import DATA_ALONE, MESHES, ROWS, bytes_of_first
from tests.decoding.test_meshes import spread as put_on
from tests.denoisers import random_denoiser

VOCABULARY, MASK, EOS = 32, 31, 30
CONFIG = MaskedTransformerConfig(
    vocab_size=VOCABULARY,
    hidden_size=32,
    num_layers=2,
    num_heads=8,
    num_kv_heads=8,
    head_dim=8,
    intermediate_size=48,
    qk_norm=False,
    tie_embeddings=False,
    max_position_embeddings=256,
)
RULES = DiffusionRules(
    MASK,
    response_length=12,
    block_length=4,
    unmasking=Threshold(0.5),
    caching="dual",
    # Some responses end early, in different blocks.
    stop_ids=(3, 11, 20),
)
LENGTHS = (6, 3, 9, 5, 7, 4, 12, 2, 8, 10)
PROMPTS = [np.random.default_rng(n).integers(0, EOS, n).tolist() for n in LENGTHS]
IDS = [f"prompt/{length}" for length in LENGTHS]


@functools.cache
def decoders():
    model, params = random_denoiser(CONFIG, spread=0.5)
    causal = dataclasses.replace(RULES, block_causal=True, guidance=0.5)
    return params, {
        "plain": BlockDiffusion(model, dataclasses.replace(RULES, caching="none")),
        "graph": Spiffy(model, RULES, graph=chain(3)),
        "graph in a batch": Spiffy(model, RULES, graph=chain(3), layout="batch"),
        "block-causal, guided": BlockDiffusion(model, causal),
    }


@functools.cache
def spread(mesh):
    """The parameters on a mesh."""
    return put_on(decoders()[0], MESHES[mesh])


OTHER_MESH = pytest.mark.slow("this decoder on the mesh of data and tensor covers it")
SPEEDUPS = ["graph", "graph in a batch", "block-causal, guided"]
CASES = [
    ("plain", "tensor"),
    ("plain", "both"),
    pytest.param("plain", "data", marks=DATA_ALONE),
    *((name, "both") for name in SPEEDUPS),
    *(
        pytest.param(name, mesh, marks=OTHER_MESH)
        for name in SPEEDUPS
        for mesh in ("tensor", "data")
    ),
]


@pytest.mark.parametrize(("name", "mesh"), CASES)
def test_every_mesh_gives_the_output_of_one_device(name, mesh):
    params, cases = decoders()
    settings = {"ids": IDS, "batch_size": ROWS, "seed": 3}
    alone = generate_diffusion(cases[name], params, PROMPTS, **settings)
    assert len({len(response.passes) for response in alone}) > 1, "some end early"
    assert generate_diffusion(cases[name], spread(mesh), PROMPTS, **settings) == alone


@pytest.mark.parametrize("mesh", ["both", pytest.param("tensor", marks=OTHER_MESH)])
def test_the_counts_of_a_calibration_are_those_of_one_device(mesh):
    params, cases = decoders()

    def counted(params):
        decoder = cases["plain"]
        settings = {"ids": IDS[:ROWS], "batch_size": ROWS, "seed": 0}
        batches = decode_batches(decoder, params, PROMPTS[:ROWS], **settings)
        ((_, state),) = batches
        with on_mesh_of(params):
            return count_formulas(rank_steps(decoder, params, state), depth=4).counts

    alone = counted(params)
    assert len(alone) > 3
    assert counted(spread(mesh)) == alone


@pytest.mark.parametrize(
    "mesh", ["both", *(pytest.param(mesh, marks=OTHER_MESH) for mesh in ("tensor", "data"))]
)
def test_a_device_holds_its_part_of_parameters_and_caches(mesh):
    _, cases = decoders()
    decoder, split = cases["block-causal, guided"], spread(mesh)
    tensor = MESHES[mesh].tensor
    for name in ("q", "k", "v", "o"):
        matrix = split["layers"]["attention"][name]["kernel"]
        assert bytes_of_first(matrix) * tensor == matrix.nbytes, name
    with on_mesh_of(split):
        prompt = pad_prompts(PROMPTS[:1], ids=IDS[:1], length=128, rows=1, seed=0)
        single = decoder.prefill(split, decoder.start(prompt))
        state = batch_rows.vacant(single, rows=ROWS)
        text = (
            type(decoder).run.lower(decoder, split, state, leave_on_end=False).compile().as_text()
        )
    keys = state.cache.keys_LBRTC
    assert bytes_of_first(keys) * 8 == keys.nbytes
    # Nothing in the compiled loop is as large as the batch's cache.
    shapes = [tuple(map(int, found.split(","))) for found in re.findall(r"f32\[([\d,]+)\]", text)]
    of_caches = [math.prod(shape) for shape in shapes if keys.shape[3] in shape]
    assert max(of_caches) < math.prod(keys.shape)
