"""`.vqk` files and tables of frequencies: what is refused, mutated files, the commands."""

import contextlib
import struct
import time

import numpy as np
import pytest
import torch
from damage import damaged
from PIL import Image

from vqkit.cli import main
from vqkit.config import NetworkConfig, QuantizerConfig
from vqkit.models import ImageTokenizer, TokenizerConfig
from vqkit.models.files import FREQUENCIES
from vqkit.tokens import (
    Alphabet,
    Frequencies,
    TokenCoder,
    count_frequencies,
    find_frequencies,
    read_file,
    tokenizer_hash,
)
from vqkit.tokens.header import read_header

pytest.importorskip("constriction")

HASH = "cd" * 32


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def small_coder(num_codes=(16, 16), *, table=False):
    found = Alphabet(num_codes, (tuple(range(len(num_codes))),))
    source = np.random.default_rng(0)
    counts = tuple(source.integers(0, 50, size) for size in num_codes)
    frequencies = Frequencies(counts, HASH, "images", 9) if table else None
    return TokenCoder(found, stride=4, channels=1, tokenizer=HASH, frequencies=frequencies)


def small_files():
    """Coders with a file each: packed, coded, with a table, of several sizes."""
    source = np.random.default_rng(1)
    for num_codes, table, skewed, sizes in (
        ((16, 16), False, False, [(28, 28)]),
        ((16, 16), False, True, [(28, 28)]),
        ((16, 16), True, True, [(28, 28), (9, 5), (9, 5)]),
        ((1000,), True, True, [(12, 16)]),
        ((1000,), False, True, [(70, 90)]),
        ((1000,), False, False, [(1, 1)]),
    ):
        coder = small_coder(num_codes, table=table)
        maps = []
        for height, width in sizes:
            shape = (-(-height // 4), -(-width // 4), len(num_codes))
            ids = source.integers(0, num_codes[0], shape)
            maps.append(torch.from_numpy(ids * (ids < 2) if skewed else ids))
        yield coder, coder.encode(maps, sizes), maps


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    config = TokenizerConfig(
        network=NetworkConfig(image_channels=1, hidden=8, residual_hidden=4, num_residual_blocks=1),
        quantizer=QuantizerConfig(
            preset="looc", args={"num_codes": 16, "dim": 4, "num_segments": 2}
        ),
    )
    return ImageTokenizer(config).eval()


@pytest.fixture
def folder(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.fixture
def pictures(tmp_path):
    """Five grey pictures of two sizes."""
    place = tmp_path / "pictures"
    place.mkdir()
    for i in range(5):
        size = (28, 28) if i < 3 else (17, 30)
        pixels = torch.randint(0, 256, size, dtype=torch.uint8, generator=seeded(i))
        Image.fromarray(pixels.numpy()).save(place / f"picture{i}.png")
    return place


class Trusting(TokenCoder):
    """Believes every checksum, as one that an attacker has made fit."""

    def _checksum(self, content, rows):
        return content[12:20]


def trusting(coder):
    return Trusting(
        coder.alphabet,
        stride=coder.stride,
        channels=coder.channels,
        tokenizer=coder.tokenizer,
        frequencies=coder.frequencies,
    )


def fuzz(rounds, seed):
    """Mutated files are refused as a `ValueError`, and soon.

    Where the checksum is believed, what comes back is at least what the tokenizer can decode.
    """
    source = np.random.default_rng(seed)
    files = [(coder, trusting(coder), content) for coder, content, _ in small_files()]
    read = 0
    for _ in range(rounds):
        coder, believer, content = files[source.integers(len(files))]
        bad = damaged(content, source)
        began = time.monotonic()
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            coder.decode(bad, max_tokens=10_000)
        start = read_header(content)[1]
        junk = content[:start] + source.bytes(len(content) - start)
        bad = junk if source.integers(2) else content[:20] + damaged(content[20:], source)
        with contextlib.suppress(ValueError):
            found = believer.decode(bad, max_tokens=10_000)
            read += 1
            for ids, size in zip(found.ids, found.sizes, strict=True):
                assert ids.shape == (-(-size[0] // 4), -(-size[1] // 4), coder.alphabet.num_slots)
                coder.alphabet.check(ids.flatten(0, 1).numpy())
        assert time.monotonic() - began < 60
    assert read > rounds / 20  # the mutations do reach the coder


@pytest.mark.slow
def test_2000_mutated_files_are_refused():
    fuzz(2000, 0)


@pytest.mark.soak
def test_100000_mutated_files_are_refused():
    fuzz(100_000, 1)


def sealed(coder, content, rows):
    """The file with a checksum that fits: what somebody would write who means harm."""
    return content[:12] + coder._checksum(content, rows) + content[20:]


def test_files_that_claim_too_much_are_refused_before_anything_is_allocated():
    coder, content, _ = list(small_files())[1]
    header, start = read_header(content)
    assert header.choice is not None
    for count, height, width in (
        (1, 2**24, 2**24),
        (2**32 - 1, 1, 1),
        (2**16, 4096, 4096),
        (1, 1, 2**24),
        (1, 2**25, 1),
        (0, 28, 28),
        (1, 0, 28),
    ):
        bad = content[: start - 12] + struct.pack("<III", count, height, width) + content[start:]
        began = time.monotonic()
        with pytest.raises(ValueError):
            coder.decode(bad)
        assert time.monotonic() - began < 20
    with pytest.raises(ValueError, match="max_pixels=700"):
        coder.decode(content, max_pixels=700)
    with pytest.raises(ValueError, match="max_tokens=97"):
        coder.decode(content, max_tokens=97)
    with pytest.raises(ValueError, match="max_images=0"):
        coder.decode(content, max_images=0)


def test_every_truncation_and_every_changed_bit_is_refused():
    for coder, content, _ in small_files():
        for length in range(len(content)):
            with pytest.raises(ValueError):
                coder.decode(content[:length])
        for bit in range(0, 8 * len(content), 3):
            bad = bytearray(content)
            bad[bit // 8] ^= 1 << bit % 8
            with pytest.raises(ValueError):
                coder.decode(bytes(bad), max_tokens=10_000)


def test_packed_ids_out_of_range_are_refused_even_with_a_checksum_that_fits():
    coder = small_coder((5,))
    content = coder.encode([torch.zeros(1, 1, 1, dtype=torch.int64)], [(4, 4)])
    bad = content[:-1] + bytes([0b111_00000])
    with pytest.raises(ValueError, match="outside"):
        coder.decode(sealed(coder, bad, np.array([[7]])))
    bad = content[:-1] + bytes([0b100_00001])
    with pytest.raises(ValueError, match="zeros"):
        coder.decode(sealed(coder, bad, np.array([[4]])))


def test_another_tokenizer_or_table_is_refused():
    coder, content, _ = list(small_files())[2]
    other = TokenCoder(coder.alphabet, stride=4, channels=1, tokenizer="ef" * 32)
    with pytest.raises(ValueError, match="file of tokenizer cdcdcdcdcdcdcdcd: this one is efef"):
        other.decode(content)
    with pytest.raises(ValueError, match=r"comes with none; put the writer's frequencies"):
        small_coder().decode(content)
    with pytest.raises(ValueError, match="count them anew"):
        Frequencies((np.ones(16, dtype=int),) * 2, "ef" * 32, "", 1).check(coder.alphabet, HASH)


def test_the_hash_of_a_tokenizer_follows_its_settings_and_tensors(tokenizer, folder):
    first = tokenizer_hash(tokenizer)
    assert len(first) == 64
    assert tokenizer_hash(ImageTokenizer.from_pretrained(folder)) == first
    other = ImageTokenizer.from_pretrained(folder)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-6
    assert tokenizer_hash(other) != first


def test_frequencies_are_counted_saved_and_found(tokenizer, folder, pictures):
    from vqkit.config import DataConfig
    from vqkit.data import load_images

    images = load_images(DataConfig(source="folder", path=str(pictures), channels=1))
    found = count_frequencies(tokenizer, images, batch_size=2)
    expected = np.zeros((2, 16), dtype=int)
    for i in range(5):
        for row in tokenizer.encode(images.image(i)[None]).flatten(0, -2):
            expected[[0, 1], row.numpy()] += 1
    assert (np.stack(found.counts) == expected).all()
    assert (found.num_images, found.data) == (5, images.fingerprint())
    assert find_frequencies(folder, tokenizer) is None
    found.save(folder / FREQUENCIES)
    again = find_frequencies(folder, tokenizer)
    assert again.hash == found.hash
    assert (again.tokenizer, again.data, again.num_images) == (
        tokenizer_hash(tokenizer),
        found.data,
        5,
    )
    source, content = np.random.default_rng(2), (folder / FREQUENCIES).read_bytes()
    for _ in range(200):
        (folder / FREQUENCIES).write_bytes(damaged(content, source))
        with contextlib.suppress(ValueError):
            read = Frequencies.load(folder / FREQUENCIES)
            assert all(counts.min() >= 0 for counts in read.counts)


def test_maps_of_photographs_come_back_and_cost_what_the_model_says(tokenizer):
    from vqkit.config import DataConfig
    from vqkit.data import BatchStream, load_images
    from vqkit.tokens.model import code_length

    data = DataConfig(source="photos", channels=1, crop="random", crop_size=64, crops_per_image=9)
    crops = BatchStream(load_images(data), batch_size=40, seed=0).batch(0).images
    ids = tokenizer.encode(crops)
    coder = TokenCoder.of(tokenizer)
    for maps in (*ids[:, None], ids):
        content = coder.encode(list(maps), [(64, 64)] * len(maps))
        assert torch.equal(torch.stack(coder.decode(content).ids), maps)
        header, start = read_header(content)
        assert header.choice is not None
        bits = code_length(maps.flatten(0, 2).numpy(), coder.alphabet, header.choice, None)
        assert len(content) - start <= 1.01 * bits / 8 + 8


def refused(capsys, *words):
    assert main([*map(str, words)]) == 2
    shown = capsys.readouterr()
    lines = [line for line in shown.err.splitlines() if line.startswith("vqkit: ")]
    assert len(lines) == 1
    return lines[0]


def pixels_of(path):
    return np.asarray(Image.open(path))


def test_the_commands_bring_pictures_back(tokenizer, folder, pictures, tmp_path, capsys):
    expected = {}
    for path in sorted(pictures.iterdir()):
        image = torch.from_numpy(np.array(Image.open(path)))[None, None]
        back = (tokenizer.reconstruct(image) + 1) * 127.5
        expected[path.stem] = back.round().to(torch.uint8)[0, 0].numpy()
    cli = ("--tokenizer", str(folder), "--device", "cpu")
    counted = ("--data.source", "folder", "--data.path", str(pictures), "--data.channels", "1")
    assert main(["frequencies", str(folder), "--device", "cpu", *counted]) == 0
    assert (folder / FREQUENCIES).is_file()

    one, many, files = tmp_path / "one.vqk", tmp_path / "many.vqk", tmp_path / "files"
    assert main(["compress", str(pictures / "picture3.png"), "-o", str(one), *cli]) == 0
    assert "bits per pixel (nominal" in capsys.readouterr().out
    assert main(["compress", str(pictures), "--out", str(many), *cli]) == 0
    assert main(["compress", str(pictures), "--out", str(files), *cli]) == 0

    assert main(["decompress", str(one), "-o", str(tmp_path / "back.png"), *cli]) == 0
    assert (pixels_of(tmp_path / "back.png") == expected["picture3"]).all()
    assert main(["decompress", str(many), "-o", str(tmp_path / "a"), *cli]) == 0
    inside = sorted(map(str, files.iterdir()))
    assert main(["decompress", *inside, "-o", str(tmp_path / "b"), *cli, "--tile", "64"]) == 0
    assert main(["decompress", str(files), "-o", str(tmp_path / "c"), *cli]) == 0
    for number, (name, pixels) in enumerate(expected.items(), 1):
        assert (pixels_of(tmp_path / "a" / f"many-{number:05}.png") == pixels).all()
        for place in ("b", "c"):
            assert (pixels_of(tmp_path / place / f"{name}.png") == pixels).all()


def test_the_commands_refuse_in_one_line(tokenizer, folder, pictures, tmp_path, capsys):
    other = ImageTokenizer.from_pretrained(folder)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    other.save_pretrained(tmp_path / "other")
    file = tmp_path / "one.vqk"
    picture = pictures / "picture0.png"
    assert main(["compress", str(picture), "-o", str(file), "--tokenizer", str(folder)]) == 0
    capsys.readouterr()
    known = ("--tokenizer", folder)
    back = ("-o", tmp_path / "x.png")
    assert "name the tokenizer that wrote it" in refused(
        capsys, "decompress", file, *back, "--tokenizer", tmp_path / "other"
    )
    file.write_bytes(file.read_bytes()[:-1])
    assert "damaged" in refused(capsys, "decompress", file, *back, *known)
    file.write_bytes(b"")
    assert "no .vqk file" in refused(capsys, "decompress", file, *back, *known)
    assert not (tmp_path / "x.png").exists()
    assert "no such file" in refused(capsys, "decompress", tmp_path / "absent.vqk", *back, *known)
    assert "--tokenizer" in refused(capsys, "compress", picture, "-o", file)
    assert "give --out" in refused(capsys, "compress", picture, *known)
    assert "images" in refused(capsys, "compress", *known)
    assert "no such file" in refused(
        capsys, "compress", tmp_path / "absent.png", "-o", file, *known
    )
    Image.open(picture).save(pictures / "picture0.bmp")
    assert "rename one" in refused(capsys, "compress", pictures, "-o", tmp_path / "c", *known)
    assert "none is named" in refused(capsys, "frequencies")
    for command, one in (("compress", picture), ("decompress", file)):
        said = refused(capsys, command, one, "-o", tmp_path / "out.jpg", *known)
        assert "no .jpg is written" in said
        assert not (tmp_path / "out.jpg").exists()
    assert "holds no .vqk files" in refused(capsys, "decompress", pictures, *back, *known)
    picture.write_bytes(b"no picture")
    said = refused(capsys, "compress", picture, "-o", tmp_path / "d.vqk", *known)
    assert "is no readable image" in said
    assert "data.on_broken" not in said


def test_an_export_leaves_frequencies_behind_and_says_so(folder, pictures, tmp_path, capsys):
    counted = ("--data.source", "folder", "--data.path", str(pictures), "--data.channels", "1")
    assert main(["frequencies", str(folder), "--device", "cpu", *counted]) == 0
    capsys.readouterr()
    out = tmp_path / "exported"
    assert main(["export", str(folder), str(out)]) == 0
    assert f"{FREQUENCIES} stays behind" in capsys.readouterr().err
    assert not (out / FREQUENCIES).exists()
    assert main(["export", str(out), str(tmp_path / "again")]) == 0
    assert "stays behind" not in capsys.readouterr().err


def test_a_file_too_large_is_not_read(tmp_path):
    path = tmp_path / "x.vqk"
    path.write_bytes(bytes(100))
    assert read_file(path) == bytes(100)
    with pytest.raises(ValueError, match="more than 99"):
        read_file(path, limit=99)
