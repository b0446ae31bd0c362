"""The target as the independent forward sees it: from transformers, or from jaxspec itself.

What a drafter needs of its target is the output of some blocks, the embedding and the head. In
`transformers`, `hidden_states[i + 1]` is the output of block i, and of the last block the output
after the final norm: that is what servers hand to a drafter.

Dimension key: S tokens of a text, D width, E captured features, K block slots, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from jaxspec.evals.opening import TargetBundle
from jaxspec.models.dflash import served_features
from jaxspec.models.registry import LanguageModel

INSTALL = "pip install torch (pytorch.org says how to get the small build for CPUs)"


class Unavailable(Exception):
    """The target cannot be computed by transformers here; the message says why."""


class Source(Protocol):
    """The parts of a target that a drafter needs, in float32."""

    def features(self, tokens: Sequence[int], layer_ids: tuple[int, ...]) -> np.ndarray:
        """Outputs of these blocks side by side, [S, E]."""
        ...

    def embed(self, tokens: Sequence[int]) -> np.ndarray:
        """Rows of the embedding, [K, D]."""
        ...

    def logits(self, hidden_KD: np.ndarray) -> np.ndarray:
        """What the head makes of hidden states, [K, V]."""
        ...


class TransformersTarget:
    """A target's folder in transformers' torch model, computed in float32."""

    def __init__(self, folder: Path) -> None:
        """Loads the model.

        Raises:
          Unavailable: torch is missing, or transformers does not load this folder.
        """
        try:
            self._torch: Any = importlib.import_module("torch")
        except ImportError as error:
            raise Unavailable(
                f"torch is not installed ({error}). To install it: {INSTALL}"
            ) from error
        transformers: Any = importlib.import_module("transformers")
        try:
            self._model = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=self._torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                attn_implementation="eager",
            ).eval()
        except (ImportError, OSError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise Unavailable(f"transformers does not load {folder}: {reason}") from error
        self._cached = functools.lru_cache(maxsize=16)(self._hidden_states)

    def _hidden_states(self, tokens: tuple[int, ...]) -> list[np.ndarray]:
        with self._torch.no_grad():
            output = self._model(
                self._torch.tensor([tokens]), output_hidden_states=True, use_cache=False
            )
        return [state[0].numpy() for state in output.hidden_states]

    def features(self, tokens: Sequence[int], layer_ids: tuple[int, ...]) -> np.ndarray:
        """See `Source`."""
        states = self._cached(tuple(tokens))
        return np.concatenate([states[i + 1] for i in layer_ids], axis=-1)

    def embed(self, tokens: Sequence[int]) -> np.ndarray:
        """See `Source`."""
        with self._torch.no_grad():
            rows: np.ndarray = self._model.get_input_embeddings()(
                self._torch.tensor(list(tokens))
            ).numpy()
        return rows

    def logits(self, hidden_KD: np.ndarray) -> np.ndarray:
        """See `Source`."""
        with self._torch.no_grad():
            rows: np.ndarray = self._model.get_output_embeddings()(
                self._torch.from_numpy(hidden_KD)
            ).numpy()
        return rows


@dataclasses.dataclass(frozen=True, eq=False)
class OwnTarget:
    """The target as jaxspec computes it, where transformers cannot."""

    target: TargetBundle

    def features(self, tokens: Sequence[int], layer_ids: tuple[int, ...]) -> np.ndarray:
        """See `Source`."""
        row_1S = np.array([tokens], np.int32)
        features_1SE = _features(
            self.target.params, row_1S, model=self.target.model, layer_ids=layer_ids
        )
        return np.asarray(features_1SE[0], np.float32)

    def embed(self, tokens: Sequence[int]) -> np.ndarray:
        """See `Source`."""
        ids_K = np.array(tokens, np.int32)
        return np.asarray(
            _call(self.target.params, ids_K, model=self.target.model, method="embed_tokens")
        )

    def logits(self, hidden_KD: np.ndarray) -> np.ndarray:
        """See `Source`."""
        return np.asarray(
            _call(self.target.params, hidden_KD, model=self.target.model, method="logits")
        )


@functools.partial(jax.jit, static_argnames=("model", "layer_ids"))
def _features(
    params: Any, tokens_BS: jax.Array, *, model: LanguageModel, layer_ids: tuple[int, ...]
) -> jax.Array:
    features = model.apply({"params": params}, tokens_BS, capture=layer_ids).features_BSE
    return served_features(model, params, features, layer_ids=layer_ids)


@functools.partial(jax.jit, static_argnames=("model", "method"))
def _call(params: Any, operand: jax.Array, *, model: LanguageModel, method: str) -> jax.Array:
    result: jax.Array = model.apply({"params": params}, operand, method=method)
    return result
