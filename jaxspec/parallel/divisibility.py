"""Refuses a mesh whose axes do not divide a model.

The compiler would not mind: what an axis does not divide stays whole on every device
(`jaxspec.parallel.rules.Rules`), and neither memory nor time falls as asked.

>>> sizes = split_sizes(TransformerConfig(num_heads=12, num_kv_heads=6, hidden_size=768))
>>> problems(sizes, {"tensor": 4})
['mesh.tensor is 4, which does not divide its 6 key/value heads: set it to 1 or 2.']
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from jaxspec.config import DiTConfig, DrafterConfig, LanguageModelConfig, TransformerConfig

SplitSizes = Mapping[str, Mapping[str, int]]
"""Axis of the mesh -> what it splits in a model, in words -> how many of these there are."""

_LISTED = 8
"""The most sizes that a message proposes."""


def split_sizes(
    config: LanguageModelConfig | DiTConfig | DrafterConfig, *, width: int = 0
) -> SplitSizes:
    """What a mesh splits in a model.

    Args:
      config: the model's shape; a drafter's is resolved (`jaxspec.models.dflash.resolve_config`).
      width: of a drafter's target, whose embedding and head the drafter uses.
    """
    tensor = {"query heads": config.num_heads, "key/value heads": config.num_kv_heads}
    if isinstance(config, DrafterConfig):
        tensor["captured features"] = config.num_features * width
        columns = {"columns": width}
    else:
        tensor["rows of the embedding"] = config.vocab_size
        columns = {"columns of the embedding": config.hidden_size}
    experts = config.experts if isinstance(config, TransformerConfig) else None
    if experts is not None:
        tensor["columns of an expert"] = experts.width
    if experts is None or experts.dense_layers:
        tensor["columns of the MLP"] = config.intermediate_size
    return {"tensor": tensor, "fsdp": columns}


def problems(sizes: SplitSizes, mesh: Mapping[str, int]) -> list[str]:
    """A sentence for each axis that does not divide a model, with sizes that would do.

    Args:
      sizes: of the model.
      mesh: size of each axis; axes that it does not name have size 1.
    """
    found = []
    for axis, counts in sizes.items():
        size = mesh.get(axis, 1)
        wrong = [f"{count:,} {name}" for name, count in counts.items() if count % size]
        if wrong:
            fitting = any_of(divisors(math.gcd(*counts.values())))
            found.append(
                f"mesh.{axis} is {size}, which does not divide its {' and '.join(wrong)}: set it "
                f"to {fitting}."
            )
    return found


def check_models_fit(models: Mapping[str, SplitSizes], mesh: Mapping[str, int]) -> None:
    """Checks that a mesh divides models, before their weights are read.

    Args:
      models: what messages call a model -> its sizes.
      mesh: size of each axis.

    Raises:
      ValueError: names the model, the axis, what it does not divide, and the sizes that would do.
    """
    messages = [
        f"{name} cannot be spread over this mesh:\n  " + "\n  ".join(found)
        for name, sizes in models.items()
        if (found := problems(sizes, mesh))
    ]
    if messages:
        raise ValueError("\n".join(messages))


def divisors(number: int) -> list[int]:
    """All of them, rising."""
    return [size for size in range(1, number + 1) if number % size == 0]


def any_of(sizes: Sequence[int]) -> str:
    """The first of the sizes, in words: "1, 2 or 4"."""
    *first, last = map(str, sizes[:_LISTED])
    return f"{', '.join(first)} or {last}" if first else last
