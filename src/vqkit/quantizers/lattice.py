"""Codebooks that are never stored: the nearest point of a lattice has a closed form (FSQ, LFQ)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .clock import Clock
from .codebooks import Codebook, as_levels, check_count


class Lattice(Codebook):
    """A codebook with a rule instead of a table. `table` materialises it, so ask only if small."""

    strides: Tensor
    has_table = False

    def nearest(self, z: Tensor) -> Tensor:
        """Ids (...) of the lattice points nearest to projected vectors (..., D)."""
        raise NotImplementedError

    def compute(self, clock: Clock) -> Tensor:
        """Return all codes, (1, K, D)."""
        return self.lookup(torch.arange(self.num_codes, device=self.strides.device), clock)[None]

    def stored_floats(self) -> int:
        """Nothing is stored."""
        return 0


class ScalarLattice(Lattice):
    """FSQ: every dimension is bounded and rounded to its own number of levels (arXiv:2309.15505).

    Codes lie in [-1, 1]; id = sum of digit_i times the product of the lower levels.
    """

    levels: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        levels = as_levels(levels)
        if math.prod(levels) >= 1 << 62:
            raise ValueError(f"levels={levels}: the product must stay below 2^62, ids are int64")
        super().__init__(math.prod(levels), len(levels))
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        strides = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("strides", torch.tensor(strides), persistent=False)

    def project(self, z: Tensor) -> Tensor:
        """Bound vectors (..., D), FSQ's f; even numbers of levels are shifted by half a step."""
        half = (self.levels - 1) * (1 + 1e-3) / 2
        offset = 0.5 * (self.levels % 2 == 0)
        shift = torch.atanh(offset / half)
        return (torch.tanh(z + shift) * half - offset) / (self.levels // 2)

    def nearest(self, z: Tensor) -> Tensor:
        """Ids (...) of projected vectors (..., D)."""
        middle = self.levels // 2
        digits = torch.nan_to_num(z * middle).round().long() + middle
        return (digits.clamp(min=0).minimum(self.levels - 1) * self.strides).sum(-1)

    def lookup(self, ids: Tensor, clock: Clock) -> Tensor:
        """Turn ids (...) into codes (..., D)."""
        middle = self.levels // 2
        return ((ids[..., None] // self.strides) % self.levels - middle).float() / middle

    def summary(self) -> str:
        """Name the kind of codebook."""
        return f"lattice {'×'.join(str(n) for n in self.levels.tolist())}"


class BinaryLattice(Lattice):
    """LFQ: the corners of a cube, code = sign(z), id = its bits, first one highest
    (arXiv:2310.05737, eq. 2-3)."""

    def __init__(self, dim: int) -> None:
        check_count("dim", dim)
        if dim > 62:
            raise ValueError(f"dim={dim}: at most 62 bits fit an int64 id")
        super().__init__(1 << dim, dim)
        strides = [1 << (dim - 1 - i) for i in range(dim)]
        self.register_buffer("strides", torch.tensor(strides), persistent=False)

    def nearest(self, z: Tensor) -> Tensor:
        """Ids (...) of vectors (..., D)."""
        return ((z > 0) * self.strides).sum(-1)

    def lookup(self, ids: Tensor, clock: Clock) -> Tensor:
        """Turn ids (...) into codes (..., D), -1 or 1."""
        return ((ids[..., None] // self.strides) % 2).float() * 2 - 1

    def summary(self) -> str:
        """Name the kind of codebook."""
        return f"lattice of {self.dim} signs"


def binary_log_probabilities(z: Tensor, temperature: float) -> Tensor:
    """Log of p(bit = -1), p(bit = +1) ∝ exp(-(z - c)²/temperature): (..., D) -> (..., D, 2)."""
    logit = 4 * z / temperature
    return torch.stack([F.logsigmoid(-logit), F.logsigmoid(logit)], -1)
