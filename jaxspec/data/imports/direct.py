"""Files and folders that are named as a source: imported once, then read like any folder.

What was read is kept in the folder of prepared data under a hash of the files' content: a changed
file is read again, and gives other examples.

>>> read_direct("chats.jsonl", use="training", data_dir=Path("~/.cache"))      # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
from collections import Counter
from pathlib import Path

from jaxspec.data.example_files import MANIFEST, FolderExamples, read_examples
from jaxspec.data.heldout import HeldOutPrompts
from jaxspec.data.imports.locate import DataFiles, locate
from jaxspec.data.imports.reading import Tally
from jaxspec.data.imports.rows import StoppedAtBadRow
from jaxspec.data.imports.use import RECORD, SPLITS, Use
from jaxspec.data.imports.writing import digest_of, import_files
from jaxspec.interruption import is_outage
from jaxspec.names import visible
from jaxspec.paths import exists, is_remote, remove_folder

_VERSION = "4"
"""Raised when the same file would give other examples."""
_log = logging.getLogger(__name__)


def read_direct(source: str, *, use: Use, data_dir: Path) -> FolderExamples:
    """The conversations of a file or folder; one line says what it holds.

    Args:
      source: the path.
      use: what they are for.
      data_dir: root folder of all data that is kept.

    Raises:
      ValueError: a bad row, or a file that cannot be read; or data cannot be kept.
    """
    found = locate(source, split=SPLITS[use])
    folder = data_dir / "imported" / _digest(found, use=use)
    kept = _kept(folder)
    if kept is None:
        _keep(found, folder, use=use)
        kept = read_examples(folder)
    record = kept.manifest[RECORD]
    tally = Tally(
        rows=record["rows"],
        forms=Counter(record["formats"]),
        duplicates=record["duplicates"],
        held_out=record["benchmark_prompts"],
        empty=record.get("empty_files", []),  # Older versions refused them.
    )
    first, *empty = tally.lines(source)
    left_out = f"; left out: {tally.left_out}" if tally.left_out else ""
    for line in [f"{first}{left_out}", *empty, *found.notes()]:
        print(visible(line), flush=True)
    return kept


def _keep(found: DataFiles, folder: Path, *, use: Use) -> None:
    """Imports files into the folder of prepared data."""
    try:
        import_files([found], folder, use=use, manifest={}, echo=_say_nothing, keep_existing=True)
    except StoppedAtBadRow as error:
        of_use = "" if use == "training" else f"--use {use} "
        raise ValueError(
            f"{error} Correct it, or import the file without its bad rows: jaxspec import-data "
            f"{shlex.quote(found.source)} {of_use}--on-bad-row skip --output FOLDER"
        ) from error
    except OSError as error:
        if is_outage(error):
            raise
        raise ValueError(
            f"What is read from {found.source} cannot be kept in {folder.parent} ({error}): set "
            "data.data_dir or the environment variable JAXSPEC_DATA_DIR to a folder that can be "
            "written to."
        ) from error


def _say_nothing(line: str) -> None:
    del line


def _kept(folder: Path) -> FolderExamples | None:
    """What an earlier call has read; None: nothing, or it is damaged."""
    if not folder.exists():
        return None
    if is_remote(folder) and not exists(folder / MANIFEST):
        return None  # Another process may be uploading it.
    try:
        return read_examples(folder)
    except ValueError as error:
        _log.warning("%s Reading the files again.", error)
        remove_folder(folder)
        return None


def _digest(found: DataFiles, *, use: Use) -> str:
    """A hash of the files' names and content, and of what decides what is left out."""
    files = [(name, digest_of(path)) for path, name in zip(found.files, found.names, strict=True)]
    content = json.dumps([_VERSION, use, HeldOutPrompts.load().digest, files])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
