"""From images to finished shards: what every process does with its share of a token set.

Legend: B images of a batch.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from vqkit.config import DataConfig, require
from vqkit.data import BrokenImageError, ImageSet, load_images
from vqkit.data.decoded import DecodedImages
from vqkit.data.image_set import ArrayImages
from vqkit.data.preparing import Pixels, box
from vqkit.data.workers import ordered
from vqkit.models import ImageTokenizer
from vqkit.tokens.sets.layout import ImageFacts, Layout
from vqkit.tokens.sets.shards import ShardWriter

_RUN = 4
"""Images that are asked for at once."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a token set is made of. With settings for images it can be sent to other processes."""

    tokenizer: ImageTokenizer
    """On the CPU, where it is sent to other processes."""
    images: ImageSet | DataConfig
    folder: Path
    facts: dict[str, Any]
    """As the manifest has them."""
    device: str

    @property
    def num_shards(self) -> int:
        """Shards of the whole set."""
        return -(-int(self.facts["data"]["images"]) // int(self.facts["settings"]["shard_images"]))

    def span(self, number: int) -> range:
        """Return the images of shard `number`."""
        each = int(self.facts["settings"]["shard_images"])
        return range(number * each, min((number + 1) * each, int(self.facts["data"]["images"])))

    def open(self) -> Worker:
        """Make ready to write shards in this process."""
        return Worker(self)


def environment(device: str, dtype: torch.dtype, threads: int) -> dict[str, Any]:
    """Return what besides tokenizer and images may decide near ties, or the bytes of a file."""
    from importlib.metadata import version

    kind = torch.device(device).type
    if kind == "cuda":
        backend = torch.cuda.get_device_name(device)
    else:
        backend = torch.backends.cpu.get_cpu_capability() if kind == "cpu" else kind
    return {
        "device": kind,
        "backend": backend,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": threads,
        **{name: version(name) for name in ("torch", "pyarrow", "pillow")},
    }


def open_images(config: DataConfig) -> ImageSet:
    """Open images that are read once: none stays in memory that was decoded on demand."""
    images = load_images(config)
    if isinstance(images, DecodedImages):
        images.cache_bytes = 0
    return images


@dataclass(slots=True)
class _Batch:
    """Images of one size, or none, and broken ones before them."""

    number: int
    indices: list[int] = field(default_factory=list)
    images: Tensor | None = None
    """(B, C, H, W) uint8."""
    broken: list[BrokenImageError] = field(default_factory=list)


class Worker:
    """Writes shards of a job in this process. Close it, or use it as a context."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._device = torch.device(job.device)
        self._stack = ExitStack()
        threads = torch.get_num_threads()
        self._stack.callback(torch.set_num_threads, threads)
        torch.set_num_threads(int(job.facts["environment"]["threads"]))
        try:
            self._tokenizer = job.tokenizer.to(self._device)
            self._check_environment()
            images = job.images
            if isinstance(images, DataConfig):
                images = open_images(images)
            self.images = images
            self._source = self._stack.enter_context(images.reading())
        except BaseException:
            self.close()
            raise
        self._layout = Layout.of(job.facts)

    def _check_environment(self) -> None:
        stated = self.job.facts["environment"]
        dtype = next(self._tokenizer.parameters()).dtype
        found = environment(self.job.device, dtype, torch.get_num_threads())
        differ = [
            f"{k} ({stated[k]!r} there, {v!r} here)" for k, v in found.items() if v != stated[k]
        ]
        require(
            not differ,
            f"out={str(self.job.folder)!r}",
            f"is written with {', '.join(differ)}; all processes and machines must be alike",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End what reads images, and give this process its number of threads back."""
        self._stack.close()

    def run(self, numbers: Iterable[int]) -> Generator[int, None, None]:
        """Write shards; yield the number of images of each when it is whole on the disk."""
        numbers = list(numbers)
        read = _slices if isinstance(self._source, ArrayImages) else _decoded
        size = int(self.job.facts["settings"]["batch_size"])
        spans = [(number, self.job.span(number)) for number in numbers]
        with closing(read(self._source, spans, size)) as batches:
            for number, mine in groupby(batches, key=lambda batch: batch.number):
                yield self._shard(number, mine)

    def _shard(self, number: int, batches: Iterator[_Batch]) -> int:
        tokenizer, images = self.job.facts["tokenizer"]["hash"], self.job.span(number)
        writer = ShardWriter(self.job.folder, number, self._layout, tokenizer)
        skipped = []
        for batch in batches:
            for broken in batch.broken:
                self.images.keep_or_fail(broken)
                skipped.append([broken.name, broken.reason])
            if batch.images is not None:
                ids, latents = self._encode(batch.images)
                shape = batch.images.shape[-2], batch.images.shape[-1]
                writer.add([self._facts(index, shape) for index in batch.indices], ids, latents)
        facts = {"first_image": images.start, "images": len(images), "skipped": skipped}
        writer.finish(facts)
        return len(images)

    def _encode(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        on_device = images.to(self._device)
        if not self._layout.latent_channels:
            return self._tokenizer.encode(on_device), None
        latents = self._tokenizer.encode_latents(on_device)
        return self._tokenizer.quantize_latents(latents), latents

    def _facts(self, index: int, shape: tuple[int, int]) -> ImageFacts:
        height, width = self._source.original_size(index)
        return ImageFacts(
            key=self._source.name(index),
            size=shape,
            original=(height, width),
            box=box(self.images.config, (height, width)),
            label=self._source.label(index),
            caption=self._source.caption(index),
        )


Spans = list[tuple[int, range]]
"""Shards and the images of each."""


def _slices(images: ImageSet, spans: Spans, size: int) -> Generator[_Batch, None, None]:
    """Cut a set in memory into batches, each of one shard."""
    assert isinstance(images, ArrayImages), "only these lie in one array"
    for number, span in spans:
        for start in range(span.start, span.stop, size):
            stop = min(start + size, span.stop)
            yield _Batch(number, list(range(start, stop)), images.pixels[start:stop])


def _decoded(images: ImageSet, spans: Spans, size: int) -> Generator[_Batch, None, None]:
    """Read images ahead by threads or processes; a batch holds those of one size and one shard."""
    runs = (
        (number, span[start : start + _RUN])
        for number, span in spans
        for start in range(0, len(span), _RUN)
    )

    def read(run: tuple[int, range]) -> list[tuple[int, int, Pixels | BrokenImageError]]:
        number, indices = run
        found = zip(indices, images.several(indices), strict=True)
        return [(number, index, image) for index, image in found]

    threads = images.parallel
    ahead = max(threads + 1, -(-size // _RUN))  # the next batch, while one is encoded
    results = ordered(read, runs, workers=threads, ahead=ahead, stop=images.stop)
    batch, pixels = _Batch(-1), list[Pixels]()
    with closing(results):
        for number, index, image in chain.from_iterable(results):
            if isinstance(image, BrokenImageError):
                fits = batch.number == number and not pixels
            else:
                fits = batch.number == number and len(pixels) < size
                fits = fits and (not pixels or pixels[0].shape == image.shape)
            if not fits:
                yield from _stacked(batch, pixels)
                batch, pixels = _Batch(number), []
            if isinstance(image, BrokenImageError):
                batch.broken.append(image)
            else:
                batch.indices.append(index)
                pixels.append(image)
    yield from _stacked(batch, pixels)


def _stacked(batch: _Batch, pixels: list[Pixels]) -> Iterator[_Batch]:
    if pixels:
        batch.images = torch.from_numpy(np.stack(pixels))
    if pixels or batch.broken:
        yield batch
