"""How a vector picks its code.

`assignment(z, codebook, clock, batch)` gets vectors (G, N, D) that already lie in the codebook's
space and returns an `Assigned`; `lookup` is the way back from ids.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqkit.search import Metric, nearest, nearest_k

from .clock import Clock
from .codebooks import Codebook, check_count
from .lattice import Lattice
from .records import Assigned
from .scores import COPIES, Logits, draw, negative_entropy
from .tables import take_codes

GUMBEL = 2  # stream of random numbers; see Clock.uniform
METRICS = ("l2", "cosine")


class Assignment(nn.Module):
    """Base class: what an assignment needs and gives is declared here and checked at build."""

    tokens_per_vector = 1
    metric: Metric = "l2"
    """How near a vector is to a code; update rules must search with the same measure."""
    score_copies = 0
    """Tensors of N·K numbers that stay alive for the backward pass."""
    gives: tuple[str, ...] = ("table",)
    """Fields of `Assigned` that terms may need."""
    weighs_codes = False
    """Whether the gradient passes through weights of the codes, and needs `through_weights`."""
    relaxed = False
    """Whether z_q mixes codes in training, so that ids do not determine it there."""

    def check(self, codebook: Codebook) -> None:
        """Raise `ValueError` if this assignment cannot work with the codebook."""
        if isinstance(codebook, Lattice):
            raise ValueError(
                f"{type(self).__name__} compares with a table, but {type(codebook).__name__} has "
                "none; use LatticePoint()"
            )

    def forward(self, z: Tensor, codebook: Codebook, clock: Clock, batch: int) -> Assigned:
        """Pick a code for every vector (G, N, D)."""
        raise NotImplementedError

    def lookup(self, ids: Tensor, codebook: Codebook, clock: Clock) -> Tensor:
        """Turn ids (G, N) back into codevectors (G, N, D)."""
        return codebook.lookup(ids, clock)

    def summary(self) -> str:
        """Name the assignment, for generated tables."""
        raise NotImplementedError


class Nearest(Assignment):
    """The nearest code by Euclidean distance or by cosine, found exactly; the raw code is taken.

    With `num_neighbours` = k the k nearest codes are averaged and every vector has k tokens,
    nearest first (VQCT).
    """

    def __init__(self, metric: Metric = "l2", *, num_neighbours: int = 1) -> None:
        super().__init__()
        if metric not in METRICS:
            raise ValueError(f"metric={metric!r}: expected one of {', '.join(map(repr, METRICS))}")
        check_count("num_neighbours", num_neighbours)
        self.metric, self.tokens_per_vector = metric, num_neighbours

    def check(self, codebook: Codebook) -> None:
        """Raise `ValueError` if there are fewer codes than neighbours, or no table."""
        super().check(codebook)
        if self.tokens_per_vector > codebook.num_codes:
            raise ValueError(
                f"num_neighbours={self.tokens_per_vector}: must not exceed "
                f"num_codes={codebook.num_codes}"
            )

    def forward(self, z: Tensor, codebook: Codebook, clock: Clock, batch: int) -> Assigned:
        """Pick the nearest code for every vector (G, N, D)."""
        table = codebook.table(clock)
        if self.tokens_per_vector == 1:
            ids = nearest(z, table, self.metric)
        else:
            ids, _ = nearest_k(z, table, self.tokens_per_vector, self.metric)
        return self.assigned(z, ids, table, batch)

    def assigned(self, z: Tensor, ids: Tensor, table: Tensor, batch: int) -> Assigned:
        """Take the codes of ids that were found for vectors (G, N, D)."""
        return Assigned(z, ids, self._mean_codes(table, ids), batch, table)

    def lookup(self, ids: Tensor, codebook: Codebook, clock: Clock) -> Tensor:
        """Turn ids (G, N) or (G, N, k) back into codevectors (G, N, D)."""
        return self._mean_codes(codebook.table(clock), ids)

    def _mean_codes(self, table: Tensor, ids: Tensor) -> Tensor:
        codes = take_codes(table, ids)
        return codes if self.tokens_per_vector == 1 else codes.mean(-2)

    def summary(self) -> str:
        """Name the assignment."""
        how_many = "" if self.tokens_per_vector == 1 else f"{self.tokens_per_vector} averaged, "
        return f"nearest, {how_many}{'L2' if self.metric == 'l2' else self.metric}"


class LatticePoint(Assignment):
    """The nearest point of a lattice, in closed form."""

    gives = ()

    def check(self, codebook: Codebook) -> None:
        """Raise `ValueError` unless the codebook is a lattice."""
        if not isinstance(codebook, Lattice):
            raise ValueError(
                f"LatticePoint rounds, but {type(codebook).__name__} is a table; use Nearest()"
            )

    def forward(self, z: Tensor, codebook: Codebook, clock: Clock, batch: int) -> Assigned:
        """Round every vector (1, N, D)."""
        assert isinstance(codebook, Lattice), "check() has seen to it"
        ids = codebook.nearest(z.detach())
        return Assigned(z, ids, codebook.lookup(ids, clock), batch)

    def summary(self) -> str:
        """Name the assignment."""
        return "rounding"


class _Stochastic(Assignment):
    """A temperature that falls with the step: τ = max(final, start · exp(-rate · step))."""

    score_copies = COPIES
    weighs_codes = True

    def __init__(self, temperature: float, final_temperature: float, anneal_rate: float) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature={temperature}: must be above 0 and finite")
        if not 0 < final_temperature <= temperature:
            raise ValueError(
                f"final_temperature={final_temperature}: must lie in (0, temperature={temperature}]"
            )
        if anneal_rate < 0:
            raise ValueError(f"anneal_rate={anneal_rate}: must not be negative")
        self.start, self.final, self.rate = temperature, final_temperature, anneal_rate

    def temperature(self, clock: Clock) -> Tensor:
        """τ of the current step, a float32 scalar."""
        falling = self.start * torch.exp(-self.rate * clock.step.double())
        return falling.clamp(min=self.final).float()

    def check(self, codebook: Codebook) -> None:
        """Raise `ValueError` for a lattice or for several independent tables."""
        super().check(codebook)
        if codebook.groups > 1:
            raise ValueError(
                f"{type(self).__name__} holds all scores of one codebook, not of "
                f"{codebook.groups} at once; split the vector into parts with Split"
            )

    def noise(self, num_rows: int, num_codes: int, clock: Clock) -> Callable[[slice], Tensor]:
        """Return a function from a slice of the vectors (n) to their Gumbel noise (n, K)."""
        numbers = clock.row_numbers(num_rows)[:, None]
        codes = torch.arange(num_codes, device=numbers.device)[None]

        def gumbel(rows: slice) -> Tensor:
            uniform = clock.uniform(GUMBEL, numbers[rows], codes)
            return uniform.log_().neg_().log_().neg_().float()

        return gumbel

    def drawn(
        self, z: Tensor, rows: Tensor, logits: Logits, table: Tensor, clock: Clock, batch: int
    ) -> Assigned:
        """Draw codes of the one table (1, K, D) for vectors z (1, N, D), in float32 `rows`."""
        noise = self.noise(len(rows), table.shape[1], clock)
        temperature = self.temperature(clock)
        found = draw(rows, logits, table[0].float(), temperature, noise, mix=self.relaxed)
        z_q, entropy = found.z_q.to(table.dtype)[None], found.negative_entropy[None]
        return Assigned(z, found.ids[None], z_q, batch, table, entropy)


class GumbelLogits(_Stochastic):
    """A 1×1 layer gives a logit for every code; no distance is involved (DALL-E, VQGAN's Gumbel).

    Training draws a code with the straight-through Gumbel-softmax, so that the reconstruction's
    gradient reaches the codes; evaluation takes the largest logit without noise.
    """

    gives = ("table", "negative_entropy")

    def __init__(
        self,
        num_codes: int,
        dim: int,
        *,
        temperature: float = 1.0,
        final_temperature: float = 1 / 16,
        anneal_rate: float = 0.0,
    ) -> None:
        super().__init__(temperature, final_temperature, anneal_rate)
        self.logits = nn.Linear(dim, num_codes)

    def check(self, codebook: Codebook) -> None:
        """Raise `ValueError` unless there is a logit for every code of the one table."""
        super().check(codebook)
        made_for = (self.logits.out_features, self.logits.in_features)
        if made_for != (codebook.num_codes, codebook.dim):
            raise ValueError(
                f"GumbelLogits{made_for}: the codebook has {codebook.num_codes} codes of "
                f"{codebook.dim} numbers; make both alike"
            )

    def forward(self, z: Tensor, codebook: Codebook, clock: Clock, batch: int) -> Assigned:
        """Draw (training) or choose (evaluation) a code for every vector (1, N, D)."""
        table, rows = codebook.table(clock), z[0].float()
        logits = Logits(self.logits.weight.float(), self.logits.bias.float())
        if self.training:
            return self.drawn(z, rows, logits, table, clock, batch)
        # The largest logit is the largest product once the bias has a column of its own.
        ids = nearest(F.pad(rows, (0, 1), value=1.0), torch.column_stack(logits), "dot")[None]
        entropy = negative_entropy(rows, logits)[None]
        return Assigned(z, ids, take_codes(table, ids), batch, table, entropy)

    def summary(self) -> str:
        """Name the assignment."""
        return "Gumbel-softmax of learned logits"


class StochasticDistance(_Stochastic):
    """SQ-VAE (Gaussian I): P(k | z) ∝ exp(-‖z - c_k‖² / 2σ²), arXiv:2205.07547 eq. 12.

    σ² = 1 + exp(ℓ) with a learned ℓ, as the published code has it. Training mixes the codes with
    Gumbel-softmax weights (`relaxed`); `draw="hard"` takes the code of the largest weight instead
    and keeps the weights' gradient. Evaluation takes the nearest code.
    """

    gives = ("table", "negative_entropy", "precision")

    def __init__(
        self,
        *,
        initial_log_variance: float,
        draw: str = "soft",
        temperature: float = 1.0,
        final_temperature: float = 1e-3,
        anneal_rate: float = 1e-5,
    ) -> None:
        super().__init__(temperature, final_temperature, anneal_rate)
        if draw not in ("soft", "hard"):
            raise ValueError(f"draw={draw!r}: expected 'soft' or 'hard'")
        if not math.isfinite(initial_log_variance):
            raise ValueError(f"initial_log_variance={initial_log_variance}: must be finite")
        self.relaxed = draw == "soft"
        self.log_variance = nn.Parameter(torch.tensor(float(initial_log_variance)))

    def forward(self, z: Tensor, codebook: Codebook, clock: Clock, batch: int) -> Assigned:
        """Draw (training) or choose (evaluation) codes for every vector (1, N, D)."""
        table, rows = codebook.table(clock), z[0].float()
        precision = 1 / (1 + self.log_variance.float().exp())
        codes = table[0].float()
        # ‖z‖² is the same for all codes of a row and cancels in the softmax.
        logits = Logits(precision * codes, -0.5 * precision * codes.square().sum(-1))
        if self.training:
            drawn = self.drawn(z, rows, logits, table, clock, batch)
            return replace(drawn, precision=precision)
        ids = nearest(z, table)
        entropy = negative_entropy(rows, logits)[None]
        return Assigned(z, ids, take_codes(table, ids), batch, table, entropy, precision)

    def summary(self) -> str:
        """Name the assignment."""
        return f"stochastic by distance ({'soft' if self.relaxed else 'hard'} Gumbel)"
