"""What a program around the search may have set or may do at once changes no id and no type."""

import threading

import pytest
import torch
from search_reference import BACKENDS, HAS_FAISS, random_pair

from vqkit.search import (
    METRICS,
    code_counts_and_sums,
    nearest,
    nearest_k,
    nearest_with_scores,
    sample_softmax_rows,
)


@pytest.fixture
def restored():
    """Global settings of torch as they were."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    precision = torch.get_float32_matmul_precision()
    yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch.set_flush_denormal(False)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_default_type(dtype):
    vectors, codes = random_pair(60, 90, 8)
    uniforms = torch.linspace(0, 0.99, 90)
    ids = torch.arange(60) % 7

    def everything():
        for metric in METRICS:
            for backend in ("torch", "bf16", *(["faiss"] if HAS_FAISS and metric != "dot" else [])):
                yield nearest_with_scores(vectors, codes, metric, backend=backend)
            yield nearest_k(vectors, codes, 5, metric)
            yield (sample_softmax_rows(vectors, codes, uniforms, metric),)
        yield code_counts_and_sums(vectors, ids, 7)
        yield code_counts_and_sums(vectors.half(), ids, 7)

    expected = list(everything())
    torch.set_default_dtype(dtype)
    for before, now in zip(expected, everything(), strict=True):
        for a, b in zip(before, now, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dim", [4, 16])
def test_threads_precision_autocast_and_denormals(backend, dim):
    vectors, codes = random_pair(3000, 700, dim)
    codes = codes[:100].repeat(7, 1) + 1e-5 * codes
    expected = nearest(vectors, codes, backend=backend)
    with torch.inference_mode():
        assert torch.equal(nearest(vectors, codes, backend=backend), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ids, scores = nearest_with_scores(vectors, codes, backend=backend)
    assert torch.equal(ids, expected)
    assert scores.dtype == torch.float32
    torch.set_flush_denormal(True)
    assert torch.equal(nearest(vectors, codes, backend=backend), expected)
    if backend != "faiss":  # in near ties threads may matter to it
        torch.set_num_threads(2)
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(nearest(vectors, codes, backend=backend), expected)


@pytest.mark.skipif(not HAS_FAISS, reason="faiss is optional")
def test_threads_of_python_share_the_settings_of_faiss():
    import faiss

    before = faiss.cvar.distance_compute_blas_threshold
    vectors, codes = random_pair(6000, 300, 8)
    codes = codes[:30].repeat(10, 1) + 1e-6 * codes  # near ties show another way of rounding
    expected = nearest(vectors, codes, backend="faiss")
    wrong = []

    def work(start):
        for size in range(start, 6000, 997):
            if not torch.equal(nearest(vectors[:size], codes, backend="faiss"), expected[:size]):
                wrong.append(size)

    threads = [threading.Thread(target=work, args=(start,)) for start in (100, 300, 500, 700)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert faiss.cvar.distance_compute_blas_threshold == before
