"""Images in, uint8 batches out: sources, decoding, and loading that resumes bit for bit.

`load_images(DataConfig)` gives an `ImageSet`; `BatchStream` cuts it into training batches, each a
pure function of (seed, step); `iterate_once` walks through it in order for an evaluation.
"""

from vqkit.data.decoding import BrokenImageError
from vqkit.data.image_set import ImageSet
from vqkit.data.load import load_images
from vqkit.data.stream import Batch, BatchStream, iterate_once
from vqkit.data.transforms import to_float, to_uint8

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
