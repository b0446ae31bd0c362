"""WikiText-2 as its articles were written."""

import os
from pathlib import Path

import pytest

from jaxspec.config import DataConfig
from jaxspec.data.builders.text import OPENING, as_written
from jaxspec.data.sources import load_examples


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (" = = Early years = = ", "Early years"),
        (
            " It cost 1 @,@ 500 @.@ 5 in a well @-@ known way . ",
            "It cost 1,500.5 in a well-known way.",
        ),
        ("He 's \" The Poet \" ( 770 ) , isn 't he ?", "He's \"The Poet\" (770), isn't he?"),
        ('" Yes " , " no " .', '"Yes", "no".'),
        ("a = b , <unk> ; c", "a = b, <unk>; c"),
    ],
)
def test_wikitext_is_written_as_it_was(line, expected):
    assert as_written(line) == expected


def test_real_passages_open_without_rare_words(tmp_path):
    raw = os.environ.get("JAXSPEC_RAW_DATA")
    if not raw or not Path(raw).is_dir():
        pytest.skip("JAXSPEC_RAW_DATA is not set to a folder with the original files")
    data = DataConfig(raw_dir=raw, data_dir=str(tmp_path))
    for example in load_examples("wikitext2", split="test", data=data):
        assert example.is_running_text
        assert "<unk>" not in " ".join(example.running_text.split()[:OPENING])
        assert "@-@" not in example.running_text
