"""Reads the fields of a Hugging Face config.json and reports all problems at once.

>>> reader = ConfigReader({"hidden_size": 0})
>>> reader.integer("hidden_size", largest=bounds.WIDTH), reader.problems
(1, ['hidden_size: got 0, expected a positive integer'])
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from jaxspec import json_files
from jaxspec.checkpoints import bounds
from jaxspec.config import Dtype, LayerType, Llama3RopeScaling
from jaxspec.json_files import shown

Config = TypeVar("Config")

QWEN3_WINDOW, QWEN3_MAX_WINDOW_LAYERS = 4096, 28
"""What transformers assumes if use_sliding_window is true and the file says nothing more."""

STORED_DTYPES = ("float32", "bfloat16", "float16", "float64")


class ConfigReader:
    """Reads fields and collects problems, so that all of them are reported at once."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw
        self.problems: list[str] = []

    def integer(
        self,
        key: str,
        default: Any = None,
        *,
        largest: int,
        smallest: int = 1,
        within: Mapping[str, Any] | None = None,
    ) -> int:
        """An integer from `smallest` to `largest`."""
        value = (self.raw if within is None else within).get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
            expected = "a positive integer" if smallest == 1 else f"an integer from {smallest}"
        elif value > largest:
            expected = f"an integer from {smallest} to {largest}"
        else:
            return value
        self.problems.append(f"{key}: got {shown(value)}, expected {expected}")
        return 1

    def number(
        self,
        key: str,
        default: float,
        *,
        limits: tuple[float, float],
        within: Mapping[str, Any] | None = None,
    ) -> float:
        """A number from the first of `limits` to the second, as a float."""
        value = (self.raw if within is None else within).get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            expected = "a positive number"
        elif not limits[0] <= value <= limits[1]:
            expected = f"a number from {limits[0]:g} to {limits[1]:g}"
        else:
            return float(value)
        self.problems.append(f"{key}: got {shown(value)}, expected {expected}")
        return 1.0

    def flag(
        self, key: str, default: bool = False, *, within: Mapping[str, Any] | None = None
    ) -> bool:
        """True or false; the default if absent."""
        value = (self.raw if within is None else within).get(key)
        # Not `in (None, True, False)`: 1 and 0 equal True and False, and 1 would be read as false.
        if not isinstance(value, bool | None):
            self.problems.append(f"{key}: got {shown(value)}, expected true or false")
        return default if value is None else value is True

    def one_of(self, key: str, allowed: Sequence[Any]) -> Any:
        """One of the values that can be computed here; the first one is the default."""
        value = self.raw.get(key, allowed[0])
        # Types count: 1 equals True.
        if any(type(value) is type(each) and value == each for each in allowed):
            return value
        stated = [repr(each) for each in allowed if each is not None]
        self.problems.append(f"{key}: got {shown(value)}, expected {' or '.join(stated)}")
        return allowed[0]

    def section(self, key: str) -> Mapping[str, Any]:
        """An object; absent: {}."""
        value = self.raw.get(key)
        if value is not None and not isinstance(value, Mapping):
            self.problems.append(f"{key}: got {shown(value)}, expected an object")
        return value if isinstance(value, Mapping) else {}

    def head_width(self, key: str, width: int, *, heads: int) -> None:
        """Records a problem if a model width, read from `key`, makes the rotated heads too wide."""
        if width // heads > bounds.HEAD_DIM:
            self.problems.append(
                f"{key}: got {width} for {heads} heads, expected at most {bounds.HEAD_DIM} per head"
            )

    def layer_ids(self, key: str, value: Any) -> tuple[int, ...]:
        """A list of layer ids, counted from 0; at least one, in increasing order."""
        if not isinstance(value, list) or not (
            1 <= len(value) <= bounds.LAYERS
            and all(type(each) is int and 0 <= each < bounds.LAYERS for each in value)
            and value == sorted(set(value))
        ):
            self.problems.append(
                f"{key}: got {shown(value)}, expected a list of layer ids (0 or more) in "
                "increasing order"
            )
            return ()
        return tuple(value)

    def rope(self) -> tuple[float, Llama3RopeScaling | None]:
        """Base and scaling, from the top level or from rope_parameters (transformers 5)."""
        parameters, old = self.section("rope_parameters"), self.section("rope_scaling")
        merged = {**old, **parameters}
        places = {
            "rope_theta": self.raw.get("rope_theta"),
            "rope_parameters.rope_theta": parameters.get("rope_theta"),
        }
        stated = {place: theta for place, theta in places.items() if theta is not None}
        first = next(iter(stated.values()), None)
        if any(value != first for value in stated.values()):
            self.problems.append(f"rope_theta: got different values, expected one: {shown(stated)}")
        theta = self.number(
            "rope_theta", 10_000.0, limits=bounds.ROPE_THETA, within={"rope_theta": first}
        )
        partial = merged.get("partial_rotary_factor", self.raw.get("partial_rotary_factor"))
        if partial not in (None, 1, 1.0):
            self.problems.append(
                f"partial_rotary_factor: got {shown(partial)}, expected 1 (the whole head is "
                "rotated)"
            )
        kind = merged.get("rope_type", merged.get("type"))
        if kind not in (None, "default", "llama3"):
            self.problems.append(f"rope_type: got {shown(kind)}, expected 'default' or 'llama3'")
        if kind != "llama3":
            return theta, None
        defaults = Llama3RopeScaling()
        missing = [f.name for f in dataclasses.fields(defaults) if f.name not in merged]
        if missing:
            self.problems.append(f"rope_type 'llama3' lacks {', '.join(missing)}")
        low, high = (
            self.number(key, getattr(defaults, key), limits=bounds.FACTOR, within=merged)
            for key in ("low_freq_factor", "high_freq_factor")
        )
        if low >= high:
            self.problems.append(
                f"high_freq_factor: got {high}, expected more than low_freq_factor ({low})"
            )
        scaling = Llama3RopeScaling(
            factor=self.number("factor", defaults.factor, limits=bounds.FACTOR, within=merged),
            low_freq_factor=low,
            high_freq_factor=high,
            original_max_position_embeddings=self.integer(
                "original_max_position_embeddings",
                defaults.original_max_position_embeddings,
                largest=bounds.POSITIONS,
                within=merged,
            ),
        )
        return theta, scaling

    def plain_layers(self) -> None:
        """Records every layer feature that the models here do not have."""
        raw = self.raw
        if raw.get("hidden_act", "silu") != "silu":
            self.problems.append(f"hidden_act: got {shown(raw['hidden_act'])}, expected 'silu'")
        if self.flag("mlp_bias"):
            self.problems.append("mlp_bias: got true, expected false")
        if raw.get("quantization_config"):
            self.problems.append("quantization_config: expected none; use the unquantised weights")

    def sliding_layers(self, num_layers: int) -> dict[str, Any]:
        """The fields layer_types and sliding_window; empty when no layer slides."""
        raw = self.raw
        # null means no window; only an absent key takes the default.
        window = raw.get("sliding_window", QWEN3_WINDOW)
        if not self.flag("use_sliding_window"):
            window = None
        types = raw.get("layer_types")
        if types is None:
            first = raw.get("max_window_layers", QWEN3_MAX_WINDOW_LAYERS)
            if window is None:
                return {}
            if isinstance(first, bool) or not isinstance(first, int) or first < 0:
                self.problems.append(
                    f"max_window_layers: got {shown(first)}, expected an integer from 0"
                )
                return {}
            types = [
                "sliding_attention" if i >= first else "full_attention" for i in range(num_layers)
            ]
        if not isinstance(types, list):
            self.problems.append(f"layer_types: got {shown(types)}, expected a list")
            return {}
        other = sorted({str(t) for t in types} - set(get_args(LayerType)))
        if other:
            self.problems.append(
                f"layer_types: got {shown(other)}, expected 'full_attention' or 'sliding_attention'"
            )
        if len(types) != num_layers:
            self.problems.append(f"layer_types: got {len(types)} entries for {num_layers} layers")
        if "sliding_attention" not in types:
            return {}
        if isinstance(window, bool) or not isinstance(window, int) or window < 1:
            self.problems.append(
                f"sliding_window: got {shown(raw.get('sliding_window'))} with use_sliding_window "
                f"{shown(raw.get('use_sliding_window'))}, expected a positive integer with true, "
                "because layer_types names 'sliding_attention'"
            )
        return {"layer_types": tuple(types), "sliding_window": window}

    def causality(self, special: Mapping[str, Any]) -> bool | None:
        """is_causal of a drafter (z-lab), or dflash_config.causal (vLLM); None: neither is set."""
        stated = {"is_causal": self.raw.get("is_causal"), "causal": special.get("causal")}
        values = [value for value in stated.values() if value is not None]
        if any(value is not values[0] or not isinstance(value, bool) for value in values):
            self.problems.append(
                f"is_causal: got {shown(stated)}, expected true or false, the same under both names"
            )
        return values[0] is True if values else None

    def stored_dtype(self) -> Dtype:
        """The dtype of the folder's weights if jaxspec computes in it, otherwise float32."""
        key = "dtype" if self.raw.get("dtype") is not None else "torch_dtype"
        value = self.raw.get(key)
        name = value.removeprefix("torch.") if isinstance(value, str) else value
        if name is not None and name not in STORED_DTYPES:
            self.problems.append(
                f"{key}: got {shown(value)}, expected {' or '.join(STORED_DTYPES)}"
            )
        return "bfloat16" if name == "bfloat16" else "float32"

    def raise_problems(self, where: str) -> None:
        """Raises ValueError with all problems, if there are any."""
        if self.problems:
            lines = "".join(f"\n  {problem}" for problem in self.problems)
            raise ValueError(f"{where} is not a model that jaxspec can compute:{lines}")

    def build(self, config: Callable[..., Config], *, where: str, **fields: Any) -> Config:
        """The configuration with these fields.

        Args:
          config: its class.
          where: what to call the file in messages.
          **fields: of the configuration.

        Raises:
          ValueError: there are problems, or the fields do not fit together.
        """
        self.raise_problems(where)
        try:
            return config(**fields)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model's folder.

    Raises:
      ValueError: no such file, or see `jaxspec.json_files.parse_object`.
    """
    return json_files.parse_object(read_bytes(path), name=path)


def read_bytes(path: Path) -> bytes:
    """The content of a file that a model's folder must have.

    Raises:
      ValueError: no such file, or see `jaxspec.json_files.read_bytes`.
    """
    if not os.path.exists(path):
        raise ValueError(f"No {path.name} in {path.parent}: expected a Hugging Face model folder.")
    return json_files.read_bytes(path)
