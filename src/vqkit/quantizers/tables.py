"""Tables of codes: rows taken from them, and rows made one by one.

Tables that are made row by row have a backward pass that visits only the codes that were used: a
training step on N vectors uses at most N of K codes; the gradient of all others is zero. On a CPU
it is cheaper to look for the rows with a gradient than to compute with zeros. Elsewhere looking
would wait for the device, and the backward pass is the ordinary one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

EPS = 1e-12
"""Shortest length that rows are divided by, as in `torch.nn.functional.normalize`."""


def take_codes(table: Tensor, ids: Tensor) -> Tensor:
    """Gather rows: table (G, K, D), ids (G, ...) -> (G, ..., D); the gradient is dense."""
    groups, num_codes, dim = table.shape
    if groups > 1:
        first = torch.arange(groups, device=ids.device) * num_codes
        ids = ids + first.view(-1, *[1] * (ids.ndim - 1))
    return take_rows(table.reshape(groups * num_codes, dim), ids)


def take_rows(rows: Tensor, ids: Tensor) -> Tensor:
    """Gather rows (K, D) by ids (...) -> (..., D); the gradient is the same in every run."""
    if ids.device.type != "cpu":  # index_select's gradient adds in any order there
        return F.embedding(ids, rows)
    # On a CPU its gradient takes a tenth of embedding's time where vectors outnumber codes.
    return rows.index_select(0, ids.flatten()).view(*ids.shape, rows.shape[1])


class RowLinear(nn.Linear):
    """`nn.Linear` for tables (..., K, F) -> (..., K, D): frozen features or codes in, codes out."""

    def forward(self, rows: Tensor) -> Tensor:
        """Return the projected rows."""
        if rows.device.type != "cpu":
            return super().forward(rows)
        flat = rows.reshape(-1, self.in_features)
        codes: Tensor = _Linear.apply(flat, self.weight, self.bias)
        return codes.view(*rows.shape[:-1], self.out_features)


def unit_rows(rows: Tensor) -> Tensor:
    """Scale rows (..., K, D) of a table to length one; zero rows stay zero."""
    if rows.device.type != "cpu":
        return F.normalize(rows, dim=-1)
    flat = rows.reshape(-1, rows.shape[-1])
    units: Tensor = _Unit.apply(flat)
    return units.view(rows.shape)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return F.linear(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        used = _used(gradient)
        part = gradient if used is None else gradient[used]
        seen = rows if used is None else rows[used]
        return (
            _spread(part @ weight, used, len(rows)) if ctx.needs_input_grad[0] else None,
            part.T @ seen if ctx.needs_input_grad[1] else None,
            part.sum(0) if ctx.needs_input_grad[2] else None,
        )


class _Unit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return F.normalize(rows, dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (rows,) = ctx.saved_tensors
        used = _used(gradient)
        part = gradient if used is None else gradient[used]
        seen = rows if used is None else rows[used]
        length = seen.norm(dim=-1, keepdim=True)
        units = seen / length.clamp(min=EPS)
        # Below EPS the divisor is constant, and the gradient is not turned.
        along = ((part * units).sum(-1, keepdim=True)).where(length > EPS, 0)
        return _spread((part - along * units) / length.clamp(min=EPS), used, len(rows))


def _used(gradient: Tensor) -> Tensor | None:
    """List the rows of `gradient` (K, D) that are not zero; None for most of them."""
    found = gradient.abs().sum(-1).nonzero()[:, 0]
    return found if 2 * len(found) < len(gradient) else None


def _spread(part: Tensor, used: Tensor | None, num_rows: int) -> Tensor:
    """Put rows (n, D) in their places among zeros: (num_rows, D)."""
    if used is None:
        return part
    return part.new_zeros(num_rows, part.shape[1]).index_copy_(0, used, part)
