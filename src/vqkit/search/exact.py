"""Arithmetic whose result depends on its operands alone, never on the shape of a batch.

Matrix products and reductions round differently for different block shapes; a chain of elementwise
operations cannot. Everything that decides between two codes, or that callers see, is computed here.

Legend: N vectors, K codes, D dim, P pairs of one vector and one code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vqkit.search.inputs import Metric

CHUNK_ELEMENTS = 2**18
"""Elements of one temporary (2 MiB in float64)."""
FLOAT32, TF32, BF16 = 2.0**-24, 2.0**-11, 1.01 * 2.0**-8
"""Relative errors of rounding to nearest; in bf16 of a number seen after it was rounded."""
PRODUCT_ERROR = {"bf16": 2.1 * BF16, "tf32": 2.1 * TF32, "ieee": 0.0}


def wide(device: torch.device) -> torch.dtype:
    """Return float64 where the device has it (Apple's does not), else float32."""
    return torch.float32 if device.type == "mps" else torch.float64


def fold_sum(values: Tensor) -> Tensor:
    """Sum (P, D) -> (P,) by adding halves: the order depends on D only, on every device."""
    while values.shape[-1] > 1:
        half = values.shape[-1] // 2
        folded = values[..., :half] + values[..., half : 2 * half]
        if values.shape[-1] % 2:
            folded[..., 0] += values[..., -1]
        values = folded
    return values[..., 0]


def power_of_two(exponent: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 2^exponent for whole exponents (int32), kept within the normal numbers of `dtype`.

    Made of bits, since `pow` and `ldexp` round, and fall back on torch's default type.
    """
    if dtype == torch.float64:
        return ((exponent.long().clamp(-1022, 1023) + 1023) << 52).view(dtype)
    return ((exponent.int().clamp(-126, 127) + 127) << 23).view(torch.float32).to(dtype)


def closeness(
    vectors: Tensor, codes: Tensor, rows: Tensor | None, ids: Tensor, metric: Metric
) -> Tensor:
    """Score pairs, higher is closer: minus squared distance, cosine or dot product.

    Args:
        vectors: (N, D).
        codes: (K, D).
        rows: (P,) the vector of each pair; None means vector p for pair p.
        ids: (P,) the code of each pair.
        metric: which score.

    Returns:
        (P,) in float64. Zero vectors and zero codes have cosine 0.
    """
    dtype = wide(vectors.device)
    step = max(1, CHUNK_ELEMENTS // vectors.shape[-1])
    parts = [torch.empty(0, dtype=dtype, device=vectors.device)] if len(ids) == 0 else []
    for start in range(0, ids.shape[0], step):
        stop = start + step
        z = vectors[start:stop] if rows is None else vectors.index_select(0, rows[start:stop])
        parts.append(_score(z.to(dtype), codes.index_select(0, ids[start:stop]), metric))
    return torch.cat(parts)


def _score(z: Tensor, code: Tensor, metric: Metric) -> Tensor:
    """Score z (P, D), wide, with codes (P, D) of any type, which widen inside the operation."""
    if metric == "l2":
        return -fold_sum((z - code).square_())
    code = code.to(z.dtype)
    product = fold_sum(z * code)
    if metric == "dot":
        return product
    norms = fold_sum(z * z).sqrt_() * fold_sum(code * code).sqrt_()
    return torch.where(norms > 0, product / norms, norms)


def first_copies(codes: Tensor) -> Tensor | None:
    """Map every code (K, D) to the lowest id with the same values, (K,); None if all differ."""
    num_codes, dim = codes.shape
    dtype = wide(codes.device)
    weights = torch.arange(1, dim + 1, dtype=dtype, device=codes.device).sqrt_()
    step = max(1, CHUNK_ELEMENTS // dim)
    # Into one tensor: small results among large temporary ones would scatter the heap.
    key = torch.empty(num_codes, dtype=dtype, device=codes.device)
    for here, part in zip(key.split(step), codes.split(step), strict=True):
        here.copy_(fold_sum(part.to(dtype) * weights))
    key, order = key.sort(stable=True)
    twin = (key[1:] == key[:-1]).nonzero()[:, 0]
    if twin.numel() == 0:
        return None
    pairs = zip(order[twin].split(step), order[twin + 1].split(step), strict=True)
    if all(torch.equal(codes[a], codes[b]) for a, b in pairs):
        starts = torch.ones(num_codes, dtype=torch.int64, device=codes.device)
        starts[twin + 1] = 0
        group = torch.empty_like(order)
        group[order] = starts.cumsum(0) - 1
    else:  # different codes with one key, which may stand between copies
        _, group = torch.unique(codes, dim=0, return_inverse=True)
    every = torch.arange(num_codes, device=codes.device)
    first = torch.full_like(every, num_codes).scatter_reduce_(0, group, every, "amin")[group]
    return None if torch.equal(first, every) else first


def product_error(device: torch.device) -> float:
    """Return the relative error of factors that the user's settings allow float32 products."""
    library = torch.backends.mkldnn if device.type == "cpu" else torch.backends.cuda
    setting = str(getattr(getattr(library, "matmul", None), "fp32_precision", "ieee"))
    return PRODUCT_ERROR.get(setting, 0.0)
