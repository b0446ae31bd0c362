"""The collectives of a program are read from its text: each of them, and each turn of its loops."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from jaxspec.config import MeshConfig
from jaxspec.parallel.collectives import (
    KINDS,
    collectives_of,
    read_collectives,
    ring_bytes,
    wire_bytes_by_kind,
)
from jaxspec.parallel.mesh import make_mesh

TURNS = 3
SIZE = 4 * 16 * 8
"""Bytes of the rows that each device starts a turn with."""


def body(x, _):
    """One collective of each kind, over the two or four devices of an axis."""
    x = jax.lax.ppermute(x, "tensor", [(0, 1), (1, 0)])
    x = jax.lax.all_to_all(x, "fsdp", split_axis=0, concat_axis=0, tiled=True)
    gathered = jax.lax.all_gather(jnp.sin(x), "fsdp", tiled=True)
    x = jax.lax.psum_scatter(jnp.cos(gathered), "fsdp", tiled=True)
    return x + jax.lax.psum(x, "tensor"), None


@pytest.fixture(scope="module")
def compiled():
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    local = jax.shard_map(
        lambda x: jax.lax.scan(body, x, None, length=TURNS)[0],
        mesh=mesh,
        in_specs=P(("fsdp", "tensor")),
        out_specs=P(("fsdp", "tensor")),
        check_vma=False,
    )
    return jax.jit(local).lower(jax.ShapeDtypeStruct((8 * 16, 8), jnp.float32)).compile()


def test_every_kind_counts_once_a_turn(compiled):
    expected = {
        "all-gather": TURNS * 3 * SIZE,
        "all-reduce": TURNS * SIZE,
        "reduce-scatter": TURNS * 3 * SIZE,
        "all-to-all": TURNS * 3 * SIZE / 4,
        "collective-permute": TURNS * SIZE,
    }
    assert wire_bytes_by_kind(collectives_of(compiled)) == expected


def test_without_the_compilers_word_the_counter_of_the_loop_is_read(compiled):
    text = compiled.as_text()
    assert '"known_trip_count":{"n":"3"}' in text
    silent = text.replace('"known_trip_count"', '"unknown"')
    assert read_collectives(silent) == read_collectives(text)
    # A bound that is not a constant.
    unbounded = silent.replace("constant(3)", "parameter(7)")
    with pytest.raises(ValueError, match="does not say how often it turns"):
        read_collectives(unbounded)


def program(line, *, devices=8):
    return f"HloModule step, num_partitions={devices}\nENTRY %main {{\n  ROOT {line}\n}}"


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", 2),
        ("[2,4]<=[4,2]T(1,0)", 4),
        ("[8]<=[8]", 8),
        ("{}", 8),
        ("mesh['a'=2,'b'=4] {'b'}", 4),
        ("mesh['a'=2,'b'=4] {'a', 'b'}", 8),
        ("mesh['a'=2,'b'=4] {'b':(2)2}", 2),
        ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", 4),
    ],
)
def test_groups_are_read_in_every_form(groups, size):
    shape = "bf16[3,5]{1,0:T(8,128)(2,1)}"
    line = f"%a = {shape} all-reduce(%p), replica_groups={groups}, to_apply=%add"
    [collective] = read_collectives(program(line))
    assert collective.group_size == size
    assert collective.wire_bytes == 2 * (size - 1) / size * 30


def test_groups_of_another_form_are_refused():
    with pytest.raises(ValueError, match="groups of a are not understood: 'odd"):
        read_collectives(program("%a = f32[3]{0} all-reduce(%p), replica_groups=odd"))


def test_a_collective_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="not known here: collective-broadcast"):
        read_collectives(program("%a = f32[3]{0} collective-broadcast(%p), replica_groups={}"))


def test_a_collective_in_two_halves_counts_once():
    text = """HloModule step, num_partitions=4
ENTRY %main {
  %p = f32[4]{0} parameter(0)
  %s = (f32[4]{0}, f32[16]{0}) all-gather-start(%p), replica_groups={{0,1,2,3}}, dimensions={0}
  %d = f32[16]{0} all-gather-done(%s)
  %t = ((f32[4]{0}, f32[2]{0}), (f32[16]{0}, f32[8]{0})) all-gather-start(%p, %q), replica_groups={}
  %e = (f32[16]{0}, f32[8]{0}) all-gather-done(%t)
  %u = f32[4]{0} all-reduce-start(%p), replica_groups={}, to_apply=%add
  ROOT %f = f32[4]{0} all-reduce-done(%u)
}"""
    assert [c.result_bytes for c in read_collectives(text)] == [64, 96, 16]


def test_a_collective_spread_over_fusions_counts_once():
    part = (
        "%g = bf16[8]{0} all-gather(%p), channel_id=5, replica_groups={}, frontend_attributes="
        '{chain_id="2"}, backend_config={"async_collective_fusion_config":{"flag_end":"1"}}'
    )
    fusions = "\n".join(f"%part{i} {{\n  ROOT {part}\n}}" for i in range(3))
    calls = "\n".join(
        f"  %f{i} = bf16[8]{{0}} fusion(%p), kind=kOutput, calls=%part{i}" for i in range(3)
    )
    text = f"HloModule step, num_partitions=4\n{fusions}\nENTRY %main {{\n{calls}\n}}"
    [collective] = read_collectives(text)
    assert collective.wire_bytes == ring_bytes("all-gather", 16, group_size=4) == 12


def test_a_program_without_collectives_has_none():
    assert wire_bytes_by_kind([]) == dict.fromkeys(KINDS, 0.0)
    one = jax.jit(lambda x: x @ x).lower(jnp.ones((4, 4))).compile()
    assert collectives_of(one) == []
