"""The records that the parts of a quantizer exchange.

Shape letters, one legend for the whole room:
  B images (or sequences)   P positions per image   N = B·P vectors   G groups (independent tables)
  K codes   D length of one codevector (`dim`)   T tokens per position   h w coarse grid
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Slot:
    """One of the T tokens at every coarse grid position."""

    name: str
    """Path in the composition, outermost part first: `segment3.level1`."""
    num_codes: int
    """Ids of this slot lie in [0, num_codes)."""


@dataclass(frozen=True, slots=True)
class Assigned:
    """What an assignment found for a batch of vectors; terms and update rules read it."""

    z: Tensor
    """(G, N, D) vectors, in the space of the codebook."""
    ids: Tensor
    """(G, N) or, where several codes are averaged, (G, N, k); int64."""
    z_q: Tensor
    """(G, N, D) codevectors; differentiable with respect to the table, not to z."""
    batch: int
    """Number of images the N vectors come from; sums over positions are divided by it."""
    table: Tensor | None = None
    """(G, K, D) codes that were compared; None for a lattice, which has no table."""
    negative_entropy: Tensor | None = None
    """(G, N) Σ_k p log p over the codes of a vector, only from assignments that score all codes;
    the scores themselves are gone, so that evaluation never holds N × K."""
    precision: Tensor | None = None
    """1/σ² of a probabilistic assignment (SQ-VAE), a scalar."""


@dataclass(frozen=True, slots=True)
class Quantized:
    """Result of every quantizer, whole or composed."""

    z_q: Tensor
    """Quantized features, shaped as the input; equal to `lookup(ids)` bit for bit (a `relaxed`
    assignment mixes codes in training, see `GridQuantizer.relaxed`)."""
    ids: Tensor
    """int64 tokens: (B, h, w, T) of a feature map, (..., T) of vectors."""
    terms: dict[str, Tensor] = field(default_factory=dict)
    """Weighted loss terms, keyed by their path in the composition: `global.commitment`."""

    @property
    def loss(self) -> Tensor:
        """Sum of the weighted terms, a scalar; zero where nothing is paid."""
        total = self.z_q.new_zeros(())
        for term in self.terms.values():
            total = total + term
        return total
