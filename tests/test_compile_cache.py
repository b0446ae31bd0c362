"""Where compiled programs are kept."""

from __future__ import annotations

import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxspec import compile_cache
from jaxspec.compile_cache import cache_folder, use_compile_cache

PROGRAMS = "/home/me/.cache/jaxspec/programs"


@pytest.fixture(autouse=True)
def _restored(monkeypatch):
    """A home without settings of its own; jax's settings are put back."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.mark.parametrize(
    ("setting", "variable", "platform", "expected"),
    [
        ("gs://bucket/programs", "/there", "tpu", "gs://bucket/programs"),
        ("~/programs", None, "cpu", "/home/me/programs"),
        ("", "/there", "tpu", None),
        ("none", "/there", "tpu", None),
        (None, "/there", "cpu", "/there"),
        ("auto", "/there", "cpu", "/there"),
        (None, "", "tpu", None),
        (None, None, "gpu", f"{PROGRAMS}/gpu"),
        ("auto", None, "tpu", f"{PROGRAMS}/tpu"),
    ],
)
def test_the_setting_comes_first_and_then_the_variable(
    setting, variable, platform, expected, monkeypatch
):
    if variable is not None:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", variable)
    assert cache_folder(setting, platform=platform) == expected


def test_cpus_with_other_instructions_have_other_folders(tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(compile_cache, "_CPU", cpuinfo)
    assert cache_folder("auto", platform="cpu") is None  # It cannot be told which CPU it is.
    folders = []
    for flags in ("fpu sse2", "fpu sse2 avx512f"):
        cpuinfo.write_text(f"model name\t: one\nflags\t\t: {flags}\n", encoding="utf-8")
        folders.append(cache_folder("auto", platform="cpu"))
    assert len(set(folders)) == 2
    assert all(folder.startswith(f"{PROGRAMS}/cpu-") for folder in folders)


def test_programs_are_kept_in_the_folder(tmp_path):
    use_compile_cache(str(tmp_path / "programs"), option="--compile_cache")
    jax.jit(lambda x: jnp.tanh(x) * 17.25)(jnp.ones(3)).block_until_ready()
    assert [*(tmp_path / "programs").iterdir()]


def test_none_turns_it_off(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    use_compile_cache("none", option="--compile_cache")
    assert jax.config.jax_compilation_cache_dir is None
    jax.jit(lambda x: jnp.tanh(x) * 17.5)(jnp.ones(3)).block_until_ready()
    assert not [*tmp_path.iterdir()]


def test_nothing_is_written_where_nothing_can_be(tmp_path, monkeypatch):
    blocked = tmp_path / "cache"
    blocked.write_text("a file, not a folder", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        use_compile_cache("auto", option="--compile_cache")
        assert jax.config.jax_compilation_cache_dir is None
        jax.jit(lambda x: jnp.tanh(x) * 17.75)(jnp.ones(3)).block_until_ready()
    with pytest.raises(ValueError, match=r"^--compile_cache .*cache.* cannot be written to"):
        use_compile_cache(str(blocked / "programs"), option="--compile_cache")


def test_the_default_is_in_the_users_cache(tmp_path, monkeypatch):
    if not Path("/proc/cpuinfo").is_file():
        pytest.skip("the instructions of this CPU cannot be read: no /proc/cpuinfo")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    use_compile_cache("auto", option="--compile_cache")
    folder = jax.config.jax_compilation_cache_dir
    assert Path(folder).parent == tmp_path / "jaxspec" / "programs"
    jax.jit(lambda x: jnp.tanh(x) * 18.25)(jnp.ones(3)).block_until_ready()
    assert [*Path(folder).iterdir()]
