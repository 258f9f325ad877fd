"""The VQ-8 and VQ-16 tokenizers of LlamaGen (arXiv:2406.06525).

VQGAN's networks with attention on the coarsest level, and codes of 8 numbers; vectors and codes
are scaled to unit length before they are compared, and the decoder gets the unit code.
"""

from __future__ import annotations

from vqkit.config import QuantizerConfig
from vqkit.models.importers.kinds import CODEBOOK, ImportConfig, Kind, Quantizer, Shapes, size


def _codes(shapes: Shapes, config: ImportConfig) -> Quantizer:
    """A file does not tell whether codes are scaled: training lets their lengths drift."""
    name = "quantize.embedding.weight"
    args = {"num_codes": size(shapes, name, 0), "dim": size(shapes, name, 1), "in_channels": None}
    if config.unit_codes is False:
        return Quantizer(QuantizerConfig(preset="vq_vae", args=args), {f"{CODEBOOK}.codes": name})
    return Quantizer(
        QuantizerConfig(preset="vit_vqgan", args=args), {f"{CODEBOOK}.base.codes": name}
    )


LLAMAGEN = Kind(
    name="llamagen",
    marks=("encoder.conv_blocks.", "decoder.conv_blocks.", "quantize.embedding."),
    renames=(
        (r"^(encoder|decoder)\.conv_blocks\.(\d+)\.res\.", r"\1.levels.\2.blocks."),
        (r"^(encoder|decoder)\.conv_blocks\.(\d+)\.attn\.", r"\1.levels.\2.attentions."),
        (r"^encoder\.conv_blocks\.(\d+)\.downsample\.", r"encoder.levels.\1.down."),
        (r"^decoder\.conv_blocks\.(\d+)\.upsample\.", r"decoder.levels.\1.up."),
        (r"^(encoder|decoder)\.mid\.0\.", r"\1.middle.first."),
        (r"^(encoder|decoder)\.mid\.1\.", r"\1.middle.attention."),
        (r"^(encoder|decoder)\.mid\.2\.", r"\1.middle.second."),
        (r"\.nin_shortcut\.", ".shortcut."),
        (r"\.proj_out\.", ".out."),
        (r"^quant_conv\.", "encoder.quant_conv."),
        (r"^post_quant_conv\.", "decoder.quant_conv."),
    ),
    ignored=("quantize.codebook_used",),
    quantizer=_codes,
    options=("unit_codes",),
)
