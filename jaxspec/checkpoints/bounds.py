"""The largest value of each kind of field in a config.json.

They are far above those of published models, and far below what could only fail later: without
memory, or after hours.

>>> WIDTH, EPSILON[1]
(1048576, 1.0)
"""

from __future__ import annotations

from jaxspec.config import UNLIMITED

WIDTH = 1 << 20
HEADS = 1 << 14
HEAD_DIM = 1 << 12
"""The rotation of a head is a matrix of this width."""
LAYERS = 1 << 12
VOCABULARY = 1 << 24
POSITIONS = UNLIMITED - 1
BLOCK = 1 << 16
"""Slots or tokens."""

EPSILON = (1e-20, 1.0)
"""What a norm adds to a mean square."""
ROPE_THETA = (1.0, 1e15)
FACTOR = (1e-3, 1e6)
"""Ratios of context lengths and of wavelengths."""
