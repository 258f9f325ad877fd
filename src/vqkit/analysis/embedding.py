"""Active and inactive codes in the plane, by t-SNE (VQGAN-LC, arXiv:2406.11837, Figure 4)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vqkit.analysis.conditions import Conditions, Progress
from vqkit.analysis.frequency import BookFrequency, code_frequency
from vqkit.analysis.tables import CodeTable, code_tables
from vqkit.config import require
from vqkit.data import ImageSet
from vqkit.models import ImageTokenizer
from vqkit.models.tokenizer import evaluation_mode

FEWEST = 5
"""Codes below which neighbourhoods mean nothing."""
MOST_BOOKS = 12
"""Panels of one figure."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BookMap:
    """Codes of one codebook in the plane."""

    name: str
    num_codes: int
    num_active: int
    """Codes of the whole codebook that were drawn at least once."""
    ids: Tensor
    """(n,) int64, the codes that are shown, rising: all, or a seeded sample."""
    active: Tensor
    """(n,) bool, whether each was drawn at least once."""
    points: Tensor
    """(n, 2) float32; only neighbourhoods mean something, neither axes nor distances do."""

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON values."""
        return {
            "name": self.name,
            "num_codes": self.num_codes,
            "num_active": self.num_active,
            "num_shown": len(self.ids),
            "num_shown_active": int(self.active.sum()),
            "ids": self.ids.tolist(),
            "active": self.active.tolist(),
            "points": self.points.tolist(),
        }


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CodeMap:
    """The codebooks of a tokenizer in the plane."""

    conditions: Conditions
    books: tuple[BookMap, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON values."""
        return {
            "protocol": self.conditions.to_dict(),
            "books": [book.to_dict() for book in self.books],
        }


def map_codes(
    tokenizer: ImageTokenizer,
    images: ImageSet,
    *,
    max_codes: int = 2000,
    perplexity: float = 30.0,
    seed: int = 0,
    books: Sequence[int] | None = None,
    batch_size: int = 16,
    name: str = "tokenizer",
    progress: Progress | None = None,
) -> CodeMap:
    """Embed the codes by t-SNE; a code is active if any image of the set draws it.

    The codes are those of the tables as vectors are compared with them (VQGAN-LC: projected), the
    distance Euclidean. t-SNE runs on one thread, so that the points are the same in every run.

    Args:
        tokenizer: with any quantizer but a lattice; its mode and state stay as they are.
        images: that tell active from inactive codes.
        max_codes: of a larger codebook a sample of so many codes is shown.
        perplexity: of t-SNE; lowered to a third of the codes where these are few.
        seed: of the sample and of t-SNE.
        books: which codebooks, counted from 0; None for all.
        batch_size, name, progress: as in `code_frequency`.

    Raises:
        ValueError: a lattice, fewer than 5 codes, more than 12 codebooks at once, scikit-learn is
            not installed, or as `code_frequency`.
    """
    require(max_codes >= FEWEST, f"max_codes={max_codes}", f"must be at least {FEWEST}")
    require(perplexity > 0, f"perplexity={perplexity}", "must be above 0")
    require(0 <= seed < 2**32, f"seed={seed}", "must lie in 0..2^32-1")
    with evaluation_mode(tokenizer):
        tables = _chosen(code_tables(tokenizer.quantizer), books)
    _load_tsne()  # before the images
    drawn = code_frequency(tokenizer, images, batch_size=batch_size, name=name, progress=progress)
    found = []
    for number, table in tables.items():
        found.append(_map(table, drawn.books[number], max_codes, perplexity, seed))
    settings = {
        "max_codes": max_codes,
        "perplexity": perplexity,
        "seed": seed,
        "books": list(tables),
        "method": "t-SNE (Barnes-Hut), Euclidean",
    }
    return CodeMap(conditions=replace(drawn.conditions, settings=settings), books=tuple(found))


def _chosen(tables: Sequence[CodeTable], books: Sequence[int] | None) -> dict[int, CodeTable]:
    """Return the tables to show, by their number."""
    numbers = sorted(set(range(len(tables)) if books is None else books))
    for number in numbers:
        require(
            0 <= number < len(tables),
            f"books={number}",
            f"the quantizer has {len(tables)} codebooks, counted from 0",
        )
    require(
        1 <= len(numbers) <= MOST_BOOKS,
        f"books: {len(numbers)} codebooks",
        f"one figure shows 1 to {MOST_BOOKS}; choose some, such as books 0 1",
    )
    for number in numbers:
        require(
            len(tables[number].codes) >= FEWEST,
            f"codebook {tables[number].name!r} of {len(tables[number].codes)} codes",
            f"t-SNE needs at least {FEWEST}; leave it out with books",
        )
    return {number: tables[number] for number in numbers}


def _map(
    table: CodeTable, drawn: BookFrequency, max_codes: int, perplexity: float, seed: int
) -> BookMap:
    codes = table.codes.float().cpu()
    require(
        bool(codes.isfinite().all()),
        f"codebook {table.name!r}",
        "holds NaN or infinity; the model that made it has diverged",
    )
    order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(seed))
    ids = order[:max_codes].sort().values
    return BookMap(
        name=table.name,
        num_codes=len(codes),
        num_active=len(drawn.ids),
        ids=ids,
        active=torch.isin(ids, drawn.ids),
        points=_in_the_plane(codes[ids], perplexity, seed),
    )


def _in_the_plane(codes: Tensor, perplexity: float, seed: int) -> Tensor:
    """Return (n, 2) float32."""
    from threadpoolctl import threadpool_limits

    tsne = _load_tsne()(
        n_components=2,
        perplexity=min(perplexity, (len(codes) - 1) / 3),
        # Principal components keep what lies far apart; one dimension has no two of them.
        init="pca" if codes.shape[1] > 1 else "random",
        random_state=seed,
        n_jobs=1,
    )
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of variances that are zero where all codes are equal
        points = tsne.fit_transform(codes.numpy())
    return torch.from_numpy(points).float()


def _load_tsne() -> Any:
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ValueError(
            "t-SNE: scikit-learn is not installed; pip install 'vqkit[demo]'"
        ) from error
    return TSNE
