"""Codes out of features: what `make_codebook` computes, and what it refuses."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from feature_folders import ENCODER, blobs, write_features

from vqkit.clustering import kmeans
from vqkit.clustering.processes import Processes
from vqkit.codebooks import cluster, make_codebook, write_codebook
from vqkit.search import nearest

NAMES = ["ant", "bee", "cat", "dog"]


def quiet(features, num_codes, **settings):
    return make_codebook(features, num_codes, progress=False, **settings)


@pytest.fixture
def rows():
    return blobs(400)


@pytest.fixture
def labels():
    """Classes of 400 images: ant 40, bee 160, cat 60, dog 140, mixed."""
    found = torch.tensor([0] * 2 + [1] * 8 + [2] * 3 + [3] * 7).repeat(20)
    return found[torch.randperm(400, generator=torch.Generator().manual_seed(2))]


@pytest.fixture
def folder(rows, labels, tmp_path):
    return write_features(tmp_path / "features", rows, labels=labels, names=NAMES, num_shards=3)


def test_kmeans_is_that_of_the_clustering_room(folder, rows):
    book = quiet(folder, 12, iterations=6, seed=3)
    expected = kmeans(rows, 12, iterations=6, seed=3, progress=False)
    assert torch.equal(book.codes, expected.centres.half())
    record = book.provenance
    assert record["method"] == "kmeans"
    assert record["settings"]["num_codes"] == 12
    assert (record["settings"]["iterations"], record["settings"]["seed"]) == (6, 3)
    assert record["features"]["encoder"] == ENCODER
    assert record["groups"] is None
    report = record["report"]
    assert report["inertia"] == expected.report.inertia
    assert report["mean_squared_distance"] == expected.report.inertia / 400
    assert report["repaired"] == expected.report.repaired
    assert [step["moved"] for step in report["iterations"]] == [
        step.moved for step in expected.report.iterations
    ]
    sizes = sorted(expected.sizes.tolist())
    assert (report["sizes"]["smallest"], report["sizes"]["largest"]) == (sizes[0], sizes[-1])
    assert report["sizes"]["median"] == sizes[5]
    assert "seconds" not in json.dumps(record)


def test_perplexity_of_the_sizes_is_that_of_their_shares(tmp_path):
    rows = torch.tensor([[0.0], [0.0], [0.0], [9.0]])
    found = quiet(rows, 2).provenance["report"]["sizes"]
    assert found["perplexity"] == pytest.approx((1 / 4) ** (-1 / 4) * (3 / 4) ** (-3 / 4))


@pytest.mark.parametrize("method", ["kmeans", "select"])
@pytest.mark.parametrize("per_group", [False, True])
def test_the_same_input_gives_the_same_bytes(method, per_group, folder, tmp_path):
    for name in ("first", "second"):
        book = quiet(folder, 10, method=method, per_group=per_group)
        write_codebook(tmp_path / name, book)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_blocks_are_no_part_of_the_result(folder):
    book, other = quiet(folder, 10), quiet(folder, 10, block_rows=37)
    assert torch.equal(book.codes, other.codes)
    assert book.provenance == other.provenance


def test_every_class_by_itself_and_the_first_get_one_more(folder, rows, labels):
    book = quiet(folder, 10, per_group=True, iterations=4)
    assert book.groups == [("ant", 3), ("bee", 3), ("cat", 2), ("dog", 2)]
    expected = kmeans(rows, [3, 3, 2, 2], groups=labels, iterations=4, progress=False)
    assert torch.equal(book.codes, expected.centres.half())


def test_classes_without_features_do_not_count(rows, labels, tmp_path):
    some = labels != 1
    folder = write_features(tmp_path / "f", rows[some], labels=labels[some], names=NAMES)
    book = quiet(folder, 7, per_group=True)
    assert book.groups == [("ant", 3), ("cat", 2), ("dog", 2)]


def test_selected_codes_are_different_rows(folder, rows):
    book = quiet(folder, 300, method="select", seed=1)
    place = nearest(book.codes, rows)
    assert torch.equal(rows[place], book.codes)
    assert torch.equal(place, place.unique())  # in the order of the features, none twice
    assert len(quiet(folder, 400, method="select").codes) == 400
    other = quiet(folder, 300, method="select", seed=2)
    assert not torch.equal(book.codes, other.codes)
    assert book.provenance["settings"] == {"num_codes": 300, "per_group": False, "seed": 1}


def test_selected_codes_of_a_class_are_its_own(folder, rows, labels):
    book = quiet(folder, 42, method="select", per_group=True)
    assert book.groups == [("ant", 11), ("bee", 11), ("cat", 10), ("dog", 10)]
    place = nearest(book.codes, rows)
    assert torch.equal(rows[place], book.codes)
    assert labels[place].tolist() == [0] * 11 + [1] * 11 + [2] * 10 + [3] * 10
    assert len(place.unique()) == 42


def test_selecting_reads_a_few_rows_at_a_time(folder, monkeypatch):
    from vqkit.codebooks import cluster

    expected = quiet(folder, 50, method="select", per_group=True)
    monkeypatch.setattr(cluster, "SELECT_ROWS", 7)
    assert torch.equal(quiet(folder, 50, method="select", per_group=True).codes, expected.codes)


def test_one_code_and_one_for_each_feature(rows):
    (code,) = quiet(rows.float(), 1).codes
    torch.testing.assert_close(code, rows.float().mean(0), rtol=1e-5, atol=1e-5)
    unique = rows.float()[:30]
    found = quiet(unique, 30, init="random").codes
    assert torch.equal(found[nearest(unique, found)], unique)


def test_several_folders_are_one(rows, tmp_path):
    first = write_features(tmp_path / "a", rows[:150])
    second = write_features(tmp_path / "b", rows[150:])
    book = quiet([first, second], 9)
    assert torch.equal(book.codes, quiet(rows, 9).codes)
    assert book.provenance["features"]["encoder"] == ENCODER


def test_plain_shards_and_tensors_are_recognised_by_their_values(rows, tmp_path):
    (tmp_path / "plain").mkdir()
    np.save(tmp_path / "plain" / "0.npy", rows.numpy())
    book = quiet(tmp_path / "plain", 9)
    assert torch.equal(book.codes, quiet(rows, 9).codes)
    features = book.provenance["features"]
    assert (features["kind"], features["num_vectors"]) == ("vectors", 400)
    other = quiet(rows + 1, 9).provenance["features"]
    assert quiet(rows, 9).provenance["features"] != other


def test_type_of_the_codes(rows):
    assert quiet(rows, 4).codes.dtype == torch.float16
    assert quiet(rows.float(), 4).codes.dtype == torch.float32
    assert quiet(rows.double(), 4).codes.dtype == torch.float32
    assert quiet(rows, 4, dtype="float32").codes.dtype == torch.float32
    assert quiet(rows.float(), 4, dtype="float16").codes.dtype == torch.float16
    with pytest.raises(ValueError, match=r"dtype='float16': cannot hold codes up to .*'float32'"):
        quiet(rows.float() * 1e6, 4, dtype="float16")


@pytest.mark.parametrize(
    ("num_codes", "settings", "message"),
    [
        (401, {}, r"num_codes=401: there are only 400 features; ask for fewer codes, or extract"),
        (0, {}, "num_codes=0: must be a whole number of at least 1"),
        (2.5, {}, "num_codes=2.5: must be a whole number"),
        (True, {}, "num_codes=True: must be a whole number"),
        (8, {"method": "kmean"}, "method='kmean': expected 'kmeans' or 'select'"),
        (8, {"dtype": "bfloat16"}, "dtype='bfloat16': expected one of 'float16', 'float32'"),
        (8, {"iteration": 3}, r"iteration=3: did you mean iterations\?"),
        (8, {"init": "given"}, "init='given': give the name of a method"),
        (8, {"method": "select", "iterations": 3}, "iterations=3 with method='select': has no eff"),
        (3, {"per_group": True}, "num_codes=3: there are 4 classes; ask for at least one"),
        (
            200,
            {"per_group": True},
            r"num_codes=200: class 'ant' has 40 features for 50 codes; ask for fewer codes",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(num_codes, settings, message, folder):
    with pytest.raises(ValueError, match=message):
        quiet(folder, num_codes, **settings)


def test_features_without_classes_have_no_groups(rows, tmp_path):
    folder = write_features(tmp_path / "f", rows)
    for features in (folder, rows):
        with pytest.raises(ValueError, match="per_group=True: these features have no groups"):
            quiet(features, 8, per_group=True)


def test_broken_shards_are_refused(folder, rows, tmp_path):
    shard = folder / "00001.npy"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-3] + b"abc")
    for method in ("kmeans", "select"):
        with pytest.raises(ValueError, match=r"00001\.npy: was altered or damaged .*SHA-256"):
            quiet(folder, 8, method=method)
    shard.write_bytes(whole[:-3])
    with pytest.raises(ValueError, match=r"00001\.npy"):
        quiet(folder, 8)
    np.save(shard, np.zeros((5, 9), np.float16))
    with pytest.raises(ValueError, match=r"00001\.npy"):
        quiet(folder, 8)


@pytest.mark.parametrize(
    ("place", "method"),
    [("open_source", "kmeans"), ("verify", "kmeans"), ("distinct_rows", "select")],
)
@pytest.mark.parametrize("call", ["make", "write"])
def test_other_processes_hear_of_errors(call, place, method, folder, tmp_path, monkeypatch):
    def broken(*_):
        raise ValueError("the disk is gone")

    heard = []

    class Watched(Processes):
        """Notes the errors that others hear of."""

        def agreed(self, work):
            try:
                return work()
            except ValueError as error:
                heard.append(error)
                raise

    monkeypatch.setattr(cluster, "together", Watched)
    monkeypatch.setattr(cluster, place, broken)
    make = partial(cluster.cluster_into, tmp_path / "codes") if call == "write" else make_codebook
    with pytest.raises(ValueError, match="the disk is gone") as caught:
        make(folder, 4, method=method, progress=False)
    assert heard == [caught.value]


def test_shards_of_another_width_are_refused(folder, rows, tmp_path):
    """Even where the manifest agrees with every file."""
    manifest = json.loads((folder / "manifest.json").read_text())
    other = write_features(tmp_path / "wide", blobs(133, dim=9), num_shards=1)
    foreign = json.loads((other / "manifest.json").read_text())["shards"][0]
    (folder / "00001.npy").write_bytes((other / "00000.npy").read_bytes())
    manifest["shards"][1] |= {name: foreign[name] for name in ("rows", "bytes", "sha256")}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"00001\.npy.*9.*"):
        quiet(folder, 8)


def test_features_of_two_encoders_are_refused(rows, tmp_path):
    first = write_features(tmp_path / "a", rows)
    changes = ({"sha256": "b" * 64}, {"layer": 11}, {"pooling": None})
    for number, change in enumerate(changes):
        second = write_features(tmp_path / str(number), rows, encoder={**ENCODER, **change})
        with pytest.raises(ValueError, match="different encoders"):
            quiet([first, second], 8)
    wide = write_features(tmp_path / "wide", blobs(20, dim=6))
    with pytest.raises(ValueError, match=r"different encoders.*dim"):
        quiet([first, wide], 8)


def test_folders_that_hold_no_features_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"features='.*nowhere': there is no such folder"):
        quiet(tmp_path / "nowhere", 8)
    with pytest.raises(ValueError, match=r"holds no \.npy or \.parquet file"):
        quiet(tmp_path, 8)
    (tmp_path / "unfinished.json").write_text("{}")
    with pytest.raises(ValueError, match="is not finished"):
        quiet(tmp_path, 8)


def test_features_that_are_not_finite_are_refused(rows):
    rows[7, 2] = torch.nan
    with pytest.raises(ValueError, match="row 7"):
        quiet(rows, 8)
    with pytest.raises(ValueError, match="features: row 7: holds values that are not finite"):
        quiet(rows, 400, method="select")
