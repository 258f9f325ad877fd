"""Ids of generated images as a token set, so that whatever reads token sets reads them.

While images are drawn, the ids of each lie in a small file beside it; from these the set is put
together when all are there.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from vqkit.generation.generator import Generator
from vqkit.generation.provenance import Line
from vqkit.models import ImageTokenizer
from vqkit.models.files import write_beside
from vqkit.tokens.sets.job import environment
from vqkit.tokens.sets.layout import ImageFacts, Layout
from vqkit.tokens.sets.shards import ShardWriter, complete
from vqkit.training.folders import whole_folder

TOKENS: Final = "tokens"
"""Folder of the token set beside the images."""
_SHARD: Final = 1024


def file_of(out: Path, image: str) -> Path:
    """Return where the ids of an image lie: `images/3/000000.png` has `ids/3/000000.npy`."""
    return (out / "ids" / Path(image).relative_to("images")).with_suffix(".npy")


def keep_ids(out: Path, image: str, ids: Tensor) -> None:
    """Write the ids (h, w, T) of one image."""
    content = io.BytesIO()
    np.save(content, ids.to(torch.int32).numpy())
    write_beside(file_of(out, image), content.getvalue())


def write_id_set(
    out: Path, generator: Generator, tokenizer: ImageTokenizer, lines: Sequence[Line]
) -> Path:
    """Put the kept ids of images together, in the order of `lines`, and return the token set."""
    layout = Layout(slots=generator.slots, labels=generator.num_classes > 0)
    count = -(-len(lines) // _SHARD)
    facts = _facts(layout, generator, tokenizer, lines)
    with whole_folder(out / TOKENS) as folder:
        for number in range(count):
            some = lines[number * _SHARD : (number + 1) * _SHARD]
            writer = ShardWriter(folder, number, layout, generator.tokenizer)
            ids = np.stack([np.load(file_of(out, line.file)) for line in some])
            sizes = tuple(side * tokenizer.stride for side in generator.grid)
            writer.add([_image(line, sizes) for line in some], torch.from_numpy(ids).long(), None)
            span = {"first_image": number * _SHARD, "images": len(some), "skipped": []}
            writer.finish(span)
        complete(folder, facts, count, ())
    return out / TOKENS


def _image(line: Line, size: tuple[int, ...]) -> ImageFacts:
    height, width = size
    return ImageFacts(
        key=line.file,
        size=(height, width),
        original=(height, width),
        box=(0.0, 0.0, float(height), float(width)),
        label=-1 if line.label is None else line.label,
    )


def _facts(
    layout: Layout, generator: Generator, tokenizer: ImageTokenizer, lines: Sequence[Line]
) -> dict[str, Any]:
    """Return what the manifest says, in the words of token sets of real images."""
    digest = hashlib.sha256("".join(line.to_json() for line in lines).encode()).hexdigest()
    channels = tokenizer.config.network.image_channels
    weight = next(tokenizer.parameters())
    return {
        "tokenizer": {
            "hash": generator.tokenizer,
            "stride": tokenizer.stride,
            "image_channels": channels,
        },
        **layout.facts(),
        "label_names": list(generator.label_names) or None,
        "preprocessing": {"channels": channels, "hash": digest},
        "environment": environment(str(weight.device), weight.dtype, torch.get_num_threads()),
        "settings": {"batch_size": 1, "shard_images": _SHARD},
        "data": {
            "source": "generated",
            "path": None,
            "split": None,
            "fingerprint": digest,
            "images": len(lines),
        },
    }
