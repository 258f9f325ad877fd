"""How a number was measured, as a record with an identifier that changes when anything changes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from typing import Any, Final, Literal, get_args

from vqkit.config import require

Rounding = Literal["round", "truncate"]
PixelRange = Literal["0..1"]
Colour = Literal["native"]
CropRule = Literal["same"]
Average = Literal["images"]
SsimRegion = Literal["valid"]
_LATER: Final = ("tile", "halo")
"""Fields that came after numbers had been published; None leaves them out of the identifier."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """The conditions of a measurement; numbers with equal `id` are comparable to the last digit.

    A paper's way of measuring enters as one more named protocol in `PROTOCOLS`, and as one more
    word in the choices below where it differs. A field that is added later must stay out of `id`
    while it has its default, so that numbers already published keep their identifier.
    """

    name: str = "vqkit-default-1"
    """Readable first half of the identifier."""
    pixel_range: PixelRange = "0..1"
    """Values that the metrics see: bytes divided by 255."""
    rounding: Rounding = "round"
    """How reconstructions in [-1, 1] become bytes after clamping."""
    colour: Colour = "native"
    """Channels as the images have them, grey or RGB; metrics average over them."""
    crop: CropRule = "same"
    """Both sides are cut alike: padding to the stride is cropped away before measuring."""
    average: Average = "images"
    """A metric is computed for every image, then averaged with equal weights."""
    psnr_cap: float = 100.0
    """Largest PSNR of one image in dB; an exact one, whose PSNR is infinite, enters with this."""
    ssim_window: int = 11
    """Side of the Gaussian window in pixels, odd."""
    ssim_sigma: float = 1.5
    """Standard deviation of the window in pixels."""
    ssim_range: float = 1.0
    """Data range L in SSIM's constants (0.01·L)² and (0.03·L)²."""
    ssim_region: SsimRegion = "valid"
    """Only windows that lie wholly inside the image; smaller images are left out and counted."""
    reference: str = ""
    """Fingerprint of the image set; empty while no set is named."""
    num_images: int | None = None
    """Images in that set."""
    tile: int | None = None
    """Pixels of the tiles that images are encoded and decoded in; None: whole images."""
    halo: int | None = None
    """Pixels computed around every tile; None: the receptive field of each network."""

    def __post_init__(self) -> None:
        require(bool(self.name), "protocol.name=''", "a protocol needs a name")
        for field_name, choices in (
            ("pixel_range", PixelRange),
            ("rounding", Rounding),
            ("colour", Colour),
            ("crop", CropRule),
            ("average", Average),
            ("ssim_region", SsimRegion),
        ):
            value, allowed = getattr(self, field_name), get_args(choices)
            require(
                value in allowed,
                f"protocol.{field_name}={value!r}",
                f"expected one of {', '.join(map(repr, allowed))}",
            )
        require(
            self.ssim_window >= 1 and self.ssim_window % 2 == 1,
            f"protocol.ssim_window={self.ssim_window}",
            "must be odd and at least 1",
        )
        for field_name in ("psnr_cap", "ssim_sigma", "ssim_range"):
            value = getattr(self, field_name)
            require(value > 0, f"protocol.{field_name}={value}", "must be above 0")
        require(self.tile is None or self.tile >= 1, f"protocol.tile={self.tile}", "must be >= 1")
        if self.halo is not None:
            halo = f"protocol.halo={self.halo}"
            require(self.halo >= 0, halo, "must be >= 0")
            require(self.tile is not None, halo, "needs protocol.tile: whole images have no halo")

    @property
    def id(self) -> str:
        """`name:hash`, eight hexadecimal digits of SHA-256 over every field."""
        values = asdict(self)
        for name in _LATER:
            if values[name] is None:
                del values[name]
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return f"{self.name}:{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def on(self, reference: str, num_images: int) -> Protocol:
        """Return this protocol for one image set, given its fingerprint and number of images."""
        return replace(self, reference=reference, num_images=num_images)

    def describe(self) -> str:
        """Return one line that a reader of a table needs in order to repeat the measurement."""
        return (
            f"clamp and {self.rounding} to uint8, {self.colour} colour, "
            f"both sides cropped the same, per image then mean, "
            f"PSNR range 1 with at most {self.psnr_cap:g} dB, "
            f"SSIM Gaussian {self.ssim_window}/{self.ssim_sigma:g} range {self.ssim_range:g}"
            f"{self._tiles()}"
        )

    def _tiles(self) -> str:
        if self.tile is None:
            return ""
        halo = "the receptive field" if self.halo is None else f"{self.halo} pixels"
        return f", in tiles of {self.tile} pixels with a halo of {halo}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the identifier as JSON values."""
        return {"id": self.id, **asdict(self)}


DEFAULT = Protocol()
PROTOCOLS: dict[str, Protocol] = {DEFAULT.name: DEFAULT}


def find_protocol(name: str) -> Protocol:
    """Return the protocol of that name; an unknown one is a `ValueError` with the nearest name."""
    if name not in PROTOCOLS:
        near = get_close_matches(name, PROTOCOLS, n=1, cutoff=0.0)
        raise ValueError(
            f"protocol={name!r}: unknown; did you mean {near[0]!r}? known: {sorted(PROTOCOLS)}"
        )
    return PROTOCOLS[name]
