"""Triton kernels that bring codes and vectors into the frame in which 16 or 32 bits compare them.

The frame is that of `tables.Frame`: the mean code is subtracted (for `cosine` and `dot` from the
codes alone, which changes all scores of a vector by the same number), and a power of two scales
values to the order of one.

Legend: G groups, K codes, D dim, T tiles of codes, W columns of a table (D rounded up).
"""
# Kernels are compiled, not typed.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# ruff: noqa: ANN001, ANN201

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def power_of_two(largest):
    """Return 1 / the power of two below `largest` (float32), both kept normal numbers."""
    bits = largest.to(tl.int32, bitcast=True) & 0x7F800000
    bits = tl.minimum(tl.maximum(bits, 0x00800000), 0x7E000000)
    return (0x7F000000 - bits).to(tl.float32, bitcast=True)


@triton.jit
def scale_of(spreads, group, panels, PANELS: tl.constexpr):
    """Read the power of two that brings the shifted codes of a group to the order of one."""
    panel = tl.arange(0, PANELS)
    found = tl.load(spreads + group * panels + panel, mask=panel < panels, other=0.0)
    return power_of_two(tl.max(found, 0))


@triton.jit
def shifted_code(raw, centre, scale, inverse, COSINE: tl.constexpr, WIDE: tl.constexpr):
    """Bring values of codes into the frame, rounded once to float32."""
    if COSINE:
        value = ((raw.to(tl.float64) * inverse - centre) * scale.to(tl.float64)).to(tl.float32)
    elif WIDE:
        value = ((raw.to(tl.float64) - centre) * scale.to(tl.float64)).to(tl.float32)
    else:
        value = (raw.to(tl.float32) - centre.to(tl.float32)) * scale
    return value


@triton.jit
def shifted_vector(raw, centre, scale, L2: tl.constexpr, WIDE: tl.constexpr):
    """Bring values of vectors into the frame, rounded once to float32."""
    if WIDE:
        wide = raw.to(tl.float64)
        if L2:
            wide -= centre
        value = (wide * scale.to(tl.float64)).to(tl.float32)
    else:
        value = raw.to(tl.float32)
        if L2:
            value -= centre.to(tl.float32)
        value *= scale
    return value


@triton.jit
def short_table(
    codes, g_step, k_step, d_step, inverse, centre, spreads, table, num_codes, padded,
    COSINE: tl.constexpr, L2: tl.constexpr,
    DIM: tl.constexpr, LANES: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Lay out codes of few dimensions as (G, DIM + 1, padded) float32; the last row is the bias.

    A block of LANES x UNROLL codes is transposed, so that one lane meets UNROLL successive ids.
    """
    BLOCK: tl.constexpr = LANES * UNROLL
    blocks = padded // BLOCK
    group = (tl.program_id(0) // blocks).to(tl.int64)
    first = (tl.program_id(0) % blocks) * BLOCK
    place = tl.arange(0, BLOCK)
    k = first + (place % LANES) * UNROLL + place // LANES
    there = k < num_codes
    row = codes + group * g_step + k.to(tl.int64) * k_step
    out = table + group * (DIM + 1) * padded + first + place
    by = power_of_two(tl.load(spreads + group))
    inverse_length = 1.0
    if COSINE:
        inverse_length = tl.load(inverse + group * num_codes + k, mask=there, other=0.0)
    square = tl.zeros((BLOCK,), tl.float64)
    for d in tl.static_range(DIM):
        raw = tl.load(row + d * d_step, mask=there, other=0.0)
        middle = tl.load(centre + group * DIM + d)
        value = shifted_code(raw, middle, by, inverse_length, COSINE, False)
        square += value.to(tl.float64) * value.to(tl.float64)
        tl.store(out + d * padded, tl.where(there, value, 0.0))
    bias = tl.zeros((BLOCK,), tl.float32)
    if L2:
        bias -= (square / 2).to(tl.float32)
    tl.store(out + DIM * padded, tl.where(there, bias, -float("inf")))


@triton.jit
def is_copy(codes_of_group, k_step, d_step, k, earlier, need, dim, CHUNK: tl.constexpr):
    """Tell which codes k have the very values of the codes `earlier`."""
    same = need
    ours = codes_of_group + k.to(tl.int64)[:, None] * k_step
    theirs = codes_of_group + earlier.to(tl.int64)[:, None] * k_step
    for start in range(0, dim, CHUNK):
        d = start + tl.arange(0, CHUNK)
        inside = need[:, None] & (d < dim)[None, :]
        step = d.to(tl.int64)[None, :] * d_step
        a = tl.load(ours + step, mask=inside, other=0.0)
        b = tl.load(theirs + step, mask=inside, other=0.0)
        same = same & (tl.sum((a != b).to(tl.int32), 1) == 0)
    return same


@triton.jit
def code_table(
    codes, g_step, k_step, d_step, inverse, centre, spreads, slot_of, slots,
    table, bias, reach, num_codes, dim, num_slots, tiles, panels,
    COSINE: tl.constexpr, L2: tl.constexpr, WIDE: tl.constexpr, W: tl.constexpr,
    TILE: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, PANELS: tl.constexpr,
):  # fmt: skip
    """Round codes to float16 (G, T TILE, W), with bias, and per tile the longest code and error.

    Copies of an earlier code get the bias -inf, as the padding does: they can never win.
    """
    tile = tl.program_id(0) % tiles
    group = (tl.program_id(0) // tiles).to(tl.int64)
    source = codes + group * g_step
    by = scale_of(spreads, group, panels, PANELS)
    longest = 0.0
    furthest = 0.0
    for start in range(0, TILE, BLOCK):
        k = tile * TILE + start + tl.arange(0, BLOCK)
        there = k < num_codes
        at = group * num_codes + k
        inverse_length = 1.0
        if COSINE:
            inverse_length = tl.load(inverse + at, mask=there, other=0.0)[:, None]
        square = tl.zeros((BLOCK,), tl.float64)
        error = tl.zeros((BLOCK,), tl.float64)
        place = (group * tiles * TILE + k)[:, None] * W
        for column in range(0, W, CHUNK):
            d = column + tl.arange(0, CHUNK)
            inside = there[:, None] & (d < dim)[None, :]
            step = k.to(tl.int64)[:, None] * k_step + d.to(tl.int64)[None, :] * d_step
            raw = tl.load(source + step, mask=inside, other=0.0)
            middle = tl.load(centre + group * dim + d, mask=d < dim, other=0.0)[None, :]
            value = shifted_code(raw, middle, by, inverse_length, COSINE, WIDE)
            value = tl.where(inside, value, 0.0)
            half = value.to(tl.float16)
            tl.store(table + place + d[None, :], half)
            left = (value - half.to(tl.float32)).to(tl.float64)
            square += tl.sum(value.to(tl.float64) * value.to(tl.float64), 1)
            error += tl.sum(left * left, 1)
        low = tl.load(slot_of + at, mask=there, other=0)
        low = tl.load(slots + group * num_slots + low, mask=there, other=0)
        need = there & (low < k)
        if tl.max(need.to(tl.int32), 0) > 0:
            there = there & ~is_copy(source, k_step, d_step, k, low, need, dim, CHUNK)
        own = tl.zeros((BLOCK,), tl.float32)
        if L2:
            own -= (square / 2).to(tl.float32)
        tl.store(bias + group * tiles * TILE + k, tl.where(there, own, -float("inf")))
        longest = tl.maximum(longest, tl.max(tl.sqrt(square).to(tl.float32), 0))
        furthest = tl.maximum(furthest, tl.max(tl.sqrt(error).to(tl.float32), 0))
    tl.store(reach + (group * tiles + tile) * 2, longest * 1.000001)
    tl.store(reach + (group * tiles + tile) * 2 + 1, furthest * 1.000001)


@triton.jit
def point_table(
    vectors, g_step, n_step, d_step, centre, spreads, table, sizes, num_rows, dim, panels,
    L2: tl.constexpr, WIDE: tl.constexpr, W: tl.constexpr,
    BLOCK: tl.constexpr, CHUNK: tl.constexpr, PANELS: tl.constexpr,
):  # fmt: skip
    """Round vectors to float16 (G, N, W), with (length, error, weight of the bias) per row.

    Every row has a power of two of its own; a row without a winner gets the length NaN.
    """
    blocks = tl.cdiv(num_rows, BLOCK)
    group = (tl.program_id(0) // blocks).to(tl.int64)
    n = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    there = n < num_rows
    source = vectors + group * g_step + n.to(tl.int64)[:, None] * n_step
    by = scale_of(spreads, group, panels, PANELS) if L2 else tl.full((), 1.0, tl.float32)
    largest = tl.zeros((BLOCK,), tl.float32)
    for column in range(0, dim, CHUNK):
        d = column + tl.arange(0, CHUNK)
        inside = there[:, None] & (d < dim)[None, :]
        raw = tl.load(source + d.to(tl.int64)[None, :] * d_step, mask=inside, other=0.0)
        middle = tl.load(centre + group * dim + d, mask=d < dim, other=0.0)[None, :]
        value = shifted_vector(raw, middle, by, L2, WIDE)
        largest = tl.maximum(largest, tl.max(tl.where(inside, tl.abs(value), 0.0), 1))
    # The bias may outweigh the product by 2^60, not by more than float32 holds.
    own = tl.minimum(power_of_two(largest), 1152921504606846976.0) if L2 else power_of_two(largest)
    square = tl.zeros((BLOCK,), tl.float32)
    error = tl.zeros((BLOCK,), tl.float32)
    for column in range(0, W, CHUNK):
        d = column + tl.arange(0, CHUNK)
        inside = there[:, None] & (d < dim)[None, :]
        raw = tl.load(source + d.to(tl.int64)[None, :] * d_step, mask=inside, other=0.0)
        middle = tl.load(centre + group * dim + d, mask=d < dim, other=0.0)[None, :]
        value = shifted_vector(raw, middle, by, L2, WIDE) * own[:, None]
        value = tl.where(inside, value, 0.0)
        half = value.to(tl.float16)
        place = (group * num_rows + n)[:, None] * W + d[None, :]
        tl.store(table + place, half, mask=there[:, None])
        left = value - half.to(tl.float32)
        square += tl.sum(value * value, 1)
        error += tl.sum(left * left, 1)
    length, off = tl.sqrt(square) * 1.0001, tl.sqrt(error) * 1.0001
    usable = length < float("inf")
    if not L2:
        usable = usable & (length > 0)  # a zero vector ties with everything
    at = sizes + (group * num_rows + n) * 3
    tl.store(at, tl.where(usable, length + off, float("nan")), mask=there)
    tl.store(at + 1, off, mask=there)
    # Without a bias a weight that is not zero keeps the -inf of codes that cannot win.
    tl.store(at + 2, own if L2 else tl.full((BLOCK,), 1e-18, tl.float32), mask=there)
