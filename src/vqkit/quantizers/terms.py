"""What a quantizer pays: `term(assigned) -> scalar`, already weighted.

Means run over every element of (G, N, D) unless a docstring says "sum"; the two weights of VQ-VAE
are two terms, never one β on whichever of them a code base happens to scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vqkit.search import Metric

from . import ranks
from .lattice import binary_log_probabilities
from .records import Assigned


@dataclass(frozen=True, kw_only=True)
class Term:
    """Base class. `name` keys the term in `Quantized.terms`."""

    weight: float
    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    """Fields of `Assigned` that must not be None; checked when a quantizer is built."""

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ValueError(f"{self.name} weight={self.weight}: must not be negative")

    def __call__(self, a: Assigned) -> Tensor:
        """Return the weighted scalar."""
        return self.weight * self.value(a)

    def value(self, a: Assigned) -> Tensor:
        """Return the scalar before its weight."""
        raise NotImplementedError


class Commitment(Term):
    """mean (z - sg[z_q])²: pulls the encoder to its code (arXiv:1711.00937 eq. 3, last term)."""

    name = "commitment"

    def value(self, a: Assigned) -> Tensor:
        """Return the scalar before its weight."""
        return F.mse_loss(a.z, a.z_q.detach().to(a.z.dtype))


class CodebookLoss(Term):
    """mean (sg[z] - z_q)²: pulls the code to its vectors (arXiv:1711.00937 eq. 3, middle term)."""

    name = "codebook"

    def value(self, a: Assigned) -> Tensor:
        """Return the scalar before its weight."""
        return F.mse_loss(a.z_q, a.z.detach().to(a.z_q.dtype))


class UniformKL(Term):
    """KL(p(·|z) ‖ uniform) = Σ_k p log(K p), mean over vectors (VQGAN's Gumbel quantizer)."""

    name = "uniform_kl"
    needs = ("negative_entropy", "table")

    def value(self, a: Assigned) -> Tensor:
        """Return the scalar before its weight."""
        assert a.negative_entropy is not None
        assert a.table is not None
        return a.negative_entropy.mean() + math.log(a.table.shape[1])


class CategoricalEntropy(Term):
    """Σ_vectors Σ_k p log p / B: the discrete half of SQ-VAE's KL, sum over positions."""

    name = "categorical_entropy"
    needs = ("negative_entropy",)

    def value(self, a: Assigned) -> Tensor:
        """Return the scalar before its weight."""
        assert a.negative_entropy is not None
        return a.negative_entropy.sum() / a.batch


class GaussianError(Term):
    """Σ ‖z - z_q‖² / 2σ² / B: the continuous half of SQ-VAE's KL; nothing is detached."""

    name = "gaussian_error"
    needs = ("precision",)

    def value(self, a: Assigned) -> Tensor:
        """Return the scalar before its weight."""
        assert a.precision is not None
        return (a.z - a.z_q).square().sum() * a.precision / (2 * a.batch)


@dataclass(frozen=True, kw_only=True)
class BitEntropy(Term):
    """LFQ's entropy term: mean entropy of a vector's codes minus entropy of their mean
    (arXiv:2310.05737, eq. 5-6), p(c|z) ∝ exp(-‖z - c‖²/temperature), in nats.

    Up to `joint_bits` bits the mean distribution is over all 2^D codes; above, it is taken bit by
    bit and summed, so that 2^D columns never exist. Over several processes the mean distribution is
    the one of all their vectors.
    """

    name: ClassVar[str] = "entropy"
    temperature: float = 0.01
    joint_bits: int = 10

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature}: must be above 0")

    def value(self, a: Assigned) -> Tensor:
        """Return the scalar before its weight."""
        log_p = binary_log_probabilities(a.z[0], self.temperature)  # (N, D, 2)
        each = -(log_p.exp() * log_p).sum((-1, -2)).mean()
        if log_p.shape[1] > self.joint_bits:
            mean = _mean_over_all(log_p.exp().mean(0))  # (D, 2)
        else:
            # Bits are independent given z: the mean over vectors of the products of two halves is
            # one matrix product, and N × 2^D never exists.
            first, second = (_joint(half) for half in log_p.tensor_split(2, 1))
            mean = _mean_over_all((first.T @ second / len(first)).flatten())  # (2^D,)
        # Clamped: the slope of p log p at p = 0 is infinite, and a code may be that far away.
        return each + (mean * mean.clamp(min=1e-10).log()).sum()


def _joint(log_p: Tensor) -> Tensor:
    """Probability of every combination of bits, first one highest: (N, d, 2) -> (N, 2^d)."""
    joint = log_p.new_zeros(len(log_p), 1)
    for bit in log_p.unbind(1):
        joint = (joint[:, :, None] + bit[:, None, :]).flatten(1)
    return joint.exp()


def _mean_over_all(local: Tensor) -> Tensor:
    """Mean over processes in value; the gradient of this process's own share.

    Averaging the processes' gradients, as DDP does, then gives the gradient of the joined batch.
    """
    everywhere = ranks.sum_over_ranks(local.detach()) / ranks.world_size()
    return local + (everywhere - local.detach())


@dataclass(frozen=True, kw_only=True)
class Contrastive(Term):
    """CVQ's contrastive term: per code, cross entropy of the mean of its max(1, N/K) most similar
    vectors against the least similar half of all vectors (arXiv:2307.15139, eq. 7). The gradient
    reaches the codes only. Vectors are those of this process and forward.

    The K×N similarities are made block by block, and again in the backward pass.
    """

    name: ClassVar[str] = "contrastive"
    needs: ClassVar[tuple[str, ...]] = ("table",)
    temperature: float = 0.07
    metric: Metric = "l2"
    block: int = 1 << 22
    """Similarities held at a time."""

    def value(self, a: Assigned) -> Tensor:
        """Return the scalar before its weight."""
        assert a.table is not None
        total = a.z.new_zeros(())
        for z, codes in zip(a.z.detach(), a.table, strict=True):
            step = max(1, self.block // len(z))
            for start in range(0, len(codes), step):
                part = codes[start : start + step]
                total = total + checkpoint(
                    self._block, part, z, max(1, len(z) // len(codes)), use_reentrant=False
                )
        return total / (a.table.shape[0] * a.table.shape[1])

    def _block(self, codes: Tensor, z: Tensor, num_positive: int) -> Tensor:
        codes, z = codes.float(), z.float()
        if self.metric == "cosine":
            similarity = F.normalize(codes, dim=-1) @ F.normalize(z, dim=-1).T
        else:
            similarity = 2 * codes @ z.T - z.square().sum(-1) - codes.square().sum(-1)[:, None]
        positive = similarity.topk(num_positive).values.mean(-1, keepdim=True)
        negative = similarity.topk(max(1, len(z) // 2), largest=False).values
        logits = torch.cat([positive, negative], 1) / self.temperature
        return (logits.logsumexp(1) - logits[:, 0]).sum()
