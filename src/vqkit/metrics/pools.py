"""Means over groups of consecutive images, for protocols that average batches of a loader."""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from vqkit.metrics.reduction import concatenate_over_processes, sum_over_processes

# Columns of a row: number of the group, squared error, values, SSIM, images with SSIM, images.
_GROUP, _ERROR, _VALUES, _SSIM, _SIMILAR, _IMAGES = range(6)


class Pools:
    """PSNR of the pooled error of every `size` consecutive images, and their mean SSIM.

    Groups are counted from the beginning of the whole set, so that neither the batch size nor the
    number of processes changes them. `first` is the place of this share's first image. Complete
    groups enter sums; of a share, only the first and the last group stay open. `cap` is the
    largest PSNR of a group in dB.
    """

    def __init__(self, size: int, cap: float, first: int = 0) -> None:
        self.size, self.cap = size, cap
        self._next = first
        self._open = torch.zeros(0, 6, dtype=torch.float64)
        # Decibels, groups, SSIM, groups with SSIM, all of complete groups.
        self._closed = torch.zeros(4, dtype=torch.float64)

    def update(self, errors: Tensor, similar: Tensor | None, values: int) -> None:
        """Count images by their mean squared errors (B,), of `values` values each, and SSIM."""
        count = len(errors)
        rows = torch.zeros(count, 6, dtype=torch.float64)
        rows[:, _GROUP] = torch.arange(self._next, self._next + count) // self.size
        rows[:, _ERROR] = errors.cpu() * values
        rows[:, _VALUES] = values
        rows[:, _IMAGES] = 1
        if similar is not None:
            rows[:, _SSIM] = similar.cpu()
            rows[:, _SIMILAR] = 1
        self._next += count
        merged = _merge(torch.cat([self._open, rows]))
        whole = merged[:, _IMAGES] == self.size
        self._closed += self._sums(merged[whole])
        self._open = merged[~whole]

    def reduce(self) -> Pools:
        """Return the groups of all processes together; this object keeps its own share."""
        total = copy(self)
        total._closed = sum_over_processes(self._closed)
        total._open = _merge(concatenate_over_processes(self._open))
        return total

    def psnr(self) -> float:
        """Return the mean PSNR of the groups in dB, the last and shorter one included."""
        sums = self._closed + self._sums(self._open)
        return float(sums[0] / sums[1])

    def ssim(self) -> float:
        """Return the mean over groups of their mean SSIM."""
        sums = self._closed + self._sums(self._open)
        return float(sums[2] / sums[3])

    def _sums(self, groups: Tensor) -> Tensor:
        decibels = -10 * (groups[:, _ERROR] / groups[:, _VALUES]).log10()
        similar = groups[groups[:, _SIMILAR] > 0]
        return torch.stack(
            [
                decibels.clamp(max=self.cap).sum(),
                torch.tensor(len(groups), dtype=torch.float64),
                (similar[:, _SSIM] / similar[:, _SIMILAR]).sum(),
                torch.tensor(len(similar), dtype=torch.float64),
            ]
        )


def _merge(rows: Tensor) -> Tensor:
    """Add up the rows of each group."""
    groups, place = torch.unique(rows[:, _GROUP], return_inverse=True)
    merged = torch.zeros(len(groups), 6, dtype=torch.float64).index_add_(0, place, rows)
    merged[:, _GROUP] = groups
    return merged
