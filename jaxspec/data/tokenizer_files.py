"""Reads the tokenizer files of a Hugging Face model folder into a `tokenizers.Tokenizer`."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import tokenizers

# The splitting rule of Qwen 2 and 3, which vocab.json and merges.txt do not contain. It is part of
# the tokenizer's definition, so it must be exactly this expression.
_QWEN_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

GPT2_NAMES = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
"""Special tokens of a GPT2Tokenizer whose files name none, as in transformers."""
_GPT2_MODEL_TYPES = ("gpt2", "gpt_neo")


def has_tokenizer(folder: pathlib.Path) -> bool:
    """Whether a folder holds the files of a tokenizer."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file; {} if there is no such file.

    Raises:
      ValueError: a file that is not JSON, or that holds something other than an object.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{str(path)!r} must hold a JSON object: got a {type(value).__name__}.")
    return value


def read_tokenizer_config(
    folder: pathlib.Path, *, model_config: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """tokenizer_config.json, with the tokenizer's class from config.json if it does not name one.

    The Hub's gpt2 leaves the class to config.json, and transformers looks there, too.

    Args:
      folder: a model's folder.
      model_config: the content of its config.json, if it has already been read.
    """
    config = read_json(folder / "tokenizer_config.json")
    if model_config is None:
        model_config = read_json(folder / "config.json")
    model_type = model_config.get("model_type")
    if not config.get("tokenizer_class") and model_type in _GPT2_MODEL_TYPES:
        config["tokenizer_class"] = "GPT2Tokenizer"
    return config


def is_gpt2(config: Mapping[str, Any]) -> bool:
    """Whether tokenizer_config.json is that of a GPT-2."""
    return str(config.get("tokenizer_class") or "").startswith("GPT2")


def byte_level(pieces: str) -> tokenizers.pre_tokenizers.PreTokenizer:
    """Split by a regular expression, then write bytes as visible characters."""
    return tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(pieces), behavior="isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def read_tokenizer(folder: pathlib.Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    """Read tokenizer.json, or else vocab.json with merges.txt.

    Args:
      folder: a model's folder.
      config: the content of its tokenizer_config.json.

    Returns:
      The tokenizer with its added tokens, neither padding nor truncating.

    Raises:
      ValueError: no folder, no tokenizer in it, or one that is not byte-level.
    """
    if not folder.is_dir():
        raise ValueError(
            f"There is no tokenizer folder {str(folder)!r}: give a folder with tokenizer.json (or "
            'vocab.json and merges.txt), or "embedded".'
        )
    if (folder / "tokenizer.json").is_file():
        tokenizer = _read_tokenizer_json(folder / "tokenizer.json")
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        tokenizer = _read_vocab_and_merges(folder, config)
    else:
        found = sorted(path.name for path in folder.iterdir())[:12]
        raise ValueError(
            f"{str(folder)!r} holds no tokenizer: expected tokenizer.json, or vocab.json with "
            f"merges.txt; found {found}."
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _read_tokenizer_json(file: pathlib.Path) -> tokenizers.Tokenizer:
    decoder = read_json(file).get("decoder") or {}
    decoders = decoder.get("decoders") or [decoder]
    if not any(entry.get("type") == "ByteLevel" for entry in decoders):
        raise ValueError(
            f"The tokenizer in {str(file.parent)!r} is not byte-level, and only byte-level ones "
            "are supported (Qwen, Llama 3, GPT-2 and their relatives): choose another target."
        )
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # The library raises no more specific exception.
        raise ValueError(f"{str(file)!r} cannot be read as a tokenizer: {error}.") from error


def _read_vocab_and_merges(folder: pathlib.Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    name = str(config.get("tokenizer_class") or "")
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    )
    if name.startswith("Qwen"):
        tokenizer.normalizer = tokenizers.normalizers.NFC()
        tokenizer.pre_tokenizer = byte_level(_QWEN_PIECES)
    elif is_gpt2(config):
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        raise ValueError(
            f"{str(folder)!r} has only vocab.json and merges.txt, and the splitting rule of its "
            f"tokenizer_class {name!r} is not known (only those of Qwen2Tokenizer and "
            "GPT2Tokenizer are): save the tokenizer as tokenizer.json with transformers' "
            "save_pretrained first."
        )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    # If both files name an id, the configuration counts: transformers reads that one.
    stated: dict[str, Any] = config.get("added_tokens_decoder") or {
        str(id_): {"content": content, "special": content.startswith("<|")}
        for content, id_ in read_json(folder / "added_tokens.json").items()
    }
    for id_, entry in sorted(stated.items(), key=lambda item: int(item[0])):
        _add_token(tokenizer, folder, int(id_), entry)
    return tokenizer


def _add_token(
    tokenizer: tokenizers.Tokenizer, folder: pathlib.Path, id_: int, entry: dict[str, Any]
) -> None:
    flags = ("lstrip", "rstrip", "single_word", "normalized", "special")
    token = tokenizers.AddedToken(
        entry["content"], **{flag: bool(entry.get(flag, False)) for flag in flags}
    )
    if token.special:
        tokenizer.add_special_tokens([token])
    else:
        tokenizer.add_tokens([token])
    given = tokenizer.token_to_id(token.content)
    if given != id_:
        raise ValueError(
            f"Added token {token.content!r} of {str(folder)!r} should have id {id_}, but got "
            f"{given}: the vocabulary has gaps. Save the tokenizer as tokenizer.json with "
            "transformers' save_pretrained first."
        )
