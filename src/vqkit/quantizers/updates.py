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
from vqkit.search.counting import FEW

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

    def forget(self) -> None:
        """Clear the statistics."""
        raise NotImplementedError

    def summary(self) -> str:
        """Name the rule, for generated tables."""
        raise NotImplementedError

    def numbers(self) -> dict[str, int]:
        """Return what the log of a training should say of the rule; by default nothing."""
        return {}


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
        self.found = 0
        """How many places are taken, the first ones; mirrors `priority`, for which a GPU waits."""

    def collect(self, z: Tensor, clock: Clock) -> None:
        """Offer vectors (G, N, D)."""
        self._add(clock.uniform(SAMPLE, clock.row_numbers(z.shape[1])), z)

    def _add(self, priority: Tensor, z: Tensor) -> None:
        """Add vectors (G, N, D) of priorities (N,), and forget the largest beyond K."""
        taken, free = self.found, len(self.priority) - self.found
        if len(priority) > free:
            best = priority.topk(min(len(priority), len(self.priority)), largest=False)
            priority = torch.cat([self.priority[:taken], best.values])
            best_of_all = priority.topk(len(self.priority), largest=False)
            rows = torch.cat([self.rows[:, :taken], z[:, best.indices].to(self.rows)], 1)
            priority, z, taken = best_of_all.values, rows[:, best_of_all.indices], 0
        self.found = taken + len(priority)
        self.priority[taken : self.found] = priority
        self.rows[:, taken : self.found] = z.to(self.rows)

    def sorted(self) -> tuple[Tensor, Tensor]:
        """Return priorities (n,) and vectors (G, n, D) of the sample, in its random order."""
        priority, order = self.priority[: self.found].sort()
        return priority, self.rows[:, order]

    def reduce(self) -> None:
        """Sample from the samples of all processes."""
        if ranks.world_size() == 1:
            return
        priority, rows = ranks.gather_over_ranks(self.priority), ranks.gather_over_ranks(self.rows)
        counts = ranks.gather_over_ranks(torch.tensor(self.found, device=priority.device))
        self.clear()
        for found, theirs, z in zip(counts.tolist(), priority, rows, strict=True):
            self._add(theirs[:found], z[:, :found])

    def clear(self) -> None:
        """Forget the sample."""
        self.priority[: self.found] = math.inf
        self.rows[:, : self.found] = 0
        self.found = 0

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.found = int(torch.isfinite(self.priority).sum())


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
            add_statistics(self.new_counts, self.new_sums, z, neighbour)
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
        sound = torch.isfinite(self.new_sums.sum())
        new_counts, new_sums = self.new_counts, self.new_sums
        if sound.device.type != "cpu" or not sound:  # nobody waits for a device
            new_counts = torch.where(sound, new_counts, self.counts)
            new_sums = torch.where(sound, new_sums, self.sums)
        self.counts.lerp_(new_counts, 1 - self.decay)
        self.sums.lerp_(new_sums, 1 - self.decay)
        if self.sample is not None:
            self._restart(self.sample, clock)
        total = self.counts.sum(-1, keepdim=True)
        # Laplace smoothing of the counts; the buffer itself stays unsmoothed.
        smoothed = (self.counts + self.eps) / (total + self.counts.shape[-1] * self.eps) * total
        codebook.write(self.sums / smoothed[..., None])
        self.forget()

    def forget(self) -> None:
        """Clear the statistics."""
        self.new_counts.zero_()
        self.new_sums.zero_()
        if self.sample is not None:
            self.sample.clear()

    def _restart(self, sample: RowSample, clock: Clock) -> None:
        """Put dead codes on vectors of the sample."""
        rows = sample.sorted()[1]
        found = rows.shape[1]
        if found == 0:
            return
        dead = self.counts < (self.restart_below or 0.0)
        # On a CPU only dead codes are visited; elsewhere nobody waits to know how many there are.
        if dead.device.type == "cpu":
            group, code = dead.nonzero(as_tuple=True)
        else:
            place = torch.arange(dead.numel(), device=dead.device)
            group, code = place // dead.shape[1], place % dead.shape[1]
        fresh = rows[group, code % found]
        # Fewer vectors than codes: repeat them, and tell the copies apart by a little noise.
        copied = code >= found
        if found < self.counts.shape[1]:
            element = torch.arange(rows.shape[2], device=rows.device)
            noise = clock.uniform(RESTART_NOISE, code[:, None], element).to(rows)
            noise *= copied[:, None] * (0.01 / math.sqrt(rows.shape[2]))
            fresh += noise
        taken = dead[group, code] & torch.isfinite(fresh.sum(-1))
        fresh = torch.where(taken[:, None], fresh, self.sums[group, code])
        self.sums[group, code] = fresh
        self.counts[group, code] = torch.where(taken, 1.0, self.counts[group, code])

    def summary(self) -> str:
        """Name the rule."""
        return "EMA" if self.restart_below is None else "EMA + restart"


def add_statistics(counts: Tensor, sums: Tensor, z: Tensor, ids: Tensor) -> None:
    """Add vectors z (G, N, D) with ids (G, N) to counts (G, K) and sums (G, K, D), float32.

    On a CPU only the codes that were drawn are touched, and parts of a batch one after another
    give the bits of the whole, unless a code has so many vectors that float32 adds them up badly.
    """
    groups, num_codes, dim = sums.shape
    if z.device.type != "cpu":
        new_counts, new_sums = code_counts_and_sums(z, ids, num_codes)
        counts += new_counts
        sums += new_sums
        return
    flat = (ids + torch.arange(groups)[:, None] * num_codes).flatten()
    drawn = torch.bincount(flat, minlength=groups * num_codes)
    counts += drawn.view_as(counts)
    if int(drawn.max()) <= FEW:
        sums.view(-1, dim).index_add_(0, flat, z.reshape(-1, dim).float())
    else:
        sums += code_counts_and_sums(z, ids, num_codes)[1]


def count_codes(ids: Tensor, num_codes: int) -> Tensor:
    """Count ids (G, N) or (G, N, k) per code: (G, K) float32."""
    ids = ids.flatten(1)
    counts = torch.zeros(len(ids), num_codes, device=ids.device)
    return counts.scatter_add_(1, ids, torch.ones_like(ids, dtype=counts.dtype))
