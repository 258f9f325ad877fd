"""Triton kernel for few dimensions: all scores by ordinary float32 arithmetic, none in memory.

A pair's score is one chain of fused multiply-adds, `bias + z_0 c_0 + z_1 c_1 + ...`, whatever
block, lane or split it falls into; the largest score wins, and the lowest id among equals. A thread
keeps the best group of UNROLL successive codes of its lane, which costs 1 + 3 / UNROLL instructions
a pair beside the chain; which code of the winning group it was is found at the end, by the same
chain.
"""
# Kernels are compiled, not typed.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vqkit.search import cuda_frame
from vqkit.search.cuda_frame import ceil_div, frame_of, share, up_to_power
from vqkit.search.cuda_tables import power_of_two, shifted_vector, short_table

LANES, UNROLL = 32, 4
WAVES = 16
"""Programs a multiprocessor should get (four are resident), so that the last leave few idle."""


@triton.jit
def _value(rows, d_step, centre, scale, there, L2: tl.constexpr,
           d: tl.constexpr, DIM: tl.constexpr):  # fmt: skip
    """Load coordinate d of vectors; beyond DIM the result is never used."""
    if d < DIM:
        raw = tl.load(rows + d * d_step, mask=there, other=0.0)
        value = shifted_vector(raw, tl.load(centre + d), scale, L2, False)
    else:
        value = tl.zeros_like(scale)
    return value


@triton.jit
def _values(rows, d_step, centre, scale, there, L2: tl.constexpr,
            DIM: tl.constexpr):  # fmt: skip
    """Load vectors as a tuple of 16 columns."""
    return (
        _value(rows, d_step, centre, scale, there, L2, 0, DIM),
        _value(rows, d_step, centre, scale, there, L2, 1, DIM),
        _value(rows, d_step, centre, scale, there, L2, 2, DIM),
        _value(rows, d_step, centre, scale, there, L2, 3, DIM),
        _value(rows, d_step, centre, scale, there, L2, 4, DIM),
        _value(rows, d_step, centre, scale, there, L2, 5, DIM),
        _value(rows, d_step, centre, scale, there, L2, 6, DIM),
        _value(rows, d_step, centre, scale, there, L2, 7, DIM),
        _value(rows, d_step, centre, scale, there, L2, 8, DIM),
        _value(rows, d_step, centre, scale, there, L2, 9, DIM),
        _value(rows, d_step, centre, scale, there, L2, 10, DIM),
        _value(rows, d_step, centre, scale, there, L2, 11, DIM),
        _value(rows, d_step, centre, scale, there, L2, 12, DIM),
        _value(rows, d_step, centre, scale, there, L2, 13, DIM),
        _value(rows, d_step, centre, scale, there, L2, 14, DIM),
        _value(rows, d_step, centre, scale, there, L2, 15, DIM),
    )


@triton.jit
def _first_of(
    best, which, most, z, source, padded,
    DIM: tl.constexpr, LANES: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Find the lowest id (N,) that has the best score; ids rise with step, then lane, then j."""
    none: tl.constexpr = 2147483647
    lanes = tl.arange(0, LANES)
    reach = tl.where(best == most[:, None], which * LANES + lanes[None, :], none)
    winner = tl.min(reach, 1)
    winner = tl.where(winner == none, 0, winner)
    first = (winner // LANES) * (LANES * UNROLL) + winner % LANES
    chosen = tl.zeros_like(winner)
    for i in tl.static_range(UNROLL):
        code = source + first + (UNROLL - 1 - i) * LANES
        score = tl.load(code + DIM * padded)
        for d in tl.static_range(DIM):
            score = tl.fma(z[d], tl.load(code + d * padded), score)
        chosen = tl.where(score == most, UNROLL - 1 - i, chosen)
    return winner * UNROLL + chosen


@triton.jit
def few(
    vectors, g_step, n_step, d_step, centre, spreads, table, scores, found, ids, ids_step,
    num_rows, num_codes, padded, per_split, splits,
    L2: tl.constexpr, DIM: tl.constexpr, ONE: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Find the best code of each vector among those of one split -> (G, N, splits), or the ids."""
    blocks = tl.cdiv(num_rows, ROWS)
    split = (tl.program_id(0) // blocks) % splits
    group = (tl.program_id(0) // (blocks * splits)).to(tl.int64)
    n = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    there = n < num_rows
    lanes = tl.arange(0, LANES)
    rows = vectors + group * g_step + n.to(tl.int64) * n_step
    middle = centre + group * DIM
    by = tl.zeros((ROWS,), tl.float32) + power_of_two(tl.load(spreads + group))
    if not L2:
        largest = tl.zeros((ROWS,), tl.float32)
        for d in tl.static_range(DIM):
            raw = tl.load(rows + d * d_step, mask=there, other=0.0)
            largest = tl.maximum(largest, tl.abs(raw.to(tl.float32)))
        by = power_of_two(largest)
    z = _values(rows, d_step, middle, by, there, L2, DIM)
    source = table + group * (DIM + 1) * padded
    best = tl.full((ROWS, LANES), -float("inf"), tl.float32)
    which = tl.zeros((ROWS, LANES), tl.int32)
    last = tl.minimum((split + 1) * per_split, padded // (LANES * UNROLL))
    for step in range(split * per_split, last):
        top = best
        for j in tl.static_range(UNROLL):
            code = source + (step * UNROLL + j) * LANES + lanes
            score = tl.zeros((ROWS, LANES), tl.float32)
            score += tl.load(code + DIM * padded)[None, :]
            for d in tl.static_range(DIM):
                score = tl.fma(z[d][:, None], tl.load(code + d * padded)[None, :], score)
            top = tl.maximum(top, score)
        which = tl.where(top > best, step, which)
        best = top
    most = tl.max(best, 1)
    chosen = _first_of(best, which, most, z, source, padded, DIM, LANES, UNROLL)
    chosen = tl.minimum(chosen, num_codes - 1)
    if ONE:
        tl.store(ids + group * ids_step + n, chosen.to(tl.int64), mask=there)
    else:
        at = (group * num_rows + n) * splits + split
        tl.store(scores + at, most, mask=there)
        tl.store(found + at, chosen, mask=there)


@triton.jit
def merge(
    scores, found, ids, ids_step, num_rows, splits, SPLITS: tl.constexpr, BLOCK: tl.constexpr
):
    """Choose among the splits, by score, then by the lowest id -> ids (G, N)."""
    blocks = tl.cdiv(num_rows, BLOCK)
    group = (tl.program_id(0) // blocks).to(tl.int64)
    n = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    split = tl.arange(0, SPLITS)
    there = (n < num_rows)[:, None] & (split < splits)[None, :]
    at = (group * num_rows + n)[:, None] * splits + split[None, :]
    score = tl.load(scores + at, mask=there, other=-float("inf"))
    most = tl.max(score, 1)
    none: tl.constexpr = 2147483647
    code = tl.where(there & (score == most[:, None]), tl.load(found + at, mask=there), none)
    chosen = tl.min(code, 1)
    chosen = tl.where(chosen == none, 0, chosen)
    tl.store(ids + group * ids_step + n, chosen.to(tl.int64), mask=n < num_rows)


def search(vectors: Tensor, codes: Tensor, metric: str, ids: Tensor) -> None:
    """Search codes (G, K, D) for vectors (G, N, D) into ids (G, N)."""
    groups, num_vectors, dim = vectors.shape
    num_codes = codes.shape[1]
    l2, cosine = metric == "l2", metric == "cosine"
    frame = frame_of(codes, metric, wide=False, copies=False)
    block = LANES * UNROLL
    padded = ceil_div(num_codes, block) * block
    table = torch.empty(groups, dim + 1, padded, dtype=torch.float32, device=codes.device)
    short_table[(groups * (padded // block),)](
        codes, *codes.stride(), frame.inverse, frame.centre, frame.spreads, table,
        num_codes, padded,
        COSINE=cosine, L2=l2, DIM=dim, LANES=LANES, UNROLL=UNROLL,
    )  # fmt: skip
    # Values of so many vectors stay in registers.
    rows = 64 if dim <= 4 else 32
    blocks = groups * ceil_div(num_vectors, rows)
    programs = WAVES * cuda_frame.limits(vectors.device).processors
    per_split, splits = share(blocks, padded // block, programs)
    one = splits == 1
    shape = (1, 1, 1) if one else (groups, num_vectors, splits)
    scores = torch.empty(shape, dtype=torch.float32, device=codes.device)
    found = torch.empty(shape, dtype=torch.int32, device=codes.device)
    few[(blocks * splits,)](
        vectors, *vectors.stride(), frame.centre, frame.spreads, table, scores, found,
        ids, ids.stride(0), num_vectors, num_codes, padded, per_split, splits,
        L2=l2, DIM=dim, ONE=one, ROWS=rows, LANES=LANES, UNROLL=UNROLL, num_warps=4,
    )  # fmt: skip
    if not one:
        merge[(groups * ceil_div(num_vectors, 32),)](
            scores,
            found,
            ids,
            ids.stride(0),
            num_vectors,
            splits,
            SPLITS=up_to_power(splits),
            BLOCK=32,
        )
