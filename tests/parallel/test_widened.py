"""What a program for CPUs has widened to float32 to send it counts as bfloat16."""

from __future__ import annotations

import pytest

from jaxspec.parallel.collectives import read_collectives

HEAD = "HloModule step, num_partitions=4\n"
WRITTEN = ', metadata={op_name="jit(step)/convert_element_type"}'
GATHER = "all-gather(%w), replica_groups={}, dimensions={0}"


def dtypes(text: str, *, narrows: bool = True) -> list[str]:
    [collective] = read_collectives(HEAD + text, narrows=narrows)
    return [shape.dtype for shape in collective.results]


def gathered(lines: str, computations: str = "") -> list[str]:
    return dtypes(f"{computations}ENTRY %main {{\n{lines}\n  ROOT %g = f32[16]{{0}} {GATHER}\n}}")


def reduced(lines: str, computations: str = "") -> list[str]:
    start = (
        "  %p = f32[4]{0} parameter(0)\n"
        "  %r = (f32[], f32[4]{0}) all-reduce(%n, %p), replica_groups={}, to_apply=%add\n"
        "  %e = f32[4]{0} get-tuple-element(%r), index=1\n"
    )
    return dtypes(f"{computations}ENTRY %main {{\n{start}{lines}\n}}")


BF16, F32 = "  %p = bf16[4]{0} parameter(0)\n", "  %p = f32[4]{0} parameter(0)\n"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (f"{BF16}  %w = f32[4]{{0}} convert(%p)", "bf16"),
        (f"{BF16}  %v = f32[4]{{0}} convert(%p)\n  %w = f32[4]{{0}} copy(%v)", "bf16"),
        (f"{BF16}  %w = f32[4]{{0}} convert(%p){WRITTEN}", "f32"),
        (f"{F32}  %w = f32[4]{{0}} sine(%p)", "f32"),
        ("  %p = s32[4]{0} parameter(0)\n  %w = f32[4]{0} convert(%p)", "f32"),
    ],
    ids=["widened", "and moved", "as the model says", "never narrow", "integers"],
)
def test_what_is_gathered(lines, expected):
    assert gathered(lines) == [expected]


def test_it_may_be_widened_in_a_fusion():
    inside = (
        "%fused (a: f32[4]) -> f32[4] {\n  %a = f32[4]{0} parameter(0)\n"
        "  %b = bf16[4]{0} convert(%a)\n  ROOT %c = f32[4]{0} convert(%b)\n}\n"
    )
    fusion = f"{F32}  %w = f32[4]{{0}} fusion(%p), kind=kLoop, calls=%fused"
    assert gathered(fusion, inside) == ["bf16"]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("  ROOT %c = bf16[4]{0} convert(%e)", "bf16"),
        ("  %b = f32[2,2]{1,0} bitcast(%e)\n  ROOT %c = bf16[2,2]{1,0} convert(%b)", "bf16"),
        (f"  ROOT %c = bf16[4]{{0}} convert(%e){WRITTEN}", "f32"),
        ("  %c = bf16[4]{0} convert(%e)\n  ROOT %s = f32[4]{0} sine(%e)", "f32"),
        ("  ROOT %s = f32[] constant(0)", "f32"),
    ],
    ids=["rounded", "and moved", "as the model says", "also read whole", "not read"],
)
def test_what_is_reduced(lines, expected):
    assert reduced(lines) == ["f32", expected]


def test_it_may_be_rounded_in_a_fusion():
    inside = (
        "%fused (a: f32[4], b: f32[4]) -> bf16[4] {\n  %a = f32[4]{0} parameter(0)\n"
        "  %b = f32[4]{0} parameter(1)\n  ROOT %c = bf16[4]{0} convert(%b)\n}\n"
    )
    fusion = "  ROOT %f = bf16[4]{0} fusion(%p, %e), kind=kLoop, calls=%fused"
    assert reduced(fusion, inside) == ["f32", "bf16"]


def test_the_program_itself_is_read_as_it_is():
    lines = f"{BF16}  %w = f32[4]{{0}} convert(%p)\n  ROOT %g = f32[16]{{0}} {GATHER}"
    assert dtypes(f"ENTRY %main {{\n{lines}\n}}", narrows=False) == ["f32"]
