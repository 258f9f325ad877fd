"""Originals and reconstructions side by side, labelled, as one picture that fits a README."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MAX_WIDTH = 1600
"""Pixels."""
MAX_BYTES = 1_500_000
"""Of the PNG file."""

_CELL, _SMALLEST_CELL = 320, 96
_GAP, _MARGIN = 8, 24
_TITLE, _TEXT = 17, 14
_INK, _GREY, _PAPER = (28, 30, 33), (106, 111, 118), (255, 255, 255)


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """The pictures of one tokenizer, or the originals."""

    title: str
    lines: tuple[str, ...]
    """Below the title."""
    pictures: Sequence[Tensor]
    """uint8 (C, H, W), C 1 or 3; the same sizes in every column."""
    captions: Sequence[str]
    """Below each picture; empty for none."""


def draw(columns: Sequence[Column], *, note: str = "", max_width: int = MAX_WIDTH) -> Image.Image:
    """Draw a grid: a row for every picture, a column for every tokenizer.

    A cell shows the central square of its picture: pixel by pixel where the picture is larger than
    the cell, enlarged by a whole number where it is smaller. At most `max_width` pixels wide;
    columns for which there is no room continue in further bands below, the originals repeated.
    """
    if not columns or not columns[0].pictures:
        raise ValueError("columns: there is no picture to draw")
    bands = _bands(columns, max_width)
    width = max(map(len, bands))
    cell = min(_CELL, (max_width - 2 * _MARGIN + _GAP) // width - _GAP)
    drawn = [_draw_band(band, cell) for band in bands]
    footer = _footer(cell, columns[0].pictures, note)
    total = 2 * _MARGIN + width * (cell + _GAP) - _GAP
    text = _wrapped(footer, total - 2 * _MARGIN)
    below = len(text) * (_TEXT + 6)
    sheet = Image.new("RGB", (total, sum(b.height for b in drawn) + 2 * _MARGIN + below), _PAPER)
    top = _MARGIN
    for band in drawn:
        sheet.paste(band, (_MARGIN, top))
        top += band.height
    pen = ImageDraw.Draw(sheet)
    for line in text:
        pen.text((_MARGIN, top), line, fill=_GREY, font=_font(_TEXT))
        top += _TEXT + 6
    return sheet


def png_bytes_of(picture: Image.Image) -> bytes:
    """Return a PNG file of at most `MAX_BYTES`: scaled down if it must be."""
    while True:
        file = io.BytesIO()
        picture.save(file, "PNG", optimize=True)
        if file.tell() <= MAX_BYTES:
            return file.getvalue()
        size = (picture.width * 9 // 10, picture.height * 9 // 10)
        picture = picture.resize(size, Image.Resampling.LANCZOS)


def _bands(columns: Sequence[Column], max_width: int) -> list[list[Column]]:
    """Cut the columns so that cells stay legible; every band starts with the originals."""
    room = max(2, (max_width - 2 * _MARGIN + _GAP) // (_SMALLEST_CELL + _GAP))
    if len(columns) <= room:
        return [list(columns)]
    first, rest = columns[0], columns[1:]
    count = -(-len(rest) // (room - 1))
    each = -(-len(rest) // count)
    return [[first, *rest[i : i + each]] for i in range(0, len(rest), each)]


def _draw_band(columns: Sequence[Column], cell: int) -> Image.Image:
    head = _TITLE + 8 + max(len(c.lines) for c in columns) * (_TEXT + 4) + 6
    row = cell + _TEXT + 14
    rows = len(columns[0].pictures)
    sheet = Image.new("RGB", (len(columns) * (cell + _GAP) - _GAP, head + rows * row), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, column in enumerate(columns):
        left = number * (cell + _GAP)
        _fitted(pen, (left, 0), column.title, cell, _TITLE, _INK)
        for i, line in enumerate(column.lines):
            _fitted(pen, (left, _TITLE + 8 + i * (_TEXT + 4)), line, cell, _TEXT, _GREY)
        for i, picture in enumerate(column.pictures):
            top = head + i * row
            sheet.paste(_cut(picture, cell), (left, top))
            if column.captions:
                _fitted(pen, (left, top + cell + 3), column.captions[i], cell, _TEXT, _INK)
    return sheet


def _cut(picture: Tensor, cell: int) -> Image.Image:
    """The central square of a picture, at most `cell` wide and high, in whole-number zoom."""
    array = picture.permute(1, 2, 0).numpy()
    image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).convert("RGB")
    zoom = max(1, cell // min(image.size))
    width, height = (min(length, cell // zoom) for length in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    square = image.crop((left, top, left + width, top + height))
    return square.resize((width * zoom, height * zoom), Image.Resampling.NEAREST)


def _footer(cell: int, pictures: Sequence[Tensor], note: str) -> str:
    shorter = min(min(picture.shape[-2:]) for picture in pictures)
    shown = (
        "Centres of the pictures, pixel by pixel; PSNR is of the whole picture."
        if shorter > cell
        else "PSNR below each picture."
    )
    return f"{shown} {note}".strip()


def _fitted(
    pen: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    width: int,
    size: int,
    ink: tuple[int, int, int],
) -> None:
    """Write one line, smaller or cut off if it is too long."""
    while size > 10 and pen.textlength(text, font=_font(size)) > width:
        size -= 1
    while text and pen.textlength(text, font=_font(size)) > width:
        text = text[:-2] + "…" if len(text) > 2 else ""
    pen.text(place, text, fill=ink, font=_font(size))


def _wrapped(text: str, width: int) -> list[str]:
    font, lines = _font(_TEXT), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
