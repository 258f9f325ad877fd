"""From images to finished shards: what every process does with its share of an extraction.

Legend: N images, B images of a batch, n features of an image, D dim.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal, TextIO, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vqkit.clustering.draws import Purpose, order
from vqkit.clustering.processes import Processes
from vqkit.clustering.progress import time_left
from vqkit.codebooks.encoders import PatchEncoder, pool_grid
from vqkit.codebooks.set_folders import read_records
from vqkit.codebooks.shards import ShardWriter
from vqkit.config import require
from vqkit.data import BrokenImageError, ImageSet, preparing
from vqkit.data.decoding import check_pixels
from vqkit.data.preparing import Pixels
from vqkit.data.workers import ordered

DType = Literal["float16", "float32"]
Precision = Literal["float32", "bf16"]
_RUN = 4
"""Images that are asked for at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What besides images and encoder determines the features."""

    pool: int | None
    batch_size: int
    shard_images: int
    dtype: DType
    precision: Precision
    max_per_image: int | None
    seed: int

    def __post_init__(self) -> None:
        for name in ("batch_size", "shard_images", "max_per_image"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name}={value}", "must be at least 1")
        for name in ("pool", "seed"):
            value = getattr(self, name)
            require(value is None or value >= 0, f"{name}={value}", "must not be negative")
        for name, choices in (("dtype", DType), ("precision", Precision)):
            value = getattr(self, name)
            listed = " or ".join(map(repr, get_args(choices)))
            require(value in get_args(choices), f"{name}={value!r}", f"expected {listed}")


class Progress:
    """A line with the pace and the time left every `every` seconds."""

    def __init__(
        self,
        total: int,
        stream: TextIO | None,
        *,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Count up to `total` images; without a stream nothing is shown."""
        self._total, self._stream, self._every, self._clock = total, stream, every, clock
        self._images, self._rows = 0, 0
        self._began = self._last = clock()

    def tick(self, images: int, rows: int) -> None:
        """Count images and their rows, and write a line if it is time."""
        self._images += images
        self._rows += rows
        now = self._clock()
        if self._stream is None or now - self._last < self._every:
            return
        self._last = now
        pace = (now - self._began) / max(self._images, 1)
        self._stream.write(
            f"features: {self._images:,} of {self._total:,} images, {self._rows:,} rows, "
            f"{self._rows / (now - self._began):,.0f} rows/s, "
            f"{time_left(pace * (self._total - self._images))} left\n"
        )
        self._stream.flush()


class Encoding:
    """The shards that are missing, dealt out to the processes."""

    def __init__(
        self,
        images: ImageSet,
        encoder: PatchEncoder,
        folder: Path,
        settings: Settings,
        processes: Processes,
    ) -> None:
        self.images, self.encoder, self.folder = images, encoder, folder
        self.settings, self.processes = settings, processes
        self.num_shards = -(-len(images) // settings.shard_images)
        # One process looks, for the first may have begun to write when another looks.
        first = processes.rank == 0
        found = processes.agreed(
            lambda: sorted(read_records(folder, self.num_shards) if first else ())
        )
        done = set(processes.gather(found)[0])
        self.missing = [number for number in range(self.num_shards) if number not in done]
        self.mine = self.missing[processes.rank :: processes.size]
        self._groups: Tensor | None = None
        if images.labels is not None:
            # Names are those of the labels in rising order, or numbered by them.
            plain = images.label_names is None
            self._groups = images.labels.unique(return_inverse=True)[1] if plain else images.labels

    def _range(self, number: int) -> range:
        each = self.settings.shard_images
        return range(number * each, min((number + 1) * each, len(self.images)))

    def run(self, progress: bool) -> None:
        """Write all shards of this process, one a round, so that nobody waits long for an error.

        With `progress` the first process tells how far it is with its share.
        """
        shown = sys.stderr if progress and self.processes.rank == 0 else None
        total = sum(len(self._range(number)) for number in self.mine)
        counter = Progress(total, shown)
        rounds = -(-len(self.missing) // self.processes.size)
        with ExitStack() as stack:
            source = self.processes.agreed(lambda: stack.enter_context(self.images.reading()))
            pixels = stack.enter_context(closing(self._pixels(source)))
            for turn in range(rounds):
                number = self.mine[turn] if turn < len(self.mine) else None
                self.processes.agreed(partial(self._shard, number, pixels, counter))

    def _pixels(self, source: ImageSet) -> Generator[Pixels | BrokenImageError, None, None]:
        """Yield the images of all my shards, in order, read ahead by threads."""
        runs = (
            images[start : start + _RUN]
            for images in map(self._range, self.mine)
            for start in range(0, len(images), _RUN)
        )

        def read(run: range) -> list[Pixels | BrokenImageError]:
            return list(map(self._fit, run, source.several(run)))

        threads = source.parallel
        found = ordered(read, runs, workers=threads, ahead=threads + 1, stop=source.stop)
        with closing(found):
            yield from chain.from_iterable(found)

    def _fit(self, index: int, image: Pixels | BrokenImageError) -> Pixels | BrokenImageError:
        size, resize = self.encoder.size, self.encoder.resize
        if size is None or isinstance(image, BrokenImageError):
            return image
        try:
            return cut_square(image, size, resize or size)
        except ValueError as error:
            return BrokenImageError(self.images.name(index), str(error))

    def _shard(
        self,
        number: int | None,
        pixels: Iterator[Pixels | BrokenImageError],
        progress: Progress,
    ) -> None:
        if number is None:
            return
        images, skipped = self._range(number), []
        writer = ShardWriter(self.folder, number, self.settings.dtype)
        groups: list[Tensor] = []
        try:
            batch: list[tuple[int, Pixels]] = []
            for index in images:
                image = next(pixels)
                if isinstance(image, BrokenImageError):
                    self.images.keep_or_fail(image)
                    skipped.append([image.name, image.reason])
                    continue
                full = len(batch) == self.settings.batch_size
                if batch and (full or image.shape != batch[0][1].shape):
                    self._encode(batch, writer, groups, progress)
                    batch = []
                batch.append((index, image))
            if batch:
                self._encode(batch, writer, groups, progress)
            facts = {"first_image": images.start, "images": len(images), "skipped": skipped}
            labels = torch.cat(groups).numpy() if groups else None
            writer.finish(facts, labels)
        finally:
            writer.drop()

    def _encode(
        self,
        batch: list[tuple[int, Pixels]],
        writer: ShardWriter,
        groups: list[Tensor],
        progress: Progress,
    ) -> None:
        stacked = torch.from_numpy(np.stack([image for _, image in batch]))
        features = self._features(stacked)
        count = 0
        for (index, _), rows in zip(batch, features, strict=True):
            kept = self._kept(rows, index)
            writer.add(kept.numpy())
            if self._groups is not None:
                groups.append(self._groups[index].expand(len(kept)))
            count += len(kept)
        progress.tick(len(batch), count)

    def _features(self, images: Tensor) -> Tensor:
        """Encode uint8 images (B, C, H, W): features (B, n, D) of float32, on the CPU."""
        device = self.encoder.device
        bf16 = self.settings.precision == "bf16"
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            grid = self.encoder(images.to(device))
        return pool_grid(grid.float(), self.settings.pool).flatten(2).transpose(1, 2).cpu()

    def _kept(self, rows: Tensor, index: int) -> Tensor:
        """Pick the features (n, D) of image `index` that are kept, in the type of the disk."""
        most = self.settings.max_per_image
        if most is not None and most < len(rows):
            drawn = order(self.settings.seed, Purpose.KEEP, index, len(rows))[:most]
            rows = rows[drawn.sort().values]
        values = rows.to(getattr(torch, self.settings.dtype))
        if not bool(values.isfinite().all()):
            name = self.images.name(index)
            finite = bool(rows.isfinite().all())
            require(
                not finite,
                f"dtype={self.settings.dtype!r}",
                f"{name} has a feature of {float(rows.abs().max()):.4g}, beyond its range; "
                "take dtype='float32'",
            )
            require(
                False,
                f"encoder: {name}",
                "gives features that are no finite numbers; check its weights, or leave it out",
            )
        return values


def cut_square(image: Pixels, size: int, resize: int) -> Pixels:
    """Give uint8 (C, H, W) a shorter side of `resize` and cut the middle square of `size`.

    Bicubic with antialiasing; the longer side is rounded down and the corner too, as the image
    processors of published models do. An image that is such a square already stays as it is; a
    strip whose longer side would be beyond all reason is a `ValueError`.
    """
    height, width = image.shape[-2:]
    if (height, width) == (size, size):
        return image
    picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    shape = (resize * width // min(height, width), resize * height // min(height, width))
    check_pixels(shape)
    pixels = np.asarray(picture.resize(shape, Image.Resampling.BICUBIC))
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return preparing.window(pixels, size, *preparing.middle(pixels.shape, size))
