"""Slow references for the losses: float64 numpy, one loop for each sum in the formulas."""

from __future__ import annotations

import itertools
import math

import numpy as np


def log_softmax(row):
    row = np.asarray(row, dtype=np.float64)
    top = row.max()
    return row - top - math.log(sum(math.exp(x - top) for x in row))


def statistics(logits, labels):
    """log_p [N, G] and correct [N, G] of logits [N, G, V]."""
    log_p = np.zeros(labels.shape)
    correct = np.zeros(labels.shape, dtype=bool)
    for n, g in np.ndindex(labels.shape):
        row = log_softmax(logits[n, g])
        log_p[n, g] = row[labels[n, g]]
        correct[n, g] = int(np.argmax(row)) == labels[n, g]
    return log_p, correct


def divergences(logits, target_logits):
    """Overlap [N, G] and KL [N, G]; ids that the drafter forbids leave the target's KL."""
    overlap = np.zeros(logits.shape[:-1])
    kl = np.zeros(logits.shape[:-1])
    for n, g in np.ndindex(overlap.shape):
        allowed = np.isfinite(logits[n, g])
        q = np.exp(log_softmax(logits[n, g]))
        p = np.exp(log_softmax(target_logits[n, g]))
        overlap[n, g] = sum(min(a, b) for a, b in zip(p, q, strict=True))
        kept = p * allowed / (p * allowed).sum()
        kl[n, g] = sum(a * math.log(a / b) for a, b in zip(kept, q, strict=True) if a > 0)
    return overlap, kl


def counted(mask):
    """Per block, the list of slots before the first masked one."""
    blocks = []
    for row in mask:
        slots = []
        for g, flag in enumerate(row):
            if not flag:
                break
            slots.append(g)
        blocks.append(slots)
    return blocks


def weights(num_slots, decay):
    if decay is None:
        return [1.0] * num_slots
    return [math.exp(-g / decay) for g in range(num_slots)]


def weighted_mean(values, w, blocks, normalize):
    total, divisor = 0.0, 0.0
    for n, slots in enumerate(blocks):
        for g in slots:
            total += w[g] * values[n, g]
            divisor += w[g] if normalize == "weight" else 0.0
        divisor += 1.0 if normalize == "block" and slots else 0.0
    return total / divisor if divisor else 0.0


def cross_entropy(log_p, w, mask, normalize):
    return weighted_mean(-log_p, w, counted(mask), normalize)


def first_error(log_p, correct, w, mask):
    total, divisor = 0.0, 0.0
    for n, slots in enumerate(counted(mask)):
        for g in slots:
            if not correct[n, g]:
                total += -w[g] * log_p[n, g]
                divisor += w[g]
                break
    return total / divisor if divisor else 0.0


def prefix(log_p, mask):
    rho = np.zeros(log_p.shape)
    for n, slots in enumerate(counted(mask)):
        product = 1.0
        for g in slots:
            product *= math.exp(log_p[n, g])
            rho[n, g] = product
    return rho


def chain(log_p, mask):
    rho = prefix(log_p, mask)
    rewards = [sum(rho[n]) / len(slots) for n, slots in enumerate(counted(mask)) if slots]
    return sum(rewards) / len(rewards) if rewards else 0.0


def chain_gradient(log_p, mask):
    """dR / dlog p of every slot, from the closed form."""
    rho = prefix(log_p, mask)
    blocks = counted(mask)
    present = sum(1 for slots in blocks if slots)
    gradient = np.zeros(log_p.shape)
    for n, slots in enumerate(blocks):
        for k in slots:
            gradient[n, k] = sum(rho[n, g] for g in slots if g >= k) / (present * len(slots))
    return gradient


def d_pace_weights(log_p, mask, smoothing):
    result = np.zeros(log_p.shape)
    for n, slots in enumerate(counted(mask)):
        reach, product = {}, 1.0
        for g in slots:
            product *= (1 - smoothing) * math.exp(log_p[n, g]) + smoothing
            reach[g] = product
        for k in slots:
            result[n, k] = sum(reach[g] for g in slots if g >= k)
    return result


def reach(log_p, mask):
    """The chance that each slot is reached: the product of those before it."""
    result = np.ones(log_p.shape)
    for n, slots in enumerate(counted(mask)):
        for earlier, later in itertools.pairwise(slots):
            result[n, later] = result[n, earlier] * math.exp(log_p[n, earlier])
    return result


def objective(name, *, log_p, correct, w, mask, normalize, overlap=None, kl=None):
    blocks = counted(mask)
    if name == "cross_entropy":
        values = -log_p
    elif name == "d_pace":
        values = -d_pace_weights(log_p, mask, 0.5) * log_p
    elif name == "lk":
        values = -np.log(overlap)
    elif name == "tv":
        values = 1 - overlap
    elif name == "forward_kl":
        values = kl
    elif name == "streak":
        values = -prefix(log_p, mask)
    elif name == "detached_streak":
        values = -reach(log_p, mask) * log_p
    else:
        assert name == "spec_auf"
        values = -log_p
        for n, slots in enumerate(blocks):
            errors = [g for g in slots if not correct[n, g]]
            blocks[n] = [g for g in slots if not errors or g <= errors[0]]
    return weighted_mean(values, w, blocks, normalize)


def total(log_p, correct, mask, *, decay, focal, chain_weight, normalize):
    w = weights(log_p.shape[-1], decay)
    return (
        cross_entropy(log_p, w, mask, normalize)
        + focal * first_error(log_p, correct, w, mask)
        - chain_weight * chain(log_p, mask)
    )


def acceptance(correct, mask):
    """(accepted sum, blocks, accept_at sums [G], accept_at counts [G], wasted)."""
    num_slots = correct.shape[-1]
    accepted, present, wasted = 0, 0, 0
    sums, counts = np.zeros(num_slots), np.zeros(num_slots)
    for n, slots in enumerate(counted(mask)):
        present += bool(slots)
        alive = True
        for g in slots:
            if alive:
                counts[g] += 1
                if correct[n, g]:
                    accepted += 1
                    sums[g] += 1
                else:
                    alive = False
            elif correct[n, g]:
                wasted += 1
    return accepted, present, sums, counts, wasted


def finite_differences(function, x, step=1e-5):
    """Central differences of a scalar function of a float64 array."""
    gradient = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (function(up) - function(down)) / (2 * step)
    return gradient


def random_batch(seed, *, blocks=6, slots=5, vocab=7):
    """Logits, labels (often the argmax), a mask with gaps, an empty block and a full one."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(blocks, slots, vocab))
    guess = logits.argmax(-1)
    labels = np.where(rng.random(guess.shape) < 0.6, guess, rng.integers(vocab, size=guess.shape))
    mask = rng.random(guess.shape) < 0.8
    mask[0], mask[1] = False, True
    mask[2] = [True, True] + [False] * (slots - 2)
    return logits, labels.astype(np.int32), mask
