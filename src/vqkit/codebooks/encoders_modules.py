"""Encoders that are modules of torch: anybody's own, and the encoder of a vqkit tokenizer.

Legend: B images, C channels, H W pixels, h w positions of the grid, D dim, n tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vqkit.codebooks.encoders import (
    POOL,
    PatchEncoder,
    check_images,
    check_sizes,
    device_of,
    grid_of_tokens,
    hash_state,
    with_planes,
)
from vqkit.config import require
from vqkit.models import ImageTokenizer
from vqkit.models.files import WEIGHTS
from vqkit.models.pixels import pad_to_stride, to_unit_range
from vqkit.training import load_run


class ModuleEncoder(PatchEncoder):
    """Any module of torch that maps images to features.

    Args:
        module: called with float32 images (B, C, H, W); returns features (B, D, h, w), or tokens
            (B, n, D) row by row with no class token among them. It is put into evaluation mode.
        size: side of the square images that it takes; None: any size.
        resize: shorter side before the centre crop to `size`; None: `size` itself.
        value_range: what 0 and 255 become.
        stride: pixels per position, if it returns tokens for images that are not square; otherwise
            for the record.
        name: what to call it in the manifest.

    Raises:
        ValueError: when called, if the module returns something else.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        size: int | None = None,
        resize: int | None = None,
        value_range: tuple[float, float] = (-1.0, 1.0),
        stride: int | None = None,
        name: str | None = None,
    ) -> None:
        require(
            isinstance(module, nn.Module),
            f"module={type(module).__name__}",
            "expected a torch.nn.Module",
        )
        low, high = value_range
        require(low < high, f"value_range={value_range}", "give (value of black, value of white)")
        check_sizes(size, resize)
        self._module, self._range, self._stride = module.eval(), (low, high), stride
        self.size, self.resize = size, resize or size
        self.pool = POOL if size is not None else None
        self._name = name or type(module).__name__
        self._sha256 = hash_state(module.state_dict())

    def __call__(self, images: Tensor) -> Tensor:
        """See `PatchEncoder.__call__`."""
        check_images(images, self.size)
        low, high = self._range
        values = images.to(self.device).float() / (255 / (high - low)) + low
        features = self._module(values)
        require(
            isinstance(features, Tensor) and features.dim() in (3, 4),
            f"module {self._name}: returns {_shape(features)}",
            "expected features (B, D, h, w) or tokens (B, n, D)",
        )
        if features.dim() == 3:
            height, width = images.shape[-2:]
            step = self._stride
            shape = (height // step, width // step) if step else None
            features = grid_of_tokens(features, f"module {self._name}", shape, extras=(0,))
        return features.float()

    @property
    def stride(self) -> int:
        """What was said, or 1."""
        return self._stride or 1

    def describe(self) -> dict[str, Any]:
        """See `PatchEncoder.describe`."""
        return {
            "kind": "module",
            "name": self._name,
            "sha256": self._sha256,
            "layer": None,
            "module": type(self._module).__name__,
            "size": self.size,
            "resize": self.resize,
            "value_range": list(self._range),
            "stride": self._stride,
        }

    @property
    def device(self) -> torch.device:
        """That of the module's first parameter or buffer."""
        return device_of(self._module)

    def to(self, device: str | torch.device) -> None:
        """Move the module."""
        self._module.to(device)


class TokenizerEncoder(PatchEncoder):
    """The encoder of a vqkit tokenizer, on images of any size.

    Args:
        tokenizer: a model; or the folder of one, or of a run, whose newest weights are taken.
        layer: "encoder", what the encoder gives; or "projected", after the projection to the width
            of the codes, for quantizers that have one (`in_channels`).
        name: what to call it in the manifest; by default the folder's name.

    Raises:
        ValueError: no such folder, or no projection.
    """

    def __init__(
        self,
        tokenizer: ImageTokenizer | str | Path,
        *,
        layer: Literal["encoder", "projected"] = "encoder",
        name: str | None = None,
    ) -> None:
        require(
            layer in ("encoder", "projected"),
            f"layer={layer!r}",
            "a tokenizer has 'encoder' and 'projected'",
        )
        if not isinstance(tokenizer, ImageTokenizer):
            name = name or Path(tokenizer).expanduser().resolve().name
            tokenizer = load_tokenizer(Path(tokenizer).expanduser())
        parts = {"encoder": tokenizer.encoder.eval()}
        self._projection: nn.Linear | None = None
        if layer == "projected":
            self._projection = tokenizer.quantizer.project_in
            require(
                self._projection is not None,
                f"layer={layer!r}",
                "this tokenizer has no projection before its codes; use layer='encoder'",
            )
            assert self._projection is not None
            parts["projection"] = self._projection
        self._encoder, self._layer, self._name = tokenizer.encoder, layer, name or "tokenizer"
        self._stride = tokenizer.stride
        self._channels = tokenizer.config.network.image_channels
        self._sha256 = hash_state(nn.ModuleDict(parts).state_dict())

    def __call__(self, images: Tensor) -> Tensor:
        """See `PatchEncoder.__call__`; sides are padded to a multiple of the stride."""
        check_images(images, None)
        images = with_planes(images, self._channels).to(self.device)
        floats = to_unit_range(images, next(self._encoder.parameters()).dtype)
        features: Tensor = self._encoder(pad_to_stride(floats, self._stride))
        if self._projection is not None:
            features = self._projection(features.movedim(1, -1)).movedim(-1, 1)
        return features.float()

    @property
    def stride(self) -> int:
        """That of the tokenizer."""
        return self._stride

    def describe(self) -> dict[str, Any]:
        """See `PatchEncoder.describe`."""
        return {
            "kind": "tokenizer",
            "name": self._name,
            "sha256": self._sha256,
            "layer": self._layer,
        }

    @property
    def device(self) -> torch.device:
        """That of the tokenizer."""
        return device_of(self._encoder)

    def to(self, device: str | torch.device) -> None:
        """Move the encoder."""
        self._encoder.to(device)
        if self._projection is not None:
            self._projection.to(device)


def load_tokenizer(folder: Path) -> ImageTokenizer:
    """Load a tokenizer from its folder, or from that of a run; neither is a `ValueError`."""
    if (folder / WEIGHTS).is_file():
        return ImageTokenizer.from_pretrained(folder)
    return load_run(folder)[1]


def _shape(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
