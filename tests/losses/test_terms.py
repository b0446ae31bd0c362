"""Terms that `LossConfig.extra` adds: by name, by module and by file."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro

from jaxspec.losses import (
    TERMS,
    LossConfig,
    LossWeights,
    SlotStatistics,
    Term,
    drafter_loss,
    drafter_metrics,
    loss_terms,
    ratio,
    slot_statistics,
    terms_needing_target_rows,
    terms_of,
    total_from_terms,
    weighted_terms,
)
from jaxspec.provenance import jsonable
from tests.losses import reference

# Two blocks, the second of two slots.
P = np.array([[0.5, 0.25, 0.75], [0.75, 0.5, 0.125]], np.float32)
MASK = jnp.array([[True, True, True], [True, True, False]])
SLOTS = SlotStatistics(
    log_p_NG=jnp.log(P), correct_NG=jnp.array([[True, False, True], [True, True, False]])
)
PLAIN = LossConfig(decay=None, focal=0.0, chain=0.0)
NUMBER = 3


def miss(slots, *, mask_NG, weights_G):
    """The chance that a sampled draft is not the label."""
    return weighted_terms(
        1 - jnp.exp(slots.log_p_NG), weights_G=weights_G, mask_NG=mask_NG, normalize="weight"
    )


HIT = Term(
    lambda slots, **rest: weighted_terms(jnp.exp(slots.log_p_NG), **rest, normalize="weight"),
    reward=True,
    counts_follow_predictions=False,
)


def one_number(slots, *, mask_NG, weights_G):
    return slots.log_p_NG.sum()


def per_slot(slots, *, mask_NG, weights_G):
    return slots.log_p_NG, slots.log_p_NG


def mean_log(slots, *, mask_NG, weights_G):
    """A denominator that depends on the parameters: a user's mistake, but not a wrong gradient."""
    return slots.log_p_NG.sum(), -slots.log_p_NG.sum()


def own(function: str, weight: float = 1.0) -> str:
    return f"{__name__}:{function}={weight}"


def with_extra(*entries: str, **changes) -> LossConfig:
    return dataclasses.replace(PLAIN, extra=entries, **changes)


@pytest.mark.parametrize(
    ("config", "label"),
    [
        (LossConfig(extra=("forward_kl=0.5",)), "full+forward_kl"),
        (with_extra(own("miss")), "uniform+miss"),
        (with_extra(own("miss", 0)), "uniform"),
        (with_extra("my/terms.py:a=1", "b=2", decay=4.0, objective="tv"), "tv+decay+a+b"),
    ],
)
def test_the_label_names_extra_terms(config, label):
    assert config.label == label


@pytest.mark.parametrize(
    "entry",
    [
        "tv",
        "tv=",
        "=1",
        "tv=much",
        "tv=-1",
        "tv=inf",
        "tv=nan",
        ":tv=1",
        "a:=1",
        "a:b.c=1",
        "a b=1",
    ],
)
def test_entries_of_another_form_are_refused(entry):
    with pytest.raises(ValueError, match=r"loss\.extra takes NAME=WEIGHT.*got"):
        LossConfig(extra=(entry,))


def test_one_name_has_one_weight():
    with pytest.raises(ValueError, match=r"names a term twice: got tv, tv"):
        LossConfig(extra=("tv=1", "mine.py:tv=2"))
    with pytest.raises(ValueError, match="one per term"):
        LossConfig(extra="tv=1")


def test_what_is_recorded_reads_back_and_says_where_a_term_is_from():
    config = LossConfig(extra=(own("miss", 0.5), "tv=1"))
    record = json.loads(json.dumps(jsonable(config)))
    assert record["extra"] == [f"{__name__}:miss=0.5", "tv=1"]
    assert LossConfig(**{**record, "extra": tuple(record["extra"])}) == config
    del record["extra"]
    assert LossConfig(**record) == LossConfig(), "runs of older versions have no such field"


def test_from_the_command_line():
    line = ["--extra", "tv=0.5", "my_terms.py:miss=2", "--focal", "0"]
    got = tyro.cli(LossConfig, args=line)
    assert got == LossConfig(focal=0.0, extra=("tv=0.5", "my_terms.py:miss=2"))


def test_extra_terms_by_hand():
    config = with_extra(own("miss", 2.0), own("HIT", 10.0))
    terms = loss_terms(SLOTS, MASK, config=config)
    assert list(terms) == ["cross_entropy", "first_error_focal", "chain_reward", "miss", "HIT"]
    # 1/2 3/4 1/4 and 1/4 1/2 over five slots; the last slot is masked.
    np.testing.assert_allclose(terms["miss"], (2.25, 5))
    np.testing.assert_allclose(terms["HIT"], (2.75, 5))
    without = total_from_terms(loss_terms(SLOTS, MASK, config=PLAIN), config=PLAIN)
    total = total_from_terms(terms, config=config)
    assert float(total - without) == pytest.approx(2.0 * 2.25 / 5 - 10.0 * 2.75 / 5, rel=1e-5)
    # Positional weights reach the loss, and not what is logged.
    decayed = dataclasses.replace(config, decay=2.0)
    w = np.exp([0, -0.5, -1])
    expected = ((0.5 + 0.25) + (0.75 + 0.5) * w[1] + 0.25 * w[2], 2 + 2 * w[1] + w[2])
    np.testing.assert_allclose(loss_terms(SLOTS, MASK, config=decayed)["miss"], expected, rtol=1e-6)
    np.testing.assert_allclose(
        drafter_metrics(SLOTS, MASK, config=decayed)["extra/miss"], (2.25, 5), rtol=1e-6
    )


def test_metrics_of_other_losses_stay_as_they_are():
    plain = drafter_metrics(SLOTS, MASK)
    extra = drafter_metrics(SLOTS, MASK, config=with_extra(own("miss", 0.0)))
    assert list(extra) == [*plain, "extra/miss"]
    for name, term in TERMS.items():
        assert (name in plain) == bool(term.field)


@pytest.mark.parametrize("normalize", ["block", "weight"])
def test_an_objective_as_an_extra_term(normalize):
    logits, labels, mask = reference.random_batch(3)
    slots = slot_statistics(logits, labels, target_logits_NGV=logits[..., ::-1])
    config = LossConfig(extra=("forward_kl=0.5",), normalize=normalize)
    alone = LossConfig(objective="forward_kl", normalize=normalize)
    terms = loss_terms(slots, mask, config=config)
    np.testing.assert_array_equal(
        terms["forward_kl"], loss_terms(slots, mask, config=alone)["forward_kl"]
    )
    assert terms_needing_target_rows(config) == ("forward_kl",)
    assert not terms_needing_target_rows(LossConfig())
    with pytest.raises(ValueError, match=r"'forward_kl'.*without target logits"):
        loss_terms(SLOTS, MASK, config=config)


def test_one_compiled_step_serves_all_weights():
    traces = []

    @jax.jit
    def total(weights):
        config = with_extra(own("miss"))
        traces.append(config)
        terms = loss_terms(SLOTS, MASK, config=config, weights=weights)
        return total_from_terms(terms, config=config, weights=weights)

    values = [float(total(LossWeights.from_config(with_extra(own("miss", w))))) for w in (0, 1, 2)]
    assert len(traces) == 1
    np.testing.assert_allclose(np.diff(values), 2.25 / 5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"weights must hold one number for each of .*miss: got 2"):
        total(LossWeights.from_config(PLAIN))


def test_no_gradient_flows_through_a_denominator():
    def value(log_p):
        config = with_extra(own("mean_log"))
        return ratio(*loss_terms(SLOTS.replace(log_p_NG=log_p), config=config)["mean_log"])

    gradient = jax.grad(value)(SLOTS.log_p_NG)
    np.testing.assert_allclose(gradient, -1 / np.log(P).sum(), rtol=1e-5)


def test_a_file_is_executed_once(tmp_path):
    file = tmp_path / "my terms.py"
    file.write_text(
        "from __future__ import annotations\n"
        "import dataclasses\n"
        "import jax.numpy as jnp\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Share:\n"
        "    value: float = 1.0\n"
        "    def __call__(self, slots, *, mask_NG, weights_G):\n"
        "        return jnp.float32(self.value), jnp.float32(4.0)\n"
        "share = Share()\n"
    )
    config = with_extra(f"{file}:share=8")
    function = terms_of(config)["share"].function
    assert terms_of(config)["share"].function is function
    logits, labels, mask = reference.random_batch(1)
    plain, _ = drafter_loss(logits, labels, mask, config=PLAIN)
    loss, metrics = drafter_loss(logits, labels, mask, config=config)
    assert float(loss - plain) == pytest.approx(2.0, rel=1e-5)
    assert [float(part) for part in metrics["term/share"]] == [1.0, 4.0]


def test_mistakes_of_a_file(tmp_path):
    (tmp_path / "broken.py").write_text("raise KeyError('no')\n")
    for name, message in (
        ("broken.py", "cannot be imported: KeyError: 'no'"),
        ("absent.py", "there is no file .*absent.py"),
    ):
        for _ in range(2):  # A failed import leaves nothing that looks like a module.
            with pytest.raises(ValueError, match=message):
                terms_of(with_extra(f"{tmp_path / name}:f=1"))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("forward_k=1", r"no known term.*expected one of cross_entropy,.*mean 'forward_kl'"),
        ("no_such_module:f=1", "cannot be imported: ModuleNotFoundError"),
        (own("mis"), r"must be a function.*Did you mean 'miss'"),
        (own("NUMBER"), r"must be a function or a jaxspec.losses.Term: got 3"),
        ("chain_reward=1", r"loss\.chain already makes part of the loss"),
        ("cross_entropy=1", r"loss\.objective already makes part of the loss"),
    ],
)
def test_terms_that_are_not_there(entry, message):
    with pytest.raises(ValueError, match=message):
        terms_of(with_extra(entry))


@pytest.mark.parametrize(
    ("name", "message"),
    [("one_number", "two scalars.*got Array"), ("per_slot", r"two scalars.*\(2, 3\)")],
)
def test_a_term_is_two_scalars(name, message):
    with pytest.raises(ValueError, match=message):
        loss_terms(SLOTS, MASK, config=with_extra(own(name)))


def test_reading_a_run_executes_nothing(tmp_path):
    """What export and the tables read of a recorded loss: its label and its weights."""
    config = with_extra(f"{tmp_path / 'absent.py'}:mine=0.5")
    assert config.label == "uniform+mine"
    assert float(LossWeights.from_config(config).terms[-1]) == 0.5
