"""``jaxspec regenerate``: has the target answer a data set's questions, to train a drafter on.

    jaxspec regenerate --target.path Qwen3-4B --source gsm8k --output runs/gsm8k_answers
    python train.py ... --data.sources runs/gsm8k_answers

A drafter drafts what its target would say, so it should learn from that and not from the answers in
the data set. An answer is kept as its text; where encoding that again would give other ids, its ids
are kept too, so that training learns what was generated.

The output is a folder of array_record shards (`jaxspec.data.example_files`) that grows shard by
shard. The answers of the unfinished shard are kept in a journal, so that the same command continues
a run that was stopped or killed. Where the source has a part for validation (`jaxspec import-data`
makes one), the folder gets one too, with answers to its questions.

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
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jaxspec.checkpoints.folders import fingerprint, target_folder
from jaxspec.cli.answer_folder import TEMPLATE, AnswerFolder, check_shared
from jaxspec.cli.cache_option import CacheOption
from jaxspec.cli.configuration import ConfigCommand, parse_command
from jaxspec.cli.process_options import ProcessOptions
from jaxspec.cli.settings import given_names
from jaxspec.cli.target_answers import (
    JOURNAL,
    Answers,
    Questions,
    answer_share,
    check_room,
    journal_of_shard,
    remove_journals,
)
from jaxspec.config import Suppress
from jaxspec.data.answer_journal import AnswerJournal
from jaxspec.data.examples import Example
from jaxspec.data.imports.use import VALIDATION
from jaxspec.files import held, user_path
from jaxspec.interruption import ending_when_told_to

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxspec.data.tokenizer import Tokenizer
    from jaxspec.evals.progress import Pace
    from jaxspec.parallel.shares import Share

ANSWER_TOKENS, THINKING_TOKENS = 1024, 4096
"""Longest answer by default, without and with thinking."""
LARGEST_BATCH = 4096
"""More prompts than any device can decode together."""
_PROGRESS_SECONDS = 5.0


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
    prompts; of a text file (.txt), every line is a prompt. Those of a folder's validation part
    are asked, too; training measures the loss on the answers."""
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
    """Ask only this many questions, and as many of the validation part; 0: all. A later run with a
    larger limit continues after them."""
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
    if not command.config and "target.dtype" not in given_names(argv):
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
    from jaxspec.data.tokenizer import Tokenizer
    from jaxspec.decoding import Autoregressive, DecodeRules
    from jaxspec.evals.mesh import batch_rows, decoding_mesh
    from jaxspec.evals.opening import open_target
    from jaxspec.evals.progress import Pace
    from jaxspec.ops.sampling import Sampling

    sampling = Sampling(command.temperature, top_p=command.top_p)
    mesh = decoding_mesh(command.run.mesh, rows=command.batch_size, option="--batch_size")
    splits = _examples_of_splits(command)
    tokenizer = Tokenizer.load(
        target_folder(command.run.target.path),
        template_options=command.run.target.template_options,
    )
    # A template that cannot be used is noticed before anything is written.
    with contextlib.suppress(Refused):
        tokenizer.encode_prompt([{"role": "user", "content": "Hi."}])
    command = _with_length(command, tokenizer)
    settings = _settings(command, tokenizer)
    questions = [Questions(examples).digest for examples in splits.values()]
    share.check_alike(settings | {"shard_prompts": command.shard_prompts, "questions": questions})
    check_shared(output)  # The folder is there: the first process made it before.
    folders = [
        AnswerFolder(
            output / VALIDATION if split == VALIDATION else output,
            examples,
            command=dataclasses.replace(command, split=split),
            settings=settings,
        )
        for split, examples in splits.items()
    ]
    share.gather(None)  # All have read what is in them.
    target = open_target(command.run.target, mesh=mesh, laid_out=True)
    suppressed = target.suppressed_ids(command.suppress)
    rules = DecodeRules(command.max_new_tokens, target.stop_ids, suppressed)
    rows = batch_rows(max(map(len, splits.values())), most=command.batch_size, mesh=mesh)
    answers_to = functools.partial(
        Answers,
        Autoregressive(target.model, rules, sampling),
        target.params,
        target.tokenizer,
        dataclasses.replace(command, batch_size=rows),
    )
    check_room(target.model.config.max_position_embeddings, max_new_tokens=command.max_new_tokens)
    if share.is_first:
        # From here on, the same command recognises the folders and continues them.
        for folder in folders:
            folder.begin(mesh)
    share.gather(None)  # Nothing is written into a folder that is not recognised.
    pace = functools.partial(Pace, echo=echo, every=_PROGRESS_SECONDS)
    for folder in folders:
        refusal = _answer(folder, answers_to, pace, echo=echo, share=share, mesh=mesh)
        if share.is_first:
            folder.report(refusal, thinks=tokenizer.thinks_first, echo=echo)


def _examples_of_splits(command: RegenerateCommand) -> dict[str, Sequence[Example]]:
    """Split -> the examples whose questions are asked; also those to measure on, if there are any.

    Raises:
      ValueError: no questions, or a missing data set.
    """
    from jaxspec.data.parts import is_divided
    from jaxspec.data.sources import load_examples

    data = dataclasses.replace(command.run.data, max_examples=command.limit)
    load = functools.partial(load_examples, command.source, data=data, use="prompts")
    splits = {command.split: load(split=command.split)}
    if not len(splits[command.split]):
        raise ValueError(f"{command.source!r} holds no examples: there is nothing to ask.")
    if is_divided(command.source) and len(held_out := load(split=VALIDATION)):
        splits[VALIDATION] = held_out
    return splits


def _answer(
    folder: AnswerFolder,
    answers_to: Callable[[Pace, AnswerJournal], Answers],
    pace: Callable[..., Pace],
    *,
    echo: Callable[[str], None],
    share: Share,
    mesh: Mesh | None,
) -> str:
    """Asks every question of a split that its folder has no answer for yet.

    Returns:
      What the chat template said of the first conversation that it refused; "": none.
    """
    total, output = len(folder.examples), folder.path
    what = "validation questions" if folder.is_validation else "questions"
    journal = AnswerJournal(output / JOURNAL)
    try:
        answers = answers_to(pace(total, first=folder.done, unit=what), journal)
        if folder.is_complete:
            echo(f"All {total} {what} have already been answered in {output}.")
        elif folder.done or len(journal):
            echo(f"Continuing after {folder.done} {what} in {output}{_kept(journal)}.")
        if share.count > 1:
            answer_share(
                answers_to,
                pace,
                folder.examples,
                output,
                done=folder.done,
                shard_prompts=folder.shard_prompts,
                share=share,
            )
            share.gather(None)  # All have answered.
        if not share.is_first:
            return ""
        while not folder.is_complete:
            shared = journal_of_shard(output, folder.done)
            journal.take(shared)
            answered, lost = answers.of(folder.next_shard)
            folder.keep(answered, lost=lost, ends=answers.take_ends(), mesh=mesh)
            journal.clear()
            shared.unlink(missing_ok=True)
        remove_journals(output)
    except KeyboardInterrupt:
        echo(
            f"Stopped: {folder.done} of {total} {what} are answered in {output}"
            f"{_kept(journal)}. The same command continues from there."
        )
        raise
    finally:
        journal.close()
    return answers.first_refusal


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
        TEMPLATE: tokenizer.files_digest(),
    }
