"""Recipes: the settings they give, the tables they cover, what importing them costs."""

import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest

from vqkit.config import (
    DataConfig,
    NetworkConfig,
    RunConfig,
    from_dict,
    to_dict,
    with_changes,
)
from vqkit.models import ImageTokenizer, TokenizerConfig
from vqkit.quantizers import build
from vqkit.recipes import (
    GENERATORS,
    GROUPS,
    PUBLISHED,
    RECIPES,
    TABLES,
    looc_table,
    published,
    recipe,
    recipe_list,
    small_image_run,
    table_recipes,
    tiny,
)

# The VQGAN systems have tests of their own, in test_recipes_vqgan.py; so has the recipe that reads
# a file of features, in test_recipes_photos_lc.py.
SMALL = [
    name
    for name, make in RECIPES.items()
    if isinstance(make().network, NetworkConfig) and name != "photos_lc"
]


def test_recipes_import_no_torch():
    code = (
        "import sys, vqkit.recipes as r; [f() for f in (r.RECIPES | r.GENERATORS).values()];"
        "r.looc_table(5);"
        "[r.tiny(f()) for f in r.RECIPES.values()]; r.recipe_list();"
        "sys.exit(' '.join(sorted({'torch', 'numpy', 'PIL'} & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_recipes_are_listed_by_paper():
    listed = recipe_list().splitlines()
    assert [line.split()[0] for line in listed if line.startswith("  ")] == [
        *RECIPES,
        *GENERATORS,
    ]
    titles = [line for line in listed if line and not line.startswith("  ")]
    assert titles[:-1] == list(GROUPS)
    assert titles[-1].startswith("Generators")
    recipes = [*RECIPES.values(), *GENERATORS.values()]
    assert all(len(make.__doc__.splitlines()[0]) <= 100 for make in recipes)


@pytest.mark.parametrize("name", SMALL)
def test_every_recipe_gives_a_run_that_fits_together(name):
    config = RECIPES[name]()
    assert isinstance(config, RunConfig)
    with pytest.raises(FrozenInstanceError):
        config.seed = 1
    assert from_dict(RunConfig, to_dict(config)) == config
    model = ImageTokenizer(TokenizerConfig(network=config.network, quantizer=config.quantizer))
    assert model.quantizer.channels <= 128
    words = recipe(name).__doc__
    assert f"vqkit train {name}`" in words, "the docstring gives the command"


def test_small_images_have_the_published_settings():
    config = recipe("looc_mnist")()
    assert config.quantizer.args == {"num_codes": 256, "dim": 4, "num_segments": 32}
    assert (config.optim.num_steps, config.optim.batch_size) == (500 * 468, 128)
    assert (config.optim.lr, config.optim.betas, config.optim.clip_norm) == (
        3e-4,
        (0.9, 0.999),
        None,
    )
    assert (config.objective.reconstruction, config.objective.variance) == ("mse", 0.0949)
    assert (config.network.hidden, config.network.residual_hidden) == (128, 32)
    assert (config.network.num_residual_blocks, config.network.skip) == (2, "relu")
    assert (config.data.channels, config.data.split, config.test_data.split) == (1, "train", "test")
    assert (config.optim.weight_ema, config.seed) == (None, 42)
    assert recipe("cvq_cifar10")().optim.batch_size == 1024
    assert recipe("cvq_cifar10")().optim.num_steps == 24_000
    assert recipe("looc_cifar10")().optim.num_steps == 195_000
    variances = [recipe(f"vq_vae_{x}")().objective.variance for x in ("fashion_mnist", "cifar10")]
    assert variances == [0.1246, 0.0633]
    sq = recipe("sq_vae_mnist")()
    assert (sq.objective.reconstruction, sq.objective.variance) == ("log_mse", 1.0)
    assert (sq.optim.lr, sq.optim.batch_size, sq.optim.num_steps) == (1e-3, 32, 187_500)


@pytest.mark.parametrize(
    ("name", "side", "bits_per_pixel"),
    [
        # Section 1.6 of the methods page, from 28² and 32² pixels and a stride of 4.
        ("looc_mnist", 28, 16.0),
        ("looc_cifar10", 32, 16.0),
        ("pq_cifar10", 32, 16.0),
        ("cvq_mnist", 28, 0.625),
        ("sq_vae_fashion_mnist", 28, 0.625),
        ("photos_cvq", 64, 0.625),
        ("photos_looc", 64, 8.0),
        ("photos_looc_small", 64, 0.625),
        ("photos_rq", 64, 2.0),
        ("photos_dual", 64, 1.125),
    ],
)
def test_rates_are_those_of_the_docstrings(name, side, bits_per_pixel):
    quantizer = build(RECIPES[name]().quantizer)
    rate = (side // 4) ** 2 * quantizer.bits_per_position / side**2
    assert rate == pytest.approx(bits_per_pixel)
    assert f"{bits_per_pixel:g}" in RECIPES[name].__doc__


def test_options_replace_the_published_ones():
    config = recipe("looc_mnist")(32, 8, path="here", batch_size=64, num_steps=7, name="mine")
    assert config.quantizer.args == {"num_codes": 32, "dim": 8, "num_segments": 16}
    assert (config.data.path, config.test_data.path) == ("here", "here")
    assert (config.optim.batch_size, config.optim.num_steps, config.name) == (64, 7, "mine")
    # Half the batch, twice the steps: epochs stay.
    assert recipe("looc_mnist")(batch_size=64).optim.num_steps == 500 * 937
    folder = recipe("photos_looc")(path="mine", size=128, num_steps=9)
    assert (folder.data.source, folder.data.path, folder.data.crop_size) == ("folder", "mine", 128)
    assert (folder.test_data.source, folder.test_data.split) == ("photos", "test")
    tested = recipe("photos_looc")(path="mine", test_path="theirs")
    assert tested.test_data == DataConfig(source="folder", path="theirs")


@pytest.mark.parametrize(("table", "rows"), [(1, 2 * 6), (3, 3 * 7), (4, 3 * 8), (5, 3 * 10)])
def test_tables_give_all_rows(table, rows):
    runs = looc_table(table)
    assert len(runs) == rows
    assert len({run.name for run in runs}) == rows
    for run in runs:
        args = run.quantizer.args
        if run.quantizer.preset in ("looc", "pq"):
            assert args["num_segments"] * args["dim"] == 128
    if table == 4:
        sizes = {r.quantizer.args["num_codes"] * r.quantizer.args["dim"] for r in runs}
        assert sizes == {1024 * 128, 32768}


def test_rows_are_recipes_by_name():
    row = recipe("looc_table5_32x4_mnist")(num_steps=10)
    assert row.name == "looc_table5_32x4_mnist"
    assert row.quantizer.args == {"num_codes": 32, "dim": 4, "num_segments": 32}
    assert recipe("looc_table1_pq_256x4_cifar10")().quantizer.preset == "pq"
    assert len(table_recipes()) == 12 + 21 + 24 + 30
    assert [f().name for f in table_recipes().values()][:12] == [r.name for r in looc_table(1)]


def test_tables_can_be_run_at_equal_steps():
    runs = looc_table(1, num_steps=1000, paths={"mnist": "m"})
    assert {(r.optim.num_steps, r.optim.batch_size) for r in runs} == {(1000, 128)}
    assert {r.data.path for r in runs} == {"m", "data/cifar10"}


def test_published_numbers_are_found_by_row():
    # Spot checks against the printed tables.
    assert published(("looc", 256, 4), "mnist") == {
        "l1": 0.0062,
        "lpips": 0.0058,
        "rfid": 1.31,
        "ssim": 0.9976,
        "psnr": 37.58,
    }
    assert published(("looc", 8192, 4), "cifar10")["psnr"] == 37.49
    assert published(("cvq", 1024, 128), "fashion_mnist")["rfid"] == 8.85
    assert "l1" not in published(("pq", 256, 4), "mnist")
    assert published(("pq", 256, 4), "fashion_mnist") == {}
    rows = {row for rows in TABLES.values() for row in rows}
    assert rows == set(PUBLISHED)


@pytest.mark.parametrize(
    ("name", "near"),
    [("looc_minst", "looc_mnist"), ("looc_table5_32x4_cifar", "looc_table5_32x4_cifar10")],
)
def test_an_unknown_recipe_names_the_nearest(name, near):
    with pytest.raises(ValueError, match=rf"recipe='{name}': unknown; did you mean .*{near}"):
        recipe(name)


def test_wrong_rows_are_refused():
    with pytest.raises(ValueError, match=r"table=2: expected one of 1, 3, 4, 5"):
        looc_table(2)
    with pytest.raises(ValueError, match=r"dim=5: must divide the 128 channels"):
        small_image_run("looc", "mnist", 256, 5)
    with pytest.raises(ValueError, match=r"preset='rq': expected one of looc"):
        small_image_run("rq", "mnist", 256, 4)


@pytest.mark.parametrize("name", SMALL)
def test_tiny_shrinks_and_keeps_the_method(name):
    config = RECIPES[name]()
    small = tiny(config)
    assert small.quantizer.preset == config.quantizer.preset
    assert set(config.quantizer.args) <= set(small.quantizer.args)
    assert (small.objective, small.seed) == (config.objective, config.seed)
    assert (small.optim.num_steps, small.network.hidden) == (20, 16)
    quantizer = build(small.quantizer)
    if name != "photos_fsq":  # the number of levels is the method
        assert max(slot.num_codes for slot in quantizer.slots) <= 16
    assert quantizer.channels <= 16


def test_tiny_takes_other_images_and_sizes_in_pairs():
    data = DataConfig(source="folder", path="here", channels=1)
    assert tiny(recipe("looc_mnist")(), data).data == data
    dual = with_changes(
        recipe("photos_dual")(), quantizer__args={"num_codes": (512, 8), "dim": [192, 64]}
    )
    args = tiny(dual).quantizer.args
    assert (args["num_codes"], args["dim"]) == ((16, 8), (4, 4))
