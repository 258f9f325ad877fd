"""What a line says of codes and vectors, against naive loops."""

import math

import numpy as np
import pytest
import torch

from vqkit.quantizers import (
    FreeCodebook,
    GridQuantizer,
    Nearest,
    SharedSegments,
    Slot,
    Split,
    VectorQuantizer,
    dual,
    fsq,
    gumbel,
    looc,
    normal_codes,
    pq,
    rq,
    simvq,
    vit_vqgan,
    vq_vae,
    vqgan_lc,
)
from vqkit.training.progress import short_health
from vqkit.training.window import BOOKS, DEAD_STEPS, DEAD_TURNS, CodeWindow, book_names

CPU = torch.device("cpu")


def whole(num_codes, dim=2):
    return VectorQuantizer(FreeCodebook(normal_codes(num_codes, dim)), Nearest())


# ------------------------------------------------------------------------- codes


def test_slots_that_share_a_book_are_pooled():
    parts = {"local": SharedSegments(whole(4), 2), "other": whole(2)}
    window = CodeWindow(GridQuantizer(Split(parts)), CPU)
    ids = torch.tensor([[0, 1, 0], [0, 3, 0], [0, 1, 0]]).reshape(1, 1, 3, 3)
    window.count(ids)
    # The first book drew 0 three times, 1 twice, 3 once; the other one only 0.
    shares = np.array([3, 2, 1]) / 6
    first = math.exp(-np.sum(shares * np.log(shares)))
    summary = window.summary(1)
    assert summary["codes_used"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert summary["perplexity"] == pytest.approx((first + 1) / 2)
    assert summary["tokens"] == 9
    assert list(summary["books"]) == ["local", "other"]
    assert summary["books"]["local"]["perplexity"] == pytest.approx(first)
    assert summary["books"]["other"]["used"] == 0.5
    window.count(ids)
    assert window.close(2)["tokens"] == 18
    assert window.summary(3)["tokens"] == 0


def test_codes_out_of_a_pool_are_counted(generator):
    features, pool = (torch.randn(n, 3, generator=generator) for n in (6, 40))
    quantizer = vqgan_lc(features, 2, pool=pool, in_channels=None)
    window = CodeWindow(quantizer, CPU)
    window.count(torch.zeros(1, 1, 1, 1, dtype=torch.int64))
    assert window.summary(1)["reselected"] == 0
    (leaf,) = quantizer.quantizer.leaves()
    leaf.rules[0].row[:4] = torch.tensor([7, 9, 11, 13])
    line = window.summary(2)
    assert line["reselected"] == line["books"]["code"]["reselected"] == 4
    assert "reselected 4" in short_health(line)
    plain = CodeWindow(GridQuantizer(whole(4)), CPU)
    assert "reselected" not in plain.summary(1)


@pytest.mark.parametrize(
    ("paths", "books", "names"),
    [
        (["code"], [[0]], ["code"]),
        (["segment0", "segment1"], [[0, 1]], ["code"]),
        (["segment0", "segment1"], [[0], [1]], ["segment0", "segment1"]),
        (["local.level0", "local.level1", "global"], [[0, 1], [2]], ["local", "global"]),
        (["row0col0.local", "row0col1.local"], [[0, 1]], ["local"]),
        (["a", "b", "c", "d"], [[0, 1], [2, 3]], ["a", "c"]),  # both would be "code"
    ],
)
def test_books_are_named_by_what_their_slots_share(paths, books, names):
    assert book_names([Slot(path, 4) for path in paths], books) == names


def test_codes_are_idle_and_dead_as_a_naive_count_says(generator):
    num_codes, per_step = 24, 16
    window = CodeWindow(vq_vae(num_codes, 2), CPU)
    # Ever fewer codes are drawn, so that the others fall silent one after another.
    last, now, seen = np.zeros(num_codes, dtype=int), set(), 0
    for step in range(1, 361):
        known = max(2, num_codes - step // 12)
        ids = torch.randint(known, (per_step,), generator=generator)
        window.count(ids.reshape(1, 4, 4, 1))
        now |= set(ids.tolist())
        if step % 10:
            continue
        line = window.close(step)
        last[list(now)] = step
        idle = step - last
        dead = (idle >= DEAD_STEPS) & (idle * per_step >= DEAD_TURNS * num_codes)
        assert line["longest_idle"] == idle.max()
        assert line["dead_codes"] == pytest.approx(dead.mean())
        assert line["codes_used"] == pytest.approx(len(now) / num_codes)
        now, seen = set(), seen + int(dead.sum())
    assert seen > 20, "the test must see dead codes"
    # A window cut off in its middle, for a validation, changes nothing.
    assert window.summary(360)["longest_idle"] == line["longest_idle"]


def test_few_tokens_make_no_code_dead():
    window = CodeWindow(vq_vae(4096, 2), CPU)
    for _ in range(200):
        window.count(torch.zeros(1, 1, 1, 1, dtype=torch.int64))
    line = window.close(200)
    assert line["longest_idle"] == 200
    assert line["dead_codes"] == 0  # 200 tokens are few for 4,096 codes


def test_a_resumed_window_says_what_the_undisturbed_one_says(generator):
    draws = torch.randint(12, (300, 1, 2, 2, 1), generator=generator)
    draws[150:] %= 3
    whole_run, parts = (CodeWindow(vq_vae(12, 2), CPU) for _ in range(2))
    for step, ids in enumerate(draws, start=1):
        lines = []
        for window in (whole_run, parts):
            window.count(ids)
            lines.append(window.close(step) if step % 20 == 0 else window.summary(step))
        assert lines[0] == lines[1]
        if step in (7, 60, 271):
            saved = {name: tensor.clone() for name, tensor in parts.state().items()}
            parts = CodeWindow(vq_vae(12, 2), CPU)
            parts.load(saved, main=True)
    assert lines[0]["dead_codes"] == 9 / 12


def test_a_large_lattice_is_not_counted_code_by_code():
    window = CodeWindow(fsq((1024,) * 4), CPU)
    window.count(torch.zeros(2, 3, 3, 1, dtype=torch.int64))
    assert len(window.counts) == 0
    assert window.summary(1) == window.close(1) == {}


def test_of_many_books_those_that_use_least_are_listed():
    window = CodeWindow(pq(8, 1, num_segments=BOOKS + 4), CPU)
    ids = torch.arange(8)[:, None].repeat(1, BOOKS + 4)
    ids[:, -3:] = 0  # three books draw one code
    window.count(ids.reshape(1, 1, 8, -1))
    books = window.summary(1)["books"]
    assert len(books) == BOOKS
    last = [f"segment{n}" for n in range(BOOKS + 1, BOOKS + 4)]
    assert [name for name, book in books.items() if book["used"] < 1] == last


# ----------------------------------------------------------------------- lengths


def lengths(rows):
    return np.sqrt((np.asarray(rows.detach(), dtype=np.float64) ** 2).sum(-1)).ravel()


def watched(quantizer, z):
    """Run a training forward as the trainer does; its line."""
    window = CodeWindow(quantizer, CPU)
    quantizer.auto_step = False
    with window.watching():
        out = quantizer(z)
    window.count(out.ids)
    assert all(leaf.watcher is None for leaf in quantizer.quantizer.leaves())
    return window.summary(1)["books"], out


def check(book, vectors, table, drawn):
    """Compare the lengths of a book with those of its vectors, its codes and the codes drawn."""
    assert book["latent_norm"] == pytest.approx(lengths(vectors).mean(), rel=1e-5)
    assert book["latent_norm_max"] == pytest.approx(lengths(vectors).max(), rel=1e-5)
    assert book["code_norm"] == pytest.approx(lengths(table).mean(), rel=1e-5)
    assert book["code_norm_max"] == pytest.approx(lengths(table).max(), rel=1e-5)
    ratio = lengths(vectors).mean() / lengths(drawn).mean()
    assert book["norm_ratio"] == pytest.approx(ratio, rel=1e-5)


def test_lengths_of_a_whole_codebook(generator):
    z = torch.randn(2, 4, 3, 3, generator=generator)
    quantizer = vq_vae(6, 4)
    books, out = watched(quantizer, z)
    table = quantizer.quantizer.codebook.codes
    check(books["code"], z.movedim(1, -1), table, out.z_q.movedim(1, -1))


def test_lengths_of_shared_and_of_own_segments(generator):
    z = torch.randn(2, 4, 3, 3, generator=generator)
    rows = z.movedim(1, -1).unflatten(-1, (2, 2))
    shared, own = looc(6, 2, num_segments=2), pq(6, 2, num_segments=2)
    books, out = watched(shared, z)
    found = out.z_q.movedim(1, -1).unflatten(-1, (2, 2))
    check(books["code"], rows, next(shared.quantizer.leaves()).codebook.codes, found)
    books, out = watched(own, z)
    found = out.z_q.movedim(1, -1).unflatten(-1, (2, 2))
    for segment in range(2):
        table = next(own.quantizer.leaves()).codebook.codes[segment]
        check(books[f"segment{segment}"], rows[..., segment, :], table, found[..., segment, :])


def test_lengths_of_residual_levels_that_share_codes(generator):
    z = torch.randn(2, 4, 3, 3, generator=generator)
    quantizer = rq(6, 4, num_levels=3)
    books, out = watched(quantizer, z)
    table = next(quantizer.quantizer.leaves()).codebook.codes[0]
    rest, vectors, drawn = z.movedim(1, -1), [], []
    for level in range(3):
        vectors.append(rest)
        drawn.append(table[out.ids[..., level]])
        rest = rest - drawn[-1]
    check(books["code"], torch.stack(vectors), table, torch.stack(drawn))


def test_lengths_of_parts_that_are_searched_together(generator):
    z = torch.randn(2, 8, 3, 3, generator=generator)
    quantizer = dual(6, 4, num_layers=1, num_heads=2, dropout=0.0)
    books, out = watched(quantizer, z)
    for number, (name, part) in enumerate(quantizer.quantizer.parts.items()):
        table = part.codebook.table(part.clock)[0]
        rows = z.movedim(1, -1)[..., 4 * number : 4 * number + 4]
        check(books[name], rows, table, table[out.ids[..., number]])


def test_lengths_are_those_in_the_space_of_the_codes(generator):
    z = 7 * torch.randn(2, 4, 3, 3, generator=generator)
    books, _ = watched(vit_vqgan(6, 3, in_channels=4), z)
    assert books["code"]["latent_norm_max"] == pytest.approx(1, rel=1e-5)
    assert books["code"]["norm_ratio"] == pytest.approx(1, rel=1e-5)
    quantizer = simvq(6, 4)
    books, out = watched(quantizer, z)
    leaf = next(quantizer.quantizer.leaves())
    table = leaf.codebook.table(leaf.clock)[0]
    check(books["code"], z.movedim(1, -1), table, out.z_q.movedim(1, -1))


@pytest.mark.parametrize("quantizer", [fsq((3, 3)), gumbel(6, 2)])
def test_lattices_and_logits_have_no_lengths(quantizer, generator):
    books, _ = watched(quantizer, torch.randn(1, 2, 3, 3, generator=generator))
    assert "norm_ratio" not in books["code"]


def test_only_the_last_forward_is_kept(generator):
    quantizer = vq_vae(6, 4)
    window = CodeWindow(quantizer, CPU)
    quantizer.auto_step = False
    for scale in (100, 1):
        with window.watching():
            z = scale * torch.randn(1, 4, 2, 2, generator=generator)
            out = quantizer(z)
        window.count(out.ids)
    quantizer(50 * z)  # nobody watches
    assert window.summary(1)["latent_norm"] == pytest.approx(
        lengths(z.movedim(1, -1)).mean(), rel=1e-5
    )


def test_a_line_draws_nothing_from_random_generators(generator):
    quantizer = dual(6, 4, num_layers=1, num_heads=2)  # with dropout in its refiner
    window = CodeWindow(quantizer, CPU)
    quantizer.auto_step = False
    with window.watching():
        out = quantizer(torch.randn(1, 8, 2, 2, generator=generator))
    window.count(out.ids)
    before = torch.get_rng_state()
    state = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    window.summary(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(tensor, state[n]) for n, tensor in quantizer.state_dict().items())
