"""Large codebooks on photographs: one recipe but for the codebook, and all ablations."""

from dataclasses import fields, replace

import pytest
import torch
from safetensors.torch import save_file

from vqkit.codebooks import CodebookFile, write_codebook
from vqkit.config import DataConfig, RunConfig, from_dict, to_dict
from vqkit.data import Batch
from vqkit.models import ImageTokenizer, TokenizerConfig
from vqkit.models.settings import read_tensors
from vqkit.quantizers import ProjectedCodebook
from vqkit.recipes import GROUPS, recipe, tiny
from vqkit.training.machine import make_accelerator
from vqkit.training.objective import TokenizerObjective
from vqkit.training.trainer import Trainer

NAMES = tuple(GROUPS["Photographs, large codebooks"])


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def quantizer_of(config):
    """The quantizer of a recipe and its channels."""
    settings = TokenizerConfig(network=config.network, quantizer=config.quantizer)
    return ImageTokenizer(settings).quantizer


def test_all_four_differ_in_the_codebook_alone():
    configs = [recipe(name)(path="images", num_steps=50, batch_size=4) for name in NAMES]
    same = [field.name for field in fields(RunConfig) if field.name not in ("name", "quantizer")]
    for config in configs:
        assert {name: getattr(config, name) for name in same} == {
            name: getattr(configs[0], name) for name in same
        }
    assert [config.name for config in configs] == list(NAMES)
    assert [config.quantizer.preset for config in configs] == [
        "vqgan_lc",
        "vqgan_fc",
        "vq_ema",
        "vq_vae",
    ]
    assert {config.quantizer.args["commitment"] for config in configs} == {1.0}
    assert [config.quantizer.args.get("codebook") for config in configs] == [0.33, 0.33, None, 0.33]


def test_the_recipe_is_the_small_network_without_a_discriminator():
    config = recipe("photos_lc")(path="mine")
    assert (config.network.stride, config.adversarial) == (4, None)
    assert config.objective.reconstruction == "l1"
    assert config.data == DataConfig(
        source="folder", path="mine", crop="random", crop_size=128, flip=True
    )
    assert (config.optim.num_steps, config.optim.batch_size, config.optim.lr) == (1000, 8, 1e-3)
    assert recipe("photos_lc")(name="other", size=64).data.crop_size == 64
    assert recipe("photos_lc")(name="other").name == "other"


def test_baselines_take_codes_and_dim():
    for name, dim in (("photos_lc_fc", 8), ("photos_lc_ema", 8), ("photos_lc_vq", 64)):
        args = recipe(name)().quantizer.args
        assert (args["num_codes"], args["dim"], args["in_channels"]) == (16_384, dim, None)
        quantizer = quantizer_of(recipe(name)(num_codes=32, dim=5))
        assert (quantizer.slots[0].num_codes, quantizer.channels) == (32, 5)


@pytest.mark.parametrize(
    ("options", "channels", "trained"),
    [
        ({}, 8, ["projector.bias", "projector.weight"]),
        ({"dim": 512}, 512, ["projector.bias", "projector.weight"]),  # Table 10
        ({"frozen": False}, 8, ["features", "projector.bias", "projector.weight"]),  # Table 9
        ({"projector": False}, 24, []),
        ({"frozen": False, "projector": False}, 24, ["features"]),
    ],
)
def test_the_ablations_of_the_paper_are_options(options, channels, trained, tmp_path):
    file = tmp_path / "codes.safetensors"  # any size, initialisation and origin: Tables 6 to 8
    save_file({"codes": torch.randn(30, 24)}, file)
    config = recipe("photos_lc")(codebook=str(file), **options)
    assert from_dict(RunConfig, to_dict(config)) == config
    quantizer = quantizer_of(config)
    assert (quantizer.slots[0].num_codes, quantizer.channels) == (30, channels)
    names = [name.partition("codebook.")[2] for name, _ in quantizer.named_parameters()]
    assert sorted(names) == trained


def test_what_does_not_fit_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"codebook='a' with random_codes=4: give one of them"):
        recipe("photos_lc")(codebook="a", random_codes=4)
    with pytest.raises(ValueError, match=r"photos\.safetensors': no such file; name a safetensors"):
        quantizer_of(recipe("photos_lc")(codebook=str(tmp_path / "photos.safetensors")))
    config = recipe("photos_lc")(random_codes=4, dim=6, projector=False)
    with pytest.raises(ValueError, match=r"dim=6 with projector=False: features have 768"):
        quantizer_of(config)


def test_random_codes_are_the_first_row_of_table_6():
    args = recipe("photos_lc")(random_codes=5).quantizer.args
    assert args["features"] == {"normal": {"shape": (5, 768)}}
    settings = TokenizerConfig(quantizer=recipe("photos_lc")(random_codes=5).quantizer)
    assert read_tensors(settings).quantizer.args["features"].shape == (5, 768)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_projected_table_is_made_once_a_forward_and_kept_in_evaluation(accumulate, monkeypatch):
    config = tiny(recipe("photos_lc")(random_codes=16))
    config = replace(config, optim=replace(config.optim, accumulate=accumulate))
    trainer = Trainer(config, make_accelerator(), TokenizerObjective(config.objective))
    (book,) = [m for m in trainer.tokenizer.modules() if isinstance(m, ProjectedCodebook)]
    calls = []
    project = book.projector.forward
    monkeypatch.setattr(book.projector, "forward", lambda rows: calls.append(1) or project(rows))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=generator)
    for step in (1, 2):
        assert not trainer.step(Batch(images, [""] * 8)).problem
        assert len(calls) == step * accumulate
    tokenizer = trainer.tokenizer.eval()
    calls.clear()
    for part in images.split(2):
        tokenizer.decode(tokenizer.encode(part))
    assert len(calls) == 1


def test_a_pool_is_another_file_of_the_same_encoder(tmp_path):
    for name, rows, encoder in (("codes", 30, "one"), ("more", 90, "one"), ("others", 90, "two")):
        provenance = {"features": {"encoder": {"sha256": encoder, "layer": None}}}
        write_codebook(tmp_path / name, CodebookFile(torch.randn(rows, 24), provenance))
    files = {"codebook": str(tmp_path / "codes"), "pool": str(tmp_path / "more")}
    config = recipe("photos_lc")(**files, align=0.99, patience=2.0)
    assert from_dict(RunConfig, to_dict(config)) == config
    (leaf,) = quantizer_of(config).quantizer.leaves()
    align, reselect = leaf.rules
    assert (align.decay, reselect.patience, reselect.pool.shape) == (0.99, 2.0, (90, 24))
    with pytest.raises(ValueError, match=r"pool.file=.*others': its features come from another"):
        quantizer_of(recipe("photos_lc")(**{**files, "pool": str(tmp_path / "others")}))
    with pytest.raises(ValueError, match=r"patience=2.0: is that of a pool; give pool"):
        recipe("photos_lc")(patience=2.0)
    with pytest.raises(ValueError, match=r"align=1.5: must lie in \[0, 1\)"):
        recipe("photos_lc")(align=1.5)
