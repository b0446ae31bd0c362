"""Diffusion decoding the slow and obvious way: numpy, one row, one position at a time.

The forward pass always computes all columns; a cache is "these columns' keys and values are the
ones written down then", put in their place in every layer.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.config import MaskedTransformerConfig
from jaxspec.decoding.diffusion.unmasking import Scheduled, Threshold
from jaxspec.models.bidirectional import BidirectionalTransformer

VOCABULARY, MASK, EOS = 29, 28, 27
CONFIG = MaskedTransformerConfig(
    vocab_size=VOCABULARY,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    intermediate_size=24,
    rms_norm_eps=1e-5,
    qk_norm=False,
    tie_embeddings=False,
    max_position_embeddings=64,
)
MODEL = BidirectionalTransformer(CONFIG)


def parameters(seed=0, *, sharpness=6.0):
    """Random, with logits spread out, so that outputs vary and argmaxes are clear."""
    tree = jax.jit(MODEL.init)(jax.random.key(seed), jnp.zeros((1, 4), jnp.int32))["params"]
    rng = np.random.default_rng(seed)
    # On the host, where no shape needs a program.
    tree = jax.tree.map(
        lambda x: x + np.float32(0.1) * rng.standard_normal(x.shape).astype("f4"),
        jax.device_get(tree),
    )
    tree["embed"] = jax.tree.map(lambda x: np.float32(5) * x, tree["embed"])
    tree["head"] = jax.tree.map(lambda x: np.float32(sharpness) * x, tree["head"])
    return jax.tree.map(jnp.asarray, tree)


def rms(x, scale):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + CONFIG.rms_norm_eps) * scale


def rotate(x_THC):
    half = x_THC.shape[-1] // 2
    rates = CONFIG.rope_theta ** (-np.arange(half) / half)
    angle = (np.arange(len(x_THC))[:, None] * rates)[:, None]
    first, second = x_THC[..., :half], x_THC[..., half:]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([first * cos - second * sin, first * sin + second * cos], -1)


def forward(params, tokens_T, sees_TT, *, written=None, keep_T=None):
    """Logits [T, V], and each layer's (keys, values).

    Where `keep_T`, keys and values are those of `written` (an earlier call's second result).
    """
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    length = len(tokens_T)
    x = params["embed"]["embedding"][np.asarray(tokens_T)]
    kept = []
    for layer in range(CONFIG.num_layers):
        weights = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["layers"])
        inner = rms(x, weights["input_norm"]["scale"])
        attention = weights["attention"]
        q, k, v = (
            (inner @ attention[name]["kernel"]).reshape(length, -1, CONFIG.head_dim)
            for name in "qkv"
        )
        q, k = rotate(q), rotate(k)
        if written is not None:
            k = np.where(keep_T[:, None, None], written[layer][0], k)
            v = np.where(keep_T[:, None, None], written[layer][1], v)
        kept.append((k, v))
        mixed = np.zeros_like(q)
        for head in range(CONFIG.num_heads):
            group = head * CONFIG.num_kv_heads // CONFIG.num_heads
            scores = q[:, head] @ k[:, group].T / np.sqrt(CONFIG.head_dim)
            scores = np.where(sees_TT, scores, -np.inf)
            share = np.exp(scores - scores.max(-1, keepdims=True))
            mixed[:, head] = share / share.sum(-1, keepdims=True) @ v[:, group]
        x = x + mixed.reshape(length, -1) @ attention["o"]["kernel"]
        inner = rms(x, weights["post_norm"]["scale"])
        gate, up = (inner @ weights["mlp"][name]["kernel"] for name in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ weights["mlp"]["down"]["kernel"]
    return rms(x, params["final_norm"]["scale"]) @ params["head"]["kernel"], kept


@dataclasses.dataclass
class Slow:
    """What the slow decoder found."""

    tokens: list
    passes: list
    revealed: list
    states: list
    """Each block's (tokens before the step, logits it was given), in order."""


def how_many(rule, falling, *, initial, at):
    """A rule's number, by its definition."""
    if isinstance(rule, Scheduled):
        shares = [initial // rule.steps] * rule.steps
        for first in range(initial % rule.steps):
            shares[first] += 1
        number = shares[at]
    elif isinstance(rule, Threshold):
        number = sum(confidence >= rule.threshold for confidence in falling)
    else:
        number = 0
        for place, confidence in enumerate(falling):
            if confidence >= 1 - rule.factor / (place + 2):
                number = place + 1
    return min(max(number, 1), len(falling))


@functools.partial(jax.jit, static_argnums=0)
def drawn(sampling, key, step, position, logits):
    """A position's token of a step; one program, as every operation alone would take one."""
    folded = jax.random.fold_in(jax.random.fold_in(key, step), position)
    return sampling.sample(folded, sampling.probabilities(logits))


def slow_decode(params, prompt, rules, *, key=None):
    """One prompt, by the book."""
    start, end = len(prompt), len(prompt) + rules.response_length
    length = rules.block_length
    first = start // length * length if rules.block_causal else start
    x = [*prompt, *[MASK] * rules.response_length]
    sees = np.ones((end, end), bool)
    if rules.block_causal:
        block_of = (np.arange(end) - first) // length
        sees = block_of[:, None] >= block_of
    out = Slow([], [], [-1] * rules.response_length, [])
    for block in range(first, end, length):
        masked = [t for t in range(max(block, start), min(block + length, end)) if x[t] == MASK]
        initial, at, written = len(masked), 0, {}
        while masked:
            keep = np.zeros(end, bool)
            if at > 0 and rules.caching != "none":
                keep = np.arange(end) < block
            if at > 0 and rules.caching == "dual":
                keep = keep | (np.arange(end) >= block + length)
            logits = {}
            for side in ("with", "without")[: 1 + (rules.guidance > 0)]:
                text = np.array(x)
                if side == "without":
                    text[:start] = MASK
                logits[side], kept = forward(
                    params, text, sees, written=written.get(side), keep_T=keep
                )
                written.setdefault(side, kept)
            seen = logits["with"]
            if rules.guidance:
                unconditional = logits["without"]
                seen = unconditional + (1 + rules.guidance) * (seen - unconditional)
            out.states.append((list(x), seen[block : block + length]))
            best = {}
            for t in masked:
                row = seen[t].copy()
                row[[MASK, *rules.suppressed_ids]] = -np.inf
                others = row.copy()
                others[list(rules.last_ids)] = -np.inf
                probs = np.exp(others - others.max()) / np.exp(others - others.max()).sum()
                token = int(row.argmax())
                if not rules.sampling.greedy:
                    token = int(drawn(rules.sampling, key, at, t, row.astype("f4")))
                best[t] = (probs[token], token)
            order = sorted(masked, key=lambda t: (-best[t][0], t))
            falling = [best[t][0] for t in order]
            for t in order[: how_many(rules.unmasking, falling, initial=initial, at=at)]:
                x[t] = best[t][1]
                out.revealed[t - start] = at
            masked = [t for t in masked if x[t] == MASK]
            at += 1
        out.passes.append(at)
        if set(x[max(block, start) : block + length]) & set(rules.stop_ids):
            break
    out.tokens = x[start:]
    return out
