"""Numbers of several evaluations against the size of their codebooks.

Quality against K and the length of a code (LooC, Figures 1 and 6); usage, perplexity and FID
against K (VQGAN-LC, arXiv:2406.11837, Figure 1a).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from vqkit.config import require
from vqkit.metrics import CodeStatistics
from vqkit.metrics import Protocol as Measuring

LOWER_IS_BETTER = {"fid", "kid", "lpips_vgg", "lpips_alex", "l1", "l2"}


class _Number(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def value(self) -> float | None: ...
    @property
    def unit(self) -> str: ...


class Measured(Protocol):
    """What is read of a `vqkit.evaluation.Evaluation`."""

    @property
    def name(self) -> str:
        """Of the tokenizer."""

    @property
    def metrics(self) -> Sequence[_Number]:
        """All numbers."""

    @property
    def protocol(self) -> Measuring:
        """How they were measured, and on which images."""

    @property
    def books(self) -> Sequence[CodeStatistics]:
        """Per codebook, slots pooled."""

    @property
    def codebook_floats(self) -> int:
        """Numbers in all codebooks."""

    @property
    def num_images(self) -> int:
        """Images measured."""

    @property
    def num_tokens(self) -> int:
        """Tokens counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SizePoint:
    """One tokenizer: the size of its codebook, and all that was measured of it."""

    name: str
    method: str
    """Tokenizers of one method share colour and lines."""
    num_codes: int
    """K, of the largest codebook where there are several of different sizes."""
    dim: int | None
    """Length of a code; None for a lattice, and for several codebooks: an evaluation does not say
    how long the codes of each are."""
    mean_dim: float
    """Numbers of all codebooks over all their codes; 0 for a lattice."""
    num_books: int
    codebook_floats: int
    num_images: int
    num_tokens: int
    metrics: dict[str, float | None]
    units: dict[str, str]
    uniform_usage: float
    """Usage to expect from as many uniform draws, mean over codebooks."""
    protocol: Measuring

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON values."""
        values = asdict(self)
        del values["protocol"]
        return {"protocol": self.protocol.to_dict(), **values}


def size_point(found: Measured, *, method: str = "tokenizer") -> SizePoint:
    """Read what the figures need off an evaluation.

    Args:
        found: a `vqkit.evaluation.Evaluation`.
        method: what lines join, such as the preset of the quantizer.
    """
    dim, rest = divmod(found.codebook_floats, found.books[0].num_codes)
    known = len(found.books) == 1 and dim > 0 and rest == 0
    return SizePoint(
        name=found.name,
        method=method,
        num_codes=max(book.num_codes for book in found.books),
        dim=dim if known else None,
        mean_dim=found.codebook_floats / sum(book.num_codes for book in found.books),
        num_books=len(found.books),
        codebook_floats=found.codebook_floats,
        num_images=found.num_images,
        num_tokens=found.num_tokens,
        metrics={one.name: one.value for one in found.metrics},
        units={one.name: one.unit for one in found.metrics},
        uniform_usage=sum(book.uniform_usage for book in found.books) / len(found.books),
        protocol=found.protocol,
    )


def check_points(points: Sequence[SizePoint]) -> None:
    """Raise `ValueError` unless all points were measured alike, on the same images."""
    require(len(points) > 0, "evaluations", "none is given; give the file of at least one")
    first = points[0]
    for point in points[1:]:
        require(
            point.protocol.id == first.protocol.id,
            f"{point.name}: protocol={point.protocol.id}",
            f"{first.name} was measured under {first.protocol.id}; numbers of two protocols or of "
            "other images cannot stand in one curve, evaluate them alike",
        )


def lines(
    points: Sequence[SizePoint], x: str, metric: str
) -> dict[tuple[str, int | None, float], list[tuple[int, float, SizePoint]]]:
    """Join points of one method that differ in `x` alone: `num_codes` or `dim`.

    Returns (x, value, point), x rising, by (method, the other size, and over `num_codes` the mean
    length too, which keeps codebooks of unknown lengths apart). Points without a value or without
    the size `x` are left out.
    """
    other = {"num_codes": "dim", "dim": "num_codes"}[x]
    found: dict[tuple[str, int | None, float], list[tuple[int, float, SizePoint]]] = {}
    for point in points:
        place, value = getattr(point, x), point.metrics.get(metric)
        if place is not None and value is not None:
            mean = point.mean_dim if x == "num_codes" else 0.0
            key = (point.method, getattr(point, other), mean)
            found.setdefault(key, []).append((place, value, point))
    return {key: sorted(row, key=lambda one: one[:2]) for key, row in found.items()}
