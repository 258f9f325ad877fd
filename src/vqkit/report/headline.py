"""The first thing on the page: what was compared and what came out, in a few tiles."""

from __future__ import annotations

from collections.abc import Sequence

from vqkit.report.markup import Markup, tag
from vqkit.report.plots import front
from vqkit.report.quality import measured, rate_points, value_of
from vqkit.report.runs import Run


def headline(runs: Sequence[Run]) -> Markup:
    """Say in a few tiles what was compared and what came out."""
    rows = [row for row in measured(runs) if row[2] is row[1].evaluation]
    tiles = [_tile(str(len(runs)), "run" if len(runs) == 1 else "runs")]
    if not rows:
        return tag("div", *tiles, class_="tiles")
    first = rows[0][2]
    alike = [row for row in rows if row[2].protocol.id == first.protocol.id]
    tiles.append(_tile(f"{first.num_images:,}", "images measured"))
    rates = [rate for row in alike if (rate := value_of(row[2], "rate")) is not None]
    if rates:
        spread = f"{min(rates):#.3g}"
        spread += f" – {max(rates):#.3g}" if max(rates) > min(rates) else ""
        png = value_of(first, "png_rate")
        beside = "" if png is None else f"; lossless PNG {png:#.3g}"
        tiles.append(_tile(spread, f"bits per pixel, nominal{beside}"))
    points = rate_points(alike, "psnr")
    if points:
        best = max(points, key=lambda p: p.quality)
        where = f"dB, highest PSNR: {best.name} at {best.rate:#.3g} bits per pixel"
        tiles.append(_tile(f"{best.quality:.2f}", where))
        if len(points) > 1:
            names = ", ".join(p.name for p in front(points, 1))
            tiles.append(_tile(names, "no other run is better at their rate or below (PSNR)"))
    return tag("div", *tiles, class_="tiles")


def _tile(value: str, words: str) -> Markup:
    look = "value" if len(value) < 16 else "value long"
    return tag("div", tag("div", value, class_=look), tag("div", words, class_="what"))
