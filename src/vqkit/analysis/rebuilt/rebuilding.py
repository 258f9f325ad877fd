"""Chosen images of a set and what a tokenizer makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vqkit.analysis.conditions import Conditions, Progress, check_inputs, conditions_of
from vqkit.config import require
from vqkit.data import ImageSet, iterate_once
from vqkit.metrics import DEFAULT, Protocol, psnr, to_bytes
from vqkit.models import ImageTokenizer

MOST_IMAGES = 16
"""Images of one figure."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RebuiltImage:
    """One image before and after."""

    name: str
    """Of its file, or file and row."""
    original: Tensor
    """(C, H, W) uint8."""
    rebuilt: Tensor
    """(C, H, W) uint8."""
    psnr: float
    """Decibels, at most the protocol's cap."""

    def error(self) -> Tensor:
        """Return |rebuilt - original|, mean over channels, in levels of 0..255: (H, W) float32."""
        return pixel_error(self.rebuilt, self.original)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RebuiltImages:
    """Chosen images and what one tokenizer makes of them."""

    conditions: Conditions
    """Images and tokens are those that are shown."""
    num_codes: tuple[int, ...]
    """Of every codebook."""
    quality_protocol: Protocol
    images: tuple[RebuiltImage, ...]

    def stamp(self) -> dict[str, Any]:
        """Return the conditions of all numbers, as JSON values."""
        return {**self.conditions.to_dict(), "quality": self.quality_protocol.to_dict()}


def rebuild_images(
    tokenizer: ImageTokenizer,
    images: ImageSet,
    indices: Sequence[int],
    *,
    name: str = "tokenizer",
) -> RebuiltImages:
    """Encode and decode images `indices` of a set, counted from 0, one by one.

    Args:
        tokenizer: on any device; its mode and state stay as they are.
        images: from `load_images`.
        indices: 1 to 16 images, in the order of the figure.
        name: names the tokenizer in figures.

    Raises:
        ValueError: no image, too many, one that the set does not have, a broken one, or images of
            other channels.
    """
    check_inputs(tokenizer, images)
    require(
        1 <= len(indices) <= MOST_IMAGES,
        f"images={len(indices)} of them",
        f"one figure shows 1 to {MOST_IMAGES}",
    )
    for index in indices:
        require(
            0 <= index < len(images),
            f"images={index}",
            f"the set has {len(images):,} images, counted from 0",
        )
    device = next(tokenizer.parameters()).device
    found, num_tokens = [], 0
    for index in indices:
        original = images.image(index)
        rebuilt, count = _rebuild(tokenizer, original[None].to(device), DEFAULT)
        num_tokens += count
        decibels = float(psnr(rebuilt, original[None])[0])
        found.append(
            RebuiltImage(
                name=images.name(index),
                original=original,
                rebuilt=rebuilt[0],
                psnr=min(decibels, DEFAULT.psnr_cap),
            )
        )
    return RebuiltImages(
        conditions=conditions_of(
            name,
            tokenizer,
            images,
            num_images=len(found),
            num_tokens=num_tokens,
            indices=list(indices),
        ),
        num_codes=codebook_sizes(tokenizer),
        quality_protocol=DEFAULT.on(images.fingerprint(), len(found)),
        images=tuple(found),
    )


def pixel_error(rebuilt: Tensor, original: Tensor) -> Tensor:
    """Return |rebuilt - original|, mean over channels, of (C, H, W) uint8: (H, W) in 0 to 255."""
    return (rebuilt.float() - original.float()).abs().mean(0)


def codebook_sizes(tokenizer: ImageTokenizer) -> tuple[int, ...]:
    """Return the number of codes of every codebook."""
    quantizer = tokenizer.quantizer
    return tuple(quantizer.slots[book[0]].num_codes for book in quantizer.books)


@dataclass(frozen=True, slots=True)
class RebuiltBatch:
    """Consecutive images of one size, on the CPU."""

    names: Sequence[str]
    originals: Tensor
    """(b, C, H, W) uint8."""
    rebuilt: Tensor
    """(b, C, H, W) uint8."""
    num_tokens: int


def rebuilt_batches(
    tokenizer: ImageTokenizer,
    images: ImageSet,
    batch_size: int,
    protocol: Protocol,
    progress: Progress | None,
) -> Iterator[RebuiltBatch]:
    """Yield every image of a set once, in order, beside its reconstruction."""
    device = next(tokenizer.parameters()).device
    done = 0
    for batch in iterate_once(images, batch_size):
        rebuilt, num_tokens = _rebuild(tokenizer, batch.images.to(device), protocol)
        done += len(batch.images)
        yield RebuiltBatch(batch.keys, batch.images, rebuilt, num_tokens)
        if progress is not None:
            progress(done, len(images))


def _rebuild(
    tokenizer: ImageTokenizer, originals: Tensor, protocol: Protocol
) -> tuple[Tensor, int]:
    ids = tokenizer.encode(originals)
    size = (originals.shape[-2], originals.shape[-1])
    return to_bytes(tokenizer.decode(ids, size=size), protocol.rounding).cpu(), ids.numel()
