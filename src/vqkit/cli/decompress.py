"""`vqkit decompress`: the images of `.vqk` files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqkit.cli.compress import (
    add_options,
    check_no_picture,
    long_out,
    open_coder,
    required_out,
)
from vqkit.cli.console import plain_warnings, say
from vqkit.cli.options import Options, split_names

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from vqkit.models import ImageTokenizer
    from vqkit.tokens import TokenMaps


def run(words: Sequence[str]) -> None:
    """Turn .vqk files back into pictures, with the tokenizer that wrote them.

    A FILE may be a folder: all .vqk files in it. With one image --out is a PNG file; with several,
    a folder, in which FILE.vqk becomes FILE.png, or FILE-00001.png and so on where it holds more
    than one. A file of another tokenizer and a damaged one are refused.
    """
    names, rest = split_names(words)
    options = Options("decompress FILE [FILE ...]", run.__doc__)
    add_options(options, "NAME.png for one image, folder for several; also -o")
    options.add("max_pixels", int, "of all images of a file; default 134,217,728")
    options.add("max_tokens", int, "of all images of a file; default 33,554,432")
    options.add("max_images", int, "of a file; default 65,536")
    given = options.parse(long_out(rest))
    if not names:
        raise ValueError("files: none are named; give .vqk files, or folders of them")
    out, files = required_out(given), _files(names)
    if out.suffix.lower() != ".png":
        check_no_picture(out, "a .png file")
    tokenizer, coder = open_coder(given)
    limits = {key: value for key, value in given.items() if key.startswith("max_")}
    tiles: dict[str, Any] = {key: given[key] for key in ("tile", "halo") if key in given}
    from vqkit.data.transforms import to_picture
    from vqkit.models.files import write_beside
    from vqkit.tokens import read_file

    count, written = 0, set[Path]()
    with plain_warnings():
        for file in files:
            try:
                found = coder.decode(read_file(file), **limits)
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from error
            for place, (ids, size) in enumerate(zip(found.ids, found.sizes, strict=True)):
                path = _target(file, place, found, out, alone=len(files) == 1)
                if path in written:
                    raise ValueError(f"{file}: {path} is written already; rename one of the files")
                written.add(path)
                image = _decoded(tokenizer, ids, size, tiles)
                write_beside(path, _png(to_picture(image)))
                count += 1
    say(f"wrote {count:,} images → {out}")


def _files(names: Sequence[str]) -> list[Path]:
    """Return the files that are named, and the .vqk files in the folders that are."""
    found: list[Path] = []
    for name in names:
        path = Path(name).expanduser()
        inside = sorted(one for one in path.rglob("*") if one.suffix.lower() == ".vqk")
        if path.is_dir() and not inside:
            raise ValueError(f"{name}: holds no .vqk files")
        found += inside if path.is_dir() else [path]
    return found


def _target(file: Path, place: int, found: TokenMaps, out: Path, *, alone: bool) -> Path:
    """Return the picture file of image `place` of a file."""
    if out.suffix.lower() == ".png":
        if alone and len(found.ids) == 1:
            return out
        raise ValueError(f"out={out}: there are several images; name a folder")
    number = f"-{place + 1:05}" if len(found.ids) > 1 else ""
    return out / f"{file.stem}{number}.png"


def _decoded(
    tokenizer: ImageTokenizer, ids: Tensor, size: tuple[int, int], tiles: dict[str, Any]
) -> Tensor:
    from vqkit.metrics import to_bytes
    from vqkit.models import decode_tiled

    if "tile" in tiles:
        return to_bytes(decode_tiled(tokenizer, ids[None], size, **tiles))[0].cpu()
    device = next(tokenizer.parameters()).device
    return to_bytes(tokenizer.decode(ids[None].to(device), size=size))[0].cpu()


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
