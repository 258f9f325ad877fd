"""How far a run is and how long it will take: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Protocol, TextIO


class Progress(Protocol):
    """What the loop tells about itself."""

    def update(self, step: int, loss: float) -> None:
        """Say that optimizer step number `step` is done."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class Silent:
    """Shows nothing."""

    def update(self, step: int, loss: float) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class PlainLines:
    """One line every `every` seconds, and one for the last step."""

    def __init__(
        self,
        name: str,
        start: int,
        num_steps: int,
        stream: TextIO,
        *,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.start, self.num_steps = name, start, num_steps
        self._stream, self._every, self._clock = stream, every, clock
        self._began = self._last = clock()

    def update(self, step: int, loss: float) -> None:
        """Write a line if it is time."""
        now = self._clock()
        if now - self._last < self._every and step < self.num_steps:
            return
        self._last = now
        left = (now - self._began) / (step - self.start) * (self.num_steps - step)
        self._stream.write(
            f"{self.name}: step {step:,} of {self.num_steps:,}, loss {loss:.4g}, "
            f"{format_seconds(left)} left\n"
        )
        self._stream.flush()

    def close(self) -> None:
        """Do nothing: every line is complete."""


class Bar:
    """A bar drawn by rich."""

    def __init__(self, name: str, start: int, num_steps: int) -> None:
        from rich import progress
        from rich.console import Console

        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("loss {task.fields[loss]:.4g}"),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        nothing: Any = float("nan")
        self._task = self._bar.add_task(name, total=num_steps, completed=start, loss=nothing)
        self._bar.start()

    def update(self, step: int, loss: float) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=step, loss=loss)

    def close(self) -> None:
        """Stop drawing."""
        self._bar.stop()


def open_progress(show: bool, name: str, start: int, num_steps: int) -> Progress:
    """Choose the display: a bar if stderr is a terminal and rich is installed, or plain lines."""
    if not show:
        return Silent()
    if sys.stderr.isatty():
        try:
            return Bar(name, start, num_steps)
        except ImportError:
            pass  # the bar is a nicety of the extra `train`
    return PlainLines(name, start, num_steps, sys.stderr)


def format_seconds(seconds: float) -> str:
    """Return 3725 as "1:02:05" and 125 as "2:05"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
