"""Who belongs together: what the command line, the environment and the cluster say."""

from __future__ import annotations

import jax
import pytest
from jax._src.clusters import cloud_tpu_cluster

import train as program
from jaxspec.cli.configuration import run_as_command
from jaxspec.cli.process_options import ProcessOptions
from jaxspec.parallel import processes
from jaxspec.parallel.processes import Processes, check_alike, gather, joined

SLURM = {
    "SLURM_JOB_ID": "4096",
    "SLURM_STEP_NODELIST": "node[3-4]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_NODES": "2",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}


@pytest.fixture
def say(monkeypatch):
    """Sets variables of the environment."""

    def set_all(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_all


@pytest.fixture
def metadata(monkeypatch):
    """A virtual machine of Cloud TPU, whose metadata server says something."""

    def answer(said):
        def get(key):
            return (said[key], 200) if key in said else ("not found", 404)

        monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
        monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
        monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", get)

    return answer


def found(**asked):
    """(coordinator, count, index, devices) of this process."""
    place = processes._place(Processes(**asked))
    return place and (place.coordinator, place.count, place.index, place.local_devices)


def test_a_single_process_needs_nothing(monkeypatch):
    def ask(*arguments, **options):
        raise AssertionError("a single process asks no server")

    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", ask)
    assert found() is None
    with joined():
        assert jax.process_count() == 1 and gather("a") == ["a"]
        check_alike({"a": 1}, advice="")


def test_flags_say_it_all():
    assert found(count=2, coordinator="h0:80", index=1) == ("h0:80", 2, 1, None)
    assert found(count=1) is None


def test_variables_say_it_and_flags_come_first(say):
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    say(dict(zip(names, ("h0:80", "3", "2"), strict=True)))
    assert found() == ("h0:80", 3, 2, None)
    assert found(index=1) == ("h0:80", 3, 1, None)


def test_one_process_runs_alone_whatever_the_variables_say(say):
    say({"JAX_COORDINATOR_ADDRESS": "h0:80", "JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "2"})
    assert found(count=1) is None
    assert found(count=1, index=0) is None
    with pytest.raises(ValueError, match="--process-id is 1, but --processes is 1"):
        found(count=1, index=1)
    with joined(Processes(count=1)):
        assert jax.process_count() == 1
    say({"JAX_NUM_PROCESSES": "1"})
    with pytest.raises(ValueError, match="--process-id is 2, but --processes is 1"):
        found()


def test_slurm(say):
    say(SLURM)
    assert found() == ("node3:61440", 4, 2, [0])
    say({"SLURM_STEP_NUM_NODES": "4"})
    assert found()[3] is None, "one process on each host has all of its devices"
    assert found(coordinator="h0:80")[0] == "h0:80"
    with pytest.raises(ValueError, match="--processes is 2, but the cluster has started 4"):
        found(count=2)
    assert found(count=1) is None


def test_slurm_with_one_task(say):
    say({**SLURM, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"})
    assert found() is None


def test_open_mpi(say):
    say(OPEN_MPI)
    coordinator, *rest = found()
    assert coordinator.startswith("10.96.0.1:") and rest == [2, 1, [1]]


def test_a_plain_cloud_tpu_slice_starts(metadata):
    """Without any variable: the metadata server knows the hosts."""
    hosts = "a:0:10.0.0.5,b:1:10.0.0.6,c:2:10.0.0.7,d:3:10.0.0.8"
    metadata({"agent-worker-number": "3", "worker-network-endpoints": hosts, "tpu-env": ""})
    assert found() == ("10.0.0.5:8482", 4, 3, None)


def test_one_host_of_cloud_tpu(metadata):
    metadata({"agent-worker-number": "0", "worker-network-endpoints": "10.0.0.5", "tpu-env": ""})
    assert found() is None


def test_gke(metadata, say):
    metadata({"tpu-env": ""})
    say({"TPU_WORKER_HOSTNAMES": "10.0.0.5,10.0.0.6", "TPU_WORKER_ID": "1"})
    assert found() == ("10.0.0.5:8482", 2, 1, None)


def test_a_metadata_server_that_does_not_answer(metadata, monkeypatch):
    metadata({})

    def fail(key):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", fail)
    with pytest.raises(ValueError, match=r"GceTpuCluster.*no route to host.*--processes 1 runs"):
        found()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"count": 2}, "Got --processes 2, and no cluster says the rest"),
        ({"coordinator": "h0:80"}, "Got --coordinator h0:80, and no cluster"),
        ({"index": 0}, "Got --process-id 0, and no cluster"),
        ({"count": 2, "coordinator": "h0:80", "index": 2}, "expected 0 to 1"),
        ({"count": 1, "index": 1}, "--process-id is 1, but --processes is 1"),
        ({"count": 2, "coordinator": "h0", "index": 1}, "expected HOST:PORT"),
        ({"count": 2, "coordinator": "h0:port", "index": 1}, "expected HOST:PORT"),
        ({"count": 2, "coordinator": "h0:99999", "index": 1}, "expected HOST:PORT"),
    ],
)
def test_flags_that_contradict_or_do_not_suffice(asked, message):
    with pytest.raises(ValueError, match=message):
        found(**asked)


def test_a_variable_that_is_no_number(say):
    say({"JAX_NUM_PROCESSES": "two"})
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES is 'two'"):
        found()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"SLURM_NTASKS": "4"}, "Slurm is to start 4 processes.*srun python train.py"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI is to start 2"),
        ({"PMI_SIZE": "8"}, "MPI is to start 8"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "one of 2 hosts of a TPU slice.*jax sees no TPU"),
    ],
)
def test_one_of_several_that_runs_alone_is_refused(say, variables, message):
    say(variables)
    with pytest.raises(ValueError, match=message), joined():
        pass
    with joined(Processes(count=1)), joined():
        assert jax.process_count() == 1


def test_devices_of_hosts_that_have_not_joined_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    message = "belong to 4 hosts, but no other process has joined"
    with pytest.raises(ValueError, match=message), joined():
        pass


def test_processes_that_a_program_has_joined_itself_are_refused(monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    with joined():  # It alone.
        pass
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    message = "joined 4 processes by .*Leave out your own jax.distributed.initialize"
    with pytest.raises(ValueError, match=message), joined():
        pass
    monkeypatch.setattr(processes, "_links", Said())
    with joined():  # In another thread of a run.
        pass


@pytest.mark.parametrize(
    ("coordinator", "bound"), [("localhost:8476", "localhost:8476"), ("10.0.0.5:8476", None)]
)
def test_jax_is_told_where_to_listen(coordinator, bound, monkeypatch):
    told = {}
    links = Said()
    links.end = lambda *said: None
    monkeypatch.setattr(Said, "gather", lambda self, value: [value] * 2)
    monkeypatch.setattr(processes, "call_roll", lambda *where, **options: links)
    monkeypatch.setattr(processes, "_leave", lambda links: None)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: told.update(options))
    with joined(Processes(count=2, index=0, coordinator=coordinator)):
        pass
    assert told["coordinator_address"] == coordinator
    assert told["coordinator_bind_address"] == bound


class Said:
    """What three processes say, of which the second has an old jax."""

    def name(self, process):
        return f"process {process} on {'abc'[process]}"

    def gather(self, value):
        return [value, {**value, "jax": "0.1"}, value]


def test_what_differs_is_named_with_its_processes(monkeypatch):
    monkeypatch.setattr(processes, "_links", Said())
    with pytest.raises(ValueError) as caught:
        check_alike({"jax": "0.2", "jaxspec": "1"}, advice="Install the same.")
    assert str(caught.value).splitlines() == [
        "The processes of this run differ.",
        "  jax: 0.1 for process 1 on b, 0.2 for process 0 on a",
        "Install the same.",
    ]


@pytest.mark.parametrize("wrong", [{"processes": 0}, {"process_id": -1}, {"join_timeout": 0.0}])
def test_options_have_ranges(wrong):
    with pytest.raises(ValueError, match=f"--{next(iter(wrong))} must be"):
        ProcessOptions(**wrong)


def test_the_command_says_in_one_line_that_the_coordinator_does_not_answer(tmp_path, capsys):
    run = ["--config", "quickstart", "--workdir", str(tmp_path / "run")]
    place = ["--processes", "2", "--process-id", "1", "--coordinator", "127.0.0.1:9"]
    assert run_as_command(program.main, [*run, *place, "--join-timeout", "1"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: The coordinator 127.0.0.1:9 has not answered process 1")
    assert said.count("\n") == 1 and not (tmp_path / "run").exists()
