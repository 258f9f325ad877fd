"""The projector that follows the vectors."""

import pytest
import torch

from vqkit.quantizers import Align, FreeCodebook, simvq, uniform_codes, vqgan_lc
from vqkit.quantizers.alignment import transport


def covariance(dim, seed):
    source = torch.Generator().manual_seed(seed)
    factor = torch.randn(dim, dim, generator=source, dtype=torch.float64)
    return factor @ factor.T


@pytest.mark.slow
def test_transport_takes_one_covariance_to_the_other_and_moves_least():
    source, target = covariance(5, 0), covariance(5, 1)
    moved = transport(source, target)
    torch.testing.assert_close(moved @ source @ moved.T, target, rtol=1e-4, atol=1e-4)
    # Symmetric and positive: of all linear maps between the two, the one that moves least.
    torch.testing.assert_close(moved, moved.T)
    assert torch.linalg.eigvalsh(moved).min() > 0
    torch.testing.assert_close(transport(source, source), torch.eye(5).double(), rtol=0, atol=1e-4)


def quantizer_and_vectors(decay=0.0, spread=0.01):
    source = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    features = torch.randn(2000, 6, generator=source) * 3 + 1
    quantizer = vqgan_lc(features, 4, align=decay, in_channels=None)
    line = torch.tensor([1.0, spread, spread, spread])  # nearly one direction, as a young encoder
    z = torch.randn(8, 4, 16, 16, generator=source) * line.view(4, 1, 1) + 100
    return quantizer.train(), z


def table_of(quantizer):
    leaf = next(quantizer.quantizer.leaves())
    return leaf.codebook.table(leaf.clock)[0].detach().double()


def test_codes_get_mean_and_covariance_of_the_vectors():
    quantizer, z = quantizer_and_vectors()
    quantizer(z).loss.backward()
    quantizer.step()
    rows = z.movedim(1, -1).reshape(-1, 4).double()
    codes = table_of(quantizer)
    torch.testing.assert_close(codes.mean(0), rows.mean(0), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(
        torch.cov(codes.T, correction=0), torch.cov(rows.T, correction=0), rtol=0.05, atol=1e-5
    )


def test_most_codes_are_drawn_where_few_were():
    used = {}
    for align in (None, 0.0):
        quantizer, z = quantizer_and_vectors()
        if align is None:
            next(quantizer.quantizer.leaves()).rules = torch.nn.ModuleList()
        quantizer(z).loss.backward()
        quantizer.step()
        used[align] = len(quantizer.eval()(z).ids.unique())
    assert used[0.0] > 500 > 5 * used[None]


def test_running_moments_are_those_of_all_vectors_at_first():
    """Until 1 / (1 - decay) steps are done, every step counts alike."""
    quantizer, z = quantizer_and_vectors(decay=0.9)
    (rule,) = next(quantizer.quantizer.leaves()).rules
    for part in z.split(2):  # four steps
        quantizer(part).loss.backward()
        quantizer.step()
    rows = z.movedim(1, -1).reshape(-1, 4).double()
    torch.testing.assert_close(rule.mean, rows.mean(0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(rule.covariance, torch.cov(rows.T, correction=0))


def test_vectors_that_are_no_numbers_move_nothing():
    quantizer, z = quantizer_and_vectors()
    quantizer.check_values = False
    before = table_of(quantizer)
    quantizer(z * torch.nan)
    quantizer.step()
    assert torch.equal(table_of(quantizer), before)


@pytest.mark.parametrize("value", [0.25, 0.0])
def test_equal_vectors_do_no_harm(value):
    quantizer, z = quantizer_and_vectors()
    quantizer(torch.full_like(z, value)).loss.backward()
    quantizer.step()
    codes = table_of(quantizer)
    assert codes.isfinite().all()
    assert (codes - value).abs().max() < 1e-2


def test_other_codebooks_are_refused():
    with pytest.raises(ValueError, match="FreeCodebook has none"):
        Align(FreeCodebook(uniform_codes(8, 4)))
    with pytest.raises(ValueError, match="these are trained"):
        vqgan_lc(torch.randn(8, 6), 4, frozen=False, align=0.9)
    with pytest.raises(ValueError, match="linear projector"):
        vqgan_lc(torch.randn(8, 6), projector=False, align=0.9)
    book = next(simvq(8, 4, bias=False).quantizer.leaves()).codebook
    with pytest.raises(ValueError, match="with a bias"):
        Align(book)
    with pytest.raises(ValueError, match=r"decay=1.0: must lie in \[0, 1\)"):
        vqgan_lc(torch.randn(8, 6), 4, align=1.0)
