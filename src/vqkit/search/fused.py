"""Nearest codes on a CPU, up to 16 dimensions: faiss's fused kernel (optional dependency).

The kernel keeps a running minimum in registers and rounds each (vector, code) pair in one fixed
way, so batches do not matter. Two habits of faiss have to be worked around: it uses the kernel only
for large batches unless its BLAS threshold is lowered, and it rounds the last codes (beyond a
multiple of its vector width) differently, which would send copies of a code to different ids.

Vectors pass through one small buffer, so that what is added to the kernel's time stays in cache.
What is added runs on one thread (numpy, or torch in small pieces): torch and faiss have a pool of
threads each, and a thread of one that still spins after its work slows the other down.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from threading import Lock
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqkit.search.exact import first_copies, fold_sum
from vqkit.search.inputs import Metric, require_finite
from vqkit.search.tables import MODEST, Frame, near_one

MAX_DIM = 16
"""The fused kernel exists for 1 to 16 dimensions."""
CODE_MULTIPLE = 64
"""Codes are padded to a multiple of every vector width that faiss knows."""
BLOCK_ELEMENTS = 2**18
"""Elements of vectors brought into the frame at a time (1 MiB in float32)."""
TILE = 256
"""Vectors that are shifted by one row of a long subtraction."""
LARGE = 1e30
"""Squared distances below it come from finite vectors."""
Array = NDArray[np.float32]
_lock = Lock()
_inside = 0
"""Searches under way, in all threads of Python."""
_threshold = 0
TINY = 1e-200
HASH = np.uint64(0x9E3779B97F4A7C15)
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


class _Book(NamedTuple):
    """The codes of one group, ready for the kernel."""

    table: Tensor
    """(K', D + blank) float32."""
    frame: Frame | None
    """What has to be done to vectors; None: subtract the centre and nothing else."""
    tile: Array
    """(TILE * D,) the centre, again and again; with a frame nothing."""


def nearest(vectors: Tensor, codes: Tensor, metric: Metric) -> Tensor:
    """Find ids (G, N) of the nearest codes (G, K, D) for vectors (G, N, D), on a CPU.

    Raises:
        ValueError: NaN or infinity, which the distances found show at less cost than the vectors.
    """
    import faiss

    num_groups, num_vectors, dim = vectors.shape
    ids = torch.empty(num_groups, num_vectors, dtype=torch.int64)
    step = max(1, min(BLOCK_ELEMENTS // dim, num_vectors))
    books = _books(vectors, codes, metric)
    width = max((book.table.shape[1] for book in books), default=dim)
    queries = torch.zeros(step * width, dtype=torch.float32)
    distances = torch.empty(step, dtype=torch.float32)
    looked = False
    with _fused_kernel(faiss):
        for group, book in enumerate(books):
            for start in range(0, num_vectors, step):
                part = vectors[group, start : start + step]
                found = ids[group, start : start + step]
                prepared = _prepare(part, book, queries)
                _search(faiss, prepared, book.table, distances, found)
                if metric == "cosine":
                    found[(part == 0).all(-1)] = 0
                if not looked and not _are_modest(distances[: len(part)]):
                    require_finite("vectors", vectors)
                    looked = True
                _bring_home(found, codes.shape[1])
    for group, (part, book) in enumerate(zip(codes, books, strict=True)):
        first = _first_copies(part, book.table, ids[group])
        if first is not None:
            ids[group] = first[ids[group]]
    return ids


def _are_modest(distances: Tensor) -> bool:
    """Tell whether all vectors were surely finite: the kernel gives others NaN or its maximum."""
    return bool(distances.numpy().max() < LARGE)


def _bring_home(ids: Tensor, num_codes: int) -> None:
    """Give 0 to padding, which is copies of code 0, and to -1, where no distance was finite."""
    if ids.numpy().view("uint64").max() >= num_codes:
        ids.copy_(ids.where((ids >= 0) & (ids < num_codes), 0))


def _first_copies(codes: Tensor, table: Tensor, ids: Tensor) -> Tensor | None:
    """Map codes (K, D) to their first copies; None if no code in `ids` has any, fast to see.

    The kernel keeps a minimum for each lane of its registers: where another code beats the first
    copy by a rounding error in its lane, a later copy may win in another.
    """
    if not len(ids):
        return None
    if codes.dtype == torch.float32 and codes.shape[1] > 1 and not table.shape[1] % 2:
        # Codes that agree nowhere in the first two values of the table have no copies.
        keys = table.numpy()[: len(codes)].view(np.uint64)[:, 0]
        won = keys if len(ids) >= len(keys) else keys[ids.numpy()]
        # Only those that share a place in a hash table are compared.
        bits = (8 * len(won)).bit_length()
        places = _places(keys, bits)
        if won is keys:
            shared = np.bincount(places, minlength=1 << bits) > 1
        else:
            shared = np.zeros(1 << bits, dtype=bool)
            shared[_places(won, bits)] = True
        rows = shared[places].nonzero()[0]
        alike = np.sort(keys[rows])
        if not (alike[1:] == alike[:-1]).any():
            return None
        suspects = torch.from_numpy(rows)
        found = first_copies(codes.index_select(0, suspects))
        if found is None:
            return None
        first = torch.arange(len(codes))
        first[suspects] = suspects[found]
        return first
    return first_copies(codes)


def _places(keys: NDArray[np.uint64], bits: int) -> NDArray[np.int64]:
    """Hash keys to places of a table of 2^bits."""
    places = keys * HASH
    places >>= np.uint64(64 - bits)
    return places.view(np.int64)


def _books(vectors: Tensor, codes: Tensor, metric: Metric) -> list[_Book]:
    """Prepare all groups, by few steps where nothing but the centre is to be subtracted."""
    plain = vectors.dtype == torch.float32 and vectors.is_contiguous()
    if not plain or not _is_plain(codes, metric):
        require_finite("codes", codes)
        return [_book(part, metric) for part in codes]
    num_groups, num_codes, dim = codes.shape
    tables = np.empty((num_groups, num_codes + -num_codes % CODE_MULTIPLE, dim), np.float32)
    books = []
    for rows, table in zip(codes.numpy(), tables, strict=True):
        rows = np.ascontiguousarray(rows)
        tile = np.tile(_mean(rows), TILE)
        _subtract(rows, tile, table[:num_codes])
        table[num_codes:] = table[0]
        books.append(_Book(torch.from_numpy(table), None, tile))
    return books


def _mean(rows: Array) -> Array:
    """Average contiguous rows (K, D) on one thread; zeros of it are -0, so that no -0 is left."""
    whole = len(rows) - len(rows) % TILE
    total = rows[whole:].sum(0)
    if whole:
        total += rows[:whole].reshape(-1, TILE * rows.shape[1]).sum(0).reshape(TILE, -1).sum(0)
    total /= np.float32(len(rows))
    total[total == 0] = np.float32(-0.0)
    return total


def _is_plain(codes: Tensor, metric: Metric) -> bool:
    """Tell whether all groups of codes (G, K, D) are float32 of modest size, for `l2`."""
    if metric != "l2" or codes.dtype != torch.float32 or not len(codes):
        return False
    values = codes.numpy()
    largest = np.maximum(-values.min((1, 2)), values.max((1, 2)))  # NaN compares as false
    return bool((largest > 2.0**-MODEST).all() and (largest < 2.0**MODEST).all())


def _book(codes: Tensor, metric: Metric) -> _Book:
    """Prepare codes (K, D) of any kind."""
    num_codes, dim = codes.shape
    frame = Frame.of(codes, metric, shift_codes=True, scaled=True)
    # On unit vectors the nearest is the most similar; a zero code has cosine 0 with everything,
    # which an axis of its own gives it.
    zero = (codes == 0).all(-1) if metric == "cosine" else torch.zeros(1)
    blank = int(bool(zero.any()))
    table = frame.table(codes, columns=blank, multiple=CODE_MULTIPLE)
    if blank:
        table[:num_codes, dim] = zero.float()
    table[num_codes:] = table[0]  # copies of code 0 lose their tie against it
    return _Book(table, frame, np.empty(0, np.float32))


def _on_sphere(vectors: Tensor, centre: Tensor) -> Tensor:
    """Scale vectors (n, D) to about length one and subtract the centre of the unit codes.

    All unit codes are equally long, so that the length of the vector changes no order; its
    direction must not be rounded before the shift.
    """
    rows = vectors.to(torch.float64)
    square = fold_sum(rows * rows)
    if not bool(((square > TINY) & (square < 1 / TINY)).all()):
        rows = near_one(rows)
        square = fold_sum(rows * rows)
    length = square.sqrt_()[:, None]
    return rows.div(length.where(length > 0, 1.0)).sub_(centre)


def _prepare(vectors: Tensor, book: _Book, buffer: Tensor) -> Tensor:
    """Bring vectors (n, D) into the frame of the book -> (n, D + blank), in `buffer`."""
    count, dim = vectors.shape
    width = book.table.shape[1]
    prepared = buffer[: count * width].view(count, width)
    if book.frame is not None:
        cosine = book.frame.metric == "cosine"
        points = _on_sphere(vectors, book.frame.centre) if cosine else book.frame.points(vectors)
        prepared[:, :dim] = points
        prepared[:, dim:] = 0
        return prepared
    _subtract(vectors.numpy(), book.tile, prepared.numpy())
    return prepared


def _subtract(rows: Array, tile: Array, out: Array) -> None:
    """Subtract the centre, repeated in `tile`, from contiguous rows (n, D), on one thread.

    A broadcast row of few dimensions costs eight times more than one of a thousand elements.
    """
    whole, size = len(rows) - len(rows) % TILE, len(tile)
    if whole:
        long = out[:whole].reshape(-1, size)
        np.subtract(rows[:whole].reshape(-1, size), tile, out=long)
    np.subtract(rows[whole:], tile[: rows.shape[1]], out=out[whole:])


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
    global _inside, _threshold
    with _lock:  # the threshold is the process's, the number of threads the calling thread's
        if _inside == 0:
            _threshold = faiss.cvar.distance_compute_blas_threshold
            faiss.cvar.distance_compute_blas_threshold = 1
        _inside += 1
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
        with _lock:
            _inside -= 1
            if _inside == 0:
                faiss.cvar.distance_compute_blas_threshold = _threshold
