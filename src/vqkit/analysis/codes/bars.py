"""Draws of every code as bars and as a map (Dual Codebook VQ, Figure 3, second row)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqkit.analysis.figures import (
    COLOURS,
    add_footer,
    book_labels,
    draw_pixels,
    finish,
    new_figure,
)
from vqkit.analysis.frequency import BookFrequency, Frequency
from vqkit.config import require
from vqkit.metrics.wording import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_BARS = 1024
"""Bars of one codebook; of a larger one a bar is the mean of several codes."""
MOST_BOOKS = 12
"""Rows of one figure."""


def bars_figure(found: Sequence[Frequency]) -> Figure:
    """Draw a row for every codebook: bars in the order of ids, and each code as one pixel.

    A bar is how often a code was drawn, over the mean of all codes: 1 is its fair share. The axis
    is linear up to 1 and logarithmic above, so that a code that takes nearly all tokens hides no
    other.

    Raises:
        ValueError: more than 12 codebooks, or one of more than 4,194,304 codes.
    """
    names = [(one.conditions.name, [book.name for book in one.books]) for one in found]
    books = [book for one in found for book in one.books]
    require(
        len(books) <= MOST_BOOKS,
        f"codebooks={len(books)}",
        f"one figure has room for {MOST_BOOKS}; `frequency` and `segments` take more",
    )
    figure = new_figure(11, 2.7 * len(books) + 0.5)
    panels = figure.subplots(len(books), 2, squeeze=False, width_ratios=[3.2, 1])
    for number, (label, book) in enumerate(zip(book_labels(names), books, strict=True)):
        bars, pixels = panels[number]
        _draw_bars(bars, book, COLOURS[number % len(COLOURS)])
        bars.set_title(_title(label, book), fontsize=9)
        image = draw_pixels(pixels, "", book)
        pixels.set_axis_off()
        bar = figure.colorbar(image, ax=pixels, shrink=0.9)
        bar.set_label("draws / mean\n(black: never)", fontsize=7)
        bar.ax.tick_params(labelsize=7)
    add_footer(figure, [one.conditions for one in found])
    return figure


def means_of_runs(values: Tensor, most: int) -> tuple[Tensor, int]:
    """Shorten values (..., K) to at most `most` means of consecutive ones; return them and how
    many each is of. The last one may be of fewer."""
    size = -(-values.shape[-1] // most)
    if size == 1:
        return values.double(), 1
    parts = values.double().split(size, dim=-1)
    return torch.stack([part.mean(-1) for part in parts], dim=-1), size


def _draw_bars(axes: Axes, book: BookFrequency, colour: str) -> None:
    num_codes = book.statistics.num_codes
    share = book.table().double() * (num_codes / max(book.statistics.num_tokens, 1))
    heights, size = means_of_runs(share, MOST_BARS)
    edges = [min(place * size, num_codes) - 0.5 for place in range(len(heights) + 1)]
    axes.stairs(heights.numpy(), edges, fill=True, color=colour)
    axes.axhline(1, color="black", linestyle=":", linewidth=1)
    axes.set_yscale("symlog", linthresh=1, linscale=0.6)
    _plain_ticks(axes, float(heights.max()))
    axes.set(ylim=(0, None), xlim=(-0.5, num_codes - 0.5))
    axes.set_xlabel("code" if size == 1 else f"code (a bar is the mean of {size})", fontsize=8)
    axes.set_ylabel("draws / mean draws", fontsize=8)
    axes.tick_params(labelsize=8)
    finish(axes)


def _plain_ticks(axes: Axes, highest: float) -> None:
    """Mark 0, 0.5, 1 and then 2, 5, 10, ... or, of a long axis, powers of ten only."""
    steps = (1,) if highest > 50 else (1, 2, 5)
    above = [factor * 10**power for power in range(8) for factor in steps]
    ticks = [0, *[0.5] * (highest <= 50), *(tick for tick in above if tick <= max(1, highest))]
    axes.set_yticks(ticks, [f"{tick:,g}" for tick in ticks])
    axes.minorticks_off()


def _title(label: str, book: BookFrequency) -> str:
    found = book.statistics
    return (
        f"{label}: K = {found.num_codes:,}, {percent(found.usage)} used, "
        f"perplexity {found.perplexity:,.1f}, {found.num_tokens:,} tokens"
    )
