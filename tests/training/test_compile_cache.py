"""Where compiled programs are kept."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxspec.training.compile_cache import cache_folder, use_compile_cache


@pytest.mark.parametrize(
    ("setting", "variable", "platform", "expected"),
    [
        ("gs://bucket/programs", "/there", "tpu", "gs://bucket/programs"),
        ("~/programs", None, "cpu", "/home/me/programs"),
        ("", "/there", "tpu", None),
        (None, "/there", "cpu", "/there"),
        (None, "", "tpu", None),
        (None, None, "cpu", None),
        (None, None, "gpu", "/home/me/.cache/jaxspec/programs"),
    ],
)
def test_the_setting_comes_first_and_then_the_variable(
    setting, variable, platform, expected, monkeypatch
):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    if variable is not None:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", variable)
    assert cache_folder(setting, platform=platform) == expected


def test_programs_are_kept_in_the_folder(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    try:
        use_compile_cache(str(tmp_path / "programs"))
        jax.jit(lambda x: jnp.tanh(x) * 17.25)(jnp.ones(3)).block_until_ready()
        assert [*(tmp_path / "programs").iterdir()]
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()
