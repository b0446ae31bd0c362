"""Which settings a kind of training reads, and which may change when a run continues.

Free of jax, so that --help stays quick.

>>> groups_read("denoiser", objective="elbo")
('denoiser',)
>>> why_not_read("loss", "denoiser", objective="elbo")
"denoiser.objective is 'elbo', and --loss.* is for 'draft'"
"""

from __future__ import annotations

from collections.abc import Iterable

GROUPS: dict[str, tuple[str, ...]] = {
    "target": (),
    "drafter": ("drafter", "loss"),
    "denoiser": ("denoiser", "loss"),
}
"""training.task -> the groups that not every task reads."""
MAY_CHANGE = (
    *("name", "evaluation", "diffusion", "mesh"),
    # Models and data are compared by fingerprint, not by path.
    *("target.path", "drafter.path", "denoiser.path", "data.raw_dir", "data.data_dir"),
    *("training.log_every", "training.checkpoint_every", "training.keep_checkpoints"),
    *("training.export", "training.export_dtype", "training.export_best"),
    *("training.validate_every", "training.validation_batches", "training.logging"),
    *("training.stall_timeout", "training.profile", "training.compile_cache"),
    "training.capture_tolerance",
    "training.epochs",  # Their steps are compared.
    # How layers are computed, not what they compute.
    *("drafter.unroll_layers", "drafter.remat", "drafter.remat_policy", "drafter.chunk_blocks"),
    *("denoiser.unroll_layers", "denoiser.architecture.unroll_layers"),
    *("denoiser.remat", "denoiser.architecture.remat", "target.architecture.unroll_layers"),
    *("target.architecture.remat", "target.remat"),
    *("target.architecture.attention", "target.attention"),
    *("loss.chunk_blocks", "training.chunk_tokens"),
)
"""Groups and settings that may differ when a run continues."""


def within(setting: str, names: Iterable[str]) -> bool:
    """Whether a setting is one of these groups and settings, or in one of them.

    >>> within("mesh.data", MAY_CHANGE), within("meshes", MAY_CHANGE)
    (True, False)
    """
    return any(f"{setting}.".startswith(f"{name}.") for name in names)


def groups_read(task: str, *, objective: str) -> tuple[str, ...]:
    """The groups, of those in `GROUPS`, that a run reads.

    Args:
      task: training.task.
      objective: denoiser.objective. Only "draft" reads the drafter's loss.
    """
    groups = GROUPS.get(task, ())
    if task == "denoiser" and objective != "draft":
        return tuple(group for group in groups if group != "loss")
    return groups


def why_not_read(group: str, task: str, *, objective: str) -> str:
    """Why a run does not read a group of `GROUPS`."""
    if group in GROUPS.get(task, ()):
        return f"denoiser.objective is {objective!r}, and --{group}.* is for 'draft'"
    reader = next(name for name, groups in GROUPS.items() if group in groups)
    return f"training.task is {task!r}, and --{group}.* is for {reader!r}"
