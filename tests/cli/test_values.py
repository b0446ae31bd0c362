from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, Literal

import pytest

from jaxspec.cli import values
from jaxspec.cli.configuration import load_config, parse_command, run_as_command
from jaxspec.cli.evaluate import EvalCommand
from jaxspec.cli.main import COMMANDS
from jaxspec.cli.settings import own_options
from jaxspec.cli.train import TrainCommand
from jaxspec.cli.values import (
    REGISTRIES,
    Registry,
    list_problems,
    name_problems,
    type_problems,
)
from jaxspec.config import (
    DataConfig,
    DenoiserConfig,
    DiTConfig,
    MaskedTransformerConfig,
    RunConfig,
    TargetConfig,
    TrainingConfig,
    TransformerConfig,
)
from train import main as train_main


@dataclasses.dataclass(frozen=True)
class Inner:
    """A group of settings."""

    width: int = 3


@dataclasses.dataclass(frozen=True)
class Settings:
    """One field of every kind of type that settings have, and of some that they might have."""

    whole: int = 1
    real: float = 0.5
    flag: bool = False
    text: str = ""
    choice: Literal["a", "b", 3] = "a"
    many: tuple[int, ...] = ()
    pair: tuple[int, str] = (1, "x")
    maybe: float | None = None
    inner: Inner = Inner()
    maybe_inner: Inner | None = None
    table: Mapping[str, int] = dataclasses.field(default_factory=dict)
    call: Callable[[int], int] | None = None
    anything: Any = None


def test_defaults_and_right_values_pass():
    assert list(type_problems(Settings())) == []
    right = Settings(
        whole=-2, real=3, flag=True, choice=3, many=(1, 2), maybe=math.inf, maybe_inner=Inner(4),
        table={"a": 1}, call=abs, anything=object(),
    )  # fmt: skip
    assert list(type_problems(right)) == []


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"whole": 2.5}, "whole: got 2.5 (float), expected int."),
        ({"whole": 2.0}, "whole: got 2.0 (float), expected int."),
        ({"whole": True}, "whole: got True (bool), expected int."),
        ({"whole": None}, "whole: got None, expected int."),
        ({"real": "0.5"}, "real: got '0.5' (str), expected float."),
        ({"real": False}, "real: got False (bool), expected float."),
        ({"flag": 1}, "flag: got 1 (int), expected bool."),
        ({"text": 3}, "text: got 3 (int), expected str."),
        ({"choice": "bb"}, "choice: got 'bb' (str), expected 'a', 'b' or 3. Did you mean 'b'?"),
        ({"choice": 3.0}, "choice: got 3.0 (float), expected 'a', 'b' or 3."),
        ({"many": [1, 2]}, "many: got [1, 2] (list), expected a tuple of int."),
        ({"many": "12"}, "many: got '12' (str), expected a tuple of int."),
        ({"many": (1, 2.5)}, "many[1]: got 2.5 (float), expected int."),
        ({"pair": (1,)}, "pair: got (1,) (tuple), expected a tuple of int, str."),
        ({"pair": (1, 2)}, "pair[1]: got 2 (int), expected str."),
        ({"maybe": "x"}, "maybe: got 'x' (str), expected float or None."),
        ({"inner": None}, "inner: got None, expected Inner."),
        ({"inner": {"width": 3}}, "inner: got {'width': 3} (dict), expected Inner."),
        ({"inner": Inner("x")}, "inner.width: got 'x' (str), expected int."),  # type: ignore[arg-type]
        ({"maybe_inner": Inner(0.5)}, "maybe_inner.width: got 0.5 (float), expected int."),  # type: ignore[arg-type]
        ({"table": ("a", 1)}, "table: got ('a', 1) (tuple), expected Mapping."),
        ({"call": 3}, "call: got 3 (int), expected Callable or None."),
    ],
)
def test_wrong_values_are_explained(wrong, expected):
    assert list(type_problems(Settings(**wrong), prefix="group.")) == [f"group.{expected}"]


def test_every_group_is_looked_into():
    wrong = RunConfig(
        name=3,  # type: ignore[arg-type]
        target=TargetConfig(architecture=TransformerConfig(remat=1)),  # type: ignore[arg-type]
        data=DataConfig(sources=("gsm8k", 7), loss_on="nope"),  # type: ignore[arg-type]
    )
    assert [problem.split(":")[0] for problem in type_problems(wrong)] == [
        "name", "target.architecture.remat", "data.sources[1]", "data.loss_on",
    ]  # fmt: skip


def test_a_class_that_is_derived_from_the_expected_one_passes():
    masked = MaskedTransformerConfig(dtype="float16")  # type: ignore[arg-type]
    found = list(type_problems(RunConfig(target=TargetConfig(architecture=masked))))
    assert found == [
        "target.architecture.dtype: got 'float16' (str), expected 'float32' or 'bfloat16'. "
        "Did you mean 'bfloat16'?"
    ]
    other = DenoiserConfig(architecture=TransformerConfig())  # type: ignore[arg-type]
    (problem,) = type_problems(RunConfig(denoiser=other))
    assert problem.startswith("denoiser.architecture: got TransformerConfig(")
    assert problem.endswith("expected DiTConfig or None.")
    assert list(type_problems(RunConfig(denoiser=DenoiserConfig(architecture=DiTConfig())))) == []


@pytest.fixture
def write_config(tmp_path):
    def write(values: str) -> str:
        file = tmp_path / "demo.py"
        source = f"""
            from jaxspec.config import *

            def get_config():
                return RunConfig({values})
        """
        file.write_text(textwrap.dedent(source), encoding="utf-8")
        return str(file)

    return write


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (
            'training=TrainingConfig(task="nope")',
            "demo.py': training.task: got 'nope' (str), expected 'target', 'drafter' or 'denoiser'",
        ),
        ("training=TrainingConfig(steps=2.5)", "training.steps: got 2.5 (float), expected int."),
        ('data=DataConfig(loss_on="nope")', "data.loss_on: got 'nope' (str), expected 'response'"),
        ("drafter=DrafterConfig(target_layer_ids=[1])", "[1] (list), expected a tuple of int."),
        ("data=None", "data: got None, expected DataConfig."),
        (
            'loss=LossConfig(objective="streek")',
            "loss.objective: got 'streek'",
        ),
        # These break the classes' own checks, before anything can look at the whole.
        (
            'training=TrainingConfig(steps="7")',
            "failed at line 5: training.steps: got '7' (str), expected int.",
        ),
        (
            "data=DataConfig(sources=None)",
            "failed at line 5: data.sources: got None, expected a tuple of str.",
        ),
        (
            'target=TargetConfig(architecture=TransformerConfig(num_heads="4"))',
            "failed at line 5: TransformerConfig.num_heads: got '4' (str), expected int.",
        ),
        ("training=TrainingConfig(step=7)", "failed at line 5: TypeError: TrainingConfig.__init_"),
    ],
)
def test_a_config_file_is_refused_with_field_got_and_expected(
    write_config, tmp_path, capsys, written, expected
):
    file, workdir = write_config(written), tmp_path / "run"
    with pytest.raises(ValueError) as caught:
        load_config(file)
    assert "demo.py" in str(caught.value)
    assert expected in str(caught.value)
    assert run_as_command(train_main, ["--config", file, "--workdir", str(workdir)]) == 2
    assert capsys.readouterr().err.startswith("error: Config file ")
    assert not workdir.exists()


def test_all_problems_of_a_file_are_told_at_once(write_config):
    file = write_config('training=TrainingConfig(steps=2.5, export="no"), name=1')
    with pytest.raises(ValueError) as caught:
        load_config(file)
    assert [line.split(": got")[0].split()[-1] for line in str(caught.value).splitlines()] == [
        "name", "training.steps", "training.export",
    ]  # fmt: skip


def test_names_are_looked_up_in_their_registry():
    run = RunConfig()
    wrong = dataclasses.replace(
        run,
        loss=dataclasses.replace(run.loss, objective="streek"),  # type: ignore[arg-type]
    )
    (problem,) = name_problems(wrong, known=run)
    assert problem.startswith("loss.objective: got 'streek', expected 'cross_entropy', 'd_pace', ")
    assert problem.endswith("Did you mean 'streak'?")
    right = dataclasses.replace(run, loss=dataclasses.replace(run.loss, objective="streak"))
    assert list(name_problems(right, known=run)) == []


@pytest.mark.parametrize("setting", sorted(REGISTRIES))
def test_registries_hold_the_defaults(setting):
    assert values.value_of(RunConfig(), setting) in REGISTRIES[setting].names()


@pytest.fixture
def commands_as_names(monkeypatch):
    """The name of a run has to be "auto", or that of a command."""
    registry = Registry("jaxspec.cli.main", "COMMANDS", also=("auto",))
    monkeypatch.setitem(values.REGISTRIES, "name", registry)


@pytest.mark.usefixtures("commands_as_names")
def test_a_command_line_is_held_against_the_registries_too(write_config, capsys):
    file = write_config("")
    arguments = ["--config", file, "--workdir", "w", "--name"]
    for name in ("auto", *COMMANDS):
        command = parse_command(TrainCommand, [*arguments, name], program="train.py")
        assert command.run.name == name
    with pytest.raises(ValueError, match=r"^--name: got 'doktor', .*Did you mean 'doctor'\?$"):
        parse_command(TrainCommand, [*arguments, "doktor"], program="train.py")
    with pytest.raises(ValueError, match=r"demo\.py': name: got 'doktor'"):
        load_config(write_config("name='doktor'"))

    write_config("")
    with pytest.raises(SystemExit):
        parse_command(TrainCommand, ["--config", file, "--help-all"], program="train.py")
    printed = "".join(capsys.readouterr().out.replace("│", "").split())
    assert f"--name{{,auto,{','.join(COMMANDS)}}}" in printed
    with pytest.raises(SystemExit):
        parse_command(TrainCommand, ["--config", file, "--help"], program="train.py")


@pytest.mark.usefixtures("commands_as_names")
def test_a_name_that_stays_is_not_looked_up(monkeypatch):
    monkeypatch.setitem(values.REGISTRIES, "name", Registry("no.such.module", "NAMES"))
    run = RunConfig(training=TrainingConfig(steps=3))
    assert list(name_problems(run, known=RunConfig())) == []


def test_lists_of_names_are_looked_up_too(write_config):
    registry = Registry("jaxspec.cli.main", "COMMANDS")
    assert list(list_problems("kinds", "", Registry("no.such.module", "NAMES"))) == []
    assert list(list_problems("kinds", " train, eval,", registry)) == []
    (problem,) = list_problems("kinds", "train,evil", registry)
    assert problem.startswith(
        "kinds: got 'evil', expected 'calibrate', 'configs', 'doctor', 'eval', "
    )
    assert problem.endswith("Did you mean 'eval'?")
    arguments = ["--config", write_config(""), "--output", "o.json", "--drafters", "none, ngrams"]
    with pytest.raises(ValueError, match=r"^--drafters: got 'ngrams', .*Did you mean 'ngram'\?$"):
        parse_command(EvalCommand, arguments, program="eval.py")


@pytest.mark.parametrize("command", [EvalCommand, TrainCommand])
def test_registries_of_options_are_there(command):
    options = {option.name for option in own_options(command)}
    assert set(command.registries) <= options
    assert all(registry.names() for registry in command.registries.values())
