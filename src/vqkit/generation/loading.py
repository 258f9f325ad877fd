"""A finished generator from its folder."""

from __future__ import annotations

from pathlib import Path

from vqkit.config import require
from vqkit.generation.generator import Generator, generator_folder, read_generator

KINDS = ("gpt", "diffusion")


def load_generator(folder: Path | str, device: str = "cpu") -> Generator:
    """Open a finished generator; `folder` is its own or that of the run.

    Raises:
        ValueError: no generator there, a damaged one, or one of a kind that is not known.
    """
    place = generator_folder(Path(folder))
    config, card = read_generator(place)
    kind = config["generator"]
    require(kind in KINDS, f"{place}: generator={kind!r}", f"known are {', '.join(KINDS)}")
    if kind == "gpt":
        from vqkit.generation.gpt import GPTGenerator

        return GPTGenerator.load(place, config, card).to(device)
    from vqkit.generation.diffusion import DiffusionGenerator

    return DiffusionGenerator.load(place, config, card).to(device)
