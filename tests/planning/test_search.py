"""Settings that fit a topology, by estimate; and what decoding takes."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from jaxspec.config import DrafterConfig, EvaluationConfig, ExpertsConfig, MeshConfig
from jaxspec.models.registry import make_model
from jaxspec.parallel.chips import CHIPS
from jaxspec.parallel.memory import pool_share
from jaxspec.parallel.mesh import make_mesh
from jaxspec.parallel.rules import Rules, batch_sharding
from jaxspec.planning.decoding import plan_decoding, smallest_tensor
from jaxspec.planning.estimate import Shapes, _gathered, estimate
from jaxspec.planning.minimum import trained_shapes
from jaxspec.planning.search import as_asked, larger_topologies, search, typed, variants
from jaxspec.planning.step import plan_step
from jaxspec.planning.topologies import Topology, parse_topology
from jaxspec.training.tasks.registry import task_of
from jaxspec.training.tasks.task import initialiser
from jaxspec.training.traffic import step_traffic
from tests.cli.test_plan import CONFIG

H100 = CHIPS["H100"]
RUN = dataclasses.replace(
    CONFIG,
    data=dataclasses.replace(CONFIG.data, anchors=16),
    drafter=dataclasses.replace(CONFIG.drafter, remat=True),
)


def of_memory(size: float, chips: int = 8) -> Topology:
    """GPUs with this many bytes that jax can use."""
    chip = dataclasses.replace(H100, memory_bytes=size / pool_share(H100))
    return Topology("small", chip, chips)


def test_every_variant_can_run():
    models = Shapes.of(RUN).task.models
    seen = list(variants(RUN, devices=8, models=models))
    # One key/value head: nothing is split over tensor.
    assert {(run.mesh.data, run.mesh.fsdp, run.mesh.tensor) for run in seen} == {
        (1, 8, 1),
        (2, 4, 1),
        (4, 2, 1),
        (8, 1, 1),
    }
    for run in seen:
        parts = run.mesh.data * run.mesh.fsdp * run.training.gradient_accumulation
        assert run.data.batch_size % parts == 0
        assert not run.loss.chunk_blocks or run.data.anchors % run.loss.chunk_blocks == 0
    fewer = variants(RUN, devices=2, models=models)
    assert {run.training.gradient_accumulation for run in fewer} == {1, 2, 4}


def test_replicating_paths_split_the_batch_only():
    run = dataclasses.replace(RUN, mesh=MeshConfig(path="shard_map"))
    meshes = {(each.mesh.data, each.mesh.fsdp) for each in variants(run, devices=8, models={})}
    assert meshes == {(8, 1)}


def test_tensor_divides_heads():
    target = dataclasses.replace(RUN.target.architecture, num_heads=4, num_kv_heads=4)
    run = dataclasses.replace(RUN, target=dataclasses.replace(RUN.target, architecture=target))
    assert {
        found.mesh.tensor for found in variants(run, devices=8, models=Shapes.of(run).task.models)
    } == {1, 2, 4}


def test_rows_are_split_only_where_nothing_else_fits():
    data = dataclasses.replace(RUN.data, batch_size=1)
    drafter = dataclasses.replace(RUN.drafter, chunk_blocks=8)
    run = dataclasses.replace(RUN, data=data, drafter=drafter)
    models = Shapes.of(run).task.models
    assert {found.mesh.context for found in variants(run, devices=2, models=models)} == set()
    split = list(variants(run, devices=2, models=models, splits_rows=True))
    assert {found.mesh.context for found in split} == {2}
    found, *_ = search(run, of_memory(80e9, chips=2))
    assert "--mesh.context 2" in found.overrides
    whole, *_ = search(run, of_memory(80e9, chips=1))
    assert "context" not in whole.overrides


def test_only_what_hosts_exchange_goes_over_the_network():
    """Gradients over data leave a host, weights over fsdp do not."""
    run = dataclasses.replace(RUN, mesh=MeshConfig(data=2, fsdp=8))
    mesh = {"data": 2, "fsdp": 8, "context": 1, "tensor": 1}
    shapes = Shapes.of(run)

    def seconds(**changes: float) -> float:
        chip = dataclasses.replace(H100, **changes)
        return estimate(shapes, run, mesh=mesh, chip=chip).roofline.terms["interconnect"]

    inside = seconds(network_bandwidth=1e30, link_bandwidth=H100.link_bandwidth)
    between = seconds(link_bandwidth=1e30)
    assert 0 < between < seconds() < inside + between
    # One GPU on each host has the same part of a gradient.
    task = shapes.task
    sent = step_traffic(
        task.objective,
        params=shapes.state.params,
        frozen=task.frozen_shapes,
        rows=run.data.batch_size,
        length=run.data.sequence_length,
        mesh=jax.sharding.AbstractMesh(tuple(mesh.values()), tuple(mesh)),
    ).by_group
    assert set(sent) == {tuple(range(8)), (0, 8), tuple(range(16))}
    expected = sent[0, 8] / 50e9 + sent[tuple(range(8))] / 450e9 + sent[tuple(range(16))] / 400e9
    assert seconds() == pytest.approx(expected)


def test_weights_of_an_estimate_are_those_of_the_compiled_step():
    run = dataclasses.replace(RUN, mesh=MeshConfig(data=2, fsdp=4))
    plan = plan_step(run, topology=parse_topology("8xH100"))
    found = estimate(Shapes.of(run), run, mesh=plan.mesh, chip=H100)
    for kind in ("target", "drafter", "logits"):
        assert found.memory[kind] == plan.memory[kind]
    assert found.memory["optimizer"] == pytest.approx(plan.memory["optimizer"], rel=0.01)
    arithmetic = found.roofline.terms["arithmetic"] * H100.peak_operations
    assert arithmetic == pytest.approx(plan.arithmetic.compiled, rel=0.15)


def test_gathered_layers_have_all_of_their_experts() -> None:
    config = dataclasses.replace(
        CONFIG.target.architecture,
        hidden_size=256,
        num_layers=3,
        num_kv_heads=2,
        intermediate_size=256,
        experts=ExpertsConfig(num_experts=16, per_token=2, width=256),
    )
    model, mesh = make_model(config), make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    shapes = jax.eval_shape(initialiser(model), jax.random.key(0))
    parameters, tokens = (
        jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            *tree_and_shardings,
        )
        for tree_and_shardings in (
            (shapes, Rules().shardings(shapes, mesh)),
            (jax.ShapeDtypeStruct((8, 16), jnp.int32), batch_sharding(mesh)),
        )
    )
    with jax.set_mesh(mesh):
        forward = jax.jit(
            lambda params, tokens: model.apply({"params": params}, tokens).hidden_BSD,
            out_shardings=batch_sharding(mesh),
        )
        needed = forward.lower(parameters, tokens).compile().memory_analysis()
    gathered = _gathered(config, shapes, mesh.shape)
    # Two layers of 16 experts with 3 matrices, of which a device has half of the columns.
    assert gathered > 2 * 16 * 3 * 4 * 256 * 256 / 2
    assert needed is not None
    assert gathered < needed.temp_size_in_bytes < 1.2 * gathered


def test_the_fastest_come_first_and_fit():
    found = search(RUN, of_memory(5e6))
    assert found
    rounded = [float(f"{each.seconds:.2g}") for each in found]
    assert rounded == sorted(rounded)
    assert max(each.estimate.memory_bytes for each in found) <= 0.9 * 5e6
    places = [(each.config.mesh, each.config.training.gradient_accumulation) for each in found]
    assert len(set(places)) == len(places)


def test_less_memory_takes_more_parts():
    def least_parts(size: float) -> int:
        found = search(RUN, of_memory(size))
        return min(each.config.training.gradient_accumulation for each in found)

    one_row = dataclasses.replace(RUN, data=dataclasses.replace(RUN.data, batch_size=64))
    roomy = search(one_row, of_memory(1e9))
    tight = search(one_row, of_memory(2.5e6))
    assert min(each.config.training.gradient_accumulation for each in roomy) == 1
    assert min(each.config.training.gradient_accumulation for each in tight) > 1
    assert search(RUN, of_memory(1e4)) == []
    assert least_parts(1e9) == 1


def test_settings_are_typed_where_they_differ():
    changed = dataclasses.replace(
        RUN,
        mesh=MeshConfig(data=2, fsdp=4, tensor=1),
        training=dataclasses.replace(RUN.training, gradient_accumulation=2),
        drafter=dataclasses.replace(RUN.drafter, remat=False),
    )
    assert typed(changed, RUN) == (
        "--mesh.data 2 --mesh.fsdp 4 --mesh.tensor 1 --training.gradient_accumulation 2 "
        "--drafter.remat False"
    )
    assert typed(dataclasses.replace(RUN, mesh=MeshConfig(data=8)), RUN) == ""


def test_a_split_is_typed_unless_an_open_axis_takes_that_size():
    asked = dataclasses.replace(RUN, mesh=MeshConfig(fsdp=-1))
    found = {
        (each.mesh.data, each.mesh.fsdp): typed(dataclasses.replace(asked, mesh=each.mesh), asked)
        for each in variants(asked, devices=8, models=Shapes.of(asked).task.models)
    }
    assert found == {
        (1, 8): "",
        **{
            (data, 8 // data): f"--mesh.data {data} --mesh.fsdp {8 // data} --mesh.tensor 1"
            for data in (2, 4, 8)
        },
    }


def test_the_runs_own_settings_are_an_estimate_too():
    [own] = as_asked(RUN, parse_topology("8xH100"))
    assert own.overrides == "" and own.config.mesh.data == 8
    assert as_asked(RUN, parse_topology("16xH100")) == []
    assert as_asked(dataclasses.replace(RUN, mesh=MeshConfig(data=3)), of_memory(1e9)) == []


def test_a_larger_slice_is_named():
    # 32 GB of float32, and whole layers that are gathered: too much for 4 chips of 16 GiB.
    large = dataclasses.replace(
        CONFIG.target.architecture, hidden_size=8192, intermediate_size=32_768, num_layers=10
    )
    run = dataclasses.replace(RUN, target=dataclasses.replace(RUN.target, architecture=large))
    assert search(run, parse_topology("v5e:2x2")) == []
    [larger] = larger_topologies(run, parse_topology("v5e:2x2"))
    assert larger.name == "v5e:2x4"
    assert larger_topologies(run, parse_topology("16xH100")) == []


def test_a_batch_that_no_mesh_divides_is_not_a_matter_of_memory():
    run = dataclasses.replace(RUN, data=dataclasses.replace(RUN.data, batch_size=7, anchors=3))
    with pytest.raises(ValueError, match=r"8 devices of small: data.batch_size \(7\) must"):
        search(run, of_memory(1e9))
    assert larger_topologies(run, parse_topology("v5e:2x2")) == []


def test_a_target_is_searched_as_well():
    run = dataclasses.replace(RUN, training=dataclasses.replace(RUN.training, task="target"))
    found = search(run, of_memory(1e9))
    assert found and {each.config.mesh.tensor for each in found} == {1}
    assert {each.config.drafter for each in found} == {run.drafter}
    assert search(run, of_memory(1e4)) == []


def test_decoding_by_hand():
    run = dataclasses.replace(
        CONFIG,
        drafter=DrafterConfig(block_size=4, target_layer_ids=(0, 1), num_layers=1),
        evaluation=EvaluationConfig(batch_size=4, max_prompt_tokens=24, max_new_tokens=36),
    )
    drafted, alone = plan_decoding(run, parse_topology("8xH100"))
    target = 4.0 * (176_576)
    # Keys and values, one head of 32, float32; two layers and one. Prompts of 24 tokens are padded
    # to 128, and with 36 more and two blocks of 4 a cache has a multiple of 64 slots.
    slot = 2 * 32 * 4
    assert alone.weights == {"target": target}
    assert alone.cache_bytes == 192 * 2 * slot
    assert drafted.cache_bytes == 192 * 3 * slot
    # One prompt is read at a time: its caches, and the scores of two heads.
    assert drafted.prompt_bytes == drafted.cache_bytes + 4 * 2 * 128 * 128
    # The 4 rows are spread over as many of the 8 devices.
    assert alone.pass_seconds == (target + alone.cache_bytes) / H100.memory_bandwidth
    assert alone.binding == "memory"
    assert alone.tokens_per_second == 4 / alone.pass_seconds
    room = 0.9 * 0.75 * 80e9 - target - alone.prompt_bytes
    assert alone.most_rows == 4 * (room // alone.cache_bytes)
    assert drafted.fits and drafted.data == 4
    # On two hosts, jaxspec regenerate runs twice and eval.py once.
    drafted, alone = plan_decoding(run, parse_topology("16xH100"))
    assert (drafted.data, drafted.processes, alone.processes) == (4, 1, 2)
    assert alone.tokens_per_second == 2 * 4 / alone.pass_seconds
    assert drafted.tokens_per_second == 4 / drafted.pass_seconds


def test_prompts_that_are_read_together():
    architecture = dataclasses.replace(
        CONFIG.target.architecture, max_position_embeddings=4096, dtype="bfloat16"
    )
    run = dataclasses.replace(
        CONFIG,
        target=dataclasses.replace(CONFIG.target, architecture=architecture, dtype="bfloat16"),
        evaluation=EvaluationConfig(batch_size=512, max_prompt_tokens=4096, max_new_tokens=2048),
        mesh=MeshConfig(data=4),
    )
    # 4,096 positions leave 2,048 for a prompt, of which 4 are read in a pass: one on each device.
    # The kernels for bfloat16 keep scores out of memory.
    for plan in plan_decoding(run, parse_topology("4xH100")):
        assert plan.prompt_bytes == plan.cache_bytes
    one = dataclasses.replace(run, mesh=MeshConfig(data=1))
    for plan in plan_decoding(one, parse_topology("4xH100")):
        assert plan.prompt_bytes == 4 * plan.cache_bytes


def test_decoding_is_planned_on_the_meshes_that_decode():
    for sizes, problem in [
        ({"data": 3}, r"mesh\.data is 3, which does not divide the 8 prompts"),
        ({"tensor": 16}, r"which takes 16 devices, but this process has 8"),
        ({"fsdp": 2}, r"mesh\.fsdp is 2, but decoding is planned for weights that are split over"),
    ]:
        with pytest.raises(ValueError, match=problem):
            plan_decoding(
                dataclasses.replace(RUN, mesh=MeshConfig(**sizes)), parse_topology("8xH100")
            )


@pytest.mark.parametrize("fused", [False, True])
def test_decoding_over_tensor_divides_weights_and_caches(fused: bool) -> None:
    architecture = dataclasses.replace(
        CONFIG.target.architecture, num_heads=4, num_kv_heads=4, fused_projections=fused
    )
    run = dataclasses.replace(
        CONFIG, target=dataclasses.replace(CONFIG.target, architecture=architecture)
    )
    whole = plan_decoding(run, parse_topology("8xH100"))
    split = plan_decoding(
        dataclasses.replace(run, mesh=MeshConfig(tensor=4)), parse_topology("8xH100")
    )
    task = task_of(run).build(run)
    mesh = make_mesh(MeshConfig(data=1, tensor=4), devices=jax.devices()[:4])
    trees = {"target": task.frozen_shapes, "drafter": trained_shapes(task)}
    for one, part in zip(whole, split, strict=True):
        assert (one.data, part.data) == (8, 2)
        assert part.cache_bytes == one.cache_bytes / 4
        for name, size in part.weights.items():
            placed = Rules().shardings(trees[name], mesh)
            assert size == sum(
                4 * math.prod(sharding.shard_shape(leaf.shape))
                for leaf, sharding in zip(
                    jax.tree.leaves(trees[name]), jax.tree.leaves(placed), strict=True
                )
            )
            assert (size > 0.4 * one.weights[name]) == (fused and name == "target")
    with pytest.raises(ValueError, match="its 4 query heads and 4 key/value heads"):
        plan_decoding(dataclasses.replace(run, mesh=MeshConfig(tensor=8)), parse_topology("8xH100"))


def test_the_fewest_devices_of_a_copy_are_found():
    architecture = dataclasses.replace(CONFIG.target.architecture, num_heads=4, num_kv_heads=4)
    run = dataclasses.replace(
        CONFIG,
        target=dataclasses.replace(CONFIG.target, architecture=architecture),
        evaluation=dataclasses.replace(CONFIG.evaluation, batch_size=1),
    )
    one, _ = plan_decoding(run, parse_topology("8xH100"))
    row = one.cache_bytes + one.prompt_bytes
    enough = (sum(one.weights.values()) + row) / 0.9
    assert smallest_tensor(run, of_memory(1.01 * enough)) == 1
    assert smallest_tensor(run, of_memory(0.99 * enough)) == 2
    assert smallest_tensor(run, of_memory(0.3 * enough)) == 4
    assert smallest_tensor(run, of_memory(0.2 * enough)) is None


def test_many_rows_are_bound_by_arithmetic():
    evaluation = dataclasses.replace(
        CONFIG.evaluation, batch_size=4096, max_prompt_tokens=1, max_new_tokens=1
    )
    run = dataclasses.replace(CONFIG, evaluation=evaluation)
    slow = dataclasses.replace(H100, peak_operations=1e11)
    drafted, _ = plan_decoding(run, Topology("slow", slow, 1))
    assert drafted.binding == "arithmetic"
