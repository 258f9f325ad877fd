"""How a published vision model wants its images: size, shorter side, mean and deviation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from vqkit.codebooks.set_folders import read_object
from vqkit.config import require

FILES: Final = ("preprocessor_config.json", "processor_config.json")
"""Where transformers keeps it; in the second, from version 5 on, among other things."""
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# What the models were published with; all others with the statistics of ImageNet.
_STATISTICS: Final = {
    **dict.fromkeys(("clip", "clip_vision_model", "metaclip_2"), _CLIP),
    **dict.fromkeys(("siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model"), _HALF),
    **dict.fromkeys(("vit", "beit"), _HALF),
}
_PLAIN_SIDE = 224
_NO_CROP_FROM = 384
"""From this side on, ResNet and ConvNeXt take whole images (their image processor's rule)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """Shorter side to `resize` (bicubic, antialiased), middle square of `size`, then numbers."""

    size: int
    resize: int
    scale: float
    """What a uint8 value is multiplied by."""
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalised(self, images: Tensor) -> Tensor:
        """Return uint8 images (B, C, H, W) as float32: (image * scale - mean) / std."""
        values = images.float() * self.scale
        mean, std = (values.new_tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        return (values - mean) / std


def read_preprocessing(folder: Path, kind: str, config: Any, size: int | None) -> Preprocessing:
    """Read the folder's preprocessor_config.json, or take what suits models of a `kind`.

    `config` is the model's, `size` an image size that the user wants. Sides of images are changed
    alike: a folder that asks for a stretch to a square gets shorter side and crop instead. Values
    that make no sense are a `ValueError`.
    """
    given = _read(folder)
    channels = int(getattr(config, "num_channels", 3))
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mean, std = _STATISTICS.get(kind, _IMAGENET)
    if given.get("do_normalize", True):
        mean = tuple(given.get("image_mean") or mean[:channels])
        std = tuple(given.get("image_std") or std[:channels])
    else:
        mean, std = (0.0,) * channels, (1.0,) * channels
    require(
        len(mean) == len(std) == channels and min(std) > 0,
        f"encoder={folder}: image_mean={list(mean)}, image_std={list(std)}",
        f"need {channels} numbers each, the deviations above 0; correct {FILES[0]}",
    )
    side, shorter = _sides(given, config)
    if size is not None:
        side, shorter = size, max(size, round(shorter * size / side))
    scale = float(given.get("rescale_factor", 1 / 255)) if given.get("do_rescale", True) else 1.0
    return Preprocessing(
        size=side, resize=max(side, shorter), scale=scale, mean=tuple(mean), std=tuple(std)
    )


def _read(folder: Path) -> dict[str, Any]:
    for name in FILES:
        if (folder / name).is_file():
            values = read_object(folder / name)
            inner = values.get("image_processor", values)
            return inner if isinstance(inner, dict) else {}
    return {}


def _sides(given: dict[str, Any], config: Any) -> tuple[int, int]:
    """Return side of the square and shorter side before the crop."""
    resized, square = _side(given.get("size")), _side(given.get("crop_size"))
    own = _side(getattr(config, "image_size", None)) or _PLAIN_SIDE
    share = given.get("crop_pct")
    if share and resized and resized < _NO_CROP_FROM:
        return resized, int(resized / float(share))
    if not given.get("do_center_crop", square is not None):
        square = None
    side = square or resized or own
    return side, resized or side


def _side(value: Any) -> int | None:
    """Read 224, [224, 224], {"shortest_edge": 224} or {"height": 224, "width": 224}."""
    if isinstance(value, dict):
        value = value.get("shortest_edge") or value.get("height")
    if isinstance(value, list | tuple):
        value = value[0]
    return int(value) if value else None
