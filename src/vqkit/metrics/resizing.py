"""Bytes to the 299×299 images of Inception, as four evaluators do it.

FID moves by whole points with the filter (Parmar, Zhang, Zhu 2022, arXiv:2104.11222), so the mode
is part of every number's identity.

- `clean`: clean-fid. Bicubic with antialiasing (Pillow's filter, in floating point, every channel
  on its own, nothing rounded or clipped), then (v - 128) / 128.
- `legacy`: pytorch-fid. Bilinear without antialiasing, pixel centres at halves, then v / 127.5 - 1.
- `adm`: the TensorFlow graph that guided-diffusion's evaluator runs. Bilinear without antialiasing
  as TensorFlow 1 has it (pixel i reads at i · H / 299), then (v - 128) / 128. torch-fidelity, and
  torchmetrics with `antialias=False`, do the same.
- `cvq`: CVQ-VAE and LooC. Pillow's bilinear filter in bytes to 229×229 (so stands in the code),
  then `legacy`.

Shapes: B images of C = 1 or 3 channels, H × W pixels.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vqkit.config import require
from vqkit.config.core import check_choice
from vqkit.metrics.inception import SIDE
from vqkit.metrics.measures import Resize

_CVQ_SIDE: Final = 229


def prepare(images: Tensor, resize: Resize) -> Tensor:
    """Return float32 (B, 3, 299, 299) in about [-1, 1] of uint8 (B, C, H, W); grey is repeated.

    Raises `ValueError` for another type, shape or mode.
    """
    check_choice("resize", resize, Resize)
    require(
        images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] in (1, 3),
        f"images of shape {tuple(images.shape)}, {images.dtype}",
        "expected uint8 (B, 1 or 3, H, W)",
    )
    if resize == "clean":
        # float64: so it agrees with Pillow to 1e-4 of a grey level; float32 does to 1e-2
        wide = F.interpolate(images.double(), (SIDE, SIDE), mode="bicubic", antialias=True)
        values = (wide.float() - 128) / 128
    elif resize == "adm":
        values = (_tensorflow(images.float()) - 128) / 128
    else:
        if resize == "cvq":
            images = _pillow(images)
        values = F.interpolate(images.float() / 255, (SIDE, SIDE), mode="bilinear") * 2 - 1
    return values.expand(-1, 3, -1, -1)


def _tensorflow(images: Tensor) -> Tensor:
    """Bilinear as TensorFlow 1: corners are at pixel 0, and the last pixels are repeated."""
    for axis in (2, 3):
        length = images.shape[axis]
        place = torch.arange(SIDE, device=images.device) * torch.tensor(length / SIDE)
        low = place.long()
        high = (low + 1).clamp(max=length - 1)
        share = (place - low).view(-1, 1) if axis == 2 else place - low
        below, above = images.index_select(axis, low), images.index_select(axis, high)
        images = below + (above - below) * share
    return images


def _pillow(images: Tensor) -> Tensor:
    """Resize to 229×229 in bytes, image by image."""
    shrunk = [
        np.asarray(
            Image.fromarray(channel).resize((_CVQ_SIDE, _CVQ_SIDE), Image.Resampling.BILINEAR)
        )
        for channel in images.flatten(0, 1).cpu().numpy()
    ]
    bytes_ = torch.from_numpy(np.stack(shrunk))
    return bytes_.view(*images.shape[:2], _CVQ_SIDE, _CVQ_SIDE).to(images.device)
