"""`jaxspec plan`: the step's memory from shapes alone."""

from __future__ import annotations

import dataclasses
import importlib.util

import jax
import pytest

from jaxspec.cli import plan as command
from jaxspec.config import (
    DataConfig,
    DrafterConfig,
    MeshConfig,
    RunConfig,
    TargetConfig,
    TrainingConfig,
    TransformerConfig,
)
from jaxspec.training.needs import Needs
from jaxspec.training.plan import MEMORY_BYTES, Plan, compile_plan, topology_devices

CONFIG = RunConfig(
    name="tiny",
    target=TargetConfig(
        path="",
        architecture=TransformerConfig(
            vocab_size=64, hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=32
        ),
    ),
    drafter=DrafterConfig(block_size=4, target_layer_ids=(0, 1), num_layers=1),
    data=DataConfig(sequence_length=16, batch_size=8, anchors=2),
)


def test_sharding_divides_what_each_device_holds():
    whole = compile_plan(dataclasses.replace(CONFIG, mesh=MeshConfig(data=8)))
    split = compile_plan(dataclasses.replace(CONFIG, mesh=MeshConfig(data=1, fsdp=8)))
    assert whole.devices == split.devices == 8
    assert (whole.trained, whole.frozen) == (split.trained, split.frozen)
    # Trained weights and two moments of AdamW, frozen weights; norms stay whole on each device.
    weights = 4 * (3 * whole.trained + whole.frozen)
    assert 0.99 * weights < whole.needs.argument_bytes < 1.05 * weights
    assert 0.99 * weights / 8 < split.needs.argument_bytes < 1.3 * weights / 8


def test_batch_that_does_not_divide_is_refused():
    data = dataclasses.replace(CONFIG.data, batch_size=6)
    with pytest.raises(ValueError, match=r"data.batch_size is 6, which must be a multiple of 8"):
        compile_plan(dataclasses.replace(CONFIG, data=data, mesh=MeshConfig(data=8)))


def test_command_prints_the_plan(tmp_path, capsys):
    config = tmp_path / "tiny.py"
    config.write_text(
        "from tests.cli.test_plan import CONFIG\n\n\ndef get_config():\n    return CONFIG\n"
    )
    arguments = ["--config", str(config), "--mesh.data", "1", "--mesh.fsdp", "8"]
    assert command.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "tiny on 8 x cpu" in printed
    assert "fsdp 8" in printed
    assert "not known for cpu" in printed


def test_time_and_cost_follow_from_the_operations():
    needs = Needs(argument_bytes=0, temporary_bytes=0, operations=8 * 459e12, compile_s=1.0)
    plan = Plan(
        device_kind="TPU v5p", devices=8, mesh={}, rows=1.0, trained=1, frozen=1, needs=needs
    )
    assert plan.seconds_per_step(utilisation=0.5) == 2.0
    training = TrainingConfig(steps=1800)
    options = command.PlanCommand(
        config="",
        run=dataclasses.replace(CONFIG, training=training),
        utilisation=0.5,
        price_per_chip_hour=4.2,
    )
    assert dict(command._time_and_cost(plan, options)) == {
        "time": "60 minutes for 1,800 steps of 2 s, if the chips reach 50% of their peak speed",
        "cost": "8.0 chip-hours x 4.2 = 33.60",
    }


def test_a_share_of_the_speed_is_a_share(tmp_path):
    config = tmp_path / "tiny.py"
    config.write_text(
        "from tests.cli.test_plan import CONFIG\n\n\ndef get_config():\n    return CONFIG\n"
    )
    with pytest.raises(ValueError, match="utilisation"):
        command.main(["--config", str(config), "--utilisation", "1.5"])


def test_unknown_slice_is_refused():
    with pytest.raises(ValueError, match=r"Cannot describe the topology 'v5p:none'"):
        topology_devices("v5p:none")


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: no compiler for a TPU",
)
def test_compiles_for_a_slice_that_is_not_here():
    plan = compile_plan(
        dataclasses.replace(CONFIG, mesh=MeshConfig(data=2, fsdp=4)),
        devices=topology_devices("v5p:2x2x2"),
    )
    assert plan.devices == 8
    assert plan.device_kind in MEMORY_BYTES
    assert jax.default_backend() == "cpu"
