import json
import os
import resource

import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from jaxspec.config import DataConfig
from jaxspec.data import sources
from jaxspec.data.example_files import read_examples, read_manifest, write_examples
from jaxspec.data.examples import Example
from jaxspec.data.sources import ChosenExamples


def _examples(first, last):
    return [
        Example(f"e{n}", (("user", f"Frage {n}?"), ("assistant", f"Größe {n}\n")), "demo")
        for n in range(first, last)
    ]


def test_what_was_written_is_read_in_order_across_shards(tmp_path):
    write_examples(tmp_path / "a", _examples(0, 3), manifest={"target": "tiny"})
    write_examples(tmp_path / "a", [], manifest={})
    manifest = write_examples(tmp_path / "a", _examples(3, 5), manifest={"complete": True})
    assert manifest["examples"] == 5 and len(manifest["shards"]) == 2
    assert (manifest["target"], manifest["complete"], manifest["split"]) == ("tiny", True, "train")
    examples = read_examples(tmp_path / "a")
    assert list(examples) == _examples(0, 5)
    assert examples[-1] == _examples(4, 5)[0] and examples[1:3] == _examples(1, 3)
    with pytest.raises(IndexError):
        examples[5]


def test_few_files_are_open_at_once(tmp_path):
    """Answers to 500,000 questions have a thousand shards: as many files as may be open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for number in range(40):
        write_examples(tmp_path, _examples(number, number + 1), manifest={})
    examples = read_examples(tmp_path)
    chosen = ChosenExamples(examples, [number % 2 == 0 for number in range(40)])
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 16, hard))
    try:
        assert list(examples) == _examples(0, 40)
        assert list(chosen) == _examples(0, 40)[::2] == chosen[:]
        some = [examples[place] for place in (39, 0, 20)]
        assert some == [*_examples(39, 40), *_examples(0, 1), *_examples(20, 21)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_killed_writer_leaves_what_was_finished(tmp_path):
    write_examples(tmp_path, _examples(0, 2), manifest={})
    (tmp_path / "examples-00001.array_record.partial").write_bytes(b"half")
    (tmp_path / "examples-00001.array_record").write_bytes(b"renamed, not in the manifest")
    write_examples(tmp_path, _examples(2, 4), manifest={})
    assert list(read_examples(tmp_path)) == _examples(0, 4)


def test_a_folder_is_a_source(tmp_path):
    write_examples(tmp_path, _examples(0, 4), manifest={"split": "train"})
    data = DataConfig(max_examples=3)
    assert list(sources.load_examples(str(tmp_path), split="train", data=data)) == _examples(0, 3)


def test_splits_are_not_mixed(tmp_path):
    write_examples(tmp_path, _examples(0, 1), manifest={"split": "test"})
    with pytest.raises(ValueError, match="holds the test split"):
        sources.load_examples(str(tmp_path), split="train", data=DataConfig())
    with pytest.raises(ValueError, match="write to another folder"):
        write_examples(tmp_path, _examples(1, 2), manifest={"split": "train"})


def test_an_empty_folder_of_examples(tmp_path):
    write_examples(tmp_path, [], manifest={})
    assert list(read_examples(tmp_path)) == []


def test_damaged_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"expected a folder with manifest\.json"):
        read_examples(tmp_path)
    write_examples(tmp_path, _examples(0, 2), manifest={})
    (tmp_path / "examples-00000.array_record").unlink()
    with pytest.raises(ValueError, match="files that are missing"):
        read_examples(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "else"}))
    with pytest.raises(ValueError, match="format 'else'"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(examples=3), "examples: got 3, expected 2"),
        (lambda m: m.update(examples=True), "examples: got True"),
        (lambda m: m.pop("split"), "split: got None, expected text"),
        (lambda m: m.update(shards={}), "shards: got {}, expected a list"),
        (lambda m: m["shards"].append(7), "shards: got .*, expected a list of objects"),
        (lambda m: m["shards"].append(m["shards"][0]), r"shards\[1\].file: .* a second time"),
        (lambda m: m["shards"][0].update(examples=-2), r"shards\[0\].examples: got -2"),
        (lambda m: m["shards"][0].update(file="/etc/passwd"), r"\[0\].file: got '/etc/passwd'"),
        (lambda m: m["shards"][0].update(file="../a"), "expected the name of a file in this"),
        (lambda m: m["shards"][0].update(file=""), "expected the name of a file in this"),
        (lambda m: m["shards"][0].update(bytes="9"), r"shards\[0\].bytes: got '9'"),
        (lambda m: m["shards"][0].update(sha256=None), r"shards\[0\].sha256: got None"),
    ],
)
def test_damaged_manifests_name_the_key(tmp_path, change, message):
    write_examples(tmp_path, _examples(0, 2), manifest={})
    file = tmp_path / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=rf"manifest\.json is damaged: .*\n  .*{message}"):
        read_examples(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[: len(raw) // 2], "has 65,536 bytes, expected 131,072"),
        (lambda raw: b"", "has 0 bytes"),
        (lambda raw: bytes([raw[0] ^ 1]) + raw[1:], "its bytes have changed"),
    ],
)
def test_damaged_shards_are_named(tmp_path, damage, message):
    write_examples(tmp_path, _examples(0, 2), manifest={})
    write_examples(tmp_path, _examples(2, 4), manifest={})
    shard = tmp_path / "examples-00001.array_record"
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(ValueError, match=f"examples-00001.array_record is damaged: .*{message}"):
        read_examples(tmp_path)


def _without_digests(folder, **changes):
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    for shard in manifest["shards"]:
        del shard["bytes"], shard["sha256"]
        shard.update(changes)
    manifest["examples"] = sum(shard["examples"] for shard in manifest["shards"])
    file.write_text(json.dumps(manifest))


def test_folders_of_older_versions_open(tmp_path):
    write_examples(tmp_path, _examples(0, 4), manifest={})
    _without_digests(tmp_path)
    assert list(read_examples(tmp_path)) == _examples(0, 4)


def test_counts_of_a_manifest_are_compared_with_the_shards(tmp_path):
    write_examples(tmp_path, _examples(0, 4), manifest={})
    _without_digests(tmp_path, examples=3)
    with pytest.raises(ValueError, match="it holds 4 examples, expected 3"):
        read_examples(tmp_path)


@pytest.mark.parametrize("at", [64 + 40, 2**16])
def test_damaged_shards_of_older_versions_are_named(tmp_path, at):
    write_examples(tmp_path, _examples(0, 4), manifest={})
    _without_digests(tmp_path)
    shard = tmp_path / "examples-00000.array_record"
    raw = bytearray(shard.read_bytes())
    raw[at] ^= 0xFF
    shard.write_bytes(raw)
    with pytest.raises(ValueError, match=r"examples-00000\.array_record is damaged"):
        list(read_examples(tmp_path))


def test_a_record_that_is_no_conversation_is_named(tmp_path):
    write_examples(tmp_path, _examples(0, 1), manifest={})
    writer = ArrayRecordWriter(str(tmp_path / "examples-00000.array_record"), "group_size:1")
    writer.write(b'{"id": "a", "source": 3, "turns": []}')
    writer.close()
    _without_digests(tmp_path)
    with pytest.raises(ValueError, match=r"example 0 in .*\.array_record is not a conversation"):
        read_examples(tmp_path)[0]


def test_files_can_be_read_by_others(tmp_path):
    before = os.umask(0o022)
    try:
        write_examples(tmp_path, _examples(0, 1), manifest={})
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o644}


def test_a_manifest_with_nan_is_refused(tmp_path):
    write_examples(tmp_path, [Example("a", (("user", "x"),), "mine")], manifest={"x": float("nan")})
    with pytest.raises(ValueError, match=r"manifest\.json: x is nan"):
        read_examples(tmp_path)
