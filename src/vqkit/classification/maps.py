"""The maps that are classified: the codes that tokens stand for, or latents before quantization.

Shapes: n images, D channels, h x w positions, T tokens per position.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from vqkit.config import require
from vqkit.config.classification import Source
from vqkit.models import ImageTokenizer
from vqkit.models.compact import compacted
from vqkit.tokens import TokenSet, tokenizer_hash

COUNTED: Final = 2048
"""Images whose maps give mean and deviation of the channels."""
AT_ONCE: Final = 256


class Maps:
    """Maps of the images of token sets that one tokenizer made."""

    def __init__(self, tokenizer: ImageTokenizer, source: Source) -> None:
        """Put the tokenizer into evaluation mode; its quantizer moves to where maps are asked."""
        self.tokenizer = tokenizer
        self.hash = tokenizer_hash(tokenizer)
        self.source = source
        self._quantizer = compacted(tokenizer).eval().quantizer

    @property
    def channels(self) -> int:
        """D."""
        quantizer = self._quantizer
        return quantizer.width if self.source == "latents" else quantizer.channels

    def check(self, tokens: TokenSet, name: str) -> None:
        """Raise `ValueError` unless these maps can be had of a token set, all of one size."""
        tokens.check_tokenizer(self.hash)
        require(tokens.grid is not None, name, "has images of several sizes; tokenize one size")
        require(
            self.source == "codes" or tokens.latent_channels > 0,
            "source='latents'",
            f"{name} holds no latents; tokenize again with --latents",
        )

    @torch.no_grad()
    def of(self, ids: Tensor, latents: Tensor | None, device: torch.device) -> Tensor:
        """Return maps (n, D, h, w) of ids (n, h, w, T), in float32."""
        if self.source == "latents":
            assert latents is not None  # `check` has seen to it
            return latents.to(device)
        self._quantizer.to(device)
        with torch.autocast(device.type, enabled=False):
            return self._quantizer.lookup(ids.to(device)).float()

    def of_images(self, tokens: TokenSet, rows: Tensor, device: torch.device) -> Tensor:
        """Return the maps of images of a token set."""
        latents = tokens.latents(rows) if self.source == "latents" else None
        return self.of(tokens.ids(rows), latents, device)

    def statistics(self, tokens: TokenSet) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation (D,) of every channel over some images of a set.

        They are spread evenly over the set, so that nothing is drawn. A channel that never changes
        has the deviation 1.
        """
        count = min(COUNTED, tokens.num_images)
        rows = torch.linspace(0, tokens.num_images - 1, count).long()
        device = torch.device("cpu")
        sums = torch.zeros(2, self.channels, dtype=torch.float64)
        for part in rows.split(AT_ONCE):
            maps = self.of_images(tokens, part, device).double()
            sums += torch.stack([maps.mean((0, 2, 3)), maps.square().mean((0, 2, 3))]) * len(part)
        mean, square = sums / count
        std = (square - mean.square()).clamp(min=0).sqrt()
        return mean.float(), torch.where(std > 1e-6, std, 1.0).float()


def open_tokenizer(folder: str | Path) -> ImageTokenizer:
    """Load a tokenizer from its folder, that of its run, or a name on the hub."""
    inside = Path(folder).expanduser() / "tokenizer"
    return ImageTokenizer.from_pretrained(inside if inside.is_dir() else folder)
