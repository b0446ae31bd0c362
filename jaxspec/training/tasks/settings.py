"""Which groups of settings a kind of training reads. Free of jax, so that --help stays quick.

>>> groups_read("denoiser", objective="elbo")
('denoiser',)
>>> why_not_read("loss", "denoiser", objective="elbo")
"denoiser.objective is 'elbo', and --loss.* is for 'draft'"
"""

from __future__ import annotations

GROUPS: dict[str, tuple[str, ...]] = {
    "target": (),
    "drafter": ("drafter", "loss"),
    "denoiser": ("denoiser", "loss"),
}
"""training.task -> the groups that not every task reads."""


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
