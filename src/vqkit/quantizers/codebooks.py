"""Where codevectors come from, and the space they live in.

A codebook answers four questions: its table of codes (G, K, D), a vector brought into its space
(`project`), tokens turned back into codes (`lookup`), and whether update rules may write it.
G independent tables lie side by side for product quantization; G = 1 otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .clock import Clock
from .tables import take_codes, unit_rows

DROPOUT = 1  # stream of random numbers; see Clock.uniform


def check_count(setting: str, value: object) -> None:
    """Raise `ValueError` unless value is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{setting}={value!r}: must be an integer of at least 1")


class Codebook(nn.Module):
    """Base class of all codebooks.

    Tables that are computed (`computed`) run once per training forward, so that all segments and
    levels share one graph, and are cached in evaluation. The cache is dropped by `train()`,
    `load_state_dict`, any conversion and every update, and it notices tensors written in place
    (not through `.data`, which leaves no trace: call `GridQuantizer.drop_cache`).
    """

    num_codes: int
    dim: int
    groups: int = 1
    writable = False
    computed = False
    spherical = False
    has_table = True
    """False for a lattice, whose nearest point has a closed form."""

    def __init__(self, num_codes: int, dim: int, groups: int = 1) -> None:
        super().__init__()
        check_count("num_codes", num_codes)
        check_count("dim", dim)
        check_count("num_segments", groups)
        self.num_codes, self.dim, self.groups = num_codes, dim, groups
        self._cached: tuple[object, Tensor] | None = None
        self._held = False

    def compute(self, clock: Clock) -> Tensor:
        """Return the codes, (G, K, D), differentiable."""
        raise NotImplementedError

    def table(self, clock: Clock) -> Tensor:
        """Return the codes, (G, K, D), from the cache where that is allowed."""
        if not self.computed:
            return self.compute(clock)
        if self.training:
            if not self._held:
                return self.compute(clock)
            if self._cached is None:
                self._cached = (None, self.compute(clock))
            return self._cached[1]
        key = self._tensors_key()
        if self._cached is None or self._cached[0] != key:
            with torch.no_grad():
                self._cached = (key, self.compute(clock))
        return self._cached[1]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within this block a training forward computes the table once."""
        outermost = not self._held
        if outermost and self.training:
            self.drop_cache()
        self._held = True
        try:
            yield
        finally:
            if outermost:
                self._held = False
                if self.training:  # a live graph must not outlast its forward
                    self.drop_cache()

    def drop_cache(self) -> None:
        """Forget a computed table."""
        self._cached = None

    def project(self, z: Tensor) -> Tensor:
        """Bring vectors (..., D) into the space of the codes."""
        return z

    def lookup(self, ids: Tensor, clock: Clock) -> Tensor:
        """Turn ids (G, N) into codes (G, N, D)."""
        return take_codes(self.table(clock), ids)

    def write(self, codes: Tensor) -> None:
        """Overwrite the codes (G, K, D) in place; only update rules call this."""
        raise TypeError(f"{type(self).__name__} cannot be written by an update rule")

    @property
    def trainable(self) -> bool:
        """Whether a gradient reaches the codes."""
        return any(p.requires_grad for p in self.parameters())

    def stored_floats(self) -> int:
        """Numbers that a decoder must hold for this codebook."""
        return self.groups * self.num_codes * self.dim

    def summary(self) -> str:
        """Name the kind of codebook, for generated tables."""
        raise NotImplementedError

    def _tensors_key(self) -> object:
        tensors = chain(self.parameters(), self.buffers())
        return tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)

    def train(self, mode: bool = True) -> Codebook:
        """Set the mode; a computed table is dropped."""
        self.drop_cache()
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Codebook:
        self.drop_cache()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.drop_cache()
        super()._load_from_state_dict(*args, **kwargs)


class FreeCodebook(Codebook):
    """Codes are one tensor: a parameter moved by gradient, or a buffer that a rule writes."""

    writable = True
    codes: Tensor

    def __init__(
        self, codes: Tensor, *, moved_by: Literal["gradient", "rule"] = "gradient"
    ) -> None:
        """Hold a copy of `codes` (K, D) or (G, K, D)."""
        if codes.ndim not in (2, 3) or not codes.is_floating_point():
            raise ValueError(
                f"codes of shape {tuple(codes.shape)} and type {codes.dtype}: expected "
                "floating-point rows (num_codes, dim) or (groups, num_codes, dim)"
            )
        codes = (codes[None] if codes.ndim == 2 else codes).detach().clone()
        super().__init__(codes.shape[1], codes.shape[2], codes.shape[0])
        if moved_by == "gradient":
            self.codes = nn.Parameter(codes)
        elif moved_by == "rule":
            self.register_buffer("codes", codes)
        else:
            raise ValueError(f"moved_by={moved_by!r}: expected 'gradient' or 'rule'")

    def compute(self, clock: Clock) -> Tensor:
        """Return the codes, (G, K, D)."""
        return self.codes

    @torch.no_grad()
    def write(self, codes: Tensor) -> None:
        """Overwrite the codes (G, K, D) in place; only update rules call this."""
        self.codes.copy_(codes)

    def summary(self) -> str:
        """Name the kind of codebook."""
        return "free" if self.groups == 1 else "free, one per segment"


class ProjectedCodebook(Codebook):
    """Given features (K, F) seen through a trained projector (SimVQ, VQGAN-LC eq. 3)."""

    computed = True
    features: Tensor

    def __init__(
        self, features: Tensor, projector: nn.Module, dim: int, *, frozen: bool = True
    ) -> None:
        if features.ndim != 2 or not features.is_floating_point():
            raise ValueError(
                f"features of shape {tuple(features.shape)} and type {features.dtype}: "
                "expected floating-point rows (num_codes, feature_dim)"
            )
        super().__init__(len(features), dim)
        features = features.detach().float().clone()
        if frozen:
            self.register_buffer("features", features)
        else:
            self.features = nn.Parameter(features)
        self.projector = projector

    def compute(self, clock: Clock) -> Tensor:
        """Return the projected codes, (1, K, D)."""
        codes: Tensor = self.projector(self.features)
        return codes[None]

    def summary(self) -> str:
        """Name the kind of codebook."""
        source = "trained" if isinstance(self.features, nn.Parameter) else "frozen"
        projector = "as they are" if isinstance(self.projector, nn.Identity) else "+ projector"
        return f"{source} features {projector}"


class RefinedCodebook(Codebook):
    """Any codebook passed through a network that sees all codes at once (Dual eq. 4, T(C_g)).

    Random draws inside the network (dropout) come from the quantizer's clock, so that all
    processes and micro-batches of a step see the same table.
    """

    computed = True

    def __init__(self, base: Codebook, refiner: nn.Module) -> None:
        super().__init__(base.num_codes, base.dim, base.groups)
        self.base, self.refiner = base, refiner

    def compute(self, clock: Clock) -> Tensor:
        """Return the refined codes, (G, K, D)."""
        if not self.training:
            return self._refined(clock)
        with clock.seeded_generators(DROPOUT):
            return self._refined(clock)

    def _refined(self, clock: Clock) -> Tensor:
        codes: Tensor = self.refiner(self.base.table(clock))
        return codes

    def summary(self) -> str:
        """Name the kind of codebook."""
        return f"refined by {type(self.refiner).__name__}"


class UnitSphere(Codebook):
    """Any codebook with codes and vectors held at unit length (ViT-VQGAN, arXiv:2110.04627)."""

    computed = True
    spherical = True

    def __init__(self, base: Codebook) -> None:
        super().__init__(base.num_codes, base.dim, base.groups)
        self.base, self.writable = base, base.writable

    def compute(self, clock: Clock) -> Tensor:
        """Return the codes at unit length, (G, K, D)."""
        return unit_rows(self.base.table(clock))

    def project(self, z: Tensor) -> Tensor:
        """Bring vectors (..., D) to unit length."""
        return F.normalize(self.base.project(z), dim=-1)

    @torch.no_grad()
    def write(self, codes: Tensor) -> None:
        """Overwrite the codes (G, K, D) in place; only update rules call this."""
        self.base.write(codes)
        self.drop_cache()

    def summary(self) -> str:
        """Name the kind of codebook."""
        return f"{self.base.summary()}, unit sphere"


def uniform_codes(num_codes: int, dim: int, groups: int = 1) -> Tensor:
    """Draw (G, K, D) codes from U(±1/K), the initialisation of VQ-VAE and VQGAN."""
    check_count("num_codes", num_codes)
    check_count("dim", dim)
    check_count("num_segments", groups)
    return torch.empty(groups, num_codes, dim).uniform_(-1 / num_codes, 1 / num_codes)


def normal_codes(num_codes: int, dim: int, groups: int = 1) -> Tensor:
    """Draw (G, K, D) codes from N(0, 1)."""
    check_count("num_codes", num_codes)
    check_count("dim", dim)
    check_count("num_segments", groups)
    return torch.randn(groups, num_codes, dim)


def as_levels(levels: Sequence[int]) -> tuple[int, ...]:
    """Check the levels of a lattice: at least one dimension, each with at least 2."""
    if not levels or any(isinstance(n, bool) or not isinstance(n, int) or n < 2 for n in levels):
        raise ValueError(f"levels={levels!r}: give integers of at least 2, e.g. (8, 5, 5, 5)")
    return tuple(levels)
