"""Patch features of a whole image set, in shards that a killed extraction goes on from.

Shard k always holds the same images, cut into the same batches: its bytes depend neither on kills
nor on how many processes share the work (on one kind of machine, with one number of threads).

Legend: N images, B images of a batch, n features of an image, D dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from vqkit.clustering.processes import Processes, together
from vqkit.codebooks.encoders import PatchEncoder
from vqkit.codebooks.encoding import DType, Encoding, Precision, Settings
from vqkit.codebooks.features import FeatureSet
from vqkit.codebooks.set_folders import begin, claimed_by_first
from vqkit.codebooks.shards import FEATURES, WHITENING, complete
from vqkit.config import DataConfig, require
from vqkit.data import BrokenImageError, ImageSet, load_images


@contextmanager
def _broken_images() -> Iterator[None]:
    """Say of a broken image how to go on: other images are another feature set."""
    try:
        yield
    except BrokenImageError as error:
        raise ValueError(f"{error}; then begin again with resume=False (--fresh)") from error


@_broken_images()
def extract(
    images: ImageSet | DataConfig,
    encoder: PatchEncoder,
    out: str | Path,
    *,
    pool: int | Literal["default"] | None = "default",
    batch_size: int = 32,
    shard_images: int = 256,
    dtype: DType = "float16",
    precision: Precision = "float32",
    max_per_image: int | None = None,
    seed: int = 0,
    resume: bool = True,
    progress: bool = True,
    device: str | torch.device | None = None,
) -> FeatureSet:
    """Write the features of all images into the folder `out`; the same call goes on after a kill.

    Under torch.distributed all processes make the same call, and the shards are dealt out; an error
    in one is raised by all. Memory holds a batch, and what an image set keeps of its images (up to
    1 GiB), whatever their number. Random crops and flips of the settings do not count: images are
    taken whole, or the centre crop.

    Args:
        images: what to encode. For an encoder of one size, images get the shorter side that it asks
            for (bicubic, antialiased) and lose what is beyond the middle square, unless they have
            its size already.
        encoder: see `encoders`; moved to `device`. Whitening is fitted to these images first.
        pool: the grid is averaged to pool x pool positions; None or 0: not at all; by default what
            the encoder says: 4 for images of one size (VQGAN-LC), none for others.
        batch_size: images of one size that are encoded together.
        shard_images: images of a file, and the most work that a kill loses.
        dtype: of the features on the disk.
        precision: "bf16" computes under autocast, for encoders that are networks.
        max_per_image: keep at most so many features of an image, drawn by `seed`.
        seed: 0 or more.
        resume: go on with what is in `out`; False begins again.
        progress: write lines with rows a second and the time left to stderr.
        device: "cpu", "cuda", ...; None leaves the encoder where it is.

    Raises:
        ValueError: settings that do not fit; `out` holds something else, or features of other
            settings (the message names which), or another process extracts there; a broken image
            with data.on_broken="fail", or no readable one; features that are not finite, or beyond
            float16.
    """
    processes = together()
    settings = Settings(
        pool=(encoder.pool if pool == "default" else pool) or None,
        batch_size=batch_size,
        shard_images=shard_images,
        dtype=dtype,
        precision=precision,
        max_per_image=max_per_image,
        seed=seed,
    )
    require(
        precision == "float32" or encoder.autocasts,
        f"precision={precision!r}",
        "this encoder always computes in float32; leave it out",
    )
    processes.agreed(partial(_check_device, device))
    image_set = images
    if isinstance(image_set, DataConfig):
        image_set = processes.agreed(partial(load_images, image_set))
    folder = Path(out).expanduser()
    facts = processes.agreed(partial(describe, image_set, encoder, settings))
    processes.require_same({"out": str(folder), **facts})
    first = processes.rank == 0
    with claimed_by_first(folder, processes, doing="extracts features"):
        start = partial(begin, folder, facts, resume=resume, kind=FEATURES)
        done = processes.agreed(lambda: first and start())
        if not processes.gather(done)[0]:
            encoder = _prepared(encoder, image_set, folder / WHITENING, processes, device)
            job = Encoding(image_set, encoder, folder, settings, processes)
            job.run(progress)
            facts["encoder"]["sha256"] = encoder.describe()["sha256"]
            work = partial(complete, folder, facts, job.num_shards, image_set.skipped)
            processes.agreed(work if first else lambda: None)
    return processes.agreed(lambda: FeatureSet(folder))


def describe(images: ImageSet, encoder: PatchEncoder, settings: Settings) -> dict[str, Any]:
    """Return what the features are made of, as the manifest has it."""
    chosen = asdict(settings)
    pooling, kind = chosen.pop("pool"), chosen.pop("dtype")
    names = images.label_names
    if names is None and images.labels is not None:
        names = tuple(str(label) for label in images.labels.unique().tolist())
    return {
        "encoder": {**encoder.describe(), "pooling": pooling},
        "dtype": kind,
        "settings": chosen,
        "data": {
            "source": images.config.source,
            "path": images.config.path,
            "fingerprint": images.fingerprint(),
            "images": len(images),
        },
        "groups": None if names is None else list(names),
    }


def _check_device(device: str | torch.device | None) -> None:
    """Raise `ValueError` for a device that is not there, before any image is read."""
    try:
        if device is not None:
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch's way to refuse a device
        raise ValueError(f"device={str(device)!r}: {error}") from error


def _prepared(
    encoder: PatchEncoder,
    images: ImageSet,
    file: Path,
    processes: Processes,
    device: str | torch.device | None,
) -> PatchEncoder:
    """Fit the encoder in the first process, unless that is done; the others read what it found."""
    first = processes.rank == 0

    def fitted() -> PatchEncoder:
        return encoder.restored(file) if file.exists() else encoder.prepared(images, file)

    found = processes.agreed(fitted if first else lambda: encoder)

    def moved() -> PatchEncoder:
        ready = found if first else encoder.restored(file)
        if device is not None:
            ready.to(device)
        return ready

    return processes.agreed(moved)
