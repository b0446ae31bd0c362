"""Rejection rules over whole drafted blocks: exact, batched, jit-able, arrays in and out."""

from jaxspec.verify.block import verify_block
from jaxspec.verify.chains import ChainRule, ChainVerdict, verify_chains
from jaxspec.verify.greedy import verify_greedy
from jaxspec.verify.point_mass import verify_point_mass
from jaxspec.verify.self_selection import verify_self_selection
from jaxspec.verify.token import verify_token
from jaxspec.verify.tree import TreeVerdict, verify_tree
from jaxspec.verify.verdict import Verdict

__all__ = [
    "ChainRule",
    "ChainVerdict",
    "TreeVerdict",
    "Verdict",
    "verify_block",
    "verify_chains",
    "verify_greedy",
    "verify_point_mass",
    "verify_self_selection",
    "verify_token",
    "verify_tree",
]
