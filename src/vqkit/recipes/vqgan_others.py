"""Systems of other papers that the three quote: RQ-VAE, MoVQ, ViT-VQGAN, SimVQ.

Each is trained as its own code says where there is one; what is missing is said in its docstring.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Literal, Unpack

from vqkit.config import (
    AdversarialConfig,
    ObjectiveConfig,
    OptimConfig,
    RunConfig,
    ViTNetwork,
    VQGANNetwork,
    require,
)
from vqkit.recipes.vqgan_looc import schedule_of
from vqkit.recipes.vqgan_systems import (
    F16,
    F32,
    Schedule,
    VQGANOptions,
    preset,
    vqgan_run,
)

FacesOrImageNet = Literal["ffhq", "imagenet"]

RQ: Final = Schedule(
    optim=OptimConfig(num_steps=1, batch_size=128, lr=4e-5, betas=(0.5, 0.9)),
    epochs=10,
    warmup_epochs=0.5,
    objective=ObjectiveConfig(reconstruction="mse", perceptual="lpips"),
    adversarial=AdversarialConfig(start=0, weight=0.75, discriminator_weight=0.75, num_layers=2),
    flip=True,
)
RQ_FACES: Final = replace(RQ, epochs=150, warmup_epochs=5)

VIT: Final = Schedule(
    optim=OptimConfig(
        num_steps=500_000,
        batch_size=256,
        lr=1e-4,
        schedule="cosine",
        warmup_steps=50_000,
        final_lr=0.5,
        betas=(0.9, 0.99),
        weight_decay=1e-4,
    ),
    # Divided by 4, the squared error is that of pixels in [0, 1], as there.
    objective=ObjectiveConfig(variance=4.0, perceptual="lpips", perceptual_weight=0.1),
    adversarial=AdversarialConfig(
        start=0,
        weight=0.1,
        adaptive=False,
        generator_loss="non_saturating",
        discriminator_loss="non_saturating",
        r1=10.0,
        r1_every=16,
    ),
    flip=True,
)
VIT_SIZES: Final = {
    "small": ViTNetwork(),
    "base": ViTNetwork(width=768, depth=12, heads=12, mlp=3072),
}

SIMVQ: Final = Schedule(
    optim=OptimConfig(num_steps=1, batch_size=256, lr=1e-4, betas=(0.5, 0.9), weight_ema=0.999),
    epochs=50,
    adversarial=AdversarialConfig(
        start=0, weight=0.1, adaptive=False, generator_loss="non_saturating"
    ),
)
SIMVQ_NETWORK: Final = VQGANNetwork(multipliers=(1, 2, 2, 4), attention_strides=(), z_channels=128)


def rq_vae(
    *,
    data_set: FacesOrImageNet = "imagenet",
    num_codes: int | None = None,
    tokens: int = 256,
    beta: int = 1,
    **options: Unpack[VQGANOptions],
) -> RunConfig:
    """RQ-VAE: 4 residual levels of 16,384 codes on 8 x 8 positions, 256 tokens, 0.0547 bits/pixel.

    Command: `vqkit train rq_vae --tokens 1024 --path data/imagenet`.
    Published (VQGAN-LC, Table 2): ImageNet FID 3.20; with 512 tokens (0.109 bits per pixel) 2.69;
    with 1,024 tokens (0.219) 1.83. FFHQ, 2,048 codes (0.043): PSNR 22.9, SSIM 67.0 %, FID 7.04,
    LPIPS 0.13 (Table 3), where LooC's Table 9 has PSNR 22.99, SSIM .6700, FID 3.88, LPIPS .1302.
    Hardware: 4 A100, batch 128; ImageNet 10 epochs = 100,090 steps, FFHQ 150 = 70,200, at 4e-5.
    Data: ImageNet-1k, or 60,000 faces to train (docs/datasets.md).
    Differs: `num_codes` is 16,384 (ImageNet) or 2,048 (FFHQ) if not given. Faces are not cut at
    random sizes before. LooC's Table 2 prints 2,048 codes for the 1,024 tokens on ImageNet, its
    Table 9 16,384. `beta` is LooC's interpolation around it.
    """
    require(tokens % 64 == 0 and tokens > 0, f"tokens={tokens}", "must be a multiple of 64")
    faces = data_set == "ffhq"
    codes = num_codes if num_codes is not None else (2048 if faces else 16_384)
    quantizer = preset("rq", num_codes=codes, dim=256, num_levels=tokens // 64, beta=beta)
    schedule = RQ_FACES if faces else RQ
    name = f"rq_vae_{codes}_{tokens}tokens" + (f"_beta{beta}" if beta > 1 else "")
    return vqgan_run(name, data_set, quantizer, schedule, options, network=F32)


def movq(
    *,
    data_set: FacesOrImageNet = "ffhq",
    num_codes: int = 1024,
    beta: int = 1,
    modulation: Literal["codes", "none"] = "codes",
    **options: Unpack[VQGANOptions],
) -> RunConfig:
    """MoVQ: 4 segments of 1,024 codes, a modulated decoder, 1,024 tokens, 0.156 bits per pixel.

    Command: `vqkit train movq --data_set imagenet --path data/imagenet`.
    Published (LooC, Tables 2 and 9): FFHQ PSNR 26.72, SSIM .8212, FID 2.26, LPIPS .0585, usage
    56 %; ImageNet PSNR 22.42, SSIM .6731, FID 1.12, LPIPS .1132, usage 63 %.
    Hardware: not published in code; batch 3 (FFHQ) or 12, as VQGAN.
    Data: ImageNet-1k, or 60,000 faces to train (docs/datasets.md).
    Differs: the paper's code is not public, hence VQGAN's settings and our length of 1,000,000
    steps. `beta` is LooC's interpolation around it.
    """
    quantizer = preset("movq_codes", num_codes=num_codes, dim=64, num_segments=4, beta=beta)
    network = replace(F16, modulation=modulation)
    name = f"movq_{num_codes}x64" + (f"_beta{beta}" if beta > 1 else "")
    return vqgan_run(name, data_set, quantizer, schedule_of(data_set), options, network=network)


def vit_vqgan(
    *,
    data_set: FacesOrImageNet = "imagenet",
    num_codes: int = 8192,
    dim: int = 32,
    size: Literal["small", "base"] = "small",
    **options: Unpack[VQGANOptions],
) -> RunConfig:
    """ViT-VQGAN: patches of 8 x 8, 8,192 codes of unit length, 1,024 tokens, 0.203 bits per pixel.

    Command: `vqkit train vit_vqgan --path data/imagenet`.
    Published (LooC, Tables 2 and 9): ImageNet FID 1.28, usage 96 %; FFHQ FID 3.13; PSNR and SSIM
    are not printed.
    Hardware: not published in code; batch 256, 500,000 steps, 1e-4 after 50,000 steps of warm-up.
    Data: ImageNet-1k, or 60,000 faces to train (docs/datasets.md).
    Differs: there is no official code; these are the settings of the paper and, where it is silent,
    of enhancing-transformers. Its discriminator is StyleGAN2's, here VQGAN's; the paper's
    log-Laplace loss (0.1) is left out, as it is there; its large decoder is not offered. LooC does
    not print which size the row has.
    """
    require(size in VIT_SIZES, f"size={size!r}", f"expected one of {list(VIT_SIZES)}")
    network = VIT_SIZES[size]
    quantizer = preset("vit_vqgan", num_codes=num_codes, dim=dim, in_channels=network.width)
    name = f"vit_vqgan_{size}_{num_codes}x{dim}"
    return vqgan_run(name, data_set, quantizer, VIT, options, network=network)


def simvq(
    *,
    data_set: FacesOrImageNet = "imagenet",
    num_codes: int = 1024,
    metric: Literal["l2", "cosine"] = "l2",
    **options: Unpack[VQGANOptions],
) -> RunConfig:
    """SimVQ: 1,024 frozen random codes behind a linear layer, 256 tokens, 0.156 bits per pixel.

    Command: `vqkit train simvq --path data/imagenet`; its paper also has `--num_codes 65536`.
    Published: no row in the tables of Dual, VQGAN-LC or LooC, hence no PSNR, SSIM and FID here.
    Hardware: 4 GPUs, batch 256, 50 epochs = 250,200 steps at 1e-4, averaged weights.
    Data: ImageNet-1k, cut to 128 x 128 (docs/datasets.md).
    Differs: 16-bit there, float32 here unless `--optim.precision bf16` is given.
    """
    quantizer = preset("simvq", num_codes=num_codes, dim=128, metric=metric)
    name = f"simvq_{num_codes}"
    return vqgan_run(name, data_set, quantizer, SIMVQ, options, network=SIMVQ_NETWORK, size=128)
