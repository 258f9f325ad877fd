"""The short cut of collapsed codebooks: the same ids as without it, and far less work."""

import pytest
import torch
from search_reference import assert_nearest, random_pair

from vqkit.search import blocked, favourites, nearest

BACKENDS = ["torch", "bf16"]
USED = 5


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Take the short cut of small codebooks too."""
    monkeypatch.setattr(favourites, "CODES", 64)
    monkeypatch.setattr(favourites, "SCORES", 2**19)
    monkeypatch.setattr(favourites, "LEARN", 32)
    monkeypatch.setattr(favourites, "SHARE", 8)
    monkeypatch.setattr(blocked, "SCORES_IN_BLOCK", 2**14)


@pytest.fixture
def searched(monkeypatch):
    """How many vectors are searched among all codes, in a list of one number."""
    count, pairs = [0], blocked._Search.pairs

    def counting(self, vectors):
        count[0] += len(vectors) if self.num_vectors >= 256 else 0
        return pairs(self, vectors)

    monkeypatch.setattr(blocked._Search, "pairs", counting)
    return count


def collapsed(how, dim=20, seed=0):
    """A codebook (600, D) of which 5 codes are used, and 1,500 vectors around these."""
    used, rest = random_pair(USED, 600 - USED, dim, seed=seed)
    drawn = torch.Generator().manual_seed(seed + 1)
    noise = 0.2 * torch.randn(1500, dim, generator=drawn)
    if how == "others at the origin":
        rest = rest / 65536
    elif how == "others far out":
        rest = 4 * rest
    elif how == "many copies":
        rest = torch.zeros_like(rest)
    elif how == "far from the origin":
        used, rest = used + 1000, rest / 65536 + 1000
    order = torch.randperm(600, generator=drawn)
    vectors = used[torch.randint(USED, (1500,), generator=drawn)] + noise
    return vectors, torch.cat([used, rest])[order]


HOW = ("others at the origin", "others far out", "many copies", "far from the origin", "alive")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("how", HOW)
def test_ids_are_those_of_the_whole_search(how, backend, monkeypatch, searched):
    vectors, codes = collapsed(how)
    found = nearest(vectors, codes, backend=backend)
    few = searched[0]
    monkeypatch.setattr(favourites, "CODES", 10**9)
    assert torch.equal(found, nearest(vectors, codes, backend=backend))
    assert_nearest(vectors, codes, found, "l2", backend)
    assert searched[0] - few >= 1500
    assert how == "alive" or few < 300


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, monkeypatch):
    vectors, codes = (tensor.to(dtype) for tensor in collapsed("others at the origin"))
    found = nearest(vectors, codes, backend="torch")
    monkeypatch.setattr(favourites, "CODES", 10**9)
    assert torch.equal(found, nearest(vectors, codes, backend="torch"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(6))
def test_codes_that_win_late_are_found(seed, backend):
    """Vectors change their place in the middle: nearest is a code that never won before."""
    vectors, codes = collapsed("others far out", seed=seed)
    ids = torch.arange(600, 1500) % len(codes)
    vectors[600:] = codes[ids] * (1 + 1e-3 * (seed % 2))
    found = nearest(vectors, codes, backend=backend)
    assert_nearest(vectors, codes, found, "l2", backend)
    assert torch.equal(found[600:], ids)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(4))
def test_ties_go_to_the_lowest_id(seed, backend):
    """Mirrored codes are exactly as far from vectors between them as the favourites are."""
    vectors, codes = collapsed("others at the origin", dim=4, seed=seed)
    first = nearest(vectors[:300], codes, backend=backend).unique()
    twins = torch.arange(len(codes))[~torch.isin(torch.arange(len(codes)), first)][: len(first)]
    codes = codes.round(decimals=2)
    codes[twins] = codes[first] * torch.tensor([1.0, 1.0, 1.0, -1.0])
    vectors[700:] = (vectors[700:] * 64).round() / 64
    vectors[700:, 3] = 0
    distances = (vectors[:, None].double() - codes[None].double()).square().sum(-1)
    assert torch.equal(nearest(vectors, codes, backend=backend), distances.argmin(1))


def test_odd_vectors_among_them():
    vectors, codes = collapsed("others at the origin")
    vectors[400], vectors[401], vectors[402] = 0.0, 3e38, codes.mean(0)
    vectors[403] *= 1e25
    vectors[404] *= 1e-30
    for backend in BACKENDS:
        assert_nearest(vectors, codes, nearest(vectors, codes, backend=backend), "l2", backend)


def test_other_metrics_types_and_scales_are_left_alone():
    vectors, codes = collapsed("others at the origin")
    judged = [
        (vectors, codes, "cosine"),
        (vectors, codes, "dot"),
        (vectors.double(), codes.double(), "l2"),
        (vectors.double(), codes, "l2"),
        (vectors * 1e30, codes * 1e30, "l2"),
        (vectors[:100], codes, "l2"),
        (vectors, codes[:60], "l2"),
    ]
    for z, c, metric in judged:
        assert not favourites.may_pay(blocked.Judge(c, metric), z)
        assert_nearest(z, c, nearest(z, c, metric, backend="torch"), metric, "torch")
    assert favourites.may_pay(blocked.Judge(codes, "l2"), vectors)


def test_a_codebook_in_use_costs_nothing(monkeypatch):
    vectors, codes = random_pair(1500, 600, 20)
    made = []
    monkeypatch.setattr(blocked._Search, "among", lambda self, ids: made.append(ids))
    nearest(vectors, codes, backend="torch")
    assert not made
