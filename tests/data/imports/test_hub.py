"""Data sets of the Hub; a fake one, since tests have no network."""

import errno
import types

import huggingface_hub
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from jaxspec.data.imports.hub import download


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with one data set; what was downloaded."""
    files = ["README.md", "data/test-0.parquet", "data/train-0.parquet", "data/train-1.parquet"]
    asked = []

    def info(self, name, *, revision):
        asked.append((name, revision))
        siblings = [types.SimpleNamespace(rfilename=file) for file in files]
        return types.SimpleNamespace(siblings=siblings, sha="c0ffee")

    def fetch(name, *, filename, repo_type, revision):
        assert repo_type == "dataset" and revision == "c0ffee"
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    return types.SimpleNamespace(files=files, asked=asked)


def test_the_files_of_a_split_are_downloaded(hub, tmp_path):
    found = download("hf:someone/chats", split="train", revision="v1")
    assert hub.asked == [("someone/chats", "v1")]
    assert found.names == ("data/train-0.parquet", "data/train-1.parquet")
    assert found.files == tuple(tmp_path / name for name in found.names)
    assert found.facts == {"revision": "c0ffee"}


def test_one_of_several_formats_is_read(hub):
    hub.files += ["train.jsonl"]
    assert download("hf:chats", split="test").names == ("data/test-0.parquet",)
    hub.files[:] = ["train.csv", "dataset_infos.json"]
    with pytest.raises(ValueError, match="--revision refs/convert/parquet --split train"):
        download("hf:chats", split="train")


@pytest.mark.parametrize(
    "error", [OfflineModeIsEnabled("offline"), ConnectionError("refused"), TimeoutError()]
)
def test_without_a_network_one_message_says_what_to_do(hub, monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
    with pytest.raises(ValueError, match=r"the Hugging Face Hub cannot be reached.*hf download"):
        download("hf:someone/chats", split="train")


def test_another_cause_keeps_its_name(hub, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device", "/cache/blob")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(ValueError, match=r"be downloaded: .*No space left on device: '/cache/blob"):
        download("hf:someone/chats", split="train")


@pytest.mark.parametrize(
    ("files", "ways"),
    [
        (["main/train-0.parquet", "socratic/train-0.parquet"], ["main/train", "socratic/train"]),
        (["a/train/0.parquet", "b/train/0.parquet"], ["a/train", "b/train"]),
        (["en/all.jsonl", "fr/all.jsonl"], ["en", "fr"]),
        (["train.jsonl", "more/train.jsonl"], ["more/train"]),
    ],
)
def test_configurations_are_not_mixed(hub, files, ways):
    """As GSM8K, which has every question twice with different answers."""
    tests = [name.replace("train", "test") for name in files if "train" in name]
    hub.files[:] = ["README.md", *files, *tests]
    with pytest.raises(ValueError, match=r"in 2 folders, .*import that folder\.$") as caught:
        download("hf:someone/maths", split="train")
    choose = ", ".join(f"--split {way}" for way in ways)
    assert f"Choose one: {choose}. To have all" in str(caught.value)
    for way in ways:
        (name,) = download("hf:someone/maths", split=way).names
        assert name in files and name.startswith(way)


def test_a_name_that_cannot_be_one(monkeypatch):
    with pytest.raises(ValueError, match="hf:a/b/c/d"):
        download("hf:a/b/c/d", split="train")
