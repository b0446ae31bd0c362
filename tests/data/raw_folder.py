"""A raw folder with a little of every data set that has files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxspec.data import heldout

GSM8K = [
    {"question": "Ann has 2 cats, no 3?", "answer": "2+1=<<2+1=3>>3 cats.\n#### 3"},
    {"question": "Größe 5?", "answer": "It is <<5=5>>5.\n#### 5"},
]


SPEC_BENCH = [
    {"category": "coding", "turns": ["One?", "Two?"]},
    {"category": "summarization", "turns": ["Summarize: news."]},
    {"category": "writing", "turns": ["Three?", "Four?"]},
    *(
        {"category": task, "turns": [f"{task}?"]}
        for task in ("translation", "qa", "math_reasoning", "rag")
    ),
]
STORIES = [f"Story {number} é." for number in range(40)]
HELD_OUT_STORIES = [s for s in STORIES if heldout.text_hash(s) % 16 == 0]
PASSAGE = " ".join(["Some words ,"] * 40)
WIKITEXT = "\n".join(
    (
        " \n = One = \n ",
        f" {PASSAGE} ",
        " = = Part = = ",
        " Too short . ",
        " <unk> " + PASSAGE,
        " \n = Two @-@ three = ",
        f' {PASSAGE} <unk> ( " so " ) . ',
        " x = 1 ",
    )
)


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes a .jsonl file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_raw_folder(raw: Path) -> None:
    """Makes the folder, with every file that a builder reads."""
    write_lines(raw / "gsm8k/train.jsonl", GSM8K)
    write_lines(raw / "gsm8k/test.jsonl", GSM8K[:1])
    for subject in ("algebra", "prealgebra", "number_theory", "counting_and_probability"):
        write_lines(
            raw / f"math_train_4subjects/{subject}_train.jsonl",
            [{"instruction": "tools", "input": f"{subject}?", "output": "$1$", "answer": "1"}],
        )
    write_lines(raw / "math500/test.jsonl", [{"problem": "P?", "solution": "S", "level": 2}])
    write_lines(raw / "aime/aime24_qa.jsonl", [{"question": "A?", "answer": "204"}])
    write_lines(raw / "aime/aime25_qa.jsonl", [{"id": "0", "problem": "B?", "answer": "70"}])
    write_lines(
        raw / "mbpp/mbpp.jsonl",
        [
            {
                "task_id": task,
                "text": f"Task {task}.",
                "code": "def f():\r\n\treturn 1\r\n",
                "test_list": ["assert f() == 1", "assert f()"],
            }
            for task in (10, 11, 510, 511, 600, 601, 974)
        ],
    )
    write_lines(
        raw / "humaneval/HumanEval.jsonl",
        [{"prompt": "def f():\n", "canonical_solution": "    return 1\n"}],
    )
    write_lines(raw / "livecodebench/livecodebench.jsonl", [{"turns": ["Solve it."]}])
    write_lines(raw / "mt_bench/question.jsonl", [{"turns": ["One?", "Two?"]}])
    write_lines(raw / "spec_bench/question.jsonl", SPEC_BENCH)
    for file, answer in (
        ("instruction_rasbt/instruction-data.json", "output"),
        ("gpteacher/codegen-instruct.json", "response"),
        ("gpteacher/roleplay-instruct.json", "response"),
    ):
        (raw / file).parent.mkdir(exist_ok=True)
        records = [
            {"instruction": "Do.", "input": "x", answer: "Done."},
            {"instruction": "Be.", "input": "", answer: "I am."},
        ]
        (raw / file).write_text(json.dumps(records))
    (raw / "tinystories").mkdir()
    (raw / "tinystories/tinystories_sample.txt").write_bytes(
        "\n<|endoftext|>\n".join([*STORIES, "Cut off h"]).encode() + b"\xc3"
    )
    (raw / "wikitext2").mkdir()
    for part in ("train", "test"):
        (raw / f"wikitext2/{part}.txt").write_text(WIKITEXT, encoding="utf-8")
