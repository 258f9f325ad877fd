"""How far a run is, how well, and how long it will take: a bar in a terminal, else plain lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol, TextIO

_SHORT: Final = {
    "codes_used": "codes {codes_used:.1%}",
    "perplexity": "perplexity {perplexity:,.1f}",
    "reselected": "reselected {reselected:,}",
    "norm_ratio": "norms {norm_ratio:.3g}",
    "accuracy_fake": "D {accuracy_real:.2f}/{accuracy_fake:.2f}",
    "adaptive_weight": "λ {adaptive_weight:.3g}",
    "images_per_second": "{images_per_second:,.1f} images/s",
    "memory_bytes": "{gibibytes:.2f} GiB",
}


class Progress(Protocol):
    """What the loop tells about itself."""

    def update(self, step: int, loss: float) -> None:
        """Say that optimizer step number `step` is done."""

    def note(self, line: Mapping[str, Any]) -> None:
        """Show the health in a line of the log until the next one."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class Silent:
    """Shows nothing."""

    def update(self, step: int, loss: float) -> None:
        """Do nothing."""

    def note(self, line: Mapping[str, Any]) -> None:
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
        self._health = ""

    def update(self, step: int, loss: float) -> None:
        """Write a line if it is time."""
        now = self._clock()
        if now - self._last < self._every and step < self.num_steps:
            return
        self._last = now
        left = (now - self._began) / (step - self.start) * (self.num_steps - step)
        self._stream.write(
            f"{self.name}: step {step:,} of {self.num_steps:,}, loss {loss:.4g}, "
            f"{format_seconds(left)} left{self._health}\n"
        )
        self._stream.flush()

    def note(self, line: Mapping[str, Any]) -> None:
        """Keep the health for the next line."""
        health = short_health(line)
        self._health = f"; {health}" if health else ""

    def close(self) -> None:
        """Do nothing: every line is complete."""


class Bar:
    """A bar drawn by rich, and the health below it."""

    def __init__(self, name: str, start: int, num_steps: int) -> None:
        from rich import progress
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        console = Console(stderr=True)
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("loss {task.fields[loss]:.4g}"),
            progress.TimeRemainingColumn(),
            console=console,
        )
        nothing: Any = float("nan")
        self._task = self._bar.add_task(name, total=num_steps, completed=start, loss=nothing)
        self._health = Text(style="dim", no_wrap=True, overflow="ellipsis")
        self._live = Live(get_renderable=self._drawn, console=console)
        self._live.start()

    def _drawn(self) -> Any:
        from rich.console import Group

        return Group(self._bar, self._health) if self._health else self._bar

    def update(self, step: int, loss: float) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=step, loss=loss)

    def note(self, line: Mapping[str, Any]) -> None:
        """Write the health below the bar."""
        self._health.plain = short_health(line)

    def close(self) -> None:
        """Stop drawing."""
        self._live.stop()


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


def short_health(line: Mapping[str, Any]) -> str:
    """Return what a line of the log says of codes, discriminator, pace and memory, in few words.

    `norms` is `norm_ratio`, `D 0.81/0.77` the discriminator's accuracy on real and reconstructed
    images, `λ` the adaptive weight.
    """
    values = {**line, "gibibytes": line.get("memory_bytes", 0) / 2**30}
    return ", ".join(text.format_map(values) for key, text in _SHORT.items() if key in line)
