"""Images of a generator in a folder: PNG files, their provenance, one picture of all classes."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vqkit.config import require
from vqkit.data import to_uint8
from vqkit.data.transforms import to_picture
from vqkit.evaluation.picture import png_bytes_of
from vqkit.generation import id_set
from vqkit.generation.generator import Generator
from vqkit.generation.pictures import Row, draw_rows
from vqkit.generation.provenance import Line, Origin, Provenance
from vqkit.models import ImageTokenizer
from vqkit.models.files import write_beside

IMAGES: Final = "images"
"""Folder of the images; with classes, a folder for each, so that every command can read them."""
GRID: Final = "grid.png"
MOST: Final = 1_000_000
"""Images of one class. Sample number `class × MOST + i` is image i of its class, whichever classes
and however many images are asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """What a folder holds after `draw_images`."""

    folder: Path
    lines: tuple[Line, ...]
    """One for every image in the folder, in the order of the sample numbers."""
    kept: int
    """Images asked for that were there before."""
    made: int
    grid: Path


@dataclass(frozen=True, slots=True)
class _Part:
    """Images drawn together: a run of sample numbers of one class."""

    label: int | None
    numbers: range
    files: tuple[str, ...]


def draw_images(
    generator: Generator,
    tokenizer: ImageTokenizer,
    out: Path,
    *,
    origin: str,
    classes: Sequence[int] | None = None,
    count: int = 8,
    seed: int = 0,
    sampling: Any,
    columns: int = 8,
    keep: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Drawn:
    """Draw `count` images of every class, or of none, into the folder `out`.

    Images that are there already, drawn with the same settings, are kept. A batch of which one is
    missing is drawn again whole, so that a stopped command and one that was not give equal files.

    Args:
        generator: from `load_generator`.
        tokenizer: the one whose tokens the generator writes.
        out: folder; new, or one of images with the same settings.
        origin: hash of the generator (`provenance.generator_hash`).
        classes: numbers; None is all classes, or no class if the generator knows none.
        count: images of each class.
        seed: with the sample's number it decides what is drawn.
        sampling: `GPTSampling` or `DiffusionSampling`.
        columns: images of each row of the grid picture.
        keep: also write the ids of all images in the folder as a token set (`id_set.TOKENS`).
        progress: called after every batch with (images done, images in all).

    Raises:
        ValueError: classes that the generator does not know, a folder of other images, or another
            tokenizer.
    """
    require(1 <= count <= MOST, f"count={count}", f"must be 1 to {MOST:,}")
    require(columns >= 1, f"columns={columns}", "must be at least 1")
    wanted = _wanted(generator, classes)
    generator.check_tokenizer(tokenizer)  # before anything is written
    common = Origin(
        generator=origin,
        kind=generator.kind,
        tokenizer=generator.tokenizer,
        seed=seed,
        sampling=asdict(sampling),
    )
    out.mkdir(parents=True, exist_ok=True)
    provenance = Provenance(out, common)
    done = kept = made = 0
    for part in _parts(generator, wanted, count, sampling.batch_size):
        missing = [file for file in part.files if not _is_there(out, file, provenance, keep)]
        if missing:
            ids = _sample(generator, tokenizer, part, seed, sampling)
            for file, one in zip(part.files, ids, strict=True) if keep else ():
                id_set.keep_ids(out, file, one)
            _write(out, tokenizer, ids, part, set(missing), provenance, generator)
        made, kept = made + len(missing), kept + len(part.files) - len(missing)
        done += len(part.files)
        if progress is not None:
            progress(done, len(wanted) * count)
    lines = provenance.close()
    if keep:
        id_set.write_id_set(out, generator, tokenizer, _kept(out, lines))
    grid = write_beside(out / GRID, _grid(out, generator, wanted, count, columns))
    return Drawn(folder=out, lines=tuple(lines), kept=kept, made=made, grid=grid)


def class_name(generator: Generator, label: int | None) -> str:
    """Return what a class is called; empty where there is no class."""
    if label is None:
        return ""
    names = generator.label_names
    return names[label] if label < len(names) else str(label)


def _wanted(generator: Generator, classes: Sequence[int] | None) -> list[int | None]:
    known = generator.num_classes
    if classes is None:
        return list(range(known)) if known else [None]
    require(known > 0, "classes", "this generator was trained without classes; leave them out")
    for label in classes:
        require(0 <= label < known, f"classes: {label}", f"classes are 0 to {known - 1}")
    require(len(set(classes)) == len(classes), f"classes={list(classes)}", "name each once")
    return list(classes)


def _parts(
    generator: Generator, wanted: Sequence[int | None], count: int, size: int
) -> Iterator[_Part]:
    digits = len(str(max(generator.num_classes - 1, 0)))
    for label in wanted:
        folder = IMAGES if label is None else f"{IMAGES}/{label:0{digits}}"
        for start in range(0, count, size):
            places = range(start, min(start + size, count))
            first = (label or 0) * MOST
            files = tuple(f"{folder}/{place:06}.png" for place in places)
            yield _Part(label, range(first + places.start, first + places.stop), files)


def _sample(
    generator: Generator, tokenizer: ImageTokenizer, part: _Part, seed: int, sampling: Any
) -> Tensor:
    labels = None
    if part.label is not None:
        labels = torch.full((len(part.numbers),), part.label, dtype=torch.int64)
    return generator.sample(
        tokenizer,
        labels,
        seed=seed,
        start=part.numbers.start,
        count=len(part.numbers),
        sampling=sampling,
    )


def _is_there(out: Path, file: str, provenance: Provenance, keep: bool) -> bool:
    return file in provenance and (not keep or id_set.file_of(out, file).is_file())


def _kept(out: Path, lines: Sequence[Line]) -> list[Line]:
    """Return the lines of images whose ids were kept."""
    return [line for line in lines if id_set.file_of(out, line.file).is_file()]


def _write(
    out: Path,
    tokenizer: ImageTokenizer,
    ids: Tensor,
    part: _Part,
    missing: set[str],
    provenance: Provenance,
    generator: Generator,
) -> None:
    """Decode a batch, write those of its images that are missing, and note them."""
    device = next(tokenizer.parameters()).device
    images = to_uint8(tokenizer.decode(ids.to(device))).cpu()
    lines = []
    for number, file, image in zip(part.numbers, part.files, images, strict=True):
        if file not in missing:
            continue
        content = io.BytesIO()
        to_picture(image).save(content, "PNG")
        write_beside(out / file, content.getvalue())
        lines.append(
            Line(
                file=file,
                number=number,
                label=part.label,
                label_name=class_name(generator, part.label),
                sha256=hashlib.sha256(content.getvalue()).hexdigest(),
                origin=provenance.origin,
            )
        )
    provenance.add(lines)


def _grid(
    out: Path, generator: Generator, wanted: Sequence[int | None], count: int, columns: int
) -> bytes:
    """Draw the first images of every class, or at most a square of images without classes."""
    shown = min(count, columns if wanted != [None] else columns**2)
    rows = []
    for part in _parts(generator, wanted, shown, columns):
        images = [_read(out / file) for file in part.files]
        name = class_name(generator, part.label)
        mark = "" if part.label is None or name == str(part.label) else f" ({part.label})"
        rows.append(Row(f"{name}{mark}", images))
    return png_bytes_of(draw_rows(rows))


def _read(path: Path) -> Tensor:
    with Image.open(path) as picture:
        pixels = np.array(picture)
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)
