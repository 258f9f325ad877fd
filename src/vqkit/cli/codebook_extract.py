"""`vqkit codebook extract`: images to patch features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vqkit.cli.console import say, tell
from vqkit.cli.launch import own_device, processes, resumable
from vqkit.cli.options import Options, Values, one_name
from vqkit.cli.runs import kind_of
from vqkit.config import DataConfig, from_dict

if TYPE_CHECKING:
    from vqkit.codebooks.encoders import PatchEncoder

# Whose options these are, in words for an error.
_PIXELS = {"patch", "stride", "whiten", "dim", "epsilon", "sample", "whitening"}
_MODELS = {"layer", "size"}


def run(words: Sequence[str]) -> None:
    """Write the patch features of images into the folder OUT.

    The encoder is `pixels` (whitened patches, which need no weights), the folder of a vision model
    that transformers has saved as safetensors (CLIP, ViT, DINOv2, MAE, ResNet, ...), or a vqkit
    tokenizer or run. Images in class folders bring their classes along. A killed command goes on
    where it stopped (without --fresh), and torchrun shares the work; the files are the same.
    """
    name, rest = one_name(words, "folder", "it is what the features are written to")
    given = _options().parse(rest)
    if name is None:
        raise ValueError("out: no folder is named; vqkit codebook extract OUT --path IMAGES")
    data = _images(given.pop("path", None), given.pop("data", {}))
    from vqkit.codebooks.extraction import extract

    chosen = {key: given.pop(key) for key in sorted(_PIXELS | _MODELS) if key in given}
    encoder = _encoder(given.pop("encoder", "pixels"), chosen, given.get("seed", 0))
    fresh = given.pop("fresh")
    given["device"] = own_device(given.get("device"))
    with processes() as first, resumable(fresh):
        found = extract(data, encoder, name, resume=not fresh, **given)
    if first:
        facts = found.manifest
        if facts["skipped"]:
            tell(f"{len(facts['skipped']):,} broken images were left out; the manifest lists them")
        classes = f", {len(facts['groups']):,} classes" if facts["groups"] else ""
        say(
            f"wrote {found.num_vectors:,} features of {found.dim:,} numbers ({facts['dtype']}) "
            f"from {facts['data']['images']:,} images{classes} → {name}"
        )


def _options() -> Options:
    options = Options("codebook extract OUT", run.__doc__)
    options.add("encoder", str, "pixels (default), or a folder: vision model, tokenizer or run")
    options.add("path", str, "folder of images, or a .parquet file; short for --data.path")
    options.add(
        "pool", int, "average to so many positions a side; default 4 for models of one size"
    )
    options.add(
        "layer", str, "a model's hidden state, default -1, its output; a tokenizer: projected"
    )
    options.add("size", int, "side of the square images a model gets; default as it was trained")
    options.add("patch", int, "of pixels: side of a patch, default 8")
    options.add("stride", int, "of pixels: pixels between patches, default 8")
    options.add("whiten", str, "of pixels: zca (default) or pca")
    options.add("dim", int, "of pixels with pca: directions to keep, default all")
    options.add("epsilon", float, "of pixels: added to variances, share of their mean; default .01")
    options.add("sample", int, "of pixels: patches that whitening is fitted on, default 200000")
    options.add("whitening", str, "of pixels: feature set to take the whitening from")
    options.add("batch_size", int, "images that are encoded together, default 32")
    options.add("shard_images", int, "images of a file, default 256; a kill loses no more work")
    options.add("dtype", str, "of the files: float16 (default) or float32")
    options.add("precision", str, "of the computation: float32 (default) or bf16")
    options.add("max_per_image", int, "keep at most so many features of an image, drawn at random")
    options.add("seed", int, "of all draws, default 0")
    options.add("device", str, "cpu, or cuda for a GPU; default the GPU if there is one")
    options.add_flag(
        "fresh", "begin again, removing features in the folder; leave it out to go on after a kill"
    )
    options.add_fields(DataConfig, "data.")
    return options


def _images(path: str | None, values: Values) -> DataConfig:
    if path is not None:
        if values.get("path", path) != path:
            raise ValueError(f"path={path}: data.path={values['path']} is another; give one")
        values = {**values, "path": path}
    if "source" not in values:
        if "path" not in values:
            raise ValueError("path: no images are named; give --path IMAGES")
        values["source"] = "parquet" if values["path"].endswith(".parquet") else "folder"
    data: DataConfig = from_dict(DataConfig, values, "data.")
    return data


def _encoder(name: str, options: Values, seed: int) -> PatchEncoder:
    """Build the encoder; an option of another kind is a `ValueError`."""
    if name == "pixels":
        from vqkit.codebooks.pixels import PixelPatches

        _refuse(options, _MODELS, "pixels have no such setting")
        source = options.pop("whitening", None)
        patches = PixelPatches(seed=seed, **options)
        return patches if source is None else patches.whitened_by(source)
    _refuse(options, _PIXELS, "only --encoder pixels has it")
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"encoder={name!r}: is no folder here; give 'pixels', or the folder of a vision model, "
            "of a tokenizer or of a run"
        )
    if kind_of(folder):
        from vqkit.codebooks.encoders_modules import TokenizerEncoder

        _refuse(options, {"size"}, "a tokenizer takes images of any size")
        return TokenizerEncoder(folder, **options)
    from vqkit.codebooks.encoders_transformers import TransformersEncoder

    if "layer" in options:
        try:
            options["layer"] = int(options["layer"])
        except ValueError:
            hint = "expected a whole number, -1 for the model's output"
            raise ValueError(f"layer={options['layer']!r}: {hint}") from None
    return TransformersEncoder(folder, **options)


def _refuse(options: Values, names: set[str], problem: str) -> None:
    for name in sorted(names & options.keys()):
        raise ValueError(f"{name}={options[name]!r}: {problem}; leave it out")
