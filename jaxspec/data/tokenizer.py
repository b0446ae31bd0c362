"""Tokenizers from the folder of any Hugging Face model, and conversations as ids.

>>> Tokenizer.load("embedded").encode_prompt([{"role": "user", "content": "Hi."}])[0]
1

Two kinds are accepted (`jaxspec.data.tokenizer_checks`): byte-level ones (Qwen, Llama 3, GPT-2,
SmolLM, the embedded one), and those that write spaces as "▁" and have bytes for what the vocabulary
lacks (Gemma, Llama 2, Mistral, Phi-3). Ids are those of transformers
(`jaxspec.data.rendered_text`).

The folder of a GPT-2 or GPT-Neo may hold only vocab.json and merges.txt; "<|endoftext|>" is then
its one special token. It has no mask token. If it has no chat template, a conversation is rendered
as its unchanged contents (`jaxspec.data.chat_template.PLAIN`).
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers

from jaxspec.data import tokenizer_checks
from jaxspec.data.chat_template import CHATML, PLAIN, ChatTemplate, as_served, check_turns
from jaxspec.data.examples import Conversation
from jaxspec.data.guarded_text import Guard
from jaxspec.data.rendered_text import RenderedText
from jaxspec.data.served_turns import END_THINK, THINK, TOKEN_IDS, LearnedTurns, ServedTurns
from jaxspec.data.tokenizer_files import (
    GPT2_NAMES,
    byte_level,
    is_gpt2,
    knows_no_turns,
    read_json,
    read_tokenizer,
    read_tokenizer_config,
    refusing,
    stated_stop_ids,
    text_start,
)
from jaxspec.paths import copy_file, user_path
from jaxspec.tokenizer_files import READ_FILES, TOKENIZER_FILES

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
        self.folder = user_path(folder)
        self.template_options: dict[str, Any] = dict(template_options or {})
        """Further variables of the chat template."""
        with refusing(self.folder):
            config = read_tokenizer_config(self.folder, model_config=model_config)
            self._tokenizer = _thinking_shown(read_tokenizer(self.folder, config))
            self._num_ids: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
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
            # Templates print it.
            self._bos_ids = [self._id_of("bos_token")] if "bos_token" in self._names else []
            ends = [added[name] for name in _END_OF_TURN_TOKENS if name in added]
            named = dict.fromkeys([self.eos_id, *ends])
            stated = stated_stop_ids(self.folder, config, vocab_size=self.vocab_size)
            self._further_stop_ids = [id_ for id_ in stated if id_ not in named]
            self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys([*named, *self._further_stop_ids]))
            """Ids that end a response, `eos_id` first."""
            self.text_start: list[int] = text_start(self._tokenizer)
            """Ids that come before a text that stands by itself: BOS, or none."""
            self._special = self._find_special()
            self._guard = Guard(self._special)
            # From here on, the library itself reads special tokens as plain text; only
            # `RenderedText` makes special ones.
            self._tokenizer.encode_special_tokens = True
            self._rendered = RenderedText(self._tokenizer, special=self._special, guard=self._guard)
            self.special_text_in = self._rendered.special_text_in
            """The first special token that is written in a plain text; "": none."""
            self._check_no_text_is_special()
            self._template = ChatTemplate.read(
                self.folder,
                config,
                variables={**self._names, **self.template_options},
                default=PLAIN if knows_no_turns(config) else default_template,
                begins=bool(self.text_start),
            )
        self._served = ServedTurns(
            str(self.folder),
            render=self._template.render,
            encode=self._encode_rendered,
            stop_after=lambda text: self._rendered.stop_after(text, self.stop_ids),
            stops=[str(self._tokenizer.id_to_token(id_)) for id_ in self.stop_ids],
            thinks_first=self.thinks_first,
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
        path = user_path(folder)
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
        path = user_path(folder)
        path.mkdir(parents=True, exist_ok=True)
        for name in TOKENIZER_FILES:
            source = self.folder / name
            if source.is_file() and source.resolve() != (path / name).resolve():
                (path / name).parent.mkdir(exist_ok=True)
                copy_file(source, path / name)

    @property
    def vocab_size(self) -> int:
        """Number of ids, including special ones; a model's embedding may have more rows."""
        return self._num_ids

    def fit_to(self, rows: int) -> bool:
        """Whether a model whose embedding has this many rows can read the ids.

        Special tokens that end or fill nothing may lack a row: Gemma 3's text models have none for
        that of an image. From here on, their ids do not count, and a template that writes one is
        refused.
        """
        needed = {self.pad_id, self.mask_id, *self.stop_ids, *self._bos_ids}
        if not set(range(rows, self._num_ids)) <= set(self._special.values()) - needed:
            return False
        self._num_ids = min(rows, self._num_ids)
        return True

    def vocabulary(self) -> dict[str, int]:
        """Every token with its id, including special tokens."""
        return dict(self._tokenizer.get_vocab(with_added_tokens=True))

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of all special tokens, including the mask, in increasing order."""
        return tuple(sorted(id_ for id_ in self._special.values() if id_ < self._num_ids))

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; special tokens written in it remain ordinary text."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of ids, without special tokens unless asked for."""
        return str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=skip_special))

    def files_digest(self) -> str:
        """A hash of the files that decide ids, the text of conversations and where answers end."""
        digest = hashlib.sha256()
        for name in READ_FILES:
            if (self.folder / name).is_file():
                digest.update(name.encode() + (self.folder / name).read_bytes())
        if self._further_stop_ids:
            digest.update(json.dumps(self._further_stop_ids).encode())
        return digest.hexdigest()[:16]

    @property
    def reads_thinking_mode(self) -> bool:
        """Whether the chat template reads enable_thinking."""
        return self._template.reads("enable_thinking")

    def thinks_first(self) -> bool:
        """Whether the chat template lets the model think before it answers."""
        prompt = self.render([{"role": "user", "content": "Hi."}], add_generation_prompt=True)
        if prompt.rstrip().endswith(END_THINK):
            return False
        # A model whose thinking can be turned off thinks unless told otherwise.
        return prompt.rstrip().endswith(THINK) or self.reads_thinking_mode

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

    def encode_prompt(self, turns: Conversation, *, tools: Sequence[Any] = ()) -> list[int]:
        """Ids of a conversation that the assistant is to continue.

        Args:
          turns: the conversation; it ends with a turn of the user's or of a tool.
          tools: what the assistant may call.

        Raises:
          ValueError: the last turn is the assistant's, the template refuses the conversation, or it
            has no generation prompt.
        """
        check_turns(turns)
        if turns[-1]["role"] == "assistant":
            raise ValueError(
                "A prompt must end with the user's turn: got a conversation that ends with the "
                "assistant's. Leave out its last turn."
            )
        guarded = self._guarded(turns)
        return self._encode_rendered(self._served.prompt(guarded, tools=self._guard.hide([*tools])))

    def encode_turns(self, turns: Conversation, *, tools: Sequence[Any] = ()) -> LearnedTurns:
        """The rows that are learned of a conversation (`jaxspec.data.served_turns`).

        Each answer follows exactly the ids of `encode_prompt` for the turns before it, and ends
        with a stop token.

        Args:
          turns: the conversation.
          tools: what the assistant may call.

        Returns:
          One row if the template only appends; else one for each answer. Answers that cannot be
          learned are named beside them.

        Raises:
          ValueError: malformed turns, no template, or one without a generation prompt.
        """
        check_turns(turns)
        generated = {
            number: turn[TOKEN_IDS]
            for number, turn in enumerate(turns)
            if TOKEN_IDS in turn and self.is_generated(turn[TOKEN_IDS], turn["content"])
        }
        return self._served.rows(
            self._guarded(turns), tools=self._guard.hide([*tools]), generated=generated
        )

    def encode_conversation(
        self, turns: Conversation, *, tools: Sequence[Any] = ()
    ) -> tuple[list[int], list[bool]]:
        """Ids of a conversation that is one row, and which of them are the assistant's to generate.

        Returns:
          (ids, response_mask), of equal length.

        Raises:
          ValueError: an answer cannot be learned, or the template rewrites earlier turns.
        """
        learned = self.encode_turns(turns, tools=tools)
        if learned.left_out:
            raise learned.left_out[0]
        if len(learned.rows) > 1:
            raise ValueError(
                f"The chat template of {str(self.folder)!r} rewrites earlier turns, so a "
                f"conversation is {len(learned.rows)} rows: use encode_turns."
            )
        return learned.rows[0].ids, learned.rows[0].learned

    def is_generated(self, ids: Any, text: str) -> bool:
        """Whether ids are an answer of this text with the stop token that ends it."""
        return (
            isinstance(ids, list)
            and all(type(id_) is int and 0 <= id_ < self.vocab_size for id_ in ids)
            and [id_ in self.stop_ids for id_ in ids] == [False] * (len(ids) - 1) + [True]
            and self.decode(ids) == text
        )

    def _guarded(self, turns: Conversation) -> Conversation:
        """Turns as the template reads them, the text of special tokens hidden."""
        plain = [{k: v for k, v in turn.items() if k != TOKEN_IDS} for turn in turns]
        guarded: Conversation = self._guard.hide(as_served(plain))
        return guarded

    def _encode_rendered(self, text: str, *, after: str = "") -> list[int]:
        """Ids of guarded template text, or of the part of it that follows `after`."""
        ids = self._rendered.encode(text, after=after)
        if ids and max(ids) >= self._num_ids:
            raise ValueError(
                f"The chat template of {str(self.folder)!r} writes the token "
                f"{self._tokenizer.id_to_token(max(ids))!r} (id {max(ids)}), but the model's "
                f"embedding has only {self._num_ids} rows: leave out what makes it write this "
                "token."
            )
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
        tokenizer_checks.check_special(
            [*special.values()], self._tokenizer.normalizer, folder=self.folder
        )
        self._tokenizer.add_special_tokens(list(special.values()))
        return {token.content: id_ for id_, token in special.items()}

    def _check_no_text_is_special(self) -> None:
        for token, id_ in self._special.items():
            texts = (token, self._tokenizer.decoder.decode([token]))
            if any([id_] in self._rendered.readings(text) for text in texts):
                raise ValueError(
                    f"The tokenizer in {str(self.folder)!r} has {token!r} (id {id_}) as a special "
                    "token, but ordinary text can also give this id: name another token in "
                    "tokenizer_config.json, special_tokens_map.json or generation_config.json."
                )

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


def _thinking_shown(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The tokenizer with the tags of thinking as ordinary added tokens, as Qwen3 has them.

    Where they are flagged as special, decoding leaves them out, and answers hold no thinking.
    """
    added = tokenizer.get_added_tokens_decoder().values()
    if not any(token.special and token.content in (THINK, END_THINK) for token in added):
        return tokenizer
    document = json.loads(tokenizer.to_str())
    for entry in document["added_tokens"]:
        entry["special"] = entry["special"] and entry["content"] not in (THINK, END_THINK)
    return tokenizers.Tokenizer.from_str(json.dumps(document))


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
