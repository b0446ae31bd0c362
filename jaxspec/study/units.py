"""The units of a study: single commands, in the order in which they are run.

A unit trains a target, has it answer a data set, trains a drafter, or evaluates one. Each is a
command that can also be typed by hand. A drafter's evaluations follow its training at once, so that
the first rows of the tables are there early.

>>> arguments({"loss.decay": None, "data.sources": ("gsm8k", "math")})
('--loss.decay', 'None', '--data.sources', 'gsm8k', 'math')
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxspec.config import RunConfig
from jaxspec.study.declaration import (
    Settings,
    StudyConfig,
    StudyDecoding,
    StudyLoss,
    StudyTarget,
    of_seed,
    with_settings,
)

Kind = Literal["target", "answers", "drafter", "evaluation"]
IsRead = Callable[[str, RunConfig, str], bool]
"""(command, run, setting) -> whether "train" or "eval" reads the setting with this run."""

TARGETS, ANSWERS, DRAFTERS, EVALUATIONS = "targets", "answers", "drafters", "evaluations"
"""Folders of what the units leave, and the first part of their names."""
_STEPS, _EPOCHS = "training.steps", "training.epochs"
REFERENCES = "references"
"""Folder of the targets' own answers to the prompts, which evaluations share."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """One command of a study."""

    name: str
    """Such as "drafters/embedded/full-seed0"."""
    kind: Kind
    _: dataclasses.KW_ONLY
    command: tuple[str, ...]
    """What is typed after "jaxspec"."""
    output: Path
    """The folder or file that it leaves."""
    config: RunConfig
    """What it is made with. Paths of what other units make are the names of those units."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Its options besides those of the config."""
    needs: tuple[str, ...] = ()
    """Names of the units that have to be done first."""
    target: str = ""
    loss: str = ""
    """"": no drafter is trained or measured."""
    seed: int | None = None
    decoding: str = ""

    @property
    def measures_speed(self) -> bool:
        """Whether it times decoding, which other units would disturb.

        A strategy and adaptive sizes are chosen by time, so they decide what is measured.
        """
        settings = self.config.evaluation
        timed = settings.timing_prompts > 0 or settings.strategy == "auto"
        return self.kind == "evaluation" and (timed or bool(settings.adaptive_sizes))


def units_of(
    study: StudyConfig,
    *,
    configs: Mapping[str, RunConfig],
    folder: Path,
    is_read: IsRead,
    changes: Settings | None = None,
) -> list[Unit]:
    """All units of a study; a unit comes after those that it needs.

    Args:
      study: the declaration.
      configs: the configs that it names.
      folder: the study's folder.
      is_read: tells which command reads a setting.
      changes: settings in place of those of all targets, as typed after the command.

    Raises:
      ValueError: settings that there are not, that do not go together, or that no unit reads.
    """
    for name in set(of_seed(0)) & set(changes or {}):
        raise ValueError(f"--{name} cannot be set: change study.seeds, or a row's seeds.")
    units: list[Unit] = []
    read = {
        target.name: {
            name
            for name in changes or {}
            if any(is_read(command, configs[target.config], name) for command in ("train", "eval"))
        }
        for target in study.targets
    }
    by_none = set(changes or {}).difference(*read.values())
    for target in study.targets:
        # One that only other targets read is left out; one that none reads is refused.
        own = {n: v for n, v in (changes or {}).items() if n in read[target.name] | by_none}
        grid = _Target(study, target, configs, folder, is_read, own)
        units += grid.preparations()
        every_seed = [seed for loss in study.losses for seed in study.seeds_of(loss)]
        for seed in dict.fromkeys(every_seed):
            for loss in study.losses:
                if seed in study.seeds_of(loss):
                    if not loss.untrained:
                        units.append(grid.drafter(loss, seed))
                    units += [
                        grid.evaluation(loss, seed, d) for d in study.decodings_of(loss, seed)
                    ]
    return units


def arguments(settings: Settings) -> tuple[str, ...]:
    """Settings as they are typed."""
    return tuple(word for name, value in settings.items() for word in (f"--{name}", *_words(value)))


def in_layers(*layers: Settings) -> dict[str, Any]:
    """Settings of several places; a later one replaces an earlier one.

    The length of a run is given in steps or in epochs, and the later of the two replaces the other:

    >>> in_layers({"training.epochs": 3.0, "data.batch_size": 8}, {"training.steps": 5})
    {'data.batch_size': 8, 'training.steps': 5}

    Raises:
      ValueError: one place gives both.
    """
    found: dict[str, Any] = {}
    for layer in layers:
        added = dict(layer)
        if _STEPS in added and added.get(_EPOCHS):
            raise ValueError(
                f"The length of a run is given in steps or in epochs: got {_STEPS} "
                f"{added[_STEPS]} and {_EPOCHS} {added[_EPOCHS]} in one place. Leave one out."
            )
        if _EPOCHS in added and not added[_EPOCHS] and _STEPS in {**found, **added}:
            del added[_EPOCHS]  # The steps say it already.
        for one, other in ((_STEPS, _EPOCHS), (_EPOCHS, _STEPS)):
            if one in added:
                found.pop(other, None)
        found |= added
    return found


def _with_one_length(settings: Settings) -> Settings:
    """Settings whose steps replace epochs of a config, as `jaxspec train` has it."""
    return {**settings, _EPOCHS: 0.0} if _STEPS in settings else settings


def drafter_name(target: str, loss: str, seed: int) -> str:
    """What a drafter's unit is called."""
    return f"{DRAFTERS}/{target}/{loss}-seed{seed}"


def evaluation_name(target: str, decoding: str, loss: str, seed: int) -> str:
    """What the unit that measures a drafter is called."""
    return f"{EVALUATIONS}/{target}/{decoding}/{loss}-seed{seed}"


@dataclasses.dataclass(frozen=True)
class _Target:
    """One target of a study, and what its units share."""

    study: StudyConfig
    target: StudyTarget
    configs: Mapping[str, RunConfig]
    folder: Path
    is_read: IsRead
    changes: dict[str, Any]

    @property
    def run(self) -> RunConfig:
        return self.configs[self.target.config]

    @property
    def own(self) -> dict[str, Any]:
        """Settings of all of its drafters and evaluations."""
        return in_layers(self.target.settings, self.changes)

    @property
    def trained(self) -> str:
        """Name of the unit that trains the target; "": none does."""
        return f"{TARGETS}/{self.target.name}" if self.target.train else ""

    @property
    def answers(self) -> list[str]:
        """Names of the units that have it answer data sets."""
        found = self.target.answers
        return [f"{ANSWERS}/{self.target.name}/{_plain(s)}" for s in found.sources] if found else []

    def preparations(self) -> list[Unit]:
        """Trains the target, and has it answer, where the study says so."""
        self._refuse_replaced()
        target, units = self.target, []
        if target.train:
            shared = {
                name: value
                for name, value in self.changes.items()
                if name.startswith(_OF_TRAINING) and self.is_read("train", self.target_run, name)
            }
            settings = in_layers(target.train_settings, shared)
            units.append(
                Unit(
                    self.trained,
                    "target",
                    command=(
                        *("train", "--config", target.train),
                        *("--workdir", str(self.folder / self.trained)),
                        *arguments(settings),
                    ),
                    output=self.folder / self.trained,
                    config=with_settings(
                        self.target_run, _with_one_length(settings), where=self._where("train")
                    ),
                    target=target.name,
                )
            )
        if target.answers is not None:
            units += map(self._answers, target.answers.sources, self.answers)
        return units

    @property
    def target_run(self) -> RunConfig:
        """The config that trains the target."""
        return self.configs[self.target.train]

    def _answers(self, source: str, name: str) -> Unit:
        assert self.target.answers is not None
        options = {"source": source, **self.target.answers.options}
        settings = {n: v for n, v in self.own.items() if n in _OF_ANSWERS}
        return Unit(
            name,
            "answers",
            command=(
                *("regenerate", "--config", self.target.config),
                *arguments({**options, **settings, **self._places(real=True, sources=False)}),
                *("--output", str(self.folder / name)),
            ),
            output=self.folder / name,
            config=with_settings(
                self.run,
                {**settings, **self._places(real=False, sources=False)},
                where=self._where("answers"),
            ),
            options=options,
            needs=(self.trained,) if self.trained else (),
            target=self.target.name,
        )

    def drafter(self, loss: StudyLoss, seed: int) -> Unit:
        """Trains a drafter."""
        name = drafter_name(self.target.name, loss.name, seed)
        self._refuse_unread(f"study.losses: {loss.name}", loss.settings, ("train",))
        own = {n: v for n, v in self.own.items() if self.is_read("train", self.run, n)}
        settings = in_layers(own, loss.settings, of_seed(seed))
        answers = [] if "data.sources" in loss.settings else self.answers
        places = {real: self._places(real=real, sources=bool(answers)) for real in (True, False)}
        config = with_settings(
            self.run,
            {**_with_one_length(settings), **places[False]},
            where=f"{loss.name} on {self.target.name}",
        )
        if not config.training.export:
            raise ValueError(
                f"{loss.name} on {self.target.name} sets training.export to False: drafters are "
                "measured from their export. Leave it at True."
            )
        return Unit(
            name,
            "drafter",
            command=(
                *("train", "--config", self.target.config, "--workdir", str(self.folder / name)),
                *arguments({**settings, **places[True]}),
            ),
            output=self.folder / name,
            config=config,
            needs=(*((self.trained,) if self.trained else ()), *answers),
            target=self.target.name,
            loss=loss.name,
            seed=seed,
        )

    def evaluation(self, loss: StudyLoss, seed: int, decoding: StudyDecoding) -> Unit:
        """Measures a drafter on all benchmarks, in one way of decoding."""
        drafter = drafter_name(self.target.name, loss.name, seed)
        name = evaluation_name(self.target.name, decoding.name, loss.name, seed)
        self._refuse_unread(f"study.targets: {self.target.name}", self.own, ("train", "eval"))
        settings = {n: v for n, v in self.own.items() if self.is_read("eval", self.run, n)}
        if self.study.benchmarks and "evaluation.benchmarks" not in self.own:
            settings["evaluation.benchmarks"] = self.study.benchmarks
        settings |= decoding.settings
        places = self._places(real=True, sources=False)
        output = self.folder / f"{name}.json"
        measured: tuple[str, ...] = ("--workdir", str(self.folder / drafter))
        needs = (self.trained,) if self.trained else ()
        if loss.untrained:
            measured = ("--drafters", loss.untrained)
        else:
            needs = (*needs, drafter)
        return Unit(
            name,
            "evaluation",
            command=(
                *("eval", "--config", self.target.config),
                *measured,
                *("--references", str(self.folder / REFERENCES / self.target.name)),
                *("--output", str(output), *arguments({**settings, **places})),
            ),
            output=output,
            config=with_settings(
                self.run,
                {**settings, **self._places(real=False, sources=False)},
                where=f"{decoding.name} on {self.target.name}",
            ),
            options={"drafters": loss.untrained} if loss.untrained else {},
            needs=needs,
            target=self.target.name,
            loss=loss.name,
            seed=seed,
            decoding=decoding.name,
        )

    def _places(self, *, real: bool, sources: bool = True) -> dict[str, Any]:
        """Where other units leave the target and its answers; not `real`: the names of the units.

        Args:
          real: paths, as commands take them.
          sources: whether the answers are wanted too.
        """
        places: dict[str, Any] = {}
        if self.trained:
            place = str(self.folder / self.trained / "export") if real else self.trained
            places["target.path"] = place
        if self.answers and sources:
            places["data.sources"] = tuple(
                str(self.folder / n) if real else n for n in self.answers
            )
        return places

    def _refuse_replaced(self) -> None:
        """Refuses settings whose values the study makes itself."""
        made = [("target.path", "trains the target (train)")] if self.trained else []
        made += [("data.sources", "has the target answer its data sets (answers)")] * bool(
            self.answers
        )
        for name, how in made:
            if name in self.changes:
                where = f"--{name} is given"
            elif name in self.target.settings:
                where = f"{self._where('settings')} sets {name}"
            else:
                continue
            raise ValueError(
                f"{where}, but study.targets: {self.target.name} {how}: leave one of the two out. "
                "(Rows of study.losses may set data.sources.)"
            )
        for name in self.answers:
            if self.answers.count(name) > 1:
                raise ValueError(
                    f"{self._where('answers.sources')} names two data sets whose answers would be "
                    f"in one folder, {name}: rename one of the files."
                )
        given = {"source", "output", "config", *(["target.path"] if self.trained else [])}
        answers = self.target.answers
        for name in given & set(answers.options if answers else ()):
            raise ValueError(
                f"{self._where('answers.options')} sets {name}, which the study gives itself: "
                "leave it out."
            )

    def _refuse_unread(self, where: str, settings: Settings, commands: Sequence[str]) -> None:
        with_settings(self.run, settings, where=where)
        for name in settings:
            if not any(self.is_read(command, self.run, name) for command in commands):
                raise ValueError(
                    f"{where} sets {name}, which jaxspec {' or '.join(commands)} does not read "
                    f"with the config {self.target.config!r}: leave it out."
                )

    def _where(self, field: str) -> str:
        return f"study.targets: {self.target.name}: {field}"


_OF_TRAINING = ("training.", "data.", "optimizer.")
"""Settings of a drafter's training that the training of its target may share."""
_OF_ANSWERS = (
    *("target.dtype", "target.enable_thinking", "target.path"),
    *("data.raw_dir", "data.data_dir", "data.embedded_examples"),
)
"""Settings of a target that `jaxspec regenerate` reads too."""


def _plain(source: str) -> str:
    """A data set's name as that of a folder."""
    return "".join(c if c.isalnum() or c in "_.+=-" else "_" for c in source)


def _words(value: Any) -> tuple[str, ...]:
    if isinstance(value, tuple | list):
        return tuple(map(str, value))
    return (str(value),)
