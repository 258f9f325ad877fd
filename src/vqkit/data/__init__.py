"""Images in, uint8 batches out: sources, decoding, and loading that resumes bit for bit.

`load_images(DataConfig)` gives an `ImageSet`; `BatchStream` cuts it into training batches, each a
pure function of (seed, step); `iterate_once` walks through it in order for an evaluation.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vqkit.data.decoding import BrokenImageError
    from vqkit.data.image_set import ImageSet
    from vqkit.data.load import load_images
    from vqkit.data.stream import Batch, BatchStream, iterate_once
    from vqkit.data.transforms import to_float, to_uint8
else:
    # Imported when first asked for: worker processes use modules of this package without torch.
    _HOMES = {
        "Batch": "stream",
        "BatchStream": "stream",
        "BrokenImageError": "decoding",
        "ImageSet": "image_set",
        "iterate_once": "stream",
        "load_images": "load",
        "to_float": "transforms",
        "to_uint8": "transforms",
    }

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


__all__ = [
    "Batch",
    "BatchStream",
    "BrokenImageError",
    "ImageSet",
    "iterate_once",
    "load_images",
    "to_float",
    "to_uint8",
]
