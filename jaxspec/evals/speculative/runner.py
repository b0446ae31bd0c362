"""An evaluation: drafters x benchmarks, decoded exactly, with every figure of the result file.

For each benchmark the target answers alone first; that is the reference that greedy speculative
output must equal token by token, and what later turns of a conversation are built on, so that all
drafters get the same prompts. Then every drafter decodes them in batches, for tau, and the first
few one at a time, for speed.

>>> evaluate(  # doctest: +SKIP
...     get_config(), workdirs=["runs/uniform", "runs/full"], output="runs/results.json")
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxspec.config import EvaluationConfig, RunConfig
from jaxspec.data.chat_template import PLAIN
from jaxspec.data.examples import Example
from jaxspec.decoding import Response, Speculative, TreeSpeculative, generate
from jaxspec.decoding.placement import on_mesh_of
from jaxspec.decoding.stream import stream
from jaxspec.evals.ahead import Ahead
from jaxspec.evals.benchmarks import Reference, ask, check_askable, load_benchmarks
from jaxspec.evals.columns import SPECULATIVE, MeasuredDrafter, computed
from jaxspec.evals.intervals import bracketed
from jaxspec.evals.kept_references import KeptReferences
from jaxspec.evals.lengths import by_context, by_prompt
from jaxspec.evals.mesh import decoding_mesh, explained, recorded
from jaxspec.evals.opening import (
    DrafterBundle,
    TargetBundle,
    open_target,
)
from jaxspec.evals.progress import Echo, progress_of, render
from jaxspec.evals.report import seeds_table, write_report
from jaxspec.evals.results import OTHER_TARGET
from jaxspec.evals.speculative.choice import Case, calibration_examples, decide, options
from jaxspec.evals.speculative.differences import logit_gaps
from jaxspec.evals.speculative.drafters import (
    check_positions,
    open_drafters,
    other_thinking_mode,
)
from jaxspec.evals.speculative.programs import ProgramsAhead
from jaxspec.evals.speculative.strategies import (
    AnyStrategy,
    build_autoregressive,
    build_reference,
    denoising_of,
)
from jaxspec.evals.speculative.timing import Speed, explain, measure_speed
from jaxspec.evals.tables import console_table
from jaxspec.evals.tau import Rounds, summarise
from jaxspec.evals.traces import trace_of
from jaxspec.evals.unfinished import held_output, identity_of, measured_with, unfinished
from jaxspec.files import refusing, try_folder, user_path
from jaxspec.names import for_markdown, for_terminal
from jaxspec.ops.precision import precision_of, products
from jaxspec.provenance import provenance

_NAMED_MISMATCHES = 5
_SPEED_FIELDS = ("tokens_per_s", "baseline_tokens_per_s", "speedup", "compile_s")
_COST_FIELDS = (
    "prefill_ms",
    "baseline_prefill_ms",
    "round_ms",
    "draft_ms",
    "verify_ms",
    "rule_ms",
    "looped_round_ms",
    "rest_ms",
    "autoregressive_step_ms",
)


def evaluate(
    config: RunConfig,
    *,
    workdirs: Sequence[str | Path],
    output: str | Path,
    kinds: Sequence[str] = (),
    references: str | Path = "",
    echo: Echo = print,
) -> dict[str, Any]:
    """Measures drafters and writes the result file, its table and its plots.

    Args:
      config: the target, and what is measured (`config.evaluation`).
      workdirs: folders of trained drafters.
      output: the JSON file.
      kinds: see `open_drafters`.
      references: folder that keeps the target's own answers for other evaluations; "": none does.
      echo: where lines of text go.

    Returns:
      What the file holds: {"provenance": ..., "results": [...]}.

    Raises:
      ValueError: a missing folder, a drafter for another target, no prompts, a prompt that does not
        fit, NaN logits, a place that cannot be written to. All folders are opened before anything
        is decoded.
    """
    settings = config.evaluation
    if references:
        try_folder(references, option="--references")
    with held_output(output) as file:
        mesh = decoding_mesh(config.mesh, rows=settings.batch_size, option="evaluation.batch_size")
        target = open_target(config.target, default_template=PLAIN, mesh=mesh, laid_out=True)
        drafters = open_drafters(workdirs, kinds=kinds, target=target)
        longest = max_prompt_tokens(settings, target)
        check_positions(drafters, max_prompt_tokens=longest, max_new_tokens=settings.max_new_tokens)
        _say_what_is_unusual(target, drafters, config.target.enable_thinking, echo)
        benchmarks = load_benchmarks(settings, data=config.data)
        calibration = calibration_examples(settings, measured=benchmarks, data=config.data)
        check_askable(
            {**benchmarks, **calibration},
            tokenizer=target.tokenizer,
            max_prompt_tokens=longest,
            passage_tokens=settings.passage_tokens,
        )
        # Refuses settings that do not go together.
        tried = [options(settings, target, drafter) for drafter in drafters]
        record = recorded(provenance(config=config, seed=settings.seed), mesh)
        record["matmul_precision"] = precision_of(config.target.dtype)
        identity = identity_of(
            config,
            record=record,
            target=target,
            measured=[drafter.identity for drafter in drafters],
            benchmarks=benchmarks,
            groups=("evaluation",),
        )
        results, speeds, notes = [], [], []
        compile_s: dict[AnyStrategy, float] = {}
        with (
            unfinished(
                file,
                identity=identity,
                started=record["time"],
                total=len(benchmarks) * len(drafters),
                answered=Response,
                speed=Speed,
                echo=echo,
            ) as finished,
            Ahead(echo) as ahead,
        ):
            programs = ProgramsAhead(ahead, settings, target)
            evaluation = Evaluation(settings, target, echo, programs)
            reference = evaluation.reference
            if references:
                kept = KeptReferences(user_path(references), identity, Response, echo)
                reference = functools.partial(kept.reference, decode=evaluation.reference)
            cases = decide(
                target,
                drafters,
                tried,
                lambda: [evaluation.reference(*each) for each in calibration.items()],
                kept=[record["row"] for record in finished.rows],
                echo=echo,
            )
            if not finished.rows:
                programs.following = cases[0]
            for found in finished.measured(
                benchmarks, cases, reference=reference, measure=evaluation.measure
            ):
                case, row, speed = found.case, found.row, found.speed
                if speed is not None:
                    # Drafters of one shape share a program, which the first of them compiles.
                    row["compile_s"] = compile_s.setdefault(case.strategy, speed.compile_s)
                if speed is not None and case.drafts:
                    speeds.append(speed)
                    shown = f"{for_markdown(found.benchmark)}, {for_markdown(case.drafter.loss)}"
                    notes.append(f"{shown}: {speed.formula()}.")
                results.append(row)
                if found.is_new:
                    evaluation.say(found.benchmark, case, row, speed)
            record = finished.complete({**record, **measured_with(identity)})
            paragraphs = [target.explain_suppressed(settings.suppress)]
            paragraphs += filter(None, [products(config.target.dtype), explained(mesh)])
            paragraphs += filter(None, ["\n".join(_choice_notes(cases))])
            if speeds:
                paragraphs += [explain(speeds), "\n".join(f"- {n}" for n in notes)]
            with refusing(file, option="--output"):
                files = write_report(file, provenance=record, results=results, notes=paragraphs)
    echo("")
    echo(render(console_table(results)))
    if over_seeds := seeds_table(results):
        echo(over_seeds)
    if speeds:
        echo(explain(speeds))
    echo(f"Written: {', '.join(map(str, files))}")
    return {"provenance": record, "results": results}


def _say_what_is_unusual(
    target: TargetBundle, drafters: Sequence[DrafterBundle], thinks: bool | None, echo: Echo
) -> None:
    if not target.tokenizer.has_template:
        echo(
            f"{target.name} has no chat template: a conversation is given as the contents of its "
            "turns, one after the other, with an end-of-text token after each answer."
        )
    for drafter in drafters:
        if drafter.trained_on_other_target:
            echo(
                f"{for_terminal(drafter.name)} was trained on other weights than those of "
                f"{for_terminal(target.name)}: it is measured anyway, and its rows are marked "
                f"{OTHER_TARGET!r}."
            )
        if note := other_thinking_mode(drafter, target=target, asked=thinks):
            echo(note)


def max_prompt_tokens(settings: EvaluationConfig, target: TargetBundle) -> int:
    """The longest prompt that leaves room for the response.

    Raises:
      ValueError: the response alone takes all of the target's positions.
    """
    positions = target.config.max_position_embeddings
    if settings.max_new_tokens >= positions:
        raise ValueError(
            f"evaluation.max_new_tokens is {settings.max_new_tokens}, but {target.name} has only "
            f"{positions} positions: lower it, so that there is room for a prompt."
        )
    return min(settings.max_prompt_tokens, positions - settings.max_new_tokens)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One target under one `EvaluationConfig`."""

    settings: EvaluationConfig
    target: TargetBundle
    echo: Echo
    programs: ProgramsAhead | None = None
    """Compiles what will be called; None: every program is compiled when it is called."""

    def reference(self, name: str, examples: Sequence[Example]) -> Reference[Response]:
        """A benchmark's prompts, and the target's own answers."""
        longest = max_prompt_tokens(self.settings, self.target)
        strategy = build_reference(self.settings, self.target)

        def answer(prompts: list[list[int]], ids: list[str]) -> list[Response]:
            if self.programs:
                self.programs.for_reference(prompts)
            with progress_of(f"{name}: target alone", len(prompts), self.echo) as advance:
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
            max_prompt_tokens=longest,
            passage_tokens=self.settings.passage_tokens,
        )
        if reference.skipped:
            self.echo(
                f"{name}: {reference.skipped} prompts are longer than {longest} tokens and were "
                "left out."
            )
        return reference

    def measure(
        self,
        name: str,
        reference: Reference[Response],
        case: Case,
    ) -> tuple[dict[str, Any], Speed | None]:
        """A row of the result file, and its timing."""
        drafter, settings, strategy = case.drafter, case.settings, case.strategy
        params = case.params_with(self.target)
        if self.programs:
            self.programs.for_answering(case, reference.prompts)
        title = _title(name, case)
        case.start_anew()
        if not case.drafts:
            responses = [_without_drafts(response) for response in reference.responses]
        else:
            with progress_of(title, len(reference.prompts), self.echo) as advance:
                responses = generate(
                    strategy,
                    params,
                    reference.prompts,
                    ids=reference.ids,
                    batch_size=settings.batch_size,
                    seed=settings.seed,
                    progress=advance,
                )
        # The target alone drafts nothing; one slot, which no round drafts, keeps figures defined.
        slots = max(1, strategy.round_tokens - 1)
        rounds = [
            Rounds(
                r.emitted,
                r.accepted,
                r.tokens,
                r.verified,
                r.stopped,
                slots=r.slots or None,
                name=r.prompt_id,
            )
            for r in responses
        ]
        seed = settings.seed
        try:
            summary = summarise(rounds, num_slots=slots, seed=seed).as_dict()
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        without_repetitive = summary.pop("tau_micro_without_repetitive")
        mismatched = [
            ours.prompt_id
            for ours, theirs in zip(responses, reference.responses, strict=True)
            if ours.tokens != theirs.tokens
        ]
        is_greedy = settings.temperature == 0
        gaps = self.gaps(reference, responses) if is_greedy else []
        row: dict[str, Any] = {
            "target": self.target.name,
            "drafter": drafter.name,
            "loss": drafter.loss,
            "benchmark": name,
            **summary,
            "prompts": reference.conversations,
            "turns": len(responses),
            "skipped_prompts": reference.skipped,
            "temperature": settings.temperature,
            "suppress": settings.suppress,
            "block_size": strategy.round_tokens,
            "verifier": getattr(strategy, "verifier", "none"),
            "kind": drafter.kind,
            "draft_passes_per_round": _draft_passes(responses),
            "tree_nodes": settings.tree_nodes,
            "chains": settings.chains,
            **(dataclasses.asdict(denoising_of(settings)) if drafter.entry.denoises else {}),
            "adaptive_sizes": list(settings.adaptive_sizes),
            "tau_without_repetitive": without_repetitive,
            # Sampled outputs differ by nature: only greedy ones can be compared.
            "mismatched_prompts": len(mismatched) if is_greedy else None,
            "mismatched_ids": mismatched if is_greedy else [],
            "mismatch_gaps": gaps,
            "mismatch_gap": max(gaps, default=None),
            "seed": drafter.seed,
            "trained_on_other_target": drafter.trained_on_other_target,
            "drafter_weights": drafter.fingerprint or None,
            "by_prompt": by_prompt(reference.prompts, responses),
            "by_context": by_context(reference.prompts, responses, seed=seed),
        }
        if case.choice:
            row["choice"] = case.choice.as_dict()
        if settings.timing_prompts:
            self.echo(f"{title}: {_summary(row)}")
        if is_greedy and mismatched:
            self.echo(
                f"{title}: {len(mismatched)} of {len(responses)} outputs differ from the target's "
                f"own: {', '.join(mismatched[:_NAMED_MISMATCHES])}. Where they first differ, the "
                f"emitted token's logit is up to {max(gaps):.2g} below the target's best "
                f"(median {statistics.median(gaps):.2g})."
            )
        # Last, because it waits until everything is compiled.
        speed = self.time(name, case, reference)
        row |= {field: getattr(speed, field, None) for field in (*_SPEED_FIELDS, *_COST_FIELDS)}
        row |= computed(
            SPECULATIVE, MeasuredDrafter(rounds, num_slots=slots, speed=speed, seed=seed)
        )
        # Only where timing has compiled the programs for one row.
        if speed is not None and isinstance(strategy, Speculative):
            row["trace"] = self.trace(case, reference)
        return row, speed

    def say(self, name: str, case: Case, row: Mapping[str, Any], speed: Speed | None) -> None:
        """Says what `measure` did not say yet, once the row is on disk."""
        if speed is not None:
            self.echo(f"{_title(name, case)}: {speed.formula()}")
        elif not self.settings.timing_prompts:
            self.echo(f"{_title(name, case)}: {_summary(row)}")

    def trace(self, case: Case, reference: Reference[Response]) -> dict[str, Any]:
        """One answer, round by round: see `jaxspec.evals.traces`.

        It is that to the longest of the timed prompts, whose programs are compiled.
        """
        timed = reference.prompts[: self.settings.timing_prompts]
        place = max(range(len(timed)), key=lambda number: len(timed[number]))
        prompt, name = timed[place], reference.ids[place]
        params = case.params_with(self.target)
        rounds = stream(case.strategy, params, prompt, name=name, seed=self.settings.seed)
        return trace_of(
            list(rounds),
            prompt_id=name,
            prompt=prompt,
            tokenizer=self.target.tokenizer,
            is_chain=not isinstance(case.strategy, TreeSpeculative),
        )

    def gaps(self, reference: Reference[Response], responses: Sequence[Response]) -> list[float]:
        """See `logit_gaps`."""
        return logit_gaps(
            build_autoregressive(self.settings, self.target),
            self.target.params,
            reference.prompts,
            responses,
            reference.responses,
        )

    def time(self, name: str, case: Case, reference: Reference[Response]) -> Speed | None:
        """Speed at batch 1 on the first prompts; None if there is nothing to time."""
        count = self.settings.timing_prompts
        if not count:
            return None
        compile_s = self.programs.for_timing(case, reference.prompts) if self.programs else 0.0
        title = f"{_title(name, case)}: timing"
        case.start_anew()
        with (
            on_mesh_of(self.target.params),
            progress_of(title, count, self.echo, announced=False) as advance,
        ):
            speed = measure_speed(
                build_autoregressive(self.settings, self.target),
                case.strategy,
                reference.prompts[:count],
                target_params=self.target.params,
                params=case.params_with(self.target),
                ids=reference.ids[:count],
                repeats=self.settings.timing_repeats,
                seed=self.settings.seed,
                progress=advance,
            )
        if speed is None:
            return None
        return dataclasses.replace(speed, compile_s=speed.compile_s + compile_s)


def _draft_passes(responses: Sequence[Response]) -> float:
    """Forward passes of the drafter per round, on average."""
    rounds = sum(len(response.emitted) for response in responses)
    return sum(response.draft_passes for response in responses) / max(1, rounds)


def _without_drafts(response: Response) -> Response:
    """The target's own answer as rounds of one token, so that its row is like the others."""
    rounds = len(response.tokens) - 1
    none = (0,) * rounds
    return dataclasses.replace(response, emitted=(1,) * rounds, verified=none, slots=none)


def _choice_notes(cases: Sequence[Case]) -> list[str]:
    """A line for each choice, for the report."""
    return [
        f"- {for_markdown(case.drafter.loss)} ({for_markdown(case.drafter.name)}): "
        f"{case.choice.sentence()}"
        for case in cases
        if case.choice
    ]


def _title(benchmark: str, case: Case) -> str:
    name = for_terminal(benchmark)
    return f"{name}: {for_terminal(case.drafter.loss)} ({for_terminal(case.drafter.name)})"


def _summary(row: Mapping[str, Any]) -> str:
    interval = bracketed(row["tau_ci95"], of="responses")
    differ = row["mismatched_prompts"]
    exact = "" if differ is None else f", {differ} of {row['turns']} outputs differ"
    return f"tau {row['tau_micro']:.2f} {interval} on {row['turns']} responses{exact}"
