"""Runs of denoisers, one of which continues from another, and what they refuse."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from jaxspec.checkpoints.denoiser import load_denoiser, read_denoiser, save_denoiser
from jaxspec.checkpoints.folders import target_folder
from jaxspec.checkpoints.huggingface import load_target, read_config
from jaxspec.cli import export as command
from jaxspec.config import (
    DenoiserConfig,
    DiTConfig,
    EvaluationConfig,
    MaskedTransformerConfig,
    TargetConfig,
)
from jaxspec.data.tokenizer import EMBEDDED_FOLDER, Tokenizer
from jaxspec.drafters.denoiser import CachedDenoiserProposer, DenoiserProposer
from jaxspec.evals.diffusion.decoders import diffusion_rules
from jaxspec.evals.opening import (
    is_diffusion_target,
    open_diffusion_target,
    open_drafter,
    open_target,
)
from jaxspec.evals.speculative.strategies import build_strategy
from jaxspec.ops.sampling import Sampling
from jaxspec.planning.step import plan_step
from jaxspec.training.loop import train
from jaxspec.training.tasks import denoiser
from jaxspec.training.tasks.denoiser import build
from tests.training import runs, tiny

MASK = Tokenizer.load(EMBEDDED_FOLDER).mask_id
DIT = DiTConfig(
    vocab_size=1024, hidden_size=16, num_layers=1, num_heads=2, max_position_embeddings=256
)


def changed(config, denoiser, **training):
    return dataclasses.replace(
        config,
        denoiser=denoiser,
        training=dataclasses.replace(
            config.training, task="denoiser", steps=3, checkpoint_every=2, **training
        ),
    )


@pytest.fixture(scope="module")
def from_scratch(run_config, tmp_path_factory):
    """An MDLM after three steps under random masks."""
    workdir = tmp_path_factory.mktemp("scratch") / "run"
    train(changed(run_config, DenoiserConfig(architecture=DIT)), workdir=workdir)
    return workdir


@pytest.fixture(scope="module")
def adapted(run_config, tmp_path_factory):
    """The target's first layer after three steps of drafting."""
    workdir = tmp_path_factory.mktemp("adapted") / "run"
    settings = DenoiserConfig(
        path=run_config.target.path,
        num_layers=1,
        context="causal",
        objective="draft",
        block_size=4,
    )
    train(changed(run_config, settings), workdir=workdir)
    return workdir


def test_what_is_trained_is_float32_however_it_was_stored(run_config, tmp_path):
    """In bfloat16, a step of 0.4% of a weight is the smallest that is not rounded away."""
    stored = target_folder("embedded")
    assert read_config(stored).param_dtype == "bfloat16"
    config = changed(run_config, DenoiserConfig(path=str(stored), num_layers=1))
    task = build(config)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes)} == {"float32"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(task.load_initial())} == {"float32"}
    low_rank = build(changed(run_config, DenoiserConfig(path=str(stored), lora_rank=2)))
    frozen = {leaf.dtype.name for leaf in jax.tree.leaves(low_rank.frozen_shapes)}
    learned = jax.eval_shape(low_rank.init, jax.random.key(0))
    assert frozen == {"bfloat16"}, "what stays as it is may stay as it was stored"
    assert {leaf.dtype.name for leaf in jax.tree.leaves(learned)} == {"float32"}


@pytest.mark.parametrize("start", ["path", "architecture", "both"])
def test_layers_are_unrolled_wherever_they_come_from(from_scratch, run_config, start):
    settings = DenoiserConfig(
        architecture=None if start == "path" else DIT,
        path="" if start == "architecture" else str(from_scratch),
    )
    for unrolls in (False, True):
        changes = dataclasses.replace(settings, unroll_layers=unrolls)
        task = build(changed(run_config, changes))
        assert task.objective.model.config.unroll_layers is unrolls
    if start == "architecture":
        with pytest.raises(ValueError, match=r"got denoiser\.num_layers 1 and path ''"):
            dataclasses.replace(settings, num_layers=1)


def test_a_model_in_a_folder_is_recomputed_in_the_backward_pass(run_config):
    plain = DenoiserConfig(path=run_config.target.path, num_layers=1, objective="llada")
    batch, key = tiny.batch(), jax.random.key(0)
    found = []
    for remat in (False, True):
        config = changed(run_config, dataclasses.replace(plain, remat=remat))
        task = build(
            dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=8))
        )
        assert task.objective.model.config.remat is remat

        def loss(params, objective=task.objective):
            return objective.total(objective(params, {}, batch, key, None)[0], None)

        gradient = jax.jit(jax.grad(loss))
        params = jax.jit(task.init)(key)
        found.append(gradient(params))
        assert ("remat" in str(gradient.trace(params).jaxpr)) is remat
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), *found)


def test_a_model_in_a_folder_computes_in_the_type_that_is_asked_for(from_scratch, run_config):
    stored = target_folder("embedded")
    tokens_BS = jax.ShapeDtypeStruct((1, 4), "int32")

    def types(**settings):
        task = build(changed(run_config, DenoiserConfig(**settings)))
        model, shapes = task.objective.model, jax.eval_shape(task.init, jax.random.key(0))
        output = jax.eval_shape(model.apply, {"params": shapes}, tokens_BS)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes)} == {"float32"}
        return output.hidden_BSD.dtype.name

    assert types(path=str(stored)) == "bfloat16", "as it is stored"
    assert types(path=str(stored), dtype="float32") == "float32"
    assert types(path=str(from_scratch)) == "float32"
    assert types(path=str(from_scratch), dtype="bfloat16") == "bfloat16"
    assert types(architecture=DIT, dtype="bfloat16") == "bfloat16"
    half = dataclasses.replace(DIT, dtype="bfloat16")
    assert types(architecture=half) == types(architecture=half, dtype="bfloat16") == "bfloat16"
    with pytest.raises(ValueError, match=r"denoiser\.architecture\.dtype is 'bfloat16': leave one"):
        types(architecture=half, dtype="float32")


def test_an_mdlm_from_scratch_is_exported(from_scratch, run_config):
    config, params = load_denoiser(from_scratch / "export")
    assert isinstance(config, DiTConfig) and config.mask_id == MASK
    assert config.context == "bidirectional"
    assert np.abs(params["head"]["kernel"]).max() > 0, "it has learned something"
    assert json.loads((from_scratch / "metrics.jsonl").read_text().splitlines()[0])["elbo"] > 6
    target = open_target(run_config.target)
    drafter = open_drafter(from_scratch, target=target)
    assert (drafter.kind, drafter.loss, drafter.block_size) == ("mdlm", "elbo", 9)
    assert isinstance(drafter.proposer(target, sampling=Sampling(0.0)), DenoiserProposer)


def test_a_target_becomes_a_drafter(adapted, run_config):
    config, params = load_denoiser(adapted / "export")
    assert isinstance(config, MaskedTransformerConfig)
    assert (config.num_layers, config.context, config.mask_id) == (1, "causal", MASK)
    _, before = load_target(run_config.target.path)
    before = jax.tree.map(lambda leaf: leaf[:1], before["layers"])
    moved = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), params["layers"], before)
    # Three steps of Adam at a rate of 3e-3 at most: it started from there.
    assert 0 < max(jax.tree.leaves(moved)) < 0.01
    target = open_target(run_config.target)
    drafter = open_drafter(adapted, target=target)
    assert (drafter.kind, drafter.loss, drafter.block_size) == ("mdlm", "full", 4)
    assert isinstance(drafter.proposer(target, sampling=Sampling(0.0)), CachedDenoiserProposer)


def test_updates_of_low_rank_are_added_in_the_export(
    from_scratch, run_config, tmp_path, monkeypatch
):
    loads = []

    def load(folder, **options):
        loads.append(folder)
        return load_denoiser(folder, **options)

    monkeypatch.setattr(denoiser, "load_denoiser", load)
    settings = DenoiserConfig(
        path=str(from_scratch), objective="draft", block_size=4, lora_rank=2, context="causal"
    )
    config = changed(run_config, settings)
    train(config, workdir=tmp_path / "lora")
    assert len(loads) == 1, "the export takes the base that is in memory"
    _, base = load_denoiser(from_scratch / "export")
    stored, params = load_denoiser(tmp_path / "lora" / "export")
    assert stored.context == "causal"
    differs = jax.tree.map(lambda new, old: bool((new != old).any()), params, base)
    for path, leaf in jax.tree_util.tree_flatten_with_path(differs)[0]:
        matrix = path[0].key == "layers" and path[-1].key == "kernel"
        assert leaf == matrix, path
    # The same from its last checkpoint.
    folder = command.export(
        command.ExportCommand(
            workdir=str(tmp_path / "lora"),
            output=str(tmp_path / "copy"),
            dtype="float32",
            source="checkpoint",
        )
    )
    _, again = load_denoiser(folder)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), again, params)
    plan = plan_step(config)
    assert plan.trained < plan.frozen and plan.frozen == sum(x.size for x in jax.tree.leaves(base))


def test_a_finished_run_is_exported_without_what_it_started_from(adapted, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(adapted / "export", run / "export")
    record = json.loads((adapted / "provenance.json").read_text())
    record["config"]["denoiser"]["path"] = record["config"]["target"]["path"] = "gone"
    (run / "provenance.json").write_text(json.dumps(record))
    folder = command.export(
        command.ExportCommand(workdir=str(run), output=str(tmp_path / "out"), dtype="float32")
    )
    config, params = load_denoiser(adapted / "export")
    again, loaded = load_denoiser(folder)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_a_block_causal_target(run_config, tmp_path):
    """Its export is decoded with the blocks that it was trained with, and is no drafter."""
    settings = DenoiserConfig(
        path=run_config.target.path,
        num_layers=1,
        context="block_causal",
        objective="llada",
        block_size=8,
    )
    config = changed(run_config, settings)
    with pytest.raises(ValueError, match=r"set data\.packing to False"):
        train(config, workdir=tmp_path / "packed")
    data = dataclasses.replace(config.data, packing=False, fill_rows=True)
    odd = dataclasses.replace(config, data=dataclasses.replace(data, sequence_length=60))
    with pytest.raises(ValueError, match=r"multiple of the block \(8\): got 60"):
        train(odd, workdir=tmp_path / "odd")
    draft = dataclasses.replace(settings, objective="draft")
    with pytest.raises(ValueError, match="objective is 'draft'"):
        train(dataclasses.replace(config, denoiser=draft, data=data), workdir=tmp_path / "draft")
    train(dataclasses.replace(config, data=data), workdir=tmp_path / "run")
    stored = read_denoiser(tmp_path / "run" / "export")
    assert (stored.context, stored.block_length) == ("block_causal", 8)
    target = open_diffusion_target(
        TargetConfig(path=str(tmp_path / "run" / "export"))
    ).with_weights()
    rules = diffusion_rules(config, target)
    assert rules.block_causal and rules.block_length == 8
    blocks = dataclasses.replace(config.diffusion, block_length=32)
    with pytest.raises(ValueError, match=r"trained with blocks of 8 tokens: got .* 32"):
        diffusion_rules(dataclasses.replace(config, diffusion=blocks), target)
    other = open_target(run_config.target)
    drafter = open_drafter(tmp_path / "run", target=other)
    with pytest.raises(ValueError, match="is block-causal"):
        drafter.proposer(other, sampling=Sampling(0.0))


def test_sdar_folders_are_block_causal(adapted, tmp_path):
    """A Qwen3 under another name: blocks of 4, unless its config.json says otherwise."""
    document = json.loads((adapted / "export" / "config.json").read_text())
    del document["denoiser"]
    document |= {"model_type": "sdar", "architectures": ["SDARForCausalLM"], "mask_token_id": MASK}
    folder = tmp_path / "sdar"
    shutil.copytree(adapted / "export", folder)
    for more, block in (({}, 4), ({"block_size": 16}, 16)):
        (folder / "config.json").write_text(json.dumps({**document, **more}))
        config, params = load_denoiser(folder)
        assert (config.context, config.block_length, config.mask_id) == (
            "block_causal",
            block,
            MASK,
        )
        assert config.qk_norm
        _, before = load_denoiser(adapted / "export")
        assert jax.tree.all(jax.tree.map(np.array_equal, params, before))
        assert is_diffusion_target(TargetConfig(path=str(folder)))


@pytest.mark.parametrize(("context", "size", "block"), [(None, 4, 4), ("block_causal", 8, 8)])
def test_blocks_of_block_causal_weights_are_as_asked_and_so_is_the_export(
    adapted, run_config, tmp_path, context, size, block
):
    document = json.loads((adapted / "export" / "config.json").read_text())
    del document["denoiser"]
    document |= {"model_type": "sdar", "architectures": ["SDARForCausalLM"], "mask_token_id": MASK}
    folder = shutil.copytree(adapted / "export", tmp_path / "sdar")
    (folder / "config.json").write_text(json.dumps(document))
    settings = DenoiserConfig(path=str(folder), context=context, objective="llada", block_size=size)
    data = dataclasses.replace(run_config.data, packing=False)
    config = dataclasses.replace(changed(run_config, settings), data=data)
    task = build(config)
    assert task.objective.model.config.block_length == block
    _, params = load_denoiser(folder)
    tokenizer = Tokenizer.load(EMBEDDED_FOLDER)
    task.save(tmp_path / "out", params, tokenizer=tokenizer, dtype="float32", provenance={})
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == {**document, "block_size": block}, "still an SDAR"
    assert read_denoiser(tmp_path / "out").block_length == block
    other = dataclasses.replace(settings, context=None, block_size=16)
    with pytest.raises(ValueError, match=r"blocks of 4 tokens, but denoiser\.block_size is 16"):
        build(dataclasses.replace(config, denoiser=other))


def test_a_run_goes_on_where_it_stopped(from_scratch, adapted, run_config, tmp_path):
    """A checkpoint wins over the weights that the run had started from."""
    settings = DenoiserConfig(
        path=run_config.target.path, num_layers=1, context="causal", objective="draft", block_size=4
    )
    config = changed(run_config, settings)
    short = dataclasses.replace(config, training=dataclasses.replace(config.training, steps=2))
    train(short, workdir=tmp_path / "run")
    train(config, workdir=tmp_path / "run", restart_schedule=True)
    rows = runs.rows(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[2]["loss"] != rows[0]["loss"]


MISTAKES = {
    "nothing to train": (DenoiserConfig(), "denoiser.architecture .*or denoiser.path"),
    "a folder without weights": (DenoiserConfig(path="nowhere"), "No folder nowhere"),
    "more layers than there are": (
        DenoiserConfig(path="TARGET", num_layers=3),
        "num_layers is 3, but the model that training starts from has 2",
    ),
    "another architecture": (
        DenoiserConfig(path="SCRATCH", architecture=dataclasses.replace(DIT, hidden_size=32)),
        "hidden_size: got 16, expected 32",
    ),
    "an embedding that is too small": (
        DenoiserConfig(architecture=dataclasses.replace(DIT, vocab_size=512)),
        "has 512 rows",
    ),
    "a mask that is a word": (
        DenoiserConfig(architecture=dataclasses.replace(DIT, mask_token_id=300)),
        "its mask is id 300.*must be a special token",
    ),
    "a mask that ends texts": (
        DenoiserConfig(
            architecture=dataclasses.replace(
                DIT, mask_token_id=Tokenizer.load(EMBEDDED_FOLDER).eos_id
            )
        ),
        "mask is id 2, which ends a text",
    ),
    "a rank beyond the matrices": (
        DenoiserConfig(path="TARGET", lora_rank=60),
        "lora_rank must be from 1 to",
    ),
}


@pytest.mark.parametrize(("settings", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_what_cannot_be_trained(run_config, from_scratch, tmp_path, settings, message):
    folders = {"TARGET": run_config.target.path, "SCRATCH": str(from_scratch)}
    settings = dataclasses.replace(settings, path=folders.get(settings.path, settings.path))
    with pytest.raises(ValueError, match=message):
        train(changed(run_config, settings), workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_objectives_that_need_the_targets_rows_are_refused(run_config, tmp_path):
    config = changed(run_config, DenoiserConfig(architecture=DIT, objective="draft"))
    loss = dataclasses.replace(config.loss, objective="lk")
    with pytest.raises(ValueError, match="'lk' compares with the target's distributions"):
        train(dataclasses.replace(config, loss=loss), workdir=tmp_path / "run")


def test_a_drafter_of_another_tokenizer_is_refused(from_scratch, run_config, tmp_path):
    """Training on from it, and drafting with it: both name ids that differ."""
    folder = runs.write_target(tmp_path / "target")
    document = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    first, second = (token for token, number in vocabulary.items() if number in (500, 501))
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "tokenizer.json").write_text(json.dumps(document))
    other = open_target(TargetConfig(path=str(folder)))
    with pytest.raises(ValueError, match=r"ids 500, 501 mean different tokens"):
        open_drafter(from_scratch, target=other)
    config = changed(run_config, DenoiserConfig(path=str(from_scratch)))
    config = dataclasses.replace(config, target=TargetConfig(path=str(folder)))
    with pytest.raises(ValueError, match=r"ids 500, 501 mean different tokens"):
        train(config, workdir=tmp_path / "run")


def test_a_drafter_with_another_embedding_is_refused(from_scratch, run_config, tmp_path):
    config, params = load_denoiser(from_scratch / "export")
    target = open_target(run_config.target)
    tokens = target.tokenizer.vocab_size
    small = dataclasses.replace(config, vocab_size=tokens - 1, mask_token_id=MASK)
    params = {
        **params,
        "embed": {"embedding": params["embed"]["embedding"][: tokens - 1]},
        "head": jax.tree.map(lambda leaf: leaf[..., : tokens - 1], params["head"]),
    }
    save_denoiser(tmp_path / "small", small, params, tokenizer_folder=EMBEDDED_FOLDER)
    with pytest.raises(ValueError, match=f"embedding of {tokens - 1} rows, but the tokenizer"):
        open_drafter(tmp_path / "small", target=target)


def test_settings_of_denoising_reach_the_strategy(adapted, run_config):
    target = open_target(run_config.target)
    drafter = open_drafter(adapted, target=target)

    def strategy(**settings):
        return build_strategy(EvaluationConfig(**settings), target, drafter)

    sampled = strategy(
        temperature=1.0, denoising_passes=3, denoising_order="first_hitting", block_size=6
    )
    assert (sampled.proposer.num_passes, sampled.proposer.order) == (3, "first_hitting")
    assert (sampled.verifier, sampled.proposer.rule) == ("token", "in_order")
    assert sampled.round_tokens == 6
    assert strategy(temperature=1.0, draft_rule="last_pass").proposer.rule == "last_pass"
    judged = strategy(temperature=1.0, draft_rule="point_mass")
    assert judged.verifier == "point_mass" and judged.proposer.sampling.greedy
    ordered = strategy(
        temperature=1.0,
        denoising_passes=2,
        draft_rule="reveal_time",
        denoising_order="left_to_right",
    )
    assert ordered.proposer.rule == "in_order"
    chains = strategy(temperature=1.0, chains=3, draft_temperature=1.5)
    assert (chains.num_chains, chains.proposer.sampling.temperature) == (3, 1.5)
    with pytest.raises(ValueError, match=r"block_size is 300.* only 256 positions"):
        strategy(block_size=300)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"denoising_passes": 0}, "denoising_passes must be at least 1: got 0"),
        (
            {"denoising_passes": 2, "draft_rule": "reveal_time", "temperature": 1.0},
            "'reveal_time' would change the target's output: in order 'ancestral' with 2 passes",
        ),
        (
            {"draft_rule": "point_mass", "verifier": "block", "temperature": 1.0},
            "'point_mass' gives the verifier no distributions: got evaluation.verifier 'block'",
        ),
        ({"denoising_passes": 2, "chains": 4}, "drawn from the distributions of one pass"),
    ],
)
def test_settings_that_would_be_biased_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EvaluationConfig(**settings)


def test_a_denoiser_entry_that_makes_no_sense(adapted, tmp_path):
    document = json.loads((adapted / "export" / "config.json").read_text())
    for entry in ("causal", {"context": "both"}, {"mask_token_id": "x"}):
        (tmp_path / "config.json").write_text(json.dumps({**document, "denoiser": entry}))
        with pytest.raises(ValueError, match="'denoiser' is"):
            read_denoiser(tmp_path)


def test_a_folder_without_a_tokenizer_is_taken_by_its_size(from_scratch, run_config, tmp_path):
    """The released MDLM comes without one, and with a row for its mask after GPT-2's tokens."""
    config, params = load_denoiser(from_scratch / "export")
    target = open_target(run_config.target)
    tokens = target.tokenizer.vocab_size
    for rows, fits in ((tokens + 1, True), (tokens + 3, False)):
        folder = tmp_path / str(rows)
        sized = dataclasses.replace(config, vocab_size=rows, mask_token_id=None)
        wide = jax.tree.map(
            lambda leaf, rows=rows: np.resize(leaf, [rows if n == 1024 else n for n in leaf.shape]),
            params,
        )
        save_denoiser(folder, sized, wide)
        if fits:
            assert open_drafter(folder, target=target).model.config.mask_id == tokens
        else:
            with pytest.raises(ValueError, match="no tokenizer to compare with the target's"):
                open_drafter(folder, target=target)
