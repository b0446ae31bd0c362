"""The target as the independent forward sees it: from transformers, or from jaxspec itself.

What a drafter needs of its target is the output of some blocks, the embedding and the head. In
`transformers`, `hidden_states[i + 1]` is the output of block i, and of the last block the output
after the final norm: that is what servers hand to a drafter.

Dimension key: S tokens of a text, D width, E captured features, V vocabulary.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxspec.evals.opening import TargetBundle
from jaxspec.models.dflash import served_features
from jaxspec.models.registry import LanguageModel

INSTALL = "pip install torch (pytorch.org says how to get the small build for CPUs)"
_PADDED_TO = 64
"""Texts of similar length share a compiled program."""


class Unavailable(Exception):
    """The target cannot be computed by transformers here; the message says why."""


class Source(abc.ABC):
    """The parts of a target that a drafter needs, in float32."""

    def __init__(self) -> None:
        self._states: dict[tuple[int, ...], list[np.ndarray]] = {}

    def features(self, tokens: tuple[int, ...], layer_ids: Sequence[int]) -> np.ndarray:
        """Outputs of these blocks side by side, [S, E]. A text is computed once."""
        if tokens not in self._states:
            self._states[tokens] = self.states(tokens)
        return np.concatenate([self._states[tokens][i] for i in layer_ids], axis=-1)

    @abc.abstractmethod
    def states(self, tokens: Sequence[int]) -> list[np.ndarray]:
        """The output of each block, [S, D]; that of the last one after the final norm."""

    @abc.abstractmethod
    def embed(self, tokens: np.ndarray) -> np.ndarray:
        """Rows of the embedding: [...] -> [..., D]."""

    @abc.abstractmethod
    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """What the head makes of hidden states: [..., D] -> [..., V]."""


class TransformersTarget(Source):
    """A target's folder in transformers' torch model, computed in float32."""

    def __init__(self, folder: Path) -> None:
        """Loads the model.

        Raises:
          Unavailable: torch or transformers is missing, or does not load this folder.
        """
        super().__init__()
        try:
            self._torch: Any = importlib.import_module("torch")
        except ImportError as error:
            raise Unavailable(f"torch is not installed ({error}): {INSTALL}") from error
        try:
            transformers: Any = importlib.import_module("transformers")
            with _no_progress_bars(transformers):
                self._model = transformers.AutoModelForCausalLM.from_pretrained(
                    folder,
                    dtype=self._torch.float32,
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                    attn_implementation="eager",
                ).eval()
        except Exception as error:  # transformers raises many kinds, also ones of its own.
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise Unavailable(f"transformers does not load {folder}: {reason}") from error

    def states(self, tokens: Sequence[int]) -> list[np.ndarray]:
        """See `Source`."""
        with self._torch.no_grad():
            output = self._model(
                self._torch.tensor([tokens]), output_hidden_states=True, use_cache=False
            )
        return [state[0].numpy() for state in output.hidden_states[1:]]

    def embed(self, tokens: np.ndarray) -> np.ndarray:
        """See `Source`."""
        table = self._model.get_input_embeddings().weight
        rows: np.ndarray = table.detach()[self._torch.from_numpy(tokens)].numpy()
        return rows

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """See `Source`."""
        with self._torch.no_grad():
            rows: np.ndarray = self._model.get_output_embeddings()(
                self._torch.from_numpy(hidden)
            ).numpy()
        cap = getattr(self._model.config, "final_logit_softcapping", None)  # Gemma's
        return cap * np.tanh(rows / cap) if cap else rows


@contextlib.contextmanager
def _no_progress_bars(transformers: Any) -> Iterator[None]:
    logging = transformers.utils.logging
    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


class OwnTarget(Source):
    """The target as jaxspec computes it, where transformers cannot."""

    def __init__(self, target: TargetBundle) -> None:
        super().__init__()
        self._target = target

    def states(self, tokens: Sequence[int]) -> list[np.ndarray]:
        """See `Source`."""
        length = -(-len(tokens) // _PADDED_TO) * _PADDED_TO
        row_1S = np.zeros((1, length), np.int32)
        row_1S[0, : len(tokens)] = tokens
        features_1SE = _all_states(self._target.params, row_1S, model=self._target.model)
        states_SE = np.asarray(features_1SE[0, : len(tokens)], np.float32)
        return np.split(states_SE, self._target.config.num_layers, axis=-1)

    def embed(self, tokens: np.ndarray) -> np.ndarray:
        """See `Source`."""
        model = self._target.model
        return np.asarray(_call(self._target.params, tokens, model=model, method="embed_tokens"))

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """See `Source`."""
        model = self._target.model
        return np.asarray(_call(self._target.params, hidden, model=model, method="logits"))


@functools.partial(jax.jit, static_argnames="model")
def _all_states(params: Any, tokens_BS: jax.Array, *, model: LanguageModel) -> jax.Array:
    every = tuple(range(model.config.num_layers))
    features = model.apply({"params": params}, tokens_BS, capture=every).features_BSE
    return served_features(model, params, features, layer_ids=every)


@functools.partial(jax.jit, static_argnames=("model", "method"))
def _call(params: Any, operand: jax.Array, *, model: LanguageModel, method: str) -> jax.Array:
    result: jax.Array = model.apply({"params": params}, operand, method=method)
    return result
