"""How a gradient passes the quantization: functions whose forward returns the codes themselves.

`z + (z_q - z).detach()` is off by 1e-4 at |z| = 1000; these are exact, so `lookup(ids)` equals
`z_q` bit for bit in training too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Estimator = Callable[[Tensor, Tensor], Tensor]
"""`estimator(z, z_q) -> Tensor`, equal to z_q in value."""


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, z_q: Tensor) -> Tensor:
        ctx.dtype = z.dtype
        return z_q.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].to(ctx.dtype), None


def straight_through(z: Tensor, z_q: Tensor) -> Tensor:
    """Copy the gradient at z_q onto z; the codes get none (arXiv:1711.00937, section 3.1)."""
    return _StraightThrough.apply(z, z_q)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, z_q: Tensor) -> Tensor:
        ctx.save_for_backward(z, z_q)
        return z_q.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        z, z_q = ctx.saved_tensors
        gradient = gradients[0].float()
        e, q = F.normalize(z.float(), dim=-1), F.normalize(z_q.float(), dim=-1)
        r = e + q
        length = r.norm(dim=-1, keepdim=True)
        r = r / length.clamp(min=1e-12)
        # R = I - 2 r rᵀ + 2 q eᵀ takes e to q; the gradient passes its transpose.
        turned = gradient - 2 * (gradient * r).sum(-1, keepdim=True) * r
        turned = turned + 2 * (gradient * q).sum(-1, keepdim=True) * e
        scale = z_q.float().norm(dim=-1, keepdim=True) / z.float().norm(dim=-1, keepdim=True)
        # R is undefined where q = -z, and the scale where z = 0: straight-through there.
        defined = (length > 1e-4) & torch.isfinite(scale)
        return torch.where(defined, scale * turned, gradient).to(z.dtype), None


def rotation(z: Tensor, z_q: Tensor) -> Tensor:
    """Rotate and scale z onto z_q with the transform held constant (arXiv:2410.06424, eq. 3-4)."""
    return _Rotation.apply(z, z_q)


def through_weights(z: Tensor, z_q: Tensor) -> Tensor:
    """Let the gradient flow through z_q itself: for assignments that weigh the codes."""
    return z_q


class _HardCodes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, table: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(table, ids)
        return F.embedding(ids, table)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        table, ids = ctx.saved_tensors
        gradient = gradients[0]
        return gradient @ table.T, torch.zeros_like(table).index_add_(0, ids, gradient), None


def hard_codes(weights: Tensor, table: Tensor, ids: Tensor) -> Tensor:
    """Codes of ids whose gradient treats them as `weights @ table` with one-hot values.

    The straight-through Gumbel-softmax (arXiv:1611.01144, section 2.2): weights (N, K), table
    (K, D), ids (N,) -> (N, D).
    """
    return _HardCodes.apply(weights, table, ids)
