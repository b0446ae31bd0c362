"""A drafter for a GPT-Neo target, from the target's folder to its first accepted tokens."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from jaxspec.checkpoints.huggingface import load_drafter, read_config, save_target
from jaxspec.cli import export as command
from jaxspec.config import GPT2Config, TargetConfig
from jaxspec.data.embedded import corpus
from jaxspec.decoding import DecodeRules, Speculative, generate
from jaxspec.evals.opening import open_drafter, open_target
from jaxspec.models.gpt2 import GPT2
from jaxspec.ops.sampling import Sampling
from jaxspec.training.loop import train
from tests.training import runs

POSITIONS = 192
END = "<|endoftext|>"


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights with vocab.json and merges.txt next to them, and nothing about special tokens."""
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(
        [example.turns[-1][1] for example in corpus.generate("math", split="train", count=20)],
        vocab_size=300,
        special_tokens=[END],
        show_progress=False,
    )
    tokenizer = tmp_path_factory.mktemp("tokenizer")
    trained.save_model(str(tokenizer))
    config = GPT2Config(
        family="gpt_neo",
        vocab_size=trained.get_vocab_size(),
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        intermediate_size=24,
        layer_types=("full_attention", "sliding_attention"),
        sliding_window=8,
        max_position_embeddings=POSITIONS,
    )
    init = jax.jit(GPT2(config).init)
    params = init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    # Logits spread out, so that argmaxes are clear.
    params["embed"]["embedding"] *= 30
    folder = tmp_path_factory.mktemp("target") / "neo"
    save_target(folder, config, params, tokenizer_folder=tokenizer)
    return folder


def check_greedy(bundle, prompts, found, *, limit):
    """That the target alone would have written these tokens, from one pass over each text."""
    texts = [[*prompt, *tokens] for prompt, tokens in zip(prompts, found, strict=True)]
    length = max(map(len, texts))
    rows = np.array([text + [0] * (length - len(text)) for text in texts], np.int32)

    @jax.jit
    def logits(params, rows):
        hidden = bundle.model.apply({"params": params}, rows).hidden_BSD
        return bundle.model.apply({"params": params}, hidden, method="logits")

    scores_BSV = np.array(logits(bundle.params, rows))
    scores_BSV[..., list(bundle.reserved_ids)] = -np.inf
    for prompt, tokens, greedy in zip(prompts, found, scores_BSV.argmax(-1), strict=True):
        *expected, after = greedy[len(prompt) - 1 : len(prompt) + len(tokens)].tolist()
        assert list(tokens) == expected
        assert len(tokens) == limit or {after, *tokens[-1:]} & {*bundle.stop_ids}


def test_train_export_and_decode(target, run_config, tmp_path):
    config = dataclasses.replace(
        run_config,
        target=TargetConfig(path=str(target)),
        training=dataclasses.replace(run_config.training, steps=2, checkpoint_every=2),
    )
    workdir = tmp_path / "run"
    with pytest.raises(ValueError, match="No mask token: the tokenizer has none"):
        train(config, workdir=workdir)
    end = json.loads((target / "vocab.json").read_text())[END]
    config = dataclasses.replace(
        config, drafter=dataclasses.replace(config.drafter, mask_token_id=end)
    )
    too_long = dataclasses.replace(config.data, sequence_length=POSITIONS + 1)
    with pytest.raises(ValueError, match=f"has learned {POSITIONS} positions and no others"):
        train(dataclasses.replace(config, data=too_long), workdir=workdir)
    other = dataclasses.replace(config.target, architecture=runs.ARCHITECTURE)
    with pytest.raises(ValueError, match="got a GPT2Config, expected a TransformerConfig"):
        train(dataclasses.replace(config, target=other), workdir=workdir)
    assert not workdir.exists()
    train(config, workdir=workdir)

    bundle = open_target(TargetConfig(path=str(target)))
    assert isinstance(bundle.model, GPT2)
    assert bundle.stop_ids == (end,)
    drafter = open_drafter(workdir, target=bundle)
    rules = DecodeRules(16, stop_ids=bundle.stop_ids, suppressed_ids=bundle.reserved_ids)
    proposer = drafter.proposer(bundle, sampling=Sampling(0.0))
    turns = [{"role": "user", "content": "How many miles is it?"}]
    prompts = [bundle.tokenizer.encode_prompt(turns), bundle.tokenizer.encode("12 miles")]
    both = {"target": bundle.params, "drafter": drafter.params}
    ids = ("first", "second")
    speculative = generate(
        Speculative(bundle.model, proposer, rules), both, prompts, ids=ids, batch_size=2
    )
    check_greedy(bundle, prompts, [found.tokens for found in speculative], limit=16)
    assert np.unique(speculative[0].tokens).size > 1

    # The same weights from its last checkpoint, and from the finished export.
    _, expected = load_drafter(workdir / "export", target_config=read_config(target))
    for source in ("checkpoint", "export"):
        folder = command.export(
            command.ExportCommand(
                workdir=str(workdir),
                output=str(tmp_path / source),
                dtype="float32",
                source=source,
            )
        )
        _, params = load_drafter(folder, target_config=read_config(target))
        jax.tree.map(np.testing.assert_array_equal, params, expected)
