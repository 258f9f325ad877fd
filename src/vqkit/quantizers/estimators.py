"""How a gradient passes the quantization: functions whose forward returns the codes themselves.

`z + (z_q - z).detach()` is off by 1e-4 at |z| = 1000; these are exact, so `lookup(ids)` equals
`z_q` bit for bit in training too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
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
        gradient, vector, code = gradients[0].float(), z.float(), z_q.float()
        length, new_length = _length(vector), _length(code)
        e, q = vector / length.clamp(min=1e-12), code / new_length.clamp(min=1e-12)
        r = e + q
        between = _length(r)
        # R = I - 2 r rᵀ + 2 q eᵀ, with r at length one, takes e to q; its transpose passes back.
        along_q = (gradient * q).sum(-1, keepdim=True)
        along_r = along_q + (gradient * e).sum(-1, keepdim=True)
        turned = gradient - (2 * along_r / between.square().clamp(min=1e-24)) * r
        turned += 2 * along_q * e
        scale = new_length / length
        # R is undefined where q = -z, and the scale where z = 0: straight-through there.
        defined = (between > 1e-4) & torch.isfinite(scale)
        return torch.where(defined, scale * turned, gradient).to(z.dtype), None


def _length(vectors: Tensor) -> Tensor:
    return vectors.norm(dim=-1, keepdim=True)


def rotation(z: Tensor, z_q: Tensor) -> Tensor:
    """Rotate and scale z onto z_q with the transform held constant (arXiv:2410.06424, eq. 3-4)."""
    return _Rotation.apply(z, z_q)


def through_weights(z: Tensor, z_q: Tensor) -> Tensor:
    """Let the gradient flow through z_q itself: for assignments that weigh the codes."""
    return z_q
