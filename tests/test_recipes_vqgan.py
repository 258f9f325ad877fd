"""Recipes of the VQGAN systems: what they reproduce, at which rate, and that they train."""

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from vqkit.cli.options import Options
from vqkit.config import (
    DataConfig,
    NetworkConfig,
    QuantizerConfig,
    RunConfig,
    ViTNetwork,
    VQGANNetwork,
    from_dict,
    to_dict,
    with_changes,
)
from vqkit.models import ImageTokenizer, TokenizerConfig
from vqkit.models.networks import build_networks
from vqkit.models.settings import build_quantizer, read_tensors
from vqkit.recipes import GROUPS, RECIPES, looc_table12_images, recipe, tiny
from vqkit.training import read_log, train

DOCS = Path(__file__).resolve().parent.parent / "docs" / "recipes.md"
PHOTOS = [name for title in GROUPS if title.startswith("Photographs, ") for name in GROUPS[title]]
# Without a discriminator.
ALONE = {"dual_vq_vae", *GROUPS["Photographs, large codebooks"]}
NAMES = [name for name, make in RECIPES.items() if not isinstance(make().network, NetworkConfig)]
PAPERS = [name for name in NAMES if name not in PHOTOS]
FAST = ("photos_vqgan", "dual_vq_vae", "lc_vqgan")
LPIPS = {name for name in PAPERS if name != "dual_vq_vae"}


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def quantizer_of(config):
    """The quantizer as published; features that a file would hold are random and short."""
    args = config.quantizer.args
    if "features" in args:
        args = {**args, "features": {"normal": {"shape": (100_000, 8)}}}
    settings = TokenizerConfig(quantizer=replace(config.quantizer, args=args))
    return build_quantizer(read_tensors(settings).quantizer)


def rate(config, side):
    """Tokens and bits per pixel of an image, from the shapes that its networks give."""
    quantizer = quantizer_of(config)
    positions = positions_of(config.network, quantizer.channels, side)
    bits = positions * quantizer.bits_per_position
    return positions * len(quantizer.slots), bits / side**2


@cache
def positions_of(network, channels, side):
    with torch.device("meta"):
        encoder, decoder = build_networks(network, channels)
        z = encoder(torch.empty(1, 3, side, side))
        assert decoder(z).shape == (1, 3, side, side)
    assert z.shape[1] == channels
    return z.shape[2] * z.shape[3]


def side_of(config):
    return config.data.resize or config.data.crop_size


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_a_run_of_plain_values(name):
    config = RECIPES[name]()
    assert from_dict(RunConfig, to_dict(config)) == config
    assert config.data != config.test_data
    assert not config.test_data.flip
    assert config.test_data.crop != "random"
    assert config.objective.perceptual == ("lpips" if name in LPIPS else "none")
    assert (config.adversarial is None) == (name in ALONE)


@pytest.mark.parametrize("name", PAPERS)
def test_docstrings_say_what_is_reproduced(name):
    text = RECIPES[name].__doc__
    order = [text.index(f"    {word}") for word in ("Command: ", "Published", "Hardware: ")]
    order += [text.index(f"    {word}") for word in ("Data: ", "Differs: ")]
    assert order == sorted(order)
    assert f"`vqkit train {name}" in text
    assert all(word in text for word in ("PSNR", "FID"))
    assert "docs/datasets.md" in text or "Data: as " in text


# As printed: Dual's Tables 1 and S1 (fid, psnr), by system and data set.
DUAL_TABLE = {
    "dual_ade20k": "PSNR 20.88, FID 17.03, l1 0.0682, l2 0.0099",
    "dual_celeba_hq": "PSNR 25.88, FID 8.61, l1 0.0364, l2 0.003",
    "dual_ms_coco": "PSNR 20.72, FID 4.19, l1 0.0717, l2 0.0103",
    "dual_cub_200": "PSNR 20.8, FID 5.93, l1 0.0728, l2 0.0102",
    "dual_vq_vae": "ADE20K PSNR 21.08, FID 116.85; CelebA-HQ PSNR 25.29, FID 36.08; "
    "MS-COCO PSNR 23.55, FID 86.21; CUB-200 PSNR 24.38, FID 54.92",
    "dual_vqgan": "ADE20K PSNR 20.42, FID 22.04; CelebA-HQ PSNR 24.10, FID 5.66; "
    "MS-COCO PSNR 20.21, FID 14.45; CUB-200 PSNR 22.19, FID 3.63",
    "dual_gumbel": "ADE20K PSNR 20.04, FID 24.12; CelebA-HQ PSNR 23.65, FID 6.22; "
    "MS-COCO PSNR 20.00, FID 15.30; CUB-200 PSNR 22.11, FID 3.45",
    "dual_cvq": "ADE20K PSNR 19.91, FID 33.63; CelebA-HQ PSNR 23.15, FID 5.19; "
    "MS-COCO PSNR 20.48, FID 9.94; CUB-200 PSNR 22.29, FID 3.61",
}
# VQGAN-LC's Tables 2 and 3, LooC's Tables 2, 6, 9 and 10.
OTHER_TABLES = {
    "vqgan_lc_imagenet": "PSNR 23.8, SSIM 58.9 %, FID 2.62, LPIPS 0.12, usage 99.9 %; with 1,024 "
    "tokens (0.26 bits per pixel): PSNR 27.0, SSIM 71.6 %, FID 1.29, LPIPS 0.07",
    "vqgan_lc_ffhq": "PSNR 26.1, SSIM 69.4 %, FID 3.81, LPIPS 0.08, usage 99.5 %",
    "lc_vqgan": "PSNR 23.3, SSIM 52.4 %, FID 5.96, usage 3.4 %",
    "lc_vqgan_fc": "PSNR 22.8, SSIM 54.5 %, FID 4.29, usage 11.2 %",
    "lc_vqgan_ema": "PSNR 23.5, SSIM 56.6 %, FID 3.41, usage 83.2 %",
    "looc_ffhq": "256 codes PSNR 27.73, SSIM .8499, FID 1.97, LPIPS .0501; 1,024 codes (10 bits "
    "per pixel) PSNR 32.44, SSIM .9276, FID 1.37, LPIPS .0346",
    "looc_imagenet": "256 codes PSNR 23.64, SSIM .7233, FID 1.68, LPIPS .0916; 1,024 codes (10 "
    "bits per pixel) PSNR 29.15, SSIM .7160, FID 1.01",
    "looc_vqgan": "FFHQ PSNR 22.24, SSIM .6641, FID 4.42, LPIPS .1175, usage 42 %; ImageNet PSNR "
    "19.07, SSIM .5183, FID 7.94, LPIPS .2011, usage 44 %",
    "looc_cvq": "FFHQ PSNR 26.87, SSIM .8398, FID 2.03, LPIPS .0533; ImageNet PSNR 23.37, SSIM "
    ".7115, FID 1.57, LPIPS .1099",
    "looc_pq": "FFHQ PSNR 25.55, SSIM .8054, FID 2.43; ImageNet PSNR 21.73, SSIM .6701, FID 1.96",
    "looc_lsun_churches": "FID 15.17",
    "looc_lsun_bedrooms": "FID 17.52",
    "rq_vae": "ImageNet FID 3.20; with 512 tokens (0.109 bits per pixel) 2.69; with 1,024 tokens "
    "(0.219) 1.83",
    "movq": "FFHQ PSNR 26.72, SSIM .8212, FID 2.26, LPIPS .0585, usage 56 %; ImageNet PSNR 22.42, "
    "SSIM .6731, FID 1.12, LPIPS .1132, usage 63 %",
    "vit_vqgan": "ImageNet FID 1.28, usage 96 %; FFHQ FID 3.13",
}
# Dual's Table 2, in printed order.
TABLE_2 = "PSNR 20.21, FID 14.45|PSNR 19.58, FID 4.91|PSNR 19.26, FID 4.67|PSNR 19.51, FID 4.12"


@pytest.mark.parametrize(("name", "cells"), [*DUAL_TABLE.items(), *OTHER_TABLES.items()])
def test_docstrings_have_the_printed_numbers(name, cells):
    assert cells in " ".join(RECIPES[name].__doc__.split())


def test_rows_of_dual_table_2():
    text = " ".join(RECIPES["dual_table2"].__doc__.split())
    places = [text.index(cell) for cell in [*TABLE_2.split("|"), "PSNR 20.72, FID 4.19"]]
    assert places == sorted(places)
    rows = {row: recipe("dual_table2")(row=row) for row in ("i", "ii", "iii", "iv", "v")}
    assert rows["i"].quantizer == recipe("dual_vqgan")(data_set="ms_coco").quantizer
    refiners = [rows[row].quantizer.args["refiner"] for row in ("ii", "iii", "iv", "v")]
    assert refiners == ["none", "transformer", "transformer", "transformer"]
    halves = [rows[row].quantizer.args["dim"] for row in ("ii", "iii", "iv", "v")]
    assert halves == [(128, 128), (192, 64), (64, 192), (128, 128)]
    assert len({config.name for config in rows.values()}) == 5
    assert {config.data for config in rows.values()} == {recipe("dual_ms_coco")().data}
    with pytest.raises(ValueError, match=r"row='vi': expected one of"):
        recipe("dual_table2")(row="vi")


# Section 1.6 of the methods page, for 256 x 256 pixels: tokens and bits per image.
RATES = [
    ("dual_ade20k", {}, 512, 4608),
    ("dual_ms_coco", {"num_codes": 1024}, 512, 5120),
    ("dual_vqgan", {}, 256, 2560),
    ("lc_vqgan", {}, 256, 3584),
    ("lc_vqgan_fc", {}, 256, 3584),
    ("lc_vqgan_ema", {"tokens": 1024}, 1024, 14336),
    ("vqgan_lc_imagenet", {}, 256, 4252),
    ("vqgan_lc_ffhq", {"tokens": 1024}, 1024, 17008),
    ("looc_ffhq", {"beta": 1}, 16_384, 131_072),
    ("looc_ffhq", {}, 65_536, 524_288),
    ("looc_ffhq", {"layout": "official"}, 65_536, 524_288),
    ("looc_imagenet", {"num_codes": 1024, "beta": 1}, 16_384, 163_840),
    ("looc_lsun_bedrooms", {}, 65_536, 655_360),
    ("looc_ffhq", {"num_codes": 1024, "dim": 256}, 1024, 10_240),
    ("looc_cvq", {}, 256, 2560),
    ("looc_cvq", {"beta": 2}, 1024, 10_240),
    ("looc_pq", {}, 16_384, 65_536),
    ("movq", {}, 1024, 10_240),
    ("rq_vae", {}, 256, 3584),
    ("rq_vae", {"tokens": 512}, 512, 7168),
    ("rq_vae", {"tokens": 1024}, 1024, 14336),
    ("rq_vae", {"data_set": "ffhq"}, 256, 2816),
    ("vit_vqgan", {}, 1024, 13_312),
    ("vit_vqgan", {"size": "base"}, 1024, 13_312),
]


@pytest.mark.parametrize(("name", "options", "tokens", "bits"), RATES)
def test_rates_are_those_of_the_papers(name, options, tokens, bits):
    found, per_pixel = rate(recipe(name)(**options), 256)
    assert (found, round(per_pixel * 256**2)) == (tokens, bits)


@pytest.mark.parametrize("name", NAMES)
def test_rates_are_those_of_the_docstrings_and_of_the_page(name):
    config = RECIPES[name]()
    tokens, bits = rate(config, side_of(config))
    first = RECIPES[name].__doc__.splitlines()[0]
    assert re.search(rf"\b{bits:.3g} bits?(/| per )pixel", first), (bits, first)
    if name in PAPERS and "tokens" in first:
        assert re.search(rf"\b{tokens:,} tokens", first)
    (row,) = [line for line in DOCS.read_text("utf-8").splitlines() if f"| `{name}` |" in line]
    assert f"| {bits:.3g} |" in row
    assert f"`vqkit train {name}`" in row


def test_the_page_lists_every_recipe():
    listed = re.findall(r"^\| `(\w+)` \|", DOCS.read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(RECIPES)


def test_dual_is_trained_as_published():
    config = recipe("dual_ade20k")()
    assert config.optim.lr == pytest.approx(1.44e-4)
    assert (config.optim.batch_size, config.optim.num_steps) == (32, 500 * 799)
    assert (config.optim.betas, config.optim.schedule) == ((0.5, 0.9), "constant")
    assert (config.objective.reconstruction, config.objective.perceptual_weight) == ("l1", 1.25)
    judge = config.adversarial
    assert (judge.start, judge.weight, judge.adaptive, judge.num_layers) == (10_000, 0.8, True, 3)
    assert config.network == VQGANNetwork()
    assert (config.data.stretch, config.data.crop, config.data.flip) == (True, "none", False)
    assert recipe("dual_ade20k")(batch_size=16).optim.lr == pytest.approx(7.2e-5)
    steps = {name: RECIPES[name]().optim.num_steps for name in PAPERS if name.startswith("dual")}
    assert steps["dual_ms_coco"] == 1_293_000
    assert (steps["dual_celeba_hq"], steps["dual_cub_200"]) == (390_500, 93_500)
    for name in ("dual_ade20k", "dual_celeba_hq", "dual_ms_coco", "dual_cub_200"):
        assert f"{steps[name]:,} steps" in RECIPES[name].__doc__


def test_vqgan_lc_is_trained_as_published():
    config = recipe("vqgan_lc_imagenet")()
    optim = config.optim
    assert (optim.lr, optim.batch_size, optim.num_steps) == (5e-4, 256, 100_080)
    assert (optim.schedule, optim.warmup_steps, optim.final_lr) == ("cosine", 5 * 5004, 0.0)
    assert (optim.betas, optim.eps) == ((0.5, 0.9), 1e-7)
    judge = config.adversarial
    assert (judge.start, judge.weight, judge.num_layers) == (50_000, 0.1, 2)
    assert optim.num_steps > judge.start, "the discriminator runs"
    assert recipe("vqgan_lc_ffhq")().optim.num_steps == 800 * 234
    weights = {"commitment": 0.1, "codebook": 0.033}
    for name in ("vqgan_lc_imagenet", "lc_vqgan", "lc_vqgan_fc"):
        args = RECIPES[name]().quantizer.args
        assert {key: args[key] for key in weights} == weights
    assert recipe("lc_vqgan_ema")().quantizer.args["commitment"] == 0.1
    assert recipe("lc_vqgan_fc")(metric="cosine").quantizer.preset == "vit_vqgan"
    f8 = recipe("lc_vqgan")(tokens=1024).network
    assert (f8.multipliers, f8.attention_strides) == ((1, 2, 2, 4), ())
    # A short run keeps no warm-up that it never leaves.
    assert recipe("lc_vqgan")(num_steps=100).optim.warmup_steps == 50


def test_looc_is_trained_as_vqgan():
    faces, photographs = recipe("looc_ffhq")(), recipe("looc_imagenet")()
    assert (faces.optim.batch_size, faces.adversarial.start) == (3, 30_001)
    assert (photographs.optim.batch_size, photographs.adversarial.start) == (12, 250_001)
    assert faces.optim.lr == pytest.approx(1.35e-5)
    assert photographs.optim.lr == pytest.approx(5.4e-5)
    args = recipe("looc_ffhq")(update="none", num_codes=1024).quantizer.args
    assert (args["update"], args["num_codes"], args["num_segments"]) == ("none", 1024, 64)
    assert {recipe("looc_ffhq")(beta=beta).quantizer.args["beta"] for beta in range(1, 5)} == {
        *range(1, 5)
    }
    assert recipe("looc_lsun_churches")().data == DataConfig(
        source="lmdb",
        path="data/lsun_churches/church_outdoor_train_lmdb",
        resize=256,
        crop="center",
        crop_size=256,
        flip=True,
    )
    with pytest.raises(ValueError, match=r"dim=7: must divide 256"):
        recipe("looc_ffhq")(dim=7)


def test_the_other_systems_are_trained_as_published():
    rq, faces = recipe("rq_vae")(), recipe("rq_vae")(data_set="ffhq")
    assert (rq.optim.lr, rq.optim.batch_size, rq.optim.num_steps) == (4e-5, 128, 100_090)
    assert (faces.optim.num_steps, faces.optim.warmup_steps) == (70_200, 5 * 468)
    assert (rq.objective.reconstruction, rq.adversarial.start) == ("mse", 0)
    assert (rq.adversarial.weight, rq.adversarial.discriminator_weight) == (0.75, 0.75)
    assert [c.quantizer.args["num_codes"] for c in (rq, faces)] == [16_384, 2048]
    vit = recipe("vit_vqgan")()
    assert (vit.optim.num_steps, vit.optim.warmup_steps, vit.optim.final_lr) == (
        500_000,
        50_000,
        0.5,
    )
    assert (vit.optim.weight_decay, vit.adversarial.r1, vit.adversarial.adaptive) == (
        1e-4,
        10,
        False,
    )
    assert vit.network == ViTNetwork()
    simvq = recipe("simvq")()
    assert (simvq.optim.num_steps, simvq.optim.weight_ema) == (250_200, 0.999)
    assert (simvq.data.resize, simvq.data.crop_size) == (128, 128)
    assert recipe("movq")().network.modulation == "codes"
    assert recipe("movq")().quantizer.args["num_segments"] == 4


def test_paths():
    config = recipe("dual_ms_coco")(path="here")
    assert (config.data.path, config.test_data.path) == ("here/train2014", "here/val2014")
    assert config.validation is None
    config = recipe("dual_ms_coco")(path="mine", test_path="theirs", validation_path="held")
    assert (config.data.path, config.test_data.path) == ("mine", "theirs")
    assert config.validation.data == replace(config.test_data, path="held")
    for name in PAPERS:
        config = RECIPES[name]()
        assert config.data.path != config.test_data.path, "nothing is tested on what it learned"


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"dropout with refiner='none': it has no dropout"):
        recipe("dual_ade20k")(refiner="none", dropout=0.0)
    with pytest.raises(ValueError, match=r"channels=\(128,\): give those of"):
        recipe("dual_ade20k")(channels=(128,))
    with pytest.raises(ValueError, match=r"data_set='cifar10': expected one of"):
        recipe("dual_vqgan")(data_set="cifar10")
    with pytest.raises(ValueError, match=r"data_set='ade20k': expected one of"):
        recipe("lc_vqgan")(data_set="ade20k")
    with pytest.raises(ValueError, match=r"tokens=512: expected 256 \(f16\) or 1024"):
        recipe("vqgan_lc_imagenet")(tokens=512)
    with pytest.raises(ValueError, match=r"tokens=100: must be a multiple of 64"):
        recipe("rq_vae")(tokens=100)
    with pytest.raises(ValueError, match=r"codebook='a' with random_codes=8: give one"):
        recipe("vqgan_lc_ffhq")(codebook="a", random_codes=8)
    with pytest.raises(ValueError, match=r"dim=4 with projector=False"):
        recipe("vqgan_lc_ffhq")(dim=4, projector=False)
    with pytest.raises(ValueError, match=r"metric='l1': expected 'l2' or 'cosine'"):
        recipe("lc_vqgan_fc")(metric="l1")
    with pytest.raises(ValueError, match=r"size='large': expected one of"):
        recipe("vit_vqgan")(size="large")


# ------------------------------------------------------------------- codebook


def small_lc(features):
    args = {"features": features, "dim": 4, "in_channels": None}
    return TokenizerConfig(
        quantizer=QuantizerConfig(preset="vqgan_lc", args=args),
        network=NetworkConfig(hidden=8, residual_hidden=4, num_residual_blocks=1),
    )


def test_a_codebook_file_is_read_when_the_model_is_built(tmp_path):
    assert recipe("vqgan_lc_ffhq")(codebook="a.st").quantizer.args["features"] == {"file": "a.st"}
    features = torch.randn(12, 6, generator=torch.Generator().manual_seed(1))
    save_file({"codebook": features.half()}, tmp_path / "codes.safetensors")
    model = ImageTokenizer(small_lc({"file": str(tmp_path / "codes.safetensors")}))
    held = dict(model.quantizer.named_buffers())
    (found,) = [tensor for tensor in held.values() if tensor.shape == (12, 6)]
    torch.testing.assert_close(found, features.half().float(), rtol=0, atol=0)
    # The saved tokenizer needs the file no more.
    model.save_pretrained(tmp_path / "saved")
    (tmp_path / "codes.safetensors").unlink()
    again = ImageTokenizer.from_pretrained(tmp_path / "saved")
    images = torch.rand(1, 3, 8, 8) * 2 - 1
    assert torch.equal(again.encode(images), model.encode(images))


def test_random_features_are_asked_for():
    made = recipe("vqgan_lc_ffhq")(random_codes=100).quantizer.args["features"]
    assert made == {"normal": {"shape": (100, 768)}}
    first, second, other = (
        read_tensors(small_lc({"normal": {"shape": [5, 3], "seed": seed}})) for seed in (1, 1, 2)
    )
    a, b, c = (x.quantizer.args["features"] for x in (first, second, other))
    assert a.shape == (5, 3)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_unsuitable_codebook_files_are_refused(tmp_path):
    file = tmp_path / "codes.safetensors"
    with pytest.raises(ValueError, match=r"args\.features\.file='nowhere': no such file"):
        ImageTokenizer(small_lc({"file": "nowhere"}))
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"is no safetensors file"):
        ImageTokenizer(small_lc({"file": str(file)}))
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(2, 3)}, file)
    with pytest.raises(ValueError, match=r"holds 2 tensors; expected the features alone"):
        ImageTokenizer(small_lc({"file": str(file)}))
    save_file({"a": torch.zeros(2, 3, dtype=torch.int64)}, file)
    with pytest.raises(ValueError, match=r"of shape \(2, 3\) and type torch.int64"):
        ImageTokenizer(small_lc({"file": str(file)}))
    with pytest.raises(ValueError, match=r"normal=\{'shape': \[3\]\}: expected the shape"):
        ImageTokenizer(small_lc({"normal": {"shape": [3]}}))


def test_a_saved_model_names_no_file(tmp_path):
    model = ImageTokenizer(small_lc({"normal": {"shape": [5, 3]}}))
    model.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    described = '"features": {\n          "tensor"'
    text = config.read_text("utf-8")
    assert described in text
    text = re.sub(r'"features": \{.*?\}\s*\}', '"features": {"file": "secret"}', text, flags=re.S)
    config.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"names no other source"):
        ImageTokenizer.from_pretrained(tmp_path)


# ----------------------------------------------------------------- evaluation


def test_the_evaluation_of_looc_table_12_is_a_command():
    text = " ".join(looc_table12_images.__doc__.split())
    assert "PSNR 26.36, SSIM .8141, FID 5.66; PSNR 26.73, SSIM .8234, FID 3.86" in text
    command = re.search(r"`vqkit evaluate (\S+) (.*?)`", text)
    assert command[1] == f"runs/{recipe('looc_ffhq')().name}"
    options = Options("evaluate NAME", None)
    options.add_fields(DataConfig, "data.")
    given = options.parse(command[2].split())["data"]
    assert from_dict(DataConfig, given) == looc_table12_images()


# ----------------------------------------------------------------------- tiny


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of eight images of 16 x 16 pixels: gradients and noise."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    for i in range(8):
        low = torch.rand(1, 3, 3, 3, generator=generator)
        image = torch.nn.functional.interpolate(low, 16, mode="bilinear")[0]
        pixels = (image * 255).to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return DataConfig(source="folder", path=str(folder))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FAST else [pytest.mark.slow]) for n in NAMES]
)
def test_tiny_form_trains_with_its_discriminator(name, pictures, tmp_path):
    config = tiny(RECIPES[name](), pictures)
    config = with_changes(config, optim__num_steps=4, optim__batch_size=4)
    if config.adversarial is not None:
        config = with_changes(config, adversarial__start=1)
    result = train(config, out=tmp_path / "run", progress=False)
    log = read_log(tmp_path / "run/log.jsonl")
    assert [line["step"] for line in log] == [1, 2, 3, 4]
    assert all(torch.tensor(line["loss"]).isfinite() for line in log)
    judged = ["discriminator" in line for line in log]
    assert judged == ([False, True, True, True] if config.adversarial is not None else [False] * 4)
    tokenizer = result.tokenizer
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    ids = tokenizer.encode(images)
    assert torch.equal(tokenizer.decode(ids), tokenizer.reconstruct(images))


@pytest.mark.parametrize("name", NAMES)
def test_tiny_keeps_the_method(name):
    config = RECIPES[name]()
    small = tiny(config)
    assert small.quantizer.preset == config.quantizer.preset
    assert set(config.quantizer.args) <= set(small.quantizer.args)
    assert small.objective == replace(config.objective, perceptual="none")
    assert (small.validation, small.test_data, small.seed) == (None, None, config.seed)
    assert type(small.network) is type(config.network)
    assert small.optim.warmup_steps < small.optim.num_steps
    if config.adversarial is not None:
        judge = config.adversarial
        kept = {"width": judge.width, "start": judge.start, "num_layers": judge.num_layers}
        assert replace(small.adversarial, **kept) == judge
        assert small.adversarial.start <= 5
    if isinstance(config.network, VQGANNetwork):
        assert small.network.modulation == config.network.modulation
        assert bool(small.network.attention_strides) == bool(config.network.attention_strides)
