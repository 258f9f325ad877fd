"""Improved precision and recall of generated images, from features.

Kynkäänniemi, Karras, Laine, Lehtinen, Aila 2019 (arXiv:1904.06991), section 2, equations 1 to 3.
The authors take the features of VGG16; here they are those of whatever network measures, as in
most later work, and the protocol names it.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from vqkit.config import require

NEIGHBOURS: Final = 3
"""k of the paper: the sphere around a vector reaches its k-th nearest other vector."""
_BLOCK: Final = 1024
"""Rows of distances held at once."""


def precision_recall(
    real: Tensor, generated: Tensor, *, neighbours: int = NEIGHBOURS
) -> tuple[float, float]:
    """Return the share of generated vectors among the real ones, and of real among generated.

    A vector lies among others if it is inside the sphere around one of them, whose radius is the
    distance to its k-th nearest neighbour in its own set (equation 2); on the sphere counts.

    Args:
        real: features (n, D), floating point.
        generated: features (m, D).
        neighbours: k.

    Raises:
        ValueError: too few vectors on one side for k neighbours, other sizes, or values that are
            not finite.
    """
    require(neighbours >= 1, f"neighbours={neighbours}", "must be at least 1")
    least = min(len(real), len(generated))
    require(
        least > neighbours,
        f"{len(real)} and {len(generated)} images",
        f"precision and recall with k={neighbours} need at least {neighbours + 1} each",
    )
    sizes = (real.shape[1], generated.shape[1])
    require(sizes[0] == sizes[1], f"features of {sizes[0]} and {sizes[1]}", "must be equally many")
    finite = bool(real.isfinite().all() and generated.isfinite().all())
    require(finite, "features", "hold NaN or infinity; the network's weights are damaged")
    centre = real.double().mean(0)  # distances stay, and so do their digits
    x, y = real.double() - centre, generated.to(centre) - centre
    precision = _share_inside(y, x, _squared_radii(x, neighbours))
    return precision, _share_inside(x, y, _squared_radii(y, neighbours))


def _squared_radii(rows: Tensor, neighbours: int) -> Tensor:
    """Return the squared distance (n,) of every row to its k-th nearest other row."""
    radii = torch.empty(len(rows), dtype=rows.dtype, device=rows.device)
    for start in range(0, len(rows), _BLOCK):
        stop = min(start + _BLOCK, len(rows))
        distances = _squared_distances(rows[start:stop], rows)
        own = torch.arange(start, stop, device=rows.device)
        distances[own - start, own] = torch.inf  # equal rows elsewhere are neighbours, itself not
        radii[start:stop] = distances.kthvalue(neighbours, dim=1).values
    return radii


def _share_inside(rows: Tensor, centres: Tensor, squared_radii: Tensor) -> float:
    """Return the share of rows inside at least one sphere."""
    inside = 0
    for block in rows.split(_BLOCK):
        inside += int((_squared_distances(block, centres) <= squared_radii).any(1).sum())
    return inside / len(rows)


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    lengths = x.square().sum(1, keepdim=True) + y.square().sum(1)
    return torch.addmm(lengths, x, y.T, alpha=-2).clamp(min=0)
