"""Rows refilled from a queue: no prompt notices, no row idles, nothing is compiled again."""

import dataclasses
import functools
import heapq
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.decoding import Autoregressive, DecodeRules, Speculative, generate
from jaxspec.decoding import rows as batch_rows
from jaxspec.decoding.generate import serve
from jaxspec.decoding.state import NO_LIMIT
from jaxspec.drafters.ngram import NGramProposer
from jaxspec.models.transformer import Transformer
from jaxspec.ops.sampling import Sampling
from tests.decoding import tiny

MANY = tuple(
    tuple(np.random.default_rng([length, 7]).integers(0, 60, length).tolist())
    for length in (5, 2, 31, 11, 8, 19, 1, 40, 3, 27, 14, 6)
)
NAMES = tuple(f"many/{index}" for index in range(len(MANY)))


@dataclasses.dataclass
class Watched:
    """A strategy, and the rounds that each visit to the device took."""

    strategy: Autoregressive | Speculative
    steps: list[int] = dataclasses.field(default_factory=list)

    def __getattr__(self, name):
        return getattr(self.strategy, name)

    def run(self, params, state, *, leave_on_end=False, max_rounds=NO_LIMIT):
        before = int(state.step)
        state = self.strategy.run(params, state, leave_on_end=leave_on_end, max_rounds=max_rounds)
        self.steps.append(int(state.step) - before)
        return state


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(0, id="autoregressive"),
        pytest.param(1, id="speculative"),
        pytest.param(2, id="tree", marks=pytest.mark.slow("blocks have the same rows and states")),
    ],
)
def test_answers_do_not_depend_on_the_batch(number):
    strategy, params = tiny.strategies()[number]
    alone = generate(strategy, params, MANY, ids=NAMES, batch_size=1)
    for batch_size in (3, len(MANY) + 1):
        assert generate(strategy, params, MANY, ids=NAMES, batch_size=batch_size) == alone
    assert len({len(response.tokens) for response in alone}) > 3


def test_samples_do_not_depend_on_the_batch():
    warm = Sampling(1.0)
    model, target = tiny.target()
    proposer, drafter = tiny.dflash(model, sampling=warm)
    strategy = Speculative(model, proposer, tiny.RULES, "token", warm)
    params = {"target": tiny.scaled(target, 0.6), "drafter": drafter}
    alone = generate(strategy, params, MANY, ids=NAMES, batch_size=1)
    assert generate(strategy, params, MANY, ids=NAMES, batch_size=3) == alone
    assert generate(strategy, params, MANY, ids=NAMES, batch_size=3, seed=1) != alone


def test_no_row_waits_for_another():
    """One token a round: as many rounds as a list of tasks takes on three machines."""
    plain, params = tiny.strategies()[0]
    watched = Watched(plain)
    lengths = [len(r.tokens) for r in generate(watched, params, MANY, ids=NAMES, batch_size=3)]
    machines = [0, 0, 0]
    for index in sorted(range(len(MANY)), key=lambda i: -len(MANY[i])):
        # The first token is the prefill's.
        heapq.heappush(machines, heapq.heappop(machines) + lengths[index] - 1)
    assert sum(watched.steps) == max(machines)
    # In batches that wait for their longest response it would be more.
    order = sorted(range(len(MANY)), key=lambda i: -len(MANY[i]))
    waiting = sum(max(lengths[i] - 1 for i in order[at : at + 3]) for at in range(0, 12, 3))
    assert sum(watched.steps) < waiting


@dataclasses.dataclass
class Counted:
    """A strategy, and how many prompts each of its prefills was given."""

    strategy: Autoregressive | Speculative
    prefills: list[int] = dataclasses.field(default_factory=list)

    def __getattr__(self, name):
        return getattr(self.strategy, name)

    def start(self, params, prompts, *, capacity):
        self.prefills.append(int(prompts.active_B.sum()))
        return self.strategy.start(params, prompts, capacity=capacity)


@pytest.mark.parametrize("number", [0, 1], ids=["autoregressive", "speculative"])
def test_prompts_are_prefilled_together(number, is_slow):
    """32 rows wait for one another in pairs, and 80 for five; what is left over comes at last."""
    strategy, params = tiny.strategies()[number]
    prompts = [(*prompt, token) for token in (3, 5) for prompt in MANY]
    names = [f"{index}" for index in range(len(prompts))]
    alone = generate(strategy, params, prompts, ids=names, batch_size=1)
    batches = [(32, [2] * 12), (80, [5, 5, 5, 5, 4])]
    for rows, prefills in batches if is_slow or number == 0 else batches[:1]:
        counted = Counted(strategy)
        assert generate(counted, params, prompts, ids=names, batch_size=rows) == alone
        assert counted.prefills == prefills


def test_prompts_of_different_buckets_are_prefilled_apart():
    model, params = _long_target()
    prompts = [(7,) * length for length in (300, 5, 290, 130, 6)]
    counted = Counted(Autoregressive(model, DecodeRules(2)))
    names = [f"{index}" for index in range(len(prompts))]
    generate(counted, params, prompts, ids=names, batch_size=48)
    assert counted.prefills == [2, 1, 2]


def test_a_row_waits_until_enough_others_are_free():
    """Counted on the host: ends of rows and refills of them take turns as the policy says."""
    lengths = {0: 4, 1: 1, 2: 2, 3: 3, 4: 1, 5: 1, 6: 1}
    log = []

    @dataclasses.dataclass
    class State:
        active_B: np.ndarray
        left: list

    def run(state, *, leave_on_end):
        while state.active_B.any():
            state.left = [max(0, left - 1) for left in state.left]
            ended = state.active_B & (np.array(state.left) == 0)
            state.active_B = state.active_B & ~ended
            if leave_on_end and ended.any():
                break
        log.append(("run", int(state.active_B.sum())))
        return state

    def prefilled(batch):
        log.append(("prefill", *batch))
        return batch

    with pytest.MonkeyPatch.context() as patched:
        module = importlib.import_module("jaxspec.decoding.generate")
        patched.setattr(module, "vacant", lambda new, rows: State(np.zeros(rows, bool), [0] * 4))
        patched.setattr(module, "places", lambda rows, of: rows)

        def insert(state, batch, rows):
            for row, prompt in zip(rows, batch, strict=True):
                state.active_B[row], state.left[row] = True, lengths[prompt]
            return state

        patched.setattr(module, "insert", insert)
        queue = [[0, 1], [2, 3], [4, 5], [6]]
        served = list(serve(queue, prefilled, run, lambda state, row, index: row, rows=4))
    assert sorted(index for index, _ in served) == list(range(7))
    assert log == [
        ("prefill", 0, 1),
        ("prefill", 2, 3),
        ("run", 3),  # One row is free, and the next two prompts wait for another.
        ("run", 2),
        ("prefill", 4, 5),
        ("run", 1),
        ("prefill", 6),
        ("run", 0),
    ]


def test_nothing_is_compiled_after_the_first_refill():
    strategy, params = tiny.strategies()[1]
    generate(strategy, params, MANY[:4], ids=NAMES[:4], batch_size=3)
    programs = (
        type(strategy).start,
        type(strategy).run,
        batch_rows.vacant,
        batch_rows.insert,
        batch_rows.read,
    )
    sizes = [program._cache_size() for program in programs]
    compiled = []
    with jax.log_compiles(True):
        handler = _count_compilations(compiled)
        try:
            generate(strategy, params, MANY, ids=NAMES, batch_size=3)
            found = list(compiled)
            # The log is heard: a program that was never seen shows up in it.
            jax.jit(lambda x: x + len(NAMES))(jnp.ones(3))
        finally:
            handler()
    assert [program._cache_size() for program in programs] == sizes
    assert found == []
    assert compiled


def _count_compilations(found):
    import logging

    class Handler(logging.Handler):
        def emit(self, record):
            if "Compiling" in record.getMessage():
                found.append(record.getMessage())

    handler = Handler()
    logger = logging.getLogger("jax")
    logger.addHandler(handler)
    return lambda: logger.removeHandler(handler)


def test_prompts_of_very_different_length():
    """1 : 1000; the short one is decoded next to the long one, and later alone."""
    model, params = _long_target()
    rules = DecodeRules(12, suppressed_ids=(tiny.MASK_ID,))
    rng = np.random.default_rng(3)
    prompts = [tuple(rng.integers(0, 60, length).tolist()) for length in (1, 1000, 2, 130)]
    names = ["one", "thousand", "two", "more"]
    plain = Autoregressive(model, rules)
    alone = [generate(plain, params, [p], ids=[n])[0] for p, n in zip(prompts, names, strict=True)]
    together = generate(plain, params, prompts, ids=names, batch_size=2)
    assert [r.tokens for r in together] == [r.tokens for r in alone]
    lookup = Speculative(model, NGramProposer(4), rules)
    fast = generate(lookup, {"target": params, "drafter": {}}, prompts, ids=names, batch_size=2)
    assert [r.tokens for r in fast] == [r.tokens for r in alone]


@functools.cache
def _long_target():
    architecture = dataclasses.replace(
        tiny.ARCHITECTURE, num_layers=1, max_position_embeddings=2048
    )
    model = Transformer(architecture)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    return model, {**params, "embed": tiny.scaled(params["embed"], 30.0)}
