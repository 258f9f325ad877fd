"""Measures of whole image sets: FID, KID, precision and recall, Inception Score, LPIPS.

One surface for the evaluator.

Each keeps sums or a bounded number of feature vectors, so that memory does not grow with the set,
and several processes add theirs up with `reduce()`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol, Self

import torch
from torch import Tensor

from vqkit.config import require
from vqkit.config.core import check_choice

Resize = Literal["clean", "legacy", "adm", "cvq"]
"""How images are brought to the 299×299 pixels of the network (`vqkit.metrics.resizing`)."""
NAMES: Final = (
    *("fid", "kid", "precision", "recall"),
    *("inception_score", "lpips_vgg", "lpips_alex"),
)
"""Measures that `make_measures` knows."""
_NETWORKS: Final = {
    "fid": "inception",
    "kid": "inception",
    "precision": "inception",
    "recall": "inception",
    "inception_score": "inception",
    "lpips_vgg": "vgg16",
    "lpips_alex": "alexnet",
}
COMPARING: Final = ("fid", "kid", "precision", "recall")
"""Measures of two sets of images, of which the second may be a file of `vqkit reference`."""
KEEPING: Final = ("kid", "precision", "recall")
"""Measures that keep feature vectors, and so need a reference that holds some."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """One number of a set of images."""

    name: str
    value: float | None
    """None where nothing could be computed (no image; KID of one image)."""
    unit: str
    num_images: int
    """Reconstructions that it was computed from."""
    spread: float | None = None
    """Standard deviation over subsets (KID) or splits (Inception Score); None for the others."""
    note: str = ""
    """What a reader must be told beside the number: too few samples, a bounded subset."""


class SetMeasure(Protocol):
    """A measure of reconstructions against originals, image by image or as distributions."""

    def update(self, images: Tensor, originals: Tensor) -> None:
        """Take reconstructions and their originals, both uint8 (B, C, H, W) with C = 1 or 3."""

    def reduce(self) -> Self:
        """Return the measure of all processes together; this object keeps its own share."""

    def results(self) -> tuple[Found, ...]:
        """Return what was found, in the order of the names asked for."""

    def facts(self) -> dict[str, str | int | float]:
        """Return what the numbers depend on beside the images, for the protocol's identity.

        Keys begin with the network's or the measure's name and a dot, so that the facts of several
        measures can be merged: `inception.sha256`, `inception.resize`, `fid.reference`.
        """


def make_measure(
    name: str,
    *,
    reference: str | Path | None = None,
    weights: str | Path | None = None,
    resize: Resize = "clean",
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> SetMeasure:
    """Return one measure; `make_measures` shares one network among several.

    Args:
        name: one of `NAMES`.
        reference: file of `vqkit reference` to compare with (`COMPARING`); None: the originals.
        weights: file of the network; None: found as `vqkit.weights` says.
        resize: how images come to the size of Inception; LPIPS resizes nothing.
        device: where networks run.
        seed: of KID's samples and of the Inception Score's splits.

    Raises:
        ValueError: an unknown name, weights that are missing (the message says which file, from
            where and where to put it), or a reference that does not fit.
    """
    given = {} if weights is None else {_NETWORKS.get(name, ""): weights}
    (measure,) = make_measures(
        [name], reference=reference, weights=given, resize=resize, device=device, seed=seed
    )
    return measure


def make_measures(
    names: Sequence[str],
    *,
    reference: str | Path | None = None,
    weights: Mapping[str, str | Path] | None = None,
    resize: Resize = "clean",
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> tuple[SetMeasure, ...]:
    """Return measures for several names; those on Inception are one object with one network.

    Arguments and errors are those of `make_measure`, but that `weights` maps names of
    `vqkit.weights` (`inception`, `vgg16`, `alexnet`) to files.
    """
    from vqkit.metrics.features import FeatureMeasures, load_features
    from vqkit.metrics.lpips import LpipsMeasure
    from vqkit.metrics.reference import Reference

    check_choice("resize", resize, Resize)
    for name in names:
        require(name in NAMES, f"measure={name!r}", f"expected one of {', '.join(NAMES)}")
    require(len(set(names)) == len(names), f"measures={','.join(names)}", "name each once")
    files = weights or {}
    measures: list[SetMeasure] = []
    on_features = [name for name in names if _NETWORKS[name] == "inception"]
    if reference is not None:
        used = any(name in COMPARING for name in on_features)
        message = f"only {', '.join(COMPARING)} compare with a reference"
        require(used, f"reference={reference}", message)
    if on_features:
        known = None if reference is None else Reference.read(reference)
        features = load_features(files.get("inception"), resize=resize, device=device)
        measures.append(FeatureMeasures(features, on_features, reference=known, seed=seed))
    for name in names:
        if name not in on_features:
            file = files.get(_NETWORKS[name])
            measures.append(LpipsMeasure.load(name, file, device=device))
    return tuple(measures)
