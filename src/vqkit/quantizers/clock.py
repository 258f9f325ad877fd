"""Randomness that is a pure function of (seed, step, coordinates).

Gumbel noise, restarts, anchors and dropout inside a codebook's network are drawn from here, never
from a process's own generator: one process on a large batch, several processes on its parts, and
micro-batches one after another all see the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from . import ranks

# Constants of splitmix64 (Steele, Lea and Flood 2014), written as signed 64-bit integers.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


BLOCK = 1 << 16
"""Numbers drawn at a time on a CPU, so that the many passes of a hash stay in its cache."""


def _shift_right(x: Tensor, bits: int) -> Tensor:
    # Logical: torch shifts the sign in.
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix_(x: Tensor) -> Tensor:
    x.bitwise_xor_(_shift_right(x, 30)).mul_(_MIX_1)
    x.bitwise_xor_(_shift_right(x, 27)).mul_(_MIX_2)
    return x.bitwise_xor_(_shift_right(x, 31))


def counter_bits(*coordinates: Tensor) -> Tensor:
    """Hash int64 coordinates (broadcast against each other) to 64 random bits each, as int64."""
    state = torch.zeros((), dtype=torch.int64, device=coordinates[0].device)
    for coordinate in coordinates:
        state = _mix_(state * _GOLDEN + (coordinate + 1))
    return state


def counter_uniform(*coordinates: Tensor) -> Tensor:
    """Uniform float64 numbers in the open interval (0, 1), one per broadcast coordinate."""
    shape = torch.broadcast_shapes(*(c.shape for c in coordinates))
    if shape.numel() <= BLOCK or coordinates[0].device.type != "cpu":
        return _uniform(coordinates)
    numbers = torch.empty(shape, dtype=torch.float64)
    step = max(1, BLOCK * shape[0] // shape.numel())
    for start in range(0, shape[0], step):
        block = slice(start, start + step)
        varies = [c.ndim == len(shape) and c.shape[0] > 1 for c in coordinates]
        parts = [c[block] if v else c for c, v in zip(coordinates, varies, strict=True)]
        numbers[block] = _uniform(parts)
    return numbers


def _uniform(coordinates: Sequence[Tensor]) -> Tensor:
    # 52 bits and a half: neither 0 nor 1 can come out, so logarithms stay finite.
    return _shift_right(counter_bits(*coordinates), 12).double().add_(0.5).mul_(2.0**-52)


class Clock(nn.Module):
    """Seed and step of one quantizer; both live in its `state_dict`.

    The seed is drawn from torch's global generator when the quantizer is built, so that
    `torch.manual_seed` governs it. `advance` is called once per optimizer step.
    """

    seed: Tensor
    step: Tensor
    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seed", torch.randint(1 << 62, ()))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("rows", torch.zeros((), dtype=torch.int64))
        self.micro_batches = 1  # training forwards per step; a setting of the loop, not state
        self._calls, self._seen = 0, 0  # within the running forward
        self.has_rows = False  # mirrors `rows`: whether there was a training forward in this step

    def uniform(self, purpose: int, *coordinates: Tensor) -> Tensor:
        """Uniform float64 numbers in (0, 1) for this step; `purpose` keeps streams apart."""
        device = self.seed.device
        stream = torch.tensor(purpose, device=device)
        return counter_uniform(self.seed, self.step, stream, *(c.to(device) for c in coordinates))

    def row_numbers(self, num_rows: int) -> Tensor:
        """(N,) numbers of this call's vectors, each its own within the whole batch of the step.

        Processes stand one after another, micro-batches of a process one after another within it;
        all hold the same number of vectors. The levels of a residual, which call a shared
        quantizer several times in one forward, count apart.
        """
        start = self.rows + ranks.rank() * self.micro_batches * num_rows + (self._calls << 40)
        return start + torch.arange(num_rows, device=self.rows.device)

    def count_call(self, num_rows: int) -> None:
        """Remember that a training forward has shown `num_rows` vectors to this quantizer."""
        self._calls, self._seen = self._calls + 1, num_rows

    def begin_forward(self) -> None:
        """Forget a training forward that failed halfway."""
        self._calls, self._seen = 0, 0

    def end_forward(self) -> None:
        """Count the vectors of a finished training forward."""
        self.rows += self._seen
        self.has_rows = self.has_rows or self._seen > 0

    def advance(self) -> None:
        """Begin the next step."""
        self.step += 1
        self.forget()

    def forget(self) -> None:
        """Begin this step again."""
        self.rows.zero_()
        self.has_rows = False

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.has_rows = bool(self.rows > 0)

    @contextmanager
    def seeded_generators(self, purpose: int) -> Iterator[None]:
        """Run a block whose ordinary torch draws (dropout) come from (seed, step)."""
        stream = torch.tensor(purpose, device=self.seed.device)
        seed = int(_shift_right(counter_bits(self.seed, self.step, stream), 1))
        device = self.seed.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":  # torch.manual_seed would reach devices that nobody restores
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            yield
