"""What every analysis says of its conditions, and the walk over the images that they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vqkit.config import require
from vqkit.data import ImageSet, iterate_once
from vqkit.models import ImageTokenizer
from vqkit.training.health import fingerprint

Progress = Callable[[int, int], None]
"""Called after every batch with (images done, images of the set)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """What must be equal for two analyses to be comparable."""

    name: str
    """Of the tokenizer, for the legend."""
    tokenizer_sha256: str
    """Of all its tensors, bit for bit, in the order of the state."""
    data_fingerprint: str
    """SHA-256 of the names and sizes of the files and of the settings that change pixels."""
    num_images: int
    num_tokens: int
    """Positions × slots of all images."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Arguments of the analysis, as JSON values."""

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "tokenizer": {"name": self.name, "sha256": self.tokenizer_sha256},
            "data": {
                "fingerprint": self.data_fingerprint,
                "num_images": self.num_images,
                "num_tokens": self.num_tokens,
            },
            "settings": self.settings,
        }


def conditions_of(
    name: str,
    tokenizer: ImageTokenizer,
    images: ImageSet,
    *,
    num_images: int,
    num_tokens: int,
    **settings: Any,
) -> Conditions:
    """State the conditions of an analysis that has walked over the images."""
    return Conditions(
        name=name,
        tokenizer_sha256=fingerprint(tokenizer).hex(),
        data_fingerprint=images.fingerprint(),
        num_images=num_images,
        num_tokens=num_tokens,
        settings=settings,
    )


def check_inputs(tokenizer: ImageTokenizer, images: ImageSet) -> None:
    """Raise `ValueError` unless there are images and the tokenizer takes them."""
    require(len(images) > 0, "images", "hold no image; check data.path and data.limit")
    taken = tokenizer.config.network.image_channels
    require(
        images.channels == taken,
        f"data.channels={images.channels}",
        f"the tokenizer takes images of {taken}; set data.channels={taken}",
    )


def token_batches(
    tokenizer: ImageTokenizer, images: ImageSet, batch_size: int, progress: Progress | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (originals (b, C, H, W) uint8, ids (b, h, w, T)) of every image once, in order.

    Both lie on the device of the tokenizer. A batch holds at most `batch_size` images of one size.
    """
    device = next(tokenizer.parameters()).device
    done = 0
    for batch in iterate_once(images, batch_size):
        originals = batch.images.to(device)
        yield originals, tokenizer.encode(originals)
        done += len(originals)
        if progress is not None:
            progress(done, len(images))
