"""Statistics of an assignment: how many vectors each code has, and their sum."""

from __future__ import annotations

import torch
from torch import Tensor

from vqkit.search.exact import wide

FEW = 2048
"""Vectors of one code up to which float32 adds them up well."""
ELEMENTS = 2**17
"""Elements that are widened at a time: 1 MiB in float64."""


def code_counts_and_sums(vectors: Tensor, ids: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """Count and sum the vectors of every code in O(N D + K D), deterministically, without one-hot.

    Args:
        vectors: (N, D) or (G, N, D), any floating type; no gradient is recorded.
        ids: (N,) or (G, N), int64 in [0, num_codes).
        num_codes: K.

    Returns:
        counts (K,) or (G, K) and sums (K, D) or (G, K, D), both float32.

    Raises:
        ValueError: shapes differ, or ids of another type or out of range.
    """
    if vectors.dim() not in (2, 3) or ids.shape != vectors.shape[:-1]:
        raise ValueError(
            f"ids={tuple(ids.shape)}: need one per vector of vectors={tuple(vectors.shape)}; "
            "pass (N, D) and (N,), or (G, N, D) and (G, N)"
        )
    if ids.dtype != torch.int64:
        raise ValueError(f"ids.dtype={ids.dtype}: ids are int64; call .long() first")
    if num_codes < 1:
        raise ValueError(f"num_codes={num_codes}: must be at least 1")
    _require_in_range(ids, num_codes)
    vectors, dim = vectors.detach(), vectors.shape[-1]
    groups = ids.shape[:-1].numel()
    flat = ids.reshape(groups, ids.shape[-1])
    if groups > 1:
        flat = flat + torch.arange(groups, device=ids.device)[:, None] * num_codes
    flat = flat.flatten()
    counts = _counts(flat, groups * num_codes)
    sums = _sums(vectors.flatten(0, -2), flat, counts)
    shape = (*ids.shape[:-1], num_codes)
    return counts.view(shape).to(torch.float32), sums.view(*shape, dim)


def _require_in_range(ids: Tensor, num_codes: int) -> None:
    """Raise on a CPU; elsewhere the device itself stops, and nobody waits for it."""
    if not ids.numel():
        return
    if ids.device.type == "cpu":
        low, high = torch.aminmax(ids)
        if int(low) < 0 or int(high) >= num_codes:
            raise ValueError(f"ids: values outside [0, {num_codes}); use ids of this codebook")
        return
    within = ((ids >= 0) & (ids < num_codes)).all()
    torch._assert_async(within, f"ids: values outside [0, {num_codes})")


def _counts(flat: Tensor, size: int) -> Tensor:
    if flat.device.type == "cpu":
        return torch.bincount(flat, minlength=size)
    # `bincount` would wait for the device.
    return flat.new_zeros(size).index_add_(0, flat, torch.ones_like(flat))


def _sums(vectors: Tensor, flat: Tensor, counts: Tensor) -> Tensor:
    """Sum rows (N, D) by index (N,) that occur counts (K,) times -> (K, D) float32."""
    size, dim, device = len(counts), vectors.shape[1], vectors.device
    if device.type != "cpu":
        return _sums_in_any_order(vectors, flat, size)
    if vectors.dtype == torch.float32 and (size == 0 or int(counts.max()) <= FEW):
        return torch.zeros(size, dim, dtype=torch.float32).index_add_(0, flat, vectors)
    sums = torch.zeros(size, dim, dtype=torch.float64)
    step = max(1, ELEMENTS // max(dim, 1))
    for part, index in zip(vectors.split(step), flat.split(step), strict=True):
        sums.index_add_(0, index, part.to(torch.float64))
    return sums.to(torch.float32)


def _sums_in_any_order(vectors: Tensor, flat: Tensor, size: int) -> Tensor:
    """Sum on a device whose additions come in any order, to the same bits: see `search.sums`."""
    dtype = wide(vectors.device)
    if dtype != torch.float64:  # float32 has no room for a grid
        sums = torch.zeros(size, vectors.shape[1], dtype=dtype, device=vectors.device)
        return sums.index_put_((flat,), vectors.to(dtype), accumulate=True)
    exponent = torch.frexp(vectors.abs().amax().float()).exponent if vectors.numel() else 0
    # As in `sum_grid`, but computed on the device.
    bits = exponent + max(len(vectors), 1).bit_length() - 52
    one = torch.ones((), dtype=dtype, device=vectors.device)
    grid = torch.ldexp(one, torch.as_tensor(bits, device=vectors.device).clamp(-1022, 1000))
    whole = (vectors.to(dtype) / grid).round_()
    sums = whole.new_zeros(size, vectors.shape[1]).index_add_(0, flat, whole) * grid
    return sums.to(torch.float32)
