"""Triton kernels that bring codes and vectors into the frame in which 16 or 32 bits compare them.

The frame is that of `tables.Frame`: the mean code is subtracted (for `cosine` and `dot` from the
codes alone, which changes all scores of a vector by the same number), and a power of two scales
values to the order of one. Whatever depends on the codebook is summed in an order that depends on
its shape only.

Legend: G groups, K codes, D dim, T tiles of codes, W columns of a table (D rounded up).
"""
# Kernels are compiled, not typed.
# mypy: allow-untyped-defs, allow-untyped-decorators
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def power_of_two(largest):
    """Return 1 / the power of two below `largest` (float32), kept a normal number."""
    bits = largest.to(tl.int32, bitcast=True) & 0x7F800000
    bits = tl.minimum(tl.maximum(bits, 0x00800000), 0x7E000000)
    return (0x7F000000 - bits).to(tl.float32, bitcast=True)


@triton.jit
def shifted_code(raw, centre, scale, inverse, COSINE: tl.constexpr, WIDE: tl.constexpr):
    """Bring values of codes into the frame, rounded once to float32."""
    if COSINE:
        value = (raw.to(tl.float64) * inverse - centre).to(tl.float32)
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
def survey(
    codes, g_step, k_step, d_step, inverse, slot_of, slots, num_codes, dim, num_slots,
    COSINE: tl.constexpr, COPIES: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Find 1 / length of every code (G, K) and, in a hash table, the lowest id with its values."""
    blocks = tl.cdiv(num_codes, BLOCK)
    group = (tl.program_id(0) // blocks).to(tl.int64)
    k = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    there = k < num_codes
    rows = codes + group * g_step + k.to(tl.int64)[:, None] * k_step
    square = tl.zeros((BLOCK,), tl.float64)
    key = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, dim, CHUNK):
        d = start + tl.arange(0, CHUNK)
        inside = there[:, None] & (d < dim)[None, :]
        raw = tl.load(rows + d.to(tl.int64)[None, :] * d_step, mask=inside, other=0.0)
        if COSINE:
            wide = raw.to(tl.float64)
            square += tl.sum(wide * wide, 1)
        if COPIES:
            # Adding zero makes -0 and 0 one value.
            bits = (raw.to(tl.float32) + 0.0).to(tl.int32, bitcast=True)
            mixed = (bits ^ (d * 0x3C6EF35F)[None, :]) * 0x2C1B3C6D
            mixed = (mixed ^ ((mixed >> 15) & 0x1FFFF)) * 0x297A2D39
            key += tl.sum(tl.where(inside, mixed ^ ((mixed >> 13) & 0x7FFFF), 0), 1)
    at = group * num_codes + k
    if COSINE:
        tl.store(inverse + at, 1.0 / tl.sqrt(tl.where(square > 0, square, 1.0)), mask=there)
    if COPIES:
        slot = (key ^ ((key >> 16) & 0xFFFF)) & (num_slots - 1)
        tl.store(slot_of + at, slot, mask=there)
        tl.atomic_min(slots + group * num_slots + slot, k, mask=there)


@triton.jit
def column_sums(
    codes, g_step, k_step, d_step, inverse, sums, maxima, num_codes, dim, chunk, chunks,
    COSINE: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sum and find the largest value of chunks of codes -> (G, chunks, D) and (G, chunks, D')."""
    panels = tl.cdiv(dim, COLUMNS)
    panel = tl.program_id(0) % panels
    part = (tl.program_id(0) // panels) % chunks
    group = (tl.program_id(0) // (panels * chunks)).to(tl.int64)
    d = panel * COLUMNS + tl.arange(0, COLUMNS)
    columns = codes + group * g_step + d.to(tl.int64)[None, :] * d_step
    total = tl.zeros((COLUMNS,), tl.float64)
    largest = tl.zeros((COLUMNS,), tl.float32)
    for start in range(part * chunk, tl.minimum((part + 1) * chunk, num_codes), BLOCK):
        k = start + tl.arange(0, BLOCK)
        inside = (k < num_codes)[:, None] & (d < dim)[None, :]
        raw = tl.load(columns + k.to(tl.int64)[:, None] * k_step, mask=inside, other=0.0)
        value = raw.to(tl.float64)
        if COSINE:
            at = group * num_codes + k
            value *= tl.load(inverse + at, mask=k < num_codes, other=0.0)[:, None]
        total += tl.sum(value, 0)
        largest = tl.maximum(largest, tl.max(tl.abs(value), 0).to(tl.float32))
    at = group * chunks + part
    tl.store(sums + at * dim + d, total, mask=d < dim)
    tl.store(maxima + at * panels + panel, tl.max(largest, 0))


@triton.jit
def frame(
    sums, maxima, centre, scale, num_codes, dim, chunks, panels,
    COSINE: tl.constexpr, WIDE: tl.constexpr,
    CHUNKS: tl.constexpr, PANELS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Finish the mean code (G, D) and the scale (G,) from the chunks."""
    panel = tl.program_id(0) % panels
    group = (tl.program_id(0) // panels).to(tl.int64)
    d = panel * COLUMNS + tl.arange(0, COLUMNS)
    part = tl.arange(0, CHUNKS)
    inside = (part < chunks)[:, None] & (d < dim)[None, :]
    at = (group * chunks + part)[:, None] * dim + d[None, :]
    mean = tl.sum(tl.load(sums + at, mask=inside, other=0.0), 0) / num_codes
    if not COSINE and not WIDE:
        mean = mean.to(tl.float32).to(tl.float64)  # then one float32 subtraction is exact
    tl.store(centre + group * dim + d, mean, mask=d < dim)
    if panel == 0:
        count = chunks * panels
        i = tl.arange(0, CHUNKS * PANELS)
        largest = tl.max(tl.load(maxima + group * count + i, mask=i < count, other=0.0), 0)
        tl.store(scale + group, 1.0 if COSINE else power_of_two(largest))


@triton.jit
def short_table(
    codes, g_step, k_step, d_step, inverse, centre, scale, table, num_codes, padded,
    COSINE: tl.constexpr, L2: tl.constexpr, WIDE: tl.constexpr,
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
    by = tl.load(scale + group)
    inverse_length = 1.0
    if COSINE:
        inverse_length = tl.load(inverse + group * num_codes + k, mask=there, other=0.0)
    square = tl.zeros((BLOCK,), tl.float64)
    for d in tl.static_range(DIM):
        raw = tl.load(row + d * d_step, mask=there, other=0.0)
        middle = tl.load(centre + group * DIM + d)
        value = shifted_code(raw, middle, by, inverse_length, COSINE, WIDE)
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
    codes, g_step, k_step, d_step, inverse, centre, scale, slot_of, slots,
    table, bias, reach, num_codes, dim, num_slots, tiles,
    COSINE: tl.constexpr, L2: tl.constexpr, WIDE: tl.constexpr, W: tl.constexpr,
    TILE: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Round codes to float16 (G, T TILE, W), with bias, and per tile the longest code and error.

    Copies of an earlier code get the bias -inf, as the padding does: they can never win.
    """
    tile = tl.program_id(0) % tiles
    group = (tl.program_id(0) // tiles).to(tl.int64)
    source = codes + group * g_step
    by = tl.load(scale + group)
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
    vectors, g_step, n_step, d_step, centre, scale, table, sizes, num_rows, dim,
    L2: tl.constexpr, WIDE: tl.constexpr, W: tl.constexpr,
    BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Round vectors to float16 (G, N, W), with (length, error, weight of the bias) per row.

    Every row has a power of two of its own; a row without a winner gets the length NaN.
    """
    blocks = tl.cdiv(num_rows, BLOCK)
    group = (tl.program_id(0) // blocks).to(tl.int64)
    n = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    there = n < num_rows
    source = vectors + group * g_step + n.to(tl.int64)[:, None] * n_step
    by = tl.load(scale + group)
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
    tl.store(at + 2, own, mask=there)
