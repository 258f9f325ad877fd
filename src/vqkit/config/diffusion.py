"""Settings of diffusion models of latents (LDM, DiT, SiT) and of sampling from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vqkit.config.core import check_at_least, check_choice, require

BetaSchedule = Literal["linear", "scaled_linear"]
Variance = Literal["fixed", "learned"]
Predicts = Literal["noise", "velocity"]
Normalisation = Literal["statistics", "none"]
Scheduler = Literal["ddpm", "ddim", "dpm", "euler", "heun", "dopri5", "sde"]

GAUSSIAN_SCHEDULERS = ("ddpm", "ddim", "dpm")
"""They sample from a model with `process.kind="gaussian"`."""
FLOW_SCHEDULERS = ("euler", "heun", "dopri5", "sde")
"""They sample from a model with `process.kind="flow"`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DiTNetwork:
    """A transformer on patches of the latents with AdaLN-Zero (DiT, arXiv:2212.09748).

    The defaults are DiT-XL/2: 675 million parameters.
    """

    kind: Literal["dit"] = "dit"
    layers: int = 28
    heads: int = 16
    width: int = 1152
    """A multiple of `heads`, and of 4 for the sine and cosine positions."""
    patch: int = 2
    """Positions of the latents per patch, along each side; a grid that is no multiple is padded
    with zeros."""

    def __post_init__(self) -> None:
        check_at_least("model.network", self, ("layers", "heads", "width", "patch"), 1)
        for name, step in (("heads", self.heads), ("positions", 4)):
            require(
                self.width % step == 0,
                f"model.network.width={self.width}",
                f"must be a multiple of {step} ({name})",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class UNetNetwork:
    """The U-Net of latent diffusion models, classes by cross-attention (arXiv:2112.10752).

    The defaults are VQGAN-LC's for 16 x 16 positions: widths 256, 1,024, 1,024, 256 on the way down
    and up again (arXiv:2406.11837, appendix A).
    """

    kind: Literal["unet"] = "unet"
    channels: tuple[int, ...] = (256, 1024)
    """Of each level; the grid is halved between two of them."""
    blocks: int = 3
    """Residual blocks per level on the way down; one more on the way up."""
    attention: tuple[bool, ...] = (True, False)
    """Levels whose blocks attend, to positions and to the class; the middle always does."""
    head_width: int = 32
    """Channels of an attention head."""
    context: int = 512
    """Length of the embedding of a class."""
    groups: int = 32
    """Groups of the group normalisation."""

    def __post_init__(self) -> None:
        check_at_least("model.network", self, ("blocks", "head_width", "context", "groups"), 1)
        require(bool(self.channels), "model.network.channels=()", "name at least one level")
        require(
            len(self.attention) == len(self.channels),
            f"model.network.attention={self.attention}",
            f"say true or false for each of the {len(self.channels)} levels",
        )
        for width in self.channels:
            for name in ("head_width", "groups"):
                value = getattr(self, name)
                require(
                    width >= 1 and width % value == 0,
                    f"model.network.channels={width}",
                    f"must be a multiple of model.network.{name}={value}",
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class GaussianProcess:
    """Noise in many small steps, undone by a network (DDPM, arXiv:2006.11239)."""

    kind: Literal["gaussian"] = "gaussian"
    steps: int = 1000
    beta_schedule: BetaSchedule = "linear"
    """`scaled_linear` is a line of square roots: what LDM's code calls linear."""
    beta_start: float = 1e-4
    beta_end: float = 2e-2
    variance: Variance = "fixed"
    """`learned`: the network also predicts the variance of a step, between the two bounds of
    arXiv:2102.09672, as DiT does; its output has twice the channels."""
    predicts: Predicts = "noise"
    """`noise`, as DDPM, LDM and DiT do. `velocity` (arXiv:2202.00512, appendix D): a sum of noise
    and latents that has a spread of about 1 at every step. An error in noise of e is one in latents
    of e × √((1 - kept) / kept), 160 times as much at the last of 1,000 linear steps, so that a
    transformer trained for minutes decides the class better with velocity."""

    def __post_init__(self) -> None:
        check_at_least("model.process", self, ("steps",), 2)
        check_choice("model.process.beta_schedule", self.beta_schedule, BetaSchedule)
        check_choice("model.process.variance", self.variance, Variance)
        check_choice("model.process.predicts", self.predicts, Predicts)
        require(
            0 < self.beta_start <= self.beta_end < 1,
            f"model.process.beta_start={self.beta_start}, beta_end={self.beta_end}",
            "expected 0 < beta_start <= beta_end < 1",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowProcess:
    """A straight line from latents to noise; the network predicts its velocity.

    SiT's linear path, x(t) = (1 - t) x + t noise (arXiv:2401.08740, section 2).
    """

    kind: Literal["flow"] = "flow"
    times: Literal["uniform", "logit_normal"] = "uniform"
    """How times in (0, 1) are drawn in training; `logit_normal` (arXiv:2403.03206, section 3.1)
    has more of the middle."""

    def __post_init__(self) -> None:
        check_choice("model.process.times", self.times, Literal["uniform", "logit_normal"])


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionConfig:
    """A diffusion model of the latents of a token set; what it samples is quantized afterwards.

    LDM is a `UNetNetwork` with a `GaussianProcess`, DiT a `DiTNetwork` with a `GaussianProcess`,
    SiT a `DiTNetwork` with a `FlowProcess`.
    """

    kind: Literal["diffusion"] = "diffusion"
    network: DiTNetwork | UNetNetwork = field(default_factory=DiTNetwork)
    process: GaussianProcess | FlowProcess = field(default_factory=GaussianProcess)
    conditional: bool = True
    """Whether classes are learnt; needs a token set with labels."""
    label_dropout: float = 0.1
    """Share of training images whose class is hidden, for classifier-free guidance."""
    normalise: Normalisation = "statistics"
    """`statistics`: each channel less its mean, divided by its spread, both of the training
    latents. `none`: as they are, as in VQGAN-LC."""

    def __post_init__(self) -> None:
        require(
            0 <= self.label_dropout < 1,
            f"model.label_dropout={self.label_dropout}",
            "must lie in [0, 1)",
        )
        check_choice("model.normalise", self.normalise, Normalisation)


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionSampling:
    """How latents are drawn from a diffusion model."""

    scheduler: Scheduler | None = None
    """Of noise in steps: `ddpm`, `ddim`, or `dpm` (DPM-Solver++ of order 2, arXiv:2211.01095).
    Of a flow: the ODE by `euler`, `heun`, or `dopri5` (adaptive), or the `sde` by Euler and
    Maruyama. None: `ddpm`, or `heun`."""
    steps: int | None = None
    """None: 250 for `ddpm` and `sde`, 50 for `ddim` and `euler`, 25 for `dpm` and `heun`. A step of
    `heun` asks the network twice. `dopri5` chooses its own."""
    guidance: float = 1.0
    """Classifier-free guidance: `free + guidance × (asked - free)`; 1 is none."""
    guidance_channels: int | None = None
    """Guide the first so many channels only. None is all of them; 3 is the published code of DiT,
    SiT and VQGAN-LC, whatever the number of channels."""
    eta: float = 0.0
    """Share of fresh noise in a step of `ddim`: 0 none, 1 as much as `ddpm`."""
    diffusion: float = 1.0
    """Of `sde`: the noise put in and taken out again at time t, `diffusion × t` per unit of time
    (SiT's form "sigma"; the `diffusion norm` of its code is half of this)."""
    atol: float = 1e-6
    rtol: float = 1e-3
    """Errors that `dopri5` allows in a step, for each sample by itself."""
    batch_size: int = 64
    """Images at once; it does not change what is drawn, but for rounding."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16` runs the network under autocast."""

    def __post_init__(self) -> None:
        if self.scheduler is not None:
            check_choice("scheduler", self.scheduler, Scheduler)
        for name in ("steps", "guidance_channels", "batch_size"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name}={value}", "must be at least 1")
        require(
            self.steps is None or self.scheduler != "dopri5",
            f"steps={self.steps} with scheduler='dopri5'",
            "it chooses its own steps; set atol and rtol",
        )
        for name in ("guidance", "diffusion"):
            value = getattr(self, name)
            require(value >= 0, f"{name}={value}", "must not be negative")
        require(0 <= self.eta <= 1, f"eta={self.eta}", "must lie in [0, 1]")
        require(
            self.eta == 0 or self.scheduler == "ddim",
            f"eta={self.eta}",
            "is a setting of scheduler='ddim'; leave it out",
        )
        for name in ("atol", "rtol"):
            value = getattr(self, name)
            require(value > 0, f"{name}={value}", "must be above 0")
        check_choice("precision", self.precision, Literal["fp32", "bf16"])
