"""Reselect: places of codes that nobody draws go to features among the vectors."""

import pytest
import torch

from vqkit.quantizers import FreeCodebook, Reselect, uniform_codes, vqgan_lc


def quantizer_and_pool(patience=2.0, **args):
    source = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    features = torch.randn(64, 6, generator=source) + 20  # far from where the vectors are
    pool = torch.randn(500, 6, generator=source)
    quantizer = vqgan_lc(
        features, 4, pool=pool, patience=patience, in_channels=None, codebook=0.0, **args
    )
    return quantizer.train(), pool


def vectors_of(quantizer, pool, seed, batch=2):
    """Vectors (B, 4, 8, 8) that are projected features of the pool, slightly moved."""
    source = torch.Generator().manual_seed(seed)
    picked = torch.randint(len(pool), (batch * 64,), generator=source)
    projector = quantizer.quantizer.codebook.projector
    z = projector(pool[picked]).detach() + 1e-4 * torch.randn(batch * 64, 4, generator=source)
    return z.view(batch, 8, 8, 4).permute(0, 3, 1, 2), picked


def rule_of(quantizer):
    return next(quantizer.quantizer.leaves()).rules[0]


def test_codes_become_the_features_nearest_to_the_vectors():
    quantizer, pool = quantizer_and_pool()
    rule, book = rule_of(quantizer), quantizer.quantizer.codebook
    before = book.features.clone()
    for step in range(3):
        z, picked = vectors_of(quantizer, pool, step)
        drawn = quantizer(z).ids.unique()
        quantizer.step()
        if step == 0:  # 128 vectors for 64 codes: 2 x 64 have not gone by yet
            assert torch.equal(book.features, before)
            continue
        changed = (book.features != before).any(1).nonzero()[:, 0]
        assert len(changed)
        assert not set(changed.tolist()) & set(drawn.tolist())
        assert torch.equal(book.features[changed], pool[rule.row[changed]])
        if step == 1:  # every vector is a projected feature: just these are taken
            assert set(rule.row[changed].tolist()) <= set(picked.tolist())
        assert len(rule.row[rule.row >= 0].unique()) == int((rule.row >= 0).sum())
        before = book.features.clone()
    taken = int((book.features[:, None] == pool).all(-1).any(1).sum())
    assert rule.numbers() == {"reselected": taken}
    z, _ = vectors_of(quantizer, pool, 9, batch=16)
    used = quantizer.eval()(z).ids.unique()
    assert len(used) > 0.9 * 64


def test_patience_counts_vectors_per_code():
    quantizer, pool = quantizer_and_pool(patience=5.0)
    book = quantizer.quantizer.codebook
    before = book.features.clone()
    moved = []
    for step in range(4):  # 128, 256, 384 > 5 x 64 = 320
        quantizer(vectors_of(quantizer, pool, step)[0])
        quantizer.step()
        moved.append(not torch.equal(book.features, before))
    assert moved == [False, False, True, True]


def test_a_feature_must_be_closer_than_the_code_that_is_there():
    quantizer, pool = quantizer_and_pool(patience=0.5)
    book = quantizer.quantizer.codebook
    book.features[:4] = pool[:4]
    rule_of(quantizer).pool[:4] = 50.0  # so that no feature is as close as these codes are
    before = book.features.clone()
    z = book.projector(pool[:4]).detach().repeat(16, 1).view(1, 8, 8, 4).permute(0, 3, 1, 2)
    for _ in range(3):
        assert set(quantizer(z).ids.unique().tolist()) == {0, 1, 2, 3}
        quantizer.step()
    assert torch.equal(book.features, before)


def test_closer_is_decided_by_the_metric_of_the_assignment():
    # The second code is never drawn. The feature of the pool is nearer by L2, not by cosine.
    for metric, expected in (
        ("l2", [[1.0, 0.0], [9.8, 1.7]]),
        ("cosine", [[1.0, 0.0], [-1.0, 0.0]]),
    ):
        quantizer = vqgan_lc(
            torch.tensor([[1.0, 0.0], [-1.0, 0.0]]),
            projector=False,
            metric=metric,
            pool=torch.tensor([[9.8, 1.7]]),
            patience=0.5,
            in_channels=None,
        ).train()
        for _ in range(2):
            quantizer(torch.tensor([10.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2))
            quantizer.step()
        torch.testing.assert_close(quantizer.quantizer.codebook.features, torch.tensor(expected))


def test_a_pool_that_is_used_up_changes_nothing():
    quantizer, pool = quantizer_and_pool(patience=0.5)
    rule = rule_of(quantizer)
    rule.row[: len(pool)] = torch.arange(64)
    rule.pool = rule.pool[:64]
    book = quantizer.quantizer.codebook
    before = book.features.clone()
    quantizer(vectors_of(quantizer, pool, 0)[0])
    quantizer.step()
    assert torch.equal(book.features, before)


def test_a_saved_state_goes_on_alike():
    def run(quantizer, pool, first, last):
        for step in range(first, last):
            quantizer(vectors_of(quantizer, pool, step)[0])
            quantizer.step()
        return quantizer.state_dict()

    whole, pool = quantizer_and_pool(align=0.5)
    expected = run(whole, pool, 0, 6)
    first, _ = quantizer_and_pool(align=0.5)
    state = {name: value.clone() for name, value in run(first, pool, 0, 3).items()}
    second, _ = quantizer_and_pool(align=0.5)
    second.load_state_dict(state)
    found = run(second, pool, 3, 6)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="FreeCodebook has none"):
        Reselect(FreeCodebook(uniform_codes(8, 4)), torch.randn(9, 4))
    with pytest.raises(ValueError, match="these are trained"):
        vqgan_lc(torch.randn(8, 6), 4, frozen=False, pool=torch.randn(9, 6))
    with pytest.raises(ValueError, match=r"pool of shape \(9, 5\).* rows of 6"):
        vqgan_lc(torch.randn(8, 6), 4, pool=torch.randn(9, 5))
    with pytest.raises(ValueError, match="patience=0: must be above 0"):
        vqgan_lc(torch.randn(8, 6), 4, pool=torch.randn(9, 6), patience=0)
