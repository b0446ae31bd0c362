"""Damaged headers of safetensors files, and damaged indices: refused, or read with the same values.

Damage that no reader can notice is left out: headers as valid as the original, such as one with two
tensors of the same shape swapped.
"""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxspec.checkpoints.families.registry import target_family
from jaxspec.checkpoints.huggingface import load_target, save_target
from jaxspec.checkpoints.safetensors_io import INDEX, WEIGHTS
from jaxspec.checkpoints.shapes import flatten_paths, nest_paths
from jaxspec.config import TransformerConfig
from tests.trust.mutations import SECONDS, SEED, damaged, flipped
from tests.trust.outcomes import Outcomes

CONFIG = TransformerConfig(
    vocab_size=12, hidden_size=16, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=8,
    intermediate_size=24, tie_embeddings=False,
)  # fmt: skip
FAST, SLOW = 60, 500

Header = dict[str, dict[str, Any]]
Mutation = Callable[[Header, str, random.Random], Any]

NUMBERS = (0, -1, 1, 3, 7, 2**31, 2**32, 2**63, 2**64, 10**30, 1.5, True, None, "16", [], {})
DTYPES = (
    "F64", "F16", "BF16", "I8", "U8", "I32", "U32", "I64", "BOOL", "F8_E4M3", "F8_E5M2", "F4",
    "C64", "f32", "F33", "", "\ud800", None, 32, [], {"F32": 1},
)  # fmt: skip
NAMES = ("", "x", "model.norm.weight ", "MODEL.NORM.WEIGHT", "a\nb", "\x1b[2J", "é" * 1000, "../x")


def change_an_offset(header: Header, name: str, at: random.Random) -> None:
    header[name]["data_offsets"][at.randrange(2)] += at.choice([-1, 1, -4, 4, 64, -64, 2**40])


def replace_an_offset(header: Header, name: str, at: random.Random) -> None:
    header[name]["data_offsets"][at.randrange(2)] = at.choice(NUMBERS)


def shift_both_offsets(header: Header, name: str, at: random.Random) -> None:
    step = at.choice([-4, 4, 32, -32, 10**6])
    header[name]["data_offsets"] = [each + step for each in header[name]["data_offsets"]]


def turn_the_offsets_round(header: Header, name: str, at: random.Random) -> None:
    header[name]["data_offsets"].reverse()


def other_offsets(header: Header, name: str, at: random.Random) -> None:
    header[name]["data_offsets"] = at.choice([[], [0], [0, 4, 8], None, "0:4", {"0": 4}, 4])


def share_the_offsets_of_another(header: Header, name: str, at: random.Random) -> None:
    other = at.choice([each for each in header if each not in (name, "__metadata__")])
    header[name]["data_offsets"] = header[other]["data_offsets"]


def change_a_size(header: Header, name: str, at: random.Random) -> None:
    shape = header[name]["shape"]
    shape[at.randrange(len(shape))] = at.choice(NUMBERS)


def another_shape_of_the_same_size(header: Header, name: str, at: random.Random) -> None:
    shape = header[name]["shape"]
    header[name]["shape"] = at.choice(
        [[1, *shape], [*shape, 1], [int(np.prod(shape))], shape[::-1]]
    )


def other_shape(header: Header, name: str, at: random.Random) -> None:
    header[name]["shape"] = at.choice(
        [[], [0], [0, 2**62, 2**62], [2**33, 2**33], [1] * 1000, None, 16, "16"]
    )


def another_dtype(header: Header, name: str, at: random.Random) -> None:
    header[name]["dtype"] = at.choice(DTYPES)


def another_dtype_of_the_same_bytes(header: Header, name: str, at: random.Random) -> None:
    header[name]["dtype"], bytes_each = at.choice([("F64", 8), ("BF16", 2), ("I32", 4), ("U8", 1)])
    header[name]["shape"][-1] = header[name]["shape"][-1] * 4 // bytes_each


def another_name(header: Header, name: str, at: random.Random) -> None:
    header[at.choice(NAMES)] = header.pop(name)


def no_entry(header: Header, name: str, at: random.Random) -> None:
    del header[name]


def no_field(header: Header, name: str, at: random.Random) -> None:
    del header[name][at.choice(sorted(header[name]))]


def one_more_field(header: Header, name: str, at: random.Random) -> None:
    header[name]["scale"] = at.choice([1, None, {}])


def another_entry(header: Header, name: str, at: random.Random) -> None:
    header[name] = at.choice([None, 5, [], {}, "F32"])


def one_more_tensor(header: Header, name: str, at: random.Random) -> None:
    offsets = at.choice([[0, 0], [0, 4], header[name]["data_offsets"], [2**50, 2**50 + 4]])
    header[at.choice(NAMES)] = {
        "dtype": "F32",
        "shape": [at.choice([0, 1])],
        "data_offsets": offsets,
    }


def other_metadata(header: Header, name: str, at: random.Random) -> None:
    header["__metadata__"] = at.choice([None, [], {}, {"format": "pt"}, {"a": 5}, {"a": {}}, "pt"])


ENTRIES: tuple[Mutation, ...] = (
    change_an_offset, replace_an_offset, shift_both_offsets, turn_the_offsets_round, other_offsets,
    share_the_offsets_of_another, change_a_size, another_shape_of_the_same_size, other_shape,
    another_dtype, another_dtype_of_the_same_bytes, another_name, no_entry, no_field,
    one_more_field, another_entry, one_more_tensor, other_metadata,
)  # fmt: skip


def split(content: bytes) -> tuple[bytes, bytes]:
    """Header and values of a file."""
    end = 8 + int.from_bytes(content[:8], "little")
    return content[8:end], content[end:]


def joined(header: bytes, values: bytes, *, length: int | None = None) -> bytes:
    stated = len(header) if length is None else length
    return stated.to_bytes(8, "little") + header + values


def mutated_entry(content: bytes, at: random.Random) -> tuple[str, bytes]:
    header, values = split(content)
    entries = copy.deepcopy(json.loads(header))
    name = at.choice([each for each in entries if each != "__metadata__"])
    mutation = at.choice(ENTRIES)
    mutation(entries, name, at)
    return f"{mutation.__name__} {name}", joined(json.dumps(entries).encode(), values)


def named_twice(content: bytes, at: random.Random) -> tuple[str, bytes]:
    header, values = split(content)
    entries = json.loads(header)
    name = at.choice([each for each in entries if each != "__metadata__"])
    entry = {**entries[name], **at.choice([{}, {"dtype": "I32"}, {"shape": [1]}])}
    both = [header.rstrip()[:-1], json.dumps({name: entry}).encode()[1:]]
    if at.random() < 0.5:
        both = [json.dumps({name: entry}).encode()[:-1], header.rstrip()[1:]]
    return f"named twice {name}", joined(b",".join(both), values)


def another_length(content: bytes, at: random.Random) -> tuple[str, bytes]:
    header, values = split(content)
    end = len(header) + len(values)
    length = at.choice(
        [0, 1, len(header) - 1, len(header) + 1, end - 1, end, end + 1, 99_999_999, 100_000_001,
         2**31, 2**32, 2**63, 2**64 - 1, at.randrange(2**64)]
    )  # fmt: skip
    return f"length {length}", joined(header, values, length=length)


def another_header(content: bytes, at: random.Random) -> tuple[str, bytes]:
    header, values = split(content)
    kind, header = damaged(header.rstrip(), at=at)
    return f"header {kind}", joined(header, values)


def flipped_first_bytes(content: bytes, at: random.Random) -> tuple[str, bytes]:
    end = 8 + len(split(content)[0])
    return "first bytes", flipped(content[:end], at=at) + content[end:]


def another_end(content: bytes, at: random.Random) -> tuple[str, bytes]:
    kinds = {
        "cut": content[: at.randrange(len(content))],
        "longer": content + b"\0" * at.choice([1, 4, 4096]),
        "8 zero bytes": b"\0" * 8,
        "only zero bytes": b"\0" * len(content),
        "empty": b"",
    }
    kind = at.choice(sorted(kinds))
    return kind, kinds[kind]


FILES = (
    *(mutated_entry,) * 10, *(flipped_first_bytes,) * 4,
    named_twice, another_length, another_header, another_end,
)  # fmt: skip


def mutated_index(content: bytes, at: random.Random) -> tuple[str, bytes]:
    index = json.loads(content)
    weight_map = index["weight_map"]
    name, other = at.sample(sorted(weight_map), 2)
    files = [
        *weight_map.values(),
        "",
        ".",
        "..",
        "../x",
        "/dev/zero",
        "x" * 5000,
        "a\0",
        "config.json",
    ]
    match at.randrange(6):
        case 0:
            weight_map[name] = at.choice([*files, *NUMBERS])
        case 1:
            del weight_map[name]
        case 2:
            weight_map[at.choice(NAMES)] = weight_map[other]
        case 3:
            index["weight_map"] = at.choice([None, [], {}, 5, "x", [weight_map]])
        case 4:
            index["metadata"] = at.choice([None, [], {"total_size": at.choice(NUMBERS)}])
        case _:
            return damaged(content, at=at)
    return f"index {name}", json.dumps(index).encode()


def write(folder: Path, params: dict[str, Any], **options: Any) -> Path:
    save_target(folder, CONFIG, params, **options)
    return folder


def test_damaged_headers_are_refused_or_change_nothing(
    tmp_path: Path, is_slow: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(0)
    shapes = target_family(CONFIG).layout(CONFIG, ()).parameter_shapes
    params = {path: generator.standard_normal(shape, "f4") for path, shape in shapes.items()}
    single = write(tmp_path / "single", nest_paths(params))
    shards = write(tmp_path / "shards", nest_paths(params), max_shard_bytes=4000)
    originals = {path: path.read_bytes() for path in (single / WEIGHTS, shards / INDEX)}

    outcomes = Outcomes(f"mutated safetensors headers and indices (seed {SEED})")
    for number in range(SLOW if is_slow else FAST):
        at = random.Random(f"{SEED} {number}")
        file = single / WEIGHTS if at.random() < 0.85 else shards / INDEX
        mutation = mutated_index if file.name == INDEX else at.choice(FILES)
        what, content = mutation(originals[file], at)
        file.write_bytes(content)
        start = time.monotonic()
        case = f"{number}: {what}"
        loaded = outcomes.attempt(case, lambda folder=file.parent: load_target(folder)[1])
        if loaded is not None:
            got = flatten_paths(loaded)
            is_same = all(np.array_equal(got[path], array) for path, array in params.items())
            outcomes.add("clean" if is_same else "silent", case)
        if time.monotonic() - start > SECONDS:
            outcomes.add("hang", case)
        file.write_bytes(originals[file])
    with capsys.disabled():
        outcomes.check()
