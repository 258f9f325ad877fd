"""How a codebook moves besides gradient descent.

In training `collect` only adds to statistics, which are buffers. `reduce` joins them over all
processes, and `apply_to` writes the codes and clears them; neither runs between a forward and its
backward (`GridQuantizer.step`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from vqkit.search import code_counts_and_sums

from . import ranks
from .clock import Clock
from .codebooks import Codebook
from .records import Assigned

SAMPLE, RESTART_NOISE = 3, 4  # streams of random numbers; see Clock.uniform


class Statistics(nn.Module):
    """Buffers that keep their type when a model is converted to 16 bits: counts must be exact."""

    def _apply(self, fn: Any, recurse: bool = True) -> Statistics:
        def move(tensor: Tensor) -> Tensor:
            moved: Tensor = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)


class UpdateRule(Statistics):
    """Base class of all update rules."""

    shape: tuple[int, int, int]
    """(G, K, D) of the codebook that the rule was made for."""

    def __init__(self, codebook: Codebook) -> None:
        super().__init__()
        self.shape = (codebook.groups, codebook.num_codes, codebook.dim)

    def check(self, codebook: Codebook) -> None:
        """Raise `ValueError` if this rule cannot work with the codebook."""
        if not codebook.writable:
            raise ValueError(
                f"{type(self).__name__} writes codes in place, but {type(codebook).__name__} "
                "computes its codes; use FreeCodebook, or drop the rule"
            )
        shape = (codebook.groups, codebook.num_codes, codebook.dim)
        if shape != self.shape:
            raise ValueError(
                f"{type(self).__name__} was made for codes (groups, codes, dim) = {self.shape}, "
                f"not {shape}; make it for the codebook that it updates"
            )

    def collect(self, a: Assigned, codebook: Codebook, clock: Clock) -> None:
        """Add one training batch to the statistics."""
        raise NotImplementedError

    def reduce(self, clock: Clock) -> None:
        """Replace this process's statistics by those of all processes together."""
        raise NotImplementedError

    def apply_to(self, codebook: Codebook, clock: Clock) -> None:
        """Write the codes from the reduced statistics and clear them."""
        raise NotImplementedError

    def summary(self) -> str:
        """Name the rule, for generated tables."""
        raise NotImplementedError


class RowSample(Statistics):
    """A uniform sample of K vectors out of all that a step has seen, in random order.

    Every vector has a random priority drawn from (seed, step, its number in the batch); the K
    smallest stay. The sample is therefore the same however the batch was divided.
    """

    priority: Tensor
    rows: Tensor

    def __init__(self, codebook: Codebook) -> None:
        super().__init__()
        shape = (codebook.groups, codebook.num_codes, codebook.dim)
        self.register_buffer("priority", torch.full(shape[1:2], math.inf, dtype=torch.float64))
        self.register_buffer("rows", torch.zeros(shape))

    def collect(self, z: Tensor, clock: Clock) -> None:
        """Offer vectors (G, N, D)."""
        drawn = clock.uniform(SAMPLE, clock.row_numbers(z.shape[1]))
        best = drawn.topk(min(len(drawn), len(self.priority)), largest=False)
        self._keep(best.values, z[:, best.indices].to(self.rows))

    def _keep(self, priority: Tensor, rows: Tensor) -> None:
        priority = torch.cat([self.priority, priority])
        rows = torch.cat([self.rows, rows], 1)
        best = priority.topk(len(self.priority), largest=False, sorted=True)
        self.priority.copy_(best.values)
        self.rows.copy_(rows[:, best.indices])

    def reduce(self) -> None:
        """Sample from the samples of all processes."""
        if ranks.world_size() == 1:
            return
        priority, rows = ranks.gather_over_ranks(self.priority), ranks.gather_over_ranks(self.rows)
        self.clear()
        self._keep(priority.flatten(), rows.transpose(0, 1).flatten(1, 2))

    def clear(self) -> None:
        """Forget the sample."""
        self.priority.fill_(math.inf)
        self.rows.zero_()


class EMA(UpdateRule):
    """Codes are exponential averages of their vectors (arXiv:1711.00937, appendix A.1).

    It starts warm: every code counts as one vector at its initial place, so that an unused code
    is not flung to 1e5. It stays where it is until its count has decayed to the size of `eps`
    (about 1,000 steps), and then drifts towards zero. With `restart_below`, codes whose average
    count fell under it restart at random vectors of the batch (RQ-VAE).
    """

    counts: Tensor
    sums: Tensor
    new_counts: Tensor
    new_sums: Tensor

    def __init__(
        self,
        codebook: Codebook,
        *,
        decay: float = 0.99,
        eps: float = 1e-5,
        restart_below: float | None = None,
    ) -> None:
        super().__init__(codebook)
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: must lie in [0, 1)")
        if eps < 0:
            raise ValueError(f"eps={eps}: must not be negative")
        if restart_below is not None and not restart_below > 0:
            raise ValueError(f"restart_below={restart_below}: must be above 0, or None for never")
        self.check(codebook)
        codes = codebook.table(Clock()).detach()
        self.decay, self.eps, self.restart_below = decay, eps, restart_below
        self.register_buffer("counts", torch.ones(codes.shape[:2]))
        self.register_buffer("sums", codes.clone())
        self.register_buffer("new_counts", torch.zeros(codes.shape[:2]))
        self.register_buffer("new_sums", torch.zeros_like(codes))
        self.sample = None if restart_below is None else RowSample(codebook)

    def check(self, codebook: Codebook) -> None:
        """Raise `ValueError` for codes that cannot be written, or that a gradient moves too."""
        super().check(codebook)
        if codebook.trainable:
            raise ValueError(
                "EMA writes the codes, and a gradient would move them too; build the codebook with "
                "moved_by='rule'"
            )

    def collect(self, a: Assigned, codebook: Codebook, clock: Clock) -> None:
        """Add one training batch to the statistics."""
        z, ids = a.z.detach(), a.ids
        for neighbour in ids.unbind(-1) if ids.ndim == 3 else (ids,):
            counts, sums = code_counts_and_sums(z, neighbour, codebook.num_codes)
            self.new_counts += counts
            self.new_sums += sums
        if self.sample is not None:
            self.sample.collect(z, clock)

    def reduce(self, clock: Clock) -> None:
        """Sum the statistics over all processes."""
        self.new_counts.copy_(ranks.sum_over_ranks(self.new_counts))
        self.new_sums.copy_(ranks.sum_over_ranks(self.new_sums))
        if self.sample is not None:
            self.sample.reduce()

    def apply_to(self, codebook: Codebook, clock: Clock) -> None:
        """Move the averages, restart dead codes, write the codes."""
        # A step with a vector that is not finite is left out: it would stay in the sums for ever.
        sound = torch.isfinite(self.new_sums).all()
        counts = self.counts.lerp(self.new_counts, 1 - self.decay)
        sums = self.sums.lerp(self.new_sums, 1 - self.decay)
        self.counts.copy_(torch.where(sound, counts, self.counts))
        self.sums.copy_(torch.where(sound, sums, self.sums))
        if self.sample is not None:
            self._restart(clock)
        total = self.counts.sum(-1, keepdim=True)
        # Laplace smoothing of the counts; the buffer itself stays unsmoothed.
        smoothed = (self.counts + self.eps) / (total + self.counts.shape[-1] * self.eps) * total
        codebook.write(self.sums / smoothed[..., None])
        self.new_counts.zero_()
        self.new_sums.zero_()

    def _restart(self, clock: Clock) -> None:
        assert self.sample is not None
        rows, found = self.sample.rows, torch.isfinite(self.sample.priority).sum()
        position = torch.arange(rows.shape[1], device=rows.device)
        # Fewer vectors than codes: repeat them, and tell the copies apart by a little noise.
        element = torch.arange(rows.shape[2], device=rows.device)
        noise = clock.uniform(RESTART_NOISE, position[:, None], element).to(rows)
        copied = (position >= found)[:, None]
        fresh = rows[:, position % found.clamp(min=1)]
        fresh = fresh + torch.where(copied, noise * 0.01 / math.sqrt(rows.shape[2]), 0)
        dead = (self.counts < (self.restart_below or 0.0)) & (found > 0)
        dead = dead & torch.isfinite(fresh).all(-1)
        self.sums.copy_(torch.where(dead[..., None], fresh, self.sums))
        self.counts.masked_fill_(dead, 1.0)
        self.sample.clear()

    def summary(self) -> str:
        """Name the rule."""
        return "EMA" if self.restart_below is None else "EMA + restart"


def count_codes(ids: Tensor, num_codes: int) -> Tensor:
    """Count ids (G, N) or (G, N, k) per code: (G, K) float32."""
    ids = ids.flatten(1)
    counts = torch.zeros(len(ids), num_codes, device=ids.device)
    return counts.scatter_add_(1, ids, torch.ones_like(ids, dtype=counts.dtype))
