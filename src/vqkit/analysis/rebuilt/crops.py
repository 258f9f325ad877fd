"""A chosen region, enlarged, beside the reconstructions of several tokenizers (LooC, Figure 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vqkit.analysis.conditions import Conditions
from vqkit.analysis.figures import COLOURS, add_footer, new_figure
from vqkit.analysis.rebuilt.panels import draw_image, shape_of, short_name, tokens_title
from vqkit.analysis.rebuilt.rebuilding import RebuiltImage, RebuiltImages, rebuild_images
from vqkit.config import require
from vqkit.data import ImageSet
from vqkit.metrics import psnr
from vqkit.models import ImageTokenizer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BOX = COLOURS[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """A rectangle of pixels; the corner (0, 0) is above and to the left."""

    top: int
    left: int
    height: int
    width: int

    def of(self, image: Tensor) -> Tensor:
        """Cut the region out of (C, H, W)."""
        rows = slice(self.top, self.top + self.height)
        return image[:, rows, self.left : self.left + self.width]

    def check(self, image: RebuiltImage) -> None:
        """Raise `ValueError` unless the region lies inside an image and has a pixel."""
        height, width = image.original.shape[-2:]
        inside = (
            min(self.top, self.left) >= 0
            and min(self.height, self.width) >= 1
            and self.top + self.height <= height
            and self.left + self.width <= width
        )
        require(
            inside,
            f"region={self.top} {self.left} {self.height} {self.width}",
            f"is no part of {image.name}, {height}×{width} pixels; give top left height width",
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Crops:
    """Chosen images of one tokenizer, and a region of each."""

    rebuilt: RebuiltImages
    regions: tuple[Region, ...]
    """One for every image."""

    @property
    def conditions(self) -> Conditions:
        """Images and tokens are those that are shown."""
        return self.rebuilt.conditions

    def quality(self, number: int) -> float:
        """Return the PSNR inside the region of an image, in dB, at most the protocol's cap."""
        image, region = self.rebuilt.images[number], self.regions[number]
        found = psnr(region.of(image.rebuilt)[None], region.of(image.original)[None])
        return min(float(found[0]), self.rebuilt.quality_protocol.psnr_cap)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON values, the pixels left out."""
        images = [
            {
                "name": image.name,
                "psnr": image.psnr,
                "region": asdict(region),
                "region_psnr": self.quality(number),
            }
            for number, (image, region) in enumerate(
                zip(self.rebuilt.images, self.regions, strict=True)
            )
        ]
        return {"protocol": self.rebuilt.stamp(), "images": images}


def crops(
    tokenizer: ImageTokenizer,
    images: ImageSet,
    indices: Sequence[int] = (0,),
    region: Region | None = None,
    *,
    name: str = "tokenizer",
) -> Crops:
    """Rebuild images `indices` whole, and cut the same region out of each.

    Args:
        tokenizer, images, indices, name: as in `rebuild_images`.
        region: of every image; default the middle, a third as high and as wide.

    Raises:
        ValueError: a region that does not lie inside an image, or as `rebuild_images`.
    """
    rebuilt = rebuild_images(tokenizer, images, indices, name=name)
    regions = tuple(region or _middle(image.original) for image in rebuilt.images)
    for image, one in zip(rebuilt.images, regions, strict=True):
        one.check(image)
    return Crops(rebuilt=rebuilt, regions=regions)


def _middle(image: Tensor) -> Region:
    high, wide = image.shape[-2:]
    height, width = max(1, high // 3), max(1, wide // 3)
    return Region(top=(high - height) // 2, left=(wide - width) // 2, height=height, width=width)


def crops_figure(found: Sequence[Crops]) -> Figure:
    """Draw two rows for every image: whole with the region framed, and the region enlarged.

    Columns: the original, then every tokenizer. Enlarged pixels stay squares: nothing is smoothed.
    `found` must be of the same images.
    """
    rows = [one.rebuilt for one in found]
    count, columns = len(rows[0].images), 1 + len(rows)
    side = min(3.0, 15 / columns)
    heights = []
    for image, region in zip(rows[0].images, found[0].regions, strict=True):
        heights += [min(shape_of(image.original), 2.0), min(region.height / region.width, 2.0)]
    figure = new_figure(columns * side + 0.4, side * sum(heights) + 0.6 * count + 0.8)
    panels = figure.subplots(2 * count, columns, squeeze=False, height_ratios=heights)
    for number in range(count):
        whole, cut = panels[2 * number], panels[2 * number + 1]
        first, region = rows[0].images[number], found[0].regions[number]
        head = "original\n\n" if number == 0 else ""
        draw_image(whole[0], first.original, head + short_name(first.name))
        place = f"rows {region.top}+{region.height}, columns {region.left}+{region.width}"
        draw_image(cut[0], region.of(first.original), place)
        for column, one in enumerate(found, 1):
            image = one.rebuilt.images[number]
            head = f"{tokens_title(one.rebuilt)}\n" if number == 0 else ""
            draw_image(whole[column], image.rebuilt, f"{head}{image.psnr:.2f} dB")
            inside = f"{one.quality(number):.2f} dB inside"
            draw_image(cut[column], region.of(image.rebuilt), inside)
        for axes in whole:
            _frame(axes, region)
        for axes in cut:
            _frame(axes, Region(top=0, left=0, height=region.height, width=region.width))
    add_footer(figure, [one.conditions for one in found], rows[0].quality_protocol.id)
    return figure


def _frame(axes: Axes, region: Region) -> None:
    from matplotlib.patches import Rectangle

    # Pixel centres have whole numbers.
    corner = (region.left - 0.5, region.top - 0.5)
    axes.add_patch(
        Rectangle(corner, region.width, region.height, fill=False, color=BOX, lw=2, clip_on=False)
    )
