"""Fixtures of the tests of jaxspec regenerate: a tiny target, and the command itself."""

import pytest

from jaxspec.cli import regenerate as command
from jaxspec.config import RunConfig, TargetConfig
from tests.training import runs

QUESTIONS = 5


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return runs.write_target(tmp_path_factory.mktemp("regenerate") / "target")


@pytest.fixture
def ask(target, tmp_path, monkeypatch):
    """Calls the command with small settings; returns the folder and what was said."""
    monkeypatch.setattr(command, "_PROGRESS_SECONDS", 1e9)  # a line a shard, however slow

    def call(output="answers", *, stop_after: int | None = None, share=None, **changes):
        settings = {
            "source": "embedded/chat",
            "output": str(tmp_path / output),
            "run": RunConfig(target=TargetConfig(path=str(target))),
            "temperature": 1.0,
            "max_new_tokens": 6,
            "batch_size": 2,
            "shard_prompts": 2,
            "limit": QUESTIONS,
            "unfinished": "keep",  # a random target hardly ever ends a turn
            **changes,
        }
        said: list[str] = []

        def echo(line: str) -> None:
            said.append(line)
            if stop_after is not None and len(said) > stop_after:
                raise KeyboardInterrupt

        folder = command.regenerate(command.RegenerateCommand(**settings), echo=echo, share=share)
        return folder, said

    return call
