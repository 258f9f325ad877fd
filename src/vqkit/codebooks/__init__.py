"""Codebooks out of pretrained features: extraction, clustering, codebook files, transfer.

`extract` writes the features of images, `make_codebook` clusters them, a codebook file keeps the
codes with where they come from, and preset `vqgan_lc` trains with them (arXiv:2406.11837).
"""

from vqkit.codebooks.cluster import cluster_into, make_codebook
from vqkit.codebooks.edit import merge, subset
from vqkit.codebooks.encoders import PatchEncoder
from vqkit.codebooks.encoders_modules import ModuleEncoder, TokenizerEncoder
from vqkit.codebooks.encoders_transformers import TransformersEncoder
from vqkit.codebooks.extraction import extract
from vqkit.codebooks.features import FeatureSet, open_features
from vqkit.codebooks.files import CodebookFile, read_codebook, write_codebook
from vqkit.codebooks.pixels import PixelPatches
from vqkit.codebooks.report import CodebookDescription, describe_codes
from vqkit.codebooks.transfer import Transfer, adapt, measure_transfer, open_codes

__all__ = [
    "CodebookDescription",
    "CodebookFile",
    "FeatureSet",
    "ModuleEncoder",
    "PatchEncoder",
    "PixelPatches",
    "TokenizerEncoder",
    "Transfer",
    "TransformersEncoder",
    "adapt",
    "cluster_into",
    "describe_codes",
    "extract",
    "make_codebook",
    "measure_transfer",
    "merge",
    "open_codes",
    "open_features",
    "read_codebook",
    "subset",
    "write_codebook",
]
