"""The bound of the screen is rigorous: no score is farther from the truth than it says."""

import os
import random
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_reference import random_case, unit

from vqkit.search import METRICS, nearest
from vqkit.search.blocked import _Search
from vqkit.search.candidates import Judge
from vqkit.search.running import Running
from vqkit.search.screen import Screen
from vqkit.search.tables import near_one

WIDTH = 256
"""Codes of a block here, so that there are several."""
TRUTH = 2.0**-48
"""Rounding of the truth, which is computed in float64: far below float32's."""


def scores_and_bounds(vectors, codes, metric, bf16):
    """All scores (N, K), the error that the screen allows each, and the truth, in float64.

    Also which vectors (N,) the screen can bound.
    """
    screen = Screen(Judge(codes, metric), None, bf16, WIDTH)
    screen.reserve(len(vectors))
    for _ in range(2):  # the second time with what the first has taught it
        factors, coefficients = screen.factors(vectors)
        scores = torch.full((len(vectors), len(codes)), torch.nan, dtype=torch.float64)
        slack = scores.clone()
        for start in range(0, screen.num_rows, screen.width):
            ids = screen.code_at[start : start + screen.width]
            real = ids >= 0
            found = screen.scores(factors, start).to(torch.float32)
            allowed = screen.spread(found, coefficients @ screen.bounds(start, 1))
            scores[:, ids[real]] = found[:, real].double()
            slack[:, ids[real]] = allowed[:, real].double()
        factors = factors.double()
        screen.learn((scores - slack).amax(1, keepdim=True).float(), factors)
    truth, noise = true_scores(screen, vectors, factors)
    return scores, slack + noise, truth, coefficients.isfinite().all(1)


def true_scores(screen, vectors, factors):
    """Scores z c - |c|^2 / 2 (`l2`) or z c in the frame of the screen, and their rounding."""
    frame, metric = screen.frame, screen.judge.metric
    codes = screen.judge.codes
    scale = 1.0 if frame.scale is None else frame.scale.double()
    codes = unit(codes) if metric == "cosine" else codes.double()
    codes = (codes - frame.centre.double()) * scale
    # unit codes have an error of their own before the mean is subtracted
    longest = codes.norm(dim=1).max() + (metric == "cosine")
    if metric != "l2":
        points = near_one(vectors.double())
        return points @ codes.T, TRUTH * points.norm(dim=1, keepdim=True) * longest + 1e-300
    dim = codes.shape[1]
    weight = factors[:, dim : dim + 1]  # of the ones that meet the bias; 1 but for long vectors
    offset = factors[:, dim + 3 :] if screen.bf16 else 0.0
    points = (vectors.double() - frame.centre.double()) * scale * weight
    truth = points @ codes.T - weight * codes.square().sum(1) / 2 + offset
    length = points.norm(dim=1, keepdim=True) + weight * longest
    return truth, TRUTH * length * longest + 1e-300


def check_running(seed):
    """The best code so far scores its floor at least, and no code that wins exceeds its bound."""
    vectors, codes = random_case(seed).pair()
    if not len(vectors):
        return
    screen = Screen(Judge(codes, "l2"), None, True, WIDTH)
    screen.reserve(len(vectors))
    factors, coefficients = screen.factors(vectors)
    if not screen.all_short:
        return
    truth, noise = true_scores(screen, vectors, factors.double())
    usable = coefficients.isfinite().all(1)
    best = truth.amax(1, keepdim=True)
    running = Running(screen, coefficients)
    for start in range(0, screen.num_rows, screen.width):
        scores, across, along = screen.grouped(screen.scores(factors, start), screen.members)
        running.meet(scores.amax(1).float(), scores, start, across, along)
        assert bool((running.floor.double() <= best + noise)[usable].all())
        found = scores.flatten(1).float()
        closer, common = running.coefficients()
        allowed = screen.spread(found, closer @ screen.bounds(start, 1) + common)
        ids = screen.code_at[start : start + screen.width]
        real = ids >= 0
        most = (found + allowed)[:, real].double() + noise
        true = truth[:, ids[real]]
        assert bool((true <= most)[(true >= best - noise) & usable[:, None]].all())


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_the_running_bound_is_rigorous(seed):
    check_running(seed)


def check_bound(seed, metric):
    """Every score errs by the slack at most, so no best code can fall below the floor."""
    vectors, codes = random_case(seed).pair()
    if not len(vectors):
        return
    for bf16 in (False, True):
        scores, slack, truth, usable = scores_and_bounds(vectors, codes, metric, bf16)
        zero = (vectors == 0).all(-1)
        assert bool((usable | (zero if metric != "l2" else False)).all())
        assert bool(((scores - truth).abs() <= slack)[usable].all())


@pytest.mark.parametrize(
    "metric", [pytest.param(m, marks=[] if m == "l2" else [pytest.mark.slow]) for m in METRICS]
)
def test_scores_err_less_than_the_bound(metric):
    @settings(max_examples=100, deadline=None, derandomize=True, database=None)
    @given(st.integers(0, 2**32))
    def holds(seed):
        check_bound(seed, metric)

    holds()


@pytest.mark.soak
@pytest.mark.parametrize("metric", METRICS)
def test_scores_err_less_than_the_bound_in_thousands_of_cases(metric):
    start = int(os.environ.get("VQKIT_SOAK_SEED", int.from_bytes(os.urandom(4), "little")))
    sys.stdout.write(f"VQKIT_SOAK_SEED={start}\n")
    choose = random.Random(start)
    for _ in range(5000):
        check_bound(choose.randrange(2**32), metric)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("metric", METRICS)
def test_worst_rounding_of_a_thousand_dimensions(metric, bf16):
    """All roundings to bf16 go one way, or terms cancel: the bound must not rest on luck."""
    dim = 1000
    half = torch.full((1, dim), 1 + 2.0**-8)  # between two numbers of bf16: rounds down
    above = torch.full((1, dim), 1 + 3 * 2.0**-8)  # rounds up
    signs = torch.ones(dim)
    signs[::2] = -1
    one = torch.zeros(1, dim)
    one[0, 7] = 1e4
    rows = torch.cat([half, above, half * signs, above * signs, one, -half, one + half])
    codes = torch.cat([rows, -rows, rows * (1 + 2.0**-9)])  # their mean is not zero
    centred = torch.cat([rows, -rows])
    for book in (codes, centred):
        scores, slack, truth, usable = scores_and_bounds(rows, book, metric, bf16)
        assert bool(usable.all())
        assert bool(((scores - truth).abs() <= slack).all())


def test_the_bound_is_no_excuse():
    """On plain data it is a hundredth of the scores in bf16, less than a ten-thousandth else."""
    generator = torch.Generator().manual_seed(0)
    vectors, codes = (torch.randn(100, 64, generator=generator) for _ in range(2))
    size = vectors.norm(dim=1, keepdim=True) * codes.norm(dim=1)
    for bf16, limit in ((False, 2e-5), (True, 1.2e-2)):
        _, slack, _, _ = scores_and_bounds(vectors, codes, "l2", bf16)
        assert bool((slack < limit * (size + codes.square().sum(1))).all())


@pytest.mark.parametrize("precision", ["high", "medium"])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("dim", [3, 64, 300])
def test_products_of_lower_precision_are_bounded_too(precision, bf16, dim):
    generator = torch.Generator().manual_seed(dim)
    vectors = torch.randn(200, dim, generator=generator)
    codes = torch.randn(300, dim, generator=generator)
    codes = codes[:50].repeat(6, 1) + 1e-3 * codes
    expected = nearest(vectors, codes, backend="torch")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        scores, slack, truth, _ = scores_and_bounds(vectors, codes, "l2", bf16)
        found = nearest(vectors, codes, backend="bf16" if bf16 else "torch")
    finally:
        torch.set_float32_matmul_precision(before)
    assert bool(((scores - truth).abs() <= slack).all())
    assert torch.equal(found, expected)


def test_codes_that_lie_dense_are_screened_in_bf16_all_the_same():
    """Every code has hundreds of neighbours within bf16's plain bound."""
    source = torch.Generator().manual_seed(0)
    middles = torch.randn(16, 64, generator=source)
    codes = middles.repeat_interleave(512, 0)
    codes += 0.02 * torch.randn(codes.shape, generator=source)
    vectors = codes[::64] + 0.001 * torch.randn(128, 64, generator=source)
    search = _Search(Judge(codes, "l2"), 1, bf16=True, num_vectors=len(vectors))
    pairs = search.pairs(vectors)
    assert search.bf16
    assert len(pairs.row) < 20 * len(vectors)
    truth = torch.cdist(vectors.double(), codes.double()).argmin(1)
    assert torch.equal(pairs.first_k(vectors, search.judge, 1)[:, 0], truth)
