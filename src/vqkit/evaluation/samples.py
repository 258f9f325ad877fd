"""Scores of generated images: distances from real ones, classes read back, all in one pass.

Distances between features of Inception are named `gfid`, `gkid`, `precision`, `recall`; those
between features of a classifier of one's own are named `classifier_distance` and so on, since they
are no FID and compare with nothing published.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from vqkit.config import require
from vqkit.data import ImageSet
from vqkit.evaluation.sample_distances import Distances, Pass
from vqkit.evaluation.tables import MISSING, markdown
from vqkit.metrics.measures import Found
from vqkit.models.files import write_beside

FORMAT: Final = "vqkit-scores-1"


class Classifier(Protocol):
    """What is asked of a classifier of images."""

    num_classes: int

    def read(self, images: Tensor) -> Tensor:
        """Return the class (B,) int64 that each image uint8 (B, 1 or 3, H, W) shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassScore:
    """What was found of the samples of one class."""

    label: int
    num_images: int
    read_as: tuple[int, ...] = ()
    """Samples that the classifier read as each class; empty without a classifier."""
    distance: float | None = None
    """Fréchet distance from the real images of this class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleScores:
    """Scores of a set of generated images."""

    name: str
    found: tuple[Found, ...]
    classes: tuple[ClassScore, ...]
    """Empty for images without classes."""
    images: str
    """Fingerprint of the set."""
    facts: tuple[dict[str, Any], ...]
    """What the distances depend on beside the images, one for each of `distances`."""
    origin: dict[str, Any] = field(default_factory=dict)
    """Generator, tokenizer, seed and sampling of the images, where they are known."""

    def value(self, name: str) -> float | None:
        """Return a number; an unknown name is a `ValueError`."""
        for found in self.found:
            if found.name == name:
                return found.value
        known = ", ".join(found.name for found in self.found)
        raise ValueError(f"score={name!r}: not measured; known are {known}")

    def table(self) -> str:
        """Return a Markdown table with the notes below it."""
        rows = [
            (one.name, MISSING if one.value is None else f"{one.value:.4g}", f"{one.num_images:,}")
            for one in self.found
        ]
        notes = [f"{one.name}: {one.note}" for one in self.found if one.note]
        return "\n".join([markdown(("score", self.name, "images"), rows), "", *notes])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {"format": FORMAT, **asdict(self)}

    def save(self, path: Path) -> None:
        """Write a JSON file."""
        write_beside(path, (json.dumps(self.to_dict(), indent=2) + "\n").encode())


def score_samples(
    images: ImageSet,
    labels: Sequence[int] | None,
    *,
    distances: Sequence[Distances] = (),
    classifier: Classifier | None = None,
    name: str = "samples",
    batch_size: int = 64,
    origin: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SampleScores:
    """Measure generated images, each read once.

    `gfid` compares all samples with a reference set. `gfid_class_mean` is the mean over classes of
    the distance between the samples of a class and a reference of that class, as LooC's Table 11
    averages ImageNet's; classes without a reference are left out and counted. `class_consistency`
    is the share of samples that the classifier reads as the class that was asked for.

    Args:
        images: the samples.
        labels: the class that each was asked to show; None for images without classes.
        distances: networks and what they compare with.
        classifier: trained on real images of the same classes, numbered alike.
        name: names the samples in tables.
        batch_size: images measured together.
        origin: what is known of where the images come from; goes into the result as it is.
        progress: called after every batch with (images done, images in all).

    Raises:
        ValueError: no images, classes asked for without labels, or labels beyond the classifier's.
    """
    require(len(images) > 0, "samples", "there is no image")
    _check(labels, distances, classifier)
    groups = _by_class(labels, len(images))
    passes = [Pass(one) for one in distances]
    classes: list[ClassScore] = []
    done = 0
    for label, indices in groups.items():
        read: list[Tensor] = []
        for start in range(0, len(indices), batch_size):
            batch = _together(images, indices[start : start + batch_size])
            for one in passes:
                one.update(batch)
            if classifier is not None:
                read.append(classifier.read(batch).cpu())
            done += len(batch)
            if progress is not None:
                progress(done, len(images))
        found = [one.end_class(label) for one in passes]
        if label is not None:
            known = 0 if classifier is None else classifier.num_classes
            classes.append(_class_score(label, len(indices), read, known, found))
    results = [found for one in passes for found in one.results(len(images))]
    if classifier is not None:
        results.append(_consistency(classes))
    return SampleScores(
        name=name,
        found=tuple(results),
        classes=tuple(classes),
        images=images.fingerprint(),
        facts=tuple(one.facts() for one in passes),
        origin=dict(origin or {}),
    )


def _class_score(
    label: int,
    num_images: int,
    read: Sequence[Tensor],
    known: int,
    distances: Sequence[float | None],
) -> ClassScore:
    """Sum up a class: its images `read` as one of `known` classes, and how far they are."""
    counts = torch.cat(list(read)).bincount(minlength=known).tolist() if read else ()
    distance = next((one for one in distances if one is not None), None)
    return ClassScore(label=label, num_images=num_images, read_as=tuple(counts), distance=distance)


def _together(images: ImageSet, indices: Sequence[int]) -> Tensor:
    rows = [images.image(index) for index in indices]
    sizes = {tuple(row.shape) for row in rows}
    require(len(sizes) == 1, f"samples of {len(sizes)} sizes", "all must have one size")
    return torch.stack(rows)


def _by_class(labels: Sequence[int] | None, count: int) -> dict[int | None, list[int]]:
    """Return the images of every class, classes in the order of their numbers."""
    if labels is None:
        return {None: list(range(count))}
    groups: dict[int | None, list[int]] = {label: [] for label in sorted(set(labels))}
    for index, label in enumerate(labels):
        groups[label].append(index)
    return groups


def _consistency(classes: Sequence[ClassScore]) -> Found:
    right = sum(one.read_as[one.label] for one in classes)
    total = sum(one.num_images for one in classes)
    worst = min(classes, key=lambda one: one.read_as[one.label] / one.num_images)
    share = worst.read_as[worst.label] / worst.num_images
    return Found(
        name="class_consistency",
        value=right / total,
        unit="",
        num_images=total,
        note=f"{right:,} of {total:,} read as asked; least for class {worst.label}, {share:.3f}",
    )


def _check(
    labels: Sequence[int] | None, distances: Sequence[Distances], classifier: Classifier | None
) -> None:
    asks = classifier is not None or any(one.by_class for one in distances)
    require(labels is not None or not asks, "samples", "have no classes, which these scores need")
    if classifier is not None:
        assert labels is not None
        largest, known = max(labels), classifier.num_classes
        require(
            min(labels) >= 0 and largest < known,
            f"samples of class {largest}",
            f"the classifier knows classes 0 to {known - 1}; give one of the same classes",
        )
