"""Large images in tiles: encoded and decoded with the memory of one tile.

Tiles lie on the grid. Each is computed with a halo, a margin of the picture around it (as much as
there is), and only its inside is kept. A halo as wide as the receptive field makes the result that
of the whole picture where every layer is local: the networks of kind `vqvae`. Group normalisation
and attention look at all that they are given; with them tiles are near it at best, and a
`UserWarning` says so.

Lengths are in positions of the grid, unless called pixels.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from vqkit.config import require
from vqkit.models.pixels import check_shape
from vqkit.models.reach import exact_halo, global_kinds
from vqkit.models.tokenizer import ImageTokenizer, evaluation_mode


@dataclass(frozen=True, slots=True)
class _Span:
    """One side of a tile: [start, stop) is kept of what is computed, [first, last)."""

    start: int
    stop: int
    first: int
    last: int

    def seen(self, unit: int = 1) -> slice:
        """Return what is computed, of a side of the whole counted in 1 / unit positions."""
        return slice(self.first * unit, self.last * unit)

    def kept(self, unit: int = 1) -> slice:
        """Return what is kept, of a side of the whole."""
        return slice(self.start * unit, self.stop * unit)

    def inside(self, unit: int = 1) -> slice:
        """Return what is kept, of a side of the tile as computed."""
        return slice((self.start - self.first) * unit, (self.stop - self.first) * unit)


_Tiles = Sequence[tuple[_Span, _Span]]
"""Rows and columns of every tile."""


def encode_tiled(
    tokenizer: ImageTokenizer, images: Tensor, *, tile: int = 512, halo: int | None = None
) -> Tensor:
    """Return the ids (B, h, w, T) of images (B, C, H, W) of any size, like `tokenizer.encode`.

    Images may lie on another device than the model, which gets one tile after the other; the ids
    come to the device of the images.

    Args:
        tokenizer: the model; its mode and state stay as they are.
        images: uint8, or floats in [-1, 1].
        tile: pixels of what is kept of a tile along each side, rounded up to whole positions.
            Memory grows with the square of `tile + 2 * halo`.
        halo: pixels on each side that are computed and thrown away, rounded up likewise. None
            takes `exact_halo`; less is faster, and may change tokens near the edges of tiles.

    Raises:
        ValueError: what `encode` refuses, senseless sizes, and a quantizer of your own class, of
            which nobody knows whether it quantizes position by position.
    """
    check_shape(images, tokenizer.config.network.image_channels)
    grid = tokenizer.grid_size(images.shape[-2], images.shape[-1])
    tiles = {"encoder": _cut(tokenizer, "encoder", grid, tile, halo)}
    _warn_if_global(tokenizer, tiles, grid, tile)
    return _encode(tokenizer, images, grid, tiles["encoder"])


def decode_tiled(
    tokenizer: ImageTokenizer,
    ids: Tensor,
    size: tuple[int, int] | None = None,
    *,
    tile: int = 512,
    halo: int | None = None,
) -> Tensor:
    """Return the images (B, C, H, W) of ids (B, h, w, T), like `tokenizer.decode`.

    `size`, and what it raises: see there; devices, `tile` and `halo`: see `encode_tiled`.
    """
    grid = _grid_of(ids)
    size = tokenizer.image_size(*grid, size)
    tiles = {"decoder": _cut(tokenizer, "decoder", grid, tile, halo)}
    _warn_if_global(tokenizer, tiles, grid, tile)
    return _decode(tokenizer, ids, size, tiles["decoder"])


def reconstruct_tiled(
    tokenizer: ImageTokenizer, images: Tensor, *, tile: int = 512, halo: int | None = None
) -> Tensor:
    """Return what remains of images (B, C, H, W), like `tokenizer.reconstruct`.

    This is `decode_tiled(encode_tiled(images), size)`, with one warning at most.
    """
    check_shape(images, tokenizer.config.network.image_channels)
    size = (images.shape[-2], images.shape[-1])
    grid = tokenizer.grid_size(*size)
    tiles = {part: _cut(tokenizer, part, grid, tile, halo) for part in ("encoder", "decoder")}
    _warn_if_global(tokenizer, tiles, grid, tile)
    ids = _encode(tokenizer, images, grid, tiles["encoder"])
    return _decode(tokenizer, ids, size, tiles["decoder"])


def _encode(
    tokenizer: ImageTokenizer, images: Tensor, grid: tuple[int, int], tiles: _Tiles
) -> Tensor:
    stride, device = tokenizer.stride, next(tokenizer.parameters()).device
    shape = (len(images), *grid, len(tokenizer.quantizer.slots))
    ids = torch.empty(shape, dtype=torch.int64, device=images.device)
    with evaluation_mode(tokenizer):  # once, so that computed codebooks are computed once
        for rows, columns in tiles:
            part = images[..., rows.seen(stride), columns.seen(stride)].to(device)
            found = tokenizer.encode(part)
            ids[:, rows.kept(), columns.kept()] = found[:, rows.inside(), columns.inside()]
    return ids


def _decode(tokenizer: ImageTokenizer, ids: Tensor, size: tuple[int, int], tiles: _Tiles) -> Tensor:
    stride, weight = tokenizer.stride, next(tokenizer.decoder.parameters())
    shape = (len(ids), tokenizer.config.network.image_channels, *size)
    images = torch.empty(shape, dtype=weight.dtype, device=ids.device)
    with evaluation_mode(tokenizer):
        for rows, columns in tiles:
            found = tokenizer.decode(ids[:, rows.seen(), columns.seen()].to(weight.device))
            place = images[..., rows.kept(stride), columns.kept(stride)]  # without the padding
            found = found[..., rows.inside(stride), columns.inside(stride)]
            place.copy_(found[..., : place.shape[-2], : place.shape[-1]])
    return images


def _cut(
    tokenizer: ImageTokenizer, part: str, grid: tuple[int, int], tile: int, halo: int | None
) -> _Tiles:
    """Return the tiles of `encoder` or `decoder` over a grid (h, w)."""
    require(tile >= 1, f"tile={tile}", "a tile has at least 1 pixel along each side")
    require(
        halo is None or halo >= 0, f"halo={halo}", "counts pixels around a tile; give at least 0"
    )
    stride = tokenizer.stride
    side, margin = -(-tile // stride), 0
    if max(grid) > side:  # else there is one tile, whatever the halo
        exact = getattr(exact_halo(tokenizer), part)
        margin = -(-(exact if halo is None else halo) // stride)
    rows, columns = (_spans(length, side, margin) for length in grid)
    return list(product(rows, columns))


def _spans(length: int, side: int, margin: int) -> list[_Span]:
    return [
        _Span(start, stop, max(start - margin, 0), min(stop + margin, length))
        for start in range(0, length, side)
        for stop in (min(start + side, length),)
    ]


def _grid_of(ids: Tensor) -> tuple[int, int]:
    require(isinstance(ids, Tensor), f"ids={type(ids).__name__}", "expected a tensor")
    shape = tuple(ids.shape)
    require(ids.ndim == 4 and min(shape) >= 1, f"ids.shape={shape}", "expected (B, h, w, T)")
    return shape[1], shape[2]


def _warn_if_global(
    tokenizer: ImageTokenizer, tiles: Mapping[str, _Tiles], grid: tuple[int, int], tile: int
) -> None:
    """Warn, for the caller of the public function, if layers see less than in the whole picture."""
    listed = []
    for part, cut in tiles.items():
        whole = all((rows.last - rows.first, cols.last - cols.first) == grid for rows, cols in cut)
        kinds = [] if whole else global_kinds(getattr(tokenizer, part))
        counts = [f"{kind} ({count})" for kind, count in Counter(kinds).items()]
        listed += [f"{part}: {', '.join(counts)}"] if counts else []
    if listed:
        warnings.warn(
            f"tile={tile}: the result is not that of the whole image, since layers look at all "
            f"they are given ({'; '.join(listed)}). Tones may shift from tile to tile, and seams "
            "show; larger tiles lessen it, and one that holds the image is exact",
            UserWarning,
            stacklevel=3,
        )
