"""Odd values on command lines, one at a time, each command run to its end.

The outcome must be a result, or status 2 and one message. Every case runs in this process, except
those that a limit must stop before the compiler sees them: with ``--slow``, these run in separate
processes, which the compiler could end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import signal
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from jaxspec.cli.configuration import run_as_command
from jaxspec.cli.main import dispatch
from tests.training import runs
from tests.trust.outcomes import Ended, Outcomes, run

LONG = "9" * 5000
NOBODY = "~nobody-at-all/x.json"
PATIENCE_SECONDS = 300
FAST = 4
"""Without ``--slow``, one case in this many is tried."""

REFUSED: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {
        "drafter.block_size": ("1", "-1", "1000000000", "257", "nan", "", "²", LONG),
        "drafter.num_heads": ("-1", "1000000000"),
        "drafter.num_kv_heads": ("-1", "3"),
        "drafter.head_dim": ("-2", "7", "inf"),
        "drafter.num_layers": ("0", "-1", "1000000000"),
        "drafter.mask_token_id": ("-1", "1024", str(10**30)),
        "drafter.target_layer_ids": ("-1", "2", str(10**30)),
        "drafter.rope_theta": ("-1", "nan", "inf", "1e39"),
        "drafter.chunk_blocks": ("-1", "3"),
        "data.batch_size": ("0", "-1", "7", str(10**30)),
        "data.sequence_length": ("0", "-1", "1000000000", "1e9"),
        "data.anchors": ("0", "-1", str(10**30)),
        "data.seed": ("-1", "99999999999999999999"),
        "data.sources": ("", "nope", "é", "/", "absent/folder"),
        "data.tokenizer": ("absent", "/dev/null", "n" * 300),
        "optimizer.learning_rate": ("0", "-1", "nan", "inf", "1e39", ""),
        "optimizer.weight_decay": ("-0.1", "nan"),
        "optimizer.clip_norm": ("-1", "inf"),
        "optimizer.b1": ("1", "-1", "nan"),
        "optimizer.eps": ("-1e-8", "nan", "1e30"),
        "loss.chain": ("inf", "-1"),
        "loss.decay": ("0", "-1", "nan"),
        "loss.extra": ("forward_kl=nan", "forward_kl=-1", "é", "=1"),
        "mesh.data": ("0", "-2", "3", "1000000000"),
        "training.seed": ("-1", str(1 << 32), "99999999999999999999"),
        "training.steps": ("0", "-1", "1000000000", "2.5", "two"),
        "training.gradient_accumulation": ("0", "3", "1000000000"),
        "training.capture_tolerance": ("-1", "nan"),
        "target.path": ("", "absent", "/dev/null", "n" * 300),
        "target.dtype": ("float16", ""),
        "config": ("", "absent.py", "/dev/null", "/", "n" * 300 + ".py", "é.py"),
        "workdir": ("/proc/x", "/dev/null", "/dev/null/x", "n" * 300, NOBODY),
    },
    "eval": {
        "evaluation.temperature": ("-1", "nan", "inf", "1e-45"),
        "evaluation.top_p": ("0", "2", "nan"),
        "evaluation.min_p": ("-1", "2", "nan"),
        "evaluation.top_k": ("-1", str(10**30)),
        "evaluation.strategy": ("nope",),
        "evaluation.calibration_prompts": ("0", "-1"),
        "evaluation.tree_nodes": ("-1", "1000000000"),
        "evaluation.chains": ("-1", "1000000"),
        "evaluation.adaptive_sizes": ("0", "1000000000"),
        "evaluation.block_size": ("1", "1000000000"),
        "evaluation.batch_size": ("0", "1000000"),
        "evaluation.max_new_tokens": ("0", "1000000000"),
        "evaluation.timing_repeats": ("0", "1000000000"),
        "evaluation.denoising_passes": ("0", "1000000000"),
        "evaluation.seed": ("-1", "99999999999999999999"),
        "evaluation.benchmarks": ("", "nope", "é"),
        "diffusion.threshold": ("0", "nan"),
        "diffusion.guidance": ("-1", "nan"),
        "drafters": ("nope", "é", LONG),
        "output": ("", "x.txt", "/proc/x.json", "/", "/dev/null/x.json", "n" * 300 + ".json"),
        "workdir": (NOBODY,),
    },
    "plan": {
        "data.batch_size": ("0", "7", str(10**30)),
        "topology": ("nope", "é"),
        "target.path": ("", "absent"),
    },
    "export": {
        "format": ("nope", ""),
        "output": ("/proc/x", "/dev/null", "/dev/null/x", "n" * 300, NOBODY),
        "workdir": ("", "absent", "/dev/null", NOBODY),
    },
    "regenerate": {
        "split": ("test", "nope"),
        "source": ("", "nope", "/"),
        "target.path": ("absent", "/dev/null", NOBODY),
        "output": (NOBODY,),
    },
    "calibrate": {
        "prompts": ("0", "-1"),
        "evaluation.seed": ("99999999999999999999",),
        "diffusion.factor": ("0", "nan"),
        "output": (NOBODY,),
    },
}
"""Command -> option -> values that it has to refuse."""
WORKING: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {
        "drafter.block_size": ("2",),
        "optimizer.learning_rate": ("1e-30",),
        "optimizer.clip_norm": ("0", "1e38"),
        "loss.decay": ("inf", "1e-30", "None"),
        "training.seed": (str((1 << 32) - 1),),
        "training.log_every": ("100000000",),
        "name": ("", "é" * 300, "a/b\n\x1b[2J"),
    },
    "eval": {
        "evaluation.prompts": ("1000000000000",),
        "evaluation.temperature": ("1e30",),
        "evaluation.top_k": ("1", "16000000"),
        "evaluation.seed": (str((1 << 32) - 1),),
        "evaluation.max_prompt_tokens": ("1000000000",),
    },
}
"""The same for values that are odd, but right."""
ABORTED = ("drafter.block_size", "data.sequence_length", "drafter.num_layers", "drafter.num_heads")
"""Options whose largest values once reached the compiler."""


@dataclasses.dataclass(frozen=True)
class Place:
    """The files that the commands work on."""

    folder: Path
    config: Path
    target: Path
    run: Path

    def arguments(self, command: str, option: str, value: str) -> list[str]:
        """A short command line that works, with one value changed."""
        new = self.folder / f"new{len(list(self.folder.iterdir()))}"
        common = {"config": str(self.config)}
        options: dict[str, str] = {
            "train": {
                **common,
                "workdir": str(new),
                "training.steps": "2",
                "training.export": "False",
            },
            "eval": {
                **common,
                "output": str(new / "results.json"),
                "drafters": "none",
                "evaluation.benchmarks": "embedded/math",
                "evaluation.prompts": "1",
                "evaluation.max_new_tokens": "4",
                "evaluation.timing_prompts": "0",
            },
            "plan": common,
            "export": {"workdir": str(self.run), "output": str(new)},
            "regenerate": {
                "target.path": str(self.target),
                "source": "embedded/math",
                "output": str(new),
                "limit": "1",
                "max_new_tokens": "4",
                "unfinished": "keep",
            },
            "calibrate": {
                "target.path": str(self.target),
                "source": "embedded/math",
                "output": str(new / "graph.json"),
            },
        }[command]
        options[option] = value
        return [command, *(word for name, text in options.items() for word in (f"--{name}", text))]


def cases(table: dict[str, dict[str, tuple[str, ...]]]) -> Iterator[tuple[str, str, str]]:
    """(command, option, value)"""
    for command, options in table.items():
        for option, values in options.items():
            for value in values:
                yield command, option, value


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A tiny target and a run of two steps that an export can be made of."""
    folder = tmp_path_factory.mktemp("values")
    target = runs.write_target(folder / "target")
    config = runs.write_config(folder / "tiny.py", target=target)
    found = Place(folder=folder / "new", config=config, target=target, run=folder / "run")
    found.folder.mkdir()
    arguments = ["train", "--config", str(config), "--workdir", str(found.run)]
    assert here([*arguments, "--training.steps", "2"]).status == 0
    return found


class Hang(BaseException):
    """A command that does not end."""


def here(arguments: Sequence[str]) -> Ended:
    """Runs a command in this process, as `run` does in another one."""

    def stop(*_: Any) -> None:
        raise Hang

    out, err = io.StringIO(), io.StringIO()
    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE_SECONDS)
    status: int | None
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run_as_command(dispatch, arguments)
    except SystemExit as exit:
        status = exit.code if isinstance(exit.code, int) else 1
    except Hang:
        status = None
    except Exception:
        status = 1
        err.write(traceback.format_exc())
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    return Ended(status, out.getvalue(), err.getvalue())


def count(outcomes: Outcomes, ended: Ended, case: Sequence[str], *, expected: int) -> None:
    """An unexpected status counts as silent: a wrong value passed, or a right one was refused."""
    shown = f"{' '.join(text[:60] for text in case)}: {ended.status}\n{ended.err[-1500:]}"
    outcome = ended.outcome
    if outcome == "clean" and ended.status != expected:
        outcome = "silent"
    outcomes.add(outcome, shown)


def test_values_that_are_refused(place: Place, is_slow: bool) -> None:
    outcomes = Outcomes("command-line values that are refused")
    for case in list(cases(REFUSED))[:: 1 if is_slow else FAST]:
        arguments = place.arguments(*case)
        before = runs.contents(place.folder)
        count(outcomes, here(arguments), case, expected=2)
        if runs.contents(place.folder) != before:
            outcomes.add("silent", f"{case} left something behind")
    outcomes.check()


def test_values_that_are_odd_and_right(place: Place, is_slow: bool) -> None:
    outcomes = Outcomes("command-line values that are odd and right")
    every = list(cases(WORKING))
    for case in every if is_slow else (every[0], every[-3]):
        count(outcomes, here(place.arguments(*case)), case, expected=0)
    outcomes.check()


def test_sizes_that_reached_the_compiler(place: Place, is_slow: bool) -> None:
    if not is_slow:
        pytest.skip("each case needs a separate process: --slow")
    outcomes = Outcomes("sizes in separate processes")
    for case in cases(REFUSED):
        if case[0] == "train" and case[1] in ABORTED and case[2] == "1000000000":
            ended = run(["-m", "jaxspec.cli.main", *place.arguments(*case)])
            count(outcomes, ended, case, expected=2)
    outcomes.check()
