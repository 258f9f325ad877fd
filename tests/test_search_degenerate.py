"""Codebooks that went wrong: the search stays exact, its work bounded, batches still do not matter.

Work is counted in pairs that are compared in float64, never in seconds.
"""

import pytest
import torch
from search_reference import BACKENDS, HAS_FAISS, assert_nearest, random_pair, reference_scores

from vqkit.search import METRICS, nearest, nearest_k
from vqkit.search.candidates import Judge

SLOW_BACKENDS = ["torch", "bf16"]
FAR = (1e12, 1e16, 1e19, 1e37)


@pytest.fixture
def compared(monkeypatch):
    """How many pairs have been compared in float64, in a list of one number."""
    count = [0]
    exact = Judge.closeness

    def counting(self, vectors, row, code):
        count[0] += len(row)
        return exact(self, vectors, row, code)

    monkeypatch.setattr(Judge, "closeness", counting)
    return count


def broken_codebooks():
    """Codebooks by what happened to them, all (1500, 20), and vectors (400, 20)."""
    vectors, codes = random_pair(400, 1500, 20)
    outlier, few, many = codes.clone(), codes.clone(), codes.clone()
    outlier[1400] *= 1e4
    few[::500] *= torch.tensor([1e2, 1e4, 1e8])[:, None]
    many[::300] *= torch.tensor([1e2, 1e4, 1e8, 1e15, 1e25])[:, None]
    dead = codes.clone()
    dead[torch.arange(1500) % 11 > 0] = 0
    return (
        vectors,
        {
            "one code far away": outlier,
            "several codes far away": few,
            "codes beyond what float32 compares": many,  # right, but every code is a candidate
            "most codes zero": dead,
            "all codes equal": codes[:1].repeat(1500, 1),
            "two codes, many copies": codes[:2].repeat(750, 1),
            "nearly equal": codes[:1] + 1e-5 * codes,
            "tiny": codes * 1e-38,
            "huge": codes * 1e37,
        },
    )


FAST = ("all codes equal", "several codes far away", "tiny")
BROKEN = [
    pytest.param(what, marks=[] if what in FAST else [pytest.mark.slow])
    for what in sorted(broken_codebooks()[1])
]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", BROKEN)
def test_broken_codebooks_cost_little(what, backend, compared):
    vectors, books = broken_codebooks()
    ids = nearest(vectors, books[what], backend=backend)
    # some candidates a vector; without care it would be all 1,500
    assert compared[0] <= 60 * len(vectors) or what == "codes beyond what float32 compares"
    assert_nearest(vectors, books[what], ids, "l2", backend)
    parts = [nearest(part, books[what], backend=backend) for part in vectors[:60].split(1)]
    assert torch.equal(torch.cat(parts), ids[:60])


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize(
    "metric", [pytest.param(m, marks=[] if m == "l2" else [pytest.mark.slow]) for m in METRICS]
)
def test_broken_codebooks_are_searched_right(what, metric):
    vectors, books = broken_codebooks()
    vectors, codes = vectors[:40, :15].contiguous(), books[what][:, :15].contiguous()
    for backend in [*SLOW_BACKENDS, *(["faiss"] if HAS_FAISS and metric != "dot" else [])]:
        ids = nearest(vectors, codes, metric, backend=backend)
        assert_nearest(vectors, codes, ids, metric, backend)
    for k in (3, 40):
        whole = nearest_k(vectors, codes, k, metric)[0]
        parts = [nearest_k(part, codes, k, metric)[0] for part in vectors.split(7)]
        assert torch.equal(torch.cat(parts), whole)
        assert torch.equal(whole[:, 0], nearest(vectors, codes, metric, backend="torch"))


@pytest.mark.parametrize("backend", SLOW_BACKENDS)
@pytest.mark.parametrize("far", [1e4, *(pytest.param(x, marks=pytest.mark.slow) for x in FAR)])
def test_vectors_far_from_all_codes(backend, far, compared):
    """Distances in float64 then differ by less than their last digit; directions still differ."""
    vectors, codes = random_pair(200, 1, 8)
    vectors = vectors * far
    codes = random_pair(1, 20, 8)[1].repeat(100, 1)
    codes = codes + 1e-5 * random_pair(1, 2000, 8, seed=1)[1]
    ids = nearest(vectors, codes, backend=backend)
    assert compared[0] <= 150 * len(vectors)  # a hundred codes lie a hundred-thousandth apart
    centred = codes.double() - codes.double().mean(0)
    unit = vectors.double() / far
    scores = unit @ centred.T - centred.square().sum(1) / (2 * far)
    gap = scores.amax(1) - scores.gather(1, ids[:, None])[:, 0]
    assert float(gap.max()) < 1e-12
    for size in (1, 9):
        parts = [nearest(part, codes, backend=backend) for part in vectors[:100].split(size)]
        assert torch.equal(torch.cat(parts), ids[:100])


@pytest.mark.parametrize("backend", SLOW_BACKENDS)
@pytest.mark.parametrize(
    "cluster", [1e-6, *(pytest.param(x, marks=pytest.mark.slow) for x in (1e-12, 1e-25))]
)
def test_a_tight_cluster_and_one_code_far_away(backend, cluster):
    """The candidates must hold every code that float64 cannot tell from the best."""
    vectors, noise = random_pair(150, 3000, 4)
    codes = (random_pair(1, 20, 4, seed=1)[1].repeat(150, 1) + 3e-6 * noise) * cluster
    codes[7] = 1e3
    ids = nearest(vectors, codes, backend=backend)
    parts = [nearest(part, codes, backend=backend) for part in vectors.split(1)]
    assert torch.equal(torch.cat(parts), ids)


@pytest.mark.parametrize("backend", SLOW_BACKENDS)
def test_many_near_ties_in_many_blocks(backend):
    """More than one block of vectors and codes, where the screen has to be made finer midway."""
    vectors, noise = random_pair(2500, 6000, 24)
    codes = random_pair(1, 20, 24, seed=1)[1].repeat(300, 1) + 1e-4 * noise
    ids = nearest(vectors, codes, backend=backend)
    sample = torch.arange(0, 2500, 41)
    scores = reference_scores(vectors[sample], codes, "l2")
    assert torch.equal(ids[sample], scores.argmax(1))


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
@pytest.mark.parametrize("backend", SLOW_BACKENDS)
def test_float64_far_below_and_above_float32(metric, backend):
    vectors, codes = (tensor.double() for tensor in random_pair(60, 40, 4))
    expected = reference_scores(vectors, codes, metric).argmax(1)
    for scale in (1e-100, 1e-60, 1e-46, 1e60, 1e100):
        other = scale if metric == "l2" else 1.0
        ids = nearest(vectors * scale, codes * other, metric, backend=backend)
        assert torch.equal(ids, expected), f"scaled by {scale}"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mean", [10.0, 1000.0])
def test_cosine_of_directions_that_are_close(backend, mean):
    vectors, codes = random_pair(400, 256, 4, mean=mean)
    z, c = (t.double() / t.double().norm(dim=1, keepdim=True) for t in (vectors, codes))
    scores = z @ (c - c.mean(0)).T
    ids = nearest(vectors, codes, "cosine", backend=backend)
    assert float((ids == scores.argmax(1)).double().mean()) > 0.99
    assert_nearest(vectors, codes, ids, "cosine", backend)


@pytest.mark.parametrize("backend", SLOW_BACKENDS)
@pytest.mark.parametrize(
    ("vectors_dtype", "codes_dtype"),
    [
        (torch.float64, torch.float32),
        (torch.float32, torch.float64),
        (torch.float64, torch.float64),
    ],
)
def test_values_between_the_numbers_of_float32(backend, vectors_dtype, codes_dtype):
    """Far from the origin float64 tells apart what float32 cannot write down."""
    generator = torch.Generator().manual_seed(0)
    step = 2.0**-4  # of float32 numbers at a million
    centres = (torch.randn(40, 1, 4, generator=generator) * 100 + 1e6).double()
    around = torch.randint(-1, 2, (40, 50, 4), generator=generator).double()
    codes = (centres / step).round() * step + step * around
    codes = codes.flatten(0, 1)
    vectors = codes[torch.randint(2000, (400,), generator=generator)]
    vectors = (vectors + 0.45 * step * torch.randn(400, 4, generator=generator)).to(vectors_dtype)
    if codes_dtype == torch.float64:
        codes = codes + 0.2 * step * torch.randn(2000, 4, generator=generator)
    codes = codes.to(codes_dtype)
    ids = nearest(vectors, codes, backend=backend)
    assert_nearest(vectors - 1e6, codes - 1e6, ids, "l2", backend)
