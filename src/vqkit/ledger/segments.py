"""How the segments of one codebook use and share its codes (LooC, Figures 7 and 8)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

FEW = 0.9
"""LooC counts the segments that use not above 90 % of the codes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sharing:
    """Counts over a whole image set; a segment uses a code that it draws at least once."""

    num_segments: int
    num_codes: int
    usage: tuple[float, ...]
    """Share of the codes that each segment uses, in [0, 1]."""
    segments_below_90pct: int
    """Segments that use not above 90 % of the codes."""
    sharing_segments_min: int
    """The least number of segments that share a code."""
    sharing_segments_most: int
    """The largest n such that more than half of the codes are shared by at least n segments."""

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {**asdict(self), "usage": [round(share, 6) for share in self.usage]}


def count_sharing(batches: Iterable[Tensor], num_codes: int) -> Sharing:
    """Count which segment uses which code.

    Args:
        batches: ids (..., T) int64 in [0, num_codes), one token per segment in the last dimension.
        num_codes: codes of the codebook that the segments share.
    """
    used = torch.zeros(0, num_codes, dtype=torch.bool)
    for ids in batches:
        rows = ids.reshape(-1, ids.shape[-1]).cpu()
        if not len(used):
            used = torch.zeros(rows.shape[1], num_codes, dtype=torch.bool)
        used[torch.arange(rows.shape[1]).expand_as(rows), rows] = True
    if not len(used):
        raise ValueError("batches: hold no token; give the ids of at least one image")
    usage = used.double().mean(1)
    sharers = used.sum(0).sort(descending=True).values
    return Sharing(
        num_segments=len(used),
        num_codes=num_codes,
        usage=tuple(usage.tolist()),
        segments_below_90pct=int((usage <= FEW).sum()),
        sharing_segments_min=int(sharers[-1]),
        sharing_segments_most=int(sharers[num_codes // 2]),
    )
