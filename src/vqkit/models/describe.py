"""What one image costs a tokenizer, counted before anything runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from vqkit.quantizers import QuantizerDescription

if TYPE_CHECKING:
    from vqkit.models.tokenizer import ImageTokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """Costs of one image of `height` x `width` pixels."""

    height: int
    width: int
    channels: int
    padded: tuple[int, int]
    """Height and width that are encoded: the next multiples of the stride."""
    bits_per_pixel: float
    """Nominal bits of all tokens and side bits, divided by the pixels before padding."""
    raw_bits_per_pixel: int
    """Of the image as bytes, uncompressed."""
    encoder_parameters: int
    decoder_parameters: int
    quantizer_parameters: int
    """Trained numbers; tables that never change are counted in `quantizer.codebook_floats` only."""
    quantizer: QuantizerDescription
    """Tokens, bits, storage, operations and memory of the quantizer on the padded image."""

    @property
    def tokens_per_image(self) -> int:
        """Tokens of all positions together."""
        return self.quantizer.tokens_per_image

    @property
    def bits_per_image(self) -> float:
        """Nominal bits of all tokens and side bits."""
        return self.quantizer.bits_per_image

    def to_dict(self) -> dict[str, Any]:
        """Return one flat dict of JSON values; the grid is `grid_height` x `grid_width`."""
        values = asdict(self)
        inner = values.pop("quantizer")
        grid = {"grid_height": inner.pop("height"), "grid_width": inner.pop("width")}
        return {**values, "padded": list(self.padded), **grid, **inner}

    def text(self) -> str:
        """Return lines of a name and a value, for reading."""
        padding = "" if self.padded == (self.height, self.width) else " (padded to {}×{})"
        rows = [
            ("image", f"{self.height}×{self.width} pixels" + padding.format(*self.padded)),
            ("bits per pixel", f"{self.bits_per_pixel:.6g} (raw: {self.raw_bits_per_pixel})"),
            ("parameters", f"{self.encoder_parameters:,} encoder, {self.decoder_parameters:,} "
             f"decoder, {self.quantizer_parameters:,} quantizer"),
        ]  # fmt: skip
        return "\n".join([*(f"{name:<18}{value}" for name, value in rows), self.quantizer.text()])


def describe(
    tokenizer: ImageTokenizer, image_size: tuple[int, int], *, batch_size: int
) -> Description:
    """Count what `tokenizer` needs for one image of (height, width); see `Description`."""
    height, width = image_size
    h, w = tokenizer.grid_size(height, width)
    quantizer = tokenizer.quantizer.describe(h, w, batch_size=batch_size)
    channels = tokenizer.config.network.image_channels
    return Description(
        height=height,
        width=width,
        channels=channels,
        padded=(h * tokenizer.stride, w * tokenizer.stride),
        bits_per_pixel=quantizer.bits_per_image / (height * width),
        raw_bits_per_pixel=8 * channels,
        encoder_parameters=_count_parameters(tokenizer.encoder),
        decoder_parameters=_count_parameters(tokenizer.decoder),
        quantizer_parameters=_count_parameters(tokenizer.quantizer),
        quantizer=quantizer,
    )


def _count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
