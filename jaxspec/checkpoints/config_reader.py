"""Reads the fields of a Hugging Face config.json and reports all problems at once.

>>> reader = ConfigReader({"hidden_size": 0})
>>> reader.integer("hidden_size"), reader.problems
(1, ['hidden_size: got 0, expected a positive integer'])
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from jaxspec.config import Dtype, LayerType, Llama3RopeScaling

QWEN3_WINDOW, QWEN3_MAX_WINDOW_LAYERS = 4096, 28
"""What transformers assumes if use_sliding_window is true and the file says nothing more."""


class ConfigReader:
    """Reads fields and collects problems, so that all of them are reported at once."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw
        self.problems: list[str] = []

    def integer(self, key: str, default: Any = None, *, smallest: int = 1) -> int:
        """An integer of at least `smallest`."""
        value = self.raw.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
            expected = "a positive integer" if smallest == 1 else f"an integer from {smallest}"
            self.problems.append(f"{key}: got {value!r}, expected {expected}")
            return 1
        return value

    def number(self, key: str, default: float, *, within: Mapping[str, Any] | None = None) -> float:
        """A positive number, as a float."""
        value = (self.raw if within is None else within).get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            self.problems.append(f"{key}: got {value!r}, expected a positive number")
            return 1.0
        return float(value)

    def flag(self, key: str) -> bool:
        """True or false; absent: false."""
        value = self.raw.get(key)
        # Not `in (None, True, False)`: 1 and 0 equal True and False, and 1 would be read as false.
        if not isinstance(value, bool | None):
            self.problems.append(f"{key}: got {value!r}, expected true or false")
        return value is True

    def one_of(self, key: str, allowed: Sequence[Any]) -> Any:
        """One of the values that can be computed here; the first one is the default."""
        value = self.raw.get(key, allowed[0])
        if value in allowed:
            return value
        stated = [repr(each) for each in allowed if each is not None]
        self.problems.append(f"{key}: got {value!r}, expected {' or '.join(stated)}")
        return allowed[0]

    def section(self, key: str) -> Mapping[str, Any]:
        """An object; absent: {}."""
        value = self.raw.get(key)
        if value is not None and not isinstance(value, Mapping):
            self.problems.append(f"{key}: got {value!r}, expected an object")
        return value if isinstance(value, Mapping) else {}

    def integers(self, key: str, value: Any) -> tuple[int, ...]:
        """A list of layer ids, counted from 0."""
        if (
            not isinstance(value, Sequence)
            or isinstance(value, str)
            or not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in value)
        ):
            self.problems.append(f"{key}: got {value!r}, expected a list of layer ids from 0")
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
        if len(set(map(str, map(_as_float, stated.values())))) > 1:
            self.problems.append(f"rope_theta: got different values, expected one: {stated}")
        theta = self.number("rope_theta", 10_000.0, within=next(
            ({"rope_theta": value} for value in stated.values()), {}
        ))  # fmt: skip
        partial = merged.get("partial_rotary_factor", self.raw.get("partial_rotary_factor"))
        if partial not in (None, 1, 1.0):
            self.problems.append(
                f"partial_rotary_factor: got {partial!r}, expected 1 (the whole head is rotated)"
            )
        kind = merged.get("rope_type", merged.get("type")) or "default"
        if kind not in ("default", "llama3"):
            self.problems.append(f"rope_type: got {kind!r}, expected 'default' or 'llama3'")
        if kind != "llama3":
            return theta, None
        defaults = Llama3RopeScaling()
        missing = [f.name for f in dataclasses.fields(defaults) if f.name not in merged]
        if missing:
            self.problems.append(f"rope_type 'llama3' lacks {', '.join(missing)}")
        scaling = Llama3RopeScaling(
            factor=self.number("factor", defaults.factor, within=merged),
            low_freq_factor=self.number("low_freq_factor", 1.0, within=merged),
            high_freq_factor=self.number("high_freq_factor", 4.0, within=merged),
            original_max_position_embeddings=int(
                self.number("original_max_position_embeddings", 8192, within=merged)
            ),
        )
        return theta, scaling

    def plain_layers(self) -> None:
        """Records every layer feature that the models here do not have."""
        raw = self.raw
        if raw.get("hidden_act", "silu") != "silu":
            self.problems.append(f"hidden_act: got {raw['hidden_act']!r}, expected 'silu'")
        if raw.get("mlp_bias"):
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
                    f"max_window_layers: got {first!r}, expected an integer from 0"
                )
                return {}
            types = [
                "sliding_attention" if i >= first else "full_attention" for i in range(num_layers)
            ]
        if not isinstance(types, list):
            self.problems.append(f"layer_types: got {types!r}, expected a list")
            return {}
        other = sorted({str(t) for t in types} - set(get_args(LayerType)))
        if other:
            self.problems.append(
                f"layer_types: got {other}, expected 'full_attention' or 'sliding_attention'"
            )
        if len(types) != num_layers:
            self.problems.append(f"layer_types: got {len(types)} entries for {num_layers} layers")
        if "sliding_attention" not in types:
            return {}
        if isinstance(window, bool) or not isinstance(window, int) or window < 1:
            self.problems.append(
                f"sliding_window: got {raw.get('sliding_window')!r} with use_sliding_window "
                f"{raw.get('use_sliding_window')!r}, expected a positive integer with true, "
                "because layer_types names 'sliding_attention'"
            )
        return {"layer_types": tuple(types), "sliding_window": window}

    def causality(self, special: Mapping[str, Any]) -> bool | None:
        """is_causal of a drafter (z-lab), or dflash_config.causal (vLLM); None: neither is set."""
        stated = {"is_causal": self.raw.get("is_causal"), "causal": special.get("causal")}
        values = [value for value in stated.values() if value is not None]
        if any(value is not values[0] or not isinstance(value, bool) for value in values):
            self.problems.append(
                f"is_causal: got {stated}, expected true or false, the same under both names"
            )
        return values[0] is True if values else None

    def raise_problems(self, where: str) -> None:
        """Raises ValueError with all problems, if there are any."""
        if self.problems:
            lines = "".join(f"\n  {problem}" for problem in self.problems)
            raise ValueError(f"{where} is not a model that jaxspec can compute:{lines}")


def _as_float(value: Any) -> Any:
    return float(value) if isinstance(value, int | float) else value


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      ValueError: no such file, not JSON, or JSON that is not an object.
    """
    return parse_json(read_bytes(path), path=path)


def read_bytes(path: Path) -> bytes:
    """The content of a file that a model's folder must have.

    Raises:
      ValueError: no such file.
    """
    if not path.is_file():
        raise ValueError(f"No {path.name} in {path.parent}: expected a Hugging Face model folder.")
    return path.read_bytes()


def parse_json(content: bytes, *, path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
      ValueError: not JSON, or JSON that is not an object.
    """
    try:
        raw = json.loads(content.decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path} holds a {type(raw).__name__}: expected a JSON object.")
    return raw


def stored_dtype(raw: Mapping[str, Any]) -> Dtype:
    """The dtype of the folder's weights if jaxspec computes in it, otherwise float32."""
    name = str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch.")
    return "bfloat16" if name == "bfloat16" else "float32"
