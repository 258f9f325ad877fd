"""Codes of one data set at work on features of another: how well they serve, and adapted to them.

Table 8 of VQGAN-LC (arXiv:2406.11837) trains on FFHQ with a codebook of ImageNet and the other way
round; this measures the same question before any training.

Legend: N features, D dim, K codes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqkit.clustering import VectorSource, kmeans
from vqkit.clustering.processes import Processes
from vqkit.clustering.progress import open_progress
from vqkit.clustering.settings import make_settings
from vqkit.clustering.survey import Share
from vqkit.codebooks.cluster import described_kmeans, narrowed
from vqkit.codebooks.edit import require_same_encoder
from vqkit.codebooks.encoders_modules import TokenizerEncoder, load_tokenizer
from vqkit.codebooks.files import CodebookFile, dtype_name, read_codebook
from vqkit.codebooks.report import quality
from vqkit.codebooks.sources import Features, open_source, verify, with_contents
from vqkit.config import require
from vqkit.metrics import CodeUsage
from vqkit.search import nearest_with_scores
from vqkit.search.exact import CHUNK_ELEMENTS


@dataclass(frozen=True, slots=True)
class Transfer:
    """How codes serve features when every feature takes its nearest code (L2)."""

    num_features: int
    num_codes: int
    mean_squared_distance: float
    """Of a feature to its code: the sum over D, averaged over N."""
    variance: float
    """Mean squared distance of a feature to the mean feature, what one best code would leave."""
    num_used: int
    usage: float
    """Share of the codes that are nearest to any feature."""
    ceiling: float
    """Usage to expect from N uniform draws of K codes, 1 - (1 - 1/K)^N: what so few features can
    show."""
    perplexity: float
    """So many equally used codes would look the same."""

    @property
    def explained(self) -> float:
        """Share of the variance that codes keep: at most 1, below 0 where the mean is better."""
        return 1 - self.mean_squared_distance / self.variance if self.variance else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return everything above as JSON values."""
        return {**asdict(self), "explained": self.explained}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Transfer:
        """Rebuild it from `to_dict`."""
        return cls(**{name: value for name, value in values.items() if name != "explained"})

    def text(self) -> str:
        """Describe the measurement in lines of facts."""
        return "\n".join(
            [
                f"features              {self.num_features:,}",
                f"mean squared distance {self.mean_squared_distance:.6g}",
                f"variance explained    {100 * self.explained:.2f} % of {self.variance:.6g}",
                f"codes used            {self.num_used:,} of {self.num_codes:,}: "
                f"{100 * self.usage:.2f} %, ceiling {100 * self.ceiling:.2f} %",
                f"perplexity            {self.perplexity:,.1f}",
            ]
        )


def measure_transfer(
    book: CodebookFile,
    features: Features,
    *,
    device: str | None = None,
    progress: bool = True,
) -> Transfer:
    """Assign every feature (N, D) to its nearest code (K, D), block by block, and sum up.

    Raises:
        ValueError: features of another length or from another encoder than the codes', broken
            shards.
    """
    source, _ = _fitting(book, features)
    verify(source)
    return _measure(book.codes, source, device, progress)


def adapt(
    book: CodebookFile,
    features: Features,
    iterations: int,
    *,
    state: Path | None = None,
    progress: bool = True,
    device: str | None = None,
) -> CodebookFile:
    """Move codes to other features: `iterations` of Lloyd's algorithm that begin with them.

    Codes that no feature is nearest to move to features that are far from theirs, as in `kmeans`.
    The report has what `measure_transfer` finds before and after.

    Raises:
        ValueError: as `measure_transfer`; more codes than features; iterations below 1.
        OSError: the state cannot be written.
    """
    plan = plan_adapt(book, features, iterations)
    source, _ = _fitting(book, features)
    verify(source)
    before = _measure(book.codes, source, device, progress)
    found = kmeans(
        source,
        book.num_codes,
        init=book.codes.float(),
        iterations=iterations,
        state=state,
        device=device,
        progress=progress,
    )
    codes = narrowed(found.centres.cpu(), book.codes.dtype)
    after = _measure(codes, source, device, progress)
    report = {**quality(found), "before": before.to_dict(), "after": after.to_dict()}
    return CodebookFile(codes, {**plan, "report": report})


def plan_adapt(book: CodebookFile, features: Features, iterations: int) -> dict[str, Any]:
    """Check the arguments of `adapt`, and return what determines its codes."""
    source, provenance = _fitting(book, features)
    provenance = with_contents(source, provenance)
    require(
        book.num_codes <= source.num_vectors,
        f"codebook of {book.num_codes:,} codes",
        f"there are only {source.num_vectors:,} features to adapt it to; extract more, or take "
        "fewer codes with vqkit codebook subset",
    )
    codes = book.codes.float()
    described = described_kmeans(len(codes), {"iterations": iterations, "init": codes})
    return {
        "method": "adapt",
        "dtype": dtype_name(book.codes.dtype),
        "settings": {"source": book.sha256, **described},
        "features": provenance,
    }


def open_codes(name: str | Path, book: int | None = None) -> CodebookFile:
    """Read the codes of a codebook file, or those of a tokenizer or run by its folder.

    Of a tokenizer these are the codes that features are compared with: projected or computed
    tables as they stand after training. Their features are what its own encoder gives, behind its
    projection if there is one. Of a run that is not finished the newest weights are taken. `book`
    numbers its codebooks, for one that has several.

    Raises:
        ValueError: neither a codebook file nor a tokenizer or run; one without a table of codes
            (a lattice), or with several and no `book`.
    """
    path = Path(name).expanduser()
    if not path.is_dir():
        require(book is None, f"book={book}", "only tokenizers have several; leave it out")
        return read_codebook(path)
    tokenizer = load_tokenizer(path)
    tables = []
    for leaf in tokenizer.quantizer.quantizer.leaves():
        if leaf.codebook.has_table:
            tables += list(leaf.codebook.table(leaf.clock).detach().float())
    preset = tokenizer.config.quantizer.preset
    require(bool(tables), f"tokenizer={path}", f"{preset} has no table of codes, but a lattice")
    require(
        len(tables) == 1 or (book is not None and 0 <= book < len(tables)),
        f"book={book}",
        f"{path} has {len(tables)} codebooks; give --book 0 to {len(tables) - 1}",
    )
    codes = tables[book or 0].clone()
    settings = {"preset": preset, "book": book or 0, "source": CodebookFile(codes).sha256}
    record = {"method": "tokenizer", "dtype": dtype_name(codes.dtype), "settings": settings}
    plain = tokenizer.quantizer.project_in is None
    encoder = TokenizerEncoder(tokenizer, layer="encoder" if plain else "projected")
    features = {"encoder": {**encoder.describe(), "pooling": None}}
    return CodebookFile(codes, {**record, "features": features})


def _measure(codes: Tensor, source: VectorSource, device: str | None, progress: bool) -> Transfer:
    where = _device(device, source)
    bar = open_progress(progress, source.num_vectors, "transfer")
    rows = make_settings(len(codes), {}).block(source.dim)
    share = Share(source, Processes(), rows, where, bar.tick)
    table = codes.float().to(where)
    usage = CodeUsage((len(codes),), ((0,),))
    squared, spread = 0.0, _Spread(source.dim)
    for _, block in share.vectors():
        ids, scores = nearest_with_scores(block, table)
        usage.update(ids[:, None])
        # numpy adds in one order, whatever the number of threads.
        squared -= float(scores.cpu().double().numpy().sum())
        for part in block.split(max(1, CHUNK_ELEMENTS // source.dim)):
            spread.add(part.cpu().double().numpy())
    (found,) = usage.by_book()
    return Transfer(
        num_features=source.num_vectors,
        num_codes=len(codes),
        mean_squared_distance=squared / source.num_vectors,
        variance=spread.variance(),
        num_used=found.num_used,
        usage=found.usage,
        ceiling=found.uniform_usage,
        perplexity=found.perplexity,
    )


def _fitting(book: CodebookFile, features: Features) -> tuple[VectorSource, dict[str, Any]]:
    """Open features, and check that they lie in the space of the codes."""
    source, provenance = open_source(features)
    require(
        source.dim == book.dim,
        f"features of {source.dim} dimensions",
        f"the codes have {book.dim}; give features of the encoder that the codebook was made with",
    )
    require_same_encoder(book.provenance.get("features"), provenance)
    return source, provenance


def _device(name: str | None, source: VectorSource) -> torch.device:
    """Return where blocks are searched; a device that is not there is a `ValueError`."""
    try:
        found = torch.device(name or source.device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={name!r}: cannot be used ({error}); use 'cpu'") from error
    return found


class _Spread:
    """Variance of vectors (N, D), streamed in float64 around the mean of the first block."""

    def __init__(self, dim: int) -> None:
        self._around: np.ndarray | None = None
        self._sum = np.zeros(dim)
        self._squares, self._count = 0.0, 0

    def add(self, rows: np.ndarray) -> None:
        """Count vectors (n, D), float64."""
        if self._around is None:
            self._around = rows.mean(0)
        rows = rows - self._around
        self._sum += rows.sum(0)
        self._squares += float((rows * rows).sum())
        self._count += len(rows)

    def variance(self) -> float:
        """Return the mean squared distance to the mean."""
        mean = self._sum / self._count
        return max(self._squares / self._count - float((mean * mean).sum()), 0.0)
