"""What the log says of codes and vectors: which are drawn, which are dead, how long they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from vqkit.quantizers import (
    GridQuantizer,
    GumbelLogits,
    Slot,
    UpdateRule,
    VectorQuantizer,
    ranks,
)

COUNTED: Final = 1 << 22
"""Codebooks with more codes (large lattices) are left out of the window: a count for each of their
codes would outweigh the model."""
DEAD_STEPS: Final = 100
"""Steps for which a dead code has not been drawn, at least."""
DEAD_TURNS: Final = 10
"""Tokens of its codebook since then, at least, in multiples of the number of codes. A code drawn
as often as the others is missed by so many with a probability of e^-10."""
BOOKS: Final = 16
"""Codebooks of which a line tells one by one; of more, those that use the smallest shares."""


class CodeWindow:
    """Codes drawn since the last line of the log, per codebook: slots that share one are pooled.

    Nothing here waits for the device but the making of a line. The counts and the step at which
    every code was last drawn are part of a checkpoint: a resumed run logs what it would have
    logged.
    """

    def __init__(self, quantizer: GridQuantizer, device: torch.device) -> None:
        slots = quantizer.slots
        self._leaves = list(quantizer.quantizer.leaves())
        tables = [(leaf, g) for leaf in self._leaves for g in range(leaf.codebook.groups)]
        counted = [
            (book, table)
            for book, table in zip(quantizer.books, tables, strict=True)
            if slots[book[0]].num_codes <= COUNTED
        ]
        self._tables = [table for _, table in counted]
        self.names = book_names(slots, [book for book, _ in counted])
        """Of the codebooks that are counted."""
        self.sizes = [slots[book[0]].num_codes for book, _ in counted]
        """Their numbers of codes; `counts` holds them one after another."""
        first = {s: sum(self.sizes[:n]) for n, (book, _) in enumerate(counted) for s in book}
        self._counted = torch.tensor(sorted(first), dtype=torch.int64, device=device)
        self._starts = torch.tensor([first[slot] for slot in sorted(first)], device=device).long()
        self.counts = torch.zeros(sum(self.sizes), dtype=torch.int64, device=device)
        """Draws of every code by this process."""
        self._drawn_at = torch.zeros(sum(self.sizes), dtype=torch.int32)
        self._began = 0
        self._vectors: dict[VectorQuantizer, list[Tensor]] = {}

    # ----------------------------------------------------------------- every step

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep the vectors that enter the codebooks in a training forward within this block.

        They are references: no copy, no work, and the next forward replaces them.
        """
        self._vectors = {leaf: [] for leaf in self._leaves}
        for leaf in self._leaves:
            leaf.watcher = partial(self._keep, leaf)
        try:
            yield
        finally:
            for leaf in self._leaves:
                leaf.watcher = None

    def _keep(self, leaf: VectorQuantizer, vectors: Tensor) -> None:
        self._vectors[leaf].append(vectors.detach())

    def count(self, ids: Tensor) -> None:
        """Add the ids (B, h, w, T) of one micro-batch."""
        places = self.places(ids)
        # `bincount` would wait for the device.
        self.counts.index_add_(0, places, torch.ones_like(places))

    def places(self, ids: Tensor) -> Tensor:
        """Return where in `counts` the tokens of ids (B, h, w, T) are counted, a flat tensor."""
        return (ids[..., self._counted] + self._starts).flatten()

    # ----------------------------------------------------------------- checkpoints

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold; every process calls this at the same step."""
        return {
            "code_counts": ranks.sum_over_ranks(self.counts),
            "code_drawn_at": self._drawn_at,
            "code_window_began": torch.tensor(self._began),
        }

    def load(self, state: Mapping[str, Tensor], *, main: bool) -> None:
        """Continue from `state`; it holds all processes' counts, which the main one takes over."""
        self.counts.zero_()
        if main:
            self.counts.copy_(state["code_counts"])
        self._drawn_at = state["code_drawn_at"].clone()
        self._began = int(state["code_window_began"])

    # ----------------------------------------------------------------- a line of the log

    def summary(self, step: int) -> dict[str, Any]:
        """Return numbers for a line of the log after `step` steps; empty if nothing is counted.

        Every process calls this at the same step. Means and the largest are over the codebooks
        that are counted; docs/health.md has the whole list. `books` tells of each of them.
        """
        return self._summary(step)[0]

    def close(self, step: int) -> dict[str, Any]:
        """Return `summary` and begin a new window."""
        numbers, drawn = self._summary(step)
        self._drawn_at[drawn] = step
        self._began = step
        self.counts.zero_()
        return numbers

    def _summary(self, step: int) -> tuple[dict[str, Any], Tensor]:
        """Return the numbers, and which codes were drawn in this window."""
        counts = ranks.sum_over_ranks(self.counts)
        on_cpu = counts.cpu()
        if not self.sizes:
            return {}, on_cpu > 0
        idle = (step - self._drawn_at).where(on_cpu == 0, 0)
        parts = zip(on_cpu.split(self.sizes), idle.split(self.sizes), strict=True)
        steps = max(1, step - self._began)
        books = [_book(draws, silent, steps) for draws, silent in parts]
        norms = self._norms(counts)
        for book, lengths, (leaf, _) in zip(books, norms, self._tables, strict=True):
            book |= lengths
            for rule in leaf.rules:
                assert isinstance(rule, UpdateRule)
                book |= rule.numbers()
        numbers = {
            "codes_used": mean(books, "used"),
            "perplexity": mean(books, "perplexity"),
            "tokens": sum(book["tokens"] for book in books),
            "dead_codes": mean(books, "dead"),
            "longest_idle": max(book["idle"] for book in books),
            **_overall(norms),
        }
        if any("reselected" in book for book in books):
            numbers["reselected"] = sum(book.get("reselected", 0) for book in books)
        numbers["books"] = listed(dict(zip(self.names, books, strict=True)))
        return numbers, on_cpu > 0

    @torch.no_grad()
    def _norms(self, counts: Tensor) -> list[dict[str, float]]:
        """Return the lengths of vectors and codes of each book, empty where they do not compare.

        Vectors are those of the last micro-batch, codes those that they will meet next.
        """
        found: dict[int, list[Tensor]] = {}
        draws = counts.split(self.sizes)
        for number, (leaf, group) in enumerate(self._tables):
            seen = self._vectors.get(leaf)
            # A lattice has no table; logits of a layer are no distances.
            if seen and leaf.codebook.has_table and not isinstance(leaf.assignment, GumbelLogits):
                vectors = torch.cat([_lengths(call[group]) for call in seen])
                codes = _lengths(leaf.codebook.table(leaf.clock)[group])
                drawn = (codes * draws[number]).sum() / draws[number].sum().clamp(min=1)
                found[number] = [vectors.mean(), vectors.max(), codes.mean(), codes.max(), drawn]
        if not found:
            return [{} for _ in self._tables]
        values = torch.stack([torch.stack(five) for five in found.values()])
        everywhere = ranks.gather_over_ranks(values)
        means, largest = everywhere.mean(0).tolist(), everywhere.amax(0).tolist()
        norms: list[dict[str, float]] = [{} for _ in self._tables]
        for number, mean, most in zip(found, means, largest, strict=True):
            norms[number] = {
                "latent_norm": mean[0],
                "latent_norm_max": most[1],
                "code_norm": mean[2],
                "code_norm_max": most[3],
                "norm_ratio": mean[0] / max(mean[4], 1e-12),
            }
        return norms


def book_names(slots: Sequence[Slot], books: Sequence[Sequence[int]]) -> list[str]:
    """Name every book by the words that the paths of all its slots share; `code` if none.

    Equal names are told apart by their first slot.
    """
    names = []
    for book in books:
        paths = [slots[slot].name.split(".") for slot in book]
        shared = [word for word in paths[0] if all(word in path for path in paths)]
        names.append(".".join(shared) or "code")
    return [
        name if names.count(name) == 1 else slots[book[0]].name
        for name, book in zip(names, books, strict=True)
    ]


def _book(draws: Tensor, idle: Tensor, steps: int) -> dict[str, Any]:
    """Numbers of one codebook: draws (K,) in the window of `steps`, and steps since the last one.

    The batch never changes in a run, so the tokens of a step are those of any other.
    """
    codes, tokens = len(draws), int(draws.sum())
    share = draws[draws > 0].double() / max(tokens, 1)
    missed = idle.double() * (tokens / steps)
    dead = (idle >= DEAD_STEPS) & (missed >= DEAD_TURNS * codes)
    return {
        "codes": codes,
        "tokens": tokens,
        "used": int((draws > 0).sum()) / codes,
        "perplexity": float((-(share * share.log()).sum()).exp()),
        "dead": int(dead.sum()) / codes,
        "idle": int(idle.max()),
    }


def _lengths(rows: Tensor) -> Tensor:
    return rows.float().norm(dim=-1)


def mean(books: Sequence[Mapping[str, float]], key: str) -> float:
    """Return the mean of a number over the codebooks that have it."""
    values = [book[key] for book in books if key in book]
    return sum(values) / len(values)


def _overall(norms: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of means and the largest of the largest, over the books that have lengths."""
    known = [lengths for lengths in norms if lengths]
    if not known:
        return {}
    return {
        name: mean(known, name)
        if name in ("latent_norm", "code_norm")
        else max(lengths[name] for lengths in known)
        for name in known[0]
    }


def listed(books: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return all books or, of many, the `BOOKS` with the smallest shares used, in their order."""
    least = sorted(books, key=lambda name: books[name]["used"])[:BOOKS]
    return {name: numbers for name, numbers in books.items() if name in least}
