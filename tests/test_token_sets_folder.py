"""The folder of a token set: what --fresh leaves of the old one, and damaged manifests."""

import json

import pytest
from json_damage import damages
from token_cases import pictures, tokenizer

from vqkit.cli import main
from vqkit.tokens import TokenSet, write_token_set
from vqkit.tokens.sets import merge_token_sets
from vqkit.training import claim

pytest.importorskip("pyarrow")


def write(out, seed=0, **options):
    options = {"shard_images": 4, "batch_size": 3, "latents": True, "progress": False, **options}
    return write_token_set(tokenizer(seed=seed), pictures(), out, **options)


def unpacked(found):
    """The files that reading all of a token set leaves beside it."""
    found.ids(range(11))
    found.latents(range(11))
    return {path.name for path in (found.folder / ".mapped").iterdir()}


def test_fresh_takes_away_what_was_unpacked_of_the_old_shards(tmp_path):
    place = tmp_path / "set" / ".mapped"
    old = unpacked(write(tmp_path / "set"))
    torn = f".{'0' * 32}.ids.npy.{'1' * 32}.part"
    (place / torn).write_bytes(b"of a kill")
    (place / "mine.npy").write_bytes(b"of somebody")
    found = write(tmp_path / "set", seed=1, resume=False)
    assert [path.name for path in place.iterdir()] == ["mine.npy"]
    (place / "mine.npy").unlink()
    assert not unpacked(found) & old


def test_a_finished_set_keeps_what_is_unpacked_of_its_own_shards(tmp_path):
    own = unpacked(write(tmp_path / "set"))
    stale = tmp_path / "set" / ".mapped" / f"{'0' * 32}.latents.npy"
    stale.write_bytes(b"of a shard that is gone")
    write(tmp_path / "set")
    assert {path.name for path in stale.parent.iterdir()} == own


def test_a_folder_where_another_process_tokenizes_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("fcntl")
    monkeypatch.setattr(claim, "WAIT", 0.0)
    refused = pytest.raises(ValueError, match="another process tokenizes here; wait for it")
    with claim.claimed(tmp_path / "set"), refused:
        write(tmp_path / "set")
    assert write(tmp_path / "set").num_images == 11


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    found = write(tmp_path_factory.mktemp("whole") / "set")
    found.ids(range(11))
    return found


@pytest.fixture
def manifest(whole):
    """The manifest, put back afterwards."""
    path = whole.folder / "manifest.json"
    before = path.read_text()
    yield path
    path.write_text(before)


@pytest.mark.slow
def test_a_damaged_manifest_is_refused_in_one_line(manifest, capsys):
    """A value is taken away or made something else; nothing but a ValueError comes of it."""
    said = {}
    for name, values in list(damages(json.loads(manifest.read_text())))[::4]:
        manifest.write_text(json.dumps(values))
        said[name] = ""
        try:
            found = TokenSet.open(manifest.parent)
            found.ids([0, 10])
            found.labels([0, 10])
            found.latents([0])
            assert found.latent_mean.shape == (found.latent_channels,)
            assert isinstance(found.fingerprint, str)
            assert main(["tokens", "describe", str(manifest.parent)]) == 0, name
        except ValueError as error:
            said[name] = str(error)
    refused = [text for text in said.values() if text]
    assert len(refused) > len(said) / 2
    assert all(str(manifest.parent) in text and "\n" not in text for text in refused)
    capsys.readouterr()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_images": None}, "num_images=None"),
        ({"num_images": 12}, "num_images=12: its shards have 11"),
        ({"slots": []}, r"slots=\[\]"),
        ({"grid": [3]}, r"grid=\[3\]"),
        ({"shards": "all"}, "shards='all'"),
        ({"shards": [{}]}, r"shards\[0\]\.file: is missing"),
        ({"label_names": [1]}, r"label_names\[0\]=1"),
        ({"format": 2}, "format=2"),
        ({"latents": None}, "latents=None"),
    ],
)
def test_the_wrong_value_is_named(manifest, change, said, capsys):
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    with pytest.raises(ValueError, match=said):
        TokenSet.open(manifest.parent)
    assert main(["tokens", "verify", str(manifest.parent)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_damaged_record_of_an_unfinished_set_is_named(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("vqkit.tokens.sets.writing.complete", stopped)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "set")
    (tmp_path / "set" / "00001.json").write_text('{"rows": 4, "skipped": [], "file": 3}')
    with pytest.raises(ValueError, match=r"00001\.json: file=3: expected text; begin again"):
        write(tmp_path / "set")


def stopped(*_):
    raise KeyboardInterrupt


def test_shards_outside_the_folder_are_refused(manifest):
    values = json.loads(manifest.read_text())
    values["shards"][0]["file"] = "../set/00000.parquet"
    manifest.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"shards\[0\]\.file='\.\./set/00000\.parquet'"):
        TokenSet.open(manifest.parent)


def test_merged_and_generated_manifests_are_whole(whole, tmp_path):
    other = write(tmp_path / "other")
    again = merge_token_sets([whole, other], tmp_path / "both")
    assert TokenSet.open(again.folder).num_images == 22
