"""The packed training pass sees what decoding sees, and divides as the formulas say."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.config import LossConfig
from jaxspec.drafters.dflash import DFlashProposer
from jaxspec.losses import LossWeights, SlotStatistics, loss_terms
from jaxspec.ops.sampling import Sampling
from jaxspec.training.objectives import DrafterObjective, TargetObjective
from tests.training import tiny

KEY = jax.random.key(3)
WEIGHTS = LossWeights.from_config(tiny.LOSS)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Blocks of `tiny.batch()`, and the drafter's log-probabilities of their labels."""

    anchors_BN: np.ndarray
    labels_BNG: np.ndarray
    mask_BNG: np.ndarray
    log_p_BNG: np.ndarray


@pytest.fixture(scope="module")
def params():
    return tiny.drafter_params(), tiny.target_params()


@pytest.fixture(scope="module")
def terms(params):
    """What the objective gives."""
    return jax.device_get(jax.jit(tiny.objective())(*params, tiny.batch(), KEY, WEIGHTS)[0])


@pytest.fixture(scope="module")
def packed(params) -> Blocks:
    """As training computes them: all blocks of a row in one pass."""
    objective = tiny.objective()

    @jax.jit
    def compute(drafter, frozen, batch):
        anchors_BN, labels_BNG, mask_BNG = objective.blocks(batch, KEY)
        features_BSE = tiny.TARGET.apply(
            {"params": frozen},
            batch["tokens"],
            positions_BS=batch["positions"],
            segments_BS=batch["segments"],
            capture=tiny.DRAFTER_CONFIG.target_layer_ids,
        ).features_BSE
        hidden_BNGD = objective.hidden(drafter, frozen, batch, anchors_BN, features_BSE)
        logits = tiny.TARGET.apply({"params": frozen}, hidden_BNGD, method="logits")
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), labels_BNG[..., None], -1)[..., 0]
        return anchors_BN, labels_BNG, mask_BNG, log_p

    return Blocks(*jax.device_get(compute(*params, tiny.batch())))


@pytest.fixture(scope="module")
def decoded(params, packed) -> np.ndarray:
    """As decoding computes them, log_p [B, N, G]: each block alone, behind its own prefix."""
    drafter, frozen = params
    batch, slots = tiny.batch(), tiny.DRAFTER_CONFIG.block_size
    rows, blocks = packed.anchors_BN.shape
    length = batch["tokens"].shape[1]
    # Whatever stands behind the prefix must not matter.
    prefixes = np.random.default_rng(1).integers(0, 64, (rows * blocks, length)).astype(np.int32)
    lengths, anchors = np.ones(rows * blocks, np.int32), np.zeros(rows * blocks, np.int32)
    for row in range(rows):
        for block in range(blocks):
            anchor, place = packed.anchors_BN[row, block], row * blocks + block
            start = anchor - batch["positions"][row, anchor]
            if packed.mask_BNG[row, block, 0]:
                prefix = batch["tokens"][row, start:anchor]
                prefixes[place, : len(prefix)] = prefix
                lengths[place], anchors[place] = len(prefix), batch["tokens"][row, anchor]
    proposer = DFlashProposer(
        target=tiny.TARGET, drafter=tiny.DRAFTER, block_size=slots, sampling=Sampling(1.0)
    )

    @jax.jit
    def draft(drafter, frozen, prefixes, lengths, anchors):
        features = tiny.TARGET.apply(
            {"params": frozen}, prefixes, capture=proposer.capture
        ).features_BSE
        both = {"target": frozen, "drafter": drafter}
        state = proposer.begin(both, prefixes, features, lengths, capacity=length + 2 * slots)
        keys = jax.random.split(KEY, len(lengths))
        return proposer.propose(both, state, anchors, keys)[0].probs_BGV

    probs = np.asarray(draft(drafter, frozen, prefixes, lengths, anchors))
    probs = probs.reshape(rows, blocks, slots - 1, -1)
    return np.log(np.take_along_axis(probs, packed.labels_BNG[..., None], axis=-1)[..., 0])


def test_the_packed_pass_gives_what_decoding_gives(packed, decoded):
    counted = packed.mask_BNG
    assert counted.any(axis=(1, 2)).all(), "every row has a block"
    second = tiny.batch()["segments"][np.arange(8)[:, None], packed.anchors_BN] == 2
    assert (second & counted[..., 0]).any(), "some block lies in a second document"
    np.testing.assert_allclose(packed.log_p_BNG[counted], decoded[counted], atol=1e-5)


def test_the_loss_is_the_formula_over_decoded_blocks(terms, packed, decoded):
    """Plain loops over what decoding gave."""
    entropy, reward, blocks = 0.0, 0.0, 0
    for log_p_G, mask_G in zip(
        decoded.reshape(-1, decoded.shape[-1]),
        packed.mask_BNG.reshape(-1, decoded.shape[-1]),
        strict=True,
    ):
        count = int(mask_G.sum())
        if count == 0:
            continue
        blocks += 1
        product = 1.0
        for slot in range(count):
            entropy -= math.exp(-slot / tiny.LOSS.decay) * log_p_G[slot]
            product *= math.exp(log_p_G[slot])
            reward += product / count
    np.testing.assert_allclose(terms["cross_entropy"], (entropy, blocks), rtol=1e-5)
    np.testing.assert_allclose(terms["chain_reward"], (reward, blocks), rtol=1e-4)
    focal, focal_count = terms["first_error_focal"]
    expected = (
        entropy / blocks
        + tiny.LOSS.focal * float(focal) / float(focal_count)
        - tiny.LOSS.chain * reward / blocks
    )
    np.testing.assert_allclose(tiny.objective().total(terms, WEIGHTS), expected, rtol=1e-5)


def test_counts_are_those_of_the_terms(terms):
    counts = jax.jit(tiny.objective().counts)(tiny.batch(), KEY, WEIGHTS)
    assert set(counts) == {"cross_entropy", "chain_reward"}, "the focal count is not in the masks"
    for name, count in counts.items():
        assert float(count) == float(terms[name][1]) > 0


OBJECTIVES = ("d_pace", "lk", "tv", "forward_kl", "streak", "spec_auf")


@pytest.fixture(scope="module")
def counts_and_terms(packed):
    """Counts from the masks, and terms of slots that were predicted somehow, of each objective."""
    rng = np.random.default_rng(2)
    shape = packed.mask_BNG.shape
    slots = SlotStatistics(
        packed.log_p_BNG, rng.random(shape) < 0.5, rng.random(shape), rng.random(shape)
    )

    @jax.jit
    def compute(batch, mask_BNG, slots):
        found = {}
        for name, normalize in itertools.product(OBJECTIVES, ("block", "weight")):
            loss = LossConfig(objective=name, normalize=normalize)
            counts = tiny.objective(loss).counts(batch, KEY, WEIGHTS)
            terms = loss_terms(slots, mask_BNG, config=loss, weights=WEIGHTS)
            found[name, normalize] = counts, terms
        return found

    return jax.device_get(compute(tiny.batch(), packed.mask_BNG, slots))


@pytest.mark.parametrize("normalize", ["block", "weight"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_counts_of_every_objective(counts_and_terms, name, normalize):
    """Spec-AUF's slots follow from what is predicted, but not which blocks have one."""
    counts, terms = counts_and_terms[name, normalize]
    is_predicted = (name, normalize) == ("spec_auf", "weight")
    assert set(counts) == {"chain_reward"} | (set() if is_predicted else {name})
    for term, count in counts.items():
        assert float(count) == float(terms[term][1]) > 0


def test_only_the_check_imports_a_term():
    objective = tiny.objective(LossConfig(extra=("no_such_module:f=1",)))
    with pytest.raises(ValueError, match="'no_such_module:f' cannot be imported"):
        objective.check()
    tiny.objective(LossConfig(extra=("tv=1",))).check()


def test_anchors_follow_the_row_and_not_its_place():
    """A row has the same blocks on whichever device, and in whichever part, it is computed."""
    objective = tiny.objective()
    blocks = functools.partial(jax.jit(objective.blocks), key=KEY)
    whole = jax.device_get(blocks(tiny.batch()))
    order = np.array([5, 2, 7, 0])
    some = jax.device_get(blocks({k: v[order] for k, v in tiny.batch().items()}))
    for all_rows, some_rows in zip(whole, some, strict=True):
        np.testing.assert_array_equal(all_rows[order], some_rows)


def test_equal_rows_have_different_anchors():
    batch = tiny.batch()
    same = {name: np.repeat(values[:1], 8, axis=0) for name, values in batch.items()}
    same |= {"rows": batch["rows"], "loss_mask": same["segments"] > 0}
    anchors_BN, _, _ = jax.jit(tiny.objective().blocks)(same, key=KEY)
    assert len({tuple(row) for row in np.asarray(anchors_BN).tolist()}) > 4


@dataclasses.dataclass(frozen=True)
class OwnTarget(DrafterObjective):
    """A drafter that knows what the target will say: its hidden states are the target's."""

    def hidden(self, params, frozen, batch, anchors_BN, features_BSE):
        output = self.target.apply(
            {"params": frozen},
            batch["tokens"],
            positions_BS=batch["positions"],
            segments_BS=batch["segments"],
        )
        # The token at anchor + 1 + g is predicted where the one before it stands.
        slots = [
            jnp.take_along_axis(
                output.hidden_BSD,
                jnp.minimum(anchors_BN + g, batch["tokens"].shape[1] - 1)[..., None],
                axis=1,
            )
            for g in range(self.drafter.config.block_size - 1)
        ]
        return jnp.stack(slots, axis=2)


def test_distillation_compares_slots_with_the_targets_rows(params):
    loss = LossConfig(decay=None, focal=0, chain=0, objective="tv")
    objective = OwnTarget(tiny.TARGET, tiny.DRAFTER, loss, anchors=6)
    terms, metrics = jax.jit(objective)(*params, tiny.batch(), KEY, WEIGHTS)
    assert float(terms["tv"][0]) == pytest.approx(0.0, abs=1e-4)
    overlap, count = metrics["overlap"]
    assert float(overlap) == pytest.approx(float(count), rel=1e-6)


def test_target_objective_is_the_mean_over_documents(params):
    """Each document alone, token by token."""
    _, frozen = params
    batch = tiny.batch()
    objective = TargetObjective(tiny.TARGET)
    terms, _ = jax.jit(objective)(frozen, {}, batch, KEY, WEIGHTS)
    alone = jax.jit(
        lambda tokens: jax.nn.log_softmax(
            tiny.TARGET.apply(
                {"params": frozen},
                tiny.TARGET.apply({"params": frozen}, tokens).hidden_BSD,
                method="logits",
            )
        )
    )
    documents, places = [], []
    for row in range(8):
        for segment in (1, 2):
            (place,) = np.nonzero(batch["segments"][row] == segment)
            documents.append(np.pad(batch["tokens"][row, place], (0, 24 - len(place))))
            places.append((row, place))
    log_p = np.asarray(alone(np.stack(documents)))
    total, count = 0.0, 0
    for number, (row, place) in enumerate(places):
        for index in range(1, len(place)):
            if batch["loss_mask"][row, place[index]]:
                total -= log_p[number, index - 1, batch["tokens"][row, place[index]]]
                count += 1
    np.testing.assert_allclose(terms["cross_entropy"], (total, count), rtol=1e-5)
    assert float(objective.counts(batch, KEY, WEIGHTS)["cross_entropy"]) == count
    np.testing.assert_allclose(objective.total(terms, WEIGHTS), total / count, rtol=1e-5)


def test_chunks_of_tokens_change_neither_loss_nor_gradient(params):
    """Of a target; 5 divides no row."""
    _, frozen = params

    def value(params, objective):
        terms, _ = objective(params, {}, tiny.batch(), KEY, WEIGHTS)
        return objective.total(terms, WEIGHTS)

    step = jax.jit(jax.value_and_grad(value), static_argnums=1)
    whole, chunked = (TargetObjective(tiny.TARGET, chunk_tokens=size) for size in (0, 5))
    for got, want in zip(
        jax.tree.leaves(step(frozen, chunked)), jax.tree.leaves(step(frozen, whole)), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
