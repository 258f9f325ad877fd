"""Which segments use which codes, and how many share each (LooC, supplement 2, Figures 7, 8)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vqkit.analysis.conditions import (
    Conditions,
    Progress,
    check_inputs,
    conditions_of,
    token_batches,
)
from vqkit.config import require
from vqkit.data import ImageSet
from vqkit.metrics.counts import DENSE_LIMIT, TableCounts
from vqkit.metrics.usage import uniform_usage
from vqkit.models import ImageTokenizer
from vqkit.training.window import book_names

_CELL = re.compile(r"^row\d+col\d+\.?")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SegmentBook:
    """One codebook and the segments that draw from it (or levels, of a residual quantizer)."""

    name: str
    segments: tuple[str, ...]
    """Names of the S segments; the sub-pixels of an enlarged map (β > 1) are pooled."""
    counts: Tensor
    """(S, K) int64: how often each segment drew each code."""

    @property
    def num_codes(self) -> int:
        """K."""
        return self.counts.shape[1]

    def num_used(self) -> Tensor:
        """Return how many codes each segment drew at least once, (S,) int64 (Figure 7)."""
        return (self.counts > 0).sum(1)

    def sharing(self) -> Tensor:
        """Return how many segments drew each code at least once, (K,) int64 (Figure 8)."""
        return (self.counts > 0).sum(0)

    def perplexity(self) -> Tensor:
        """Return the perplexity of each segment's tokens, (S,) float64."""
        shares = self._shares()
        return (-(shares * shares.clamp(min=1e-300).log()).sum(1)).exp()

    def common(self) -> Tensor:
        """Return codes that both of two segments drew over those that either drew, (S, S) float64.

        Symmetric, in [0, 1], with ones on the diagonal.
        """
        used = (self.counts > 0).double()
        both = used @ used.T
        each = used.sum(1)
        return both / (each[:, None] + each - both).clamp(min=1)

    def overlap(self) -> Tensor:
        """Return Σ_k min(p_i(k), p_j(k)) of the frequencies p of two segments, (S, S) float64.

        1 where two segments draw all codes equally often, 0 where they have none in common. Unlike
        `common` it does not count a code as shared that one of them drew once in a million.
        """
        shares = self._shares()
        # Row by row: S × S × K at once would be large.
        return torch.stack([torch.minimum(row, shares).sum(1) for row in shares])

    def _shares(self) -> Tensor:
        return self.counts.double() / self.counts.sum(1, keepdim=True)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON values."""
        tokens = self.counts.sum(1).tolist()
        rows = zip(
            self.segments, tokens, self.num_used().tolist(), self.perplexity().tolist(), strict=True
        )
        segments = [
            {
                "name": name,
                "num_tokens": drawn,
                "num_used": used,
                "usage": used / self.num_codes,
                "uniform_usage": uniform_usage(self.num_codes, drawn),
                "perplexity": perplexity,
            }
            for name, drawn, used, perplexity in rows
        ]
        found: dict[str, Any] = {"name": self.name, "num_codes": self.num_codes}
        found["segments"] = segments
        if len(segments) > 1:
            sharing = self.sharing()
            found |= {
                "least_sharing": int(sharing.min()),
                "mean_sharing": float(sharing.double().mean()),
                "codes_by_num_segments": sharing.bincount(minlength=len(segments) + 1).tolist(),
                "common": self.common().tolist(),
                "overlap": self.overlap().tolist(),
            }
        return found


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SegmentUsage:
    """The segments of a tokenizer over an image set."""

    conditions: Conditions
    books: tuple[SegmentBook, ...]
    """In the order of `quantizer.books`: one for LooC, one per segment for PQ."""

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON values."""
        return {
            "protocol": self.conditions.to_dict(),
            "books": [book.to_dict() for book in self.books],
        }


def segment_names(tokenizer: ImageTokenizer) -> list[str]:
    """Return the segment that each slot of a tokenizer belongs to, slot by slot.

    Sub-pixels of β > 1 stand side by side as slots; a segment is what remains of the name.
    """
    return [_CELL.sub("", slot.name) or "code" for slot in tokenizer.quantizer.slots]


def segments_of(tokenizer: ImageTokenizer) -> list[dict[str, list[int]]]:
    """Return for every codebook its segments by name, and the slots that belong to each."""
    names = segment_names(tokenizer)
    found: list[dict[str, list[int]]] = []
    for book in tokenizer.quantizer.books:
        members: dict[str, list[int]] = {}
        for slot in book:
            members.setdefault(names[slot], []).append(slot)
        found.append(members)
    return found


def by_segment(ids: Tensor, members: Mapping[str, Sequence[int]]) -> Tensor:
    """Sort ids (..., T) by the segments of one codebook: (N, S), sub-pixels one below another."""
    return torch.stack([ids[..., list(slots)].flatten() for slots in members.values()], dim=1)


def segment_usage(
    tokenizer: ImageTokenizer,
    images: ImageSet,
    *,
    batch_size: int = 16,
    name: str = "tokenizer",
    progress: Progress | None = None,
) -> SegmentUsage:
    """Count every token of an image set by its segment and the code it names.

    Memory: one counter per segment and code, whatever the number of images.

    Args:
        tokenizer: with at least two tokens per vector: LooC, PQ, RQ, Dual; its mode and state stay.
        images: from `load_images`; images of different sizes are fine.
        batch_size: images of one size that are encoded together.
        name: names the tokenizer in figures.
        progress: called after every batch.

    Raises:
        ValueError: one segment only, more than 4,194,304 segments × codes, no image, or images of
            other channels.
    """
    check_inputs(tokenizer, images)
    quantizer = tokenizer.quantizer
    segments, owners = segment_names(tokenizer), segments_of(tokenizer)
    require(
        len(set(segments)) > 1,
        f"{name}: slots={len(segments)}",
        "its vectors are quantized whole, so that no segments share codes; `bars` shows its usage",
    )
    sizes = [quantizer.slots[book[0]].num_codes for book in quantizer.books]
    for members, num_codes in zip(owners, sizes, strict=True):
        require(
            len(members) * num_codes <= DENSE_LIMIT,
            f"{name}: {len(members)} segments of {num_codes:,} codes",
            f"a table holds at most {DENSE_LIMIT:,} counters; use `frequency`",
        )
    tallies = [TableCounts(len(m), num_codes) for m, num_codes in zip(owners, sizes, strict=True)]
    num_images = num_tokens = 0
    for originals, ids in token_batches(tokenizer, images, batch_size, progress):
        num_images += len(originals)
        num_tokens += ids.numel()
        for members, tally in zip(owners, tallies, strict=True):
            tally.add(by_segment(ids, members))
    names = book_names(quantizer.slots, quantizer.books)
    return SegmentUsage(
        conditions=conditions_of(
            name, tokenizer, images, num_images=num_images, num_tokens=num_tokens
        ),
        books=tuple(
            SegmentBook(name=title, segments=tuple(members), counts=tally.table.cpu())
            for title, members, tally in zip(names, owners, tallies, strict=True)
        ),
    )
