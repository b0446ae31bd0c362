"""jaxspec regenerate on several devices and in several processes: the folder of one device."""

import dataclasses

import pytest

from jaxspec.config import MeshConfig, RunConfig, TargetConfig
from jaxspec.data.example_files import read_examples, read_manifest
from jaxspec.parallel.shares import Share
from tests.evals.drafter_folders import WIDE, write_folders
from tests.processes import as_processes, refusals
from tests.training import runs


def shared_out(ask, count, output, *, stop_first=False, **changes):
    """What the command says in each of as many processes; see `as_processes`.

    With `stop_first`, the first process is stopped when it has answered a shard.
    """

    def run(share):
        stop_after = 0 if stop_first and share.is_first else None
        return ask(output, share=share, stop_after=stop_after, **changes)[1]

    return as_processes(count, run)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_questions_out(ask, tmp_path, count):
    """Three shards: with four processes, one has nothing to do."""
    whole, _ = ask("whole")
    said = shared_out(ask, count, "shared")
    assert said[0][-1].startswith("Questions asked: 5; examples written: 5, in ")
    assert "questions of this process" in said[0][0]
    assert all(said[index] == [] for index in range(1, count))
    shared = tmp_path / "shared"
    assert sorted(runs.contents(shared)) == sorted(runs.contents(whole)), "no journal is left"
    assert list(read_examples(shared)) == list(read_examples(whole))
    one, several = read_manifest(whole), read_manifest(shared)
    for manifest in (one, several):
        manifest["provenance"].pop("time")
        manifest["provenance"]["command"] = ""
    assert several == one


def test_one_process_goes_on_with_what_several_answered(ask, tmp_path):
    whole, _ = ask("whole")
    said = shared_out(ask, 2, "shared", stop_first=True)
    assert isinstance(said[0], KeyboardInterrupt)
    shared = tmp_path / "shared"
    journals = sorted(path.name for path in shared.glob("answers.unfinished.*.jsonl"))
    assert "answers.unfinished.0.jsonl" in journals and len(journals) >= 2
    _, said = ask("shared")
    assert said[-1].startswith("Questions asked: 5; examples written: 5, in ")
    assert list(read_examples(shared)) == list(read_examples(whole))
    assert sorted(runs.contents(shared)) == sorted(runs.contents(whole))


def test_every_process_has_to_see_the_folder(ask, tmp_path):
    with pytest.raises(ValueError, match="all processes must see the same folder"):
        ask(share=Share(1, 2, gather=lambda value: [value, value]))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"temperature": 0.0}, "temperature: 0.0 for process 1"),
        ({"shard_prompts": 3}, "shard_prompts: 3 for process 1"),
        ({"limit": 4}, "questions: "),
        ({"other_weights": True}, "target: "),
    ],
)
def test_processes_that_would_answer_otherwise_are_refused(ask, tmp_path, changes, named):
    """Hosts with other weights, questions or settings: nothing of theirs is mixed in."""
    changes = dict(changes)
    if changes.pop("other_weights", False):
        other = runs.write_target(tmp_path / "other", seed=1)
        changes["run"] = RunConfig(target=TargetConfig(path=str(other)))
    said = as_processes(
        2, lambda share: ask("mixed", share=share, **({} if share.is_first else changes))
    )
    assert refusals(said) and all(named in text for text in refusals(said)), said
    assert not [*(tmp_path / "mixed").glob("*.array_record")]


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A target whose heads 8 devices can share."""
    return write_folders(tmp_path_factory.mktemp("wide"), **WIDE)[0]


@pytest.mark.parametrize("sizes", [(1, 8), (4, 2)], ids=["tensor", "both"])
def test_answers_on_a_mesh_are_those_of_one_device(ask, wide, sizes):
    data, tensor = sizes
    alone = RunConfig(target=TargetConfig(path=str(wide)))
    spread = dataclasses.replace(alone, mesh=MeshConfig(data=data, tensor=tensor))
    whole, _ = ask("whole", batch_size=4, run=alone)
    found, _ = ask("spread", batch_size=4, run=spread)
    assert list(read_examples(found)) == list(read_examples(whole))
    devices = read_manifest(found)["provenance"]["devices"]
    assert devices["mesh"] == {"data": data, "fsdp": 1, "tensor": tensor}
    # The answers are the same, so a folder may be continued on another mesh.
    _, said = ask("spread", batch_size=4, run=alone, limit=6)
    assert said[0].startswith("Continuing after 5 questions")


def test_a_batch_that_the_mesh_does_not_divide_is_refused(ask, wide, tmp_path):
    run = RunConfig(target=TargetConfig(path=str(wide)), mesh=MeshConfig(data=4, tensor=2))
    with pytest.raises(ValueError, match=r"mesh\.data is 4, which does not divide the 6 prompts"):
        ask(batch_size=6, run=run)
    assert not (tmp_path / "answers").exists()
