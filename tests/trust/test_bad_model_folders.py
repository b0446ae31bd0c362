"""Wrong folders at every door for models: one message, and nothing is left behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.data import templates
from tests.training import runs
from tests.trust.bad_files import MODEL_FOLDERS
from tests.trust.outcomes import Outcomes, is_tried
from tests.trust.test_cli_values import Place, count, here, place

__all__ = ["place"]

ASK = ("--prompt", "Hi.", "--max_new_tokens", "4")


def target_doors(place: Place, model: Path) -> dict[str, list[str]]:
    """Commands that open a target."""
    return {
        "train --target.path": place.arguments("train", "target.path", str(model)),
        "eval --target.path": place.arguments("eval", "target.path", str(model)),
        "regenerate --target.path": place.arguments("regenerate", "target.path", str(model)),
        "generate --target.path": ["generate", "--target.path", str(model), *ASK],
        "parity --target": ["parity", "--target", str(model), "--drafter", str(place.run)],
    }


def drafter_doors(place: Place, model: Path) -> dict[str, list[str]]:
    """Commands that open a drafter."""
    target = str(place.target)
    return {
        "train --drafter.path": place.arguments("train", "drafter.path", str(model)),
        "eval --workdir": [*place.arguments("eval", "workdir", str(model)), "--drafters", "dflash"],
        "generate --drafter": [
            *("generate", "--target.path", target, "--drafter", str(model)),
            *ASK,
        ],
        "parity --drafter": ["parity", "--target", target, "--drafter", str(model)],
    }


@pytest.mark.parametrize("part", ["target", "drafter"])
def test_wrong_model_folders(place: Place, tmp_path: Path, part: str, is_slow: bool) -> None:
    outcomes = Outcomes(f"wrong folders of a {part}")
    good = place.target if part == "target" else place.run / "export"
    doors = target_doors if part == "target" else drafter_doors
    for number, (kind, (make, words)) in enumerate(MODEL_FOLDERS.items()):
        model = tmp_path / kind / "model"
        shutil.copytree(good, model)
        make(model)
        commands = doors(place, model)
        for position, (door, line) in enumerate(commands.items()):
            if not is_slow and not is_tried(position, number, doors=len(commands)):
                continue
            before = runs.contents(place.folder)
            ended = here(line)
            says = all(word in ended.err for word in words)
            count(outcomes, ended, (door, kind), expected=2 if says else -1)
            if runs.contents(place.folder) != before:
                outcomes.add("silent", f"{door}, {kind}: something was left behind")
    outcomes.check()


TEMPLATES: dict[str, tuple[str, tuple[str, ...]]] = {
    "no generation prompt": (templates.NO_PROMPT, ("generation prompt", "Take the model's own")),
    "broken": ("{% for m in messages %}", ("chat_template.jinja", "cannot be read")),
    "refuses": ("{{ raise_exception('never') }}", ("chat_template.jinja", "refused", "never")),
    "empty": ("", ("chat_template.jinja", "is empty")),
}
"""Kind -> a chat template, and what the message has to say."""


def test_wrong_chat_templates(place: Place, tmp_path: Path) -> None:
    outcomes = Outcomes("wrong chat templates")
    for kind, (template, words) in TEMPLATES.items():
        model = tmp_path / kind / "model"
        shutil.copytree(place.target, model)
        (model / "chat_template.jinja").write_text(template)
        for door in target_doors(place, model):
            before = runs.contents(place.folder)
            ended = here(target_doors(place, model)[door])
            says = all(word in ended.err for word in words)
            count(outcomes, ended, (door, kind), expected=2 if says else -1)
            if runs.contents(place.folder) != before:
                outcomes.add("silent", f"{door}, {kind}: something was left behind")
    outcomes.check()
