"""Where reconstructions are wrong: maps of errors of several tokenizers on one scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vqkit.analysis.conditions import Conditions
from vqkit.analysis.figures import add_footer, new_figure
from vqkit.analysis.rebuilt.panels import (
    add_scale,
    draw_error,
    draw_image,
    error_scale,
    shape_of,
    short_name,
    tokens_title,
)
from vqkit.analysis.rebuilt.rebuilding import RebuiltImages, rebuild_images
from vqkit.config import require
from vqkit.data import ImageSet
from vqkit.models import ImageTokenizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ErrorMaps:
    """Errors of one tokenizer on chosen images."""

    rebuilt: RebuiltImages

    @property
    def conditions(self) -> Conditions:
        """Images and tokens are those that are shown."""
        return self.rebuilt.conditions

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON values, the pixels left out; errors in levels of 0..255."""
        images = []
        for image in self.rebuilt.images:
            error = image.error()
            found = {
                "mean_error": float(error.double().mean()),
                "largest_error": float(error.max()),
            }
            images.append({"name": image.name, "psnr": image.psnr, **found})
        return {"protocol": self.rebuilt.stamp(), "images": images}


def error_maps(
    tokenizer: ImageTokenizer,
    images: ImageSet,
    indices: Sequence[int] = (0, 1, 2, 3),
    *,
    name: str = "tokenizer",
) -> ErrorMaps:
    """Rebuild images `indices` and find their errors; arguments and errors of `rebuild_images`."""
    return ErrorMaps(rebuilt=rebuild_images(tokenizer, images, indices, name=name))


def error_maps_figure(found: Sequence[ErrorMaps], *, scale: float | None = None) -> Figure:
    """Draw a row for every image: the original, then each tokenizer's image and error map.

    Args:
        found: of the same images.
        scale: error in levels where the colours end, the same for all maps; default such that
            99.5 % of all pixels lie below it.
    """
    require(scale is None or scale > 0, f"scale={scale}", "must be above 0, in levels of 255")
    rows = [one.rebuilt for one in found]
    end = scale or error_scale(image.error() for one in rows for image in one.images)
    count, columns = len(rows[0].images), 1 + 2 * len(rows)
    side = min(2.4, 15 / columns)
    shapes = [shape_of(image.original) for image in rows[0].images]
    figure = new_figure(columns * side + 1.0, side * sum(shapes) + 0.3 * count + 1.2)
    panels = figure.subplots(count, columns, squeeze=False, height_ratios=shapes)
    drawn: Any = None
    for number, cells in enumerate(panels):
        first = rows[0].images[number]
        head = "original\n\n" if number == 0 else ""
        draw_image(cells[0], first.original, head + short_name(first.name))
        for one, left, right in zip(rows, cells[1::2], cells[2::2], strict=True):
            image = one.images[number]
            error = image.error()
            head = f"{tokens_title(one)}\n" if number == 0 else ""
            draw_image(left, image.rebuilt, f"{head}{image.psnr:.2f} dB")
            drawn = draw_error(right, error, end, f"mean |error| {float(error.mean()):.1f}")
    add_scale(figure, drawn, list(panels.flatten()), end)
    add_footer(figure, [one.conditions for one in found], rows[0].quality_protocol.id)
    return figure
