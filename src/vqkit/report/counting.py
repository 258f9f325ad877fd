"""How often every code is drawn on the images of a report, by codebook and by slot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from vqkit.data import ImageSet, iterate_once
from vqkit.metrics.counts import Counts, SeenCounts, TableCounts, make_counts
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
    """(U,) int64: draws of every code that was drawn, all slots pooled, most first."""
    slot_names: tuple[str, ...]
    slot_used: tuple[int, ...]
    """Codes that each slot drew at least once."""
    shared: tuple[int, ...]
    """Entry n - 1: codes that exactly n slots drew."""

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


def count_codes(
    tokenizer: ImageTokenizer,
    images: ImageSet,
    *,
    batch_size: int = 16,
) -> RunCounts:
    """Encode the first images of a set and count every token by its code and its slot."""
    quantizer = tokenizer.quantizer
    device = next(tokenizer.parameters()).device
    tallies = [make_counts(len(b), quantizer.slots[b[0]].num_codes) for b in quantizer.books]
    done = pixels = 0
    with torch.no_grad(), evaluation_mode(tokenizer):
        for batch in iterate_once(images, batch_size):
            ids = tokenizer.encode(batch.images.to(device)).flatten(0, -2)
            for book, tally in zip(quantizer.books, tallies, strict=True):
                tally.add(ids[:, list(book)])
            done += len(batch.images)
            pixels += batch.images[:, 0].numel()
            if done >= MAX_IMAGES or pixels >= MAX_PIXELS:
                break
    names = book_names(quantizer.slots, quantizer.books)
    books = tuple(
        BookCounts(
            name=name,
            num_codes=quantizer.slots[book[0]].num_codes,
            draws=tally.pooled().cpu().sort(descending=True).values,
            slot_names=tuple(quantizer.slots[slot].name for slot in book),
            slot_used=tuple(len(tally.of_slot(i)) for i in range(len(book))),
            shared=_shared(tally, len(book)),
        )
        for name, book, tally in zip(names, quantizer.books, tallies, strict=True)
    )
    return RunCounts(books=books, num_images=done, of_images=len(images))


def _shared(tally: Counts, num_slots: int) -> tuple[int, ...]:
    """Count the codes that were drawn by exactly 1, 2, ... `num_slots` slots."""
    if isinstance(tally, TableCounts):
        slots = (tally.table > 0).sum(0)
    else:
        assert isinstance(tally, SeenCounts)
        slots = (tally.seen[:, 0] % tally.num_codes).unique(return_counts=True)[1]
    return tuple(int((slots == n).sum()) for n in range(1, num_slots + 1))
