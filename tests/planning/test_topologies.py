"""Names of slices and hosts, and the figures of their chips."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from jaxspec.parallel.chips import CHIPS, chip_of
from jaxspec.planning.topologies import (
    compiling_for,
    known_topologies,
    parse_topology,
    topology_devices,
)


@pytest.mark.parametrize(
    ("name", "full", "chips", "devices"),
    [
        ("v5p:2x2x2", "v5p:2x2x2", 8, 8),
        ("V5E:4x4", "v5e:4x4", 16, 16),
        ("trillium:2x4", "v6e:2x4", 8, 8),
        ("v7x:2x2x1", "tpu7x:2x2x1", 4, 8),
        ("8xH100", "8xH100", 8, 8),
        ("16xa100", "16xA100", 16, 16),
        ("4xh200", "4xH200", 4, 4),
    ],
)
def test_names_are_read(name, full, chips, devices):
    topology = parse_topology(name)
    assert (topology.name, topology.chips, topology.devices) == (full, chips, devices)


def test_every_usual_name_is_read():
    assert all(parse_topology(name).name == name for name in known_topologies())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5x:2x2x2", "no topology 'v5x:2x2x2'. Did you mean 'v5p:2x2x2'?"),
        ("8xH10", "Did you mean '8xH100'?"),
        ("v5p", "Expected a TPU and the shape of its slice"),
        ("8xv5p", "There is no topology"),
        ("H100:2x2", "There is no topology"),
        ("v5p:2x2", "A slice of v5p has 3 dimensions: got 'v5p:2x2', expected a shape such as"),
        ("v5e:2x2x2", "A slice of v5e has 2 dimensions"),
        ("0xH100", "from 1 to"),
        ("v5e:4x0", "from 1 to"),
        ("12xH100", "whole hosts of 8: got '12xH100', expected 8xH100 or 16xH100"),
    ],
)
def test_other_names_are_refused(name, message):
    with pytest.raises(ValueError) as caught:
        parse_topology(name)
    assert message in str(caught.value)


def test_more_gpus_than_virtual_devices_are_refused():
    with pytest.raises(ValueError, match="set JAX_NUM_CPU_DEVICES to 64"):
        topology_devices(parse_topology("64xH100"))


@pytest.mark.parametrize("before", ["", "import jax"])
def test_a_plan_needs_no_other_platform_than_the_cpu(before):
    program = f"""{before}
from jaxspec.planning.topologies import parse_topology, prepare_platform, topology_devices
topology = parse_topology("2xH100")
prepare_platform([topology])
print(len(topology_devices(topology)))"""
    environment = {**os.environ, "JAX_PLATFORMS": "tpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.strip()) == (0, "2"), ran.stderr


def test_a_slice_that_the_compiler_does_not_know_is_refused():
    odd = parse_topology("v5p:3x5x7")
    with compiling_for(odd), pytest.raises(ValueError, match=r"Cannot describe .* 'v5p:3x5x7'"):
        topology_devices(odd)


def test_the_compiler_describes_as_many_devices_as_jax_makes():
    """A slice of each chip: the larger ones differ only in their number."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu, which describes slices, is not installed")
    for chip in CHIPS.values():
        if chip.is_tpu:
            topology = parse_topology(f"{chip.name}:{'x'.join('221'[: chip.dimensions])}")
            with compiling_for(topology):
                assert len(topology_devices(topology)) == topology.devices, topology


def test_a_v4_is_described_as_one_device(monkeypatch):
    asked = []

    def describe(**options):
        asked.append(options)
        return SimpleNamespace(devices=[1, 2])

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", describe)
    for name in ("v4:2x2x1", "v5p:2x2x1"):
        assert topology_devices(parse_topology(name)) == [1, 2]
    tpu = {"platform": "tpu"}
    assert asked == [
        {**tpu, "topology_name": "v4:2x2x1", "chip_config_name": "megacore"},
        {**tpu, "topology_name": "v5p:2x2x1"},
    ]


def test_the_compiler_of_tpus_is_given_no_flags_of_another(monkeypatch):
    """It ends the process at a flag that it does not know; other compilers keep theirs."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_some_flag=1")
    for name in ("ALLOW_MULTIPLE_LIBTPU_LOAD", "TPU_WORKER_HOSTNAMES", "TPU_SKIP_MDS_QUERY"):
        monkeypatch.delenv(name, raising=False)
    with compiling_for(parse_topology("v5p:2x2x2")):
        assert "XLA_FLAGS" not in os.environ
        # Two plans at once: no lock for chips that are not used.
        assert os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] == "1"
    for other in (None, parse_topology("8xH100")):
        with compiling_for(other):
            assert os.environ["XLA_FLAGS"] == "--xla_cpu_some_flag=1"


def test_devices_are_known_by_their_kind():
    names = {
        "TPU v4": "v4",
        "TPU v5 lite": "v5e",
        "TPU v5": "v5p",
        "TPU v5p": "v5p",
        "TPU v6 lite": "v6e",
        "TPU7x": "tpu7x",
        "NVIDIA A100-SXM4-80GB": "A100",
        "NVIDIA H100 80GB HBM3": "H100",
        "NVIDIA H200": "H200",
    }
    assert {kind: chip_of(kind).name for kind in names} == names
    assert chip_of("cpu") is None


@pytest.mark.parametrize(
    "kind",
    [
        "NVIDIA H200 NVL",
        "NVIDIA H200 MIG 1g.18gb",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA A100-SXM4-80GB MIG 3g.40gb",
        "NVIDIA A100-SXM4-40GB",
        "NVIDIA H100 PCIe",
    ],
)
def test_variants_and_parts_of_a_gpu_are_not_taken_for_it(kind):
    assert chip_of(kind) is None


def test_a_ring_over_hosts_uses_the_adapters_of_all_its_gpus():
    h100, v5p = CHIPS["H100"], CHIPS["v5p"]
    assert h100.bandwidth_among(range(8)) == 450e9
    assert h100.bandwidth_among(range(8, 16)) == 450e9
    assert h100.bandwidth_among(range(16)) == 8 * 50e9
    assert h100.bandwidth_among(range(0, 64, 4)) == 2 * 50e9
    assert h100.bandwidth_among([0, 8]) == 50e9
    faster = dataclasses.replace(h100, network_bandwidth=100e9)
    assert faster.bandwidth_among(range(16)) == 450e9
    assert v5p.bandwidth_among(range(64)) == v5p.link_bandwidth


def test_a_device_may_be_a_part_of_a_chip():
    assert CHIPS["tpu7x"].device_memory() == 96 * 2**30
    assert CHIPS["v5e"].device_memory() == 16 * 2**30
