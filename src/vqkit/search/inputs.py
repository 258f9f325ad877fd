"""What every search accepts: checks of vectors, codes and metric, in one place."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

Metric = Literal["l2", "cosine", "dot"]
MOST = 2.0**500
"""Largest float64 value whose squares can be added up."""
ROWS_LOOKED_AT = 2**14
METRICS: tuple[Metric, ...] = ("l2", "cosine", "dot")


class Inputs(NamedTuple):
    """Checked inputs without gradient: (G, N, D), (G, K, D), and whether G was given."""

    vectors: Tensor
    codes: Tensor
    grouped: bool

    def ungroup(self, result: Tensor) -> Tensor:
        """Drop the leading group axis of `result` (G, ...) again if the caller gave none."""
        return result if self.grouped else result[0]


def checked(vectors: Tensor, codes: Tensor, metric: str, *, values: bool = True) -> Inputs:
    """Give both tensors a group axis and detach them; `values` are looked at unless told not to.

    Raises:
        ValueError: unknown metric, shapes other than (N, D), (K, D) or (G, N, D), (G, K, D), no
            code, no dimension, a type that is not floating point, or two devices; on a CPU also
            NaN or infinity. Nobody waits for another device to look at values: vectors there that
            are not finite get some id in range.
    """
    if metric not in METRICS:
        raise ValueError(f"metric={metric!r}: unknown metric; choose one of {', '.join(METRICS)}")
    shapes = f"vectors={tuple(vectors.shape)}, codes={tuple(codes.shape)}"
    if vectors.dim() != codes.dim() or vectors.dim() not in (2, 3):
        raise ValueError(
            f"{shapes}: need (N, D) and (K, D), or (G, N, D) and (G, K, D); reshape them"
        )
    grouped = vectors.dim() == 3
    if vectors.shape[-1] != codes.shape[-1] or (grouped and vectors.shape[0] != codes.shape[0]):
        raise ValueError(
            f"{shapes}: the last axis (and the group axis) must agree; reshape one of them"
        )
    if codes.shape[-2] == 0 or codes.shape[-1] == 0:
        raise ValueError(
            f"{shapes}: there is no code to find; give at least one code and dimension"
        )
    for name, tensor in (("vectors", vectors), ("codes", codes)):
        if not tensor.is_floating_point():
            raise ValueError(
                f"{name}.dtype={tensor.dtype}: need floating point; call .float() first"
            )
    if vectors.device != codes.device:
        raise ValueError(
            f"vectors.device={vectors.device}, codes.device={codes.device}: must be one device; "
            "move one of them"
        )
    vectors, codes = vectors.detach(), codes.detach()
    if values:
        require_finite("vectors", vectors)
        require_finite("codes", codes)
    for name, tensor in (("vectors", vectors), ("codes", codes)):
        if tensor.dtype == torch.float64 and tensor.device.type == "cpu" and tensor.numel():
            largest = max(-float(tensor.amin()), float(tensor.amax()))
            if MOST < largest < math.inf:
                raise ValueError(
                    f"{name}: holds {largest:.3g}, whose square float64 cannot hold; scale vectors "
                    "and codes down together"
                )
    if not grouped:
        vectors, codes = vectors[None], codes[None]
    return Inputs(vectors, codes, grouped)


def _sum(tensor: Tensor) -> float:
    """Sum, on one thread if that is easy: those of torch would spin beside those of faiss."""
    if tensor.dtype in (torch.float32, torch.float64) and tensor.is_contiguous():
        with np.errstate(all="ignore"):
            return float(tensor.numpy().sum())
    return float(tensor.sum())


def require_finite(name: str, tensor: Tensor) -> None:
    """Refuse NaN and infinity in a tensor on a CPU; tensors elsewhere pass unseen.

    Raises:
        ValueError: which tensor, and its first row that is not finite.
    """
    # A sum is one fast pass; only if it is not finite, by a bad value or by overflow, look closer.
    if tensor.device.type != "cpu" or math.isfinite(_sum(tensor)):
        return
    rows = tensor.reshape(-1, tensor.shape[-1])
    for start in range(0, len(rows), ROWS_LOOKED_AT):
        good = rows[start : start + ROWS_LOOKED_AT].isfinite().all(-1)
        if not bool(good.all()):
            row = start + int(good.logical_not().nonzero()[0, 0])
            raise ValueError(
                f"{name}: row {row} holds NaN or infinity; look for what made it (a diverged "
                "model, a broken file) before searching"
            )
