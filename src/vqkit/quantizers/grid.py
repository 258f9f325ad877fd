"""What every preset returns: feature maps (or vectors) in, quantized ones and tokens out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import check_features, check_ids
from .codebooks import check_count
from .description import QuantizerDescription, describe_quantizer, summarize
from .quantizer import Quantizer
from .records import Quantized, Slot
from .stepping import Stepping

Layout = Literal["paper", "official"]


class GridQuantizer(Stepping):
    """Turn a feature map into vectors, quantize them, and turn them back into a map.

    Codebook updates never run between a forward and its backward: a training forward only adds to
    statistics, and `step()` writes the codes. With `auto_step` (the default) the first training
    forward after a backward calls it, so a loop with one backward per optimizer step trains
    correctly without knowing. A loop that accumulates gradients, or runs the quantizer again for a
    discriminator, sets `auto_step = False` and calls `step()` after every optimizer step.

    Args:
        quantizer: quantizes the vectors.
        in_channels: channels of the feature map, if 1×1 projections bring it to
            `quantizer.channels` and back (VQGAN: 256 → 8 → 256). They are part of `lookup`.
        beta: LooC's extrapolation by interpolation: vectors are taken from the map enlarged β times
            (bilinear), and their codes averaged over β×β afterwards (section 3.3).
        layout: where the segments lie for β > 1. `paper`: along the channels of every sub-pixel.
            `official`: along the channels of the pixel-unshuffled map, as LooC's code does, so that
            a segment may hold the sub-pixels of one channel; `quantizer` then has channels·β².

    Raises:
        ValueError: sizes that do not fit.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        *,
        in_channels: int | None = None,
        beta: int = 1,
        layout: Layout = "paper",
    ) -> None:
        super().__init__(quantizer)
        check_count("beta", beta)
        if layout not in get_args(Layout):
            raise ValueError(f"layout={layout!r}: expected one of {get_args(Layout)}")
        if layout == "official" and quantizer.channels % beta**2:
            raise ValueError(
                f"layout='official' with beta={beta}: {quantizer.channels} channels "
                f"must be divisible by beta²={beta**2}"
            )
        self.beta, self.layout = beta, layout
        width = quantizer.channels // (beta**2 if layout == "official" else 1)
        self.project_in: nn.Linear | None = None
        self.project_out: nn.Linear | None = None
        if in_channels is not None:
            check_count("in_channels", in_channels)
            self.project_in = nn.Linear(in_channels, width)
            self.project_out = nn.Linear(width, in_channels)
        self.width = width
        self.channels = width if in_channels is None else in_channels
        self.side_bits = 0.0

    # ----------------------------------------------------------------- tokens

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The T tokens of one grid position, in order."""
        inner = self.quantizer.slots
        if self.beta == 1 or self.layout == "official":
            return inner
        cells = [f"row{i}col{j}" for i in range(self.beta) for j in range(self.beta)]
        return tuple(
            Slot(cell if slot.name == "code" else f"{cell}.{slot.name}", slot.num_codes)
            for cell in cells
            for slot in inner
        )

    @property
    def books(self) -> tuple[tuple[int, ...], ...]:
        """Slot numbers grouped by the codebook they draw from."""
        inner = self.quantizer.books
        if self.beta == 1 or self.layout == "official":
            return inner
        each = len(self.quantizer.slots)
        cells = range(self.beta**2)
        return tuple(tuple(c * each + slot for c in cells for slot in book) for book in inner)

    @property
    def bits_per_position(self) -> float:
        """Nominal bits of one grid position: the sum over slots of log2(codes)."""
        return sum(math.log2(slot.num_codes) for slot in self.slots) + self.side_bits

    @property
    def relaxed(self) -> bool:
        """Whether z_q mixes codes in training, so that ids do not determine it there."""
        return self.quantizer.relaxed

    def term_weights(self) -> dict[str, float]:
        """Return the weight of every term of a forward, by its path; what is paid is weighted."""
        return self.quantizer.term_weights()

    def describe(self, height: int, width: int, *, batch_size: int = 1) -> QuantizerDescription:
        """State rate, storage, cost and memory for feature maps of height × width positions."""
        return describe_quantizer(self, height, width, batch_size)

    # ----------------------------------------------------------- quantization

    def forward(self, z: Tensor) -> Quantized:
        """Quantize a feature map.

        Args:
            z: (B, channels, h, w), floating point; 16-bit input is quantized in float32.

        Returns:
            z_q (B, channels, h, w), ids (B, h, w, T), and the terms.
        """
        return self._untraced(self._map, z)

    def vectors(self, z: Tensor) -> Quantized:
        """Quantize vectors (..., channels) of a sequence or a channel-last map; ids (..., T).

        The first axis counts the images, as far as a term sums over positions.
        """
        return self._untraced(self._vectors, z)

    @staticmethod
    def _untraced(quantize: Callable[[Tensor], Quantized], z: Tensor) -> Quantized:
        """Searches, statistics and seeds are nothing that a compiler can trace: step around them.

        Not a decorator, which would import the compiler.
        """
        if torch.compiler.is_compiling():
            quantize = torch.compiler.disable(quantize)
        return quantize(z)

    def _map(self, z: Tensor) -> Quantized:
        self._check_map(z, self.channels)
        return self._cells(z, lambda: self._enter(z.permute(0, 2, 3, 1)))

    def _cells(self, z: Tensor, enter: Callable[[], Tensor]) -> Quantized:
        """Quantize the vectors (B, h, w, width) that `enter` makes of the map z."""
        with self._forwarding(z.device):
            rows, sound = self._checked(z, enter())
            batch, height, width, _ = rows.shape
            out = self.quantizer.quantize(self._to_rows(rows).flatten(1, -2))
            z_q = self._from_rows(out.z_q.unflatten(1, (height, width, -1)))
        ids = out.ids.reshape(batch, height, width, -1)
        return self._watched(Quantized(z_q, ids, out.terms), sound)

    def _vectors(self, z: Tensor) -> Quantized:
        self._check_vectors()
        if z.ndim < 2:
            raise ValueError(f"z of shape {tuple(z.shape)}: expected (..., {self.channels})")
        check_features(z, z.shape[-1], self.channels)
        with self._forwarding(z.device):
            rows, sound = self._checked(z, self._enter(z))
            out = self.quantizer.quantize(rows.reshape(len(z), -1, self.width))
            z_q = self._leave(out.z_q.reshape(*z.shape[:-1], -1))
        ids = out.ids.reshape(*z.shape[:-1], -1)
        return self._watched(Quantized(z_q, ids, out.terms), sound)

    @torch.no_grad()
    def latents(self, z: Tensor) -> Tensor:
        """Return what is quantized of a feature map, before it is: the map behind `project_in`.

        Args:
            z: (B, channels, h, w), floating point.

        Returns:
            (B, width, h, w); float32 (float64 of float64), the space in which codes are compared
            but for what the codebook itself does, such as scaling to unit length.
        """
        self._check_map(z, self.channels)
        with _in_full_precision(z.device):
            return self._enter(z.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()

    @torch.no_grad()
    def quantize_latents(self, latents: Tensor) -> Quantized:
        """Quantize latents (B, width, h, w), those of `latents` or generated ones.

        `quantize_latents(latents(z))` has the ids and the z_q of `forward(z)` in evaluation, bit
        for bit. Only in evaluation: it is no step of training.
        """
        if self.training:
            raise ValueError("quantize_latents: only in evaluation; call .eval() first")
        self._check_map(latents, self.width)
        rows = latents.permute(0, 2, 3, 1)
        return self._cells(latents, lambda: _widened(rows))

    def _check_map(self, z: Tensor, channels: int) -> None:
        if z.ndim != 4:
            raise ValueError(
                f"z of shape {tuple(z.shape)}: expected a map (B, {channels}, h, w); for "
                "sequences and channel-last vectors call .vectors(z)"
            )
        check_features(z, z.shape[1], channels)

    def lookup(self, ids: Tensor) -> Tensor:
        """Turn tokens (B, h, w, T) into the map (B, channels, h, w) they stand for."""
        if ids.ndim != 4:
            raise ValueError(
                f"ids of shape {tuple(ids.shape)}: expected (B, h, w, {len(self.slots)})"
            )
        check_ids(ids, self.slots)
        with torch.no_grad(), _in_full_precision(ids.device):
            cells = ids.unflatten(-1, (-1, len(self.quantizer.slots)))
            return self._from_rows(self.quantizer.lookup(cells))

    def lookup_vectors(self, ids: Tensor) -> Tensor:
        """Turn tokens (..., T) into vectors (..., channels): the way back of `vectors`."""
        self._check_vectors()
        check_ids(ids, self.slots)
        with torch.no_grad(), _in_full_precision(ids.device):
            return self._leave(self.quantizer.lookup(ids))

    # ---------------------------------------------------------------- helpers

    def _to_rows(self, z: Tensor) -> Tensor:
        """(B, h, w, width) -> (B, h, w, sub-pixels, quantizer.channels)."""
        if self.beta == 1:
            return z[..., None, :]
        enlarged = F.interpolate(
            z.permute(0, 3, 1, 2), scale_factor=self.beta, mode="bilinear", align_corners=False
        )
        cells = F.pixel_unshuffle(enlarged, self.beta).permute(0, 2, 3, 1)  # channel·β² + i·β + j
        if self.layout == "official":
            return cells[..., None, :]
        return cells.unflatten(-1, (self.width, self.beta**2)).transpose(-1, -2)

    def _from_rows(self, rows: Tensor) -> Tensor:
        """(B, h, w, sub-pixels, quantizer.channels) -> (B, channels, h, w)."""
        if self.beta == 1:
            z_q = rows.squeeze(-2)
        elif self.layout == "official":
            z_q = rows.squeeze(-2).unflatten(-1, (self.width, self.beta**2)).mean(-1)
        else:
            z_q = rows.mean(-2)
        return self._leave(z_q).permute(0, 3, 1, 2).contiguous()

    def _enter(self, z: Tensor) -> Tensor:
        """Project vectors (..., channels) in, and leave 16 bits behind: distances are float32."""
        if self.project_in is not None:
            z = self.project_in(z.to(self.project_in.weight.dtype))
        return _widened(z)

    def _leave(self, z_q: Tensor) -> Tensor:
        """Project quantized vectors out; they keep the type of the codebook."""
        if self.project_out is None:
            return z_q
        out: Tensor = self.project_out(z_q.to(self.project_out.weight.dtype))
        return out

    def _check_vectors(self) -> None:
        if self.beta > 1:
            raise ValueError(
                f"beta={self.beta}: interpolation needs a feature map; call the quantizer with "
                "(B, channels, h, w)"
            )

    def summary(self) -> dict[str, str]:
        """Name the part chosen for every question of the algebra (README's table of methods)."""
        return summarize(self)


def _widened(z: Tensor) -> Tensor:
    """Leave 16 bits behind."""
    return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z


def _in_full_precision(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, enabled=False)
