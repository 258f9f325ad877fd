"""Seconds of training, and images per second."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Pace:
    """Seconds over all sittings of a run, and the pace since the last line of the log."""

    def __init__(self) -> None:
        self.seconds_before = 0.0
        self.start(0)

    def start(self, step: int) -> None:
        """Begin to count at `step`."""
        self._began = self._last = time.monotonic()
        self._step = step

    @property
    def seconds(self) -> float:
        """Seconds of training, those before a resume included."""
        return self.seconds_before + time.monotonic() - self._began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep what happens within the block (a validation) out of the pace, not of `seconds`."""
        began = time.monotonic()
        yield
        self._last += time.monotonic() - began

    def line(self, step: int, batch_size: int) -> dict[str, float]:
        """Return what the log says of time after `step`."""
        now = time.monotonic()
        pace = (step - self._step) * batch_size / max(now - self._last, 1e-9)
        self._last, self._step = now, step
        return {"images_per_second": pace, "seconds": self.seconds}
