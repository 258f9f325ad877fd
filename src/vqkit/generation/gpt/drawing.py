"""One token from its logits and one uniform number.

The token is read off the cumulative probabilities, in the order of the ids: a change of rounding
moves each border a little and changes a token only if the number lies that close to one. All steps
are tensor operations of fixed shapes, so that they can be compiled.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vqkit.config import GPTSampling

# B = images, K = codes of the slot


def draw(logits_BK: Tensor, uniform_B: Tensor, sampling: GPTSampling) -> Tensor:
    """Return ids (B,) int64; `uniform_B` is float64 in [0, 1), one number per image."""
    if sampling.temperature == 0:
        return logits_BK.argmax(dim=1)
    p_BK = probabilities(logits_BK, sampling).double()
    cumulative = p_BK.cumsum(dim=1)
    total = cumulative[:, -1:]
    # below the total, so that an id with a probability is found whatever the rounding
    aim = torch.minimum(uniform_B[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, aim, right=True)[:, 0]


def probabilities(logits_BK: Tensor, sampling: GPTSampling) -> Tensor:
    """Return what is drawn from, float32 (B, K), not normalised: zero outside top-k and top-p.

    Codes as likely as the last of the top-k, or of the top-p, belong to it.
    """
    logits_BK = logits_BK.float() / sampling.temperature
    num_codes = logits_BK.shape[1]
    if sampling.top_k is not None:
        least = logits_BK.topk(top_count(sampling.top_k, num_codes), dim=1).values[:, -1:]
        logits_BK = logits_BK.masked_fill(logits_BK < least, -torch.inf)
    p_BK = logits_BK.softmax(dim=1)
    if sampling.top_p is not None and sampling.top_p < 1:
        falling = p_BK.sort(dim=1, descending=True).values
        before = falling.cumsum(dim=1) - falling
        least = falling.masked_fill(before >= sampling.top_p, 2.0).amin(dim=1, keepdim=True)
        p_BK = p_BK.masked_fill(p_BK < least, 0.0)
    return p_BK


def top_count(top_k: int | float, num_codes: int) -> int:
    """Return how many tokens are drawn among: a count, or a share of the vocabulary."""
    count = round(top_k * num_codes) if top_k < 1 else int(top_k)
    return min(max(count, 1), num_codes)
