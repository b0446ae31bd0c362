"""Which Hugging Face tensor is which parameter: the rows of the tables in `families`.

Shapes are those of our parameters. Hugging Face stores linear weights the other way round (out,
in); `transpose` says so. Rows with {i} in their name are stacked over layers on axis 0.

>>> rows = (Row("h.{i}.mlp.weight", "layers/mlp/kernel", ("D", "F"), transpose=True),)
>>> tensor_shapes(rows, {"D": 4, "F": 8}, num_layers=1)
{'h.0.mlp.weight': (8, 4)}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table."""

    name: str
    """Name of the Hugging Face tensor; {i} is the layer."""
    path: str
    """Path of the parameter: its keys joined by "/"."""
    shape: tuple[str, ...]
    transpose: bool = False

    @property
    def stacked(self) -> bool:
        """Whether the parameter holds all layers."""
        return "{i}" in self.name


def under(prefix: str, rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """The rows with a prefix before their tensors' names."""
    return tuple(dataclasses.replace(row, name=prefix + row.name) for row in rows)


def parameter_shapes(
    rows: tuple[Row, ...], sizes: Mapping[str, int], *, num_layers: int
) -> dict[str, tuple[int, ...]]:
    """Shape of each parameter by path; stacked ones include their layer axis."""
    return {
        row.path: ((num_layers,) if row.stacked else ()) + tuple(sizes[d] for d in row.shape)
        for row in rows
    }


def tensor_shapes(
    rows: tuple[Row, ...], sizes: Mapping[str, int], *, num_layers: int
) -> dict[str, tuple[int, ...]]:
    """Shape of each Hugging Face tensor by name, with the layers filled in."""
    shapes = {}
    for row in rows:
        shape = tuple(sizes[d] for d in row.shape)
        for name in tensor_names(row.name, num_layers=num_layers):
            shapes[name] = shape[::-1] if row.transpose else shape
    return shapes


def tensor_names(pattern: str, *, num_layers: int) -> list[str]:
    """A pattern's names with the layers filled in; one name if it has no {i}."""
    if "{i}" not in pattern:
        return [pattern]
    return [pattern.replace("{i}", str(i)) for i in range(num_layers)]
