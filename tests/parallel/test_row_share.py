"""Which rows of a batch each process reads."""

from __future__ import annotations

import pytest

from jaxspec.config import MeshConfig
from jaxspec.parallel.mesh import make_mesh
from jaxspec.parallel.rules import row_share, share_of


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        ({0: {0, 1, 2, 3}}, [(0, 1)]),
        ({0: {0, 1}, 1: {2, 3}}, [(0, 2), (1, 2)]),
        ({0: {2, 3}, 1: {0, 1}}, [(1, 2), (0, 2)]),
        ({0: {0, 1}, 1: {0, 1}}, [(0, 1), (0, 1)]),
        # Hosts of 2 x 2 chips in a square of 4 x 4: their rows do not lie side by side.
        ({0: {0, 1, 4, 5}, 1: {2, 3, 6, 7}}, [(0, 2), (1, 2)]),
    ],
)
def test_processes_read_the_rows_that_their_devices_hold(held, expected):
    assert [share_of(process, held) for process in held] == expected


@pytest.mark.parametrize("held", [{0: {0, 1}, 1: {1, 2}}, {0: {0}, 1: {1, 2}}])
def test_rows_that_processes_share_in_part_are_refused(held):
    with pytest.raises(ValueError, match=r"choose mesh\.context x mesh\.tensor"):
        share_of(0, held)


def test_a_single_process_reads_all_rows():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    assert row_share(mesh, 8) == (0, 1)
