"""The quantizer of whole vectors: a codebook, an assignment, terms, update rules, an estimator.

Every quantizer, whole or composed, maps vectors (B, P, channels) to `Quantized` and tokens back
(`lookup`). Presets wrap one in a `GridQuantizer`, which feeds it feature maps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .assignments import Assignment, Nearest
from .clock import Clock
from .codebooks import Codebook
from .estimators import Estimator, straight_through, through_weights
from .records import Quantized, Slot
from .terms import Term
from .updates import UpdateRule


@dataclass(frozen=True, slots=True)
class SearchCost:
    """What finding codes costs for one position of the grid."""

    rows: int
    """Vectors that look for a code."""
    num_codes: int
    dim: int
    score_copies: int
    """Tensors of rows × codes that training keeps for its backward pass."""
    compares: bool
    """False for a lattice, whose nearest point has a closed form."""


class Quantizer(nn.Module):
    """Base class: what a whole quantizer and a composition of quantizers have in common."""

    channels: int
    """Length of the vectors this quantizer takes."""
    slots: tuple[Slot, ...]
    """The tokens of one vector, in order."""
    books: tuple[tuple[int, ...], ...]
    """Slot numbers grouped by the codebook they draw from."""

    def quantize(self, z: Tensor) -> Quantized:
        """Quantize vectors (B, P, channels); ids are (B, P, T)."""
        raise NotImplementedError

    def lookup(self, ids: Tensor) -> Tensor:
        """Turn tokens (..., T) into vectors (..., channels): the only way back from tokens."""
        raise NotImplementedError

    def term_weights(self) -> dict[str, float]:
        """Return the weight of every term of `quantize`, by its path."""
        raise NotImplementedError

    def search_costs(self) -> list[SearchCost]:
        """List the searches that one vector needs."""
        raise NotImplementedError

    def estimators(self) -> list[Estimator]:
        """List how the gradient passes, part by part."""
        raise NotImplementedError

    def summary(self) -> str:
        """Say in a phrase how this quantizer is composed, for generated tables."""
        raise NotImplementedError

    def leaves(self) -> Iterator[VectorQuantizer]:
        """Yield every whole-vector quantizer inside, each once."""
        for module in self.modules():
            if isinstance(module, VectorQuantizer):
                yield module

    @property
    def relaxed(self) -> bool:
        """Whether z_q mixes codes in training, so that ids do not determine it there."""
        return any(leaf.assignment.relaxed for leaf in self.leaves())


def check_quantizer(value: object) -> None:
    """Raise `ValueError` unless value quantizes vectors; a preset's result holds one inside."""
    if not isinstance(value, Quantizer):
        hint = "; give its .quantizer" if isinstance(value, nn.Module) else ""
        raise ValueError(f"{type(value).__name__} is no quantizer of vectors{hint}")


class VectorQuantizer(Quantizer):
    """Quantize vectors with one codebook, or with G independent ones on G equal parts (PQ).

    Args:
        codebook: where the codevectors come from, and their space.
        assignment: how a vector picks its code.
        terms: loss terms, already weighted.
        rules: how the codes move besides by gradient, in order.
        estimator: how the gradient passes; inside a residual the residual's own counts.

    Raises:
        ValueError: the parts do not fit together.
    """

    def __init__(
        self,
        codebook: Codebook,
        assignment: Assignment,
        *,
        terms: Sequence[Term] = (),
        rules: Sequence[UpdateRule] = (),
        estimator: Estimator = straight_through,
    ) -> None:
        super().__init__()
        assignment.check(codebook)
        for rule in rules:
            rule.check(codebook)
        names = [term.name for term in terms]
        if len(set(names)) < len(names):
            raise ValueError(f"terms={names}: every term may be paid once; add up their weights")
        self.codebook, self.assignment = codebook, assignment
        self.terms, self.rules = tuple(terms), nn.ModuleList(rules)
        self.estimator = estimator
        self.clock = Clock()
        self.collects = True
        """Whether the rules see a training forward; not if its vectors were no numbers."""
        self.watcher: Callable[[Tensor], None] | None = None
        """Is shown the vectors (G, N, D) of every training forward, in the space of the codes."""
        self.channels = codebook.groups * codebook.dim
        self._name_slots()
        self._check_parts()

    def _name_slots(self) -> None:
        groups, k = self.codebook.groups, self.assignment.tokens_per_vector
        segments = [f"segment{g}" for g in range(groups)] if groups > 1 else [""]
        neighbours = [f"neighbour{i}" for i in range(k)] if k > 1 else [""]
        names = [join_path(s, n) or "code" for s in segments for n in neighbours]
        self.slots = tuple(Slot(name, self.codebook.num_codes) for name in names)
        self.books = tuple(tuple(range(g * k, (g + 1) * k)) for g in range(groups))

    def _check_parts(self) -> None:
        kind = type(self.assignment).__name__
        if (self.estimator is through_weights) != self.assignment.weighs_codes:
            fitting = "through_weights" if self.assignment.weighs_codes else "straight_through"
            raise ValueError(
                f"estimator={self.estimator.__name__}: no gradient would pass {kind}; use {fitting}"
            )
        for term in self.terms:
            missing = [need for need in term.needs if need not in self.assignment.gives]
            if missing:
                raise ValueError(
                    f"the term {term.name} needs {', '.join(missing)}, which {kind} does not give; "
                    "use another assignment, or drop the term"
                )
        for part in (*self.rules, *self.terms):
            metric = getattr(part, "metric", self.assignment.metric)
            if metric != self.assignment.metric:
                raise ValueError(
                    f"{type(part).__name__}(metric={metric!r}): {kind} measures by "
                    f"{self.assignment.metric!r}; use the same for both"
                )

    def quantize(self, z: Tensor) -> Quantized:
        """Quantize vectors (B, P, channels); ids are (B, P, T)."""
        return self.finish(z, self.enter(z))

    def enter(self, z: Tensor) -> Tensor:
        """Bring vectors (B, P, channels) into the space of the codes: (G, N, D)."""
        rows = z.reshape(-1, self.codebook.groups, self.codebook.dim)
        return self.codebook.project(rows.transpose(0, 1))

    def finish(self, z: Tensor, entered: Tensor, ids: Tensor | None = None) -> Quantized:
        """Quantize vectors z (B, P, channels) that `enter` has made to (G, N, D).

        `ids` (G, N) are those that `Nearest` would find, if a caller has searched already.
        """
        (batch, positions, _), z = z.shape, entered
        if ids is None:
            assigned = self.assignment(z, self.codebook, self.clock, batch)
        else:
            assert isinstance(self.assignment, Nearest)
            assigned = self.assignment.assigned(z, ids, self.codebook.table(self.clock), batch)
        terms = {term.name: term(assigned) for term in self.terms}
        if self.training:
            if self.watcher is not None:
                self.watcher(z)
            with torch.no_grad():
                for rule in self.rules if self.collects else ():
                    assert isinstance(rule, UpdateRule)
                    rule.collect(assigned, self.codebook, self.clock)
                self.clock.count_call(z.shape[1])
        z_q = self.estimator(z, assigned.z_q).transpose(0, 1)
        ids = assigned.ids.transpose(0, 1)
        return Quantized(
            z_q.reshape(batch, positions, -1), ids.reshape(batch, positions, -1), terms
        )

    def lookup(self, ids: Tensor) -> Tensor:
        """Turn tokens (..., T) into vectors (..., channels)."""
        k = self.assignment.tokens_per_vector
        grouped = ids.reshape(-1, self.codebook.groups, *([k] if k > 1 else [])).transpose(0, 1)
        z_q = self.assignment.lookup(grouped, self.codebook, self.clock).transpose(0, 1)
        return z_q.reshape(*ids.shape[:-1], self.channels)

    @torch.no_grad()
    def reduce(self) -> None:
        """Join the rules' statistics over all processes."""
        for rule in self.rules:
            assert isinstance(rule, UpdateRule)
            rule.reduce(self.clock)

    @torch.no_grad()
    def apply_rules(self) -> None:
        """Write the codes from the reduced statistics, and begin the next step."""
        for rule in self.rules:
            assert isinstance(rule, UpdateRule)
            rule.apply_to(self.codebook, self.clock)
        self.codebook.drop_cache()
        self.clock.advance()

    def forget(self) -> None:
        """Drop the rules' statistics: the step was given up."""
        for rule in self.rules:
            assert isinstance(rule, UpdateRule)
            rule.forget()
        self.clock.forget()

    def term_weights(self) -> dict[str, float]:
        """Return the weight of every term, by its name."""
        return {term.name: term.weight for term in self.terms}

    def search_costs(self) -> list[SearchCost]:
        """List the searches that one vector needs."""
        book = self.codebook
        copies = self.assignment.score_copies
        return [SearchCost(book.groups, book.num_codes, book.dim, copies, book.has_table)]

    def estimators(self) -> list[Estimator]:
        """List how the gradient passes, part by part."""
        return [self.estimator]

    def summary(self) -> str:
        """Say in a phrase how this quantizer is composed."""
        groups = self.codebook.groups
        return "whole" if groups == 1 else f"{groups} independent segments"

    def extra_repr(self) -> str:
        """Show the parts that `nn.Module` does not list."""
        return f"terms={self.terms}, estimator={self.estimator.__name__}"


def join_path(*parts: str) -> str:
    """Join the non-empty parts of a slot's or term's path."""
    return ".".join(part for part in parts if part and part != "code")
