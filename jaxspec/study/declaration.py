"""What a study is: targets x losses x seeds x benchmarks x decoding settings.

A file in ``configs/`` returns one `StudyConfig` from ``get_config()``. Settings are named as on a
command line ("loss.decay") and have Python values. Nothing here touches jax.

>>> study = StudyConfig(
...     name="pair",
...     targets=(StudyTarget("embedded", config="quickstart"),),
...     losses=(
...         StudyLoss("uniform", {"loss.decay": None, "loss.focal": 0.0, "loss.chain": 0.0}),
...         StudyLoss("full", seeds=(0, 1)),
...     ),
... )
>>> [loss.seeds or study.seeds for loss in study.losses]
[(0,), (0, 1)]
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from jaxspec.architectures import require
from jaxspec.config import RunConfig
from jaxspec.names import did_you_mean

Settings = Mapping[str, Any]
"""Settings by name, as in {"loss.decay": None}."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+=-]*")
_SEEDS = ("training.seed", "data.seed")
"""Settings that each seed of a study gives; so no row may."""


@dataclasses.dataclass(frozen=True)
class StudyAnswers:
    """The target's own answers, which its drafters learn from."""

    sources: tuple[str, ...]
    """Data sets whose questions the target answers, as `jaxspec regenerate --source` takes them."""
    options: Settings = dataclasses.field(default_factory=dict)
    """Other options of `jaxspec regenerate`, such as {"temperature": 0.7, "limit": 1000}."""


@dataclasses.dataclass(frozen=True)
class StudyTarget:
    """A target, and the run that its drafters are made with."""

    name: str
    """What results call it."""
    config: str
    """Config of its drafters and their evaluation: a Python file, or a name that `jaxspec configs`
    lists."""
    settings: Settings = dataclasses.field(default_factory=dict)
    """Settings in place of the config's, for training and evaluation."""
    train: str = ""
    """Config that trains the target first; "": it is there already (target.path)."""
    train_settings: Settings = dataclasses.field(default_factory=dict)
    """Settings in place of those of that config."""
    answers: StudyAnswers | None = None
    """What the target answers first, as the text that its drafters learn, except for rows that set
    data.sources; None: they learn what the config says."""


@dataclasses.dataclass(frozen=True)
class StudyLoss:
    """A row of the tables: how drafters are trained, or a kind that needs no training."""

    name: str
    """What results call it."""
    settings: Settings = dataclasses.field(default_factory=dict)
    """Settings in place of those of the target's config."""
    seeds: tuple[int, ...] = ()
    """Its seeds; (): those of the study."""
    untrained: str = ""
    """A kind of drafter that needs no training, such as "ngram"; nothing is trained for this row,
    and it has the study's first seed only. "": a drafter is trained."""


@dataclasses.dataclass(frozen=True)
class StudyDecoding:
    """How drafters are measured."""

    name: str
    """What results call it."""
    settings: Settings = dataclasses.field(default_factory=dict)
    """Settings of the evaluation in place of those of the target's config."""
    losses: tuple[str, ...] = ()
    """Rows that are measured this way; (): all of them."""
    seeds: tuple[int, ...] = ()
    """Seeds of these rows that are measured this way; (): all of them."""


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """A declared grid of trainings and evaluations.

    Raises:
      ValueError: a name that is empty, unusual or given twice, a row that is not there, or a
        setting that a row cannot have.
    """

    name: str
    """Name of the study; its results are in runs/NAME unless --output says otherwise."""
    targets: tuple[StudyTarget, ...]
    """Targets, each with the config of its drafters."""
    losses: tuple[StudyLoss, ...]
    """Rows of the tables, in their order."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of each row: of the parameters, of what training draws and of the order of the data."""
    benchmarks: tuple[str, ...] = ()
    """Data sets whose prompts are decoded, unless a target or a way of decoding sets
    evaluation.benchmarks; (): those of the targets' configs."""
    decodings: tuple[StudyDecoding, ...] = (StudyDecoding("as_configured"),)
    """Decoding settings; each has tables of its own."""
    base: str = ""
    """The row that gains are counted against; "": the first one."""

    def __post_init__(self) -> None:
        for kind in ("targets", "losses", "decodings"):
            names = [row.name for row in getattr(self, kind)]
            require(len(names) >= 1, f"study.{kind} is empty: declare at least one.")
            _check_names(f"study.{kind}", names)
        _check_names("study.name", [self.name])
        losses = [loss.name for loss in self.losses]
        named = [("study.base", self.base)] if self.base else []
        named += [
            (f"study.decodings: {decoding.name}: losses", loss)
            for decoding in self.decodings
            for loss in decoding.losses
        ]
        for place, loss in named:
            require(
                loss in losses,
                f"{place} names {loss!r}, which is none of study.losses ({', '.join(losses)})."
                f"{did_you_mean(loss, losses)}",
            )
        for place, seeds in (
            ("study.seeds", self.seeds),
            *((f"study.losses: {loss.name}: seeds", loss.seeds) for loss in self.losses),
            *((f"study.decodings: {row.name}: seeds", row.seeds) for row in self.decodings),
        ):
            require(len(set(seeds)) == len(seeds), f"{place} holds a seed twice: got {seeds}.")
        require(len(self.seeds) >= 1, "study.seeds is empty: name at least one seed.")
        for row in self.losses:
            require(
                not row.untrained or not (row.settings or row.seeds),
                f"study.losses: {row.name} needs no training (untrained {row.untrained!r}), but "
                "has settings or seeds: leave them out.",
            )
        for way in self.decodings:
            measured = [loss for loss in self.losses if loss.name in (way.losses or losses)]
            found = {seed for loss in measured for seed in self.seeds_of(loss)}
            require(
                found.issuperset(way.seeds),
                f"study.decodings: {way.name}: seeds is {way.seeds}, but its rows have the seeds "
                f"{', '.join(map(str, sorted(found)))}.",
            )
        rows: list[StudyTarget | StudyLoss] = [*self.targets, *self.losses]
        for each in rows:
            for name in set(each.settings) & set(_SEEDS):
                raise ValueError(f"{each.name} sets {name}: name the seeds in study.seeds instead.")
        for decoding in self.decodings:
            for name in decoding.settings:
                require(
                    name.startswith("evaluation."),
                    f"study.decodings: {decoding.name} sets {name}: expected settings of an "
                    "evaluation (evaluation.*).",
                )
        for loss_row in self.losses:
            for name in loss_row.settings:
                require(
                    not name.startswith(("evaluation.", "target.")),
                    f"study.losses: {loss_row.name} sets {name}, but all rows are measured alike: "
                    "set it in study.decodings or study.targets.",
                )

    @property
    def base_loss(self) -> str:
        """The row that gains are counted against."""
        return self.base or self.losses[0].name

    def seeds_of(self, loss: StudyLoss) -> tuple[int, ...]:
        """The seeds of a row."""
        return self.seeds[:1] if loss.untrained else loss.seeds or self.seeds

    def decodings_of(self, loss: StudyLoss, seed: int) -> tuple[StudyDecoding, ...]:
        """How a row's drafter with this seed is measured."""
        return tuple(
            row
            for row in self.decodings
            if loss.name in (row.losses or (loss.name,)) and seed in (row.seeds or (seed,))
        )


def of_seed(seed: int) -> Settings:
    """The settings that a seed of a study gives."""
    return dict.fromkeys(_SEEDS, seed)


def with_settings(run: RunConfig, settings: Settings, *, where: str) -> RunConfig:
    """A run with other values for some settings.

    Args:
      run: the run.
      settings: by name, as they are typed.
      where: what messages call the place that sets them.

    Raises:
      ValueError: a setting that there is not, or values that do not go together.
    """
    nested: dict[str, Any] = {}
    for name, value in settings.items():
        *groups, leaf = name.split(".")
        inside = nested
        for group in groups:
            inside = inside.setdefault(group, {})
        inside[leaf] = value
    try:
        changed: RunConfig = _changed(run, nested, prefix="")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return changed


def _changed(settings: Any, values: Mapping[str, Any], *, prefix: str) -> Any:
    names = [field.name for field in dataclasses.fields(settings)]
    changes = {}
    for name, value in values.items():
        if name not in names:
            raise ValueError(
                f"There is no setting {prefix}{name}.{did_you_mean(name, names)} "
                f"There are: {', '.join(f'{prefix}{other}' for other in names)}."
            )
        present = getattr(settings, name)
        if dataclasses.is_dataclass(present) and isinstance(value, Mapping):
            value = _changed(present, value, prefix=f"{prefix}{name}.")
        elif isinstance(value, Mapping) or dataclasses.is_dataclass(present):
            raise ValueError(
                f"{prefix}{name} cannot be set here: name single settings of a group that the "
                "config has."
            )
        changes[name] = value
    return dataclasses.replace(settings, **changes)


def _check_names(place: str, names: Iterable[str]) -> None:
    seen = set()
    for name in names:
        require(
            bool(_NAME.fullmatch(name)),
            f"{place}: got the name {name!r}; expected letters, digits and any of _ . + = -, since "
            "files are called by it.",
        )
        require(name not in seen, f"{place} has two rows called {name!r}: rename one of them.")
        seen.add(name)
