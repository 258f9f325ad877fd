"""Properties that hold on all data: every backend, metric, type and layout against float64.

`make test` draws a fixed sample of cases, `make soak` thousands (`VQKIT_SOAK_SEED` repeats them).
"""

import os
import sys

import hypothesis
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_reference import HAS_FAISS, assert_nearest, random_case, reference_scores

from vqkit.search import METRICS, blocked, fused, nearest, nearest_k, nearest_with_scores

SEEDS = st.integers(0, 2**32)


def backends_of(codes, metric):
    """The backends of a CPU that can search these codes."""
    return ["torch", "bf16", *(["faiss"] if HAS_FAISS and fused.fits(codes, metric) else [])]


def check_ids(seed, metric):
    """Ids are nearest, equal codes give the first, inputs stay, nothing asks for a gradient."""
    vectors, codes = random_case(seed).pair()
    kept = vectors.clone(), codes.clone()
    leaf = vectors.clone().requires_grad_(), codes.clone().requires_grad_()
    for backend in backends_of(codes, metric):
        ids = nearest(vectors, codes, metric, backend=backend)
        assert_nearest(vectors, codes, ids, metric, backend)
        again, scores = nearest_with_scores(*leaf, metric, backend=backend)
        assert torch.equal(ids, again)
        assert not scores.requires_grad
        assert scores.dtype == torch.float32
        expected = reference_scores(vectors, codes, metric).gather(1, ids[:, None])[:, 0]
        size = vectors.double().norm(dim=-1) * codes.double().norm(dim=-1).max() + 1e-45
        size = 1.0 if metric == "cosine" else size if metric == "dot" else expected.abs()
        # float64 rounded once to float32, beyond whose range it is infinite
        rounded = 1e-13 * size
        near = (scores.double() - expected).abs() <= 2.0**-23 * expected.abs() + rounded + 1e-44
        assert bool((near | (expected.abs() + rounded > 3e38)).all())
    assert torch.equal(vectors, kept[0])
    assert torch.equal(codes, kept[1])


def check_batches(seed, metric):
    """Any split of the vectors, alone or in a group, gives the same bits."""
    case = random_case(seed)
    vectors, codes = case.pair()
    sizes = [1 + seed % 11, max(1, len(vectors) // 2)]
    for backend in backends_of(codes, metric):
        ids, scores = nearest_with_scores(vectors, codes, metric, backend=backend)
        for size in sizes:
            parts = [
                nearest_with_scores(part, codes, metric, backend=backend)
                for part in vectors.split(size)
            ]
            assert torch.equal(torch.cat([part[0] for part in parts]), ids)
            assert torch.equal(torch.cat([part[1] for part in parts]), scores)
        order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))
        assert torch.equal(nearest(vectors[order], codes, metric, backend=backend), ids[order])
        for groups in (seed % 3,):
            many = torch.stack([vectors] * groups) if groups else vectors[None][:0]
            books = torch.stack([codes] * groups) if groups else codes[None][:0]
            found = nearest(many, books, metric, backend=backend)
            assert found.shape == (groups, len(vectors))
            assert bool((found == ids).all())


def check_k(seed, metric):
    """The k nearest come in order, ties by the lowest id; the first of them is `nearest`."""
    vectors, codes = random_case(seed).pair()
    k = min(len(codes), 1 + seed % 40) if seed % 3 else len(codes)
    ids, scores = nearest_k(vectors, codes, k, metric)
    assert ids.shape == scores.shape == (len(vectors), k)
    assert torch.equal(ids[:, 0], nearest(vectors, codes, metric, backend="torch"))
    assert bool((scores[:, 1:] <= scores[:, :-1]).all() | (k == 1))
    assert all(len(set(row)) == k for row in ids.tolist())
    small = vectors[:6]
    # in float64 whole numbers leave no rounding: then order and ties are known to the id
    whole = vectors.double().frac().any() | codes.double().frac().any()
    if metric != "cosine" and not whole and vectors.abs().sum() + codes.abs().sum() < 1e6:
        order = reference_scores(small, codes, metric).sort(dim=1, descending=True, stable=True)
        assert torch.equal(ids[:6], order.indices[:, :k])
    parts = [nearest_k(part, codes, k, metric)[0] for part in small.split(1)]
    assert torch.equal(torch.cat([ids[:0], *parts]), ids[:6])


def check_blocks(seed, metric, patch):
    """Sizes of blocks change no id."""
    vectors, codes = random_case(seed).pair()
    k = min(len(codes), 1 + seed % 7)
    whole = [nearest(vectors, codes, metric, backend=backend) for backend in ("torch", "bf16")]
    whole_k = nearest_k(vectors, codes, k, metric)[0]
    for width, scores, pairs, many, at_once in (
        (64, 640, 50, 1, 70),
        (128, 10**6, 2**16, 1, 2**17),
    ):
        patch.setattr(blocked, "CODES_IN_BLOCK", width)
        patch.setattr(blocked, "SCORES_IN_BLOCK", scores)
        patch.setattr(blocked, "PAIRS", pairs)
        patch.setattr(blocked, "MANY", many)
        patch.setattr(blocked, "SCORES_AT_ONCE", at_once)
        for expected, backend in zip(whole, ("torch", "bf16"), strict=True):
            assert torch.equal(nearest(vectors, codes, metric, backend=backend), expected)
        assert torch.equal(nearest_k(vectors, codes, k, metric)[0], whole_k)


def check_blocks_and_undo(seed, metric):
    with pytest.MonkeyPatch.context() as patch:
        check_blocks(seed, metric, patch)


LONG = (check_batches, check_blocks_and_undo)
CHECKS = (check_ids, check_k, *LONG)


@pytest.mark.parametrize(
    "metric", [pytest.param(m, marks=[] if m == "l2" else [pytest.mark.slow]) for m in METRICS]
)
@pytest.mark.parametrize(
    "check", [check_ids, check_k, *(pytest.param(c, marks=pytest.mark.slow) for c in LONG)]
)
def test_property(check, metric):
    @settings(max_examples=30, deadline=None, derandomize=True, database=None)
    @given(SEEDS)
    def holds(seed):
        check(seed, metric)

    holds()


@pytest.mark.soak
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("check", CHECKS)
def test_property_on_thousands_of_cases(check, metric):
    start = int(os.environ.get("VQKIT_SOAK_SEED", int.from_bytes(os.urandom(4), "little")))
    sys.stdout.write(f"VQKIT_SOAK_SEED={start}\n")

    @hypothesis.seed(start)
    @settings(max_examples=3000, deadline=None, database=None)
    @given(SEEDS)
    def holds(seed):
        check(seed, metric)

    holds()
