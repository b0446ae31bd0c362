"""What a process has compiled for one run serves the next one that does the same."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import jax

from jaxspec.config import LossConfig, MeshConfig
from jaxspec.losses import LossWeights
from jaxspec.parallel.mesh import make_mesh
from jaxspec.parallel.step import spread
from jaxspec.training.loop import train
from jaxspec.training.optimizer import make_optimizer
from jaxspec.training.step import make_body
from jaxspec.training.validation import make_measuring_body
from tests.training import runs, tiny


@contextlib.contextmanager
def lowered() -> Iterator[list[str]]:
    """Names of the functions that jax lowers meanwhile."""
    names: list[str] = []

    def note(event: str, seconds: float, **about: str) -> None:
        if event.endswith("jaxpr_to_mlir_module_duration"):
            names.append(about["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def test_another_seed_and_rate_need_no_new_step(run_config, tmp_path):
    config = run_config
    short = dataclasses.replace(config.training, steps=2, export=False)
    data = dataclasses.replace(config.data, validation=0.1, anchors=3)
    first = dataclasses.replace(config, training=short, data=data)
    other = dataclasses.replace(
        first,
        training=dataclasses.replace(short, steps=3, seed=1),
        optimizer=dataclasses.replace(first.optimizer, learning_rate=1e-3, schedule="constant"),
    )
    with lowered() as names:
        train(first, workdir=tmp_path / "first")
    assert names.count("jit(step)") == 2, "one that trains and one that measures"
    with lowered() as names:
        train(other, workdir=tmp_path / "other")
    assert not {"jit(step)", "jit(create)", "jit(_difference)"} & set(names), names
    assert runs.rows(tmp_path / "other") != runs.rows(tmp_path / "first")


def test_bodies_are_the_same_for_equal_runs_only():
    transform, _ = make_optimizer(tiny.OPTIMIZER, steps=5)
    slower = dataclasses.replace(tiny.OPTIMIZER, learning_rate=1e-4, warmup_fraction=0.5)
    assert make_optimizer(slower, steps=9)[0] is transform
    decayed = dataclasses.replace(tiny.OPTIMIZER, weight_decay=0.2)
    assert make_optimizer(decayed, steps=5)[0] is not transform

    body = make_body(tiny.objective(), transform)
    assert make_body(tiny.objective(), transform) is body
    assert make_body(tiny.objective(), transform, gradient_accumulation=2) is not body
    assert make_body(tiny.objective(anchors=5), transform) is not body
    assert make_body(tiny.objective(LossConfig(objective="tv")), transform) is not body
    assert make_measuring_body(tiny.objective()) is make_measuring_body(tiny.objective())


def test_a_term_of_the_users_is_read_again(tmp_path):
    # As in a notebook: the file is changed between two runs.
    file = tmp_path / "my_terms.py"
    objective = tiny.objective(LossConfig(extra=(f"{file}:constant=1",)))
    assert objective.runs_own_code and not tiny.objective().runs_own_code
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    losses = []
    for value in (1.0, 3.0):
        file.write_text(
            "def constant(slots, *, mask_NG, weights_G):\n"
            f"    return slots.log_p_NG.sum() * 0 + {value}, slots.log_p_NG.sum() * 0 + 1.0\n"
        )
        objective.check()  # As `train` does before its first step.
        transform, state, hyper = tiny.start()
        hyper = hyper.replace(weights=LossWeights.from_config(objective.loss))
        step = spread(make_body(objective, transform), mesh=mesh, path="jit")
        _, metrics = step(state, tiny.target_params(), tiny.batch(), hyper)
        losses.append(float(metrics["loss"][0]))
    assert abs(losses[1] - losses[0] - 2.0) < 1e-4
