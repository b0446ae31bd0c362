"""Classes of equal fields are told apart, wherever jax compares structures."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import numpy as np

import jaxspec
from jaxspec.drafters.denoiser import Prefix
from jaxspec.drafters.ngram import NGramState
from jaxspec.ops.array_dataclass import array_dataclass


def test_classes_of_equal_fields_have_different_structures():
    """Compiled functions once took one for the other: they look programs up by structure."""
    tokens_BT, lengths_B = np.zeros((2, 3), np.int32), np.zeros(2, np.int32)
    states = NGramState(tokens_BT, lengths_B), Prefix(tokens_BT, lengths_B)
    structures = [jax.tree.structure(state) for state in states]
    assert structures[0] != structures[1]
    assert jax.tree.structure([states[0]]) != jax.tree.structure([states[1]])
    assert jax.tree.structure(states[0]) == jax.tree.structure(NGramState(1, 2))


def test_a_compiled_function_returns_the_class_that_it_was_given():
    same = jax.jit(lambda given: given)
    for number in range(60):
        made = array_dataclass(type(f"Made{number}", (), {"__annotations__": {"x": jax.Array}}))
        assert type(same(made(np.float32(number)))) is made


def test_no_class_is_registered_in_another_way():
    sources = Path(jaxspec.__file__).parent.rglob("*.py")
    other = re.compile(
        r"^\s*@.*(struct\.dataclass|register_dataclass)|flax import struct", re.MULTILINE
    )
    assert not [source.name for source in sources if other.search(source.read_text())]
