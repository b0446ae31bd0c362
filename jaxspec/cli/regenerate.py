"""``jaxspec regenerate``: has the target answer a data set's questions, to train a drafter on.

    jaxspec regenerate --target.path Qwen3-4B --source gsm8k --output runs/gsm8k_answers
    python train.py ... --data.sources runs/gsm8k_answers

A drafter drafts what its target would say, so it should learn from that and not from the answers in
the data set. The output is a folder of array_record shards (`jaxspec.data.example_files`) that
grows shard by shard. The answers of the unfinished shard are kept in a journal, so that the same
command continues a run that was stopped or killed. Only one process at a time writes to a folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jaxspec.checkpoints.folders import fingerprint, target_folder
from jaxspec.cli.configuration import ConfigCommand, parse_command
from jaxspec.config import RunConfig, Suppress
from jaxspec.data.answer_journal import AnswerJournal
from jaxspec.data.examples import Example
from jaxspec.files import held, user_path
from jaxspec.interruption import ending_on_sigterm

if TYPE_CHECKING:
    from jaxspec.evals.progress import Pace

JOURNAL = "answers.unfinished.jsonl"
"""File in the output folder with the answers of the unfinished shard."""
LARGEST_BATCH = 4096
"""More prompts than any device can decode together."""
_PROGRESS_SECONDS = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegenerateCommand(ConfigCommand):
    """Options of ``jaxspec regenerate``; target and data settings are those of the config."""

    reads: ClassVar[tuple[str, ...]] = (
        *("target.path", "target.dtype", "target.enable_thinking"),
        *("data.raw_dir", "data.data_dir", "data.embedded_examples"),
    )
    example: ClassVar[str] = (
        "{program} --target.path Qwen3-4B --source gsm8k \\\n    --output runs/gsm8k_answers"
    )

    config: str = ""
    """Python file whose get_config() gives the target; "": the defaults, with --target.path."""
    source: str
    """Data set whose questions are asked, or a folder of examples."""
    split: str = "train"
    """Its split. Only training splits are allowed: answers to a test split must not be trained
    on."""
    output: str
    """Folder for the answers. If it holds an earlier run, that run is continued."""
    temperature: float = 0.7
    """0: greedy; above: sampling."""
    top_p: float = 0.95
    """Sample from the smallest set of tokens with at least this much probability; 1: from all."""
    suppress: Suppress = "none"
    """Tokens that no answer may hold; see `evaluation.suppress`."""
    max_new_tokens: int = 256
    """Longest answer."""
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
    with ending_on_sigterm():
        regenerate(command)


def regenerate(command: RegenerateCommand, *, echo: Callable[[str], None] = print) -> Path:
    """Answers every question that the output folder has no answer for yet.

    Returns:
      The folder.

    Raises:
      ValueError: a split for evaluation; a missing target or data set; no questions; or a folder
        that is in use, is damaged, or holds something else or answers made with other settings.
    """
    _check(command)
    output = user_path(command.output)
    with held(output, option="--output"):
        _regenerate(command, output, echo=echo)
    return output


def _regenerate(command: RegenerateCommand, output: Path, *, echo: Callable[[str], None]) -> None:
    """`regenerate`, in a folder that is held."""
    from jaxspec.data.example_files import remove_unfinished
    from jaxspec.data.sources import load_examples
    from jaxspec.decoding import Autoregressive, DecodeRules
    from jaxspec.evals.opening import open_target
    from jaxspec.evals.progress import Pace
    from jaxspec.ops.sampling import Sampling

    sampling = Sampling(command.temperature, top_p=command.top_p)
    data = dataclasses.replace(command.run.data, max_examples=command.limit)
    examples = load_examples(command.source, split=command.split, data=data)
    if len(examples) == 0:
        raise ValueError(f"{command.source!r} holds no examples: there is nothing to ask.")
    settings = _settings(command)
    done, dropped = _progress_of(output, settings, examples)
    questions = _Questions(examples[:done])

    def keep(answered: list[Example], *, done: int) -> None:
        _write(
            output,
            answered,
            command,
            settings=settings,
            done=done,
            questions=questions,
            dropped=dropped,
        )

    remove_unfinished(output)
    journal = AnswerJournal(output / JOURNAL)
    if done >= len(examples):
        journal.clear()
    try:
        target = open_target(command.run.target)
        suppressed = target.suppressed_ids(command.suppress)
        rules = DecodeRules(command.max_new_tokens, target.stop_ids, suppressed)
        answers = Answers(
            Autoregressive(target.model, rules, sampling),
            target.params,
            target.tokenizer,
            dataclasses.replace(command, batch_size=min(command.batch_size, len(examples))),
            Pace(len(examples), first=done, unit="questions", echo=echo, every=_PROGRESS_SECONDS),
            journal,
        )
        if done >= len(examples):
            echo(f"All {len(examples)} questions have already been answered in {output}.")
        elif done or len(journal):
            echo(f"Continuing after {done} questions in {output}{_kept(journal)}.")
        else:
            # From here on, the same command recognises the folder and continues it.
            keep([], done=0)
        while done < len(examples):
            shard = examples[done : done + command.shard_prompts]
            answered, lost = answers.of(shard)
            for reason, count in lost.items():
                dropped[reason] = dropped.get(reason, 0) + count
            questions.add(shard)
            keep(answered, done=done + len(shard))
            done += len(shard)
            journal.clear()
    except KeyboardInterrupt:
        echo(
            f"Stopped: {done} of {len(examples)} questions are answered in {output}"
            f"{_kept(journal)}. The same command continues from there."
        )
        raise
    echo(_summary(output))


def _kept(journal: AnswerJournal) -> str:
    return f", and {len(journal)} answers of the next shard are saved" if len(journal) else ""


class Answers:
    """Plays conversations with the target, in batches: the user's turns are the examples'."""

    def __init__(
        self,
        strategy: Any,
        params: Any,
        tokenizer: Any,
        command: RegenerateCommand,
        progress: Pace,
        journal: AnswerJournal,
    ) -> None:
        self._strategy = strategy
        self._params = params
        self._tokenizer = tokenizer
        self._command = command
        self._progress = progress
        self._journal = journal
        positions = strategy.model.config.max_position_embeddings
        self._longest = positions - command.max_new_tokens
        if self._longest < 1:
            raise ValueError(
                f"--max_new_tokens is {command.max_new_tokens}, but the target has only "
                f"{positions} positions: there would be no room for a question."
            )

    def of(self, examples: Sequence[Example]) -> tuple[list[Example], dict[str, int]]:
        """Examples with the target's answers, and how many were dropped for each reason.

        Later turns of a conversation follow the target's own answers.
        """
        from jaxspec.evals.conversations import play

        played = play(
            examples,
            answer=self._ask,
            tokenizer=self._tokenizer,
            max_prompt_tokens=self._longest,
            questions=lambda example: example.user_turns,
            name=lambda example, turn: f"{example.id}#{turn}",
            refuse=self._refuse,
        )
        # If a conversation ended early, the turns answered before that are kept.
        kept = [
            dataclasses.replace(
                example, turns=tuple((t["role"], t["content"]) for t in conversation)
            )
            for example, conversation in zip(examples, played.conversations, strict=True)
            if any(t["role"] == "assistant" for t in conversation)
        ]
        # Running text has no questions.
        reasons = ["no_question" for example in examples if not example.user_turns]
        reasons += [
            end.reason if end.turn == 0 else f"later_{end.reason}" for end in played.ended.values()
        ]
        counts: dict[str, int] = {}
        for reason in reasons:
            counts[reason] = counts.get(reason, 0) + 1
        self._progress.finished(len(examples))
        return kept, counts

    def _refuse(self, response: Any, text: str) -> str:
        """Why an answer cannot be training data; "": it can."""
        if not response.stopped and self._command.unfinished == "drop":
            return "unfinished"
        return "" if text.strip() else "empty"

    def _ask(self, prompts: list[list[int]], names: list[str]) -> list[Any]:
        from jaxspec.decoding import Response

        found: dict[int, Response] = {}
        for place, (name, prompt) in enumerate(zip(names, prompts, strict=True)):
            if (kept := self._journal.find(name, prompt)) is not None:
                found[place] = Response(name, *kept)
        missing = [place for place in range(len(prompts)) if place not in found]

        def answered(number: int, response: Response) -> None:
            self._journal.add(
                response.prompt_id,
                prompts[missing[number]],
                tokens=response.tokens,
                stopped=response.stopped,
            )

        if missing:
            responses = self._generate(
                [prompts[place] for place in missing],
                [names[place] for place in missing],
                answered,
            )
            self._progress.tokens(sum(len(response.tokens) for response in responses))
            found |= dict(zip(missing, responses, strict=True))
        return [found[place] for place in range(len(prompts))]

    def _generate(
        self,
        prompts: list[list[int]],
        names: list[str],
        answered: Callable[[int, Any], None],
    ) -> list[Any]:
        from jaxspec.decoding import generate

        return generate(
            self._strategy,
            self._params,
            prompts,
            ids=names,
            batch_size=self._command.batch_size,
            seed=self._command.seed,
            progress=self._progress.prompts,
            answered=answered,
        )


def _check(command: RegenerateCommand) -> None:
    if command.split != "train":
        raise ValueError(
            f"--split is {command.split!r}: the answers are for training, and a drafter that was "
            "trained on a test split cannot be measured on it. Use the train split, or eval.py to "
            "decode test prompts."
        )
    for name in ("max_new_tokens", "batch_size", "shard_prompts"):
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


def _settings(command: RegenerateCommand) -> dict[str, Any]:
    """The settings that decide the answers: a folder is continued only with the same ones."""
    names = ("source", "temperature", "top_p", "suppress", "max_new_tokens", "unfinished", "seed")
    settings = {name: getattr(command, name) for name in names}
    target = command.run.target
    settings |= target.template_options
    folder = target_folder(target.path)
    return {**settings, "target": fingerprint(folder), "dtype": target.dtype}


def _progress_of(
    output: Path, settings: dict[str, Any], examples: Sequence[Example]
) -> tuple[int, dict[str, int]]:
    """Number of questions that a folder has handled, and how many were dropped for each reason."""
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
        return 0, {}
    manifest = read_examples(output).manifest
    before = manifest.get("settings")
    done, dropped = manifest.get("questions_done"), manifest.get("dropped")
    if not isinstance(before, dict) or done is None:
        raise ValueError(f"{output} was not written by `jaxspec regenerate`: choose a new folder.")
    if (
        not (type(done) is int and done >= 0)
        or not isinstance(dropped, dict)
        or not all(type(count) is int for count in dropped.values())
    ):
        raise ValueError(
            f"{output / MANIFEST} is damaged: got {done!r} as questions_done and {dropped!r} as "
            "dropped, expected a whole number and an object of counts. Choose a new folder."
        )
    before = {"suppress": "special", **before}  # Older versions always suppressed these.
    wrong = [
        f"{name}: got {value!r}, expected {before.get(name)!r}"
        for name, value in settings.items()
        if before.get(name) != value
    ]
    if wrong:
        raise ValueError(
            f"{output} holds answers made with other settings. Use the same settings, or another "
            "--output:\n  " + "\n  ".join(wrong)
        )
    asked = manifest.get("questions_digest")  # Older versions kept none.
    if asked is not None and done <= len(examples) and asked != _Questions(examples[:done]).digest:
        raise ValueError(
            f"{output} holds answers to other questions than {settings['source']!r} has now: the "
            "data were changed. Bring back the data of the first start, or choose another --output."
        )
    return done, dict(dropped)


class _Questions:
    """Tells the questions that are answered from others.

    >>> from jaxspec.data.examples import Example
    >>> asked = _Questions([Example("a", (("user", "1 + 1?"),), "math")])
    >>> asked.digest == _Questions([]).digest
    False
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        self._hash = hashlib.sha256()
        self.add(examples)

    def add(self, examples: Sequence[Example]) -> None:
        """Notes that the questions of these examples are answered as well."""
        for example in examples:
            self._hash.update(json.dumps([example.id, *example.user_turns]).encode())

    @property
    def digest(self) -> str:
        """A hash of all of them, in their order."""
        return self._hash.hexdigest()[:16]


def _write(
    output: Path,
    examples: list[Example],
    command: RegenerateCommand,
    *,
    settings: dict[str, Any],
    done: int,
    questions: _Questions,
    dropped: dict[str, int],
) -> None:
    from jaxspec.data.example_files import write_examples
    from jaxspec.provenance import jsonable, provenance

    write_examples(
        output,
        examples,
        manifest={
            "split": command.split,
            "settings": settings,
            "questions_done": done,
            "questions_digest": questions.digest,
            "dropped": dropped,
            "provenance": jsonable(provenance(config=_recorded(command), seed=command.seed)),
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


def _summary(output: Path) -> str:
    from jaxspec.data.example_files import read_manifest

    manifest = read_manifest(output)
    lost = ", ".join(f"{count} {reason}" for reason, count in manifest["dropped"].items())
    return (
        f"{manifest['examples']} examples from {manifest['questions_done']} questions in "
        f"{len(manifest['shards'])} shards in {output}"
        + (f"; dropped or cut short: {lost}" if lost else "")
        + f". Train on them with --data.sources {output}"
    )
