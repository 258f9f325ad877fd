"""Checkpoints of taming-transformers (VQGAN, arXiv:2012.09841) and of latent diffusion's VQ models.

PyTorch Lightning wrote them; the state dict stands under "state_dict", the losses in it under
"loss.". The encoder counts its levels from the finest, and so does the decoder, which runs them
backwards.
"""

from __future__ import annotations

from vqkit.config import QuantizerConfig, require
from vqkit.models.importers.kinds import (
    CODEBOOK,
    MIDDLE_ATTENTION,
    ImportConfig,
    Kind,
    Quantizer,
    Shapes,
    size,
)

NETWORKS = (
    (r"^encoder\.down\.(\d+)\.block\.", r"encoder.levels.\1.blocks."),
    (r"^encoder\.down\.(\d+)\.attn\.", r"encoder.levels.\1.attentions."),
    (r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.levels.\1.down."),
    (r"^decoder\.up\.(\d+)\.block\.", r"decoder.levels.\1.blocks."),
    (r"^decoder\.up\.(\d+)\.attn\.", r"decoder.levels.\1.attentions."),
    (r"^decoder\.up\.(\d+)\.upsample\.", r"decoder.levels.\1.up."),
    (r"^(encoder|decoder)\.mid\.block_1\.", r"\1.middle.first."),
    (r"^(encoder|decoder)\.mid\.attn_1\.", r"\1.middle.attention."),
    (r"^(encoder|decoder)\.mid\.block_2\.", r"\1.middle.second."),
    (r"\.nin_shortcut\.", ".shortcut."),
    (r"\.proj_out\.", ".out."),
    (r"^quant_conv\.", "encoder.quant_conv."),
    (r"^post_quant_conv\.", "decoder.quant_conv."),
)
"""Names of the encoder and decoder, which other code has taken over."""


def legacy_weights(config: ImportConfig) -> dict[str, float]:
    """Return the weights of the loss terms that go on as the file was trained.

    The published code puts β = 0.25 on the codebook term (CompVis/taming-transformers, pull
    request 58), which VQ-VAE has on the commitment.
    """
    if config.legacy_beta is False:
        return {"commitment": 0.25, "codebook": 1.0}
    return {"commitment": 1.0, "codebook": 0.25}


def free_codes(shapes: Shapes, config: ImportConfig) -> Quantizer:
    """Codes in "quantize.embedding", nearest by L2."""
    name = "quantize.embedding.weight"
    sizes = {"num_codes": size(shapes, name, 0), "dim": size(shapes, name, 1)}
    quantizer = QuantizerConfig(preset="vq_vae", args={**sizes, **legacy_weights(config)})
    return Quantizer(quantizer, {f"{CODEBOOK}.codes": name})


def _codes(shapes: Shapes, config: ImportConfig) -> Quantizer:
    """Codes compared by L2, or those of GumbelVQ, chosen by logits from "quantize.proj"."""
    name = "quantize.embed.weight"
    if name not in shapes:
        return free_codes(shapes, config)
    require(config.legacy_beta is None, "legacy_beta", "Gumbel-VQ has no such term; leave it out")
    require("quantize.used" not in shapes, "quantize.used", "logits of some codes only, which no "
            "preset has")  # fmt: skip
    # GumbelVQ weighs the divergence with 1e-8.
    args = {"num_codes": size(shapes, name, 0), "dim": size(shapes, name, 1), "kl": 1e-8}
    logits = "quantizer.quantizer.assignment.logits"
    tensors = {
        f"{CODEBOOK}.codes": name,
        f"{logits}.weight": "quantize.proj.weight",
        f"{logits}.bias": "quantize.proj.bias",
    }
    return Quantizer(QuantizerConfig(preset="gumbel", args=args), tensors)


TAMING = Kind(
    name="taming",
    marks=("encoder.down.", "decoder.up.", "quantize.embed"),
    renames=NETWORKS,
    # Colours of segmentations, moving averages of latent diffusion, tables of the codes in use.
    ignored=("loss.", "colorize", "model_ema.", "temperature_scheduler.", "quantize.used"),
    quantizer=_codes,
    decoder_from_fine=True,
    options=("legacy_beta",),
    optional=MIDDLE_ATTENTION,  # vq-f4-noattn of latent diffusion has none
)
