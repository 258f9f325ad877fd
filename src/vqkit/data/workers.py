"""A bounded look-ahead over a thread pool; results come in order, whatever the threads do."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def count_workers() -> int:
    """Threads worth starting here: one per processor this process may use, at most 8."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(8, usable or 1))


def ordered(
    function: Callable[[Argument], Result],
    arguments: Iterable[Argument],
    *,
    workers: int,
    ahead: int,
    stop: Callable[[], None] | None = None,
) -> Generator[Result, None, None]:
    """Yield `function(argument)` in the order of `arguments`, computing at most `ahead` in advance.

    An exception of a worker is raised here, at its place in the order. Closing the generator (also
    by Ctrl-C or garbage collection) cancels what has not begun, calls `stop`, which may cut short
    what has, and waits for it.
    """
    remaining = iter(arguments)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="vqkit-data")
    try:
        waiting: deque[Future[Result]] = deque(
            pool.submit(function, argument) for argument in islice(remaining, max(1, ahead))
        )
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, argument) for argument in islice(remaining, 1))
            yield result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        if stop is not None:
            stop()
        pool.shutdown(wait=True)
