"""How far a clustering is and how long it will take: plain lines, on the first process alone."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO


class Progress:
    """A line every `every` seconds; a clustering that is done before writes none."""

    def __init__(
        self,
        total: int,
        stream: TextIO | None,
        *,
        name: str = "k-means",
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Count up to `total` rows of all iterations; without a stream nothing is shown."""
        self._name = name
        self.total, self.done = total, 0
        self._stream, self._every, self._clock = stream, every, clock
        self._began = self._last = clock()
        self._first = 0

    def skip(self, rows: int) -> None:
        """Count rows that an earlier run has done."""
        self.done += rows
        self._first = self.done

    def tick(self, rows: int) -> None:
        """Count rows, and write a line if it is time."""
        self.done = min(self.done + rows, self.total)
        now = self._clock()
        if self._stream is None or now - self._last < self._every or self.done == self._first:
            return
        self._last = now
        left = (now - self._began) / (self.done - self._first) * (self.total - self.done)
        share = 100 * self.done / self.total
        self._stream.write(f"{self._name}: {share:.1f} % done, {time_left(left)} left\n")
        self._stream.flush()


def open_progress(show: bool, total: int, name: str = "k-means") -> Progress:
    """Write to stderr, or nothing."""
    return Progress(total, sys.stderr if show else None, name=name)


def time_left(seconds: float) -> str:
    """Return 3725 as "1:02:05" and 125 as "2:05"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
