"""An evaluation: drafters x benchmarks, decoded exactly, with every figure of the result file.

For each benchmark the target answers alone first; that is the reference that greedy speculative
output must equal token by token, and what later turns of a conversation are built on, so that all
drafters get the same prompts. Then every drafter decodes them in batches, for tau, and the first
few one at a time, for speed.

>>> evaluate(get_config(), workdirs=["runs/uniform", "runs/full"], output="runs/results.json")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxspec.config import EvaluationConfig, RunConfig
from jaxspec.data.examples import Example
from jaxspec.decoding import (
    SAMPLED_RULES,
    Autoregressive,
    DecodeRules,
    Response,
    Speculative,
    TreeSpeculative,
    generate,
)
from jaxspec.drafters.protocol import DFlashProposer
from jaxspec.evals.benchmarks import Reference, ask, load_benchmark
from jaxspec.evals.bundles import (
    DrafterBundle,
    TargetBundle,
    load_drafter_bundle,
    load_target_bundle,
)
from jaxspec.evals.report import console_table, seeds_table, write_report
from jaxspec.evals.tau import Rounds, summarise
from jaxspec.evals.timing import Speed, explain, measure_speed
from jaxspec.ops.sampling import Sampling
from jaxspec.provenance import provenance

Echo = Callable[[str], None]

_NAMED_MISMATCHES = 5
_SPEED_FIELDS = ("tokens_per_s", "baseline_tokens_per_s", "speedup", "compile_s")
_COST_FIELDS = (
    "prefill_ms",
    "baseline_prefill_ms",
    "round_ms",
    "draft_ms",
    "verify_ms",
    "autoregressive_step_ms",
)


def evaluate(
    config: RunConfig,
    *,
    workdirs: Sequence[str | Path],
    output: str | Path,
    echo: Echo = print,
) -> dict[str, Any]:
    """Measures drafters and writes the result file, its table and its plots.

    Args:
      config: the target, and what is measured (`config.evaluation`).
      workdirs: folders of trained drafters.
      output: the JSON file.
      echo: where lines of text go.

    Returns:
      What the file holds: {"provenance": ..., "results": [...]}.

    Raises:
      ValueError: a missing folder, a drafter for another target, no prompts, a prompt that does not
        fit, NaN logits. All folders are opened before anything is decoded.
    """
    if not workdirs:
        raise ValueError("No drafters to measure: name at least one folder (--workdir DIR).")
    settings = config.evaluation
    target = load_target_bundle(config.target)
    drafters = [load_drafter_bundle(folder, target=target) for folder in workdirs]
    benchmarks = {
        name: load_benchmark(name, prompts=settings.prompts, data=config.data, seed=settings.seed)
        for name in settings.benchmarks
    }
    evaluation = Evaluation(settings, target, echo)
    for drafter in drafters:
        evaluation.speculative(drafter)  # Refuses settings that do not go together.
    results, speeds, notes = [], [], []
    compile_s: dict[Speculative, float] = {}
    for name, examples in benchmarks.items():
        reference = evaluation.reference(name, examples)
        for drafter in drafters:
            row, speed = evaluation.measure(name, reference, drafter)
            if speed is not None:
                # Drafters of one shape share a program, which the first of them compiles.
                strategy = evaluation.speculative(drafter)
                row["compile_s"] = compile_s.setdefault(strategy, speed.compile_s)
                speeds.append(speed)
                notes.append(f"{name}, {drafter.loss}: {speed.formula()}.")
            results.append(row)
            echo(_summary(row, speed))
    record = provenance(config=config, seed=settings.seed)
    paragraphs = [explain(speeds), "\n".join(f"- {note}" for note in notes)] if speeds else []
    files = write_report(output, provenance=record, results=results, notes=paragraphs)
    echo("")
    echo(_render(console_table(results)))
    if over_seeds := seeds_table(results):
        echo(over_seeds)
    if speeds:
        echo(explain(speeds))
    echo(f"Written: {', '.join(map(str, files))}")
    return {"provenance": record, "results": results}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One target under one `EvaluationConfig`."""

    settings: EvaluationConfig
    target: TargetBundle
    echo: Echo

    @property
    def rules(self) -> DecodeRules:
        """When responses end."""
        return DecodeRules(
            self.settings.max_new_tokens, self.target.stop_ids, self.target.suppressed_ids
        )

    @property
    def sampling(self) -> Sampling:
        """The target's distribution."""
        return Sampling(self.settings.temperature)

    @property
    def verifier(self) -> str:
        """The verifier, with "auto" made definite."""
        if self.settings.tree_nodes:
            return "tree"
        if self.settings.verifier != "auto":
            return self.settings.verifier
        return "greedy" if self.sampling.greedy else "token"

    @property
    def max_prompt_tokens(self) -> int:
        """Longest prompt that is taken."""
        positions = self.target.config.max_position_embeddings - self.settings.max_new_tokens
        return min(self.settings.max_prompt_tokens, positions)

    def autoregressive(self) -> Autoregressive:
        """The target by itself."""
        return Autoregressive(self.target.model, self.rules, self.sampling)

    def speculative(self, drafter: DrafterBundle) -> Speculative:
        """The target with a drafter."""
        proposer = DFlashProposer(
            target=self.target.model,
            drafter=drafter.drafter,
            block_size=self.settings.block_size or drafter.config.block_size,
            sampling=self.sampling if self.verifier in SAMPLED_RULES else Sampling(0.0),
            suppressed_ids=self.target.suppressed_ids,
        )
        common = (self.target.model, proposer, self.rules, self.verifier, self.sampling)
        if self.settings.tree_nodes:
            return TreeSpeculative(*common, num_nodes=self.settings.tree_nodes)
        return Speculative(*common)

    def reference(self, name: str, examples: Sequence[Example]) -> Reference:
        """A benchmark's prompts, and the target's own answers."""
        strategy = self.autoregressive()

        def answer(prompts: list[list[int]], ids: list[str]) -> list[Response]:
            with _progress(f"{name}: target alone", len(prompts), self.echo) as advance:
                return generate(
                    strategy,
                    self.target.params,
                    prompts,
                    ids=ids,
                    batch_size=self.settings.batch_size,
                    seed=self.settings.seed,
                    progress=advance,
                )

        reference = ask(
            examples,
            answer=answer,
            tokenizer=self.target.tokenizer,
            max_prompt_tokens=self.max_prompt_tokens,
        )
        if reference.skipped:
            self.echo(
                f"{name}: {reference.skipped} prompts are longer than {self.max_prompt_tokens} "
                "tokens and were left out."
            )
        return reference

    def measure(
        self, name: str, reference: Reference, drafter: DrafterBundle
    ) -> tuple[dict[str, Any], Speed | None]:
        """A row of the result file, and its timing."""
        strategy = self.speculative(drafter)
        # Timed before anything else is decoded, so that compiling is not over yet.
        speed = self.time(strategy, reference, drafter) if self.settings.timing_prompts else None
        params = {"target": self.target.params, "drafter": drafter.params}
        title = f"{name}: {drafter.loss} ({drafter.name})"
        with _progress(title, len(reference.prompts), self.echo) as advance:
            responses = generate(
                strategy,
                params,
                reference.prompts,
                ids=reference.ids,
                batch_size=self.settings.batch_size,
                seed=self.settings.seed,
                progress=advance,
            )
        slots = strategy.round_tokens - 1
        summary = summarise(
            [Rounds(r.kept, r.accepted, r.tokens, r.verified, r.stopped) for r in responses],
            num_slots=slots,
            seed=self.settings.seed,
        ).as_dict()
        without_repetitive = summary.pop("tau_micro_without_repetitive")
        mismatched = [
            ours.prompt_id
            for ours, theirs in zip(responses, reference.responses, strict=True)
            if ours.tokens != theirs.tokens
        ]
        row: dict[str, Any] = {
            "target": self.target.name,
            "drafter": drafter.name,
            "loss": drafter.loss,
            "benchmark": name,
            **summary,
            "prompts": reference.conversations,
            "turns": len(responses),
            "skipped_prompts": reference.skipped,
            "temperature": self.settings.temperature,
            "block_size": strategy.round_tokens,
            "verifier": self.verifier,
            "tree_nodes": self.settings.tree_nodes,
            "tau_without_repetitive": without_repetitive,
            **{field: getattr(speed, field, None) for field in (*_SPEED_FIELDS, *_COST_FIELDS)},
            # Sampled outputs differ by nature: only greedy ones can be compared.
            "mismatched_prompts": len(mismatched) if self.sampling.greedy else None,
            "seed": drafter.seed,
        }
        if self.sampling.greedy and mismatched:
            self.echo(
                f"{title}: {len(mismatched)} of {len(responses)} outputs differ from the target's "
                f"own: {', '.join(mismatched[:_NAMED_MISMATCHES])}."
            )
        return row, speed

    def time(
        self, strategy: Speculative, reference: Reference, drafter: DrafterBundle
    ) -> Speed | None:
        """Speed at batch 1 on the first prompts."""
        count = self.settings.timing_prompts
        return measure_speed(
            self.autoregressive(),
            strategy,
            reference.prompts[:count],
            target_params=self.target.params,
            drafter_params=drafter.params,
            ids=reference.ids[:count],
            repeats=self.settings.timing_repeats,
            seed=self.settings.seed,
        )


def _summary(row: dict[str, Any], speed: Speed | None) -> str:
    low, high = row["tau_ci95"]
    differ = row["mismatched_prompts"]
    exact = "" if differ is None else f", {differ} of {row['turns']} outputs differ"
    timed = "" if speed is None else f"; {speed.formula()}"
    return (
        f"{row['benchmark']}: {row['loss']} ({row['drafter']}): tau {row['tau_micro']:.2f} "
        f"[{low:.2f}, {high:.2f}] on {row['turns']} responses{exact}{timed}"
    )


def _render(table: Any) -> str:
    console = Console()
    with console.capture() as capture:
        console.print(table)
    return capture.get()


@contextmanager
def _progress(title: str, total: int, echo: Echo) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; elsewhere one line when the work starts."""
    console = Console()
    if not console.is_terminal:
        echo(f"{title}: {total} prompts")
        yield lambda done: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.update(task, advance=done)
