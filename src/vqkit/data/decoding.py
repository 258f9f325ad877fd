"""One encoded image of any size and mode -> an upright 8-bit Pillow image, grey or RGB."""

from __future__ import annotations

import errno
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "TGA", "JPEG2000")
"""Pillow's readers that may be used; others (EPS starts Ghostscript) stay closed."""
EXTENSIONS = frozenset(
    f".{ending}"
    for ending in (
        *("png", "jpg", "jpeg", "jpe", "webp", "bmp", "gif", "tif", "tiff"),
        *("ppm", "pgm", "pbm", "pnm", "tga", "jp2"),
    )
)
"""Lower-case endings by which a folder's images are told from its other files."""

# What Pillow's readers raise on damaged files; a bomb has no common ancestor with the others.
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, TypeError, OverflowError),
    *(struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning),
)
# A file that is gone or closed to us is as unusable as a damaged one. Other system errors (network
# disk away, too many open files) pass by themselves, and must not silently change what is read.
_LASTING = frozenset({errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR})
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BrokenImageError(ValueError):
    """A file that is no readable image: `name` says which, `reason` why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(
            f"{name}: is no readable image ({reason}); "
            "repair or remove it, or leave such files out with data.on_broken=skip"
        )
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type[BrokenImageError], tuple[str, str]]:
        """Pickle what built it; worker processes send these errors home."""
        return BrokenImageError, (self.name, self.reason)


def decode(encoded: bytes | Path, name: str, channels: int) -> Image.Image:
    """Decode one image: mode "L" (channels=1) or "RGB" (3), upright, 8 bits.

    - EXIF orientation is applied; of an animation the first frame is taken.
    - Transparency (alpha, palette or colour key) is laid over white.
    - 16-bit grey is scaled by 255/65535 and rounded (Pillow's own conversion clips at 255); of
      16-bit colour Pillow gives the high byte. 32-bit integers count as 16-bit values, floats as
      [0, 1]; beyond these ranges brightness is undefined and the file counts as broken.
    - Grey is ITU-R 601 luma, as Pillow computes it.
    - More pixels than `PIL.Image.MAX_IMAGE_PIXELS` are refused before anything is decompressed.

    Raises `BrokenImageError`, naming the file, for damage of any kind and for decompression bombs.
    """
    try:
        with Image.open(
            io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded, "r", FORMATS
        ) as image:
            check_pixels(image.size)
            image.load()
            upright = _UPRIGHT.get(_orientation(image))
            plain = _eight_bits(image)
            if upright is not None:
                plain = plain.transpose(upright)
            mode = "L" if channels == 1 else "RGB"
            return plain if plain.mode == mode else plain.convert(mode)
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None and error.errno not in _LASTING:
            raise
        raise BrokenImageError(name, _reason(error)) from error


def check_pixels(size: tuple[int, int]) -> None:
    """Raise `ValueError` if (width, height) holds more pixels than Pillow's limit for bombs."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and size[0] * size[1] > limit:
        raise ValueError(
            f"decompression bomb: {size[0]}x{size[1]} pixels exceed the limit of {limit:,} "
            "(PIL.Image.MAX_IMAGE_PIXELS)"
        )


def _orientation(image: Image.Image) -> int:
    # Pillow has already turned a TIFF and removed the tag; damaged EXIF does not spoil the pixels.
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except _DAMAGE:
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _from_sixteen_bits(np.asarray(image).astype(np.int64))
    if image.mode == "I":
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"32-bit pixels {values.min()}..{values.max()} lie outside 0..65535")
        return _from_sixteen_bits(values)
    if image.mode == "F":
        numbers = np.asarray(image)
        if not bool(((numbers >= 0) & (numbers <= 1)).all()):
            raise ValueError("floating-point pixels lie outside [0, 1]")
        return Image.fromarray(np.rint(numbers * 255).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _from_sixteen_bits(values: npt.NDArray[np.int64]) -> Image.Image:
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _reason(error: BaseException) -> str:
    # Pillow's text for an unknown format holds the address of a buffer: not the same twice.
    if isinstance(error, UnidentifiedImageError):
        return "unknown or damaged image format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
