"""A unit of a study as a process of its own: on its cores, and gone when the study is gone.

    python -m jaxspec.cli.study_unit PARENT CORES train --config ... --workdir ...

Where the system can do it (Linux), the process ends when its parent is killed: a study that is
started again then finds no unit that still runs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

from jaxspec.study.units import Unit

_SIGNAL_AT_PARENTS_DEATH = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""


def start_unit(unit: Unit, log: Path, cores: tuple[int, ...]) -> subprocess.Popen[bytes]:
    """Starts a unit.

    Args:
      unit: the unit.
      log: gets its output, after what is there already.
      cores: that it may use; (): all.
    """
    own = [str(os.getpid()), ",".join(map(str, cores)) or "all"]
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", __name__, *own, *unit.command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Ctrl-C reaches the study, which then asks the unit to save what it has.
            start_new_session=True,
        )


def main() -> None:
    """Becomes the command."""
    parent, cores, *words = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SIGNAL_AT_PARENTS_DEATH, signal.SIGKILL)
        if os.getppid() != int(parent):  # It is gone already.
            sys.exit(1)
    if cores != "all":
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    # What results record as their command can be typed.
    sys.argv = ["jaxspec", *words]
    from jaxspec.cli.main import main as console

    console()


if __name__ == "__main__":
    main()
