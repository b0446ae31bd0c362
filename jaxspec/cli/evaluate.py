"""``jaxspec eval`` and eval.py: measures drafters, and decoders of diffusion language models.

jaxspec eval --config configs/quickstart.py --workdir runs/a runs/b --output runs/results.json

Each finished row is saved at once, and the same command continues after it
(`jaxspec.evals.unfinished`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

from jaxspec.cli.cache_option import CacheOption
from jaxspec.cli.configuration import ConfigCommand, parse_command
from jaxspec.cli.settings import given_names
from jaxspec.cli.values import Registry
from jaxspec.interruption import ending_when_told_to

DRAFTERS_ONLY = {
    "evaluation.strategy": "",
    "evaluation.calibration": "",
    "evaluation.calibration_prompts": "",
    "evaluation.verifier": "",
    "evaluation.draft_temperature": "",
    "evaluation.tree_nodes": "diffusion.num_drafts",
    "evaluation.chains": "diffusion.num_drafts",
    "evaluation.adaptive_sizes": "diffusion.num_drafts",
    "evaluation.block_size": "diffusion.block_length",
    "evaluation.denoising_passes": "diffusion.steps",
    "evaluation.denoising_order": "diffusion.unmasking",
    "evaluation.draft_rule": "",
    "evaluation.reference_rows": "",
}
"""Settings that a diffusion language model does not read -> what it reads instead."""
DIFFUSION_ONLY = {
    "diffusion.block_length": "evaluation.block_size",
    "diffusion.steps": "evaluation.denoising_passes",
}
"""The same the other way round; no target that goes from left to right reads ``--diffusion.*``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalCommand(CacheOption, ConfigCommand):
    """What eval.py takes."""

    reads: ClassVar[tuple[str, ...]] = (
        *("target.path", "target.dtype", "target.enable_thinking"),
        *("data.raw_dir", "data.data_dir", "mesh.data", "mesh.fsdp", "mesh.tensor"),
        *("evaluation", "diffusion"),
    )
    not_from_config: ClassVar[tuple[str, ...]] = ("mesh",)
    common: ClassVar[tuple[str, ...]] = (
        *("target.path", "target.dtype"),
        *("evaluation.benchmarks", "evaluation.prompts", "evaluation.max_new_tokens"),
        *("evaluation.batch_size", "evaluation.temperature", "evaluation.draft_temperature"),
        *("evaluation.strategy", "evaluation.verifier", "evaluation.tree_nodes"),
        *("evaluation.chains",),
        *("evaluation.block_size", "evaluation.denoising_passes", "evaluation.timing_prompts"),
        *("evaluation.seed", "diffusion.block_length", "diffusion.unmasking"),
        *("diffusion.threshold", "diffusion.caching", "diffusion.graph", "diffusion.num_drafts"),
    )
    example: ClassVar[str] = (
        "{program} --config configs/quickstart.py --output runs/results.json \\\n"
        "    --workdir runs/uniform runs/full"
    )

    registries: ClassVar[Mapping[str, Registry]] = {
        "drafters": Registry("jaxspec.drafters.registry", "KINDS")
    }

    output: str
    """JSON file to write. The table (.md) and, for drafters, plots (.png) are written next to it.
    Until it is finished, its rows are in a file next to it (.partial.jsonl), and the same command
    continues after them."""
    workdir: tuple[str, ...] = ()
    """Folders of trained drafters; each gets a row in the table. A diffusion language model
    (--target.path) takes none."""
    drafters: str = ""
    """Kinds of drafters to measure, separated by commas, such as dflash,ngram,none: trained ones,
    of which --workdir names the folders, prompt look-up (ngram) and the target alone (none). "":
    those of the folders."""
    references: str = ""
    """Folder that keeps the target's own answers, which outputs are compared with, for other
    evaluations with the same target, prompts and settings. "": they are decoded each time."""


def main(argv: Sequence[str], *, program: str = "jaxspec eval") -> None:
    """Parses the command line and evaluates."""
    command = parse_command(
        EvalCommand,
        argv,
        program=program,
        description="Measure accepted length and speed of drafters by exact decoding, or forward "
        "passes and speed of a diffusion language model's decoders (--target.path, --diffusion.*).",
    )
    # jax is imported only now: --help and mistakes are answered at once.
    from jaxspec.provenance import check_output

    check_output(command.output, holding="results")
    with ending_when_told_to():
        _evaluate(command, argv, program=program)


def _evaluate(command: EvalCommand, argv: Sequence[str], *, program: str) -> None:
    from jaxspec.evals.diffusion.runner import evaluate_diffusion
    from jaxspec.evals.mesh import check_one_process
    from jaxspec.evals.opening import is_diffusion_target, stored_target
    from jaxspec.evals.speculative.runner import evaluate

    check_one_process(program)
    command.keep_programs()
    path = command.run.target.path
    stored = stored_target(command.run.target)
    if is_diffusion_target(command.run.target, stored=stored):
        if command.workdir or command.drafters:
            raise ValueError(
                f"{path} is a diffusion language model and drafts for itself: leave --workdir and "
                "--drafters out, and set --diffusion.drafts or --diffusion.graph."
            )
        if command.references:
            raise ValueError(
                "--references keeps the answers of targets that generate from left to right: "
                f"{path} is a diffusion language model. Leave it out."
            )
        refuse_other_kind(argv, path, program=program, is_diffusion=True)
        evaluate_diffusion(command.run, output=command.output, stored=stored)
        return
    refuse_other_kind(argv, path, program=program, is_diffusion=False)
    evaluate(
        command.run,
        workdirs=list(command.workdir),
        output=command.output,
        kinds=[kind.strip() for kind in command.drafters.split(",") if kind.strip()],
        references=command.references,
    )


def refuse_other_kind(argv: Sequence[str], path: str, *, program: str, is_diffusion: bool) -> None:
    """Refuses settings for the other kind of target; a config file may hold those of both.

    Raises:
      ValueError: the command line gives one.
    """
    for name in given_names(argv):
        if is_diffusion and name in DRAFTERS_ONLY:
            why, instead = "is a diffusion language model", DRAFTERS_ONLY[name]
        elif not is_diffusion and name.startswith("diffusion."):
            why, instead = "generates from left to right", DIFFUSION_ONLY.get(name, "")
        else:
            continue
        hint = f" Did you mean --{instead}?" if instead else ""
        raise ValueError(f"{program} does not read --{name} for this target: {path} {why}.{hint}")
