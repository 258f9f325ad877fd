"""The public searches and the rule that picks their backend.

Every search is exact and keeps at most a constant block of scores. The winner is a function of the
vector and the codebook only: batch size, block size and the number of processes never matter. Codes
with bitwise equal values go to the lowest id. Two codes whose squared distances differ by less than
`NEAR_TIE * (|z|^2 + |c|^2)`, both measured from the mean code, are a near tie, which another
backend, device, thread count or library version may decide differently (`torch` and `bf16` decide
it in float64).

The rule, which looks at the codes, the metric and the machine and never at the number of vectors
(an id must not depend on its batch), measured on the page of `benchmarks/search.py`:

1. codes on a CUDA device, Triton installed: `triton`;
2. codes on a CPU, not in float64, up to 16 dimensions (`cosine` 15, `dot` none), faiss installed:
   `faiss`;
3. codes on a CPU with bf16 products (AMX or AVX512-BF16), at least 17 dimensions and 512 codes:
   `bf16`;
4. all others: `torch`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vqkit.search import blocked, cuda, fused
from vqkit.search.exact import closeness
from vqkit.search.inputs import Inputs, Metric, checked, require_finite

Backend = Literal["torch", "bf16", "faiss", "triton"]
BACKENDS: tuple[Backend, ...] = ("torch", "bf16", "faiss", "triton")
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
        backend: force one of `BACKENDS`; None picks by the rule of this module.

    Returns:
        ids (N,) or (G, N), int64 in [0, K). For `cosine` and `dot` a zero vector gets id 0.

    Raises:
        ValueError: shapes, types, devices, metric or backend do not fit; on a CPU also NaN or
            infinity. On other devices values are not looked at, since that would wait for the
            device: vectors that are not finite get some id in range.
    """
    inputs = checked(vectors, codes, metric, values=False)
    return inputs.ungroup(_ids(inputs, metric, backend))


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
    inputs = checked(vectors, codes, metric, values=False)
    ids = _ids(inputs, metric, backend)
    scores = torch.empty(ids.shape, dtype=torch.float32, device=ids.device)
    for score, z, c, found in zip(scores, inputs.vectors, inputs.codes, ids, strict=True):
        score.copy_(closeness(z, c, None, found, metric))
    return inputs.ungroup(ids), inputs.ungroup(scores)


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
    num_groups, num_vectors, _ = inputs.vectors.shape
    device = inputs.vectors.device
    ids = torch.empty(num_groups, num_vectors, k, dtype=torch.int64, device=device)
    scores = torch.empty(ids.shape, dtype=torch.float32, device=device)
    rows = torch.arange(num_vectors, device=device).repeat_interleave(k)
    bf16 = blocked.bf16_pays(inputs.codes)
    for group, (z, c) in enumerate(zip(inputs.vectors, inputs.codes, strict=True)):
        ids[group] = blocked.nearest_k(z, c, k, metric, bf16=bf16)
        scores[group] = closeness(z, c, rows, ids[group].flatten(), metric).view(-1, k)
    return inputs.ungroup(ids), inputs.ungroup(scores)


def _ids(inputs: Inputs, metric: Metric, backend: Backend | None) -> Tensor:
    """Look at the values and search all groups -> (G, N)."""
    if backend is None:
        backend = _choose(inputs.codes, metric)
    if backend not in BACKENDS:
        raise ValueError(
            f"backend={backend!r}: unknown backend; choose one of {', '.join(BACKENDS)}"
        )
    if backend == "faiss":
        _require_faiss(inputs.codes, metric)
        return fused.nearest(inputs.vectors, inputs.codes, metric)
    require_finite("vectors", inputs.vectors)
    require_finite("codes", inputs.codes)
    if backend == "bf16" and inputs.codes.device.type != "cpu":
        raise ValueError(
            f"backend='bf16': its bound holds for products on a CPU, got {inputs.codes.device}; "
            "use backend='torch'"
        )
    if backend == "triton":
        _require_triton(inputs.codes, metric)
        return cuda.nearest(inputs.vectors, inputs.codes, metric)
    search = blocked.nearest_in_bf16 if backend == "bf16" else blocked.nearest
    if len(inputs.codes) == 1:
        return search(inputs.vectors[0], inputs.codes[0], metric)[None]
    ids = torch.empty(inputs.vectors.shape[:2], dtype=torch.int64, device=inputs.vectors.device)
    for found, z, c in zip(ids, inputs.vectors, inputs.codes, strict=True):
        found.copy_(search(z, c, metric))
    return ids


def _choose(codes: Tensor, metric: Metric) -> Backend:
    if codes.device.type == "cuda" and cuda.installed() and cuda.fits(codes, metric):
        return "triton"
    # float64 is asked for by those who need the digits that float32 distances lose.
    if codes.dtype != torch.float64 and fused.fits(codes, metric) and fused.installed():
        return "faiss"
    return "bf16" if blocked.bf16_pays(codes) else "torch"


def _require_faiss(codes: Tensor, metric: Metric) -> None:
    if not fused.fits(codes, metric):
        raise ValueError(
            f"backend='faiss': searches l2 up to {fused.MAX_DIM} dimensions or cosine up to "
            f"{fused.MAX_DIM - 1} on a CPU, got {metric}, {codes.shape[-1]} dimensions on "
            f"{codes.device}; use backend='torch'"
        )
    if not fused.installed():
        raise ValueError(
            "backend='faiss': faiss (with AVX2 or NEON) is missing; pip install 'vqkit[search]'"
        )


def _require_triton(codes: Tensor, metric: Metric) -> None:
    if not cuda.installed():
        raise ValueError(
            "backend='triton': needs Triton and torch for CUDA, or Triton's interpreter "
            "(TRITON_INTERPRET=1); use backend='torch'"
        )
    if not cuda.fits(codes, metric):
        raise ValueError(
            f"backend='triton': searches up to {cuda.MAX_CODES} codes on NVIDIA GPUs from compute "
            f"capability 8.0 on; got {codes.shape[-2]} codes on {codes.device}; use backend='torch'"
        )
