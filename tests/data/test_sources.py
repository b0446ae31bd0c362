import gzip
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from jaxspec.config import DataConfig
from jaxspec.data import heldout, sources
from jaxspec.data.builders import raw_files
from jaxspec.data.builders.dialogues import SPEC_BENCH_TASKS
from jaxspec.data.heldout import keys
from jaxspec.data.parts import training_examples
from jaxspec.data.sources import SOURCES, load_examples
from tests.data.raw_folder import (
    GSM8K,
    HELD_OUT_STORIES,
    PASSAGE,
    SPEC_BENCH,
    STORIES,
    write_lines,
    write_raw_folder,
)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A raw folder with a little of everything, and an empty folder for prepared files."""
    monkeypatch.delenv("JAXSPEC_RAW_DATA", raising=False)
    monkeypatch.delenv("JAXSPEC_DATA_DIR", raising=False)
    raw = tmp_path / "raw"
    write_raw_folder(raw)
    return DataConfig(raw_dir=str(raw), data_dir=str(tmp_path / "prepared"))


@pytest.fixture(scope="module")
def real_data(tmp_path_factory):
    raw = os.environ.get("JAXSPEC_RAW_DATA")
    if not raw or not Path(raw).is_dir():
        pytest.skip("JAXSPEC_RAW_DATA is not set to a folder with the original files")
    return DataConfig(
        raw_dir=raw, data_dir=str(tmp_path_factory.mktemp("prepared")), embedded_examples=1000
    )


_PLAIN_PASSAGE = PASSAGE.replace(" ,", ",")
EXPECTED = {
    ("gsm8k", "train"): [
        (("user", "Ann has 2 cats, no 3?"), ("assistant", "2+1=3 cats.\n#### 3")),
        (("user", "Größe 5?"), ("assistant", "It is 5.\n#### 5")),
    ],
    ("gsm8k", "test"): [(("user", "Ann has 2 cats, no 3?"), ("assistant", "2+1=3 cats.\n#### 3"))],
    ("math", "train"): [
        (("user", f"{subject}?"), ("assistant", "$1$"))
        for subject in ("algebra", "prealgebra", "number_theory", "counting_and_probability")
    ],
    ("math500", "test"): [(("user", "P?"), ("assistant", "S"))],
    ("aime24", "test"): [(("user", "A?"),)],
    ("aime25", "test"): [(("user", "B?"),)],
    ("mbpp", "train"): [
        (
            (
                "user",
                f"Task {task}.\n\nYour code should pass these tests:\n\n"
                "assert f() == 1\nassert f()",
            ),
            ("assistant", "```python\ndef f():\n\treturn 1\n```"),
        )
        for task in (601, 974)
    ],
    ("humaneval", "test"): [
        (
            ("user", "Complete this Python function.\n\n```python\ndef f():\n```"),
            ("assistant", "```python\ndef f():\n    return 1\n```"),
        )
    ],
    ("livecodebench", "test"): [(("user", "Solve it."),)],
    ("mt_bench", "test"): [(("user", "One?"), ("user", "Two?"))],
    ("spec_bench", "test"): [
        tuple(("user", turn) for turn in record["turns"]) for record in SPEC_BENCH
    ],
    **{
        (f"spec_bench/{task}", "test"): [(("user", f"{task}?"),)]
        for task in ("translation", "qa", "math_reasoning", "rag")
    },
    ("spec_bench/summarization", "test"): [(("user", "Summarize: news."),)],
    ("spec_bench/mt_bench", "test"): [
        (("user", "One?"), ("user", "Two?")),
        (("user", "Three?"), ("user", "Four?")),
    ],
    ("instructions", "train"): [
        (("user", "Do.\n\nx"), ("assistant", "Done.")),
        (("user", "Be."), ("assistant", "I am.")),
    ],
    ("code_instructions", "train"): [
        (("user", "Do.\n\nx"), ("assistant", "Done.")),
        (("user", "Be."), ("assistant", "I am.")),
    ],
    ("roleplay", "train"): [
        (("user", "Do.\n\nx"), ("assistant", "Done.")),
        (("user", "Be."), ("assistant", "I am.")),
    ],
    ("tinystories", "train"): [
        (("assistant", story),) for story in STORIES if story not in HELD_OUT_STORIES
    ],
    ("tinystories", "test"): [(("assistant", story),) for story in HELD_OUT_STORIES],
    ("wikitext2", "test"): [
        (("assistant", _PLAIN_PASSAGE),),
        (("assistant", f'{_PLAIN_PASSAGE} <unk> ("so").'),),
    ],
    ("wikitext2", "train"): [
        (
            (
                "assistant",
                f"One\n\n{_PLAIN_PASSAGE}\n\nPart\n\nToo short.\n\n<unk> {_PLAIN_PASSAGE}",
            ),
        ),
        (("assistant", f'Two-three\n\n{_PLAIN_PASSAGE} <unk> ("so").\n\nx = 1'),),
    ],
}


def test_every_source_reads_its_raw_files(data):
    files = {name: source for name, source in SOURCES.items() if source.builder}
    for (name, split), expected in EXPECTED.items():
        examples = load_examples(name, split=split, data=data)
        assert [example.turns for example in examples] == expected, name
        prefix = name if "/" in name else f"{name}/{split}"  # a part of a test set, or a split
        assert [example.id for example in examples] == [
            f"{prefix}/{number}" for number in range(len(expected))
        ]
        assert {example.source for example in examples} == {name}
        files.pop(name, None)
    assert not files
    tasks = load_examples("mbpp", split="test", data=data)
    assert [example.turns[0][1].split(".")[0] for example in tasks] == ["Task 11", "Task 510"]


def test_random_access_slices_and_limits(data):
    limited = DataConfig(raw_dir=data.raw_dir, data_dir=data.data_dir, max_examples=3)
    examples = load_examples("math", split="train", data=limited)
    assert len(examples) == 3
    assert examples[2].turns[0][1] == "number_theory?" == examples[-1].turns[0][1]
    assert [example.id for example in examples[1:]] == ["math/train/1", "math/train/2"]
    with pytest.raises(IndexError):
        examples[3]


def test_prepared_once_and_found_again_without_the_raw_files(data, monkeypatch):
    load_examples("gsm8k", split="train", data=data)
    files = {path: path.stat().st_mtime_ns for path in Path(data.data_dir).rglob("*.array_record*")}
    assert len(files) == 2
    load_examples("gsm8k", split="test", data=data)
    without_raw = DataConfig(data_dir=data.data_dir)
    monkeypatch.setattr(urllib.request, "urlopen", None)
    assert len(load_examples("gsm8k", split="train", data=without_raw)) == 2
    assert files == {
        path: path.stat().st_mtime_ns for path in Path(data.data_dir).rglob("*.array_record*")
    }


def test_a_download_comes_before_a_raw_folder_that_was_tried(data, tmp_path, monkeypatch, caplog):
    """Otherwise a smoke test's few rows would be the data set from then on."""
    small, original = Path(data.raw_dir), tmp_path / "original"
    shutil.copytree(small, original)
    write_lines(small / "gsm8k/train.jsonl", GSM8K[1:])
    downloaded = DataConfig(data_dir=data.data_dir)

    def download(names, *, folder):
        shutil.copytree(original, folder, dirs_exist_ok=True)
        return [folder / name for name in names]

    monkeypatch.setattr("jaxspec.data.builders.base.raw_files.download", download)
    assert len(load_examples("gsm8k", split="train", data=downloaded)) == 2
    assert len(load_examples("gsm8k", split="train", data=data)) == 1
    assert not caplog.records
    assert len(load_examples("gsm8k", split="train", data=downloaded)) == 2
    for folder in (Path(data.data_dir) / "prepared").iterdir():
        if (folder / "origin.txt").read_text() == "download\n":
            shutil.rmtree(folder)
    assert len(load_examples("gsm8k", split="train", data=downloaded)) == 1
    assert f"using data prepared from the raw files in {small}" in caplog.text


def test_changed_raw_files_are_prepared_anew(data):
    load_examples("gsm8k", split="train", data=data)
    write_lines(Path(data.raw_dir) / "gsm8k/train.jsonl", GSM8K[1:])
    assert len(load_examples("gsm8k", split="train", data=data)) == 1


def test_environment_variables_name_the_folders(data, monkeypatch):
    monkeypatch.setenv("JAXSPEC_RAW_DATA", data.raw_dir)
    monkeypatch.setenv("JAXSPEC_DATA_DIR", data.data_dir)
    assert len(load_examples("aime24", split="test", data=DataConfig())) == 1
    assert sources.data_folder(DataConfig()) == Path(data.data_dir)


@pytest.mark.parametrize("folder_exists", [True, False])
def test_missing_raw_files_are_named_and_nothing_is_written(data, tmp_path, folder_exists):
    raw = tmp_path / "raw" if folder_exists else tmp_path / "nowhere"
    if folder_exists:
        (raw / "gsm8k/test.jsonl").unlink()
    config = DataConfig(raw_dir=str(raw), data_dir=data.data_dir)
    with pytest.raises(ValueError, match=r"looked for .*gsm8k/test\.jsonl in ") as caught:
        load_examples("gsm8k", split="train", data=config)
    message = str(caught.value)
    assert str(raw) in message and "https://" in message and "JAXSPEC_RAW_DATA" in message
    assert not Path(data.data_dir).exists()


def test_a_folder_that_cannot_be_written_is_named(data, tmp_path):
    (tmp_path / "file").write_text("")
    config = DataConfig(raw_dir=data.raw_dir, data_dir=str(tmp_path / "file"))
    with pytest.raises(ValueError, match="JAXSPEC_DATA_DIR"):
        load_examples("gsm8k", split="train", data=config)


def test_broken_raw_files_are_named_with_the_line(data):
    path = Path(data.raw_dir) / "gsm8k/train.jsonl"
    path.write_text(json.dumps(GSM8K[0]) + "\n<html>\n")
    with pytest.raises(ValueError, match=r"JSON in line 2 of .*train\.jsonl: got '<html>"):
        load_examples("gsm8k", split="train", data=data)
    write_lines(path, [{"question": "?"}])
    with pytest.raises(ValueError, match=r"No field 'answer' in line 1 of .*train\.jsonl"):
        load_examples("gsm8k", split="train", data=data)
    assert not list(Path(data.data_dir).rglob("dataset_info.json"))


def test_unknown_names_and_splits_are_refused(data):
    with pytest.raises(ValueError, match="Unknown data set 'gsm9k': expected one of embedded"):
        load_examples("gsm9k", split="train", data=data)
    with pytest.raises(ValueError, match=r"'humaneval' has no split 'train'.*evaluation only"):
        load_examples("humaneval", split="train", data=data)
    with pytest.raises(ValueError, match=r"no split 'test'.* These have a test split: .*math500"):
        load_examples("math", split="test", data=data)
    with pytest.raises(ValueError, match="no files to prepare for 'embedded'"):
        sources.builder_for("embedded", split="train", data=data)


def test_evaluation_sets_have_no_training_split():
    only = {name for name, source in SOURCES.items() if "train" not in source.splits}
    assert {name.split("/")[0] for name in only} == {
        *("math500", "aime24", "aime25", "humaneval", "livecodebench", "mt_bench", "spec_bench")
    }


def test_embedded_sizes():
    data = DataConfig(embedded_examples=10)
    assert len(load_examples("embedded", split="train", data=data)) == 10
    assert len(load_examples("embedded", split="test", data=data)) == 900
    limited = DataConfig(max_examples=4)
    kinds = [example.source for example in load_examples("embedded", split="test", data=limited)]
    assert kinds == ["embedded/math", "embedded/code", "embedded/chat", "embedded/math"]
    maths = load_examples("embedded/math", split="test", data=limited)
    assert {example.source for example in maths} == {"embedded/math"} and len(maths) == 4


class _Answer(io.BytesIO):
    """What urlopen returns."""


def test_files_are_downloaded_where_there_is_a_network(data, monkeypatch):
    asked = []

    def urlopen(request, *, timeout):
        asked.append(request.full_url)
        assert timeout > 0
        name = next(name for name, public in raw_files.PUBLIC.items() if public.url == asked[-1])
        content = (Path(data.raw_dir) / name).read_bytes()
        return _Answer(gzip.compress(content) if asked[-1].endswith(".gz") else content)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    online = DataConfig(data_dir=data.data_dir)
    for name in ("gsm8k", "humaneval"):
        examples = load_examples(name, split="test", data=online)
        assert [example.turns for example in examples] == EXPECTED[name, "test"]
    assert len(asked) == 3 and all(url.startswith("https://") for url in asked)


def test_without_a_network_the_message_says_both_ways(data, monkeypatch):
    def urlopen(request, *, timeout):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(ValueError, match=r"Could not download gsm8k/train\.jsonl.*no route") as at:
        load_examples("gsm8k", split="train", data=DataConfig(data_dir=data.data_dir))
    assert "JAXSPEC_RAW_DATA" in str(at.value)
    assert not Path(data.data_dir).exists()


def test_every_raw_file_has_a_public_address(data):
    used = {
        name
        for source, entry in SOURCES.items()
        if entry.builder
        for split in entry.splits
        for name in sources.builder_for(source, split=split, data=data).raw_names()
    }
    assert used == set(raw_files.PUBLIC)
    assert all(public.url.startswith("https://") for public in raw_files.PUBLIC.values())


_RACE = """
import builtins
import sys

ordinary_import = builtins.__import__

def checked_import(name, *arguments, **options):
    assert name.split(".")[0] != "tensorflow", name
    return ordinary_import(name, *arguments, **options)

builtins.__import__ = checked_import
from jaxspec.config import DataConfig
from jaxspec.data.sources import load_examples
data = DataConfig(raw_dir=sys.argv[1], data_dir=sys.argv[2])
for name in ("gsm8k", "instructions"):
    print(ascii([example.turns[0][1] for example in load_examples(name, split="train", data=data)]))
assert "tensorflow" not in sys.modules
"""


def test_two_processes_prepare_at_once_without_tensorflow(data):
    environment = {**os.environ, "PYTHONPATH": str(Path(sources.__file__).parents[2])}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _RACE, data.raw_dir, data.data_dir],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert output.splitlines() == [
            ascii(["Ann has 2 cats, no 3?", "Größe 5?"]),
            "['Do.\\n\\nx', 'Be.']",
        ]


def test_the_loser_of_a_race_takes_the_winners_files(data, monkeypatch):
    from jaxspec.data.builders import base
    from jaxspec.data.builders.gsm8k import Gsm8k

    paths = {"raw_dir": Path(data.raw_dir), "data_dir": Path(data.data_dir)}
    original = Gsm8k.download_and_prepare

    def beaten(builder, **options):
        monkeypatch.setattr(Gsm8k, "download_and_prepare", original)
        base.prepare(Gsm8k, **paths)
        raise OSError("Directory not empty")

    monkeypatch.setattr(Gsm8k, "download_and_prepare", beaten)
    assert len(base.prepare(Gsm8k, **paths).as_data_source("train")) == 2


def test_training_records_of_a_test_prompt_are_left_out(data, monkeypatch, caplog):
    table = heldout.HeldOutPrompts.from_table(heldout.table(["ann has 2 cats,\nno 3?"]))
    monkeypatch.setattr(heldout.HeldOutPrompts, "load", staticmethod(lambda: table))
    with caplog.at_level(logging.INFO, logger="jaxspec.data.sources"):
        examples = load_examples("gsm8k", split="train", data=data)
    assert [example.turns[0][1] for example in examples] == ["Größe 5?"]
    assert "gsm8k: 1 records of train are left out" in caplog.text
    assert len(load_examples("gsm8k", split="test", data=data)) == 1


REAL_SIZES = {
    ("gsm8k", "train"): 7473,
    ("gsm8k", "test"): 1319,
    ("math", "train"): 4589,
    ("math500", "test"): 500,
    ("aime24", "test"): 30,
    ("aime25", "test"): 30,
    ("mbpp", "train"): 371,  # three of 374 are also worded so in the test tasks
    ("mbpp", "test"): 500,
    ("humaneval", "test"): 164,
    ("livecodebench", "test"): 1055,
    ("mt_bench", "test"): 80,
    ("spec_bench", "test"): 480,
    **{(f"spec_bench/{task}", "test"): 80 for task in SPEC_BENCH_TASKS},
    ("instructions", "train"): 1100,
    ("code_instructions", "train"): 4535,
    ("roleplay", "train"): 1923,
    ("tinystories", "train"): 2157,
    ("tinystories", "test"): 159,
    ("wikitext2", "test"): 145,
}


def test_no_test_prompt_stands_in_any_training_split(real_data):
    """On the real data, every source against every other, the embedded corpus included."""
    prompts = {"train": {}, "test": {}}
    for name, source in SOURCES.items():
        if name == "embedded":
            continue
        for split in source.splits:
            # Not every folder of original files has this one.
            file = Path(real_data.raw_dir) / "wikitext2/train.txt"
            if (name, split) == ("wikitext2", "train") and not file.is_file():
                continue
            examples = load_examples(name, split=split, data=real_data)
            if (name, split) in REAL_SIZES:
                assert len(examples) == REAL_SIZES[name, split], (name, split)
            for example in examples:
                # Follow-up questions of generated dialogues ("And how often?") are not prompts.
                texts = example.user_turns or (example.running_text,)
                for prompt in texts[: None if source.builder else 1]:
                    for key in keys(prompt):
                        prompts[split][key] = (example.id, prompt)
    shared = prompts["train"].keys() & prompts["test"].keys()
    assert not shared, [(prompts["train"][key], prompts["test"][key]) for key in list(shared)[:3]]
    held_out = {
        key for key, (name, _) in prompts["test"].items() if not name.startswith("embedded")
    }
    assert held_out == heldout.HeldOutPrompts.load().hashes  # the shipped table is up to date
    # The known overlap of test sets: Spec-Bench holds MT-Bench.
    first = load_examples("mt_bench", split="test", data=real_data)[0]
    assert first.turns in [
        e.turns for e in load_examples("spec_bench", split="test", data=real_data)
    ]


def test_splits_of_running_text_share_nothing(data, real_data):
    assert 0 < len(HELD_OUT_STORIES) < len(STORIES)
    for folder in (data, real_data):
        train, test = (
            {heldout.text_hash(example.running_text) for example in examples}
            for examples in (
                load_examples("tinystories", split=split, data=folder)
                for split in ("train", "test")
            )
        )
        assert train and test and not train & test


def test_a_training_file_is_needed_for_training_only(data):
    (Path(data.raw_dir) / "wikitext2/train.txt").unlink()
    assert len(load_examples("wikitext2", split="test", data=data)) == 2
    with pytest.raises(ValueError, match=r"looked for wikitext2/train\.txt in .* from https://"):
        load_examples("wikitext2", split="train", data=data)


def test_real_answers_hold_no_calculator_notes(real_data):
    for example in load_examples("gsm8k", split="train", data=real_data)[:500]:
        assert "<<" not in example.turns[1][1] and "\n#### " in example.turns[1][1]


def test_several_sources_are_one_sequence(tmp_path):
    settings = DataConfig(sources=("embedded/math", "embedded/chat"), embedded_examples=3)
    joined = training_examples(settings)
    expected = [
        example
        for name in settings.sources
        for example in load_examples(name, split="train", data=settings)
    ]
    assert len(joined) == 6 and list(joined) == expected
    assert [joined[index] for index in range(-6, 6)] == expected * 2
    assert joined[::2] == expected[::2] and joined[4:1:-1] == expected[4:1:-1]
    with pytest.raises(IndexError):
        joined[6]
