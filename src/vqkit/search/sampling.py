"""Draw one vector per code by its similarity: the *probrandom* anchors of CVQ (arXiv:2307.15139).

A draw inverts cumulative weights, so it is a function of (vectors, codes, uniform): not of blocks,
micro-batches or processes. With the vectors spread over processes, each calls
`softmax_row_log_weights`, all pick the owner with `choose_by_weight` from the gathered weights, and
the owner draws with the remainder of the uniform (all codes in the call, others' draws ignored, so
that arithmetic is the same everywhere). Blocks inside a process are treated the same way.

Legend: G groups, N vectors, K codes, D dim.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vqkit.search.exact import wide
from vqkit.search.inputs import Metric, checked
from vqkit.search.tables import Frame, unit_length

ROWS = 2048
"""Vectors of a block."""
CODES = 512
"""Codes of a block: 8 MiB of float64 scores."""


def choose_by_weight(log_weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Choose an index with probability softmax(log_weights) by inverting the cumulative weights.

    Args:
        log_weights: (..., P); -inf is never chosen unless all are.
        uniforms: (...) in [0, 1).

    Returns:
        (indices, remainders): (...) int64, and (...) uniform in [0, 1) again, independent of the
        index: it serves for the next draw, inside what was chosen.
    """
    dtype = wide(log_weights.device)
    log_weights = log_weights.to(dtype)
    top = log_weights.amax(-1, keepdim=True)
    weights = (log_weights - top.where(top.isfinite(), 0.0)).exp_()
    cumulative = weights.cumsum(-1)
    total = cumulative[..., -1:]
    target = uniforms[..., None].to(dtype) * total
    passed = (cumulative <= target).sum(-1)
    last = (cumulative < total).sum(-1)  # the last one with weight, should target round up to total
    indices = torch.minimum(passed, last)
    weight = weights.gather(-1, indices[..., None])
    before = cumulative.gather(-1, indices[..., None]) - weight
    remainders = ((target - before) / weight)[..., 0].nan_to_num(nan=0.0)
    return indices, remainders.clamp(0.0, 1.0 - torch.finfo(dtype).eps)


def softmax_row_log_weights(vectors: Tensor, codes: Tensor, metric: Metric = "l2") -> Tensor:
    """Sum up how much weight these vectors have for every code.

    Args:
        vectors: (N, D) or (G, N, D); those that are not finite weigh nothing.
        codes: (K, D) or (G, K, D).
        metric: the score is minus the squared distance (`l2`), the cosine or the dot product.

    Returns:
        log of the sum over vectors of exp(score): (K,) or (G, K), float64; -inf without vectors.

    Raises:
        ValueError: shapes, types, devices or metric do not fit.
    """
    inputs = checked(vectors, codes, metric)
    result = torch.empty(
        inputs.codes.shape[:2], dtype=wide(inputs.codes.device), device=inputs.codes.device
    )
    for group, (z, c) in enumerate(zip(inputs.vectors, inputs.codes, strict=True)):
        scorer = _Scorer(z, c, metric)
        for start, part in scorer.code_blocks():
            result[group, start : start + CODES] = scorer.block_log_weights(part).logsumexp(-1)
    return inputs.ungroup(result)


def sample_softmax_rows(
    vectors: Tensor, codes: Tensor, uniforms: Tensor, metric: Metric = "l2"
) -> Tensor:
    """Draw for every code one vector, with probability softmax over the vectors of the score.

    One pass over blocks sums up weights, a second enters only the block that each code drew.

    Args:
        vectors: (N, D) or (G, N, D), N >= 1; those that are not finite are never drawn.
        codes: (K, D) or (G, K, D).
        uniforms: (K,) or (G, K) in [0, 1), one per code.
        metric: as in `softmax_row_log_weights`.

    Returns:
        rows (K,) or (G, K), int64 in [0, N).

    Raises:
        ValueError: no vectors, uniforms of another shape or range, or as `softmax_row_log_weights`.
    """
    inputs = checked(vectors, codes, metric)
    if inputs.vectors.shape[1] == 0:
        raise ValueError("vectors: there is none to draw; give at least one vector")
    if uniforms.shape != codes.shape[:-1]:
        raise ValueError(
            f"uniforms={tuple(uniforms.shape)}: need one per code; pass {tuple(codes.shape[:-1])}"
        )
    if not bool(((uniforms >= 0) & (uniforms < 1)).all()):
        raise ValueError("uniforms: values outside [0, 1); draw them with torch.rand")
    drawn = torch.empty(inputs.codes.shape[:2], dtype=torch.int64, device=codes.device)
    all_uniforms = uniforms.detach().reshape(drawn.shape)
    for group, (z, c) in enumerate(zip(inputs.vectors, inputs.codes, strict=True)):
        scorer = _Scorer(z, c, metric)
        for start, part in scorer.code_blocks():
            uniform = all_uniforms[group, start : start + CODES]
            drawn[group, start : start + CODES] = scorer.draw(part, uniform)
    return inputs.ungroup(drawn)


class _Scorer:
    """Scores (codes, vectors) of one group by blocks, in float64 so that blocks do not matter."""

    def __init__(self, vectors: Tensor, codes: Tensor, metric: Metric) -> None:
        self.vectors = vectors
        self.metric = metric
        self.frame = Frame.of(codes, metric)
        self.table = self.frame.table(codes)

    def code_blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Yield blocks of prepared codes (k, D) with the number of their first code."""
        for start in range(0, len(self.table), CODES):
            yield start, self.table[start : start + CODES].to(self.frame.centre.dtype)

    def scores(self, codes: Tensor, block: int) -> Tensor:
        """Score prepared codes (k, D) against a block of vectors -> (k, n), -inf if not finite."""
        vectors = self.vectors[block * ROWS : (block + 1) * ROWS]
        points = self.frame.points(vectors).to(codes.dtype)
        finite = points.isfinite().all(-1)
        points = points.where(finite[:, None], 0.0)
        points = unit_length(points) if self.metric == "cosine" else points
        bias = torch.where(finite, 0.0, -torch.inf).to(codes.dtype)
        if self.metric != "l2":
            return torch.addmm(bias, codes, points.T)
        bias -= points.square().sum(-1)
        return torch.addmm(bias, codes, points.T, alpha=2).sub_(codes.square().sum(-1)[:, None])

    def block_log_weights(self, codes: Tensor) -> Tensor:
        """Sum up every block of vectors for prepared codes (k, D) -> (k, blocks)."""
        num_blocks = -(-len(self.vectors) // ROWS)
        result = codes.new_empty(len(codes), num_blocks)
        for block in range(num_blocks):
            result[:, block] = self.scores(codes, block).logsumexp(-1)
        return result

    def draw(self, codes: Tensor, uniforms: Tensor) -> Tensor:
        """Draw a vector for each of the prepared codes (k, D): first its block, then inside it."""
        block_ids, remainders = choose_by_weight(self.block_log_weights(codes), uniforms)
        rows = torch.empty_like(block_ids)
        for block in block_ids.unique().tolist():
            mine = (block_ids == block).nonzero()[:, 0]
            inside, _ = choose_by_weight(self.scores(codes[mine], block), remainders[mine])
            rows[mine] = block * ROWS + inside
        return rows
