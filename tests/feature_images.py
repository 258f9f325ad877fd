"""Image sets and encoders for the tests of features."""

import numpy as np
import torch
from PIL import Image
from torch import nn

from vqkit.codebooks.encoders_modules import ModuleEncoder
from vqkit.config import DataConfig
from vqkit.data.image_set import ArrayImages, Listing


def random_pixels(count, channels=3, height=24, width=32, seed=0):
    """Smooth random images (count, C, H, W), uint8: neighbouring pixels vary together."""
    rng = np.random.default_rng(seed)
    rough = rng.integers(0, 256, (count, channels, height + 3, width + 3)).astype(np.float64)
    views = np.lib.stride_tricks.sliding_window_view(rough, (4, 4), axis=(2, 3))
    return torch.from_numpy(views.mean((-1, -2)).astype(np.uint8))


def array_set(pixels, labels=None, label_names=None):
    """Hold pixels (N, C, H, W) as an image set."""
    listing = Listing(
        count=len(pixels),
        name=lambda i: f"image{i}",
        files=lambda: [("pixels", pixels.numel())],
        labels=labels,
        label_names=label_names,
    )
    config = DataConfig(source="mnist", path="memory", channels=pixels.shape[1])
    return ArrayImages(config, listing, pixels)


def image_folder(folder, sizes, classes=None):
    """Write one PNG of every (height, width), in class folders if there are names of classes."""
    for i, (height, width) in enumerate(sizes):
        place = folder if classes is None else folder / classes[i % len(classes)]
        place.mkdir(parents=True, exist_ok=True)
        pixels = random_pixels(1, 3, height, width, seed=i)[0].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(place / f"{i:02}.png")
    return DataConfig(source="folder", path=str(folder))


class Counting(nn.Module):
    """Averages cells of 4 x 4 pixels; `fail` names the call that raises."""

    def __init__(self, fail=None):
        super().__init__()
        self.calls, self.fail = 0, fail
        self.pool = nn.AvgPool2d(4)

    def forward(self, images):
        self.calls += 1
        if self.calls == self.fail:
            raise OSError("the device is gone")
        return self.pool(images)


def cells(fail=None, size=None):
    """An encoder that averages cells, and the module that counts its calls."""
    module = Counting(fail)
    return ModuleEncoder(module, name="cells", stride=4, size=size), module


def contents(folder):
    """Every file below a folder with its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
