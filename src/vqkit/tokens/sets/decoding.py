"""From a token set back to images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from vqkit.config import require
from vqkit.data.transforms import to_uint8
from vqkit.models import ImageTokenizer
from vqkit.tokens.frequencies import tokenizer_hash
from vqkit.tokens.sets.token_set import TokenSet


def decoded_images(
    tokenizer: ImageTokenizer,
    token_set: TokenSet,
    indices: Sequence[int] | None = None,
    *,
    batch_size: int = 32,
) -> Iterator[tuple[str, Tensor]]:
    """Yield key and image, uint8 (C, H, W) on the CPU, of the images asked for, by default of all.

    Images have the size that they were tokenized in, and come in the order of `indices`.

    Raises:
        ValueError: tokens of another tokenizer.
        IndexError: an image that the set does not have.
    """
    require(batch_size >= 1, f"batch_size={batch_size}", "must be at least 1")
    token_set.check_tokenizer(tokenizer_hash(tokenizer))
    wanted = range(len(token_set)) if indices is None else indices
    device = next(tokenizer.parameters()).device
    for start in range(0, len(wanted), batch_size):
        numbers = np.asarray(wanted[start : start + batch_size])
        keys, sizes = token_set.keys(numbers), token_set.sizes(numbers)
        together = groupby(range(len(numbers)), key=lambda row: tuple(sizes[row].tolist()))
        for (height, width), rows in together:
            places = list(rows)
            ids = token_set.ids(numbers[places]).to(device)
            with torch.no_grad():
                images = to_uint8(tokenizer.decode(ids, size=(height, width))).cpu()
            yield from zip([keys[place] for place in places], images, strict=True)
