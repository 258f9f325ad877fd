"""Random numbers as a function of (seed, purpose, step, place): no generator has a state.

Word number i of a stream is computed from i alone (Philox, Salmon et al. 2011, whose bits numpy
keeps fixed), so a draw is the same in any number of blocks and processes, and after a resume.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Purpose(IntEnum):
    """Streams that must not touch one another."""

    SAMPLE = 1
    """Rows that centres are chosen from."""
    SEEDING = 2
    """Centres by their distances; one step for each round."""
    LEFTOVER = 3
    """Centres where no distance is left."""
    BATCH = 4
    """Order of the runs; one step for each epoch."""
    REASSIGN = 5
    """Rows that seldom used centres move to; one step for each batch."""
    GROUP = 6
    """A seed for every group."""
    PATCH = 7
    """Where patches are cut that features are whitened by; one step for each image."""
    KEEP = 8
    """Features that are kept of an image; one step for each image."""


def words(seed: int, purpose: Purpose, step: int, start: int, stop: int) -> np.ndarray:
    """Return words start to stop - 1 (n,) of a stream, uint64."""
    key = np.array([seed, (int(purpose) << 48) + step], dtype=np.uint64)
    stream = np.random.Philox(key=key, counter=np.array([start // 4, 0, 0, 0], dtype=np.uint64))
    first = start // 4 * 4
    found: np.ndarray = stream.random_raw(stop - first)[start - first :]
    return found


def uniforms(seed: int, purpose: Purpose, step: int, count: int) -> Tensor:
    """Return `count` numbers in [0, 1), float64, multiples of 2^-53."""
    drawn = (words(seed, purpose, step, 0, count) >> np.uint64(11)).astype(np.float64)
    return torch.from_numpy(drawn * 2.0**-53)


def order(seed: int, purpose: Purpose, step: int, count: int) -> Tensor:
    """Return a permutation of 0 to count - 1, int64."""
    return torch.from_numpy(np.argsort(words(seed, purpose, step, 0, count), kind="stable"))


def distinct_rows(seed: int, purpose: Purpose, step: int, count: int, total: int) -> Tensor:
    """Draw `count` different numbers below `total`, ascending, int64, in O(count) memory."""
    if 3 * count >= total:
        return order(seed, purpose, step, total)[:count].sort().values
    drawn = 2 * count + 64
    while True:  # at most a third of the numbers is taken: twice as many draws nearly always do
        numbers = words(seed, purpose, step, 0, drawn) % np.uint64(total)
        values, first = np.unique(numbers, return_index=True)
        if len(values) >= count:
            chosen = np.sort(values[np.argsort(first)[:count]]).astype(np.int64)
            return torch.from_numpy(chosen)
        drawn *= 2
