"""The settings with which a run fits a topology, the fastest first.

All splits of the devices over data, fsdp and tensor are estimated with several parts of the batch
(training.gradient_accumulation), sizes of chunks (loss.chunk_blocks, drafter.chunk_blocks) and with
and without drafter.remat. None of them changes what is learned.

>>> found = search(config, parse_topology("v5e:4x4"))                          # doctest: +SKIP
>>> found[0].overrides                                                        # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from jaxspec.config import MeshConfig, RunConfig
from jaxspec.parallel.mesh import mesh_sizes
from jaxspec.planning.estimate import Estimate, Shapes, estimate
from jaxspec.planning.topologies import Topology, known_topologies, parse_topology

MARGIN = 0.9
"""Share of the memory that an estimate may fill: it is off by some percent."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Settings and what they would take."""

    config: RunConfig
    estimate: Estimate
    overrides: str
    """Where they differ from the run's, as they are typed."""

    @property
    def seconds(self) -> float:
        """The least time of a step."""
        return self.estimate.roofline.seconds


def search(config: RunConfig, topology: Topology) -> list[Candidate]:
    """Settings that would fit, the fastest first: one for each mesh and number of parts.

    Of equally fast ones (to two digits), the one counts that changes the least, and then the one
    that needs the least memory.

    Raises:
      ValueError: the run does not train a drafter.
    """
    shapes = Shapes.of(config)
    memory = MARGIN * topology.chip.device_memory()
    candidates = [
        Candidate(
            changed,
            estimate(shapes, changed, mesh=_mesh(changed), chip=topology.chip),
            typed(changed, config),
        )
        for changed in variants(config, devices=topology.devices, heads=shapes.heads)
    ]
    fitting = [found for found in candidates if found.estimate.memory_bytes <= memory]
    fitting.sort(
        key=lambda found: (
            float(f"{found.seconds:.2g}"),
            found.overrides.count("--"),
            found.estimate.memory_bytes,
        )
    )
    best: dict[object, Candidate] = {}
    for found in fitting:
        parts = found.config.training.gradient_accumulation
        best.setdefault((found.config.mesh, parts), found)
    return list(best.values())


def as_asked(config: RunConfig, topology: Topology) -> list[Candidate]:
    """The run's own settings, if it can run on these devices at all."""
    try:
        mesh = mesh_sizes(config.mesh, devices=topology.devices)
    except ValueError:
        return []
    if config.data.batch_size % (
        mesh["data"] * mesh["fsdp"] * config.training.gradient_accumulation
    ):
        return []
    own = dataclasses.replace(config, mesh=MeshConfig(path=config.mesh.path, **mesh))
    found = estimate(Shapes.of(config), own, mesh=mesh, chip=topology.chip)
    return [Candidate(own, found, "")]


def larger_topologies(config: RunConfig, topology: Topology) -> list[Topology]:
    """The next larger usual slice of the same chip that some settings fit; [] if none does."""
    larger = [
        found
        for found in map(parse_topology, known_topologies())
        if found.chip == topology.chip and found.chips > topology.chips
    ]
    for found in sorted(larger, key=lambda each: each.chips):
        if search(config, found):
            return [found]
    return []


def variants(config: RunConfig, *, devices: int, heads: Sequence[int]) -> Iterator[RunConfig]:
    """The run with all settings that are tried.

    Args:
      config: the run.
      devices: how many there are.
      heads: numbers of heads, which a tensor axis has to divide.
    """
    rows, blocks = config.data.batch_size, config.data.anchors
    chunks = [size for size in (8, 32, 128) if size < blocks and blocks % size == 0]
    loss_chunks = sorted({config.loss.chunk_blocks, *chunks})
    drafter_chunks = sorted({config.drafter.chunk_blocks, *chunks}, key=lambda size: size or 0)
    for data, fsdp in itertools.product(_divisors(devices), repeat=2):
        tensor = devices // (data * fsdp)
        if data * fsdp * tensor != devices or any(count % tensor for count in heads):
            continue
        if rows % (data * fsdp) or (config.mesh.path != "jit" and fsdp * tensor > 1):
            continue
        for accumulated, loss, chunk, remat in itertools.product(
            _divisors(rows // (data * fsdp)), loss_chunks, drafter_chunks, (True, False)
        ):
            yield dataclasses.replace(
                config,
                mesh=dataclasses.replace(config.mesh, data=data, fsdp=fsdp, tensor=tensor),
                training=dataclasses.replace(config.training, gradient_accumulation=accumulated),
                loss=dataclasses.replace(config.loss, chunk_blocks=loss),
                drafter=dataclasses.replace(config.drafter, chunk_blocks=chunk, remat=remat),
            )


def typed(config: RunConfig, asked: RunConfig) -> str:
    """The settings that differ, as they are typed; "" if none does."""
    mesh = _mesh(config)
    same = all(getattr(asked.mesh, axis) in (-1, size) for axis, size in mesh.items())
    parts = [] if same else [f"--mesh.{axis} {size}" for axis, size in mesh.items()]
    for group, name in (
        ("training", "gradient_accumulation"),
        ("loss", "chunk_blocks"),
        ("drafter", "chunk_blocks"),
        ("drafter", "remat"),
    ):
        value = getattr(getattr(config, group), name)
        if value != getattr(getattr(asked, group), name):
            parts.append(f"--{group}.{name} {value}")
    return " ".join(parts)


def _mesh(config: RunConfig) -> dict[str, int]:
    return {"data": config.mesh.data, "fsdp": config.mesh.fsdp, "tensor": config.mesh.tensor}


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
