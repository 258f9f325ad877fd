"""Diffusion models of latents: VQGAN-LC's (Tables 4, 5), LooC's (Table 11), and small ones.

All are trained on a token set with latents (`vqkit tokenize --latents`), the features before
quantization; what they sample is quantized with the projected codebook of the tokenizer. Where the
VQGAN-LC paper (appendix A) and its code differ, or the code has a mistake, this is how it is read:

- Learning rate. The paper has 4.5e-4 for all three. LDM: its code has 4.5e-5 and multiplies it by
  8 GPUs and 56 images unless told not to (0.020); here 4.5e-4. DiT and SiT: the code has 1e-4 as
  both models' authors do; here too (`--optim.lr 4.5e-4` for the paper's word).
- Latents. The code diffuses them as they are (DiT's after 2x - 1, meant for pixels); here each
  channel is normalised by its stored mean and spread. `--model.normalise none` leaves them.
- Labels. The code of its LDM never hides the class, though it guides; here a tenth is hidden.
- Guidance. The code guides the first 3 of 8 channels, which is why its scale for DiT and SiT is 8.
  All channels are guided here; scales of 1.25 to 4 fit that, `guidance_channels=3` is the other.
- Weights are averaged (0.9999), which DiT and SiT do and the LDM does by its framework's default.

No recipe of a paper was run here in full.
"""

from __future__ import annotations

from typing import Final, Literal, TypedDict, Unpack

from vqkit.config import GeneratorRun, LogConfig, OptimConfig, require
from vqkit.config.diffusion import (
    DiffusionConfig,
    DiTNetwork,
    FlowProcess,
    GaussianProcess,
    UNetNetwork,
)

LCSet = Literal["imagenet", "ffhq"]
LooCSet = Literal["imagenet", "lsun_churches", "lsun_bedrooms"]

TRAIN_IMAGES: Final[dict[LCSet, int]] = {"imagenet": 1_281_167, "ffhq": 60_000}

LDM_NOISE: Final = GaussianProcess(
    beta_schedule="scaled_linear", beta_start=1.5e-3, beta_end=0.0195
)
"""LDM's: 1,000 steps on a line of square roots."""
CHURCH_NOISE: Final = GaussianProcess(
    beta_schedule="scaled_linear", beta_start=1.5e-3, beta_end=0.0155
)

F8_UNET: Final = UNetNetwork(channels=(256, 512, 1024), blocks=2, attention=(True, True, True))
"""LDM's for ImageNet on a VQ model with 32 x 32 positions; VQGAN-LC takes it for 1,024 tokens."""
CHURCH_UNET: Final = UNetNetwork(
    channels=(192, 384, 384, 768, 768), blocks=2, attention=(True, True, True, True, False)
)
BEDROOM_UNET: Final = UNetNetwork(
    channels=(224, 448, 672, 896), blocks=2, attention=(False, True, True, True)
)

SMALL_DIT: Final = DiTNetwork(layers=6, heads=4, width=128, patch=2)
"""1.9 million parameters."""
SMALL_UNET: Final = UNetNetwork(
    channels=(48, 96), blocks=1, attention=(False, True), head_width=24, context=64, groups=16
)
"""2.2 million parameters."""


class DiffusionOptions(TypedDict, total=False):
    """What every recipe here takes."""

    tokens: str
    """Folder of a token set with latents."""
    held_out: str
    """Folder of another one, whose loss is measured."""
    num_steps: int
    """Optimizer steps."""
    batch_size: int
    """Images per step."""
    name: str
    """Name of the run; default that of the recipe."""


def lc_ldm(
    *,
    data_set: LCSet = "imagenet",
    num_tokens: Literal[256, 1024] = 256,
    **options: Unpack[DiffusionOptions],
) -> GeneratorRun:
    """LDM on the latents of VQGAN-LC, -FC or -EMA: a U-Net of 271 million parameters.

    Command: `vqkit train lc_ldm --tokens tokens/vqgan_lc_imagenet`.
    Published (VQGAN-LC, Tables 4 and 5, FID of 50,000 samples): ImageNet 8.36 (LC), 9.13 (EMA),
    9.78 (FC), with 1,024 tokens 4.81 (LC; its README says 5.06); FFHQ 12.3, 12.5, 13.2.
    Sampling: 200 steps of DDIM with eta 1; guidance 1.4 on ImageNet (its code: 1.6).
    Hardware: 8 V100, batch 448, 100 epochs at 4.5e-4 (ImageNet 285,900 steps, FFHQ 13,300; that the
    length holds for FFHQ, too, is our reading).
    Data: a token set with latents: 8 channels of 16 x 16, or 4 of 32 x 32 positions.
    Differs: see the list at the head of `vqkit.recipes.diffusion`; with 1,024 tokens the U-Net is
    LDM's for 32 x 32 positions, as in its code, at the paper's rate (the code: 1e-5 an image).
    """
    require(data_set in TRAIN_IMAGES, f"data_set={data_set!r}", "expected 'imagenet' or 'ffhq'")
    require(num_tokens in (256, 1024), f"num_tokens={num_tokens}", "expected 256 or 1024")
    model = DiffusionConfig(
        network=UNetNetwork() if num_tokens == 256 else F8_UNET,
        process=LDM_NOISE,
        conditional=data_set == "imagenet",
    )
    batch = options.get("batch_size", 448)
    optim = OptimConfig(
        num_steps=options.get("num_steps", 100 * (TRAIN_IMAGES[data_set] // batch)),
        batch_size=batch,
        lr=4.5e-4,
        weight_decay=0.01,
        weight_ema=0.9999,
    )
    return _run(f"lc_ldm_{data_set}_{num_tokens}", model, optim, options)


def lc_dit(**options: Unpack[DiffusionOptions]) -> GeneratorRun:
    """DiT-XL/2 on the latents of VQGAN-LC, -FC or -EMA, ImageNet: 675 million parameters.

    Command: `vqkit train lc_dit --tokens tokens/vqgan_lc_imagenet`.
    Published (VQGAN-LC, Table 4, FID of 50,000 samples): 10.8 (LC), 13.4 (EMA), 13.7 (FC).
    Sampling: 250 steps of DDPM; guidance 8 on three channels.
    Hardware: 8 V100, batch 256, 400,000 steps.
    Data: a token set with latents, 16 x 16 positions, and ImageNet's labels.
    Differs: see the list at the head of `vqkit.recipes.diffusion`.
    """
    model = DiffusionConfig(process=GaussianProcess(variance="learned"))
    return _run("lc_dit", model, _xl_optim(options), options)


def lc_sit(**options: Unpack[DiffusionOptions]) -> GeneratorRun:
    """SiT-XL/2 on the latents of VQGAN-LC, -FC or -EMA, ImageNet: 675 million parameters.

    Command: `vqkit train lc_sit --tokens tokens/vqgan_lc_imagenet`.
    Published (VQGAN-LC, Table 4, FID of 50,000 samples): 8.40 (LC), 9.31 (EMA), 10.3 (FC).
    Sampling: the ODE by dopri5 (errors 1e-6 and 1e-3); guidance 8 on three channels.
    Hardware: 8 V100, batch 256, 400,000 steps.
    Data: as `lc_dit`.
    Differs: times are given to the network as 0 to 1000, not 0 to 1, where its sines hardly tell
    them apart. See also the list at the head of `vqkit.recipes.diffusion`.
    """
    model = DiffusionConfig(process=FlowProcess())
    return _run("lc_sit", model, _xl_optim(options), options)


def looc_ldm(
    *, data_set: LooCSet = "imagenet", **options: Unpack[DiffusionOptions]
) -> GeneratorRun:
    """LDM on the latents of LooC: ImageNet with classes, LSUN churches or bedrooms without.

    Command: `vqkit train looc_ldm --data_set lsun_churches --tokens tokens/looc_lsun_churches`.
    Published (LooC, Table 11 and Figure 4, 1,024 x 4): FID 46.78 on ImageNet, computed for every
    class and averaged; LSUN churches 15.17, bedrooms 17.52.
    Sampling: not published; LDM's own is 200 steps of DDIM, eta 1 on ImageNet and churches.
    Data: a token set with latents of LooC's VQGAN at stride 16 (256 channels).
    Differs: the paper says "the same training parameters" as LDM and nothing more. Taken here:
    LDM's U-Net and noise for each set (ImageNet on a VQ model, churches, bedrooms), its batch and
    rate (48 at 4.8e-5; 96 at 5e-5 after 10,000 steps of warm-up; 48 at 9.6e-5), the squared error
    for all, and 500,000 steps, which are our choice.
    """
    settings: dict[LooCSet, tuple[UNetNetwork, GaussianProcess, int, float, int]] = {
        "imagenet": (F8_UNET, LDM_NOISE, 48, 4.8e-5, 0),
        "lsun_churches": (CHURCH_UNET, CHURCH_NOISE, 96, 5e-5, 10_000),
        "lsun_bedrooms": (BEDROOM_UNET, LDM_NOISE, 48, 9.6e-5, 0),
    }
    require(data_set in settings, f"data_set={data_set!r}", f"expected one of {list(settings)}")
    network, noise, batch, rate, warmup = settings[data_set]
    model = DiffusionConfig(network=network, process=noise, conditional=data_set == "imagenet")
    optim = OptimConfig(
        num_steps=options.get("num_steps", 500_000),
        batch_size=options.get("batch_size", batch),
        lr=rate,
        warmup_steps=warmup,
        weight_decay=0.01,
        weight_ema=0.9999,
    )
    return _run(f"looc_ldm_{data_set}", model, optim, options)


def dit_mnist(**options: Unpack[DiffusionOptions]) -> GeneratorRun:
    """A small DiT (1.9 million parameters) on latents of digits, with classes; minutes on a CPU.

    Command: `vqkit train dit_mnist --tokens tokens/mnist`.
    Sampling: 50 steps of DDIM or 20 of DPM-Solver, guidance 2.
    Hardware: one core of a server CPU, 0.09 s a step: 6 minutes.
    Data: a token set of MNIST with latents, 7 x 7 positions or so.
    Differs: DiT predicts noise, this one velocity. After 850 steps with noise, 16 % of the samples
    were the digit asked for: where the noise is strong, the error of its guess of the latents was
    up to 26 times their variance (`--model.process.predicts noise`).
    """
    model = DiffusionConfig(network=SMALL_DIT, process=GaussianProcess(predicts="velocity"))
    return _run("dit_mnist", model, _small_optim(options), options)


def sit_mnist(**options: Unpack[DiffusionOptions]) -> GeneratorRun:
    """A small SiT (1.9 million parameters) on latents of digits, with classes; minutes on a CPU.

    Command: `vqkit train sit_mnist --tokens tokens/mnist`.
    Sampling: 25 steps of Heun, guidance 2.
    Hardware: as `dit_mnist`.
    Data: as `dit_mnist`.
    """
    model = DiffusionConfig(network=SMALL_DIT, process=FlowProcess())
    return _run("sit_mnist", model, _small_optim(options), options)


def ldm_mnist(**options: Unpack[DiffusionOptions]) -> GeneratorRun:
    """A small U-Net (2.2 million parameters) on latents of digits, with classes; minutes on a CPU.

    Command: `vqkit train ldm_mnist --tokens tokens/mnist`.
    Sampling: 50 steps of DDIM, guidance 2.
    Data: as `dit_mnist`.
    """
    model = DiffusionConfig(network=SMALL_UNET, process=LDM_NOISE)
    return _run("ldm_mnist", model, _small_optim(options), options)


def sit_cifar10(**options: Unpack[DiffusionOptions]) -> GeneratorRun:
    """A small SiT (1.9 million parameters) on latents of 32 x 32 images, with classes.

    Command: `vqkit train sit_cifar10 --tokens tokens/cifar10`.
    Sampling: 25 steps of Heun, guidance 2.
    Data: a token set of CIFAR-10 with latents, 8 x 8 positions or so. So small a model in so few
    steps shows the colours and layout of a class, hardly its objects.
    """
    model = DiffusionConfig(network=SMALL_DIT, process=FlowProcess())
    return _run("sit_cifar10", model, _small_optim(options), options)


def sit_photos(**options: Unpack[DiffusionOptions]) -> GeneratorRun:
    """A small SiT (2.9 million parameters) on latents of photographs, without classes.

    Command: `vqkit train sit_photos --tokens tokens/photos`.
    Sampling: 25 steps of Heun.
    Data: a token set of photographs with latents, 16 x 16 positions or so. A few hundred images are
    enough for a picture of what it does, not for a model of photographs.
    """
    network = DiTNetwork(layers=6, heads=4, width=160, patch=2)
    model = DiffusionConfig(network=network, process=FlowProcess(), conditional=False)
    return _run("sit_photos", model, _small_optim(options), options)


def _xl_optim(options: DiffusionOptions) -> OptimConfig:
    return OptimConfig(
        num_steps=options.get("num_steps", 400_000),
        batch_size=options.get("batch_size", 256),
        lr=1e-4,
        weight_ema=0.9999,
    )


def _small_optim(options: DiffusionOptions) -> OptimConfig:
    steps = options.get("num_steps", 4000)
    return OptimConfig(
        num_steps=steps,
        batch_size=options.get("batch_size", 32),
        lr=2e-3,  # at 1e-3 and 64 images the same time on a CPU gives far less
        schedule="cosine",
        warmup_steps=min(100, steps // 10),
        betas=(0.9, 0.99),
        clip_norm=1.0,
        weight_ema=0.995,
    )


def _run(
    name: str, model: DiffusionConfig, optim: OptimConfig, options: DiffusionOptions
) -> GeneratorRun:
    return GeneratorRun(
        name=options.get("name", name),
        tokens=options.get("tokens"),
        held_out=options.get("held_out"),
        model=model,
        optim=optim,
        log=LogConfig(checkpoint_every=max(1, min(5000, optim.num_steps // 4))),
    )
