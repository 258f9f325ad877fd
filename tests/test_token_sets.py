"""Token sets: what is in the files, what reads them, what goes on after a kill, what is refused."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from feature_images import array_set, contents, image_folder, random_pixels
from PIL import Image
from token_cases import pictures, tokenizer

from vqkit.config import DataConfig
from vqkit.data import load_images
from vqkit.data.stream import BatchStream
from vqkit.tokens import TokenSet, TokenStream, tokenizer_hash, write_token_set
from vqkit.tokens.sets import decoded_images, job, merge_token_sets, shards
from vqkit.tokens.sets.layout import id_type

parquet = pytest.importorskip("pyarrow.parquet")

SIZES = [(16, 24), (16, 24), (20, 16), (16, 24), (16, 24), (9, 13), (32, 16)]


def write(images, out, model=None, **options):
    options = {"shard_images": 4, "batch_size": 3, "progress": False, **options}
    return write_token_set(model or tokenizer(), images, out, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A token set with latents, its tokenizer and its images."""
    folder, model, images = tmp_path_factory.mktemp("whole"), tokenizer(), pictures()
    return write(images, folder / "set", model, latents=True), model, images


def test_ids_labels_and_latents_are_those_of_the_images(whole):
    found, model, images = whole
    assert torch.equal(found.ids(range(11)), model.encode(images.pixels))
    assert (found.grid, found.num_images, len(found)) == ((3, 4), 11, 11)
    assert found.slots == model.quantizer.slots
    assert found.tokenizer == tokenizer_hash(model)
    assert torch.equal(found.labels(range(11)), images.labels)
    assert (found.num_classes, found.label_names) == (3, ("a", "b", "c"))
    latents = model.encode_latents(images.pixels)
    assert found.latent_channels == latents.shape[1]
    assert torch.equal(found.latents(range(11)), latents.half().float())
    rows = latents.half().double().transpose(0, 1).flatten(1)
    assert torch.allclose(found.latent_mean, rows.mean(1).float(), atol=1e-6)
    assert torch.allclose(found.latent_std, rows.std(1, unbiased=False).float(), atol=1e-6)
    assert found.keys([10, 0]) == ["image10", "image0"]


def test_rows_come_in_the_order_asked_for(whole):
    found, model, images = whole
    order = [9, 0, 4, 4, 10, 3]
    assert torch.equal(found.ids(order), model.encode(images.pixels[order]))
    assert torch.equal(found.ids(torch.tensor(order)), found.ids(np.array(order)))
    assert found.labels(order).tolist() == images.labels[order].tolist()
    with pytest.raises(IndexError, match="image 11 of 11"):
        found.ids([0, 11])
    with pytest.raises(IndexError, match="image -1"):
        found.labels([-1])


def test_pyarrow_reads_the_files_as_they_are(whole):
    found, model, images = whole
    paths = [found.folder / f"0000{k}.parquet" for k in range(3)]
    tables = [parquet.read_table(path) for path in paths]
    assert [table.num_rows for table in tables] == [4, 4, 3]
    ids = model.encode(images.pixels)
    first = tables[0]
    assert first.column("key").to_pylist() == ["image0", "image1", "image2", "image3"]
    for slot in range(4):
        assert str(first.schema.field(f"ids_{slot}").type.value_type) == "uint8"
        expected = ids[:4, ..., slot].flatten(1).tolist()
        assert first.column(f"ids_{slot}").to_pylist() == expected
    assert first.column("label").to_pylist() == [0, 1, 2, 0]
    assert first.column("grid_height").to_pylist() == [3] * 4
    assert first.column("grid_width").to_pylist() == [4] * 4
    assert first.column("width").to_pylist() == [16] * 4
    assert first.column("original_height").to_pylist() == [12] * 4
    assert str(first.schema.field("latent").type.value_type) == "halffloat"
    together = parquet.read_table(sorted(map(str, found.folder.glob("*.parquet"))))
    assert together.column("key").to_pylist() == [f"image{i}" for i in range(11)]
    about = json.loads(first.schema.metadata[b"vqkit"])
    assert about["tokenizer"] == found.tokenizer
    assert [slot["num_codes"] for slot in about["slots"]] == [8] * 4


def test_datasets_reads_the_folder_as_it_is(whole, tmp_path):
    datasets = pytest.importorskip("datasets")
    found, model, images = whole
    files = sorted(map(str, found.folder.glob("*.parquet")))
    rows = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(tmp_path)
    )
    assert rows.num_rows == 11
    assert rows[7]["ids_2"] == model.encode(images.pixels[7:8])[0, ..., 2].flatten().tolist()
    assert rows["label"][:4] == [0, 1, 2, 0]
    folder = datasets.load_dataset(str(found.folder), split="train", cache_dir=str(tmp_path))
    assert folder["key"][:] == rows["key"][:]


@pytest.mark.parametrize(
    ("num_codes", "kind"),
    [(1, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")],
)
def test_the_type_of_a_slot_is_the_narrowest(num_codes, kind):
    assert id_type(num_codes) == kind


def test_codes_of_more_than_a_byte(tmp_path):
    model, images = tokenizer("vq_vae"), pictures()
    found = write(images, tmp_path / "set", model)
    table = parquet.read_table(tmp_path / "set" / "00000.parquet")
    assert str(table.schema.field("ids_0").type.value_type) == "uint16"
    assert torch.equal(found.ids(range(11)), model.encode(images.pixels))
    assert (found.latent_channels, found.latent_mean.tolist()) == (0, [])


def test_the_manifest_says_what_the_tokens_are_made_of(whole):
    found, model, images = whole
    manifest = found.manifest
    assert (manifest["library"], manifest["kind"]) == ("vqkit", "tokens")
    assert manifest["environment"]["threads"] == 1
    assert manifest["environment"]["device"] == "cpu"
    assert manifest["environment"]["dtype"] == "float32"
    assert manifest["data"]["fingerprint"] == images.fingerprint()
    assert [shard["rows"] for shard in manifest["shards"]] == [4, 4, 3]
    assert sorted(p.name for p in found.folder.iterdir() if p.is_file()) == [
        *(f"0000{k}.parquet" for k in range(3)),
        "manifest.json",
    ]
    assert model.stride == manifest["tokenizer"]["stride"]


def test_images_of_several_sizes(tmp_path):
    data = image_folder(tmp_path / "images", SIZES)
    model, images = tokenizer(), load_images(data)
    found = write(data, tmp_path / "set", model, latents=True)
    assert found.grid is None
    for i, (height, width) in enumerate(SIZES):
        assert torch.equal(found.ids([i]), model.encode(images.image(i)[None]))
        latents = model.encode_latents(images.image(i)[None]).half().float()
        assert torch.equal(found.latents([i]), latents)
        assert found.sizes([i])[0].tolist() == [height, width]
    assert torch.equal(
        found.ids([4, 0]), model.encode(torch.stack([images.image(4), images.image(0)]))
    )
    with pytest.raises(ValueError, match="images of 2 grids make no batch"):
        found.ids([0, 2])
    assert found.num_classes == 0
    assert found.labels([0, 6]).tolist() == [-1, -1]


@pytest.mark.parametrize("workers", [0, 1])
def test_original_size_and_crop_box(tmp_path, workers):
    folder = image_folder(tmp_path / "images", [(40, 90), (61, 33), (16, 16)]).path
    data = DataConfig(
        source="folder", path=folder, resize=16, crop="center", crop_size=12, workers=workers
    )
    write(data, tmp_path / "set")
    rows = parquet.read_table(tmp_path / "set" / "00000.parquet").to_pylist()
    sizes = [(row["original_height"], row["original_width"]) for row in rows]
    assert sizes == [(40, 90), (61, 33), (16, 16)]
    assert {(row["height"], row["width"]) for row in rows} == {(12, 12)}
    # 40 x 90 becomes 16 x 36; the middle 12 x 12 begins at (2, 12).
    box = [rows[0][f"crop_{name}"] for name in ("top", "left", "height", "width")]
    assert box == [5.0, 30.0, 30.0, 30.0]
    # 61 x 33 becomes 30 x 16 (29.58 rounded); (30 - 12) // 2 = 9.
    assert rows[1]["crop_top"] == pytest.approx(9 * 61 / 30)
    assert rows[1]["crop_left"] == pytest.approx(2 * 33 / 16)
    assert [rows[2][f"crop_{n}"] for n in ("top", "left", "height", "width")] == [2, 2, 12, 12]


def test_batches_are_those_of_a_stream_of_images(whole):
    found, model, images = whole
    mine = TokenStream(found, 4, 7)
    theirs = BatchStream(images, 4, seed=7)
    assert mine.batches_per_epoch == 2
    for step in range(6):
        batch = mine.batch(step)
        assert torch.equal(batch.ids, model.encode(theirs.batch(step).images))
        assert torch.equal(batch.labels, images.labels[batch.indices])
        assert batch.latents.shape == (4, found.latent_channels, 3, 4)
    epoch = torch.cat([mine.batch(step).indices for step in (2, 3)])
    assert len(epoch.unique()) == 8
    assert torch.equal(TokenStream(found, 4, 7).batch(5).ids, mine.batch(5).ids)
    assert not torch.equal(TokenStream(found, 4, 8).batch(0).indices, mine.batch(0).indices)
    assert TokenStream(found, 4, 7, latents=False).batch(0).latents is None


def test_ranks_share_the_global_batch(whole):
    found, _, _ = whole
    both = [TokenStream(found, 4, 0, rank, 2).batch(3) for rank in range(2)]
    together = TokenStream(found, 4, 0).batch(3)
    assert torch.equal(torch.cat([batch.ids for batch in both]), together.ids)
    with pytest.raises(ValueError, match="batch_size=12: the token set has only 11 images"):
        TokenStream(found, 12, 0)
    with pytest.raises(ValueError, match="batch_size=3: must be a positive multiple"):
        TokenStream(found, 3, 0, 0, 2)


def test_a_torch_data_loader_reads_it(whole):
    found, model, images = whole
    again = pickle.loads(pickle.dumps(found))
    batch = next(iter(torch.utils.data.DataLoader(again, batch_size=5)))
    assert torch.equal(batch["ids"], model.encode(images.pixels[:5]))
    assert batch["label"].tolist() == images.labels[:5].tolist()
    assert batch["latents"].shape == (5, found.latent_channels, 3, 4)


def test_numbers_are_mapped_not_read(whole):
    found, _, _ = whole
    found.ids([0])
    files = list((found.folder / ".mapped").iterdir())
    assert files
    mapped = found._shards[0].ids()
    assert isinstance(mapped, np.memmap)
    assert mapped.dtype == np.uint8
    assert len(mapped) == 4 * 3 * 4 * 4


def test_it_goes_on_where_it_stopped(tmp_path, monkeypatch):
    images, out = pictures(23), tmp_path / "out"
    write(images, tmp_path / "whole", latents=True)
    shard, calls = job.Worker._shard, [0]

    def failing(self, number, batches):
        calls[0] += 1
        if calls[0] == 3:
            raise OSError("the disk is gone")
        return shard(self, number, batches)

    monkeypatch.setattr(job.Worker, "_shard", failing)
    with pytest.raises(OSError, match="the disk is gone"):
        write(images, out, latents=True)
    assert sorted(p.name for p in out.glob("*.parquet")) == ["00000.parquet", "00001.parquet"]
    with pytest.raises(ValueError, match="is not finished; the command that began it goes on"):
        TokenSet.open(out)
    monkeypatch.setattr(job.Worker, "_shard", shard)
    write(images, out, latents=True)
    assert contents(out) == contents(tmp_path / "whole")
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    write(images, out, latents=True)
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")} == stamps


def test_tokens_of_other_settings_are_not_mixed(tmp_path):
    images = pictures()
    write(images, tmp_path / "set")
    with pytest.raises(ValueError, match=r"tokens of other settings: .*tokenizer\.hash"):
        write(images, tmp_path / "set", tokenizer(seed=1))
    with pytest.raises(ValueError, match=r"settings\.batch_size \(3 there, 2 here\)"):
        write(images, tmp_path / "set", batch_size=2)
    with pytest.raises(ValueError, match=r"environment\.threads \(1 there, 2 here\)"):
        write(images, tmp_path / "set", threads=2)
    other = write(images, tmp_path / "set", tokenizer(seed=1), resume=False)
    assert other.tokenizer == tokenizer_hash(tokenizer(seed=1))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else"):
        write(images, tmp_path / "other")


def test_decoding_gives_what_the_tokenizer_reconstructs(tmp_path):
    data = image_folder(tmp_path / "images", SIZES)
    model, images = tokenizer(), load_images(data)
    found = write(data, tmp_path / "set", model)
    decoded = list(decoded_images(model, found, batch_size=3))
    assert [key for key, _ in decoded] == [f"{i:02}.png" for i in range(7)]
    for i, (_, image) in enumerate(decoded):
        again = model.reconstruct(images.image(i)[None])[0]
        expected = ((again.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        # Rows of a batch and of one image alone may differ by rounding.
        assert (image.int() - expected.int()).abs().max() <= 1
    with pytest.raises(ValueError, match="are those of tokenizer"):
        next(decoded_images(tokenizer(seed=1), found))


def test_a_flipped_bit_is_found_and_named(tmp_path):
    found = write(pictures(), tmp_path / "set")
    found.verify()
    path = tmp_path / "set" / "00001.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"1 of 3 shards .* 00001\.parquet"):
        found.verify()
    fresh = TokenSet.open(tmp_path / "set")
    assert fresh.ids([0]).shape == (1, 3, 4, 4)
    with pytest.raises(ValueError, match=r"00001\.parquet: was altered or damaged"):
        fresh.ids([5])
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="the file is torn"):
        TokenSet.open(tmp_path / "set")
    path.unlink()
    with pytest.raises(ValueError, match=r"00001\.parquet: is missing"):
        TokenSet.open(tmp_path / "set")


def test_merged_sets_are_one(tmp_path):
    model = tokenizer()
    pixels = random_pixels(9, 3, 12, 16)
    labels = torch.arange(9) % 3
    names = ("a", "b", "c")
    halves = [
        write(array_set(pixels[s], labels[s], names), tmp_path / f"part{i}", model, latents=True)
        for i, s in enumerate((slice(0, 5), slice(5, 9)))
    ]
    merged = merge_token_sets(halves, tmp_path / "merged")
    whole = write(array_set(pixels, labels, names), tmp_path / "whole", model, latents=True)
    assert torch.equal(merged.ids(range(9)), whole.ids(range(9)))
    assert torch.equal(merged.labels(range(9)), labels)
    assert torch.allclose(merged.latent_mean, whole.latent_mean, atol=1e-6)
    assert torch.allclose(merged.latent_std, whole.latent_std, atol=1e-6)
    merged.verify()
    shutil.rmtree(tmp_path / "part0")
    merged.verify()
    other = write(
        array_set(pixels, labels, names), tmp_path / "other", tokenizer(seed=1), latents=True
    )
    with pytest.raises(ValueError, match="differ in tokenizer; tokenize both alike"):
        merge_token_sets([whole, other], tmp_path / "no")
    assert not (tmp_path / "no").exists()
    with pytest.raises(ValueError, match="is there already"):
        merge_token_sets(halves[1:] * 2, tmp_path / "whole")


def test_a_broken_image_is_left_out_or_an_error(tmp_path):
    data = image_folder(tmp_path / "images", SIZES)
    (tmp_path / "images" / "03.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"^03\.png: is no readable image"):
        write(data, tmp_path / "set")
    skipping = DataConfig(source="folder", path=data.path, on_broken="skip")
    with pytest.warns(UserWarning, match=r"03\.png is no readable image"):
        found = write(skipping, tmp_path / "skipped")
    assert found.keys(range(6)) == [f"{i:02}.png" for i in (0, 1, 2, 4, 5, 6)]
    assert [name for name, _ in found.manifest["skipped"]] == ["03.png"]
    assert [shard["rows"] for shard in found.manifest["shards"]] == [3, 3]


def test_shards_of_more_numbers_than_a_list_counts_are_refused():
    with pytest.raises(ValueError, match=r"^shard_images=3: .* 2,147,483,649 numbers"):
        shards._offsets(np.array([2**30, 2**30, 1]))


def test_latents_that_no_file_holds_are_refused(tmp_path):
    model = tokenizer()
    with torch.no_grad():
        next(model.encoder.parameters()).mul_(1e9)
    with pytest.raises(ValueError, match=r"^latents of image0: reach .*, no finite float16 number"):
        write(pictures(), tmp_path / "set", model, latents=True)
    assert not list((tmp_path / "set").glob("*.parquet"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"shard_images": 0}, "shard_images=0: must be at least 1"),
        ({"threads": 0}, "threads=0: must be at least 1"),
        ({"workers": 0}, "workers=0: must be at least 1"),
        ({"workers": 2}, "give the settings of the images"),
        ({"engine": "ray"}, "give the settings of the images"),
        ({"engine": "spark"}, "engine='spark'"),
        ({"engine": "torchrun", "workers": 2}, "torchrun says how many"),
        ({"device": "nonsense"}, "device='nonsense'"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        write(pictures(), tmp_path / "set", **changes)


def test_random_crops_and_grey_images_are_refused(tmp_path):
    folder = image_folder(tmp_path / "images", [(16, 16)]).path
    data = DataConfig(source="folder", path=folder, crop="random", crop_size=8)
    with pytest.raises(ValueError, match="tokens are of whole images or their centre crop"):
        write(data, tmp_path / "set")
    with pytest.raises(ValueError, match=r"data\.channels=1: the tokenizer takes images of 3"):
        write(DataConfig(source="folder", path=folder, channels=1), tmp_path / "set")


def test_folders_that_hold_no_token_set(tmp_path):
    with pytest.raises(ValueError, match="is no token set; make one with vqkit tokenize"):
        TokenSet.open(tmp_path)
    (tmp_path / "manifest.json").write_text('{"library": "vqkit", "kind": "features", "format": 1}')
    with pytest.raises(ValueError, match="something else"):
        TokenSet.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        TokenSet.open(tmp_path)


def test_labels_out_of_range_are_refused(tmp_path):
    images = array_set(random_pixels(3, 3, 8, 8), torch.tensor([0, 1, 5]), ("a", "b"))
    found = write(images, tmp_path / "set")
    with pytest.raises(ValueError, match="label 5, out of range"):
        found.labels([0])


def test_classes_without_names_are_numbered(tmp_path):
    found = write(array_set(random_pixels(3, 3, 8, 8), torch.tensor([0, 4, 2])), tmp_path / "set")
    assert found.label_names == ("0", "1", "2", "3", "4")


def test_a_folder_that_takes_no_files_is_read_all_the_same(whole, tmp_path, monkeypatch):
    found, model, images = whole
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("vqkit.tokens.sets.mapped.os.access", lambda *_: False)
    again = TokenSet.open(found.folder)
    assert torch.equal(again.ids([3]), model.encode(images.pixels[3:4]))
    assert len(list((tmp_path / "vqkit" / "tokens").iterdir())) == 1


def test_grey_sixteen_bit_pictures_keep_their_place(tmp_path):
    """The order of a folder is kept, whatever kind of file an image is."""
    (tmp_path / "images").mkdir()
    for number, mode in enumerate(["RGB", "L", "P"]):
        Image.new(mode, (8, 8), number).save(tmp_path / "images" / f"{number}.png")
    found = write(DataConfig(source="folder", path=str(tmp_path / "images")), tmp_path / "set")
    assert found.keys(range(3)) == ["0.png", "1.png", "2.png"]
