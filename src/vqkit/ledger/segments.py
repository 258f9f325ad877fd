"""How the segments of one codebook use and share its codes (LooC, Figures 7 and 8)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from vqkit.analysis.codes.segments import segment_names, segment_usage

if TYPE_CHECKING:
    from torch import Tensor

    from vqkit.data import ImageSet
    from vqkit.models import ImageTokenizer

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


def count_sharing(tokenizer: ImageTokenizer, images: ImageSet, batch_size: int) -> Sharing | None:
    """Count over an image set which segment uses which code.

    Segments are those of `vqkit.analysis.segment_usage`: the sub-pixels of β > 1 are no segments
    of their own.

    Returns:
        None where no segments share a codebook: one segment only, or a codebook for each.
    """
    if len(tokenizer.quantizer.books) != 1 or len(set(segment_names(tokenizer))) == 1:
        return None
    (book,) = segment_usage(tokenizer, images, batch_size=batch_size).books
    return sharing_of(book.counts)


def sharing_of(counts: Tensor) -> Sharing:
    """Return the sharing of counts (S, K): how often each segment drew each code."""
    used = counts > 0
    usage = used.double().mean(1)
    sharers = used.sum(0).sort(descending=True).values
    num_segments, num_codes = used.shape
    return Sharing(
        num_segments=num_segments,
        num_codes=num_codes,
        usage=tuple(usage.tolist()),
        segments_below_90pct=int((usage <= FEW).sum()),
        sharing_segments_min=int(sharers[-1]),
        sharing_segments_most=int(sharers[num_codes // 2]),
    )
