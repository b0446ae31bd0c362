"""Where the original files are: a table of public addresses, and the search for local copies.

For machines without a network, a raw folder holds the files under the names in `PUBLIC`. Without
such a folder, the files are downloaded from the public addresses into the same layout.
"""

from __future__ import annotations

import dataclasses
import gzip
import http.client
import urllib.error
import urllib.request
import zlib
from collections.abc import Sequence
from pathlib import Path

from jaxspec.files import replaced_file
from jaxspec.interruption import is_outage

_GITHUB = "https://raw.githubusercontent.com"
_HUB = "https://huggingface.co/datasets"


@dataclasses.dataclass(frozen=True)
class PublicFile:
    """Where a file can be downloaded."""

    url: str
    """Address; a file whose name ends in .gz is unpacked."""
    first_bytes: int = 0
    """Download only the first N bytes of a large file; 0: all of it."""


# Verified, because the files were seen in these repositories: GSM8K, MBPP, MT-Bench, GPTeacher, the
# instructions, MATH and the test part of WikiText-2. Not verified: WikiText-2's training part, the
# branch of Hidden_COT, the files' places in DeepSpec, Spec-Bench and human-eval, all addresses on
# the Hub, and the field names in the AIME files there (the parser accepts both "question" and
# "problem").
PUBLIC: dict[str, PublicFile] = {
    "gsm8k/train.jsonl": PublicFile(
        f"{_GITHUB}/openai/grade-school-math/master/grade_school_math/data/train.jsonl"
    ),
    "gsm8k/test.jsonl": PublicFile(
        f"{_GITHUB}/openai/grade-school-math/master/grade_school_math/data/test.jsonl"
    ),
    **{
        f"math_train_4subjects/{subject}_train.jsonl": PublicFile(
            f"{_GITHUB}/TjoyLiu/Hidden_COT/main/data/MATH/{subject}/train.jsonl"
        )
        for subject in ("algebra", "prealgebra", "number_theory", "counting_and_probability")
    },
    "math500/test.jsonl": PublicFile(f"{_HUB}/HuggingFaceH4/MATH-500/resolve/main/test.jsonl"),
    "aime/aime24_qa.jsonl": PublicFile(f"{_HUB}/math-ai/aime24/resolve/main/test.jsonl"),
    "aime/aime25_qa.jsonl": PublicFile(f"{_HUB}/math-ai/aime25/resolve/main/test.jsonl"),
    "humaneval/HumanEval.jsonl": PublicFile(
        f"{_GITHUB}/openai/human-eval/master/data/HumanEval.jsonl.gz"
    ),
    "mbpp/mbpp.jsonl": PublicFile(
        f"{_GITHUB}/google-research/google-research/master/mbpp/mbpp.jsonl"
    ),
    "livecodebench/livecodebench.jsonl": PublicFile(
        f"{_GITHUB}/deepseek-ai/DeepSpec/main/eval_datasets/livecodebench.jsonl"
    ),
    "mt_bench/question.jsonl": PublicFile(
        f"{_GITHUB}/lm-sys/FastChat/main/fastchat/llm_judge/data/mt_bench/question.jsonl"
    ),
    "spec_bench/question.jsonl": PublicFile(
        f"{_GITHUB}/hemingkx/Spec-Bench/main/data/spec_bench/question.jsonl"
    ),
    "instruction_rasbt/instruction-data.json": PublicFile(
        f"{_GITHUB}/rasbt/LLMs-from-scratch/main/ch07/01_main-chapter-code/instruction-data.json"
    ),
    "gpteacher/codegen-instruct.json": PublicFile(
        f"{_GITHUB}/teknium1/GPTeacher/main/Codegen/codegen-instruct.json"
    ),
    "gpteacher/roleplay-instruct.json": PublicFile(
        f"{_GITHUB}/teknium1/GPTeacher/main/Roleplay/roleplay-simple-deduped-roleplay-instruct.json"
    ),
    "tinystories/tinystories_sample.txt": PublicFile(
        f"{_HUB}/roneneldan/TinyStories/resolve/main/TinyStories-train.txt", first_bytes=2**21
    ),
    **{
        f"wikitext2/{part}.txt": PublicFile(
            f"{_GITHUB}/pytorch/examples/main/word_language_model/data/wikitext-2/{part}.txt"
        )
        for part in ("train", "test")
    },
}

_TIMEOUT_SECONDS = 60


def find(names: Sequence[str], *, folder: Path) -> list[Path]:
    """Paths of raw files that must exist.

    Args:
      names: names as in `PUBLIC`.
      folder: the raw folder.

    Raises:
      ValueError: some of them are missing; nothing was written.
    """
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        addresses = ", ".join(f"{name} from {PUBLIC[name].url}" for name in missing)
        raise ValueError(
            f"Raw data not found: looked for {', '.join(missing)} in {folder}"
            f"{'' if folder.is_dir() else ', which is not a folder'}. Either put the files there "
            f"({addresses}), or leave data.raw_dir and the environment variable JAXSPEC_RAW_DATA "
            "empty to have them downloaded."
        )
    return [folder / name for name in names]


def download(names: Sequence[str], *, folder: Path) -> list[Path]:
    """Like `find`, but downloads the files that are missing.

    Raises:
      ValueError: an address cannot be reached, or the folder cannot be written to.
    """
    for name in names:
        if not (folder / name).is_file():
            _fetch(name, folder=folder)
    return [folder / name for name in names]


def _fetch(name: str, *, folder: Path) -> None:
    public = PUBLIC[name]
    headers = {"User-Agent": "jaxspec"}
    if public.first_bytes:
        headers["Range"] = f"bytes=0-{public.first_bytes - 1}"
    request = urllib.request.Request(public.url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
            content = response.read(public.first_bytes or None)
        if public.url.endswith(".gz"):
            content = gzip.decompress(content)
    except (
        OSError,
        EOFError,
        zlib.error,
        http.client.HTTPException,
        urllib.error.URLError,
    ) as error:
        raise ValueError(
            f"Could not download {name} from {public.url}: {error}. On a machine without a "
            f"network, put the file at RAW/{name} and set data.raw_dir or the environment variable "
            "JAXSPEC_RAW_DATA to RAW."
        ) from error
    try:
        # An interrupted download is never mistaken for a complete file.
        with replaced_file(folder / name) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        if is_outage(error):
            raise
        raise ValueError(
            f"{name} cannot be saved in {folder} ({error}): set data.data_dir or the environment "
            "variable JAXSPEC_DATA_DIR to a folder that can be written to."
        ) from error
