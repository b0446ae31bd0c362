"""Slices and hosts by name, such as v5p:2x2x2 (8 TPU chips) or 8xH100, and devices to compile for.

>>> parse_topology("v5p:2x2x2").chips, parse_topology("16xH100").chips
(8, 16)
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from jaxspec.names import did_you_mean
from jaxspec.parallel.chips import CHIPS, Chip

_EXAMPLES = {
    2: ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    3: ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
}
_OTHER_NAMES = {
    "v7x": "tpu7x",
    "v5litepod": "v5e",
    "v5lite": "v5e",
    "trillium": "v6e",
    "ironwood": "tpu7x",
}
_OPTIONS = {"v4": {"chip_config_name": "megacore"}}
"""What libtpu has to be told of a chip: that jax makes one device of both cores of a v4."""
_MOST_CHIPS = 2**17


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips that work together."""

    name: str
    chip: Chip
    chips: int

    @property
    def devices(self) -> int:
        """Devices that jax makes of them."""
        return self.chips * self.chip.cores

    @property
    def hosts(self) -> int:
        """Hosts that the chips belong to; each runs a process of its own.

        >>> [parse_topology(name).hosts for name in ("v6e:2x4", "v6e:4x4", "v5p:2x2x2", "16xH100")]
        [1, 4, 2, 2]
        """
        # A host of a TPU has 4 chips, or all 8 of the largest slices of v5e and v6e on one host.
        of_one = self.chip.per_host or (8 if self.chip.dimensions == 2 and self.chips <= 8 else 4)
        return max(1, self.chips // of_one)


def known_topologies() -> list[str]:
    """The usual slices of each TPU, and a host of each GPU."""
    return [
        name
        for chip in CHIPS.values()
        for name in (
            [f"{chip.name}:{shape}" for shape in _EXAMPLES[chip.dimensions]]
            if chip.is_tpu
            else [f"{count}x{chip.name}" for count in (1, 2, 4, 8, 16)]
        )
    ]


def parse_topology(name: str) -> Topology:
    """The topology of that name; letters may be small or capital.

    Raises:
      ValueError: no such chip, or a shape that no slice of it has.
    """
    gpu = re.fullmatch(r"(\d{1,6})x([A-Za-z]\w*)", name)
    tpu = re.fullmatch(r"([A-Za-z]\w*):(\d{1,4}(?:x\d{1,4})*)", name)
    word = (gpu[2] if gpu else tpu[1] if tpu else name).casefold()
    by_name = {chip.casefold(): found for chip, found in CHIPS.items()}
    chip = by_name.get(_OTHER_NAMES.get(word, word))
    sizes = [int(size) for size in (tpu[2].split("x") if tpu else [gpu[1]] if gpu else [])]
    if chip is None or not sizes or chip.is_tpu != bool(tpu):
        raise ValueError(
            f"There is no topology {name!r}.{did_you_mean(name, known_topologies())} Expected a "
            f"TPU and the shape of its slice ({', '.join(_names(tpu=True))}; such as v5p:2x2x2 or "
            f"v5e:4x4), or a number of GPUs ({', '.join(_names(tpu=False))}; such as 8xH100)."
        )
    if chip.is_tpu and len(sizes) != chip.dimensions:
        raise ValueError(
            f"A slice of {chip.name} has {chip.dimensions} dimensions: got {name!r}, expected a "
            f"shape such as {', '.join(_EXAMPLES[chip.dimensions])}."
        )
    chips = math.prod(sizes)
    if not 1 <= chips <= _MOST_CHIPS:
        raise ValueError(f"A topology has from 1 to {_MOST_CHIPS:,} chips: got {name!r}.")
    if not chip.is_tpu and chips > chip.per_host and chips % chip.per_host:
        raise ValueError(
            f"More than {chip.per_host} GPUs are whole hosts of {chip.per_host}: got {name!r}, "
            f"expected {chips // chip.per_host * chip.per_host}x{chip.name} or "
            f"{-(-chips // chip.per_host) * chip.per_host}x{chip.name}."
        )
    shape = "x".join(map(str, sizes))
    return Topology(f"{chip.name}:{shape}" if tpu else f"{chips}x{chip.name}", chip, chips)


def _names(*, tpu: bool) -> list[str]:
    return [name for name, chip in CHIPS.items() if chip.is_tpu == tpu]


def prepare_platform(topologies: Sequence[Topology]) -> None:
    """Has jax describe the topologies in this process; call it before jax is used.

    It computes nothing, whatever JAX_PLATFORMS says: the CPU is enough. For GPUs, this process gets
    as many virtual devices of it.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    # Virtual devices wait for each other in threads of a pool, which is large enough then.
    os.environ.setdefault("NPROC", "16")
    import jax

    jax.config.update("jax_platforms", "cpu")  # If jax has been imported, it has read the variable.
    needed = max((found.devices for found in topologies if not found.chip.is_tpu), default=1)
    if needed > 1 and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # jax is in use: `topology_devices` looks.
            jax.config.update("jax_num_cpu_devices", needed)
    jax.devices("cpu")  # Reads XLA_FLAGS, which `compiling_for` hides from libtpu.


def topology_devices(topology: Topology) -> Sequence[Any]:
    """Devices to compile for, which this machine does not have; see `compiling_for`.

    Of a TPU, its compiler describes them. For GPUs, they are virtual devices of this CPU: the
    program is divided alike, but CPU code needs other temporaries.

    Raises:
      ValueError: libtpu is not installed or does not know the slice, or this process has too few
        virtual devices.
    """
    import jax

    if not topology.chip.is_tpu:
        devices = jax.devices("cpu")
        if len(devices) < topology.devices:
            raise ValueError(
                f"{topology.name} is planned on as many virtual devices of the CPU, and this "
                f"process has {len(devices)}: set JAX_NUM_CPU_DEVICES to {topology.devices} before "
                "jax starts, and take --xla_force_host_platform_device_count out of XLA_FLAGS."
            )
        return devices[: topology.devices]
    from jax.experimental import topologies

    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, **_OPTIONS.get(topology.chip.name, {})
        )
    except (RuntimeError, NotImplementedError, ValueError) as error:
        usual = ", ".join(_EXAMPLES[topology.chip.dimensions])
        raise ValueError(
            f"Cannot describe the topology {topology.name!r}: {str(error).splitlines()[0]}\nThe "
            f"usual shapes of {topology.chip.name} are {usual}. Describing one needs libtpu: "
            'pip install "jaxspec-decoding[tpu]".'
        ) from error
    return list(described.devices)


@contextlib.contextmanager
def compiling_for(topology: Topology | None) -> Iterator[None]:
    """The environment to describe a topology and to compile for it; None: changes nothing.

    libtpu only compiles, beside other processes that do the same.
    """
    if topology is None or not topology.chip.is_tpu:
        yield
        return
    wanted = {
        # Otherwise it waits for the metadata server that cloud machines have.
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        # It takes a lock for the chips of a machine, and none are used here.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    flags = os.environ.pop("XLA_FLAGS", None)  # It ends the process at a flag for another compiler.
    try:
        yield
    finally:
        if flags is not None:
            os.environ["XLA_FLAGS"] = flags
