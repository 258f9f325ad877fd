"""Token replacement against a sort of all distances, for every composition of codebooks."""

import json

import pytest
import torch
from analysis_models import SIZES, make_images, make_tokenizer
from torch.nn import functional as F

from vqkit.analysis import code_tables, other_codes, replace_tokens, replacement_figure
from vqkit.analysis.neighbours import choosing_nth
from vqkit.analysis.saving import save_analysis
from vqkit.metrics import psnr, ssim, to_bytes
from vqkit.quantizers import FreeCodebook, GridQuantizer, Nearest, VectorQuantizer, uniform_codes

pytestmark = pytest.mark.slow

CODES = {"num_codes": 12, "dim": 4}


def free(leaf):
    return leaf.codebook.codes


def plain(inner):
    """One table for every token."""
    return lambda quantizer: [inner(quantizer)] * len(quantizer.slots)


def two_neighbours():
    book = FreeCodebook(uniform_codes(12, 4))
    return GridQuantizer(VectorQuantizer(book, Nearest(num_neighbours=2)))


# preset and arguments; the table of every slot, by hand; the measure of distance
CASES = {
    "vq_vae": ("vq_vae", CODES, plain(lambda q: free(q.quantizer)[0]), "l2"),
    "vq_ema": ("vq_ema", CODES, plain(lambda q: free(q.quantizer)[0]), "l2"),
    "gumbel": ("gumbel", CODES, plain(lambda q: free(q.quantizer)[0]), "l2"),
    "sq_vae": ("sq_vae", CODES, plain(lambda q: free(q.quantizer)[0]), "l2"),
    "vit_vqgan": (
        "vit_vqgan",
        {**CODES, "in_channels": 6},
        plain(lambda q: F.normalize(q.quantizer.codebook.base.codes[0], dim=-1)),
        "l2",
    ),
    "simvq": (
        "simvq",
        CODES,
        plain(lambda q: q.quantizer.codebook.projector(q.quantizer.codebook.features)),
        "l2",
    ),
    "vqgan_lc": (
        "vqgan_lc",
        {"features": torch.randn(12, 20, generator=torch.Generator().manual_seed(5)), "dim": 4},
        plain(lambda q: q.quantizer.codebook.projector(q.quantizer.codebook.features)),
        "l2",
    ),
    "cvq": ("cvq", CODES, plain(lambda q: free(q.quantizer)[0]), "cosine"),
    "pq": ("pq", {**CODES, "num_segments": 3}, lambda q: list(free(q.quantizer)), "l2"),
    "rq": (
        "rq",
        {**CODES, "num_levels": 3},
        plain(lambda q: free(q.quantizer.quantizers[0])[0]),
        "l2",
    ),
    "rq own books": (
        "rq",
        {**CODES, "num_levels": 3, "shared": False},
        lambda q: [free(level)[0] for level in q.quantizer.quantizers],
        "l2",
    ),
    "dual": (
        "dual",
        {"num_codes": (12, 9), "dim": (8, 4), "num_layers": 1},
        lambda q: [
            q.quantizer.parts["global"].codebook.refiner(
                q.quantizer.parts["global"].codebook.base.codes
            )[0],
            free(q.quantizer.parts["local"])[0],
        ],
        "l2",
    ),
    "looc": (
        "looc",
        {**CODES, "num_segments": 3},
        plain(lambda q: free(q.quantizer.quantizer)[0]),
        "cosine",
    ),
    "looc beta 2": (
        "looc",
        {**CODES, "num_segments": 3, "beta": 2, "metric": "l2"},
        plain(lambda q: free(q.quantizer.quantizer)[0]),
        "l2",
    ),
    "movq_codes": ("movq_codes", CODES, plain(lambda q: free(q.quantizer.quantizer)[0]), "l2"),
    "two neighbours": ("mine", {}, plain(lambda q: free(q.quantizer)[0]), "l2"),
}


def tokenizer_of(case):
    preset, args, *_ = CASES[case]
    return make_tokenizer(preset, presets={"mine": two_neighbours}, **args)


@pytest.fixture
def images(tmp_path):
    return make_images(tmp_path / "images")


def distances(vectors, codes, metric):
    """(N, K), all of them."""
    z, c = vectors.detach().double(), codes.detach().double()
    if metric == "cosine":
        return 1 - F.normalize(z, dim=-1) @ F.normalize(c, dim=-1).T
    return torch.cdist(z, c)


def naive_others(ids, codes, m, metric):
    """The m-th nearest other code of every id (...), by a sort of all distances to its code."""
    if m == 0:
        return ids
    order = distances(codes, codes, metric).argsort(1).tolist()
    flat = [[k for k in order[code] if k != code][m - 1] for code in ids.flatten().tolist()]
    return torch.tensor(flat).view_as(ids)


def decoded(tokenizer):
    """A list that keeps the ids of every decode from now on."""
    kept, decode = [], tokenizer.decode

    def keep(ids, size=None):
        kept.append(ids.clone())
        return decode(ids, size=size)

    tokenizer.decode = keep
    return kept


@pytest.mark.parametrize("case", CASES)
def test_tokens_become_the_codes_that_a_sort_finds(case, images):
    *_, tables_of, metric = CASES[case]
    tokenizer = tokenizer_of(case)
    ms = [0, 1, 2, 7]
    kept = decoded(tokenizer)
    with torch.no_grad():
        found = replace_tokens(tokenizer, images, ms, batch_size=1)
        tables = tables_of(tokenizer.quantizer)
        usual = [tokenizer.encode(images.image(i)[None]) for i in range(len(images))]
        for number, m in enumerate(ms):
            for ids, replaced in zip(usual, kept[number :: len(ms)], strict=True):
                for slot, codes in enumerate(tables):
                    expected = naive_others(ids[..., slot], codes, m, metric)
                    assert torch.equal(replaced[..., slot], expected), (m, slot)
    assert [point.m for point in found.points] == ms
    assert [point.replaced for point in found.points] == [0, 1, 1, 1]
    assert torch.cat([ids.flatten() for ids in usual]).unique().numel() > 1


def features_of(tokenizer, image):
    """(positions, channels), and the shape of the grid; the sides are padded to the stride."""
    _, height, width = image.shape
    padding = (0, -width % tokenizer.stride, 0, -height % tokenizer.stride)
    pixels = F.pad(image[None].float() / 127.5 - 1, padding, mode="replicate")
    z = tokenizer.encoder(pixels)
    return z.permute(0, 2, 3, 1).flatten(0, 2), (1, *z.shape[-2:], -1)


def nth(vectors, codes, m, metric="l2"):
    return distances(vectors, codes, metric).argsort(1)[:, m - 1]


def from_vq(tokenizer, z, m):
    return nth(z, free(tokenizer.quantizer.quantizer)[0], m)


def from_looc(tokenizer, z, m):
    codes = free(tokenizer.quantizer.quantizer.quantizer)[0]
    return torch.stack([nth(part, codes, m, "cosine") for part in z.chunk(3, 1)], 1)


def from_pq(tokenizer, z, m):
    books = free(tokenizer.quantizer.quantizer)
    pairs = zip(z.chunk(3, 1), books, strict=True)
    return torch.stack([nth(part, codes, m) for part, codes in pairs], 1)


def from_rq(tokenizer, z, m):
    codes, found = free(tokenizer.quantizer.quantizer.quantizers[0])[0], []
    for _ in range(3):  # what is left over is that of the usual code
        found.append(nth(z, codes, m))
        z = z - codes[nth(z, codes, 1)]
    return torch.stack(found, 1)


def from_dual(tokenizer, z, m):
    tables = CASES["dual"][2](tokenizer.quantizer)
    pairs = zip(z.split([8, 4], 1), tables, strict=True)
    return torch.stack([nth(part, codes, m) for part, codes in pairs], 1)


@pytest.mark.parametrize(
    ("case", "naive"),
    [
        ("vq_vae", from_vq),
        ("looc", from_looc),
        ("pq", from_pq),
        ("rq", from_rq),
        ("dual", from_dual),
    ],
)
def test_neighbours_of_the_feature(case, naive, images):
    tokenizer = tokenizer_of(case)
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    kept = decoded(tokenizer)
    with torch.no_grad():
        found = replace_tokens(tokenizer, images, [1, 2, 9], origin="feature", batch_size=1)
        for index in range(len(images)):
            z, shape = features_of(tokenizer, images.image(index))
            for number, m in enumerate((1, 2, 9)):
                assert torch.equal(kept[3 * index + number], naive(tokenizer, z, m).view(shape))
    assert [point.replaced for point in found.points] == [0, 1, 1]
    after = tokenizer.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_computed_table_is_computed_once(images, monkeypatch):
    tokenizer = tokenizer_of("simvq")
    book = tokenizer.quantizer.quantizer.codebook
    compute, calls = book.compute, []
    monkeypatch.setattr(book, "compute", lambda clock: calls.append(0) or compute(clock))
    book.drop_cache()
    replace_tokens(tokenizer, images, [1, 2], origin="feature", batch_size=1)
    assert len(calls) == 1
    assert not any(module.training for module in tokenizer.modules())


def test_equal_parts_of_a_split_are_replaced_on_their_own(images):
    """They are searched together, past their assignments, unless another one is asked for."""
    tokenizer = make_tokenizer("dual", num_codes=12, dim=4, refiner="none")
    z = tokenizer.encoder(torch.rand(1, 3, 16, 16))
    with torch.no_grad():
        usual = tokenizer.quantizer(z).ids
        for m, equal in ((1, True), (2, False)):
            with choosing_nth(tokenizer.quantizer, m):
                ids = tokenizer.quantizer(z).ids
            assert bool((ids == usual).all()) is equal
            assert bool((ids != usual).all()) is not equal


def test_quality_is_that_of_the_replaced_images(images):
    tokenizer = tokenizer_of("vq_vae")
    found = replace_tokens(tokenizer, images, [2, 0], num_pictures=2, batch_size=2)
    codes = free(tokenizer.quantizer.quantizer)[0]
    for point in found.points:
        decibels, similar = [], []
        for index, size in enumerate(SIZES):
            original = images.image(index)[None]
            ids = naive_others(tokenizer.encode(original), codes, point.m, "l2")
            rebuilt = to_bytes(tokenizer.decode(ids, size=size))
            decibels.append(psnr(rebuilt, original).item())
            if min(size) >= 11:
                similar.append(ssim(rebuilt, original).item())
        # Convolutions may round differently at another batch size: at most single bytes flip.
        assert point.psnr == pytest.approx(sum(decibels) / len(decibels), abs=2e-3)
        assert point.ssim == pytest.approx(sum(similar) / len(similar), abs=2e-3)
        for index, picture in enumerate(found.pictures):
            assert torch.equal(picture.original, images.image(index))
            shown = picture.rebuilt[[0, 2].index(point.m)]
            assert picture.decibels[[0, 2].index(point.m)] == pytest.approx(
                psnr(shown[None], picture.original[None]).item()
            )
    assert [point.m for point in found.points] == [0, 2]
    assert len(found.pictures) == 2
    assert found.quality_protocol.reference == images.fingerprint()


def test_other_codes_leave_out_the_code_itself_whatever_is_equal_to_it():
    codes = torch.tensor([[0.0], [0.0], [0.0], [1.0], [3.0]])
    own = torch.tensor([2, 0, 4])
    found = other_codes(codes[own], own, codes, [0, 1, 2, 3, 4])
    assert found.tolist() == [[2, 0, 1, 3, 4], [0, 1, 2, 3, 4], [4, 3, 0, 1, 2]]
    assert other_codes(codes[own], own, codes, [1]).tolist() == [[0], [1], [3]]
    assert other_codes(codes[:0], own[:0], codes, [0, 2]).shape == (0, 2)


def test_blocks_of_neighbours_change_nothing(monkeypatch):
    codes = torch.randn(30, 3)
    own = torch.arange(30)
    whole = other_codes(codes, own, codes, [1, 5])
    monkeypatch.setattr("vqkit.analysis.neighbours.BLOCK", 20)
    assert torch.equal(other_codes(codes, own, codes, [1, 5]), whole)


def test_neighbours_are_searched_only_for_codes_that_occur(images, monkeypatch):
    from vqkit.analysis import neighbours

    tokenizer = make_tokenizer("vq_vae", num_codes=500, dim=4)
    rows, search = [], neighbours.nearest_k

    def counting(vectors, codes, k, metric):
        rows.append(len(vectors))
        return search(vectors, codes, k, metric)

    monkeypatch.setattr(neighbours, "nearest_k", counting)
    replace_tokens(tokenizer, images, [1, 3], batch_size=1)
    ids = [tokenizer.encode(images.image(i)[None]).flatten() for i in range(len(images))]
    assert sum(rows) == len(torch.cat(ids).unique()) < 500


def test_the_curve_is_drawn_from_the_numbers(images, tmp_path):
    results = [
        replace_tokens(tokenizer_of(case), images, [0, 1, 4], num_pictures=1, name=case)
        for case in ("vq_vae", "looc")
    ]
    figure = replacement_figure(results)
    _, numbers = save_analysis("replace", results, figure, tmp_path / "a.png")
    written = json.loads(numbers.read_text(encoding="utf-8"))["results"]
    left, right = figure.subfigs[0].axes
    for axes, key in ((left, "psnr"), (right, "ssim")):
        for line, result in zip(axes.get_lines(), written, strict=True):
            assert list(line.get_xdata()) == [point["m"] for point in result["points"]]
            assert list(line.get_ydata()) == [point[key] for point in result["points"]]
    titles = [axes.get_title() for axes in figure.subfigs[1].axes]
    assert titles[0] == "vq_vae"
    assert titles[2] == f"M = 1: {written[0]['pictures'][0]['psnr'][1]:.1f} dB"
    settings = written[1]["protocol"]["settings"]
    assert settings["from"] == "code"
    assert settings["books"] == [{"name": "code", "num_codes": 12, "metric": "cosine"}]
    assert written[1]["protocol"]["quality"]["reference"] == images.fingerprint()


def test_what_cannot_be_replaced_is_refused(images):
    tokenizer = tokenizer_of("dual")
    with pytest.raises(ValueError, match=r"m=9 with from='code': codebook 'local' of 9 .* 0\.\.8"):
        replace_tokens(tokenizer, images, [1, 9])
    with pytest.raises(ValueError, match=r"m=0 with from='feature': codebook 'local' .* 1\.\.9"):
        replace_tokens(tokenizer, images, [0], origin="feature")
    with pytest.raises(ValueError, match=r"m: give at least one rank"):
        replace_tokens(tokenizer, images, [])
    with pytest.raises(ValueError, match=r"origin='token': expected one of 'code', 'feature'"):
        replace_tokens(tokenizer, images, [1], origin="token")
    for case in ("gumbel", "two neighbours"):
        with pytest.raises(ValueError, match=r"from='feature': .*; use from='code'"):
            replace_tokens(tokenizer_of(case), images, [1], origin="feature")
    with pytest.raises(ValueError, match=r"lattice 3×5\): is a lattice, which has no table"):
        replace_tokens(make_tokenizer("fsq", levels=(3, 5)), images, [1])
    with pytest.raises(ValueError, match=r"lattice"):
        code_tables(make_tokenizer("lfq", dim=6).quantizer)
