"""Checks the files of a tokenizer, so that text and ids can be trusted.

Two kinds are accepted: byte-level tokenizers, and those of characters, with spaces written as "▁"
and bytes for what the vocabulary lacks. The latter were SentencePiece models. Gemma's leave a text
as it is; those of Llama 2, Mistral and Phi-3 put a space before it, by a normalizer (Prepend) or by
a splitting rule (Metaspace), and decoding takes it away again.

The tokenizers library opens many damaged files: it gives a token a different id from the file's,
keeps one of two tokens with the same id, and drops characters that are not in the vocabulary. All
checks here raise a ValueError that names the file.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import tokenizers

_NAMED = 3
_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_NORMALIZERS = (
    _SPACES,
    {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, _SPACES]},
)
"""Those of Gemma and of Llama 2. Where there is none, Metaspace writes the spaces."""
_DECODERS = ["Replace", "ByteFallback", "Fuse"]
_WITHOUT_FIRST_SPACE = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
"""What an added token says of itself besides its text and id."""
_PROBE = "".join(
    map(chr, [*range(0x801), *range(0x1000, 0x11000, 0x1000), *range(0x40000, 0x110000, 0x40000)])
)
"""Text whose UTF-8 has every byte that UTF-8 can have."""


def check_document(document: Mapping[str, Any], *, file: pathlib.Path) -> None:
    """A tokenizer.json is of a supported kind, and has nothing that the library misreads."""
    if not (_is_byte_level(document, file=file) or _writes_spaces(document, file=file)):
        raise ValueError(
            f"The tokenizer in {str(file.parent)!r} is not byte-level, and only byte-level ones "
            "(Qwen, Llama 3, GPT-2 and their relatives) and those that write spaces as '▁' and "
            "have bytes for other characters (Gemma, Llama 2, Mistral, Phi-3) are supported: "
            "choose another target."
        )
    model = _object(document, "model", file=file)
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise ValueError(
                f"model.{key} in {str(file)!r} must be null: got {model[key]!r:.60}. It does not "
                "fit a tokenizer of bytes or characters that gives the same ids each time."
            )
    if isinstance(model.get("vocab"), dict):
        check_distinct(model["vocab"], file=file)
    merges = model.get("merges")
    if isinstance(merges, list) and len(set(map(json.dumps, merges))) < len(merges):
        raise ValueError(f"{str(file)!r} is damaged: model.merges has a pair more than once.")
    added = document.get("added_tokens") or []
    if not isinstance(added, list):
        raise ValueError(f"added_tokens in {str(file)!r} must be a list: got {added!r:.60}.")
    for entry in added:
        check_added(entry, file=file)


def _is_byte_level(document: Mapping[str, Any], *, file: pathlib.Path) -> bool:
    decoder = _object(document, "decoder", file=file)
    decoders = decoder.get("decoders") or [decoder]
    return isinstance(decoders, list) and any(
        isinstance(entry, dict) and entry.get("type") == "ByteLevel" for entry in decoders
    )


def _writes_spaces(document: Mapping[str, Any], *, file: pathlib.Path) -> bool:
    """Whether spaces become "▁", other characters may become bytes, and decoding undoes both."""
    decoders = _object(document, "decoder", file=file).get("decoders")
    rule = _object(document, "pre_tokenizer", file=file)
    if not isinstance(decoders, list):
        return False
    if rule.get("type") == "Metaspace":
        writes = document.get("normalizer") is None and rule.get("replacement") == "▁"
    else:
        writes = document.get("normalizer") in _NORMALIZERS and rule.get("type") in (None, "Split")
    if decoders[-1:] == [_WITHOUT_FIRST_SPACE]:
        decoders = decoders[:-1]
    types = [entry.get("type") for entry in decoders if isinstance(entry, dict)]
    has_bytes = _object(document, "model", file=file).get("byte_fallback") is True
    return has_bytes and writes and types == _DECODERS


def check_special(
    special: Sequence[tokenizers.AddedToken],
    normalizer: tokenizers.normalizers.Normalizer | None,
    *,
    folder: pathlib.Path,
) -> None:
    """Special tokens are found as they are written, whatever stands before them."""
    for token in special:
        if normalizer is None or not token.normalized:
            continue
        if normalizer.normalize_str(token.content) == f"▁{token.content}":
            raise ValueError(
                f"The special token {token.content!r} of the tokenizer in {str(folder)!r} is "
                '"normalized": it is found only after a space or at the start of a text, and is '
                'ordinary text elsewhere. Set "normalized" to false for it in tokenizer.json, as '
                "newer copies of such models have it."
            )


def check_vocab(vocab: Mapping[str, Any], *, file: pathlib.Path) -> None:
    """A vocab.json has each id from 0 up exactly once."""
    check_distinct(vocab, file=file)
    _check_complete(vocab.values(), file=file)


def check_distinct(vocab: Mapping[str, Any], *, file: pathlib.Path) -> None:
    """Each token has its own id."""
    owners: dict[int, str] = {}
    for token, id_ in vocab.items():
        if not _is_id(id_):
            raise ValueError(
                f"{str(file)!r} is damaged: the id of {token!r} must be an integer from 0 up: got "
                f"{id_!r:.60}."
            )
        if id_ in owners:
            raise ValueError(
                f"{str(file)!r} is damaged: {owners[id_]!r} and {token!r} both have the id {id_}."
            )
        owners[id_] = token


def check_merges(
    merges: Sequence[tuple[str, str]], vocab: Mapping[str, int], *, file: pathlib.Path
) -> None:
    """Each pair in a merges.txt occurs once and makes a token of the vocabulary."""
    if len(set(merges)) < len(merges):
        raise ValueError(f"{str(file)!r} is damaged: it has a pair more than once.")
    for first, second in merges:
        lacking = next((t for t in (first, second, first + second) if t not in vocab), None)
        if lacking is not None:
            raise ValueError(
                f"{str(file)!r} merges {first!r} and {second!r}, but vocab.json has no token "
                f"{lacking!r}: one of the files is damaged, or they do not belong together."
            )


def check_reached(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    tokenizer: tokenizers.Tokenizer,
    *,
    folder: pathlib.Path,
) -> None:
    """A merge makes each token that occurs in text: otherwise, the end of merges.txt is missing.

    Tokens that the splitting rule takes apart ("<|pad|>", "madeupword0000") and added tokens need
    no merge.
    """
    made = {first + second for first, second in merges}
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for token in vocab:
        if len(token) == 1 or token in made or token in added:
            continue
        text = tokenizer.decoder.decode([token])
        if "\ufffd" in text or len(tokenizer.pre_tokenizer.pre_tokenize_str(text)) == 1:
            raise ValueError(
                f"No line of {str(folder / 'merges.txt')!r} makes the token {token!r} of "
                "vocab.json: the file is incomplete, or the two files do not belong together."
            )


def check_added(entry: Any, *, file: pathlib.Path) -> None:
    """An added token has text, flags that are true or false, and a valid id if any."""
    if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
        raise ValueError(f"An added token in {str(file)!r} must have text: got {entry!r:.80}.")
    if not entry["content"]:
        raise ValueError(f"An added token in {str(file)!r} has empty text: got {entry!r:.80}.")
    wrong = [f for f in FLAGS if not isinstance(entry.get(f, False), bool)]
    if wrong:
        raise ValueError(
            f"{wrong[0]} of the added token {entry['content']!r} in {str(file)!r} must be true or "
            f"false: got {entry[wrong[0]]!r:.60}."
        )
    if not _is_id(entry.get("id", 0)):
        raise ValueError(
            f"The id of the added token {entry['content']!r} in {str(file)!r} must be an integer "
            f"from 0 up: got {entry['id']!r:.60}."
        )


def check_stated_ids(
    added: Sequence[Mapping[str, Any]], tokenizer: tokenizers.Tokenizer, *, file: pathlib.Path
) -> None:
    """The added tokens of a tokenizer.json got the ids that it states, and no id is missing."""
    for entry in added:
        given = tokenizer.token_to_id(entry["content"])
        if given != entry.get("id"):
            raise ValueError(
                f"{str(file)!r} is damaged: it gives the added token {entry['content']!r} the id "
                f"{entry.get('id')}, but with its vocabulary and earlier added tokens, the id is "
                f"{given}."
            )
    contents = [entry["content"] for entry in added]
    if len(set(contents)) < len(contents):
        raise ValueError(f"{str(file)!r} is damaged: it adds a token more than once.")
    _check_complete(tokenizer.get_vocab(with_added_tokens=True).values(), file=file)


def check_keeps_text(tokenizer: tokenizers.Tokenizer, *, folder: pathlib.Path) -> None:
    """Text of any characters is the same after it is encoded and decoded."""
    text = _PROBE
    ids = tokenizer.encode(_PROBE, add_special_tokens=False).ids
    back = tokenizer.decode(ids, skip_special_tokens=False)
    if tokenizer.normalizer is not None:
        text, back = (tokenizer.normalizer.normalize_str(each) for each in (text, back))
    # Some rules put a space before the first word.
    if back.lstrip(" ") != text.lstrip(" "):
        lost = sorted(set(text) - set(back))
        what = f"{', '.join(map(repr, lost[:_NAMED]))} and so on" if lost else "their order"
        raise ValueError(
            f"The tokenizer in {str(folder)!r} loses characters of text ({what}): its splitting "
            "rule, vocabulary or decoder is damaged, or its kind is not supported."
        )


def _check_complete(ids: Collection[int], *, file: pathlib.Path) -> None:
    missing = sorted(set(range(len(ids))) - set(ids))
    if missing:
        named = ", ".join(map(str, missing[:_NAMED]))
        raise ValueError(
            f"{str(file)!r} is damaged: it has {len(ids)} tokens, but none with these ids: {named}."
        )


def _object(document: Mapping[str, Any], key: str, *, file: pathlib.Path) -> dict[str, Any]:
    value = document.get(key) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{key} in {str(file)!r} must be an object: got {value!r:.60}.")
    return value


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 32
