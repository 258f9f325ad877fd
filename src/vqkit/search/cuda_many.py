"""Search in many dimensions: a float16 screen of all codes, an exact decision on what it leaves.

The host side: what is allocated and launched, block of vectors by block of vectors. The kernels are
in `cuda_tables`, `cuda_screen` and `cuda_decide`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vqkit.search import cuda_decide, cuda_frame, cuda_screen
from vqkit.search.cuda_frame import Frame, ceil_div, frame_of, share, up_to_power
from vqkit.search.cuda_tables import code_table, point_table

TABLE_ELEMENTS = 2**23
"""Elements of vectors screened at a time (16 MiB in float16)."""
MOST_ROWS = 2**16
"""Vectors screened at a time: what is kept of them is 256 bytes a vector and split."""
WAVES = 4
"""Programs a multiprocessor should get, so that the last ones leave few idle."""
ROWS, LANES = 128, 8
EXHAUST_ROWS, EXHAUST_CODES = 16, 64


class _Codes(NamedTuple):
    """A codebook as the screen reads it; see `code_table`."""

    codes: Tensor
    frame: Frame
    table: Tensor
    bias: Tensor
    reach: Tensor
    l2: bool
    cosine: bool
    wide: bool
    """Whether values are shifted in float64."""

    @property
    def gamma(self) -> float:
        """Bound the error of adding a score's products in float32, relative to the lengths.

        Tensor cores align the products of a step and cut them off, an error of at most one unit in
        the last place of the largest for each of them; twice that is allowed.
        """
        return (self.table.shape[2] + 16) * 2.0**-22


class _Points(NamedTuple):
    """A block of vectors as the screen reads it, and what the screen kept of it."""

    table: Tensor
    sizes: Tensor
    floats: Tensor
    tiles_of: Tensor


def search(vectors: Tensor, codes: Tensor, metric: str, ids: Tensor) -> None:
    """Search codes (G, K, D) for vectors (G, N, D) into ids (G, N)."""
    groups, num_codes, dim = codes.shape
    l2, cosine = metric == "l2", metric == "cosine"
    wide = torch.float64 in (vectors.dtype, codes.dtype)
    frame = frame_of(codes, metric, wide=wide, copies=True)
    width = max(32, up_to_power(dim)) if dim <= 256 else ceil_div(dim, 64) * 64
    tile = _tile(width)
    tiles = ceil_div(num_codes, tile)
    panels = frame.spreads.shape[1]
    table = codes.new_empty(groups, tiles * tile, width, dtype=torch.float16)
    bias = codes.new_empty(groups, tiles * tile, dtype=torch.float32)
    reach = codes.new_empty(groups, tiles, 2, dtype=torch.float32)
    code_table[(groups * tiles,)](
        codes, *codes.stride(), frame.inverse, frame.centre, frame.spreads,
        frame.slot_of, frame.slots, table, bias, reach,
        num_codes, dim, frame.slots.shape[1], tiles, panels,
        COSINE=cosine, L2=l2, WIDE=wide, W=width, TILE=tile, BLOCK=32, CHUNK=min(64, width),
        PANELS=up_to_power(panels),
    )  # fmt: skip
    book = _Codes(codes, frame, table, bias, reach, l2, cosine, wide)
    rows = min(MOST_ROWS, TABLE_ELEMENTS // (width * groups)) // ROWS * ROWS
    for block, found in zip(
        vectors.split(max(ROWS, rows), 1), ids.split(max(ROWS, rows), 1), strict=True
    ):
        _decide(block, book, _screen(block, book), found)


def _screen(vectors: Tensor, book: _Codes) -> _Points:
    """Screen a block of vectors (G, n, D)."""
    groups, num_rows, dim = vectors.shape
    tiles, width, panels = book.reach.shape[1], book.table.shape[2], book.frame.spreads.shape[1]
    known = cuda_frame.limits(vectors.device)
    table = vectors.new_empty(groups, num_rows, width, dtype=torch.float16)
    sizes = vectors.new_empty(groups, num_rows, 3, dtype=torch.float32)
    chunk = min(64, width)
    point_table[(groups * ceil_div(num_rows, 16),)](
        vectors, *vectors.stride(), book.frame.centre, book.frame.spreads, table, sizes,
        num_rows, dim, panels,
        L2=book.l2, WIDE=book.wide, W=width, BLOCK=16, CHUNK=chunk, PANELS=up_to_power(panels),
    )  # fmt: skip
    blocks = groups * ceil_div(num_rows, ROWS)
    per_split, splits = share(blocks, tiles, WAVES * known.processors)
    shape = (groups, num_rows, splits)
    floats = sizes.new_empty(*shape, cuda_screen.FLOATS, LANES)
    tiles_of = sizes.new_empty(*shape, cuda_screen.TILES, LANES, dtype=torch.int32)
    whole, stages = _pipeline(width, known.shared)
    cuda_screen.screen[(blocks * splits,)](
        table, sizes, book.table, book.bias, book.reach, floats, tiles_of,
        num_rows, tiles, per_split, splits, book.gamma,
        W=width, CHUNK=width if whole else chunk,
        ROWS=ROWS, TILE=_tile(width), LANES=LANES, num_warps=8, num_stages=stages,
    )  # fmt: skip
    return _Points(table, sizes, floats, tiles_of)


def _decide(vectors: Tensor, book: _Codes, points: _Points, ids: Tensor) -> None:
    """Find the ids (G, n) of a block of vectors (G, n, D) that was screened."""
    groups, num_rows, dim = vectors.shape
    num_codes, tiles, width = book.codes.shape[1], book.reach.shape[1], book.table.shape[2]
    splits = points.floats.shape[2]
    floors = points.sizes.new_empty(groups, num_rows)
    listed = points.tiles_of.new_empty(groups, num_rows)
    count = points.tiles_of.new_zeros(groups)
    pairs = (vectors, *vectors.stride(), book.codes, *book.codes.stride())
    screens = (points.table, points.sizes, book.table, book.bias, book.reach)
    fixed = {
        "L2": book.l2, "COSINE": book.cosine, "W": width, "CHUNK": min(64, width),
        "TILE": _tile(width),
    }  # fmt: skip
    cuda_decide.decide[(groups * num_rows,)](
        *pairs, *screens, points.floats, points.tiles_of, floors, listed, count, ids,
        ids.stride(0), num_rows, num_codes, dim, tiles, splits, book.gamma,
        **fixed, LANES=LANES, SPLITS=up_to_power(splits), num_warps=1 if splits <= 32 else 4,
    )  # fmt: skip
    programs = max(1, WAVES * cuda_frame.limits(vectors.device).processors // groups)
    capacity = max(programs, ceil_div(num_rows, EXHAUST_ROWS)) * EXHAUST_ROWS
    scores = floors.new_empty(groups, capacity, dtype=torch.float64)
    found = listed.new_empty(groups, capacity)
    cuda_decide.exhaust[(groups * programs,)](
        *pairs, *screens, floors, listed, count, scores, found,
        num_rows, dim, tiles, programs, capacity, book.gamma,
        **fixed, ROWS=EXHAUST_ROWS, BLOCK=EXHAUST_CODES, num_warps=4,
    )  # fmt: skip
    cuda_decide.settle[(groups * ceil_div(num_rows, 128),)](
        scores, found, listed, count, ids, ids.stride(0),
        num_rows, num_codes, tiles, programs, capacity, ROWS=EXHAUST_ROWS, BLOCK=128,
    )  # fmt: skip


def _tile(width: int) -> int:
    """Codes of one step of the screen: what fast memory holds several of."""
    if width <= 128:
        return 128
    return 64 if width <= 256 else 256


def _pipeline(width: int, shared: int) -> tuple[bool, int]:
    """Choose how the screen reads: (rows stay in fast memory, steps in flight)."""
    tile = _tile(width)
    for stages in (4, 3):
        if width <= 256 and 2 * width * (ROWS + stages * tile) <= shared:
            return True, stages
    chunk = 2 * 64 * (ROWS + tile)
    return False, next((stages for stages in (4, 3) if stages * chunk <= shared), 2)
