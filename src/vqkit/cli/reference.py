"""`vqkit reference`: statistics of an image set in a file, for FID and KID against it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vqkit.cli.analyze_parts import progress_of
from vqkit.cli.console import plain_warnings, say, tell
from vqkit.cli.options import Options, one_name
from vqkit.cli.runs import place_of, test_images
from vqkit.config import DataConfig


def run(words: Sequence[str]) -> None:
    """Measure the images of a set with Inception and write what FID and KID need of them.

    DATA is a folder of images or a .parquet file; or give --data.source. The file names the images,
    the network and the resize mode by their hashes, and another network or mode refuses it.
    """
    name, rest = one_name(words, "folder of images", "a reference is made of one set")
    options = Options("reference DATA", run.__doc__)
    options.add("out", str, "file to write, .safetensors")
    options.add("resize", str, "clean (default), legacy, adm or cvq; docs/metrics.md")
    options.add("kept", int, "features kept for KID, default 10000; 0 makes a file for FID alone")
    options.add("seed", int, "of the choice of those; default 0")
    options.add("weights", str, "file of Inception; default where vqkit.weights finds it")
    options.add("batch_size", int, "images of one size in a batch; default 32")
    options.add("device", str, "cpu, or cuda for a GPU; default the GPU if there is one")
    options.add_fields(DataConfig, "data.")
    given = options.parse(rest)
    if "out" not in given:
        raise ValueError("out: no file is named; vqkit reference DATA --out FILE.safetensors")
    changes = given.get("data", {})
    if name is not None:
        source = "parquet" if name.endswith(".parquet") else "folder"
        changes = {"source": source, **changes, "path": name}
    data = test_images(None, changes)
    import torch

    from vqkit.data import load_images
    from vqkit.metrics.features import load_features
    from vqkit.metrics.reference import Reference
    from vqkit.models.files import write_beside

    device = given.get("device", "cuda" if torch.cuda.is_available() else "cpu")
    resize = given.get("resize", "clean")
    features = load_features(given.get("weights"), resize=resize, device=device)
    images = load_images(data)
    tell(f"measuring {len(images):,} images of {place_of(data)}")
    with plain_warnings():
        reference = Reference.of(
            images,
            features,
            num_kept=given.get("kept", 10_000),
            seed=given.get("seed", 0),
            batch_size=given.get("batch_size", 32),
            progress=progress_of("reference"),
        )
    content = reference.to_bytes()
    path = write_beside(Path(given["out"]).expanduser(), content)
    say(
        f"wrote {reference.gaussian.count:,} images, {len(reference.sample):,} features for KID, "
        f"resize {resize}, {len(content) / 2**20:.1f} MiB → {path}"
    )
