"""What compositions share: checks of their parts, and terms and slots joined under their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from .assignments import Nearest
from .quantizer import Quantizer, check_quantizer, join_path
from .records import Quantized, Slot

Reduction = Literal["sum", "mean"]


def check_distinct(quantizers: Sequence[Quantizer], remedy: str) -> None:
    """Raise `ValueError` if one quantizer is given twice; `remedy` shares its codes."""
    for quantizer in quantizers:
        check_quantizer(quantizer)
    if len({id(quantizer) for quantizer in quantizers}) < len(quantizers):
        raise ValueError(f"a quantizer is given twice; use {remedy} to share its codes")


def check_level(quantizer: Quantizer, channels: int) -> None:
    """Raise `ValueError` unless a quantizer can be a level of a residual."""
    if quantizer.channels != channels:
        raise ValueError(
            f"levels of a residual need equal channels, got {quantizer.channels} and {channels}"
        )
    for leaf in quantizer.leaves():
        measured = isinstance(leaf.assignment, Nearest) and leaf.assignment.metric == "l2"
        if not measured or leaf.codebook.spherical:
            raise ValueError(
                f"a residual needs levels that take the nearest code by L2 in plain space, not "
                f"{leaf.assignment.summary()} on {leaf.codebook.summary()}"
            )


def term_weight(reduction: str, count: int) -> float:
    """Return the factor of the terms of `count` parts."""
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction={reduction!r}: expected 'sum' or 'mean'")
    return 1.0 if reduction == "sum" else 1 / count


def weighted_terms(found: Mapping[str, Quantized], weight: float) -> dict[str, Tensor]:
    """Join the terms of parts under their paths."""
    return {
        join_path(name, key): value * weight
        for name, part in found.items()
        for key, value in part.terms.items()
    }


def joined_weights(parts: Mapping[str, Quantizer], weight: float) -> dict[str, float]:
    """Join the weights of terms likewise."""
    return {
        join_path(name, key): value * weight
        for name, part in parts.items()
        for key, value in part.term_weights().items()
    }


def concatenate(
    parts: Mapping[str, Quantizer],
) -> tuple[tuple[Slot, ...], tuple[tuple[int, ...], ...]]:
    """Join slots and books of parts, in order."""
    slots: list[Slot] = []
    books: list[tuple[int, ...]] = []
    for name, part in parts.items():
        first = len(slots)
        slots += [Slot(join_path(name, slot.name), slot.num_codes) for slot in part.slots]
        books += [tuple(first + slot for slot in book) for book in part.books]
    return tuple(slots), tuple(books)
