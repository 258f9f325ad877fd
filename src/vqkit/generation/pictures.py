"""Generated images side by side: one row for every class, as VQGAN-LC's Figures 6 to 11."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vqkit.config import require
from vqkit.data.transforms import to_picture

_SMALL: Final = 64
"""Pixels that small images are enlarged to, by a whole number."""
_GAP, _MARGIN, _TEXT = 4, 16, 16
_INK, _PAPER = (28, 30, 33), (255, 255, 255)


@dataclass(frozen=True, slots=True)
class Row:
    """Images of one class."""

    name: str
    """Written in front of them; may be empty."""
    images: Sequence[Tensor]
    """uint8 (C, H, W), C 1 or 3, all of one size in all rows."""


def draw_rows(rows: Sequence[Row]) -> Image.Image:
    """Draw images pixel by pixel, small ones enlarged by a whole number, names in front."""
    require(any(row.images for row in rows), "rows", "there is no image to draw")
    first = next(row.images[0] for row in rows if row.images)
    height, width = first.shape[-2:]
    zoom = max(1, _SMALL // max(height, width))
    font = ImageFont.load_default(_TEXT)
    names = max(int(font.getlength(row.name)) for row in rows)
    left = _MARGIN + (names + 2 * _GAP if names else 0)
    cell = (width * zoom + _GAP, height * zoom + _GAP)
    columns = max(len(row.images) for row in rows)
    size = (left + columns * cell[0] + _MARGIN - _GAP, len(rows) * cell[1] + 2 * _MARGIN - _GAP)
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        top = _MARGIN + number * cell[1]
        middle = top + (cell[1] - _GAP) // 2
        pen.text((_MARGIN, middle), row.name, fill=_INK, font=font, anchor="lm")
        for column, image in enumerate(row.images):
            picture = to_picture(image.cpu()).convert("RGB")
            enlarged = picture.resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (left + column * cell[0], top))
    return sheet
