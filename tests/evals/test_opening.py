"""What a folder holds, and what an opened drafter says about itself."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import pytest
import tokenizers

from jaxspec.checkpoints.families.registry import open_folder
from jaxspec.checkpoints.folders import EMBEDDED_TARGET
from jaxspec.checkpoints.huggingface import save_target
from jaxspec.config import (
    EvaluationConfig,
    GPTNeoXConfig,
    MaskedTransformerConfig,
    TargetConfig,
    TransformerConfig,
)
from jaxspec.data.tokenizer import EMBEDDED_FOLDER
from jaxspec.decoding import generate
from jaxspec.evals.opening import (
    is_diffusion_target,
    open_diffusion_target,
    open_drafter,
    open_target,
    untrained_drafter,
)
from jaxspec.evals.speculative.strategies import build_autoregressive, build_strategy
from jaxspec.models.registry import make_model
from jaxspec.ops.sampling import Sampling
from tests.evals.diffusion_folders import write_model


@pytest.fixture(scope="module")
def target():
    return open_target(TargetConfig())


def test_the_class_of_the_configuration_tells_what_a_folder_holds(tmp_path):
    assert type(open_folder(EMBEDDED_TARGET).config) is TransformerConfig
    for llada in (False, True):
        folder = write_model(tmp_path / str(llada), llada=llada, num_heads=2, num_kv_heads=2)
        assert type(open_folder(folder).config) is MaskedTransformerConfig
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    with pytest.raises(ValueError, match="BertModel"):
        assert open_folder(tmp_path).family


def test_a_language_model_drafts_token_by_token(target):
    drafter = open_drafter(EMBEDDED_TARGET, target=target)
    assert (drafter.kind, drafter.loss, drafter.block_size) == (
        "autoregressive", "autoregressive", 5,
    )  # fmt: skip
    proposer = drafter.proposer(target, block_size=3, sampling=Sampling(0.0))
    assert proposer.block_size == 3
    assert proposer.suppressed_ids == (target.mask_id,)


def test_kinds_without_a_folder(target):
    drafter = untrained_drafter("ngram")
    assert (drafter.name, drafter.loss, drafter.seed) == ("ngram", "ngram", None)
    assert drafter.proposer(target, sampling=Sampling(0.0)).block_size == 8
    assert untrained_drafter("none").entry.drafts is False


def test_a_drafter_that_cannot_follow_is_named(target, tmp_path):
    folder = write_model(tmp_path / "short", max_position_embeddings=8)
    drafter = open_drafter(folder, target=target)
    with pytest.raises(ValueError, match=r"^short: A block of 9 slots is longer"):
        drafter.proposer(target, sampling=Sampling(0.0))


def test_a_gpt_neox_knows_no_turns(tmp_path):
    """Its folder as Pythia's: tokenizer.json, and no chat template."""
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(["how many miles is it"], special_tokens=["<|endoftext|>"])
    config = GPTNeoXConfig(
        vocab_size=trained.get_vocab_size() + 3, hidden_size=32, num_layers=2, num_heads=4,
        intermediate_size=64, rotary_dim=2,
    )  # fmt: skip
    model = make_model(config)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    save_target(tmp_path, config, params)
    trained.save(str(tmp_path / "tokenizer.json"))
    opened = open_target(TargetConfig(path=str(tmp_path)))
    end = trained.token_to_id("<|endoftext|>")
    assert (opened.stop_ids, opened.mask_id) == ((end,), None)
    assert not opened.tokenizer.has_template
    question = [{"role": "user", "content": "how many miles"}]
    prompt = opened.tokenizer.encode_prompt(question)
    assert opened.tokenizer.decode(prompt) == "how many miles"
    settings = EvaluationConfig(max_new_tokens=12)
    strategy = build_strategy(settings, opened, untrained_drafter("ngram"))
    alone = build_autoregressive(settings, opened)
    drafted = generate(strategy, {"target": opened.params, "drafter": {}}, [prompt], ids=["a"])
    assert drafted[0].tokens == generate(alone, opened.params, [prompt], ids=["a"])[0].tokens


@pytest.mark.parametrize("is_special", [True, False])
def test_only_a_special_token_needs_no_row_of_the_embedding(tmp_path, is_special):
    """As that of an image in Gemma 3's text models."""
    folder = shutil.copytree(EMBEDDED_TARGET, tmp_path / "folder")
    shutil.copytree(EMBEDDED_FOLDER, folder, dirs_exist_ok=True)
    file = folder / "tokenizer.json"
    document = json.loads(file.read_text())
    image = {"id": 1024, "content": "<image>", "special": is_special}
    document["added_tokens"].append({**document["added_tokens"][0], **image})
    file.write_text(json.dumps(document))
    if not is_special:
        with pytest.raises(ValueError, match=r"has 1025 ids, but .* only 1024 rows"):
            open_target(TargetConfig(path=str(folder)))
        return
    opened = open_target(TargetConfig(path=str(folder)))
    assert opened.num_tokens == opened.config.vocab_size == 1024
    assert opened.unused_ids == () and 1024 not in opened.reserved_ids


def test_a_diffusion_target_needs_no_weights_to_be_judged(tmp_path):
    folder = write_model(tmp_path / "model")
    asked = TargetConfig(path=str(folder))
    assert is_diffusion_target(asked) and not is_diffusion_target(TargetConfig())
    opened = open_diffusion_target(asked)
    assert opened.params is None and opened.with_weights().params is not None
    assert opened.mask_id not in {*opened.stop_ids, *opened.reserved_ids}
