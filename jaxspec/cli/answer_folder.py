"""The folder in which `jaxspec regenerate` keeps the target's answers to one split of a source."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from jaxspec.cli.target_answers import Questions
from jaxspec.config import RunConfig
from jaxspec.data.examples import Example
from jaxspec.data.imports.use import VALIDATION
from jaxspec.paths import is_remote

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxspec.cli.regenerate import RegenerateCommand

TEMPLATE = "chat template and tokenizer"
"""The setting that older versions did not write."""
MANY_CUT = 0.25
"""A larger share of answers without an end is a warning."""
_NO_ENDS = {"answers": 0, "cut": 0}


class AnswerFolder:
    """The answers to one split: how many questions are done, and the shards written so far.

    Args:
      path: the folder; it is only read here.
      examples: all questions of the split.
      command: the options, with `split` and `output` of this folder.
      settings: what decides the answers; a folder is continued only with the same.

    Raises:
      ValueError: the folder is not there on this host, is damaged, holds something else, or holds
        answers made with other settings or to other questions.
    """

    def __init__(
        self,
        path: Path,
        examples: Sequence[Example],
        *,
        command: RegenerateCommand,
        settings: dict[str, Any],
    ) -> None:
        self.path = path
        self.examples = examples
        self._command = command
        self._settings = settings
        self.done, self._dropped, self.ends = _progress_of(
            path, settings, examples, limit=command.limit
        )
        self._questions = Questions(itertools.islice(examples, self.done))

    @property
    def is_new(self) -> bool:
        """Whether nothing has been written yet."""
        from jaxspec.data.example_files import is_example_folder

        return not is_example_folder(self.path)

    @property
    def is_complete(self) -> bool:
        """Whether every question has been asked."""
        return self.done >= len(self.examples)

    @property
    def is_validation(self) -> bool:
        """Whether these are the answers to measure the loss on."""
        return self._command.split == VALIDATION

    @property
    def shard_prompts(self) -> int:
        """How many questions a shard has."""
        return self._command.shard_prompts

    @property
    def next_shard(self) -> Sequence[Example]:
        """The questions of the shard that is written next."""
        return self.examples[self.done : self.done + self.shard_prompts]

    def begin(self, mesh: Mesh | None) -> None:
        """Removes what killed writes left, and makes the folder recognisable if it is new."""
        from jaxspec.data.example_files import remove_unfinished

        if self.path.is_dir():
            remove_unfinished(self.path)
        if self.is_new:
            self._write([], mesh=mesh)

    def keep(
        self,
        answered: list[Example],
        *,
        lost: dict[str, int],
        ends: dict[str, int],
        mesh: Mesh | None,
    ) -> None:
        """Writes the answers to `next_shard`.

        Args:
          answered: the examples with their answers.
          lost: reason -> how many were dropped.
          ends: how many "answers" were given, and "cut" at the limit.
          mesh: the devices that answered.
        """
        shard = self.next_shard
        for reason, count in lost.items():
            self._dropped[reason] = self._dropped.get(reason, 0) + count
        self.ends = {name: self.ends[name] + count for name, count in ends.items()}
        self._questions.add(shard)
        self.done += len(shard)
        self._write(answered, mesh=mesh)

    def report(
        self, refusal: str, *, thinks: Callable[[], bool], echo: Callable[[str], None]
    ) -> None:
        """Says what is in the folder now.

        Args:
          refusal: what the chat template said of a conversation that it refused.
          thinks: says whether the target thinks before it answers; its template has to work.
          echo: where the lines go.

        Raises:
          ValueError: there is nothing to train on.
        """
        from jaxspec.data.example_files import MANIFEST, read_manifest

        manifest = read_manifest(self.path)
        count, lost = manifest["examples"], _counted(manifest["dropped"])
        if not (count or self.ends["answers"] or self.is_validation):
            (self.path / MANIFEST).unlink()
            raise ValueError(
                f"None of the {self.done} questions of {self._command.source!r} could be asked "
                f"({lost}). {refusal}"
            )
        if self.ends["cut"]:
            echo(self._cut_line(thinks=thinks()))
        what = "Validation questions" if self.is_validation else "Questions"
        use = f". Train on them with --data.sources {self.path}"
        if self.is_validation:
            use = f". Training on {self.path.parent} measures the loss on them"
        echo(
            f"{what} asked: {self.done:,}; examples written: {count:,}, in {self.path}"
            + (f"; dropped or cut short: {lost}" if lost else "")
            + (use if count else "")
        )
        if not (count or self.is_validation):
            raise ValueError(
                f"{self.path} contains no examples: none of the target's answers to "
                f"{self._command.source!r} can be used for training ({lost})."
            )

    def _cut_line(self, *, thinks: bool) -> str:
        """Says how many answers reached the limit, and what to do."""
        share = self.ends["cut"] / self.ends["answers"]
        is_dropped = self._command.unfinished == "drop"
        bias = " The data lacks the target's longer answers." if is_dropped else ""
        advice = ", or --target.enable_thinking False, which gives short answers" if thinks else ""
        return (
            f"{'Warning: ' if share > MANY_CUT else ''}{self.ends['cut']:,} of "
            f"{self.ends['answers']:,} answers ({share:.0%}) had not ended after "
            f"{self._command.max_new_tokens:,} tokens and were "
            f"{'dropped' if is_dropped else 'kept without their end'}.{bias} To have them whole, "
            f"start again with another --output and a larger --max_new_tokens{advice}."
        )

    def _write(self, examples: list[Example], *, mesh: Mesh | None) -> None:
        from jaxspec.data.example_files import write_examples
        from jaxspec.evals.mesh import recorded
        from jaxspec.provenance import jsonable, provenance

        record = provenance(config=_recorded(self._command), seed=self._command.seed)
        write_examples(
            self.path,
            examples,
            manifest={
                "split": self._command.split,
                "settings": self._settings,
                "questions_done": self.done,
                "questions_digest": self._questions.digest,
                "dropped": self._dropped,
                "ends": self.ends,
                "provenance": jsonable(recorded(record, mesh)),
            },
        )


def check_shared(output: Path) -> None:
    """Raises a ValueError if this host does not see the folder that the first process made."""
    if not is_remote(output) and not output.is_dir():
        raise ValueError(
            f"--output {output} is not there on this host, but the first process has made it: all "
            "processes must see the same folder. Name one that all hosts share."
        )


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
        if output.is_dir() and (foreign := foreign_files(output)):
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
        if before.get(name) != value and (name in before or name != TEMPLATE)
    ]
    if wrong:
        raise ValueError(
            f"{output} holds answers made with other settings. Use the same settings, or another "
            "--output:\n  " + "\n  ".join(wrong)
        )
    asked = manifest.get("questions_digest")  # Older versions kept none.
    is_cut = len(examples) < done and len(examples) == limit
    if (
        asked is not None
        and not is_cut
        and asked != Questions(itertools.islice(examples, done)).digest
    ):
        raise ValueError(
            f"{output} holds answers to other questions than {settings['source']!r} has now: the "
            "data were changed, or an older version asked some questions twice. Bring back the "
            "data of the first start, or choose another --output."
        )
    return done, dict(dropped), dict(ends)


def _is_counts(value: Any) -> TypeGuard[dict[str, int]]:
    return isinstance(value, dict) and all(type(count) is int for count in value.values())


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
