"""Features and ids that come from outside, checked before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .records import Slot


def check_features(z: Tensor, channels: int, expected: int) -> None:
    """Raise `ValueError` unless z is floating point, not empty, and has the expected channels."""
    if not z.is_floating_point():
        raise ValueError(f"z of type {z.dtype}: expected floating-point features")
    if channels != expected:
        raise ValueError(
            f"z has {channels} channels (shape {tuple(z.shape)}), but this quantizer takes "
            f"{expected}; pass in_channels={channels} to its preset for 1×1 projections"
        )
    if z.numel() == 0:
        raise ValueError(f"z of shape {tuple(z.shape)}: there is nothing to quantize")


def is_finite(z: Tensor) -> bool:
    """Whether no value is NaN or infinite; tensors that are not on a CPU pass unseen."""
    # A sum is one fast pass; only if it is not finite, by a bad value or by overflow, look closer.
    if z.device.type != "cpu" or math.isfinite(z.detach().sum()):
        return True
    return bool(z.isfinite().all())


def check_finite(z: Tensor, vectors: Tensor) -> None:
    """Raise `ValueError` for vectors that hold NaN or infinity, made from features z."""
    if is_finite(vectors):
        return
    if is_finite(z):
        raise ValueError(
            "z is finite, but NaN or infinity after project_in: the weights of the quantizer have "
            "diverged; go back to weights that were good"
        )
    bad = int(z.isfinite().logical_not().sum())
    raise ValueError(
        f"z of shape {tuple(z.shape)}: {bad:,} values are NaN or infinite, which are near no code; "
        "look for what made them (a diverged encoder, a broken input)"
    )


def check_ids(ids: Tensor, slots: Sequence[Slot]) -> None:
    """Raise `ValueError` unless ids (..., T) are int64 and each lies within its slot's codes."""
    if ids.dtype != torch.int64:
        raise ValueError(f"ids of type {ids.dtype}: expected torch.int64")
    if ids.shape[-1] != len(slots):
        raise ValueError(
            f"ids of shape {tuple(ids.shape)}: the last axis must hold the {len(slots)} tokens of "
            "a position"
        )
    limits = torch.tensor([slot.num_codes for slot in slots], device=ids.device)
    wrong = ((ids < 0) | (ids >= limits)).flatten(0, -2).any(0)
    if wrong.any():
        slot = int(wrong.nonzero()[0])
        values = ids[..., slot]
        raise ValueError(
            f"ids of slot {slots[slot].name!r} lie in [{int(values.min())}, {int(values.max())}]: "
            f"expected [0, {slots[slot].num_codes})"
        )
