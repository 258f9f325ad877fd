"""Reference statistics of every class of a set of images, for FID per class.

LooC's Table 11 averages ImageNet's FID over classes. One file for each class lies in one folder,
named by the number of the class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from vqkit.config import require
from vqkit.data import ImageSet
from vqkit.metrics.features import Features
from vqkit.metrics.frechet import Moments
from vqkit.metrics.reference import Reference

_ENDING = ".safetensors"


def class_references(
    image_set: ImageSet,
    features: Features,
    *,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[int, Reference]]:
    """Yield (class, its statistics) for every class with at least two images, in order.

    One class at a time is held: mean and covariance, no features for KID.

    Raises:
        ValueError: images without labels.
    """
    labels = image_set.labels
    require(labels is not None, "data", "these images have no labels; leave out --per_class")
    assert labels is not None  # for the type checker
    done = 0
    for label in labels[labels >= 0].unique().tolist():  # -1 is no class
        indices = (labels == label).nonzero().flatten().tolist()
        moments = Moments(features.dim, features.device)
        for start in range(0, len(indices), batch_size):
            rows = [image_set.image(i) for i in indices[start : start + batch_size]]
            for size in dict.fromkeys(row.shape for row in rows):  # images may differ in size
                same = torch.stack([row for row in rows if row.shape == size])
                moments.update(features(same.to(features.device)))
            done += len(rows)
            if progress is not None:
                progress(done, len(image_set))
        if moments.count >= 2:
            yield (
                label,
                Reference(
                    gaussian=moments.gaussian(),
                    sample=torch.empty(0, features.dim),
                    seed=0,
                    images=f"{image_set.fingerprint()}[class {label}]",
                    resize=features.resize,
                    network=features.sha256,
                ),
            )


def file_of(folder: Path, label: int) -> Path:
    """Return where the statistics of a class lie."""
    return folder / f"{label:05}{_ENDING}"


class ClassReferences(Mapping[int, Reference]):
    """The statistics in a folder by class, each read when it is asked for (17 MB of Inception)."""

    def __init__(self, folder: Path) -> None:
        """Look for files; a folder without any is a `ValueError`."""
        self.folder = folder
        found = sorted(folder.glob(f"*{_ENDING}")) if folder.is_dir() else []
        named = [path for path in found if path.stem.isdecimal()]
        problem = "holds no statistics of classes; `vqkit reference DATA --per_class` makes them"
        require(bool(named), f"class_references={folder}", problem)
        self._files = {int(path.stem): path for path in named}

    def __getitem__(self, label: int) -> Reference:
        return Reference.read(self._files[label])

    def __iter__(self) -> Iterator[int]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)
