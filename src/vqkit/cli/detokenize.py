"""`vqkit detokenize`: the images of a token set."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from vqkit.cli.compress import long_out, on_device, required_out
from vqkit.cli.console import plain_warnings, say
from vqkit.cli.options import Options, one_name
from vqkit.cli.runs import load


def run(words: Sequence[str]) -> None:
    """Turn a token set back into PNG files, with the tokenizer that wrote it.

    Each file is named by the key of its image, as the source had it, below the folder --out.
    Another tokenizer is refused.
    """
    name, rest = one_name(words, "token set", "decode one after another")
    options = Options("detokenize TOKENS", run.__doc__)
    options.add("tokenizer", str, "run or tokenizer: a folder, or an id on the Hugging Face hub")
    options.add("out", str, "folder of the pictures; also -o")
    options.add("first", int, "number of the first image, default 0")
    options.add("count", int, "images to decode; default all that follow")
    options.add("batch_size", int, "images that are decoded together, default 32")
    options.add("device", str, "cpu, or cuda for a GPU; default the GPU if there is one")
    given = options.parse(long_out(rest))
    if name is None:
        raise ValueError("tokens: none are named; give a folder of vqkit tokenize")
    out = required_out(given)
    if "tokenizer" not in given:
        raise ValueError("tokenizer: none is named; give --tokenizer and a run or a tokenizer")
    from vqkit.clustering.progress import open_progress
    from vqkit.data.transforms import to_picture
    from vqkit.models.files import write_beside
    from vqkit.tokens import TokenSet
    from vqkit.tokens.sets import decoded_images

    token_set = TokenSet.open(name)
    wanted = _wanted(len(token_set), given.get("first", 0), given.get("count"))
    tokenizer = on_device(load(given["tokenizer"])[0].tokenizer, given.get("device"))
    shown = open_progress(True, len(wanted), "detokenize")
    written: set[Path] = set()
    with plain_warnings():
        images = decoded_images(
            tokenizer, token_set, wanted, batch_size=given.get("batch_size", 32)
        )
        for key, image in images:
            path = _target(key, out)
            if path in written:
                raise ValueError(f"{key}: two images of the set have this key; decode them apart")
            written.add(path)
            buffer = io.BytesIO()
            to_picture(image).save(buffer, "PNG")
            write_beside(path, buffer.getvalue())
            shown.tick(1)
    say(f"wrote {len(written):,} images → {out}")


def _wanted(total: int, first: int, count: int | None) -> range:
    if not 0 <= first < total:
        raise ValueError(f"first={first}: the set has images 0 to {total - 1}")
    if count is not None and count < 1:
        raise ValueError(f"count={count}: must be at least 1")
    return range(first, total if count is None else min(total, first + count))


def _target(key: str, out: Path) -> Path:
    """Return the picture file of a key, which may name folders, but none outside of `out`."""
    parts = PurePosixPath(key).parts
    if not parts or key.startswith("/") or ".." in parts or "\0" in key or "\\" in key:
        raise ValueError(f"key {key!r}: would be no file below {out}; the token set is damaged")
    name = key if key.lower().endswith(".png") else f"{key}.png"
    return out / name
