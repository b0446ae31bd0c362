from __future__ import annotations

import json

import numpy as np

from jaxspec.config import DataConfig
from jaxspec.data import pipeline
from jaxspec.data.builders import base, raw_files
from jaxspec.data.sources import load_examples
from jaxspec.data.tokenizer import EMBEDDED_FOLDER, Tokenizer
from tests.data.raw_folder import write_raw_folder
from tests.fake_bucket import fake_bucket, put


def test_one_machine_prepares_and_the_others_find_it(tmp_path, monkeypatch):
    monkeypatch.delenv("JAXSPEC_RAW_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    write_raw_folder(tmp_path / "raw")
    here = DataConfig(raw_dir=str(tmp_path / "raw"), data_dir=str(tmp_path / "prepared"))
    expected = list(load_examples("gsm8k", split="train", data=here))
    with fake_bucket(monkeypatch) as bucket:
        for file in (tmp_path / "raw").rglob("*"):
            if file.is_file():
                put(f"bucket/raw/{file.relative_to(tmp_path / 'raw')}", file.read_bytes())
        first = DataConfig(raw_dir="gs://bucket/raw", data_dir="gs://bucket/kept")
        monkeypatch.setattr(base, "_COPIES", str(tmp_path / "first"))
        assert list(load_examples("gsm8k", split="train", data=first)) == expected
        kept = [name for name in bucket if name.startswith("bucket/kept/prepared/")]
        assert sum("array_record" in name for name in kept) == 2
        assert sum(name.endswith("dataset_info.json") for name in kept) == 1

        monkeypatch.setattr(base, "_COPIES", str(tmp_path / "second"))
        monkeypatch.setattr(raw_files, "download", None)
        second = DataConfig(data_dir="gs://bucket/kept")
        assert list(load_examples("gsm8k", split="train", data=second)) == expected
    assert not (tmp_path / "gs:").exists()


def test_tokenized_examples_are_kept_in_a_bucket(monkeypatch):
    monkeypatch.setattr(pipeline, "CACHE_FROM", 1)
    data = DataConfig(data_dir="gs://bucket/kept", embedded_examples=3)
    examples = load_examples("embedded/math", split="train", data=data)
    tokenizer = Tokenizer.load(EMBEDDED_FOLDER)
    with fake_bucket(monkeypatch) as bucket:
        made, digest = pipeline.tokenized_documents(examples, tokenizer, data=data)
        assert list(bucket) == [f"bucket/kept/tokenized/{digest}.npz"]
        monkeypatch.setattr(pipeline, "tokenize", None)
        again, _ = pipeline.tokenized_documents(examples, tokenizer, data=data)
    np.testing.assert_array_equal(made.documents.tokens, again.documents.tokens)
    assert json.dumps(made.left_out) == json.dumps(again.left_out)
