"""The published figures of accelerators, which plans are made with.

Speeds are those that vendors publish, dense and in bfloat16; no program reaches them. Figures are
those of one chip, and `Chip.cores` says how many devices jax makes of it.

Sources:
- TPU v4, v5e, v5p, v6e and TPU7x: the page of each in the Cloud TPU documentation ("System
  architecture"), https://docs.cloud.google.com/tpu/docs/system-architecture-tpu-vm. Its "ICI
  bandwidth" is that of all links of a chip in one direction: half of what newer versions of the
  page call bidirectional.
- A100 80 GB, H100 SXM and H200 SXM: NVIDIA's data sheets. Tensor-core speed without sparsity; half
  of the NVLink bandwidth, which is the sum of both directions. Between hosts: one 200 Gb/s
  (A100) or 400 Gb/s (H100, H200) network adapter for each GPU, as in NVIDIA's DGX systems.

>>> CHIPS["v5p"].peak_operations / CHIPS["v5p"].memory_bandwidth  # operations for a byte
166.0...
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping
from types import MappingProxyType

_GIB, _GB = 2**30, 1e9


@dataclasses.dataclass(frozen=True)
class Chip:
    """An accelerator."""

    name: str
    """As in the name of a topology: v5p, H100."""
    kinds: tuple[str, ...]
    """jax's names of its devices: those of a TPU begin with one of these."""
    peak_operations: float
    """Operations in a second, bfloat16."""
    memory_bytes: float
    """High-bandwidth memory."""
    memory_bandwidth: float
    """Bytes in a second, to and from that memory."""
    link_bandwidth: float
    """Bytes in a second that it can send to the others of its slice or host, over all links."""
    network_bandwidth: float = 0.0
    """Bytes in a second to chips on other hosts, of a GPU; 0: all chips are linked directly."""
    per_host: int = 0
    """GPUs of a host; 0: the slice decides."""
    cores: int = 1
    """Devices that jax makes of a chip; they share its figures."""
    dimensions: int = 0
    """Of a slice's shape: 2 or 3; 0: a GPU."""

    @property
    def is_tpu(self) -> bool:
        """Whether slices of it have a shape."""
        return self.dimensions > 0

    def device_memory(self) -> int:
        """Bytes of one device."""
        return int(self.memory_bytes / self.cores)

    def bandwidth_among(self, group: Collection[int]) -> float:
        """Bytes per second that each chip of a group sends in a collective.

        A ring goes through all chips of a host before it leaves it, and several rings share the
        network adapters of these chips: between hosts, each of them gets as much as all adapters of
        the group's chips on one host carry, and never more than its links do.

        Args:
          group: the places of the chips; those of a host follow each other.
        """
        of_hosts = Counter(chip // self.per_host for chip in group) if self.per_host else {}
        if len(of_hosts) <= 1:
            return self.link_bandwidth
        return min(self.link_bandwidth, min(of_hosts.values()) * self.network_bandwidth)


def _tpu(
    name: str,
    *kinds: str,
    tflops: float,
    gib: float,
    gb_per_s: float,
    link_gb_per_s: float,
    dimensions: int,
    cores: int = 1,
) -> Chip:
    return Chip(
        name=name,
        kinds=kinds,
        peak_operations=tflops * 1e12,
        memory_bytes=gib * _GIB,
        memory_bandwidth=gb_per_s * _GB,
        link_bandwidth=link_gb_per_s * _GB,
        dimensions=dimensions,
        cores=cores,
    )


def _gpu(
    name: str, kind: str, *, tflops: float, gb: float, gb_per_s: float, link: float, network: float
) -> Chip:
    return Chip(
        name=name,
        kinds=(kind,),
        peak_operations=tflops * 1e12,
        memory_bytes=gb * _GB,
        memory_bandwidth=gb_per_s * _GB,
        link_bandwidth=link * _GB,
        network_bandwidth=network * _GB,
        per_host=8,
    )


CHIPS: Mapping[str, Chip] = MappingProxyType(
    {
        chip.name: chip
        for chip in (
            _tpu(
                "v4", "TPU v4", tflops=275, gib=32, gb_per_s=1228, link_gb_per_s=300, dimensions=3
            ),
            _tpu(
                *("v5e", "TPU v5 lite", "TPU v5e"),
                tflops=197,
                gib=16,
                gb_per_s=819,
                link_gb_per_s=200,
                dimensions=2,
            ),
            _tpu(
                *("v5p", "TPU v5p", "TPU v5"),
                tflops=459,
                gib=95,
                gb_per_s=2765,
                link_gb_per_s=600,
                dimensions=3,
            ),
            _tpu(
                *("v6e", "TPU v6 lite", "TPU v6e"),
                tflops=918,
                gib=32,
                gb_per_s=1640,
                link_gb_per_s=400,
                dimensions=2,
            ),
            _tpu(
                *("tpu7x", "TPU7x"),
                tflops=2307,
                gib=192,
                gb_per_s=7370,
                link_gb_per_s=600,
                dimensions=3,
                cores=2,
            ),
            _gpu(
                *("A100", "NVIDIA A100-SXM4-80GB"),
                tflops=312,
                gb=80,
                gb_per_s=2039,
                link=300,
                network=25,
            ),
            _gpu(
                *("H100", "NVIDIA H100 80GB HBM3"),
                tflops=989,
                gb=80,
                gb_per_s=3350,
                link=450,
                network=50,
            ),
            _gpu(
                *("H200", "NVIDIA H200"),
                tflops=989,
                gb=141,
                gb_per_s=4800,
                link=450,
                network=50,
            ),
        )
    }
)
"""By the name in a topology."""


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a device, by jax's name of its kind; None: not known.

    >>> chip_of("TPU v5 lite").name, chip_of("NVIDIA H100 80GB HBM3").name, chip_of("cpu")
    ('v5e', 'H100', None)

    Variants with other memory and parts of a GPU (MIG) have other names, and are not known:

    >>> chip_of("NVIDIA A100-SXM4-40GB"), chip_of("NVIDIA H200 NVL")
    (None, None)
    >>> chip_of("NVIDIA H200 MIG 1g.18gb") is None
    True
    """
    matches = [
        (len(kind), chip)
        for chip in CHIPS.values()
        for kind in chip.kinds
        if device_kind == kind or (chip.is_tpu and device_kind.startswith(kind))
    ]
    return max(matches, key=lambda match: match[0], default=(0, None))[1]
