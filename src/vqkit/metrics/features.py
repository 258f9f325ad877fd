"""FID, KID, precision, recall and Inception Score on one pass of images through one network."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Final, Literal, Protocol

import torch
from torch import Tensor

from vqkit.config import require
from vqkit.config.core import check_choice
from vqkit.metrics.frechet import Gaussian, Moments, frechet_distance
from vqkit.metrics.inception import NUM_FEATURES, NUM_LOGITS, InceptionV3
from vqkit.metrics.inception_score import NUM_SPLITS, InceptionScore
from vqkit.metrics.kernel import (
    NUM_KEPT,
    NUM_SUBSETS,
    SUBSET_SIZE,
    Sample,
    kernel_distance,
    keys_of,
)
from vqkit.metrics.measures import COMPARING, KEEPING, Found, Resize
from vqkit.metrics.precision_recall import NEIGHBOURS, precision_recall
from vqkit.metrics.reduction import sum_over_processes
from vqkit.metrics.reference import Reference
from vqkit.metrics.resizing import prepare
from vqkit.weights import find_weights, read_weights, sha256_of

_AT_ONCE: Final = 32
"""Images in one pass: their activations take 1 GiB at most."""
_MANY: Final = 10_000
"""Images from which on the bias of FID is seldom mentioned; below, the note says it."""


class Network(Protocol):
    """What is asked of a network of features; `InceptionV3` is one."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return features (B, D) of prepared images (B, 3, 299, 299)."""

    def logits(self, features: Tensor) -> Tensor:
        """Return logits (B, classes) of features."""


class Features:
    """A network behind a resize mode: from bytes to feature vectors, without gradients."""

    name = "inception"
    """What the facts of measures call this network."""
    at_once = _AT_ONCE

    def __init__(
        self,
        network: Network,
        *,
        resize: Resize = "clean",
        sha256: str,
        dim: int = NUM_FEATURES,
        num_logits: int = NUM_LOGITS,
        device: str | torch.device = "cpu",
    ) -> None:
        """`sha256` names the network's file; the network is on `device` already."""
        check_choice("resize", resize, Resize)
        self.network = network
        self.resize: Resize | Literal["none"] = resize
        self.sha256 = sha256
        self.dim = dim
        self.num_logits = num_logits
        self.device = torch.device(device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return features (B, D) float32 of images uint8 (B, 1 or 3, H, W) on any device."""
        parts = []
        for part in images.split(self.at_once):
            prepared = self.prepared(part.to(self.device))
            # a quarter faster on CPUs in this order of memory
            prepared = prepared.contiguous(memory_format=torch.channels_last)
            with torch.autocast(self.device.type, enabled=False):
                parts.append(self.network(prepared))
        return torch.cat(parts)

    def prepared(self, images: Tensor) -> Tensor:
        """Return what the network takes of images uint8 (B, 1 or 3, H, W)."""
        assert self.resize != "none", "a network that takes images as they are prepares them itself"
        return prepare(images, self.resize)


def load_features(
    path: str | Path | None = None,
    *,
    resize: Resize = "clean",
    device: str | torch.device = "cpu",
    download: bool = False,
) -> Features:
    """Return the published Inception behind a resize mode.

    Errors are those of `find_weights`; a device that torch refuses is a `ValueError` as well.
    """
    check_choice("resize", resize, Resize)
    file = find_weights("inception", path, download=download)
    network = InceptionV3(read_weights(file))
    try:
        network.to(device)
    except (RuntimeError, AssertionError) as error:  # torch's way to refuse a device
        raise ValueError(f"device={str(device)!r}: {error}") from error
    return Features(network, resize=resize, sha256=sha256_of(file), device=device)


class FeatureMeasures:
    """Some of `fid`, `kid`, `precision`, `recall`, `inception_score`; a `SetMeasure`.

    All but the last compare with the originals, or with a reference set. Memory: moments of D²
    float64 numbers for each side, and at most `num_kept` feature vectors of each side for KID,
    precision and recall.
    """

    def __init__(
        self,
        features: Features,
        names: Sequence[str] = ("fid", "kid", "inception_score"),
        *,
        reference: Reference | None = None,
        num_kept: int = NUM_KEPT,
        num_splits: int = NUM_SPLITS,
        seed: int = 0,
    ) -> None:
        """`num_kept` is of the sample of features, `num_splits` of the Inception Score."""
        self.features = features
        self.names = tuple(names)
        self.reference = reference
        self.seed = seed
        self._check()
        dim, device = features.dim, features.device
        self._count = 0
        sides = 1 if reference is not None else 2
        self._moments = [Moments(dim, device) for _ in range(sides if "fid" in names else 0)]
        # Both sides of an image lie in one row, so that the same images are kept of both.
        self._sample = Sample(dim * sides, num_kept) if set(KEEPING) & set(names) else None
        scored = "inception_score" in names
        self._score = InceptionScore(features.num_logits, num_splits, device) if scored else None

    def update(self, images: Tensor, originals: Tensor) -> None:
        """Take reconstructions and originals, both uint8 (B, 1 or 3, H, W)."""
        require(
            len(images) == len(originals),
            f"{len(images)} images against {len(originals)} originals",
            "expected one original for each image",
        )
        sides = [self.features(images)]
        if self.reference is None and (self._moments or self._sample is not None):
            sides.append(self.features(originals))
        self.take(sides, originals)

    def take(self, sides: Sequence[Tensor], originals: Tensor) -> None:
        """Take features (B, D) that were computed before, of each side that is not a reference."""
        self._count += len(originals)
        for moments, rows in zip(self._moments, sides, strict=False):
            moments.update(rows)
        if self._sample is None and self._score is None:
            return
        keys = keys_of(originals, self.seed)
        if self._sample is not None:
            self._sample.update(torch.cat(list(sides), 1), keys)
        if self._score is not None:
            self._score.update(self.features.network.logits(sides[0]), keys)

    def reduce(self) -> FeatureMeasures:
        """Return the measures of all processes together; this object keeps its own share."""
        total = copy(self)
        total._count = int(sum_over_processes(torch.tensor([self._count])))
        total._moments = [moments.reduce() for moments in self._moments]
        total._sample = None if self._sample is None else self._sample.reduce()
        total._score = None if self._score is None else self._score.reduce()
        return total

    def results(self) -> tuple[Found, ...]:
        """Return what was found, in the order of the names."""
        compute = {"fid": self._fid, "kid": self._kid, "inception_score": self._inception_score}
        shares = self._shares() if {"precision", "recall"} & set(self.names) else {}
        return tuple(shares[name] if name in shares else compute[name]() for name in self.names)

    def facts(self) -> dict[str, str | int | float]:
        """Return network, resize mode, reference set and sampling."""
        found: dict[str, str | int | float] = {
            f"{self.features.name}.sha256": self.features.sha256,
            f"{self.features.name}.resize": self.features.resize,
        }
        compared = "originals" if self.reference is None else self.reference.images
        for name in self.names:
            if name in COMPARING:
                found[f"{name}.reference"] = compared
        if "kid" in self.names:
            found |= {"kid.subsets": NUM_SUBSETS, "kid.subset_size": SUBSET_SIZE}
        for name in ("precision", "recall"):
            if name in self.names:
                found[f"{name}.neighbours"] = NEIGHBOURS
        for name in (one for one in KEEPING if one in self.names):
            assert self._sample is not None, "made with these names"
            found |= {f"{name}.kept": self._sample.limit, f"{name}.seed": self.seed}
            if self.reference is not None:
                found[f"{name}.reference_kept"] = len(self.reference.sample)
                found[f"{name}.reference_seed"] = self.reference.seed
        if self._score is not None:
            found["inception_score.splits"] = self._score.num_splits
            found["inception_score.seed"] = self.seed
        return found

    def _fid(self) -> Found:
        sides = [moments.gaussian() for moments in self._moments]
        if self.reference is not None:
            sides.append(self.reference.gaussian)
        possible = min(side.count for side in sides) >= 2
        value = frechet_distance(*sides) if possible else None
        note = _few(sides, self.features.dim)
        return Found(name="fid", value=value, unit="", num_images=self._count, note=note)

    def _kid(self) -> Found:
        x, y = self._kept()
        value, spread, note = None, None, "needs at least 2 images"
        if min(len(x), len(y)) >= 2:
            value, spread = kernel_distance(x, y, seed=self.seed)
            size = min(SUBSET_SIZE, len(x), len(y))
            subsets = "one subset" if spread is None else f"{NUM_SUBSETS} subsets"
            note = f"{subsets} of {size:,} from {len(x):,} kept of {self._count:,} images"
        return Found(
            name="kid", value=value, unit="", num_images=self._count, spread=spread, note=note
        )

    def _shares(self) -> dict[str, Found]:
        """Return precision and recall, which are computed together."""
        images, others = self._kept()
        values: tuple[float | None, float | None] = (None, None)
        note = f"needs at least {NEIGHBOURS + 1} images"
        if min(len(images), len(others)) > NEIGHBOURS:
            values = precision_recall(others, images)
            note = f"k = {NEIGHBOURS}, {len(images):,} images against {len(others):,}"
        return {
            name: Found(name=name, value=value, unit="", num_images=self._count, note=note)
            for name, value in zip(("precision", "recall"), values, strict=True)
        }

    def _kept(self) -> tuple[Tensor, Tensor]:
        """Return the features that are kept, of the images and of what they are compared with."""
        assert self._sample is not None, "made with a name of KEEPING"
        if self.reference is None:
            x, y = self._sample.rows().chunk(2, 1)
        else:
            x, y = self._sample.rows(), self.reference.sample
        return x.to(self.features.device), y.to(self.features.device)

    def _inception_score(self) -> Found:
        assert self._score is not None, "made with the name inception_score"
        value, spread = self._score.value() or (None, None)
        each = self._count / self._score.num_splits
        note = f"{self._score.num_splits} splits of about {each:,.0f} images"
        if each < 5 * self.features.num_logits:
            note += "; few images bias it downwards"
        return Found(
            name="inception_score",
            value=value,
            unit="",
            num_images=self._count,
            spread=spread,
            note=note,
        )

    def _check(self) -> None:
        if self.reference is None:
            return
        self.reference.check(self.features)
        keeping = [name for name in KEEPING if name in self.names]
        if keeping:
            require(
                len(self.reference.sample) >= 2,
                "reference.sample=0",
                f"this file holds no features for {', '.join(keeping)}; make it with --kept 10000",
            )


def _few(sides: Sequence[Gaussian], dim: int) -> str:
    """Say of how few images the moments are, if they are few."""
    least = min(side.count for side in sides)
    if least < 2:
        return "needs at least 2 images"
    if least <= dim:
        return (
            f"{least:,} images for {dim:,} features: singular covariances, biased upwards; compare "
            "only at equal numbers of images"
        )
    if least < _MANY:
        return f"{least:,} images: biased upwards; compare only at equal numbers of images"
    return ""
