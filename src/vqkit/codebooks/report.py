"""How good codes are: the quality of a clustering, and what a codebook shows by itself.

Legend: K codes, D dim.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqkit.clustering import Clustering
from vqkit.clustering.draws import Purpose, distinct_rows
from vqkit.codebooks.files import CodebookFile, dtype_name
from vqkit.search import nearest_k
from vqkit.search.exact import first_copies

NEIGHBOUR_CODES = 1024
"""Codes whose nearest neighbour among all is looked for: a search over K × K takes long."""
GRAM_ROWS = 4096
"""Codes that are in memory as float64 at a time."""


def quality(found: Clustering) -> dict[str, Any]:
    """Return how good a clustering is as JSON values that every run gives alike: no times."""
    report, sizes = found.report, np.sort(found.sizes.cpu().numpy())
    share = sizes[sizes > 0] / max(sizes.sum(), 1)
    return {
        "num_vectors": report.num_vectors,
        "inertia": report.inertia,
        "mean_squared_distance": report.inertia / report.num_vectors,
        "converged": report.converged,
        "repaired": report.repaired,
        "unused": report.unused,
        "sizes": {
            "smallest": int(sizes[0]),
            "median": int(sizes[(len(sizes) - 1) // 2]),
            "largest": int(sizes[-1]),
            "perplexity": float(np.exp(-(share * np.log(share)).sum())),
        },
        "iterations": [
            {"inertia": step.inertia, "moved": step.moved, "repaired": step.repaired}
            for step in report.iterations
        ],
    }


@dataclass(frozen=True, slots=True)
class CodebookDescription:
    """What a codebook shows without its features."""

    num_codes: int
    dim: int
    dtype: str
    lengths: tuple[float, float, float]
    """Smallest, mean and largest length (L2) of a code."""
    neighbours: tuple[float, float, float]
    """Smallest, median and largest distance of a code to the nearest other code; zeros for K=1."""
    neighbours_of: int
    """Codes that this was measured for, drawn at random among all."""
    copies: int
    """Codes with exactly the values of an earlier one."""
    effective_rank: float
    """In how many directions the codes spread, 1 to D: e to the entropy of the normalized singular
    values of the centred codes (Roy and Vetterli 2007). 0 if all are equal."""
    provenance: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return everything above as JSON values."""
        return asdict(self)

    def text(self) -> str:
        """Describe the codebook in lines of facts."""
        record = self.provenance
        rows = [
            ("codes", f"{self.num_codes:,} of {self.dim:,} numbers, {self.dtype}"),
            ("method", str(record.get("method"))),
            *((name, value) for name, value in _flat(record.get("settings") or {})),
            *((f"features {name}", value) for name, value in _flat(record.get("features") or {})),
        ]
        groups = record.get("groups")
        if groups is not None:
            counts = [count for _, count in groups]
            rows.append(("groups", f"{len(groups):,}, {min(counts):,} to {max(counts):,} codes"))
        report = record.get("report") or {}
        rows += [(name, value) for name, value in _flat(report) if name != "iterations"]
        of = "" if self.neighbours_of == self.num_codes else f" (of {self.neighbours_of:,} codes)"
        rows += [
            ("length", "{:.4g} to {:.4g}, mean {:.4g}".format(*_middle_last(self.lengths))),
            (
                "nearest code",
                "{:.4g} to {:.4g}, median {:.4g}".format(*_middle_last(self.neighbours)) + of,
            ),
            ("copies", f"{self.copies:,}"),
            ("effective rank", f"{self.effective_rank:.1f} of {self.dim:,}"),
        ]
        rows += [("made by vqkit", made) for made in [record.get("made")] if made is not None]
        width = max(len(name) for name, _ in rows) + 2
        return "\n".join(f"{name:<{width}}{value}" for name, value in rows)


def describe_codes(book: CodebookFile) -> CodebookDescription:
    """Measure lengths, distances between neighbours, copies and effective rank of codes (K, D)."""
    codes = book.codes.float()
    lengths = codes.norm(dim=1)
    count = min(NEIGHBOUR_CODES, len(codes))
    neighbours = torch.zeros(1)
    if len(codes) > 1:
        some = codes[distinct_rows(0, Purpose.SAMPLE, 0, count, len(codes))]
        # The nearest of all is the code itself, or a copy of it.
        neighbours = nearest_k(some, codes, 2)[1][:, 1].clamp(max=0).neg().sqrt()
    copies = copies_in(codes)
    return CodebookDescription(
        num_codes=book.num_codes,
        dim=book.dim,
        dtype=dtype_name(book.codes.dtype),
        lengths=(float(lengths.min()), float(lengths.mean()), float(lengths.max())),
        neighbours=(
            float(neighbours.min()),
            float(neighbours.median()),
            float(neighbours.max()),
        ),
        neighbours_of=count,
        copies=0 if copies is None else int(copies.sum()),
        effective_rank=effective_rank(codes),
        provenance=book.provenance,
    )


def copies_in(codes: Tensor) -> Tensor | None:
    """Mark (K,) the codes (K, D) that equal an earlier one; None if all differ."""
    first = first_copies(codes)
    return None if first is None else first != torch.arange(len(codes))


def effective_rank(codes: Tensor) -> float:
    """Return e^H of the normalized singular values of the centred codes (K, D), 0 if all are equal.

    Roy and Vetterli 2007, "The effective rank", equation 4.
    """
    mean = codes.mean(0, dtype=torch.float64)
    products = mean.new_zeros(len(mean), len(mean))
    for part in codes.split(GRAM_ROWS):
        rows = part.double() - mean
        products += rows.T @ rows
    squared = torch.linalg.eigvalsh(products).clamp(min=0)
    # What float64 leaves of zeros does not count.
    values = squared[squared > squared.max() * len(squared) * 2.0**-52].sqrt()
    if values.numel() == 0:
        return 0.0
    share = values / values.sum()
    return float(torch.exp(-(share * share.log()).sum()))


def _middle_last(values: tuple[float, float, float]) -> tuple[float, float, float]:
    return values[0], values[2], values[1]


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """List nested values by their names, such as ("encoder.name", "pixels")."""
    rows = []
    for name, value in values.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            rows.append((f"{prefix}{name}", f"{len(value):,} entries"))
        elif value is not None:
            plain = isinstance(value, bool) or not isinstance(value, int)
            rows.append((f"{prefix}{name}", str(value) if plain else f"{value:,}"))
    return rows
