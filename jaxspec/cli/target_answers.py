"""The target's answers to the questions of examples, as `jaxspec regenerate` keeps them."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxspec.data.answer_journal import AnswerJournal
from jaxspec.data.examples import Conversation, Example
from jaxspec.data.served_turns import TOKEN_IDS

if TYPE_CHECKING:
    from jaxspec.cli.regenerate import RegenerateCommand
    from jaxspec.decoding import Response
    from jaxspec.evals.progress import Pace
    from jaxspec.parallel.shares import Share

JOURNAL = "answers.unfinished.jsonl"
"""File in the output folder with the answers of the unfinished shard."""
_OF_SHARD = "answers.unfinished.{first}.jsonl"
"""With several processes: the answers of the shard that begins with this question."""


class Answers:
    """Plays conversations with the target, in batches: the user's turns are the examples'.

    A conversation ends before a tool's turn, because that answers another call than the target's.
    """

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
        self._ends = {"answers": 0, "cut": 0}
        self.first_refusal = ""
        """What the chat template said of the first conversation that it refused; "": none."""
        positions = strategy.model.config.max_position_embeddings
        self._longest = positions - command.max_new_tokens

    def of(self, examples: Sequence[Example]) -> tuple[list[Example], dict[str, int]]:
        """Examples with the target's answers, and how many were dropped for each reason.

        Later turns of a conversation follow the target's own answers.
        """
        from jaxspec.evals.conversations import REFUSED, play, user_questions

        played = play(
            examples,
            answer=self._ask,
            tokenizer=self._tokenizer,
            max_prompt_tokens=self._longest,
            questions=user_questions,
            name=lambda example, turn: f"{example.id}#{turn}",
            refuse=self._refuse,
        )
        generated: list[list[Response]] = [[] for _ in examples]
        for each in played.asked:
            generated[each.place].append(each.response)
        # If a conversation ended early, the turns answered before that are kept.
        kept = [
            Example.from_conversation(
                self._with_ids(turns, responses, tools=example.tool_list),
                id=example.id,
                source=example.source,
                tools=example.tool_list,
            )
            for example, turns, responses in zip(
                examples, played.conversations, generated, strict=True
            )
            if turns
        ]
        # Running text has no questions.
        reasons = ["no_question" for example in examples if not user_questions(example)]
        reasons += [
            "before_tool_turn"
            for place, example in enumerate(examples)
            if place not in played.ended and any(role == "tool" for role, _ in example.turns)
        ]
        reasons += [
            end.reason if end.turn == 0 else f"later_{end.reason}" for end in played.ended.values()
        ]
        refusals = (end.message for end in played.ended.values() if end.reason == REFUSED)
        self.first_refusal = self.first_refusal or next(refusals, "")
        counts: dict[str, int] = {}
        for reason in reasons:
            counts[reason] = counts.get(reason, 0) + 1
        self._progress.finished(len(examples))
        return kept, counts

    def take_ends(self) -> dict[str, int]:
        """How many "answers" were given since the last call, and "cut" before they ended."""
        ends, self._ends = self._ends, {"answers": 0, "cut": 0}
        return ends

    def _with_ids(
        self, turns: Conversation, responses: Sequence[Response], *, tools: Sequence[Any]
    ) -> Conversation:
        """The turns, with the ids of answers whose text would give others when it is learned.

        A model may generate any ids that spell a text, while encoding it gives only one spelling.
        """
        rows = self._tokenizer.encode_turns(turns, tools=tools).rows
        learned = {
            answer.turn: row.ids[answer.start : answer.stop]
            for row in rows
            for answer in row.answers
        }
        answers = iter(responses)
        told = []
        for place, turn in enumerate(turns):
            if turn["role"] == "assistant":
                response = next(answers)
                if response.stopped and learned.get(place) != list(response.tokens):
                    turn = {**turn, TOKEN_IDS: list(response.tokens)}
            told.append(turn)
        return told

    def _refuse(self, response: Any, text: str) -> str:
        """Why an answer cannot be training data; "": it can."""
        self._ends["answers"] += 1
        self._ends["cut"] += not response.stopped
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


def answer_share(
    answers_to: Callable[[Pace, AnswerJournal], Answers],
    pace: Callable[..., Pace],
    examples: Sequence[Example],
    output: Path,
    *,
    done: int,
    shard_prompts: int,
    share: Share,
) -> None:
    """Answers this process's shards, each into a journal of its own, and writes no shard.

    Args:
      answers_to: from a pace and a journal to what answers.
      pace: as `Pace`, with everything but the amount of work.
      examples: all questions.
      output: the folder for the journals.
      done: how many of the questions are in finished shards.
      shard_prompts: questions of a shard.
      share: the part of this process.
    """
    shards = share.of(range(done, len(examples), shard_prompts))
    amount = sum(min(shard_prompts, len(examples) - first) for first in shards)
    progress = pace(amount, unit="questions of this process")
    for first in shards:
        with contextlib.closing(AnswerJournal(journal_of_shard(output, first))) as journal:
            answers_to(progress, journal).of(examples[first : first + shard_prompts])


class Questions:
    """Tells the questions that are answered from others.

    >>> from jaxspec.data.examples import Example
    >>> asked = Questions([Example("a", (("user", "1 + 1?"),), "math")])
    >>> asked.digest == Questions([]).digest
    False
    """

    def __init__(self, examples: Iterable[Example]) -> None:
        self._hash = hashlib.sha256()
        self.add(examples)

    def add(self, examples: Iterable[Example]) -> None:
        """Notes that the questions of these examples are answered as well."""
        for example in examples:
            asked = [example.id, *example.user_turns]
            # Only where there are any: the digests of plain conversations stay what they were.
            further = [example.details, example.tools] if example.details or example.tools else []
            system = [{role: text} for role, text in example.turns if role == "system"]
            self._hash.update(json.dumps(asked + further + system).encode())

    @property
    def digest(self) -> str:
        """A hash of all of them, in their order."""
        return self._hash.hexdigest()[:16]


def check_room(positions: int, *, max_new_tokens: int) -> None:
    """Raises a ValueError if the longest answer takes all of the target's positions."""
    if positions <= max_new_tokens:
        raise ValueError(
            f"--max_new_tokens is {max_new_tokens}, but the target has only {positions} "
            "positions: there would be no room for a question."
        )


def journal_of_shard(output: Path, first: int) -> Path:
    """Where the answers of the shard that begins with this question are kept until it is written.

    Only several processes have such files, but one process alone may continue what they began.
    """
    return output / _OF_SHARD.format(first=first)


def remove_journals(output: Path) -> None:
    """Removes all journals, once every shard is written."""
    for pattern in (JOURNAL, _OF_SHARD.format(first="*")):
        for file in output.glob(pattern):
            file.unlink()
