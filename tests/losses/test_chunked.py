import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.config import LossConfig
from jaxspec.losses import (
    OBJECTIVES,
    SlotStatistics,
    chunked_slot_statistics,
    chunked_token_values,
    elbo_values,
    loss_terms,
    slot_statistics,
    terms_needing_target_rows,
    total_from_terms,
)
from jaxspec.training.needs import matmul_operations

B, N, G, D, V = 2, 7, 3, 4, 11


def inputs():
    rng = np.random.default_rng(0)
    hidden, target_hidden = rng.standard_normal((2, B, N, G, D), np.float32)
    kernel = rng.standard_normal((D, V), np.float32)
    labels = rng.integers(0, V, (B, N, G), np.int32)
    return tuple(map(jnp.asarray, (hidden, kernel, labels, target_hidden)))


def weighted_sum(slots: SlotStatistics):
    """A scalar in which every slot has its own cotangent, so that no two can be mistaken."""
    cotangents = jnp.sin(jnp.arange(slots.log_p_NG.size, dtype=jnp.float32))
    cotangents = cotangents.reshape(slots.log_p_NG.shape)
    return jnp.sum(cotangents * (slots.log_p_NG + 2 * slots.overlap_NG + 3 * slots.kl_NG)), slots


def test_chunks_change_neither_value_nor_gradient():
    hidden, kernel, labels, target_hidden = inputs()

    def evaluate(chunk_blocks):
        def chunked(hidden, kernel):
            return weighted_sum(
                chunked_slot_statistics(
                    hidden,
                    labels,
                    head=lambda x: x @ kernel,
                    chunk_blocks=chunk_blocks,
                    target_hidden_BNGD=target_hidden,
                )
            )

        # Both the hidden states and what the head closes over are differentiated.
        return jax.jit(jax.value_and_grad(chunked, argnums=(0, 1), has_aux=True))(hidden, kernel)

    def whole(hidden, kernel):
        target_logits = jax.lax.stop_gradient(target_hidden @ kernel)
        return weighted_sum(
            slot_statistics(hidden @ kernel, labels, target_logits_NGV=target_logits)
        )

    expected = jax.jit(jax.value_and_grad(whole, argnums=(0, 1), has_aux=True))(hidden, kernel)
    # 7 blocks in chunks of at most 3: the last chunk holds one block and padding.
    result = evaluate(3)
    for got, want in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, atol=5e-6)


@pytest.mark.parametrize(("chunk_blocks", "scans"), [(0, 0), (1, 1), (6, 1), (7, 0), (9, 0)])
def test_scans_only_where_there_is_more_than_one_chunk(chunk_blocks, scans):
    hidden, kernel, labels, _ = inputs()
    program = jax.make_jaxpr(
        lambda hidden: chunked_slot_statistics(
            hidden, labels, head=lambda x: x @ kernel, chunk_blocks=chunk_blocks
        )
    )(hidden)
    assert str(program).count("scan[") == scans


def frozen_slots(hidden, *, chunk_blocks, distils):
    """Statistics under a head that is not trained."""
    _, kernel, labels, target_hidden = inputs()
    return chunked_slot_statistics(
        hidden,
        labels,
        head=lambda x: x @ kernel,
        chunk_blocks=chunk_blocks,
        target_hidden_BNGD=target_hidden if distils else None,
        frozen_head=True,
    )


def loss_of_slots(config: LossConfig):
    """The whole loss of `config`, of statistics."""
    mask = jnp.arange(G) < jnp.array([[1, 2, 3, 3, 3, 0, 2]])[..., None]
    mask = jnp.broadcast_to(mask, (B, N, G))
    return lambda slots: total_from_terms(loss_terms(slots, mask, config=config), config=config)


def frozen_loss(config: LossConfig, *, chunk_blocks: int):
    """The whole loss of `config` under a frozen head, of hidden states."""
    distils = bool(terms_needing_target_rows(config))
    loss = loss_of_slots(config)
    return lambda hidden: loss(frozen_slots(hidden, chunk_blocks=chunk_blocks, distils=distils))


LOSSES = {
    "uniform": LossConfig(decay=None, focal=0, chain=0),
    "focal": LossConfig(decay=None, focal=1.0, chain=0),
    "chain": LossConfig(decay=None, focal=0, chain=40.0),
    "distillation": LossConfig(extra=("forward_kl=0.5", "tv=0.1")),
    "by weight": LossConfig(normalize="weight"),
    **{name: LossConfig(objective=name) for name in OBJECTIVES},
}


@functools.cache
def values_and_gradients(chunk_blocks):
    """Of every loss, by its name; all of them are made of the same slots."""
    slots_to_loss = {name: loss_of_slots(config) for name, config in LOSSES.items()}

    @jax.jit
    def compute(hidden):
        def losses(hidden):
            slots = frozen_slots(hidden, chunk_blocks=chunk_blocks, distils=True)
            return {name: loss(slots) for name, loss in slots_to_loss.items()}

        return losses(hidden), jax.jacrev(losses)(hidden)

    return jax.device_get(compute(inputs()[0]))


@pytest.mark.parametrize("name", LOSSES)
def test_a_frozen_head_gives_every_loss_the_same_value_and_gradient(name):
    # 7 blocks in chunks of at most 3: the last chunk holds one block and padding.
    for ahead, whole in zip(values_and_gradients(3), values_and_gradients(0), strict=True):
        assert np.abs(whole[name]).max() > 1e-3
        np.testing.assert_allclose(ahead[name], whole[name], atol=1e-5)


def test_a_frozen_head_is_multiplied_twice():
    """Once for the logits and once for the gradient, as without chunks; nothing is recomputed."""
    hidden = inputs()[0]

    def operations(chunk_blocks):
        loss = frozen_loss(LossConfig(), chunk_blocks=chunk_blocks)
        return matmul_operations(jax.make_jaxpr(jax.grad(loss))(hidden))

    assert operations(1) == operations(0) == 2 * 2 * B * N * G * D * V


def test_only_the_gradients_that_the_loss_reads_are_computed():
    """Two products give logits, and one each the gradients of log-probability and overlap."""
    hidden = inputs()[0]
    loss = frozen_loss(LossConfig(objective="lk"), chunk_blocks=1)
    text = jax.jit(jax.grad(loss)).lower(hidden).compile().as_text()
    assert text.count(" dot(") == 4


def test_a_frozen_head_cannot_be_trained():
    hidden, kernel, labels, _ = inputs()

    def loss(kernel):
        slots = chunked_slot_statistics(
            hidden, labels, head=lambda x: x @ kernel, chunk_blocks=1, frozen_head=True
        )
        return slots.log_p_NG.sum()

    with pytest.raises(jax.errors.UnexpectedTracerError):
        jax.grad(loss)(kernel)


def test_without_a_batch_dimension_and_with_another_target_head():
    hidden, kernel, labels, target_hidden = inputs()

    @jax.jit
    def chunked(hidden, labels, target_hidden):
        return chunked_slot_statistics(
            hidden,
            labels,
            head=lambda x: x @ kernel,
            chunk_blocks=2,
            target_hidden_BNGD=target_hidden,
            target_head=lambda x: x @ kernel[:2],
        )

    @jax.jit
    def whole(hidden, labels, target_hidden):
        return slot_statistics(
            hidden @ kernel, labels, target_logits_NGV=target_hidden @ kernel[:2]
        )

    arguments = (hidden[0], labels[0], target_hidden[0, ..., :2])
    slots, expected = chunked(*arguments), whole(*arguments)
    for got, want in zip(jax.tree.leaves(slots), jax.tree.leaves(expected), strict=True):
        assert got.shape == (N, G)
        np.testing.assert_allclose(got, want, atol=1e-6)


def scratch_bytes(*, blocks, vocab, chunk_blocks=16, distill=False, frozen=False):
    """Scratch memory of one compiled value and gradient, of which nothing is ever allocated."""
    slots_a_block, width = 15, 64

    def loss(hidden, kernel, labels):
        slots = chunked_slot_statistics(
            hidden,
            labels,
            head=lambda x: x @ kernel,
            chunk_blocks=chunk_blocks,
            target_hidden_BNGD=hidden if distill else None,
            frozen_head=frozen,
        )
        return jnp.sum(slots.overlap_NG if distill else slots.log_p_NG)

    shape = (1, blocks, slots_a_block)
    program = jax.jit(jax.value_and_grad(loss)).lower(
        jax.ShapeDtypeStruct((*shape, width), jnp.float32),
        jax.ShapeDtypeStruct((width, vocab), jnp.float32),
        jax.ShapeDtypeStruct(shape, jnp.int32),
    )
    return program.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("vocab", [4096, 151_936])
def test_memory_does_not_grow_with_the_number_of_blocks(vocab, frozen):
    few = scratch_bytes(blocks=64, vocab=vocab, frozen=frozen)
    many = scratch_bytes(blocks=512, vocab=vocab, frozen=frozen)
    # Hidden states and their gradient, laid out by chunks, may grow; logits may not.
    assert many - few < 4 * (512 - 64) * 15 * 64 * 4
    # Logits of 16 blocks and their gradient, against those of 512.
    assert many < 2.5 * 16 * 15 * vocab * 4 + 4 * 512 * 15 * 64 * 4
    assert many < 0.15 * 512 * 15 * vocab * 4


def test_memory_of_all_logits_and_of_distillation():
    logits_bytes = 512 * 15 * 4096 * 4
    assert scratch_bytes(blocks=512, vocab=4096, chunk_blocks=0) > 0.9 * logits_bytes
    assert scratch_bytes(blocks=512, vocab=4096, distill=True) < 0.25 * logits_bytes


def test_memory_does_not_grow_with_the_number_of_tokens():
    """Of a row whose tokens are all learned, by value and gradient."""
    width, vocab = 64, 151_936

    def loss(hidden, kernel, labels, masked, times):
        values = chunked_token_values(
            lambda logits, labels, masked, times: elbo_values(
                logits, labels, masked_BS=masked, times_BS=times, mask_id=0
            ),
            *(hidden, labels, masked, times),
            head=lambda x: x @ kernel,
            chunk_tokens=256,
        )
        return values.sum()

    def scratch(tokens):
        def row(dtype, *shape):
            return jax.ShapeDtypeStruct((1, tokens, *shape), dtype)

        program = jax.jit(jax.value_and_grad(loss)).lower(
            row(jnp.float32, width),
            jax.ShapeDtypeStruct((width, vocab), jnp.float32),
            *(row(jnp.int32), row(bool), row(jnp.float32)),
        )
        return program.compile().memory_analysis().temp_size_in_bytes

    few, many = scratch(1024), scratch(8192)
    assert many - few < 4 * (8192 - 1024) * width * 4
    assert many < 0.15 * 8192 * vocab * 4


def test_errors_of_token_values():
    hidden, labels = jnp.zeros((1, 6, D)), jnp.zeros((1, 6))
    call = functools.partial(chunked_token_values, lambda logits, labels: labels, hidden)
    assert call(labels, head=lambda x: x, chunk_tokens=6).shape == (1, 6)
    with pytest.raises(ValueError, match="positive: got -1"):
        call(labels, head=lambda x: x, chunk_tokens=-1)
    with pytest.raises(ValueError, match=r"one entry for each .* got \(1, 5\), expected \(1, 6\)"):
        call(labels[:, :5], head=lambda x: x, chunk_tokens=0)


def test_errors():
    hidden, kernel, labels, target_hidden = inputs()

    def call(**changes):
        arguments = {"head": lambda x: x @ kernel, "chunk_blocks": 2} | changes
        return chunked_slot_statistics(hidden, labels, **arguments)

    with pytest.raises(ValueError, match="positive: got -1"):
        call(chunk_blocks=-1)
    with pytest.raises(ValueError, match="pass both, or neither"):
        call(target_head=lambda x: x)
    with pytest.raises(ValueError, match="agree with labels_BNG"):
        call(target_hidden_BNGD=target_hidden[:, :3])
    with pytest.raises(ValueError, match=r"must be \[\.\.\., N, G, D\]"):
        chunked_slot_statistics(hidden, labels[:, :2], head=lambda x: x, chunk_blocks=0)
