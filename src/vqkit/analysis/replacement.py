"""What an image loses if every token becomes the M-th nearest code (VQGAN-LC, arXiv:2406.11837,
appendix B, Figure 5): large codebooks whose codes lie close lose little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vqkit.analysis.conditions import (
    Conditions,
    Progress,
    check_inputs,
    conditions_of,
    token_batches,
)
from vqkit.analysis.neighbours import CodeNeighbours, choosing_nth
from vqkit.analysis.tables import CodeTable, code_tables
from vqkit.config import require
from vqkit.config.core import check_choice
from vqkit.data import ImageSet
from vqkit.metrics import DEFAULT, Protocol, ReconstructionScores, psnr, to_bytes
from vqkit.models import ImageTokenizer
from vqkit.models.tokenizer import evaluation_mode

Origin = Literal["code", "feature"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplacementPoint:
    """Quality where every token is the M-th nearest code."""

    m: int
    psnr: float
    """Decibels, mean over images."""
    ssim: float | None
    """Mean over the images that are large enough; None without any."""
    replaced: float
    """Share of the tokens that differ from the usual ones."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ReplacedPicture:
    """One image, and what it becomes for every M."""

    original: Tensor
    """(C, H, W) uint8."""
    rebuilt: tuple[Tensor, ...]
    """One (C, H, W) uint8 for every M."""
    decibels: tuple[float, ...]
    """PSNR of each."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Replacement:
    """Quality by M."""

    conditions: Conditions
    origin: Origin
    quality_protocol: Protocol
    points: tuple[ReplacementPoint, ...]
    """M rising."""
    pictures: tuple[ReplacedPicture, ...]
    """Of the first images."""

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON values, the pixels left out."""
        return {
            "protocol": {**self.conditions.to_dict(), "quality": self.quality_protocol.to_dict()},
            "points": [asdict(point) for point in self.points],
            "pictures": [{"psnr": list(picture.decibels)} for picture in self.pictures],
        }


def replace_tokens(
    tokenizer: ImageTokenizer,
    images: ImageSet,
    ms: Sequence[int],
    *,
    origin: Origin = "code",
    num_pictures: int = 3,
    batch_size: int = 16,
    name: str = "tokenizer",
    protocol: Protocol = DEFAULT,
    progress: Progress | None = None,
) -> Replacement:
    """Decode every image after each of its tokens has become the M-th nearest code, for each M.

    A token is replaced inside the codebook that its slot draws from, by the quantizer's own measure
    of distance, and on its own: tokens of later residual levels stay what they are. Neighbours are
    searched for the codes that occur (`origin="code"`) or for the features, never for all K × K.

    Args:
        tokenizer: with any quantizer but a lattice; its mode and state stay as they are.
        images: from `load_images`.
        ms: ranks M. From the code, M = 1 is the closest *other* code and M = 0 the usual one. From
            the feature, M = 1 is the usual code.
        origin: `code` measures from the code that was chosen (the paper), `feature` from the vector
            that has chosen it (not Gumbel, which chooses by no distance).
        num_pictures: images, the first ones of the set, whose reconstructions are kept.
        batch_size: images of one size that go through the model together.
        name: names the tokenizer in figures.
        protocol: how quality is measured.
        progress: called after every batch.

    Raises:
        ValueError: a lattice, an M that not every codebook has, no image, or images of other
            channels.
    """
    check_inputs(tokenizer, images)
    check_choice("origin", origin, Origin)
    require(num_pictures >= 0, f"num_pictures={num_pictures}", "must not be negative")
    with torch.no_grad(), evaluation_mode(tokenizer):
        tables = code_tables(tokenizer.quantizer)
        ranks = _checked_ranks(ms, origin, tables)
        work = _Work(tokenizer, tables, ranks, origin, protocol, num_pictures)
        for originals, ids in token_batches(tokenizer, images, batch_size, progress):
            work.add(originals, ids)
    scores = work.scores[0]
    books = [{"name": t.name, "num_codes": len(t.codes), "metric": t.metric} for t in tables]
    return Replacement(
        conditions=conditions_of(
            name,
            tokenizer,
            images,
            num_images=scores.num_images,
            num_tokens=work.num_tokens,
            **{"from": origin, "m": ranks, "books": books},
        ),
        origin=origin,
        quality_protocol=protocol.on(images.fingerprint(), scores.num_images),
        points=work.points(),
        pictures=tuple(work.pictures),
    )


class _Work:
    """Sums over the images seen so far, for every M."""

    def __init__(
        self,
        tokenizer: ImageTokenizer,
        tables: Sequence[CodeTable],
        ranks: Sequence[int],
        origin: Origin,
        protocol: Protocol,
        num_pictures: int,
    ) -> None:
        self.tokenizer, self.ranks, self.origin = tokenizer, ranks, origin
        self.scores = [ReconstructionScores(protocol) for _ in ranks]
        self.replaced = [0] * len(ranks)
        self.num_tokens = 0
        self.pictures: list[ReplacedPicture] = []
        self._num_pictures = num_pictures
        self._slots = [list(table.slots) for table in tables]
        self._books = [CodeNeighbours(table, ranks) for table in tables]

    def add(self, originals: Tensor, ids: Tensor) -> None:
        """Replace, decode and measure one batch."""
        size = (originals.shape[-2], originals.shape[-1])
        shown = min(len(originals), self._num_pictures - len(self.pictures))
        kept: list[Tensor] = []
        self.num_tokens += ids.numel()
        for number, others in enumerate(self._replace(originals, ids)):
            rebuilt = to_bytes(self.tokenizer.decode(others, size=size))
            self.scores[number].update(rebuilt, originals)
            self.replaced[number] += int((others != ids).sum())
            kept.append(rebuilt[:shown].cpu())
        for place in range(shown):
            rebuilt_ones = tuple(images[place] for images in kept)
            original = originals[place].cpu()
            self.pictures.append(
                ReplacedPicture(
                    original=original,
                    rebuilt=rebuilt_ones,
                    decibels=tuple(
                        min(
                            float(psnr(one[None], original[None])), self.scores[0].protocol.psnr_cap
                        )
                        for one in rebuilt_ones
                    ),
                )
            )

    def _replace(self, originals: Tensor, ids: Tensor) -> list[Tensor]:
        """Return the ids (b, h, w, T) for every M."""
        if self.origin == "feature":
            found = []
            for rank in self.ranks:
                with choosing_nth(self.tokenizer.quantizer, rank):
                    found.append(self.tokenizer.encode(originals))
            return found
        replaced = ids[..., None].repeat(1, 1, 1, 1, len(self.ranks))
        for slots, book in zip(self._slots, self._books, strict=True):
            replaced[..., slots, :] = book.of(ids[..., slots])
        return list(replaced.unbind(-1))

    def points(self) -> tuple[ReplacementPoint, ...]:
        """Return the means."""
        found = []
        for m, scores, replaced in zip(self.ranks, self.scores, self.replaced, strict=True):
            decibels = scores.mean("psnr")
            assert decibels is not None  # there is an image
            found.append(
                ReplacementPoint(
                    m=m,
                    psnr=decibels,
                    ssim=scores.mean("ssim"),
                    replaced=replaced / self.num_tokens,
                )
            )
        return tuple(found)


def _checked_ranks(ms: Sequence[int], origin: Origin, tables: Sequence[CodeTable]) -> list[int]:
    """Return the ranks, rising, each once."""
    require(len(ms) > 0, "m", "give at least one rank, such as 0 1 2 4 8")
    smallest = min(tables, key=lambda table: len(table.codes))
    first, last = (0, len(smallest.codes) - 1) if origin == "code" else (1, len(smallest.codes))
    for m in ms:
        require(
            first <= m <= last,
            f"m={m} with from={origin!r}",
            f"codebook {smallest.name!r} of {len(smallest.codes)} codes has {first}..{last}",
        )
    return sorted(set(ms))
