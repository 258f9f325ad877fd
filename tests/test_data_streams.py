"""WebDataset tars and streams of `datasets`: the images that are in them, and what is refused."""

import io
import tarfile

import numpy as np
import pytest
import torch
from feature_images import contents, random_pixels
from PIL import Image
from token_cases import tokenizer

from vqkit.config import DataConfig
from vqkit.data import BatchStream, BrokenImageError, load_images
from vqkit.tokens import write_token_set

PIXELS = random_pixels(7, 3, 12, 16)
CAPTIONS = [f"picture {i} – ä" for i in range(7)]
CLASSES = [2, 0, 1, 1, 0, 2, 0]


def encoded(pixels, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(stream, kind)
    return stream.getvalue()


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def samples(numbers, *, classes=True, captions=True):
    for i in numbers:
        if classes:
            yield f"part/{i:03}.cls", str(CLASSES[i]).encode()
        yield f"part/{i:03}.png", encoded(PIXELS[i])
        yield f"part/{i:03}.json", b"{}"
        if captions:
            yield f"part/{i:03}.txt", f"{CAPTIONS[i]}\n".encode()


@pytest.fixture
def tars(tmp_path):
    """Two tars with a sample that has no image between the others."""
    write_tar(tmp_path / "tars" / "train-0.tar", samples(range(3)))
    rest = [*samples([3]), ("part/nothing.txt", b"no image"), *samples(range(4, 7))]
    write_tar(tmp_path / "tars" / "train-1.tar", rest)
    write_tar(tmp_path / "tars" / "val-0.tar", samples([6]))
    return tmp_path / "tars"


def web(path, **options):
    return DataConfig(source="webdataset", path=str(path), **options)


def test_samples_of_tars_are_images_with_class_and_caption(tars):
    images = load_images(web(tars))
    assert len(images) == 7
    for i in (5, 0, 3, 6):
        assert torch.equal(images.image(i), PIXELS[i])
        assert (images.label(i), images.caption(i)) == (CLASSES[i], CAPTIONS[i])
    assert images.labels.tolist() == CLASSES
    assert images.name(3) == "train-1.tar/part/003.png"
    assert len(load_images(web(tars, limit=4))) == 4
    assert torch.equal(load_images(web(tars, split="test")).image(0), PIXELS[6])
    assert len(load_images(web(tars / "train-1.tar"))) == 4


def test_samples_of_tars_without_a_class_keep_those_of_the_others(tmp_path):
    members = [*samples(range(2)), *samples([2], classes=False), *samples([3])]
    write_tar(tmp_path / "some.tar", members)
    expected = [*CLASSES[:2], -1, CLASSES[3]]
    assert load_images(web(tmp_path / "some.tar")).labels.tolist() == expected
    write_tar(tmp_path / "none.tar", samples(range(2), classes=False))
    assert load_images(web(tmp_path / "none.tar")).labels is None


def test_large_images_of_tars_stay_there_until_they_are_read(tmp_path):
    pixels = random_pixels(3, 3, 140, 150)
    write_tar(tmp_path / "a.tar", [(f"{i}.png", encoded(pixels[i])) for i in range(3)])
    images = load_images(web(tmp_path / "a.tar"))
    assert not images.in_memory
    assert images.labels is None
    assert not images.captioned
    assert torch.equal(images.image(2), pixels[2])
    batch = BatchStream(images, 2, seed=0).batch(0)
    assert batch.images.shape == (2, 3, 140, 150)


def test_a_broken_image_of_a_tar_is_named_and_can_be_left_out(tmp_path):
    members = list(samples(range(3)))
    members[5] = ("part/001.png", b"no image")
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(BrokenImageError, match=r"^a\.tar/part/001\.png: is no readable image"):
        load_images(web(tmp_path / "a.tar"))
    with pytest.warns(UserWarning, match=r"001\.png"):
        images = load_images(web(tmp_path / "a.tar", on_broken="skip"))
    assert [images.caption(i) for i in range(2)] == [CAPTIONS[0], CAPTIONS[2]]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.cls", b"one"), ("a.png", encoded(PIXELS[0]))], r"a\.cls holds no whole number"),
        ([("a.txt", b"words")], "no sample of its tars holds an image"),
    ],
)
def test_tars_that_hold_something_else(tmp_path, members, message):
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(ValueError, match=message):
        load_images(web(tmp_path / "a.tar"))


def test_files_that_are_no_tars(tmp_path):
    with pytest.raises(ValueError, match=r"no train\*\.tar there"):
        load_images(web(tmp_path))
    (tmp_path / "train.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match="only packed ones"):
        load_images(web(tmp_path))
    (tmp_path / "train.tar").write_bytes(b"something else" * 100)
    with pytest.raises(ValueError, match="is no readable tar"):
        load_images(web(tmp_path))


def test_tokens_of_tars_bring_captions(tars, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    found = write_token_set(tokenizer(), web(tars), tmp_path / "set", progress=False)
    assert found.captions(range(7)) == CAPTIONS
    assert found.labels(range(7)).tolist() == CLASSES
    table = parquet.read_table(tmp_path / "set" / "00000.parquet")
    assert table.column("caption").to_pylist() == CAPTIONS


@pytest.fixture
def rows(tmp_path):
    """A folder of parquet files as `datasets` writes them, with names of classes."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["x", "y", "z"]),
            "text": datasets.Value("string"),
        }
    )
    folder = tmp_path / "rows"
    folder.mkdir()
    for part, numbers in enumerate([range(4), range(4, 7)]):
        columns = {
            "image": [{"bytes": encoded(PIXELS[i]), "path": None} for i in numbers],
            "label": [CLASSES[i] for i in numbers],
            "text": [CAPTIONS[i] for i in numbers],
        }
        made = datasets.Dataset.from_dict(columns, features=features)
        made.to_parquet(folder / f"train-{part:05}-of-00002.parquet")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def hugging(path, **options):
    return DataConfig(source="huggingface", path=str(path), **options)


def test_a_stream_gives_the_images_in_order(rows):
    images = load_images(hugging(rows))
    assert len(images) == 7
    assert images.label_names == ("x", "y", "z")
    assert images.labelled
    assert images.captioned
    for i in (0, 1, 2, 5, 6, 3):
        assert torch.equal(images.image(i), PIXELS[i])
        assert (images.label(i), images.caption(i)) == (CLASSES[i], CAPTIONS[i])
        assert images.original_size(i) == (12, 16)
    assert len(load_images(hugging(rows, limit=5))) == 5
    assert load_images(hugging(rows)).fingerprint() == images.fingerprint()


def test_tokens_of_a_stream_are_those_of_its_images(rows, tmp_path):
    pytest.importorskip("pyarrow")
    model = tokenizer()
    options = {"shard_images": 2, "batch_size": 2, "progress": False}
    found = write_token_set(model, hugging(rows), tmp_path / "set", **options)
    assert torch.equal(found.ids(range(7)), model.encode(PIXELS))
    assert found.labels(range(7)).tolist() == CLASSES
    assert found.label_names == ("x", "y", "z")
    assert found.captions([6, 0]) == [CAPTIONS[6], CAPTIONS[0]]
    # A shard that somebody took away before the end is read again from the middle.
    whole = contents(tmp_path / "set")
    again = tmp_path / "again"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vqkit.tokens.sets.writing.complete", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_token_set(model, hugging(rows), again, **options)
    (again / "00002.parquet").unlink()
    write_token_set(model, hugging(rows), again, **options)
    shards = {name: data for name, data in contents(again).items() if ".parquet" in name}
    assert shards == {name: data for name, data in whole.items() if ".parquet" in name}


def test_columns_of_other_types_are_no_classes_and_captions(tmp_path):
    """Names of classes as text, several captions an image: nothing that a token set can hold."""
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"bytes": encoded(one), "path": None} for one in PIXELS[:2]]
    columns = {"image": rows, "label": ["cat", "dog"], "caption": [["a", "b"], ["c"]]}
    (tmp_path / "rows").mkdir()
    parquet.write_table(arrow.table(columns), tmp_path / "rows" / "train.parquet")
    images = load_images(hugging(tmp_path / "rows"))
    assert torch.equal(images.image(1), PIXELS[1])
    assert not images.labelled
    assert not images.captioned


def _interrupted(*_):
    raise KeyboardInterrupt


def test_streams_that_cannot_be_read(rows, tmp_path):
    with pytest.raises(ValueError, match="is streamed in order, for vqkit tokenize"):
        load_images(hugging(rows)).gather([0], np.zeros((1, 3)))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="datasets cannot read it"):
        load_images(hugging(empty))
    short = load_images(hugging(rows))
    short._listing = type(short._listing)(
        count=9, name=short._listing.name, files=short._listing.files
    )
    with pytest.raises(ValueError, match=r"ends before image 7 of 9; give data\.limit=7"):
        short.several(range(9))
