"""Counts and sums of an assignment against a loop over codes."""

import pytest
import torch

from vqkit.search import code_counts_and_sums


@pytest.mark.parametrize("dim", [1, 4, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_counts_and_sums(dim, dtype):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(2, 300, dim, generator=generator).to(dtype)
    ids = torch.randint(1, 6, (2, 300), generator=generator)
    counts, sums = code_counts_and_sums(vectors, ids, 7)
    assert counts.dtype == sums.dtype == torch.float32
    for group in range(2):
        for code in range(7):
            mine = vectors[group][ids[group] == code].double()
            assert counts[group, code] == len(mine)
            torch.testing.assert_close(
                sums[group, code].double(), mine.sum(0), rtol=1e-5, atol=1e-5
            )
    one = code_counts_and_sums(vectors[1], ids[1], 7)
    assert torch.equal(one[0], counts[1])
    assert torch.equal(one[1], sums[1])
    again = code_counts_and_sums(vectors.requires_grad_(), ids, 7)
    assert torch.equal(again[1], sums)
    assert not again[1].requires_grad


def test_counts_and_sums_of_nothing_and_of_wrong_ids():
    counts, sums = code_counts_and_sums(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), 4)
    assert counts.tolist() == [0, 0, 0, 0]
    assert sums.shape == (4, 3)
    for ids in (torch.tensor([0, 4]), torch.tensor([-1, 0])):
        with pytest.raises(ValueError, match=r"outside \[0, 4\)"):
            code_counts_and_sums(torch.zeros(2, 3), ids, 4)
    with pytest.raises(ValueError, match="one per vector"):
        code_counts_and_sums(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64), 4)
    with pytest.raises(ValueError, match="int64"):
        code_counts_and_sums(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int32), 4)


def test_groups_and_dimensions_of_nothing():
    for groups, count, dim in ((0, 4, 3), (2, 0, 3), (2, 4, 0), (0, 0, 1)):
        ids = torch.zeros(groups, count, dtype=torch.int64)
        counts, sums = code_counts_and_sums(torch.zeros(groups, count, dim), ids, 5)
        assert counts.shape == (groups, 5)
        assert sums.shape == (groups, 5, dim)
        assert float(counts.sum()) == groups * count
        assert float(sums.abs().sum()) == 0


@pytest.mark.parametrize("where", ["one code", "half of all", "anywhere"])
def test_many_vectors_of_one_code_are_summed_as_in_float64(where):
    """A collapsed codebook: adding one by one in float32 would be wrong in the second digit."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.full((300_000, 2), 0.1)
    vectors[:, 1] = torch.randn(300_000, generator=generator)
    ids = torch.randint(1024, (300_000,), generator=generator)
    ids[: {"one code": 300_000, "half of all": 150_000, "anywhere": 0}[where]] = 7
    expected = torch.zeros(1024, 2, dtype=torch.float64).index_add_(0, ids, vectors.double())
    counts, sums = code_counts_and_sums(vectors, ids, 1024)
    assert torch.equal(counts, ids.bincount(minlength=1024).float())
    # terms of a sum are about one: what counts is their number, not how far they cancel
    error = (sums.double() - expected).abs() / counts.clamp(min=1)[:, None]
    assert float(error.max()) < 1e-5 * 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_inputs_stay_and_strides_do_not_matter(dtype):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(3, 500, 6, generator=generator).to(dtype)
    ids = torch.randint(9, (3, 500), generator=generator)
    kept = vectors.clone(), ids.clone()
    counts, sums = code_counts_and_sums(vectors, ids, 9)
    wide = vectors.repeat_interleave(2, 2)[..., ::2]
    turned = vectors.transpose(0, 1).contiguous().transpose(0, 1)
    for other in (wide, turned):
        again = code_counts_and_sums(other, ids.T.contiguous().T, 9)
        assert torch.equal(again[0], counts)
        assert torch.equal(again[1], sums)
    assert torch.equal(vectors, kept[0])
    assert torch.equal(ids, kept[1])
    with pytest.raises(ValueError, match="at least 1"):
        code_counts_and_sums(vectors, ids, 0)
