"""FID, KID and Inception Score against formulas, scipy and torchmetrics, on small networks."""

import math

import numpy as np
import pytest
import torch
from measure_cases import CLASSES, DIM, Small, pictures, small
from PIL import Image
from scipy.linalg import sqrtm

from vqkit.metrics.features import FeatureMeasures
from vqkit.metrics.frechet import Gaussian, Moments, frechet_distance
from vqkit.metrics.inception_score import InceptionScore
from vqkit.metrics.kernel import Sample, kernel_distance, keys_of
from vqkit.metrics.resizing import prepare


def vectors(count, dim=DIM, seed=0, mean=0.0):
    source = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=source, dtype=torch.float64)
    return torch.randn(count, dim, generator=source, dtype=torch.float64) @ mix + mean


def gaussian(rows):
    moments = Moments(rows.shape[1])
    moments.update(rows)
    return moments.gaussian()


def measured(names, images, originals, batch=5, **options):
    measures = FeatureMeasures(small(), names, **options)
    for x, y in zip(images.split(batch), originals.split(batch), strict=True):
        measures.update(x, y)
    return measures


def test_moments_are_those_of_all_vectors_at_once():
    rows = vectors(101, mean=3.0)
    moments = Moments(DIM)
    for part in rows.split([1, 50, 0, 49, 1]):
        moments.update(part)
    found = moments.gaussian()
    assert found.count == 101
    torch.testing.assert_close(found.mean, rows.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.covariance, torch.cov(rows.T), rtol=1e-10, atol=1e-10)


def test_moments_far_from_zero_lose_no_digits():
    """Sums of squares less the square of the sum would have nothing left here."""
    rows = vectors(4000)
    far = gaussian(rows + 1e7)
    torch.testing.assert_close(far.covariance, torch.cov(rows.T), rtol=1e-6, atol=1e-6)


def naive_fid(x, y):
    product = sqrtm(np.cov(x.T) @ np.cov(y.T))
    mean = ((x.mean(0) - y.mean(0)) ** 2).sum()
    return float(mean + np.trace(np.cov(x.T)) + np.trace(np.cov(y.T)) - 2 * np.trace(product).real)


@pytest.mark.parametrize("seed", range(3))
def test_fid_is_that_of_the_matrix_square_root(seed):
    x, y = vectors(300, seed=seed, mean=0.5), vectors(200, seed=seed + 10)
    expected = naive_fid(x.numpy(), y.numpy())
    found = frechet_distance(gaussian(x), gaussian(y))
    assert found == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(gaussian(y), gaussian(x)) == pytest.approx(found, rel=1e-10)


def test_fid_of_diagonal_gaussians_by_hand():
    """Σ (μx - μy)² + (σx - σy)²."""
    first = Gaussian(
        count=10**6,
        mean=torch.tensor([1.0, 2.0]).double(),
        covariance=torch.diag(torch.tensor([4.0, 9.0]).double()),
    )
    second = Gaussian(
        count=10**6,
        mean=torch.tensor([1.0, 5.0]).double(),
        covariance=torch.diag(torch.tensor([25.0, 1.0]).double()),
    )
    assert frechet_distance(first, second) == pytest.approx(9 + 9 + 4, rel=1e-12)


@pytest.mark.parametrize("count", [2, 3, DIM, DIM + 1, 500])
def test_a_set_against_itself_is_zero(count):
    rows = 5 * vectors(count)
    found = frechet_distance(gaussian(rows), gaussian(rows))
    scale = float(torch.cov(rows.T).trace())
    assert 0 <= found < 1e-9 * scale


@pytest.mark.parametrize("counts", [(2, 3), (5, 6), (DIM, DIM + 1), (40, 3), (40, 9)])
def test_fid_of_few_vectors_is_that_of_their_span(counts):
    """Singular covariances: exact by the other formula, the nuclear norm of XᵀY of centred rows."""
    x, y = vectors(counts[0], seed=1), vectors(counts[1], seed=2)
    a = (x - x.mean(0)) / math.sqrt(len(x) - 1)
    b = (y - y.mean(0)) / math.sqrt(len(y) - 1)
    expected = float(
        (x.mean(0) - y.mean(0)).square().sum()
        + a.square().sum()
        + b.square().sum()
        - 2 * torch.linalg.svdvals(a @ b.T).sum()
    )
    # noise of zero eigenvalues, about 1e-8 each after the root, would be seen here
    assert frechet_distance(gaussian(x), gaussian(y)) == pytest.approx(expected, rel=1e-11)
    assert frechet_distance(gaussian(y), gaussian(x)) == pytest.approx(expected, rel=1e-11)


def test_fid_of_constant_features_is_the_distance_of_means():
    x, y = torch.ones(9, DIM), torch.zeros(4, DIM)
    assert frechet_distance(gaussian(x), gaussian(y)) == pytest.approx(DIM)
    assert frechet_distance(gaussian(x), gaussian(vectors(9))) > 0


def test_fid_refuses_what_has_no_value():
    with pytest.raises(ValueError, match="1 and 9 images: FID needs at least 2 each"):
        frechet_distance(gaussian(vectors(1)), gaussian(vectors(9)))
    with pytest.raises(ValueError, match="features of 12 and 3"):
        frechet_distance(gaussian(vectors(9)), gaussian(vectors(9, 3)))
    broken = vectors(9)
    broken[3, 3] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        frechet_distance(gaussian(broken), gaussian(vectors(9)))


def naive_kid(x, y):
    def kernel(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    m = len(x)
    within = sum(kernel(z[i], z[j]) for z in (x, y) for i in range(m) for j in range(m) if i != j)
    across = sum(kernel(a, b) for a in x for b in y)
    return within / (m * (m - 1)) - 2 * across / m**2


def test_kid_is_that_of_the_formula():
    x, y = vectors(9), vectors(9, seed=4, mean=0.3)
    value, spread = kernel_distance(x, y)
    assert value == pytest.approx(naive_kid(x, y), rel=1e-9)
    assert spread is None


def test_kid_of_equal_distributions_is_about_zero_and_of_others_above():
    x, y = torch.randn(2, 600, DIM, generator=torch.Generator().manual_seed(0))
    value, spread = kernel_distance(x, y, subset_size=100)
    assert abs(value) < 0.02
    assert spread > 0
    assert kernel_distance(x, y + 0.5, subset_size=100)[0] > 0.1


def test_kid_depends_on_the_seed_alone():
    x, y = vectors(60), vectors(50, seed=1)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    options = {"num_subsets": 5, "subset_size": 20}
    first, second = (kernel_distance(x, y, seed=3, **options) for _ in range(2))
    assert first == second
    assert first != kernel_distance(x, y, seed=4, **options)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_spread_of_kid_is_that_of_the_population():
    x, y = vectors(60), vectors(50, seed=1)
    first, _ = kernel_distance(x, y, num_subsets=1, subset_size=20)
    mean, spread = kernel_distance(x, y, num_subsets=2, subset_size=20)
    assert spread == pytest.approx(abs(first - mean), rel=1e-9)


def test_kid_takes_no_more_than_the_smaller_side_has():
    value, spread = kernel_distance(vectors(5), vectors(50, seed=1), num_subsets=7)
    assert math.isfinite(value)
    assert spread > 0
    with pytest.raises(ValueError, match="1 and 9 images: KID needs at least 2 each"):
        kernel_distance(vectors(1), vectors(9))


def test_keys_belong_to_images_and_seeds():
    images = pictures(6)
    keys = keys_of(images, 0)
    assert keys.dtype == torch.int64
    assert len(keys.unique()) == 6
    assert torch.equal(keys_of(images.flip(0), 0), keys.flip(0))
    assert not (keys_of(images, 1) == keys).any()
    # rows of another order in memory are the same images
    assert torch.equal(keys_of(images.to(memory_format=torch.channels_last), 0), keys)


@pytest.mark.parametrize("limit", [3, 10, 40, 100])
def test_a_sample_keeps_the_smallest_keys_whatever_the_batches(limit):
    rows, keys = vectors(40).float(), torch.randperm(40, generator=torch.Generator().manual_seed(0))
    expected = rows[keys.argsort()[:limit]]
    for size in (1, 7, 40):
        sample = Sample(DIM, limit)
        for part in range(0, 40, size):
            sample.update(rows[part : part + size], keys[part : part + size])
        assert torch.equal(sample.rows(), expected)
        assert (len(sample), sample.seen) == (min(limit, 40), 40)


def test_a_sample_is_uniform():
    """Each row is kept with probability limit / n, over many seeds."""
    images, kept = pictures(20), torch.zeros(20)
    for seed in range(300):
        sample = Sample(1, 5)
        sample.update(torch.arange(20.0)[:, None], keys_of(images, seed))
        kept[sample.rows().flatten().long()] += 1
    # 75 expected of each, with a standard deviation of 7.5
    assert 45 < kept.min() <= kept.max() < 105


def naive_score(logits):
    shares = logits.double().softmax(1)
    mean = shares.mean(0)
    return math.exp(float((shares * (shares / mean).log()).sum(1).mean()))


def test_inception_score_is_the_mean_over_splits():
    logits = 3 * vectors(60, CLASSES).float()
    keys = torch.randint(-(2**40), 2**40, (60,), generator=torch.Generator().manual_seed(0))
    score = InceptionScore(CLASSES, 4)
    for part, some in zip(logits.split(7), keys.split(7), strict=True):
        score.update(part, some)
    expected = np.array([naive_score(logits[keys % 4 == split]) for split in range(4)])
    value, spread = score.value()
    assert value == pytest.approx(expected.mean(), rel=1e-9)
    assert spread == pytest.approx(expected.std(), rel=1e-9)
    assert score.num_images == 60


def test_inception_score_of_extremes():
    """The same answer for all gives 1; a certain and different one for each, as many as classes."""
    keys = torch.zeros(CLASSES, dtype=torch.int64)
    same, certain = InceptionScore(CLASSES, 1), InceptionScore(CLASSES, 1)
    same.update(torch.ones(CLASSES, CLASSES), keys)
    certain.update(1e4 * torch.eye(CLASSES), keys)
    assert same.value() == (pytest.approx(1), None)
    assert certain.value() == (pytest.approx(CLASSES), None)
    assert InceptionScore(CLASSES, 3).value() is None


def torchmetrics_values(images, originals, subset):
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore as TheirScore
    from torchmetrics.image.kid import KernelInceptionDistance

    class Wrapped(Small):
        """Their custom modules take images as they are, and give what is asked for."""

        def __init__(self, classes=False):
            super().__init__()
            self.asked = classes

        def forward(self, images):
            features = super().forward(prepare(images, "legacy"))
            return self.logits(features) if self.asked else features.double()

    fid = FrechetInceptionDistance(Wrapped()).set_dtype(torch.float64)
    kid = KernelInceptionDistance(Wrapped(), subsets=1, subset_size=subset)
    score = TheirScore(Wrapped(classes=True), splits=1)
    for one in (fid, kid):
        one.update(originals, real=True)
        one.update(images, real=False)
    score.update(images)
    return float(fid.compute()), float(kid.compute()[0]), float(score.compute()[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_numbers_are_those_of_torchmetrics():
    originals, noise = pictures(90), pictures(90, seed=1)
    images = (0.8 * originals + 0.2 * noise).to(torch.uint8)
    measures = measured(("fid", "kid", "inception_score"), images, originals, num_splits=1)
    expected = torchmetrics_values(images, originals, subset=90)
    for found, value in zip(measures.results(), expected, strict=True):
        assert found.num_images == 90
        assert found.value == pytest.approx(value, rel=1e-5), found.name


def test_results_do_not_depend_on_order_batches_or_repetition():
    originals = pictures(30)
    images = pictures(30, seed=1)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    names = ("fid", "kid", "inception_score")
    first = measured(names, images, originals, batch=30, num_kept=20).results()
    other = measured(names, images[order], originals[order], batch=3, num_kept=20).results()
    for a, b in zip(first, other, strict=True):
        assert a.value == pytest.approx(b.value, rel=1e-5), a.name
        assert a.note == b.note
    assert "20 kept of 30 images" in first[1].note


def test_a_model_that_gives_one_picture_for_all_is_sampled_by_its_originals():
    originals, grey = pictures(12), torch.full((12, 3, 8, 8), 128, dtype=torch.uint8)
    first = measured(("kid",), grey, originals, num_kept=4).results()[0]
    second = measured(("kid",), grey, originals.flip(0), num_kept=4).results()[0]
    assert first.value == pytest.approx(second.value, rel=1e-6)


def test_originals_against_themselves():
    originals = pictures(40)
    fid, kid = measured(("fid", "kid"), originals, originals).results()
    assert 0 <= fid.value < 1e-9
    # paired sets are not independent: the unbiased estimate falls below 0 (docs/metrics.md)
    assert kid.value < 0


def test_few_images_are_said():
    for count, words in ((1, "at least 2"), (DIM, "singular"), (DIM + 1, "biased upwards")):
        fid = measured(("fid",), pictures(count), pictures(count, seed=1)).results()[0]
        assert words in fid.note
        assert (fid.value is None) == (count == 1)
        assert fid.num_images == count
    empty = FeatureMeasures(small()).results()
    assert [found.value for found in empty] == [None] * 3
    assert [found.name for found in empty] == ["fid", "kid", "inception_score"]


def test_grey_images_are_tiled():
    grey, other = pictures(30, channels=1), pictures(30, seed=1, channels=1)
    names = ("fid", "kid")
    expected = measured(names, grey.repeat(1, 3, 1, 1), other.repeat(1, 3, 1, 1)).results()
    found = measured(names, grey, other).results()
    assert found[0].value == pytest.approx(expected[0].value)


def test_memory_does_not_grow_with_the_images():
    def held(measures):
        seen = [measures._sample._rows, measures._sample._keys, measures._score._sums]
        seen += [t for m in measures._moments for t in (m.mean, m._scatter)]
        return sum(tensor.numel() for tensor in seen)

    names = ("fid", "kid", "inception_score")
    few = measured(names, pictures(10), pictures(10), num_kept=8)
    many = measured(names, pictures(50), pictures(50), num_kept=8)
    assert held(few) == held(many)


def test_facts_name_everything_that_moves_the_numbers():
    facts = FeatureMeasures(small("adm"), seed=3).facts()
    assert facts["inception.sha256"] == "ab" * 32
    assert facts["inception.resize"] == "adm"
    assert facts["fid.reference"] == facts["kid.reference"] == "originals"
    assert facts["kid.seed"] == 3
    assert facts["inception_score.splits"] == 10
    assert not any(key.startswith("kid") for key in FeatureMeasures(small(), ["fid"]).facts())


def pillow(image, size, kind, dtype):
    channels = [
        np.asarray(Image.fromarray(channel.astype(dtype)).resize((size, size), kind))
        for channel in image.numpy()
    ]
    return torch.from_numpy(np.stack(channels)).float()


@pytest.mark.parametrize("size", [(8, 8), (40, 25), (320, 310)])
def test_clean_is_pillows_bicubic_filter_in_floating_point(size):
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator())
    expected = (pillow(image, 299, Image.Resampling.BICUBIC, np.float32) - 128) / 128
    # float64 sums in two orders, rounded to float32
    torch.testing.assert_close(prepare(image[None], "clean")[0], expected, rtol=0, atol=1e-5)


def test_cvq_goes_by_229_pixels_in_bytes():
    image = pictures(1, size=20)[0]
    small_ones = pillow(image, 229, Image.Resampling.BILINEAR, np.uint8)
    wide = torch.nn.functional.interpolate(small_ones[None] / 255, (299, 299), mode="bilinear")
    torch.testing.assert_close(prepare(image[None], "cvq"), 2 * wide - 1)


def test_legacy_and_adm_read_between_pixels_as_they_say():
    ramp = torch.arange(0, 230, 10, dtype=torch.uint8)  # 23 pixels: 299 = 13 × 23
    image = ramp.expand(1, 1, 23, 23).contiguous()
    adm = (prepare(image, "adm")[0, 0, 100] * 128) + 128
    # pixel i reads at i / 13, and beyond the last pixel's centre its value is repeated
    expected = (torch.arange(299) / 13 * 10).clamp(max=220)
    torch.testing.assert_close(adm, expected, rtol=0, atol=1e-3)
    legacy = (prepare(image, "legacy")[0, 0, 100] + 1) * 127.5
    expected = ((torch.arange(299) + 0.5) / 13 * 10 - 5).clamp(0, 220)
    torch.testing.assert_close(legacy, expected, rtol=0, atol=1e-3)
    assert prepare(image, "legacy").shape == (1, 3, 299, 299)


def test_other_images_and_modes_are_refused():
    with pytest.raises(ValueError, match=r"resize='clear': expected one of 'clean', 'legacy'"):
        small("clear")
    for images in (torch.zeros(1, 3, 8, 8), pictures(1, channels=2), pictures(1)[0]):
        with pytest.raises(ValueError, match=r"expected uint8 \(B, 1 or 3, H, W\)"):
            prepare(images, "clean")
    with pytest.raises(ValueError, match="3 images against 2 originals"):
        FeatureMeasures(small(), ["fid"]).update(pictures(3), pictures(2))
