"""Reads the fields of a Hugging Face config.json and reports all problems at once.

>>> reader = ConfigReader({"hidden_size": 0})
>>> reader.integer("hidden_size", largest=bounds.WIDTH), reader.problems
(1, ['hidden_size: got 0, expected a positive integer'])
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from jaxspec import json_files
from jaxspec.checkpoints import bounds
from jaxspec.config import (
    Dtype,
    LayerType,
    LinearRopeScaling,
    Llama3RopeScaling,
    RopeScaling,
    YarnRopeScaling,
)
from jaxspec.json_files import shown
from jaxspec.paths import exists

Config = TypeVar("Config")

QWEN3_WINDOW, QWEN3_MAX_WINDOW_LAYERS = 4096, 28
"""What transformers assumes if use_sliding_window is true and the file says nothing more."""

_LENGTH = ": the wavelengths would depend on the length of the text"
_ROPE_REASONS = {"dynamic": _LENGTH, "longrope": _LENGTH, "su": _LENGTH}
"""Why some position scalings are not computed."""
_ROPE_KEYS = frozenset(
    (
        *("rope_type", "type", "rope_theta", "partial_rotary_factor", "factor"),
        *("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
        *("attention_factor", "beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim"),
        *("attn_factor", "finetuned"),
    )
)
"""Keys of position scalings that are read, or known to change nothing."""

STORED_DTYPES = ("float32", "bfloat16", "float16", "float64")


class ConfigReader:
    """Reads fields and collects problems, so that all of them are reported at once."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw
        self.problems: list[str] = []

    def over(self, raw: Mapping[str, Any]) -> ConfigReader:
        """A reader of another file that reports its problems here."""
        reader = ConfigReader(raw)
        reader.problems = self.problems
        return reader

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

    def section(self, key: str, *, within: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """An object; absent: {}."""
        value = (self.raw if within is None else within).get(key)
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
        """Base and scaling where only Llama 3's scaling can be computed."""
        theta, scaling = self.rope_rule(types=("default", "llama3"))
        assert scaling is None or isinstance(scaling, Llama3RopeScaling)
        return theta, scaling

    def rope_rule(
        self,
        *,
        types: Sequence[str],
        theta: float = 10_000.0,
        positions: int | None = None,
        part: str = "",
        partial: bool = False,
    ) -> tuple[float, RopeScaling | None]:
        """Base and scaling, from the top level or from rope_parameters (transformers 5).

        Args:
          types: values of rope_type that can be computed.
          theta: what an absent rope_theta means.
          positions: what an absent original_max_position_embeddings means.
          part: entry of rope_parameters that holds them; "": rope_parameters itself.
          partial: whether only some channels may be rotated.
        """
        parameters, old = self.section("rope_parameters"), self.section("rope_scaling")
        if part:
            parameters = self.section(part, within=parameters)
        elif nested := sorted(set(get_args(LayerType)) & parameters.keys()):
            self.problems.append(
                f"rope_parameters: got {shown(nested)}, expected one rule for all layers"
            )
        parameters, old = _with_rope_type(parameters), _with_rope_type(old)
        merged = {**old, **parameters}
        differ = sorted(key for key in old.keys() & parameters.keys() if old[key] != merged[key])
        if differ:
            self.problems.append(
                f"rope_scaling: got {shown({key: old[key] for key in differ})}, expected what "
                f"rope_parameters says ({shown({key: merged[key] for key in differ})})"
            )
        place = f"rope_parameters.{part}" if part else "rope_parameters"
        places = {
            f"{place}.rope_theta": parameters.get("rope_theta"),
            "rope_scaling.rope_theta": old.get("rope_theta"),
        }
        theta = self._theta("rope_theta", places, default=theta)
        share = merged.get("partial_rotary_factor", self.raw.get("partial_rotary_factor"))
        if share not in (None, 1, 1.0) and not partial:
            self.problems.append(
                f"partial_rotary_factor: got {shown(share)}, expected 1 (the whole head is rotated)"
            )
        kind = merged.get("rope_type")
        if kind is None or kind == "default":
            return theta, None
        if not isinstance(kind, str) or kind not in types:
            reason = _ROPE_REASONS.get(kind, "") if isinstance(kind, str) else ""
            self.problems.append(
                f"rope_type: got {shown(kind)}, expected {' or '.join(map(repr, types))}{reason}"
            )
            return theta, None
        return theta, self._rope_scaling(kind, merged, positions=positions)

    def sliding_rope_theta(self, default: float) -> float:
        """Base in the sliding layers of a model that has one for each kind of layer."""
        part = self.section("sliding_attention", within=self.section("rope_parameters"))
        kind = _with_rope_type(part).get("rope_type")
        if kind not in (None, "default"):
            self.problems.append(
                f"rope_type: got {shown(kind)} in sliding layers, expected 'default'"
            )
        place = "rope_parameters.sliding_attention.rope_theta"
        return self._theta("rope_local_base_freq", {place: part.get("rope_theta")}, default=default)

    def _theta(self, key: str, elsewhere: Mapping[str, Any], *, default: float) -> float:
        """A base of wavelengths, which two places may state."""
        places = {key: self.raw.get(key), **elsewhere}
        stated = {place: theta for place, theta in places.items() if theta is not None}
        first = next(iter(stated.values()), None)
        if any(value != first for value in stated.values()):
            self.problems.append(f"{key}: got different values, expected one: {shown(stated)}")
        return self.number(key, default, limits=bounds.ROPE_THETA, within={key: first})

    def _rope_scaling(
        self, kind: str, stated: Mapping[str, Any], *, positions: int | None
    ) -> RopeScaling:
        """The scaling that `stated` describes, with the defaults of transformers."""
        needed = {
            "linear": ("factor",),
            "llama3": tuple(f.name for f in dataclasses.fields(Llama3RopeScaling)),
            "yarn": ("factor",),
        }[kind]
        missing = [key for key in needed if stated.get(key) is None]
        if missing:
            self.problems.append(f"rope_type {kind!r} lacks {', '.join(missing)}")

        def number(key: str, default: float) -> float:
            return self.number(key, default, limits=bounds.FACTOR, within=stated)

        self.problems += [
            f"{key} of rope_type {kind!r}: got {shown(value)}, expected no such key: jaxspec does "
            "not know what it changes"
            for key, value in stated.items()
            if value is not None and key not in _ROPE_KEYS
        ]
        factor = number("factor", 1.0)
        if kind == "linear":
            return LinearRopeScaling(factor)
        original = self._original_positions(stated, positions)
        if kind == "llama3":
            low, high = number("low_freq_factor", 1.0), number("high_freq_factor", 4.0)
            if low >= high:
                self.problems.append(
                    f"high_freq_factor: got {high}, expected more than low_freq_factor ({low})"
                )
            return Llama3RopeScaling(factor, low, high, original)
        attention_factor = number("attention_factor", self._yarn_attention(stated, factor))
        if stated.get("attn_factor") is not None:
            served = _yarn_scale(factor) * number("attn_factor", 1.0)
            if not math.isclose(attention_factor, served, rel_tol=1e-6):
                self.problems.append(
                    f"attn_factor: got {shown(stated['attn_factor'])}, with which servers scale by "
                    f"{served:.6g}, and transformers, which ignores it, by {attention_factor:.6g}. "
                    f'To compute what servers compute, add "attention_factor": {served:.6g} beside '
                    "it in config.json"
                )
        return YarnRopeScaling(
            factor=factor,
            attention_factor=attention_factor,
            beta_fast=number("beta_fast", 32.0),
            beta_slow=number("beta_slow", 1.0),
            truncate=self.flag("truncate", True, within=stated),
            original_max_position_embeddings=original,
        )

    def _original_positions(self, stated: Mapping[str, Any], positions: int | None) -> int:
        key = "original_max_position_embeddings"
        inner, outer = stated.get(key), self.raw.get(key)
        if None not in (inner, outer) and inner != outer:
            self.problems.append(f"{key}: got {shown(inner)} and {shown(outer)}, expected one")
        value = outer if inner is None else inner
        return self.integer(key, positions, largest=bounds.POSITIONS, within={key: value})

    def _yarn_attention(self, stated: Mapping[str, Any], factor: float) -> float:
        """YaRN's factor of the scores' root where the file states none, as transformers has it."""
        if not (stated.get("mscale") and stated.get("mscale_all_dim")):
            return _yarn_scale(factor)
        top, bottom = (
            self.number(key, 1.0, limits=bounds.FACTOR, within=stated)
            for key in ("mscale", "mscale_all_dim")
        )
        return _yarn_scale(factor, top) / _yarn_scale(factor, bottom)

    def plain_layers(self, *, key: str = "hidden_act", activation: str = "silu") -> None:
        """Records every layer feature that the models here do not have.

        Args:
          key: entry that names the activation.
          activation: the only one that can be computed.
        """
        raw = self.raw
        if raw.get(key, activation) != activation:
            self.problems.append(f"{key}: got {shown(raw[key])}, expected {activation!r}")
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
        types = self.layer_kinds(types, num_layers=num_layers)
        if "sliding_attention" not in types:
            return {}
        if isinstance(window, bool) or not isinstance(window, int) or window < 1:
            self.problems.append(
                f"sliding_window: got {shown(raw.get('sliding_window'))} with use_sliding_window "
                f"{shown(raw.get('use_sliding_window'))}, expected a positive integer with true, "
                "because layer_types names 'sliding_attention'"
            )
        return {"layer_types": tuple(types), "sliding_window": window}

    def layer_kinds(self, types: Any, *, num_layers: int) -> list[str]:
        """layer_types, or what stands for it, once it has been checked; []: it is not a list."""
        if not isinstance(types, list):
            self.problems.append(f"layer_types: got {shown(types)}, expected a list")
            return []
        other = sorted({str(t) for t in types} - set(get_args(LayerType)))
        if other:
            self.problems.append(
                f"layer_types: got {shown(other)}, expected 'full_attention' or 'sliding_attention'"
            )
        if len(types) != num_layers:
            self.problems.append(f"layer_types: got {len(types)} entries for {num_layers} layers")
        return types

    def causality(self, special: Mapping[str, Any]) -> bool | None:
        """is_causal of a drafter (z-lab), or dflash_config.causal (vLLM); None: neither is set.

        Either name may stand in either place.
        """
        stated = {
            "is_causal": self.raw.get("is_causal"),
            "causal": self.raw.get("causal"),
            "dflash_config.is_causal": special.get("is_causal"),
            "dflash_config.causal": special.get("causal"),
        }
        values = [value for value in stated.values() if value is not None]
        if any(value is not values[0] or not isinstance(value, bool) for value in values):
            self.problems.append(
                f"is_causal: got {shown({k: v for k, v in stated.items() if v is not None})}, "
                "expected true or false, the same under all names"
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


def _yarn_scale(factor: float, weight: float = 1.0) -> float:
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0


def _with_rope_type(rule: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rule of position scaling with its type under the newer name."""
    return {"rope_type": rule["type"], **rule} if "type" in rule else rule


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
    if not exists(path):
        raise ValueError(f"No {path.name} in {path.parent}: expected a Hugging Face model folder.")
    return json_files.read_bytes(path)
