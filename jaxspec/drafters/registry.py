"""The kinds of drafters, by the names that commands and result files have for them.

>>> KINDS["ngram"].is_trained
False
>>> from jaxspec.config import DrafterConfig
>>> kind_of(DrafterConfig())
'dflash'
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from jaxspec.drafters import autoregressive, denoiser, dflash, ngram
from jaxspec.drafters.kind import DrafterKind

KINDS: Mapping[str, DrafterKind] = MappingProxyType(
    {
        "dflash": dflash.KIND,
        "mdlm": denoiser.KIND,
        "autoregressive": autoregressive.KIND,
        "ngram": ngram.KIND,
        "none": DrafterKind(proposer=None, block_size=1, gives_rows=False),
    }
)
"""A new kind is an entry here. "none" is the target alone."""


def kind_of(config: Any) -> str:
    """The name of the kind that drafts with a network of this configuration.

    Raises:
      ValueError: no kind does.
    """
    for name, kind in KINDS.items():
        if type(config) in kind.configs:
            return name
    trained = ", ".join(name for name, kind in KINDS.items() if kind.is_trained)
    raise ValueError(
        f"No kind of drafter uses a {type(config).__name__}: expected the configuration of one of "
        f"{trained}."
    )
