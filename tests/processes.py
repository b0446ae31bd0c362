"""The processes of a pod as threads of one process, for what they tell each other."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from jaxspec.parallel.shares import Share


def as_processes(count: int, run: Callable[[Share], Any]) -> list[Any]:
    """What `run` returns, or raises, in each of the processes. When one ends, all do."""
    meeting = threading.Barrier(count)
    values: list[Any] = [None] * count
    results: list[Any] = [None] * count

    def gather(index: int, value: Any) -> list[Any]:
        values[index] = value
        meeting.wait(60)
        found = list(values)
        meeting.wait(60)
        return found

    def one(index: int) -> None:
        try:
            results[index] = run(Share(index, count, gather=functools.partial(gather, index)))
        except BaseException as error:
            meeting.abort()
            results[index] = error

    threads = [threading.Thread(target=one, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def refusals(results: list[Any]) -> list[str]:
    """What the processes say that refuse the work; none of them may have done it.

    The first one that ends may break up the meeting before another has heard the answer.
    """
    assert all(isinstance(found, ValueError | threading.BrokenBarrierError) for found in results)
    return [str(found) for found in results if isinstance(found, ValueError)]
