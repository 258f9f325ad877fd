"""The figures of numbers against the size of codebooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vqkit.analysis.curves import LOWER_IS_BETTER, SizePoint, check_points, lines
from vqkit.analysis.figures import COLOURS, add_legend, finish, new_figure
from vqkit.config import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vP*X"
NAMES = {"psnr": "PSNR", "ssim": "SSIM", "fid": "FID", "kid": "KID", "usage": "share of codes used"}


def sizes_figure(points: Sequence[SizePoint], *, metric: str = "psnr") -> Figure:
    """Draw the codebooks in the plane of K and length of codes, and a metric against either.

    Lines join tokenizers of one method that differ in the one size alone (LooC, Figures 1 and 6).

    Raises:
        ValueError: nothing to draw, other protocols, or a metric that was not measured.
    """
    check_points(points)
    known = sorted({name for point in points for name, v in point.metrics.items() if v is not None})
    require(
        metric in known, f"metric={metric!r}", f"was not measured; known are {', '.join(known)}"
    )
    figure = new_figure(14, 4.9)
    plane, by_codes, by_dim = figure.subplots(1, 3, width_ratios=[1.15, 1, 1])
    styles = _styles(points)
    _draw_plane(figure, plane, points, metric, styles)
    label = _label(points, metric)
    for axes, x, text in (
        (by_codes, "num_codes", "codes of a codebook, K"),
        (by_dim, "dim", "length of a code, d"),
    ):
        _draw_lines(axes, points, x, metric, styles)
        axes.set(xlabel=text, ylabel=label)
        _size_axis(axes, sorted({v for p in points if (v := getattr(p, x)) is not None}))
        finish(axes)
    by_codes.set_title(f"{label} against K (d beside the line)", fontsize=10)
    by_dim.set_title(f"{label} against d (K beside the line)", fontsize=10)
    _add_methods(figure, by_codes, styles)
    _add_footer(figure, points)
    return figure


def scaling_figure(points: Sequence[SizePoint]) -> Figure:
    """Draw usage, perplexity and FID against the size of the codebook (VQGAN-LC, Figure 1a).

    A star marks the best FID of each method. Without FID the panel says so.
    """
    check_points(points)
    figure = new_figure(14, 4.9)
    usage, perplexity, fid = figure.subplots(1, 3)
    styles = _styles(points)
    sizes = sorted({point.num_codes for point in points})
    _draw_lines(usage, points, "num_codes", "usage", styles)
    for point in points:
        usage.plot(point.num_codes, point.uniform_usage, color="black", marker="_", markersize=12)
    usage.set(ylabel=NAMES["usage"], ylim=(-0.03, 1.06))
    usage.set_title("usage (dash: expected from uniform draws)", fontsize=10)
    _draw_lines(perplexity, points, "num_codes", "perplexity", styles)
    perplexity.plot(sizes, sizes, color="black", linestyle=":", linewidth=1)
    perplexity.set_yscale("log", base=2)
    _ticks(perplexity.yaxis, [])
    perplexity.set(ylabel="perplexity, codes")
    perplexity.set_title("perplexity (dotted: all codes equally often)", fontsize=10)
    _draw_fid(fid, points, styles)
    for axes in (usage, perplexity, fid):
        _size_axis(axes, sizes)
        axes.set_xlabel("codes of a codebook, K")
        finish(axes)
    _add_methods(figure, usage, styles)
    _add_footer(figure, points)
    return figure


def _styles(points: Sequence[SizePoint]) -> dict[str, dict[str, Any]]:
    """Give every method a colour and a marker: neither alone has to tell them apart."""
    methods = dict.fromkeys(point.method for point in points)
    return {
        method: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        for i, method in enumerate(methods)
    }


def _draw_lines(
    axes: Axes, points: Sequence[SizePoint], x: str, metric: str, styles: dict[str, dict[str, Any]]
) -> None:
    letter = "d" if x == "num_codes" else "K"
    for (method, other, _), row in lines(points, x, metric).items():
        places, values, _ = zip(*row, strict=True)
        axes.plot(places, values, markersize=6, linewidth=1.4, **styles[method])
        text = "" if other is None else f"{letter} = {other:,}"
        axes.annotate(
            text, (places[-1], values[-1]), (6, 3), textcoords="offset points", fontsize=7
        )


def _draw_plane(
    figure: Figure,
    axes: Axes,
    points: Sequence[SizePoint],
    metric: str,
    styles: dict[str, dict[str, Any]],
) -> None:
    """Draw every codebook at (K, d), coloured by the metric."""
    from matplotlib.colors import Normalize

    shown = [p for p in points if p.dim is not None and p.metrics.get(metric) is not None]
    axes.set(xlabel="codes of a codebook, K", ylabel="length of a code, d")
    axes.set_title(f"codebooks, {len(shown)} of {len(points)} of known length", fontsize=10)
    if not shown:
        return
    values = [value for point in shown if (value := point.metrics[metric]) is not None]
    norm = Normalize(min(values), max(values) + 1e-9)
    # Dark is good on either kind of scale.
    tones = "cividis" if metric in LOWER_IS_BETTER else "cividis_r"
    drawn: Any = None
    for number, (point, value) in enumerate(zip(shown, values, strict=True)):
        size = 170 - 110 * number / len(shown)  # of two in one place both are seen
        style = {"s": size, "marker": styles[point.method]["marker"], "cmap": tones}
        place = (point.num_codes, point.dim or 0)
        drawn = axes.scatter(*place, c=[value], norm=norm, edgecolors="black", lw=0.6, **style)
        text = f"{point.num_codes:,}×{point.dim}"
        axes.annotate(text, place, (8, 6), textcoords="offset points", fontsize=7)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8)
    bar.set_label(_label(points, metric), fontsize=8)
    _size_axis(axes, sorted({point.num_codes for point in shown}))
    axes.set_yscale("log", base=2)
    _ticks(axes.yaxis, sorted({point.dim or 0 for point in shown}))
    axes.margins(0.2)
    finish(axes)


def _draw_fid(axes: Axes, points: Sequence[SizePoint], styles: dict[str, dict[str, Any]]) -> None:
    found = lines(points, "num_codes", "fid")
    missing = [point.name for point in points if point.metrics.get("fid") is None]
    if not found:
        text = "FID was not measured:\n`vqkit evaluate --metrics fid` adds it"
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center")
        axes.set_axis_off()
        return
    axes.set(ylabel="FID (low is good)")
    axes.set_title("FID (star: best of its method)", fontsize=10)
    _draw_lines(axes, points, "num_codes", "fid", styles)
    for method, style in styles.items():
        row = [one for (name, *_), line in found.items() if name == method for one in line]
        if row:
            place, value, _ = min(row, key=lambda one: one[1])
            axes.plot(place, value, color=style["color"], marker="*", markersize=16)
    if missing:
        axes.set_title(f"FID (star: best of its method); {len(missing)} not measured", fontsize=10)


def _label(points: Sequence[SizePoint], metric: str) -> str:
    unit = next((point.units[metric] for point in points if metric in point.units), "")
    name = NAMES.get(metric, metric)
    return f"{name}, {unit}" if unit and metric != "usage" else name


def _size_axis(axes: Axes, sizes: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    _ticks(axes.xaxis, sizes)


def _ticks(axis: Any, sizes: Sequence[int]) -> None:
    """Mark the sizes that there are, or of many a power of two here and there."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    if 1 <= len(sizes) <= 8:
        axis.set_ticks(list(sizes))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def _add_methods(figure: Figure, axes: Axes, styles: dict[str, dict[str, Any]]) -> None:
    for method, style in styles.items():
        axes.plot([], [], label=method, linewidth=1.4, **style)
    add_legend(figure, axes, above=True)


def _add_footer(figure: Figure, points: Sequence[SizePoint]) -> None:
    first = points[0]
    tokens = sorted({point.num_tokens for point in points})
    span = f"{tokens[0]:,}" if len(tokens) == 1 else f"{tokens[0]:,} to {tokens[-1]:,}"
    text = f"{first.num_images:,} images, {span} tokens; {first.protocol.id}"
    figure.supxlabel(text, fontsize=7, color="#555555")
