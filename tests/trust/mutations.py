"""Random damage to files, from a seed that is printed and can be set."""

from __future__ import annotations

import os
import random

SEED = int(os.environ.get("JAXSPEC_TRUST_SEED", "0"))
"""Other seeds try other cases."""
SECONDS = 30
"""A case in this process that takes longer than this counts as a hang."""


def damaged(content: bytes, *, at: random.Random) -> tuple[str, bytes]:
    """What was done to a JSON file as a whole, and the damaged content.

    Except for "bytes", no result is a JSON object.
    """
    kinds = {
        "cut": content[: at.randrange(len(content) - 1)],
        "empty": b"",
        "byte order mark": b"\xef\xbb\xbf" + content,
        "UTF-16": content.decode().encode("utf-16"),
        "not UTF-8": content.replace(b'"', b'"\xff', 1),
        "more at the end": content + b"}",
        "zero bytes": b"\0" * 100,
        "brackets": b"[" * 100_000,
        "braces": b'{"a":' * 100_000,
        "a list": b"[" + content + b"]",
        "a number": b"1e999",
        "many digits": content.replace(b"{", b'{"a": ' + b"9" * 5000 + b",", 1),
    }
    kind = at.choice([*kinds, "bytes"])
    return kind, kinds[kind] if kind in kinds else flipped(content, at=at)


def flipped(content: bytes, *, at: random.Random) -> bytes:
    """The content with one to eight bytes changed."""
    changed = bytearray(content)
    for _ in range(at.randint(1, 8)):
        changed[at.randrange(len(changed))] ^= 1 << at.randrange(8)
    return bytes(changed)
