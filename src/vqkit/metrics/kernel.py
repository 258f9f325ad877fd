"""KID: the squared maximum mean discrepancy of features, and a bounded sample to compute it from.

Bińkowski, Sutherland, Arbel, Gretton 2018 (arXiv:1801.01401), section 4 and appendix.
"""

from __future__ import annotations

import hashlib
from typing import Final

import torch
from torch import Tensor

from vqkit.config import require
from vqkit.metrics.reduction import concatenate_over_processes, sum_over_processes

NUM_SUBSETS: Final = 100
SUBSET_SIZE: Final = 1000
"""Subsets that KID is averaged over, and vectors of either side in each, as clean-fid,
torch-fidelity and torchmetrics have it (the authors' code: 50 subsets)."""
NUM_KEPT: Final = 10_000
"""Vectors of either side that are kept; a larger set is sampled."""


def keys_of(images: Tensor, seed: int) -> Tensor:
    """Return a pseudo-random number of every image, (B,) int64, from its bytes and the seed.

    Images uint8 (B, C, H, W). Whatever is drawn by these keys does not depend on the order of the
    images, the size of batches or the number of processes.
    """
    require(0 <= seed < 2**63, f"seed={seed}", "must be at least 0 and below 2^63")
    salt = seed.to_bytes(8, "little")
    digests = [
        hashlib.blake2b(image.tobytes(), digest_size=8, key=salt).digest()
        for image in images.cpu().contiguous().numpy()
    ]
    numbers = [int.from_bytes(digest, "little", signed=True) for digest in digests]
    return torch.tensor(numbers, dtype=torch.int64, device=images.device)


class Sample:
    """A uniform sample of at most `limit` rows (n, D) float32: those with the smallest keys."""

    def __init__(self, dim: int, limit: int = NUM_KEPT) -> None:
        require(limit >= 2, f"limit={limit}", "KID needs at least 2 vectors")
        self.limit = limit
        self.seen = 0
        self._count = 0
        self._rows = torch.empty(limit, dim)
        self._keys = torch.empty(limit, dtype=torch.int64)

    def __len__(self) -> int:
        return self._count

    def update(self, rows: Tensor, keys: Tensor) -> None:
        """Take rows (n, D) with their keys (n,); they are kept on the CPU."""
        self.seen += len(rows)
        rows, keys = rows.float().cpu(), keys.cpu()
        free = self.limit - self._count
        filled = slice(self._count, self._count + min(free, len(rows)))
        self._rows[filled], self._keys[filled] = rows[:free], keys[:free]
        self._count = filled.stop
        if len(rows) > free:
            self._replace(rows[free:], keys[free:])

    def reduce(self) -> Sample:
        """Return the sample of all processes together; this object keeps its own share."""
        total = Sample(self._rows.shape[1], self.limit)
        rows = concatenate_over_processes(self._rows[: self._count])
        total.update(rows, concatenate_over_processes(self._keys[: self._count]))
        total.seen = int(sum_over_processes(torch.tensor([self.seen])))
        return total

    def rows(self) -> Tensor:
        """Return what is kept, (n, D) float32, in the order of the keys."""
        return self._rows[self._keys[: self._count].argsort(stable=True)]

    def _replace(self, rows: Tensor, keys: Tensor) -> None:
        """Put rows in the place of kept ones with larger keys."""
        count = self._count
        best = torch.cat([self._keys, keys]).argsort(stable=True)[:count]
        leaving = torch.ones(count, dtype=torch.bool)
        leaving[best[best < count]] = False
        entering = best[best >= count] - count
        self._rows[leaving], self._keys[leaving] = rows[entering], keys[entering]


def kernel_distance(
    x: Tensor,
    y: Tensor,
    *,
    num_subsets: int = NUM_SUBSETS,
    subset_size: int = SUBSET_SIZE,
    seed: int = 0,
) -> tuple[float, float | None]:
    """Return the mean over subsets of the unbiased squared MMD, and its standard deviation.

    With k(a, b) = (a·b / D + 1)³ and m vectors of either side in a subset,
    MMD² = Σ_{i≠j} [k(xi, xj) + k(yi, yj)] / m(m - 1) - 2 Σ_{ij} k(xi, yj) / m². It may be below 0.
    Subsets are drawn without replacement; the same seed gives the same ones. Where all vectors fit
    into one subset there is just that one, and no deviation.

    Args:
        x: features (n, D), floating point.
        y: features (m, D) to compare with.
        num_subsets: subsets drawn.
        subset_size: vectors of either side in each; fewer where there are fewer.
        seed: of the draws.

    Raises:
        ValueError: fewer than two vectors on one side, or other sizes.
    """
    size = min(subset_size, len(x), len(y))
    require(size >= 2, f"{len(x)} and {len(y)} images", "KID needs at least 2 each")
    sizes = (x.shape[1], y.shape[1])
    require(sizes[0] == sizes[1], f"features of {sizes[0]} and {sizes[1]}", "must be equally many")
    source = torch.Generator().manual_seed(seed)
    only = size == len(x) == len(y)
    found = []
    for _ in range(1 if only else num_subsets):
        first = x[torch.randperm(len(x), generator=source)[:size].to(x.device)]
        second = y[torch.randperm(len(y), generator=source)[:size].to(y.device)]
        found.append(_unbiased(first.double(), second.double()))
    values = torch.tensor(found, dtype=torch.float64)
    return float(values.mean()), None if only else float(values.std(correction=0))


def _unbiased(x: Tensor, y: Tensor) -> float:
    m = len(x)
    within = sum(_kernel(z, z).fill_diagonal_(0).sum() for z in (x, y))
    return float(within / (m * (m - 1)) - 2 * _kernel(x, y).sum() / m**2)


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3
