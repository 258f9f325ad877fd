"""`vqkit tokenize`: an image set as the tokens of a tokenizer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from vqkit.cli.compress import long_out, on_device, required_out
from vqkit.cli.console import plain_warnings, say, tell
from vqkit.cli.launch import own_device, processes, resumable
from vqkit.cli.options import Options, Values, one_name
from vqkit.cli.runs import load, test_images
from vqkit.config import DataConfig, RunConfig


def run(words: Sequence[str]) -> None:
    """Write the tokens of images into a folder of parquet shards, to generate or classify from.

    TOKENIZER is a run or a tokenizer; of a run, the images are those it was trained on (their
    centre crops), unless --data names others. A killed command goes on where it stopped (without
    --fresh). Workers, torchrun and Ray share the work; the files are the same.
    """
    name, rest = one_name(words, "run or tokenizer", "tokenize with one after another")
    given = _options().parse(long_out(rest))
    if name is None:
        raise ValueError("tokenizer: none is named; give the folder of a run or of a tokenizer")
    out = required_out(given)
    engine = given.get("engine", "processes")
    _check_launch(engine)
    contestant, config = load(name)
    channels = contestant.tokenizer.config.network.image_channels
    data = _images(config, {"channels": channels, **given.pop("data", {})})
    from vqkit.tokens import write_token_set

    tokenizer = on_device(contestant.tokenizer, own_device(given.pop("device", None)))
    fresh = given.pop("fresh")
    del given["out"]
    with processes() as first, resumable(fresh), plain_warnings():
        found = write_token_set(tokenizer, data, out, resume=not fresh, **given)
    if not first:
        return
    skipped = len(found.manifest["skipped"])
    if skipped:
        tell(f"{skipped:,} broken images were left out; the manifest lists them")
    grid = "different grids" if found.grid is None else f"{found.grid[0]} x {found.grid[1]}"
    classes = f", {found.num_classes:,} classes" if found.num_classes else ""
    size = sum(shard["bytes"] for shard in found.manifest["shards"])
    say(
        f"wrote {found.num_images:,} images x {grid} x {len(found.slots)} tokens{classes}, "
        f"{size:,} bytes in {len(found.manifest['shards']):,} files → {out}"
    )


def _options() -> Options:
    options = Options("tokenize TOKENIZER", run.__doc__)
    options.add("out", str, "folder of the token set; also -o")
    options.add_flag("latents", "also store the maps before quantization, for diffusion")
    options.add("batch_size", int, "images that are encoded together, default 32")
    options.add("shard_images", int, "images of a file, default 1024; a kill loses no more work")
    options.add("workers", int, "processes, on this machine or of a Ray cluster; default 1")
    options.add("threads", int, "of every process, default 1; also decides near ties")
    options.add("engine", str, "processes (default), torchrun (which starts the command), or ray")
    options.add("device", str, "cpu, or cuda for a GPU; default the GPU if there is one")
    options.add_flag(
        "fresh", "begin again, removing tokens in the folder; leave it out to go on after a kill"
    )
    options.add_fields(DataConfig, "data.")
    return options


def _check_launch(engine: str) -> None:
    """Refuse torchrun without --engine torchrun and the other way round."""
    launched = "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("WORLD_SIZE", "1")) > 1
    if engine == "torchrun" and not launched:
        raise ValueError(
            "engine='torchrun': start the command with torchrun: torchrun --nproc_per_node 2 -m "
            "vqkit tokenize ... --engine torchrun"
        )
    if launched and engine != "torchrun":
        raise ValueError(f"engine={engine!r}: torchrun has started this; give --engine torchrun")


def _images(config: RunConfig | None, changes: Values) -> DataConfig:
    """Return the images that are named, or those of the run without its random cuts."""
    if config is None:
        return test_images(None, changes)
    data = config.data
    if data.crop == "random":
        data = replace(data, crop="center", crops_per_image=1)
    return test_images(replace(config, test_data=replace(data, flip=False)), changes)
