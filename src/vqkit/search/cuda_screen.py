"""Triton kernels for many dimensions: a float16 tensor-core product screens all codes.

Every score comes with a rigorous bound of its error, so that each row gets a lower bound of its
best score (`low`) and each group of codes an upper bound of its members' scores. A winner is in a
group whose upper bound reaches the row's final `low`. Kept per row and lane are the 3 groups of the
highest upper bounds, and the highest upper bound of those dropped: if that reaches `low`, the row
must be searched exhaustively (`cuda_decide`). All this stays in registers until the end.

A tile is TILE successive codes; the group of lane l is {l, l + LANES, l + 2 LANES, ...} in it.
Bound of |score - exact| for a row and a tile: off L + (length) R + gamma (length L + f L^2), with
`off` and `R` the lengths of what float16 rounded away from the row and from the tile's codes, `L`
the longest code, `f` the weight of the bias, and gamma the accumulation in float32.
"""
# Kernels are compiled, not typed.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import triton
import triton.language as tl

FLOATS = 5
"""Numbers kept per row, split and lane: three upper bounds, the highest dropped, `low`."""
TILES = 3
"""And the tiles of the three."""


@triton.jit
def slack(length, off, weight, reach, gamma):
    """Bound the error of the scores of rows with the codes of one tile."""
    longest = tl.load(reach)
    square = weight * longest * longest
    return off * longest + length * tl.load(reach + 1) + gamma * (length * longest + square) + 1e-37


@triton.jit
def _keep(kept, scores, error, tile, ROWS: tl.constexpr, TILE: tl.constexpr, LANES: tl.constexpr):
    """Enter the groups of one tile of scores (ROWS, TILE) into what is kept (ROWS, LANES)."""
    u1, u2, u3, dropped, low, t1, t2, t3 = kept
    most = tl.max(tl.reshape(scores, (ROWS, TILE // LANES, LANES)), 1)
    low = tl.maximum(low, most - error[:, None])
    upper = most + error[:, None]
    first, second, third = upper > u1, upper > u2, upper > u3
    dropped = tl.maximum(dropped, tl.minimum(upper, u3))
    t3 = tl.where(second, t2, tl.where(third, tile, t3))
    t2 = tl.where(first, t1, tl.where(second, tile, t2))
    t1 = tl.where(first, tile, t1)
    u3 = tl.maximum(u3, tl.minimum(upper, u2))
    u2 = tl.maximum(u2, tl.minimum(upper, u1))
    u1 = tl.maximum(u1, upper)
    return u1, u2, u3, dropped, low, t1, t2, t3


@triton.jit
def _nothing(ROWS: tl.constexpr, LANES: tl.constexpr):
    least = tl.full((ROWS, LANES), -float("inf"), tl.float32)
    none = tl.zeros((ROWS, LANES), tl.int32)
    return least, least, least, least, least, none, none, none


@triton.jit
def _write(kept, floats, tiles_of, at, there, LANES: tl.constexpr):
    """Write what is kept to (G, N, splits, FLOATS or TILES, LANES)."""
    u1, u2, u3, dropped, low, t1, t2, t3 = kept
    lanes = tl.arange(0, LANES)[None, :]
    out = floats + at[:, None] * (5 * LANES) + lanes
    tl.store(out, u1, mask=there)
    tl.store(out + LANES, u2, mask=there)
    tl.store(out + 2 * LANES, u3, mask=there)
    tl.store(out + 3 * LANES, dropped, mask=there)
    tl.store(out + 4 * LANES, low, mask=there)
    out = tiles_of + at[:, None] * (3 * LANES) + lanes
    tl.store(out, t1, mask=there)
    tl.store(out + LANES, t2, mask=there)
    tl.store(out + 2 * LANES, t3, mask=there)


@triton.jit
def screen(
    points, sizes, table, bias, reach, floats, tiles_of,
    num_rows, tiles, per_split, splits, gamma,
    W: tl.constexpr, CHUNK: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Screen the tiles of one split for a block of rows; see the head of the file.

    With CHUNK = W the rows stay in fast memory, otherwise both factors are read chunk by chunk.
    """
    blocks = tl.cdiv(num_rows, ROWS)
    split = (tl.program_id(0) // blocks) % splits
    group = (tl.program_id(0) // (blocks * splits)).to(tl.int64)
    n = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    there = n < num_rows
    row = group * num_rows + tl.minimum(n, num_rows - 1)
    length, off = tl.load(sizes + row * 3), tl.load(sizes + row * 3 + 1)
    weight = tl.load(sizes + row * 3 + 2)
    column = tl.arange(0, CHUNK)
    left = points + row[:, None] * W + column[None, :]
    k = tl.arange(0, TILE)
    right = table + group * tiles * TILE * W + k[:, None] * W + column[None, :]
    biases = bias + group * tiles * TILE + k
    reaches = reach + group * tiles * 2
    first = split * per_split
    last = tl.minimum(first + per_split, tiles)
    kept = _nothing(ROWS, LANES)
    if CHUNK == W:
        rows = tl.load(left)
        for tile in range(first, last):
            codes = tl.load(right + tl.cast(tile, tl.int64) * (TILE * W))
            product = tl.dot(rows, tl.trans(codes))
            product = tl.fma(tl.load(biases + tile * TILE)[None, :], weight[:, None], product)
            error = slack(length, off, weight, reaches + tile * 2, gamma)
            kept = _keep(kept, product, error, tile, ROWS, TILE, LANES)
    else:
        chunks: tl.constexpr = W // CHUNK
        tile = first
        part = 0
        product = tl.zeros((ROWS, TILE), tl.float32)
        for _ in range(0, (last - first) * chunks):
            rows = tl.load(left + part * CHUNK)
            codes = tl.load(right + tl.cast(tile, tl.int64) * (TILE * W) + part * CHUNK)
            product = tl.dot(rows, tl.trans(codes), product)
            part += 1
            if part == chunks:
                product = tl.fma(tl.load(biases + tile * TILE)[None, :], weight[:, None], product)
                error = slack(length, off, weight, reaches + tile * 2, gamma)
                kept = _keep(kept, product, error, tile, ROWS, TILE, LANES)
                product = tl.zeros((ROWS, TILE), tl.float32)
                part = 0
                tile += 1
    _write(kept, floats, tiles_of, row * splits + split, there[:, None], LANES)
