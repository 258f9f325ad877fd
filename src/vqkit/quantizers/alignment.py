"""A projector that follows the vectors: all projected codes move at once, as one cloud.

Frozen features behind a new projector lie anywhere. The vectors of a young encoder lie almost on
a line (brightness is learned first); only the few codes beside it are drawn, and the others learn
nothing. VQGAN-LC trains for long until they meet. Here the cloud of codes is kept where the vectors
are, in every direction as wide as they are.

Legend: G groups, N vectors, K codes, D dim, F numbers of a feature.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqkit.search.exact import wide

from . import ranks
from .clock import Clock
from .codebooks import Codebook, ProjectedCodebook
from .records import Assigned
from .updates import UpdateRule

RIDGE = 1e-6
"""Share of the mean variance that is added to every direction: a covariance may have no inverse."""
ROWS = 2**16
"""Features whose moments are summed up at a time."""


class Align(UpdateRule):
    """Give projected codes the mean and covariance of the vectors, moving them least.

    After every step the projector x -> W x + b is followed by the affine map of optimal transport
    between two normal distributions, that of the projected codes (covariance C) and that of the
    vectors so far (S, a running mean): y -> M (y - mean of codes) + mean of vectors, with

        M = A (A C A)^(-1/2) A,   A = S^(1/2)

    (Dowson and Landau 1982; Olkin and Pukelsheim 1982). Gradients go on besides. It is no part of
    VQGAN-LC or SimVQ.

    Args:
        codebook: frozen features behind a linear projector.
        decay: of the running mean and covariance of the vectors, in [0, 1); 0 looks at one step.

    Raises:
        ValueError: another codebook, or a decay out of range.
    """

    count: Tensor
    sums: Tensor
    products: Tensor
    steps: Tensor
    mean: Tensor
    covariance: Tensor

    def __init__(self, codebook: Codebook, *, decay: float = 0.9) -> None:
        super().__init__(codebook)
        self.check(codebook)
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: must lie in [0, 1)")
        self.decay = decay
        kind, dim = wide(torch.get_default_device()), codebook.dim
        # Of this step, around `mean`, which all processes share: far from the origin sums of
        # squares would lose the spread.
        self.register_buffer("count", torch.zeros((), dtype=kind))
        self.register_buffer("sums", torch.zeros(dim, dtype=kind))
        self.register_buffer("products", torch.zeros(dim, dim, dtype=kind))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(dim, dtype=kind))
        self.register_buffer("covariance", torch.zeros(dim, dim, dtype=kind))
        self._moments: tuple[Tensor, Tensor] | None = None
        """Mean (F,) and covariance (F, F) of the features, once they are known."""
        self._moments_of: tuple[int, int] | None = None
        """Place and version of those features: whatever writes them makes another version."""

    def check(self, codebook: Codebook) -> None:
        """Raise `ValueError` unless there are frozen features behind a linear projector."""
        fits = isinstance(codebook, ProjectedCodebook)
        if not fits or not isinstance(codebook.projector, nn.Linear):
            raise ValueError(
                f"Align moves the projector of frozen features, and {type(codebook).__name__} has "
                "none; use a ProjectedCodebook with a linear projector, or drop the rule"
            )
        if isinstance(codebook.features, nn.Parameter):
            raise ValueError("Align: needs frozen features (frozen=True); these are trained")
        if codebook.projector.bias is None:
            raise ValueError("Align: needs a projector with a bias, which carries the mean")

    def collect(self, a: Assigned, codebook: Codebook, clock: Clock) -> None:
        """Add the vectors of one training batch."""
        away = a.z.detach().reshape(-1, codebook.dim).to(self.sums.dtype) - self.mean
        self.count += len(away)
        self.sums += away.sum(0)
        self.products += away.T @ away

    def reduce(self, clock: Clock) -> None:
        """Sum the statistics over all processes."""
        for values in (self.count, self.sums, self.products):
            values.copy_(ranks.sum_over_ranks(values))

    def apply_to(self, codebook: Codebook, clock: Clock) -> None:
        """Take the step into the running moments, and move the projector."""
        assert isinstance(codebook, ProjectedCodebook)
        seen = self._follow()
        self.forget()
        projector = codebook.projector
        assert isinstance(projector, nn.Linear)
        weight, bias = (tensor.to(self.mean.dtype) for tensor in (projector.weight, projector.bias))
        centre, spread = self._features(codebook.features)
        moved = transport(weight @ spread @ weight.T, self.covariance)
        offset = moved @ (bias - (weight @ centre + bias)) + self.mean
        sound = seen & torch.isfinite(moved.sum() + offset.sum())
        projector.weight.copy_(torch.where(sound, moved @ weight, weight))
        projector.bias.copy_(torch.where(sound, offset, bias))

    def _follow(self) -> Tensor:
        """Move the running moments: the first steps count alike, later ones by the decay.

        Return whether the step had vectors, and all of them were numbers; else nothing moves.
        """
        count = self.count.clamp(min=1)
        shift = self.sums / count
        spread = self.products / count - shift.outer(shift)
        sound = torch.isfinite(spread.sum()) & (self.count > 0)
        self.steps += sound
        share = (1 / self.steps.clamp(min=1).to(shift.dtype)).clamp(min=1 - self.decay)
        # What separates the two means is part of the variance of both together.
        between = share * (1 - share) * shift.outer(shift) * (self.steps > 1)
        joined = torch.lerp(self.covariance, spread, share) + between
        self.covariance.copy_(torch.where(sound, joined, self.covariance))
        self.mean += torch.where(sound, share * shift, 0.0)
        return sound

    def _features(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean (F,) and covariance (F, F) of the features (K, F), which seldom change."""
        features_now = features.data_ptr(), features._version
        if self._moments is None or self._moments_of != features_now:
            centre = features.mean(0, dtype=self.mean.dtype)
            spread = centre.new_zeros(len(centre), len(centre))
            for part in features.split(ROWS):
                away = part.to(centre.dtype) - centre
                spread += away.T @ away
            self._moments, self._moments_of = (centre, spread / len(features)), features_now
        return self._moments

    def forget(self) -> None:
        """Clear the statistics of the step."""
        for values in (self.count, self.sums, self.products):
            values.zero_()

    def summary(self) -> str:
        """Name the rule."""
        return "aligned with the vectors"


def transport(source: Tensor, target: Tensor) -> Tensor:
    """Return the symmetric matrix M (D, D) with M source M = target, for covariances (D, D).

    Both get `RIDGE` of their mean variance first, so that flat directions have an inverse.
    """
    root = _power(_ridged(target), 0.5)
    return root @ _power(root @ _ridged(source) @ root, -0.5) @ root


def _ridged(covariance: Tensor) -> Tensor:
    size = covariance.diagonal().mean() * RIDGE + torch.finfo(covariance.dtype).tiny
    return covariance + size * torch.eye(len(covariance)).to(covariance)


def _power(covariance: Tensor, exponent: float) -> Tensor:
    """Raise a symmetric positive matrix to a power; one that is not finite gives NaN."""
    sound = torch.isfinite(covariance.sum())
    values, axes = torch.linalg.eigh(torch.where(sound, covariance, 0.0))
    least = values.amax() * torch.finfo(values.dtype).eps
    powers = values.clamp(min=least).pow(exponent).where(sound, torch.nan)
    return (axes * powers) @ axes.T
