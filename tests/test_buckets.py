"""Paths in a bucket: what differs from a disk, and what goes wrong there."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.checkpoints import safetensors_io
from jaxspec.checkpoints.safetensors_io import TensorFolder, write_tensors
from jaxspec.checkpoints.train_state import TrainCheckpoints, check_folder, saved_progress
from jaxspec.cli.configuration import run_as_command
from jaxspec.cli.main import dispatch
from jaxspec.files import held, replaced_file, replaced_folder, try_file, user_path, write_text
from jaxspec.growing_file import GrowingFile
from jaxspec.interruption import UNREACHABLE, hearing_progress
from jaxspec.parallel.processes import _status
from jaxspec.paths import copy_file, exists, is_remote, local_copy, read_range, remove_folder
from tests.fake_bucket import READ, FakeBucket, fake_bucket, put


@pytest.fixture
def bucket(monkeypatch):
    with fake_bucket(monkeypatch) as objects:
        yield objects


@pytest.fixture
def folder(bucket):
    return user_path("gs://bucket/runs/full")


def test_paths_keep_their_bucket(folder):
    assert str(folder / "a" / "b.json") == "gs://bucket/runs/full/a/b.json"
    assert str(folder.parent.with_name("c")) == "gs://bucket/c"
    assert folder.resolve() == folder.absolute() == folder.expanduser() == user_path(folder)
    assert str((folder / "a").relative_to(folder)) == "a"
    assert is_remote(folder) and not is_remote("runs/gs:/x") and not is_remote("hf:name")


def test_what_is_there(folder):
    write_text(folder / "a.txt", "é\n")
    write_text(folder / "b" / "c.txt", "c")
    assert (folder / "a.txt").is_file() and not (folder / "a.txt").is_dir()
    assert folder.is_dir() and not folder.is_file()
    assert not exists(folder / "d")
    assert (folder / "a.txt").read_text() == (folder / "a.txt").open().read() == "é\n"
    assert (folder / "a.txt").stat().st_size == 3
    assert sorted(entry.name for entry in folder.iterdir()) == ["a.txt", "b"]
    assert [entry.name for entry in folder.glob("*.txt")] == ["a.txt"]
    assert [str(entry) for entry in folder.glob("*/c.*")] == [f"{folder}/b/c.txt"]
    assert sorted(entry.name for entry in folder.rglob("*")) == ["a.txt", "c.txt"]
    assert [(str(at), *there) for at, *there in folder.walk()] == [
        (str(folder), ["b"], ["a.txt"]),
        (f"{folder}/b", [], ["c.txt"]),
    ]
    assert not list((folder / "none").iterdir()) and not list((folder / "none").glob("*"))


def test_a_file_that_was_not_finished_is_not_uploaded(folder, bucket):
    write_text(folder / "a.txt", "old")
    with pytest.raises(RuntimeError), replaced_file(folder / "a.txt") as temporary:
        temporary.write_text("ne")
        raise RuntimeError
    assert bucket == {"bucket/runs/full/a.txt": b"old"}


def test_a_folder_is_replaced_with_its_key_last(folder, bucket, monkeypatch):
    for name in ("config.json", "old.json"):
        put(f"bucket/runs/full/{name}", b"old")
    written = []
    pipe = FakeBucket.pipe_file

    def noted(files, path, value, **options):
        assert "bucket/runs/full/config.json" not in bucket, "the sign of a whole folder"
        written.append(path.rsplit("/full/", 1)[1])
        pipe(files, path, value, **options)

    heard = []
    with (
        contextlib.ExitStack() as stack,
        replaced_folder(folder, is_own=lambda name: True) as temporary,
    ):
        for name in ("config.json", "weights", "a/config.json"):
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_text("new")
        monkeypatch.setattr(FakeBucket, "pipe_file", noted)
        stack.enter_context(hearing_progress(lambda: heard.append(len(written))))
    assert written == ["weights", "a/config.json", "config.json"]
    assert heard == [1, 2, 3], "each file is a sign that the upload gets on"
    assert "bucket/runs/full/old.json" not in bucket


def test_processes_that_write_the_same_folder_at_once_do_not_disturb_each_other(
    folder, bucket, monkeypatch
):
    """The second one ends while the first uploads; a reader finds everything from then on."""
    put("bucket/runs/full/old", b"of a process that was killed")
    pipe, key, parts = FakeBucket.pipe_file, "bucket/runs/full/config.json", ("weights", "b/more")

    @contextlib.contextmanager
    def written():
        options = {"is_own": lambda name: True, "keep_existing": True}
        with replaced_folder(folder, **options) as temporary:
            (temporary / "b").mkdir()
            for name in ("config.json", *parts):
                (temporary / name).write_text("new")
            yield

    def interrupted(files, path, value, **options):
        monkeypatch.setattr(FakeBucket, "pipe_file", noted)
        pipe(files, path, value, **options)
        with written():
            pass
        assert key in bucket and "bucket/runs/full/old" not in bucket

    def noted(files, path, value, **options):
        pipe(files, path, value, **options)
        if key in bucket:
            assert all(f"bucket/runs/full/{name}" in bucket for name in parts)

    with written():
        monkeypatch.setattr(FakeBucket, "pipe_file", interrupted)
    assert {name.split("/full/")[1] for name in bucket} == {"config.json", *parts}


def test_foreign_objects_are_not_replaced(folder, bucket):
    put("bucket/runs/full/notes.txt", b"mine")
    refused = pytest.raises(ValueError, match=r"notes\.txt")
    with refused, replaced_folder(folder, is_own=lambda name: False):
        pass
    assert bucket["bucket/runs/full/notes.txt"] == b"mine"


def test_a_growing_file_is_uploaded_now_and_then(folder, bucket):
    name = "bucket/runs/full/lines"
    put(name, b"0\n")
    rare = GrowingFile(folder / "lines", every_s=1e9)
    rare.write(b"1\n")
    assert bucket[name] == b"0\n"
    rare.flush()
    assert bucket[name] == b"0\n1\n"
    rare.write(b"2\n")
    rare.close()
    GrowingFile(folder / "lines").write(b"3\n")
    assert bucket[name] == b"0\n1\n2\n3\n"


def test_objects_cannot_be_appended_to(folder):
    with pytest.raises(io.UnsupportedOperation, match="cannot be opened with 'ab'"):
        (folder / "a").open("ab")


def test_renaming_copies(folder, bucket):
    write_text(folder / "a" / "b.txt", "b")
    (folder / "a").rename(folder / "c")
    (folder / "c" / "b.txt").replace(folder / "d.txt")
    assert bucket == {"bucket/runs/full/d.txt": b"b"}
    remove_folder(folder)
    remove_folder(folder)
    assert not bucket


def test_local_copies_follow_the_object(folder, tmp_path):
    write_text(folder / "a.txt", "one")
    copy = local_copy(folder / "a.txt")
    assert copy.read_text() == "one" and local_copy(folder / "a.txt") == copy
    write_text(folder / "a.txt", "two")
    assert local_copy(folder / "a.txt").read_text() == "two"
    copy_file(folder / "a.txt", tmp_path / "a.txt")
    assert read_range(tmp_path / "a.txt", 1, 9) == read_range(folder / "a.txt", 1, 9) == b"wo"


def test_a_place_is_tried_and_nothing_is_left(folder, bucket):
    try_file(folder / "results.json", option="--output")
    with held(folder, option="--workdir"):
        assert not bucket
    assert not bucket


def test_weights_are_read_once_by_byte_range(folder, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_io, "_PIECE_BYTES", 4096)
    tensors = {"a": np.arange(6000, dtype=np.float32).reshape(60, 100), "b": np.ones(3, np.float32)}
    sizes = {name: array.nbytes for name, array in tensors.items()}
    write_tensors(tmp_path, tensors.items(), sizes=sizes)
    copy_file(tmp_path / "model.safetensors", folder / "model.safetensors")
    with TensorFolder(folder) as opened:
        READ.clear()
        np.testing.assert_array_equal(opened.read("a"), tensors["a"])
        assert sum(count for _, count in READ) == tensors["a"].nbytes
        READ.clear()
        np.testing.assert_array_equal(
            opened.read("a", (slice(2, 4), slice(5, 9))), tensors["a"][2:4, 5:9]
        )
        assert sum(count for _, count in READ) == 800
    put("bucket/runs/full/model.safetensors", bucket["bucket/runs/full/model.safetensors"][:-4])
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        TensorFolder(folder)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "foo://bucket/run",
            "'foo://bucket/run' begins with foo://: expected a local path, or gs://",
        ),
        ("gs://", "'gs://' names no bucket: expected gs://BUCKET/FOLDER"),
    ],
)
def test_wrong_urls_are_refused(bucket, path, message):
    with pytest.raises(ValueError) as error:
        user_path(path)
    assert str(error.value).startswith(message)


def test_checkpoints_are_kept_where_orbax_writes(bucket):
    check_folder(user_path("gs://bucket/run"))
    with pytest.raises(ValueError, match="Checkpoints cannot be kept in hf://user/run"):
        check_folder(user_path("hf://user/run"))


def test_checkpoints_are_saved_restored_and_set_aside(folder, bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = {"params": {"weight": jnp.arange(8.0)}, "step": jnp.ones((), jnp.int32)}
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
    with contextlib.closing(TrainCheckpoints(folder / "checkpoints", keep=2)) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state, progress={"at": step})
        checkpoints.wait()
    # A save that was killed: everything is there but the file that orbax writes last.
    for name in [name for name in bucket if "/checkpoints/3/" in name]:
        if not name.endswith("commit_success.txt"):
            put(name.replace("/3/", "/4/"), bucket[name])
    assert saved_progress(folder / "checkpoints") == (3, {"at": 3})
    damaged = next(n for n in bucket if "/checkpoints/3/state/" in n and n.endswith("_METADATA"))
    put(damaged, bucket[damaged][:-1])
    said: list[str] = []
    with contextlib.closing(TrainCheckpoints(folder / "checkpoints", keep=2)) as checkpoints:
        step, restored, progress = checkpoints.restore_latest(abstract, report=said.append)
    assert (step, progress) == (2, {"at": 2})
    np.testing.assert_array_equal(restored["params"]["weight"], state["params"]["weight"])
    assert f"It was moved to {folder}/unreadable" in said[0]
    assert any(name.startswith("bucket/runs/full/unreadable/3/") for name in bucket)
    names = [name.split("/checkpoints/")[1] for name in bucket if "/checkpoints/" in name]
    steps = {name.split("/")[0] for name in names}
    assert steps == {"2"}, "keep=2, one was set aside, and the killed save was removed"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fails_in_the_middle", [False, True])
def test_one_failed_read_of_a_checkpoint_moves_nothing(
    folder, bucket, monkeypatch, fails_in_the_middle
):
    state = {"params": {"weight": jnp.arange(8.0)}}
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
    with contextlib.closing(TrainCheckpoints(folder / "checkpoints", keep=2)) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state, progress={"at": step})
        checkpoints.wait()
    before, opened = dict(bucket), FakeBucket._open

    class Fails(io.BytesIO):
        def readinto(self, buffer):
            raise RuntimeError("503 Service Unavailable: backendError")

    def fail(files, path, mode="rb", **options):
        if "/2/state/" not in path:
            return opened(files, path, mode, **options)
        if fails_in_the_middle:
            return Fails(b"content")
        raise RuntimeError("503 Service Unavailable: backendError")

    with (
        contextlib.closing(TrainCheckpoints(folder / "checkpoints", keep=2)) as checkpoints,
        monkeypatch.context() as failing,
    ):
        failing.setattr(FakeBucket, "_open", fail)
        with pytest.raises(OSError, match=r"Checkpoint 2 was not read \(gs:// does not answer"):
            checkpoints.restore_latest(abstract, report=pytest.fail)
    assert bucket == before
    with contextlib.closing(TrainCheckpoints(folder / "checkpoints", keep=2)) as checkpoints:
        assert checkpoints.restore_latest(abstract, report=pytest.fail)[0] == 2


COMMANDS = [
    ("train", "--config", "quickstart", "--workdir", "gs://bucket/run"),
    ("import-data", "gs://bucket/chats.jsonl", "--output", "data"),
    (
        "regenerate",
        "--target.path",
        "gs://bucket/target",
        "--source",
        "embedded/math",
        "--output",
        "x",
    ),
    ("export", "--workdir", "gs://bucket/run", "--output", "x"),
    ("eval", "--config", "quickstart", "--output", "gs://bucket/results.json"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_missing_package_is_named(command, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    registry = importlib.import_module("fsspec.registry")
    monkeypatch.setattr(registry, "_registry", {})
    missing = {"class": "jaxspec_has_no.such_module", "err": "Please install gcsfs"}
    monkeypatch.setitem(registry.known_implementations, "gs", missing)
    assert run_as_command(dispatch, command) == 2
    said = capsys.readouterr().err
    assert "gs:// needs the package gcsfs, which is not installed here" in said
    assert "pip install gcsfs" in said
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_bucket_without_credentials_is_one_line(command, bucket, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)

    class HttpError(Exception):
        """As gcsfs raises it: no OSError."""

    def refuse(*arguments, **options):
        raise HttpError("Anonymous caller does not have storage.objects.get access, 401")

    for method in ("info", "ls", "cat_file", "pipe_file"):
        monkeypatch.setattr(FakeBucket, method, refuse)
    assert run_as_command(dispatch, command) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "no access (Anonymous caller does not have" in line
    assert "run `gcloud auth application-default login`" in line
    assert "gs://bucket/" in line
    assert not list(tmp_path.iterdir())


def test_a_bucket_that_cannot_be_reached(folder, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("Cannot connect to host storage.example:443")

    monkeypatch.setattr(FakeBucket, "info", fail)
    with pytest.raises(OSError, match="gs:// does not answer") as error:
        folder.exists()
    assert error.value.errno == errno.EIO and error.value.filename == str(folder)


def test_a_bucket_that_cannot_be_reached_has_a_status_that_is_tried_again(
    folder, monkeypatch, capsys
):
    def fail(*arguments, **options):
        raise RuntimeError("503 Service Unavailable")

    monkeypatch.setattr(FakeBucket, "info", fail)
    assert run_as_command(lambda argv: int(folder.exists()), []) == UNREACHABLE == 78
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: gs:// does not answer (RuntimeError: 503 Service Unavailable)")
    with pytest.raises(OSError) as error:
        folder.exists()
    assert _status(error.value) == UNREACHABLE, "and so for the other processes of a run"
    assert _status(FileNotFoundError(errno.ENOENT, "No such file or directory")) == 2
