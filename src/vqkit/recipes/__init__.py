"""Recipes: one function per experiment, each returning a frozen `RunConfig`; none imports torch.

`RECIPES` names them all, `GROUPS` orders them by paper, `recipe(name)` finds one, `looc_table(5)`
gives all rows of a table of LooC, `tiny(config)` shrinks any of them for a test. `docs/recipes.md`
lists what each reproduces. `GENERATORS` are recipes for token sets, which return `GeneratorRun`s.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Final, Unpack

from vqkit.config import RunConfig
from vqkit.recipes.cifar10 import (
    cvq_cifar10,
    looc_cifar10,
    pq_cifar10,
    sq_vae_cifar10,
    vq_vae_cifar10,
)
from vqkit.recipes.equal_bits import equal_bits_mnist, equal_bits_photos
from vqkit.recipes.fashion_mnist import (
    cvq_fashion_mnist,
    looc_fashion_mnist,
    pq_fashion_mnist,
    sq_vae_fashion_mnist,
    vq_vae_fashion_mnist,
)
from vqkit.recipes.generators import GENERATORS, generator_recipe
from vqkit.recipes.mnist import cvq_mnist, looc_mnist, pq_mnist, sq_vae_mnist, vq_vae_mnist
from vqkit.recipes.mnist_tokens import mnist_tokens
from vqkit.recipes.photos import (
    PhotoOptions,
    photos_cvq,
    photos_dual,
    photos_fsq,
    photos_looc,
    photos_looc_small,
    photos_pq,
    photos_rq,
    photos_simvq,
    photos_vq_ema,
    photos_vq_vae,
)
from vqkit.recipes.photos_lc import photos_lc, photos_lc_ema, photos_lc_fc, photos_lc_vq
from vqkit.recipes.photos_vqgan import (
    VQGANPhotoOptions,
    photos_vqgan,
    photos_vqgan_cvq,
    photos_vqgan_dual,
    photos_vqgan_dual_plain,
    photos_vqgan_looc4,
    photos_vqgan_looc64,
    photos_vqgan_simvq,
)
from vqkit.recipes.published import (
    PUBLISHED,
    TABLES,
    Row,
    SmallSet,
    published,
    table_data_sets,
)
from vqkit.recipes.shrink import tiny
from vqkit.recipes.small_images import RunOptions, looc_table, row_name, small_image_run
from vqkit.recipes.vqgan_dual import (
    DualOptions,
    dual_ade20k,
    dual_celeba_hq,
    dual_cub_200,
    dual_cvq,
    dual_gumbel,
    dual_ms_coco,
    dual_table2,
    dual_vq_vae,
    dual_vqgan,
)
from vqkit.recipes.vqgan_lc import (
    LCOptions,
    lc_vqgan,
    lc_vqgan_ema,
    lc_vqgan_fc,
    vqgan_lc_ffhq,
    vqgan_lc_imagenet,
)
from vqkit.recipes.vqgan_looc import (
    LooCOptions,
    looc_cvq,
    looc_ffhq,
    looc_imagenet,
    looc_lsun_bedrooms,
    looc_lsun_churches,
    looc_pq,
    looc_table12_images,
    looc_vqgan,
)
from vqkit.recipes.vqgan_others import movq, rq_vae, simvq, vit_vqgan
from vqkit.recipes.vqgan_systems import VQGANOptions

__all__ = [
    "GENERATORS",
    "GROUPS",
    "PUBLISHED",
    "RECIPES",
    "TABLES",
    "DualOptions",
    "LCOptions",
    "LooCOptions",
    "PhotoOptions",
    "RunOptions",
    "VQGANOptions",
    "VQGANPhotoOptions",
    "generator_recipe",
    "looc_table",
    "looc_table12_images",
    "published",
    "recipe",
    "recipe_list",
    "row_name",
    "small_image_run",
    "table_recipes",
    "tiny",
]

Recipe = Callable[..., RunConfig]


def _by_name(*functions: Recipe) -> dict[str, Recipe]:
    return {function.__name__: function for function in functions}


GROUPS: Final[dict[str, dict[str, Recipe]]] = {
    "Photographs, a first look": _by_name(
        photos_vq_vae,
        photos_vq_ema,
        photos_cvq,
        photos_looc,
        photos_looc_small,
        photos_pq,
        photos_rq,
        photos_dual,
        photos_simvq,
        photos_fsq,
    ),
    "Photographs, small VQGANs": _by_name(
        photos_vqgan,
        photos_vqgan_cvq,
        photos_vqgan_simvq,
        photos_vqgan_dual,
        photos_vqgan_dual_plain,
        photos_vqgan_looc4,
        photos_vqgan_looc64,
    ),
    "Photographs, large codebooks": _by_name(
        photos_lc,
        photos_lc_fc,
        photos_lc_ema,
        photos_lc_vq,
    ),
    "Equal bits: six methods, `--method` and `--rate`": _by_name(
        equal_bits_mnist,
        equal_bits_photos,
    ),
    "MNIST, small tokenizers for generation": _by_name(mnist_tokens),
    "LooC, small images (Tables 1, 3, 4, 5)": _by_name(
        looc_mnist,
        vq_vae_mnist,
        cvq_mnist,
        sq_vae_mnist,
        pq_mnist,
        looc_cifar10,
        vq_vae_cifar10,
        cvq_cifar10,
        sq_vae_cifar10,
        pq_cifar10,
        looc_fashion_mnist,
        vq_vae_fashion_mnist,
        cvq_fashion_mnist,
        sq_vae_fashion_mnist,
        pq_fashion_mnist,
    ),
    "LooC, VQGANs (Tables 2, 6, 7, 9 to 12)": _by_name(
        looc_ffhq,
        looc_imagenet,
        looc_lsun_churches,
        looc_lsun_bedrooms,
        looc_vqgan,
        looc_cvq,
        looc_pq,
    ),
    "Dual Codebook VQ (Tables 1 to 3, S1)": _by_name(
        dual_ade20k,
        dual_celeba_hq,
        dual_ms_coco,
        dual_cub_200,
        dual_table2,
        dual_vq_vae,
        dual_vqgan,
        dual_gumbel,
        dual_cvq,
    ),
    "VQGAN-LC (Tables 1 to 3, 6 to 10)": _by_name(
        vqgan_lc_imagenet,
        vqgan_lc_ffhq,
        lc_vqgan,
        lc_vqgan_fc,
        lc_vqgan_ema,
    ),
    "Systems that the three papers quote": _by_name(rq_vae, movq, vit_vqgan, simvq),
}
"""Recipes by paper, in the order in which they are listed."""

RECIPES: Final[dict[str, Recipe]] = {
    name: function for group in GROUPS.values() for name, function in group.items()
}


def recipe_list() -> str:
    """Return all recipes with the first line of their docstring, under the names of their group."""
    width = max(map(len, [*RECIPES, *GENERATORS])) + 2
    blocks = []
    groups: dict[str, Mapping[str, Callable[..., object]]] = {
        **GROUPS,
        "Generators, trained on a token set (`--tokens FOLDER`)": GENERATORS,
    }
    for title, group in groups.items():
        lines = [
            f"  {name:<{width}}{(inspect.getdoc(function) or '').splitlines()[0]}"
            for name, function in group.items()
        ]
        blocks.append("\n".join([title, *lines]))
    return "\n\n".join(blocks)


def recipe(name: str) -> Recipe:
    """Return the recipe called `name`; an unknown name is a `ValueError` that suggests the nearest.

    Rows of LooC's tables are recipes too: `recipe("looc_table5_32x4_mnist")()`.
    """
    if name in RECIPES:
        return RECIPES[name]
    rows = table_recipes() if name.startswith("looc_table") else {}
    if name in rows:
        return rows[name]
    if name in GENERATORS:
        raise ValueError(f"recipe={name!r}: is a generator's; vqkit train {name} --tokens FOLDER")
    near = difflib.get_close_matches(name, [*RECIPES, *rows], n=3)
    hint = f"did you mean {', '.join(near)}?" if near else f"known are {', '.join(RECIPES)}"
    raise ValueError(f"recipe={name!r}: unknown; {hint}")


def table_recipes() -> dict[str, Recipe]:
    """Return a recipe for every row of LooC's Tables 1, 3, 4 and 5, by its name."""
    named: dict[str, Recipe] = {}
    for table, rows in TABLES.items():
        for data_set in table_data_sets(table):
            for row in rows:
                name = row_name(table, row, data_set)
                named[name] = _row_recipe(name, row, data_set)
    return named


def _row_recipe(name: str, row: Row, data_set: SmallSet) -> Recipe:
    def row_recipe(**options: Unpack[RunOptions]) -> RunConfig:
        options.setdefault("name", name)
        return small_image_run(row[0], data_set, row[1], row[2], **options)

    return row_recipe
