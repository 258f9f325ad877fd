"""Draws of one vector per code: against a softmax written out, and across blocks and processes."""

import pytest
import torch

from vqkit.search import (
    METRICS,
    choose_by_weight,
    sample_softmax_rows,
    sampling,
    softmax_row_log_weights,
)


def reference_scores(vectors, codes, metric):
    z, c = vectors.double(), codes.double()
    if metric == "l2":
        return -(c[:, None] - z[None]).square().sum(-1)
    if metric == "cosine":
        return (c / c.norm(dim=1, keepdim=True)) @ (z / z.norm(dim=1, keepdim=True)).T
    return c @ z.T


def reference_draw(vectors, codes, uniforms, metric):
    """Walk the cumulative softmax of every code until it passes the uniform."""
    rows = []
    for weights, u in zip(
        reference_scores(vectors, codes, metric).softmax(1), uniforms, strict=True
    ):
        row, passed = 0, float(weights[0])
        while passed <= float(u):
            row += 1
            passed += float(weights[row])
        rows.append(row)
    return torch.tensor(rows)


def random_case(num_vectors=300, num_codes=20, dim=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(num_vectors, dim, generator=generator)
    codes = torch.randn(num_codes, dim, generator=generator)
    return vectors, codes, torch.rand(num_codes, generator=generator)


@pytest.mark.parametrize(
    "metric", [pytest.param(m, marks=[] if m == "l2" else [pytest.mark.slow]) for m in METRICS]
)
def test_draw_inverts_the_cumulative_softmax(metric, monkeypatch):
    vectors, codes, uniforms = random_case()
    expected = reference_draw(vectors, codes, uniforms, metric)
    assert torch.equal(sample_softmax_rows(vectors, codes, uniforms, metric), expected)
    for rows, width in ((7, 3), (100, 512), (1, 1)):
        monkeypatch.setattr(sampling, "ROWS", rows)
        monkeypatch.setattr(sampling, "CODES", width)
        assert torch.equal(sample_softmax_rows(vectors, codes, uniforms, metric), expected)


@pytest.mark.parametrize("metric", METRICS)
def test_log_weights(metric):
    vectors, codes, _ = random_case()
    expected = reference_scores(vectors, codes, metric).logsumexp(1)
    # prepared vectors and codes are float32, so a score of size 10 carries about 1e-6
    torch.testing.assert_close(
        softmax_row_log_weights(vectors, codes, metric), expected, rtol=1e-6, atol=1e-5
    )
    assert softmax_row_log_weights(vectors[:0], codes, metric).tolist() == [-torch.inf] * 20


def test_processes_draw_what_one_process_draws():
    vectors, codes, uniforms = random_case(num_codes=64)
    whole = sample_softmax_rows(vectors, codes, uniforms)
    for sizes in ((100, 100, 100), (1, 299), (0, 250, 50)):
        shares = vectors.split(sizes)
        log_weights = torch.stack([softmax_row_log_weights(share, codes) for share in shares], -1)
        owner, local = choose_by_weight(log_weights, uniforms)
        offsets = torch.tensor([0, *sizes]).cumsum(0)
        for number, share in enumerate(shares):
            mine = owner == number
            if len(share):
                rows = sample_softmax_rows(share, codes, local)[mine]
                assert torch.equal(rows + offsets[number], whole[mine])


def test_frequencies_follow_the_softmax():
    vectors = torch.tensor([[0.0], [1.0], [0.5], [3.0]])
    uniforms = (torch.arange(4000) + 0.5) / 4000  # a grid: frequencies are exact to one step
    rows = sample_softmax_rows(vectors, torch.zeros(4000, 1), uniforms)
    expected = torch.tensor([0.0, -1.0, -0.25, -9.0]).softmax(0)
    torch.testing.assert_close(rows.bincount(minlength=4) / 4000, expected, rtol=0, atol=1.1 / 4000)


def test_groups_equal_a_loop():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(2, 50, 4, generator=generator)
    codes = torch.randn(2, 10, 4, generator=generator)
    uniforms = torch.rand(2, 10, generator=generator)
    rows = sample_softmax_rows(vectors, codes, uniforms)
    weights = softmax_row_log_weights(vectors, codes)
    for group in range(2):
        one = sample_softmax_rows(vectors[group], codes[group], uniforms[group])
        assert torch.equal(rows[group], one)
        assert torch.equal(weights[group], softmax_row_log_weights(vectors[group], codes[group]))


def test_far_vectors():
    # exp(-1e6) is zero: only the largest weight, subtracted first, keeps the draw alive
    vectors = torch.tensor([[1000.0], [1001.0]])
    rows = sample_softmax_rows(vectors, torch.zeros(3, 1), torch.tensor([0.0, 0.5, 0.999]))
    assert rows.tolist() == [0, 0, 0]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_vectors_that_are_no_numbers_are_refused(bad):
    vectors = torch.tensor([[1000.0], [bad]])
    with pytest.raises(ValueError, match="vectors: row 1 holds NaN or infinity"):
        sample_softmax_rows(vectors, torch.zeros(3, 1), torch.tensor([0.0, 0.5, 0.999]))


def test_choose_by_weight_edges():
    weights = torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0]).log()
    uniforms = torch.tensor([0.0, 0.125, 0.2499, 0.25, 0.625, 1 - 2**-24])
    indices, remainders = choose_by_weight(weights.expand(6, 5), uniforms)
    assert indices.tolist() == [1, 1, 1, 3, 3, 3]
    expected = torch.tensor([0.0, 0.5, 0.9996, 0.0, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(remainders, expected, rtol=0, atol=1e-6)
    assert bool((remainders < 1).all())


def test_wrong_arguments_are_named():
    vectors, codes, uniforms = random_case()
    with pytest.raises(ValueError, match="at least one vector"):
        sample_softmax_rows(vectors[:0], codes, uniforms)
    with pytest.raises(ValueError, match="one per code"):
        sample_softmax_rows(vectors, codes, uniforms[:3])
    with pytest.raises(ValueError, match=r"outside \[0, 1\)"):
        sample_softmax_rows(vectors, codes, uniforms + 1)
    with pytest.raises(ValueError, match="metric='l1'"):
        sample_softmax_rows(vectors, codes, uniforms, "l1")
