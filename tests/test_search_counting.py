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
