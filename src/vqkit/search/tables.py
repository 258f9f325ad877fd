"""Vectors and codes brought into the frame in which float32 can tell codes apart.

For `l2` the mean code is subtracted from both: distances do not change, but without it float32
picks most codes wrong when the mean of the data is 1,000 times its spread. For `cosine` codes get
length one. There and for `dot` the mean may be subtracted from the codes alone: the scores of a
vector all change by the same number, and what is left is as large as the codes' spread.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vqkit.search.exact import CHUNK_ELEMENTS, fold_sum, wide
from vqkit.search.inputs import Metric


@dataclass(frozen=True, slots=True)
class Frame:
    """What to do to codes and vectors before float32 compares them."""

    metric: Metric
    centre: Tensor
    """(D,) what is subtracted, in float64."""

    @classmethod
    def of(cls, codes: Tensor, metric: Metric, *, shift_codes: bool = False) -> Frame:
        """Choose the frame of codes (K, D) of any floating type.

        `shift_codes` subtracts the mean for `cosine` and `dot` too, from the codes alone: for
        products, whose comparisons a constant does not change, not for distances.
        """
        centre = torch.zeros(codes.shape[1], dtype=wide(codes.device), device=codes.device)
        if metric == "l2" or shift_codes:
            for part in codes.split(_step(codes)):
                part = part.to(centre.dtype)
                centre += (unit_length(part) if metric == "cosine" else part).sum(0)
            centre /= len(codes)
        return cls(metric, centre)

    def table(self, codes: Tensor, *, columns: int = 0, multiple: int = 1) -> Tensor:
        """Prepare codes (K, D) as float32 rows, and leave room.

        Args:
            codes: (K, D).
            columns: zero columns to append.
            multiple: zero rows are appended until there is a multiple of it.

        Returns:
            (K', D + columns).
        """
        num_codes, dim = codes.shape
        num_rows = num_codes + -num_codes % multiple
        rows = torch.zeros(num_rows, dim + columns, device=codes.device)
        step = _step(codes)
        for start in range(0, num_codes, step):
            part = codes[start : start + step].to(self.centre.dtype)
            if self.metric == "cosine":
                part = unit_length(part)
            rows[start : start + len(part), :dim] = (part - self.centre).float()
        return rows

    def points(self, vectors: Tensor) -> Tensor:
        """Prepare vectors (n, D) as float32; call it block by block."""
        if self.metric == "l2":
            # float64 input is shifted before it is rounded; the others are exact in float32.
            source = vectors if vectors.dtype == self.centre.dtype else vectors.float()
            return (source - self.centre.to(source.dtype)).float()
        return vectors.float()


def unit_length(rows: Tensor) -> Tensor:
    """Scale rows (n, D) to length one, zero rows to zero, the same way in every batch."""
    norm = fold_sum(rows * rows).sqrt_()[:, None]
    return rows / norm.where(norm > 0, 1.0)


def _step(codes: Tensor) -> int:
    return max(1, CHUNK_ELEMENTS // codes.shape[1])
