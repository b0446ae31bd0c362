"""A target whose likeliest tokens are often special: what it emits, alone and with drafters."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.checkpoints.huggingface import load_target, save_target
from jaxspec.config import RunConfig, TargetConfig
from jaxspec.decoding import generate
from jaxspec.evals.opening import open_drafter, open_target, untrained_drafter
from jaxspec.evals.report import read_json
from jaxspec.evals.speculative.runner import evaluate
from jaxspec.evals.speculative.strategies import build_strategy
from jaxspec.ops.sampling import Sampling
from tests.evals.drafter_folders import SETTINGS, write_folders

PROMPTS = [[5, 9, 31], [40, 7, 7, 12, 88], [100, 101]]
IDS = ["a", "b", "c"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(target, drafter): special and unused ids have logits that are often the largest."""
    root = tmp_path_factory.mktemp("runs")
    written, (drafter, _) = write_folders(root)
    config, params = load_target(written)
    reserved = list(open_target(TargetConfig(path=str(written))).reserved_ids)
    head = np.array(params["head"]["kernel"])
    head[:, reserved] *= 6
    params["head"]["kernel"] = jnp.asarray(head)
    # The training's record would name the first target.
    target = root / "wild"
    save_target(target, config, params, tokenizer_folder=written)
    return target, drafter


@pytest.fixture(scope="module")
def target(folders):
    return open_target(TargetConfig(path=str(folders[0])))


def decoded(target, drafter, **changes):
    """Tokens of each response."""
    settings = dataclasses.replace(SETTINGS, **changes)
    strategy = build_strategy(settings, target, drafter)
    params = target.params
    if drafter.entry.drafts:
        params = {"target": target.params, "drafter": drafter.params}
    # One at a time, as the evaluations below: they share programs.
    responses = generate(strategy, params, PROMPTS, ids=IDS, batch_size=settings.batch_size)
    return [response.tokens for response in responses]


def test_greedy_text_is_that_of_generate(folders, target):
    torch = pytest.importorskip("torch", reason="torch is not installed: it is the other side")
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(folders[0], dtype=torch.float32)
    expected = []
    for prompt in PROMPTS:
        ids = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=SETTINGS.max_new_tokens,
            eos_token_id=list(target.stop_ids),
            pad_token_id=target.tokenizer.pad_id,
        )
        expected.append(tuple(ids[0, len(prompt) :].tolist()))
    emitted = {token for tokens in expected for token in tokens}
    assert emitted & set(target.reserved_ids), "no special id wins: the test would show nothing"
    assert emitted & set(target.unused_ids), "no unused id wins"
    alone = untrained_drafter("none")
    assert decoded(target, alone) == expected
    unused = decoded(target, alone, suppress="unused")
    assert not {token for tokens in unused for token in tokens} & set(target.unused_ids)
    assert {token for tokens in unused for token in tokens} & set(target.reserved_ids)
    special = decoded(target, alone, suppress="special")
    assert not {token for tokens in special for token in tokens} & set(target.reserved_ids)
    assert len({str(found) for found in (expected, unused, special)}) == 3
    dflash = open_drafter(folders[1], target=target)
    assert decoded(target, dflash) == expected
    assert decoded(target, dflash, suppress="unused") == unused
    for drafter in (dflash, untrained_drafter("ngram")):
        assert decoded(target, drafter, suppress="special") == special, drafter.kind


def test_drafters_do_not_draft_their_mask_or_unused_ids(folders, target):
    drafter = open_drafter(folders[1], target=target)
    mask = drafter.model.config.mask_token_id
    proposer = drafter.proposer(target, sampling=Sampling(0.0))
    assert proposer.suppressed_ids == tuple(sorted({mask, *target.unused_ids}))
    everything = drafter.proposer(target, sampling=Sampling(0.0), suppress="special")
    assert everything.suppressed_ids == target.reserved_ids


@pytest.mark.parametrize("suppress", ["none", "special"])
def test_the_report_says_what_was_suppressed(folders, tmp_path, suppress):
    settings = dataclasses.replace(SETTINGS, suppress=suppress, timing_prompts=0)
    config = RunConfig(target=TargetConfig(path=str(folders[0])), evaluation=settings)
    output = tmp_path / "results.json"
    evaluate(config, workdirs=[folders[1]], output=output, echo=lambda line: None)
    _, rows = read_json(output)
    assert {row["suppress"] for row in rows} == {suppress}
    assert {row["mismatched_prompts"] for row in rows} == {0}
    text = output.with_suffix(".md").read_text()
    expected = "No token was suppressed" if suppress == "none" else "ids were suppressed in the"
    assert expected in text
