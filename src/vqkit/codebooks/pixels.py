"""Features without a network: whitened patches of pixels.

Patches are whitened as in Coates, Ng and Lee, "An Analysis of Single-Layer Networks in Unsupervised
Feature Learning" (2011), section 3: without it k-means spends its centres on brightness and on the
few directions in which neighbouring pixels vary together.

Legend: N images, m patches an image, C channels, p side of a patch, P = C·p·p pixels of one, D dim.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from vqkit.clustering.draws import Purpose, distinct_rows, uniforms
from vqkit.codebooks.encoders import PatchEncoder, check_images
from vqkit.codebooks.shards import WHITENING
from vqkit.config import require
from vqkit.data import BrokenImageError, ImageSet, to_float
from vqkit.data.preparing import Pixels, corner
from vqkit.data.workers import ordered
from vqkit.models.files import write_beside

SAMPLE_IMAGES = 4096
"""Images that whitening is fitted on; of a larger set as many are drawn."""
_RUN = 4
"""Images that are asked for at once."""


@dataclass(frozen=True, slots=True)
class Whitening:
    """A linear map: feature = (patch - mean) @ matrix, with pixels in [-1, 1]."""

    mean: Tensor
    """(P,) float32."""
    matrix: Tensor
    """(P, D) float32."""

    @classmethod
    def of(cls, mean: Tensor, covariance: Tensor, kind: str, dim: int, epsilon: float) -> Whitening:
        """Whiten by mean (P,) and covariance (P, P) of patches, float64; `PixelPatches` says how.

        Variances that rounding alone has made are left out, so that epsilon=0 is safe.
        """
        variances, vectors = torch.linalg.eigh(covariance)
        variances, vectors = variances.flip(0), vectors.flip(1)[:, :dim]
        # An eigenvector has no sign of its own: give its largest pixel a positive one.
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        vectors = vectors * largest.sign()
        kept = variances[:dim]
        scale = (kept + epsilon * variances.mean()).rsqrt()
        scale = torch.where(kept > 1e-10 * variances[0], scale, 0.0)
        matrix = vectors * scale
        if kind == "zca":
            matrix = matrix @ vectors.T
        return cls(mean.float(), matrix.float().contiguous())


class PixelPatches(PatchEncoder):
    """Patches of p x p pixels every `stride` pixels, whitened; images of any size from p on.

    Whitening is fitted to a sample of patches before the first extraction, and kept beside its
    features; `whitened_by` takes that of another feature set.

    Args:
        patch: side of a patch p in pixels.
        stride: pixels between patches.
        whiten: "zca" rotates back to pixels, so that features look like patches; "pca" sorts the
            directions by their variance and may keep the first `dim` of them.
        dim: directions kept by "pca", at most C·p·p; None keeps all.
        epsilon: added to the variances, as a share of their mean, so that noise is not blown up to
            the size of the rest; with 0 the covariance of the features is the identity.
        sample: patches that whitening is fitted on.
        seed: which ones.
    """

    autocasts = False

    def __init__(
        self,
        *,
        patch: int = 8,
        stride: int = 8,
        whiten: Literal["zca", "pca"] = "zca",
        dim: int | None = None,
        epsilon: float = 0.01,
        sample: int = 200_000,
        seed: int = 0,
    ) -> None:
        for name, value in (("patch", patch), ("stride", stride), ("dim", dim), ("sample", sample)):
            require(value is None or value >= 1, f"{name}={value}", "must be at least 1")
        require(whiten in ("zca", "pca"), f"whiten={whiten!r}", "expected 'zca' or 'pca'")
        require(epsilon >= 0, f"epsilon={epsilon}", "must not be negative")
        require(seed >= 0, f"seed={seed}", "must not be negative")
        require(
            dim is None or whiten == "pca", f"dim={dim}", "only whiten='pca' keeps some directions"
        )
        self.patch, self._stride, self._seed = patch, stride, seed
        self._settings = {
            "patch": patch,
            "stride": stride,
            "whiten": whiten,
            "dim": dim,
            "epsilon": epsilon,
            "sample": sample,
            "seed": seed,
        }
        self._whitening: Whitening | None = None
        self._sha256: str | None = None
        self._device = torch.device("cpu")

    def __call__(self, images: Tensor) -> Tensor:
        """See `PatchEncoder.__call__`; always in float32."""
        check_images(images, None)
        require(self._whitening is not None, "pixels", "are not whitened yet; use extract")
        assert self._whitening is not None
        mean, matrix = self._whitening.mean, self._whitening.matrix
        planes, (height, width) = len(mean) // self.patch**2, images.shape[-2:]
        require(
            images.shape[1] == planes,
            f"data.channels={images.shape[1]}",
            f"the whitening was fitted to images of {planes}; use data.channels={planes}",
        )
        require(
            min(height, width) >= self.patch,
            f"patch={self.patch}",
            f"an image has only {height} x {width} pixels; take smaller patches",
        )
        with torch.autocast(images.device.type, enabled=False):
            floats = to_float(images.to(mean.device))
            rows = F.unfold(floats, self.patch, stride=self._stride).transpose(1, 2)
            features = (rows - mean) @ matrix
        shape = tuple((side - self.patch) // self._stride + 1 for side in (height, width))
        return features.transpose(1, 2).unflatten(2, shape)

    @property
    def stride(self) -> int:
        """Pixels between patches."""
        return self._stride

    def describe(self) -> dict[str, Any]:
        """See `PatchEncoder.describe`; the SHA-256 is that of the whitening, None before it.

        An extraction fits the whitening to its own images unless it is given one.
        """
        return {
            "kind": "pixels",
            "name": f"pixels {self.patch}x{self.patch}",
            "sha256": self._sha256,
            "layer": None,
            "whitening": "fitted" if self._whitening is None else "given",
            **self._settings,
        }

    @property
    def device(self) -> torch.device:
        """Where patches are whitened."""
        return self._device

    def to(self, device: str | torch.device) -> None:
        """Move the whitening, or what will be fitted."""
        self._device = torch.device(device)
        if self._whitening is not None:
            mean, matrix = self._whitening.mean, self._whitening.matrix
            self._whitening = Whitening(mean.to(device), matrix.to(device))

    def prepared(self, images: ImageSet, file: Path) -> PixelPatches:
        """Return this encoder with whitening fitted to `images` and written to `file`.

        One that is fitted already keeps its whitening, so that features of other images are
        comparable. Raises `ValueError` for fewer than two patches, or patches without any contrast.
        """
        with _one_thread():
            whitening = self._whitening or self._fit(images)
        tensors = {"matrix": whitening.matrix.cpu(), "mean": whitening.mean.cpu()}
        write_beside(file, safetensors.torch.save(tensors))
        return self.restored(file)

    def restored(self, file: Path) -> PixelPatches:
        """Return this encoder with the whitening in `file`; an unfit file is a `ValueError`."""
        try:
            content = file.read_bytes()
            tensors = safetensors.torch.load(content)
            found = Whitening(tensors["mean"], tensors["matrix"])
        except (OSError, KeyError, safetensors.SafetensorError) as error:
            raise ValueError(
                f"{file}: is no whitening ({error}); extract again with --fresh"
            ) from error
        rows, dim = len(found.mean), self._settings["dim"]
        require(
            rows % self.patch**2 == 0 and tuple(found.matrix.shape) == (rows, dim or rows),
            f"{file}",
            f"whitens patches of {rows} numbers to {found.matrix.shape[-1]}, which are not these "
            f"(patch={self.patch}, dim={dim}); give the settings that it was made with",
        )
        fitted = copy(self)
        fitted._whitening, fitted._sha256 = found, hashlib.sha256(content).hexdigest()
        fitted.to(self._device)
        return fitted

    def whitened_by(self, folder: str | Path) -> PixelPatches:
        """Return this encoder with the whitening of a feature set of the same settings."""
        return self.restored(Path(folder).expanduser() / WHITENING)

    def _fit(self, images: ImageSet) -> Whitening:
        """Add up patches of single images in float64: memory does not grow with their number."""
        count, wanted = len(images), int(self._settings["sample"] or 0)
        number = min(count, SAMPLE_IMAGES, wanted)
        chosen = distinct_rows(self._seed, Purpose.SAMPLE, 0, number, count).tolist()
        each = -(-wanted // number)
        total, mean, square = 0, torch.zeros(0), torch.zeros(0)
        for index, pixels in _readable(images, chosen):
            rows = to_float(torch.from_numpy(self._cut(images.name(index), index, pixels, each)))
            rows = rows.double()
            if total == 0:
                mean = rows.new_zeros(rows.shape[1])
                square = rows.new_zeros(rows.shape[1], rows.shape[1])
            total += len(rows)
            mean += rows.sum(0)
            square += rows.T @ rows
        if total == 0:
            raise images.all_broken()
        mean /= total
        covariance = square / total - mean.outer(mean)
        dim = int(self._settings["dim"] or len(mean))
        require(dim <= len(mean), f"dim={dim}", f"a patch has only {len(mean)} numbers")
        require(
            bool(covariance.diagonal().sum() > 1e-10),
            f"data.path={images.config.path!r}",
            f"{total:,} patches of it are all the same; whitening needs images with contrast",
        )
        kind, epsilon = str(self._settings["whiten"]), float(self._settings["epsilon"] or 0)
        return Whitening.of(mean, covariance, kind, dim, epsilon)

    def _cut(self, name: str, index: int, pixels: Pixels, count: int) -> Pixels:
        """Cut `count` patches out of (C, H, W) at random places, (count, P)."""
        side = self.patch
        require(
            min(pixels.shape[-2:]) >= side,
            f"patch={side}",
            f"{name} has only {pixels.shape[-2]} x {pixels.shape[-1]} pixels; take smaller patches",
        )
        tops, lefts = uniforms(self._seed, Purpose.PATCH, index, 2 * count).view(2, -1).numpy()
        views = np.lib.stride_tricks.sliding_window_view(pixels, (side, side), axis=(1, 2))
        row, column = (corner(pixels.shape[1], side, tops), corner(pixels.shape[2], side, lefts))
        return views[:, row, column].transpose(1, 0, 2, 3).reshape(count, -1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute on one thread: with several, sums and eigenvectors have other bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _readable(images: ImageSet, chosen: list[int]) -> Iterator[tuple[int, Pixels]]:
    """Yield number and pixels of the images that can be read, in order."""
    runs = [chosen[i : i + _RUN] for i in range(0, len(chosen), _RUN)]
    with images.reading() as source:
        threads = source.parallel
        found = ordered(source.several, runs, workers=threads, ahead=threads + 1, stop=source.stop)
        with closing(found):
            for run, several in zip(runs, found, strict=True):
                for index, image in zip(run, several, strict=True):
                    if isinstance(image, BrokenImageError):
                        images.keep_or_fail(image)
                    else:
                        yield index, image
