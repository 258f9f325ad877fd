"""Nearest codes on a CPU, up to 16 dimensions: faiss's fused kernel (optional dependency).

The kernel keeps a running minimum in registers and rounds each (vector, code) pair in one fixed
way, so batches do not matter. Two habits of faiss have to be worked around: it uses the kernel only
for large batches unless its BLAS threshold is lowered, and it rounds the last codes (beyond a
multiple of its vector width) differently, which would send copies of a code to different ids.

Vectors pass through one small buffer, so that what is added to the kernel's time stays in cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from vqkit.search.inputs import Metric
from vqkit.search.tables import Frame, unit_length

MAX_DIM = 16
"""The fused kernel exists for 1 to 16 dimensions."""
CODE_MULTIPLE = 64
"""Codes are padded to a multiple of every vector width that faiss knows."""
BLOCK_ELEMENTS = 2**17
"""Elements of vectors brought into the frame at a time (512 KiB in float32)."""
TILE = 256
"""Vectors that are shifted by one row of a long subtraction."""
VECTOR_BUILDS = ("AVX2", "AVX512", "NEON", "SVE")


@cache
def installed() -> bool:
    """Tell whether faiss is there and built with the instructions that its fused kernel needs."""
    if find_spec("faiss") is None:
        return False
    import faiss

    options = faiss.get_compile_options()
    return any(name in options for name in VECTOR_BUILDS)


def fits(codes: Tensor, metric: Metric) -> bool:
    """Tell whether the kernel can search codes (..., D); cosine may need one axis more."""
    room = MAX_DIM - (metric == "cosine")
    return codes.device.type == "cpu" and metric != "dot" and codes.shape[-1] <= room


def nearest(vectors: Tensor, codes: Tensor, metric: Metric) -> Tensor:
    """Find ids (N,) of the nearest of codes (K, D) for vectors (N, D), both finite, on a CPU."""
    import faiss

    num_codes, dim = codes.shape
    frame = Frame.of(codes, metric, scaled=True)
    # On unit vectors the nearest is the most similar; a zero code has cosine 0 with everything,
    # which an axis of its own gives it.
    zero = (codes == 0).all(-1) if metric == "cosine" else None
    blank = int(zero is not None and bool(zero.any()))
    table = frame.table(codes, columns=blank, multiple=CODE_MULTIPLE)
    if zero is not None and blank:
        table[:num_codes, -1] = zero.float()
    table[num_codes:] = table[0]  # copies of code 0 lose their tie against it
    ids = torch.empty(len(vectors), dtype=torch.int64)
    step = max(1, min(BLOCK_ELEMENTS // dim, len(vectors)))
    queries = torch.zeros(step, dim + blank) if blank else torch.empty(step, dim)
    distances = torch.empty(step)
    tile = frame.centre.repeat(TILE) if _is_plain(vectors, frame) else None
    with _fused_kernel(faiss):
        for start in range(0, len(vectors), step):
            part = vectors[start : start + step]
            found = ids[start : start + step]
            prepared = queries[: len(part)]
            if tile is not None:
                _subtract(part, tile, prepared)
            else:
                points = frame.points(part)
                prepared[:, :dim] = unit_length(points) if metric == "cosine" else points
            _search(faiss, prepared, table, distances, found)
            if metric == "cosine":
                found[(part == 0).all(-1)] = 0
            # No finite distance gives -1, and if all are infinite a padded id may stand.
            if found.numpy().view("uint64").max() >= num_codes:
                found.copy_(found.where((found >= 0) & (found < num_codes), 0))
    return ids


def _is_plain(vectors: Tensor, frame: Frame) -> bool:
    """Tell whether vectors only need the centre subtracted, which can be done in one go."""
    plain = vectors.dtype == torch.float32 and vectors.is_contiguous()
    return plain and frame.metric == "l2" and frame.scale is None


def _subtract(vectors: Tensor, tile: Tensor, out: Tensor) -> None:
    """Subtract the centre, repeated in `tile`, from contiguous vectors (n, D).

    A broadcast row of few dimensions costs eight times more than one of a thousand elements.
    """
    whole = len(vectors) - len(vectors) % TILE
    rows, size = vectors[:whole].view(-1, len(tile)), len(tile)
    torch.sub(rows, tile, out=out[:whole].view(-1, size))
    torch.sub(vectors[whole:], tile[: vectors.shape[1]], out=out[whole:])


def _search(
    faiss: ModuleType, queries: Tensor, table: Tensor, distances: Tensor, ids: Tensor
) -> None:
    """Write the ids (n,) of the nearest rows of `table` for queries (n, D), all contiguous."""
    pointer = faiss.swig_ptr
    faiss.knn_L2sqr(
        pointer(queries.numpy()),
        pointer(table.numpy()),
        table.shape[1],
        len(queries),
        len(table),
        1,
        pointer(distances.numpy()),
        pointer(ids.numpy()),
    )


@contextmanager
def _fused_kernel(faiss: ModuleType) -> Iterator[None]:
    """Make faiss take its fused kernel on as many threads as torch uses; restore both settings."""
    threshold, threads = faiss.cvar.distance_compute_blas_threshold, faiss.omp_get_max_threads()
    faiss.cvar.distance_compute_blas_threshold = 1
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_threshold = threshold
        faiss.omp_set_num_threads(threads)
