"""Vectors and codes brought into the frame in which float32 can tell codes apart.

For `l2` the mean code is subtracted from both: distances do not change, but without it float32
picks most codes wrong when the mean of the data is 1,000 times its spread. For `cosine` codes get
length one. There and for `dot` the mean may be subtracted from the codes alone: the scores of a
vector all change by the same number, and what is left is as large as the codes' spread. Codes whose
squares would leave the range of float32 are multiplied by a power of two, vectors too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vqkit.search.exact import CHUNK_ELEMENTS, fold_sum, power_of_two, wide
from vqkit.search.inputs import Metric

PIECE = 2**15
"""Elements up to which torch stays on one thread."""
MODEST = 40
"""Codes between 2^-MODEST and 2^MODEST are taken as they are."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What to do to codes and vectors before float32 compares them."""

    metric: Metric
    centre: Tensor
    """(D,) what is subtracted; float64 for codes in float64 and for `cosine`, else float32."""
    scale: Tensor | None
    """Power of two, (), that codes and vectors are multiplied by; None is one."""

    @classmethod
    def of(
        cls, codes: Tensor, metric: Metric, *, shift_codes: bool = False, scaled: bool = False
    ) -> Frame:
        """Choose the frame of codes (K, D) of any floating type; waits for no device but a CPU.

        Any centre near the mean serves; vectors and codes only have to share it to the bit.

        Args:
            codes: (K, D).
            metric: which score.
            shift_codes: subtract the mean for `cosine` and `dot` too, from the codes alone: for
                products, whose comparisons a constant does not change, not for distances.
            scaled: allow a scale: the order of distances stays, their values do not.
        """
        # Unit codes are rounded only after the shift, or their rounding would outweigh the rest.
        exact = codes.dtype == torch.float64 or metric == "cosine"
        dtype = wide(codes.device) if exact else torch.float32
        scale, modest = (
            _scale(codes) if codes.device.type == "cpu" else (_scale_later(codes), False)
        )
        if metric == "l2" and modest and codes.dtype == dtype:
            centre = mean_code(codes)
        else:
            centre = torch.zeros(codes.shape[1], dtype=wide(codes.device), device=codes.device)
            for part in codes.split(_step(codes)) if metric == "l2" or shift_codes else ():
                wider = part.to(centre.dtype).contiguous()
                centre += (unit_length(wider) if metric == "cosine" else wider).sum(0)
            centre = (centre / len(codes)).to(dtype)
        return cls(metric, centre, scale if scaled and metric != "cosine" else None)

    def around(self, codes: Tensor, ids: Tensor) -> Frame:
        """Return this frame around the mean of those of codes (K, D) that `ids` name."""
        centre = torch.zeros(codes.shape[1], dtype=wide(codes.device), device=codes.device)
        for part in ids.split(_step(codes)):
            rows = codes[part].to(centre.dtype)
            centre += (unit_length(rows) if self.metric == "cosine" else rows).sum(0)
        return replace(self, centre=(centre / len(ids)).to(self.centre.dtype))

    def table(self, codes: Tensor, *, columns: int = 0, multiple: int = 1) -> Tensor:
        """Prepare codes (K, D) as float32 rows, and leave room.

        Args:
            codes: (K, D), all codes of the frame or some of them.
            columns: zero columns to append.
            multiple: zero rows are appended until there is a multiple of it.

        Returns:
            (K', D + columns).
        """
        num_codes, dim = codes.shape
        num_rows = num_codes + -num_codes % multiple
        rows = torch.empty(num_rows, dim + columns, dtype=torch.float32, device=codes.device)
        rows[num_codes:] = 0
        rows[:, dim:] = 0
        if self.metric == "cosine" or codes.dtype != torch.float32:
            step = _step(codes)
            for start in range(0, num_codes, step):
                rows[start : start + step, :dim][: num_codes - start] = self._row(
                    codes[start : start + step]
                )
        else:
            torch.sub(codes, self.centre, out=rows[:num_codes, :dim])
            if self.scale is not None:
                rows *= self.scale
        return rows

    def _row(self, part: Tensor) -> Tensor:
        part = part.to(self.centre.dtype)
        part = (unit_length(part) if self.metric == "cosine" else part) - self.centre
        return (part if self.scale is None else part * self.scale).float()

    def points(self, vectors: Tensor) -> Tensor:
        """Prepare vectors (n, D) as float32; call it block by block."""
        if self.metric == "l2":
            # float64 input is shifted before it is rounded; the others are exact in float32.
            # So are values so large that a difference could overflow.
            exact = torch.float64 in (vectors.dtype, self.centre.dtype) or self.scale is not None
            source = vectors.to(wide(vectors.device)) if exact else vectors.float()
            vectors = source - self.centre.to(source.dtype)
        if self.scale is None:
            return vectors.float()
        wider = vectors if vectors.dtype == torch.float64 else vectors.float()
        return (wider * self.scale).float()


def mean_code(codes: Tensor) -> Tensor:
    """Average codes (K, D) -> (D,): a function of their values, not of their strides."""
    step = max(1, PIECE // codes.shape[1])
    parts = [part.contiguous().sum(0) for part in codes.split(step)]
    return torch.stack(parts).sum(0).div_(len(codes)) if len(parts) > 1 else parts[0] / len(codes)


def unit_length(rows: Tensor) -> Tensor:
    """Scale rows (n, D) to length one, zero rows to zero, the same way in every batch."""
    rows = near_one(rows)
    norm = fold_sum(rows * rows).sqrt_()[:, None]
    return rows / norm.where(norm > 0, 1.0)


def near_one(rows: Tensor) -> Tensor:
    """Scale rows (n, D), float32 or float64, by powers of two, so that squares stay in range."""
    exponent = torch.frexp(rows.abs().amax(-1, keepdim=True)).exponent
    if rows.dtype == torch.float64:  # the smallest numbers need two steps
        half = torch.div(exponent, 2, rounding_mode="floor")
        rows, exponent = rows * power_of_two(-half, rows.dtype), exponent - half
    return rows * power_of_two(-exponent, rows.dtype)


def _scale(codes: Tensor) -> tuple[Tensor | None, bool]:
    """Choose the scale of codes on a CPU, and tell whether their values are modest."""
    bounds = [torch.aminmax(part) for part in codes.split(_step(codes))]  # strided ones are copied
    largest = max(max(-float(low), float(high)) for low, high in bounds)
    if not 0 < largest < torch.inf:
        return None, largest == 0
    exponent = math.frexp(largest)[1]
    if abs(exponent) <= MODEST:
        return None, True
    scale = math.ldexp(1.0, -max(-126, min(exponent, 126)))
    return torch.tensor(scale, dtype=torch.float32), False


def _scale_later(codes: Tensor) -> Tensor:
    """Choose the scale on a device that nobody waits for."""
    low, high = (value.to(torch.float32) for value in torch.aminmax(codes))
    exponent = torch.frexp(torch.maximum(-low, high)).exponent
    modest = (exponent.abs() <= MODEST) | ~torch.isfinite(high - low)
    return power_of_two(torch.where(modest, 0, -exponent), torch.float32)


def _step(codes: Tensor) -> int:
    return max(1, CHUNK_ELEMENTS // codes.shape[1])
