"""Distances of generated images from real ones, by the features of one network, class by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from torch import Tensor

from vqkit.metrics.features import FeatureMeasures, Features
from vqkit.metrics.frechet import Moments, frechet_distance
from vqkit.metrics.measures import Found
from vqkit.metrics.reference import Reference

_OF_INCEPTION: Final = {"fid": "gfid", "kid": "gkid"}
_OF_CLASSIFIER: Final = {
    "fid": "classifier_distance",
    "kid": "classifier_kernel_distance",
    "precision": "classifier_precision",
    "recall": "classifier_recall",
}


@dataclass(frozen=True, kw_only=True)
class Distances:
    """One network of features, and the real images that samples are compared with."""

    features: Features
    reference: Reference | None = None
    """Of the whole set."""
    names: Sequence[str] = ("fid", "kid", "precision", "recall")
    """Measured against `reference`; all but `fid` need one that keeps features."""
    by_class: Mapping[int, Reference] = field(default_factory=dict)
    """Of single classes."""


class Pass:
    """One network's way over the samples, class by class."""

    def __init__(self, distances: Distances) -> None:
        self.given = distances
        self.features = distances.features
        self._whole: FeatureMeasures | None = None
        if distances.reference is not None:
            keeps = len(distances.reference.sample) >= 2
            names = [name for name in distances.names if keeps or name == "fid"]
            self._whole = FeatureMeasures(self.features, names, reference=distances.reference)
        self._moments = self._new_moments()
        self._of_classes: list[float] = []
        self._compared: dict[str, str] = {}
        self._least = 0

    def _new_moments(self) -> Moments:
        return Moments(self.features.dim, self.features.device)

    def update(self, images: Tensor) -> None:
        """Take a batch uint8 of one class."""
        rows = self.features(images)
        if self._whole is not None:
            self._whole.take([rows], images)
        if self.given.by_class:
            self._moments.update(rows)

    def end_class(self, label: int | None) -> float | None:
        """Return the distance of the class that ends here, if it has a reference."""
        moments, self._moments = self._moments, self._new_moments()
        reference = None if label is None else self.given.by_class.get(label)
        if reference is None or moments.count < 2:
            return None
        reference.check(self.features)
        self._compared[str(label)] = reference.images
        count = min(moments.count, reference.gaussian.count)
        self._least = min(self._least, count) if self._of_classes else count
        distance = frechet_distance(moments.gaussian(), reference.gaussian)
        self._of_classes.append(distance)
        return distance

    def results(self, num_images: int) -> list[Found]:
        """Return the numbers under the names that the network gives them."""
        renamed = _OF_INCEPTION if self.features.name == "inception" else _OF_CLASSIFIER
        found = [] if self._whole is None else list(self._whole.results())
        if self.given.by_class:
            values = self._of_classes
            note = f"mean over {len(values):,} classes with references"
            note += f", at least {self._least:,} images each: few, biased upwards"
            mean = sum(values) / len(values) if values else None
            found.append(
                Found(name="fid_class_mean", value=mean, unit="", num_images=num_images, note=note)
            )
        renamed = renamed | {"fid_class_mean": f"{renamed['fid']}_class_mean"}
        return [
            replace(one, name=renamed.get(one.name, one.name), note=self._named(one.note))
            for one in found
        ]

    def _named(self, note: str) -> str:
        """Add to a note which images the samples are compared with."""
        reference = self.given.reference
        if reference is None:
            return note
        name = f"reference {reference.images[:12]}, {reference.gaussian.count:,} images"
        return f"{name}; {note}" if note else name

    def facts(self) -> dict[str, Any]:
        """Return the network and what was compared with."""
        facts: dict[str, Any] = {
            f"{self.features.name}.sha256": self.features.sha256,
            f"{self.features.name}.resize": self.features.resize,
        }
        if self._whole is not None:
            facts |= {
                key if key.startswith(self.features.name) else f"{self.features.name}.{key}": value
                for key, value in self._whole.facts().items()
            }
        if self.given.by_class:
            facts[f"{self.features.name}.class_references"] = dict(self._compared)
        return facts
