"""Nearest codes on an NVIDIA GPU: fused Triton kernels, no host synchronisation."""

from __future__ import annotations

from torch import Tensor

from vqkit.search.inputs import Metric


def installed() -> bool:
    """Tell whether Triton is there and can run (on a GPU, or in its interpreter)."""
    raise NotImplementedError


def fits(codes: Tensor, metric: Metric) -> bool:
    """Tell whether the kernels can search codes (..., D)."""
    raise NotImplementedError


def nearest(vectors: Tensor, codes: Tensor, metric: Metric) -> Tensor:
    """Find ids (G, N) of the nearest of codes (G, K, D) for vectors (G, N, D)."""
    raise NotImplementedError
