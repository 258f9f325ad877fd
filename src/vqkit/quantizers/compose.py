"""Quantizers made of quantizers. The same interface as a whole one: `quantize`, `lookup`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from vqkit.search import nearest

from .assignments import Nearest
from .codebooks import check_count
from .estimators import Estimator, straight_through
from .joining import (
    Reduction,
    check_distinct,
    check_level,
    concatenate,
    joined_weights,
    term_weight,
    weighted_terms,
)
from .quantizer import Quantizer, SearchCost, VectorQuantizer, check_quantizer, join_path
from .records import Quantized, Slot


class SharedSegments(Quantizer):
    """Cut the vector into m consecutive segments and quantize all of them with one quantizer.

    LooC's compositional quantization (section 3.2) and MoVQ's multichannel one. It is one call on
    N·m short vectors, so means run over all segments and updates pool them.
    """

    def __init__(self, quantizer: Quantizer, num_segments: int) -> None:
        super().__init__()
        check_quantizer(quantizer)
        check_count("num_segments", num_segments)
        self.quantizer, self.num_segments = quantizer, num_segments
        self.channels = num_segments * quantizer.channels
        inner, each = quantizer.slots, len(quantizer.slots)
        names = [f"segment{s}" for s in range(num_segments)] if num_segments > 1 else [""]
        self.slots = tuple(
            Slot(join_path(name, slot.name) or "code", slot.num_codes)
            for name in names
            for slot in inner
        )
        self.books = tuple(
            tuple(s * each + slot for s in range(num_segments) for slot in book)
            for book in quantizer.books
        )

    def quantize(self, z: Tensor) -> Quantized:
        """Quantize vectors (B, P, channels); ids are (B, P, m·T')."""
        batch, positions, channels = z.shape
        inner = self.quantizer.quantize(z.reshape(batch, -1, self.quantizer.channels))
        return Quantized(
            inner.z_q.reshape(batch, positions, channels),
            inner.ids.reshape(batch, positions, -1),
            inner.terms,
        )

    def lookup(self, ids: Tensor) -> Tensor:
        """Turn tokens (..., T) into vectors (..., channels)."""
        segments = ids.reshape(*ids.shape[:-1], self.num_segments, len(self.quantizer.slots))
        return self.quantizer.lookup(segments).flatten(-2)

    def term_weights(self) -> dict[str, float]:
        """Return the weight of every term of `quantize`, by its path."""
        return self.quantizer.term_weights()

    def search_costs(self) -> list[SearchCost]:
        """List the searches that one vector needs."""
        costs = self.quantizer.search_costs()
        return [replace(cost, rows=cost.rows * self.num_segments) for cost in costs]

    def estimators(self) -> list[Estimator]:
        """List how the gradient passes, part by part."""
        return self.quantizer.estimators()

    def summary(self) -> str:
        """Say in a phrase how this quantizer is composed."""
        inner = self.quantizer.summary()
        return f"{self.num_segments} shared segments" + ("" if inner == "whole" else f" of {inner}")


class Split(Quantizer):
    """Cut the vector into named parts of any sizes, each with its own quantizer (Dual).

    Parts that take the nearest code of equally large tables are searched in one grouped call.

    Args:
        parts: name -> quantizer, in the order of the channels.
        reduction: whether the parts' terms are summed (Dual eq. 4) or averaged.
    """

    def __init__(self, parts: Mapping[str, Quantizer], *, reduction: Reduction = "sum") -> None:
        super().__init__()
        if not parts:
            raise ValueError("parts={}: give at least one quantizer")
        for name in parts:
            if not name.isidentifier() or name == "code" or hasattr(nn.ModuleDict, name):
                raise ValueError(f"parts: {name!r} cannot name a part; use a word such as 'local'")
        check_distinct(list(parts.values()), "SharedSegments")
        self.parts = nn.ModuleDict(parts)
        self.weight = term_weight(reduction, len(parts))
        self.sizes = [part.channels for part in parts.values()]
        self.tokens = [len(part.slots) for part in parts.values()]
        self.channels = sum(self.sizes)
        self.slots, self.books = concatenate(parts)

    def quantize(self, z: Tensor) -> Quantized:
        """Quantize vectors (B, P, channels); ids are (B, P, T)."""
        pieces = z.split(self.sizes, -1)
        searched = self._search_together(pieces)
        found: dict[str, Quantized] = {}
        for (name, part), piece in zip(self._quantizers(), pieces, strict=True):
            if name in searched:
                assert isinstance(part, VectorQuantizer)
                found[name] = part.finish(piece, *searched[name])
            else:
                found[name] = part.quantize(piece)
        return Quantized(
            torch.cat([q.z_q for q in found.values()], -1),
            torch.cat([q.ids for q in found.values()], -1),
            weighted_terms(found, self.weight),
        )

    def lookup(self, ids: Tensor) -> Tensor:
        """Turn tokens (..., T) into vectors (..., channels)."""
        pieces = ids.split(self.tokens, -1)
        parts = [part for _, part in self._quantizers()]
        return torch.cat([p.lookup(i) for p, i in zip(parts, pieces, strict=True)], -1)

    def term_weights(self) -> dict[str, float]:
        """Return the weight of every term of `quantize`, by its path."""
        return joined_weights(dict(self._quantizers()), self.weight)

    def search_costs(self) -> list[SearchCost]:
        """List the searches that one vector needs."""
        return [cost for _, part in self._quantizers() for cost in part.search_costs()]

    def estimators(self) -> list[Estimator]:
        """List how the gradient passes, part by part."""
        return [e for _, part in self._quantizers() for e in part.estimators()]

    def summary(self) -> str:
        """Say in a phrase how this quantizer is composed."""
        return "split " + " + ".join(f"{n} ({p.channels})" for n, p in self._quantizers())

    def _search_together(self, pieces: Sequence[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Search parts with equally large tables at once: name -> (entered vectors, ids)."""
        alike: dict[tuple[object, ...], list[tuple[str, VectorQuantizer, Tensor]]] = {}
        for (name, part), piece in zip(self._quantizers(), pieces, strict=True):
            if isinstance(part, VectorQuantizer) and isinstance(part.assignment, Nearest):
                kind = (part.assignment.metric, part.assignment.tokens_per_vector)
                size = (part.codebook.num_codes, part.codebook.dim)
                alike.setdefault((*kind, *size), []).append((name, part, piece))
        searched = {}
        for (_, tokens, *_), members in alike.items():
            if len(members) < 2 or tokens != 1:
                continue
            entered = [part.enter(piece) for _, part, piece in members]
            # A computed table keeps its graph: it is the one that the part will use.
            tables = [part.codebook.table(part.clock).detach() for _, part, _ in members]
            vectors = torch.cat([z.detach() for z in entered])
            ids = nearest(vectors, torch.cat(tables), members[0][1].assignment.metric)
            each = ids.split([len(z) for z in entered])
            for (name, _, _), z, found in zip(members, entered, each, strict=True):
                searched[name] = (z, found)
        return searched

    def _quantizers(self) -> list[tuple[str, Quantizer]]:
        pairs = []
        for name, part in self.parts.items():
            assert isinstance(part, Quantizer)
            pairs.append((name, part))
        return pairs


class Residual(Quantizer):
    """Level l quantizes what the levels before it left over (RQ-VAE, arXiv:2203.01941 eq. 3-4).

    What is left over is detached from the codes. The terms are averaged over levels, and the
    estimator is applied once, to the whole sum.

    Args:
        levels: one quantizer for all levels (shared codes, with `num_levels`), or one per level.
        num_levels: how often a single shared quantizer is used.
        estimator: how the gradient passes the sum of all levels.
    """

    def __init__(
        self,
        levels: Quantizer | Sequence[Quantizer],
        num_levels: int | None = None,
        *,
        estimator: Estimator = straight_through,
    ) -> None:
        super().__init__()
        self.shared = isinstance(levels, nn.Module)
        books = [levels] if isinstance(levels, nn.Module) else list(levels)
        count = num_levels if num_levels is not None else len(books)
        check_count("num_levels", count)
        if not self.shared and count != len(books):
            raise ValueError(f"num_levels={count}: {len(books)} quantizers were given")
        check_distinct(books, "Residual(quantizer, num_levels)")
        for book in books:
            check_level(book, books[0].channels)
        self.quantizers, self.num_levels = nn.ModuleList(books), count
        self.estimator = estimator
        self.channels = books[0].channels
        named = {f"level{i}": self._level(i) for i in range(count)}
        self.slots, separate = concatenate(named)
        if self.shared:  # every level draws from the same books
            each = len(books[0].slots)
            self.books = tuple(
                tuple(level * each + slot for level in range(count) for slot in book)
                for book in books[0].books
            )
        else:
            self.books = separate

    def _level(self, level: int) -> Quantizer:
        quantizer = self.quantizers[0 if self.shared else level]
        assert isinstance(quantizer, Quantizer)
        return quantizer

    def quantize(self, z: Tensor) -> Quantized:
        """Quantize vectors (B, P, channels); ids are (B, P, L·T')."""
        found: dict[str, Quantized] = {}
        rest, total = z, None
        for level in range(self.num_levels):
            part = self._level(level).quantize(rest)
            codes = part.z_q.detach()
            total = codes if total is None else total + codes
            rest = rest - codes
            found[f"level{level}"] = part
        assert total is not None
        ids = torch.cat([part.ids for part in found.values()], -1)
        terms = weighted_terms(found, term_weight("mean", self.num_levels))
        return Quantized(self.estimator(z, total), ids, terms)

    def lookup(self, ids: Tensor) -> Tensor:
        """Turn tokens (..., T) into vectors (..., channels)."""
        pieces = ids.chunk(self.num_levels, -1)
        total = self._level(0).lookup(pieces[0])
        for level in range(1, self.num_levels):
            total = total + self._level(level).lookup(pieces[level])
        return total

    def term_weights(self) -> dict[str, float]:
        """Return the weight of every term of `quantize`, by its path."""
        levels = {f"level{level}": self._level(level) for level in range(self.num_levels)}
        return joined_weights(levels, term_weight("mean", self.num_levels))

    def search_costs(self) -> list[SearchCost]:
        """List the searches that one vector needs."""
        return [c for i in range(self.num_levels) for c in self._level(i).search_costs()]

    def estimators(self) -> list[Estimator]:
        """List how the gradient passes, part by part."""
        return [self.estimator]

    def summary(self) -> str:
        """Say in a phrase how this quantizer is composed."""
        inner = self._level(0).summary()
        books = "shared" if self.shared else "own"
        return f"residual, {self.num_levels} levels, {books} codes" + (
            "" if inner == "whole" else f", of {inner}"
        )
