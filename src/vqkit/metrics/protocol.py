"""How a number was measured, as a record with an identifier that changes when anything changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, Literal

from vqkit.config import require
from vqkit.config.core import check_choice
from vqkit.metrics.wording import describe

ToBytes = Literal["round", "truncate", "half_up"]
Rounding = Literal["round", "truncate", "half_up", "none"]
PixelRange = Literal["0..1"]
Colour = Literal["native", "rgb"]
CropRule = Literal["same"]
Average = Literal["images", "batches"]
SsimRegion = Literal["valid"]
Originals = Literal["bytes", "torch", "numpy"]
Stretch = Literal["none", "image"]
PsnrColour = Literal["same", "luma"]
Errors = Literal["pixels", "outputs"]
SsimKernel = Literal["gaussian", "uniform"]
SsimColour = Literal["same", "grey"]
Lpips = Literal["", "vgg", "alex", "alex+vgg"]
LpipsInput = Literal["bytes", "clamped", "taken_for_0..1"]
FidResize = Literal["", "clean", "legacy", "adm", "cvq"]
FidReference = Literal["originals", "files"]

_CHOICES: Final[Mapping[str, Any]] = {
    "pixel_range": PixelRange,
    "rounding": Rounding,
    "colour": Colour,
    "crop": CropRule,
    "average": Average,
    "ssim_region": SsimRegion,
    "originals": Originals,
    "stretch": Stretch,
    "psnr_colour": PsnrColour,
    "errors": Errors,
    "ssim_kernel": SsimKernel,
    "ssim_colour": SsimColour,
    "lpips": Lpips,
    "lpips_input": LpipsInput,
    "fid_resize": FidResize,
    "fid_reference": FidReference,
}
_FIRST: Final = (
    *("name", "pixel_range", "rounding", "colour", "crop", "average", "psnr_cap"),
    *("ssim_window", "ssim_sigma", "ssim_range", "ssim_region", "reference", "num_images"),
)
"""Fields of the first version. Later ones stay out of the identifier while they have their
default, so that numbers that had been published keep theirs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """The conditions of a measurement; numbers with equal `id` are comparable to the last digit.

    A paper's way of measuring is one more named protocol in `vqkit.metrics.compat`, and one more
    word in the choices below where it differs. Every field that is added counts as later.
    """

    name: str = "vqkit-default-1"
    """Readable first half of the identifier."""
    pixel_range: PixelRange = "0..1"
    """Values that the metrics see: bytes divided by 255."""
    rounding: Rounding = "round"
    """How reconstructions in [-1, 1] become bytes after clamping; `none`: they stay as they are."""
    colour: Colour = "native"
    """Channels as the images have them, grey or RGB, or grey tiled to RGB; metrics average."""
    crop: CropRule = "same"
    """Both sides are cut alike: padding to the stride is cropped away before measuring."""
    average: Average = "images"
    """Means of single images; or means of `batch` images: PSNR of their pooled error, mean SSIM."""
    psnr_cap: float = 100.0
    """Largest PSNR of one image in dB; an exact one, whose PSNR is infinite, enters with this."""
    ssim_window: int = 11
    """Side of the window in pixels, odd."""
    ssim_sigma: float = 1.5
    """Standard deviation of a Gaussian window in pixels."""
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
    originals: Originals = "bytes"
    """Originals as they are; or made float32 in [-1, 1] as torchvision does (`torch`) or as
    n / 127.5 - 1 (`numpy`) and then treated as reconstructions are: truncation lowers 63 or 95 of
    the 256 values by one."""
    stretch: Stretch = "none"
    """`image`: each image of each side is stretched from its own minimum and maximum to [0, 1], and
    written as bytes with halves up."""
    jpeg: int | None = None
    """Quality of the JPEG file (4:2:0) that both sides are written to and read from."""
    batch: int | None = None
    """Consecutive images of the set whose numbers are averaged first, with `average=batches`."""
    psnr_colour: PsnrColour = "same"
    """`luma`: PSNR of RGB images is that of Y' of BT.601 in [16, 235] / 255."""
    psnr_epsilon: float = 0.0
    """Added to the mean squared error, which bounds PSNR."""
    errors: Errors = "pixels"
    """l1 and l2 of the pixels in [0, 1]; or of what the decoder gave against [-1, 1], unclamped."""
    ssim_kernel: SsimKernel = "gaussian"
    """`uniform`: equal weights and the sample covariance, as scikit-image does by default."""
    ssim_colour: SsimColour = "same"
    """`grey`: SSIM of Pillow's conversion to L."""
    ssim_shrink: int | None = None
    """Shorter side S: both sides are averaged over squares of round(shorter side / S) pixels."""
    lpips: Lpips = ""
    """Networks of LPIPS, by default none."""
    lpips_input: LpipsInput = "bytes"
    """What LPIPS sees: bytes as [-1, 1]; the clamped output; or, by mistake, unclamped images in
    [-1, 1] that are taken for [0, 1] and so reach [-3, 1]."""
    fid_resize: FidResize = ""
    """How FID brings images to 299×299 (`vqkit.metrics.resizing`); by default there is no FID."""
    fid_reference: FidReference = "originals"
    """FID against the same images treated alike, or against files of another size and cut."""
    fid_rounding: ToBytes | None = None
    """Bytes that FID sees, where they are others than those of PSNR."""
    measures: str = ""
    """Facts of the networks that took part, as JSON: files' hashes, reference set."""

    def __post_init__(self) -> None:
        require(bool(self.name), "protocol.name=''", "a protocol needs a name")
        for field_name, choices in _CHOICES.items():
            check_choice(f"protocol.{field_name}", getattr(self, field_name), choices)
        if self.fid_rounding is not None:
            check_choice("protocol.fid_rounding", self.fid_rounding, ToBytes)
        require(
            self.ssim_window >= 1 and self.ssim_window % 2 == 1,
            f"protocol.ssim_window={self.ssim_window}",
            "must be odd and at least 1",
        )
        for field_name in ("psnr_cap", "ssim_sigma", "ssim_range"):
            value = getattr(self, field_name)
            require(value > 0, f"protocol.{field_name}={value}", "must be above 0")
        require(
            self.psnr_epsilon >= 0, f"protocol.psnr_epsilon={self.psnr_epsilon}", "must be >= 0"
        )
        for field_name in ("tile", "batch", "ssim_shrink", "jpeg"):
            value = getattr(self, field_name)
            require(value is None or value >= 1, f"protocol.{field_name}={value}", "must be >= 1")
        self._check_together()

    def _check_together(self) -> None:
        if self.halo is not None:
            halo = f"protocol.halo={self.halo}"
            require(self.halo >= 0, halo, "must be >= 0")
            require(self.tile is not None, halo, "needs protocol.tile: whole images have no halo")
        require(
            (self.batch is not None) == (self.average == "batches"),
            f"protocol.batch={self.batch}",
            "goes with protocol.average='batches', and only with it",
        )
        if self.jpeg is not None:
            jpeg = f"protocol.jpeg={self.jpeg}"
            require(self.jpeg <= 95, jpeg, "Pillow's qualities end at 95")
            require(self.rounding != "none", jpeg, "needs bytes; set protocol.rounding")
        self._check_effects()

    def _check_effects(self) -> None:
        """Refuse settings that nothing would look at."""
        if self.stretch == "image":
            stretch = "protocol.stretch='image'"
            half_up = self.rounding == "half_up" and self.fid_rounding is None
            told = "needs protocol.rounding='half_up', as it rounds, and no protocol.fid_rounding"
            require(half_up, stretch, told)
        if self.colour == "rgb":
            floats = self.rounding == "none"
            require(not floats, "protocol.colour='rgb'", "tiles bytes; set protocol.rounding")
        for name, default, needed in (
            ("lpips_input", "bytes", "lpips"),
            ("fid_reference", "originals", "fid_resize"),
            ("fid_rounding", None, "fid_resize"),
        ):
            value = getattr(self, name)
            used = value == default or getattr(self, needed) != ""
            require(used, f"protocol.{name}={value}", f"has no effect without protocol.{needed}")

    @property
    def id(self) -> str:
        """`name:hash`, eight hexadecimal digits of SHA-256 over every field."""
        defaults = {field.name: field.default for field in fields(self)}
        values = {
            name: value
            for name, value in asdict(self).items()
            if name in _FIRST or value != defaults[name]
        }
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return f"{self.name}:{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def on(self, reference: str, num_images: int) -> Protocol:
        """Return this protocol for one image set, given its fingerprint and number of images."""
        return replace(self, reference=reference, num_images=num_images)

    def with_measures(self, facts: Mapping[str, str | int | float]) -> Protocol:
        """Return this protocol with the facts of the networks that measured under it."""
        text = json.dumps(dict(facts), sort_keys=True, separators=(",", ":")) if facts else ""
        return replace(self, measures=text)

    def describe(self) -> str:
        """Return one line that a reader of a table needs in order to repeat the measurement."""
        return describe(self)

    def differences(self, other: Protocol) -> dict[str, Any]:
        """Return the fields, without name and image set, that are not those of `other`."""
        skipped = ("name", "reference", "num_images", "measures")
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in skipped and value != getattr(other, name)
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the identifier as JSON values."""
        return {"id": self.id, **asdict(self)}


DEFAULT: Final = Protocol()
