"""Speed of decoding: tokens/s of every strategy, the parts of a round, and transformers' speed.

    python benchmarks/decode.py --drafter runs/full --assistant runs/autoregressive \
        --output runs/decode.json
    python benchmarks/decode.py --only shares          the parts of a round, on random weights

speed         tokens/s (prefill included) of whole prompts through `generate`, greedy, at several
              batch sizes: the target alone, DFlash blocks and trees, adaptive blocks, prompt
              look-up, and ordinary speculative decoding. Strategies take turns; the figures are
              medians over repeats.
transformers  the same prompts and weights in transformers' own generate() on torch: plain, prompt
              look-up, assisted. Needs torch (extra "test").
shares        the share of a round that draft, target pass, verification rule and bookkeeping
              (finish) take, each timed by itself, at vocabularies of 4,096 and 151,936, greedy and
              sampled.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.config import DrafterConfig, EvaluationConfig, RunConfig, TransformerConfig
from jaxspec.decoding import (
    ChainSpeculative,
    DecodeRules,
    Prompts,
    Speculative,
    TreeSpeculative,
    generate,
)
from jaxspec.decoding.generate import Strategy
from jaxspec.drafters.dflash import DFlashProposer
from jaxspec.evals.benchmarks import load_benchmark
from jaxspec.evals.clock import median_seconds
from jaxspec.evals.opening import (
    DrafterBundle,
    TargetBundle,
    open_drafter,
    open_target,
    untrained_drafter,
)
from jaxspec.evals.speculative.strategies import build_strategy
from jaxspec.evals.speculative.timing import measure_round_parts
from jaxspec.models.dflash import DFlash, resolve_config
from jaxspec.models.transformer import Transformer
from jaxspec.ops.sampling import Sampling
from jaxspec.provenance import provenance, write_json

PARTS = ("speed", "transformers", "shares")
ROUND_RULES = ("greedy", "token", "block", "point_mass", "tree", "greedy tree", "chains")
Row = dict[str, Any]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="", help="JSON file to write")
    parser.add_argument(
        "--only", choices=PARTS, nargs="+", default=PARTS, help="parts to run (all)"
    )
    parser.add_argument("--drafter", default="", help="folder of a DFlash drafter")
    parser.add_argument("--assistant", default="", help="folder of an autoregressive drafter")
    parser.add_argument("--target", default="embedded", help="folder of the target (embedded)")
    parser.add_argument("--benchmark", default="embedded/code", help="prompts (embedded/code)")
    parser.add_argument("--prompts", type=int, default=32, help="prompts (32)")
    parser.add_argument("--new-tokens", type=int, default=128, help="longest response (128)")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[1, 4, 16], help="batch sizes (1 4 16)"
    )
    parser.add_argument("--tree-nodes", type=int, default=16, help="nodes of the tree (16)")
    parser.add_argument("--repeats", type=int, default=5, help="timed repeats (5)")
    shares = parser.add_argument_group("shares")
    shares.add_argument(
        "--vocabularies",
        type=int,
        nargs="+",
        default=[4096, 151_936],
        help="vocabulary sizes (4096 151936)",
    )
    shares.add_argument(
        "--rules", choices=ROUND_RULES, nargs="+", default=ROUND_RULES, help="kinds of rounds (all)"
    )
    shares.add_argument("--width", type=int, default=512, help="hidden size (512)")
    shares.add_argument("--layers", type=int, default=4, help="layers of the target (4)")
    shares.add_argument("--block", type=int, default=8, help="block size (8)")
    return parser.parse_args()


def main() -> None:
    """Runs the parts and prints a line for each figure."""
    args = parse()
    config = RunConfig(
        evaluation=EvaluationConfig(
            benchmarks=(args.benchmark,), prompts=args.prompts, max_new_tokens=args.new_tokens
        )
    )
    config = dataclasses.replace(
        config, target=dataclasses.replace(config.target, path=args.target)
    )
    document: dict[str, Any] = {"provenance": provenance(config=config, seed=0)}
    if {"speed", "transformers"} & set(args.only):
        case = Case.load(args, config)
        if "speed" in args.only:
            document["speed"] = speeds(case, args)
        if "transformers" in args.only:
            document["transformers"] = transformers_speeds(case, args)
    if "shares" in args.only:
        document["shares"] = shares(args)
    if args.output:
        write_json(args.output, document)
        print(f"Written: {args.output}")


@dataclasses.dataclass
class Case:
    """A target, drafters for it, and prompts."""

    config: RunConfig
    target: TargetBundle
    drafters: dict[str, DrafterBundle]
    prompts: list[list[int]]
    ids: list[str]

    @classmethod
    def load(cls, args: argparse.Namespace, config: RunConfig) -> Case:
        """Opens the folders; a kind without one is left out, with a note."""
        target = open_target(config.target)
        drafters = {kind: untrained_drafter(kind) for kind in ("ngram", "none")}
        for kind, folder in (("dflash", args.drafter), ("autoregressive", args.assistant)):
            if folder:
                drafters[kind] = open_drafter(folder, target=target)
            else:
                print(f"No folder for the {kind} drafter: its rows are left out.")
        examples = load_benchmark(args.benchmark, prompts=args.prompts, data=config.data, seed=0)
        prompts = [target.tokenizer.encode_prompt(example.prompt_turns) for example in examples]
        return cls(config, target, drafters, prompts, [example.id for example in examples])

    def strategy(self, kind: str, **changes: Any) -> tuple[Strategy, Any]:
        """A strategy and its parameters."""
        drafter = self.drafters[kind]
        settings = dataclasses.replace(self.config.evaluation, **changes)
        strategy = build_strategy(settings, self.target, drafter)
        if kind == "none":
            return strategy, self.target.params
        return strategy, {"target": self.target.params, "drafter": drafter.params}


def speeds(case: Case, args: argparse.Namespace) -> list[Row]:
    """Rows of the part "speed"."""
    chosen: dict[str, tuple[Strategy, Any]] = {"autoregressive": case.strategy("none")}
    if "dflash" in case.drafters:
        block = case.drafters["dflash"].block_size
        chosen["dflash"] = case.strategy("dflash")
        chosen["tree"] = case.strategy("dflash", tree_nodes=args.tree_nodes)
        sizes = tuple(sorted({1, 2, max(2, block // 2), block}))
        chosen["adaptive"] = case.strategy("dflash", adaptive_sizes=sizes)
    chosen["ngram"] = case.strategy("ngram")
    if "autoregressive" in case.drafters:
        chosen["small autoregressive"] = case.strategy("autoregressive")
    rows = []
    for batch in args.batches:
        answers: dict[str, Any] = {}

        def run(name: str, batch: int = batch, answers: dict[str, Any] = answers) -> None:
            strategy, params = chosen[name]
            answers[name] = generate(strategy, params, case.prompts, ids=case.ids, batch_size=batch)

        seconds = median_seconds(
            {name: (lambda name=name: run(name)) for name in chosen}, repeats=args.repeats
        )
        baseline = [response.tokens for response in answers["autoregressive"]]
        for name, responses in answers.items():
            tokens = sum(len(response.tokens) for response in responses)
            rounds = sum(len(response.emitted) for response in responses)
            emitted = sum(sum(response.emitted) for response in responses)
            row = {
                "strategy": name,
                "batch": batch,
                "tokens_per_s": tokens / seconds[name],
                "speedup": seconds["autoregressive"] / seconds[name],
                "tau": emitted / rounds if rounds else 1.0,
                "tokens": tokens,
                "mismatched_prompts": sum(
                    ours.tokens != theirs for ours, theirs in zip(responses, baseline, strict=True)
                ),
            }
            rows.append(row)
            print(
                f"speed  batch {batch:>2}  {name:<20} {row['tokens_per_s']:>8,.0f} tokens/s  "
                f"{row['speedup']:.2f}x  tau {row['tau']:.2f}  "
                f"{row['mismatched_prompts']} of {len(responses)} outputs differ"
            )
    return rows


def transformers_speeds(case: Case, args: argparse.Namespace) -> list[Row]:
    """Rows of the part "transformers": batch 1, greedy, the same weights in both libraries."""
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError:
        print('transformers  skipped: torch is not installed (extra "test").')
        return []
    from jaxspec.checkpoints.folders import exported_weights, target_folder

    target, rules = case.target, case.config.evaluation
    torch_target = AutoModelForCausalLM.from_pretrained(
        target_folder(args.target), dtype=torch.float32
    ).eval()
    common: dict[str, Any] = {
        "max_new_tokens": rules.max_new_tokens,
        "do_sample": False,
        "eos_token_id": list(target.stop_ids),
        "pad_token_id": target.tokenizer.pad_id,
        "suppress_tokens": list(target.suppressed_ids(rules.suppress)) or None,
    }
    block = case.drafters["ngram"].block_size
    options: dict[str, dict[str, Any]] = {
        "autoregressive": {},
        "ngram": {"prompt_lookup_num_tokens": block - 1},
    }
    chosen: dict[str, tuple[Strategy, Any]] = {
        "autoregressive": case.strategy("none"),
        "ngram": case.strategy("ngram"),
    }
    if "autoregressive" in case.drafters:
        name = "small autoregressive"
        assistant = AutoModelForCausalLM.from_pretrained(
            exported_weights(Path(args.assistant)), dtype=torch.float32
        ).eval()
        chosen[name] = case.strategy("autoregressive")
        # The same number of drafts in every round, whatever the assistant's confidence.
        assistant.generation_config.num_assistant_tokens = chosen[name][0].round_tokens - 1
        assistant.generation_config.num_assistant_tokens_schedule = "constant"
        assistant.generation_config.assistant_confidence_threshold = 0.0
        options[name] = {"assistant_model": assistant}
    answers: dict[str, list[tuple[int, ...]]] = {}

    def ours(name: str) -> None:
        strategy, params = chosen[name]
        responses = generate(strategy, params, case.prompts, ids=case.ids, batch_size=1)
        answers[f"jaxspec {name}"] = [response.tokens for response in responses]

    def theirs(name: str) -> None:
        found = []
        with torch.inference_mode():
            for prompt in case.prompts:
                ids = torch.tensor([prompt])
                whole = torch_target.generate(
                    ids, attention_mask=torch.ones_like(ids), **common, **options[name]
                )
                found.append(tuple(whole[0, len(prompt) :].tolist()))
        answers[f"transformers {name}"] = found

    runs: dict[str, Callable[[], None]] = {}
    for name in options:
        runs[f"jaxspec {name}"] = lambda name=name: ours(name)
        runs[f"transformers {name}"] = lambda name=name: theirs(name)
    seconds = median_seconds(runs, repeats=max(1, args.repeats // 2))
    rows = []
    for name in options:
        mine, other = answers[f"jaxspec {name}"], answers[f"transformers {name}"]
        rates = {
            library: sum(map(len, answers[f"{library} {name}"])) / seconds[f"{library} {name}"]
            for library in ("jaxspec", "transformers")
        }
        row = {
            "strategy": name,
            "batch": 1,
            "tokens_per_s": rates["jaxspec"],
            "transformers_tokens_per_s": rates["transformers"],
            "ratio": rates["jaxspec"] / rates["transformers"],
            "different_outputs": sum(a != b for a, b in zip(mine, other, strict=True)),
        }
        rows.append(row)
        print(
            f"transformers  {name:<20} jaxspec {rates['jaxspec']:>7,.0f} tokens/s, transformers "
            f"{rates['transformers']:>6,.0f}: ratio {row['ratio']:.1f}; "
            f"{row['different_outputs']} of {len(mine)} outputs differ"
        )
    return rows


def shares(args: argparse.Namespace) -> list[Row]:
    """Rows of the part "shares", on random weights: the time does not depend on them."""
    rows = []
    for vocabulary in args.vocabularies:
        model, drafter, params = random_pair(args, vocabulary)
        for batch in args.batches:
            for rule in args.rules:
                strategy = round_strategy(model, drafter, rule, args.block)
                row = {"vocabulary": vocabulary, "batch": batch, "rule": rule}
                row |= round_shares(strategy, params, batch, repeats=args.repeats)
                rows.append(row)
                print(
                    f"shares  V {vocabulary:>7,}  batch {batch:>2}  {rule:<12} "
                    f"round {row['round_ms']:>7.2f} ms: draft {row['draft']:.0%}, target "
                    f"{row['target']:.0%}, rule {row['rule_share']:.1%}, finish {row['finish']:.1%}"
                )
    return rows


def random_pair(args: argparse.Namespace, vocabulary: int) -> tuple[Transformer, DFlash, Any]:
    """A target and a one-layer drafter."""
    heads = max(1, args.width // 64)
    config = TransformerConfig(
        vocab_size=vocabulary,
        hidden_size=args.width,
        num_layers=args.layers,
        num_heads=heads,
        num_kv_heads=max(1, heads // 2),
        head_dim=64,
        intermediate_size=3 * args.width,
        max_position_embeddings=4096,
        unroll_layers=True,
    )
    model = Transformer(config)
    drafter = DFlash(
        resolve_config(
            DrafterConfig(block_size=args.block, num_features=3, num_layers=1, unroll_layers=True),
            target=config,
            mask_token_id=vocabulary - 1,
        ),
        args.width,
    )
    target_params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    features = jnp.zeros((1, 2, 3 * args.width))
    drafter_params = drafter.init(jax.random.key(1), features, method="initialise")["params"]
    return model, drafter, {"target": target_params, "drafter": drafter_params}


def round_strategy(model: Transformer, drafter: DFlash, rule: str, block: int) -> Speculative:
    """The strategy whose rounds are timed."""
    rules = DecodeRules(512)
    warm = Sampling(1.0)
    proposer = DFlashProposer(model, drafter, block)
    sampled = dataclasses.replace(proposer, sampling=warm)
    if rule == "greedy":
        return Speculative(model, proposer, rules)
    if rule == "greedy tree":
        return TreeSpeculative(model, proposer, rules, num_nodes=32)
    if rule == "tree":
        return TreeSpeculative(model, proposer, rules, sampling=warm, num_nodes=32)
    if rule == "chains":
        return ChainSpeculative(model, sampled, rules, sampling=warm, num_chains=4)
    chosen = proposer if rule == "point_mass" else sampled
    return Speculative(model, chosen, rules, rule, warm)


def round_shares(strategy: Speculative, params: Any, batch: int, *, repeats: int) -> Row:
    """Milliseconds of a round in the real loop, and the share of each part timed by itself."""
    length = 128
    prompts = Prompts(
        tokens_BS=jax.random.randint(jax.random.key(2), (batch, length), 0, 1000),
        lengths_B=jnp.full(batch, length, jnp.int32),
        active_B=jnp.ones(batch, bool),
        keys_B=jax.random.split(jax.random.key(3), batch),
    )
    parts = measure_round_parts(strategy, params, prompts, capacity=768, repeats=repeats, turns=5)
    shares = {
        "draft": parts.draft_ms / parts.round_ms,
        "target": parts.target_ms / parts.round_ms,
        "rule_share": parts.rule_ms / parts.round_ms,
        "finish": parts.finish_ms / parts.round_ms,
    }
    return {"round_ms": parts.round_ms, **shares}


if __name__ == "__main__":
    main()
