"""Naive searches in float64 and seeded cases, shared by the tests of `vqkit.search`."""

import pytest
import torch

from vqkit.search import fused
from vqkit.search.nearest import NEAR_TIE

HAS_FAISS = fused.installed()
BACKENDS = [
    "torch",
    "bf16",
    pytest.param("faiss", marks=pytest.mark.skipif(not HAS_FAISS, reason="faiss is optional")),
]


def random_pair(num_vectors, num_codes, dim, seed=0, mean=0.0):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(num_vectors, dim, generator=generator) + mean
    codes = torch.randn(num_codes, dim, generator=generator) + mean
    return vectors, codes


def reference_scores(vectors, codes, metric):
    """All scores in float64, written out; the reference may hold N x K."""
    z, c = vectors.double(), codes.double()
    if metric == "l2":
        return -(z[:, None] - c[None]).square().sum(-1)
    if metric == "dot":
        return z @ c.T
    return (z @ c.T) / (z.norm(dim=-1)[:, None] * c.norm(dim=-1))


def clear_rows(vectors, codes, metric, factor=NEAR_TIE):
    """Rows whose best score beats the second by more than the stated bound: no ties to excuse."""
    scores = reference_scores(vectors, codes, metric)
    if scores.shape[1] == 1:
        return torch.ones(len(vectors), dtype=torch.bool)
    top = scores.topk(2, dim=1).values
    centre = codes.double().mean(0) if metric == "l2" else 0.0
    z, c = vectors.double() - centre, codes.double() - centre
    scale = z.square().sum(1) + c.square().sum(1).max()
    return top[:, 0] - top[:, 1] > factor * (scale if metric != "cosine" else 1.0)
