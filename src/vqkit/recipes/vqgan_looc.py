"""The VQGAN systems of the LooC paper: FFHQ, ImageNet and LSUN, with the methods it compares.

The code of these experiments is not released. The paper says: the networks and settings of CVQ's,
that is of VQGAN, with another quantizer, on one RTX 3090. So they are trained here as VQGAN's own
settings have it: f16 networks, L1 + LPIPS + 0.8 times the adaptive GAN loss, Adam (.5, .9) at
4.5e-6 times the batch; FFHQ with batch 3 and the discriminator from step 30,001 on, the others with
batch 12 and from step 250,001 on. No length is published: 1,000,000 steps are our choice.
How it is read here:

- Rate. A LooC of 256 x 4 reads 64 codes per position, with beta 2 four times as many: 8 bits per
  pixel, where VQGAN reads 0.039. "A smaller codebook" is fewer numbers stored, not fewer bits.
- beta is 2 in Tables 2, 9 and 10 by the text: the row 256 x 4 of Table 2 is that of Table 6.
- Assignment. The paper's formula is the L2 distance, its supplement and code the cosine: `metric`.
- Order of channels behind the interpolation: the paper's, or that of its code: `layout`.
- ImageNet, 1,024 codes: an SSIM of .7160 at 29.15 dB beside .7233 at 23.64 dB is not plausible, and
  Table 9 prints it as LPIPS, too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Literal, Unpack

from vqkit.config import AdversarialConfig, DataConfig, OptimConfig, RunConfig, require
from vqkit.recipes.vqgan_systems import (
    TAMING_LR,
    VQGAN_WEIGHTS,
    Schedule,
    SetName,
    VQGANOptions,
    preset,
    vqgan_run,
)

LooCSet = Literal["ffhq", "imagenet", "lsun_churches", "lsun_bedrooms"]
Metric = Literal["l2", "cosine"]

CHANNELS: Final = 256
"""Of the quantized features; LooC cuts them into CHANNELS / dim segments."""
STEPS: Final = 1_000_000

VQGAN: Final = Schedule(
    optim=OptimConfig(num_steps=STEPS, batch_size=12, betas=(0.5, 0.9)),
    lr_per_image=TAMING_LR,
    adversarial=AdversarialConfig(start=250_001),
)
"""VQGAN's own settings for ImageNet."""
VQGAN_FACES: Final = replace(
    VQGAN,
    optim=OptimConfig(num_steps=STEPS, batch_size=3, betas=(0.5, 0.9)),
    adversarial=AdversarialConfig(start=30_001),
)
"""VQGAN's own settings for faces."""


class LooCOptions(VQGANOptions, total=False):
    """What every recipe of LooC takes besides the size of its codebook."""

    dim: int
    """Length of a code, default 4: 256 / dim segments. 256 is one segment (Table 6)."""
    beta: int
    """Factor of the interpolation; default 2, 1 is without (Table 6 has 1 to 4)."""
    layout: Literal["paper", "official"]
    """Where segments lie behind the interpolation; default paper."""
    update: Literal["cvq", "none"]
    """Seldom-used codes move to features (default), or no code but by its gradient (Table 7)."""
    metric: Metric
    """Distance of a segment to a code; default cosine."""


def looc_ffhq(*, num_codes: int = 256, **options: Unpack[LooCOptions]) -> RunConfig:
    """LooC on FFHQ: 256 codes of 4 numbers, beta 2, 65,536 tokens, 8 bits per pixel.

    Command: `vqkit train looc_ffhq --path data/ffhq`.
    Published (LooC, Tables 2 and 9): 256 codes PSNR 27.73, SSIM .8499, FID 1.97, LPIPS .0501; 1,024
    codes (10 bits per pixel) PSNR 32.44, SSIM .9276, FID 1.37, LPIPS .0346. Table 6, 256 codes:
    beta 1 (2 bits per pixel) PSNR 27.19, SSIM .8571, FID 2.27; beta 3 PSNR 27.00, SSIM .8523,
    FID 1.89; beta 4 PSNR 26.88, SSIM .8510, FID 2.01; one segment (`--num_codes 1024 --dim 256`)
    with beta 2 PSNR 27.02, SSIM .8627, FID 1.83. Table 7: 100 % usage with `--update none`, too.
    Hardware: one RTX 3090; batch 3 at 1.35e-5.
    Data: 60,000 faces to train and 10,000 to test (docs/datasets.md).
    Differs: see the list at the head of `vqkit.recipes.vqgan_looc`.
    """
    return _looc("ffhq", num_codes, options)


def looc_imagenet(*, num_codes: int = 256, **options: Unpack[LooCOptions]) -> RunConfig:
    """LooC on ImageNet: 256 codes of 4 numbers, beta 2, 65,536 tokens, 8 bits per pixel.

    Command: `vqkit train looc_imagenet --path data/imagenet`.
    Published (LooC, Tables 2 and 9): 256 codes PSNR 23.64, SSIM .7233, FID 1.68, LPIPS .0916; 1,024
    codes (10 bits per pixel) PSNR 29.15, SSIM .7160, FID 1.01.
    Hardware: one RTX 3090; batch 12 at 5.4e-5.
    Data: ImageNet-1k (docs/datasets.md).
    Differs: see the list at the head of `vqkit.recipes.vqgan_looc`.
    """
    return _looc("imagenet", num_codes, options)


def looc_lsun_churches(*, num_codes: int = 1024, **options: Unpack[LooCOptions]) -> RunConfig:
    """LooC on LSUN churches: 1,024 codes of 4 numbers, beta 2, 65,536 tokens, 10 bits per pixel.

    Command: `vqkit train looc_lsun_churches --path data/lsun_churches`.
    Published (LooC, Table 11): FID 15.17 of images that a diffusion model draws with this
    tokenizer; no number of its reconstructions, hence no PSNR and no SSIM.
    Hardware: one RTX 3090; batch 12 at 5.4e-5.
    Data: LSUN's own LMDB folders (docs/datasets.md).
    Differs: the tokenizer alone. See also the list at the head of `vqkit.recipes.vqgan_looc`.
    """
    return _looc("lsun_churches", num_codes, options)


def looc_lsun_bedrooms(*, num_codes: int = 1024, **options: Unpack[LooCOptions]) -> RunConfig:
    """LooC on LSUN bedrooms: 1,024 codes of 4 numbers, beta 2, 65,536 tokens, 10 bits per pixel.

    Command: `vqkit train looc_lsun_bedrooms --path data/lsun_bedrooms`.
    Published (LooC, Table 11): FID 17.52 of images that a diffusion model draws with this
    tokenizer; no number of its reconstructions, hence no PSNR and no SSIM.
    Hardware: one RTX 3090; batch 12 at 5.4e-5.
    Data: LSUN's own LMDB folders (docs/datasets.md).
    Differs: the tokenizer alone. See also the list at the head of `vqkit.recipes.vqgan_looc`.
    """
    return _looc("lsun_bedrooms", num_codes, options)


def looc_vqgan(
    *, data_set: LooCSet = "ffhq", num_codes: int = 1024, **options: Unpack[VQGANOptions]
) -> RunConfig:
    """VQGAN of LooC's Table 2: 1,024 codes of 256 numbers, 256 tokens, 0.0391 bits per pixel.

    Command: `vqkit train looc_vqgan --data_set imagenet --path data/imagenet`.
    Published (LooC, Tables 2 and 9): FFHQ PSNR 22.24, SSIM .6641, FID 4.42, LPIPS .1175, usage
    42 %; ImageNet PSNR 19.07, SSIM .5183, FID 7.94, LPIPS .2011, usage 44 %.
    Hardware: not published for this row; batch 3 (FFHQ) or 12, as LooC.
    Data: as the recipe of LooC on that set.
    Differs: VQGAN's published code puts the weight 0.25 on the codebook and 1 on the commitment,
    the other way round than its paper; so does this.
    """
    quantizer = preset("vq_vae", num_codes=num_codes, dim=CHANNELS, **VQGAN_WEIGHTS)
    return vqgan_run(f"looc_vqgan_{num_codes}", data_set, quantizer, schedule_of(data_set), options)


def looc_cvq(
    *,
    data_set: LooCSet = "ffhq",
    num_codes: int = 1024,
    beta: int = 1,
    metric: Metric = "cosine",
    anchors: Literal["closest", "random", "probrandom"] = "closest",
    **options: Unpack[VQGANOptions],
) -> RunConfig:
    """CVQ of LooC's Tables 2 and 6: 1,024 codes of 256 numbers, 256 tokens, 0.0391 bits per pixel.

    Command: `vqkit train looc_cvq --data_set imagenet --path data/imagenet`.
    Published (LooC, Tables 2, 6 and 9): FFHQ PSNR 26.87, SSIM .8398, FID 2.03, LPIPS .0533;
    ImageNet PSNR 23.37, SSIM .7115, FID 1.57, LPIPS .1099; usage 100 %. With `--beta 2` (0.156 bits
    per pixel) it is LooC of one segment: FFHQ PSNR 27.02, SSIM .8627, FID 1.83.
    Hardware: not published for this row; batch 3 (FFHQ) or 12, as LooC.
    Data: as the recipe of LooC on that set.
    Differs: CVQ publishes no VQGAN; assignment and anchors are those of its commands and of LooC's
    code (CVQ's module itself starts with drawn anchors).
    """
    quantizer = preset(
        "cvq", num_codes=num_codes, dim=CHANNELS, beta=beta, metric=metric, anchors=anchors
    )
    return vqgan_run(
        f"looc_cvq_{num_codes}_beta{beta}", data_set, quantizer, schedule_of(data_set), options
    )


def looc_pq(
    *, data_set: LooCSet = "ffhq", num_codes: int = 16, **options: Unpack[VQGANOptions]
) -> RunConfig:
    """Product quantization of LooC's Table 10: 64 codebooks of 16 x 4, 16,384 tokens, 1 bit/pixel.

    Command: `vqkit train looc_pq --data_set imagenet --path data/imagenet`.
    Published (LooC, Table 10): FFHQ PSNR 25.55, SSIM .8054, FID 2.43; ImageNet PSNR 21.73,
    SSIM .6701, FID 1.96. It is printed beside a LooC of ten times its bits (1,024 x 4, beta 2).
    Hardware: one RTX 3090; batch 3 (FFHQ) or 12, as LooC.
    Data: as the recipe of LooC on that set.
    Differs: LooC's PQ divides 1,024 codes by its 64 segments, hence 16, and cuts along the height;
    here the channels are cut. Its anchors are drawn, here they are the closest.
    """
    quantizer = preset(
        "pq", num_codes=num_codes, dim=4, num_segments=64, update="cvq", metric="cosine"
    )
    return vqgan_run(f"looc_pq_{num_codes}x4", data_set, quantizer, schedule_of(data_set), options)


def looc_table12_images(path: str = "data/celeba/val") -> DataConfig:
    """Return CelebA as a tokenizer of faces that was trained on FFHQ sees it (Figure 9, Table 12).

    Command: `vqkit evaluate runs/looc_256x4_beta2_ffhq --data.source folder --data.path
    data/celeba/val --data.resize 256 --data.crop center --data.crop_size 256`.
    Published (LooC, Table 12): PSNR 26.36, SSIM .8141, FID 5.66; PSNR 26.73, SSIM .8234, FID 3.86.
    Data: the 19,867 images of CelebA's validation list, aligned (docs/datasets.md).
    Differs: the first row has no size, the second says 256 x 4; by the text the first is 256 and
    the second 1,024. How its images were cut is not published; here the centre of the aligned ones.
    """
    return DataConfig(source="folder", path=path, resize=256, crop="center", crop_size=256)


def schedule_of(data_set: SetName) -> Schedule:
    """Return VQGAN's settings for a data set."""
    return VQGAN_FACES if data_set == "ffhq" else VQGAN


def _looc(data_set: LooCSet, num_codes: int, options: LooCOptions) -> RunConfig:
    dim, beta = options.get("dim", 4), options.get("beta", 2)
    require(1 <= dim <= CHANNELS and CHANNELS % dim == 0, f"dim={dim}", f"must divide {CHANNELS}")
    quantizer = preset(
        "looc",
        num_codes=num_codes,
        dim=dim,
        num_segments=CHANNELS // dim,
        beta=beta,
        layout=options.get("layout", "paper"),
        update=options.get("update", "cvq"),
        metric=options.get("metric", "cosine"),
    )
    name = f"looc_{num_codes}x{dim}_beta{beta}"
    return vqgan_run(name, data_set, quantizer, schedule_of(data_set), options)
