"""The device under test, and the CPU that it is compared with."""

from __future__ import annotations

import os

import jax
import pytest

VARIABLE = "JAXSPEC_ACCELERATOR"


@pytest.fixture(scope="session")
def cpu() -> jax.Device:
    """What everything is compared with."""
    return jax.devices("cpu")[0]


@pytest.fixture(scope="session")
def device() -> jax.Device:
    """The accelerator; another device of the CPU if the variable says "cpu"."""
    if os.environ.get(VARIABLE) == "cpu":
        return jax.devices("cpu")[1]
    found = jax.devices()[0]
    if found.platform == "cpu":
        pytest.skip(
            "jax finds no GPU or TPU, or was told not to look for one: run "
            "bash tests/accelerator/run.sh on a machine that has one"
        )
    return found
