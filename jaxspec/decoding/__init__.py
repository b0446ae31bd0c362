"""Jitted decoding loops: one token a pass, or blocks that a drafter proposes and the target checks.

A strategy (`Autoregressive`, `Speculative`, `TreeSpeculative`, `ChainSpeculative`) is a frozen
dataclass with two jitted methods: `start` prefills, `run` is the whole loop. `Adaptive` chooses
among strategies of several sizes while it runs. `generate` drives any of them over a list of
prompts.
"""

from jaxspec.decoding.adaptive import Adaptive
from jaxspec.decoding.autoregressive import Autoregressive
from jaxspec.decoding.generate import Response, generate
from jaxspec.decoding.speculative import SAMPLED_RULES, Speculative
from jaxspec.decoding.state import DecodeRules, DecodeState, Prompts
from jaxspec.decoding.tree import CHAIN_RULES, ChainSpeculative, TreeSpeculative

__all__ = [
    "CHAIN_RULES",
    "SAMPLED_RULES",
    "Adaptive",
    "Autoregressive",
    "ChainSpeculative",
    "DecodeRules",
    "DecodeState",
    "Prompts",
    "Response",
    "Speculative",
    "TreeSpeculative",
    "generate",
]
