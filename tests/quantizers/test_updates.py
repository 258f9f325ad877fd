"""Update rules against loops written from the papers' equations."""

import math

import pytest
import torch
import torch.nn.functional as F
from quantizer_cases import feature_map

from vqkit.quantizers import cvq, pq, rq, vq_ema
from vqkit.quantizers.clock import Clock, counter_uniform


def leaf_of(quantizer):
    return next(quantizer.quantizer.leaves())


def rows_of(z):
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])


def test_ema_follows_its_equation():
    """N ← γN + (1-γ)n; M ← γM + (1-γ)s; C = M / smoothed N (arXiv:1711.00937, A.1)."""
    quantizer = vq_ema(5, 3, decay=0.8, eps=0.01).train()
    leaf = leaf_of(quantizer)
    leaf.codebook.codes.copy_(torch.randn(1, 5, 3))
    leaf.rules[0].sums.copy_(leaf.codebook.codes)
    counts, sums = [1.0] * 5, leaf.codebook.codes[0].clone()
    for step in range(3):
        z = feature_map(quantizer, seed=step)
        codes = leaf.codebook.codes[0].clone()
        ids = quantizer(z).ids.flatten().tolist()
        quantizer.step()
        for code in range(5):
            mine = [row for row, i in zip(rows_of(z), ids, strict=True) if i == code]
            counts[code] = 0.8 * counts[code] + 0.2 * len(mine)
            sums[code] = 0.8 * sums[code] + 0.2 * sum(mine, torch.zeros(3))
        total = sum(counts)
        for code in range(5):
            smoothed = (counts[code] + 0.01) / (total + 5 * 0.01) * total
            torch.testing.assert_close(leaf.codebook.codes[0, code], sums[code] / smoothed)
        assert not torch.equal(codes, leaf.codebook.codes[0])


def test_ema_starts_warm():
    """A code that nothing takes stays near its place instead of flying to 1e5."""
    quantizer = vq_ema(4, 2).train()
    leaf = leaf_of(quantizer)
    start = torch.tensor([[[0.0, 0], [1, 1], [-1, 1], [50, 50]]])
    leaf.codebook.codes.copy_(start)
    leaf.rules[0].sums.copy_(start)
    for step in range(200):
        quantizer(feature_map(quantizer, seed=step))
        quantizer.step()
    far = leaf.codebook.codes[0, 3]
    assert far.isfinite().all()
    assert far.abs().max() < 100


def test_restarted_codes_are_vectors_of_the_batch():
    quantizer = rq(6, 3, num_levels=1).train()
    leaf = leaf_of(quantizer)
    leaf.codebook.codes.copy_(leaf.codebook.codes + 100)  # only one code is ever nearest
    leaf.rules[0].sums.copy_(leaf.codebook.codes)
    z = feature_map(quantizer)
    used = quantizer(z).ids.unique()
    quantizer.step()
    assert len(used) < 6
    total = leaf.rules[0].counts.sum()
    for code in set(range(6)) - set(used.tolist()):
        assert leaf.rules[0].counts[0, code] == 1
        smoothed = (1 + 1e-5) / (total + 6e-5) * total
        distance = (rows_of(z) - leaf.codebook.codes[0, code] * smoothed).norm(dim=-1).min()
        assert distance < 1e-4
    assert len(leaf.codebook.codes[0].unique(dim=0)) == 6


def test_restart_with_fewer_vectors_than_codes():
    quantizer = rq(40, 3, num_levels=1).train()
    leaf = leaf_of(quantizer)
    leaf.codebook.codes.add_(100)
    leaf.rules[0].sums.copy_(leaf.codebook.codes)
    z = feature_map(quantizer, batch=1, height=2, width=2)
    used = quantizer(z).ids.unique()
    quantizer.step()
    fresh = torch.tensor(sorted(set(range(40)) - set(used.tolist())))
    codes = leaf.rules[0].sums[0, fresh]
    gap = torch.cdist(codes, rows_of(z)).min(1).values
    assert (gap < 0.02).all()  # vectors, or copies with noise up to 0.01/√d in each of d elements
    assert len(codes.unique(dim=0)) == len(codes)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_closest_anchors_follow_their_equation(metric):
    """CVQ eq. 4-6 with a loop over codes; the codebook term's gradient is left out."""
    quantizer = cvq(7, 3, metric=metric, decay=0.9).train()
    leaf = leaf_of(quantizer)
    leaf.codebook.codes.data.normal_()
    usage = [0.0] * 7
    for step in range(3):
        z = feature_map(quantizer, seed=step)
        rows, codes = rows_of(z), leaf.codebook.codes[0].detach().clone()
        ids = quantizer(z).ids.flatten()
        quantizer.step()
        for code in range(7):
            usage[code] = 0.9 * usage[code] + 0.1 * (ids == code).float().mean().item()
            alpha = math.exp(-usage[code] * 7 * 10 / (1 - 0.9) - 1e-3)
            if metric == "cosine":
                similarity = F.cosine_similarity(rows, codes[code], dim=-1)
            else:
                similarity = -(rows - codes[code]).square().sum(-1)
            anchor = rows[similarity.argmax()]
            expected = (1 - alpha) * codes[code] + alpha * anchor
            torch.testing.assert_close(leaf.codebook.codes[0, code], expected)


def test_anchors_of_independent_segments_stay_apart():
    quantizer = pq(5, 2, num_segments=3, update="cvq").train()
    leaf = leaf_of(quantizer)
    z = feature_map(quantizer) + torch.tensor([0, 0, 50, 50, -50, -50.0]).view(1, -1, 1, 1)
    quantizer(z)
    quantizer.step()
    centres = leaf.codebook.codes.flatten(1).median(1).values  # the used codes hardly move
    torch.testing.assert_close(centres, torch.tensor([0, 50, -50.0]), rtol=0, atol=5)


def test_random_anchors_are_distinct_vectors_of_the_batch():
    quantizer = cvq(6, 3, anchors="random").train()
    leaf = leaf_of(quantizer)
    z = feature_map(quantizer)
    quantizer(z)
    leaf.rules[0].reduce(leaf.clock)
    anchors = leaf.rules[0].source.take(leaf.codebook.codes, leaf.clock)[0]
    rows = rows_of(z)
    hits = (anchors[:, None] == rows[None]).all(-1)
    assert (hits.sum(1) == 1).all()
    assert len(anchors.unique(dim=0)) == 6


def test_random_pool_keeps_what_a_small_batch_cannot_replace():
    quantizer = cvq(30, 3, anchors="random").train()
    leaf = leaf_of(quantizer)
    before = leaf.rules[0].source.anchors[0].clone()
    z = feature_map(quantizer, batch=1, height=2, width=2)
    quantizer(z)
    quantizer.step()
    after = leaf.rules[0].source.anchors[0]
    changed = (before != after).any(1)
    assert changed.sum() == 4
    assert set(map(tuple, after[changed].tolist())) == set(map(tuple, rows_of(z).tolist()))


def test_probrandom_draws_by_the_softmax_of_similarities():
    """Frequencies over many draws against softmax over the vectors, within 4 standard errors."""
    torch.manual_seed(3)
    copies, steps = 100, 20
    quantizer = cvq(2 * copies, 2, anchors="probrandom", metric="l2")
    leaf = leaf_of(quantizer)
    source, clock = leaf.rules[0].source, leaf.clock
    rows = torch.randn(1, 5, 2) * 0.7
    table = torch.randn(1, 2, 2) * 0.7
    weights = (-torch.cdist(table[0], rows[0]).square()).softmax(-1)
    counts, trials = torch.zeros(2, 5), copies * steps
    for _ in range(steps):  # every code draws for itself, equal codes too
        source.collect(rows, table.repeat(1, copies, 1), clock)
        source.reduce(clock)
        clock.advance()
        drawn = (source.anchors[0][:, None] == rows[0][None]).all(-1).float()
        counts += drawn.view(copies, 2, 5).sum(0)
    error = (weights * (1 - weights) / trials).sqrt()
    assert ((counts / trials - weights).abs() < 4 * error).all()


def test_counter_numbers_are_uniform_and_independent():
    numbers = counter_uniform(torch.tensor(5), torch.arange(300)[:, None], torch.arange(300))
    assert numbers.min() > 0
    assert numbers.max() < 1
    histogram = torch.histc(numbers, 50, 0, 1)
    chi_square = ((histogram - 1800).square() / 1800).sum()
    assert chi_square < 90  # 49 degrees of freedom: mean 49, standard deviation 10
    centred = numbers - 0.5
    for shift in ((0, 1), (1, 0), (1, 1)):
        correlation = (centred * centred.roll(shift, (0, 1))).mean() * 12
        assert correlation.abs() < 4 / 300
    assert (counter_uniform(torch.tensor(5), torch.arange(9)) != counter_uniform(
        torch.tensor(6), torch.arange(9))).all()  # fmt: skip


def test_clock_draws_by_seed_and_step_only():
    clock = Clock()
    first = clock.uniform(1, torch.arange(4))
    torch.rand(10)
    assert torch.equal(clock.uniform(1, torch.arange(4)), first)
    clock.advance()
    assert not torch.equal(clock.uniform(1, torch.arange(4)), first)
    twin = Clock()
    twin.load_state_dict(clock.state_dict())
    assert torch.equal(clock.uniform(1, torch.arange(4)), twin.uniform(1, torch.arange(4)))
    assert not torch.equal(clock.uniform(2, torch.arange(4)), twin.uniform(1, torch.arange(4)))
