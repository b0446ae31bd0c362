"""What went wrong, in words for the person who typed the command.

An exception is either a problem that the user can solve, which becomes one message, or a defect of
the program, which keeps its traceback.

>>> message_of(FileNotFoundError(2, "No such file or directory", "a.json"))
'No such file or directory: a.json. Check the path.'
>>> message_of(KeyError("x")) is None
True
"""

from __future__ import annotations

import errno
import os
import traceback
import zipfile
import zlib
from pathlib import Path, PurePath

TRACEBACK_VARIABLE = "JAXSPEC_TRACEBACK"
"""Set it to 1 to see where a user's mistake was noticed."""

_SPACE = "Free some space, or choose another place, and start again."
_PERMISSION = "Choose another place, or ask for permission."
_PATH = "Check the path."
ADVICE = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: "The file system or this shell (ulimit -f) limits the size of files.",
    errno.EROFS: _PERMISSION,
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.ENAMETOOLONG: "Use a shorter name.",
    errno.EMFILE: "Raise the limit (ulimit -n) and start again.",
    errno.ENFILE: "Too many files are open on this machine: close some and start again.",
    errno.ENOENT: _PATH,
    errno.ENOTDIR: _PATH,
    errno.EISDIR: _PATH,
    errno.EEXIST: _PATH,
    errno.EIO: "The disk, the network or the network share has failed: check it.",
    errno.ESTALE: "The network share has changed: mount it again.",
    errno.ENOMEM: "Close other programs, or use a machine with more memory.",
}
"""What to do, by the number of a system error."""
_SMALLER = (
    "To need less memory in training: lower data.batch_size, data.sequence_length or data.anchors, "
    "raise training.gradient_accumulation, or set drafter.chunk_blocks, loss.chunk_blocks, "
    "drafter.remat, denoiser.remat or target.dtype bfloat16 (jaxspec plan shows what a step "
    "needs). In decoding: lower the batch size, max_new_tokens, max_prompt_tokens, tree_nodes or "
    "chains."
)
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError)
_LONGEST_NAME = 200


def message_of(error: BaseException) -> str | None:
    """The message for an exception that ended a command.

    Args:
      error: the exception.

    Returns:
      One message, usually one line; None: it is a defect.
    """
    where = f" ({TRACEBACK_VARIABLE}=1 shows where)"
    if isinstance(error, UnicodeDecodeError):
        return (
            f"{file_behind(error) or 'A file'} is not UTF-8 text: {error.reason} at byte "
            f"{error.start}. Save it as UTF-8.{where}"
        )
    if isinstance(error, UnicodeEncodeError):
        character = error.object[error.start : error.end]
        return (
            f"{character!a} cannot be written in the encoding {error.encoding!r}: {error.reason}. "
            f"Set PYTHONUTF8=1, or use other characters.{where}"
        )
    if isinstance(error, ValueError):
        return f"{error}{_origin_note(error)}"
    if isinstance(error, OSError):
        return _system_message(error)
    if isinstance(error, _DAMAGED):
        name = file_behind(error) or "A file"
        return f"{name} is damaged: {error}. Delete it, or download it again.{where}"
    if isinstance(error, MemoryError):
        return f"This machine is out of memory{_detail(error)}. {_SMALLER}"
    if isinstance(error, OverflowError):
        return f"A number is too large{_detail(error)}.{where}"
    if isinstance(error, RecursionError):
        return f"A file or a value is nested too deeply to be read{_detail(error)}.{where}"
    if type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error):
        return f"A device is out of memory{_detail(error)}. {_SMALLER}"
    if isinstance(error, RuntimeError) and str(error).startswith("Unable to initialize backend"):
        return f"{error}\n(the environment variable JAX_PLATFORMS chooses the backends)"
    return None


def file_behind(error: BaseException) -> str:
    """The file whose reading or writing failed, if a method of its path was called, or ""."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        path = frame.f_locals.get("self")
        if isinstance(path, PurePath):
            return _shown(path)
    return ""


def _system_message(error: OSError) -> str:
    if error.errno is None:  # Such as a download that failed.
        return f"{type(error).__name__}: {error}"
    names = [_shown(name) for name in (error.filename, error.filename2) if name is not None]
    place = " -> ".join(names) or file_behind(error)
    what = (error.strerror or os.strerror(error.errno)) + (f": {place}" if place else "")
    advice = ADVICE.get(error.errno, f"({TRACEBACK_VARIABLE}=1 shows where)")
    return f"{what}. {advice}"


def _shown(name: object) -> str:
    """A path that is safe to print: without control characters, and at most a few lines long."""
    if not isinstance(name, str | bytes | os.PathLike):
        return str(name)
    text = os.fsdecode(name)
    if not text.isprintable():
        text = ascii(text)
    if len(text) > _LONGEST_NAME:
        half = _LONGEST_NAME // 2
        text = f"{text[:half]} ... {text[-half:]} ({len(text)} characters)"
    return text


def _detail(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f" ({lines[0].rstrip('.')})" if lines else ""


def _origin_note(error: ValueError) -> str:
    """A note if another package refused a value: its message may not mention settings."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    origin = Path(frames[-1].filename)
    if "site-packages" not in origin.parts or Path(__file__).parent.parent in origin.parents:
        return ""
    return f"\n(refused by a package that jaxspec uses; {TRACEBACK_VARIABLE}=1 shows where)"
