"""``jaxspec regenerate``: the target answers a data set's questions, for a drafter to train on.

    jaxspec regenerate --target.path Qwen3-4B --source gsm8k --output runs/gsm8k_answers
    python train.py ... --data.sources runs/gsm8k_answers

A drafter drafts what its target would say, so it should learn from that and not from the answers a
data set came with. The output is a folder of array_record shards (`jaxspec.data.example_files`)
that grows shard by shard: a run that was killed goes on behind the last whole shard.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from jaxspec.checkpoints.folders import fingerprint, target_folder
from jaxspec.cli.configuration import ConfigCommand, parse_command
from jaxspec.config import RunConfig
from jaxspec.data.examples import Conversation, Example

_PROGRESS_SECONDS = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegenerateCommand(ConfigCommand):
    """What ``jaxspec regenerate`` takes; target and data settings are those of the config."""

    reads: ClassVar[tuple[str, ...]] = (
        *("target.path", "target.dtype", "target.enable_thinking"),
        *("data.raw_dir", "data.data_dir", "data.embedded_examples"),
    )
    example: ClassVar[str] = (
        "{program} --target.path Qwen3-4B --source gsm8k \\\n    --output runs/gsm8k_answers"
    )

    config: str = ""
    """Python file whose get_config() names the target; "": the defaults, with --target.path."""
    source: str
    """Data set whose questions are asked, or a folder of examples."""
    split: str = "train"
    """Split of it. Only training splits are answered: answers to a test split are no data to train
    on."""
    output: str
    """Folder for the answers. A run that stands there goes on."""
    temperature: float = 0.7
    """0: greedy; above: sampling."""
    top_p: float = 0.95
    """Sample from the smallest set of tokens that has this much probability; 1: from all."""
    max_new_tokens: int = 256
    """Longest answer."""
    batch_size: int = 32
    """Prompts decoded together."""
    shard_prompts: int = 512
    """Prompts of a shard: what a kill can cost."""
    limit: int = 0
    """Ask only the first so many questions; 0: all. A larger limit later goes on from there."""
    unfinished: Literal["drop", "keep"] = "drop"
    """Answers that reach `max_new_tokens` before they end: kept, they would teach the drafter to
    end a turn where the target does not."""
    seed: int = 0
    """Of the sampling."""


def main(argv: Sequence[str]) -> None:
    """Parses the command line and generates."""
    command = parse_command(
        RegenerateCommand,
        argv,
        program="jaxspec regenerate",
        description="Answer the questions of a data set with the target, as training data.",
    )
    regenerate(command)


def regenerate(command: RegenerateCommand, *, echo: Callable[[str], None] = print) -> Path:
    """Answers every question that the output folder does not hold yet.

    Returns:
      The folder.

    Raises:
      ValueError: a split to be measured on, a missing target or data set, a folder that holds
        something else or answers made with other settings, nothing to ask.
    """
    from jaxspec.data.sources import load_examples
    from jaxspec.decoding import Autoregressive, DecodeRules
    from jaxspec.evals.opening import open_target
    from jaxspec.ops.sampling import Sampling

    _check(command)
    sampling = Sampling(command.temperature, top_p=command.top_p)
    output = Path(command.output).expanduser()
    data = dataclasses.replace(command.run.data, max_examples=command.limit)
    examples = load_examples(command.source, split=command.split, data=data)
    if len(examples) == 0:
        raise ValueError(f"{command.source!r} holds no examples: there is nothing to ask.")
    settings = _settings(command)
    done, dropped = _progress_of(output, settings)

    target = open_target(command.run.target)
    rules = DecodeRules(command.max_new_tokens, target.stop_ids, target.suppressed_ids)
    answers = Answers(
        Autoregressive(target.model, rules, sampling),
        target.params,
        target.tokenizer,
        command,
        _Progress(total=len(examples), first=done, echo=echo),
    )
    if done >= len(examples):
        echo(f"All {len(examples)} questions are answered in {output}.")
    elif done:
        echo(f"Going on behind {done} questions in {output}.")
    while done < len(examples):
        shard = examples[done : done + command.shard_prompts]
        answered, lost = answers.of(shard)
        done += len(shard)
        for reason, count in lost.items():
            dropped[reason] = dropped.get(reason, 0) + count
        _write(output, answered, command, settings=settings, done=done, dropped=dropped)
    echo(_summary(output))
    return output


class Answers:
    """Plays the user's turns of examples with the target, in batches."""

    def __init__(
        self,
        strategy: Any,
        params: Any,
        tokenizer: Any,
        command: RegenerateCommand,
        progress: _Progress,
    ) -> None:
        self._strategy = strategy
        self._params = params
        self._tokenizer = tokenizer
        self._command = command
        self._progress = progress
        positions = strategy.model.config.max_position_embeddings
        self._longest = positions - command.max_new_tokens
        if self._longest < 1:
            raise ValueError(
                f"--max_new_tokens is {command.max_new_tokens}, but the target has only "
                f"{positions} positions: there would be no room for a question."
            )

    def of(self, examples: Sequence[Example]) -> tuple[list[Example], dict[str, int]]:
        """Examples with the target's answers, and how many were dropped for which reason.

        Later turns of a conversation are asked behind the target's own answers.
        """
        conversations: list[Conversation] = [_before_questions(example) for example in examples]
        # Running text asks nothing.
        lost = {place: "no_question" for place, e in enumerate(examples) if not e.user_turns}
        turn = 0
        while True:
            prompts, names, places = [], [], []
            for place, example in enumerate(examples):
                if place in lost or turn >= len(example.user_turns):
                    continue
                question = {"role": "user", "content": example.user_turns[turn]}
                prompt = self._tokenizer.encode_prompt([*conversations[place], question])
                if len(prompt) > self._longest:
                    self._end(place, turn, "too_long", lost)
                    continue
                conversations[place].append(question)
                prompts.append(prompt)
                names.append(f"{example.id}#{turn}")
                places.append(place)
            if not prompts:
                break
            for place, response in zip(places, self._ask(prompts, names), strict=True):
                text = self._tokenizer.decode(response.tokens)
                unfinished = not response.stopped and self._command.unfinished == "drop"
                if unfinished or not text.strip():
                    conversations[place].pop()
                    self._end(place, turn, "unfinished" if unfinished else "empty", lost)
                else:
                    conversations[place].append({"role": "assistant", "content": text})
            turn += 1
        kept = [
            dataclasses.replace(
                example, turns=tuple((t["role"], t["content"]) for t in conversation)
            )
            for example, conversation in zip(examples, conversations, strict=True)
            if any(t["role"] == "assistant" for t in conversation)
        ]
        counts: dict[str, int] = {}
        for reason in lost.values():
            counts[reason] = counts.get(reason, 0) + 1
        self._progress.examples(len(examples))
        return kept, counts

    def _end(self, place: int, turn: int, reason: str, lost: dict[int, str]) -> None:
        """Ends a conversation; what was answered before stays."""
        lost[place] = reason if turn == 0 else f"later_{reason}"

    def _ask(self, prompts: list[list[int]], names: list[str]) -> list[Any]:
        from jaxspec.decoding import generate

        responses = generate(
            self._strategy,
            self._params,
            prompts,
            ids=names,
            batch_size=self._command.batch_size,
            seed=self._command.seed,
            progress=self._progress.prompts,
        )
        self._progress.tokens(sum(len(response.tokens) for response in responses))
        return responses


def _before_questions(example: Example) -> Conversation:
    """The system's turns before the first question."""
    return [turn for turn in example.prompt_turns if turn["role"] == "system"]


class _Progress:
    """A line now and then: how far, how fast, how long still."""

    def __init__(self, *, total: int, first: int, echo: Callable[[str], None]) -> None:
        self._total, self._first, self._echo = total, first, echo
        self._done, self._asked, self._tokens = first, 0, 0
        self._started = self._last = time.monotonic()

    def prompts(self, count: int) -> None:
        """Counts prompts inside a shard."""
        self._asked += count
        if time.monotonic() - self._last >= _PROGRESS_SECONDS:
            self._line(f"{self._done}/{self._total} questions (+{self._asked} asked)")

    def tokens(self, count: int) -> None:
        """Counts tokens of finished batches."""
        self._tokens += count

    def examples(self, count: int) -> None:
        """Counts the questions of a finished shard."""
        self._done += count
        self._asked = 0
        self._line(f"{self._done}/{self._total} questions")

    def _line(self, text: str) -> None:
        now = time.monotonic()
        seconds, parts = max(now - self._started, 1e-9), [text]
        if self._tokens:  # none before the first shard is done
            parts.append(f"{self._tokens / seconds:,.0f} tokens/s")
        left = seconds / max(1, self._done + self._asked - self._first)
        left *= max(0, self._total - self._done - self._asked)
        parts.append(f"{left / 60:.0f} min left" if left >= 120 else f"{left:.0f} s left")
        self._echo("  ".join(parts))
        self._last = now


def _check(command: RegenerateCommand) -> None:
    if command.split != "train":
        raise ValueError(
            f"--split is {command.split!r}: answers are made to be trained on, and a drafter that "
            "was trained on a test split cannot be measured on it. Use the train split, or eval.py "
            "to decode test prompts."
        )
    for name in ("max_new_tokens", "batch_size", "shard_prompts"):
        if getattr(command, name) < 1:
            raise ValueError(f"--{name} must be at least 1: got {getattr(command, name)}.")
    if command.limit < 0:
        raise ValueError(f"--limit must be 0 (all) or more: got {command.limit}.")


def _settings(command: RegenerateCommand) -> dict[str, Any]:
    """What decides the answers: a folder goes on only with the same."""
    names = ("source", "temperature", "top_p", "max_new_tokens", "unfinished", "seed")
    settings = {name: getattr(command, name) for name in names}
    target = command.run.target
    settings |= target.template_options
    folder = target_folder(target.path)
    return {**settings, "target": fingerprint(folder), "dtype": target.dtype}


def _progress_of(output: Path, settings: dict[str, Any]) -> tuple[int, dict[str, int]]:
    """Questions that a folder has dealt with, and how many were dropped."""
    from jaxspec.data.example_files import is_example_folder, read_manifest

    if not is_example_folder(output):
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise ValueError(
                f"{output} holds something else than answers of `jaxspec regenerate`: name a new "
                "folder (--output)."
            )
        return 0, {}
    manifest = read_manifest(output)
    before = manifest.get("settings")
    if not isinstance(before, dict) or "questions_done" not in manifest:
        raise ValueError(f"{output} was not written by `jaxspec regenerate`: name a new folder.")
    wrong = [
        f"{name}: got {value!r}, expected {before.get(name)!r}"
        for name, value in settings.items()
        if before.get(name) != value
    ]
    if wrong:
        raise ValueError(
            f"{output} holds answers made with other settings. Use the same, or another --output:"
            "\n  " + "\n  ".join(wrong)
        )
    return int(manifest["questions_done"]), dict(manifest["dropped"])


def _write(
    output: Path,
    examples: list[Example],
    command: RegenerateCommand,
    *,
    settings: dict[str, Any],
    done: int,
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
        f"{manifest['examples']} examples of {manifest['questions_done']} questions in "
        f"{len(manifest['shards'])} shards in {output}"
        + (f"; dropped or cut short: {lost}" if lost else "")
        + f". Train on them with --data.sources {output}"
    )
