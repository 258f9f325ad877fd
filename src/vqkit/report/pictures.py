"""The same pictures through every run: originals, reconstructions, and where they differ."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, features
from torch import Tensor

from vqkit.analysis.rebuilt.rebuilding import pixel_error
from vqkit.data import ImageSet, to_float
from vqkit.metrics import psnr, to_bytes
from vqkit.models import ImageTokenizer
from vqkit.report.runs import Run

MAX_PICTURES: Final = 6
"""Shown unless another number is asked for."""
MAX_SIDE: Final = 384
"""Pixels; of larger pictures the central part is shown, pixel by pixel."""
MAX_BYTES: Final = 9_000_000
"""Of all pictures of a page as text; when they are more, fewer pictures are shown."""
_COLOURS: Final = (
    (0.0, (8, 8, 20)),
    (0.2, (48, 18, 92)),
    (0.4, (130, 32, 106)),
    (0.6, (212, 66, 70)),
    (0.8, (246, 148, 42)),
    (1.0, (252, 246, 176)),
)
"""Stops of the error scale; lightness rises evenly, so that it also reads without colour."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Picture:
    """One original and what every run made of it, cut for the page."""

    name: str
    size: tuple[int, int]
    """Height and width of the whole image."""
    original: Tensor
    """(C, H, W) uint8."""
    rebuilt: dict[str, Tensor]
    """Run → (C, H, W) uint8."""
    psnr: dict[str, float]
    """Run → dB of the whole image; infinite where it is exact."""
    rates: dict[str, float]
    """Run → nominal bits per pixel of the whole image."""

    def error(self, run: str) -> Tensor:
        """Absolute difference from the original, mean over channels, (H, W) in 0 to 255."""
        return pixel_error(self.rebuilt[run], self.original)

    @property
    def cut(self) -> bool:
        """Whether only the central part is shown."""
        return tuple(self.original.shape[-2:]) != self.size


@dataclass(frozen=True, kw_only=True, slots=True)
class Gallery:
    """The pictures of a page."""

    pictures: tuple[Picture, ...]
    num_images: int
    """Images of the set that they are the first of."""
    scale: float
    """Error, in 0 to 255, that has the brightest colour: the 99.5th percentile over all runs."""
    largest: float
    """Largest error of a pixel."""


def make_gallery(
    runs: Sequence[Run],
    images: ImageSet,
    *,
    limit: int = MAX_PICTURES,
    progress: Callable[[str], None] | None = None,
) -> tuple[Gallery | None, list[Run]]:
    """Rebuild the first images of a set with every run that has a fitting tokenizer.

    Returns the gallery, None where there is nothing to show, and the runs, which now say what they
    lack. Pictures are measured whole and cut to `MAX_SIDE` for the page.
    """
    originals = [images.image(i) for i in range(min(limit, len(images)))]
    told: list[Run] = []
    rebuilt: dict[str, list[Tensor]] = {}
    for run in runs:
        told.append(run)
        if run.tokenizer is None:
            continue
        taken = run.tokenizer.config.network.image_channels
        if taken != images.channels:
            told[-1] = run.lacks(f"it takes images of {taken} channels: no pictures.")
            continue
        if progress is not None:
            progress(run.name)
        try:
            rebuilt[run.name] = [_rebuild(run.tokenizer, image) for image in originals]
        except ValueError as error:  # NaN would pass for black
            told[-1] = run.lacks(f"it makes no pictures ({error}).")
    if not rebuilt or not originals:
        return None, told
    models = {run.name: run.tokenizer for run in runs if run.tokenizer and run.name in rebuilt}
    pictures = tuple(
        _picture(images.name(i), image, {name: found[i] for name, found in rebuilt.items()}, models)
        for i, image in enumerate(originals)
    )
    errors = torch.cat([p.error(run).flatten() for p in pictures for run in rebuilt])
    scale = max(float(np.quantile(errors.numpy(), 0.995)), 1.0)
    gallery = Gallery(
        pictures=pictures, num_images=len(images), scale=scale, largest=float(errors.max())
    )
    return gallery, told


def data_uri(image: Tensor) -> str:
    """Return uint8 (C, H, W) as a lossless file in a `data:` address: WebP, or PNG without it."""
    rows = image.permute(1, 2, 0).contiguous().numpy()
    return _uri(Image.fromarray(rows[..., 0] if rows.shape[-1] == 1 else rows))


def error_uri(error: Tensor, scale: float) -> str:
    """Return an error map (H, W) in 0 to 255 as a picture in the colours of the page's legend."""
    levels = (error / scale * 255).round().clamp(0, 255).to(torch.uint8)
    return _uri(Image.fromarray(palette()[levels.numpy()]))


def palette() -> npt.NDArray[np.uint8]:
    """Return the colours of the error scale, (256, 3)."""
    places, stops = zip(*_COLOURS, strict=True)
    levels = np.linspace(0, 1, 256)
    channels = [np.interp(levels, places, [stop[c] for stop in stops]) for c in range(3)]
    return np.stack(channels, axis=1).round().astype(np.uint8)


def _uri(image: Image.Image) -> str:
    content = io.BytesIO()
    if features.check("webp"):
        image.save(content, "WEBP", lossless=True, quality=60, method=4)
        kind = "webp"
    else:
        image.save(content, "PNG", optimize=True)
        kind = "png"
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


def _picture(
    name: str,
    original: Tensor,
    rebuilt: dict[str, Tensor],
    models: Mapping[str, ImageTokenizer],
) -> Picture:
    height, width = original.shape[-2:]
    pixels = height * width
    return Picture(
        name=name,
        size=(height, width),
        original=_cut(original),
        rebuilt={run: _cut(image) for run, image in rebuilt.items()},
        psnr={run: float(psnr(image[None], original[None])[0]) for run, image in rebuilt.items()},
        rates={run: m.bits_per_image(height, width) / pixels for run, m in models.items()},
    )


def _cut(image: Tensor) -> Tensor:
    """Return the central part of an image that is larger than the page shows."""
    for side in (-2, -1):
        beyond = image.shape[side] - MAX_SIDE
        if beyond > 0:
            image = image.narrow(side, beyond // 2, MAX_SIDE)
    return image


def _rebuild(tokenizer: ImageTokenizer, image: Tensor) -> Tensor:
    """One uint8 image (C, H, W) after encode and decode, as uint8 on the CPU.

    A model that has diverged, whose output is no number, is a `ValueError`.
    """
    device = next(tokenizer.parameters()).device
    with torch.no_grad():
        rebuilt = tokenizer.reconstruct(to_float(image[None]).to(device))
    return to_bytes(rebuilt)[0].cpu()
