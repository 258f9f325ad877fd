"""Images, maps of errors and their scale, as all figures of reconstructions draw them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vqkit.analysis.figures import sizes_text
from vqkit.analysis.rebuilt.rebuilding import RebuiltImages

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

ERRORS = "inferno"
"""Black where nothing is wrong; rises evenly in lightness, so that colours are not needed."""
_SHARE = 0.995


def draw_image(axes: Axes, image: Tensor, title: str = "") -> None:
    """Draw (C, H, W) uint8, every pixel as it is."""
    pixels: Any = image.permute(1, 2, 0).numpy()
    grey: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 255} if len(image) == 1 else {}
    shown = pixels if len(image) == 3 else pixels[..., 0]
    axes.imshow(shown, interpolation="nearest", **grey)
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()


def draw_error(axes: Axes, error: Tensor, scale: float, title: str = "") -> Any:
    """Draw an error map (H, W) in levels, from 0 to `scale`; return the image."""
    image = axes.imshow(error.numpy(), cmap=ERRORS, vmin=0, vmax=scale, interpolation="nearest")
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()
    return image


def error_scale(errors: Iterable[Tensor]) -> float:
    """Return one end of the scale for all maps: 99.5 % of all pixels lie below it, in levels.

    A whole number of at least 1, so that maps of no error are black.
    """
    # A histogram: the maps of large photographs have too many pixels to sort.
    counts = sum(torch.histc(error, bins=256, min=0, max=256) for error in errors)
    assert isinstance(counts, Tensor)  # a figure has an image
    reached = counts.cumsum(0) >= _SHARE * counts.sum()
    return float(max(1, int(reached.nonzero()[0]) + 1))


def add_scale(figure: Figure | SubFigure, image: Any, axes: Sequence[Axes], scale: float) -> None:
    """Add the legend of all error maps."""
    bar = figure.colorbar(image, ax=list(axes), shrink=0.7, pad=0.01, aspect=30, extend="max")
    text = f"|error|, mean over channels, levels of 255 (one scale: 0 to {scale:g})"
    bar.set_label(text, fontsize=8)
    bar.ax.tick_params(labelsize=8)


def short_name(name: str, most: int = 22) -> str:
    """Return the last part of an image's name, its beginning cut off where it is long."""
    last = name.rpartition("/")[2]
    return last if len(last) <= most else f"...{last[-(most - 3) :]}"


def shape_of(image: Tensor) -> float:
    """Return height over width of an image (C, H, W)."""
    return image.shape[-2] / image.shape[-1]


def tokens_title(one: RebuiltImages) -> str:
    """Name a tokenizer, its codes and the tokens of an image."""
    each = math.ceil(one.conditions.num_tokens / len(one.images))
    about = "about " if len({image.original.shape for image in one.images}) > 1 else ""
    return f"{one.conditions.name}, {sizes_text(one.num_codes)}\n{about}{each:,} tokens an image"
