"""The largest value of each kind of field in a config.json.

They are far above those of published models, and far below values that could only fail later: when
memory runs out, or after hours.

>>> WIDTH, EPSILON[1]
(4194304, 1.0)
"""

from __future__ import annotations

from jaxspec import ranges
from jaxspec.config import UNLIMITED

WIDTH = ranges.MOST_WIDTH
HEADS = ranges.MOST_HEADS
HEAD_DIM = ranges.MOST_HEAD_WIDTH
EXPERTS = ranges.MOST_EXPERTS
LAYERS = ranges.MOST_LAYERS
VOCABULARY = ranges.MOST_VOCABULARY
POSITIONS = UNLIMITED - 1
BLOCK = ranges.MOST_SLOTS
"""Slots or tokens."""

EPSILON = (1e-20, 1.0)
"""What a norm adds to a mean square."""
ROPE_THETA = (1.0, 1e15)
FACTOR = (1e-3, 1e6)
"""Ratios of context lengths and of wavelengths."""
SCORE = (1e-6, 1e9)
"""Caps of logits, and what scores are divided by."""
