"""The smallest whole run: a config file, a target folder, and what to look at afterwards."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jax

from jaxspec.checkpoints.huggingface import save_target
from jaxspec.cli.configuration import load_config
from jaxspec.config import RunConfig, TransformerConfig
from jaxspec.data.tokenizer import EMBEDDED_FOLDER
from jaxspec.models.transformer import Transformer

ARCHITECTURE = TransformerConfig(
    vocab_size=1024,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    intermediate_size=24,
    max_position_embeddings=256,
)
STEPS, CHECKPOINT_EVERY = 20, 4

_CONFIG = """
from jaxspec.config import *


def get_config():
    return RunConfig(
        name="tiny",
        target=TargetConfig(path={target!r}),
        drafter=DrafterConfig(block_size=4, target_layer_ids=(0, 1), num_layers=1),
        loss=LossConfig(),
        data=DataConfig(
            sources=("embedded/math",),
            embedded_examples=60,
            sequence_length=128,
            batch_size=8,
            anchors=4,
        ),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        training=TrainingConfig(steps={steps}, log_every=1, checkpoint_every={checkpoint_every}),
    )
"""


def write_target(folder: Path, *, seed: int = 0) -> Path:
    """A random target with the embedded tokenizer, as a user would bring one."""
    model = Transformer(ARCHITECTURE)
    init = jax.jit(lambda key: model.init(key, jax.numpy.zeros((1, 4), "int32"))["params"])
    save_target(folder, ARCHITECTURE, init(jax.random.key(seed)), tokenizer_folder=EMBEDDED_FOLDER)
    return folder


def write_config(file: Path, *, target: Path | str) -> Path:
    """A config file for train.py; its target is a folder, or "embedded"."""
    text = _CONFIG.format(target=str(target), steps=STEPS, checkpoint_every=CHECKPOINT_EVERY)
    file.write_text(text, encoding="utf-8")
    return file


def read_config(file: Path) -> RunConfig:
    """The same run for `train`."""
    return load_config(file)


OF_THE_MACHINE = {"tokens_per_s", "seconds_per_step", "memory_bytes", "mfu"}


def rows(workdir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the machine."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if key not in OF_THE_MACHINE}
        for line in lines
    ]


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, with a digest of what it holds."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def saved_steps(workdir: Path) -> set[int]:
    """Steps of the checkpoints on disk."""
    return {int(entry.name) for entry in (workdir / "checkpoints").iterdir() if entry.is_dir()}
