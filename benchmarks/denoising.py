"""Speed of masked-diffusion drafters: accepted length, passes and tokens/s over a grid of settings.

    python benchmarks/denoising.py --config configs/real_text_mdlm.py \
        --workdir runs/real_text/mdlm --drafts 4 8 16 --passes 1 2 8 --prompts 6 \
        --output runs/real_text/passes.json

Prompts are decoded one at a time. For every row the target alone answers them again, so that the
row's speed-up compares like with like. Drafters of other kinds are measured with every number of
drafts. A Markdown table is printed at the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from typing import Any

from jaxspec.cli.configuration import load_config
from jaxspec.config import EvaluationConfig
from jaxspec.decoding import Response, generate
from jaxspec.decoding.generate import Strategy
from jaxspec.evals.benchmarks import Reference, load_benchmark
from jaxspec.evals.opening import DrafterBundle, TargetBundle, open_drafter, open_target
from jaxspec.evals.speculative.runner import Evaluation
from jaxspec.evals.speculative.strategies import build_autoregressive, build_strategy
from jaxspec.provenance import provenance, write_json

Row = dict[str, Any]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="names the target and the evaluation")
    parser.add_argument("--workdir", nargs="+", required=True, help="folders of drafters")
    parser.add_argument("--output", required=True, help="JSON file to write")
    parser.add_argument("--drafts", type=int, nargs="+", default=[8], help="drafts per round (8)")
    parser.add_argument("--passes", type=int, nargs="+", default=[1], help="denoising passes (1)")
    parser.add_argument("--chains", type=int, nargs="+", default=[0], help="chains; 0: one block")
    parser.add_argument(
        "--temperatures", type=float, nargs="+", default=[0.0], help="of the target (0)"
    )
    parser.add_argument(
        "--draft-temperature", type=float, default=None, help="of sampled drafts (the target's)"
    )
    parser.add_argument("--verifier", default="auto", help="rule that judges chains (auto)")
    parser.add_argument("--order", default="ancestral", help="order of denoising (ancestral)")
    parser.add_argument("--prompts", type=int, default=12, help="prompts of each benchmark (12)")
    parser.add_argument("--benchmarks", nargs="+", default=[], help="data sets (the config's)")
    return parser.parse_args()


def main() -> None:
    """Measures every combination that the command line names."""
    args = parse()
    run = load_config(args.config)
    target = open_target(run.target)
    drafters = [open_drafter(folder, target=target) for folder in args.workdir]
    benchmarks = args.benchmarks or run.evaluation.benchmarks
    base = dataclasses.replace(run.evaluation, prompts=args.prompts)
    rows: list[Row] = []
    for temperature in args.temperatures:
        warm = dataclasses.replace(
            base, temperature=temperature, draft_temperature=args.draft_temperature
        )
        references = [
            Evaluation(warm, target, print).reference(
                name,
                load_benchmark(name, prompts=args.prompts, data=run.data, seed=base.seed),
            )
            for name in benchmarks
        ]
        for drafter in drafters:
            for settings in combinations(warm, drafter, args):
                row = measure(settings, target, drafter, references)
                rows.append(row)
                print(table([row]).splitlines()[-1], flush=True)
                record = provenance(config=run, seed=base.seed)
                write_json(args.output, {"provenance": record, "rows": rows})
    print(table(rows))


def combinations(
    settings: EvaluationConfig, drafter: DrafterBundle, args: argparse.Namespace
) -> list[EvaluationConfig]:
    """What is measured of one drafter; only masked-diffusion drafters have several passes."""
    passes = args.passes if drafter.entry.denoises else [1]
    return [
        dataclasses.replace(
            settings,
            block_size=drafts + 1,
            denoising_passes=count,
            denoising_order=args.order,
            chains=chains,
            verifier=args.verifier if chains and settings.temperature else "auto",
        )
        for drafts in args.drafts
        for chains in args.chains
        for count in passes
    ]


def measure(
    settings: EvaluationConfig,
    target: TargetBundle,
    drafter: DrafterBundle,
    references: list[Reference],
) -> Row:
    """One row of the table, over all benchmarks."""
    strategy = build_strategy(settings, target, drafter)
    plain = build_autoregressive(settings, target)
    both = {"target": target.params, "drafter": drafter.params}
    total, differ = {"tokens": 0, "rounds": 0, "emitted": 0, "passes": 0}, 0
    seconds = {"plain": 0.0, "ours": 0.0}
    plain_tokens = 0
    by_benchmark = []
    for reference in references:
        timed_plain = timed(plain, target.params, reference, settings)
        responses, ours_s = timed(strategy, both, reference, settings)
        seconds["plain"] += timed_plain[1]
        seconds["ours"] += ours_s
        plain_tokens += sum(len(r.tokens) for r in timed_plain[0])
        emitted = sum(sum(r.emitted) for r in responses)
        rounds = sum(len(r.emitted) for r in responses)
        by_benchmark.append(emitted / max(1, rounds))
        total["tokens"] += sum(len(r.tokens) for r in responses)
        total["emitted"] += emitted
        total["rounds"] += rounds
        total["passes"] += sum(r.draft_passes for r in responses)
        differ += sum(
            x.tokens != y.tokens for x, y in zip(responses, reference.responses, strict=True)
        )
    rate = total["tokens"] / seconds["ours"]
    plain_rate = plain_tokens / seconds["plain"]
    return {
        "drafter": drafter.name,
        "kind": drafter.kind,
        "loss": drafter.loss,
        "temperature": settings.temperature,
        "drafts": settings.block_size - 1,
        "passes": settings.denoising_passes if drafter.entry.denoises else None,
        "chains": settings.chains,
        "verifier": strategy.verifier,
        "tau": total["emitted"] / total["rounds"],
        "tau_by_benchmark": by_benchmark,
        "passes_per_round": total["passes"] / total["rounds"],
        "tokens_per_s": rate,
        "plain_tokens_per_s": plain_rate,
        "speedup": rate / plain_rate,
        "prompts": sum(len(reference.prompts) for reference in references),
        "differ": differ if settings.temperature == 0 else None,
    }


def timed(
    strategy: Strategy, params: Any, reference: Reference, settings: EvaluationConfig
) -> tuple[list[Response], float]:
    """Answers decoded one at a time, and the seconds they took without compiling."""

    def answer() -> list[Response]:
        return generate(
            strategy,
            params,
            reference.prompts,
            ids=reference.ids,
            batch_size=1,
            seed=settings.seed,
        )

    lengths = {}
    for index, prompt in enumerate(reference.prompts):
        lengths.setdefault(len(prompt).bit_length(), index)
    for index in lengths.values():
        generate(
            strategy,
            params,
            [reference.prompts[index]],
            ids=[reference.ids[index]],
            batch_size=1,
            seed=settings.seed,
        )
    started = time.perf_counter()
    responses = answer()
    return responses, time.perf_counter() - started


def table(rows: list[Row]) -> str:
    """Rows in Markdown."""
    lines = [
        "| temperature | drafter | drafts | passes | tau | drafter passes per round | tokens/s | "
        "speed-up | differ |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        chains = f", {row['chains']} chains ({row['verifier']})" if row["chains"] else ""
        lines.append(
            f"| {row['temperature']:g} | {row['drafter']}{chains} | {row['drafts']} | "
            f"{row['passes'] or '–'} | {row['tau']:.2f} | {row['passes_per_round']:.2f} | "
            f"{row['tokens_per_s']:,.0f} | {row['speedup']:.2f}x | "
            f"{'–' if row['differ'] is None else row['differ']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
