import json

import pytest

from jaxspec.config import DataConfig
from jaxspec.data import sources
from jaxspec.data.example_files import read_examples, read_manifest, write_examples
from jaxspec.data.examples import Example


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
