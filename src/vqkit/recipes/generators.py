"""All recipes for token sets, GPTs and diffusion models, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vqkit.config import GeneratorRun
from vqkit.recipes.diffusion import (
    dit_mnist,
    lc_dit,
    lc_ldm,
    lc_sit,
    ldm_mnist,
    looc_ldm,
    sit_cifar10,
    sit_mnist,
    sit_photos,
)
from vqkit.recipes.generation import gpt_cifar10, gpt_mnist, gpt_photos, lc_gpt

GeneratorRecipe = Callable[..., GeneratorRun]

GENERATORS: Final[dict[str, GeneratorRecipe]] = {
    function.__name__: function
    for function in (
        lc_gpt,
        lc_ldm,
        lc_dit,
        lc_sit,
        looc_ldm,
        gpt_mnist,
        dit_mnist,
        sit_mnist,
        ldm_mnist,
        gpt_cifar10,
        sit_cifar10,
        gpt_photos,
        sit_photos,
    )
}
"""In the order in which they are listed."""


def generator_recipe(name: str) -> GeneratorRecipe | None:
    """Return the recipe of a generator, None if `name` is none."""
    return GENERATORS.get(name)
