"""Curves and points as figures. matplotlib is imported when the first one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vqkit.analysis.conditions import Conditions
from vqkit.analysis.embedding import CodeMap
from vqkit.analysis.frequency import BookFrequency, Frequency
from vqkit.analysis.usage import EpochUsage, RunUsage
from vqkit.metrics.wording import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure, SubFigure

COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8C6D31",
)  # fmt: skip
"""Told apart by colour-blind people too (Okabe and Ito 2008)."""
ACTIVE, INACTIVE = "#009E73", "#0072B2"
"""Green and blue, as in the paper."""
PIXELS = 1 << 20
"""Codes of the largest codebook that is drawn with a pixel for each."""
LINES = 4
"""Codebooks of one run that have a line each by epoch."""
LEAST = 0.01
"""Draws over mean draws where the colours of maps begin."""
MAPS = 8
"""Codebooks that are drawn so in one figure."""
_LIMITS = f"the first {MAPS} of at most {PIXELS:,} codes have one"


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches; without matplotlib this is a `ValueError`.

    It belongs to no window and changes no global setting.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(
            "figure: matplotlib is not installed; pip install 'vqkit[plots]'"
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def usage_figure(runs: Sequence[RunUsage]) -> Figure:
    """Draw usage (left) and perplexity (right) by epoch, a line for every codebook of every run.

    A run with more than 4 codebooks has one line, their mean. Dotted: the usage to expect from so
    many uniform draws.
    """
    figure = new_figure(11, 4.2)
    left, right = figure.subplots(1, 2)
    for number, (label, epochs) in enumerate(_usage_lines(runs)):
        colour = COLOURS[number % len(COLOURS)]
        x = [one.epoch for one in epochs]
        style: dict[str, Any] = {"color": colour, "marker": "o" if len(x) < 30 else ""}
        style |= {"markersize": 3, "label": label}
        left.plot(x, [one.usage for one in epochs], **style)
        uniform = [one.uniform_usage for one in epochs]
        left.plot(x, uniform, color=colour, linestyle=":", linewidth=1)
        right.plot(x, [one.perplexity for one in epochs], **style)
    left.set(xlabel="epoch", ylabel="share of codes used in the epoch", ylim=(-0.03, 1.05))
    left.set_title("usage (dotted: expected from uniform draws)", fontsize=10)
    right.set(xlabel="epoch", ylabel="perplexity, codes", yscale="log")
    right.set_title("perplexity", fontsize=10)
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        finish(axes)
    add_legend(figure, left)
    return figure


def _usage_lines(runs: Sequence[RunUsage]) -> list[tuple[str, Sequence[EpochUsage]]]:
    """Name the lines: a run's codebooks, or the mean of many."""
    lines: list[tuple[str, Sequence[EpochUsage]]] = []
    for run in runs:
        name = run.conditions.name
        if 1 <= len(run.books) <= LINES:
            labels = book_labels([(name, [book.name for book in run.books])])
            lines += zip(labels, [book.epochs for book in run.books], strict=True)
        else:
            lines.append((f"{name}, mean over codebooks", run.mean))
    return lines


def frequency_figure(found: Sequence[Frequency]) -> Figure:
    """Draw the sorted frequencies of all codebooks and, below, each code as one pixel.

    A curve ends where the codes end that were drawn at all. Dotted: all codes equally often. Maps
    are those of the first 8 codebooks of at most 2²⁰ codes; the footer says if there are more.
    """
    labels = book_labels([(one.conditions.name, [b.name for b in one.books]) for one in found])
    books = [book for one in found for book in one.books]
    pairs = list(zip(labels, books, strict=True))
    shown = [pair for pair in pairs if pair[1].statistics.num_codes <= PIXELS][:MAPS]
    rows, columns = _panels(len(shown))
    heights = [4.4, rows * min(4.5, 10 / max(columns, 1))][: 1 + bool(rows)]
    figure = new_figure(11, sum(heights))
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False).flatten()
    _draw_curves(parts[0].subplots(), pairs)
    if shown:
        panels = parts[1].subplots(rows, columns, squeeze=False).flatten()
        for axes in panels:
            axes.set_axis_off()
        drawn = [draw_pixels(axes, *pair) for axes, pair in zip(panels, shown, strict=False)]
        bar = parts[1].colorbar(drawn[0], ax=panels, shrink=0.8, panchor=False)
        bar.set_label("draws / mean draws (black: never drawn)", fontsize=8)
        bar.ax.tick_params(labelsize=8)
    left_out = len(pairs) - len(shown)
    note = f"no map of {left_out} of {len(pairs)} codebooks: {_LIMITS}" if left_out else ""
    add_footer(parts[-1], [one.conditions for one in found], note)
    return figure


def curve(book: BookFrequency) -> tuple[list[int], list[float]]:
    """Return ranks, from 1 on, and frequencies: the first and last code of every equal run."""
    ranks: list[int] = []
    shares: list[float] = []
    done = 0
    for draws, codes in book.sorted_counts():
        if draws:
            ranks += [done + 1, done + codes]
            shares += [draws / book.statistics.num_tokens] * 2
        done += codes
    return ranks, shares


def _draw_curves(axes: Axes, books: Sequence[tuple[str, BookFrequency]]) -> None:
    sizes: dict[int, str] = {}
    for number, (label, book) in enumerate(books):
        colour = COLOURS[number % len(COLOURS)]
        found = book.statistics
        text = (
            f"{label}: {percent(found.usage)} of {found.num_codes:,} used "
            f"(at most {percent(found.ceiling)}), perplexity {found.perplexity:,.1f}"
        )
        axes.plot(*curve(book), color=colour, label=text)
        sizes.setdefault(found.num_codes, colour)
    for size, colour in sizes.items():
        axes.hlines(1 / size, 1, size, color=colour, linestyle=":", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="rank of the code", ylabel="share of all tokens")
    axes.set_title("codes by frequency (dotted: all equally often)", fontsize=10)
    finish(axes)
    if len(books) <= 10:
        axes.legend(fontsize=8, frameon=False)
    else:
        axes.legend(fontsize=6, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def draw_pixels(axes: Axes, label: str, book: BookFrequency) -> Any:
    """Draw every code, in the order of ids, row by row, as one pixel; return the image."""
    import numpy as np

    counts = book.table().numpy()
    side = int(np.ceil(np.sqrt(len(counts))))
    pixels = np.full(side * side, np.nan)
    pixels[: len(counts)] = counts * (len(counts) / max(book.statistics.num_tokens, 1))
    axes.set_title(label, fontsize=8)
    return draw_draws(axes, pixels.reshape(side, side))


def draw_draws(axes: Axes, draws: Any, **options: Any) -> Any:
    """Draw a table of draws over mean draws (an array; NaN stays white); return the image.

    Every figure has the same scale: colours from 0.01, and less, to 100; black for none at all.
    """
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    colours = colormaps["viridis"].with_extremes(under="#101010", bad="white")
    return axes.imshow(
        np.where(draws == 0, 1e-9, np.maximum(draws, LEAST)),  # none is below the scale
        norm=LogNorm(LEAST, 100),
        cmap=colours,
        interpolation="nearest",
        **options,
    )


def tsne_figure(found: Sequence[CodeMap]) -> Figure:
    """Draw a panel for every codebook: active codes green, inactive ones blue."""
    labels = book_labels([(one.conditions.name, [b.name for b in one.books]) for one in found])
    books = [book for one in found for book in one.books]
    rows, columns = _panels(len(books))
    figure = new_figure(max(4.6, 3.6 * columns), 3.9 * rows + 0.4)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels[len(books) :]:
        axes.set_axis_off()
    for axes, label, book in zip(panels, labels, books, strict=False):
        kinds = [(book.active, ACTIVE), (~book.active, INACTIVE)]
        kinds.sort(key=lambda kind: -int(kind[0].sum()))  # the few on top
        size = max(2.0, min(14.0, 8000 / len(book.ids)))
        for mask, colour in kinds:
            x, y = book.points[mask].T.numpy()
            axes.scatter(x, y, s=size, color=colour, linewidths=0, alpha=0.8)
        used = percent(book.num_active / book.num_codes)
        shown = "" if len(book.ids) == book.num_codes else f", {len(book.ids):,} shown"
        axes.set_title(f"{label}: {used} of {book.num_codes:,} active{shown}", fontsize=9)
        middle = (book.points.amax(0) + book.points.amin(0)) / 2
        reach = 1.05 * float((book.points - middle).abs().max()) or 1.0
        x, y = middle.tolist()
        axes.set(xlim=(x - reach, x + reach), ylim=(y - reach, y + reach))
        axes.set(xticks=[], yticks=[], aspect="equal")
    handles = [panels[0].scatter([], [], color=c, s=20) for c in (ACTIVE, INACTIVE)]
    figure.legend(handles, ["active", "inactive"], loc="outside upper center", ncols=2, fontsize=9)
    add_footer(figure, [one.conditions for one in found])
    return figure


def book_labels(owners: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Name every codebook of (owner, its codebooks): by itself too where an owner has several."""
    return [
        owner if len(books) == 1 else f"{owner} {book}" for owner, books in owners for book in books
    ]


def finish(axes: Axes) -> None:
    """Give curves their grid and frame."""
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def whole_numbers(axis: Axis) -> None:
    """Put ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def sizes_text(sizes: Sequence[int]) -> str:
    """Write the numbers of codes of codebooks: `K = 512`, `K = 512 + 256`, `K = 32 × 256`."""
    if len(set(sizes)) == 1 and len(sizes) > 2:
        return f"K = {len(sizes)} × {sizes[0]:,}"
    more = " + ..." if len(sizes) > 4 else ""
    return f"K = {' + '.join(f'{size:,}' for size in sizes[:4])}{more}"


def add_footer(
    figure: Figure | SubFigure, conditions: Sequence[Conditions], note: str = ""
) -> None:
    """Write below a figure its images and tokens, and a note: the protocol of its numbers."""
    parts = []
    for data in dict.fromkeys(one.data_fingerprint for one in conditions):
        images = {one.num_images for one in conditions if one.data_fingerprint == data}
        parts.append(f"{' and '.join(f'{n:,}' for n in sorted(images))} images (set {data[:8]})")
    tokens = [f"{one.name} {one.num_tokens:,}" for one in conditions if one.num_tokens]
    shown = f"tokens: {', '.join(tokens)}" if 1 <= len(tokens) <= 6 else ""
    parts += [text for text in (shown, note) if text]
    figure.supxlabel("; ".join(parts), fontsize=7, color="#555555")


def add_legend(figure: Figure | SubFigure, axes: Axes, *, above: bool = False) -> None:
    """Name the lines of `axes` below the figure, or above one that has a footer."""
    handles, labels = axes.get_legend_handles_labels()
    columns = min(5, len(labels))
    style: dict[str, Any] = {"ncols": columns, "fontsize": 8, "frameon": False}
    if above:
        figure.legend(handles, labels, loc="outside upper center", **style)
    else:
        figure.legend(handles, labels, loc="outside lower center", **style)


def _panels(count: int) -> tuple[int, int]:
    """Return rows and columns for so many panels, at most 4 side by side."""
    rows = -(-count // 4)
    return rows, -(-count // max(rows, 1))
