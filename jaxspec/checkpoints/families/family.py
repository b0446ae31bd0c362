"""What a family of models on the Hugging Face Hub is to jaxspec: files in and out, and tensors.

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
    """The key map, its embedding first where it has one."""
    sizes: Mapping[str, int]
    """What the letters in the rows' shapes stand for."""
    num_layers: int
    zeros: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    """Shapes of tensors that transformers expects and our layers do not have: written as zeros, and
    refused where they are not zero."""
    tied_head: str = ""
    """A head that folders with tied embeddings may store a second time; it must equal the
    embedding. "": there is none."""
    ignored: tuple[str, ...] = ()
    """Patterns of tensors that are passed over: constants, or tensors of another model."""

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
        """Shapes of the tensors that may be there but hold nothing of their own."""
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
    """Whether a config.json is one of this family's."""
    from_json: Callable[..., Any]
    """(content of config.json, where=what to call it in messages) -> the configuration."""
    to_json: Callable[..., dict[str, Any]]
    """(configuration, dtype=..., and what the family needs besides) -> the content of config.json."""
    layout: Callable[[Any, Collection[str]], Layout]
    """(configuration, names of the tensors in the folder; none when writing) -> its tensors."""
    fitted: Callable[..., Any] = in_dtype
    """(configuration, dtype, target=what it drafts for or None, where=...) -> the configuration
    that is loaded; raises ValueError where a drafter was trained for another target."""
    architectures: Collection[str] = ()
    """Class names in config.json by which other programs know the family."""
    tokenizer_class: str = ""
    """Class of the tokenizer where only config.json tells it; "": tokenizer_config.json does."""
