"""jaxspec calibrate on several devices and in several processes: the graph of one device."""

import dataclasses
import functools

import pytest

from jaxspec.cli.calibrate import CalibrateCommand, calibrate
from jaxspec.config import MeshConfig
from jaxspec.decoding.diffusion.draft_graph import load_graph
from jaxspec.parallel.shares import Share
from tests.evals.diffusion_folders import EVALUATION, run_config, write_model
from tests.evals.drafter_folders import WIDE
from tests.processes import as_processes, refusals

BATCH = 4
PROMPTS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "export", **WIDE)


@pytest.fixture(scope="module")
def call(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("graphs")

    @functools.cache
    def run(name, mesh=None, share=None, depth=8):
        evaluation = dataclasses.replace(EVALUATION, batch_size=BATCH)
        changes = {} if mesh is None else {"mesh": mesh}
        command = CalibrateCommand(
            source="embedded/math",
            output=str(place / f"{name}.json"),
            run=run_config(folder, evaluation=evaluation, **changes),
            prompts=PROMPTS,
            budget=3,
            tokens=16,
            depth=depth,
        )
        said = []
        return calibrate(command, echo=said.append, share=share), said

    return run


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((1, 8), marks=pytest.mark.slow("both axes cover it"), id="tensor"),
        pytest.param((4, 2), id="both"),
    ],
)
def test_the_graph_on_a_mesh_is_that_of_one_device(call, sizes):
    data, tensor = sizes
    alone = load_graph(call("alone")[0])
    file, _ = call(f"spread{tensor}", MeshConfig(data=data, tensor=tensor))
    spread = load_graph(file)
    assert spread.nodes == alone.nodes and spread.settings == alone.settings
    assert spread.provenance["calibration"] == alone.provenance["calibration"]
    devices = spread.provenance["devices"]
    assert devices["mesh"] == {"data": data, "fsdp": 1, "tensor": tensor}


def test_processes_share_the_prompts_out(call):
    alone = load_graph(call("alone")[0])
    found = as_processes(2, lambda share: call("shared", share=share))
    (file, said), (_, silent) = found
    assert silent == [] and said[0].startswith("3 prompts  ")
    shared = load_graph(file)
    assert shared.nodes == alone.nodes
    assert shared.provenance["calibration"] == alone.provenance["calibration"]


def test_more_processes_than_prompts_are_refused(call):
    with pytest.raises(ValueError, match="There are 6 prompts for 7 processes: ask for more"):
        call("many", share=Share(0, 7))


def test_processes_that_would_count_otherwise_are_refused(call):
    found = as_processes(2, lambda share: call("mixed", share=share, depth=8 - share.index))
    refused = refusals(found)
    assert refused and all("depth: 7 for process 1, 8 for process 0" in text for text in refused)
