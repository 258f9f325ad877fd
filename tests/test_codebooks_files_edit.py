"""Codebook files described, merged, cut, and tried on other features."""

import math
import shutil

import numpy as np
import pytest
import torch
from feature_folders import ENCODER, blobs, write_features
from training_runs import run_config, write_images

from vqkit.clustering import kmeans
from vqkit.codebooks import (
    CodebookFile,
    TokenizerEncoder,
    Transfer,
    adapt,
    describe_codes,
    edit,
    make_codebook,
    measure_transfer,
    merge,
    open_codes,
    open_features,
    read_codebook,
    subset,
    write_codebook,
)
from vqkit.config import NetworkConfig, QuantizerConfig
from vqkit.metrics import uniform_usage
from vqkit.models import ImageTokenizer, TokenizerConfig
from vqkit.search import nearest
from vqkit.training import train

FEATURES = {"encoder": ENCODER, "num_vectors": 100}


def book(codes, *, features=FEATURES, groups=None):
    codes = torch.as_tensor(codes)
    provenance = {"method": "kmeans", "features": features, "groups": groups}
    return CodebookFile(codes.half() if codes.dtype != torch.float32 else codes, provenance)


# ------------------------------------------------------------------- describe


def test_a_square_is_described():
    codes = torch.tensor([[3.0, 4.0, 0.0], [3.0, -4.0, 0.0], [-3.0, 4.0, 0.0], [-3.0, -4.0, 0.0]])
    found = describe_codes(book(codes))
    assert (found.num_codes, found.dim, found.dtype) == (4, 3, "float32")
    assert found.lengths == (5.0, 5.0, 5.0)
    assert found.neighbours == (6.0, 6.0, 6.0)
    assert (found.neighbours_of, found.copies) == (4, 0)
    # Singular values 6 and 8: shares 3/7 and 4/7.
    entropy = -(3 / 7 * math.log(3 / 7) + 4 / 7 * math.log(4 / 7))
    assert found.effective_rank == pytest.approx(math.exp(entropy))
    assert "4 of 3 numbers, float32" in found.text()
    assert found.to_dict()["provenance"]["features"] == FEATURES


def test_copies_are_counted_and_have_no_distance():
    codes = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0], [1.0, 0.0]])
    found = describe_codes(book(codes))
    assert found.copies == 2
    assert found.neighbours[0] == 0.0
    assert found.neighbours[2] == pytest.approx(math.sqrt(5))


def test_codes_without_spread():
    same = describe_codes(book(torch.ones(3, 2)))
    assert (same.effective_rank, same.copies) == (0.0, 2)
    assert describe_codes(book(torch.ones(1, 2))).neighbours == (0.0, 0.0, 0.0)


def test_rank_of_noise_is_nearly_full_and_neighbours_are_sampled(monkeypatch, generator):
    from vqkit.codebooks import report

    monkeypatch.setattr(report, "NEIGHBOUR_CODES", 50)
    codes = torch.randn(900, 6, generator=generator)
    found = describe_codes(book(codes))
    assert 5.9 < found.effective_rank <= 6
    assert found.neighbours_of == 50
    distances = torch.cdist(codes, codes).fill_diagonal_(torch.inf).min(1).values
    assert float(distances.min()) <= found.neighbours[0] <= found.neighbours[1]
    assert "(of 50 codes)" in found.text()


# ---------------------------------------------------------------------- merge


def test_merged_codes_stand_one_after_the_other(generator):
    first = book(torch.randn(4, 3, generator=generator).half(), groups=[["a", 1], ["b", 3]])
    second = book(torch.randn(2, 3, generator=generator).half(), groups=[["c", 2]])
    found = merge([first, second])
    assert torch.equal(found.codes, torch.cat([first.codes, second.codes]))
    assert found.groups == [("a", 1), ("b", 3), ("c", 2)]
    assert found.provenance["features"] == FEATURES
    assert found.provenance["settings"]["sources"] == [first.sha256, second.sha256]
    assert merge([first, book(torch.zeros(1, 3))]).codes.dtype == torch.float32
    assert merge([first, book(torch.zeros(1, 3))]).groups is None


def test_equal_codes_are_removed_but_for_the_first():
    first = book(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), groups=[["a", 1], ["b", 1]])
    second = book(torch.tensor([[3.0, 4.0], [5.0, 6.0], [1.0, 2.0]]), groups=[["c", 1], ["d", 2]])
    found = merge([first, second], remove_equal=True)
    assert found.codes.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert found.groups == [("a", 1), ("b", 1), ("d", 1)]
    assert found.provenance["report"] == {"joined": 5, "removed": 2}
    assert merge([first], remove_equal=True).provenance["report"]["removed"] == 0


def test_clustering_down_is_kmeans_of_the_codes(generator):
    books = [book(torch.randn(40, 3, generator=generator)) for _ in range(2)]
    found = merge(books, 9, progress=False, iterations=4, seed=5)
    joined = torch.cat([one.codes for one in books])
    expected = kmeans(joined, 9, iterations=4, seed=5, progress=False)
    assert torch.equal(found.codes, expected.centres)
    assert found.provenance["settings"]["kmeans"]["iterations"] == 4
    assert found.provenance["report"]["inertia"] == expected.report.inertia
    assert len(merge(books[:1], 9, progress=False).codes) == 9


def test_features_of_different_data_are_kept_side_by_side():
    other = {"encoder": ENCODER, "num_vectors": 7}
    found = merge([book(torch.ones(2, 3)), book(torch.zeros(2, 3), features=other)])
    assert found.provenance["features"] == {"encoder": ENCODER, "sets": [FEATURES, other]}
    again = merge([found, book(torch.full((1, 3), 9.0))])
    assert again.provenance["features"]["encoder"] == ENCODER


@pytest.mark.parametrize(
    ("others", "settings", "message"),
    [
        ([torch.ones(2, 5)], {}, "codebooks of 3 and of 5 dimensions: only codes of one kind"),
        ([], {}, "codebooks: 1: nothing to do; name several, or give num_codes"),
        ([], {"num_codes": 5}, "num_codes=5: must lie between 1 and the 4 codes"),
        ([], {"num_codes": 0}, "num_codes=0: must lie between 1"),
        ([torch.ones(2, 3)], {"seed": 1}, "seed=1: has no effect without num_codes"),
        ([], {"num_codes": 2, "sead": 1}, r"sead=1: did you mean seed\?"),
        (
            [torch.ones(2, 3)],
            {"num_codes": 6, "remove_equal": True},
            "hold 1 different codes",
        ),
    ],
)
def test_what_cannot_be_merged(others, settings, message):
    books = [book(torch.ones(4, 3)), *map(book, others)]
    with pytest.raises(ValueError, match=message):
        merge(books, progress=False, **settings)


def test_codes_of_two_encoders_are_not_merged():
    other = book(torch.ones(2, 3), features={"encoder": {**ENCODER, "layer": 7}})
    with pytest.raises(ValueError, match=r"different encoders \(layer None and 7\): they do not"):
        merge([book(torch.ones(4, 3)), other])
    unknown = book(torch.ones(4, 3), features=None)
    merge([unknown, other])
    with pytest.raises(ValueError, match=r"different encoders \(layer None and 7\)"):
        merge([unknown, book(torch.ones(4, 3)), other])


@pytest.mark.parametrize(
    "change",
    [
        {"module": "Mine"},
        {"projected": True},
        {"value_range": [0.0, 1.0]},
        {"scale": 1.0},
        {"mean": [0.5]},
        {"std": [0.5]},
    ],
)
def test_encoders_that_get_other_pixels_are_others(change, tmp_path):
    books = [
        book(torch.ones(2, 3), features={"encoder": one}) for one in (ENCODER, ENCODER | change)
    ]
    (name,) = change
    with pytest.raises(ValueError, match=rf"different encoders \({name} None and "):
        merge(books)
    for folder, encoder in (("a", ENCODER), ("b", ENCODER | change)):
        write_features(tmp_path / folder, blobs(4), encoder=encoder)
    with pytest.raises(ValueError, match=rf"different encoders \({name} None and "):
        open_features([tmp_path / "a", tmp_path / "b"])


# --------------------------------------------------------------------- subset


def test_chosen_ids_keep_their_order():
    source = book(torch.arange(12.0).view(6, 2), groups=[["a", 2], ["b", 4]])
    found = subset(source, torch.tensor([4, 1]), {"ids": "x"})
    assert found.codes.tolist() == [[8, 9], [2, 3]]
    assert found.groups is None
    assert found.provenance["settings"] == {"source": source.sha256, "ids": "x"}
    assert subset(source, torch.tensor([1, 4]), {}).groups == [("a", 1), ("b", 1)]


def test_random_most_used_and_groups():
    source = book(torch.arange(12.0).view(6, 2), groups=[["a", 2], ["b", 3], ["c", 1]])
    ids, choice = edit.random_ids(source, 4, seed=3)
    assert torch.equal(ids, ids.unique())
    assert torch.equal(ids, edit.random_ids(source, 4, seed=3)[0])
    assert choice == {"random": 4, "seed": 3}
    ids, _ = edit.used_ids(source, 3, torch.tensor([0, 5, 2, 2, 9, 1]))
    assert ids.tolist() == [1, 2, 4]
    ids, choice = edit.group_ids(source, 1, 3)
    assert ids.tolist() == [2, 3, 4, 5]
    assert subset(source, ids, choice).groups == [("b", 3), ("c", 1)]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 6], "ids: 6: the codebook has 6 codes, numbered from 0"),
        ([-1, 2], "ids: -1: the codebook has 6"),
        ([3, 1, 3], "ids: 3: stands there twice"),
        ([], "name at least one code"),
    ],
)
def test_ids_that_are_none(ids, message):
    with pytest.raises(ValueError, match=message):
        subset(book(torch.arange(12.0).view(6, 2)), torch.tensor(ids).long(), {})


def test_choices_that_do_not_fit():
    source = book(torch.arange(12.0).view(6, 2))
    with pytest.raises(ValueError, match="random=7: must lie between 1 and the 6 codes"):
        edit.random_ids(source, 7)
    with pytest.raises(ValueError, match=r"usage: \(5,\) numbers: the codebook has 6 codes"):
        edit.used_ids(source, 2, torch.ones(5))
    with pytest.raises(ValueError, match="groups: this codebook has none"):
        edit.group_ids(source, 0, 1)
    with pytest.raises(ValueError, match="groups=0:2: there are 1, numbered from 0"):
        edit.group_ids(book(torch.ones(2, 2), groups=[["a", 2]]), 0, 2)


def test_files_of_numbers(tmp_path):
    np.save(tmp_path / "a.npy", np.array([3, 1, 2]))
    (tmp_path / "b.json").write_text("[3, 1, 2]")
    (tmp_path / "c.json").write_text('{"counts": [3, 1, 2]}')
    (tmp_path / "d.txt").write_text("3\n1\n2\n")
    for name in ("a.npy", "b.json", "c.json", "d.txt"):
        assert edit.read_numbers(tmp_path / name).tolist() == [3, 1, 2]
    (tmp_path / "bad.json").write_text('{"codes": 3}')
    (tmp_path / "bad.txt").write_text("three\n")
    np.save(tmp_path / "bad.npy", np.ones((2, 2)))
    (tmp_path / "half.txt").write_text("1.5\n")
    for name in ("bad.json", "bad.txt", "bad.npy", "half.txt", "none.txt"):
        with pytest.raises(ValueError, match=r"file='.*(bad|half|none)"):
            edit.read_numbers(tmp_path / name)


# ------------------------------------------------------------------- transfer


def test_transfer_is_what_a_naive_search_finds(monkeypatch, generator):
    from vqkit.clustering import settings

    monkeypatch.setattr(settings, "BLOCK_ELEMENTS", 200)  # several blocks
    codes, features = torch.randn(16, 5, generator=generator), blobs(150, dtype=torch.float32)
    found = measure_transfer(book(codes), features, progress=False)
    squared, ids = torch.cdist(features.double(), codes.double()).square().min(1)
    counts = torch.bincount(ids, minlength=16).double()
    share = counts[counts > 0] / 150
    assert found.num_features == 150
    assert found.mean_squared_distance == pytest.approx(float(squared.mean()), rel=1e-5)
    variance = float((features.double() - features.double().mean(0)).square().sum(1).mean())
    assert found.variance == pytest.approx(variance, rel=1e-9)
    assert found.explained == pytest.approx(1 - float(squared.mean()) / variance, rel=1e-4)
    assert found.num_used == int((counts > 0).sum())
    assert found.usage == found.num_used / 16
    assert found.ceiling == pytest.approx(uniform_usage(16, 150))
    assert found.perplexity == pytest.approx(float(torch.exp(-(share * share.log()).sum())))
    assert Transfer.from_dict(found.to_dict()) == found
    assert f"{found.num_used} of 16" in found.text()


def test_adapted_codes_are_lloyds_from_there(tmp_path):
    source = make_codebook(blobs(200, seed=1), 20, progress=False)
    features = write_features(tmp_path / "f", blobs(300, seed=2))
    found = adapt(source, features, 3, progress=False)
    expected = kmeans(
        blobs(300, seed=2), 20, init=source.codes.float(), iterations=3, progress=False
    )
    assert torch.equal(found.codes, expected.centres.half())
    record = found.provenance
    assert (record["method"], record["features"]["encoder"]) == ("adapt", ENCODER)
    assert record["settings"]["source"] == source.sha256
    assert record["settings"]["iterations"] == 3
    before, after = (Transfer.from_dict(record["report"][name]) for name in ("before", "after"))
    assert before == measure_transfer(source, features, progress=False)
    assert after.mean_squared_distance < before.mean_squared_distance / 2
    assert after.perplexity > before.perplexity


def test_codes_and_features_must_fit(tmp_path):
    source = book(torch.randn(30, 5))
    with pytest.raises(ValueError, match="features of 6 dimensions: the codes have 5; give feat"):
        measure_transfer(source, blobs(50, dim=6), progress=False)
    with pytest.raises(ValueError, match="codebook of 30 codes: there are only 20 features to"):
        adapt(source, blobs(20), 2, progress=False)
    with pytest.raises(ValueError, match="iterations"):
        adapt(source, blobs(50), 0, progress=False)
    other = write_features(tmp_path / "f", blobs(50), encoder={**ENCODER, "sha256": "b" * 64})
    with pytest.raises(ValueError, match="features of different encoders"):
        measure_transfer(source, other, progress=False)
    whole = write_features(tmp_path / "g", blobs(50))
    shard = whole / "00000.npy"
    shard.write_bytes(shard.read_bytes()[:-2] + b"xy")
    with pytest.raises(ValueError, match=r"00000\.npy: was altered or damaged"):
        measure_transfer(source, whole, progress=False)


# ----------------------------------------------------------- codes of tokenizers


def tokenizer_of(preset, **args):
    network = NetworkConfig(hidden=8, residual_hidden=4, num_residual_blocks=1)
    return ImageTokenizer(
        TokenizerConfig(quantizer=QuantizerConfig(preset=preset, args=args), network=network)
    ).eval()


def test_codes_of_a_tokenizer_are_those_that_features_are_compared_with(tmp_path):
    """The projected table of `vqgan_lc`, and not its features."""
    model = tokenizer_of("vqgan_lc", features=torch.randn(12, 9), dim=3, in_channels=None)
    model.save_pretrained(tmp_path / "tokenizer")
    z = torch.randn(2, 3, 4, 4)
    expected = model.quantizer(z).ids.flatten()
    found = open_codes(tmp_path / "tokenizer")
    assert found.provenance["method"] == "tokenizer"
    assert torch.equal(nearest(z.permute(0, 2, 3, 1).reshape(-1, 3), found.codes), expected)
    write_codebook(tmp_path / "codes", found)
    assert torch.equal(
        open_codes(tmp_path / "codes").codes, read_codebook(tmp_path / "codes").codes
    )


def test_codes_of_a_run_are_its_newest(tmp_path):
    """Of an unfinished or continued run those of its last checkpoint, whatever lies there else."""
    images = write_images(tmp_path / "images")
    train(run_config(images, optim__num_steps=2), out=tmp_path / "run", progress=False)
    codes = open_codes(tmp_path / "run").codes
    assert torch.equal(open_codes(tmp_path / "run" / "tokenizer").codes, codes)
    (tmp_path / "run" / "result.json").unlink()
    tokenizer_of("vq_vae", num_codes=3, dim=2).save_pretrained(tmp_path / "run" / "tokenizer")
    assert torch.equal(open_codes(tmp_path / "run").codes, codes)
    shutil.rmtree(tmp_path / "run" / "tokenizer")
    assert torch.equal(open_codes(tmp_path / "run").codes, codes)


@pytest.mark.parametrize("in_channels", [None, 6])
def test_codes_of_a_tokenizer_name_its_encoder(in_channels, tmp_path):
    model = tokenizer_of("vq_vae", num_codes=7, dim=3, in_channels=in_channels)
    model.save_pretrained(tmp_path / "model")
    found = open_codes(tmp_path / "model")
    layer = "projected" if in_channels else "encoder"
    own = {**TokenizerEncoder(model, layer=layer).describe(), "pooling": None}
    assert found.provenance["features"] == {"encoder": own}
    rows = blobs(20, dim=3, dtype=torch.float32)
    measure_transfer(found, write_features(tmp_path / "own", rows, encoder=own), progress=False)
    other = write_features(tmp_path / "other", rows, encoder={**own, "sha256": "b" * 64})
    with pytest.raises(ValueError, match="features of different encoders"):
        measure_transfer(found, other, progress=False)


def test_a_tokenizer_with_several_codebooks_needs_a_choice(tmp_path):
    tokenizer_of("pq", num_codes=6, dim=2, num_segments=3).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"book=None: .* has 3 codebooks; give --book 0 to 2"):
        open_codes(tmp_path)
    codes = [open_codes(tmp_path, number).codes for number in range(3)]
    assert all(one.shape == (6, 2) for one in codes)
    assert not torch.equal(codes[0], codes[1])
    with pytest.raises(ValueError, match="book=3"):
        open_codes(tmp_path, 3)


def test_a_lattice_has_no_codes(tmp_path):
    tokenizer_of("fsq", levels=(4, 4)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="fsq has no table of codes, but a lattice"):
        open_codes(tmp_path)
    with pytest.raises(ValueError, match=r"holds no config\.json; name the folder"):
        open_codes(tmp_path.parent)
