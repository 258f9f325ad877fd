"""Random numbers that belong to one sample: a pure function of (seed, number of the sample)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vqkit.config import require


def uniform_draws(seed: int, start: int, count: int, each: int) -> Tensor:
    """Return float64 (count, each) in [0, 1); row i depends on (seed, start + i) alone.

    Raw words of NumPy's Philox, whose stream is fixed over versions, in 53 bits.
    """
    require(seed >= 0, f"seed={seed}", "must not be negative")
    require(start >= 0, f"start={start}", "must not be negative")
    words = np.empty((count, each), dtype=np.uint64)
    for row in range(count):
        key = np.array([seed, start + row], dtype=np.uint64)
        words[row] = np.random.Philox(key=key).random_raw(each)
    return torch.from_numpy((words >> np.uint64(11)).astype(np.float64) * 2.0**-53)
