"""Jitted decoding loops: one token per pass, or drafted blocks that the target checks.

A strategy (`Autoregressive`, `Speculative`, `TreeSpeculative`, `ChainSpeculative`) is a frozen
dataclass with two jitted methods: `start` prefills, `run` is the whole loop. `Adaptive` chooses
among strategies of several sizes while it runs. `generate` drives any of them over a list of
prompts.

`BlockDiffusion` decodes with a diffusion language model, one block of masks at a time;
`generate_diffusion` drives it. `Spiffy` gives the same output in fewer passes.
"""

from jaxspec.decoding.adaptive import Adaptive
from jaxspec.decoding.autoregressive import Autoregressive
from jaxspec.decoding.diffusion.block_model import BlockContext, BlockModel
from jaxspec.decoding.diffusion.decoder import BlockDiffusion, DiffusionRules, DiffusionState
from jaxspec.decoding.diffusion.draft_graph import DraftGraph
from jaxspec.decoding.diffusion.generate import DiffusionResponse, generate_diffusion
from jaxspec.decoding.diffusion.spiffy import Spiffy
from jaxspec.decoding.diffusion.unmasking import Factor, Scheduled, Threshold, Unmasker
from jaxspec.decoding.generate import Response, generate
from jaxspec.decoding.speculative import Speculative
from jaxspec.decoding.state import DecodeRules, DecodeState, Prompts
from jaxspec.decoding.tree import CHAIN_RULES, ChainSpeculative, TreeSpeculative

__all__ = [
    "CHAIN_RULES",
    "Adaptive",
    "Autoregressive",
    "BlockContext",
    "BlockDiffusion",
    "BlockModel",
    "ChainSpeculative",
    "DecodeRules",
    "DecodeState",
    "DiffusionResponse",
    "DiffusionRules",
    "DiffusionState",
    "DraftGraph",
    "Factor",
    "Prompts",
    "Response",
    "Scheduled",
    "Speculative",
    "Spiffy",
    "Threshold",
    "TreeSpeculative",
    "Unmasker",
    "generate",
    "generate_diffusion",
]
