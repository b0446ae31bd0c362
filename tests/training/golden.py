"""The stored loss trace of the tiny drafter, and how to make it again.

    python -m tests.training.golden

Write it anew only where a change is meant to change the numbers, and say so in the CHANGELOG.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.losses import LossWeights
from jaxspec.training.optimizer import make_optimizer
from jaxspec.training.state import TrainState
from jaxspec.training.step import Hyper, make_body
from tests.training import tiny

FILE = Path(__file__).parent.parent / "golden" / "drafter_trace.json"
COMMAND = "python -m tests.training.golden"
STEPS = 5


def compiled_step(objective: Any = None, **options: Any) -> Any:
    """step(state, frozen, batch, hyper) on one device, without donation."""
    transform, _ = make_optimizer(tiny.OPTIMIZER, steps=STEPS)
    body = make_body(objective or tiny.objective(), transform, **options)
    return jax.jit(
        lambda *arguments: body(*arguments, reduce=lambda tree: tree, vary=lambda tree: tree)
    )


def drafter_trace(step: Any) -> list[dict[str, float]]:
    """Loss, gradient norm and accepted length of the first steps, each on its own batch."""
    transform, rates = make_optimizer(tiny.OPTIMIZER, steps=STEPS)
    state = TrainState.create(tiny.drafter_params(), transform)
    frozen, weights = tiny.target_params(), LossWeights.from_config(tiny.LOSS)
    rows = []
    for index in range(STEPS):
        hyper = Hyper(jnp.float32(rates[index]), jax.random.key(7), weights)
        state, metrics = step(state, frozen, tiny.batch(seed=index), hyper)
        rows.append(
            {
                name: float(metrics[name][0]) / float(metrics[name][1])
                for name in ("loss", "gradient_norm", "cross_entropy", "chain_reward")
            }
        )
    return rows


def main() -> None:
    """Writes the file."""
    trace = {"command": COMMAND, "steps": drafter_trace(compiled_step())}
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(trace, indent=1) + "\n", encoding="utf-8")
    print(f"Written: {FILE.name}")


if __name__ == "__main__":
    main()
