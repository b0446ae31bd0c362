"""GPT-2 and GPT-Neo against transformers, and against themselves without a cache.

Dimension key: B batch, S tokens, V vocabulary, D width, L layers.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.checkpoints.huggingface import load_target, save_target
from jaxspec.config import GPT2Config, TransformerConfig
from jaxspec.models.cache import KVCache
from jaxspec.models.gpt2 import GPT2
from jaxspec.models.registry import make_model
from jaxspec.models.transformer import Transformer

TOLERANCE = 1e-4
BATCH, LENGTH, POSITIONS, VOCABULARY, WINDOW = 2, 24, 40, 61, 5

CASES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": VOCABULARY,
        "n_positions": POSITIONS,
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
        "layer_norm_epsilon": 1e-3,
    },
    "gpt_neo": {
        "model_type": "gpt_neo",
        "vocab_size": VOCABULARY,
        "max_position_embeddings": POSITIONS,
        "hidden_size": 32,
        "num_layers": 3,
        "num_heads": 4,
        "intermediate_size": 48,
        "attention_types": [[["global", "local"], 1], [["local"], 1]],
        "window_size": WINDOW,
    },
}

CONFIG = GPT2Config(
    family="gpt_neo",
    vocab_size=40,
    hidden_size=32,
    num_layers=3,
    num_heads=4,
    intermediate_size=48,
    layer_types=("full_attention", "sliding_attention", "sliding_attention"),
    sliding_window=WINDOW,
    max_position_embeddings=24,
)
FAMILIES = {
    "gpt2": dataclasses.replace(CONFIG, family="gpt2", layer_types=(), sliding_window=0),
    "gpt_neo": CONFIG,
}
TOKENS_BS = np.random.default_rng(0).integers(0, 40, (2, 16)).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Reference:
    """A torch model, its folder, and what it computes for `tokens_BS`."""

    name: str
    folder: Path
    tokens_BS: np.ndarray
    logits_BSV: np.ndarray
    states: list[np.ndarray]
    """hidden_states: the embedding, the output of each block, the last one normed."""
    last_BSD: np.ndarray
    """Output of the last block before the final norm."""


@pytest.fixture(scope="module")
def torch() -> types.ModuleType:
    try:
        import torch
    except ImportError:
        pytest.skip("torch is not installed: no reference to compare with")
    return torch


@pytest.fixture(scope="module", params=CASES)
def reference(
    request: pytest.FixtureRequest,
    torch: types.ModuleType,
    tmp_path_factory: pytest.TempPathFactory,
) -> Reference:
    from transformers import AutoConfig, AutoModelForCausalLM

    special = {"bos_token_id": 0, "eos_token_id": 0}
    config = AutoConfig.for_model(**CASES[request.param], **special)
    model: Any = AutoModelForCausalLM.from_config(config)
    model.eval().float()
    generator = torch.Generator().manual_seed(list(CASES).index(request.param))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Far from the initial values, at which many mistakes do not show.
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = ".ln_" in name and name.endswith("weight")
            parameter.copy_(1 + 0.3 * noise if is_scale else 0.2 * noise)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)

    tokens_BS = np.random.default_rng(0).integers(0, VOCABULARY, (BATCH, LENGTH))
    kept: list[Any] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)

    handle = model.transformer.h[-1].register_forward_hook(keep)
    with torch.no_grad():
        output = model(torch.tensor(tokens_BS), output_hidden_states=True)
    handle.remove()
    return Reference(
        name=request.param,
        folder=folder,
        tokens_BS=tokens_BS,
        logits_BSV=output.logits.numpy(),
        states=[state.numpy() for state in output.hidden_states],
        last_BSD=kept[0].numpy(),
    )


def assert_close(got: Any, expected: Any) -> None:
    np.testing.assert_allclose(got, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_logits_and_captured_states_equal_those_of_transformers(reference: Reference) -> None:
    config, params = load_target(reference.folder)
    model: Any = make_model(config)
    assert isinstance(model, GPT2)

    @jax.jit
    def run(params: Any, tokens_BS: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        output = model.apply({"params": params}, tokens_BS, capture=(0, 1, 2))
        logits_BSV = model.apply({"params": params}, output.hidden_BSD, method="logits")
        return logits_BSV, output.hidden_BSD, output.features_BSE

    logits_BSV, hidden_BSD, features_BSE = run(params, jnp.asarray(reference.tokens_BS))
    assert np.std(reference.logits_BSV) > 0.5, "the reference is too flat to tell anything"
    assert_close(logits_BSV, reference.logits_BSV)
    assert_close(hidden_BSD, reference.states[-1])
    captured = np.split(np.asarray(features_BSE), config.num_layers, axis=-1)
    for layer_id in range(config.num_layers - 1):
        assert_close(captured[layer_id], reference.states[layer_id + 1])
    assert_close(captured[-1], reference.last_BSD)


def test_steps_with_a_cache_equal_one_pass_of_transformers(reference: Reference) -> None:
    config, params = load_target(reference.folder)
    model: Any = make_model(config)
    cache = empty_cache(config, capacity=LENGTH + 4)

    @jax.jit
    def step(params: Any, cache: KVCache, part_BS: jax.Array) -> tuple[KVCache, jax.Array]:
        output = model.apply({"params": params}, part_BS, cache=cache)
        logits_BSV = model.apply({"params": params}, output.hidden_BSD, method="logits")
        return cache.write(output.keys_LBRSC, output.values_LBRSC), logits_BSV

    # The rows advance at their own pace: of four tokens per step, row 0 keeps four and row 1 three;
    # the fourth is as a rejected draft, and comes again.
    starts, kept = [0, 0], [4, 3]
    for _ in range(LENGTH // 4):
        parts = [reference.tokens_BS[b, starts[b] : starts[b] + 4] for b in range(BATCH)]
        cache, logits_BSV = step(params, cache, np.stack(parts))
        for b in range(BATCH):
            assert_close(logits_BSV[b], reference.logits_BSV[b, starts[b] : starts[b] + 4])
            starts[b] += kept[b]
        cache = cache.advance(jnp.asarray(kept))


def test_transformers_computes_the_same_from_an_export(
    reference: Reference, torch: types.ModuleType, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    config, params = load_target(reference.folder)
    save_target(tmp_path / "export", config, params, eos_token_ids=(0,))
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path / "export", output_loading_info=True
    )
    model, report = loaded
    assert type(model).__name__ == {"gpt2": "GPT2LMHeadModel"}.get(
        reference.name, "GPTNeoForCausalLM"
    )
    assert not any(report.values()), report
    with torch.no_grad():
        logits_BSV = model.eval()(torch.tensor(reference.tokens_BS)).logits.numpy()
    np.testing.assert_array_equal(logits_BSV, reference.logits_BSV)


def empty_cache(config: Any, *, capacity: int) -> KVCache:
    return KVCache.create(
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        batch=BATCH,
        capacity=capacity,
    )


def random_params(config: GPT2Config) -> Any:
    init = jax.jit(GPT2(config).init)
    params = jax.device_get(init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"])
    generator = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: leaf + 0.2 * generator.standard_normal(leaf.shape).astype("f4"), params
    )


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request: pytest.FixtureRequest) -> tuple[GPT2Config, Any]:
    config = FAMILIES[request.param]
    return config, random_params(config)


@functools.partial(jax.jit, static_argnums=0)
def forward(config: GPT2Config, params: Any, tokens_BS: Any, **inputs: Any) -> Any:
    return GPT2(config).apply({"params": params}, tokens_BS, **inputs)


def hidden(config: GPT2Config, params: Any, tokens_BS: np.ndarray, **inputs: Any) -> np.ndarray:
    return np.asarray(forward(config, params, tokens_BS, **inputs).hidden_BSD)


def hidden_of_texts(config: GPT2Config, params: Any, texts: Any) -> np.ndarray:
    """Padded, as later tokens change nothing: all texts share the program of `TOKENS_BS`."""
    padded_BS = np.zeros_like(TOKENS_BS)
    for row, text in enumerate(texts):
        padded_BS[row, : len(text)] = text
    return hidden(config, params, padded_BS)


def test_paths_of_a_tree_see_what_sequences_see(tiny: tuple[GPT2Config, Any]) -> None:
    """Behind a cache of uneven rows, each node's path through the tree is a text of its own."""
    config, params = tiny
    lengths, parents = (9, 6), (-1, 0, 1, 2, 0, 4, 5, 6, 7)
    paths: list[list[int]] = []
    for node, parent in enumerate(parents):
        paths.append([*(paths[parent] if parent >= 0 else []), node])
    assert max(map(len, paths)) > WINDOW, "some node does not see the cache at all"
    cache = empty_cache(config, capacity=20)
    output = forward(config, params, TOKENS_BS[:, :9], cache=cache)
    cache = cache.write(output.keys_LBRSC, output.values_LBRSC).advance(jnp.array(lengths))
    rows_BS = np.random.default_rng(1).integers(0, 40, (2, len(parents))).astype(np.int32)
    mask_SS = np.array([[other in path for other in range(len(parents))] for path in paths])
    depths_S = np.array([len(path) - 1 for path in paths])
    tree_BSD = hidden(
        config,
        params,
        rows_BS,
        cache=cache,
        positions_BS=np.array(lengths)[:, None] + depths_S,
        mask_BSS=np.broadcast_to(mask_SS, (2, *mask_SS.shape)),
    )
    for path in (paths[3], paths[8]):
        texts = [
            np.concatenate([TOKENS_BS[row, :length], rows_BS[row, path]])
            for row, length in enumerate(lengths)
        ]
        expected_BSD = hidden_of_texts(config, params, texts)
        for row, length in enumerate(lengths):
            expected_SD = expected_BSD[row, length : len(texts[row])]
            np.testing.assert_allclose(tree_BSD[row, path], expected_SD, atol=1e-4)


def test_slots_of_the_cache_can_be_hidden(tiny: tuple[GPT2Config, Any]) -> None:
    """As in one pass whose later tokens do not see some of the earlier ones."""
    config, params = tiny
    stored, hidden_slots = 9, (2, 6, 7)
    mask_SS = np.tril(np.ones((16, 16), bool))
    mask_SS[stored:, hidden_slots] = False
    expected_BSD = hidden(
        config, params, TOKENS_BS, mask_BSS=np.broadcast_to(mask_SS, (2, 16, 16))
    )[:, stored:]
    cache = empty_cache(config, capacity=20)
    output = forward(config, params, TOKENS_BS[:, :stored], cache=cache)
    cache = cache.write(output.keys_LBRSC, output.values_LBRSC).advance(stored)
    seen_T = (np.arange(20) < stored) & ~np.isin(np.arange(20), hidden_slots)
    rest_BS = TOKENS_BS[:, stored:]
    got_BSD = hidden(
        config,
        params,
        rest_BS,
        cache=cache,
        cache_mask_BST=np.broadcast_to(seen_T, (*rest_BS.shape, 20)),
    )
    np.testing.assert_allclose(got_BSD, expected_BSD, atol=1e-4)
    everything_BSD = hidden(config, params, rest_BS, cache=cache)
    assert np.abs(everything_BSD - expected_BSD).max() > 0.01


def test_packed_documents_do_not_see_each_other(tiny: tuple[GPT2Config, Any]) -> None:
    config, params = tiny
    cut, index_S = 7, np.arange(16)
    packed_BSD = hidden(
        config,
        params,
        TOKENS_BS,
        positions_BS=np.broadcast_to(np.where(index_S < cut, index_S, index_S - cut), (2, 16)),
        segments_BS=np.broadcast_to(np.where(index_S < cut, 1, 2), (2, 16)),
    )
    for part in (slice(0, cut), slice(cut, 16)):
        alone_BSD = hidden_of_texts(config, params, TOKENS_BS[:, part])
        length = part.stop - part.start
        np.testing.assert_allclose(packed_BSD[:, part], alone_BSD[:, :length], atol=1e-4)


def test_padding_past_the_table_of_positions_changes_nothing(
    tiny: tuple[GPT2Config, Any],
) -> None:
    config, params = tiny
    padded_BS = np.pad(TOKENS_BS, ((0, 0), (0, 16)))
    assert padded_BS.shape[1] > config.max_position_embeddings
    got_BSD = hidden(config, params, padded_BS)
    assert np.isfinite(got_BSD).all()
    np.testing.assert_allclose(got_BSD[:, :16], hidden(config, params, TOKENS_BS), atol=1e-4)


def test_unrolled_and_rematerialised_layers_are_the_same(tiny: tuple[GPT2Config, Any]) -> None:
    config, params = tiny
    expected_BSD = hidden(config, params, TOKENS_BS)
    for changes in ({"unroll_layers": True}, {"remat": True}):
        got_BSD = hidden(dataclasses.replace(config, **changes), params, TOKENS_BS)
        np.testing.assert_allclose(got_BSD, expected_BSD, atol=1e-5)


def test_registry() -> None:
    assert isinstance(make_model(CONFIG), GPT2)
    assert isinstance(make_model(TransformerConfig()), Transformer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "hidden_size must be a multiple of num_heads: got 32 and 5"),
        ({"family": "gpt2"}, "A GPT-2 has no sliding layers"),
        ({"layer_types": ("full_attention",)}, "got 1 entries for 3 layers"),
        ({"max_position_embeddings": 0}, "max_position_embeddings must be at least 1: got 0"),
    ],
)
def test_sizes_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_layers_that_do_not_exist_are_not_captured() -> None:
    with pytest.raises(ValueError, match=r"must lie in 0\.\.2 .* got \[3\]"):
        jax.eval_shape(
            lambda: GPT2(CONFIG).init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32), capture=(3,))
        )
