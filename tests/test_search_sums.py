"""Sums that do not depend on order: bit for bit, with the error that is promised."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqkit.search.sums import code_sums, sum_grid, to_grid

FINITE = st.floats(0, 1e300, allow_nan=False, allow_infinity=False)
PROPERTY = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@PROPERTY
@given(largest=FINITE, count=st.integers(0, 2**40))
def test_a_grid_leaves_room_for_all_values(largest, count):
    grid = sum_grid(largest, count)
    assert math.frexp(grid)[0] == 0.5, "a power of two"
    rounded_up = math.ceil(Fraction(largest) / Fraction(grid))
    assert rounded_up * max(count, 1) <= 2**53
    # no coarser than needed: with four more bits the sums would not fit
    small = largest > 0 and grid > 2.0**-1022
    assert not small or rounded_up * max(count, 1) * 16 > 2**53


@pytest.mark.parametrize(
    ("largest", "count"),
    [(-1.0, 1), (math.nan, 1), (math.inf, 1), (1.0, -1)],
)
def test_bounds_that_make_no_sense(largest, count):
    with pytest.raises(ValueError, match=r"largest=.*count="):
        sum_grid(largest, count)


def test_edges_of_the_range():
    assert sum_grid(0.0, 0) == 1.0
    assert sum_grid(5e-324, 1) > 0
    assert sum_grid(1.0, 2**24 - 1) == 2.0**-27
    assert sum_grid(3e38, 10**7) < 1e38 * 2.0**-24
    for largest in (5e-324, 1e-310, 1e-45, 1e-38, 3.4e38, 1e300):
        grid = sum_grid(largest, 4)
        values = torch.tensor([[largest], [-largest], [largest / 3], [0.0]], dtype=torch.float64)
        sums = code_sums(values, torch.tensor([0, 0, 1, 1]), 2, grid)
        assert sums[0] == 0
        assert abs(float(sums[1]) - largest / 3) <= grid / 2


@PROPERTY
@given(
    seed=st.integers(0, 2**32),
    num_vectors=st.integers(0, 200),
    num_codes=st.integers(1, 9),
    dim=st.integers(1, 5),
    magnitude=st.sampled_from([1.0, 1e-45, 1e-38, 1e30, 3e38]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_any_order_gives_the_same_bits(seed, num_vectors, num_codes, dim, magnitude, dtype):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(num_vectors, dim, generator=generator).double() * 2 - 1
    scales = 10.0 ** -(8 * torch.rand(num_vectors, 1, generator=generator).double())
    vectors = (spread * scales * magnitude).to(dtype)
    ids = torch.randint(num_codes, (num_vectors,), generator=generator)
    kept = vectors.clone(), ids.clone()
    grid = sum_grid(float(vectors.abs().max()) if num_vectors else 0.0, num_vectors)
    sums = code_sums(vectors, ids, num_codes, grid)
    assert torch.equal(vectors, kept[0])
    assert torch.equal(ids, kept[1])
    order = torch.randperm(num_vectors, generator=generator)
    bits = sums.view(torch.int64)
    again = code_sums(vectors[order], ids[order], num_codes, grid)
    assert torch.equal(again.view(torch.int64), bits)
    cut = num_vectors // 3
    into = code_sums(vectors[cut:], ids[cut:], num_codes, grid)
    added = code_sums(vectors[:cut], ids[:cut], num_codes, grid, into)
    assert added is into
    assert torch.equal(added.view(torch.int64), bits)
    apart = [code_sums(part, where, num_codes, grid) for part, where in halves(vectors, ids)]
    assert torch.equal(sum(apart, torch.zeros_like(sums)).view(torch.int64), bits)
    for code in range(num_codes):
        mine = vectors[ids == code].double()
        for column in range(dim):
            exact = sum((Fraction(v) for v in mine[:, column].tolist()), Fraction(0))
            error = abs(Fraction(float(sums[code, column])) - exact)
            assert error <= Fraction(grid) / 2 * len(mine)
            assert Fraction(float(sums[code, column])) % Fraction(grid) == 0


def halves(vectors, ids):
    """Two interleaved shares, as two processes would have them."""
    return [(vectors[start::2], ids[start::2]) for start in (0, 1)]


def test_rounding_errs_by_half_a_step_at_most():
    values = torch.tensor([1.0, 1.25, 1.5, 1.75, -0.5, -0.75, 0.1], dtype=torch.float64)
    steps = to_grid(values, 0.5)
    assert torch.equal(steps, steps.round())
    assert bool(((steps * 0.5 - values).abs() <= 0.25).all())
    assert values[6] == 0.1, "the values of the caller stay"
