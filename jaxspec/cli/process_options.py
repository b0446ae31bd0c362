"""The options of a command that may run as several processes, one on each host.

>>> ProcessOptions(processes=2, coordinator="h0:8476", process_id=1).processes
2
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Annotated

from jaxspec.ranges import MOST_DEVICES, check_ranges, positive, whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessOptions:
    """What a command takes to find the other processes; commands inherit it.

    Every process is started by the same command. Cloud TPU, GKE, Slurm and MPI say the rest.
    """

    processes: Annotated[int, whole(1, MOST_DEVICES)] | None = None
    """Processes of the run; None: what the cluster says, or else 1."""
    coordinator: str = ""
    """HOST:PORT of process 0, with a free port; "": what the cluster says."""
    process_id: Annotated[int, whole(0, MOST_DEVICES)] | None = None
    """Number of this process, from 0; None: what the cluster says."""
    join_timeout: Annotated[float, positive()] = 300.0
    """Seconds that the processes wait for each other at the start."""

    def __post_init__(self) -> None:
        check_ranges(self, prefix="--")

    def joined(self) -> contextlib.AbstractContextManager[None]:
        """See `jaxspec.parallel.processes.joined`."""
        from jaxspec.parallel import processes  # It imports jax, which --help does without.

        return processes.joined(
            processes.Processes(
                count=self.processes,
                coordinator=self.coordinator,
                index=self.process_id,
                limit_s=self.join_timeout,
            )
        )
