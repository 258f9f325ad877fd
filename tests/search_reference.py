"""Naive searches in float64, seeded cases and odd data, shared by the tests of `vqkit.search`."""

import random
from dataclasses import dataclass

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
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


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
    norms = z.norm(dim=-1)[:, None] * c.norm(dim=-1)
    return torch.where(norms > 0, (z @ c.T) / norms, 0.0)


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


def unit(rows):
    """Rows of length one in float64, zero rows as they are."""
    rows = rows.double()
    rows = rows / rows.abs().amax(-1, keepdim=True).clamp(min=1e-300)
    return rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-300)


def excused(vectors, codes, ids, metric, backend):
    """By how much the squared distance of code `ids` may exceed the smallest one: (N,) or less.

    `torch` and `bf16` decide in float64, so only its rounding is excused; `faiss` may lose a near
    tie, whose bound is that of the two codes in question and measured from the mean code.
    """
    z, c = (
        (unit(vectors), unit(codes)) if metric == "cosine" else (vectors.double(), codes.double())
    )
    if backend == "faiss":
        z, c = z - c.mean(0), c - c.mean(0)
        best = reference_scores(z, c, "l2").argmax(1)
        factor = NEAR_TIE
        length = torch.maximum(c[ids].square().sum(1), c[best].square().sum(1))
        return factor * (z.square().sum(1) + length)
    longest = c.square().sum(1).max()
    return codes.shape[1] * 2.0**-49 * (z.square().sum(1) + longest) + 1e-300


def assert_nearest(vectors, codes, ids, metric, backend):
    """Fail unless every id is a best one by the definition of `vqkit.search.nearest`."""
    assert ids.dtype == torch.int64
    assert ids.shape == vectors.shape[:1]
    if not len(ids):
        return
    assert 0 <= int(ids.min()) <= int(ids.max()) < len(codes)
    scores = reference_scores(vectors, codes, metric)
    gap = scores.amax(1) - scores.gather(1, ids[:, None])[:, 0]
    gap = gap if metric == "l2" else 2 * gap  # of squared distances
    assert bool((gap <= excused(vectors, codes, ids, metric, backend)).all())
    same = (codes[None] == codes[:, None]).all(-1)
    assert torch.equal(same.int().argmax(1)[ids], ids), "a copy of a code won, not the first"


@dataclass(frozen=True)
class Case:
    """One search on data that somebody thought would hurt."""

    seed: int
    num_vectors: int
    num_codes: int
    dim: int
    kind: str
    magnitude: float
    mean: float
    copies: bool
    dtype: torch.dtype
    codes_dtype: torch.dtype
    layout: str

    def pair(self):
        """Vectors (N, D) and codes (K, D), finite in their types."""
        generator = torch.Generator().manual_seed(self.seed)
        both = KINDS[self.kind](generator, self.num_vectors + self.num_codes, self.dim)
        both = (both + self.mean) * self.magnitude
        codes, vectors = both[: self.num_codes], both[self.num_codes :]
        if self.copies:
            codes = codes[torch.randint(self.num_codes, (self.num_codes,), generator=generator)]
        vectors, codes = (
            LAYOUTS[self.layout](_in_range(tensor, dtype))
            for tensor, dtype in ((vectors, self.dtype), (codes, self.codes_dtype))
        )
        return vectors, codes


def _in_range(values, dtype):
    limit = torch.finfo(dtype).max if dtype == torch.float16 else 1e37
    return values.clamp(-limit, limit).to(dtype)


def _halfway(generator, rows, dim):
    """Values exactly between two numbers of bf16, where its rounding errs most."""
    steps = torch.randint(0, 127, (rows, dim), generator=generator).double()
    sign = torch.randint(0, 2, (rows, dim), generator=generator) * 2 - 1
    return (1 + (steps + 0.5) / 128) * sign


def _one_huge(generator, rows, dim):
    values = torch.randn(rows, dim, generator=generator).double()
    values[:, dim // 2] *= 3000
    return values


def _cancelling(generator, rows, dim):
    """Large terms of both signs, whose sums are small: products add up to little."""
    values = torch.randn(rows, dim, generator=generator).double()
    half = dim // 2
    large = 100 * torch.randn(1, half, generator=generator).double()
    values[:, :half] += large
    values[: rows // 2, half : 2 * half] += large
    values[rows // 2 :, half : 2 * half] -= large
    return values


def _close(generator, rows, dim):
    """A few centres with many rows at a distance of a millionth."""
    centres = torch.randn(5, dim, generator=generator).double()
    pick = torch.randint(5, (rows,), generator=generator)
    return centres[pick] + 1e-6 * torch.randn(rows, dim, generator=generator)


def _outliers(generator, rows, dim):
    values = torch.randn(rows, dim, generator=generator).double()
    return values * torch.where(torch.rand(rows, 1, generator=generator) < 0.1, 1e4, 1.0)


KINDS = {
    "normal": lambda g, n, d: torch.randn(n, d, generator=g).double(),
    "lattice": lambda g, n, d: torch.randint(-2, 3, (n, d), generator=g).double(),
    "halfway": _halfway,
    "one huge": _one_huge,
    "cancelling": _cancelling,
    "close": _close,
    "outliers": _outliers,
    "zero": lambda g, n, d: torch.zeros(n, d).double(),
}
LAYOUTS = {
    "contiguous": lambda t: t.contiguous(),
    "every other column": lambda t: t.repeat_interleave(2, 1)[:, ::2],
    "every third row": lambda t: t.repeat_interleave(3, 0)[::3],
    "transposed": lambda t: t.T.contiguous().T,
    "inside a larger one": lambda t: torch.nn.functional.pad(t, (1, 2, 3, 1))[3:-1, 1:-2],
}


def random_case(seed):
    """The case of a number: the same data on every machine."""
    choose = random.Random(seed)
    return Case(
        seed=seed,
        num_vectors=choose.choice([0, 1, 2, 7, 30, 60]),
        num_codes=choose.choice([1, 2, 3, 31, 63, 64, 65, 100, 129, 200, 513, 600]),
        dim=choose.choice([1, 1, 2, 3, 4, 8, 15, 16, 17, 64, 100]),
        kind=choose.choice(sorted(KINDS)),
        magnitude=choose.choice([1.0, 1.0, 1.0, 10.0, 1e30, 1e-30, 1e12, 1e-20]),
        mean=choose.choice([0.0, 0.0, 1.0, 100.0, 1000.0]),
        copies=choose.random() < 0.4,
        dtype=choose.choice([torch.float32, torch.float32, *DTYPES]),
        codes_dtype=choose.choice([torch.float32, torch.float32, *DTYPES]),
        layout=choose.choice(sorted(LAYOUTS)),
    )
