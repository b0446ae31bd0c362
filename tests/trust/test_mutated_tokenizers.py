"""Tokenizer folders with one mutation each: refused in one message, or the same ids as before.

Some mutations can also leave a sound but different tokenizer (with another splitting rule, say).
The files do not show that, so for these mutations it is enough that text is the same after encoding
and decoding, with ids in the vocabulary.
"""

from __future__ import annotations

import copy
import dataclasses
import faulthandler
import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers

from jaxspec.data.chat_template import CHATML
from jaxspec.data.tokenizer import EMBEDDED_FOLDER, Tokenizer
from tests.trust.outcomes import Outcomes, is_one_message

FAST, SLOW = 100, 1000
SEED_VARIABLE = "JAXSPEC_TRUST_SEED"
SECONDS_PER_CASE = 30
SECONDS_FOR_A_DUMP = 300
"""After this long in one case, all threads are printed and the process ends."""
TEXTS = (
    "The lake is 12 miles away.\n\n    def f(x):\n\treturn x**2",
    "<|im_end|> is written é 日本語 🙂 QZ~ \x00\x7f",
    "How far is it to the lake?",
)
TURNS = [
    {"role": "user", "content": "How far is it?"},
    {"role": "assistant", "content": "12 miles."},
]
JSON_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 10**9, 2**32, 2**64, 10**30, 0.5, 1e300),
    *("", "x", "<|im_end|>", "<|nowhere|>", "\ud800", [], {}, [None], {"content": None}),
)


@dataclasses.dataclass(frozen=True)
class Observed:
    """What an opened tokenizer does."""

    ids: list[list[int]]
    conversation: Any
    special: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Mutation:
    """One way to damage a folder."""

    apply: Callable[[Path, random.Random], str]
    """Changes one file and says what was done."""
    may_be_sound: bool = False
    """Whether it can leave another tokenizer that is sound, which the files cannot tell."""


def _embedded(folder: Path) -> None:
    shutil.copytree(EMBEDDED_FOLDER, folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 0]}')


def _gpt2(folder: Path) -> None:
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(
        ["The lake is 12 miles away.", "How far is it to the lake?"] * 3,
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    folder.mkdir()
    trained.save_model(str(folder))
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (folder / "added_tokens.json").write_text(json.dumps({"<|mask|>": trained.get_vocab_size()}))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))


def _templated(folder: Path) -> None:
    _embedded(folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    del config["chat_template"]
    file.write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(CHATML)


FOLDERS = {"embedded": _embedded, "gpt2": _gpt2, "templated": _templated}


def _file(folder: Path, chance: random.Random, *, suffixes: tuple[str, ...] = ()) -> Path:
    files = sorted(f for f in folder.iterdir() if not suffixes or f.suffix in suffixes)
    return chance.choice(files)


def _places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON tree; of a long list or object, only a few."""
    entries = (
        list(document.items())
        if isinstance(document, dict)
        else list(enumerate(document))
        if isinstance(document, list)
        else []
    )
    if len(entries) > 60:
        entries = entries[:8] + entries[60:-8:97] + entries[-8:]
    return [path] * bool(path) + [p for k, v in entries for p in _places(v, (*path, k))]


def _changed_tree(
    folder: Path, chance: random.Random, change: Callable[[Any, Any, random.Random], str]
) -> str:
    file = _file(folder, chance, suffixes=(".json",))
    document = json.loads(file.read_text())
    path = chance.choice(_places(document))
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    what = change(parent, path[-1], chance)
    file.write_text(json.dumps(document))
    return f"{file.name}: {'.'.join(map(str, path))} {what}"


def _removed(folder: Path, chance: random.Random) -> str:
    def remove(parent: Any, key: Any, _: random.Random) -> str:
        del parent[key]
        return "removed"

    return _changed_tree(folder, chance, remove)


def _replaced(folder: Path, chance: random.Random) -> str:
    def replace(parent: Any, key: Any, chance: random.Random) -> str:
        parent[key] = copy.deepcopy(chance.choice(JSON_VALUES))
        return f"is {parent[key]!r}"

    return _changed_tree(folder, chance, replace)


def _duplicated(folder: Path, chance: random.Random) -> str:
    def duplicate(parent: Any, key: Any, chance: random.Random) -> str:
        if isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
            return "appended once more"
        other = chance.choice(list(parent))
        parent[other] = copy.deepcopy(parent[key])
        return f"also occurs at {other!r}"

    return _changed_tree(folder, chance, duplicate)


def _cut(folder: Path, chance: random.Random) -> str:
    file = _file(folder, chance, suffixes=(".json", ".txt"))
    size = chance.randrange(file.stat().st_size)
    os.truncate(file, size)
    return f"{file.name}: cut after {size} bytes"


def _flipped(folder: Path, chance: random.Random) -> str:
    file = _file(folder, chance)
    content = bytearray(file.read_bytes())
    place = chance.randrange(len(content))
    content[place] ^= 1 << chance.randrange(8)
    file.write_bytes(content)
    return f"{file.name}: byte {place} is {content[place]:#04x}"


def _inverted(folder: Path, chance: random.Random) -> str:
    file = _file(folder, chance)
    content = bytearray(file.read_bytes())
    place = chance.randrange(len(content))
    content[place] = 0xFF
    file.write_bytes(content)
    return f"{file.name}: byte {place} is 0xff"


def _swapped(folder: Path, chance: random.Random) -> str:
    first, second = chance.sample(sorted(folder.iterdir()), 2)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    return f"{first.name} and {second.name} swapped"


def _foreign(folder: Path, chance: random.Random) -> str:
    file = _file(folder, chance)
    content = chance.choice(
        [
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b"{}",
            b"[]",
            b"null",
            b"",
            b"\xef\xbb\xbf{}",
            b"\0" * 99,
        ]
    )
    file.write_bytes(content)
    return f"{file.name} holds {content[:8]!r}"


def _doubled_key(folder: Path, chance: random.Random) -> str:
    file = _file(folder, chance, suffixes=(".json",))
    document = json.loads(file.read_text())
    key = chance.choice(list(document))
    text = json.dumps(document)[:-1] + f", {json.dumps(key)}: 1}}"
    file.write_text(text)
    return f"{file.name}: {key!r} twice"


MUTATIONS = (
    Mutation(_removed, may_be_sound=True),
    Mutation(_replaced, may_be_sound=True),
    Mutation(_duplicated, may_be_sound=True),
    Mutation(_flipped, may_be_sound=True),
    Mutation(_swapped, may_be_sound=True),
    Mutation(_foreign, may_be_sound=True),
    Mutation(_cut),
    Mutation(_inverted),
    Mutation(_doubled_key),
)


def _observe(folder: Path) -> Observed:
    opened = Tokenizer.load(folder)
    return Observed(
        ids=[opened.encode(text) for text in TEXTS],
        conversation=opened.encode_conversation(TURNS),
        special=(opened.eos_id, opened.pad_id, opened.mask_id, opened.stop_ids, opened.vocab_size),
    )


def _is_sound(folder: Path) -> bool:
    """Whether text survives encoding and decoding, all ids are in the vocabulary, and no text gives
    a special id."""
    opened = Tokenizer.load(folder)
    tokens = opened.vocabulary()
    ids = [opened.encode(text) for text in TEXTS]
    given = {id_ for encoded in ids for id_ in encoded}
    special = {opened.eos_id, opened.pad_id, *opened.stop_ids, *opened.special_ids}
    return (
        [opened.decode(encoded) for encoded in ids] == list(TEXTS)
        and sorted(tokens.values()) == list(range(opened.vocab_size))
        and given | special <= set(tokens.values())
        and given.isdisjoint(special)
    )


def _outcome(folder: Path, before: Observed, mutation: Mutation) -> str:
    try:
        after = _observe(folder)
    except ValueError as error:
        is_clean = is_one_message(str(error)) and str(folder) in str(error)
        return "clean" if is_clean else f"traceback {error!r:.200}"
    except BaseException as error:  # The library's panics are no Exception.
        return f"traceback {error!r:.200}"
    if after == before or (mutation.may_be_sound and _is_sound(folder)):
        return "clean"
    return "silent"


def test_mutated_folders_are_refused_or_sound(tmp_path: Path, is_slow: bool) -> None:
    seed = os.environ.get(SEED_VARIABLE, "0")
    print(f"{SEED_VARIABLE}={seed}")
    before = {}
    for name, make in FOLDERS.items():
        make(tmp_path / name)
        before[name] = _observe(tmp_path / name)
    outcomes = Outcomes("mutated tokenizer folders")
    for number in range(SLOW if is_slow else FAST):
        chance = random.Random(f"{seed}-{number}")
        name = chance.choice(list(FOLDERS))
        mutation = MUTATIONS[number % len(MUTATIONS)]
        folder = Path(shutil.copytree(tmp_path / name, tmp_path / "mutated"))
        case = f"{number} {name}: {mutation.apply(folder, chance)}"
        faulthandler.dump_traceback_later(SECONDS_FOR_A_DUMP, exit=True)
        start = time.monotonic()
        kind, _, reason = _outcome(folder, before[name], mutation).partition(" ")
        faulthandler.cancel_dump_traceback_later()
        if time.monotonic() - start > SECONDS_PER_CASE:
            kind = "hang"
        outcomes.add(kind, f"{case} {reason}")
        shutil.rmtree(folder)
    outcomes.check()


def test_a_damage_that_is_not_noticed_would_be_counted(tmp_path: Path) -> None:
    _gpt2(tmp_path / "gpt2")
    before = _observe(tmp_path / "gpt2")
    other = dataclasses.replace(before, ids=[*before.ids[1:], before.ids[0]])
    assert _outcome(tmp_path / "gpt2", before, Mutation(_cut)) == "clean"
    assert _outcome(tmp_path / "gpt2", other, Mutation(_cut)) == "silent"
