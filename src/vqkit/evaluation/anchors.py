"""PNG, JPEG, WebP and AVIF on an image set: what everyday codecs make of the same bits.

Every image is written as a file of its own in memory, read again and scored under the protocol that
tokenizers are scored under. Rates are those of whole files, headers included: of pictures as small
as MNIST's a header is most of the file. Pillow writes the files; a codec that its build lacks, or
that refuses an image, is named in `Anchors.missing` with the reason.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from PIL import Image, features
from PIL import __version__ as pillow_version
from torch import Tensor

from vqkit.config import require
from vqkit.data import ImageSet, iterate_once
from vqkit.evaluation.curves import RatePoint
from vqkit.metrics import DEFAULT, Protocol
from vqkit.metrics.reconstruction import NAMES, ReconstructionScores

FORMAT: Final = "vqkit-anchors-1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Codec:
    """One codec at one setting, as Pillow writes it."""

    name: str
    """Of its curve."""
    format: str
    """Pillow's name."""
    feature: str
    """What Pillow's build must have."""
    quality: int | None = None
    """None of a lossless codec."""
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name and quality."""
        return self.name if self.quality is None else f"{self.name} {self.quality}"

    def encode(self, image: Image.Image) -> bytes:
        """Return the file of an image."""
        content = io.BytesIO()
        quality = {} if self.quality is None else {"quality": self.quality}
        image.save(content, self.format, **self.options, **quality)
        return content.getvalue()


CODECS: Final[tuple[Codec, ...]] = (
    Codec(name="PNG", format="PNG", feature="zlib", options={"optimize": True}),
    Codec(
        name="WebP lossless",
        format="WEBP",
        feature="webp",
        options={"lossless": True, "method": 4},
    ),
    *(
        Codec(
            name="JPEG", format="JPEG", feature="jpg", quality=quality, options={"optimize": True}
        )
        for quality in (5, 15, 30, 50, 75, 90, 95)
    ),
    *(
        Codec(name="WebP", format="WEBP", feature="webp", quality=quality, options={"method": 4})
        for quality in (1, 10, 30, 50, 75, 90, 98)
    ),
    *(
        Codec(name="AVIF", format="AVIF", feature="avif", quality=quality, options={"speed": 6})
        for quality in (10, 25, 40, 55, 70, 85, 95)
    ),
)
"""Two lossless codecs, and three lossy ones at seven qualities each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Anchors:
    """What the codecs made of an image set."""

    points: tuple[RatePoint, ...]
    missing: tuple[tuple[str, str], ...]
    """(codec, why it was not measured)."""
    versions: dict[str, str]
    """Of Pillow and the libraries behind it."""

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        protocols = {point.protocol.id: point.protocol.to_dict() for point in self.points}
        return {
            "format": FORMAT,
            "points": [point.to_dict() for point in self.points],
            "protocols": protocols,
            "missing": [list(pair) for pair in self.missing],
            "versions": self.versions,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Anchors:
        """Rebuild what `to_dict` gave; another format is a `ValueError`."""
        written = values.get("format") if isinstance(values, dict) else None
        require(written == FORMAT, f"format={written!r}", f"expected {FORMAT!r}; measure again")
        try:
            protocols = {
                name: Protocol(**{k: v for k, v in facts.items() if k != "id"})
                for name, facts in values["protocols"].items()
            }
            points = tuple(
                RatePoint(
                    name=one["name"],
                    method=one["method"],
                    rates=one["rates"],
                    metrics=one["metrics"],
                    protocol=protocols[one["protocol"]],
                    num_images=one["num_images"],
                    codec=True,
                    lossless=one["lossless"],
                )
                for one in values["points"]
            )
            missing = tuple((name, why) for name, why in values["missing"])
            return cls(points=points, missing=missing, versions=values["versions"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"anchors: {error}; the file is damaged, measure again") from error


def measure_anchors(
    images: ImageSet,
    *,
    protocol: Protocol = DEFAULT,
    codecs: Sequence[Codec] = CODECS,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Anchors:
    """Measure codecs on every image of a set; memory does not grow with the number of images.

    Args:
        images: from `load_images`; images of different sizes are fine.
        protocol: how quality is measured; the set's fingerprint is added to it. Its tiles do not
            matter: codecs see whole images.
        codecs: which, at which settings.
        batch_size: images of one size that are read together.
        progress: called after every batch with (images done, images of the set).
    """
    require(len(images) > 0, "image_set", "holds no image; check data.path and data.limit")
    missing = {c.name: why for c in codecs if (why := _lacks(c))}
    tracks = {
        codec.label: _Track(codec, ReconstructionScores(protocol))
        for codec in codecs
        if codec.name not in missing
    }
    done = 0
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for batch in iterate_once(images, batch_size):
            originals = batch.images
            for label, track in list(tracks.items()):
                try:
                    track.update(originals, pool)
                except (OSError, ValueError) as error:
                    missing.setdefault(label, f"refuses an image: {' '.join(str(error).split())}")
                    del tracks[label]
            done += len(originals)
            if progress is not None:
                progress(done, len(images))
    stamped = protocol.on(images.fingerprint(), len(images))
    return Anchors(
        points=tuple(track.point(stamped) for track in tracks.values()),
        missing=tuple(missing.items()),
        versions=_versions(),
    )


class _Track:
    """The sums of one codec at one setting."""

    def __init__(self, codec: Codec, scores: ReconstructionScores) -> None:
        self.codec, self.scores = codec, scores
        self.num_bytes = 0

    def update(self, originals: Tensor, pool: ThreadPoolExecutor) -> None:
        """Write, read and score a batch (B, C, H, W) uint8."""
        found = list(pool.map(lambda image: through(self.codec, image), originals))
        self.scores.update(torch.stack([image for image, _ in found]), originals)
        self.num_bytes += sum(size for _, size in found)

    def point(self, protocol: Protocol) -> RatePoint:
        """Return the rate and the means."""
        return RatePoint(
            name=self.codec.label,
            method=self.codec.name,
            rates={"coded": 8 * self.num_bytes / self.scores.num_pixels},
            metrics={name: self.scores.mean(name) for name in NAMES},
            protocol=protocol,
            num_images=self.scores.num_images,
            codec=True,
            lossless=self.codec.quality is None,
        )


def through(codec: Codec, image: Tensor) -> tuple[Tensor, int]:
    """Return an image (C, H, W) uint8, C 1 or 3, after its file, and the file's size in bytes.

    WebP and AVIF have no grey images: grey goes through colour and back.
    """
    pixels = image[0] if image.shape[0] == 1 else image.permute(1, 2, 0)
    content = codec.encode(Image.fromarray(pixels.contiguous().numpy()))
    with Image.open(io.BytesIO(content)) as opened:
        decoded = np.array(opened.convert("L" if image.shape[0] == 1 else "RGB"))
    back = torch.from_numpy(decoded)
    return (back[None] if back.ndim == 2 else back.permute(2, 0, 1)), len(content)


def _lacks(codec: Codec) -> str:
    """Return why this build of Pillow cannot write a codec, "" if it can."""
    if codec.feature not in features.get_supported():
        return f"Pillow {pillow_version} was built without {codec.feature}"
    return ""


def _versions() -> dict[str, str]:
    found = {"Pillow": pillow_version}
    for feature in ("zlib", "jpg", "webp", "avif"):
        version = features.version(feature) if feature in features.get_supported() else None
        if version is not None:
            found[feature] = version
    return found
