"""What is learned of a conversation: each answer after the prompt for which it is generated.

A chat template does not write an answer in the same way everywhere. Qwen3's drops the thinking of
earlier turns, and writes an empty block of thinking into the last turn, or into the generation
prompt where thinking is off. A server only ever sees prompts, so each answer is taken by itself:

* Its prompt is the template's text for the turns before it, with the generation prompt.
* The answer is what the model would have to generate after that prompt: the rest of the template's
  text for these turns and the answer, up to the stop token, without an empty block of thinking.
  Where that text does not begin with the prompt, or lacks the answer's thinking, it is the turn's
  own text, and the template's closing of a turn.

A prompt that continues the row before (its prompt and answer) becomes part of that row. So a
conversation is one row under a template that only appends, and one row per answer under a template
that rewrites what came before.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxspec.data.chat_template import Refused
from jaxspec.data.examples import Conversation

THINK, END_THINK = "<think>", "</think>"
"""What encloses thinking in a text: Qwen3, SmolLM3, DeepSeek-R1."""
TOKEN_IDS = "token_ids"
"""Field of an assistant's turn with the ids that a model generated, the stop token included, where
encoding the text again would give others. Templates do not see it."""

NO_QUESTION = "no question comes before the answer"
NOT_CLOSED = "no stop token ends the answer"
NOT_WRITTEN = "the chat template does not write the answer"
REFUSED = "the chat template refuses the conversation"
THINKS = "the answer thinks, but thinking is off"

REASONING = "reasoning_content"
"""Where a turn keeps its thinking apart from its content, for templates."""
_REASONING = (REASONING, "reasoning", "thinking")
"""Names that it has elsewhere."""
_EMPTY_THINKING = re.compile(rf"\s*{THINK}\s*{END_THINK}\s*")
_PROBE = "\U000fff02"
"""Stands for a content, to see what a template writes around it."""
_HEADER = 16
"""Characters of a prompt's end that tell the header of an answer."""


class LeftOut(ValueError):
    """An answer that cannot be learned.

    Args:
      message: what is wrong.
      reason: the same in a few words, for counting: one of those above.
      turn: number of the answer's turn.
    """

    def __init__(self, message: str, *, reason: str, turn: int) -> None:
        super().__init__(message)
        self.reason = reason
        self.turn = turn


@dataclasses.dataclass(frozen=True)
class Answer:
    """Where an answer is in a row: ids [start, stop), the stop token included."""

    turn: int
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Row:
    """A prompt and its answer, or several of them that continue each other."""

    ids: list[int]
    answers: tuple[Answer, ...]

    @property
    def learned(self) -> list[bool]:
        """Which ids the assistant generates."""
        mask = [False] * len(self.ids)
        for answer in self.answers:
            mask[answer.start : answer.stop] = [True] * (answer.stop - answer.start)
        return mask


@dataclasses.dataclass(frozen=True)
class LearnedTurns:
    """What is learned of a conversation."""

    rows: tuple[Row, ...]
    left_out: tuple[LeftOut, ...]
    """The answers that are in no row."""


class ServedTurns:
    """Takes conversations apart that are written by one chat template.

    Everything here is guarded text: its special tokens are the template's own.

    Args:
      place: the template's folder, for messages.
      render: turns, add_generation_prompt=, tools= -> text; raises `Refused`.
      encode: text, after= -> ids of a text, or of the part of it that follows other text.
      stop_after: text -> place behind its first stop token; None: it has none.
      stops: the stop tokens, for messages.
      thinks_first: whether the model thinks before it answers.
    """

    def __init__(
        self,
        place: str,
        *,
        render: Callable[..., str],
        encode: Callable[..., list[int]],
        stop_after: Callable[[str], int | None],
        stops: Sequence[str],
        thinks_first: Callable[[], bool],
    ) -> None:
        self._place = place
        self._render_named = render
        self._thinks_first = thinks_first
        self._encode = encode
        self._stop_after = stop_after
        self._stops = stops
        self._asks = False

    def prompt(self, turns: Conversation, *, tools: Sequence[Any]) -> str:
        """The text after which the model generates its answer.

        Raises:
          Refused: the template refuses the conversation, or does not write its tools.
          ValueError: there is no template, or it has no generation prompt.
        """
        text = self._render(turns, add_generation_prompt=True, tools=tools)
        if tools and text == self._render(turns, add_generation_prompt=True, tools=()):
            raise Refused(
                f"The chat template of {self._place!r} does not write the tools of a conversation: "
                "expected a template that reads tools, or conversations without them."
            )
        if not self._asks:
            self._check_asks(text, turns, tools)
        return text

    def _render(self, turns: Conversation, **options: Any) -> str:
        return self._render_named([_with_usual_name(turn) for turn in turns], **options)

    def rows(
        self, turns: Conversation, *, tools: Sequence[Any], generated: Mapping[int, list[int]]
    ) -> LearnedTurns:
        """The rows of a conversation; one without learned ids if the assistant says nothing.

        Args:
          turns: the conversation.
          tools: what the assistant may call.
          generated: turn -> ids that were generated for it, which are then learned.

        Raises:
          ValueError: there is no template, or it has no generation prompt.
        """
        rows: list[Row] = []
        left_out: list[LeftOut] = []
        text = ""
        for index, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            try:
                prompt, answer = self._served(turns, index, tools)
            except LeftOut as error:
                left_out.append(error)
                continue
            text = prompt + answer
            prompt_ids = self._encode(prompt)
            answer_ids = generated.get(index) or self._encode(answer, after=prompt)
            ids = [*prompt_ids, *answer_ids]
            before: tuple[Answer, ...] = ()
            if rows and prompt_ids[: len(rows[-1].ids)] == rows[-1].ids:
                before = rows.pop().answers
            rows.append(Row(ids, (*before, Answer(index, len(prompt_ids), len(ids)))))
        if rows or not left_out:
            self._add_end(rows, text, turns, tools)
        return LearnedTurns(tuple(rows), tuple(left_out))

    def _add_end(
        self, rows: list[Row], text: str, turns: Conversation, tools: Sequence[Any]
    ) -> None:
        """Adds what follows the last answer, where the template's text goes on from there."""
        try:
            whole = self._render(turns, add_generation_prompt=False, tools=tools)
        except Refused:
            if rows:
                return
            raise
        if whole.startswith(text):
            last = rows.pop() if rows else Row([], ())
            rows.append(Row(last.ids + self._encode(whole[len(text) :], after=text), last.answers))

    def _served(self, turns: Conversation, index: int, tools: Sequence[Any]) -> tuple[str, str]:
        """The prompt of the answer `index`, and the answer with its stop token."""
        try:
            return self._prompt_and_answer(turns, index, tools)
        except Refused as error:
            raise LeftOut(str(error), reason=REFUSED, turn=index) from error

    def _prompt_and_answer(
        self, turns: Conversation, index: int, tools: Sequence[Any]
    ) -> tuple[str, str]:
        if index == 0:
            raise LeftOut(
                "The conversation begins with the assistant's turn, which answers nothing: "
                "expected conversations that begin with a user turn.",
                reason=NO_QUESTION,
                turn=index,
            )
        turn, before = turns[index], turns[:index]
        prompt = self.prompt(before, tools=tools)
        if _thinks(turn) and prompt.rstrip().endswith(END_THINK):
            raise LeftOut(
                f"Turn {index} has thinking of its own, but the generation prompt of the chat "
                f"template of {self._place!r} ends with {END_THINK!r}: thinking is off. Leave out "
                "target.enable_thinking, or use answers without thinking.",
                reason=THINKS,
                turn=index,
            )
        text = self._render([*before, turn], add_generation_prompt=False, tools=tools)
        if turn.get("tool_calls") and not self._writes_calls(before, turn, text, tools):
            raise LeftOut(
                f"The chat template of {self._place!r} does not write the tool calls of turn "
                f"{index}: expected a template that reads tool_calls.",
                reason=NOT_WRITTEN,
                turn=index,
            )
        if text.startswith(prompt) and not self._drops_thinking(turn, text[len(prompt) :]):
            answer = text[len(prompt) :]
            if not _thinks(turn) and (empty := _EMPTY_THINKING.match(answer)):
                answer = answer[empty.end() :]
        else:
            opening, closing = self._around(before, turn, index, tools, prompt=prompt)
            answer = opening + _own_text(turn, prompt) + closing
        stop = self._stop_after(answer)
        if stop is None:
            raise LeftOut(
                f"The chat template of {self._place!r} does not end an assistant turn with one of "
                f"the stop tokens {list(self._stops)}: set eos_token in tokenizer_config.json to "
                "the token that closes a turn.",
                reason=NOT_CLOSED,
                turn=index,
            )
        return prompt, answer[:stop]

    def _writes_calls(
        self, before: Conversation, turn: Mapping[str, Any], text: str, tools: Sequence[Any]
    ) -> bool:
        """Whether the template's text of a turn would be another one without its tool calls."""
        without = {key: value for key, value in turn.items() if key != "tool_calls"}
        turns = [*before, without]
        try:
            return text != self._render(turns, add_generation_prompt=False, tools=tools)
        except Refused:
            return True

    def _drops_thinking(self, turn: Mapping[str, Any], answer: str) -> bool:
        """Whether a turn's thinking is missing in its text, though the model does think."""
        if END_THINK in turn["content"]:
            return END_THINK not in answer
        apart = str(_with_usual_name(turn).get(REASONING) or "").strip()
        return bool(apart) and apart not in answer and self._thinks_first()

    def _around(
        self,
        before: Conversation,
        turn: Mapping[str, Any],
        index: int,
        tools: Sequence[Any],
        *,
        prompt: str,
    ) -> tuple[str, str]:
        """What the template writes before the content of a turn, after the prompt, and after it.

        Before it there may be white space. After it come tool calls and the stop token.
        """
        probe = {key: value for key, value in turn.items() if key not in _REASONING}
        probe["content"] = _PROBE
        text = self._render([*before, probe], add_generation_prompt=False, tools=tools)
        if text.count(_PROBE) != 1:
            raise LeftOut(
                f"The chat template of {self._place!r} changes the text before turn {index} when "
                f"that turn is added, and writes its content {text.count(_PROBE)} times: expected "
                "once. Use a template that writes each turn's content.",
                reason=NOT_WRITTEN,
                turn=index,
            )
        header, _, closing = text.partition(_PROBE)
        asked = prompt.rstrip()
        gap = header[len(header.rstrip()) :].removeprefix(prompt[len(asked) :])
        is_same_header = header.rstrip().endswith(asked[-_HEADER:])
        return gap if is_same_header else "", closing

    def _check_asks(self, prompt: str, turns: Conversation, tools: Sequence[Any]) -> None:
        """Refuses a template whose header of an answer is not in its generation prompt.

        Some need no header: "[/INST]" closes the question, and the answer follows.
        """
        if prompt == self._render(turns, add_generation_prompt=False, tools=tools):
            answer = {"role": "assistant", "content": _PROBE}
            try:
                text = self._render([*turns, answer], add_generation_prompt=False, tools=tools)
            except Refused:
                return
            header = text[len(prompt) :].partition(_PROBE)[0]
            if text.startswith(prompt) and _EMPTY_THINKING.sub("", header).strip():
                raise ValueError(
                    f"The chat template of {self._place!r} is a template without generation "
                    f"prompt: with add_generation_prompt it adds nothing, but it writes "
                    f"{header!r:.80} before an answer. Take the model's own chat template, or add "
                    "that text to it where add_generation_prompt is true."
                )
        self._asks = True


def _with_usual_name(turn: Mapping[str, Any]) -> Mapping[str, Any]:
    """A turn that has its thinking where templates look for it."""
    named = next((turn[name] for name in _REASONING if isinstance(turn.get(name), str)), None)
    if named is None or isinstance(turn.get(REASONING), str):
        return turn
    return {**turn, REASONING: named}


def _thinks(turn: Mapping[str, Any]) -> bool:
    apart = any(isinstance(turn.get(name), str) and turn[name].strip() for name in _REASONING)
    return apart or END_THINK in turn["content"]


def _own_text(turn: Mapping[str, Any], prompt: str) -> str:
    """Thinking and content of a turn as the model writes them after a prompt."""
    content: str = turn["content"]
    apart = [turn[name] for name in _REASONING if isinstance(turn.get(name), str)]
    if apart and END_THINK not in content:
        content = f"{THINK}\n{apart[0]}\n{END_THINK}\n\n{content}"
    if not prompt.rstrip().endswith(THINK):
        return content
    # The prompt has begun the thinking.
    if END_THINK in content:
        return content.split(THINK, 1)[-1].lstrip("\n")
    return f"\n{END_THINK}\n\n{content}"
