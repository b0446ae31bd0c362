"""Targets that know no turns, from the folder that transformers writes to the result file."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from jaxspec.checkpoints.huggingface import save_drafter
from jaxspec.config import (
    DataConfig,
    DrafterConfig,
    EvaluationConfig,
    RunConfig,
    TargetConfig,
)
from jaxspec.data.chat_template import PLAIN
from jaxspec.evals.opening import open_target
from jaxspec.evals.speculative.runner import evaluate
from jaxspec.models.dflash import DFlash, resolve_config
from jaxspec.models.gpt2 import GPT2
from tests.evals import drafter_folders

END = "<|endoftext|>"
STORIES = [
    f"Once upon a time there was a little {who} who liked to {what} all day. One day the {who} met "
    f"a {friend}, and they went to {what} together until the sun went down."
    for who in ("cat", "dog", "bird", "girl", "boy", "frog")
    for what in ("run", "sing", "draw", "jump")
    for friend in ("duck", "bear", "fish", "king")
]
SETTINGS = EvaluationConfig(
    benchmarks=("tinystories", "mt_bench"),
    prompts=3,
    passage_tokens=6,
    max_new_tokens=16,
    batch_size=3,
    timing_prompts=0,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for folder in ("tinystories", "mt_bench"):
        (root / "raw" / folder).mkdir(parents=True)
    text = f"\n{END}\n".join([*STORIES, "cut"])
    (root / "raw/tinystories/tinystories_sample.txt").write_text(text, encoding="utf-8")
    questions = json.dumps({"turns": ["Who was it?", "And then?"]})
    (root / "raw/mt_bench/question.jsonl").write_text(questions)
    return DataConfig(raw_dir=str(root / "raw"), data_dir=str(root / "prepared"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A random GPT-2 as transformers writes it, with vocab.json and merges.txt."""
    torch = pytest.importorskip("torch", reason="torch is not installed: it makes the folder")
    import tokenizers
    import transformers

    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(STORIES, vocab_size=320, special_tokens=[END], show_progress=False)
    folder = tmp_path_factory.mktemp("hub") / "gpt2"
    end = trained.token_to_id(END)
    config = transformers.GPT2Config(
        vocab_size=trained.get_vocab_size(),
        n_positions=96,
        n_embd=32,
        n_layer=3,
        n_head=2,
        bos_token_id=end,
        eos_token_id=end,
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Far from where it starts, so that responses vary.
            if ".ln_" not in name:
                parameter.copy_(0.4 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    trained.save_model(str(folder))
    return folder


@pytest.fixture(scope="module")
def dflash(gpt2, tmp_path_factory):
    """A random drafter for it; the end of text stands for the mask."""
    bundle = open_target(TargetConfig(path=str(gpt2)))
    config = resolve_config(
        DrafterConfig(block_size=4, target_layer_ids=(0, 1), num_layers=1),
        target=bundle.config,
        mask_token_id=bundle.tokenizer.eos_id,
    )
    module = DFlash(config, bundle.config.hidden_size)
    block = jnp.zeros((1, 2, 2 * bundle.config.hidden_size))
    params = jax.jit(module.init, static_argnames="method")(
        jax.random.key(1), block, method="initialise"
    )["params"]
    folder = tmp_path_factory.mktemp("run")
    save_drafter(folder / "export", config, params, target_config=bundle.config)
    return folder


def test_a_gpt2_of_transformers_is_evaluated(gpt2, dflash, data, tmp_path):
    config = RunConfig(
        name="test", target=TargetConfig(path=str(gpt2)), data=data, evaluation=SETTINGS
    )
    lines = []
    result = evaluate(
        config,
        workdirs=[dflash],
        kinds=("dflash",),
        output=tmp_path / "results.json",
        echo=lines.append,
    )
    rows = {row["benchmark"]: row for row in result["results"]}
    assert list(rows) == [*SETTINGS.benchmarks]
    for benchmark, row in rows.items():
        assert row["mismatched_prompts"] == 0, "outputs are the target's own, token by token"
        assert row["turns"] == (3 if benchmark == "tinystories" else 2)
        assert row["tokens"] > row["turns"], "something was decoded"
    assert sum("gpt2 has no chat template" in line for line in lines) == 1


def test_responses_are_those_of_transformers(gpt2, data):
    """The same folder, generated from by transformers itself."""
    import torch
    import transformers

    from jaxspec.evals.benchmarks import load_benchmark
    from jaxspec.evals.speculative.runner import Evaluation

    target = open_target(TargetConfig(path=str(gpt2)))
    assert isinstance(target.model, GPT2)
    evaluation = Evaluation(SETTINGS, target, echo=lambda line: None)
    examples = load_benchmark("tinystories", prompts=3, data=data, seed=0)
    reference = evaluation.reference("tinystories", examples)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(gpt2).eval()
    for prompt, response, example in zip(
        reference.prompts, reference.responses, examples, strict=True
    ):
        assert len(prompt) == SETTINGS.passage_tokens
        assert example.running_text.startswith(target.tokenizer.decode(prompt))
        text = list(prompt)
        for token in response.tokens:
            with torch.no_grad():
                assert int(theirs(torch.tensor([text])).logits[0, -1].argmax()) == token
            text.append(token)
    assert len({token for r in reference.responses for token in r.tokens}) > 5


def test_other_families_without_a_template_are_given_contents(data, tmp_path):
    folder, _ = drafter_folders.write_folders(tmp_path)
    # What else is set is that of other tests, which have the same programs.
    settings = dataclasses.replace(
        drafter_folders.SETTINGS, benchmarks=("mt_bench",), timing_prompts=0
    )
    config = RunConfig(
        name="test", target=TargetConfig(path=str(folder)), data=data, evaluation=settings
    )
    for has_template in (True, False):
        if not has_template:
            file = folder / "tokenizer_config.json"
            stated = json.loads(file.read_text())
            del stated["chat_template"]
            file.write_text(json.dumps(stated))
        lines = []
        result = evaluate(
            config,
            workdirs=(),
            kinds=("ngram",),
            output=tmp_path / f"{has_template}.json",
            echo=lines.append,
        )
        assert result["results"][0]["mismatched_prompts"] == 0
        assert any("no chat template" in line for line in lines) != has_template
    # Elsewhere it stays an error: the template of a chat model may have been lost.
    turns = [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "I."},
        {"role": "user", "content": "Why?"},
    ]
    bundle = open_target(config.target)
    with pytest.raises(ValueError, match="no chat template"):
        bundle.tokenizer.encode_prompt(turns)
    plain = open_target(config.target, default_template=PLAIN).tokenizer
    assert plain.encode_prompt(turns) == [
        *plain.encode("Who?I."),
        plain.eos_id,
        *plain.encode("Why?"),
    ]
