"""Which Hugging Face tensor is which parameter: the rows of the tables in `families`.

Shapes are those of our parameters. Hugging Face stores linear weights the other way round (out,
in); `transpose` says so. Rows with {i} in their name are stacked over layers on axis 0, those with
{e} as well over experts on axis 1.

>>> rows = (Row("h.{i}.mlp.weight", "layers/mlp/kernel", ("D", "F"), transpose=True),)
>>> tensor_shapes(rows, {"D": 4, "F": 8}, num_layers=1)
{'h.0.mlp.weight': (8, 4)}
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table."""

    name: str
    """Name of the Hugging Face tensor; {i} is the layer, {e} the expert."""
    path: str
    """Path of the parameter: its keys joined by "/"."""
    shape: tuple[str, ...]
    """Letters of the parameter's axes but the layers'; experts come first."""
    transpose: bool = False
    layers: tuple[int, ...] | None = None
    """Layers that have the tensor; None: all. The parameter is zero in the others."""

    @property
    def stacked(self) -> bool:
        """Whether the parameter holds all layers."""
        return "{i}" in self.name

    @property
    def stack_axes(self) -> int:
        """How many axes of the parameter tensors are stacked along: layers, experts."""
        return ("{i}" in self.name) + ("{e}" in self.name)

    def tensors(self, axes: Sequence[range]) -> Iterator[tuple[tuple[int, ...], str]]:
        """(place in the stack, name) of each tensor whose layer and expert lie in these ranges."""
        for place in itertools.product(*axes):
            if self.layers is None or place[0] in self.layers:
                name = self.name
                for mark, index in zip(("{i}", "{e}"), place, strict=False):
                    name = name.replace(mark, str(index))
                yield place, name


def under(prefix: str, rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """The rows with a prefix before their tensors' names."""
    return tuple(dataclasses.replace(row, name=prefix + row.name) for row in rows)


def parameter_shapes(
    rows: tuple[Row, ...], sizes: Mapping[str, int], *, num_layers: int
) -> dict[str, tuple[int, ...]]:
    """Shape of each parameter by path; stacked ones include their layer axis."""
    return {row.path: _parameter_shape(row, sizes, num_layers=num_layers) for row in rows}


def tensor_shapes(
    rows: tuple[Row, ...], sizes: Mapping[str, int], *, num_layers: int
) -> dict[str, tuple[int, ...]]:
    """Shape of each Hugging Face tensor by name, with layers and experts filled in."""
    shapes = {}
    for row in rows:
        shape = _parameter_shape(row, sizes, num_layers=num_layers)
        stack, shape = shape[: row.stack_axes], shape[row.stack_axes :]
        for _, name in row.tensors([range(size) for size in stack]):
            shapes[name] = shape[::-1] if row.transpose else shape
    return shapes


def _parameter_shape(row: Row, sizes: Mapping[str, int], *, num_layers: int) -> tuple[int, ...]:
    return ((num_layers,) if row.stacked else ()) + tuple(sizes[d] for d in row.shape)


def tensor_names(pattern: str, *, num_layers: int) -> list[str]:
    """A pattern's names with the layers filled in; one name if it has no {i}."""
    if "{i}" not in pattern:
        return [pattern]
    return [pattern.replace("{i}", str(i)) for i in range(num_layers)]
