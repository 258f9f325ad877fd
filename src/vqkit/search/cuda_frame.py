"""Triton kernels that read the codebook first: its mean, its extent, its copies.

Whatever depends on the codebook is computed in an order that depends on its shape only.

Legend: G groups, K codes, D dim.
"""
# Kernels are compiled, not typed.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# ruff: noqa: ANN001, ANN201

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_SPLITS = 128
"""Shares of the codes that one vector's search is split into at most."""
PARTS = 64
"""Chunks of codes whose sums are added to the mean code."""


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
    codes, g_step, k_step, d_step, inverse, sums, lows, highs, num_codes, dim, chunk, chunks,
    COSINE: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Find sum, least and largest value of every column of chunks of codes -> (G, chunks, D)."""
    panels = tl.cdiv(dim, COLUMNS)
    panel = tl.program_id(0) % panels
    part = (tl.program_id(0) // panels) % chunks
    group = (tl.program_id(0) // (panels * chunks)).to(tl.int64)
    d = panel * COLUMNS + tl.arange(0, COLUMNS)
    columns = codes + group * g_step + d.to(tl.int64)[None, :] * d_step
    total = tl.zeros((COLUMNS,), tl.float64)
    low = tl.full((COLUMNS,), float("inf"), tl.float64)
    high = tl.full((COLUMNS,), -float("inf"), tl.float64)
    for start in range(part * chunk, tl.minimum((part + 1) * chunk, num_codes), BLOCK):
        k = start + tl.arange(0, BLOCK)
        inside = (k < num_codes)[:, None] & (d < dim)[None, :]
        raw = tl.load(columns + k.to(tl.int64)[:, None] * k_step, mask=inside, other=0.0)
        value = raw.to(tl.float64)
        if COSINE:
            at = group * num_codes + k
            value *= tl.load(inverse + at, mask=k < num_codes, other=0.0)[:, None]
        total += tl.sum(value, 0)
        low = tl.minimum(low, tl.min(tl.where(inside, value, float("inf")), 0))
        high = tl.maximum(high, tl.max(tl.where(inside, value, -float("inf")), 0))
    at = (group * chunks + part) * dim + d
    tl.store(sums + at, total, mask=d < dim)
    tl.store(lows + at, low, mask=d < dim)
    tl.store(highs + at, high, mask=d < dim)


@triton.jit
def finish(
    sums, lows, highs, centre, spreads, num_codes, dim, chunks,
    COSINE: tl.constexpr, WIDE: tl.constexpr, CHUNKS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Finish the mean code (G, D), and find how far codes are from it (G, panels of columns)."""
    panels = tl.cdiv(dim, COLUMNS)
    group = (tl.program_id(0) // panels).to(tl.int64)
    d = (tl.program_id(0) % panels) * COLUMNS + tl.arange(0, COLUMNS)
    part = tl.arange(0, CHUNKS)
    inside = (part < chunks)[:, None] & (d < dim)[None, :]
    at = (group * chunks + part)[:, None] * dim + d[None, :]
    mean = tl.sum(tl.load(sums + at, mask=inside, other=0.0), 0) / num_codes
    if not COSINE and not WIDE:
        mean = mean.to(tl.float32).to(tl.float64)  # then one float32 subtraction is exact
    tl.store(centre + group * dim + d, mean, mask=d < dim)
    below = mean - tl.min(tl.load(lows + at, mask=inside, other=float("inf")), 0)
    above = tl.max(tl.load(highs + at, mask=inside, other=-float("inf")), 0) - mean
    spread = tl.where(d < dim, tl.maximum(below, above), 0.0)
    tl.store(spreads + tl.program_id(0), tl.max(spread, 0).to(tl.float32))


class Frame(NamedTuple):
    """What brings values into the frame of the kernels; all on the device."""

    inverse: Tensor
    """1 / length of every code (G, K) for `cosine`, else empty; float64."""
    centre: Tensor
    """(G, D) float64."""
    spreads: Tensor
    """(G, panels of columns) float32: how far codes are from the centre."""
    slot_of: Tensor
    """Place of every code in the hash table (G, K), int32; empty for few dimensions."""
    slots: Tensor
    """(G, slots) int32: the lowest id among the codes of a place."""


class Limits(NamedTuple):
    """What a device offers."""

    processors: int
    shared: int
    """Bytes of fast memory that one program can have."""


@cache
def limits(device: torch.device) -> Limits:
    """Ask a device once; what the interpreter runs on is treated as a small one."""
    if device.type != "cuda":
        return Limits(2, 227 * 1024)
    known = torch.cuda.get_device_properties(device)
    by_capability = {(8, 0): 163, (8, 7): 163, (9, 0): 227, (10, 0): 227, (10, 3): 227}
    kibibytes = by_capability.get((known.major, known.minor), 99)
    return Limits(known.multi_processor_count, kibibytes * 1024)


def up_to_power(number: int) -> int:
    """Round up to a power of two."""
    return 1 << max(number - 1, 0).bit_length()


def ceil_div(number: int, divisor: int) -> int:
    """Divide and round up."""
    return -(-number // divisor)


def share(blocks: int, work: int, programs: int) -> tuple[int, int]:
    """Split `work` steps so that there are about `programs` of them -> (steps a split, splits)."""
    splits = max(1, min(MAX_SPLITS, work, ceil_div(programs, blocks)))
    per_split = ceil_div(work, splits)
    return per_split, ceil_div(work, per_split)


def frame_of(codes: Tensor, metric: str, *, wide: bool, copies: bool) -> Frame:
    """Launch the kernels of this file for codes (G, K, D)."""
    groups, num_codes, dim = codes.shape
    cosine = metric == "cosine"
    device = codes.device
    num_slots = 4 * up_to_power(num_codes) if copies else 1
    columns = min(64, up_to_power(dim))
    panels = ceil_div(dim, columns)
    of_codes = (groups, num_codes)
    frame = Frame(
        torch.empty(of_codes if cosine else (1, 1), dtype=torch.float64, device=device),
        torch.empty(groups, dim, dtype=torch.float64, device=device),
        torch.empty(groups, panels, dtype=torch.float32, device=device),
        torch.empty(of_codes if copies else (1, 1), dtype=torch.int32, device=device),
        torch.full((groups, num_slots), 2**31 - 1, dtype=torch.int32, device=device),
    )
    if cosine or copies:
        survey[(groups * ceil_div(num_codes, 32),)](
            codes, *codes.stride(), frame.inverse, frame.slot_of, frame.slots,
            num_codes, dim, num_slots,
            COSINE=cosine, COPIES=copies, BLOCK=32, CHUNK=min(64, up_to_power(dim)),
        )  # fmt: skip
    # These depend on the shape of the codebook alone, and with them the order of the sums.
    chunk = ceil_div(ceil_div(num_codes, PARTS), 64) * 64
    chunks = ceil_div(num_codes, chunk)
    sums, lows, highs = torch.empty(3, groups, chunks, dim, dtype=torch.float64, device=device)
    column_sums[(groups * chunks * panels,)](
        codes, *codes.stride(), frame.inverse, sums, lows, highs, num_codes, dim, chunk, chunks,
        COSINE=cosine, BLOCK=64, COLUMNS=columns,
    )  # fmt: skip
    finish[(groups * panels,)](
        sums, lows, highs, frame.centre, frame.spreads, num_codes, dim, chunks,
        COSINE=cosine, WIDE=wide, CHUNKS=up_to_power(chunks), COLUMNS=columns,
    )  # fmt: skip
    return frame
