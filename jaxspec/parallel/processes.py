"""Joins the processes of a run: one on each host of a pod, or one for each GPU of a cluster.

Cloud TPU, GKE, Slurm and MPI say who belongs together, and jax reads it. Elsewhere the command line
says it, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. A single process needs
nothing.

>>> with joined():
...     gather("hello")
['hello']
"""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import dataclasses
import importlib.metadata
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax._src import cloud_tpu_init
from jax._src.clusters import ClusterEnv

import jaxspec
from jaxspec.interruption import (
    STOPPED_AND_SAVED,
    UNREACHABLE,
    Terminated,
    hearing_progress,
    is_outage,
)
from jaxspec.parallel.links import Links, call_roll, is_loopback

JOIN_TIMEOUT_S = 300.0
"""How long the processes of a run wait for each other at the start."""
_HEARTBEAT_S, _SHUTDOWN_S = 25, 10
_FAULT_S = 3.0
"""How long an error waits for the news that another process is gone, which may be its reason."""
_COUNTS = {
    "SLURM_NTASKS": "Slurm",
    "OMPI_COMM_WORLD_SIZE": "Open MPI",
    "PMI_SIZE": "MPI",
}
"""Variables of programs that start processes: how many there are."""
_PER_HOST = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
_ADVICE = (
    "Start one process on each host with --coordinator HOST:PORT (of process 0), --processes N and "
    "--process-id I; --processes 1 runs this one alone."
)
_is_inside = contextvars.ContextVar("is_inside", default=False)
"""Whether this is inside of `joined`."""
_links: Links | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """What a user says of the processes of a run; None and "": what the cluster says."""

    count: int | None = None
    coordinator: str = ""
    """HOST:PORT of process 0."""
    index: int | None = None
    limit_s: float = JOIN_TIMEOUT_S
    """Seconds that the processes wait for each other."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Place:
    """This process among the others."""

    coordinator: str
    count: int
    index: int
    local_devices: Sequence[int] | None
    """Devices of the host that are this process's; None: all of them."""


@contextlib.contextmanager
def joined(asked: Processes | None = None) -> Iterator[None]:
    """Inside the block, the processes of a run are one: `jax.devices` has the devices of all.

    Only process 0 prints to stdout. If one process ends early, the others end as well, and say
    which one it was and why. Nothing happens for a single process, or inside of another such block.

    Args:
      asked: what the user says of the processes; None: nothing.

    Raises:
      ValueError: the processes contradict each other, do not all come in time, or have other
        versions of jaxspec or jax; or this one is alone where there should be several; or a program
        has joined several by `jax.distributed.initialize`.
    """
    is_joined = _is_inside.get() or _links is not None
    if not is_joined and jax.distributed.is_initialized():
        _check_joined_by_nobody_else()
        is_joined = True
    if is_joined:
        yield
        return
    asked = asked or Processes()
    place = _place(asked)
    with contextlib.ExitStack() as stack:
        stack.callback(_is_inside.reset, _is_inside.set(True))
        if place is None:
            if asked.count != 1:
                _check_alone()
            yield
            return
        links = call_roll(
            place.coordinator, count=place.count, index=place.index, limit_s=asked.limit_s
        )
        stack.enter_context(_ending_together(links))
        check_alike(_versions(), advice="Install the same versions on all hosts.")
        jax.distributed.initialize(
            coordinator_address=place.coordinator,
            # jax's default, where this is None, are all addresses of the host.
            coordinator_bind_address=place.coordinator if is_loopback(place.coordinator) else None,
            num_processes=place.count,
            process_id=place.index,
            local_device_ids=place.local_devices,
            cluster_detection_method="deactivate",
            initialization_timeout=max(30, int(asked.limit_s)),
            heartbeat_timeout_seconds=_HEARTBEAT_S,
            shutdown_timeout_seconds=_SHUTDOWN_S,
        )
        if place.index:
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        yield


@contextlib.contextmanager
def _ending_together(links: Links) -> Iterator[None]:
    """Ends the connections after the block: with the others, or with the news of an error."""
    global _links
    _links = links
    try:
        yield
    except BaseException as error:
        status = _status(error)
        if isinstance(error, Terminated):
            links.end(status, "it was told to stop (SIGTERM); the same command continues")
            atexit.register(_exit_at_once, status)
        elif status != STOPPED_AND_SAVED:
            if not isinstance(error, ValueError):
                time.sleep(_FAULT_S)
            is_told = status in (2, UNREACHABLE)
            links.end(status, f"{error}" if is_told else f"{type(error).__name__}: {error}")
            # jax would wait for the others, and abort.
            atexit.register(_exit_at_once, status)
        else:  # All of them stop after the same step.
            _leave(links)
        raise
    else:
        _leave(links)
    finally:
        _links = None


def _leave(links: Links) -> None:
    """Ends the connections when all processes have got here."""
    links.gather(None)
    jax.distributed.shutdown()
    links.close()


def _exit_at_once(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _status(error: BaseException) -> int:
    """The exit status that a command gives an error."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, Terminated):
        return STOPPED_AND_SAVED
    if isinstance(error, KeyboardInterrupt):
        return 130
    if is_outage(error):
        return UNREACHABLE
    is_mistake = isinstance(error, ValueError | OSError | MemoryError)
    return 2 if is_mistake or "RESOURCE_EXHAUSTED" in str(error) else 1


def gather(value: Any) -> list[Any]:
    """What all processes say, in their order; every process has to call it.

    Args:
      value: anything that JSON holds.
    """
    return [value] if _links is None else _links.gather(value)


def place() -> tuple[int, int]:
    """(number of this process, number of processes) of those that `gather` asks."""
    return (0, 1) if _links is None else (_links.index, len(_links.hosts))


@contextlib.contextmanager
def hearing_progress_of_all(hear: Callable[[], None]) -> Iterator[None]:
    """In the block, a function is called when this process or another one has got on.

    Args:
      hear: see `jaxspec.interruption.hearing_progress`; any thread may call it.
    """
    links = _links
    if links is None:
        with hearing_progress(hear):
            yield
        return

    def hear_here() -> None:
        hear()
        links.tell_progress()

    links.on_progress = hear
    try:
        with hearing_progress(hear_here):
            yield
    finally:
        links.on_progress = lambda: None


def end_all(status: int, text: str) -> None:
    """Tells the other processes, if there are any, that this one ends at once, and why."""
    if _links is not None:
        _links.end(status, text)


def check_alike(facts: Mapping[str, Any], *, advice: str) -> None:
    """Checks that all processes say the same; every process has to call it.

    Args:
      facts: name -> anything that JSON holds.
      advice: what to do if something differs.

    Raises:
      ValueError: on every process, with the names and values that differ.
    """
    check_said(gather(dict(facts)), advice=advice)


def check_said(said: Sequence[Mapping[str, Any]], *, advice: str) -> None:
    """Checks that all processes have said the same (see `check_alike`).

    Args:
      said: by process, name -> anything.
      advice: what to do if something differs.

    Raises:
      ValueError: with the names and values that differ.
    """
    first, *others = said
    differing = [
        f"  {name}: {other.get(name)} for {_name(index)}, {first.get(name)} for {_name(0)}"
        for index, other in enumerate(others, start=1)
        for name in dict.fromkeys((*first, *other))
        if first.get(name) != other.get(name)
    ]
    if differing:
        shown = differing[:12] + ["  ..."] * (len(differing) > 12)
        raise ValueError("\n".join(["The processes of this run differ.", *shown, advice]))


def _name(process: int) -> str:
    return f"process {process}" if _links is None else _links.name(process)


def _versions() -> dict[str, str]:
    packages = {"jax": jax.__version__, "jaxlib": importlib.metadata.version("jaxlib")}
    return {"jaxspec": jaxspec.__version__, **packages}


def _place(asked: Processes) -> _Place | None:
    """This process among the others; None: it is the only one."""
    count = _given(asked.count, "JAX_NUM_PROCESSES")
    # A process that is to run alone has no place among those of the variables.
    index = asked.index if asked.count == 1 else _given(asked.index, "JAX_PROCESS_ID")
    coordinator = asked.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    local_devices = None
    if count == 1:
        if index:
            raise ValueError(f"--process-id is {index}, but --processes is 1: expected 0.")
        return None
    if count is None or index is None or not coordinator:
        found = _found(asked.limit_s)
        if found is None:
            if count is None and index is None and not coordinator:
                return None
            raise ValueError(
                f"{_said(count, index, coordinator)}, and no cluster says the rest: give "
                "--coordinator HOST:PORT, --processes N and --process-id I."
            )
        if count not in (None, found.count):
            raise ValueError(
                f"--processes is {count}, but the cluster has started {found.count}: leave "
                "--processes out, or start as many."
            )
        count, coordinator = found.count, coordinator or found.coordinator
        index = found.index if index is None else index
        local_devices = found.local_devices
        if count == 1:
            return None
    if not 0 <= index < count:
        raise ValueError(
            f"--process-id is {index}, but there are {count} processes: expected 0 to {count - 1}."
        )
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(f"--coordinator is {coordinator!r}: expected HOST:PORT, as in h0:8476.")
    return _Place(coordinator=coordinator, count=count, index=index, local_devices=local_devices)


def _given(asked: int | None, variable: str) -> int | None:
    said = os.environ.get(variable)
    if asked is not None or said is None:
        return asked
    if not said.isdecimal():
        raise ValueError(f"{variable} is {said!r}: expected a whole number.")
    return int(said)


def _said(count: int | None, index: int | None, coordinator: str) -> str:
    options = {"--coordinator": coordinator or None, "--processes": count, "--process-id": index}
    given = (f"{name} {value}" for name, value in options.items() if value is not None)
    return f"Got {', '.join(given)}"


def _found(limit_s: float) -> _Place | None:
    """What the cluster says of this process; None: it is in none that jax knows."""
    for cluster in ClusterEnv._cluster_types:
        # Pods of other kinds than an indexed job have no number; mpi4py would start MPI itself.
        if cluster.name == "k8s" and "JOB_COMPLETION_INDEX" not in os.environ:
            continue
        if cluster.opt_in_only_method and not any(_started(name) > 1 for name in _COUNTS):
            continue
        try:
            if not cluster.is_env_present():
                continue
            if (count := cluster.get_process_count()) == 1:
                return _Place(coordinator="", count=1, index=0, local_devices=None)
            coordinator = cluster.get_coordinator_address(
                timeout_secs=int(limit_s),
                override_coordinator_port=os.environ.get("JAX_COORDINATOR_PORT"),
            )
            index, local = cluster.get_process_id(), cluster.get_local_process_id()
        except (RuntimeError, LookupError, ValueError, OSError) as error:
            raise ValueError(
                f"This seems to be part of a cluster ({cluster.__name__}), which does not say who "
                f"belongs to it: {type(error).__name__}: {error}. {_ADVICE}"
            ) from error
        if _is_alone_on_host() or cloud_tpu_init.running_in_cloud_tpu_vm:
            local = None
        return _Place(
            coordinator=coordinator,
            count=count,
            index=index,
            local_devices=None if local is None else [local],
        )
    return None


def _is_alone_on_host() -> bool:
    """Whether the cluster started one process on each host: all of its devices are its own."""
    if _started("SLURM_NTASKS") == _started("SLURM_STEP_NUM_NODES") > 0:
        return True
    return any(_started(name) == 1 for name in _PER_HOST)


def _started(variable: str) -> int:
    said = os.environ.get(variable, "")
    return int(said) if said.isdecimal() else 0


def _check_joined_by_nobody_else() -> None:
    """Refuses processes that only jax knows of: nothing would keep their runs together."""
    if (count := jax.process_count()) > 1:
        raise ValueError(
            f"This program has joined {count} processes by jax.distributed.initialize, so that "
            "jaxspec cannot make sure that they agree and end together. Leave out your own "
            "jax.distributed.initialize: jaxspec joins the processes, as the cluster says, or as "
            "JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0), JAX_NUM_PROCESSES and "
            "JAX_PROCESS_ID do."
        )


def _check_alone() -> None:
    """Refuses a process that runs alone although it should be one of several."""
    for variable, program in _COUNTS.items():
        if (count := _started(variable)) > 1:
            start = " (srun python train.py ...)" if program == "Slurm" else ""
            raise ValueError(
                f"{program} is to start {count} processes ({variable}), but jax cannot tell which "
                f"one this is: start it with {program}'s own command{start}. {_ADVICE}"
            )
    hosts = [host for host in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]
    if len(hosts) > 1:
        raise ValueError(
            f"This is one of {len(hosts)} hosts of a TPU slice (TPU_WORKER_HOSTNAMES), but jax "
            f'sees no TPU: install "jaxspec-decoding[tpu]". {_ADVICE}'
        )
    if (count := jax.process_count()) > 1:
        raise ValueError(
            f"The devices that jax sees belong to {count} hosts, but no other process has joined "
            f"this one. {_ADVICE}"
        )
