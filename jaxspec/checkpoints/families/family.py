"""What jaxspec knows of a family of models on the Hugging Face Hub: its files and tensors.

>>> layout = Layout(rows=(Row("norm.weight", "final_norm/scale", ("D",)),), sizes={"D": 4},
...                 num_layers=2)
>>> layout.tensor_shapes
{'norm.weight': (4,)}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

from jaxspec.checkpoints import key_maps
from jaxspec.checkpoints.key_maps import Row
from jaxspec.config import Dtype, LanguageModelConfig

Role = Literal["target", "denoiser", "drafter"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The tensors of one model, and where each of them goes."""

    rows: tuple[Row, ...]
    """The key map; the embedding, if it has one, comes first."""
    sizes: Mapping[str, int]
    """What the letters in the rows' shapes mean."""
    num_layers: int
    zeros: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    """Shapes of tensors that transformers expects but our layers do not have: written as zeros, and
    refused if they are not zero."""
    tied_head: str = ""
    """A head that folders with tied embeddings may store as a second copy; it must equal the
    embedding. "": there is none."""
    ignored: tuple[str, ...] = ()
    """Patterns of tensors that are skipped: constants, or tensors of another model."""

    @property
    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor in the folder, by name."""
        return key_maps.tensor_shapes(self.rows, self.sizes, num_layers=self.num_layers)

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each of our parameters, by path."""
        return key_maps.parameter_shapes(self.rows, self.sizes, num_layers=self.num_layers)

    @property
    def redundant(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors that may be there but add no information."""
        found = dict(self.zeros)
        if self.tied_head:
            found[self.tied_head] = (self.sizes["V"], self.sizes["D"])
        return found


def in_dtype(
    description: Any, dtype: Dtype, *, target: LanguageModelConfig | None, where: str
) -> Any:
    """A configuration whose weights are held and computed in `dtype`."""
    del target, where
    return dataclasses.replace(description, dtype=dtype, param_dtype=dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One family: an entry of `jaxspec.checkpoints.families.registry.FAMILIES`."""

    name: str
    role: Role
    """What models of the family are used as."""
    recognises: Callable[[Mapping[str, Any]], bool]
    """Whether a config.json belongs to this family."""
    from_json: Callable[..., Any]
    """(content of config.json, where=what to call it in messages) -> the configuration."""
    to_json: Callable[..., dict[str, Any]]
    """(configuration, dtype=..., anything more the family needs) -> the content of config.json."""
    layout: Callable[[Any, Collection[str]], Layout]
    """(configuration, names of the tensors in the folder; none when writing) -> its tensors."""
    fitted: Callable[..., Any] = in_dtype
    """(configuration, dtype, target=what it drafts for or None, where=...) -> the configuration
    that is loaded; raises ValueError where a drafter was trained for another target."""
    architectures: Collection[str] = ()
    """Class names in config.json by which other programs recognise the family."""
    tokenizer_class: str = ""
    """Class of the tokenizer if only config.json tells it; "": tokenizer_config.json does."""
