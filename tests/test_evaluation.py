"""The evaluator on generated images: every number against one computed here, another way."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from PIL import Image

from vqkit.config import DataConfig, NetworkConfig, QuantizerConfig
from vqkit.data import load_images
from vqkit.data.share import Share
from vqkit.evaluation import Evaluation, evaluate
from vqkit.metrics import DEFAULT, psnr, ssim, to_bytes
from vqkit.models import ImageTokenizer, TokenizerConfig
from vqkit.models.tokenizer import evaluation_mode

SIZES = [(16, 20), (16, 20), (13, 17), (9, 12), (16, 20)]  # one is below SSIM's window


def make_tokenizer(preset="looc", *, channels=1, seed=0, **args):
    torch.manual_seed(seed)
    network = NetworkConfig(
        image_channels=channels, hidden=8, residual_hidden=4, num_residual_blocks=1
    )
    args = args or {"num_codes": 16, "dim": 4, "num_segments": 2}
    quantizer = QuantizerConfig(preset=preset, args=args)
    tokenizer = ImageTokenizer(TokenizerConfig(network=network, quantizer=quantizer))
    with torch.no_grad():  # features around zero, so that fresh weights use several codes
        last = tokenizer.encoder.pre_vq
        last.bias.zero_()
        features = tokenizer.encoder(torch.rand(8, channels, 16, 16) * 2 - 1)
        last.bias.copy_(-features.mean((0, 2, 3)))
        last.weight.mul_(100)
        last.bias.mul_(100)
    return tokenizer


def make_images(folder, sizes=SIZES, channels=1):
    generator = torch.Generator().manual_seed(7)
    for index, (height, width) in enumerate(sizes):
        coarse = torch.rand(1, channels, 4, 4, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
        pixels = (smooth * 255).round().to(torch.uint8)
        array = pixels[0] if channels == 1 else pixels.permute(1, 2, 0)
        Image.fromarray(array.numpy()).save(folder / f"{index}.png")
    return load_images(DataConfig(source="folder", path=str(folder), channels=channels))


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    return make_images(folder)


class Lossless(ImageTokenizer):
    """Writes every pixel as it is, to see the perfect case."""

    def encode(self, images):
        assert not self.training
        self.kept = images
        return super().encode(images)

    def decode(self, ids, size=None):
        return self.kept.float() / 127.5 - 1


# Numbers


def test_every_number_by_another_way(images):
    tokenizer = make_tokenizer()
    found = evaluate(tokenizer, images, batch_size=2, name="looc")

    decibels, similar, tokens, pixels = [], [], [], 0
    for index, (height, width) in enumerate(SIZES):
        original = images.image(index)[None]
        rebuilt = to_bytes(tokenizer.reconstruct(original))
        decibels.append(psnr(rebuilt, original).item())
        if height >= 11:
            similar.append(ssim(rebuilt, original).item())
        tokens.append(tokenizer.encode(original).flatten(0, 2))
        pixels += height * width
    tokens = torch.cat(tokens)

    assert found.value("psnr") == pytest.approx(sum(decibels) / 5)
    assert found.value("ssim") == pytest.approx(sum(similar) / 4)
    assert (found.metric("ssim").num_images, found.metric("psnr").num_images) == (4, 5)
    assert (found.num_images, found.num_pixels) == (5, pixels)
    # Padded to the stride: 4×5, 4×5, 4×5, 3×3, 4×5 positions of two tokens each.
    assert found.num_tokens == tokens.numel() == 2 * 89
    assert found.value("rate") == pytest.approx(89 * 2 * math.log2(16) / pixels)
    assert found.value("raw_rate") == 8
    shares = [slot.bincount() / len(slot) for slot in tokens.T]
    entropy = sum(-(p[p > 0] * p[p > 0].log2()).sum().item() for p in shares)
    assert entropy > 1
    assert found.value("entropy_rate") == pytest.approx(89 * entropy / pixels, rel=1e-5)
    pooled = tokens.flatten().bincount() / tokens.numel()
    nats = -(pooled[pooled > 0] * pooled[pooled > 0].log()).sum()
    assert found.value("perplexity") == pytest.approx(nats.exp().item(), rel=1e-5)
    assert found.value("usage") == len(tokens.unique()) / 16
    assert found.value("usage_ceiling") == 1
    assert found.value("usage_uniform") == pytest.approx(1 - (15 / 16) ** 178)
    assert found.codebook_floats == 16 * 4
    assert {metric.protocol for metric in found.metrics} == {found.protocol.id}


def test_png_rate_is_that_of_the_files(tmp_path):
    image_set = make_images(tmp_path, [(24, 24)] * 3, channels=3)
    for file in tmp_path.glob("*.png"):
        Image.open(file).save(file, optimize=True)
    bits = 8 * sum(file.stat().st_size for file in tmp_path.glob("*.png"))
    found = evaluate(make_tokenizer(channels=3), image_set)
    assert found.value("png_rate") == pytest.approx(bits / (3 * 24 * 24))
    assert found.value("raw_rate") == 24


def test_tiles_change_the_protocol_and_nothing_else(images):
    tokenizer = make_tokenizer()
    whole = evaluate(tokenizer, images)
    found = evaluate(tokenizer, images, protocol=replace(DEFAULT, tile=8))
    assert found.books == whole.books
    assert found.value("psnr") == pytest.approx(whole.value("psnr"))
    assert found.protocol.id != whole.protocol.id
    assert "in tiles of 8 pixels with a halo of the receptive field" in found.table()
    assert "tiles" not in whole.table()
    assert Evaluation.from_dict(found.to_dict()).protocol == found.protocol
    bare = evaluate(tokenizer, images, protocol=replace(DEFAULT, tile=8, halo=0))
    assert bare.value("psnr") != pytest.approx(whole.value("psnr"), rel=1e-4)  # halo arrives


def test_batch_size_changes_nothing(images):
    tokenizer = make_tokenizer()
    one, many = (evaluate(tokenizer, images, batch_size=size) for size in (1, 64))
    assert one.books == many.books
    assert one.protocol == many.protocol
    for a, b in zip(one.metrics, many.metrics, strict=True):
        # Convolutions may round differently at another batch size: at most single bytes flip.
        assert a.value == pytest.approx(b.value, abs=2e-3), a.name


@pytest.mark.parametrize(
    ("preset", "args", "books"),
    [
        ("looc", {"num_codes": 8, "dim": 2, "num_segments": 4}, [(8, (0, 1, 2, 3))]),
        ("pq", {"num_codes": 8, "dim": 2, "num_segments": 2}, [(8, (0,)), (8, (1,))]),
        ("rq", {"num_codes": 8, "dim": 4, "num_levels": 3}, [(8, (0, 1, 2))]),
        ("fsq", {"levels": (3, 5)}, [(15, (0,))]),
    ],
)
def test_usage_is_pooled_per_codebook(images, preset, args, books):
    found = evaluate(make_tokenizer(preset, **args), images)
    assert [(book.num_codes, book.slots) for book in found.books] == books
    assert [book.num_tokens for book in found.books] == [89 * len(slots) for _, slots in books]
    usages = [book.usage for book in found.books]
    assert found.value("usage") == pytest.approx(sum(usages) / len(usages))
    assert len(found.slots) == len(found.slot_names) == sum(len(slots) for _, slots in books)
    assert all(slot.num_tokens == 89 for slot in found.slots)


def test_few_tokens_have_a_ceiling(images):
    found = evaluate(make_tokenizer("vq_vae", num_codes=1000, dim=4), images)
    assert found.value("usage_ceiling") == 89 / 1000
    assert found.value("usage") <= found.value("usage_uniform") + 1e-9 < 89 / 1000
    assert "at most 8.9 %" in found.table()


def test_a_perfect_model(images):
    config = make_tokenizer().config
    found = evaluate(Lossless(config).train(), images, batch_size=1)
    assert (found.value("psnr"), found.value("ssim")) == (100.0, pytest.approx(1.0))
    assert (found.value("l1"), found.value("l2"), found.num_exact) == (0, 0, 5)
    assert "5 exact images count as 100 dB" in found.table()
    capped = evaluate(Lossless(config), images, protocol=replace(DEFAULT, psnr_cap=60.0))
    assert capped.value("psnr") == 60


# What an evaluation leaves alone


def test_nothing_changes(images):
    tokenizer = make_tokenizer("vq_ema", num_codes=16, dim=4).train()
    tokenizer.encoder.eval()  # a frozen part keeps its own mode
    modes = [module.training for module in tokenizer.modules()]
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    drawn = torch.get_rng_state()
    evaluate(tokenizer, images)
    assert [module.training for module in tokenizer.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in tokenizer.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(p.grad is None for p in tokenizer.parameters())
    assert torch.is_grad_enabled()


def test_the_mode_comes_back_after_an_error():
    tokenizer = make_tokenizer().train()
    modes = []

    def fail():
        with evaluation_mode(tokenizer):
            modes.append(tokenizer.quantizer.training)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert modes == [False]
    assert tokenizer.quantizer.training


def test_a_diverged_model_is_refused(images):
    tokenizer = make_tokenizer()
    with torch.no_grad():
        next(tokenizer.decoder.parameters()).fill_(math.nan)
    with pytest.raises(ValueError, match="diverged"):
        evaluate(tokenizer, images)


def test_progress_counts_images(images):
    seen = []
    evaluate(make_tokenizer(), images, batch_size=2, progress=lambda *at: seen.append(at))
    assert seen == [(2, 5), (3, 5), (4, 5), (5, 5)]


def test_a_known_lossless_rate_is_reused(images, monkeypatch):
    first = evaluate(make_tokenizer(), images)
    monkeypatch.setattr("vqkit.metrics.rate.png_bytes", None)  # measuring again would fail
    second = evaluate(make_tokenizer(seed=1), images, lossless=first.lossless)
    assert second.value("png_rate") == first.value("png_rate")
    with pytest.raises(ValueError, match="lossless: measured on 5 images"):
        evaluate(make_tokenizer(), Share.of(images, (0, 2)), lossless=first.lossless)


# Protocol


def test_the_protocol_knows_the_images(images, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    found = evaluate(make_tokenizer(), images)
    elsewhere = evaluate(make_tokenizer(), make_images(other, SIZES[:2]))
    rounded = evaluate(make_tokenizer(), images, protocol=replace(DEFAULT, rounding="truncate"))
    assert found.protocol == DEFAULT.on(images.fingerprint(), 5)
    assert len({one.protocol.id for one in (found, elsewhere, rounded)}) == 3
    assert evaluate(make_tokenizer(seed=1), images).protocol.id == found.protocol.id


def test_all_images_below_the_window(tmp_path):
    found = evaluate(make_tokenizer(), make_images(tmp_path, [(8, 8)] * 3))
    assert found.value("ssim") is None
    assert "n/a" in found.table()


# Several processes


def test_shares_cover_the_set(images):
    parts = [Share.of(images, (rank, 3)) for rank in range(3)]
    assert [len(part) for part in parts] == [1, 2, 2]
    together = [part.image(index) for part in parts for index in range(len(part))]
    assert all(torch.equal(a, images.image(i)) for i, a in enumerate(together))
    assert [part.name(0) for part in parts] == [images.name(i) for i in (0, 1, 3)]
    with pytest.raises(IndexError):
        parts[0].image(1)
    with pytest.raises(ValueError, match="share="):
        Share.of(images, (2, 2))
    with pytest.raises(ValueError, match="there are 1 processes"):
        evaluate(make_tokenizer(), images, share=(0, 2))


def evaluate_share(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    image_set = load_images(DataConfig(source="folder", path=f"{folder}/images", channels=1))
    tokenizer = make_tokenizer()
    whole = evaluate(tokenizer, image_set, batch_size=1)
    both = evaluate(tokenizer, image_set, batch_size=1, share=(rank, 2))
    assert both.books == whole.books
    assert both.slots == whole.slots
    assert both.protocol == whole.protocol
    for a, b in zip(both.metrics, whole.metrics, strict=True):
        assert a.value == pytest.approx(b.value, rel=1e-12)
        assert (a.num_images, a.num_tokens) == (b.num_images, b.num_tokens)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_measure_one_set(images, tmp_path):
    torch.multiprocessing.spawn(evaluate_share, args=(tmp_path,), nprocs=2)
