import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.losses import (
    LossConfig,
    chunked_slot_statistics,
    drafter_loss,
    loss_terms,
    total_from_terms,
)

B, N, G, D, V = 2, 7, 3, 4, 11


def inputs():
    keys = jax.random.split(jax.random.key(0), 5)
    hidden = jax.random.normal(keys[0], (B, N, G, D))
    kernel = jax.random.normal(keys[1], (D, V))
    labels = jax.random.randint(keys[2], (B, N, G), 0, V)
    mask = jax.random.uniform(keys[3], (B, N, G)) < 0.8
    target_hidden = jax.random.normal(keys[4], (B, N, G, D))
    return hidden, kernel, labels, mask, target_hidden


def value_and_gradients(chunk_blocks, objective):
    hidden, kernel, labels, mask, target_hidden = inputs()
    config = LossConfig(objective=objective)

    @jax.jit
    @lambda f: jax.value_and_grad(f, argnums=(0, 1))
    def loss(hidden, kernel):
        slots = chunked_slot_statistics(
            hidden,
            labels,
            head=lambda x: x @ kernel,
            chunk_blocks=chunk_blocks,
            target_hidden_BNGD=target_hidden if objective == "lk" else None,
        )
        return total_from_terms(loss_terms(slots, mask, config=config), config=config)

    return loss(hidden, kernel)


@pytest.mark.parametrize("objective", ["cross_entropy", "lk"])
def test_chunks_change_neither_value_nor_gradient(objective):
    hidden, kernel, labels, mask, target_hidden = inputs()
    config = LossConfig(objective=objective)
    expected, _ = drafter_loss(
        hidden @ kernel, labels, mask, config=config, target_logits_NGV=target_hidden @ kernel
    )
    value, gradients = value_and_gradients(0, objective)
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    # 7 blocks in chunks of at most 3, 2 (both with a padded last chunk) and 1; 9 is all of them.
    for chunk_blocks in (3, 2, 1, 9):
        chunked_value, chunked_gradients = value_and_gradients(chunk_blocks, objective)
        assert float(chunked_value) == pytest.approx(float(value), rel=1e-6)
        for chunked, whole in zip(chunked_gradients, gradients, strict=True):
            np.testing.assert_allclose(chunked, whole, atol=2e-6)


def test_statistics_keep_their_order_and_shape_without_a_batch_dimension():
    hidden, kernel, labels, _, _ = inputs()
    whole = chunked_slot_statistics(hidden[0], labels[0], head=lambda x: x @ kernel, chunk_blocks=0)
    slots = chunked_slot_statistics(hidden[0], labels[0], head=lambda x: x @ kernel, chunk_blocks=3)
    assert slots.overlap_NG is None
    np.testing.assert_allclose(slots.log_p_NG, whole.log_p_NG, rtol=1e-6)
    np.testing.assert_array_equal(slots.correct_NG, whole.correct_NG)


def test_separate_target_head():
    hidden, kernel, labels, _, target_hidden = inputs()
    slots = chunked_slot_statistics(
        hidden,
        labels,
        head=lambda x: x @ kernel,
        chunk_blocks=2,
        target_hidden_BNGD=target_hidden[..., :2],
        target_head=lambda x: x @ kernel[:2],
    )
    p, q = jax.nn.softmax(target_hidden[..., :2] @ kernel[:2]), jax.nn.softmax(hidden @ kernel)
    np.testing.assert_allclose(slots.overlap_NG, jnp.minimum(p, q).sum(-1), rtol=1e-5)


def temporary_bytes(*, blocks, vocab, chunk_blocks, objective="cross_entropy"):
    """Scratch memory of one compiled loss and gradient; nothing of this size is ever allocated."""
    slots_a_block, width = 15, 64
    config = LossConfig(objective=objective)

    def loss(hidden, kernel, labels, mask):
        slots = chunked_slot_statistics(
            hidden,
            labels,
            head=lambda x: x @ kernel,
            chunk_blocks=chunk_blocks,
            target_hidden_BNGD=hidden if objective != "cross_entropy" else None,
        )
        return total_from_terms(loss_terms(slots, mask, config=config), config=config)

    shape = (1, blocks, slots_a_block)
    program = jax.jit(jax.value_and_grad(loss)).lower(
        jax.ShapeDtypeStruct((*shape, width), jnp.float32),
        jax.ShapeDtypeStruct((width, vocab), jnp.float32),
        jax.ShapeDtypeStruct(shape, jnp.int32),
        jax.ShapeDtypeStruct(shape, jnp.bool_),
    )
    return program.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    ("vocab", "objective"), [(4096, "cross_entropy"), (151_936, "cross_entropy"), (4096, "lk")]
)
def test_memory_does_not_grow_with_the_number_of_blocks(vocab, objective):
    chunk_logits = 16 * 15 * vocab * 4
    few = temporary_bytes(blocks=64, vocab=vocab, chunk_blocks=16, objective=objective)
    many = temporary_bytes(blocks=512, vocab=vocab, chunk_blocks=16, objective=objective)
    whole = temporary_bytes(blocks=512, vocab=vocab, chunk_blocks=0, objective=objective)
    # What may grow is hidden states and their gradient, laid out by chunks; logits may not.
    hidden_growth = (512 - 64) * 15 * 64 * 4
    assert many - few < 4 * hidden_growth
    assert many < (3 if objective == "cross_entropy" else 8) * chunk_logits + 6 * hidden_growth
    assert whole > 30 * chunk_logits


def test_errors():
    hidden, kernel, labels, _, target_hidden = inputs()

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
