"""What the rules of health remember of earlier lines: few numbers, as JSON values."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Lasting:
    """Something that holds at this line and held at all lines since it began."""

    span: float
    """Steps, or seconds, since the first line at which it held."""
    lines: int
    """Lines at which it held, this one included."""
    first: float
    """A value as it was when it began."""
    peak: float
    """The largest such value since then."""


class Traces:
    """Last values, best values, and since when something holds, each under a key."""

    def __init__(self) -> None:
        self._tails: dict[str, list[float]] = {}
        self._best: dict[str, float] = {}
        self._since: dict[str, list[float]] = {}

    def tail(self, key: str, value: float, length: int) -> list[float]:
        """Add a value; return the last `length` ones, newest last."""
        self._tails[key] = [*self._tails.get(key, []), value][-length:]
        return self._tails[key]

    def median(self, key: str, value: float, length: int = 5) -> float:
        """Add a value; return the median of the last `length` ones."""
        return statistics.median(self.tail(key, value, length))

    def least(self, key: str, value: float) -> float:
        """Return the smallest value so far, this one included."""
        self._best[key] = min(value, self._best.get(key, value))
        return self._best[key]

    def most(self, key: str, value: float) -> float:
        """Return the largest value so far, this one included."""
        self._best[key] = max(value, self._best.get(key, value))
        return self._best[key]

    def lasting(self, key: str, holds: bool, now: float, value: float = 0.0) -> Lasting | None:
        """Return for how long something has held without a break, None if it does not.

        `now` is a step or a time; `value` is anything to be compared later.
        """
        if not holds:
            self._since.pop(key, None)
            return None
        began, lines, first, peak = self._since.get(key, [now, 0, value, value])
        self._since[key] = [began, lines + 1, first, max(peak, value)]
        return Lasting(now - began, int(lines) + 1, first, max(peak, value))

    def state(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "tails": {key: list(tail) for key, tail in self._tails.items()},
            "best": dict(self._best),
            "since": {key: list(since) for key, since in self._since.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state()`."""
        self._tails = {key: list(tail) for key, tail in state["tails"].items()}
        self._best = dict(state["best"])
        self._since = {key: list(since) for key, since in state["since"].items()}
