"""What users' conversations are for, and what folders of them say."""

from __future__ import annotations

from typing import Literal

Use = Literal["training", "prompts", "benchmark"]
"""What conversations are for. "training": they need an answer; "prompts": for the target to answer,
as training data; "benchmark": to be measured on. Only a benchmark may hold benchmarks' prompts."""

SPLITS: dict[Use, str] = {"training": "train", "prompts": "train", "benchmark": "test"}
"""Use -> the split of the examples."""
VALIDATION = "validation"
"""Name of the split, and of the folder in an imported folder that holds it."""
RECORD = "import"
"""The part of a folder's manifest that says what was imported."""
