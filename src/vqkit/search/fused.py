"""Nearest codes on a CPU, up to 16 dimensions: faiss's fused kernel (optional dependency).

The kernel keeps a running minimum in registers and rounds each (vector, code) pair in one fixed
way, so batches do not matter. Two habits of faiss have to be worked around: it uses the kernel only
for large batches unless its BLAS threshold is lowered, and it rounds the last codes (beyond a
multiple of its vector width) differently, which would send copies of a code to different ids.
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
BLOCK_ELEMENTS = 2**21
"""Elements of vectors copied at a time (8 MiB in float32)."""
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
    """Find ids (N,) of the nearest of codes (K, D) for vectors (N, D), both on a CPU."""
    import faiss

    num_codes, dim = codes.shape
    frame = Frame.of(codes, metric)
    # On unit vectors the nearest is the most similar; a zero code has cosine 0 with everything,
    # which an axis of its own gives it.
    zero = (codes == 0).all(-1)
    blank = int(metric == "cosine" and bool(zero.any()))
    rows = frame.table(codes, columns=blank, multiple=CODE_MULTIPLE)
    if blank:
        rows[:num_codes, -1] = zero.float()
    rows[num_codes:] = rows[0]  # copies of code 0 lose their tie against it
    ids = torch.zeros(len(vectors), dtype=torch.int64)
    step = max(1, BLOCK_ELEMENTS // dim)
    with _fused_kernel(faiss):
        for start in range(0, len(vectors), step):
            points = frame.points(vectors[start : start + step])
            if metric == "cosine":
                points = unit_length(points)
            queries = torch.nn.functional.pad(points, (0, blank)).contiguous()
            found = torch.from_numpy(faiss.knn(queries.numpy(), rows.numpy(), 1)[1])[:, 0]
            if metric == "cosine":
                found[(points == 0).all(-1)] = 0
            # NaN gives -1; if every distance is infinite a padded id may stand.
            ids[start : start + step] = found.where((found >= 0) & (found < num_codes), 0)
    return ids


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
