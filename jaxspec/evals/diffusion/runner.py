"""An evaluation of a diffusion language model: decoders x benchmarks, passes counted.

For each benchmark the base decoder (`jaxspec.decoding.BlockDiffusion`) answers first. The decoders
with drafts answer the same prompts with the same random numbers, so that outputs can be compared at
any temperature. Passes are counted by the loops, block by block.

>>> evaluate_diffusion(get_config(), output="runs/llada.json")  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxspec.checkpoints.families.registry import StoredModel
from jaxspec.config import DiffusionEvaluationConfig, RunConfig
from jaxspec.data.examples import Example
from jaxspec.decoding import BlockDiffusion, DiffusionResponse, Spiffy, generate_diffusion
from jaxspec.decoding.placement import on_mesh_of
from jaxspec.evals.benchmarks import Reference, ask, check_askable, load_benchmarks
from jaxspec.evals.columns import DIFFUSION, MeasuredDecoder, computed
from jaxspec.evals.diffusion.decoders import diffusion_rules, drafting_decoders
from jaxspec.evals.diffusion.timing import DiffusionSpeed, explain, time_decoders
from jaxspec.evals.intervals import bracketed
from jaxspec.evals.mesh import decoding_mesh, explained, recorded
from jaxspec.evals.opening import DiffusionTarget, open_diffusion_target
from jaxspec.evals.progress import Echo, progress_of, render
from jaxspec.evals.report import write_report
from jaxspec.evals.tables import console_table
from jaxspec.evals.unfinished import digest, held_output, identity_of, measured_with, unfinished
from jaxspec.files import refusing
from jaxspec.names import for_markdown, for_terminal
from jaxspec.ops.precision import precision_of, products
from jaxspec.provenance import jsonable, provenance

PLAIN_DECODER = "plain"
"""Name of the base decoder's rows."""


def evaluate_diffusion(
    config: RunConfig, *, output: str | Path, stored: StoredModel | None = None, echo: Echo = print
) -> dict[str, Any]:
    """Measures decoders of a diffusion language model; writes the result file and its table.

    Args:
      config: the target, how it is decoded (`config.diffusion`), what it is asked
        (`config.evaluation`).
      output: the JSON file.
      stored: the target's folder, opened already.
      echo: where lines of text go.

    Returns:
      What the file holds: {"provenance": ..., "results": [...]}.

    Raises:
      ValueError: no diffusion language model, settings that do not go together, a graph for
        another model or other rules, no prompts, NaN logits.
    """
    settings = config.evaluation
    with held_output(output) as file:
        mesh = decoding_mesh(config.mesh, rows=settings.batch_size, option="evaluation.batch_size")
        target = open_diffusion_target(config.target, stored=stored)
        # Mistakes are reported before the weights are read.
        rules = diffusion_rules(config, target)
        base = BlockDiffusion(target.model, rules)
        drafting = drafting_decoders(config.diffusion, rules, target)
        benchmarks = load_benchmarks(settings, data=config.data)
        check_askable(
            benchmarks,
            tokenizer=target.tokenizer,
            max_prompt_tokens=max_prompt_tokens(config, target),
            passage_tokens=settings.passage_tokens,
        )
        decoders = [(PLAIN_DECODER, base), *drafting]
        record = recorded(provenance(config=config, seed=settings.seed), mesh)
        record["matmul_precision"] = precision_of(config.target.dtype)
        identity = identity_of(
            config,
            record=record,
            target=target,
            measured=[_decoder_identity(name, decoder) for name, decoder in decoders],
            benchmarks=benchmarks,
            groups=("evaluation", "diffusion"),
        )
        results: list[dict[str, Any]] = []
        speeds: list[tuple[DiffusionSpeed, float]] = []
        notes: list[str] = []
        compile_s: dict[BlockDiffusion, float | None] = {}
        with unfinished(
            file,
            identity=identity,
            started=record["time"],
            total=len(benchmarks) * len(decoders),
            answered=DiffusionResponse,
            speed=DiffusionSpeed,
            echo=echo,
        ) as finished:
            weighted = target.with_weights(mesh=mesh, laid_out=True)
            evaluation = DiffusionEvaluation(config, weighted, base, echo)
            for found in finished.measured(
                benchmarks, decoders, reference=evaluation.reference, measure=evaluation.measure
            ):
                (decoder_name, decoder), row, speed = found.case, found.row, found.speed
                # Programs are compiled for the first benchmark, and used for all.
                row["compile_s"] = compile_s.setdefault(decoder, row["compile_s"])
                if speed is not None and row["pass_ratio"] is not None:
                    speeds.append((speed, row["nfe_reduction"]))
                    formula = speed.formula(reduction=row["nfe_reduction"])
                    shown = f"{for_markdown(found.benchmark)}, {decoder_name}"
                    notes.append(f"{shown}, D {row['drafts_per_pass']}: {formula}.")
                results.append(row)
                if found.is_new:
                    echo(_summary(row))
            record = finished.complete({**record, **measured_with(identity)})
            paragraphs = [target.explain_suppressed(settings.suppress), _ending(config.diffusion)]
            paragraphs += filter(None, [products(config.target.dtype), explained(mesh)])
            if speeds:
                paragraphs += [explain(speeds), "\n".join(f"- {n}" for n in notes)]
            with refusing(file, option="--output"):
                files = write_report(file, provenance=record, results=results, notes=paragraphs)
    echo("")
    echo(render(console_table(results)))
    if speeds:
        echo(explain(speeds))
    echo(f"Written: {', '.join(map(str, files))}")
    return {"provenance": record, "results": results}


def _ending(settings: DiffusionEvaluationConfig) -> str:
    """A sentence for reports about `DiffusionEvaluationConfig.end_of_text`."""
    return {
        "allowed": "The end-of-text token was revealed like any other.",
        "last": "Tokens that end an answer were revealed last in their block (end_of_text 'last').",
        "never": "The end-of-text token was never revealed (end_of_text 'never').",
    }[settings.end_of_text]


def _decoder_identity(name: str, decoder: BlockDiffusion) -> str:
    if not isinstance(decoder, Spiffy):
        return name
    return f"{name}, {decoder.graph.size} drafts, graph {digest(jsonable(decoder.graph.nodes))}"


@dataclasses.dataclass(frozen=True)
class DiffusionEvaluation:
    """One target and its base decoder, under one configuration."""

    config: RunConfig
    target: DiffusionTarget
    base: BlockDiffusion
    echo: Echo

    def reference(self, name: str, examples: Sequence[Example]) -> Reference[DiffusionResponse]:
        """A benchmark's prompts, and the base decoder's answers."""
        settings = self.config.evaluation
        longest = max_prompt_tokens(self.config, self.target)

        def answer(prompts: list[list[int]], ids: list[str]) -> list[DiffusionResponse]:
            return self.responses(f"{name}: {PLAIN_DECODER}", self.base, prompts, ids)

        reference = ask(
            examples,
            answer=answer,
            tokenizer=self.target.tokenizer,
            max_prompt_tokens=longest,
            passage_tokens=settings.passage_tokens,
        )
        if reference.skipped:
            self.echo(
                f"{name}: {reference.skipped} prompts are longer than {longest} tokens and were "
                "left out."
            )
        return reference

    def responses(
        self,
        title: str,
        decoder: BlockDiffusion,
        prompts: Sequence[Sequence[int]],
        ids: Sequence[str],
    ) -> list[DiffusionResponse]:
        """A decoder's responses; every decoder gets the same random numbers."""
        settings = self.config.evaluation
        with progress_of(title, len(prompts), self.echo) as advance:
            return generate_diffusion(
                decoder,
                self.target.params,
                prompts,
                ids=ids,
                batch_size=settings.batch_size,
                seed=settings.seed,
                progress=advance,
            )

    def measure(
        self,
        name: str,
        reference: Reference[DiffusionResponse],
        case: tuple[str, BlockDiffusion],
    ) -> tuple[dict[str, Any], DiffusionSpeed | None]:
        """A row of the result file, and its timing."""
        decoder_name, decoder = case
        settings, rules = self.config.evaluation, self.base.rules
        # Timed before anything else is decoded, so that compiling is not over yet.
        title = f"{name}: {decoder_name}"
        speed = self.time(title, decoder, reference) if settings.timing_prompts else None
        responses: Sequence[DiffusionResponse] = reference.responses
        if decoder is not self.base:
            if isinstance(decoder, Spiffy):
                title += f", {decoder.num_drafts} drafts"
            responses = self.responses(title, decoder, reference.prompts, reference.ids)
        is_drafting = isinstance(decoder, Spiffy) and decoder.num_drafts > 0
        figures = summarise_passes(responses, reference.responses, drafts=is_drafting)
        reduction = figures["nfe_reduction"]
        row: dict[str, Any] = {
            "target": self.target.name,
            "decoder": decoder_name,
            "benchmark": name,
            "prompts": reference.conversations,
            "turns": len(responses),
            "skipped_prompts": reference.skipped,
            "temperature": settings.temperature,
            "suppress": settings.suppress,
            "response_length": rules.response_length,
            "block_length": rules.block_length,
            "unmasking": str(rules.unmasking),
            "caching": rules.caching,
            "block_causal": rules.block_causal,
            "guidance": rules.guidance,
            "end_of_text": self.config.diffusion.end_of_text,
            "layout": decoder.layout if isinstance(decoder, Spiffy) else None,
            "graph_size": decoder.graph.size if isinstance(decoder, Spiffy) else 0,
            "drafts_per_pass": decoder.num_drafts if isinstance(decoder, Spiffy) else 0,
            **figures,
            **_speed_fields(speed),
            "pass_ratio": speed.pass_ratio if speed and is_drafting else None,
            "below_break_even": speed.pass_ratio < reduction if speed and is_drafting else None,
        }
        measured = MeasuredDecoder(
            responses, base=reference.responses, speed=speed, seed=settings.seed
        )
        return row | computed(DIFFUSION, measured), speed

    def time(
        self, title: str, decoder: BlockDiffusion, reference: Reference[DiffusionResponse]
    ) -> DiffusionSpeed:
        """Speed at batch 1 on the first prompts."""
        settings = self.config.evaluation
        prompts = reference.prompts[: settings.timing_prompts]
        with (
            on_mesh_of(self.target.params),
            progress_of(f"{title}: timing", len(prompts), self.echo, announced=False) as advance,
        ):
            return time_decoders(
                self.base,
                decoder,
                self.target.params,
                prompts,
                ids=reference.ids[: settings.timing_prompts],
                repeats=settings.timing_repeats,
                seed=settings.seed,
                progress=advance,
            )


def max_prompt_tokens(config: RunConfig, target: DiffusionTarget) -> int:
    """Longest prompt that leaves room for the response."""
    positions = target.model.config.max_position_embeddings - config.evaluation.max_new_tokens
    return min(config.evaluation.max_prompt_tokens, positions)


def summarise_passes(
    responses: Sequence[DiffusionResponse], base: Sequence[DiffusionResponse], *, drafts: bool
) -> dict[str, Any]:
    """Passes, the tokens they gave, and how they compare with the base decoder's.

    Args:
      responses: of a decoder.
      base: of the base decoder, to the same prompts.
      drafts: whether the decoder drafts.

    Returns:
      nfe: forward passes. nfe_by_block, steps_by_block: sums over the responses that reached a
      block; reached_by_block: how many these are. accepted_depth: steps that were taken from a
      draft, per pass that had drafts; None if there was no such pass (a block's first pass has
      none). identical_share: share of responses that equal the base decoder's, token by token.
    """
    passes, steps = (
        _by_block([getattr(response, name) for response in responses])
        for name in ("passes", "steps")
    )
    reached = _by_block([tuple(1 for _ in response.passes) for response in responses])
    nfe, base_nfe = sum(passes), sum(response.num_passes for response in base)
    filled = sum(response.filled for response in responses)
    same = sum(ours.tokens == theirs.tokens for ours, theirs in zip(responses, base, strict=True))
    depths = [
        _ratio(step - made, made - first) if drafts else None
        for step, made, first in zip(steps, passes, reached, strict=True)
    ]
    return {
        "nfe": nfe,
        "nfe_per_response": nfe / len(responses),
        "tokens": sum(len(response.tokens) for response in responses),
        "filled_tokens": filled,
        "tokens_per_pass": filled / nfe,
        "base_nfe": base_nfe,
        "nfe_reduction": base_nfe / nfe,
        "nfe_by_block": passes,
        "steps_by_block": steps,
        "reached_by_block": reached,
        "accepted_depth": _ratio(sum(steps) - nfe, nfe - sum(reached)) if drafts else None,
        "accepted_depth_by_block": depths,
        "identical": same,
        "identical_share": same / len(responses),
    }


def _by_block(rows: Sequence[Sequence[int]]) -> list[int]:
    """Sums over responses, of which some are shorter."""
    longest = max(map(len, rows))
    return [sum(row[block] for row in rows if block < len(row)) for block in range(longest)]


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _speed_fields(speed: DiffusionSpeed | None) -> dict[str, float | None]:
    names = (
        "tokens_per_s",
        "baseline_tokens_per_s",
        "speedup",
        "compile_s",
        "block_pass_ms",
        "drafted_pass_ms",
    )
    return {name: getattr(speed, name, None) for name in names}


def _summary(row: dict[str, Any]) -> str:
    drafts = f", {row['drafts_per_pass']} drafts" if row["drafts_per_pass"] else ""
    timed = ""
    if row["speedup"] is not None:
        interval = bracketed(row["speedup_ci95"], of="timed prompts")
        timed = f", {row['speedup']:.2f}x {interval} the base decoder's speed"
    return (
        f"{for_terminal(row['benchmark'])}: {row['decoder']}{drafts}: "
        f"{row['nfe_per_response']:.1f} passes per response, {row['nfe_reduction']:.2f}x fewer, "
        f"{row['identical']} of {row['turns']} outputs identical{timed}"
    )
