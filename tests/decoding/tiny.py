"""The smallest target and drafters that exercise every part of the loops."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.config import DrafterConfig, TransformerConfig
from jaxspec.decoding import Autoregressive, DecodeRules, Speculative, TreeSpeculative, generate
from jaxspec.decoding.generate import pad_prompts, read_response
from jaxspec.drafters.dflash import DFlashProposer
from jaxspec.drafters.protocol import Draft
from jaxspec.models.dflash import DFlash, resolve_config
from jaxspec.models.transformer import Transformer
from jaxspec.ops.sampling import GREEDY

VOCABULARY = 64
MASK_ID = 63
ARCHITECTURE = TransformerConfig(
    vocab_size=VOCABULARY,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=48,
    tie_embeddings=False,
    max_position_embeddings=256,
)
BLOCK_SIZE = 5
PROMPTS = tuple(
    tuple(np.random.default_rng(length).integers(0, 60, length).tolist())
    for length in (3, 17, 9, 30, 1)
)
IDS = tuple(f"prompt/{index}" for index in range(len(PROMPTS)))


@functools.cache
def target(architecture=ARCHITECTURE, *, spread=30.0):
    """(model, params) with logits spread out, so that outputs vary and argmaxes are clear."""
    model = Transformer(architecture)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    return model, {**params, **{name: scaled(params[name], spread) for name in ("embed", "head")}}


def scaled(tree, factor):
    return jax.tree.map(lambda leaf: leaf * factor, tree)


def dflash(model, **changes):
    """(proposer, params) of a random drafter."""
    drafter, params = _drafter(model)
    mask_id = drafter.config.mask_token_id
    settings = {"block_size": BLOCK_SIZE, "suppressed_ids": (mask_id,), **changes}
    return DFlashProposer(model, drafter, **settings), params


@functools.cache
def _drafter(model):
    config = resolve_config(
        DrafterConfig(block_size=BLOCK_SIZE, target_layer_ids=(0, 1), num_layers=2),
        target=model.config,
        mask_token_id=model.config.vocab_size - 1,
    )
    config = dataclasses.replace(config, unroll_layers=model.config.unroll_layers)
    width = model.config.hidden_size
    drafter = DFlash(config, width)
    features = jnp.zeros((1, 2, 2 * width))
    init = jax.jit(functools.partial(drafter.init, method="initialise"))
    return drafter, init(jax.random.key(1), features)["params"]


@dataclasses.dataclass(frozen=True)
class Scripted:
    """Drafts from a script: what each row's response is going to be, errors included.

    Parameters under "drafter": script_BT, tokens of each row's response, the prefill's first.
    """

    block_size: int = BLOCK_SIZE
    capture: tuple[int, ...] = ()
    unroll_layers: bool = False
    sampling = GREEDY

    def begin(self, params, tokens_BS, features_BSE, lengths_B, *, capacity):
        return jnp.zeros_like(lengths_B)

    def propose(self, params, state, anchor_B, keys_B):
        script_BT = params["drafter"]
        script_BT = jnp.pad(script_BT, ((0, 0), (0, self.block_size)))
        index_BG = 1 + state[:, None] + jnp.arange(self.block_size - 1)
        return Draft(jnp.take_along_axis(script_BT, index_BG, axis=1), None), state

    def commit(self, params, state, tokens_BK, features_BKE, count_B):
        return state + count_B


@dataclasses.dataclass(frozen=True)
class ScriptedMarginals(Scripted):
    """Two choices for every slot: two scripts under "drafter", the likelier first."""

    marginal_passes = 1

    def marginal_logits(self, params, state, anchor_B):
        first, second = (
            self.propose({"drafter": script_BT}, state, anchor_B, None)[0].tokens_BG
            for script_BT in params["drafter"]
        )
        return 9.0 * jax.nn.one_hot(first, VOCABULARY) + 8.5 * jax.nn.one_hot(second, VOCABULARY)


RULES = DecodeRules(24, stop_ids=(57, 21, 2), suppressed_ids=(MASK_ID, 43))
"""Chosen so that PROMPTS end after 13, 24 (the limit), 1, 8 and 24 (a stop token) tokens."""
LENGTHS = (13, 24, 1, 8, 24)


def strategies(*, unroll_layers=False, **changes):
    """(strategy, params) of autoregressive, speculative and tree; one random target and drafter."""
    model, params = target(dataclasses.replace(ARCHITECTURE, unroll_layers=unroll_layers))
    proposer, drafter_params = dflash(model, suppressed_ids=RULES.suppressed_ids, **changes)
    both = {"target": params, "drafter": drafter_params}
    return (
        (Autoregressive(model, RULES), params),
        (Speculative(model, proposer, RULES), both),
        (TreeSpeculative(model, proposer, RULES, num_nodes=12), both),
    )


def decode(strategy, params, prompts=PROMPTS, ids=IDS, **settings):
    """Responses; every test has the same shapes, so that few programs are compiled."""
    settings = {"batch_size": len(PROMPTS), **settings}
    return generate(strategy, params, prompts, ids=ids[: len(prompts)], **settings)


def batch(prompts=PROMPTS, *, rows=5):
    """Prompts side by side, for `start` and `run`; with the cache's capacity."""
    padded = pad_prompts(prompts, ids=IDS[: len(prompts)], length=128, rows=rows, seed=0)
    return padded, 192


def responses_of(state, *, rules=RULES):
    """Every row's response, of a batch of PROMPTS that has ended."""
    return [read_response(state, row, name=name, rules=rules) for row, name in enumerate(IDS)]


def slow_greedy(prompt, *, rules=RULES, width=64):
    """The obvious way: the whole text through the model for every token, and no cache."""
    model, params = target()
    text, emitted = list(prompt), []
    while len(emitted) < rules.max_new_tokens:
        padded = np.zeros((1, width), np.int32)
        padded[0, : len(text)] = text
        logits = np.array(_last_logits(model, params, padded, len(text) - 1))
        logits[list(rules.suppressed_ids)] = -np.inf
        emitted.append(int(logits.argmax()))
        text.append(emitted[-1])
        if emitted[-1] in rules.stop_ids:
            break
    return tuple(emitted)


@functools.partial(jax.jit, static_argnums=0)
def _last_logits(model, params, tokens, last):
    hidden = model.apply({"params": params}, tokens).hidden_BSD[0, last]
    return model.apply({"params": params}, hidden, method="logits")
