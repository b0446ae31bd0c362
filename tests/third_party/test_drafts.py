"""Exports in the programs that people use: z-lab's dflash and speculators, beside our own forward.

Four targets (the embedded one with a drafter that knows some answers by heart; random Qwen3, Llama
and GPT-2), each with full and with sliding layers. Every case goes through `jaxspec export` in both
formats; z-lab's own loop decodes 10 prompts, and everything is compared with jaxspec's.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.checkpoints.folders import EMBEDDED_TARGET
from jaxspec.checkpoints.huggingface import (
    load_drafter,
    load_target,
    read_config,
    save_drafter,
    save_target,
)
from jaxspec.cli.export import ExportCommand, export
from jaxspec.config import (
    DrafterConfig,
    GPT2Config,
    LanguageModelConfig,
    Llama3RopeScaling,
    RunConfig,
    TargetConfig,
    TransformerConfig,
)
from jaxspec.data.embedded.corpus import generate_mixture
from jaxspec.data.tokenizer import Tokenizer
from jaxspec.decoding import DecodeRules, Speculative, generate
from jaxspec.drafters.dflash import DFlashProposer
from jaxspec.evals.opening import open_target
from jaxspec.models.dflash import DFlash, resolve_config
from jaxspec.models.registry import make_model
from jaxspec.provenance import provenance, write_json
from tests.parity import trained

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-third-party" / "bin" / "python"
pytestmark = pytest.mark.skipif(
    not (PYTHON.parent.parent / "installed").is_file(),
    reason="no .venv-third-party: bash scripts/setup_third_party.sh makes it"
    + ("" if platform.system() == "Linux" else ", on Linux with Python 3.11"),
)

DRAFTER = trained.SHAPE
PROMPTS, NEW_TOKENS, BLOCK = 10, 18, DRAFTER.block_size
RANDOM = {"vocab_size": 24, "hidden_size": 32, "num_layers": 4, "num_heads": 4}
ROTATED = {"num_kv_heads": 2, "head_dim": 8, "intermediate_size": 48, "tie_embeddings": False}
TARGETS: dict[str, LanguageModelConfig | None] = {
    "quickstart": None,
    "qwen3": TransformerConfig(**RANDOM, **ROTATED),
    "llama": TransformerConfig(
        **RANDOM, **ROTATED, qk_norm=False, rope_theta=500_000.0, rope_scaling=Llama3RopeScaling()
    ),
    "gpt2": GPT2Config(**RANDOM, intermediate_size=64, max_position_embeddings=256),
}
MIXED: dict[str, Any] = {"layer_types": ("sliding_attention", "full_attention")}
NARROW = {**MIXED, "sliding_window": 7}
WIDE = {**MIXED, "sliding_window": 64}
CASES: dict[str, dict[str, Any]] = {
    "quickstart, full": {},
    "quickstart, sliding": WIDE,
    "qwen3, full": {"target_layer_ids": (0, 3)},  # The last block, after the final norm.
    "qwen3, sliding": NARROW,
    "llama, full": {
        "rope_scaling": Llama3RopeScaling(
            factor=4.0, high_freq_factor=3.0, original_max_position_embeddings=24
        )
    },
    "llama, sliding": WIDE,
    "gpt2, full": {},
    "gpt2, sliding": NARROW,
}
COVERED = {
    "quickstart, sliding": "sliding layers of llama, and the full ones of this target, cover it",
    "gpt2, sliding": "sliding layers of qwen3, and the full ones of this target, cover it",
}
"""Cases of --slow."""
of_each_case = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow(COVERED[name]) if name in COVERED else ())
        for name in CASES
    ],
)


def random_run(name: str, folder: Path) -> list[list[int]]:
    """A finished run of a random drafter for a random target; prompts for it."""
    architecture = TARGETS[name.split(", ")[0]]
    assert architecture is not None
    model = make_model(architecture)
    init = jax.jit(lambda key: model.init(key, jnp.zeros((1, 4), jnp.int32))["params"])
    params = init(jax.random.key(3))
    # Logits far apart: texts vary, and no argmax is close.
    params = {**params, "embed": jax.tree.map(lambda leaf: 30 * leaf, params["embed"])}
    save_target(folder / "target", architecture, params)
    drafter = resolve_config(
        dataclasses.replace(DRAFTER, **CASES[name]), target=architecture, mask_token_id=23
    )
    network = DFlash(drafter, architecture.hidden_size)
    states = jnp.zeros((1, 2, len(drafter.target_layer_ids) * architecture.hidden_size))
    first = jax.jit(functools.partial(network.init, method="initialise"))
    # Seeds with which some drafts are accepted.
    seed = 38 if isinstance(architecture, GPT2Config) else 4
    weights = first(jax.random.key(seed), states)["params"]
    write_run(folder, folder / "target", architecture, drafter, weights)
    generator = np.random.default_rng(5)
    return [generator.integers(0, 23, 3 + row % 7).tolist() for row in range(PROMPTS)]


def write_run(
    folder: Path, target: Path, shape: LanguageModelConfig, drafter: DrafterConfig, weights: Any
) -> None:
    config = RunConfig(target=TargetConfig(path=str(target)), drafter=drafter)
    record = provenance(config=config, seed=0)
    save_drafter(
        folder / "run" / "export",
        drafter,
        weights,
        target_config=shape,
        tokenizer_folder=EMBEDDED_TARGET,
        provenance=record,
    )
    write_json(folder / "run" / "provenance.json", record)


def trained_run(folder: Path) -> None:
    """A drafter of the embedded target that knows the answers to a few questions by heart."""
    target = open_target(TargetConfig(path="embedded"))
    network = trained.network(target)
    weights = trained.by_heart(target, network)
    write_run(folder, EMBEDDED_TARGET, target.config, network.config, weights)


def sliding_run(trained: Path, folder: Path) -> None:
    """The weights of a full drafter in a sliding one."""
    shape = read_config(EMBEDDED_TARGET)
    drafter, weights = load_drafter(trained / "run" / "export", target_config=shape)
    slides = dataclasses.replace(drafter, **CASES["quickstart, sliding"])
    write_run(folder, EMBEDDED_TARGET, shape, slides, weights)


def text_prompts() -> list[list[int]]:
    """One question whose answer the drafter knows, and others."""
    tokenizer = Tokenizer.load(EMBEDDED_TARGET)
    known = tokenizer.encode_prompt([{"role": "user", "content": trained.QUESTIONS[0]}])
    examples = generate_mixture("test", PROMPTS - 1)
    return [known, *(tokenizer.encode_prompt(each.conversation[:1])[:30] for each in examples)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, is_slow: bool) -> dict[str, dict[str, Any]]:
    """Each case as the program is asked about it."""
    cases = {}
    names = [name for name in CASES if is_slow or name not in COVERED]
    folders = {name: tmp_path_factory.mktemp(name.replace(", ", "-")) for name in names}
    trained_run(folders["quickstart, full"])
    if is_slow:
        sliding_run(folders["quickstart, full"], folders["quickstart, sliding"])
    for name, folder in folders.items():
        is_embedded = name.startswith("quickstart")
        prompts = text_prompts() if is_embedded else random_run(name, folder)
        for format in ("zlab", "speculators"):
            export(
                ExportCommand(
                    workdir=str(folder / "run"),
                    output=str(folder / format),
                    format=format,
                    dtype="float32",
                )
            )
        family = name.split(", ")[0]
        target = EMBEDDED_TARGET if is_embedded else folder / "target"
        stated = json.loads((folder / "zlab" / "config.json").read_text())
        cases[name] = {
            "target": str(target),
            "zlab": str(folder / "zlab"),
            "speculators": str(folder / "speculators"),
            "speculators_finds_weights": family != "gpt2",
            "is_narrow": CASES[name] is NARROW,
            "layer_ids": stated["dflash_config"]["target_layer_ids"],
            "mask_id": stated["dflash_config"]["mask_token_id"],
            "block_size": BLOCK,
            "prompts": prompts,
            "new_tokens": NEW_TOKENS,
        }
    return cases


@pytest.fixture(scope="module")
def answers(
    exported: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """What the programs draft, all cases in one process: importing torch takes seconds."""
    folder = tmp_path_factory.mktemp("program")
    (folder / "request.json").write_text(json.dumps(exported))
    done = subprocess.run(
        [PYTHON, Path(__file__).parent / "program.py", folder],
        capture_output=True,
        text=True,
        timeout=600,
        env={"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    print(done.stdout)
    return json.loads((folder / "answer.json").read_text())


@dataclasses.dataclass(frozen=True)
class Ours:
    """jaxspec's side of a case."""

    drafts: list[np.ndarray]
    """For each prompt, [anchors, K - 1]."""
    texts: list[list[int]]
    emitted: list[list[int]]


def ours(case: dict[str, Any], answer: dict[str, Any]) -> Ours:
    """Drafts of the decoding pass at the anchors of a text, and the rounds of the decoding loop."""
    config, target_params = load_target(case["target"])
    drafter, drafter_params = load_drafter(case["zlab"], target_config=config)
    model = make_model(config)
    proposer = DFlashProposer(model, DFlash(drafter, config.hidden_size), block_size=BLOCK)
    params = {"target": target_params, "drafter": drafter_params}
    responses = generate(
        Speculative(model, proposer, DecodeRules(NEW_TOKENS)),
        params,
        case["prompts"],
        ids=[f"prompt/{row}" for row in range(PROMPTS)],
        batch_size=PROMPTS,
        seed=0,
    )
    texts = [
        [*prompt, *round["text"]]
        for prompt, round in zip(case["prompts"], answer["zlab"], strict=True)
    ]
    longest = max(map(len, texts))
    tokens_BS = np.array([text + [0] * (longest - len(text)) for text in texts])
    rows_B = np.repeat(np.arange(PROMPTS), [len(each) for each in answer["anchors"]])
    anchors_B = np.concatenate(answer["anchors"])

    @jax.jit
    def drafts(params: Any) -> jax.Array:
        output = model.apply(
            {"params": params["target"]}, jnp.asarray(tokens_BS), capture=proposer.capture
        )
        state = proposer.begin(
            params, tokens_BS[rows_B], output.features_BSE[rows_B], anchors_B, capacity=longest
        )
        logits = proposer.marginal_logits(params, state, jnp.asarray(tokens_BS[rows_B, anchors_B]))
        return logits.argmax(-1)

    all_drafts = np.asarray(drafts(params))
    return Ours(
        [all_drafts[rows_B == row] for row in range(PROMPTS)],
        [list(response.tokens) for response in responses],
        [list(response.emitted) for response in responses],
    )


@pytest.fixture(scope="module")
def mine_of(
    exported: dict[str, dict[str, Any]], answers: dict[str, dict[str, Any]]
) -> Callable[[str], Ours]:
    return functools.cache(lambda name: ours(exported[name], answers[name]))


def full_rounds(emitted: list[int]) -> list[int]:
    """The rounds that the limit does not cut: z-lab's loop drafts a shorter block there."""
    starts = np.concatenate([[0], np.cumsum(emitted)[:-1]])
    return [n for n, start in zip(emitted, starts, strict=True) if start + BLOCK <= NEW_TOKENS]


@of_each_case
def test_zlab_drafts_and_accepts_the_same(
    name: str, answers: dict[str, dict[str, Any]], mine_of: Callable[[str], Ours]
) -> None:
    answer, mine = answers[name], mine_of(name)
    drafted = equal = accepted = 0
    for row in range(PROMPTS):
        theirs = answer["zlab"][row]
        assert theirs["text"] == mine.texts[row]
        rounds = full_rounds(theirs["produced"])
        assert full_rounds(mine.emitted[row]) == rounds
        accepted += sum(rounds) - len(rounds)
        starts = np.concatenate([[0], np.cumsum(rounds)[:-1]]).astype(int)
        for start, draft in zip(starts, theirs["drafts"], strict=False):
            equal += int((mine.drafts[row][start] == draft).sum())
            drafted += len(draft)
    print(f"{name}: z-lab's dflash drafts {equal} of {drafted} equal, {accepted} accepted")
    assert equal == drafted > 20 * PROMPTS
    assert accepted > 0


@of_each_case
def test_speculators_and_the_reference_draft_the_same(
    name: str, answers: dict[str, dict[str, Any]], mine_of: Callable[[str], Ours]
) -> None:
    answer, mine = answers[name], mine_of(name)
    total = sum(each.size for each in mine.drafts)

    def equal(theirs: list[Any], to: list[Any]) -> int:
        pairs = zip(theirs, to, strict=True)
        return int(sum((np.array(left) == np.array(right)).sum() for left, right in pairs))

    figures = {
        "the reference": equal(answer["reference"], mine.drafts),
        "speculators": equal(answer["speculators"], mine.drafts),
    }
    print(f"{name}: {figures} of {total} equal")
    assert figures["the reference"] == total
    if CASES[name] is not NARROW:
        assert figures["speculators"] == total
        assert walked(answer["speculators"], mine) == [full_rounds(each) for each in mine.emitted]
    else:
        # Its training pass counts the window from the anchor; servers count it from each slot.
        assert equal(answer["speculators"], answer["reference_from_anchor"]) == total
        assert figures["speculators"] < total


@of_each_case
def test_both_formats_are_read_alike(name: str, exported: dict[str, dict[str, Any]]) -> None:
    case, target = exported[name], read_config(exported[name]["target"])
    first, second = (
        load_drafter(case[format], target_config=target) for format in ("zlab", "speculators")
    )
    assert dataclasses.replace(second[0], is_causal=first[0].is_causal) == first[0]
    assert second[0].reach == first[0].reach
    jax.tree.map(np.testing.assert_array_equal, first[1], second[1])


def walked(drafts: list[Any], mine: Ours) -> list[list[int]]:
    """The rounds of greedy decoding with these drafts, one list for each anchor of a text."""
    rounds = []
    for text, at in zip(mine.texts, drafts, strict=True):
        emitted, start = [], 0
        while start + BLOCK <= NEW_TOKENS:
            matches = [a == b for a, b in zip(at[start], text[start + 1 :], strict=False)]
            agreed = matches.index(False) + 1 if False in matches else BLOCK
            emitted.append(min(agreed, NEW_TOKENS - 1 - start))  # The first token is the prompt's.
            start += emitted[-1]
        rounds.append(emitted)
    return rounds
