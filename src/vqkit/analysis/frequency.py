"""How often every code is drawn over a data set (VQGAN-LC, arXiv:2406.11837, Figure 3 right)."""

from __future__ import annotations

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
from vqkit.metrics import CodeStatistics, CodeUsage
from vqkit.metrics.counts import DENSE_LIMIT, Counts, SeenCounts, TableCounts, make_counts
from vqkit.models import ImageTokenizer
from vqkit.training.window import book_names


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BookFrequency:
    """The draws of one codebook, all slots that share it pooled."""

    name: str
    """What the paths of its slots share; `code` where there is one codebook."""
    statistics: CodeStatistics
    """Tokens, codes used, entropy, perplexity, usage and its ceilings."""
    ids: Tensor
    """(U,) int64, the codes drawn at least once, rising."""
    counts: Tensor
    """(U,) int64, how often each of them was drawn."""

    def table(self) -> Tensor:
        """Return how often every code was drawn, (K,) int64.

        A codebook of more than 4,194,304 codes (a large lattice) is a `ValueError`.
        """
        num_codes = self.statistics.num_codes
        require(
            num_codes <= DENSE_LIMIT,
            f"num_codes={num_codes}",
            f"a table holds at most {DENSE_LIMIT} codes; use ids and counts",
        )
        return torch.zeros(num_codes, dtype=torch.int64).index_copy_(0, self.ids, self.counts)

    def sorted_counts(self) -> list[tuple[int, int]]:
        """Return the curve as (draws, number of codes drawn so often), most draws first."""
        draws, codes = self.counts.unique(return_counts=True)
        pairs = list(zip(draws.flip(0).tolist(), codes.flip(0).tolist(), strict=True))
        unused = self.statistics.num_codes - len(self.ids)
        return [*pairs, (0, unused)] if unused else pairs

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON values."""
        return {
            "name": self.name,
            **self.statistics.to_dict(),
            "draws_and_codes": [list(pair) for pair in self.sorted_counts()],
        }


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Frequency:
    """How often the codes of a tokenizer are drawn over an image set."""

    conditions: Conditions
    books: tuple[BookFrequency, ...]
    """In the order of `quantizer.books`."""

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON values."""
        return {
            "protocol": self.conditions.to_dict(),
            "books": [book.to_dict() for book in self.books],
        }


def code_frequency(
    tokenizer: ImageTokenizer,
    images: ImageSet,
    *,
    batch_size: int = 16,
    name: str = "tokenizer",
    progress: Progress | None = None,
) -> Frequency:
    """Count every token of an image set, by the code it names.

    Works for every quantizer. Memory: one counter per code, or, beyond 4,194,304 slots × codes, one
    per code that occurs.

    Args:
        tokenizer: on any device; its mode and state stay as they are.
        images: from `load_images`; images of different sizes are fine.
        batch_size: images of one size that are encoded together.
        name: names the tokenizer in figures.
        progress: called after every batch.

    Raises:
        ValueError: no image, or images of other channels.
    """
    check_inputs(tokenizer, images)
    quantizer = tokenizer.quantizer
    sizes = [slot.num_codes for slot in quantizer.slots]
    usage = CodeUsage(sizes, quantizer.books)
    tallies = [make_counts(len(book), sizes[book[0]]) for book in quantizer.books]
    num_images = 0
    for originals, ids in token_batches(tokenizer, images, batch_size, progress):
        num_images += len(originals)
        usage.update(ids)
        for book, tally in zip(quantizer.books, tallies, strict=True):
            tally.add(ids[..., list(book)].flatten(0, -2))
    names = book_names(quantizer.slots, quantizer.books)
    found = zip(names, usage.by_book(), tallies, strict=True)
    return Frequency(
        conditions=conditions_of(
            name, tokenizer, images, num_images=num_images, num_tokens=usage.num_tokens
        ),
        books=tuple(_book(book, statistics, tally) for book, statistics, tally in found),
    )


def _book(name: str, statistics: CodeStatistics, tally: Counts) -> BookFrequency:
    if isinstance(tally, TableCounts):
        table = tally.table.sum(0).cpu()
        ids = table.nonzero()[:, 0]
        return BookFrequency(name=name, statistics=statistics, ids=ids, counts=table[ids])
    assert isinstance(tally, SeenCounts)
    seen = tally.seen.cpu()
    ids, place = (seen[:, 0] % tally.num_codes).unique(return_inverse=True)
    counts = torch.zeros_like(ids).index_add_(0, place, seen[:, 1])
    return BookFrequency(name=name, statistics=statistics, ids=ids, counts=counts)
