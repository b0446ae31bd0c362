"""The configuration that a run was started with, read back from its provenance.json.

>>> from_jsonable(float, "inf", where="loss.decay")
inf
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxspec.config import RunConfig
from jaxspec.json_files import read_object


def read_run_config(workdir: Path) -> RunConfig:
    """The configuration that a run was started with.

    Raises:
      ValueError: no provenance.json, or one of another version.
    """
    file = workdir / "provenance.json"
    if not file.is_file():
        raise ValueError(
            f"No run in {workdir}: expected the --workdir of train.py, with provenance.json."
        )
    try:
        return recorded_config(read_object(file)["config"], where="config")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} holds no configuration of a run ({error!r}).") from error


def recorded_config(recorded: Mapping[str, Any], *, where: str) -> RunConfig:
    """The configuration in the record of a run.

    A setting that it lacks, because the run is older, is what jaxspec did at that time. That is the
    default, except that anchors were drawn by row.

    Args:
      recorded: what `jsonable` made of the configuration.
      where: what messages call it.

    Raises:
      ValueError: settings that this version does not know.
    """
    if recorded.get("training", {}).get("task") != "target":  # A target has no anchors.
        data = {"anchor_sampling": "row", **recorded.get("data", {})}
        recorded = {**recorded, "data": data}
    config = from_jsonable(RunConfig, recorded, where=where)
    assert isinstance(config, RunConfig)
    return config


def from_jsonable(kind: Any, value: Any, *, where: str) -> Any:
    """The inverse of `jaxspec.provenance.jsonable` for the types that configurations have.

    Args:
      kind: a dataclass, a tuple, a union, or a plain type, as annotations name them.
      value: what JSON made of it. Fields that it lacks keep their defaults.
      where: what messages call it.

    Raises:
      ValueError: settings that `kind` does not have.
    """
    if _is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        unknown = set(value) - set(hints)
        if unknown:
            raise ValueError(
                f"{where} has settings that this version of jaxspec does not know: "
                f"{', '.join(sorted(unknown))}. Use the version that wrote them."
            )
        fields = {
            name: from_jsonable(hints[name], item, where=f"{where}.{name}")
            for name, item in value.items()
        }
        return kind(**fields)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        member = _member(arguments, value)
        return None if value is None else from_jsonable(member, value, where=where)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            arguments = (arguments[0],) * len(value)
        return tuple(
            from_jsonable(argument, item, where=f"{where}[{index}]")
            for index, (argument, item) in enumerate(zip(arguments, value, strict=True))
        )
    if kind is float and isinstance(value, str):
        return {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[value]
    return value


def _is_dataclass(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _member(arguments: tuple[Any, ...], value: Any) -> Any:
    """The type of a union that `value` was written from.

    An object is of the dataclass that knows all of its fields, and of those the one with the fewest
    others: a record of an older version may lack some.
    """
    kinds = [kind for kind in arguments if kind is not type(None)]
    if isinstance(value, dict):
        fields = {kind: set(typing.get_type_hints(kind)) for kind in kinds if _is_dataclass(kind)}
        fitting = [kind for kind, names in fields.items() if names >= value.keys()]
        return min(fitting or fields or kinds, key=lambda kind: len(fields.get(kind, ())))
    is_list = isinstance(value, list)
    for kind in kinds:
        origin = typing.get_origin(kind) or kind
        if (origin is tuple) if is_list else (origin is type(value)):
            return kind
    return next((kind for kind in kinds if not _is_dataclass(kind)), kinds[0])
