"""The public searches and the rule that picks their backend.

Every search is exact and keeps at most a constant block of scores. The winner is a function of the
vector and the codebook only: batch size, block size and the number of processes never matter. Codes
with bitwise equal values go to the lowest id. Two codes whose squared distances differ by less than
`NEAR_TIE * (|z|^2 + |c|^2)`, both measured from the mean code, are a near tie, which another
backend, device or library version may decide differently (`torch` decides it in float64).

The groups of a call are searched one after the other, each in blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from vqkit.search import blocked, fused
from vqkit.search.exact import closeness
from vqkit.search.inputs import Inputs, Metric, checked

Backend = Literal["torch", "faiss"]
BACKENDS: tuple[Backend, ...] = ("torch", "faiss")
NEAR_TIE = 32 * 2.0**-23
"""Relative gap of two squared distances below which backends may differ (up to 16 dimensions)."""


def nearest(
    vectors: Tensor, codes: Tensor, metric: Metric = "l2", *, backend: Backend | None = None
) -> Tensor:
    """Find the nearest code of every vector, exactly, with distances of at least float32.

    Args:
        vectors: (N, D) or (G, N, D), any floating type, device, strides; records no gradient.
        codes: (K, D) or (G, K, D), on the same device.
        metric: `l2`, `cosine` (length of a code is ignored) or `dot`.
        backend: force `torch` or `faiss`; None picks by K, D, metric, device and what is installed.

    Returns:
        ids (N,) or (G, N), int64 in [0, K). Vectors that are not finite (or whose squared length
        overflows float32) and, for `cosine` and `dot`, zero vectors get some id in that range.

    Raises:
        ValueError: shapes, types, devices, metric or backend do not fit.
    """
    inputs = checked(vectors, codes, metric)
    search = _search(inputs, metric, backend)
    ids = [search(z, c, metric) for z, c in zip(inputs.vectors, inputs.codes, strict=True)]
    return inputs.ungroup(_stack(ids, inputs, ()))


def nearest_with_scores(
    vectors: Tensor, codes: Tensor, metric: Metric = "l2", *, backend: Backend | None = None
) -> tuple[Tensor, Tensor]:
    """Find the nearest codes and how close they are; arguments and errors as `nearest`.

    With the roles swapped this is the *closest* anchor of online clustering (CVQ,
    arXiv:2307.15139): `nearest_with_scores(codes, vectors)` gives for every code the row of its
    best vector, as fast as `nearest`, although then the second argument is the long one.

    Returns:
        (ids, scores): ids as `nearest`; scores (N,) or (G, N), float32, higher is closer: minus
        the squared distance, the cosine, or the dot product; NaN if the vector is not finite.
    """
    inputs = checked(vectors, codes, metric)
    search = _search(inputs, metric, backend)
    ids, scores = [], []
    for z, c in zip(inputs.vectors, inputs.codes, strict=True):
        ids.append(search(z, c, metric))
        scores.append(closeness(z, c, None, ids[-1], metric).float())
    all_scores = _stack(scores, inputs, (), torch.float32)
    return inputs.ungroup(_stack(ids, inputs, ())), inputs.ungroup(all_scores)


def nearest_k(
    vectors: Tensor, codes: Tensor, k: int, metric: Metric = "l2"
) -> tuple[Tensor, Tensor]:
    """Find the k nearest codes of every vector, best first, ties by the lowest id.

    Args:
        vectors: (N, D) or (G, N, D) as in `nearest`.
        codes: (K, D) or (G, K, D).
        k: how many, 1 <= k <= K.
        metric: as in `nearest`.

    Returns:
        (ids, scores): (N, k) or (G, N, k), int64 and float32; scores as in `nearest_with_scores`.

    Raises:
        ValueError: as `nearest`, or k outside [1, K].
    """
    inputs = checked(vectors, codes, metric)
    num_codes = inputs.codes.shape[1]
    if not 1 <= k <= num_codes:
        raise ValueError(f"k={k}: there are {num_codes} codes; choose 1 <= k <= {num_codes}")
    ids, scores = [], []
    for z, c in zip(inputs.vectors, inputs.codes, strict=True):
        best = blocked.nearest_k(z, c, k, metric)
        rows = torch.arange(len(z), device=z.device).repeat_interleave(k)
        ids.append(best)
        scores.append(closeness(z, c, rows, best.flatten(), metric).float().view(-1, k))
    all_scores = _stack(scores, inputs, (k,), torch.float32)
    return inputs.ungroup(_stack(ids, inputs, (k,))), inputs.ungroup(all_scores)


def _search(
    inputs: Inputs, metric: Metric, backend: Backend | None
) -> Callable[[Tensor, Tensor, Metric], Tensor]:
    """Pick the backend, never by the number of vectors: an id must not depend on its batch."""
    fits = fused.fits(inputs.codes, metric)
    if backend is None:
        backend = "faiss" if fits and fused.installed() else "torch"
    if backend == "torch":
        return blocked.nearest
    if backend != "faiss":
        raise ValueError(
            f"backend={backend!r}: unknown backend; choose one of {', '.join(BACKENDS)}"
        )
    if not fits:
        raise ValueError(
            f"backend='faiss': searches l2 up to {fused.MAX_DIM} dimensions or cosine up to "
            f"{fused.MAX_DIM - 1} on a CPU, got {metric}, {inputs.codes.shape[-1]} dimensions on "
            f"{inputs.codes.device}; use backend='torch'"
        )
    if not fused.installed():
        raise ValueError(
            "backend='faiss': faiss (with AVX2 or NEON) is missing; pip install 'vqkit[search]'"
        )
    return fused.nearest


def _stack(
    parts: list[Tensor], inputs: Inputs, tail: tuple[int, ...], dtype: torch.dtype = torch.int64
) -> Tensor:
    """Stack the results of the groups; there may be none."""
    if parts:
        return torch.stack(parts)
    return torch.empty(
        (0, inputs.vectors.shape[1], *tail), dtype=dtype, device=inputs.vectors.device
    )
