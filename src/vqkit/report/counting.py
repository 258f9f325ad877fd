"""How often every code is drawn on the images of a report, by codebook and by segment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from vqkit.analysis.codes.segments import SegmentBook, by_segment, segments_of
from vqkit.data import ImageSet, iterate_once
from vqkit.metrics.counts import Counts, TableCounts, make_counts
from vqkit.models import ImageTokenizer
from vqkit.models.tokenizer import evaluation_mode
from vqkit.training.window import book_names

MAX_IMAGES: Final = 500
MAX_PIXELS: Final = 8_000_000
"""What is counted at most: the first images of a set, up to the first that goes beyond."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BookCounts:
    """The draws of one codebook."""

    name: str
    num_codes: int
    draws: Tensor
    """(U,) int64: draws of every code that was drawn, all segments pooled, most first."""
    shared: tuple[int, ...]
    """Entry n: codes that exactly n segments drew, the sub-pixels of β > 1 pooled. Empty beyond
    4,194,304 segments × codes."""

    @property
    def num_tokens(self) -> int:
        """Tokens counted."""
        return int(self.draws.sum())


@dataclass(frozen=True, kw_only=True, slots=True)
class RunCounts:
    """The draws of all codebooks of a run."""

    books: tuple[BookCounts, ...]
    num_images: int
    of_images: int
    """Images of the set."""
    images: str = ""
    """Fingerprint of the set."""


def count_codes(
    tokenizer: ImageTokenizer,
    images: ImageSet,
    *,
    batch_size: int = 16,
) -> RunCounts:
    """Encode the first images of a set and count every token by its code and its segment."""
    quantizer = tokenizer.quantizer
    device = next(tokenizer.parameters()).device
    sizes = [quantizer.slots[book[0]].num_codes for book in quantizer.books]
    owners = segments_of(tokenizer)
    tallies = [make_counts(len(m), num_codes) for m, num_codes in zip(owners, sizes, strict=True)]
    done = pixels = 0
    with torch.no_grad(), evaluation_mode(tokenizer):
        for batch in iterate_once(images, batch_size):
            ids = tokenizer.encode(batch.images.to(device)).flatten(0, -2)
            for members, tally in zip(owners, tallies, strict=True):
                tally.add(by_segment(ids, members))
            done += len(batch.images)
            pixels += batch.images[:, 0].numel()
            if done >= MAX_IMAGES or pixels >= MAX_PIXELS:
                break
    names = book_names(quantizer.slots, quantizer.books)
    books = tuple(
        BookCounts(
            name=name,
            num_codes=num_codes,
            draws=tally.pooled().cpu().sort(descending=True).values,
            shared=_shared(name, tuple(members), tally),
        )
        for name, num_codes, members, tally in zip(names, sizes, owners, tallies, strict=True)
    )
    return RunCounts(
        books=books, num_images=done, of_images=len(images), images=images.fingerprint()
    )


def _shared(name: str, segments: tuple[str, ...], tally: Counts) -> tuple[int, ...]:
    """Count the codes that were drawn by exactly 0, 1, 2, ... segments."""
    if not isinstance(tally, TableCounts):
        return ()
    book = SegmentBook(name=name, segments=segments, counts=tally.table.cpu())
    return tuple(book.sharing().bincount(minlength=len(segments) + 1).tolist())
