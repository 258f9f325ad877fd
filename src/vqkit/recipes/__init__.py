"""Recipes: one function per experiment, each returning a frozen `RunConfig`; none imports torch.

`RECIPES` names them all, `recipe(name)` finds one, `looc_table(5)` gives all rows of a table of
LooC, `tiny(config)` shrinks any of them for a test.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Unpack

from vqkit.config import RunConfig
from vqkit.recipes.cifar10 import (
    cvq_cifar10,
    looc_cifar10,
    pq_cifar10,
    sq_vae_cifar10,
    vq_vae_cifar10,
)
from vqkit.recipes.fashion_mnist import (
    cvq_fashion_mnist,
    looc_fashion_mnist,
    pq_fashion_mnist,
    sq_vae_fashion_mnist,
    vq_vae_fashion_mnist,
)
from vqkit.recipes.mnist import cvq_mnist, looc_mnist, pq_mnist, sq_vae_mnist, vq_vae_mnist
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

__all__ = [
    "PUBLISHED",
    "RECIPES",
    "TABLES",
    "PhotoOptions",
    "RunOptions",
    "looc_table",
    "published",
    "recipe",
    "row_name",
    "small_image_run",
    "table_recipes",
    "tiny",
]

RECIPES: dict[str, Callable[..., RunConfig]] = {
    "looc_mnist": looc_mnist,
    "vq_vae_mnist": vq_vae_mnist,
    "cvq_mnist": cvq_mnist,
    "sq_vae_mnist": sq_vae_mnist,
    "pq_mnist": pq_mnist,
    "looc_cifar10": looc_cifar10,
    "vq_vae_cifar10": vq_vae_cifar10,
    "cvq_cifar10": cvq_cifar10,
    "sq_vae_cifar10": sq_vae_cifar10,
    "pq_cifar10": pq_cifar10,
    "looc_fashion_mnist": looc_fashion_mnist,
    "vq_vae_fashion_mnist": vq_vae_fashion_mnist,
    "cvq_fashion_mnist": cvq_fashion_mnist,
    "sq_vae_fashion_mnist": sq_vae_fashion_mnist,
    "pq_fashion_mnist": pq_fashion_mnist,
    "photos_vq_vae": photos_vq_vae,
    "photos_vq_ema": photos_vq_ema,
    "photos_cvq": photos_cvq,
    "photos_looc": photos_looc,
    "photos_looc_small": photos_looc_small,
    "photos_pq": photos_pq,
    "photos_rq": photos_rq,
    "photos_dual": photos_dual,
    "photos_simvq": photos_simvq,
    "photos_fsq": photos_fsq,
}


def recipe(name: str) -> Callable[..., RunConfig]:
    """Return the recipe called `name`; an unknown name is a `ValueError` that suggests the nearest.

    Rows of LooC's tables are recipes too: `recipe("looc_table5_32x4_mnist")()`.
    """
    if name in RECIPES:
        return RECIPES[name]
    rows = table_recipes() if name.startswith("looc_table") else {}
    if name in rows:
        return rows[name]
    near = difflib.get_close_matches(name, [*RECIPES, *rows], n=3)
    hint = f"did you mean {', '.join(near)}?" if near else f"known are {', '.join(RECIPES)}"
    raise ValueError(f"recipe={name!r}: unknown; {hint}")


def table_recipes() -> dict[str, Callable[..., RunConfig]]:
    """Return a recipe for every row of LooC's Tables 1, 3, 4 and 5, by its name."""
    named: dict[str, Callable[..., RunConfig]] = {}
    for table, rows in TABLES.items():
        for data_set in table_data_sets(table):
            for row in rows:
                name = row_name(table, row, data_set)
                named[name] = _row_recipe(name, row, data_set)
    return named


def _row_recipe(name: str, row: Row, data_set: SmallSet) -> Callable[..., RunConfig]:
    def row_recipe(**options: Unpack[RunOptions]) -> RunConfig:
        options.setdefault("name", name)
        return small_image_run(row[0], data_set, row[1], row[2], **options)

    return row_recipe
