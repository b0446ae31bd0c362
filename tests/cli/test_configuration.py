from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import rich.console
from packaging.version import Version

import jaxspec.architectures
import jaxspec.config
import jaxspec.evaluation_settings
from jaxspec.cli import configuration
from jaxspec.cli.calibrate import CalibrateCommand
from jaxspec.cli.configuration import load_config, parse_command, run_as_command
from jaxspec.cli.evaluate import EvalCommand
from jaxspec.cli.generate import GenerateCommand
from jaxspec.cli.regenerate import RegenerateCommand
from jaxspec.cli.settings import read_settings, setting_names
from jaxspec.cli.train import TrainCommand
from jaxspec.config import RunConfig, TargetConfig, TransformerConfig

ROOT = Path(__file__).parent.parent.parent

CONFIG = """
    from jaxspec.config import RunConfig, TrainingConfig

    def get_config():
        return RunConfig(name="demo", training=TrainingConfig(steps=7))
"""


@pytest.fixture
def write_config(tmp_path):
    def write(source: str, *, name: str = "demo.py") -> Path:
        file = tmp_path / name
        file.write_text(textwrap.dedent(source), encoding="utf-8")
        return file

    return write


def parse_train(*argv: str) -> TrainCommand:
    return parse_command(TrainCommand, argv, program="train.py")


def parse_eval(*argv: str) -> EvalCommand:
    return parse_command(EvalCommand, argv, program="eval.py")


def test_load_config_returns_what_get_config_returns(write_config):
    config = load_config(write_config(CONFIG))
    assert config.name == "demo"
    assert config.training.steps == 7


def test_load_config_leaves_no_module_behind(write_config):
    before = set(sys.modules)
    load_config(write_config(CONFIG))
    assert not [name for name in set(sys.modules) - before if "demo" in name]


@pytest.mark.parametrize(
    ("command", "own"),
    [
        (TrainCommand, ["--workdir", "w"]),
        (EvalCommand, ["--workdir", "w", "--output", "o.json"]),
        (GenerateCommand, []),
        (RegenerateCommand, ["--source", "gsm8k", "--output", "o"]),
        (CalibrateCommand, ["--source", "gsm8k", "--output", "o.json"]),
    ],
)
def test_a_dtype_that_stands_only_in_the_shape_counts(write_config, command, own):
    """Decoding in float32 would take twice the memory of the training, and round otherwise."""
    file = write_config("""
        from jaxspec.config import RunConfig, TargetConfig, TransformerConfig

        def get_config():
            shape = TransformerConfig(dtype="bfloat16")
            return RunConfig(target=TargetConfig(path="t", architecture=shape))
    """)
    line = ["--config", str(file), *own]
    assert parse_command(command, line, program="p").run.target.dtype == "bfloat16"
    typed = parse_command(command, [*line, "--target.dtype", "float32"], program="p")
    assert typed.run.target.dtype == "float32"


def test_two_configs_of_one_name_do_not_meet(write_config, tmp_path):
    (tmp_path / "other").mkdir()
    first = write_config(CONFIG)
    second = write_config(CONFIG.replace("steps=7", "steps=8"), name="other/demo.py")
    assert (load_config(first).training.steps, load_config(second).training.steps) == (7, 8)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 1", "no function get_config"),
        ("get_config = 3", "no function get_config"),
        ("def get_config():\n    return {'steps': 3}", "RunConfig: got dict"),
        ("def get_config():\n    return None", "RunConfig: got NoneType"),
        ("def get_config(:", "line 1: SyntaxError"),
        ("import nothing_like_this", "line 1: ModuleNotFoundError"),
        ("\ndef get_config():\n    return undefined", "line 3: NameError"),
        (
            "from jaxspec.config import TrainingConfig\ndef get_config():\n"
            "    return TrainingConfig(steps=0)",
            "line 3: ValueError: training.steps must be at least 1: got 0",
        ),
    ],
)
def test_broken_configs_are_explained(write_config, source, expected):
    with pytest.raises(ValueError) as caught:
        load_config(write_config(source))
    assert expected in str(caught.value)
    assert "demo.py" in str(caught.value)


@pytest.mark.parametrize("command", [CalibrateCommand, GenerateCommand, RegenerateCommand])
@pytest.mark.parametrize("config", [["--config", ""], ["--config="]])
def test_an_empty_config_is_none_where_none_is_needed(command, config):
    words = ["--target.path", "x"]
    if command is not GenerateCommand:
        words += ["--source", "gsm8k", "--output", "o"]
    alone = parse_command(command, words, program="x")
    assert parse_command(command, [*config, *words], program="x") == alone


def test_an_empty_config_is_refused_where_one_is_needed():
    with pytest.raises(ValueError, match="Config file not found: ''"):
        parse_train("--config", "", "--workdir", "w")


def test_missing_config_suggests_the_neighbour(write_config, tmp_path):
    write_config(CONFIG)
    (tmp_path / "train.py").write_text("print('not a configuration')\n")
    with pytest.raises(ValueError, match=r"not found.*Did you mean '.*demo\.py'") as caught:
        load_config(tmp_path / "demmo.py")
    assert "train.py" not in str(caught.value)


def test_config_must_be_python(tmp_path):
    file = tmp_path / "demo.yaml"
    file.write_text("steps: 3", encoding="utf-8")
    with pytest.raises(ValueError, match="Python file"):
        load_config(file)


def test_overrides_are_typed(write_config):
    command = parse_train(
        *("--config", str(write_config(CONFIG)), "--workdir", "w"),
        *("--data.sources", "gsm8k", "math", "--loss.decay", "None", "--loss.focal", "0"),
        *("--training.export", "False", "--drafter.target_layer_ids", "1", "3"),
        *("--data.raw-dir", "x", "--drafter.mask_token_id", "4"),
    )
    run = command.run
    assert command.workdir == "w"
    assert run.training.steps == 7, "the config's own value stays"
    assert run.data.sources == ("gsm8k", "math")
    assert run.loss.decay is None
    assert run.loss.focal == 0.0
    assert isinstance(run.loss.focal, float)
    assert run.loss.label == "chain"
    assert run.training.export is False
    assert run.drafter.target_layer_ids == (1, 3)
    assert run.drafter.mask_token_id == 4
    assert run.data.raw_dir == "x"


def test_overrides_of_an_evaluation_are_typed(write_config):
    command = parse_eval(
        *("--config", str(write_config(CONFIG)), "--output", "o.json"),
        *("--data.raw-dir", "x", "--evaluation.temperature=0.5", "--target.enable_thinking"),
        *("False", "--diffusion.num_drafts", "1", "2"),
    )
    run = command.run
    assert run.training.steps == 7, "what is not read stays as well"
    assert run.data.raw_dir == "x"
    assert run.evaluation.temperature == 0.5
    assert run.target.enable_thinking is False
    assert run.diffusion.num_drafts == (1, 2)


def test_no_overrides_give_the_config_itself(write_config):
    file = write_config(CONFIG)
    assert parse_train("--config", str(file), "--workdir", "w").run == load_config(file)
    assert parse_eval("--config", str(file), "--output", "o.json").run == load_config(file)


def test_infinite_decay_can_be_typed(write_config):
    file = write_config(CONFIG)
    run = parse_train("--config", str(file), "--workdir", "w", "--loss.decay", "inf").run
    assert run.loss.decay == float("inf")


def test_settings_of_a_nested_architecture(write_config):
    file = write_config(
        """
        from jaxspec.config import RunConfig, TargetConfig, TransformerConfig

        def get_config():
            return RunConfig(target=TargetConfig(architecture=TransformerConfig()))
        """
    )
    run = parse_train(
        *("--config", str(file), "--workdir", "w"), "--target.architecture.num_layers", "9"
    ).run
    assert run.target.architecture is not None
    assert run.target.architecture.num_layers == 9


def test_eval_takes_several_workdirs(write_config):
    config = str(write_config(CONFIG))
    command = parse_eval("--config", config, "--workdir", "a", "b", "--output", "o.json")
    assert command.workdir == ("a", "b")
    assert command.output == "o.json"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data.sources", "a", "--data.sources", "b"],
        ["--loss.extra=forward_kl=0.1", "--training.steps", "3", "--loss.extra=forward_kl=0.2"],
        ["--loss.extra", "forward_kl=0.1", "--loss.extra"],
    ],
)
def test_a_list_is_given_once(write_config, arguments):
    name = arguments[0].split("=")[0]
    with pytest.raises(ValueError, match=f"{name} is given 2 times, .* all values after one"):
        parse_train("--config", str(write_config(CONFIG)), "--workdir", "w", *arguments)


def test_workdirs_are_given_once(write_config):
    words = ["--config", str(write_config(CONFIG)), "--workdir", "a", "--workdir", "b"]
    with pytest.raises(ValueError, match="--workdir is given 2 times"):
        parse_eval(*words, "--output", "o.json")


def test_of_a_value_that_is_given_twice_the_last_counts(write_config):
    words = ["--config", str(write_config(CONFIG)), "--workdir", "w", "--training.steps", "5"]
    run = parse_train(*words, "--data.sources", "a", "--training.steps", "10").run
    assert (run.training.steps, run.data.sources) == (10, ("a",))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--trainng.steps", "3"], "Unknown setting --trainng.steps. Did you mean --training.ste"),
        (["--training.stepz=3"], "Unknown setting --training.stepz. Did you mean --training.steps"),
        (["--work_dir", "x"], "Did you mean --workdir?"),
        (["--qqqqqqqqqq", "1"], "Unknown setting --qqqqqqqqqq. All settings: train.py --help-all"),
        (["stray"], "Unexpected argument 'stray'"),
        (["--training.steps", "3", "4"], "Unexpected argument '4'"),
        (
            ["--target.architecture.num_layers", "3"],
            "target.architecture is None in this config",
        ),
        (
            ["--target.architecture", "None"],
            "--target.architecture cannot be given on a command line",
        ),
        (
            ["-training.steps", "3"],
            "Unknown setting -training.steps. Did you mean --training.steps?",
        ),
        (["-data.raw-dir=x"], "Unknown setting -data.raw-dir. Did you mean --data.raw_dir?"),
        (["-evaluation.seed", "1"], "Did you mean --evaluation.seed?"),
        (["-workdir", "x"], "Unknown setting -workdir. Did you mean --workdir?"),
        (["-training.stepz", "3"], "Did you mean --training.steps?"),
        (["--training", "3"], "--training cannot be given on a command line"),
    ],
)
def test_unknown_settings_are_errors(write_config, arguments, expected):
    with pytest.raises(ValueError) as caught:
        parse_train("--config", str(write_config(CONFIG)), "--workdir", "w", *arguments)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--training.steps", "many"], "'many'"),
        (["--loss.normalize", "rows"], "'rows'"),
    ],
)
def test_values_of_a_wrong_type_exit_with_2(write_config, capsys, arguments, expected):
    with pytest.raises(SystemExit) as caught:
        parse_train("--config", str(write_config(CONFIG)), "--workdir", "w", *arguments)
    assert_refused(caught.value, capsys.readouterr(), expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--training.steps", "0"], "training.steps must be at least 1: got 0."),
        (
            ["--drafter.block_size", "1"],
            "drafter.block_size must be at least 2, as it includes the anchor: got 1.",
        ),
        (["--drafter.num_heads", "-1"], "drafter.num_heads must be at least 0: got -1."),
        (["--data.seed", "9" * 20], f"data.seed must be at most 4,294,967,295: got {'9' * 20}."),
        (["--data.sources"], "data.sources is empty: name at least one data set."),
    ],
)
def test_refused_values_are_one_line(write_config, arguments, expected):
    with pytest.raises(ValueError) as caught:
        parse_train("--config", str(write_config(CONFIG)), "--workdir", "w", *arguments)
    assert str(caught.value) == expected


def test_refused_values_of_an_evaluation_are_one_line(write_config):
    file = str(write_config(CONFIG))
    with pytest.raises(ValueError, match=r"^evaluation.temperature must be finite .*: got nan.$"):
        parse_eval("--config", file, "--output", "o.json", "--evaluation.temperature", "nan")


def assert_refused(exit: SystemExit, printed, expected: str) -> None:
    assert exit.code == 2
    assert printed.out == ""
    # The message may be wrapped inside a frame.
    assert expected.replace(" ", "") in "".join(printed.err.replace("│", "").split())
    assert "Traceback" not in printed.err


@pytest.mark.parametrize("arguments", [[], ["--workdir", "w"], ["--config"]])
def test_missing_options_exit_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        parse_train(*arguments)
    assert caught.value.code == 2
    assert "--config" in capsys.readouterr().err


@pytest.mark.parametrize("parse", [parse_train, parse_eval])
def test_help_all_lists_every_setting_with_the_configs_defaults(write_config, capsys, parse):
    with pytest.raises(SystemExit) as caught:
        parse("--config", str(write_config(CONFIG)), "--help-all")
    assert caught.value.code == 0
    words = capsys.readouterr().out.split()
    command = TrainCommand if parse is parse_train else EvalCommand
    names = [s.name for s in read_settings(RunConfig(), command.reads_now(RunConfig(), []))]
    assert len(names) > 35
    # A group that is None has no settings of its own.
    hidden = {"target.architecture", "drafter.rope_scaling"}
    assert [name for name in names if f"--{name}" not in words and name not in hidden] == []
    others = set(setting_names(RunConfig())) - set(names)
    assert [name for name in others if f"--{name}" in words] == []
    if parse is parse_train:
        steps = words.index("--training.steps")
        assert "INT" in words[steps : steps + 3]
        assert "7)" in words[steps : steps + 20]


def test_help_works_without_a_config(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_train("--help")
    assert caught.value.code == 0
    assert "--training.steps" in capsys.readouterr().out


def test_setting_names_follow_optional_groups_that_are_there():
    with_architecture = RunConfig(target=TargetConfig(architecture=TransformerConfig()))
    names = set(setting_names(with_architecture))
    assert "target.architecture.num_layers" in names
    assert "target.architecture.rope_scaling" in names
    assert "training.steps" in names


@dataclasses.dataclass(frozen=True)
class Raises:
    """A command that fails."""

    error: BaseException

    def __call__(self, argv):
        raise self.error


def test_user_mistakes_are_one_message(capsys, monkeypatch):
    monkeypatch.delenv("JAXSPEC_TRACEBACK", raising=False)
    assert run_as_command(Raises(ValueError("bad thing: got 1")), []) == 2
    assert capsys.readouterr().err == "error: bad thing: got 1\n"


def test_user_mistakes_show_their_origin_on_demand(capsys, monkeypatch):
    monkeypatch.setenv("JAXSPEC_TRACEBACK", "1")
    assert run_as_command(Raises(ValueError("bad thing")), []) == 2
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert "ValueError: bad thing" in printed


def test_mistakes_noticed_by_other_packages_say_so(capsys, monkeypatch):
    monkeypatch.delenv("JAXSPEC_TRACEBACK", raising=False)

    assert run_as_command(lambda argv: Version("not a version").major, []) == 2
    assert "JAXSPEC_TRACEBACK=1" in capsys.readouterr().err


def test_defects_keep_their_traceback():
    with pytest.raises(TypeError, match="defect"):
        run_as_command(Raises(TypeError("defect")), [])


def test_exit_statuses(capsys):
    assert run_as_command(lambda argv: None, []) == 0
    assert run_as_command(lambda argv: 1, []) == 1
    assert run_as_command(lambda argv: len(argv), ["a", "b", "c"]) == 3
    assert run_as_command(Raises(KeyboardInterrupt()), []) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("program", ["train.py", "eval.py"])
def test_entry_points_answer_mistakes_without_jax(program, tmp_path):
    """Status 2, one line, no traceback, and nothing written; jax must not even be imported."""
    (tmp_path / "jax.py").write_text("raise RuntimeError('jax was imported')", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, ROOT / program, "--config", "configs/none.py", "--workdir", "w"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: Config file not found: 'configs/none.py'.")
    assert done.stderr.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["jax.py"]


def test_closed_output_is_no_traceback(tmp_path):
    script = '"$0" "$1" --help | head -n 1; exit "${PIPESTATUS[0]}"'
    done = subprocess.run(
        ["bash", "-c", script, sys.executable, ROOT / "train.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 141)
    assert done.stdout.startswith("usage: train.py")
    assert "Traceback" not in done.stderr


def test_every_setting_has_a_meaning():
    """The help takes it from the string under the field."""
    modules = (jaxspec.architectures, jaxspec.config, jaxspec.evaluation_settings)
    silent = [
        f"{node.name}.{field.target.id}"
        for module in modules
        for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, ast.ClassDef) and node.name != "RunConfig"
        for field, following in zip(node.body, [*node.body[1:], None], strict=True)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and not (isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant))
    ]
    assert not silent


def test_a_reader_that_goes_away_while_rich_prints(monkeypatch):
    dropped = []
    monkeypatch.setattr(configuration, "_drop_output", lambda: dropped.append(True))
    monkeypatch.setattr("os.dup2", lambda *_: None)  # rich redirects standard output.

    def prints(argv):
        try:
            raise BrokenPipeError
        except BrokenPipeError:
            rich.console.Console(file=io.StringIO()).on_broken_pipe()

    assert run_as_command(prints, []) == configuration.OUTPUT_CLOSED
    assert dropped
