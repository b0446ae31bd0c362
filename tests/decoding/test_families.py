"""Greedy decoding of a target that has every feature of the families at once."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.config import ExpertsConfig, YarnRopeScaling
from jaxspec.decoding import Autoregressive, Speculative, TreeSpeculative
from tests.decoding import tiny

ARCHITECTURE = dataclasses.replace(
    tiny.ARCHITECTURE,
    num_layers=3,
    layer_types=("sliding_attention", "full_attention", "full_attention"),
    sliding_window=4,
    sliding_rope_theta=50.0,
    nope_layers=(2,),
    rope_scaling=YarnRopeScaling(original_max_position_embeddings=64, attention_factor=1.1),
    rotary_dim=4,
    norms="around",
    norm_offset=True,
    qk_norm_whole=True,
    activation="gelu_tanh",
    scale_embeddings=True,
    query_pre_attn_scalar=5.0,
    logit_softcap=30.0,
    fused_projections=True,
    experts=ExpertsConfig(num_experts=4, per_token=2, width=16, dense_layers=(1,)),
)


@pytest.fixture(scope="module")
def plain():
    """Responses of one token a pass."""
    model, params = tiny.target(ARCHITECTURE)
    return tiny.decode(Autoregressive(model, tiny.RULES), params)


def test_a_tree_of_drafts_changes_no_output(plain):
    model, params = tiny.target(ARCHITECTURE)
    proposer, drafter_params = tiny.dflash(model)
    strategy = TreeSpeculative(model, proposer, tiny.RULES, num_nodes=12)
    responses = tiny.decode(strategy, {"target": params, "drafter": drafter_params})
    assert [r.tokens for r in responses] == [r.tokens for r in plain]
    assert len({token for r in plain for token in r.tokens}) > 20, "the outputs vary"


def test_accepted_drafts_and_rejected_ones_change_no_output(plain):
    model, params = tiny.target(ARCHITECTURE)
    script = np.zeros((len(plain), 24), np.int32)
    for row, response in enumerate(plain):
        script[row, : len(response.tokens)] = response.tokens
    script[:, 3::7] = (script[:, 3::7] + 1) % 60
    both = {"target": params, "drafter": jnp.asarray(script)}
    responses = tiny.decode(Speculative(model, tiny.Scripted(), tiny.RULES), both)
    assert [r.tokens for r in responses] == [r.tokens for r in plain]
    assert len({count for r in responses for count in r.emitted[:-1]}) > 1
