"""Jitted decoding loops: one token a pass, or blocks that a drafter proposes and the target checks.

A strategy (`Autoregressive`, `Speculative`) is a frozen dataclass with two jitted methods: `start`
prefills, `run` is the whole loop. `generate` drives either of them over a list of prompts.
"""

from jaxspec.decoding.autoregressive import Autoregressive
from jaxspec.decoding.generate import Response, generate
from jaxspec.decoding.speculative import SAMPLED_RULES, Speculative
from jaxspec.decoding.state import DecodeRules, DecodeState, Prompts
from jaxspec.decoding.tree import TreeSpeculative

__all__ = [
    "SAMPLED_RULES",
    "Autoregressive",
    "DecodeRules",
    "DecodeState",
    "Prompts",
    "Response",
    "Speculative",
    "TreeSpeculative",
    "generate",
]
