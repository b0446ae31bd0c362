"""Reads the tokenizer files of a Hugging Face model folder into a `tokenizers.Tokenizer`.

The files come from others. The library silently reads many damaged ones and gives wrong ids, so
their content is checked (`jaxspec.data.tokenizer_checks`).
"""

from __future__ import annotations

import collections
import contextlib
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import tokenizers

from jaxspec.data import tokenizer_checks
from jaxspec.interruption import is_outage
from jaxspec.json_files import MEND, refuse_pointer

# The splitting rule of Qwen 2 and 3, which vocab.json and merges.txt do not contain. It is part of
# the tokenizer's definition, so it must be exactly this expression.
_QWEN_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

GPT2_NAMES = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
"""Special tokens of a GPT2Tokenizer whose files name none, as in transformers."""
_BASE_TOKENIZERS = {
    "gpt2": "GPT2Tokenizer",
    "gpt_neo": "GPT2Tokenizer",
    "gpt_neox": "GPTNeoXTokenizer",
}
"""model_type -> class of the tokenizer, for families of models that know no turns."""
_MODEL_TYPE, _MODEL_STOPS = "model_type", "eos_token_id of the model"
LARGEST_FILE_BYTES = 1 << 28
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")
"""Escapes of surrogates. A pair of them is a character; one alone is not valid in text."""


def has_tokenizer(folder: pathlib.Path) -> bool:
    """Whether a folder holds the files of a tokenizer."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))


def read_text(path: pathlib.Path) -> str:
    """The content of a UTF-8 text file.

    Raises:
      ValueError: the file cannot be read, is too large or is not UTF-8; the message names it.
      OSError: a disk, network share or bucket does not answer now.
    """
    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise ValueError(
                f"{str(path)!r} has {path.stat().st_size:,} bytes: expected at most "
                f"{LARGEST_FILE_BYTES:,}."
            )
        content = path.read_bytes()
    except OSError as error:
        if is_outage(error):
            raise
        raise ValueError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from error
    refuse_pointer(content, name=repr(str(path)))
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{str(path)!r} is not UTF-8: line {line} has the byte {content[error.start]:#04x}. "
            "The file is damaged; copy it again."
        ) from error


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file; {} if there is no such file.

    Raises:
      ValueError: the file is not JSON, has a key twice, or holds something other than an object.
    """
    if not path.is_file():
        return {}
    return _parse_json(read_text(path), path=path)


def _parse_json(text: str, *, path: pathlib.Path) -> dict[str, Any]:
    try:
        value = json.loads(text, object_pairs_hook=_object)
        if _HALF_CHARACTER.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (RecursionError, ValueError) as error:
        reason: object = error if text.strip() else "it is empty"
        if isinstance(error, RecursionError):
            reason = "it is nested too deeply"
        raise ValueError(f"{str(path)!r} is not valid JSON: {reason}. {MEND}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{str(path)!r} must hold a JSON object: got a {type(value).__name__}.")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        counts = collections.Counter(key for key, _ in pairs)
        raise ValueError(f"it has the key {counts.most_common(1)[0][0]!r} more than once")
    return made


@contextlib.contextmanager
def refusing(folder: pathlib.Path) -> Iterator[None]:
    """Turns whatever the library raises for a folder's files into one message.

    Raises:
      ValueError: the block has failed; the message names the folder.
      OSError: a disk, network share or bucket does not answer now.
    """
    try:
        yield
    except (ValueError, KeyboardInterrupt, SystemExit):
        raise
    # The library raises plain Exceptions, and its panics are not even Exceptions.
    except BaseException as error:
        if is_outage(error):
            raise
        raise ValueError(
            f"The tokenizer in {str(folder)!r} cannot be opened: {type(error).__name__}: {error}. "
            "Its files are damaged or do not belong together; copy them again."
        ) from error


def read_tokenizer_config(
    folder: pathlib.Path, *, model_config: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """tokenizer_config.json, with the tokenizer's class from config.json if it does not name one.

    The Hub's gpt2 leaves the class to config.json, and transformers looks there, too. The model's
    type is in it as well.

    Args:
      folder: a model's folder.
      model_config: the content of its config.json, if it has already been read.

    Raises:
      ValueError: a file cannot be read, or tokenizer_class is not a name.
    """
    config = read_json(folder / "tokenizer_config.json")
    if model_config is None:
        model_config = read_json(folder / "config.json")
    stated = config.get("tokenizer_class")
    if stated is not None and not isinstance(stated, str):
        raise ValueError(
            f"tokenizer_class in {str(folder / 'tokenizer_config.json')!r} must be a name: got "
            f"{stated!r}."
        )
    config[_MODEL_TYPE] = str(model_config.get(_MODEL_TYPE))
    config[_MODEL_STOPS] = model_config.get("eos_token_id")
    by_model = _BASE_TOKENIZERS.get(config[_MODEL_TYPE])
    if not stated and by_model:
        config["tokenizer_class"] = by_model
    return config


def is_gpt2(config: Mapping[str, Any]) -> bool:
    """Whether tokenizer_config.json is that of a GPT-2 or GPT-NeoX."""
    return str(config.get("tokenizer_class") or "").startswith(("GPT2", "GPTNeoX"))


def knows_no_turns(config: Mapping[str, Any]) -> bool:
    """Whether a model is a GPT-2, GPT-Neo or GPT-NeoX, by its tokenizer or its config.json.

    Their tokenizers may be of no class in particular: PreTrainedTokenizerFast, TokenizersBackend.
    """
    return is_gpt2(config) or config.get(_MODEL_TYPE) in _BASE_TOKENIZERS


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
      ValueError: no folder, no tokenizer in it, or one of another kind (see `tokenizer_checks`).
    """
    if not folder.is_dir():
        raise ValueError(
            f"There is no tokenizer folder {str(folder)!r}: give a folder with tokenizer.json (or "
            'vocab.json and merges.txt), or "embedded".'
        )
    if (folder / "tokenizer.json").is_file():
        tokenizer = _read_tokenizer_json(folder, config)
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        tokenizer = _read_vocab_and_merges(folder, config)
    elif (folder / "tokenizer.model").is_file():
        raise ValueError(
            f"{str(folder)!r} has its tokenizer only as tokenizer.model: expected tokenizer.json. "
            "Write it where transformers, sentencepiece and protobuf are installed: "
            'python -c "from transformers import AutoTokenizer; '
            f'AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"'
        )
    else:
        found = sorted(path.name for path in folder.iterdir())[:12]
        raise ValueError(
            f"{str(folder)!r} holds no tokenizer: expected tokenizer.json, or vocab.json with "
            f"merges.txt; found {found}."
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer_checks.check_keeps_text(tokenizer, folder=folder)
    return tokenizer


def _read_tokenizer_json(folder: pathlib.Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    file = folder / "tokenizer.json"
    text = read_text(file)
    document = _parse_json(text, path=file)
    tokenizer_checks.check_document(document, file=file)
    if _take_flags(document.get("added_tokens") or [], folder, config):
        text = json.dumps(document)
    try:
        tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # The library raises no more specific exception.
        raise ValueError(f"{str(file)!r} cannot be read as a tokenizer: {error}.") from error
    tokenizer_checks.check_stated_ids(document.get("added_tokens") or [], tokenizer, file=file)
    for id_, entry in sorted(_configured_tokens(folder, config), key=lambda found: found[0]):
        # transformers adds what tokenizer.json lacks.
        is_next = id_ == tokenizer.get_vocab_size(with_added_tokens=True)
        if is_next and tokenizer.token_to_id(entry["content"]) is None:
            _add_token(tokenizer, folder, id_, entry)
    return tokenizer


def stated_stop_ids(
    folder: pathlib.Path, config: Mapping[str, Any], *, vocab_size: int
) -> list[int]:
    """The stop ids in generation_config.json; null, as in base models, gives none.

    Where there is no such file, those of config.json count, as in transformers.

    Args:
      folder: that of the model.
      config: what `read_tokenizer_config` gives.
      vocab_size: ids are below it.
    """
    file = folder / "generation_config.json"
    if not file.is_file():
        stated = config[_MODEL_STOPS]
        ids = stated if isinstance(stated, list) else [stated]
        # transformers writes the ids of the family there, which a tokenizer need not have.
        return [id_ for id_ in ids if type(id_) is int and 0 <= id_ < vocab_size]
    stated = read_json(file).get("eos_token_id")
    ids = stated if isinstance(stated, list) else [] if stated is None else [stated]
    for id_ in ids:
        if not isinstance(id_, int) or isinstance(id_, bool) or not 0 <= id_ < vocab_size:
            raise ValueError(
                f"eos_token_id in {str(file)!r} must be an id (0 to {vocab_size - 1}), a list of "
                f"ids, or null: got {stated!r:.80}."
            )
    return ids


def text_start(tokenizer: tokenizers.Tokenizer) -> list[int]:
    """Ids with which a tokenizer begins a text that stands by itself: BOS, or none."""
    whole = list(tokenizer.encode("a", add_special_tokens=True).ids)
    plain = list(tokenizer.encode("a", add_special_tokens=False).ids)
    places = range(len(whole) - len(plain) + 1)
    return next((whole[:at] for at in places if whole[at : at + len(plain)] == plain), [])


def _take_flags(
    added: list[dict[str, Any]], folder: pathlib.Path, config: Mapping[str, Any]
) -> bool:
    """Puts the flags of added tokens in tokenizer_config.json in place of those in tokenizer.json.

    So it is in transformers.

    Returns:
      Whether any differ.
    """
    stated = {(id_, entry["content"]): entry for id_, entry in _configured_tokens(folder, config)}
    changed = False
    for entry in added:
        other = stated.get((entry.get("id", -1), entry["content"]), {})
        flags = {flag: other[flag] for flag in tokenizer_checks.FLAGS if flag in other}
        changed |= any(flags[flag] != entry.get(flag) for flag in flags)
        entry.update(flags)
    return changed


def _read_vocab_and_merges(folder: pathlib.Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    name = str(config.get("tokenizer_class") or "")
    vocab = read_json(folder / "vocab.json")
    merges = _read_merges(folder / "merges.txt")
    tokenizer_checks.check_vocab(vocab, file=folder / "vocab.json")
    tokenizer_checks.check_merges(merges, vocab, file=folder / "merges.txt")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
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
    for id_, token in sorted(_added_tokens(folder, config)):
        _add_token(tokenizer, folder, id_, token)
    tokenizer_checks.check_reached(vocab, merges, tokenizer, folder=folder)
    return tokenizer


def _read_merges(file: pathlib.Path) -> list[tuple[str, str]]:
    # Not splitlines(), which also splits at characters that do not end a line in this format.
    lines = read_text(file).removesuffix("\n").split("\n")
    merges = []
    for number, line in enumerate(lines, start=1):
        if line.startswith("#version"):
            continue
        parts = line.removesuffix("\r").split(" ")
        if len(parts) != 2 or not all(parts):
            raise ValueError(
                f"{str(file)!r} is damaged: line {number} must be two pieces separated by a space: "
                f"got {line[:40]!r}."
            )
        merges.append((parts[0], parts[1]))
    return merges


def _added_tokens(
    folder: pathlib.Path, config: Mapping[str, Any]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Id and description of each token that the files add to the vocabulary."""
    # If both files name an id, the configuration wins, as in transformers.
    if config.get("added_tokens_decoder"):
        yield from _configured_tokens(folder, config)
        return
    file = folder / "added_tokens.json"
    for content, id_ in read_json(file).items():
        entry = {"content": content, "special": content.startswith("<|")}
        tokenizer_checks.check_added({**entry, "id": id_}, file=file)
        yield id_, entry


def _configured_tokens(
    folder: pathlib.Path, config: Mapping[str, Any]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Id and description of each added token in tokenizer_config.json."""
    stated = config.get("added_tokens_decoder")
    if stated:
        file = folder / "tokenizer_config.json"
        if not isinstance(stated, dict):
            raise ValueError(
                f"added_tokens_decoder in {str(file)!r} must be an object with ids as keys: got a "
                f"{type(stated).__name__}."
            )
        for id_, entry in stated.items():
            tokenizer_checks.check_added(entry, file=file)
            if not re.fullmatch(r"[0-9]{1,10}", id_):
                raise ValueError(
                    f"added_tokens_decoder in {str(file)!r} must have ids as keys: got {id_!r}."
                )
            yield int(id_), entry


def _add_token(
    tokenizer: tokenizers.Tokenizer, folder: pathlib.Path, id_: int, entry: dict[str, Any]
) -> None:
    token = tokenizers.AddedToken(
        entry["content"],
        **{flag: bool(entry.get(flag, False)) for flag in tokenizer_checks.FLAGS},
    )
    if token.special:
        tokenizer.add_special_tokens([token])
    else:
        tokenizer.add_tokens([token])
    given = tokenizer.token_to_id(token.content)
    if given != id_:
        raise ValueError(
            f"Added token {token.content!r} in {str(folder)!r} should have id {id_}, but got "
            f"{given}: earlier ids are missing, or the token has two. Save the tokenizer as "
            "tokenizer.json with transformers' save_pretrained first."
        )
