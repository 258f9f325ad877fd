"""Sums that do not depend on their order: on blocks, threads, devices or the number of processes.

Values rounded to multiples of a power of two add up exactly in float64 as long as every partial sum
has at most 53 bits. So atomic additions, reductions over processes and streams over shards all give
the same bits, and a sum of float32 values loses nothing that float32 arithmetic would have kept:
with 16 million values the grid is 2^-27 of the largest one or finer.

Legend: N vectors, K codes, D dim.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ELEMENTS = 2**18
"""Elements that are rounded at a time: 2 MiB in float64."""
MANTISSA = 52
"""Bits of a float64 below its leading one."""


def sum_grid(largest: float, count: int) -> float:
    """Find the grid on which `count` values of at most `largest` add up exactly in float64.

    Args:
        largest: bound of the absolute values, finite, >= 0.
        count: how many values are added, over all processes; >= 0.

    Returns:
        a power of two g: each value is rounded to a multiple of g, so by g/2 at most.

    Raises:
        ValueError: `largest` is negative or not finite, or `count` is negative.
    """
    if not 0 <= largest < math.inf or count < 0:
        raise ValueError(
            f"largest={largest}, count={count}: need a finite bound and a number of values, "
            "both at least 0; check the values for NaN and infinity"
        )
    if largest == 0:
        return 1.0
    bits = math.frexp(largest)[1] + max(count, 1).bit_length()
    return math.ldexp(1.0, max(bits - MANTISSA, -1022))


def to_grid(values: Tensor, grid: float) -> Tensor:
    """Round values of any floating type to whole multiples of `grid`, as float64 counts of it."""
    return torch.mul(values.to(torch.float64), 1 / grid).round_()


def code_sums(
    vectors: Tensor, ids: Tensor, num_codes: int, grid: float, into: Tensor | None = None
) -> Tensor:
    """Sum the vectors of every code in O(N D + K D), the same bits for any order of the rows.

    Args:
        vectors: (N, D), any floating type, finite, absolute values within the bound of `grid`.
        ids: (N,) int64 in [0, num_codes); not checked here.
        num_codes: K.
        grid: from `sum_grid`, for the number of vectors whose sums will be added together.
        into: (K, D) float64, what is there already; changed and returned. None starts with zeros.

    Returns:
        (K, D) float64, multiples of `grid`.
    """
    dim = vectors.shape[1]
    if into is None:
        into = torch.zeros(num_codes, dim, dtype=torch.float64, device=vectors.device)
    step = max(1, ELEMENTS // max(dim, 1))
    for part, chosen in zip(vectors.split(step), ids.split(step), strict=True):
        into.index_add_(0, chosen, to_grid(part, grid).mul_(grid))
    return into
