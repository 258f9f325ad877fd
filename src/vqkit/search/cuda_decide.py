"""Triton kernels that decide among the candidates of the screen, exactly, in float64.

A single candidate is the winner. Several are compared by one chain of operations over the original
values, which depends on the vector and the code only: the closest wins, and the lowest id among
equals. So an id does not depend on tiles, lanes, splits, or on which of the kernels decided.
"""
# Kernels are compiled, not typed.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import triton
import triton.language as tl

from vqkit.search.cuda_screen import slack


@triton.jit
def _closeness(z, z_step, z_mask, c, c_step, c_mask, dim, L2: tl.constexpr, COSINE: tl.constexpr):
    """Score pairs of z (R, 1) and c (1, C) as `exact.closeness` defines it -> (R, C) float64."""
    total = tl.zeros((z_mask & c_mask).shape, tl.float64)
    z_square = tl.zeros(z_mask.shape, tl.float64)
    c_square = tl.zeros(c_mask.shape, tl.float64)
    for i in range(dim):
        d = tl.cast(i, tl.int64)
        a = tl.load(z + d * z_step, mask=z_mask, other=0.0).to(tl.float64)
        b = tl.load(c + d * c_step, mask=c_mask, other=0.0).to(tl.float64)
        if L2:
            away = a - b
            total = tl.fma(-away, away, total)
        else:
            total = tl.fma(tl.broadcast_to(a, total.shape), tl.broadcast_to(b, total.shape), total)
        if COSINE:
            z_square = tl.fma(a, a, z_square)
            c_square = tl.fma(b, b, c_square)
    if COSINE:
        norms = tl.sqrt(z_square) * tl.sqrt(c_square)
        total = total / tl.where(norms > 0, norms, 1.0)
    return total


@triton.jit
def _screened(point, table, bias, weight, k, W: tl.constexpr, CHUNK: tl.constexpr):
    """Screen codes k (C,) again for one row -> scores (C,), with the same bound of the error."""
    score = tl.zeros(k.shape, tl.float32)
    for column in range(0, W, CHUNK):
        d = column + tl.arange(0, CHUNK)
        a = tl.load(point + d).to(tl.float32)
        b = tl.load(table + k.to(tl.int64)[:, None] * W + d[None, :]).to(tl.float32)
        score += tl.sum(a[None, :] * b, 1)
    return tl.fma(tl.load(bias + k), weight, score)


@triton.jit
def _closest(
    best, best_id, z, z_step, z_mask, c, c_step, hit, k, dim, L2: tl.constexpr, COSINE: tl.constexpr
):
    """Compare the best of rows (R,) so far with the codes k (C,) that `hit` (R, C) names."""
    c_mask = (tl.max(hit.to(tl.int32), 0) > 0)[None, :]
    close = _closeness(z, z_step, z_mask, c, c_step, c_mask, dim, L2, COSINE)
    close = tl.where(hit, close, -float("inf"))
    most = tl.max(close, 1)
    lowest = tl.min(tl.where(hit & (close == most[:, None]), k[None, :], 2147483647), 1)
    better = (most > best) | ((most == best) & (lowest < best_id))
    return tl.where(better, most, best), tl.where(better, lowest, best_id)


@triton.jit
def _take_first(todo, number, tile_of):
    """Take the first group that is left to do -> (its number, its tile, what is left)."""
    at = tl.min(tl.min(tl.where(todo, number, 2147483647), 1), 0)
    tile = tl.sum(tl.sum(tl.where(number == at, tile_of, 0), 1), 0)
    return at, tile, todo & (number != at)


@triton.jit
def _choose(
    kept, kept_tiles, there, number, floor, z, zd_step, source, k_step, cd_step,
    point, size, table, bias, reach, dim, gamma,
    L2: tl.constexpr, COSINE: tl.constexpr, W: tl.constexpr, CHUNK: tl.constexpr,
    TILE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Find the winner of one row (1,) among the groups that reach its floor."""
    length, off, weight = tl.load(size), tl.load(size + 1), tl.load(size + 2)
    members = tl.arange(0, TILE // LANES) * LANES
    one = tl.full((1, 1), 1, tl.int1)
    survivors = 0
    best = tl.full((1,), -float("inf"), tl.float64)
    best_id = tl.zeros((1,), tl.int32)
    # First only count what survives; a second round, mostly not needed, compares.
    for compare in range(2):
        if (compare == 0) | (survivors > 1):
            for slot in range(3):
                upper = tl.load(kept + slot * LANES, mask=there, other=-float("inf"))
                tile_of = tl.load(kept_tiles + slot * LANES, mask=there, other=0)
                todo = there & (upper >= floor)
                left = tl.sum(tl.sum(todo.to(tl.int32), 1), 0)
                for _ in range(left):
                    at, tile, todo = _take_first(todo, number, tile_of)
                    k = tile * TILE + members + at % LANES
                    score = _screened(point, table, bias, weight, k, W, CHUNK)
                    hit = score + slack(length, off, weight, reach + tile * 2, gamma) >= floor
                    if compare == 0:
                        survivors += tl.sum(hit.to(tl.int32), 0)
                        best_id = tl.maximum(best_id, tl.max(tl.where(hit, k, 0), 0))
                    elif tl.max(hit.to(tl.int32), 0) > 0:
                        c = source + k.to(tl.int64)[None, :] * k_step
                        best, best_id = _closest(
                            best, best_id, z, zd_step, one, c, cd_step, hit[None, :], k, dim,
                            L2, COSINE,
                        )  # fmt: skip
    return best_id


@triton.jit
def decide(
    vectors, zg_step, n_step, zd_step, codes, cg_step, k_step, cd_step,
    points, sizes, table, bias, reach, floats, tiles_of, floors, listed, count, ids, ids_step,
    num_rows, num_codes, dim, tiles, splits, gamma,
    L2: tl.constexpr, COSINE: tl.constexpr, W: tl.constexpr, CHUNK: tl.constexpr,
    TILE: tl.constexpr, LANES: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Decide one row, or put it on the list (G, N) of those to be searched exhaustively."""
    n = tl.program_id(0) % num_rows
    group = (tl.program_id(0) // num_rows).to(tl.int64)
    row = group * num_rows + n
    split = tl.arange(0, SPLITS)[:, None]
    lane = tl.arange(0, LANES)[None, :]
    there = (split < splits) & (lane < LANES)
    here = (row * splits + split) * LANES
    kept = floats + here * 5 + lane
    floor = tl.max(tl.max(tl.load(kept + 4 * LANES, mask=there, other=-float("inf")), 1), 0)
    dropped = tl.max(tl.max(tl.load(kept + 3 * LANES, mask=there, other=-float("inf")), 1), 0)
    usable = floor > -float("inf")
    tl.store(floors + row, floor)
    best_id = tl.zeros((1,), tl.int32)
    if usable & (dropped >= floor):
        place = tl.atomic_add(count + group, 1)
        tl.store(listed + group * num_rows + place, n)
    elif usable:
        z = vectors + group * zg_step + n.to(tl.int64) * n_step + tl.zeros((1, 1), tl.int64)
        best_id = _choose(
            kept, tiles_of + here * 3 + lane, there, split * LANES + lane, floor,
            z, zd_step, codes + group * cg_step, k_step, cd_step,
            points + row * W, sizes + row * 3, table + group * tiles * TILE * W,
            bias + group * tiles * TILE, reach + group * tiles * 2, dim, gamma,
            L2, COSINE, W, CHUNK, TILE, LANES,
        )  # fmt: skip
    out = ids + group * ids_step + n + tl.arange(0, 1)
    tl.store(out, tl.minimum(best_id, num_codes - 1).to(tl.int64))


@triton.jit
def _splits(blocks, programs, tiles):
    """Share the tiles of the codes among programs that have no rows of their own."""
    return tl.maximum(tl.minimum(programs // tl.maximum(blocks, 1), tiles), 1)


@triton.jit
def exhaust(
    vectors, zg_step, n_step, zd_step, codes, cg_step, k_step, cd_step,
    points, sizes, table, bias, reach, floors, listed, count, scores, found,
    num_rows, dim, tiles, programs, capacity, gamma,
    L2: tl.constexpr, COSINE: tl.constexpr, W: tl.constexpr, CHUNK: tl.constexpr,
    TILE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compare every listed row with all codes that the screen cannot exclude -> (G, capacity).

    Without listed rows the programs leave at once.
    """
    group = (tl.program_id(0) // programs).to(tl.int64)
    total = tl.load(count + group)
    blocks = tl.cdiv(total, ROWS)
    splits = _splits(blocks, programs, tiles)
    per_split = tl.cdiv(tiles, splits)
    source = codes + group * cg_step
    for item in range(tl.program_id(0) % programs, blocks * splits, programs):
        place = (item // splits) * ROWS + tl.arange(0, ROWS)
        split = item % splits
        there = place < total
        n = tl.load(listed + group * num_rows + place, mask=there, other=0)
        row = group * num_rows + n
        length, off = tl.load(sizes + row * 3), tl.load(sizes + row * 3 + 1)
        weight = tl.load(sizes + row * 3 + 2)
        floor = tl.load(floors + row, mask=there, other=float("inf"))
        z = (vectors + group * zg_step + n.to(tl.int64) * n_step)[:, None]
        best = tl.full((ROWS,), -float("inf"), tl.float64)
        best_id = tl.full((ROWS,), 2147483647, tl.int32)
        last = tl.minimum((split + 1) * per_split, tiles) * TILE
        for start in range(split * per_split * TILE, last, BLOCK):
            k = start + tl.arange(0, BLOCK)
            at = (group * tiles * TILE + k)[:, None] * W
            product = tl.zeros((ROWS, BLOCK), tl.float32)
            for column in range(0, W, CHUNK):
                d = (column + tl.arange(0, CHUNK))[None, :]
                a = tl.load(points + row[:, None] * W + d)
                product = tl.dot(a, tl.trans(tl.load(table + at + d)), product)
            own = tl.load(bias + group * tiles * TILE + k)[None, :]
            tile = group * tiles + start // TILE
            error = slack(length, off, weight, reach + tile * 2, gamma)
            hit = tl.fma(own, weight[:, None], product) + error[:, None] >= floor[:, None]
            if tl.max(tl.max(hit.to(tl.int32), 1), 0) > 0:
                c = source + k.to(tl.int64)[None, :] * k_step
                best, best_id = _closest(
                    best, best_id, z, zd_step, there[:, None], c, cd_step, hit, k, dim, L2, COSINE
                )
        at = group * capacity + place * splits + split
        tl.store(scores + at, best, mask=there)
        tl.store(found + at, best_id, mask=there)


@triton.jit
def settle(
    scores, found, listed, count, ids, ids_step,
    num_rows, num_codes, tiles, programs, capacity, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Merge what the splits found for the listed rows."""
    blocks = tl.cdiv(num_rows, BLOCK)
    group = (tl.program_id(0) // blocks).to(tl.int64)
    total = tl.load(count + group)
    splits = _splits(tl.cdiv(total, ROWS), programs, tiles)
    place = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    there = place < total
    n = tl.load(listed + group * num_rows + place, mask=there, other=0)
    best = tl.full((BLOCK,), -float("inf"), tl.float64)
    best_id = tl.full((BLOCK,), 2147483647, tl.int32)
    if tl.max(there.to(tl.int32), 0) > 0:
        for split in range(splits):
            at = group * capacity + place * splits + split
            score = tl.load(scores + at, mask=there, other=-float("inf"))
            code = tl.load(found + at, mask=there, other=2147483647)
            better = (score > best) | ((score == best) & (code < best_id))
            best, best_id = tl.where(better, score, best), tl.where(better, code, best_id)
    chosen = tl.where(best_id < num_codes, best_id, 0).to(tl.int64)
    tl.store(ids + group * ids_step + n, chosen, mask=there)
