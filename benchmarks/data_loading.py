"""Images a second of the data loader: threads, worker processes, and torch's DataLoader.

All decode, resize, crop and mirror the same files every time (nothing stays decoded in memory).
Every measurement opens a loader anew, waits for its first batch, and times the batches after it.
"Training process" is the processor time that is gone for the training itself.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import side_by_side
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vqkit.config import DataConfig
from vqkit.data import BatchStream, decoded, load_images
from vqkit.data.decoded import DecodedImages
from vqkit.data.preparing import Task


@dataclass(frozen=True)
class Found:
    """What one run of a loader took."""

    first_batch: float
    """Seconds until the first batch."""
    images_per_second: float
    own_cpu: float
    """Processor seconds of the training process for each image."""
    all_cpu: float
    """The same, its worker processes included; their start too."""


class Files(Dataset[Tensor]):
    """Our preparation of one image as an item of torch's loader."""

    def __init__(self, images: DecodedImages, items: int) -> None:
        self.images, self.items = images, items

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, item: int) -> Tensor:
        index = item % len(self.images)
        draws = tuple(torch.rand(3).tolist())
        task = Task(self.images.name(index), self.images._place(index), draws)
        return torch.from_numpy(self.images._preparation(task)[0].copy())


def measure(open_loader: Callable[[], Iterator[object]], batches: int, batch_size: int) -> Found:
    """Open a loader, time its first batch and then `batches` more, and close it."""
    children = _children()
    began, own = time.perf_counter(), time.process_time()
    with closing(open_loader()) as loader:
        next(loader)
        first, first_own = time.perf_counter() - began, time.process_time() - own
        began, own = time.perf_counter(), time.process_time()
        for _ in islice(loader, batches):
            pass
        seconds, own = time.perf_counter() - began, time.process_time() - own
    images = batches * batch_size
    every = (first_own + own + _children() - children) / (images + batch_size)
    return Found(first, images / seconds, own / images, every)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def ours(config: DataConfig, workers: int, batch_size: int) -> Iterator[object]:
    """Open our loader; 0 workers: threads."""
    images = load_images(DataConfig(**{**_fields(config), "workers": workers}))
    return BatchStream(images, batch_size, seed=0).iterate()


def torchs(config: DataConfig, workers: int, batch_size: int) -> Iterator[object]:
    """Open torch's loader with the same work for each image."""
    images = load_images(config)
    assert isinstance(images, DecodedImages)
    yield from DataLoader(Files(images, 1 << 30), batch_size, num_workers=workers)


def alone(config: DataConfig) -> Iterator[object]:
    """Prepare image after image in this thread, without any loader around it."""
    images = load_images(config)
    assert isinstance(images, DecodedImages)
    files = Files(images, 1 << 30)
    for item in count():
        yield files[item]


def _fields(config: DataConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def rows(arguments: argparse.Namespace, config: DataConfig) -> list[list[object]]:
    """Measure all loaders in turn, `pairs` times -> medians."""
    size = arguments.batch_size
    loaders: dict[str, tuple[Callable[[], Iterator[object]], int]] = {
        "no loader, one thread": (lambda: alone(config), 1),
        "vqkit, threads": (lambda: ours(config, 0, size), size),
    }
    for workers in arguments.workers:
        loaders[f"vqkit, {workers} processes"] = (lambda n=workers: ours(config, n, size), size)
        loaders[f"DataLoader, {workers} processes"] = (
            lambda n=workers: torchs(config, n, size),
            size,
        )
    found: dict[str, list[Found]] = {name: [] for name in loaders}
    for turn in range(arguments.pairs):
        for name in list(loaders) if turn % 2 == 0 else list(loaders)[::-1]:
            open_loader, images = loaders[name]
            batches = arguments.batches * size // images
            found[name].append(measure(open_loader, batches, images))
    table: list[list[object]] = []
    for name, runs in found.items():
        values = [
            side_by_side.median([getattr(run, field) for run in runs])
            for field in ("first_batch", "images_per_second", "own_cpu", "all_cpu")
        ]
        table.append([name, *values[:2], 1e3 * values[2], 1e3 * values[3]])
    return table


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", required=True, help="folder of photographs")
    parser.add_argument("--size", type=int, default=256, help="side of the crops")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, help="the page; without it only printed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the images are work for processes, not for threads inside them
    decoded.CACHE_BYTES = 0
    if arguments.quick:
        arguments.pairs, arguments.batches = 1, 4
    config = DataConfig(
        source="folder",
        path=arguments.photos,
        resize=arguments.size,
        crop="random",
        crop_size=arguments.size,
        flip=True,
    )
    page = side_by_side.Page("Loading of images, side by side", __doc__ or "")
    images = load_images(config)
    page.text(
        f"{len(images):,} photographs, shorter side resized to {arguments.size}, crops of "
        f"{arguments.size} x {arguments.size}; batches of {arguments.batch_size}, "
        f"{arguments.batches} batches a measurement, medians over {arguments.pairs}."
    )
    header = ["loader", "first batch s", "images/s", "ms/image of the training process"]
    page.table([*header, "ms/image of all processes"], rows(arguments, config))
    if arguments.out:
        page.write(arguments.out)


if __name__ == "__main__":
    main()
