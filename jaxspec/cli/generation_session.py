"""A session of ``jaxspec generate``: opens the models, answers prompts or chats, and sums up."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from jaxspec.api import Generator
from jaxspec.checkpoints.families.registry import StoredModel, open_folder
from jaxspec.checkpoints.folders import exported_weights
from jaxspec.cli.generate import CHAT_HELP, GenerateCommand
from jaxspec.cli.generation_report import Answer, as_json, summary, write_picture
from jaxspec.cli.terminal_tokens import LEGEND, is_coloured, make_view
from jaxspec.config import EvaluationConfig, TargetConfig
from jaxspec.data.chat_template import PLAIN
from jaxspec.data.examples import Conversation
from jaxspec.data.prompts import Question
from jaxspec.data.tokenizer import Tokenizer
from jaxspec.decoding.generate import bucket_length, check_positions
from jaxspec.decoding.placement import mesh_of
from jaxspec.drafters.registry import KINDS, kind_of
from jaxspec.evals.mesh import decoding_mesh, recorded
from jaxspec.evals.opening import (
    DrafterBundle,
    TargetBundle,
    is_diffusion_target,
    open_drafter,
    open_target,
    stored_target,
    untrained_drafter,
)
from jaxspec.evals.speculative.drafters import other_thinking_mode
from jaxspec.files import user_path
from jaxspec.names import did_you_mean, for_terminal
from jaxspec.ops.sampling import Sampling
from jaxspec.provenance import jsonable, provenance

Say = Callable[[str], None]
"""Where lines about the work go."""
_UNTRAINED = tuple(name for name, kind in KINDS.items() if not kind.is_trained)


def open_models(
    command: GenerateCommand, questions: Sequence[Question], *, say: Say
) -> tuple[TargetBundle, DrafterBundle | None]:
    """Opens target and drafter, after everything that can be refused without weights.

    Args:
      command: what was asked for.
      questions: have to fit into the target's positions.
      say: told what is loaded.

    Raises:
      ValueError: folders that cannot be opened or do not fit, or a prompt that is too long.
    """
    Sampling(command.temperature, top_k=command.top_k, top_p=command.top_p)  # It refuses others.
    config = command.run.target
    stored = stored_target(config)
    if is_diffusion_target(config, stored=stored):
        raise ValueError(
            f"{config.path} is a diffusion language model. It decodes without a drafter, and "
            f"jaxspec generate shows rounds of drafting: measure it with jaxspec eval "
            f"--target.path {config.path}."
        )
    tokenizer = Tokenizer.load(
        stored.folder,
        template_options=config.template_options,
        default_template=PLAIN,
        model_config=stored.raw,
    )
    for number, question in enumerate(questions):
        check_positions(
            tokenizer.encode_prompt(question.turns, tools=question.tools),
            name=name_of(number),
            max_new_tokens=command.max_new_tokens,
            positions=stored.as_target().max_position_embeddings,
        )
    _check_drafter(command.drafter, config, stored)
    say(f"Loading {for_terminal(config.path)} ({config.dtype}) ...")
    mesh = decoding_mesh(
        dataclasses.replace(command.run.mesh, data=1, fsdp=1), rows=1, option="prompts"
    )
    target = open_target(config, default_template=PLAIN, mesh=mesh, laid_out=True)
    if command.drafter in ("", "none"):
        return target, None
    if command.drafter in _UNTRAINED:
        return target, untrained_drafter(command.drafter)
    drafter = open_drafter(command.drafter, target=target)
    if drafter.trained_on_other_target:
        say(
            f"{for_terminal(drafter.name)} was trained on other weights than those of "
            f"{for_terminal(target.name)}: fewer of its drafts will be accepted."
        )
    if note := other_thinking_mode(drafter, target=target, asked=config.enable_thinking):
        say(note)
    return target, drafter


def _check_drafter(path: str, config: TargetConfig, stored: StoredModel) -> None:
    """Refuses what is not a drafter for this target, by its configuration."""
    if path in ("", *_UNTRAINED):
        return
    folder = user_path(path)
    if not folder.is_dir():
        raise ValueError(
            f"--drafter: there is no folder {folder}.{did_you_mean(path, _UNTRAINED)} Expected the "
            'folder of a training run or of an exported drafter, or "ngram".'
        )
    drafter = open_folder(exported_weights(folder))
    kind_of(drafter.config)
    drafter.family.fitted(
        drafter.description, config.dtype, target=stored.as_target(), where=str(drafter.folder)
    )


def name_of(number: int) -> str:
    """What messages call a prompt; its random stream depends on it."""
    return f"prompt/{number + 1}"


class Session:
    """Answers, one after the other, with the same models.

    Args:
      command: how to answer, and what to show.
      target: what answers.
      drafter: what drafts; None: nothing does.
      console: where answers go.
      say: where everything else goes.

    Raises:
      ValueError: settings that do not go together.
    """

    def __init__(
        self,
        command: GenerateCommand,
        target: TargetBundle,
        drafter: DrafterBundle | None,
        *,
        console: Console,
        say: Say,
    ) -> None:
        settings = EvaluationConfig(
            max_new_tokens=command.max_new_tokens,
            temperature=command.temperature,
            top_k=command.top_k,
            top_p=command.top_p,
            block_size=command.block_size,
            seed=command.seed,
        )
        self._command, self._target, self._drafter = command, target, drafter
        self._console, self._say = console, say
        self._generator = Generator(target, drafter, settings)
        compares = command.compare and drafter is not None
        self._alone = Generator(target, None, settings) if compares else None
        self._is_coloured = not command.json and is_coloured(
            command.show, console=console, has_drafter=drafter is not None
        )
        self._record = self._what_is_the_same() if command.json else {}
        self.answers: list[Answer] = []
        """In the order in which they were asked."""

    def answer_all(self, questions: Sequence[Question]) -> None:
        """Answers questions that do not depend on each other."""
        for number, question in enumerate(questions):
            if len(questions) > 1:
                asked = for_terminal(question.turns[-1]["content"])
                self._say(f"[{number + 1}/{len(questions)}] {asked}")
            answer = self._compared(self._answer(question))
            if self._command.json:
                line = json.dumps(jsonable(as_json(answer, record=self._record)), allow_nan=False)
                print(line, flush=True)
            self.answers.append(answer)
        self._sum_up()

    def chat(self) -> None:
        """Reads questions until the input ends."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (input() then edits lines and remembers them)
        drafter = "alone" if self._drafter is None else f"with {for_terminal(self._drafter.name)}"
        self._say(f"{for_terminal(self._target.name)} {drafter}. {CHAT_HELP}")
        try:
            self._read_questions()
            if self.answers and self._alone is not None:
                self._say("\nThe target answers the same alone ... (Ctrl-C: leave it out)")
                self.answers = [self._compared(answer) for answer in self.answers]
        except KeyboardInterrupt:
            self._say("")
        if self.answers:
            self._sum_up()

    def _read_questions(self) -> None:
        is_shown = sys.stdin.isatty() and sys.stdout.isatty()
        turns: Conversation = []
        while True:
            try:
                line = input("> " if is_shown else "").strip()
            except EOFError:
                return
            except UnicodeDecodeError as error:
                raise ValueError(f"The input is not UTF-8 text: {error.reason}.") from error
            if line == "/quit":
                return
            if line == "/reset":
                turns = []
            elif line:
                turns = self._turn(turns, line)

    def _turn(self, turns: Conversation, line: str) -> Conversation:
        """Asks one more question; returns the conversation after it."""
        before = turns
        if self._command.system and not turns:
            turns = [{"role": "system", "content": self._command.system}]
        turns = [*turns, {"role": "user", "content": line}]
        try:
            self._check_length(turns)
        except ValueError as error:
            self._say(f"{error} {CHAT_HELP}")
            return before
        answer = self._answer(Question(turns))
        self.answers.append(answer)
        self._say(next(self._summary([answer])))
        return [*turns, {"role": "assistant", "content": answer.generation.text}]

    def _check_length(self, turns: Conversation) -> None:
        check_positions(
            self._target.tokenizer.encode_prompt(turns),
            name=name_of(len(self.answers)),
            max_new_tokens=self._command.max_new_tokens,
            positions=self._target.config.max_position_embeddings,
        )

    def _answer(self, question: Question) -> Answer:
        """Answers, and shows the answer as it grows."""
        name, ids = name_of(len(self.answers)), self._ids(question)
        compile_s = self._compile(self._generator, ids)
        view = None
        if not self._command.json:
            view = make_view(
                self._command.show,
                tokenizer=self._target.tokenizer,
                console=self._console,
                has_drafter=self._drafter is not None,
            )
        rounds = []
        for each in self._generator.rounds(ids, name=name):
            rounds.append(each)
            if view is not None:
                view.add(each)
        if view is not None:
            view.end()
        generation = self._generator.generation(rounds, compile_s=compile_s)
        return Answer(name=name, question=question, first=rounds[0], generation=generation)

    def _compared(self, answer: Answer) -> Answer:
        """The answer with the target's own beside it, if that is asked for."""
        if self._alone is None:
            return answer
        ids = self._ids(answer.question)
        compile_s = self._compile(self._alone, ids, what="the target alone")
        rounds = list(self._alone.rounds(ids, name=answer.name))
        alone = self._alone.generation(rounds, compile_s=compile_s)
        return dataclasses.replace(answer, alone=alone)

    def _ids(self, question: Question) -> list[int]:
        return self._target.tokenizer.encode_prompt(question.turns, tools=question.tools)

    def _compile(self, generator: Generator, ids: Sequence[int], *, what: str = "") -> float:
        if generator.needs_compiling(ids):
            length = bucket_length(len(ids))
            self._say(
                f"Compiling{f' {what}' if what else ''} for prompts of up to {length} tokens ..."
            )
        return generator.compile(ids)

    def _summary(self, answers: Sequence[Answer]) -> Any:
        return summary(
            answers,
            is_greedy=self._command.temperature == 0,
            has_drafter=self._drafter is not None,
            tokenizer=self._target.tokenizer,
        )

    def _sum_up(self) -> None:
        lines = list(self._summary(self.answers))
        self._say("")
        if self._is_coloured:
            self._console.print(LEGEND)
        self._say("\n".join(lines))
        if self._command.picture:
            drafter = "" if self._drafter is None else f" with {self._drafter.name}"
            write_picture(
                user_path(self._command.picture),
                self.answers,
                lines=lines,
                tokenizer=self._target.tokenizer,
                title=f"jaxspec generate: {self._target.name}{drafter}",
            )
            self._say(f"Written: {self._command.picture}")

    def _what_is_the_same(self) -> dict[str, Any]:
        """What `as_json` says of every answer."""
        command, drafter = self._command, self._drafter
        names = ("max_new_tokens", "temperature", "top_k", "top_p", "seed", "system")
        record = provenance(config=None, seed=command.seed)
        record = recorded(record, mesh_of(self._target.params))
        return {
            "target": self._target.name,
            "drafter": None if drafter is None else drafter.name,
            "kind": self._generator.drafter.kind,
            "block_size": self._generator.block_size,
            "settings": {
                **{name: getattr(command, name) for name in names},
                "dtype": command.run.target.dtype,
            },
            "versions": record["versions"],
            "devices": record["devices"],
        }
