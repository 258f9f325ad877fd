"""Checkpoints of VQGAN-LC (arXiv:2406.11837), and of the rivals that its code trains.

The networks have taming-transformers' names; codes stand in "tok_embeddings", seen through
"codebook_projection" in VQGAN-LC itself. Its discriminator and LPIPS network stand in the same
state dict.
"""

from __future__ import annotations

import torch

from vqkit.config import QuantizerConfig
from vqkit.models.importers.kinds import CODEBOOK, ImportConfig, Kind, Quantizer, Shapes, size
from vqkit.models.importers.taming import NETWORKS

_FEATURES = "tok_embeddings.weight"
_PROJECTOR = "codebook_projection"
_UNIT_DIM = 768
"""For vectors of this length the published code scales the features to unit length."""


def _codes(shapes: Shapes, config: ImportConfig) -> Quantizer:
    num_codes, width = size(shapes, _FEATURES, 0), size(shapes, _FEATURES, 1)
    dim = size(shapes, "quant_conv.weight", 0)
    if dim == _UNIT_DIM:
        raise ValueError(
            f"codes of {dim} numbers: VQGAN-LC's code may scale vectors of this length (and not "
            "the codes) before it compares them, which no preset does"
        )
    if f"{_PROJECTOR}.2.weight" in shapes:
        raise ValueError(f"{_PROJECTOR}: has two layers; only the linear projector can be read")
    if f"{_PROJECTOR}.weight" in shapes:
        # Only the shape is known yet; this stands for the features without taking their memory.
        features = torch.zeros(()).expand(num_codes, width)
        args = {"features": features, "dim": dim, "in_channels": None}
        tensors = {
            f"{CODEBOOK}.features": _FEATURES,
            f"{CODEBOOK}.projector.weight": f"{_PROJECTOR}.weight",
            f"{CODEBOOK}.projector.bias": f"{_PROJECTOR}.bias",
        }
        return Quantizer(QuantizerConfig(preset="vqgan_lc", args=args), tensors)
    args = {"num_codes": num_codes, "dim": width}
    if "cluster_size" in shapes:  # VQGAN-EMA
        rule = "quantizer.quantizer.rules.0"
        tensors = {
            f"{CODEBOOK}.codes": _FEATURES,
            f"{rule}.counts": "cluster_size",
            f"{rule}.sums": "embed_avg",
        }
        quantizer = QuantizerConfig(preset="vq_ema", args={**args, "commitment": 0.1})
        return Quantizer(quantizer, tensors)
    quantizer = QuantizerConfig(preset="vqgan_fc", args={**args, "in_channels": None})
    return Quantizer(quantizer, {f"{CODEBOOK}.codes": _FEATURES})


VQGAN_LC = Kind(
    name="vqgan_lc",
    marks=("encoder.down.", "decoder.up.", "tok_embeddings."),
    renames=NETWORKS,
    ignored=("discriminator.", "perceptual_loss.", "colorize"),
    quantizer=_codes,
    decoder_from_fine=True,
)
