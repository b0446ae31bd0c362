"""The scripts of scripts/pod against a gcloud that is none: its hosts are folders of this machine.

What the real gcloud answers is not tested here; that the scripts do the right thing with it is.
"""

from __future__ import annotations

import os
import stat
import subprocess
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxspec.interruption import UNREACHABLE

SCRIPTS = Path(__file__).parents[2] / "scripts" / "pod"
HOSTS = 2

# Keeps the state of the slice in CLOUD/state and the hosts in CLOUD/host0, CLOUD/host1. A request
# is granted when it is described for the second time. On a new host, `jaxspec` is CLOUD/program.
GCLOUD = f"""\
#!/usr/bin/env bash
set -eu
printf '%s\\n' "$*" >> "$CLOUD/calls"
# The number in CLOUD/outage says how many of the next calls fail, as when the network is down.
left="$(cat "$CLOUD/outage" 2>/dev/null || echo 0)"
if [ "$left" -gt 0 ]; then
  echo $((left - 1)) > "$CLOUD/outage"
  echo 'ERROR: connection timed out' >&2; exit 1
fi
# CLOUD/refuse_create and CLOUD/refuse_delete: how many of these commands are refused.
refuse="$CLOUD/refuse_$4"
if [ -e "$refuse" ] && [ "$(cat "$refuse")" -gt 0 ]; then
  echo $(($(cat "$refuse") - 1)) > "$refuse"
  echo 'ERROR: HttpError 503: try again' >&2; exit 1
fi
case "$3 $4" in
  'queued-resources describe')
    [ -e "$CLOUD/state" ] || {{ echo 'ERROR: NOT_FOUND: there is none' >&2; exit 1; }}
    cat "$CLOUD/state"
    [ "$(cat "$CLOUD/state")" != WAITING_FOR_RESOURCES ] || echo ACTIVE > "$CLOUD/state" ;;
  'queued-resources create')
    echo WAITING_FOR_RESOURCES > "$CLOUD/state"
    for host in $(seq 0 {HOSTS - 1}); do
      mkdir -p "$CLOUD/host$host/jaxspec/.venv/bin"
      cp "$CLOUD/program" "$CLOUD/host$host/jaxspec/.venv/bin/jaxspec"
      touch "$CLOUD/host$host/jaxspec/.installed"
    done ;;
  'queued-resources delete')
    rm -rf "$CLOUD/state" "$CLOUD"/host* ;;
  'tpu-vm ssh')
    worker="" command=""
    for argument in "$@"; do
      case "$argument" in
        --worker=*) worker="${{argument#--worker=}}" ;;
        --command=*) command="${{argument#--command=}}" ;;
      esac
    done
    [ "$(cat "$CLOUD/state")" = ACTIVE ] || exit 255
    [ "$worker" != all ] || worker="$(seq 0 {HOSTS - 1})"
    status=0
    for host in $worker; do
      (cd "$CLOUD/host$host" && HOME="$PWD" HOST="$host" bash -c "$command") || status=$?
    done
    exit "$status" ;;
esac
"""


@pytest.fixture
def pod(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """pod(SCRIPT, *arguments, program=...) runs one of the scripts."""
    cloud, bin_folder = tmp_path / "cloud", tmp_path / "bin"
    cloud.mkdir()
    bin_folder.mkdir()
    _executable(bin_folder / "gcloud", GCLOUD)
    settings = tmp_path / "pod.env"
    settings.write_text("project=p\nzone=z\nname=slice\ntype=v5p-16\nspot=yes\n")
    environment = {
        **os.environ,
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "CLOUD": str(cloud),
        "POD": str(settings),
        "POD_POLL_SECONDS": "0.1",
    }

    def run(
        script: str, *arguments: str, program: str = "", timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        if program:
            _executable(cloud / "program", "#!/usr/bin/env bash\n" + textwrap.dedent(program))
        return subprocess.run(
            ["bash", str(SCRIPTS / script), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    run.cloud, run.settings = cloud, settings  # type: ignore[attr-defined]
    return run


def _executable(file: Path, text: str) -> None:
    file.write_text(text)
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def _calls(pod: Any, words: str) -> int:
    return sum(words in line for line in (pod.cloud / "calls").read_text().splitlines())


def test_runs_on_every_host_until_done(pod: Any) -> None:
    done = pod(
        "run.sh",
        *("jaxspec", "train", "--name", "it's two words"),
        program='printf "%s|" "$@" > "$CLOUD/arguments$HOST"; echo trained',
    )
    assert done.returncode == 0, done.stderr
    for host in range(HOSTS):
        assert (pod.cloud / f"arguments{host}").read_text() == "train|--name|it's two words|"
        assert (pod.cloud / f"host{host}" / "run.log").read_text() == "trained\n"
    assert _calls(pod, "queued-resources create") == 1
    assert _calls(pod, "--accelerator-type=v5p-16 --runtime-version=v2-alpha-tpuv5 --spot") == 1


def test_continues_after_a_saved_step(pod: Any) -> None:
    done = pod(
        "run.sh",
        *("jaxspec", "train"),
        program="""\
            echo x >> "$CLOUD/starts$HOST"
            [ "$(wc -l < "$CLOUD/starts$HOST")" = 3 ] || exit 75
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("stopped with its step saved") == 2
    assert all((pod.cloud / f"starts{host}").read_text() == "x\n" * 3 for host in range(HOSTS))


def test_a_slice_that_is_taken_away_is_made_again(pod: Any) -> None:
    done = pod(
        "run.sh",
        *("jaxspec", "train"),
        program="""\
            echo x >> "$CLOUD/starts$HOST"
            [ "$(wc -l < "$CLOUD/starts$HOST")" = 1 ] || exit 0
            echo SUSPENDED > "$CLOUD/state"
            exec sleep 2
        """,
    )
    assert done.returncode == 0, done.stderr
    assert "the slice is gone" in done.stdout
    assert _calls(pod, "queued-resources delete") == 1
    assert _calls(pod, "queued-resources create") == 2


@pytest.mark.parametrize("calls", [1, 2, 5])
def test_a_run_outlives_an_outage_of_the_network(pod: Any, calls: int) -> None:
    """Neither an ssh nor a describe that fails says that the slice is gone."""
    done = pod(
        "run.sh",
        *("jaxspec", "train"),
        program=f"""\
            echo x >> "$CLOUD/starts$HOST"
            [ "$HOST" = 1 ] || {{ sleep 0.3; echo {calls} > "$CLOUD/outage"; }}
            sleep 1.5
        """,
    )
    assert done.returncode == 0, done.stderr
    assert "the slice is gone" not in done.stdout
    assert [(pod.cloud / f"starts{host}").read_text() for host in range(HOSTS)] == ["x\n"] * 2
    assert (pod.cloud / "outage").read_text() == "0\n", "it came"


@pytest.mark.parametrize("calls", [1, 3, 6])
def test_what_fails_before_the_start_is_tried_again(pod: Any, calls: int) -> None:
    (pod.cloud / "outage").write_text(f"{calls}\n")
    done = pod("run.sh", *("jaxspec", "train"), program='echo x >> "$CLOUD/starts$HOST"')
    assert done.returncode == 0, done.stderr
    assert [(pod.cloud / f"starts{host}").read_text() for host in range(HOSTS)] == ["x\n"] * 2


def test_a_run_that_is_in_progress_is_waited_for(pod: Any) -> None:
    """Above all, its code is not installed again under it."""
    program = 'echo x >> "$CLOUD/starts$HOST"; sleep 2'
    assert pod("create.sh", program=program).returncode == 0
    assert pod("start.sh", "jaxspec", "train").returncode == 0
    (pod.cloud / "host1" / "jaxspec" / ".installed").unlink()
    done = pod("run.sh", "jaxspec", "train")
    assert done.returncode == 0, done.stderr
    assert [(pod.cloud / f"starts{host}").read_text() for host in range(HOSTS)] == ["x\n"] * 2
    assert _calls(pod, "tpu-vm scp") == 0


def test_every_host_has_to_be_installed(pod: Any) -> None:
    assert pod("create.sh", program="true").returncode == 0
    (pod.cloud / "host1" / "jaxspec" / ".installed").unlink()
    # Nothing is copied here: unpacking fails.
    failed = pod("run.sh", "jaxspec", "train", timeout=300)
    assert failed.returncode == 1
    assert "the installation failed (10 of 10 times in a row)" in failed.stdout
    assert "bash scripts/pod/delete.sh deletes it" in failed.stdout
    assert not (pod.cloud / "host0" / ".local").exists(), "nothing is installed elsewhere"


def test_a_mistake_is_not_tried_again(pod: Any) -> None:
    failed = pod(
        "run.sh",
        *("jaxspec", "train"),
        program='echo x >> "$CLOUD/starts$HOST"; echo "error: no such configuration"; exit 2',
    )
    assert failed.returncode == 2
    assert "error: no such configuration" in failed.stdout
    assert (pod.cloud / "starts0").read_text() == "x\n"


def test_crashes_end_after_three(pod: Any) -> None:
    failed = pod(
        "run.sh",
        *("jaxspec", "train"),
        program='echo x >> "$CLOUD/starts$HOST"; kill -KILL $$',
    )
    assert failed.returncode == 1
    assert (pod.cloud / "starts0").read_text() == "x\n" * 3


def test_start_stop_and_start(pod: Any) -> None:
    program = """\
        trap 'exit 75' TERM
        echo x >> "$CLOUD/starts$HOST"
        while true; do sleep 0.05; done
    """
    created = pod("create.sh", program=program)
    states = [line.rsplit(": ")[-1] for line in created.stdout.splitlines()]
    assert states == ["ABSENT", "WAITING_FOR_RESOURCES", "ACTIVE"]
    assert pod("start.sh", "jaxspec", "train").returncode == 0
    again = pod("start.sh", "jaxspec", "train")
    assert again.returncode == 2
    assert "a run is in progress here" in again.stderr
    _wait(lambda: all((pod.cloud / f"starts{host}").exists() for host in range(HOSTS)))
    assert pod("stop.sh").returncode == 0
    for host in range(HOSTS):
        status = pod.cloud / f"host{host}" / "run.status"
        _wait(lambda status=status: status.exists() and status.read_text() == "75\n")
    assert (pod.cloud / "starts0").read_text() == "x\n"
    assert pod("delete.sh").returncode == 0
    assert not (pod.cloud / "state").exists()


def _wait(is_so: Callable[[], bool]) -> None:
    """Waits at most 20 seconds."""
    end = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("project=p\nzone=z\nname=slice\n", "must set project, zone, name and type"),
        ("project=p\nzone=z\nname=slice\ntype=v9-8\n", "no runtime version is known for type=v9-8"),
    ],
)
def test_wrong_settings(pod: Any, settings: str, words: str) -> None:
    pod.settings.write_text(settings)
    failed = pod("create.sh")
    assert failed.returncode == 2
    assert words in failed.stderr


def test_no_settings(pod: Any) -> None:
    pod.settings.unlink()
    failed = pod("create.sh")
    assert failed.returncode == 2
    assert "copy scripts/pod/settings.env.example" in failed.stderr


@pytest.mark.parametrize("script", ["start.sh", "run.sh"])
def test_nothing_to_run(pod: Any, script: str) -> None:
    assert "say what to" in pod(script).stderr


@pytest.mark.parametrize("what", ["create", "delete"])
def test_a_request_that_is_refused_for_a_moment_is_made_again(pod: Any, what: str) -> None:
    (pod.cloud / f"refuse_{what}").write_text("3")
    (pod.cloud / "state").write_text("SUSPENDED\n")
    done = pod("create.sh", program="true")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"gcloud did not {what} the request") == 3
    assert _calls(pod, f"queued-resources {what}") == 4


def test_a_request_that_is_always_refused_ends_with_a_message(pod: Any) -> None:
    (pod.cloud / "refuse_create").write_text("99")
    done = pod("create.sh", program="true")
    assert done.returncode == 2
    assert "gcloud has refused to create the request, 10 times in a row" in done.stderr
    assert _calls(pod, "queued-resources create") == 10


def test_a_bucket_that_does_not_answer_is_tried_again(pod: Any) -> None:
    done = pod(
        "run.sh",
        *("jaxspec", "train"),
        program=f"""\
            echo x >> "$CLOUD/starts$HOST"
            [ "$(wc -l < "$CLOUD/starts$HOST")" = 2 ] || exit {UNREACHABLE}
        """,
    )
    assert done.returncode == 0, done.stderr
    assert "ended without a saved step (78), 1 of 3 times in a row" in done.stdout
