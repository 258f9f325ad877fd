"""VQModel of diffusers: folders with `config.json`, or their files of weights.

Attention layers have linear maps where VQGAN has 1 x 1 convolutions (the same numbers in another
shape), under today's names or those before diffusers 0.13. `norm_type="spatial"` is MoVQ's
modulated decoder (arXiv:2209.09002).
"""

from __future__ import annotations

from typing import Any

from vqkit.config import require
from vqkit.models.importers.kinds import MIDDLE_ATTENTION, Kind
from vqkit.models.importers.taming import free_codes


def _check(settings: dict[str, Any]) -> None:
    """Refuse what `config.json` asks for and the names of tensors do not show."""
    expected = {"_class_name": ("VQModel",), "act_fn": ("silu", "swish")}
    for name, choices in expected.items():
        value = settings.get(name, choices[0])
        require(value in choices, f"config.json: {name}={str(value)[:80]!r}", f"expected {choices}")
    groups = settings.get("norm_num_groups", 32)
    require(
        settings.get("norm_type") != "spatial" or groups == 32,
        f"config.json: norm_num_groups={str(groups)[:80]}",
        "a decoder with norm_type='spatial' has 32 groups all the same; so must the encoder",
    )


DIFFUSERS = Kind(
    name="diffusers",
    marks=("encoder.down_blocks.", "decoder.up_blocks.", "quantize.embedding."),
    renames=(
        (r"^encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.levels.\1.blocks."),
        (r"^encoder\.down_blocks\.(\d+)\.attentions\.", r"encoder.levels.\1.attentions."),
        (r"^encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.levels.\1.down."),
        (r"^decoder\.up_blocks\.(\d+)\.resnets\.", r"decoder.levels.\1.blocks."),
        (r"^decoder\.up_blocks\.(\d+)\.attentions\.", r"decoder.levels.\1.attentions."),
        (r"^decoder\.up_blocks\.(\d+)\.upsamplers\.0\.", r"decoder.levels.\1.up."),
        (r"^(encoder|decoder)\.mid_block\.resnets\.0\.", r"\1.middle.first."),
        (r"^(encoder|decoder)\.mid_block\.resnets\.1\.", r"\1.middle.second."),
        (r"^(encoder|decoder)\.mid_block\.attentions\.0\.", r"\1.middle.attention."),
        (r"\.(group_norm|spatial_norm)\.", ".norm."),
        (r"\.(to_q|query)\.", ".q."),
        (r"\.(to_k|key)\.", ".k."),
        (r"\.(to_v|value)\.", ".v."),
        (r"\.(to_out\.0|proj_attn)\.", ".out."),
        (r"\.conv_shortcut\.", ".shortcut."),
        (r"\.conv_norm_out\.", ".norm_out."),
        (r"\.norm_layer\.", ".norm."),
        (r"\.conv_y\.", ".scale."),
        (r"\.conv_b\.", ".shift."),
        (r"^quant_conv\.", "encoder.quant_conv."),
        (r"^post_quant_conv\.", "decoder.quant_conv."),
    ),
    ignored=("quantize.used",),
    quantizer=free_codes,
    options=("legacy_beta",),
    optional=MIDDLE_ATTENTION,
    check=_check,
)
