"""The settings with which a run fits a topology, the fastest first.

All splits of the devices over data, fsdp and tensor are estimated with several parts of the batch
(training.gradient_accumulation), several sizes of chunks (loss.chunk_blocks, drafter.chunk_blocks,
training.chunk_tokens) and with and without remat. Where nothing fits, a drafter's rows are split
too (mesh.context). None of them changes what is learned.

>>> found = search(config, parse_topology("v5e:4x4"))                          # doctest: +SKIP
>>> found[0].overrides                                                        # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping

from jaxspec.config import MeshConfig, RunConfig
from jaxspec.ops.mesh_axes import AXES, CONTEXT
from jaxspec.parallel.divisibility import SplitSizes, divisors, problems
from jaxspec.parallel.memory import pool_bytes
from jaxspec.parallel.mesh import mesh_sizes
from jaxspec.parallel.rules import check_context
from jaxspec.planning.estimate import Estimate, Shapes, estimate
from jaxspec.planning.topologies import Topology, known_topologies, parse_topology
from jaxspec.training.tasks.settings import groups_read

MARGIN = 0.9
"""Share of the memory that an estimate may fill: it is off by some percent."""


class NoMesh(ValueError):
    """No mesh of these devices divides the batch and the heads."""


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
      NoMesh: the run cannot be split over so many devices, whatever its size.
      ValueError: no such target or denoiser.
    """
    shapes = Shapes.of(config)
    memory = MARGIN * pool_bytes(topology.chip)
    models = shapes.task.models
    fitting: list[Candidate] = []
    is_divided = False
    for splits_rows in (False, True):
        for changed in variants(
            config, devices=topology.devices, models=models, splits_rows=splits_rows
        ):
            is_divided = True
            taken = estimate(shapes, changed, mesh=_mesh(changed), chip=topology.chip)
            if taken.memory_bytes <= memory:
                fitting.append(Candidate(changed, taken, typed(changed, config)))
        if fitting:
            break
    if not is_divided:
        most = math.gcd(*(size for each in models.values() for size in each["tensor"].values()))
        raise NoMesh(
            f"No mesh splits the run over the {topology.devices} devices of {topology.name}: "
            f"data.batch_size ({config.data.batch_size}) must be a multiple of data x fsdp, and "
            f"{most}, the common factor of all heads, widths and vocabularies, one of tensor. "
            "Change data.batch_size or the topology."
        )
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
        check_context(config, mesh["context"])
    except ValueError:
        return []
    if config.data.batch_size % (
        mesh["data"] * mesh["fsdp"] * config.training.gradient_accumulation
    ):
        return []
    own = dataclasses.replace(config, mesh=MeshConfig(path=config.mesh.path, **mesh))
    shapes = Shapes.of(config)
    if any(problems(model, mesh) for model in shapes.task.models.values()):
        return []
    found = estimate(shapes, own, mesh=mesh, chip=topology.chip)
    return [Candidate(own, found, "")]


def larger_topologies(config: RunConfig, topology: Topology) -> list[Topology]:
    """The next larger usual slice of the same chip that some settings fit; [] if none does."""
    larger = [
        found
        for found in map(parse_topology, known_topologies())
        if found.chip == topology.chip and found.chips > topology.chips
    ]
    for found in sorted(larger, key=lambda each: each.chips):
        with contextlib.suppress(NoMesh):
            if search(config, found):
                return [found]
    return []


def variants(
    config: RunConfig,
    *,
    devices: int,
    models: Mapping[str, SplitSizes],
    splits_rows: bool = False,
) -> Iterator[RunConfig]:
    """The run with all settings that are tried.

    Args:
      config: the run.
      devices: how many there are.
      models: what the mesh has to divide (`Task.models`).
      splits_rows: whether the context axis is larger than 1.
    """
    rows, blocks = config.data.batch_size, config.data.anchors
    chunks = [size for size in (8, 32, 128) if size < blocks and blocks % size == 0]
    groups = groups_read(config.training.task, objective=config.denoiser.objective)
    # What learns to draft has the loss's settings, and chunks of blocks.
    tokens = {config.training.chunk_tokens}
    if "loss" not in groups:
        tokens |= {size for size in (128, 512, 2048) if size < config.data.sequence_length}
    loss_chunks, drafter_chunks = (
        # None: as few as fit.
        sorted(
            {getattr(config, group).chunk_blocks, *(chunks if group in groups else ())},
            key=lambda size: size or 0,
        )
        for group in ("loss", "drafter")
    )
    trained = config.training.task
    settings = getattr(config, trained)
    remats = {False, True}
    if getattr(getattr(settings, "architecture", None), "remat", False):
        remats = {settings.remat}
    of_row = math.gcd(devices, config.data.sequence_length, blocks)
    if "drafter" not in groups:
        of_row = 1
    contexts = [size for size in divisors(of_row) if (size > 1) == splits_rows]
    for data, fsdp, context in itertools.product(divisors(devices), divisors(devices), contexts):
        tensor = devices // (data * fsdp * context)
        if data * fsdp * context * tensor != devices:
            continue
        sizes = {"fsdp": fsdp, "tensor": tensor}
        if any(problems(model, sizes) for model in models.values()):
            continue
        if rows % (data * fsdp) or (config.mesh.path != "jit" and data < devices):
            continue
        for accumulated, loss, chunk, at_once, remat in itertools.product(
            divisors(rows // (data * fsdp)), loss_chunks, drafter_chunks, sorted(tokens), remats
        ):
            own = blocks // context
            if chunk and chunk < own and own % chunk:
                continue
            changed = dataclasses.replace(
                config, **{trained: dataclasses.replace(settings, remat=remat)}
            )
            yield dataclasses.replace(
                changed,
                mesh=dataclasses.replace(
                    config.mesh, data=data, fsdp=fsdp, context=context, tensor=tensor
                ),
                training=dataclasses.replace(
                    config.training, gradient_accumulation=accumulated, chunk_tokens=at_once
                ),
                loss=dataclasses.replace(config.loss, chunk_blocks=loss),
                drafter=dataclasses.replace(changed.drafter, chunk_blocks=chunk),
            )


def typed(config: RunConfig, asked: RunConfig) -> str:
    """The settings that differ, as they are typed; "" if none does."""
    mesh = _mesh(config)
    same = _is_asked_mesh(mesh, asked.mesh)
    parts = [
        f"--mesh.{axis} {size}"
        for axis, size in mesh.items()
        if not same and (axis != CONTEXT or size != asked.mesh.context)
    ]
    for group, name in (
        ("training", "gradient_accumulation"),
        ("training", "chunk_tokens"),
        ("loss", "chunk_blocks"),
        ("drafter", "chunk_blocks"),
        ("target", "remat"),
        ("drafter", "remat"),
        ("denoiser", "remat"),
    ):
        value = getattr(getattr(config, group), name)
        if value != getattr(getattr(asked, group), name):
            parts.append(f"--{group}.{name} {value}")
    return " ".join(parts)


def _is_asked_mesh(mesh: dict[str, int], asked: MeshConfig) -> bool:
    """Whether a run gets this mesh by what it asks for."""
    try:
        return mesh_sizes(asked, devices=math.prod(mesh.values())) == mesh
    except ValueError:
        return False


def _mesh(config: RunConfig) -> dict[str, int]:
    return {axis: getattr(config.mesh, axis) for axis in AXES}
