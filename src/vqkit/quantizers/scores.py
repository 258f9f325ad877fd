"""Codes drawn by scores of all codes (Gumbel-softmax), in blocks of vectors.

A training step keeps two tensors of vectors × codes for its backward pass, log p and the weights;
everything else of that size exists for one block at a time, forward and backward. Evaluation keeps
none.

Shape letters: N vectors, K codes, D length of a vector, C length of a code, n vectors of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

COPIES = 2
"""Tensors of vectors × codes that a training step keeps."""
BLOCK = 1 << 20
"""Scores of a block."""


class Logits(NamedTuple):
    """log p(code | z) up to a constant is z · weightᵀ + bias; all float32."""

    weight: Tensor
    """(K, D)."""
    bias: Tensor
    """(K,)."""


class Drawn(NamedTuple):
    """What was drawn for N vectors."""

    z_q: Tensor
    """(N, C): the code of the largest weight, or the mixture by the weights."""
    ids: Tensor
    """(N,) the code of the largest weight."""
    negative_entropy: Tensor
    """(N,): Σ_k p log p."""


def draw(
    z: Tensor,
    logits: Logits,
    table: Tensor,
    temperature: Tensor,
    noise: Callable[[slice], Tensor],
    *,
    mix: bool,
) -> Drawn:
    """Draw a code for every vector by the Gumbel-softmax of its logits (arXiv:1611.01144, eq. 2).

    Args:
        z: (N, D) float32.
        logits: of every code.
        table: (K, C) codes, float32.
        temperature: τ, a scalar.
        noise: gives the Gumbel noise (n, K) of a slice of the vectors, the same at every call.
        mix: whether z_q mixes the codes by their weights. If not, it is one code, whose gradient
            passes as if its weight were one and all others zero (straight-through, section 2.2).
    """
    sources = (z, logits.weight, logits.bias, table)
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in sources)
    z_q, ids, entropy = _Draw.apply(*sources, temperature, noise, mix, keep)
    return Drawn(z_q, ids, entropy)


def negative_entropy(z: Tensor, logits: Logits) -> Tensor:
    """Σ_k p log p of every vector (N, D) -> (N,), differentiable: blocks are made again for it."""
    parts = [
        checkpoint(_entropy, z[rows], *logits, use_reentrant=False)
        if torch.is_grad_enabled()
        else _entropy(z[rows], *logits)
        for rows in _blocks(len(z), len(logits.weight))
    ]
    return torch.cat(parts)


def _entropy(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    log_p = F.linear(z, weight, bias).log_softmax(-1)
    return (log_p.exp() * log_p).sum(-1)


def _blocks(num_vectors: int, num_codes: int) -> Iterator[slice]:
    step = max(1, BLOCK // num_codes)
    return (slice(start, start + step) for start in range(0, num_vectors, step))


class _Draw(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        weight: Tensor,
        bias: Tensor,
        table: Tensor,
        temperature: Tensor,
        noise: Callable[[slice], Tensor],
        mix: bool,
        keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        shape = (len(z), len(weight))
        kept = [z.new_empty(shape), z.new_empty(shape)] if keep else None
        z_q, ids = z.new_empty(len(z), table.shape[1]), z.new_empty(len(z), dtype=torch.int64)
        entropy = z.new_empty(len(z))
        for rows in _blocks(*shape):
            log_p = torch.addmm(bias, z[rows], weight.T, out=kept[0][rows] if kept else None)
            log_p.sub_(log_p.logsumexp(-1, keepdim=True))
            entropy[rows] = (log_p.exp() * log_p).sum(-1)
            weights = torch.add(log_p, noise(rows), out=kept[1][rows] if kept else None)
            weights.div_(temperature)
            weights.sub_(weights.amax(-1, keepdim=True)).exp_()
            weights.div_(weights.sum(-1, keepdim=True))
            ids[rows] = weights.argmax(-1)
            z_q[rows] = weights @ table if mix else table[ids[rows]]
        ctx.mix = mix
        if kept:
            ctx.save_for_backward(z, weight, table, temperature, ids, entropy, *kept)
        ctx.mark_non_differentiable(ids)
        return z_q, ids, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        z, weight, table, temperature, ids, entropy, all_log_p, all_weights = ctx.saved_tensors
        of_z_q, _, of_entropy = gradients
        of_z, of_weight = torch.empty_like(z), torch.zeros_like(weight)
        of_bias, of_table = weight.new_zeros(len(weight)), torch.zeros_like(table)
        # A loop may run backward under autocast, which would round what is float32.
        with torch.autocast(z.device.type, enabled=False):
            for rows in _blocks(*all_log_p.shape):
                log_p, weights = all_log_p[rows], all_weights[rows]
                slope = of_z_q[rows] @ table.T
                slope.sub_((slope * weights).sum(-1, keepdim=True)).mul_(weights).div_(temperature)
                share = log_p.exp().mul_(of_entropy[rows, None])
                slope.addcmul_(share, log_p - entropy[rows, None])
                of_z[rows] = slope @ weight
                of_weight.addmm_(slope.T, z[rows])
                of_bias += slope.sum(0)
                if ctx.mix:
                    of_table.addmm_(weights.T, of_z_q[rows])
        if not ctx.mix:
            of_table = _sum_by_code(of_table, ids, of_z_q)
        return of_z, of_weight, of_bias, of_table, None, None, None, None


def _sum_by_code(zeros: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
    if zeros.device.type == "cpu":
        return zeros.index_add_(0, ids, rows)
    return zeros.index_put_((ids,), rows, accumulate=True)  # sorts: the same order in every run
