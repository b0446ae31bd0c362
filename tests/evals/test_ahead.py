"""Programs are compiled ahead, once each, and are those that the calls use."""

from __future__ import annotations

import contextlib
import dataclasses
import threading

import jax
import jax.numpy as jnp
import pytest
from jax import monitoring

from jaxspec.evals.ahead import Ahead, Program, shapes_of, threads_at_hand
from jaxspec.evals.speculative.programs import batch_programs, timing_programs
from jaxspec.evals.speculative.timing import measure_speed
from tests.decoding import tiny

ROWS = 3


@contextlib.contextmanager
def compiled():
    """The threads in which the block compiles programs."""
    threads: list[str] = []

    def listen(event, seconds, **_):
        if event.endswith("backend_compile_duration"):
            threads.append(threading.current_thread().name)

    monitoring.register_event_duration_secs_listener(listen)
    yield threads
    monitoring.unregister_event_duration_listener(listen)


def program(name, function, *arguments, key=None):
    return Program(name, key or name, lambda: jax.jit(function).lower(*arguments))


def test_a_known_program_is_not_compiled_again():
    lines = []
    with compiled() as threads, Ahead(lines.append, threads=2) as ahead:
        first = ahead.add([program("doubling", lambda x: x * 2.125, jnp.ones(3))])
        again = ahead.add([program("doubling", lambda x: x * 3.125, jnp.ones(3))])
        assert ahead.wait() > 0
    assert first == again == ["doubling"]
    assert sum(name.startswith("compile") for name in threads) == 1
    assert lines[0] == "Compiling 1 program: doubling."
    assert lines[1].startswith("Compiled 1 program within ")


def test_several_are_compiled_at_a_time():
    meeting = threading.Barrier(2, timeout=60)

    def met():
        meeting.wait()  # Passes only if both are being compiled.
        return jax.jit(lambda x: x + 1.375).lower(jnp.ones(2))

    with Ahead(lambda line: None, threads=2) as ahead:
        ahead.add([Program("one", 1, met), Program("other", 2, met)])
        ahead.wait()


def test_a_mistake_in_a_program_is_raised():
    def broken():
        raise ValueError("no such shape")

    with Ahead(lambda line: None, threads=1) as ahead:
        keys = ahead.add([Program("broken", 0, broken)])
        with pytest.raises(ValueError, match="no such shape"):
            ahead.wait(keys)


def test_one_program_at_least():
    assert 1 <= threads_at_hand() <= 8


def fresh_strategies(max_new_tokens):
    """(strategy, params) of autoregressive and speculative, with a limit that no test has twice.

    So their programs are not compiled yet, and others' need not be dropped.
    """
    rules = dataclasses.replace(tiny.RULES, max_new_tokens=max_new_tokens)
    return [
        (dataclasses.replace(strategy, rules=rules), params)
        for strategy, params in tiny.strategies()[:2]
    ]


def test_decoding_compiles_no_loop_that_was_compiled_ahead():
    """Autoregressive and speculative."""
    strategies = fresh_strategies(21)
    with Ahead(lambda line: None, threads=2) as ahead:
        for strategy, params in strategies:
            shapes = shapes_of(strategy.prepare(params))
            keys = ahead.add(batch_programs(strategy, shapes, tiny.PROMPTS, rows=ROWS))
            # All prompts are of one length: one prefill, one loop.
            assert [key[0] for key in keys] == ["start", "run"]
        ahead.wait()
    with compiled_names() as names:
        for strategy, params in strategies:
            tiny.decode(strategy, params, batch_size=ROWS)
    assert not {"jit(start)", "jit(run)"} & set(names), names


@contextlib.contextmanager
def compiled_names():
    """The names of the programs that the block compiles, and of one more."""
    names: list[str] = []

    def listen(event, seconds, *, fun_name="", **_):
        if event.endswith("backend_compile_duration"):
            names.append(fun_name)

    monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.jit(lambda x: x + len(names))(1.0)
    monitoring.unregister_event_duration_listener(listen)
    assert "jit(<lambda>)" in names, names


def test_timing_compiles_nothing_large_that_was_compiled_ahead():
    (alone, target), (strategy, params) = fresh_strategies(20)
    prompts = tiny.PROMPTS[:2]
    with Ahead(lambda line: None, threads=2) as ahead:
        for each, its in ((alone, target), (strategy, params)):
            ahead.add(
                timing_programs(
                    each,
                    shapes_of(each.prepare(its)),
                    prompts,
                    capacity_of=strategy,
                    with_parts=each is strategy,
                )
            )
        ahead.wait()
    with compiled_names() as names:
        measure_speed(
            alone,
            strategy,
            prompts,
            target_params=target,
            params=params,
            ids=tiny.IDS[:2],
            repeats=1,
            seed=0,
        )
    ours = {"start", "run", "_read_once", "_draft_loop", "_target_loop", "_rule_loop"}
    ours |= {"_finish_loop"}
    assert not {f"jit({name})" for name in ours} & set(names), names


def test_lengths_of_one_bucket_share_programs():
    (alone, params), *_ = tiny.strategies()
    shapes = shapes_of(alone.prepare(params))
    keys = [
        [each.key for each in batch_programs(alone, shapes, prompts, rows=ROWS)]
        for prompts in ([[1] * 5] * 4, [[2] * 100, [1] * 128], [[1] * 129, [1]])
    ]
    assert keys[0] == keys[1]
    assert len(keys[2]) == 3 and not set(keys[0]) & set(keys[2])
