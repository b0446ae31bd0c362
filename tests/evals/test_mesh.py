"""Which devices decode, what is refused, and that a device reads its own part of the weights."""

import dataclasses
import math

import jax
import pytest

from jaxspec.checkpoints import conversion
from jaxspec.config import GPT2Config, MeshConfig, TargetConfig, TransformerConfig
from jaxspec.data.chat_template import PLAIN
from jaxspec.evals.mesh import batch_rows, check_model_fits, decoding_mesh, explained, recorded
from jaxspec.evals.opening import open_diffusion_target, open_drafter, open_target
from tests.evals import diffusion_folders
from tests.evals.drafter_folders import WIDE, write_folders


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device that is no CPU."""

    platform: str = "tpu"


def mesh_of(*, rows=8, option="--batch_size", devices=None, **sizes):
    return decoding_mesh(MeshConfig(**sizes), rows=rows, option=option, devices=devices)


def sizes_of(mesh):
    return None if mesh is None else tuple(mesh.shape[axis] for axis in ("data", "fsdp", "tensor"))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({}, None),
        ({"data": 1}, None),
        ({"data": 4}, (4, 1, 1)),
        ({"tensor": 2}, (1, 1, 2)),
        ({"tensor": -1}, (1, 1, 8)),
        ({"data": 4, "tensor": -1}, (4, 1, 2)),
        ({"data": 2, "fsdp": 2, "tensor": 2}, (2, 2, 2)),
        # Two devices idle.
        ({"data": 2, "tensor": 3}, (2, 1, 3)),
    ],
)
def test_the_mesh_of_eight_cpu_devices(sizes, expected):
    assert sizes_of(mesh_of(**sizes)) == expected


@pytest.mark.parametrize(
    ("rows", "sizes", "expected"),
    [
        (32, {}, (8, 1, 1)),
        (6, {}, (6, 1, 1)),
        (4, {"tensor": 2}, (4, 1, 2)),
        (6, {"tensor": 2}, (3, 1, 2)),
        (4, {"fsdp": 2, "tensor": 2}, (2, 2, 2)),
        (1, {}, None),
        (1, {"tensor": 8}, (1, 1, 8)),
    ],
)
@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_accelerators_are_used_as_far_as_they_divide_a_batch(
    rows, sizes, expected, platform, monkeypatch
):
    made = []
    monkeypatch.setattr(
        "jaxspec.evals.mesh.make_mesh", lambda config, devices: made.append((config, devices))
    )
    mesh_of(rows=rows, devices=[Chip(platform)] * 8, **sizes)
    if platform == "tpu" and expected is not None and 8 % math.prod(expected):
        expected = {6: (2, 1, 1), 3: (2, 1, 2)}[expected[0]]  # 6 chips are no part of a slice.
    found = [(config.data, config.fsdp, config.tensor) for config, _ in made]
    assert found == ([] if expected is None else [expected])


@pytest.mark.parametrize(
    ("rows", "sizes", "message"),
    [
        (8, {"tensor": 16}, r"mesh\.tensor is 16, which takes 16 devices, but this process has 8"),
        (
            8,
            {"data": 4, "tensor": 4},
            r"mesh\.data x mesh\.tensor is 4 x 4, which takes 16 devices, but this process has 8: "
            r"lower mesh\.data or mesh\.tensor\.",
        ),
        (
            6,
            {"data": 4},
            r"mesh\.data is 4, which does not divide the 6 prompts that are decoded together: set "
            r"mesh\.data to 1, 2, 3 or 6, or --batch_size to a multiple of 4\.",
        ),
        (6, {"data": 2, "fsdp": 2}, r"mesh\.data x mesh\.fsdp is 4, which does not divide the 6"),
        (5, {"fsdp": -1}, r"mesh\.fsdp is 8, which does not divide the 5 prompts"),
    ],
)
def test_meshes_that_do_not_fit_the_devices_or_the_batch(rows, sizes, message):
    with pytest.raises(ValueError, match=message):
        mesh_of(rows=rows, **sizes)


@pytest.mark.parametrize("sizes", [{"data": 3}, {"data": 5}, {"data": 2, "tensor": 3}])
def test_chips_that_are_no_part_of_a_slice_are_refused(sizes):
    with pytest.raises(ValueError, match=r"of the 8 chips .* no part of a TPU slice: take 1, 2, 4"):
        mesh_of(rows=30, devices=[Chip()] * 8, **sizes)


def test_a_mesh_that_does_not_divide_the_model():
    config = TransformerConfig(
        vocab_size=1020, num_heads=12, num_kv_heads=6, intermediate_size=384, hidden_size=250
    )
    mesh = mesh_of(fsdp=2, tensor=4)
    with pytest.raises(ValueError) as caught:
        check_model_fits(config, mesh, name="Qwen")
    assert str(caught.value) == (
        "Qwen cannot be spread over this mesh:\n"
        "  mesh.tensor is 4, which does not divide its 6 key/value heads: set it to 1, 2, 3 or 6."
    )
    with pytest.raises(ValueError, match=r"mesh\.fsdp is 4, which does not divide its 250 col"):
        check_model_fits(config, mesh_of(fsdp=4, tensor=2), name="Qwen")
    with pytest.raises(ValueError, match="50,257 rows of the embedding: set it to 1"):
        check_model_fits(GPT2Config(), mesh_of(tensor=2), name="GPT-2")
    check_model_fits(config, mesh_of(fsdp=2, tensor=3), name="Qwen")
    check_model_fits(config, None, name="Qwen")


def test_rows_are_not_split_in_decoding():
    with pytest.raises(ValueError, match=r"mesh\.context is 2, but only training splits"):
        mesh_of(data=2, context=2)


def test_small_batches_are_as_large_as_the_mesh_needs():
    mesh = mesh_of(data=4)
    assert [batch_rows(n, most=32, mesh=mesh) for n in (1, 4, 5, 31, 32, 99)] == [
        *(4, 4, 8, 32, 32, 32)
    ]
    assert batch_rows(5, most=32, mesh=None) == 5


def test_reports_say_the_mesh():
    record = {"devices": {"count": 8}}
    assert recorded(record, None) == record
    mesh = mesh_of(data=4, tensor=2)
    assert recorded(record, mesh) == {
        "devices": {"count": 8, "mesh": {"data": 4, "fsdp": 1, "tensor": 2}}
    }
    assert explained(None) == ""
    assert "8 devices (mesh: data 4, fsdp 1, tensor 2)" in explained(mesh)
    assert "one prompt at a time, which 2 devices decode." in explained(mesh)


@pytest.fixture
def parts(monkeypatch):
    """Shapes of the parts that are read from the folder."""
    found = []
    read = conversion._read_parts

    def noted(tensors, row, indices, *, dtype):
        found.extend((row.path, tuple(s.stop - s.start for s in index)) for index in indices)
        return read(tensors, row, indices, dtype=dtype)

    monkeypatch.setattr(conversion, "_read_parts", noted)
    return found


def test_weights_are_read_into_their_shards(tmp_path, parts):
    folder, (drafter, _) = write_folders(tmp_path, **WIDE)
    mesh = mesh_of(tensor=8)
    target = open_target(TargetConfig(path=str(folder)), default_template=PLAIN, mesh=mesh)
    shapes = dict(parts)
    assert shapes["layers/attention/q/kernel"] == (2, 32, 16)
    assert shapes["embed/embedding"] == (WIDE["vocab_size"] // 8, 32)
    matrix = target.params["layers"]["attention"]["k"]["kernel"]
    assert [shard.data.shape for shard in matrix.addressable_shards] == [(2, 32, 16)] * 8
    parts.clear()
    opened = open_drafter(drafter, target=target)
    assert dict(parts)["layers/mlp/up/kernel"] == (1, 32, 4)
    held = [leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(opened.params)]
    assert sum(held) < sum(leaf.nbytes for leaf in jax.tree.leaves(opened.params)) / 4


def test_a_diffusion_language_model_is_read_into_its_shards(tmp_path, parts):
    folder = diffusion_folders.write_model(tmp_path / "llada", llada=True, hidden_size=64, **WIDE)
    opened = open_diffusion_target(TargetConfig(path=str(folder)))
    opened.with_weights(mesh=mesh_of(data=2, tensor=4))
    assert dict(parts)["layers/attention/q/kernel"] == (1, 64, 16)
    with pytest.raises(ValueError, match=r"mesh\.tensor is 3, which does not divide its 8 query"):
        opened.with_weights(mesh=mesh_of(tensor=3))
