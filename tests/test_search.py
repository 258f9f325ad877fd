"""`vqkit.search` against naive float64 references; ids are compared exactly, near ties left out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_reference import BACKENDS, HAS_FAISS, clear_rows, random_pair, reference_scores

from vqkit.search import METRICS, blocked, nearest, nearest_k, nearest_with_scores
from vqkit.search.nearest import NEAR_TIE


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("dim", [1, 2, 4, 8, 15])
def test_ids_are_those_of_the_naive_search(backend, metric, dim):
    for num_codes in (1, 2, 5, 33, 64, 300):
        vectors, codes = random_pair(200, num_codes, dim, seed=num_codes)
        # torch decides near ties in float64, so there only the reference's own rounding is excused
        factor = 1e-14 if backend == "torch" else NEAR_TIE
        clear = clear_rows(vectors, codes, metric, factor)
        if dim > 1:
            assert clear.float().mean() > 0.9
        expected = reference_scores(vectors, codes, metric).argmax(1)
        ids = nearest(vectors, codes, metric, backend=backend)
        assert ids.dtype == torch.int64
        assert torch.equal(ids[clear], expected[clear])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("dim", "num_codes"), [(17, 100), (64, 700), (100, 513), (256, 64)])
def test_many_dimensions(metric, dim, num_codes):
    vectors, codes = random_pair(150, num_codes, dim)
    expected = reference_scores(vectors, codes, metric)
    ids, scores = nearest_with_scores(vectors, codes, metric)
    assert torch.equal(ids, expected.argmax(1))
    # scores are float64 rounded once, so one float32 step is all they may be off
    torch.testing.assert_close(scores, expected.amax(1).float(), rtol=2e-7, atol=1e-7)
    assert scores.dtype == torch.float32


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    num_vectors=st.integers(0, 40),
    num_codes=st.integers(1, 90),
    dim=st.integers(1, 20),
    groups=st.integers(0, 3),
    metric=st.sampled_from(METRICS),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_any_shape_finds_a_best_code(num_vectors, num_codes, dim, groups, metric, dtype):
    generator = torch.Generator().manual_seed(num_vectors + 100 * num_codes + 10000 * dim)
    lead = (groups,) if groups else ()
    vectors = torch.randn(*lead, num_vectors, dim, generator=generator).to(dtype)
    codes = torch.randn(*lead, num_codes, dim, generator=generator).to(dtype)
    ids, scores = nearest_with_scores(vectors, codes, metric)
    assert ids.shape == scores.shape == (*lead, num_vectors)
    flat = [(vectors, codes, scores)] if not groups else zip(vectors, codes, scores, strict=True)
    for z, c, got in flat:
        best = reference_scores(z, c, metric).amax(1)
        # a near tie may be lost by the stated bound, nothing more
        scale = z.double().square().sum(1) + c.double().square().sum(1).max() + 1
        assert bool(((best - got.double()).abs() <= 2 * NEAR_TIE * scale).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_mean_a_thousand_times_the_spread(backend):
    vectors, codes = random_pair(500, 256, 4, mean=1000.0)
    clear = clear_rows(vectors, codes, "l2")
    expected = reference_scores(vectors, codes, "l2").argmax(1)
    naive = (-2 * vectors @ codes.T + codes.square().sum(1)).argmin(1)
    assert (naive != expected).float().mean() > 0.1, "the case must be hard for it to mean anything"
    ids = nearest(vectors, codes, backend=backend)
    assert clear.float().mean() > 0.95
    assert torch.equal(ids[clear], expected[clear])
    doubled = nearest(vectors.double() + 1e8, codes.double() + 1e8, backend=backend)
    assert (doubled == expected)[clear].float().mean() > 0.99  # 1e8 costs float64 some digits too


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_equal_codes_go_to_the_lowest_id(backend, metric):
    generator = torch.Generator().manual_seed(3)
    for dim in (1, 3, 4, 8, 12, 15):
        for num_codes in (2, 17, 31, 64, 100, 129):
            vectors, codes = random_pair(100, num_codes, dim, seed=dim)
            source = torch.randint(num_codes, (num_codes,), generator=generator)
            codes = codes[source]  # about a third of the codes are copies, anywhere
            first = torch.tensor([source.tolist().index(s) for s in source.tolist()])
            ids = nearest(vectors, codes, metric, backend=backend)
            assert torch.equal(first[ids], ids)


@pytest.mark.parametrize("backend", BACKENDS)
def test_collapsed_codebook(backend):
    vectors, codes = random_pair(5000, 700, 4)
    codes[:] = codes[3]
    assert int(nearest(vectors, codes, backend=backend).max()) == 0


def test_exact_ties_go_to_the_lowest_id_on_torch():
    codes = torch.tensor([[1.0], [-1.0], [3.0], [1.0]])
    vectors = torch.tensor([[0.0], [2.0], [-5.0], [1.0], [10.0]])
    assert nearest(vectors, codes, backend="torch").tolist() == [0, 0, 1, 0, 2]
    ids, scores = nearest_k(vectors, codes, 4)
    assert ids.tolist() == [[0, 1, 3, 2], [0, 2, 3, 1], [1, 0, 3, 2], [0, 3, 1, 2], [2, 0, 3, 1]]
    assert scores[1].tolist() == [-1.0, -1.0, -1.0, -9.0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("metric", ["l2", pytest.param("cosine", marks=pytest.mark.slow)])
def test_batch_size_never_matters(backend, metric):
    # clustered data, so that near ties are many
    vectors, codes = random_pair(150, 200, 8)
    codes = codes[:20].repeat(10, 1) + 1e-7 * codes
    whole = nearest_with_scores(vectors, codes, metric, backend=backend)
    for size in (1, 3, 16, 128):
        parts = [
            nearest_with_scores(v, codes, metric, backend=backend) for v in vectors.split(size)
        ]
        assert torch.equal(torch.cat([p[0] for p in parts]), whole[0])
        assert torch.equal(torch.cat([p[1] for p in parts]), whole[1])


@pytest.mark.parametrize("dim", [4, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("metric", METRICS)
def test_block_size_never_matters(monkeypatch, dim, metric):
    vectors, codes = random_pair(40, 420, dim)
    codes = codes[:60].repeat(7, 1) + 1e-6 * codes
    whole, whole_k = (
        nearest(vectors, codes, metric, backend="torch"),
        nearest_k(vectors, codes, 5, metric),
    )
    for width, scores, pairs in ((64, 64, 2**19), (96, 5000, 50), (32, 10**6, 2**19)):
        monkeypatch.setattr(blocked, "CODES_IN_BLOCK", width)
        monkeypatch.setattr(blocked, "SCORES_IN_BLOCK", scores)
        monkeypatch.setattr(blocked, "PAIRS", pairs)
        assert torch.equal(nearest(vectors, codes, metric, backend="torch"), whole)
        assert torch.equal(nearest_k(vectors, codes, 5, metric)[0], whole_k[0])


def test_screen_in_bf16_changes_nothing():
    vectors, codes = random_pair(200, 600, 64)
    codes = codes[:300].repeat(2, 1) + 1e-3 * codes
    expected = reference_scores(vectors, codes, "l2").argmax(1)
    for backend in ("torch", "bf16"):
        assert torch.equal(nearest(vectors, codes, backend=backend), expected)


def test_autocast_and_lowered_matmul_precision_change_nothing():
    vectors, codes = random_pair(200, 100, 32)
    expected = reference_scores(vectors, codes, "l2").argmax(1)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(nearest(vectors, codes, backend="torch"), expected)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(not HAS_FAISS, reason="faiss is optional")
def test_backends_agree_except_in_near_ties():
    for dim in (1, 4, 16):
        vectors, codes = random_pair(1000, 300, dim, seed=dim)
        by_torch = nearest(vectors, codes, backend="torch")
        by_faiss = nearest(vectors, codes, backend="faiss")
        clear = clear_rows(vectors, codes, "l2")
        assert torch.equal(by_torch[clear], by_faiss[clear])
        assert (by_torch == by_faiss).float().mean() > 0.99


@pytest.mark.skipif(not HAS_FAISS, reason="faiss is optional")
def test_faiss_settings_are_restored():
    import faiss

    before = faiss.cvar.distance_compute_blas_threshold, faiss.omp_get_max_threads()
    nearest(*random_pair(10, 5, 2), backend="faiss")
    assert (faiss.cvar.distance_compute_blas_threshold, faiss.omp_get_max_threads()) == before


@pytest.mark.parametrize("dim", [4, 24])
def test_groups_equal_a_loop(dim):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(3, 50, dim, generator=generator)
    codes = (
        torch.randn(3, 40, dim, generator=generator)
        + torch.tensor([0.0, 5.0, 100.0])[:, None, None]
    )
    for metric in METRICS:
        ids, scores = nearest_with_scores(vectors, codes, metric)
        ids_k, scores_k = nearest_k(vectors, codes, 3, metric)
        assert ids_k.shape == scores_k.shape == (3, 50, 3)
        for group in range(3):
            one = nearest_with_scores(vectors[group], codes[group], metric)
            assert torch.equal(ids[group], one[0])
            assert torch.equal(scores[group], one[1])
            assert torch.equal(ids_k[group], nearest_k(vectors[group], codes[group], 3, metric)[0])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("num_codes", "k"), [(7, 7), (300, 1), (300, 4), (2500, 60)])
def test_nearest_k(metric, num_codes, k):
    vectors, codes = random_pair(40, num_codes, 6)
    expected = reference_scores(vectors, codes, metric).sort(descending=True, stable=True)
    ids, scores = nearest_k(vectors, codes, k, metric)
    assert torch.equal(ids, expected.indices[:, :k])
    torch.testing.assert_close(scores, expected.values[:, :k].float(), rtol=2e-7, atol=1e-7)


def test_closest_anchor_is_the_swapped_search():
    vectors, codes = random_pair(5000, 16, 4)
    rows, scores = nearest_with_scores(codes, vectors)
    expected = reference_scores(vectors, codes, "l2").max(dim=0)
    assert torch.equal(rows, expected.indices)
    torch.testing.assert_close(scores, expected.values.float(), rtol=2e-7, atol=1e-7)
