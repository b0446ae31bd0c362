"""eval.py's command: the output is tried first, and a stopped process says how to continue."""

from __future__ import annotations

import os
import signal
import stat

import pytest

import eval as eval_script
from jaxspec.cli.configuration import INTERRUPTED, USER_MISTAKE, run_as_command
from jaxspec.evals.unfinished import ENDING, Unfinished
from jaxspec.interruption import STOPPED_AND_SAVED

ARGUMENTS = ["--config", "configs/quickstart.py", "--target.path", "nowhere", "--drafters", "ngram"]
SMALL = (
    *("--config", "configs/quickstart.py", "--drafters", "ngram,none"),
    *("--evaluation.benchmarks", "embedded/math", "--evaluation.prompts", "1"),
    *("--evaluation.max_new_tokens", "4", "--evaluation.timing_prompts", "0"),
)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("/proc/x.json", "--output /proc/x.json cannot be written to"),
        ("/dev/full/x.json", "--output /dev/full/x.json cannot be written to"),
        ("{tmp}/file/x.json", "cannot be written to"),
        ("{tmp}/folder.json", "is a folder: name a file in it"),
        ("{tmp}/x.txt", "--output must be a .json file"),
        ("{tmp}/read_only/x.json", "cannot be written to"),
    ],
)
def test_the_output_is_tried_before_the_target(tmp_path, capsys, place, message):
    """The target does not even exist."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "read_only").mkdir()
    (tmp_path / "read_only").chmod(stat.S_IRUSR | stat.S_IXUSR)
    if "read_only" in place and os.access(tmp_path / "read_only", os.W_OK):
        pytest.skip("root may write everywhere")
    output = place.format(tmp=tmp_path)
    assert run_as_command(eval_script.main, [*ARGUMENTS, "--output", output]) == USER_MISTAKE
    err = capsys.readouterr().err
    assert message in err and "nowhere" not in err and len(err.splitlines()) == 1


def test_neighbours_of_the_output_are_tried_too(tmp_path, capsys):
    (tmp_path / "x.md").mkdir()
    arguments = [*SMALL, "--output", str(tmp_path / "x.json")]
    assert run_as_command(eval_script.main, arguments) == USER_MISTAKE
    assert "x.md is a folder, but a file of this name has to be written" in capsys.readouterr().err


@pytest.mark.usefixtures("ctrl_c_raises")
@pytest.mark.parametrize(
    ("number", "status", "word"),
    [
        (signal.SIGTERM, STOPPED_AND_SAVED, "terminated"),
        (signal.SIGINT, INTERRUPTED, "interrupted"),
    ],
)
def test_a_stopped_command_says_how_to_continue(
    tmp_path, capsys, monkeypatch, number, status, word
):
    output = tmp_path / "results.json"
    arguments = [*SMALL, "--output", str(output)]
    before = signal.getsignal(signal.SIGTERM)
    write = Unfinished._write

    def write_and_stop(self, kind, value):
        kept = write(self, kind, value)
        if kind == "row":
            self.rows.append(kept)
            os.kill(os.getpid(), number)
        return kept

    with monkeypatch.context() as patch:
        patch.setattr(Unfinished, "_write", write_and_stop)
        try:
            ended = run_as_command(eval_script.main, arguments)
        except SystemExit as exit_:
            ended = exit_.code
    assert ended == status and signal.getsignal(signal.SIGTERM) == before
    said = capsys.readouterr()
    kept = output.with_suffix(ENDING)
    assert said.err == f"{word}\n"
    assert said.out.endswith(
        f"1 of 2 rows are saved in {kept}. The same command continues from there.\n"
    )
    assert not output.exists()
    assert run_as_command(eval_script.main, arguments) == 0
    assert f"Continuing: 1 of 2 rows are already in {kept}." in capsys.readouterr().out
    assert output.is_file() and not kept.exists()
