"""Tokenizing an image set: its pace beside that of the encoder alone, and its memory.

python benchmarks/tokenizing.py speed               # in-memory images, several sizes and quantizers
python benchmarks/tokenizing.py memory --count 100000   # images decoded from a .tar, RSS on the way

`speed` runs both in turn, several times, on images that already lie in one uint8 tensor: the
encoder gets slices of it, one batch after the other, as `vqkit tokenize` does. One thread each.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vqkit.config import DataConfig, NetworkConfig, QuantizerConfig
from vqkit.data.image_set import ArrayImages, Listing
from vqkit.models import ImageTokenizer, TokenizerConfig
from vqkit.tokens import write_token_set
from vqkit.tokens.sets import job

QUANTIZERS = {
    "vq_vae 512": QuantizerConfig(preset="vq_vae", args={"num_codes": 512, "dim": 64}),
    "looc 256 x 16 segments": QuantizerConfig(
        preset="looc", args={"num_codes": 256, "dim": 4, "num_segments": 16}
    ),
}


def tokenizer(quantizer: QuantizerConfig, hidden: int = 128) -> ImageTokenizer:
    """The small VQ-VAE, stride 4, with fresh weights."""
    torch.manual_seed(0)
    network = NetworkConfig(hidden=hidden, residual_hidden=hidden // 4)
    return ImageTokenizer(TokenizerConfig(network=network, quantizer=quantizer)).eval()


def in_memory(count: int, size: int) -> ArrayImages:
    """Random images in one tensor, with classes."""
    pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    listing = Listing(
        count=count,
        name=lambda i: f"image{i:07}",
        files=lambda: [("random", pixels.numel())],
        labels=torch.arange(count) % 10,
    )
    return ArrayImages(DataConfig(source="mnist", path="random"), listing, pixels)


def speed(count: int, rounds: int, batch_size: int) -> None:
    """Compare the command's engine with the encoder alone."""
    print(
        f"{'quantizer':24} {'pixels':>7} {'encoder':>12} {'tokenize':>12} "
        f"{'share of the clock':>24} {'processor':>9}"
    )
    for name, config in QUANTIZERS.items():
        for size in (32, 64):
            model, images = tokenizer(config), in_memory(count * 32**2 // size**2, size)
            model.encode(images.pixels[:batch_size])  # the first call prepares things
            alone, whole = list[Times](), list[Times]()
            for _ in range(rounds):
                began = now()
                for start in range(0, len(images), batch_size):
                    model.encode(images.pixels[start : start + batch_size])
                alone.append(since(began))
                with tempfile.TemporaryDirectory() as folder:
                    began = now()
                    write_token_set(model, images, folder, batch_size=batch_size, progress=False)
                    whole.append(since(began))
            shares = [[a[i] / w[i] for a, w in zip(alone, whole, strict=True)] for i in (0, 1)]
            wall, used = map(statistics.median, shares)
            paces = [len(images) / statistics.median(t[0] for t in one) for one in (alone, whole)]
            print(
                f"{name:24} {size:>3} x {size:<3} {paces[0]:>8,.0f} /s {paces[1]:>9,.0f} /s "
                f"{wall:>7.1%} ({min(shares[0]):.1%} to {max(shares[0]):.1%}) {used:>9.1%}",
                flush=True,
            )


Times = tuple[float, float]
"""Seconds on the clock, and of the processor, which other programs do not lengthen as much."""


def now() -> Times:
    """Read both clocks."""
    return time.perf_counter(), time.process_time()


def since(began: Times) -> Times:
    """Seconds since then."""
    there = now()
    return there[0] - began[0], there[1] - began[1]


def memory(count: int) -> None:
    """Tokenize `count` pictures of a tar and print the resident memory on the way.

    Fewer than 90,000 are so small a set that it is decoded as a whole when it is opened.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.tar"
        _write_tar(path, count)
        print(f"{count:,} pictures of 64 x 64 in a tar of {path.stat().st_size:,} bytes")
        done, write = [0], job.Worker._shard

        def watched(self: job.Worker, *rest: object) -> int:
            images = write(self, *rest)  # type: ignore[arg-type]
            done[0] += images
            if done[0] % 10_240 < images:
                print(f"{done[0]:>8,} images: {_resident():,.1f} MiB", flush=True)
            return images

        job.Worker._shard = watched  # type: ignore[method-assign]
        model = tokenizer(QUANTIZERS["vq_vae 512"], hidden=8)
        data = DataConfig(source="webdataset", path=str(path))
        began = time.perf_counter()
        found = write_token_set(model, data, Path(folder) / "set", batch_size=32, progress=False)
        seconds = time.perf_counter() - began
        print(json.dumps({"images": len(found), "seconds": round(seconds, 1)}))


def _write_tar(path: Path, count: int) -> None:
    """Write JPEG pictures of a few kinds over and over."""
    source, pictures = np.random.default_rng(0), []
    for _ in range(16):
        rough = source.integers(0, 256, (9, 9, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(rough).resize((64, 64)).save(stream, "JPEG", quality=50)
        pictures.append(stream.getvalue())
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            content = pictures[number % len(pictures)]
            info = tarfile.TarInfo(f"{number:07}.jpg")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def _resident() -> float:
    """Resident memory of this process in MiB (Linux)."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("speed", "memory"))
    parser.add_argument("--count", type=int, default=None, help="images (of 32 x 32 for speed)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=32)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}", file=sys.stderr)
    if given.what == "speed":
        speed(given.count or 4096, given.rounds, given.batch_size)
    else:
        memory(given.count or 100_000)


if __name__ == "__main__":
    main()
