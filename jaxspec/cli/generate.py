"""``jaxspec generate``: answers prompts, or chats, and shows what was drafted and accepted.

    jaxspec generate --drafter runs/full --prompt "I want to cook bean stew. What do I have to buy?"
    jaxspec generate --target.path Qwen3-4B --drafter ngram --prompts questions.jsonl --json
    jaxspec generate --drafter runs/full                                      # a chat

Standard output holds the answers and nothing else. What is loaded, compiled and measured is said on
standard error. With a drafter the target answers once more alone: the text has to be the same, and
the times are compared.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from jaxspec.cli.cache_option import CacheOption
from jaxspec.cli.configuration import ConfigCommand, parse_command
from jaxspec.cli.settings import given_names
from jaxspec.config import RunConfig
from jaxspec.files import try_file, user_path
from jaxspec.ranges import (
    MOST_SLOTS,
    MOST_VOCABULARY,
    NotNegative,
    Positions,
    Seed,
    check_ranges,
    fraction,
    whole,
)

if TYPE_CHECKING:
    from jaxspec.cli.generation_report import Answer
    from jaxspec.data.prompts import Question

CHAT_HELP = "/reset starts a new chat, /quit (or Ctrl-D) ends it."


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateCommand(CacheOption, ConfigCommand):
    """Options of ``jaxspec generate``."""

    reads: ClassVar[tuple[str, ...]] = (
        *("target.path", "target.dtype", "target.enable_thinking", "mesh.tensor"),
    )
    not_from_config: ClassVar[tuple[str, ...]] = ("mesh",)
    example: ClassVar[str] = (
        '{program} --drafter runs/full --prompt "How do I cook bean stew?"\n'
        "{program} --target.path Qwen3-4B --drafter ngram \\\n"
        "    --prompts questions.jsonl --json\n"
        "{program} --drafter runs/full"
    )

    config: str = ""
    """Python file, or the name of a shipped configuration, whose get_config() gives the target; "":
    the defaults, with --target.path."""
    drafter: str = ""
    """Folder of a drafter, that is, of a training run or an export; "ngram": prompt look-up, which
    needs no training; "": the target alone."""
    prompt: str = ""
    """What to ask; without it and without --prompts, a chat begins."""
    prompts: str = ""
    """File of prompts: a .txt with one per line, or conversations in any format that `jaxspec
    import-data` reads, such as JSONL with "prompt" or "messages"."""
    system: str = ""
    """System prompt."""
    max_new_tokens: Positions = 256
    """Longest answer, in tokens."""
    temperature: NotNegative = 0.0
    """0: greedy decoding; above 0: sampling."""
    top_k: Annotated[int, whole(0, MOST_VOCABULARY)] = 0
    """Sample only from the k likeliest tokens; 0: from all."""
    top_p: Annotated[float, fraction(zero=False)] = 1.0
    """Sample only from the likeliest tokens that together reach this probability; 1: from all."""
    block_size: Annotated[int, whole(0, MOST_SLOTS)] = 0
    """Slots of a draft, its anchor included; 0: the drafter's own."""
    seed: Seed = 0
    """Seed of the sampling."""
    compare: bool = True
    """With a drafter, let the target answer alone as well, and compare the texts and the times
    (--no-compare: do not). A chat is compared when it ends."""
    show: Literal["tokens", "rounds", "text"] = "tokens"
    """tokens: coloured by where they come from (plain text if the output is not a terminal, or with
    NO_COLOR); rounds: a line for each round, with all drafts; text: plain text."""
    json: bool = False
    """Print one JSON object for each prompt instead, on a line of its own (docs/generate.md)."""
    picture: str = ""
    """SVG file for a picture of the answers, as a terminal of 80 columns shows them; "": none."""

    @classmethod
    def why_not(cls, name: str, run: RunConfig, argv: Sequence[str]) -> str:
        """Why a setting of a run is not read."""
        if name.startswith("mesh."):
            return "prompts are answered one at a time, so only --mesh.tensor spreads the work"
        return super().why_not(name, run, argv)


def main(argv: Sequence[str]) -> None:
    """Parses the command line and generates."""
    command = parse_command(
        GenerateCommand,
        argv,
        program="jaxspec generate",
        description="Answer a prompt, a file of prompts or a chat, and show which tokens were "
        "drafted, accepted and rejected. The target's output does not change.",
    )
    if not command.prompt and "prompt" in given_names(argv):
        raise ValueError("The prompt is empty: ask something, or leave --prompt out for a chat.")
    generate(command)


def generate(command: GenerateCommand) -> list[Answer]:
    """Answers what is asked.

    Returns:
      The answers.

    Raises:
      ValueError: options that do not go together, an empty prompt, a target or a drafter that
        cannot be opened or do not fit, or a prompt that is too long. All of this is found before
        the target's weights are read, except for damaged ones.
    """
    questions = _questions(command)
    if command.block_size and not command.drafter:
        raise ValueError("--block-size is the size of drafts: name a --drafter, or leave it out.")
    if command.block_size == 1:
        raise ValueError(
            "--block-size counts the anchor, which is not drafted: expected 2 or more, or 0 for "
            "the drafter's own size, got 1."
        )
    if command.picture:
        if user_path(command.picture).suffix != ".svg":
            raise ValueError(f"--picture must be an .svg file: got {command.picture!r}.")
        try_file(command.picture, option="--picture")
    # jax is imported only now, so that mistakes are answered at once.
    from rich.console import Console

    from jaxspec.cli.generation_session import Session, open_models

    command.keep_programs()
    target, drafter = open_models(command, questions or [], say=say)
    session = Session(command, target, drafter, console=Console(highlight=False), say=say)
    if questions is None:
        session.chat()
    else:
        session.answer_all(questions)
    return session.answers


def say(text: str) -> None:
    """Prints a line on standard error."""
    print(text, file=sys.stderr, flush=True)


def _questions(command: GenerateCommand) -> list[Question] | None:
    """What is asked; None: a chat."""
    from jaxspec.data.prompts import Question, conversation_of, read_questions

    check_ranges(command, prefix="--")
    if command.prompt and command.prompts:
        raise ValueError("Got --prompt and --prompts: give one of them.")
    if command.prompt:
        return [Question(conversation_of(command.prompt, system=command.system))]
    if command.prompts:
        return [
            Question(conversation_of(each.turns, system=command.system), each.tools)
            for each in read_questions(command.prompts)
        ]
    if command.json:
        raise ValueError("--json needs --prompt or --prompts: a chat is not printed as JSON.")
    return None
