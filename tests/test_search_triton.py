"""The CUDA kernels of `vqkit.search` in Triton's interpreter, against float64 references.

Triton decides when it is imported whether it interprets, so everything here runs in a process of
its own, started by `test_in_the_interpreter`; without Triton that one is skipped.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_reference import clear_rows, random_pair, reference_scores
from torch.utils._python_dispatch import TorchDispatchMode

from vqkit.search import METRICS, cuda, nearest, nearest_with_scores
from vqkit.search.nearest import NEAR_TIE

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
inside = pytest.mark.skipif(not INTERPRETED, reason="runs inside test_in_the_interpreter")


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="would start itself")
def test_in_the_interpreter():
    pytest.importorskip("triton")
    here = Path(__file__).resolve()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(here)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=here.parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def search(vectors, codes, metric="l2"):
    """Ids (N,) or (G, N) by the kernels."""
    grouped = vectors.dim() == 3
    ids = cuda.nearest(*((vectors, codes) if grouped else (vectors[None], codes[None])), metric)
    assert ids.dtype == torch.int64
    return ids if grouped else ids[0]


def assert_best(vectors, codes, metric="l2"):
    """Exact in float64 or beyond 16 dimensions; else near ties (of float32) may be lost."""
    ids = search(vectors, codes, metric)
    scores = reference_scores(vectors, codes, metric)
    found = scores.gather(1, ids[:, None])[:, 0]
    best = scores.amax(1)
    if codes.shape[1] > cuda.FEW or torch.float64 in (vectors.dtype, codes.dtype):
        assert bool((best - found <= 1e-12 * (1 + best.abs())).all())
        clear = clear_rows(vectors, codes, metric, 1e-12)
    else:
        clear = clear_rows(vectors, codes, metric)
    assert clear.float().mean() > 0.9, "the case must decide something"
    assert torch.equal(ids[clear], scores.argmax(1)[clear])
    return ids


@inside
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("num_vectors", "num_codes", "dim"),
    [
        (5, 2, 2),
        (70, 300, 4),
        (40, 129, 8),
        (33, 257, 13),
        (9, 64, 16),
        (70, 300, 17),
        (40, 129, 64),
        (30, 257, 100),
        (20, 140, 256),
        (17, 600, 300),
    ],
)
def test_ids_are_those_of_the_naive_search(num_vectors, num_codes, dim, metric):
    assert_best(*random_pair(num_vectors, num_codes, dim, seed=dim), metric)


@inside
@pytest.mark.parametrize("dim", [4, 40])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_may_differ(dim, dtype):
    vectors, codes = random_pair(30, 200, dim)
    assert_best(vectors.to(dtype), codes.to(dtype))
    assert_best(vectors.to(dtype), codes)
    assert_best(vectors, codes.to(dtype))


@inside
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    num_vectors=st.integers(0, 12),
    num_codes=st.integers(1, 150),
    dim=st.integers(1, 36),
    groups=st.integers(1, 3),
    metric=st.sampled_from(METRICS),
)
def test_any_shape_finds_a_best_code(num_vectors, num_codes, dim, groups, metric):
    generator = torch.Generator().manual_seed(num_vectors + 100 * num_codes + 10000 * dim)
    vectors = torch.randn(groups, num_vectors, dim, generator=generator)
    codes = torch.randn(groups, num_codes, dim, generator=generator)
    ids = search(vectors, codes, metric)
    assert ids.shape == (groups, num_vectors)
    for z, c, got in zip(vectors, codes, ids, strict=True):
        scores = reference_scores(z, c, metric)
        scale = z.double().square().sum(1) + c.double().square().sum(1).max() + 1
        lost = scores.amax(1) - scores.gather(1, got[:, None])[:, 0]
        assert bool((lost <= 2 * NEAR_TIE * scale).all())


@inside
@pytest.mark.parametrize("dim", [4, 40])
@pytest.mark.parametrize("metric", METRICS)
def test_magnitudes_and_distant_means(dim, metric):
    vectors, codes = random_pair(25, 150, dim)
    expected = search(vectors, codes, metric)
    for scale in (2.0**-100, 2.0**40):
        assert torch.equal(search(vectors * scale, codes * scale, metric), expected)
    if metric == "l2":
        assert_best(vectors + 1000, codes + 1000)
        assert_best(vectors.double() + 1e8, codes.double() + 1e8)


@inside
@pytest.mark.parametrize("dim", [4, 40])
def test_equal_codes_go_to_the_lowest_id(dim):
    vectors, codes = random_pair(40, 300, dim)
    copies = codes[torch.randint(0, 7, (300,), generator=torch.Generator().manual_seed(0))]
    ids = search(vectors, copies)
    first = [int((copies == copies[i]).all(1).nonzero()[0, 0]) for i in range(300)]
    assert all(first[i] == i for i in ids.tolist())
    assert torch.equal(ids, reference_scores(vectors, copies, "l2").argmax(1))
    assert search(vectors, codes[:1].expand(300, dim)).eq(0).all()
    signed = torch.zeros(3, dim)
    signed[0] = -0.0
    assert search(vectors, signed).eq(0).all()


@inside
@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
def test_rows_that_the_screen_cannot_decide_are_searched_exhaustively(metric, monkeypatch):
    """Codes that float16 cannot tell apart: many more candidates than the screen keeps."""
    from vqkit.search import cuda_frame, cuda_many

    counts = []
    decide = cuda_many._decide

    def spy(vectors, book, points, ids):
        floats = points.floats
        floor = floats[..., 4, :].amax((-1, -2))
        counts.append(int((floats[..., 3, :].amax((-1, -2)) >= floor).sum()))
        decide(vectors, book, points, ids)

    monkeypatch.setattr(cuda_many, "_decide", spy)
    monkeypatch.setattr(cuda_many, "WAVES", 1)  # one split, or it keeps them all
    monkeypatch.setattr(cuda_frame, "limits", lambda device: cuda_frame.Limits(1, 10**5))
    vectors, codes = random_pair(18, 520, 17)
    close = torch.cat([codes[:1] + 1e-5 * codes, -100 * codes[:1]])
    ids = search(vectors, close, metric)
    # The code on the other side is the clear winner of some rows, by similarity.
    assert counts[0] > 4, "the case must reach the exhaustive search"
    assert torch.equal(ids, reference_scores(vectors, close, metric).argmax(1))


@inside
@pytest.mark.parametrize("dim", [4, 20])
@pytest.mark.parametrize("metric", METRICS)
def test_an_id_depends_on_its_vector_and_the_codebook_only(dim, metric, monkeypatch):
    """Integers: exact ties abound, and no batch, split or block may decide them differently."""
    from vqkit.search import cuda_frame, cuda_many

    generator = torch.Generator().manual_seed(0)
    vectors = torch.randint(-2, 3, (132, dim), generator=generator).float()
    codes = torch.randint(-1, 2, (270, dim), generator=generator).float()
    expected = search(vectors, codes, metric)
    assert torch.equal(search(vectors[7:8], codes, metric), expected[7:8])
    few = vectors[110:]
    assert torch.equal(search(few, codes, metric), expected[110:])
    twice = search(torch.stack([few] * 2), torch.stack([codes] * 2), metric)
    assert torch.equal(twice, expected[110:].expand(2, -1))
    monkeypatch.setattr(cuda_frame, "limits", lambda device: cuda_frame.Limits(64, 10**5))
    monkeypatch.setattr(cuda_many, "MOST_ROWS", 128)
    assert torch.equal(search(vectors, codes, metric), expected)


@inside
@pytest.mark.parametrize("dim", [4, 40])
@pytest.mark.parametrize("metric", METRICS)
def test_values_that_are_not_finite_get_some_id(dim, metric):
    vectors, codes = random_pair(20, 150, dim)
    expected = search(vectors, codes, metric)
    broken = vectors.clone()
    broken[3], broken[4], broken[5] = torch.nan, torch.inf, 0
    ids = search(broken, codes, metric)
    assert bool(((ids >= 0) & (ids < 150)).all())
    keep = torch.ones(20, dtype=torch.bool)
    keep[3:6] = False
    assert torch.equal(ids[keep], expected[keep])
    for value in (torch.nan, torch.inf):
        codes[2, 1] = value
        ids = search(vectors, codes, metric)
        assert bool(((ids >= 0) & (ids < 150)).all())


@inside
@pytest.mark.parametrize("dim", [4, 40])
def test_strides_and_empty_batches(dim):
    vectors, codes = random_pair(40, 150, dim)
    expected = search(vectors, codes)
    wide = torch.empty(dim, 80)
    wide[:, ::2] = vectors.T
    assert torch.equal(search(wide.T[::2], codes.T.contiguous().T), expected)
    assert search(vectors[:0], codes).shape == (0,)
    assert search(torch.empty(0, 5, dim), torch.empty(0, 3, dim)).shape == (0, 5)


class Watch(TorchDispatchMode):
    """Refuse operations that wait for the device or whose shape depends on values."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "bincount", "equal")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        self.seen.append(name)
        assert not any(name.startswith(word) for word in self.WAITS), f"{name} waits"
        if name.startswith("index"):
            leaves = torch.utils._pytree.tree_leaves(args[1:])
            kinds = {leaf.dtype for leaf in leaves if isinstance(leaf, torch.Tensor)}
            assert not kinds & {torch.bool, torch.uint8}, f"{name} by a mask waits"
        return function(*args, **(kwargs or {}))


@inside
@pytest.mark.parametrize("dim", [4, 40])
@pytest.mark.parametrize("metric", METRICS)
def test_nothing_waits_for_the_device(dim, metric):
    vectors, codes = random_pair(20, 150, dim)
    with Watch() as watch:
        cuda.nearest(vectors[None], codes[None], metric)
    assert watch.seen
    with Watch(), pytest.raises(AssertionError, match="waits"):
        vectors[vectors > 0]


@inside
@pytest.mark.parametrize("dim", [4, 40])
def test_a_compiled_model_holds_one_operator(dim, monkeypatch):
    vectors, codes = random_pair(20, 150, dim)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))

    def quantize(z, c):
        assert cuda.installed()
        assert cuda.fits(c, "l2")
        assert cuda._has_tensor_cores(0)  # what `fits` asks of a GPU
        return c[cuda.nearest(z[None] * 2, c[None], "l2")[0]]

    compiled = torch.compile(quantize, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(vectors, codes), quantize(vectors, codes))


@inside
def test_the_dispatcher_knows_the_backend():
    vectors, codes = random_pair(20, 150, 40)
    expected = nearest(vectors, codes, backend="torch")
    assert torch.equal(nearest(vectors, codes, backend="triton"), expected)
    ids, scores = nearest_with_scores(vectors, codes, backend="triton")
    assert torch.equal(ids, expected)
    best = reference_scores(vectors, codes, "l2").amax(1).float()
    torch.testing.assert_close(scores, best, rtol=2e-7, atol=1e-7)
