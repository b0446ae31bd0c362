"""``jaxspec regenerate``: has the target answer a data set's questions, to train a drafter on.

    jaxspec regenerate --target.path Qwen3-4B --source gsm8k --output runs/gsm8k_answers
    python train.py ... --data.sources runs/gsm8k_answers

A drafter drafts what its target would say, so it should learn from that and not from the answers in
the data set. An answer is kept as its text; where encoding that again would give other ids, its ids
are kept too, so that training learns what was generated.

The output is a folder of array_record shards (`jaxspec.data.example_files`) that grows shard by
shard. The answers of the unfinished shard are kept in a journal, so that the same command continues
a run that was stopped or killed.

Several processes share the questions out, shard by shard: each answers its own on its own devices
and keeps the answers in a journal for each shard. When all have answered, the first process writes
the shards and the manifest, as if it had answered alone. The folder is the same for any number of
processes, and so is what a later start finds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeGuard

from jaxspec.checkpoints.folders import fingerprint, target_folder
from jaxspec.cli.cache_option import CacheOption
from jaxspec.cli.configuration import ConfigCommand, parse_command
from jaxspec.cli.process_options import ProcessOptions
from jaxspec.cli.settings import given_names
from jaxspec.cli.target_answers import (
    JOURNAL,
    Answers,
    Questions,
    answer_share,
    journal_of_shard,
    remove_journals,
)
from jaxspec.config import RunConfig, Suppress
from jaxspec.data.answer_journal import AnswerJournal
from jaxspec.data.examples import Example
from jaxspec.files import held, user_path
from jaxspec.interruption import ending_when_told_to
from jaxspec.paths import is_remote

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxspec.data.tokenizer import Tokenizer
    from jaxspec.parallel.shares import Share

ANSWER_TOKENS, THINKING_TOKENS = 1024, 4096
"""Longest answer by default, without and with thinking."""
MANY_CUT = 0.25
"""A larger share of answers without an end is a warning."""
LARGEST_BATCH = 4096
"""More prompts than any device can decode together."""
_PROGRESS_SECONDS = 5.0
_NO_ENDS = {"answers": 0, "cut": 0}
_TEMPLATE = "chat template and tokenizer"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegenerateCommand(ProcessOptions, CacheOption, ConfigCommand):
    """Options of ``jaxspec regenerate``; target and data settings are those of the config."""

    reads: ClassVar[tuple[str, ...]] = (
        *("target.path", "target.dtype", "target.enable_thinking"),
        *("data.raw_dir", "data.data_dir", "data.embedded_examples"),
        *("mesh.data", "mesh.fsdp", "mesh.tensor"),
    )
    fits: ClassVar[Mapping[str, str]] = {"target.dtype": "that of its weights"}
    not_from_config: ClassVar[tuple[str, ...]] = ("mesh",)
    example: ClassVar[str] = (
        "{program} --target.path Qwen3-4B --source gsm8k \\\n    --output runs/gsm8k_answers"
    )

    config: str = ""
    """Python file, or a name that `jaxspec configs` lists, whose get_config() gives the target; "":
    --target.path."""
    source: str
    """Data set whose questions are asked, a folder of examples, or a file of conversations or
    prompts; of a text file (.txt), every line is a prompt."""
    split: str = "train"
    """Split of the data set. Only training splits are allowed: answers to a test split must not be
    trained on."""
    output: str
    """Folder for the answers. If it holds an earlier run, that run is continued."""
    temperature: float = 0.7
    """0: greedy decoding; above 0: sampling."""
    top_p: float = 0.95
    """Sample from the smallest set of tokens with at least this much probability; 1: from all."""
    suppress: Suppress = "none"
    """Tokens that no answer may hold. "unused": rows of the embedding that have no token.
    "special": these, and the special and padding tokens that do not end an answer."""
    max_new_tokens: int = 0
    """Longest answer; 0: 1,024, or 4,096 if the target thinks first, and at most half of its
    positions."""
    batch_size: int = 32
    """Prompts decoded together."""
    shard_prompts: int = 512
    """Prompts per shard. If the run is killed, only the answers being decoded are lost."""
    limit: int = 0
    """Ask only this many questions; 0: all. A later run with a larger limit continues after
    them."""
    unfinished: Literal["drop", "keep"] = "drop"
    """What to do with answers that reach `max_new_tokens` before they end. Kept, they would teach
    the drafter to end a turn where the target does not."""
    seed: int = 0
    """Seed of the sampling."""


def main(argv: Sequence[str]) -> None:
    """Parses the command line and generates."""
    command = parse_command(
        RegenerateCommand,
        argv,
        program="jaxspec regenerate",
        description="Answer the questions of a data set with the target, as training data.",
    )
    if not {"config", "target.dtype"} & set(given_names(argv)):
        command = _in_stored_dtype(command)
    # jax's handler, which comes with the other processes, must not replace this one.
    with command.joined(), ending_when_told_to():
        command.keep_programs()
        regenerate(command)


def regenerate(
    command: RegenerateCommand,
    *,
    echo: Callable[[str], None] = print,
    share: Share | None = None,
) -> Path:
    """Answers every question that the output folder has no answer for yet.

    Args:
      command: what is asked, of which target, and where to.
      echo: where lines of text go; only the first process has any.
      share: the part of this process; None: what jax says.

    Returns:
      The folder.

    Raises:
      ValueError: a split for evaluation; a missing target or data set; no questions; a folder that
        is in use, is damaged, or holds something else or answers made with other settings; or
        processes that differ in what decides the answers.
    """
    from jaxspec.parallel.shares import this_share

    _check(command)
    output, share = user_path(command.output), share or this_share()
    if share.is_first:
        with held(output, option="--output"):
            _regenerate(command, output, echo=echo, share=share)
    else:
        _regenerate(command, output, echo=lambda line: None, share=share)
    # No process leaves before the first one has written everything.
    share.gather(None)
    return output


def _in_stored_dtype(command: RegenerateCommand) -> RegenerateCommand:
    from jaxspec.checkpoints.huggingface import read_config

    target = command.run.target
    target = dataclasses.replace(target, dtype=read_config(target_folder(target.path)).param_dtype)
    return dataclasses.replace(command, run=dataclasses.replace(command.run, target=target))


def _with_length(command: RegenerateCommand, tokenizer: Tokenizer) -> RegenerateCommand:
    """The command with a longest answer that fits the target."""
    from jaxspec.checkpoints.huggingface import read_config

    if command.max_new_tokens:
        return command
    usual = THINKING_TOKENS if tokenizer.thinks_first() else ANSWER_TOKENS
    positions = read_config(target_folder(command.run.target.path)).max_position_embeddings
    return dataclasses.replace(command, max_new_tokens=max(1, min(usual, positions // 2)))


def _regenerate(
    command: RegenerateCommand, output: Path, *, echo: Callable[[str], None], share: Share
) -> None:
    """`regenerate`, in a folder that is held."""
    from jaxspec.data.chat_template import Refused
    from jaxspec.data.example_files import MANIFEST, read_manifest, remove_unfinished
    from jaxspec.data.sources import load_examples
    from jaxspec.data.tokenizer import Tokenizer
    from jaxspec.decoding import Autoregressive, DecodeRules
    from jaxspec.evals.mesh import batch_rows, decoding_mesh
    from jaxspec.evals.opening import open_target
    from jaxspec.evals.progress import Pace
    from jaxspec.ops.sampling import Sampling

    sampling = Sampling(command.temperature, top_p=command.top_p)
    mesh = decoding_mesh(command.run.mesh, rows=command.batch_size, option="--batch_size")
    data = dataclasses.replace(command.run.data, max_examples=command.limit)
    examples = load_examples(command.source, split=command.split, data=data, use="prompts")
    if len(examples) == 0:
        raise ValueError(f"{command.source!r} holds no examples: there is nothing to ask.")
    tokenizer = Tokenizer.load(
        target_folder(command.run.target.path),
        template_options=command.run.target.template_options,
    )
    # A template that cannot be used is noticed before anything is written.
    with contextlib.suppress(Refused):
        tokenizer.encode_prompt([{"role": "user", "content": "Hi."}])
    command = _with_length(command, tokenizer)
    settings = _settings(command, tokenizer)
    facts = {"shard_prompts": command.shard_prompts, "questions": Questions(examples).digest}
    share.check_alike(settings | facts)
    _check_shared(output)  # The folder is there: the first process made it before.
    done, dropped, ends = _progress_of(output, settings, examples, limit=command.limit)
    questions = Questions(examples[:done])

    def keep(answered: list[Example], *, done: int) -> None:
        _write(
            output,
            answered,
            command,
            settings=settings,
            done=done,
            questions=questions,
            dropped=dropped,
            ends=ends,
            mesh=mesh,
        )

    share.gather(None)  # All have read what is in it.
    if share.is_first:
        remove_unfinished(output)
    journal = AnswerJournal(output / JOURNAL)
    try:
        target = open_target(command.run.target, mesh=mesh, laid_out=True)
        suppressed = target.suppressed_ids(command.suppress)
        rules = DecodeRules(command.max_new_tokens, target.stop_ids, suppressed)
        rows = batch_rows(len(examples), most=command.batch_size, mesh=mesh)
        answers_to = functools.partial(
            Answers,
            Autoregressive(target.model, rules, sampling),
            target.params,
            target.tokenizer,
            dataclasses.replace(command, batch_size=rows),
        )
        pace = functools.partial(Pace, echo=echo, every=_PROGRESS_SECONDS)
        answers = answers_to(pace(len(examples), first=done, unit="questions"), journal)
        if done >= len(examples):
            echo(f"All {len(examples)} questions have already been answered in {output}.")
        elif done or len(journal):
            echo(f"Continuing after {done} questions in {output}{_kept(journal)}.")
        elif share.is_first:
            # From here on, the same command recognises the folder and continues it.
            keep([], done=0)
        if share.count > 1:
            answer_share(
                answers_to,
                pace,
                examples,
                output,
                done=done,
                shard_prompts=command.shard_prompts,
                share=share,
            )
            share.gather(None)  # All have answered.
        if not share.is_first:
            return
        while done < len(examples):
            shard = examples[done : done + command.shard_prompts]
            shared = journal_of_shard(output, done)
            journal.take(shared)
            answered, lost = answers.of(shard)
            for reason, count in lost.items():
                dropped[reason] = dropped.get(reason, 0) + count
            ends = {name: ends[name] + count for name, count in answers.take_ends().items()}
            questions.add(shard)
            keep(answered, done=done + len(shard))
            done += len(shard)
            journal.clear()
            shared.unlink(missing_ok=True)
        remove_journals(output)
    except KeyboardInterrupt:
        echo(
            f"Stopped: {done} of {len(examples)} questions are answered in {output}"
            f"{_kept(journal)}. The same command continues from there."
        )
        raise
    finally:
        journal.close()
    if not ends["answers"] and not read_manifest(output)["examples"]:
        (output / MANIFEST).unlink()
        raise ValueError(
            f"None of the {done} questions of {command.source!r} could be asked "
            f"({_counted(dropped)}). {answers.first_refusal}"
        )
    if ends["cut"]:
        echo(_cut_line(command, ends, thinks=tokenizer.thinks_first()))
    echo(_summary(output))
    if not read_manifest(output)["examples"]:
        raise ValueError(
            f"{output} contains no examples: none of the target's answers to {command.source!r} "
            f"can be used for training ({_counted(read_manifest(output)['dropped'])})."
        )


def _check_shared(output: Path) -> None:
    if not is_remote(output) and not output.is_dir():
        raise ValueError(
            f"--output {output} is not there on this host, but the first process has made it: all "
            "processes must see the same folder. Name one that all hosts share."
        )


def _cut_line(command: RegenerateCommand, ends: dict[str, int], *, thinks: bool) -> str:
    """Says how many answers reached the limit, and what to do."""
    share = ends["cut"] / ends["answers"]
    is_dropped = command.unfinished == "drop"
    bias = " The data lacks the target's longer answers." if is_dropped else ""
    advice = ", or --target.enable_thinking False, which gives short answers" if thinks else ""
    return (
        f"{'Warning: ' if share > MANY_CUT else ''}{ends['cut']:,} of {ends['answers']:,} answers "
        f"({share:.0%}) had not ended after {command.max_new_tokens:,} tokens and were "
        f"{'dropped' if is_dropped else 'kept without their end'}.{bias} To have them whole, start "
        f"again with another --output and a larger --max_new_tokens{advice}."
    )


def _kept(journal: AnswerJournal) -> str:
    return f", and {len(journal)} answers of the next shard are saved" if len(journal) else ""


def _check(command: RegenerateCommand) -> None:
    if command.split != "train":
        raise ValueError(
            f"--split is {command.split!r}: the answers are for training, and a drafter that was "
            "trained on a test split cannot be measured on it. Use the train split, or eval.py to "
            "decode test prompts."
        )
    if command.max_new_tokens < 0:
        raise ValueError(
            f"--max_new_tokens must be 0 (chosen for the target) or more: got "
            f"{command.max_new_tokens}."
        )
    for name in ("batch_size", "shard_prompts"):
        if getattr(command, name) < 1:
            raise ValueError(f"--{name} must be at least 1: got {getattr(command, name)}.")
    if command.batch_size > LARGEST_BATCH:
        raise ValueError(
            f"--batch_size must be at most {LARGEST_BATCH:,}: got {command.batch_size:,}."
        )
    if command.limit < 0:
        raise ValueError(f"--limit must be 0 (all) or more: got {command.limit}.")
    # jax would silently drop all higher bits.
    if not 0 <= command.seed < 2**32:
        raise ValueError(f"--seed must be from 0 to {2**32 - 1:,}: got {command.seed}.")


def _settings(command: RegenerateCommand, tokenizer: Tokenizer) -> dict[str, Any]:
    """The settings that decide the answers: a folder is continued only with the same ones."""
    names = ("source", "temperature", "top_p", "suppress", "max_new_tokens", "unfinished", "seed")
    settings = {name: getattr(command, name) for name in names}
    target = command.run.target
    return {
        **settings,
        "enable_thinking": target.enable_thinking,
        "target": fingerprint(target_folder(target.path)),
        "dtype": target.dtype,
        _TEMPLATE: tokenizer.files_digest(),
    }


def _progress_of(
    output: Path, settings: dict[str, Any], examples: Sequence[Example], *, limit: int
) -> tuple[int, dict[str, int], dict[str, int]]:
    """What a folder has handled.

    Returns:
      The number of questions; reason -> how many were dropped; and how many "answers" were given
      and "cut" at the limit.
    """
    from jaxspec.data.example_files import (
        MANIFEST,
        foreign_files,
        is_example_folder,
        read_examples,
    )

    if not is_example_folder(output):
        if foreign := foreign_files(output):
            raise ValueError(
                f"{output} has no {MANIFEST}, and holds files that `jaxspec regenerate` did not "
                f"write: {', '.join(foreign[:5])}. Choose a new folder (--output)."
            )
        return 0, {}, dict(_NO_ENDS)
    manifest = read_examples(output).manifest
    before = manifest.get("settings")
    done, dropped = manifest.get("questions_done"), manifest.get("dropped")
    ends = manifest.get("ends", _NO_ENDS)  # Older versions kept none.
    if not isinstance(before, dict) or done is None:
        raise ValueError(f"{output} was not written by `jaxspec regenerate`: choose a new folder.")
    if (
        not (type(done) is int and done >= 0)
        or not _is_counts(dropped)
        or not (_is_counts(ends) and ends.keys() == _NO_ENDS.keys())
    ):
        raise ValueError(
            f"{output / MANIFEST} is damaged: got {done!r} as questions_done, {dropped!r} as "
            f"dropped and {ends!r} as ends, expected a whole number and two objects of counts. "
            "Choose a new folder."
        )
    before = {"suppress": "special", **before}  # Older versions always suppressed these.
    wrong = [
        f"{name}: got {value!r}, expected {before.get(name)!r}"
        for name, value in settings.items()
        # Older versions kept no digest of the template.
        if before.get(name) != value and (name in before or name != _TEMPLATE)
    ]
    if wrong:
        raise ValueError(
            f"{output} holds answers made with other settings. Use the same settings, or another "
            "--output:\n  " + "\n  ".join(wrong)
        )
    asked = manifest.get("questions_digest")  # Older versions kept none.
    is_cut = len(examples) < done and len(examples) == limit
    if asked is not None and not is_cut and asked != Questions(examples[:done]).digest:
        raise ValueError(
            f"{output} holds answers to other questions than {settings['source']!r} has now: the "
            "data were changed, or an older version asked some questions twice. Bring back the "
            "data of the first start, or choose another --output."
        )
    return done, dict(dropped), dict(ends)


def _is_counts(value: Any) -> TypeGuard[dict[str, int]]:
    return isinstance(value, dict) and all(type(count) is int for count in value.values())


def _write(
    output: Path,
    examples: list[Example],
    command: RegenerateCommand,
    *,
    settings: dict[str, Any],
    done: int,
    questions: Questions,
    dropped: dict[str, int],
    ends: dict[str, int],
    mesh: Mesh | None,
) -> None:
    from jaxspec.data.example_files import write_examples
    from jaxspec.evals.mesh import recorded
    from jaxspec.provenance import jsonable, provenance

    record = provenance(config=_recorded(command), seed=command.seed)

    write_examples(
        output,
        examples,
        manifest={
            "split": command.split,
            "settings": settings,
            "questions_done": done,
            "questions_digest": questions.digest,
            "dropped": dropped,
            "ends": ends,
            "provenance": jsonable(recorded(record, mesh)),
        },
    )


def _recorded(command: RegenerateCommand) -> RunConfig:
    return dataclasses.replace(
        command.run,
        data=dataclasses.replace(
            command.run.data,
            sources=(command.source,),
            split=command.split,
            max_examples=command.limit,
        ),
    )


def _counted(dropped: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in dropped.items())


def _summary(output: Path) -> str:
    from jaxspec.data.example_files import read_manifest

    manifest = read_manifest(output)
    return (
        f"Questions asked: {manifest['questions_done']:,}; examples written: "
        f"{manifest['examples']:,}, in {output}"
        + (f"; dropped or cut short: {_counted(lost)}" if (lost := manifest["dropped"]) else "")
        + (f". Train on them with --data.sources {output}" if manifest["examples"] else "")
    )
