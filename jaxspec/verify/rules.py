"""The rejection rules by name, and what each of them needs.

Decoding asks this table alone: a new rule is a function in a file of its own and an entry here.

Dimension key: B batch rows, G drafted slots, H = G + 1 verified rows, A sampled chains, X nodes of
a tree, Y = X + 1 rows, V vocabulary.

>>> rule_names("chains")
('recursive', 'recursive_without_replacement', 'k_seq', 'self_selection')
>>> find_rule("block").told_rows
True
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import jax

from jaxspec.names import did_you_mean
from jaxspec.verify.block import verify_block
from jaxspec.verify.chains import verify_chains
from jaxspec.verify.greedy import verify_greedy
from jaxspec.verify.point_mass import verify_point_mass
from jaxspec.verify.self_selection import verify_self_selection
from jaxspec.verify.token import verify_token
from jaxspec.verify.tree import walk_tree

Drafts = Literal["block", "chains", "tree"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """A rejection rule.

    What `function` takes and returns depends on `drafts`, and on `told_rows`, which says whether
    the drafts' distributions are passed:

    - "block", at temperature 0: (draft_BG, target_logits_BHV) -> `Verdict`;
    - "block": (key, draft_BG, [draft_probs_BGV,] target_probs_BHV) -> `Verdict`;
    - "chains": (key, drafts_BAG, [draft_probs_BGV,] target_probs_BAHV) -> `ChainVerdict`;
    - "tree": (tokens_BX, parents_BX, target_rows_BYV, draw=..., depth=...) -> `TreeVerdict`,
      `draw` being the target's own (see `walk_tree`). Chains that start at one anchor are a tree,
      so these rules judge them as well.
    """

    function: Callable[..., Any]
    drafts: Drafts
    temperature: Literal["zero", "positive", "any"] = "positive"
    """The target's temperatures that the rule is exact for."""
    told_rows: bool = False
    """Whether it is told the distributions that drafts were sampled from. A rule for a block is
    then for sampled drafts, and otherwise for deterministic ones; chains are always sampled."""
    first_differ: bool = False
    """Whether the first tokens of the chains are drawn without replacement."""

    def fits(self, *, greedy: bool) -> bool:
        """Whether the rule is exact for a target at temperature 0 (`greedy`), or above it."""
        return self.temperature in ("any", "zero" if greedy else "positive")

    def judge(
        self, key: jax.Array, drafts: jax.Array, draft_probs: jax.Array | None, target: jax.Array
    ) -> Any:
        """The verdict on a block or on chains, at a temperature above 0."""
        told = (draft_probs,) if self.told_rows else ()
        return self.function(key, drafts, *told, target)


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "greedy": Rule(function=verify_greedy, drafts="block", temperature="zero"),
        "point_mass": Rule(function=verify_point_mass, drafts="block"),
        "token": Rule(function=verify_token, drafts="block", told_rows=True),
        "block": Rule(function=verify_block, drafts="block", told_rows=True),
        "tree": Rule(function=walk_tree, drafts="tree", temperature="any"),
        "recursive": Rule(
            function=functools.partial(verify_chains, rule="recursive"),
            drafts="chains",
            told_rows=True,
        ),
        "recursive_without_replacement": Rule(
            function=functools.partial(verify_chains, rule="recursive_without_replacement"),
            drafts="chains",
            told_rows=True,
            first_differ=True,
        ),
        "k_seq": Rule(
            function=functools.partial(verify_chains, rule="k_seq"),
            drafts="chains",
            told_rows=True,
        ),
        "self_selection": Rule(function=verify_self_selection, drafts="chains"),
    }
)
"""Names of `evaluation.verifier`, which also has "auto"."""


def rule_names(*drafts: Drafts) -> tuple[str, ...]:
    """The rules for these kinds of drafts, in the order of the table."""
    return tuple(name for name, rule in RULES.items() if rule.drafts in drafts)


def find_rule(name: str, *, among: tuple[str, ...] = ()) -> Rule:
    """The rule of that name.

    Args:
      name: what was asked for.
      among: the names that would do; (): all.

    Raises:
      ValueError: another name; says which there are and which is closest.
    """
    names = among or tuple(RULES)
    if name not in names:
        raise ValueError(
            f"verifier must be one of {', '.join(names)}: got {name!r}.{did_you_mean(name, names)}"
        )
    return RULES[name]
