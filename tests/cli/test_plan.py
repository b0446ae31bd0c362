"""`jaxspec plan`: memory, time and cost of a step from shapes alone."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from jaxspec.cli import plan as command
from jaxspec.config import (
    DataConfig,
    DrafterConfig,
    MeshConfig,
    RunConfig,
    TargetConfig,
    TransformerConfig,
)
from jaxspec.parallel import memory
from jaxspec.parallel.collectives import read_collectives, wire_bytes_by_kind
from jaxspec.parallel.memory import OutOfMemory
from jaxspec.parallel.mesh import make_mesh
from jaxspec.planning import step
from jaxspec.planning.estimate import Shapes, estimate
from jaxspec.planning.program_costs import program_costs
from jaxspec.planning.run_cost import RunCost
from jaxspec.planning.step import plan_step
from jaxspec.planning.topologies import parse_topology

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


GPUS = ("--topology", "8xH100")


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "tiny.py"
    file.write_text(
        "from tests.cli.test_plan import CONFIG\n\n\ndef get_config():\n    return CONFIG\n"
    )
    return str(file)


def on(mesh: MeshConfig, **training: object) -> RunConfig:
    return dataclasses.replace(
        CONFIG, mesh=mesh, training=dataclasses.replace(CONFIG.training, **training)
    )


def as_cpus_send(expected: Mapping[str, float]) -> dict[str, float]:
    """What the compiler for CPUs makes of this: it reduces whole gradients, in twice the bytes."""
    reduced = expected["all-reduce"] + 2 * expected["reduce-scatter"]
    return {**expected, "all-reduce": reduced, "reduce-scatter": 0.0}


@pytest.fixture(scope="module")
def whole():
    return plan_step(on(MeshConfig(data=8)))


@pytest.fixture(scope="module")
def split():
    return plan_step(on(MeshConfig(data=1, fsdp=8)), topology=parse_topology("8xH100"))


def test_sharding_divides_what_each_device_holds(whole, split):
    assert whole.devices == split.devices == 8
    assert (whole.trained, whole.frozen) == (split.trained, split.frozen)
    # Trained weights and two moments of AdamW, frozen weights; norms stay whole on each device.
    weights = 4 * (3 * whole.trained + whole.frozen)
    assert 0.99 * weights < whole.needs.argument_bytes < 1.05 * weights
    assert 0.99 * weights / 8 < split.needs.argument_bytes < 1.3 * weights / 8


def test_memory_by_kind_sums_up_to_what_the_compiler_says(whole):
    assert sum(whole.memory.values()) == whole.needs.memory_bytes
    assert whole.memory["target"] == 4 * whole.frozen
    assert whole.memory["drafter"] == whole.memory["gradients"] == 4 * whole.trained
    # Two moments and a counter.
    assert 8 * whole.trained <= whole.memory["optimizer"] <= 8 * whole.trained + 64
    # Float32 logits of 2 blocks of 3 drafted slots over 64 ids, and their gradient.
    assert whole.memory["logits"] == 2 * 4 * 2 * 3 * 64


def test_the_state_is_given_away(whole):
    """The new state overwrites the old one: only metrics need room of their own."""
    assert whole.needs.result_bytes < 4096 < whole.memory["drafter"]


def test_every_device_computes_its_share(whole, split):
    assert whole.arithmetic.minimum == split.arithmetic.minimum
    assert whole.arithmetic.minimum == pytest.approx(sum(whole.arithmetic.parts.values()))
    # The compiled program adds what causality hides, and nothing else.
    assert 1.0 < whole.arithmetic.excess < 1.15
    assert whole.arithmetic.compiled == pytest.approx(whole.needs.operations / 8, rel=0.01)


def test_what_is_sent_is_what_is_expected(whole, split):
    gradients = 2 * 7 / 8 * 4 * whole.trained
    assert gradients <= whole.wire["all-reduce"] < 1.05 * gradients
    assert sum(whole.wire.values()) < 1.05 * gradients
    assert sum(whole.wire.values()) < 1.3 * sum(whole.expected_wire.values())


def test_gpus_reduce_a_gradient_to_the_part_of_each(split):
    """The compiler for CPUs, which stands in, reduces all of it on every device."""
    part = 4 * split.trained / 8
    assert split.wire["reduce-scatter"] == 0
    assert split.expected_wire["reduce-scatter"] == pytest.approx(7 * part, rel=0.05)
    assert split.wire["all-reduce"] > 1.9 * split.expected_wire["reduce-scatter"]
    run = on(MeshConfig(data=1, fsdp=8))
    estimated = estimate(Shapes.of(run), run, mesh=split.mesh, chip=split.chip)
    interconnect = split.roofline.terms["interconnect"]
    assert interconnect == estimated.roofline.terms["interconnect"]
    assert interconnect == pytest.approx(sum(split.expected_wire.values()) / 450e9)


@pytest.mark.parametrize("mesh", [MeshConfig(data=1, fsdp=8), MeshConfig(data=2, fsdp=2, tensor=2)])
def test_gpus_send_bfloat16_although_a_cpu_cannot(mesh, monkeypatch):
    """What the compiler for CPUs has widened is counted as the program states it."""
    architecture = dataclasses.replace(CONFIG.target.architecture, num_kv_heads=2)
    config = dataclasses.replace(
        on(mesh),
        target=dataclasses.replace(CONFIG.target, architecture=architecture, dtype="bfloat16"),
        drafter=dataclasses.replace(CONFIG.drafter, dtype="bfloat16"),
    )
    texts = []
    monkeypatch.setattr(
        step, "program_costs", lambda text: texts.append(text) or program_costs(text)
    )
    plan = plan_step(config, topology=parse_topology("8xH100"))
    devices = make_mesh(mesh, devices=jax.devices()[:8])
    traced = step.TracedStep(config, devices)
    by_kind, _ = step._expected_wire(traced, config, devices, scatters=False)
    sent, expected = sum(plan.wire.values()), sum(by_kind.values())
    assert expected < sent < 1.05 * expected
    # What this CPU would send itself.
    [text] = texts
    assert sum(wire_bytes_by_kind(read_collectives(text)).values()) > 1.9 * expected


def test_recomputation_counts_apart():
    drafter = dataclasses.replace(CONFIG.drafter, remat=True)
    config = dataclasses.replace(on(MeshConfig(data=8)), drafter=drafter)
    plan = plan_step(config)
    assert 0 < plan.arithmetic.recomputed <= plan.arithmetic.parts["drafter forward"]
    assert 1.0 < plan.arithmetic.excess < 1.15


def test_a_gpu_is_planned_on_the_cpu(split):
    assert split.name == "8xH100"
    assert split.is_estimate and split.fits
    assert split.available_bytes == 60 * 10**9  # jax takes 75% of 80 GB.
    assert split.roofline.seconds == max(split.roofline.terms.values())
    assert set(split.roofline.terms) == {"arithmetic", "memory", "interconnect"}


def test_the_memory_of_the_machine_that_plans_does_not_count(monkeypatch):
    monkeypatch.setattr(memory, "memory_of", lambda device: 1)
    run, h100 = on(MeshConfig(data=8)), parse_topology("8xH100")
    assert plan_step(run, topology=h100).fits
    small = dataclasses.replace(h100, chip=dataclasses.replace(h100.chip, memory_bytes=1000))
    with pytest.raises(OutOfMemory, match="Attention over 8 rows"):
        plan_step(run, topology=small)


def test_a_gpu_of_this_machine_has_what_jax_took_of_it(monkeypatch, whole):
    gpu = SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": 12_345})
    monkeypatch.setattr(jax, "local_devices", lambda: [gpu])
    assert step._available(None, [gpu]) == 12_345
    # The devices of a CPU share its memory.
    assert whole.available_bytes is None


def test_a_program_that_cannot_be_read_is_counted_as_traced(monkeypatch):
    def unreadable(self):
        raise jax.errors.JaxRuntimeError("INTERNAL: made by a newer compiler")

    monkeypatch.setattr(jax.stages.Compiled, "as_text", unreadable)
    plan = plan_step(on(MeshConfig(data=1, fsdp=8)), topology=parse_topology("8xH100"))
    assert not plan.is_read and plan.traffic is None
    assert plan.arithmetic.compiled == plan.needs.operations / 8
    assert plan.wire == plan.expected_wire
    assert set(plan.roofline.terms) == {"arithmetic", "interconnect"}


def test_batch_that_does_not_divide_is_refused():
    data = dataclasses.replace(CONFIG.data, batch_size=6)
    with pytest.raises(ValueError, match=r"data.batch_size is 6, which must be a multiple of 8"):
        plan_step(dataclasses.replace(CONFIG, data=data, mesh=MeshConfig(data=8)))


def test_a_mesh_that_does_not_divide_the_models_is_refused():
    run = dataclasses.replace(CONFIG, mesh=MeshConfig(data=1, tensor=8))
    with pytest.raises(ValueError, match=r"mesh\.tensor is 8, which does not divide its 2 query"):
        plan_step(run)


def test_command_prints_the_plan(config, capsys):
    arguments = ["--config", config, "--mesh.data", "1", "--mesh.fsdp", "8"]
    assert command.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "tiny on 8 x cpu" in printed
    assert "fsdp 8" in printed
    assert "not known for cpu" in printed


def test_files_hold_what_was_counted(config, tmp_path, capsys):
    written, picture = tmp_path / "plan.json", tmp_path / "plan.svg"
    arguments = ["--config", config, "--topology", "8xh100", "--mesh.data", "1", "--mesh.fsdp"]
    arguments += ["8", "--price-per-chip-hour", "2.5", "--utilisation", "0.5"]
    arguments += ["--training.epochs", "3"]
    assert command.main([*arguments, "--json", str(written), "--picture", str(picture)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "tiny on 8xH100" in printed
    assert "jax takes 75% of the 74.51 GiB of an H100" in printed
    assert "temporaries and traffic are an estimate" in printed.replace("│ │ │ ", "")
    assert "training.epochs is 3: train.py takes as many steps as" in printed
    found = json.loads(written.read_text())
    assert found["provenance"]["config"]["name"] == "tiny"
    assert found["memory"]["total"] == sum(found["memory"]["by_kind"].values())
    assert found["memory"]["is_estimate"] and found["memory"]["fits"]
    least, run = found["roofline"]["seconds"], found["run"]
    assert run["seconds_per_step"] == pytest.approx(2 * least)
    assert run["tokens_per_second"] == pytest.approx(8 * 16 / (2 * least))
    assert run["cost"] == pytest.approx(2.5 * 8 * 1000 * 2 * least / 3600)
    assert found["roofline"]["mfu"] == pytest.approx(2 * run["mfu"])
    drawn = picture.read_text()
    assert drawn.startswith("<?xml") and "</svg>" in drawn


def test_cost_follows_from_the_time():
    cost = RunCost.of(2.0, steps=1800, chips=8, tokens=4096, price=4.2)
    assert (cost.hours, cost.chip_hours, cost.cost) == (1.0, 8.0, 33.6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--utilisation", "1.5"], "utilisation"),
        (["--search"], "--search needs the chips to plan for: add --topology"),
        (["--search", "--decode", "--topology", "8xH100"], "are two different plans"),
        (["--table", "--topology", "8xH100", "--json", "a.json"], "leave --table out"),
        (["--evaluation.batch_size", "8"], "--evaluation.batch_size changes .* Add --decode"),
        ([*GPUS, "--search", "--evaluation.block-size=4"], "--evaluation.block_size changes"),
        (["--best", "1"], "--best changes nothing here: .* Add --search, or leave it out"),
        (
            [*GPUS, "--table", "--best", "1"],
            "--best changes nothing here: .* Add --search, or leave it out",
        ),
        ([*GPUS, "--decode", "--best", "1"], "--best changes nothing here"),
        ([*GPUS, "--decode", "--utilisation", "0.5"], "--utilisation changes .* --decode counts"),
        ([*GPUS, "--decode", "--price-per-chip-hour", "2"], "--price_per_chip_hour changes"),
        ([*GPUS, "--decode", "--loss.focal", "1"], "--loss.focal changes .* is for training"),
        (
            [*GPUS, "--decode", "--optimizer.b2", "0.9"],
            "--optimizer.b2 changes .* for training, .* Leave one of the two out",
        ),
        ([*GPUS, "--decode", "--training.steps", "9"], "--training.steps changes .* for training"),
        ([*GPUS, "--decode", "--data.batch_size", "8"], "--data.batch_size changes nothing here"),
        (["--picture", "a.jpg"], "ends in .png or .svg: got 'a.jpg'"),
        (["--topology", "v5p:none"], "There is no topology 'v5p:none'. Expected a TPU"),
    ],
)
def test_mistakes_are_named(config, arguments, message):
    with pytest.raises(ValueError, match=message):
        command.main(["--config", config, *arguments])


def test_a_step_that_is_too_large_says_what_fits(config, monkeypatch, capsys):
    from jaxspec.planning import topologies

    small = dataclasses.replace(topologies.CHIPS["H100"], memory_bytes=2.5e6 / 0.75)
    monkeypatch.setattr(topologies, "CHIPS", {"H100": small})
    arguments = ["--config", config, "--topology", "8xH100"]
    assert command.main(arguments) == 1
    printed = capsys.readouterr().out
    assert "NOT ENOUGH" in printed
    assert "These settings would fit, by estimate:" in printed
    assert "--mesh.data 1 --mesh.fsdp 8 --mesh.tensor 1" in printed


def test_a_step_that_fits_nowhere_says_so(config, monkeypatch, capsys):
    from jaxspec.planning import topologies

    small = dataclasses.replace(topologies.CHIPS["H100"], memory_bytes=1e4)
    monkeypatch.setattr(topologies, "CHIPS", {"H100": small})
    assert command.main(["--config", config, "--topology", "8xH100"]) == 1
    assert "nor a larger slice of H100" in capsys.readouterr().out


def test_search_prints_and_compiles_the_best(config, capsys):
    arguments = ["--config", config, "--topology", "4xH100", "--search", "--best", "1"]
    assert command.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "settings fit 4xH100 by estimate. The fastest:" in printed
    assert printed.count("tiny on 4xH100") == 1


@pytest.mark.parametrize("too_large", [1, 3])
def test_a_search_tries_the_next_where_an_estimate_was_too_low(
    too_large, config, monkeypatch, capsys
):
    from jaxspec.planning import step

    real, tried = step.plan_step, []

    def plan_step(run, **options):
        tried.append(run)
        if len(tried) <= too_large:
            raise OutOfMemory("larger than the memory of a device")
        return real(run, **options)

    monkeypatch.setattr(step, "plan_step", plan_step)
    arguments = ["--config", config, "--topology", "4xH100", "--search", "--best", "1"]
    assert command.main(arguments) == (1 if too_large == 3 else 0)
    printed = capsys.readouterr().out
    assert printed.count("Too large when compiled: ") == too_large
    assert printed.count("tiny on 4xH100") == (0 if too_large == 3 else 1)
    assert ("None of these 3 fits." in printed) == (too_large == 3)


def test_table_has_a_line_for_each_topology(config, capsys):
    arguments = ["--config", config, "--topology", "8xH100,4xA100", "--table"]
    assert command.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| tiny | 8xH100 | its own |")
    assert lines[3].startswith("| tiny | 4xA100 | its own |")


def test_a_table_goes_on_after_a_topology_that_no_mesh_splits(config, capsys):
    arguments = ["--config", config, "--topology", "8xH100,1xA100", "--table"]
    assert command.main([*arguments, "--data.batch_size", "7"]) == 1
    said = capsys.readouterr()
    assert "No mesh splits the run over the 8 devices of 8xH100" in said.err
    lines = said.out.splitlines()
    assert lines[2].startswith("| tiny | 8xH100 | no mesh |")
    assert lines[3].startswith("| tiny | 1xA100 | its own |")


def test_decoding_is_planned_from_shapes(config, capsys):
    assert command.main(["--config", config, "--topology", "8xH100", "--decode"]) == 0
    printed = capsys.readouterr().out
    assert "Decoding with tiny on 8xH100" in printed
    assert "x tau" in printed
    assert "jax takes 75% of the 74.51 GiB of an H100" in " ".join(printed.split())


def test_what_a_plan_reads_is_accepted(config, monkeypatch):
    planned = []
    for name in ("step", "search", "decoding"):
        monkeypatch.setattr(command, f"_print_{name}", lambda asked, *_: planned.append(asked) or 0)
    command.main(["--config", config, "--loss.focal", "1", "--utilisation", "0.5"])
    command.main(["--config", config, *GPUS, "--search", "--best", "1", "--training.steps", "9"])
    decoding = ["--evaluation.batch_size", "16", "--drafter.num_layers", "2", "--mesh.tensor", "2"]
    command.main(["--config", config, *GPUS, "--decode", "--training.task", "drafter", *decoding])
    step, search, decode = planned
    assert (step.run.loss.focal, step.utilisation, search.best) == (1.0, 0.5, 1)
    assert (decode.run.evaluation.batch_size, decode.run.mesh.tensor) == (16, 2)


def test_steps_on_the_command_line_replace_epochs_of_the_config(tmp_path, monkeypatch):
    """As train.py has it."""
    file = tmp_path / "epochs.py"
    file.write_text(
        "from tests.cli.test_plan import MeshConfig, on\n\n\n"
        "def get_config():\n    return on(MeshConfig(), epochs=3.0, steps=7)\n"
    )
    planned = []
    monkeypatch.setattr(command, "_print_step", lambda asked, *_: planned.append(asked.run) or 0)
    arguments = ["--config", str(file)]
    for options in ([], ["--training.steps", "1000"]):
        command.main([*arguments, *options])
    found = [(run.training.steps, run.training.epochs) for run in planned]
    assert found == [(7, 3.0), (1000, 0.0)]
    with pytest.raises(ValueError, match="in steps or in epochs"):
        command.main([*arguments, "--training.steps", "9", "--training.epochs", "1"])


def test_of_two_settings_that_say_the_same_a_typed_one_counts(config, monkeypatch):
    """Even if it is the default: the config's architecture is given bfloat16 here."""
    file = Path(config).with_name("stored.py")
    file.write_text(
        "import dataclasses\n\nfrom tests.cli.test_plan import CONFIG\n\n\n"
        "def get_config():\n"
        "    shape = dataclasses.replace(CONFIG.target.architecture, dtype='bfloat16')\n"
        "    target = dataclasses.replace(CONFIG.target, architecture=shape, dtype='bfloat16')\n"
        "    return dataclasses.replace(CONFIG, target=target)\n"
    )
    planned = []
    monkeypatch.setattr(command, "_print_step", lambda asked, *_: planned.append(asked.run) or 0)
    names = "target.dtype", "target.architecture.dtype"
    for given in ([], names[:1], names[1:], names):
        command.main(["--config", str(file), *(f"--{name}=float32" for name in given)])
    dtypes = [(run.target.dtype, run.target.architecture.dtype) for run in planned]
    assert dtypes == [("bfloat16",) * 2, *[("float32",) * 2] * 3]
    with pytest.raises(ValueError, match=r"architecture\.dtype is 'bfloat16': leave one"):
        command.main(
            ["--config", str(file), f"--{names[0]}", "float32", f"--{names[1]}", "bfloat16"]
        )


def test_decoding_takes_no_mesh_from_a_config(tmp_path, capsys):
    file = tmp_path / "split.py"
    file.write_text(
        "import dataclasses\n\nfrom tests.cli.test_plan import CONFIG, MeshConfig\n\n\n"
        "def get_config():\n"
        "    return dataclasses.replace(CONFIG, mesh=MeshConfig(data=1, fsdp=-1))\n"
    )
    arguments = ["--config", str(file), "--topology", "8xH100", "--decode"]
    assert command.main(arguments) == 0
    assert "1 of 8 devices" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"mesh\.fsdp is 8, but decoding is planned"):
        command.main([*arguments, "--mesh.fsdp", "-1", "--mesh.data", "1"])


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: no compiler for a TPU",
)
def test_compiles_for_a_slice_that_is_not_here():
    plan = plan_step(on(MeshConfig(data=2, fsdp=4)), topology=parse_topology("v5p:2x2x2"))
    assert plan.devices == 8
    assert plan.chip.name == "v5p" and not plan.is_estimate
    assert jax.default_backend() == "cpu"
