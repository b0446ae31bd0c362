"""Tokenizers from the folder of any Hugging Face model, and conversations as ids.

>>> Tokenizer.load("embedded").encode_prompt([{"role": "user", "content": "Hi."}])[0]
1

Only byte-level tokenizers are accepted (Qwen, Llama 3, GPT-2, the embedded one): they encode the
text before and after a special token independently, and everything here relies on that.

The folder of a GPT-2 or GPT-Neo may hold only vocab.json and merges.txt; "<|endoftext|>" is then
its one special token. It has no mask token. If it has no chat template, a conversation is rendered
as its unchanged contents (`jaxspec.data.chat_template.PLAIN`).
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers

from jaxspec.data.chat_template import CHATML, PLAIN, ChatTemplate, check_turns
from jaxspec.data.examples import Conversation
from jaxspec.data.tokenizer_files import (
    GPT2_NAMES,
    byte_level,
    is_gpt2,
    read_json,
    read_tokenizer,
    read_tokenizer_config,
    refusing,
)
from jaxspec.tokenizer_files import TOKENIZER_FILES

EMBEDDED_FOLDER = pathlib.Path(__file__).parent / "embedded" / "tokenizer"

PAD_TOKEN = "<|endoftext|>"
START_TOKEN = "<|im_start|>"
END_TOKEN = "<|im_end|>"
MASK_TOKEN = "<|mask|>"

# Tokens that end a turn in common model families, and common names of masks. They count only if a
# tokenizer has them as added tokens.
_END_OF_TURN_TOKENS = (END_TOKEN, "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>")
_MASK_TOKENS = (MASK_TOKEN, "<|MASK|>", "<MASK>", "[MASK]", "<mask>")

_SPECIAL_KEYS = {"bos_token", "eos_token", "pad_token", "unk_token", "mask_token"}

# How text is split before merging: letters with the space before them, single digits (so that place
# values can be learned), runs of symbols, and a line break with the indentation after it.
_PIECES = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\n *|\s+(?!\S)|\s+"

# Enclose the number that replaces a special token's text in a message while it is rendered.
_GUARD_OPEN, _GUARD_CLOSE = "\U000fff00", "\U000fff01"


class Tokenizer:
    """Converts text to ids and back, and conversations to ids with the response marked.

    Text in a message never becomes a special token: "<|im_end|>" is encoded as ordinary characters
    there. Only the chat template's own text can open or close a turn.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        template_options: Mapping[str, Any] | None = None,
        default_template: str | None = None,
        model_config: Mapping[str, Any] | None = None,
    ) -> None:
        """Read a folder; see `load`."""
        self.folder = pathlib.Path(folder)
        with refusing(self.folder):
            config = read_tokenizer_config(self.folder, model_config=model_config)
            self._tokenizer = read_tokenizer(self.folder, config)
            self._names = _special_names(self.folder, config)
            added = {
                token.content: id_
                for id_, token in self._tokenizer.get_added_tokens_decoder().items()
            }
            self.mask_id: int | None = next((added[n] for n in _MASK_TOKENS if n in added), None)
            """Id that fills the slots to be drafted; None if the tokenizer has no mask token."""
            if "mask_token" in self._names:
                self.mask_id = self._id_of("mask_token")
            self.eos_id: int = self._id_of("eos_token")
            """End of text or of a turn: the token that the folder calls eos."""
            self.pad_id: int = self.eos_id
            if "pad_token" in self._names:
                self.pad_id = self._id_of("pad_token")
            if "bos_token" in self._names:  # Templates print it.
                self._id_of("bos_token")
            ends = [added[name] for name in _END_OF_TURN_TOKENS if name in added]
            self.stop_ids: tuple[int, ...] = tuple(
                dict.fromkeys([self.eos_id, *ends, *self._stated_stop_ids()])
            )
            """Ids that end a response, `eos_id` first."""
            self._special = self._find_special()
            self._literals = sorted(self._special, key=len, reverse=True)
            self._special_pattern = self._compile_special()
            # From here on, the library itself reads special tokens as plain text; only
            # `_encode_rendered` makes special ones.
            self._tokenizer.encode_special_tokens = True
            self._check_no_text_is_special()
            self._template = ChatTemplate.read(
                self.folder,
                config,
                variables={**self._names, **(template_options or {})},
                default=PLAIN if is_gpt2(config) else default_template,
            )
        self.has_template: bool = self._template.is_own
        """Whether the folder has a chat template of its own."""

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        template_options: Mapping[str, Any] | None = None,
        default_template: str | None = None,
        model_config: Mapping[str, Any] | None = None,
    ) -> Tokenizer:
        """Read a tokenizer folder; "embedded" is the one shipped in the package.

        Args:
          path: a folder with tokenizer.json (or vocab.json and merges.txt) and
            tokenizer_config.json. A GPT-2's folder may lack the latter if it has config.json.
          template_options: further variables of the chat template, such as
            {"enable_thinking": False} for Qwen3.
          default_template: used for conversations if the folder has no chat template. Without
            either, conversations are an error, because a chat model's template may have been lost
            in copying. A GPT-2's default is `jaxspec.data.chat_template.PLAIN`.
          model_config: the content of the folder's config.json, if it has already been read.

        Returns:
          The tokenizer.

        Raises:
          ValueError: no such folder, no tokenizer in it, or one that is not byte-level.
        """
        folder = EMBEDDED_FOLDER if str(path) == "embedded" else path
        return cls(
            folder,
            template_options=template_options,
            default_template=default_template,
            model_config=model_config,
        )

    @classmethod
    def train(
        cls, texts: Iterable[str], *, vocab_size: int, folder: str | os.PathLike[str]
    ) -> Tokenizer:
        """Train a byte-level BPE, write it to a folder and load it.

        Args:
          texts: what merges are learned from; the same texts give the same files, byte for byte.
          vocab_size: at least 260, for 256 bytes and 4 special tokens. A short text may give fewer
            tokens than this size.
          folder: made if missing.

        Returns:
          The tokenizer, read back from the folder.

        Raises:
          ValueError: a vocabulary that is too small.
        """
        special = [PAD_TOKEN, START_TOKEN, END_TOKEN, MASK_TOKEN]
        smallest = 256 + len(special)
        if vocab_size < smallest:
            raise ValueError(
                f"vocab_size must be at least {smallest} (256 bytes and {len(special)} special "
                f"tokens): got {vocab_size}."
            )
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = byte_level(_PIECES)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=special,
            initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer=trainer)
        path = pathlib.Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(path / "tokenizer.json"), pretty=True)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END_TOKEN,
            "pad_token": PAD_TOKEN,
            "mask_token": MASK_TOKEN,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1_000_000,
            "chat_template": CHATML,
        }
        text = json.dumps(config, indent=2) + "\n"
        (path / "tokenizer_config.json").write_text(text, encoding="utf-8")
        return cls(path)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Copy the tokenizer's files to a folder, which is made if missing."""
        path = pathlib.Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        for name in TOKENIZER_FILES:
            source = self.folder / name
            if source.is_file() and source.resolve() != (path / name).resolve():
                shutil.copyfile(source, path / name)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, including special ones; a model's embedding may have more rows."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def vocabulary(self) -> dict[str, int]:
        """Every token with its id, including special tokens."""
        return dict(self._tokenizer.get_vocab(with_added_tokens=True))

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of all special tokens, including the mask, in increasing order."""
        return tuple(sorted(self._special.values()))

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; special tokens written in it remain ordinary text."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of ids, without special tokens unless asked for."""
        return str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=skip_special))

    def render(
        self, turns: Conversation, *, add_generation_prompt: bool, tools: Sequence[Any] = ()
    ) -> str:
        """The chat template's text for a conversation.

        Raises:
          ValueError: the folder has no chat template, or the template refuses the conversation.
        """
        return self._template.render(
            turns, add_generation_prompt=add_generation_prompt, tools=tools
        )

    def encode_prompt(self, turns: Conversation) -> list[int]:
        """Ids of a conversation that the assistant is to continue.

        Raises:
          ValueError: the last turn is the assistant's.
        """
        check_turns(turns)
        if turns[-1]["role"] == "assistant":
            raise ValueError(
                "A prompt must end with the user's turn: got a conversation that ends with the "
                "assistant's. Leave out its last turn."
            )
        rendered = self._template.render(self._guard(turns), add_generation_prompt=True)
        return self._encode_rendered(rendered)

    def encode_conversation(self, turns: Conversation) -> tuple[list[int], list[bool]]:
        """Ids of a whole conversation, and which of them are the assistant's to generate.

        A response begins after the generation prompt, exactly as in `encode_prompt`, and ends with
        the token that closes the turn.

        Returns:
          (ids, response_mask), of equal length.

        Raises:
          ValueError: a template whose text for a conversation does not begin with its text for the
            first turns, or that does not close an assistant turn with a stop token.
        """
        check_turns(turns)
        guarded = self._guard(turns)
        text = self._template.render(guarded, add_generation_prompt=False)
        ids: list[int] = []
        mask: list[bool] = []

        def append(piece: str, *, is_response: bool) -> None:
            piece_ids = self._encode_rendered(piece)
            ids.extend(piece_ids)
            mask.extend([is_response] * len(piece_ids))

        done = 0
        for index, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            start = self._response_start(guarded, index, text=text, done=done)
            stop = self._response_stop(text, start)
            append(text[done:start], is_response=False)
            append(text[start:stop], is_response=True)
            done = stop
        append(text[done:], is_response=False)
        return ids, mask

    def _response_start(self, guarded: Conversation, index: int, *, text: str, done: int) -> int:
        """Where the answer of turn `index` begins in a conversation's text."""
        prompt = ""
        if index:
            prompt = self._template.render(guarded[:index], add_generation_prompt=True)
        if not prompt or not text.startswith(prompt) or len(prompt) < done:
            raise ValueError(
                f"The chat template of {str(self.folder)!r} changes the text before turn {index} "
                "when that turn is added, so the response cannot be told apart from the prompt. "
                "Use a template that only appends, or conversations of one round that begin with "
                "a user turn."
            )
        return len(prompt)

    def _response_stop(self, text: str, start: int) -> int:
        """Where the answer that begins at `start` ends, including its stop token."""
        # Content is guarded, so the first stop token after it is the template's own.
        for match in self._special_pattern.finditer(text, start):
            if self._special[match.group(0).strip()] in self.stop_ids:
                return match.end()
        raise ValueError(
            f"The chat template of {str(self.folder)!r} does not end an assistant turn with one of "
            f"the stop tokens {[self._tokenizer.id_to_token(id_) for id_ in self.stop_ids]}: set "
            "eos_token in tokenizer_config.json to the token that closes a turn."
        )

    def _guard(self, turns: Conversation) -> Conversation:
        """Contents with the text of special tokens replaced by numbered marks.

        With marks, templates may still strip or split a content; that would not work if the content
        were cut out instead.
        """
        guarded = []
        for turn in turns:
            content = turn["content"]
            for number, literal in enumerate(self._literals):
                if literal in content:
                    content = content.replace(literal, f"{_GUARD_OPEN}{number}{_GUARD_CLOSE}")
            guarded.append({**turn, "content": content})
        return guarded

    def _unguard(self, text: str) -> str:
        if _GUARD_OPEN not in text:
            return text
        for number, literal in enumerate(self._literals):
            text = text.replace(f"{_GUARD_OPEN}{number}{_GUARD_CLOSE}", literal)
        return text

    def _encode_rendered(self, text: str) -> list[int]:
        """Ids of (a piece of) guarded template text: only the template's special tokens count."""
        ids: list[int] = []
        position = 0
        for match in self._special_pattern.finditer(text):
            if match.start() > position:
                ids += self.encode(self._unguard(text[position : match.start()]))
            ids.append(self._special[match.group(0).strip()])
            position = match.end()
        if position < len(text):
            ids += self.encode(self._unguard(text[position:]))
        return ids

    def _find_special(self) -> dict[str, int]:
        """Special tokens by their text: those flagged as special, and those that must be.

        Some folders flag their mask or their end of turn as ordinary, but a message must not be
        able to write one of these either.
        """
        added = dict(self._tokenizer.get_added_tokens_decoder())
        needed = [self.eos_id, self.pad_id, *self.stop_ids]
        for id_ in needed if self.mask_id is None else [*needed, self.mask_id]:
            content = self._tokenizer.id_to_token(id_)
            token = added.setdefault(id_, tokenizers.AddedToken(content, normalized=False))
            token.special = True
        special = {id_: token for id_, token in added.items() if token.special}
        self._tokenizer.add_special_tokens(list(special.values()))
        return {token.content: id_ for id_, token in special.items()}

    def _check_no_text_is_special(self) -> None:
        for token, id_ in self._special.items():
            if [id_] in (self.encode(token), self.encode(self._tokenizer.decoder.decode([token]))):
                raise ValueError(
                    f"The tokenizer in {str(self.folder)!r} has {token!r} (id {id_}) as a special "
                    "token, but ordinary text can also give this id: name another token in "
                    "tokenizer_config.json, special_tokens_map.json or generation_config.json."
                )

    def _compile_special(self) -> re.Pattern[str]:
        """A pattern for special tokens, with the white space that some of them absorb."""
        tokens = {t.content: t for t in self._tokenizer.get_added_tokens_decoder().values()}
        alternatives = [
            r"\s*" * tokens[literal].lstrip + re.escape(literal) + r"\s*" * tokens[literal].rstrip
            for literal in self._literals
        ]
        # If there are no special tokens: a pattern that never matches.
        return re.compile("|".join(alternatives) or r"(?!)")

    def _stated_stop_ids(self) -> list[int]:
        """The stop ids in generation_config.json; null, as in base models, gives none."""
        file = self.folder / "generation_config.json"
        stated = read_json(file).get("eos_token_id")
        ids = stated if isinstance(stated, list) else [] if stated is None else [stated]
        for id_ in ids:
            if not isinstance(id_, int) or isinstance(id_, bool) or not 0 <= id_ < self.vocab_size:
                raise ValueError(
                    f"eos_token_id in {str(file)!r} must be an id (0 to {self.vocab_size - 1}), a "
                    f"list of ids, or null: got {stated!r:.80}."
                )
        return ids

    def _id_of(self, key: str) -> int:
        name = self._names.get(key)
        id_ = None if name is None else self._tokenizer.token_to_id(name)
        if id_ is None:
            raise ValueError(
                f"The tokenizer in {str(self.folder)!r} has no {key} (its files say {name!r}): set "
                "it to a token of the vocabulary in tokenizer_config.json."
            )
        return int(id_)


def _special_names(folder: pathlib.Path, config: dict[str, Any]) -> dict[str, str]:
    """bos_token, eos_token and so on, which templates may print."""
    names = dict(GPT2_NAMES) if is_gpt2(config) else {}
    files = {
        "special_tokens_map.json": read_json(folder / "special_tokens_map.json"),
        "tokenizer_config.json": config,
    }
    for file, stated in files.items():
        for key in _SPECIAL_KEYS & stated.keys():
            value = stated[key]
            if isinstance(value, dict):
                value = value.get("content", value)
            if value is None:
                names.pop(key, None)
            elif isinstance(value, str):
                names[key] = value
            else:
                raise ValueError(
                    f"{key} in {str(folder / file)!r} must be the text of a token, or null: got "
                    f"{value!r:.60}."
                )
    return names


_NAMED_IDS = 5


def check_same_tokens(drafter: Tokenizer, target: Tokenizer, *, name: str) -> None:
    """Refuses a drafter whose ids do not mean the same tokens as the target's.

    Raises:
      ValueError: there are ids that differ; the message names the first ones.
    """
    ours, theirs = drafter.vocabulary(), target.vocabulary()
    differ = sorted(
        {i for token, i in ours.items() if theirs.get(token) != i}
        | {i for token, i in theirs.items() if ours.get(token) != i}
    )
    if differ:
        named = ", ".join(map(str, differ[:_NAMED_IDS]))
        more = f" and {len(differ) - _NAMED_IDS} more" if len(differ) > _NAMED_IDS else ""
        raise ValueError(
            f"The tokenizer of the drafter in {name} is not the target's: ids {named}{more} mean "
            "different tokens. A drafter must be trained with the target's tokenizer."
        )
