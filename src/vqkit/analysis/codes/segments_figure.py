"""The figure of segments: what each uses, how many share a code, which two use the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vqkit.analysis.codes.bars import means_of_runs
from vqkit.analysis.codes.segments import SegmentBook, SegmentUsage
from vqkit.analysis.figures import (
    COLOURS,
    add_footer,
    draw_draws,
    finish,
    new_figure,
    sizes_text,
    whole_numbers,
)
from vqkit.metrics.wording import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

COLUMNS = 1024
"""Columns of a map; of a larger codebook each is the mean of several codes."""


def segments_figure(found: Sequence[SegmentUsage]) -> Figure:
    """Draw a part for every tokenizer: usage of each segment, and how codes are shared.

    Above: draws of every code by every segment, and the share of the codes that each uses (LooC,
    Figure 7). Below, where segments share a codebook: segments per code (Figure 8), and for every
    two segments the codes and the frequencies that they have in common. Of several shared
    codebooks the first is drawn below.
    """
    shared = [next((b for b in one.books if len(b.segments) > 1), None) for one in found]
    heights = [3.6 if book is None else 7.0 for book in shared]
    figure = new_figure(12, sum(heights) + 0.4)
    parts = figure.subfigures(len(found), 1, height_ratios=heights, squeeze=False).flatten()
    for part, one, book in zip(parts, found, shared, strict=True):
        _draw_tokenizer(part, one, book)
    add_footer(figure, [one.conditions for one in found])
    return figure


def _draw_tokenizer(part: SubFigure, one: SegmentUsage, book: SegmentBook | None) -> None:
    sizes = sizes_text([b.num_codes for b in one.books])
    count = sum(len(b.segments) for b in one.books)
    part.suptitle(f"{one.conditions.name}: {sizes}, {count} segments", fontsize=11)
    rows = part.subfigures(1 if book is None else 2, 1, squeeze=False).flatten()
    left, right = rows[0].subplots(1, 2, width_ratios=[1.6, 1])
    _draw_map(rows[0], left, one.books)
    _draw_usage(right, one.books)
    if book is None:
        return
    curve, common, overlap = rows[1].subplots(1, 3, width_ratios=[1.2, 1, 1])
    _draw_sharing(curve, book)
    _draw_matrix(rows[1], common, book.common(), "codes both use / codes either uses")
    _draw_matrix(rows[1], overlap, book.overlap(), "overlap of frequencies, Σ min(p, q)")


def _draw_map(part: SubFigure, axes: Axes, books: Sequence[SegmentBook]) -> None:
    """Draw segments × codes. Rows of smaller codebooks end earlier."""
    import numpy as np

    rows = [_relative(book) for book in books]
    width = max(row.shape[1] for row, _ in rows)
    table = np.full((sum(len(row) for row, _ in rows), width), np.nan)
    top = 0
    for row, _ in rows:
        table[top : top + len(row), : row.shape[1]] = row
        top += len(row)
    image = draw_draws(axes, table, aspect="auto")
    size = max(each for _, each in rows)
    axes.set_xlabel("code" if size == 1 else f"code (a column is the mean of {size})", fontsize=8)
    axes.set_ylabel("segment", fontsize=8)
    axes.set_title("draws of every code by every segment", fontsize=9)
    whole_numbers(axes.yaxis)
    axes.tick_params(labelsize=8)
    bar = part.colorbar(image, ax=axes)
    bar.set_label("draws / mean (black: never)", fontsize=8)
    bar.ax.tick_params(labelsize=8)


def _relative(book: SegmentBook) -> tuple[Any, int]:
    """Return draws over the mean of the segment, (S, columns), and how many codes are a column."""
    share = book.counts.double() / book.counts.sum(1, keepdim=True) * book.num_codes
    shorter, size = means_of_runs(share, COLUMNS)
    return shorter.numpy(), size


def _draw_usage(axes: Axes, books: Sequence[SegmentBook]) -> None:
    shares = [float(used) / book.num_codes for book in books for used in book.num_used()]
    even = [float(p) / book.num_codes for book in books for p in book.perplexity()]
    places = range(len(shares))
    axes.bar(places, shares, color=COLOURS[4], label="codes used / K")
    axes.plot(
        places, even, color=COLOURS[1], marker="o", markersize=3, lw=0, label="perplexity / K"
    )
    axes.set(ylim=(0, 1.22), xlabel="segment", ylabel="share of the codebook")
    whole_numbers(axes.xaxis)
    least, most = percent(min(shares)), percent(max(shares))
    axes.set_title(f"usage per segment: {least} to {most}", fontsize=9)
    axes.legend(fontsize=8, loc="upper center", ncols=2, frameon=False)
    finish(axes)


def _draw_sharing(axes: Axes, book: SegmentBook) -> None:
    sharing = book.sharing().sort(descending=True).values
    axes.stairs(sharing.numpy(), fill=True, color=COLOURS[0])
    count = len(book.segments)
    axes.axhline(count, color="black", linestyle=":", linewidth=1)
    axes.set(ylim=(0, 1.05 * count), xlim=(0, book.num_codes))
    axes.set(xlabel="codes, the most shared first", ylabel="segments that use the code")
    whole_numbers(axes.yaxis)
    mean = float(sharing.double().mean())
    axes.set_title(
        f"sharing: at least {int(sharing[-1])}, on average {mean:.1f} of {count} segments",
        fontsize=9,
    )
    finish(axes)


def _draw_matrix(part: SubFigure, axes: Axes, values: Any, title: str) -> None:
    image = axes.imshow(values.numpy(), vmin=0, vmax=1, cmap="cividis", interpolation="nearest")
    for axis in (axes.xaxis, axes.yaxis):
        whole_numbers(axis)
    axes.set(xlabel="segment", ylabel="segment")
    axes.set_title(title, fontsize=9)
    bar = part.colorbar(image, ax=axes, shrink=0.85)
    bar.ax.tick_params(labelsize=8)
