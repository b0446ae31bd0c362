"""A mesh that does not divide a model is refused, by the name of the axis."""

from __future__ import annotations

import dataclasses

import pytest

from jaxspec.config import DrafterConfig, ExpertsConfig, GPT2Config, TransformerConfig
from jaxspec.models.dflash import resolve_config
from jaxspec.parallel.divisibility import any_of, check_models_fit, problems, split_sizes

TARGET = TransformerConfig(
    vocab_size=1000,
    hidden_size=96,
    num_layers=6,
    num_heads=8,
    num_kv_heads=4,
    intermediate_size=256,
)


def drafter(**changes):
    asked = DrafterConfig(num_features=3, **changes)
    config = resolve_config(asked, target=TARGET, mask_token_id=3)
    return split_sizes(config, width=TARGET.hidden_size)


def test_each_problem_names_the_axis_the_model_and_what_would_do():
    models = {"The target": split_sizes(TARGET), "The drafter": drafter(num_kv_heads=2)}
    check_models_fit(models, {"data": 7, "fsdp": 32, "tensor": 2})
    with pytest.raises(ValueError) as caught:
        check_models_fit(models, {"fsdp": 64, "tensor": 4})
    assert str(caught.value) == (
        "The target cannot be spread over this mesh:\n"
        "  mesh.fsdp is 64, which does not divide its 96 columns of the embedding: set it to 1, 2, "
        "3, 4, 6, 8, 12 or 16.\n"
        "The drafter cannot be spread over this mesh:\n"
        "  mesh.tensor is 4, which does not divide its 2 key/value heads: set it to 1 or 2.\n"
        "  mesh.fsdp is 64, which does not divide its 96 columns: set it to 1, 2, 3, 4, 6, 8, 12 "
        "or 16."
    )


@pytest.mark.parametrize(
    ("changes", "tensor", "named"),
    [
        ({"num_heads": 6, "num_kv_heads": 6}, 4, "6 query heads and 6 key/value heads"),
        ({"num_kv_heads": 2}, 4, "2 key/value heads"),
        ({"vocab_size": 1001}, 2, "1,001 rows of the embedding"),
        ({"intermediate_size": 250}, 4, "250 columns of the MLP"),
        (
            {"experts": ExpertsConfig(num_experts=4, per_token=2, width=30)},
            4,
            "30 columns of an expert",
        ),
    ],
)
def test_everything_that_tensor_splits_has_to_be_divided(changes, tensor, named):
    (problem,) = problems(split_sizes(dataclasses.replace(TARGET, **changes)), {"tensor": tensor})
    assert f"mesh.tensor is {tensor}, which does not divide its {named}: set it to" in problem


def test_the_mlp_that_a_mixture_of_experts_lacks_does_not_count():
    experts = ExpertsConfig(num_experts=4, per_token=2, width=32)
    config = dataclasses.replace(TARGET, experts=experts, intermediate_size=250)
    assert not problems(split_sizes(config), {"tensor": 4})
    some = dataclasses.replace(experts, dense_layers=(0,))
    assert problems(split_sizes(dataclasses.replace(config, experts=some)), {"tensor": 4})


def test_an_odd_vocabulary_is_divided_by_nothing():
    (problem,) = problems(split_sizes(GPT2Config()), {"tensor": 2})
    assert "50,257 rows of the embedding: set it to 1." in problem


def test_long_lists_are_cut():
    assert [any_of(sizes) for sizes in ([1], [1, 2], range(1, 12))] == [
        "1",
        "1 or 2",
        "1, 2, 3, 4, 5, 6, 7 or 8",
    ]
