"""Damaged data of every kind: refused with the file's name, or read as if nothing had happened."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxspec.config import DataConfig
from jaxspec.data import pipeline
from jaxspec.data.example_files import read_examples, write_examples
from jaxspec.data.examples import Example
from jaxspec.data.sources import load_examples
from jaxspec.data.tokenizer import Tokenizer
from tests.data.raw_folder import write_raw_folder
from tests.trust.outcomes import Outcomes, is_one_message

FLIPS_FAST, FLIPS_SLOW = 12, 200
MISSING = object()
NO_TEXTS = (None, "", " \n", 7, True, ["x"], {}, "\ud800", MISSING)
NO_LISTS = (None, "", "x", 7, [], [""], [None], [["x"]], {}, MISSING)
NO_NUMBERS = (None, "601", 1.5, True, [], MISSING)

Field = tuple[str, str, str, str, Sequence[Any]]
FIELDS: tuple[Field, ...] = (
    ("gsm8k", "train", "gsm8k/train.jsonl", "question", NO_TEXTS),
    ("gsm8k", "test", "gsm8k/test.jsonl", "answer", NO_TEXTS),
    ("math", "train", "math_train_4subjects/prealgebra_train.jsonl", "input", NO_TEXTS),
    ("math", "train", "math_train_4subjects/algebra_train.jsonl", "output", NO_TEXTS),
    ("math500", "test", "math500/test.jsonl", "problem", NO_TEXTS),
    ("math500", "test", "math500/test.jsonl", "solution", NO_TEXTS),
    ("aime24", "test", "aime/aime24_qa.jsonl", "question", NO_TEXTS),
    ("aime25", "test", "aime/aime25_qa.jsonl", "problem", NO_TEXTS[:-1]),  # or "question"
    ("mbpp", "train", "mbpp/mbpp.jsonl", "task_id", NO_NUMBERS),
    ("mbpp", "test", "mbpp/mbpp.jsonl", "text", NO_TEXTS),
    ("mbpp", "test", "mbpp/mbpp.jsonl", "code", NO_TEXTS),
    ("mbpp", "test", "mbpp/mbpp.jsonl", "test_list", NO_LISTS),
    ("humaneval", "test", "humaneval/HumanEval.jsonl", "prompt", NO_TEXTS),
    ("humaneval", "test", "humaneval/HumanEval.jsonl", "canonical_solution", NO_TEXTS),
    ("livecodebench", "test", "livecodebench/livecodebench.jsonl", "turns", NO_LISTS),
    ("mt_bench", "test", "mt_bench/question.jsonl", "turns", NO_LISTS),
    ("spec_bench", "test", "spec_bench/question.jsonl", "category", NO_TEXTS),
    ("spec_bench/qa", "test", "spec_bench/question.jsonl", "turns", NO_LISTS),
    ("instructions", "train", "instruction_rasbt/instruction-data.json", "instruction", NO_TEXTS),
    ("instructions", "train", "instruction_rasbt/instruction-data.json", "input", (None, 7, [])),
    ("code_instructions", "train", "gpteacher/codegen-instruct.json", "response", NO_TEXTS),
    ("roleplay", "train", "gpteacher/roleplay-instruct.json", "response", NO_TEXTS),
)
"""Source, split, file, field, and what must not be in it."""

BYTES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda raw: b"",
    "blank": lambda raw: b"\n\n",
    "cut": lambda raw: raw[: len(raw) // 2],
    "not UTF-8": lambda raw: raw[:12] + b"\xe9 " + raw[12:],
    "UTF-16": lambda raw: raw.decode(errors="ignore").encode("utf-16"),
    "HTML": lambda raw: b"<html>404</html>\n",
    "100,000 brackets": lambda raw: raw + b"[" * 100_000,
    "zeros": lambda raw: bytes(len(raw)),
    "a number of 10,000 digits": lambda raw: b"1" * 10_000,
}
"""Damages of whole files."""
TEXTS = ("empty", "blank", "not UTF-8", "UTF-16", "zeros")
"""Those that running text can have: any other text is text."""


def judge(
    outcomes: Outcomes,
    case: str,
    function: Callable[[], Any],
    *,
    names: Sequence[str],
    expected: object = None,
) -> None:
    """Clean: refused in one message that names what it should, or the expected value."""
    try:
        value = function()
    except ValueError as error:
        named = is_one_message(str(error)) and all(name in str(error) for name in names)
        outcomes.add("clean" if named else "traceback", f"{case}: {str(error)[:500]}")
    except Exception:
        outcomes.add("traceback", f"{case}: {traceback.format_exc(limit=-3)}")
    else:
        outcomes.add("clean" if value == expected else "silent", f"{case}: {str(value)[:500]}")


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.delenv("JAXSPEC_RAW_DATA", raising=False)
    monkeypatch.delenv("JAXSPEC_DATA_DIR", raising=False)
    write_raw_folder(tmp_path / "raw")
    return DataConfig(raw_dir=str(tmp_path / "raw"), data_dir=str(tmp_path / "data"))


def _replaced(file: Path, field: str, value: Any) -> str:
    """Puts a value into a field of the last record; returns the record's place."""
    is_list = file.suffix == ".json"
    text = file.read_text()
    records = json.loads(text) if is_list else [json.loads(line) for line in text.splitlines()]
    if value is MISSING:
        del records[-1][field]
    else:
        records[-1][field] = value
    file.write_text(json.dumps(records) if is_list else "\n".join(map(json.dumps, records)))
    return f"{'record' if is_list else 'line'} {len(records)} of {file}"


def test_wrong_fields_of_raw_files(is_slow, data):
    outcomes = Outcomes("fields of raw files")
    for number, (source, split, name, field, values) in enumerate(FIELDS):
        file = Path(data.raw_dir) / name
        whole = file.read_bytes()
        for value in values if is_slow else (values[number % len(values)],):
            place = _replaced(file, field, value)
            judge(
                outcomes,
                f"{name}: {field} = {value!a}",
                lambda source=source, split=split: list(
                    load_examples(source, split=split, data=data)
                ),
                names=(place, repr(field)),
            )
            file.write_bytes(whole)
    outcomes.check()


@pytest.mark.parametrize(
    ("source", "split", "name", "damages"),
    [
        ("gsm8k", "train", "gsm8k/train.jsonl", tuple(BYTES)),
        ("instructions", "train", "instruction_rasbt/instruction-data.json", tuple(BYTES)),
        ("tinystories", "train", "tinystories/tinystories_sample.txt", TEXTS),
        ("wikitext2", "test", "wikitext2/test.txt", TEXTS),
        ("wikitext2", "train", "wikitext2/train.txt", TEXTS[:-1]),
    ],
)
def test_damaged_raw_files(data, source, split, name, damages):
    outcomes = Outcomes(f"damaged {name}")
    file = Path(data.raw_dir) / name
    whole = file.read_bytes()
    for damage in damages:
        file.write_bytes(BYTES[damage](whole))
        judge(
            outcomes,
            damage,
            lambda: list(load_examples(source, split=split, data=data)),
            names=(str(file),),
        )
    file.write_bytes(whole)
    expected = list(load_examples(source, split=split, data=data))
    file.write_bytes(b"\xef\xbb\xbf" + whole)
    with_mark = list(load_examples(source, split=split, data=data))
    outcomes.add("clean" if with_mark == expected else "silent", "a byte order mark")
    outcomes.check()


def _flipped(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def _damages(content: bytes, *, flips: int) -> list[tuple[str, bytes]]:
    rng = random.Random(len(content))
    return [
        ("empty", b""),
        ("text", b"hello\n"),
        ("cut", content[: len(content) // 2]),
        ("one byte short", content[:-1]),
        ("zeros", bytes(len(content))),
        ("brackets", b"[" * 100_000),
        *((f"flip {number}", _flipped(content, rng)) for number in range(flips)),
    ]


def _examples(count: int) -> list[Example]:
    return [
        Example(f"e{n}", (("user", f"Frage {n}?"), ("assistant", f"Größe {n}\n" * 9)), "demo")
        for n in range(count)
    ]


def test_damaged_folders_of_examples(is_slow, tmp_path):
    """A flipped byte of a manifest may change what is not compared; the examples are then equal."""
    outcomes = Outcomes("folders of examples")
    write_examples(tmp_path, _examples(3), manifest={})
    write_examples(tmp_path, _examples(2), manifest={"settings": {"seed": 1}})
    expected = list(read_examples(tmp_path))
    for file in sorted(tmp_path.iterdir()):
        whole = file.read_bytes()
        for damage, content in _damages(whole, flips=FLIPS_SLOW if is_slow else FLIPS_FAST):
            file.write_bytes(content)
            judge(
                outcomes,
                f"{file.name}: {damage}",
                lambda: list(read_examples(tmp_path)),
                names=(str(tmp_path),),
                # A shard has a digest: not one flipped byte of it may pass.
                expected=expected if file.suffix == ".json" else None,
            )
        file.unlink()
        judge(outcomes, f"no {file.name}", lambda: read_examples(tmp_path), names=(str(tmp_path),))
        file.write_bytes(whole)
    assert list(read_examples(tmp_path)) == expected
    outcomes.check()


@pytest.mark.parametrize("with_raw", [True, False])
def test_damaged_prepared_files(is_slow, data, with_raw, monkeypatch):
    """With raw files, they are prepared again; without, the message says what to remove."""
    outcomes = Outcomes(f"prepared files, {'with' if with_raw else 'without'} raw ones")
    monkeypatch.setattr("urllib.request.urlopen", None)
    expected = list(load_examples("gsm8k", split="train", data=data))
    used = data if with_raw else dataclasses.replace(data, raw_dir="")
    (info,) = Path(data.data_dir).rglob("dataset_info.json")
    folder = info.parent
    kept = shutil.copytree(folder, folder.with_name("kept"))
    flips = FLIPS_SLOW if is_slow else 2
    for name in sorted(file.name for file in kept.iterdir()):
        for damage, content in _damages((kept / name).read_bytes(), flips=flips):
            (folder / name).write_bytes(content)
            judge(
                outcomes,
                f"{name}: {damage}",
                lambda: list(load_examples("gsm8k", split="train", data=used)),
                names=(str(folder), "raw" if with_raw else "Remove that folder"),
                expected=expected,
            )
            shutil.rmtree(folder)
            shutil.copytree(kept, folder)
    outcomes.check()


def test_damaged_caches(is_slow, data, monkeypatch, caplog):
    outcomes = Outcomes("tokenized examples")
    monkeypatch.setattr(pipeline, "CACHE_FROM", 1)
    tokenizer, examples = Tokenizer.load("embedded"), _examples(8)

    def read() -> tuple[list[list[int]], list[bool]]:
        documents = pipeline.tokenized_documents(examples, tokenizer, data=data)[0].documents
        tokens = [documents[number][0].tolist() for number in range(len(documents))]
        return tokens, documents.loss_mask.tolist()

    expected = read()
    (file,) = Path(data.data_dir).rglob("*.npz")
    whole = file.read_bytes()
    for damage, content in _damages(whole, flips=FLIPS_SLOW if is_slow else FLIPS_FAST):
        file.write_bytes(content)
        judge(outcomes, damage, read, names=(), expected=expected)
    with np.load(file) as arrays:
        members = dict(arrays)
    for name in members:
        with file.open("wb") as opened:
            np.savez(opened, **{key: value for key, value in members.items() if key != name})
        judge(outcomes, f"no {name}", read, names=(), expected=expected)
    assert "is damaged" in caplog.text
    outcomes.check()
