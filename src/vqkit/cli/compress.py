"""`vqkit compress`: images as the tokens of a tokenizer, coded into small files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vqkit.cli.console import plain_warnings, say, tell
from vqkit.cli.options import Options, Values, split_names
from vqkit.cli.runs import kind_of, load

if TYPE_CHECKING:
    from torch import Tensor

    from vqkit.models import ImageTokenizer
    from vqkit.tokens import TokenCoder

Coded = tuple["Tensor", tuple[int, int]]
"""Ids (h, w, T) of an image and its (height, width) in pixels."""


def run(words: Sequence[str]) -> None:
    """Write images as .vqk files, which only the same tokenizer turns back (vqkit decompress).

    An IMAGE is a picture or a folder of them. With --out NAME.vqk all images go into one file,
    which is smaller than many, and keeps their order but no names; with --out FOLDER each has its
    own. Tokens are coded with the frequencies that vqkit frequencies has put into the folder of the
    tokenizer, if any, and with those of the images themselves. Keeps the originals.
    """
    names, rest = split_names(words)
    options = Options("compress IMAGE [IMAGE ...]", run.__doc__)
    add_options(options, "file NAME.vqk for all images, or folder for a file each; also -o")
    given = options.parse(long_out(rest))
    if not names:
        raise ValueError("images: none are named; give files, or folders of them")
    out, pictures = required_out(given), _pictures(names)
    single = out.suffix.lower() == ".vqk"
    targets = {} if single else _targets(pictures, out)
    tokenizer, coder = open_coder(given)
    from vqkit.clustering.progress import open_progress

    maps: list[Coded] = []
    num_bytes, pixels, nominal = 0, 0, 0.0
    shown = open_progress(True, len(pictures), "compress")
    with plain_warnings():
        for path, (ids, size) in zip(pictures, _encoded(tokenizer, pictures, given), strict=True):
            pixels += size[0] * size[1]
            nominal += tokenizer.bits_per_image(*size)
            if single:
                maps.append((ids, size))
            else:
                num_bytes += _write(coder, [(ids, size)], targets[path])
            shown.tick(1)
    if single:
        num_bytes = _write(coder, maps, out)
    say(
        f"wrote {len(pictures):,} images, {num_bytes:,} bytes: {8 * num_bytes / pixels:.4f} bits "
        f"per pixel (nominal {nominal / pixels:.4f}) → {out}"
    )


def add_options(options: Options, out: str) -> None:
    """Add what compress and decompress share."""
    options.add("out", str, out)
    options.add("tokenizer", str, "run or tokenizer: a folder, or an id on the Hugging Face hub")
    options.add("device", str, "cpu, or cuda for a GPU; default the GPU if there is one")
    options.add("tile", int, "pixels of tiles, for images too large to go through whole")
    options.add("halo", int, "pixels computed around a tile; default the receptive field")


def long_out(words: Sequence[str]) -> list[str]:
    """Write -o as --out."""
    return ["--out" if word == "-o" else word for word in words]


def required_out(given: Values) -> Path:
    """Return where to write; nothing given is a `ValueError`."""
    if "out" not in given:
        raise ValueError("out: nothing is named; give --out (-o) and a file or folder")
    return Path(given["out"]).expanduser()


def folder_of(name: str) -> Path:
    """Return the folder of a tokenizer, given as a run, a folder or an id on the hub."""
    from vqkit.models.hub import find_model

    folder = Path(name).expanduser()
    return folder / "tokenizer" if kind_of(folder) == "run" else find_model(name)


def open_coder(given: Values) -> tuple[ImageTokenizer, TokenCoder]:
    """Load the tokenizer that is named, with the coder of its tokens."""
    if "tokenizer" not in given:
        raise ValueError("tokenizer: none is named; give --tokenizer and a run or a tokenizer")
    from vqkit.tokens import TokenCoder, can_code, find_frequencies

    name = given["tokenizer"]
    tokenizer = on_device(load(name)[0].tokenizer, given.get("device"))
    if not can_code():
        tell("constriction is not installed: tokens are packed; pip install 'vqkit[tokens]'")
    return tokenizer, TokenCoder.of(tokenizer, find_frequencies(folder_of(name), tokenizer))


def on_device(tokenizer: ImageTokenizer, device: str | None) -> ImageTokenizer:
    """Move a tokenizer to a device, by default the GPU if there is one."""
    import torch

    try:
        return tokenizer.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, AssertionError) as error:  # torch's way to refuse a device
        raise ValueError(f"device={device!r}: {error}") from error


def _pictures(names: Sequence[str]) -> list[Path]:
    """Return the picture files that are named, and those in the folders that are."""
    from vqkit.data.decoding import EXTENSIONS

    found: list[Path] = []
    for name in names:
        path = Path(name).expanduser()
        inside = sorted(one for one in path.rglob("*") if one.suffix.lower() in EXTENSIONS)
        if path.is_dir() and not inside:
            raise ValueError(f"{name}: holds no pictures; known endings are {_listed(EXTENSIONS)}")
        if not path.exists():
            raise ValueError(f"{name}: no such file or folder")
        found += inside if path.is_dir() else [path]
    return found


def _targets(pictures: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Return the file of every picture; two with one name are a `ValueError`."""
    targets = {path: out / f"{path.stem}.vqk" for path in pictures}
    names: dict[Path, Path] = {}
    for path, target in targets.items():
        if target in names:
            raise ValueError(f"{names[target]} and {path}: would both become {target}; rename one")
        names[target] = path
    if out.is_file():
        raise ValueError(f"out={out}: is a file; name a folder, or a file that ends in .vqk")
    check_no_picture(out, "a file that ends in .vqk")
    return targets


def check_no_picture(out: Path, instead: str) -> None:
    """Raise `ValueError` if a folder to be made has the ending of a picture."""
    from vqkit.data.decoding import EXTENSIONS

    if out.suffix.lower() in EXTENSIONS and not out.is_dir():
        raise ValueError(f"out={out}: no {out.suffix} is written; name {instead}, or a folder")


def _encoded(tokenizer: ImageTokenizer, pictures: Sequence[Path], given: Values) -> Iterator[Coded]:
    import numpy as np
    import torch

    from vqkit.data.decoding import BrokenImageError, decode
    from vqkit.models import encode_tiled

    channels = tokenizer.config.network.image_channels
    device = next(tokenizer.parameters()).device
    for path in pictures:
        try:
            pixels = np.array(decode(path, str(path), channels))
        except BrokenImageError as broken:
            hint = "repair it, or name the others"
            raise ValueError(f"{path}: is no readable image ({broken.reason}); {hint}") from broken
        image = torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1)[None]
        if "tile" in given:
            tiles = {key: given[key] for key in ("tile", "halo") if key in given}
            ids = encode_tiled(tokenizer, image, **tiles)
        else:
            ids = tokenizer.encode(image.to(device))
        yield ids[0].cpu(), (pixels.shape[0], pixels.shape[1])


def _write(coder: TokenCoder, maps: Sequence[Coded], path: Path) -> int:
    """Write a file and return its bytes."""
    from vqkit.models.files import write_beside

    content = coder.encode([ids for ids, _ in maps], [size for _, size in maps])
    write_beside(path, content)
    return len(content)


def _listed(endings: frozenset[str]) -> str:
    return ", ".join(sorted(endings))
