"""Dataclasses of arrays that jax treats as trees.

>>> import jax
>>> @array_dataclass
... class Point:
...     x: jax.Array
...     y: jax.Array
>>> jax.tree.map(lambda leaf: leaf + 1, Point(1, 2))
Point(x=2, y=3)
"""

from __future__ import annotations

from typing import Any, TypeVar, dataclass_transform

import chex

ClassT = TypeVar("ClassT", bound=type)


@dataclass_transform(frozen_default=True)
def array_dataclass(cls: ClassT) -> ClassT:
    """Makes a class a frozen dataclass and a node of jax's trees; its fields are the children.

    `jax.tree_util.register_dataclass`, and so `flax.struct.dataclass`, is not used: in jaxlib 0.10
    the structures of two such classes compare equal if they have as many fields, so that a compiled
    function may return one class where it was given the other (in one of about a hundred processes,
    depending on addresses). chex registers nodes whose structures name their class.

    Args:
      cls: a class with annotated fields: arrays, trees of arrays or None.
    """
    made: Any = chex.dataclass(cls, frozen=True, mappable_dataclass=False)
    return made
