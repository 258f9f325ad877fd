"""The drawings with lines: quality over rate, training curves, draws of codes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vqkit.report.axes import Axis, axis_over, frame, hue, marker, shown
from vqkit.report.markup import Markup, at, joined, svg, tag

MAX_POINTS: Final = 240
"""Of a curve; longer ones are thinned out evenly, the last point stays."""
_LETTER: Final = 6.6
"""Width of a letter in a drawing, in its units; an estimate that keeps labels apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RatePoint:
    """One run in the plane of rate and quality."""

    number: int
    """Of the run, for its mark."""
    name: str
    rate: float
    """Nominal, bits per pixel."""
    entropy_rate: float | None
    quality: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One line of one run."""

    number: int
    name: str
    points: Sequence[tuple[float, float]]
    """(x, y), x rising."""


def rate_distortion(
    points: Sequence[RatePoint],
    references: Sequence[tuple[str, float]],
    *,
    quality: str,
    unit: str,
    direction: int,
) -> Markup:
    """Draw quality over bits per pixel: nominal (filled) and entropy (hollow) of every run.

    Args:
        points: runs that were measured alike.
        references: (name, bits per pixel) of what is lossless, drawn as upright lines.
        quality: name of the metric.
        unit: of the metric, may be empty.
        direction: 1 if more is better, -1 if less is; the front joins the runs that no other one
            beats at its rate or below.
    """
    width, height = 540.0, 350.0
    rates = [p.rate for p in points] + [p.entropy_rate for p in points if p.entropy_rate]
    x = axis_over([*rates, *(rate for _, rate in references)], 58, width - 22)
    y = axis_over([p.quality for p in points], height - 52, 40, log=False, room=0.12)
    title = f"{quality}{f', {unit}' if unit else ''}{' (less is better)' if direction < 0 else ''}"
    scale = "bits per pixel, logarithmic" if x.log else "bits per pixel"
    edge = front(points, direction)
    line = " ".join(f"{at(x.place(p.rate))},{at(y.place(p.quality))}" for p in edge)
    parts = [
        frame(x, y, scale, title),
        *(_reference(x, y, name, rate, i) for i, (name, rate) in enumerate(references)),
        tag("polyline", class_="front", points=line) if len(edge) > 1 else None,
        *(_rate_point(p, x, y, quality, unit) for p in points),
        *_labels(points, x, y),
    ]
    label = f"{quality} over rate of {len(points)} runs; the numbers stand in the table."
    return svg(width, height, *parts, label=label, class_="plot")


def front(points: Sequence[RatePoint], direction: int) -> list[RatePoint]:
    """Return the runs that no other run beats at its rate or below, by rising rate."""
    best: list[RatePoint] = []
    for point in sorted(points, key=lambda p: (p.rate, -direction * p.quality)):
        if not best or direction * point.quality > direction * best[-1].quality:
            best.append(point)
    return best


def _reference(x: Axis, y: Axis, name: str, rate: float, number: int) -> Markup:
    place = x.place(rate)
    words = f"{name} {shown(rate)}"
    return tag(
        "g",
        tag("line", x1=at(place), x2=at(place), y1=at(y.start), y2=at(y.end)),
        tag("text", words, x=at(place - 5), y=at(y.end + 10 + 16 * number), text_anchor="end"),
        class_="reference",
    )


def _rate_point(point: RatePoint, x: Axis, y: Axis, quality: str, unit: str) -> Markup:
    px, py = x.place(point.rate), y.place(point.quality)
    said = f"{quality} {point.quality:.5g} {unit}".strip()
    facts = f"{point.name}: {said}; nominal {shown(point.rate)} bits/pixel"
    parts = []
    if point.entropy_rate:  # zero where a single code is in use
        ex = x.place(point.entropy_rate)
        facts += f", entropy {shown(point.entropy_rate)}"
        parts.append(
            tag(
                "line",
                class_=f"link {hue(point.number)}",
                x1=at(ex),
                x2=at(px),
                y1=at(py),
                y2=at(py),
            )
        )
        parts.append(marker(point.number, ex, py, 4, hollow=True))
    parts.append(tag("circle", class_="halo", cx=at(px), cy=at(py), r="14"))
    parts.append(marker(point.number, px, py, 5.5))
    return tag(
        "g", *parts, class_="point", tabindex="0", role="img", aria_label=facts, data_tip=facts
    )


def _labels(points: Sequence[RatePoint], x: Axis, y: Axis) -> list[Markup]:
    """Write names beside their points where there is room; the legend has all of them."""
    taken = [
        (place - 9, y.place(p.quality) - 9, place + 9, y.place(p.quality) + 9)
        for p in points
        for place in [x.place(p.rate), *([x.place(p.entropy_rate)] if p.entropy_rate else [])]
    ]
    taken += [  # the lines between the two marks of a run
        (x.place(p.entropy_rate), y.place(p.quality) - 2, x.place(p.rate), y.place(p.quality) + 2)
        for p in points
        if p.entropy_rate
    ]
    labels = []
    for p in points:
        px, py, long = x.place(p.rate), y.place(p.quality), _LETTER * len(p.name)
        ex = px if not p.entropy_rate else x.place(p.entropy_rate)
        for anchor, left, base in (
            ("start", px + 11, py + 4),
            ("end", ex - 11 - long, py + 4),
            ("middle", px - long / 2, py - 13),
            ("middle", px - long / 2, py + 22),
        ):
            box = (left, base - 11, left + long, base + 3)
            inside = left > x.start and left + long < x.end + 14
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                place = {"start": left, "end": left + long, "middle": px}[anchor]
                labels.append(
                    tag("text", p.name, class_="name", x=at(place), y=at(base), text_anchor=anchor)
                )
                break
    return labels


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def curves(
    lines: Sequence[Curve], *, title: str, x_label: str, log: bool | None = None, words: str = ""
) -> Markup:
    """Draw lines of several runs over one axis; a crosshair of the page reads them off."""
    width, height = 360.0, 232.0
    kept = [Curve(number=c.number, name=c.name, points=thinned(c.points)) for c in lines]
    kept = [c for c in kept if c.points]
    values = [value for c in kept for _, value in c.points]
    x = axis_over((place for c in kept for place, _ in c.points), 52, width - 14, log=False, room=0)
    y = axis_over(values, height - 46, 32, log=log)
    drawn = [
        tag(
            "polyline",
            class_=f"curve {hue(c.number)}",
            points=" ".join(f"{at(x.place(a))},{at(y.place(b))}" for a, b in c.points),
        )
        if len(c.points) > 1
        else marker(c.number, x.place(c.points[0][0]), y.place(c.points[0][1]), 3)
        for c in kept
    ]
    facts = {
        "x": [x.start, x.end, x.low, x.high],
        "label": x_label,
        "curves": [[c.number, c.name, [[a, float(f"{b:.5g}")] for a, b in c.points]] for c in kept],
    }
    crosshair = tag("line", class_="crosshair", x1="0", x2="0", y1=at(y.start), y2=at(y.end))
    label = words or f"{title} of {', '.join(c.name for c in kept)}"
    heading = f"{title}, logarithmic" if y.log else title
    return svg(
        width,
        height,
        frame(x, y, x_label, heading, most=4),
        joined(*drawn),
        crosshair,
        label=label,
        class_="plot curves",
        tabindex="0",
        data_curves=json.dumps(facts, ensure_ascii=False),
    )


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the finite points, of many `MAX_POINTS` evenly taken, the last one included."""
    found = [point for point in points if all(map(math.isfinite, point))]
    if len(found) <= MAX_POINTS:
        return found
    last = len(found) - 1
    return [found[round(i * last / (MAX_POINTS - 1))] for i in range(MAX_POINTS)]
