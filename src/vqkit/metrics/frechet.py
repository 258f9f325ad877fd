"""FID: mean and covariance of features in one pass, and the distance of two Gaussians.

Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter 2017 (arXiv:1706.08500), equation 6.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from vqkit.config import require
from vqkit.metrics.reduction import sum_over_processes


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Gaussian:
    """What FID keeps of a set of feature vectors."""

    count: int
    """Vectors that it was computed from."""
    mean: Tensor
    """(D,) float64."""
    covariance: Tensor
    """(D, D) float64, divided by count - 1; zeros for a single vector."""


class Moments:
    """Count, mean and covariance of vectors (D,) that come in batches; float64, D² numbers.

    Batches are merged around their means (Chan, Golub, LeVeque 1979, equation 2.1), so that nothing
    cancels, however far the mean lies from 0 and however many there are.
    """

    def __init__(self, dim: int, device: str | torch.device = "cpu") -> None:
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    def update(self, features: Tensor) -> None:
        """Take vectors (n, D), floating point."""
        num_new = len(features)
        if not num_new:
            return
        rows = features.to(self.mean)
        mean = rows.mean(0)
        rows = rows - mean
        step, total = mean - self.mean, self.count + num_new
        self._scatter.addmm_(rows.T, rows)
        self._scatter.addr_(step, step, alpha=self.count * num_new / total)
        self.mean = self.mean + step * (num_new / total)
        self.count = total

    def reduce(self) -> Moments:
        """Return the moments of all processes together; this object keeps its own share."""
        total = copy(self)
        counted = torch.tensor([self.count], dtype=torch.float64, device=self.mean.device)
        count = sum_over_processes(counted)
        total.count = int(count)
        total.mean = sum_over_processes(self.mean * self.count) / count.clamp(min=1)
        step = self.mean - total.mean
        scatter = torch.addr(self._scatter, step, step, alpha=self.count)
        total._scatter = sum_over_processes(scatter)
        return total

    def gaussian(self) -> Gaussian:
        """Return count, mean and covariance of what was seen."""
        covariance = self._scatter / max(self.count - 1, 1)
        return Gaussian(count=self.count, mean=self.mean, covariance=covariance)


def frechet_distance(x: Gaussian, y: Gaussian) -> float:
    """Return |μx - μy|² + tr Σx + tr Σy - 2 tr (Σx Σy)^½, at least 0.

    With Σx = A Aᵀ the last term is the sum of the square roots of the eigenvalues of Aᵀ Σy A, which
    is symmetric: two symmetric eigenvalue problems in float64, no matrix square root, no imaginary
    part. Fewer than D + 1 vectors leave covariances of lower rank, whose zero eigenvalues would
    come out as noise of either sign: only as many are summed as there can be.

    Raises:
        ValueError: fewer than two vectors on one side, other sizes, or values that are not finite.
    """
    require(
        min(x.count, y.count) >= 2, f"{x.count} and {y.count} images", "FID needs at least 2 each"
    )
    sizes = (len(x.mean), len(y.mean))
    require(sizes[0] == sizes[1], f"features of {sizes[0]} and {sizes[1]}", "must be equally many")
    first, second = x.covariance, y.covariance.to(x.mean.device)
    difference = x.mean - y.mean.to(x.mean.device)
    finite = bool((difference.sum() + first.sum() + second.sum()).isfinite())
    require(finite, "features", "hold NaN or infinity; the network's weights are damaged")
    values, vectors = torch.linalg.eigh(first)
    root = (vectors * values.clamp(min=0).sqrt())[:, -min(x.count - 1, sizes[0]) :]
    products = torch.linalg.eigvalsh(root.T @ second @ root)
    shared = products[-min(y.count - 1, len(products)) :].clamp(min=0).sqrt().sum()
    distance = difference.square().sum() + first.trace() + second.trace() - 2 * shared
    return max(float(distance), 0.0)
