"""The figure of token replacement: curves above, pictures below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vqkit.analysis.figures import COLOURS, add_legend, finish, new_figure
from vqkit.analysis.replacement import Replacement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vqkit.analysis.replacement import ReplacedPicture

MOST = 7
"""Reconstructions of one picture that stand side by side."""


def replacement_figure(found: Sequence[Replacement]) -> Figure:
    """Draw PSNR and SSIM by M, a line for every tokenizer, and below a row for every picture.

    Of more than 7 ranks the pictures show 7, first and last included.
    """
    rows = [(one, picture) for one in found for picture in one.pictures]
    ranks = sorted({point.m for one in found for point in one.points})
    shown = _spread(ranks)
    columns = 1 + len(shown)
    figure = new_figure(11, 3.8 + 11 / columns * 1.12 * len(rows))
    above, *below = figure.subfigures(
        1 + bool(rows), 1, height_ratios=[3.8, *[11 / columns * 1.12 * len(rows)] * bool(rows)],
        squeeze=False,
    ).flatten()  # fmt: skip
    left, right = above.subplots(1, 2)
    _draw_quality(left, found, "psnr", "PSNR, dB")
    _draw_quality(right, found, "ssim", "SSIM")
    add_legend(above, left)
    if below:
        panels = below[0].subplots(len(rows), columns, squeeze=False)
        for cells, (one, picture) in zip(panels, rows, strict=True):
            _draw_row(cells, one, picture, shown)
    return figure


def _spread(ranks: Sequence[int]) -> list[int]:
    if len(ranks) <= MOST:
        return list(ranks)
    return [ranks[round(i * (len(ranks) - 1) / (MOST - 1))] for i in range(MOST)]


def _draw_quality(axes: Axes, found: Sequence[Replacement], metric: str, label: str) -> None:
    for number, one in enumerate(found):
        colour = COLOURS[number % len(COLOURS)]
        points = [(p.m, getattr(p, metric)) for p in one.points if getattr(p, metric) is not None]
        x, y = [m for m, _ in points], [value for _, value in points]
        axes.plot(x, y, color=colour, marker="o", markersize=3, label=one.conditions.name)
    # Linear between 0 and 1, logarithmic above.
    axes.set_xscale("symlog", linthresh=1, linscale=0.5)
    ranks = sorted({point.m for one in found for point in one.points})
    axes.set_xticks(ranks, [f"{m:,}" for m in ranks])
    axes.minorticks_off()
    which = {"code": "M-th nearest other code", "feature": "code M-th nearest to its feature"}
    axes.set(xlabel=f"M: every token becomes the {which[found[0].origin]}", ylabel=label)
    finish(axes)


def _draw_row(
    cells: Sequence[Axes], one: Replacement, picture: ReplacedPicture, shown: Sequence[int]
) -> None:
    _draw_picture(cells[0], picture.original, one.conditions.name)
    rebuilt = {p.m: place for place, p in enumerate(one.points)}
    for axes, m in zip(cells[1:], shown, strict=True):
        place = rebuilt.get(m)
        if place is None:
            axes.set_axis_off()
            continue
        title = f"M = {m:,}: {picture.decibels[place]:.1f} dB"
        _draw_picture(axes, picture.rebuilt[place], title)


def _draw_picture(axes: Axes, image: Tensor, title: str) -> None:
    """Draw the central square of (C, H, W) uint8."""
    height, width = image.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square: Any = image[:, top : top + side, left : left + side].permute(1, 2, 0).numpy()
    grey: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 255} if len(image) == 1 else {}
    axes.imshow(square if len(image) == 3 else square[..., 0], **grey)
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()
