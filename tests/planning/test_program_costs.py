"""Arithmetic and memory traffic are read from a program's text, each turn of a loop included."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jaxspec.planning.program_costs import program_costs
from jaxspec.training.needs import matmul_operations

TURNS, ROWS, WIDTH = 5, 16, 32


def layers(x_BD, kernels_LDD):
    return jax.lax.scan(lambda x, kernel: (jnp.sin(x @ kernel), None), x_BD, kernels_LDD)[0]


def text_of(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*arguments).compile().as_text()


def test_a_loop_counts_once_a_turn():
    costs = program_costs(text_of(layers, (ROWS, WIDTH), (TURNS, WIDTH, WIDTH)))
    assert costs.operations == 2 * TURNS * ROWS * WIDTH * WIDTH
    # Every turn reads its own matrix and not all of them; it reads and writes the rows a few times.
    kernels, rows = 4 * TURNS * WIDTH * WIDTH, 4 * TURNS * ROWS * WIDTH
    assert kernels + 2 * rows <= costs.memory_bytes <= 3 * kernels + 12 * rows


def test_operations_are_those_of_the_traced_program():
    def loss(x_BD, kernels_LDD):
        q = layers(x_BD, kernels_LDD)
        return jnp.einsum("bd,cd->bc", q, q).sum()

    shapes = ((ROWS, WIDTH), (TURNS, WIDTH, WIDTH))
    gradient = jax.value_and_grad(loss, argnums=(0, 1))
    traced = jax.make_jaxpr(gradient)(*map(jnp.ones, shapes))
    assert program_costs(text_of(gradient, *shapes)).operations == matmul_operations(traced)


def tpu_program(line: str) -> str:
    x = "%x = f32[8,256,64]{2,1,0} parameter(0)"
    return f"HloModule step\n\nENTRY %main {{\n  {x}\n  {line}\n}}"


@pytest.mark.parametrize(
    ("kernel", "rest", "expected"),
    [
        # [8, 256, 64] x [64, 32], the batch as a window of one.
        (
            "f32[1,64,32]{2,1,0}",
            "f32[8,256,32]{2,1,0} convolution(%x, %y), window={size=1}, dim_labels=0bf_0io->0bf",
            2 * 8 * 256 * 64 * 32,
        ),
        # [8, 256, 64] x [8, 64, 32]: a window of 8 that meets one matrix at a time.
        (
            "f32[8,64,32]{2,1,0}",
            "f32[8,256,32]{2,1,0} convolution(%x, %y), window={size=8 stride=7 lhs_dilate=8}, "
            "dim_labels=0bf_0io->0bf",
            2 * 8 * 256 * 64 * 32,
        ),
        # [256, 64] x [2, 64, 32]: the heads are a window that slides over padding.
        (
            "f32[2,32,64]{2,1,0}",
            "f32[256,32,2]{1,0,2} convolution(%z, %y), window={size=2 pad=1_1 rhs_reversal=1}, "
            "dim_labels=b0f_0oi->bf0",
            2 * 256 * 64 * 32 * 2,
        ),
    ],
)
def test_a_product_that_is_written_as_a_convolution(kernel, rest, expected):
    z = "%z = f32[256,1,64]{2,1,0} parameter(2)"
    line = f"%y = {kernel} parameter(1)\n  {z}\n  ROOT %r = {rest}"
    assert program_costs(tpu_program(line)).operations == expected


def test_a_product_of_a_library_is_read_by_its_dimensions():
    line = (
        "%y = f32[8,64,32]{2,1,0} parameter(1)\n"
        "  ROOT %r = (f32[8,256,32]{2,1,0}, s8[64]{0}) custom-call(%x, %y), "
        'custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":'
        '{"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],'
        '"rhs_contracting_dimensions":["1"],"lhs_batch_dimensions":["0"]}}}'
    )
    assert program_costs(tpu_program(line)).operations == 2 * 8 * 256 * 64 * 32


def test_what_stays_on_the_chip_is_no_traffic():
    near, far = "f32[8,256,64]{2,1,0:T(8,128)S(1)}", "f32[8,256,64]{2,1,0:T(8,128)}"
    size = 4 * 8 * 256 * 64

    def traffic(line: str) -> float:
        return program_costs(tpu_program(line)).memory_bytes

    assert traffic(f"ROOT %r = {far} sine(%x)") == 2 * size
    assert traffic(f"ROOT %r = {near} sine(%x)") == size
    copied = f"({near}, {far}, u32[]{{:S(2)}})"
    both = f"%s = {copied} copy-start(%x)\n  ROOT %d = {near} copy-done(%s)"
    assert traffic(both) == size


def test_a_slice_that_is_fetched_ahead_moves_only_itself():
    near, far = "f32[2,256,64]{2,1,0:T(8,128)S(1)}", "f32[8,256,64]{2,1,0:T(8,128)}"
    line = f"ROOT %r = (({far}), {near}, s32[]{{:S(2)}}) slice-start(%x), slice={{[0:2]}}"
    assert program_costs(tpu_program(line)).memory_bytes == 4 * 2 * 256 * 64


def test_a_fusion_within_a_fusion_reads_what_it_slices():
    text = """HloModule step

%inner (p: f32[8,64]) -> f32[1,64] {
  %p = f32[8,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %s = f32[1,64]{1,0} dynamic-slice(%p, %i, %i), dynamic_slice_sizes={1,64}
}

%outer (q: f32[8,64]) -> f32[1,64] {
  %q = f32[8,64]{1,0} parameter(0)
  %j = s32[] parameter(1)
  %f = f32[1,64]{1,0} fusion(%q, %j), kind=kLoop, calls=%inner
  ROOT %t = f32[1,64]{1,0} sine(%f)
}

ENTRY %main {
  %x = f32[8,64]{1,0} parameter(0)
  %k = s32[] parameter(1)
  ROOT %r = f32[1,64]{1,0} fusion(%x, %k), kind=kLoop, calls=%outer
}"""
    index = 4
    assert program_costs(text).memory_bytes == 2 * 4 * 64 + index


def test_a_scatter_in_place_moves_only_its_rows():
    text = """HloModule step

%put (p: f32[512,64]) -> f32[512,64] {
  %p = f32[512,64]{1,0} parameter(0)
  %at = s32[3,1]{1,0} parameter(1)
  %new = f32[3,64]{1,0} parameter(2)
  ROOT %s = f32[512,64]{1,0} scatter(%p, %at, %new), to_apply=%last
}

ENTRY %main {
  %x = f32[512,64]{1,0} parameter(0)
  %i = s32[3,1]{1,0} parameter(1)
  %y = f32[3,64]{1,0} parameter(2)
  ROOT %r = f32[512,64]{1,0} fusion(%x, %i, %y), kind=kInput, calls=%put
}"""
    assert program_costs(text).memory_bytes == 2 * 4 * 3 * 64 + 4 * 3


@pytest.mark.parametrize("rows", ["2,", ""], ids=["rows", "one row"])
@pytest.mark.parametrize(("wide", "tiles"), [(8, 36), (2, 15)], ids=["all", "window"])
def test_a_kernel_of_attention_computes_the_tiles_that_are_seen(wide, tiles, rows):
    """As jax's splash kernel for 1,024 tokens appears in the program for a TPU."""
    text = (
        "HloModule step\n\nENTRY %main {\n"
        f"  %m = s8[1,8,{wide}]{{2,1,0}} parameter(0)\n"
        f"  %q = bf16[{rows}8,1024,128]{{2,1,0}} parameter(1)\n"
        f"  %k = bf16[{rows}4,1024,128]{{2,1,0}} parameter(2)\n"
        f"  ROOT %splash_mha_fwd_segmented_no_residuals.1 = bf16[{rows}8,1024,128]{{2,1,0}} "
        'custom-call(%m, %m, %q, %k, %k), custom_call_target="tpu_custom_call"\n}'
    )
    # Scores, and the values that they mix.
    of_row = 2 * (2 * 8 * 128 * tiles * 128**2)
    assert program_costs(text).operations == (2 if rows else 1) * of_row
