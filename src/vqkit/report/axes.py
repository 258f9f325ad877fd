"""Axes of a drawing: which numbers are marked, and where a number stands."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from vqkit.report.markup import Markup, at, joined, tag

LOG_ABOVE: Final = 12.0
"""Largest over smallest number from which on an axis is logarithmic."""
NUM_HUES: Final = 8
_STEPS: Final = (1, 2, 5)
_SHAPES: Final = 6
_WHOLE: Final = 22
"""Letters of a name that is never broken."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps [low, high] onto [start, end] of a drawing."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        """Return where a number stands."""
        low, high, value = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Return round numbers within the axis, at most about so many."""
        return _log_ticks(self.low, self.high, most) if self.log else self._even(most)

    def _even(self, most: int) -> list[float]:
        unit = 10.0 ** (math.floor(math.log10((self.high - self.low) / most)) - 1)
        for step in (n * unit * ten for ten in (1, 10, 100) for n in _STEPS):
            first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
            if last - first < most + 2:
                break
        return [float(f"{n * step:.12g}") for n in range(first, last + 1)]


def axis_over(
    values: Iterable[float],
    start: float,
    end: float,
    *,
    log: bool | None = None,
    room: float = 0.06,
) -> Axis:
    """Return an axis on which all values have room; `log=None` decides by how far they spread."""
    found = [value for value in values if math.isfinite(value)]
    low, high = min(found, default=0.0), max(found, default=1.0)
    if log is None:
        log = low > 0 and high / low > LOG_ABOVE
    if log and low > 0:
        ratio = max(high / low, 1.2) ** room
        return Axis(low / ratio, high * ratio, start, end, log=True)
    margin = (high - low) * room if high > low else (abs(high) * 0.1 or 1.0)
    return Axis(low - margin, high + margin, start, end)


def shown(value: float) -> str:
    """Write a tick or a number in a hint: at most four digits, thousands set apart."""
    if not math.isfinite(value):
        return "∞" if value > 0 else str(value)
    if value and abs(value) < 0.001:
        return f"{value:.1e}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def frame(x: Axis, y: Axis, x_label: str, y_label: str, *, most: int = 6) -> Markup:
    """Draw the grid with its numbers; the label of y stands above, that of x below."""
    parts = []
    for value in y.ticks(most):
        where = at(y.place(value))
        parts.append(tag("line", class_="grid", x1=at(x.start), x2=at(x.end), y1=where, y2=where))
        parts.append(_text(shown(value), x.start - 8, y.place(value) + 4, "end"))
    for value in x.ticks(most):
        where = at(x.place(value))
        parts.append(
            tag("line", class_="tick", x1=where, x2=where, y1=at(y.start), y2=at(y.start + 5))
        )
        parts.append(_text(shown(value), x.place(value), y.start + 19, "middle"))
    parts.append(
        tag("line", class_="axis", x1=at(x.start), x2=at(x.end), y1=at(y.start), y2=at(y.start))
    )
    parts.append(_text(x_label, x.end, y.start + 37, "end", "label"))
    parts.append(_text(y_label, 2, y.end - 10, "start", "label"))
    return joined(*parts)


def marker(number: int, x: float, y: float, size: float = 5, *, hollow: bool = False) -> Markup:
    """Draw the mark of run `number`, which has a colour and a shape of its own."""
    kind, s = number % _SHAPES, size
    look = f"mark {hue(number)}{' hollow' if hollow else ''}"
    if kind == 0:
        return tag("circle", class_=look, cx=at(x), cy=at(y), r=at(s))
    points = {
        1: [(-s, -s), (s, -s), (s, s), (-s, s)],
        2: [(0, -1.2 * s), (1.2 * s, s), (-1.2 * s, s)],
        3: [(0, -1.35 * s), (1.35 * s, 0), (0, 1.35 * s), (-1.35 * s, 0)],
        4: [(0, 1.2 * s), (1.2 * s, -s), (-1.2 * s, -s)],
        5: [(-s, 0), (-s / 2, -s), (s / 2, -s), (s, 0), (s / 2, s), (-s / 2, s)],
    }[kind]
    corners = " ".join(f"{at(x + dx)},{at(y + dy)}" for dx, dy in points)
    return tag("polygon", class_=look, points=corners)


def hue(number: int) -> str:
    """Return the classes that give run `number` its colour, and its dash beyond eight runs."""
    return f"hue{number % NUM_HUES} dash{number // NUM_HUES % 3}"


def key(number: int) -> Markup:
    """Return the mark of a run, to stand before its name in a text."""
    return tag(
        "svg", marker(number, 7, 7, 4.6), class_="key", viewBox="0 0 14 14", aria_hidden="true"
    )


def named(number: int, name: str) -> Markup:
    """Return the name of a run behind its mark; the two stay together, and short names whole."""
    look = "run whole" if len(name) <= _WHOLE else "run"
    return tag("span", key(number), tag("span", name), class_=look)


def breakable(name: str) -> Markup:
    """Return a name that may be broken behind its dots, slashes and underscores."""
    parts = re.findall(r"[^._/]*[._/]|[^._/]+", name)
    return joined(*parts, between="<wbr/>")


def _text(words: str, x: float, y: float, anchor: str, look: str = "number") -> Markup:
    return tag("text", words, class_=look, x=at(x), y=at(y), text_anchor=anchor)


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [f * 10.0**d for d in decades for f in factors]
        found = [value for value in found if low <= value <= high]
        if len(found) <= most + 1 and (len(found) > 1 or factors == (1,)):
            return found
    every = math.ceil(len(found) / most)
    return found[::every] or [low, high]
