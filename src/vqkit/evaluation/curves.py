"""Points of rate and quality, the curves they form, and the distance between two curves.

The distance is that of Bjøntegaard: the mean difference of log rates at equal quality (*Calculation
of average PSNR differences between RD-curves*, VCEG-M33, 2001), between the curves as piecewise
cubics that keep rising (Fritsch and Butland 1984), as video coding has used since. It means nothing
for few points, for curves that turn down or that hardly share a range of quality; then there is
none, and a sentence says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from vqkit.config import require
from vqkit.evaluation.result import Evaluation
from vqkit.metrics import Protocol

Rate = Literal["nominal", "entropy", "coded"]
RATES: Final[tuple[Rate, ...]] = ("nominal", "entropy", "coded")
"""log2 of the number of codes for every token; zero-order entropy of the tokens; whole files."""
LOWER_IS_BETTER: Final = frozenset({"l1", "l2", "lpips_vgg", "lpips_alex", "fid", "kid"})
BD_POINTS: Final = 4
"""Points that a curve needs for a distance, as in VCEG-M33."""
BD_SHARED: Final = 0.5
"""Share of the shorter range of quality that two curves must have in common."""

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class RatePoint:
    """One operating point: a tokenizer, or a codec at one quality."""

    name: str
    method: str
    """Points of one method form a curve."""
    rates: dict[str, float]
    """Bits per pixel: of a tokenizer `nominal`, `entropy` and, where tokens were coded, `coded`; of
    a codec only `coded`, whole files, headers included."""
    metrics: dict[str, float | None]
    """`psnr`, `ssim`, `l1`, `l2`, ...; None where nothing could be counted."""
    protocol: Protocol
    """How they were measured, and on which images."""
    num_images: int
    codec: bool = False
    lossless: bool = False

    def rate(self, kind: Rate) -> float | None:
        """Return bits per pixel of one kind; a codec has files alone, which stand for every kind.

        None where this rate was not measured.
        """
        return self.rates.get("coded" if self.codec else kind)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON values."""
        return {
            "name": self.name,
            "method": self.method,
            "kind": "codec" if self.codec else "tokenizer",
            "lossless": self.lossless,
            "rates": self.rates,
            "metrics": self.metrics,
            "protocol": self.protocol.id,
            "num_images": self.num_images,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """The points of one method by rising rate, of one kind of rate and one metric."""

    method: str
    rates: tuple[float, ...]
    values: tuple[float, ...]
    codec: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class BDRate:
    """How many more bits a curve takes than another at equal quality."""

    percent: float | None
    """Below zero: fewer bits. None where it is not well defined."""
    why: str
    """Why there is none; or the range of quality that it is a mean over."""


def point_of(found: Evaluation, *, method: str, coded: float | None = None) -> RatePoint:
    """Return the point of an evaluation.

    Args:
        found: of `vqkit.evaluation.evaluate`.
        method: what curves join, such as the preset of the quantizer.
        coded: bits per pixel of `.vqk` files of the same images, if they were written.
    """
    rates = {"nominal": found.value("rate"), "entropy": found.value("entropy_rate"), "coded": coded}
    skipped = ("rate", "entropy_rate", "png_rate", "raw_rate")
    return RatePoint(
        name=found.name,
        method=method,
        rates={kind: rate for kind, rate in rates.items() if rate is not None},
        metrics={one.name: one.value for one in found.metrics if one.name not in skipped},
        protocol=found.protocol,
        num_images=found.num_images,
    )


def check_alike(points: Sequence[RatePoint]) -> Protocol:
    """Return the protocol that all points share; others, or no points, are a `ValueError`.

    What further networks measured may differ from point to point.
    """
    require(len(points) > 0, "points=[]", "there is nothing to draw; give at least one")
    protocol = replace(points[0].protocol, measures="")
    for point in points:
        other = replace(point.protocol, measures="")
        require(
            other == protocol,
            f"{point.name}: protocol={other.id}",
            f"{points[0].name} was measured under {protocol.id}; points of one figure need the "
            "same images and protocol, measure them again with --data",
        )
    return protocol


def curves_of(points: Sequence[RatePoint], metric: str, rate: Rate) -> tuple[Curve, ...]:
    """Join the points of every method that have this metric and rate, in the order of methods.

    Lossless codecs are no points of a curve.
    """
    rows: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    for point in points:
        bits, value = point.rate(rate), point.metrics.get(metric)
        if bits is not None and value is not None and not point.lossless:
            rows.setdefault((point.method, point.codec), []).append((bits, value))
    curves = []
    for (method, codec), row in rows.items():
        bits_each, values = zip(*sorted(row), strict=True)
        curves.append(Curve(method=method, rates=bits_each, values=values, codec=codec))
    return tuple(curves)


def bd_rate(tested: Curve, reference: Curve, metric: str) -> BDRate:
    """Return the mean difference in rate at equal quality, in percent of the reference's rate."""
    ends: list[tuple[float, float]] = []
    lines: list[Callable[[Numbers], Numbers]] = []
    for curve in (reference, tested):
        if len(curve.rates) < BD_POINTS:
            return _undefined(f"{curve.method} has {len(curve.rates)} of {BD_POINTS} points needed")
        if min(curve.rates) <= 0:
            return _undefined(f"{curve.method} has a rate of zero")
        sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
        x, y = sign * np.asarray(curve.values), np.log10(np.asarray(curve.rates))
        if not (np.diff(x) > 0).all() or not (np.diff(y) > 0).all():
            return _undefined(f"{metric} of {curve.method} does not rise with its rate everywhere")
        ends.append((float(x[0]), float(x[-1])))
        lines.append(rising_cubic(x, y))
    low, high = max(a for a, _ in ends), min(b for _, b in ends)
    shorter = min(b - a for a, b in ends)
    if high - low < BD_SHARED * shorter:
        return _undefined(
            f"the two share {max(0.0, high - low):.3g} of {metric}, less than half of the shorter "
            "range"
        )
    x = np.linspace(low, high, 2001)
    of_reference, of_tested = (_mean(line(x)) for line in lines)
    percent = 100 * (10 ** (of_tested - of_reference) - 1)
    a, b = sorted((abs(low), abs(high)))
    return BDRate(percent=percent, why=f"mean over {metric} from {a:.4g} to {b:.4g}")


def rising_cubic(x: Numbers, y: Numbers) -> Callable[[Numbers], Numbers]:
    """Return the piecewise cubic through points that both rise, which rises everywhere.

    Slopes are weighted harmonic means of the neighbouring secants, at the ends of three points'
    formula (Fritsch and Butland, *SIAM J. Sci. Stat. Comput.* 5, 1984): "PCHIP".
    """
    h, secant = np.diff(x), np.diff(y) / np.diff(x)
    w1, w2 = 2 * h[1:] + h[:-1], h[1:] + 2 * h[:-1]
    inner = (w1 + w2) / (w1 / secant[:-1] + w2 / secant[1:])
    first = _end_slope(h[0], h[1], secant[0], secant[1])
    last = _end_slope(h[-1], h[-2], secant[-1], secant[-2])
    slope = np.concatenate([[first], inner, [last]])

    def line(at: Numbers) -> Numbers:
        piece = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(h) - 1)
        width = h[piece]
        t = (at - x[piece]) / width
        value: Numbers = (
            y[piece] * (1 + 2 * t) * (1 - t) ** 2
            + width * slope[piece] * t * (1 - t) ** 2
            + y[piece + 1] * t**2 * (3 - 2 * t)
            + width * slope[piece + 1] * t**2 * (t - 1)
        )
        return value

    return line


def _end_slope(h0: float, h1: float, d0: float, d1: float) -> float:
    slope = ((2 * h0 + h1) * d0 - h0 * d1) / (h0 + h1)
    return min(max(slope, 0.0), 3 * d0)  # secants are positive: keep the piece rising


def _mean(values: Numbers) -> float:
    """Return the mean of equidistant values over their range, by the trapezoidal rule."""
    return math.fsum((values[1:] + values[:-1]) / 2) / (len(values) - 1)


def _undefined(why: str) -> BDRate:
    return BDRate(percent=None, why=why)
