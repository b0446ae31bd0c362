"""``jaxspec calibrate``: finds what a diffusion language model should draft.

    L="--target.path LLaDA-8B-Instruct --target.dtype bfloat16"
    jaxspec calibrate $L --source gsm8k --output runs/graph.json
    python eval.py ... $L --diffusion.graph runs/graph.json

The base decoder answers a few training prompts. Its steps are expressed in ranks and counted, and
the most useful formulas become the draft graph (Spiffy; `decoding.diffusion.calibration`). The same
command gives the same graph. A picture is written next to the file. Several processes share the
prompts out, and the first one writes the graph from the counts of all.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jaxspec.cli.cache_option import CacheOption
from jaxspec.cli.configuration import ConfigCommand, parse_command
from jaxspec.cli.process_options import ProcessOptions
from jaxspec.cli.target_answers import Questions
from jaxspec.files import try_file, user_path

if TYPE_CHECKING:
    from jaxspec.decoding import DiffusionResponse
    from jaxspec.decoding.diffusion.calibration import FormulaCounts
    from jaxspec.parallel.shares import Share


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrateCommand(ProcessOptions, CacheOption, ConfigCommand):
    """Options of ``jaxspec calibrate``; --diffusion and --evaluation say how to decode.

    The base decoder answers, so draft settings are not read.
    """

    reads: ClassVar[tuple[str, ...]] = (
        *("target.path", "target.dtype", "target.enable_thinking"),
        *("data.raw_dir", "data.data_dir", "data.embedded_examples"),
        *("evaluation.max_new_tokens", "evaluation.batch_size", "evaluation.temperature"),
        *("evaluation.top_k", "evaluation.top_p", "evaluation.min_p", "evaluation.suppress"),
        *("evaluation.max_prompt_tokens", "evaluation.passage_tokens", "evaluation.seed"),
        *("diffusion.block_length", "diffusion.unmasking", "diffusion.steps"),
        *("diffusion.threshold", "diffusion.factor", "diffusion.caching"),
        *("diffusion.block_causal", "diffusion.guidance", "diffusion.end_of_text"),
        *("mesh.data", "mesh.fsdp", "mesh.tensor"),
    )
    not_from_config: ClassVar[tuple[str, ...]] = ("mesh",)
    common: ClassVar[tuple[str, ...]] = (
        *("target.path", "target.dtype", "evaluation.max_new_tokens", "evaluation.batch_size"),
        *("evaluation.temperature", "diffusion.block_length", "diffusion.unmasking"),
        *("diffusion.steps", "diffusion.threshold", "diffusion.caching"),
        *("mesh.data", "mesh.tensor"),
    )
    example: ClassVar[str] = (
        "{program} --target.path LLaDA-8B-Instruct --target.dtype bfloat16 \\\n"
        "    --source gsm8k --output runs/graph.json"
    )

    config: str = ""
    """Python file, or a name that `jaxspec configs` lists, whose get_config() gives the target and
    how it is decoded; "": the defaults, with --target.path."""
    source: str
    """Data set whose training prompts are answered. Do not measure on the same prompts later."""
    output: str
    """JSON file for the graph; a picture (.png) is written next to it."""
    prompts: int = 25
    """How many prompts are answered."""
    budget: int = 10
    """Largest number of nodes in the graph (D): drafted states that a pass can read."""
    weight: Literal["followed", "accumulated"] = "followed"
    """What a formula is chosen by: how often a step led to it from the graph so far ("followed"),
    or its count plus its parents' ("accumulated", Spiffy's degree-1 accumulation). A formula is a
    set of pairs (i, j): the token of rank j at the mask of rank i, by the last pass's
    probabilities, counted from 0."""
    depth: int = 8
    """How many steps ahead formulas reach."""
    positions: int = 16
    """How many of the surest masks (ranks i) formulas may use."""
    tokens: int = 4
    """How many of the likeliest tokens (ranks j) formulas may use."""


def main(argv: Sequence[str]) -> None:
    """Parses the command line and calibrates."""
    command = parse_command(
        CalibrateCommand,
        argv,
        program="jaxspec calibrate",
        description="Find the draft graph of a diffusion language model (Spiffy).",
    )
    with command.joined():
        command.keep_programs()
        calibrate(command)


def calibrate(
    command: CalibrateCommand,
    *,
    echo: Callable[[str], None] = print,
    share: Share | None = None,
) -> Path:
    """Answers prompts, counts formulas, writes the graph.

    Args:
      command: what is asked, of which model, and where the graph goes.
      echo: where lines of text go; only the first process has any.
      share: the part of this process; None: what jax says.

    Returns:
      The graph's file.

    Raises:
      ValueError: not a diffusion language model, no such data set, settings out of range,
        processes that differ in what decides the graph, or responses in which nothing could be
        drafted.
    """
    from jaxspec.decoding import BlockDiffusion
    from jaxspec.decoding.diffusion.calibration import graph_settings, select_graph
    from jaxspec.decoding.diffusion.draft_graph import save_graph
    from jaxspec.evals.benchmarks import ask, check_askable, load_benchmark
    from jaxspec.evals.diffusion.decoders import diffusion_rules
    from jaxspec.evals.diffusion.runner import max_prompt_tokens
    from jaxspec.evals.mesh import decoding_mesh, recorded
    from jaxspec.evals.opening import open_diffusion_target
    from jaxspec.evals.plots import plot_draft_graph
    from jaxspec.parallel.shares import this_share
    from jaxspec.provenance import check_output, jsonable, provenance

    output, share = user_path(command.output), share or this_share()
    if not share.is_first:
        echo = _say_nothing
    _check(command)
    check_output(output, holding="nodes")
    picture = output.with_suffix(".png")
    try_file(picture, option="The picture next to --output")
    run, settings = command.run, command.run.evaluation
    mesh = decoding_mesh(run.mesh, rows=settings.batch_size, option="evaluation.batch_size")
    target = open_diffusion_target(run.target)
    rules = diffusion_rules(run, target)
    examples = load_benchmark(
        command.source, prompts=command.prompts, data=run.data, seed=settings.seed, split="train"
    )
    if len(examples) < share.count:
        raise ValueError(
            f"There are {len(examples)} prompts for {share.count} processes: ask for more "
            "(--prompts), or start fewer processes."
        )
    share.check_alike(
        {
            **_settings(command),
            "target": target.fingerprint,
            "chat template and tokenizer": target.tokenizer.files_digest(),
            "questions": Questions(examples).digest,
        },
    )
    longest = max_prompt_tokens(run, target)
    check_askable(
        {command.source: examples},
        tokenizer=target.tokenizer,
        max_prompt_tokens=longest,
        passage_tokens=settings.passage_tokens,
    )
    target = target.with_weights(mesh=mesh, laid_out=True)
    tracer = _Tracer(BlockDiffusion(target.model, rules), target.params, command, echo)
    reference = ask(
        share.of(examples),
        answer=tracer.answer,
        tokenizer=target.tokenizer,
        max_prompt_tokens=longest,
        passage_tokens=settings.passage_tokens,
    )
    asked = {
        "prompts": reference.conversations,
        "responses": len(reference.responses),
        "skipped_prompts": reference.skipped,
    }
    counted, asked = _of_all(tracer.counts, asked, share)
    if not share.is_first:
        return output
    counts = counted.counts
    graph = select_graph(counted, size=command.budget, weight=command.weight)
    if not graph.size:
        raise ValueError(
            f"Nothing to draft: in {asked['responses']} responses, no step followed another "
            "within a block, or all ranks were beyond --positions and --tokens. Reveal fewer "
            "tokens per step, or raise these limits."
        )
    record = recorded(provenance(config=run, seed=settings.seed), mesh)
    record["calibration"] = {
        "source": command.source,
        "split": "train",
        **asked,
        "budget": command.budget,
        "weight": command.weight,
        "depth": command.depth,
        "positions": command.positions,
        "tokens": command.tokens,
        "formulas": len(counts),
        "node_counts": [counts[node.pairs] for node in graph.nodes],
    }
    graph = dataclasses.replace(
        graph,
        settings=graph_settings(rules, model=target.fingerprint),
        provenance=jsonable(record),
    )
    save_graph(output, graph)
    plot_draft_graph(graph, picture)
    echo(
        f"{graph.size} nodes, up to {max(graph.depths)} steps ahead, chosen from {len(counts)} "
        f"formulas in {asked['responses']} responses. Written: {output}, {picture}. Decode "
        f"with --diffusion.graph {output}"
    )
    return output


def _settings(command: CalibrateCommand) -> dict[str, Any]:
    """The settings that decide the graph, by the names that the command line has."""
    from jaxspec.provenance import jsonable

    own = ("source", "prompts", "budget", "weight", "depth", "positions", "tokens")
    groups = {name: jsonable(getattr(command.run, name)) for name in ("evaluation", "diffusion")}
    return {
        **{name: getattr(command, name) for name in own},
        "target.dtype": command.run.target.dtype,
        "target.enable_thinking": command.run.target.enable_thinking,
        **{
            f"{group}.{name}": value
            for group, found in groups.items()
            for name, value in found.items()
        },
    }


def _of_all(
    counts: Sequence[FormulaCounts], asked: dict[str, int], share: Share
) -> tuple[FormulaCounts, dict[str, int]]:
    """What all processes counted, and how much they asked."""
    from jaxspec.decoding.diffusion.calibration import from_plain, merge_counts, to_plain

    found = share.gather({"ways": to_plain(merge_counts(counts)), "asked": asked})
    return (
        merge_counts(from_plain(each["ways"]) for each in found),
        {name: sum(each["asked"][name] for each in found) for name in asked},
    )


def _say_nothing(line: str) -> None:
    del line


class _Tracer:
    """Answers prompts and counts what the steps of the answers revealed."""

    def __init__(
        self, decoder: Any, params: Any, command: CalibrateCommand, echo: Callable[[str], None]
    ) -> None:
        self._decoder, self._params, self._command, self._echo = decoder, params, command, echo
        self._done = 0
        self._started = time.monotonic()
        self.counts: list[FormulaCounts] = []

    def answer(self, prompts: list[list[int]], ids: list[str]) -> list[DiffusionResponse]:
        """The base decoder's responses."""
        import jax

        from jaxspec.decoding.diffusion.calibration import count_formulas, rank_steps
        from jaxspec.decoding.diffusion.generate import decode_batches, read_diffusion
        from jaxspec.decoding.placement import mesh_of, on_mesh_of
        from jaxspec.evals.mesh import batch_rows

        command, settings = self._command, self._command.run.evaluation
        mesh = mesh_of(self._params)
        found: dict[int, DiffusionResponse] = {}
        batches = decode_batches(
            self._decoder,
            self._params,
            prompts,
            ids=ids,
            batch_size=batch_rows(len(prompts), most=settings.batch_size, mesh=mesh),
            seed=settings.seed,
        )
        for group, state in batches:
            host = jax.device_get(state)
            for row, index in enumerate(group):
                found[index] = read_diffusion(host, row, name=ids[index], decoder=self._decoder)
            with on_mesh_of(self._params):
                ranks = rank_steps(self._decoder, self._params, state)
            self.counts.append(
                count_formulas(
                    ranks,
                    depth=command.depth,
                    max_position=command.positions,
                    max_token=command.tokens,
                )
            )
            self._progress(len(group), asked=len(prompts) - len(found))
        return [found[index] for index in range(len(prompts))]

    def _progress(self, count: int, *, asked: int) -> None:
        self._done += count
        seconds = time.monotonic() - self._started
        left = seconds / self._done * asked
        self._echo(f"{self._done} prompts  {seconds:.0f} s  {left:.0f} s left")


def _check(command: CalibrateCommand) -> None:
    from jaxspec.decoding.diffusion.draft_graph import MOST_NODES, MOST_POSITIONS, MOST_TOKENS

    for name in ("prompts", "budget", "depth", "positions", "tokens"):
        if getattr(command, name) < 1:
            raise ValueError(f"--{name} must be at least 1: got {getattr(command, name)}.")
    for name, most in (
        ("budget", MOST_NODES),
        ("positions", MOST_POSITIONS),
        ("tokens", MOST_TOKENS),
    ):
        if getattr(command, name) > most:
            raise ValueError(f"--{name} must be at most {most:,}: got {getattr(command, name):,}.")
