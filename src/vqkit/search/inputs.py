"""What every search accepts: checks of vectors, codes and metric, in one place."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

Metric = Literal["l2", "cosine", "dot"]
METRICS: tuple[Metric, ...] = ("l2", "cosine", "dot")


class Inputs(NamedTuple):
    """Checked inputs without gradient: (G, N, D), (G, K, D), and whether G was given."""

    vectors: Tensor
    codes: Tensor
    grouped: bool

    def ungroup(self, result: Tensor) -> Tensor:
        """Drop the leading group axis of `result` (G, ...) again if the caller gave none."""
        return result if self.grouped else result[0]


def checked(vectors: Tensor, codes: Tensor, metric: str) -> Inputs:
    """Give both tensors a group axis and detach them.

    Raises:
        ValueError: unknown metric, shapes other than (N, D), (K, D) or (G, N, D), (G, K, D), no
            code, no dimension, a type that is not floating point, or two devices.
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
    if not grouped:
        vectors, codes = vectors[None], codes[None]
    return Inputs(vectors, codes, grouped)
