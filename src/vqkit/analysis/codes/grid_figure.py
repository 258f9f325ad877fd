"""The figure of a codebook: every codevector a tile, marked by what training did to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vqkit.analysis.codes.grid import BookGrid, CodeGrid
from vqkit.analysis.figures import add_footer, book_labels, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TONES = {"moved": "Greys", "untouched": "Blues", "never drawn": "Oranges"}
"""Colours of a tile's numbers, from the lowest to the highest."""
COLUMNS = 3
"""Codebooks side by side."""


def grid_figure(found: Sequence[CodeGrid]) -> Figure:
    """Draw a panel for every codebook and a tile for every code, row by row in the order of ids.

    A tile holds the numbers of the code, row by row, dark where they are high. Grey: moved by
    training. Blue: untouched, the initial code bit for bit. Orange: moved, though no training token
    has drawn it. Where initial codes are unknown, orange is all that was never drawn.
    """
    names = [(one.conditions.name, [book.name for book in one.books]) for one in found]
    panels = [(one, book) for one in found for book in one.books]
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    shapes = [tiles_shape(len(book.ids), book.codes.shape[1]) for _, book in panels]
    height = max(5.0 * high / wide for high, wide in shapes) + 0.8
    figure = new_figure(max(6.4, 5.2 * columns), rows * min(height, 9.0) + 0.9)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for one in axes:
        one.set_axis_off()
    for cell, label, (one, book) in zip(axes, book_labels(names), panels, strict=False):
        _draw_book(cell, label, one, book)
    _add_key(figure)
    notes = "; ".join(f"{one.conditions.name}: {one.unknown}" for one in found if one.unknown)
    unknown = f"; initial codes unknown: {notes}" if notes else ""
    add_footer(figure, [one.conditions for one in found], f"images of training{unknown}")
    return figure


def tiles_shape(count: int, dim: int) -> tuple[int, int]:
    """Return the height and width in pixels of `count` tiles of `dim` numbers each."""
    side = math.ceil(math.sqrt(dim))
    lines = math.ceil(dim / side)
    across = max(1, round(math.sqrt(count * (lines + 1) / (side + 1)) * 1.2))
    return -(-count // across) * (lines + 1) + 1, across * (side + 1) + 1


def tiles(values: Tensor, colours: Tensor) -> Tensor:
    """Lay out tiles: values (n, D) in [0, 1] pick from n tables of 256 colours, (n, 256, 3).

    Returns (height, width, 3) in [0, 1]; white lies between tiles and where a tile has no number.
    """
    count, dim = values.shape
    height, width = tiles_shape(count, dim)
    side = math.ceil(math.sqrt(dim))
    lines = math.ceil(dim / side)
    across = (width - 1) // (side + 1)
    sheet = torch.ones(height, width, 3)
    for place in range(count):
        tile = torch.ones(lines * side, 3)
        tile[:dim] = colours[place][(values[place] * 255).round().long()]
        top, left = place // across * (lines + 1) + 1, place % across * (side + 1) + 1
        sheet[top : top + lines, left : left + side] = tile.view(lines, side, 3)
    return sheet


def kinds_of(book: BookGrid) -> list[str]:
    """Name what became of every code that is shown: a key of `TONES`."""
    nothing = torch.zeros(book.num_codes, dtype=torch.bool)
    untouched = nothing if book.untouched is None else book.untouched
    undrawn = nothing if book.undrawn is None else book.undrawn
    pairs = zip(untouched[book.ids].tolist(), undrawn[book.ids].tolist(), strict=True)
    return ["untouched" if same else "never drawn" if silent else "moved" for same, silent in pairs]


def _draw_book(axes: Axes, label: str, one: CodeGrid, book: BookGrid) -> None:
    # A few extreme numbers must not wash out all others.
    reach = float(book.codes.abs().flatten().double().quantile(0.99)) if book.codes.numel() else 1.0
    values = (book.codes / (2 * (reach or 1.0)) + 0.5).clamp(0, 1)
    tones = {kind: _tone(name) for kind, name in TONES.items()}
    sheet = tiles(values, torch.stack([tones[kind] for kind in kinds_of(book)]))
    axes.imshow(sheet.numpy(), interpolation="nearest")
    shown = "" if len(book.ids) == book.num_codes else f", {len(book.ids):,} shown"
    untouched = "unknown" if book.untouched is None else f"{int(book.untouched.sum()):,}"
    undrawn = "unknown" if book.undrawn is None else f"{int(book.undrawn.sum()):,}"
    axes.set_title(
        f"{label}: K = {book.num_codes:,}, d = {book.codes.shape[1]}{shown}, {one.steps:,} steps\n"
        f"untouched: {untouched}, never drawn in training: {undrawn}",
        fontsize=9,
    )


def _tone(name: str) -> Tensor:
    """Return 256 colours (256, 3), the palest left out so that a tile stands off the paper."""
    from matplotlib import colormaps

    table: Any = colormaps[name]
    return torch.tensor([table(0.25 + 0.7 * step / 255)[:3] for step in range(256)]).float()


def _add_key(figure: Figure) -> None:
    from matplotlib.patches import Patch

    words = {
        "moved": "moved by training",
        "untouched": "untouched since initialisation",
        "never drawn": "moved, but never drawn",
    }
    patches = [
        Patch(color=tuple(_tone(TONES[kind])[160].tolist()), label=words[kind]) for kind in TONES
    ]
    figure.legend(handles=patches, loc="outside upper center", ncols=3, fontsize=9, frameon=False)
