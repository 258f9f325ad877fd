"""Real bytes of token maps: nominal, zero-order entropy, `.vqk` files; and the coder's speed.

    python benchmarks/compression.py RUN [RUN ...] --page ../docs/results/compression.md
    python benchmarks/compression.py RUN=FOLDER     (test images in FOLDER instead of the run's own)

A RUN is the folder of a finished run. Frequencies are counted on its training images, rates are
measured on its test images.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import Page

from vqkit.config import DataConfig
from vqkit.data import ImageSet, iterate_once, load_images
from vqkit.models import ImageTokenizer
from vqkit.tokens import Alphabet, TokenCoder, count_frequencies
from vqkit.tokens.header import read_header
from vqkit.tokens.model import code_length
from vqkit.training import load_run

ABOUT = """
What the tokens of test images cost, in bits per pixel, headers of 41 bytes (45 with frequencies)
included. *Nominal*: log2 of the number of codes for every token. *Entropy*: zero-order, of these
very tokens (all images together, per slot), what a coder would need that knew their frequencies
beforehand and were sent them for nothing. *A file each*: one `.vqk` file for every image; *one
file*: all images in one. *With frequencies*: `vqkit frequencies` has counted the codes on
training images. *Of its model*: bytes of the one file, without its header, over the ideal length
under the coder's own model. Every file is decoded again and compared. Speed is that of the one
file without frequencies, median of three.
"""
WHY = """
## Why a small map cannot come near its own entropy

An MNIST digit of VQ-VAE is 49 tokens of 1,024 codes, 490 bits. The zero-order entropy of one such
map is at most log2(49) = 5.6 bits a token, 275 bits, whatever the tokenizer: 49 tokens have at
most 49 different values. But that number is no rate. It belongs to a decoder that knows already
which codes the map uses, and saying so costs more than it saves: to name which 49 of 1,024 codes
occur takes log2(1024 choose 49) = 280 bits. The empirical entropy of a few tokens is also far too
low as an estimate: by about (K - 1) / (2 N ln 2) bits a token for N tokens of K codes, which for
N = 49 and K = 1,024 is 15 bits, more than the 10 there are; no large-sample formula holds there.

An adaptive coder pays the same in another way. Before it has seen anything every code is as
likely as any other, so that the first token costs 10 bits; after n tokens, the estimate of
Krichevsky and Trofimov gives a code that it has seen once 1.5 / (n + 512), still 8.5 bits after
49. Learning K frequencies costs (K - 1) / 2 log2 N bits over a stream: 511 x 5.6 = 2,870 bits by
the formula for long streams, six times the map. So one small map of different tokens is written
as plain bits; a digit, of whose tokens many are the same background, saves a fifth of them, with
a large g. Three things help: frequencies counted on other images, which both ends hold; many
images in one file; fewer codes, shared by more tokens (LooC's 49 x 32 tokens of 256 codes learn
255 numbers from 1,568 draws).

Frequencies from other images reach their cross entropy, not the map's own entropy: what is
special about a digit stays unknown until its tokens are read. And a header names tokenizer, sizes
and checksum: 41 bytes, 0.42 bits per pixel of a 28 x 28 picture. Put small pictures into one
file.

Photographs are the other way round: thousands of tokens each, and different from one another. In
a file of its own each is coded with its own frequencies, and that can be fewer bits than the
zero-order entropy of the set, which mixes all pictures; in one file the counts of the pictures
before stay in the way. One file for small pictures, a file each for large ones.
"""


@dataclass(frozen=True)
class Maps:
    """The token maps of a test set."""

    ids: list[torch.Tensor]
    sizes: list[tuple[int, int]]

    @property
    def pixels(self) -> int:
        """Of all images."""
        return sum(height * width for height, width in self.sizes)


def limited(data: DataConfig, limit: int) -> ImageSet:
    """Open a set, at most so many images of it."""
    return load_images(replace(data, limit=limit))


def tokenized(tokenizer: ImageTokenizer, images: ImageSet) -> Maps:
    """Return the ids of all images."""
    ids: list[torch.Tensor] = []
    sizes: list[tuple[int, int]] = []
    for batch in iterate_once(images, 8):
        ids.extend(tokenizer.encode(batch.images))
        sizes.extend([(batch.images.shape[-2], batch.images.shape[-1])] * len(batch.images))
    return Maps(ids, sizes)


def entropy_bits(maps: Maps, alphabet: Alphabet) -> float:
    """Return the zero-order entropy of all tokens, slot by slot, in bits of all images."""
    rows = torch.cat([ids.flatten(0, 1) for ids in maps.ids]).numpy()
    total = 0.0
    for slot, num_codes in enumerate(alphabet.slot_codes):
        counts = np.bincount(rows[:, slot], minlength=num_codes)
        shares = counts[counts > 0] / len(rows)
        total -= len(rows) * float((shares * np.log2(shares)).sum())
    return total


def checked(coder: TokenCoder, maps: Maps) -> bytes:
    """Return one file of all maps, after decoding it again."""
    content = coder.encode(maps.ids, maps.sizes)
    back = coder.decode(content, max_tokens=2**27, max_pixels=2**40)
    assert all(map(torch.equal, back.ids, maps.ids)), "the coder is not exact"
    return content


def each(maps: Maps) -> Iterator[Maps]:
    """Yield every image by itself."""
    for ids, size in zip(maps.ids, maps.sizes, strict=True):
        yield Maps([ids], [size])


def of_its_model(content: bytes, coder: TokenCoder, maps: Maps) -> float:
    """Return bytes over the ideal length under the model that the file names."""
    header, start = read_header(content)
    if header.choice is None:
        return float("nan")
    rows = torch.cat([ids.flatten(0, 1) for ids in maps.ids]).numpy()
    bits = code_length(rows, coder.alphabet, header.choice, coder.frequencies)
    return 8 * (len(content) - start) / bits


def speed(coder: TokenCoder, maps: Maps) -> tuple[float, float]:
    """Return tokens per second of writing and of reading one file."""
    tokens, written, read = sum(ids.numel() for ids in maps.ids), [], []
    for _ in range(3):
        began = time.perf_counter()
        content = coder.encode(maps.ids, maps.sizes)
        between = time.perf_counter()
        coder.decode(content, max_tokens=2**27, max_pixels=2**40)
        written.append(between - began)
        read.append(time.perf_counter() - between)
    return tokens / statistics.median(written), tokens / statistics.median(read)


def measure(run: str, train_limit: int, test_limit: int) -> dict[str, Any]:
    """Return what the tables say of one run."""
    folder, _, other = run.partition("=")
    config, tokenizer = load_run(Path(folder))
    test = (
        config.test_data
        if not other
        else DataConfig(source="folder", path=other, channels=config.data.channels, split="test")
    )
    assert test is not None, f"{folder} names no test images; give RUN=FOLDER"
    maps = tokenized(tokenizer, limited(test, test_limit))
    table = count_frequencies(tokenizer, limited(config.data, train_limit))
    plain, helped = TokenCoder.of(tokenizer), TokenCoder.of(tokenizer, table)
    together, with_table = checked(plain, maps), checked(helped, maps)
    nominal = sum(tokenizer.bits_per_image(*size) for size in maps.sizes)
    alone = dict.fromkeys(("each", "each_table", "packed"), 0)
    for one in each(maps):
        content = checked(plain, one)
        alone["each"] += len(content)
        alone["packed"] += read_header(content)[0].choice is None
        alone["each_table"] += len(checked(helped, one))
    bits = {
        "nominal": nominal,
        "entropy": entropy_bits(maps, plain.alphabet),
        "each": 8 * alone["each"],
        "each_table": 8 * alone["each_table"],
        "together": 8 * len(together),
        "together_table": 8 * len(with_table),
    }
    fast = speed(plain, maps)
    codes = " + ".join(
        f"{len(list(same))} x {size:,}"
        for size, same in itertools.groupby(plain.alphabet.slot_codes)
    )
    return {
        "name": f"{config.name}, {config.optim.num_steps:,} steps",
        "images": len(maps.ids),
        "counted": table.num_images,
        "codes": codes,
        "tokens": statistics.mean(ids.numel() for ids in maps.ids),
        "packed": alone["packed"],
        **{key: value / maps.pixels for key, value in bits.items()},
        "model": of_its_model(together, plain, maps),
        "model_table": of_its_model(with_table, helped, maps),
        "write": fast[0],
        "read": fast[1],
    }


def synthetic(page: Page) -> None:
    """Time large maps of drawn tokens, code k about k ** -0.8 times as likely as code 1."""
    source, rows = np.random.default_rng(0), []
    for num_codes, slots, side in (
        (1024, 1, 64),
        (256, 64, 256),
        (16384, 8, 64),
        (200_000, 1, 128),
    ):
        shares = np.arange(1.0, num_codes + 1) ** -0.8
        drawn = source.choice(num_codes, (side, side, slots), p=shares / shares.sum())
        alphabet = Alphabet((num_codes,) * slots, (tuple(range(slots)),))
        coder = TokenCoder(alphabet, stride=4, channels=3, tokenizer="0" * 64)
        maps = Maps([torch.from_numpy(drawn)], [(4 * side, 4 * side)])
        content, (write, read) = checked(coder, maps), speed(coder, maps)
        packed = drawn.size * (num_codes - 1).bit_length() / 8
        rows.append(
            [
                f"{side} x {side} x {slots}",
                num_codes,
                f"{drawn.size:,}",
                packed,
                float(len(content)),
                f"{of_its_model(content, coder, maps):.5f}",
                drawn.size / write,
                drawn.size / read,
            ]
        )
    page.text(
        "## Large maps\n\nDrawn tokens, code k about k^-0.8 times as likely as code 1, one file."
    )
    page.table(
        [
            "grid x slots",
            "codes",
            "tokens",
            "packed bytes",
            "bytes",
            "of its model",
            "seconds to write",
            "seconds to read",
        ],
        rows,
    )


def main() -> None:
    """Measure all runs and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--train", type=int, default=2000, help="images that are counted")
    parser.add_argument("--test", type=int, default=1000, help="images that are measured")
    parser.add_argument(
        "--photos", type=int, default=24, help="of a RUN=FOLDER: measured; twice as many counted"
    )
    parser.add_argument("--page", type=Path)
    given = parser.parse_args()
    page = Page("Compression: real bytes of token maps", ABOUT)
    found = [
        measure(run, 2 * given.photos, given.photos)
        if "=" in run
        else measure(run, given.train, given.test)
        for run in given.runs
    ]
    rates = ("nominal", "entropy", "each", "each_table", "together", "together_table")
    page.table(
        [
            "run",
            "tokens of an image",
            "codes",
            "test images",
            "counted",
            *(
                "nominal",
                "entropy",
                "a file each",
                "with frequencies",
                "one file",
                "with frequencies",
            ),
        ],
        [
            [one["name"], one["tokens"], one["codes"], one["images"], one["counted"]]
            + [f"{one[rate]:.4f}" for rate in rates]
            for one in found
        ],
    )
    page.table(
        [
            "run",
            "packed of the files for each image",
            "of its model",
            "with frequencies",
            "tokens written a second",
            "tokens read a second",
        ],
        [
            [
                one["name"],
                f"{one['packed']} of {one['images']}",
                f"{one['model']:.5f}",
                f"{one['model_table']:.5f}",
                one["write"],
                one["read"],
            ]
            for one in found
        ],
    )
    synthetic(page)
    page.text(WHY.strip())
    if given.page:
        page.write(given.page)


if __name__ == "__main__":
    main()
