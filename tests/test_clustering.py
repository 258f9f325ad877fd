"""k-means against the equations, against scikit-learn, and at its edges."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqkit.clustering import KMeansSettings, kmeans
from vqkit.clustering.draws import Purpose, distinct_rows, order, words
from vqkit.clustering.minibatch import Batches
from vqkit.search.nearest import NEAR_TIE


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator)


def blobs(generator, num_blobs=20, each=100, dim=5, spread=0.02):
    """Tight clusters, and their middles."""
    middles = normal(generator, num_blobs, dim)
    noise = spread * normal(generator, num_blobs, each, dim)
    vectors = (middles[:, None] + noise).flatten(0, 1)
    return vectors[torch.randperm(len(vectors), generator=generator)], middles


def distances(vectors, centres):
    """Squared distances (N, K) in float64, pair by pair."""
    return (vectors.double()[:, None] - centres.double()[None]).square().sum(-1)


def naive_lloyd(vectors, centres, iterations):
    """Lloyd's algorithm as it is defined; centres float64, inertia before every update."""
    inertia = []
    centres = centres.double()
    for _ in range(iterations):
        best, ids = distances(vectors, centres).min(1)
        inertia.append(float(best.sum()))
        for k in range(len(centres)):
            if (ids == k).any():
                centres[k] = vectors[ids == k].double().mean(0)
    return centres, inertia


def final_inertia(vectors, centres):
    return float(distances(vectors, centres).amin(1).sum())


def silent(vectors, num_clusters, **settings):
    return kmeans(vectors, num_clusters, progress=False, **settings)


def bits(clustering):
    """What two equal runs have in common: all but the seconds."""
    iterations = [(i.inertia, i.moved, i.repaired) for i in clustering.report.iterations]
    return (
        clustering.centres.numpy().tobytes(),
        clustering.sizes.tolist(),
        iterations,
        clustering.report.converged,
        clustering.report.unused,
    )


@pytest.mark.parametrize(("dim", "shift"), [(3, 0.0), (3, 1000.0), (20, 0.0), (20, 1000.0)])
def test_lloyd_is_the_algorithm_of_the_equations(dim, shift, generator):
    vectors = normal(generator, 600, dim) + shift
    start = vectors[:12].clone()
    found = silent(vectors, 12, init=start, iterations=6)
    centres, inertia = naive_lloyd(vectors, start, 6)
    # Centres are rounded to float32 after every iteration; inertia is a sum in float64.
    torch.testing.assert_close(found.centres, centres.float(), rtol=1e-6, atol=1e-5)
    assert [i.inertia for i in found.report.iterations] == pytest.approx(inertia, rel=2e-5)
    assert found.report.iterations[0].inertia == pytest.approx(inertia[0], rel=1e-9)
    assert int(found.sizes.sum()) == 600


@pytest.mark.parametrize("outlier", [1e3, 1e5, 1e7])
def test_inertia_stays_exact_beside_outliers(outlier, generator):
    """Inertia comes from sums over all vectors, where an outlier's square is 1e14 times others'."""
    vectors = normal(generator, 2000, 6)
    vectors[5], vectors[6] = outlier, -outlier
    start = vectors[:50].clone()
    found = silent(vectors, 50, init=start, iterations=1)
    nearest = distances(vectors, start).amin(1)
    assert found.report.inertia == pytest.approx(float(nearest.sum()), rel=2e-5)


def test_by_hand():
    vectors = torch.tensor([[0.0], [1.0], [10.0], [12.0]])
    found = silent(vectors, 2, init=torch.tensor([[0.0], [1.0]]))
    # Ids 0 1 1 1, then 0 0 1 1 around 0 and 23/3, then the same around 1/2 and 11.
    assert found.centres.tolist() == [[0.5], [11.0]]
    assert found.sizes.tolist() == [2, 2]
    inertia = [i.inertia for i in found.report.iterations]
    assert inertia == pytest.approx([81 + 121, 1 + 49 / 9 + 169 / 9, 0.25 + 0.25 + 1 + 1])
    assert [i.moved for i in found.report.iterations] == [1.0, 0.25, 0.0]
    assert found.report.converged
    assert found.report.inertia == 2.5


@pytest.mark.parametrize(("num_vectors", "dim", "num_clusters"), [(3000, 2, 30), (2000, 24, 50)])
def test_equals_scikit_learn(num_vectors, dim, num_clusters, generator):
    cluster = pytest.importorskip("sklearn.cluster")
    vectors = normal(generator, num_vectors, dim)
    start = vectors[:num_clusters].clone()
    theirs = cluster.KMeans(
        num_clusters, init=start.numpy(), n_init=1, max_iter=15, tol=0, algorithm="lloyd"
    ).fit(vectors.numpy())
    ours = silent(vectors, num_clusters, init=start, iterations=15)
    np.testing.assert_allclose(ours.centres.numpy(), theirs.cluster_centers_, atol=2e-5)
    assert final_inertia(vectors, ours.centres) == pytest.approx(theirs.inertia_, rel=1e-5)


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_empty_centres_move_where_scikit_learn_moves_them(generator):
    cluster = pytest.importorskip("sklearn.cluster")
    vectors, _ = blobs(generator, num_blobs=6, each=40, dim=3)
    start = torch.cat([vectors[:3], torch.full((3, 3), 30.0) + torch.arange(3.0)[:, None]])
    theirs = cluster.KMeans(6, init=start.numpy(), n_init=1, max_iter=1, tol=0).fit(vectors.numpy())
    ours = silent(vectors, 6, init=start, iterations=1)
    assert ours.report.iterations[0].repaired == 3
    by_row = [sorted(map(tuple, c)) for c in (ours.centres.numpy(), theirs.cluster_centers_)]
    np.testing.assert_allclose(*by_row, atol=1e-5)
    better = silent(vectors, 6, init=start, iterations=20)
    assert int(better.sizes.min()) > 0
    assert better.report.unused == 0


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_shape_ends_well(data):
    num_vectors = data.draw(st.integers(1, 60))
    num_clusters = data.draw(st.integers(1, num_vectors))
    dim = data.draw(st.integers(1, 20))
    distinct = data.draw(st.integers(1, num_vectors))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    scale = data.draw(st.sampled_from([1e-15, 1.0, 1e15]))
    rows = scale * normal(generator, distinct, dim)
    vectors = rows[torch.randint(distinct, (num_vectors,), generator=generator)]
    algorithm = data.draw(st.sampled_from(["lloyd", "minibatch"]))
    init = data.draw(st.sampled_from(["random", "k-means++"]))
    found = silent(vectors, num_clusters, init=init, algorithm=algorithm, iterations=8)
    assert found.centres.shape == (num_clusters, dim)
    assert found.centres.isfinite().all()
    inertia = [i.inertia for i in found.report.iterations]
    total = float(distances(vectors, vectors.double().mean(0, keepdim=True)).sum())
    if algorithm == "lloyd":
        assert int(found.sizes.sum()) == num_vectors
        near_ties = 2 * NEAR_TIE * total  # may be decided either way
        assert all(b <= a + near_ties + 1e-6 * a for a, b in pairwise(inertia))
        exact = final_inertia(vectors, found.centres)
        assert exact <= inertia[-1] * (1 + 1e-5) + near_ties
        assert int((found.sizes == 0).sum()) == found.report.unused
        apart = (vectors / scale * 100).round().unique(dim=0)  # no near ties among these
        assert found.report.unused <= max(0, num_clusters - len(apart))


def test_as_many_centres_as_vectors(generator):
    vectors = normal(generator, 40, 3)
    found = silent(vectors, 40)
    assert found.sizes.tolist() == [1] * 40
    assert found.report.converged
    assert final_inertia(vectors, found.centres) == 0
    assert found.report.inertia == pytest.approx(0, abs=1e-9)


def test_one_centre_is_the_mean(generator):
    vectors = normal(generator, 500, 4)
    found = silent(vectors, 1)
    torch.testing.assert_close(found.centres[0], vectors.double().mean(0).float())
    assert len(found.report.iterations) == 2


def test_fewer_different_vectors_than_centres(generator):
    vectors = normal(generator, 5, 3).repeat(20, 1)
    for init in ("random", "k-means++"):
        found = silent(vectors, 8, init=init, iterations=50)
        assert found.report.converged
        assert len(found.report.iterations) < 10
        assert found.report.unused == 3
        assert final_inertia(vectors, found.centres) == pytest.approx(0, abs=1e-10)
        assert "3 left" in found.summary()


@pytest.mark.parametrize("algorithm", ["lloyd", "minibatch"])
@pytest.mark.parametrize("init", ["random", "k-means++"])
def test_blocks_do_not_matter_and_seeds_do(algorithm, init, generator):
    vectors = normal(generator, 700, 6)
    options = {"init": init, "algorithm": algorithm, "iterations": 5}
    whole = silent(vectors, 300, **options)
    assert bits(silent(vectors, 300, block_rows=64, **options)) == bits(whole)
    assert bits(silent(vectors, 300, block_rows=699, **options)) == bits(whole)
    assert bits(silent(vectors, 300, seed=1, **options)) != bits(whole)


def test_threads_do_not_matter(generator):
    vectors = normal(generator, 3000, 24)
    one = silent(vectors, 70, iterations=2)
    torch.set_num_threads(2)
    try:
        two = silent(vectors, 70, iterations=2)
    finally:
        torch.set_num_threads(1)
    assert bits(one) == bits(two)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_type_is_used_as_float32(dtype, generator):
    vectors = normal(generator, 500, 5).to(dtype)
    found = silent(vectors, 20, iterations=4)
    assert found.centres.dtype == torch.float32
    assert bits(found) == bits(silent(vectors.float(), 20, iterations=4))


def test_noncontiguous_vectors_and_gradients(generator):
    vectors = normal(generator, 5, 400).T.requires_grad_()
    found = silent(vectors, 10, iterations=3)
    assert bits(found) == bits(silent(vectors.detach().contiguous(), 10, iterations=3))
    assert not found.centres.requires_grad


def test_seeding_finds_every_blob(generator):
    vectors, middles = blobs(generator)
    found = silent(vectors, 20, init="k-means++", iterations=10)
    assert distances(middles, found.centres).amin(1).max() < 0.01
    assert len(distances(middles, found.centres).argmin(1).unique()) == 20


def test_seeding_in_rounds_beats_random_rows(generator):
    """300 centres (beyond one by one) for 200 blobs: random rows leave blobs without any."""
    vectors, middles = blobs(generator, num_blobs=200, each=30, dim=4, spread=1e-3)
    first = {
        init: silent(vectors, 300, init=init, iterations=1).report.inertia
        for init in ("random", "k-means++")
    }
    assert first["k-means++"] < 0.01 * first["random"]
    found = silent(vectors, 300, init="k-means++", iterations=1)
    assert distances(middles, found.centres).amin(1).max() < 0.01


@pytest.mark.slow
def test_seeding_follows_squared_distances():
    """Of 10 rows row 4 is 3 away from the others, row 7 is 1 away."""
    vectors = torch.zeros(10, 1)
    vectors[4], vectors[7] = 3.0, -1.0
    left = {4: 1.0, 7: 9.0}  # inertia if the centres begin there and at the origin
    drawn = {4: 0, 7: 0}
    for seed in range(400):
        inertia = silent(vectors, 2, seed=seed, iterations=1).report.inertia
        for row in drawn:
            drawn[row] += inertia == pytest.approx(left[row], abs=1e-9)
    # The first centre is at the origin 8 times in 10, else the second may go there.
    expected = {4: 0.8 * 9 / 10 + 0.1 * 72 / (72 + 16), 7: 0.8 * 1 / 10 + 0.1 * 8 / (8 + 16)}
    for row, share in expected.items():
        assert abs(drawn[row] - 400 * share) < 3 * math.sqrt(400 * share * (1 - share))


@pytest.mark.parametrize("scale", [2.0**-90, 2.0**64])
@pytest.mark.parametrize("num_clusters", [20, 300])  # one by one, and in rounds
def test_seeding_knows_no_scale(scale, num_clusters, generator):
    """Squares of such values are 0 or infinite in float32."""
    vectors, _ = blobs(generator)
    options = {"init": "k-means++", "iterations": 1}
    normal_sized = silent(vectors, num_clusters, **options)
    scaled = silent(vectors * scale, num_clusters, **options)
    inertia = scaled.report.inertia / scale**2
    assert inertia == pytest.approx(normal_sized.report.inertia, rel=1e-3)


def test_an_outlier_that_would_hide_the_others_is_named(generator):
    vectors = normal(generator, 3000, 20)
    vectors[1234, 2] = -1e12
    with pytest.raises(ValueError, match=r"row 1234 holds 1e\+12 .* differ by about \d"):
        silent(vectors, 5, block_rows=500)
    with pytest.raises(ValueError, match="group 3: vectors: row 1234 holds"):
        silent(vectors, 2, groups=torch.full((3000,), 3), algorithm="minibatch")
    vectors[1234, 2] = -1e7
    found = silent(vectors, 5, iterations=30)
    others = torch.arange(3000) != 1234
    alone = silent(vectors[others], 4, iterations=30)
    inertia = final_inertia(vectors[others], found.centres)
    assert inertia < 1.2 * final_inertia(vectors[others], alone.centres)
    silent(torch.cat([torch.zeros(900, 20), vectors[:5]]), 3)  # most vectors are alike


def test_repairs_without_effect_end(generator):
    """The grid cuts off what little rows have beside large ones, so centres miss them a bit."""
    vectors = torch.cat([torch.full((40, 1), 1e7), torch.full((40, 1), -1e7)])
    vectors = torch.cat([vectors, torch.tensor([[1.23456789e-5]] * 4)])
    start = torch.tensor([[1e7], [-1e7], [0.0], [5e8]])
    found = silent(vectors, 4, init=start, iterations=40)
    assert found.report.converged
    assert len(found.report.iterations) < 6
    assert found.report.unused == 1
    assert int(found.sizes.sum()) == len(vectors)


def test_tolerance_stops_early(generator):
    vectors = normal(generator, 2000, 8)
    full = silent(vectors, 50, iterations=60)
    short = silent(vectors, 50, iterations=60, tolerance=0.01)
    assert short.report.converged
    assert len(short.report.iterations) < len(full.report.iterations)
    last, before = (i.inertia for i in short.report.iterations[:-3:-1])
    assert before - last < 0.01 * before


def test_minibatch_comes_near_to_lloyd(generator):
    vectors, _ = blobs(generator, num_blobs=30, each=200, dim=4, spread=0.3)
    start = vectors[:30].clone()
    lloyd = silent(vectors, 30, init=start, iterations=50)
    options = {"algorithm": "minibatch", "batch_size": 512, "batch_run": 1}
    found = silent(vectors, 30, init=start, iterations=120, **options)
    begin = final_inertia(vectors, start)
    assert final_inertia(vectors, found.centres) < 1.08 * final_inertia(vectors, lloyd.centres)
    assert final_inertia(vectors, found.centres) < 0.7 * begin
    inertia = [i.inertia for i in found.report.iterations]
    assert np.mean(inertia[-20:]) < 0.75 * inertia[0]
    # An estimate of what all vectors have: within the noise of a batch.
    assert inertia[0] == pytest.approx(begin, rel=0.1)


def test_minibatch_of_all_rows_is_the_running_mean(generator):
    vectors = normal(generator, 300, 3)
    start = vectors[:4].clone()
    found = silent(
        vectors, 4, init=start, algorithm="minibatch", batch_size=300, batch_run=300, iterations=2
    )
    centres, counts = start.double(), torch.zeros(4)
    for _ in range(2):
        ids = distances(vectors, centres.float()).argmin(1)
        for k in range(4):
            mine = vectors[ids == k].double()
            counts[k] += len(mine)
            centres[k] += (mine - centres[k]).sum(0) / counts[k]
    torch.testing.assert_close(found.centres, centres.float(), rtol=1e-6, atol=1e-6)
    assert found.sizes.tolist() == counts.tolist()


def test_minibatch_moves_centres_that_nothing_chooses(generator):
    vectors, _ = blobs(generator, num_blobs=8, each=100, dim=3)
    start = torch.cat([vectors[:2], torch.full((6, 3), 1e3)])
    found = silent(
        vectors, 8, init=start, algorithm="minibatch", batch_size=128, batch_run=1, iterations=40
    )
    assert found.report.repaired >= 6
    assert found.report.unused == 0
    assert found.centres.abs().max() < 10


def test_batches_use_every_row_once_before_any_twice():
    options = KMeansSettings(
        num_clusters=2, algorithm="minibatch", batch_size=40, batch_run=10, seed=3
    )
    batches = Batches(options, 200)
    epoch = torch.cat([batches.rows(step) for step in range(5)])
    assert epoch.sort().values.tolist() == list(range(200))
    assert (batches.rows(5) != batches.rows(0)).any()
    ragged = Batches(options, 203)  # the last run has three rows
    rows = torch.cat([ragged.rows(step) for step in range(6)])
    assert set(range(203)) == set(rows.tolist())


def test_draws_depend_on_their_place_alone():
    whole = words(5, Purpose.BATCH, 2, 0, 103)
    parts = [words(5, Purpose.BATCH, 2, a, b) for a, b in ((0, 3), (3, 50), (50, 51), (51, 103))]
    assert np.array_equal(np.concatenate(parts), whole)
    assert len(np.unique(whole)) == 103
    others = [words(s, p, t, 0, 103) for s, p, t in ((6, 4, 2), (5, 3, 2), (5, 4, 3))]
    assert not any(np.isin(other, whole).any() for other in others)
    for count, total in ((1, 1), (5, 5), (5, 1000), (300, 1000)):
        rows = distinct_rows(1, Purpose.SAMPLE, 0, count, total)
        assert len(rows.unique()) == count
        assert 0 <= int(rows.min()) <= int(rows.max()) < total
    assert order(1, Purpose.BATCH, 0, 50).sort().values.tolist() == list(range(50))


def test_rows_are_drawn_evenly():
    hits = torch.zeros(100)
    for seed in range(2000):
        hits[distinct_rows(seed, Purpose.SAMPLE, 0, 10, 100)] += 1
    # 200 ± 13.4 each; the sum of squared deviations is about chi-square with 99 degrees.
    assert 60 < float(((hits - 200) ** 2 / 180).sum()) < 145


HALVES = torch.arange(10) % 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_clusters": 11}, "num_clusters=11: there are only 10 vectors"),
        ({"num_clusters": 0}, "num_clusters=0: must be a whole number"),
        ({"num_clusters": [2, 2]}, "several are for groups"),
        ({"iteration": 3}, "iteration=3: did you mean iterations"),
        ({"spam": 3}, "spam=3: settings are num_clusters"),
        ({"iterations": 0}, "iterations=0"),
        ({"algorithm": "elkan"}, "algorithm='elkan': expected one of 'lloyd', 'minibatch'"),
        (
            {"init": "kmeans++"},
            "init='kmeans++': expected one of 'random', 'k-means++', or the first centres (K, D)",
        ),
        ({"init": [[1.0], [2.0, 3.0]]}, "need floating point centres (K, 4)"),
        ({"init": ["a", "b"]}, "need floating point centres (K, 4)"),
        ({"init": torch.full((2, 4), 1e300, dtype=torch.float64)}, "init: holds values"),
        ({"init": np.ma.zeros((2, 4))}, "init: is a masked array"),
        ({"groups": np.ma.zeros(10, int)}, "groups: is a masked array"),
        ({"groups": {0: [1]}}, "groups: type object: need whole numbers"),
        ({"groups": ["a"] * 10}, "need whole numbers"),
        ({"num_clusters": 2.0}, "num_clusters=2.0: must be one whole number"),
        ({"num_clusters": True}, "num_clusters=True: must be a whole number"),
        ({"num_clusters": "2", "groups": HALVES}, "num_clusters='2': need a whole number"),
        ({"num_clusters": 2.0, "groups": HALVES}, "num_clusters=2.0: need a whole number"),
        ({"num_clusters": {0: 2, 1: 2}, "groups": HALVES}, "num_clusters={0: 2, 1: 2}: need"),
        ({"num_clusters": [2, 0], "groups": HALVES}, "num_clusters=0: need a whole number of at"),
        ({"num_clusters": [2, 1.5], "groups": HALVES}, "num_clusters=1.5: need a whole number"),
        ({"tolerance": "0.1"}, "tolerance='0.1': must be a number in [0, 1)"),
        ({"tolerance": None}, "tolerance=None: must be a number"),
        ({"tolerance": math.nan}, "tolerance=nan"),
        ({"save_seconds": "1"}, "save_seconds='1': must be a number"),
        ({"seed": 2**63}, "must be a whole number below 2^63"),
        ({"seed": 1.0}, "seed=1.0: must be a whole number"),
        ({"iterations": 2.5}, "iterations=2.5: must be a whole number"),
        ({"init": "given"}, "pass the first centres themselves"),
        ({"init": torch.zeros(3, 2)}, "init=(3, 2)"),
        ({"init": torch.zeros(3, 4)}, "init: 3 centres: need 2"),
        ({"init": torch.full((2, 4), math.nan)}, "init: holds values that are not finite"),
        ({"seed": -1}, "seed=-1"),
        ({"tolerance": 1.0}, "tolerance=1.0"),
        ({"tolerance": 0.1, "algorithm": "minibatch"}, "tolerance=0.1 with algorithm='minibatch'"),
        ({"batch_size": 5}, "batch_size=5 with algorithm='lloyd': has no effect"),
        ({"save_seconds": -1.0}, "save_seconds=-1.0"),
        ({"device": "spam"}, "device='spam': is no device of torch"),
        ({"device": "meta"}, "device='meta': use 'cpu' or 'cuda'"),
        ({"column": "x"}, "column='x': only parquet shards"),
        ({"groups": "label"}, "groups='label': only parquet shards"),
        ({"groups": torch.zeros(9).long()}, "groups=(9,)"),
        ({"groups": torch.zeros(10)}, "need a whole number for each"),
        ({"groups": np.zeros(10)}, "groups: type float64"),
    ],
)
def test_bad_arguments_are_named(options, message):
    values = {"num_clusters": 2, **options}
    with pytest.raises(ValueError) as error:
        kmeans(torch.zeros(10, 4), **values)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (torch.zeros(10), "vectors=(10,)"),
        (torch.zeros(2, 3, 4), "vectors=(2, 3, 4)"),
        (torch.zeros(10, 0), "vectors=(10, 0)"),
        (torch.zeros(10, 3).long(), "vectors.dtype=torch.int64"),
        (np.zeros((10, 3), np.int32), "type int32"),
        ([[1.0]], "list holds no vectors"),
        (torch.zeros(0, 3), "there are only 0 vectors"),
        (np.ma.zeros((10, 3)), "vectors: is a masked array"),
    ],
)
def test_what_is_no_vectors_is_refused(vectors, message):
    with pytest.raises(ValueError) as error:
        silent(vectors, 1)
    assert message in str(error.value)


def test_no_vectors_in_no_groups():
    with pytest.raises(ValueError, match="there are only 0 vectors"):
        silent(torch.zeros(0, 3), 1, groups=torch.zeros(0).long())


def test_numbers_of_numpy_are_numbers(generator):
    vectors = normal(generator, 300, 3)
    plain = silent(vectors, 4, iterations=3, seed=2, tolerance=0.25)
    theirs = silent(
        vectors, np.int64(4), iterations=np.int32(3), seed=np.uint8(2), tolerance=np.float32(0.25)
    )
    assert bits(theirs) == bits(plain)
    labels = torch.arange(300) % 2
    by_group = bits(silent(vectors, [4, 5], groups=labels))
    assert bits(silent(vectors, np.array([4, 5]), groups=labels.tolist())) == by_group
    assert bits(silent(vectors, torch.tensor([4, 5]), groups=labels)) == by_group
    assert bits(silent(vectors, (np.int32(4), 5), groups=labels)) == by_group


def test_first_centres_may_be_lists(generator):
    vectors = normal(generator, 300, 3)
    start = vectors[:4]
    expected = bits(silent(vectors, 4, init=start))
    assert bits(silent(vectors, 4, init=start.tolist())) == expected
    assert bits(silent(vectors, 4, init=start.numpy()[::-1][::-1])) == expected


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_named(value, generator):
    vectors = normal(generator, 100, 3)
    vectors[37, 1] = value
    vectors[90, 2] = value
    with pytest.raises(ValueError, match=r"row 37 holds a value that is not a finite float32"):
        silent(vectors, 4, block_rows=16)
    with pytest.raises(ValueError, match="group 7: vectors: row 40 holds"):
        silent(vectors[50:], 2, groups=torch.full((50,), 7))


def test_float64_that_float32_cannot_hold(generator):
    vectors = normal(generator, 100, 3).double()
    vectors[5] = 1e300
    with pytest.raises(ValueError, match="row 5 holds a value that is not a finite float32"):
        silent(vectors, 4)
    far = normal(generator, 100, 3).double()
    far[:, 2] += 1e8
    with pytest.raises(ValueError, match=r"column 2 lies in .* subtract its mean first"):
        silent(far, 4)
    silent(normal(generator, 100, 3).double() + 1e3, 4)


def test_groups_are_clustered_by_themselves(generator):
    vectors = normal(generator, 600, 4)
    labels = torch.randint(4, (600,), generator=generator) * 7 - 3  # -3, 4, 11, 18
    counts = [3, 5, 1, 8]
    by_label = list(zip((-3, 4, 11, 18), counts, strict=True))
    starts = torch.cat([vectors[labels == label][:count] for label, count in by_label])
    found = silent(vectors, counts, groups=labels, iterations=6)
    assert found.groups.tolist() == [-3] * 3 + [4] * 5 + [11] + [18] * 8
    assert found.report.num_vectors == 600
    for label, count in by_label:
        mine = vectors[labels == label]
        part = found.centres[found.groups == label]
        assert int(found.sizes[found.groups == label].sum()) == len(mine)
        given = silent(vectors, counts, groups=labels.numpy(), init=starts, iterations=6)
        alone = silent(mine, count, init=mine[:count], iterations=6)
        assert torch.equal(given.centres[given.groups == label], alone.centres)
        assert final_inertia(mine, part) < 1.5 * final_inertia(mine, alone.centres) + 1e-9


def test_report_of_groups_adds_up(generator):
    vectors = normal(generator, 300, 2)
    labels = torch.arange(300) % 3
    starts = torch.cat([vectors[labels == g][:4] for g in range(3)])
    found = silent(vectors, 4, groups=labels, init=starts, iterations=30)
    parts = [
        silent(vectors[labels == g], 4, init=starts[4 * g : 4 * g + 4], iterations=30)
        for g in range(3)
    ]
    assert len(found.report.iterations) == max(len(p.report.iterations) for p in parts)
    assert found.report.inertia == pytest.approx(sum(p.report.inertia for p in parts))
    assert found.report.iterations[0].moved == 1.0
    assert found.report.converged == all(p.report.converged for p in parts)


def test_a_group_with_too_few_vectors_is_named():
    with pytest.raises(ValueError, match="num_clusters=4: group 9 has only 3 vectors"):
        silent(torch.randn(10, 2), 4, groups=torch.tensor([1] * 7 + [9] * 3))
    with pytest.raises(ValueError, match="there are 2 groups"):
        silent(torch.randn(10, 2), [1, 1, 1], groups=torch.tensor([1] * 7 + [9] * 3))


def test_summary_states_the_facts(generator):
    found = silent(normal(generator, 300, 2), 4, iterations=3)
    lines = found.summary().splitlines()
    assert lines[0].startswith("300 vectors, 4 centres, 3 iterations")
    assert len(lines) == 3 + 3
    assert found.report.to_json()["iterations"][0]["moved"] == 1.0
    batches = silent(normal(generator, 300, 2), 4, iterations=3, algorithm="minibatch")
    assert batches.summary().splitlines()[1].startswith("vectors in each mean, over all batches: ")


def test_progress_tells_the_time_left():
    import io

    from vqkit.clustering.progress import Progress

    stream, now = io.StringIO(), [0.0]
    progress = Progress(1000, stream, every=10.0, clock=lambda: now[0])
    progress.skip(200)
    for second in (4.0, 8.0, 12.0, 13.0):
        now[0] = second
        progress.tick(100)
    assert stream.getvalue() == "k-means: 50.0 % done, 0:20 left\n"
