"""The short cut of collapsed codebooks: the same ids as without it, and far less work."""

import random

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

    def counting(self, vectors, of=None):
        count[0] += len(vectors) if self.num_vectors >= 256 else 0
        return pairs(self, vectors, of)

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
    elif how == "copies of those in use":
        rest = used.repeat(len(rest) // USED, 1)
    elif how == "far from the origin":
        used, rest = used + 1000, rest / 65536 + 1000
    order = torch.randperm(600, generator=drawn)
    vectors = used[torch.randint(USED, (1500,), generator=drawn)] + noise
    return vectors, torch.cat([used, rest])[order]


HOW = (
    "others at the origin",
    "others far out",
    "many copies",
    "copies of those in use",
    "far from the origin",
    "alive",
)


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
    assert how in ("alive", "copies of those in use") or few < 300


@pytest.mark.parametrize("backend", BACKENDS)
def test_favourites_may_be_all_codes_there_are(backend, monkeypatch):
    """The whole search leaves copies out before favourites are chosen."""
    monkeypatch.setattr(blocked, "MANY", 20)
    monkeypatch.setattr(blocked, "PAIRS", 2**10)
    values, vectors = random_pair(8, 1500, 4)
    codes = values[torch.arange(600) % 8]
    found = nearest(vectors, codes, backend=backend)
    assert_nearest(vectors, codes, found, "l2", backend)


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


def test_one_vector_changes_no_other_id(monkeypatch):
    """A long vector once turned the sieve off for its block, and remote vectors lost near ties."""
    drawn = torch.Generator().manual_seed(0)
    sphere = torch.nn.functional.normalize(torch.randn(200, 3, generator=drawn))
    sphere *= torch.where(torch.arange(200) < 190, 8.0, 2.0)[:, None]
    near = torch.nn.functional.pad(sphere, (1, 0), value=2.0**30)
    far = torch.tensor([[-(2.0**30), 0.0, 0.0, 0.0]]).expand(600, 4)
    codes = torch.cat([torch.zeros(96, 4), far, near, near[:1].expand(400, 4)])
    vectors = near[-10:][torch.randint(10, (600,), generator=drawn)].clone()
    vectors[:, 1:] += 0.3 * torch.randn(600, 3, generator=drawn)
    vectors[::20, 0] *= -1
    for first_codes in (64, 10**9):
        monkeypatch.setattr(favourites, "CODES", first_codes)
        alone = nearest(vectors, codes, backend="torch")
        other = vectors.clone()
        other[550] = 2.0**61
        beside = nearest(other, codes, backend="torch")
        beside[550] = alone[550]
        assert torch.equal(alone, beside)


def test_hard_vectors_are_counted_as_part_of_their_block(monkeypatch):
    """A few of them have many candidates: no reason to search all vectors in another way."""
    monkeypatch.setattr(blocked, "PAIRS", 2**12)
    vectors, codes = collapsed("others at the origin")
    vectors[::150] = 0.7 * random_pair(10, 1, 20, seed=3)[0]
    changed = []
    simpler = blocked._Search._simpler
    monkeypatch.setattr(
        blocked._Search, "_simpler", lambda self: changed.append(1) or simpler(self)
    )
    nearest(vectors, codes, backend="bf16")
    assert not changed


def test_a_default_device_changes_nothing():
    vectors, codes = collapsed("others at the origin")
    torch.set_default_device("meta")
    try:
        found = nearest(vectors, codes, backend="torch")
    finally:
        torch.set_default_device(None)
    assert_nearest(vectors, codes, found, "l2", "torch")


def test_a_codebook_in_use_costs_nothing(monkeypatch):
    vectors, codes = random_pair(1500, 600, 20)
    made = []
    monkeypatch.setattr(blocked._Search, "among", lambda self, ids: made.append(ids))
    nearest(vectors, codes, backend="torch")
    assert not made


def odd_case(choose):
    """Vectors around a few codes, most others dead in some way; and settings of the search."""
    drawn = torch.Generator().manual_seed(choose.randrange(2**31))
    dim, num_codes = choose.choice([1, 2, 3, 8, 20, 64]), choose.choice([64, 100, 300, 700])
    codes = torch.randn(num_codes, dim, generator=drawn) * choose.choice([1e-3, 1.0, 50.0])
    dead = torch.rand(num_codes, generator=drawn) < choose.choice([0.0, 0.5, 0.9, 0.99])
    codes[dead] *= choose.choice([0.0, 1e-5, 0.1, 3.0, 30.0])
    codes += choose.choice([0.0, 0.0, 1.0, 1000.0]) * torch.randn(dim, generator=drawn)
    if choose.random() < 0.3:
        codes = codes[torch.randint(num_codes, (num_codes,), generator=drawn)]
    centres = codes[torch.randint(num_codes, (choose.choice([1, 3, 10]),), generator=drawn)]
    vectors = centres[torch.randint(len(centres), (choose.choice([200, 900]),), generator=drawn)]
    noise = torch.randn(vectors.shape, generator=drawn) * vectors.std()
    vectors = vectors + choose.choice([0.0, 0.01, 0.3, 1.0]) * noise
    others = torch.rand(len(vectors), generator=drawn) < choose.choice([0.0, 0.0, 0.05, 0.3])
    vectors[others] = codes[torch.randint(num_codes, (int(others.sum()),), generator=drawn)]
    kind = choose.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16])
    limit = 6e4 if kind == torch.float16 else 3e38
    return (vectors.clamp(-limit, limit).to(kind), codes.clamp(-limit, limit).to(kind))


def check(seeds, monkeypatch):
    """Compare searches with and without the short cut; return how many vectors it settled."""
    settle, settled = favourites.Favourites._settle, [0]

    def counting(self, vectors, out):
        found = settle(self, vectors, out)
        settled[0] += int(found.sum())
        return found

    monkeypatch.setattr(favourites.Favourites, "_settle", counting)
    monkeypatch.setattr(favourites, "SCORES", 1)
    for seed in seeds:
        choose = random.Random(seed)
        vectors, codes = odd_case(choose)
        monkeypatch.setattr(favourites, "LEARN", choose.choice([8, 32]))
        monkeypatch.setattr(favourites, "SHARE", choose.choice([2, 4, 16]))
        monkeypatch.setattr(blocked, "FIRST", choose.choice([4, 64]))
        monkeypatch.setattr(blocked, "SCORES_IN_BLOCK", 2 ** choose.choice([11, 14]))
        for backend in BACKENDS:
            monkeypatch.setattr(favourites, "CODES", 2)
            found = nearest(vectors, codes, backend=backend)
            monkeypatch.setattr(favourites, "CODES", 10**9)
            whole = nearest(vectors, codes, backend=backend)
            assert torch.equal(found, whole), f"seed {seed}, {backend}"
    return settled[0]


@pytest.mark.slow
def test_no_id_changes_whatever_the_codebook(monkeypatch):
    assert check(range(12), monkeypatch) > 1000


@pytest.mark.soak
def test_no_id_changes_in_many_cases(monkeypatch):
    assert check(range(12, 2000), monkeypatch) > 100_000
