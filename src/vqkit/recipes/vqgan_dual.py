"""The systems of the Dual Codebook paper: VQGANs on ADE20K, CelebA-HQ, MS-COCO and CUB-200.

All share one way to train: f16 networks on 256 x 256 pixels, L1 + 1.25 LPIPS + 0.8 times the
adaptive GAN loss from step 10,000 on, Adam (.5, .9), 500 epochs of batch 32 (16 on each of 2 GPUs).
What the paper says and what it does:

- Its learning rate 4.5e-6 is the base of VQGAN's rule; the code multiplies it by the batch of 32.
- The weight 1.25 of LPIPS is the default of its code and is not in the paper (VQGAN has 1).
- "At most 500 epochs" are published; here it is all of them.
- A codebook of half the size reads two tokens per position: 18 bits against VQGAN's 10.
- The l1 and l2 of its own rows are on pixels in [0, 1], those of the quoted rows on [-1, 1].
- Its code stretches every image it saves to its own least and largest value before measuring.
- Its evaluation mirrors images at random on CelebA-HQ and MS-COCO; here it never does.
- The baselines are quoted from VQCT (batch 16, LPIPS 1). Here all are trained as Dual is, so that
  rows differ by their method alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, Literal, Unpack

from vqkit.config import AdversarialConfig, OptimConfig, RunConfig, require
from vqkit.recipes.vqgan_systems import (
    L1_LPIPS,
    TAMING_LR,
    VQGAN_WEIGHTS,
    Schedule,
    SetName,
    VQGANOptions,
    preset,
    vqgan_run,
)

DualSet = Literal["ade20k", "celeba_hq", "ms_coco", "cub_200"]
Refiner = Literal["transformer", "linear", "none"]
Row = Literal["i", "ii", "iii", "iv", "v"]

DUAL: Final = Schedule(
    optim=OptimConfig(num_steps=1, batch_size=32, betas=(0.5, 0.9)),
    epochs=500,
    lr_per_image=TAMING_LR,
    objective=replace(L1_LPIPS, perceptual_weight=1.25),
    adversarial=AdversarialConfig(start=10_000),
)

TABLE_2: Final[dict[Row, tuple[Refiner, tuple[int, int]]]] = {
    "ii": ("none", (128, 128)),
    "iii": ("transformer", (192, 64)),
    "iv": ("transformer", (64, 192)),
    "v": ("transformer", (128, 128)),
}
"""Refiner of the global codebook, and channels of the global and the local one."""


class DualOptions(VQGANOptions, total=False):
    """What every recipe of Dual Codebook VQ takes."""

    num_codes: int
    """Codes in each of the two codebooks; 512 in Tables 1 and 2, 1,024 in Table 3."""
    channels: tuple[int, int]
    """Channels of the global and of the local codebook; default 128 and 128."""
    refiner: Refiner
    """What the global codes go through: the `transformer`, one `linear` layer, or `none`."""
    dropout: float
    """Of the transformer; default 0.1. With 0 the global codebook is not random in training."""


def dual_ade20k(**options: Unpack[DualOptions]) -> RunConfig:
    """Dual Codebook VQ on ADE20K: 2 x 512 codes, 512 tokens, 0.0703 bits per pixel.

    Command: `vqkit train dual_ade20k --path data/ade20k`.
    Published (Dual, Table 1): PSNR 20.88, FID 17.03, l1 0.0682, l2 0.0099.
    Hardware: 2 A100 of 80 GB, batch 32, 500 epochs = 399,500 steps at 1.44e-4.
    Data: the full release of 2021, stretched to squares (docs/datasets.md).
    Differs: see the list at the head of `vqkit.recipes.vqgan_dual`.
    """
    return _dual("ade20k", options)


def dual_celeba_hq(**options: Unpack[DualOptions]) -> RunConfig:
    """Dual Codebook VQ on CelebA-HQ: 2 x 512 codes, 512 tokens, 0.0703 bits per pixel.

    Command: `vqkit train dual_celeba_hq --path data/celeba_hq`.
    Published (Dual, Table 1): PSNR 25.88, FID 8.61, l1 0.0364, l2 0.003. Its FID is worse than the
    quoted VQGAN's (5.66).
    Hardware: 2 A100 of 80 GB, batch 32, 500 epochs = 390,500 steps at 1.44e-4.
    Data: 25,000 images to train and 5,000 to test (docs/datasets.md).
    Differs: the paper does not say which split it uses; this is the one of VQGAN. See also the list
    at the head of `vqkit.recipes.vqgan_dual`.
    """
    return _dual("celeba_hq", options)


def dual_ms_coco(**options: Unpack[DualOptions]) -> RunConfig:
    """Dual Codebook VQ on MS-COCO: 2 x 512 codes, 512 tokens, 0.0703 bits per pixel.

    Command: `vqkit train dual_ms_coco --path data/ms_coco`; Table 3: `--num_codes 1024`.
    Published (Dual, Table 1): PSNR 20.72, FID 4.19, l1 0.0717, l2 0.0103; with 1,024 codes in each
    codebook (Table 3; 0.0781 bits per pixel): PSNR 20.48, FID 3.24, l1 0.0751, l2 0.0108.
    Hardware: 2 A100 of 80 GB, batch 32, 500 epochs = 1,293,000 steps at 1.44e-4.
    Data: the images of 2014, centre crops (docs/datasets.md).
    Differs: see the list at the head of `vqkit.recipes.vqgan_dual`.
    """
    return _dual("ms_coco", options)


def dual_cub_200(**options: Unpack[DualOptions]) -> RunConfig:
    """Dual Codebook VQ on CUB-200: 2 x 512 codes, 512 tokens, 0.0703 bits per pixel.

    Command: `vqkit train dual_cub_200 --path data/cub_200`.
    Published (Dual, Table S1): PSNR 20.8, FID 5.93, l1 0.0728, l2 0.0102. All quoted rows but
    VQ-VAE have a better FID; none has a lower PSNR.
    Hardware: 2 A100 of 80 GB, batch 32, 500 epochs = 93,500 steps at 1.44e-4.
    Data: 5,994 images to train and 5,794 to test, by the list of the data set (docs/datasets.md).
    Differs: see the list at the head of `vqkit.recipes.vqgan_dual`.
    """
    return _dual("cub_200", options)


def dual_table2(*, row: Row = "v", **options: Unpack[VQGANOptions]) -> RunConfig:
    """Ablation of Dual on MS-COCO, row i to v: the halves and the transformer; 0.0703 bits/pixel.

    Command: `vqkit train dual_table2 --row iii --path data/ms_coco`.
    Published (Dual, Table 2; T is a global codebook behind the transformer, S a plain one):
    (i) VQGAN, one codebook of 1,024 (0.0391 bits per pixel): PSNR 20.21, FID 14.45;
    (ii) S-128 and S-128: PSNR 19.58, FID 4.91; (iii) T-192 and S-64: PSNR 19.26, FID 4.67;
    (iv) T-64 and S-192: PSNR 19.51, FID 4.12; (v) T-128 and S-128: PSNR 20.72, FID 4.19.
    Hardware: 2 A100 of 80 GB, batch 32, 500 epochs = 1,293,000 steps at 1.44e-4.
    Data: as `dual_ms_coco`.
    Differs: the text says that a large global codebook is better on all metrics; (iii) is worse
    than (iv) on all four. Row (i) is quoted from VQCT; here it is trained as the others are.
    """
    require(row == "i" or row in TABLE_2, f"row={row!r}", f"expected one of {['i', *TABLE_2]}")
    quantizer = preset("vq_vae", num_codes=1024, dim=256, **VQGAN_WEIGHTS)
    if row != "i":
        refiner, channels = TABLE_2[row]
        quantizer = preset("dual", num_codes=512, dim=channels, refiner=refiner)
    return vqgan_run(f"dual_table2_{row}", "ms_coco", quantizer, DUAL, options)


def dual_vq_vae(
    *, data_set: DualSet = "ade20k", num_codes: int = 1024, **options: Unpack[VQGANOptions]
) -> RunConfig:
    """VQ-VAE of Dual's Table 1, VQGAN without LPIPS and GAN: 1,024 codes, 0.0391 bits per pixel.

    Command: `vqkit train dual_vq_vae --data_set ms_coco --path data/ms_coco`.
    Published (Dual, Tables 1 and S1): ADE20K PSNR 21.08, FID 116.85; CelebA-HQ PSNR 25.29,
    FID 36.08; MS-COCO PSNR 23.55, FID 86.21; CUB-200 PSNR 24.38, FID 54.92.
    Hardware: not published; batch 32 and 500 epochs as Dual.
    Data: as the recipe of Dual on that set.
    Differs: the row is quoted from VQCT, and no paper says how it was trained; this reading is the
    networks of VQGAN with L1 and the quantizer's loss alone.
    """
    plain = replace(L1_LPIPS, perceptual="none")
    schedule = replace(DUAL, objective=plain, adversarial=None)
    quantizer = preset("vq_vae", num_codes=num_codes, dim=256)
    return vqgan_run(f"dual_vq_vae_{num_codes}", data_set, quantizer, schedule, options)


def dual_vqgan(
    *, data_set: DualSet = "ade20k", num_codes: int = 1024, **options: Unpack[VQGANOptions]
) -> RunConfig:
    """VQGAN of Dual's Table 1: 1,024 codes of 256 numbers, 256 tokens, 0.0391 bits per pixel.

    Command: `vqkit train dual_vqgan --data_set ms_coco --path data/ms_coco`.
    Published (Dual, Tables 1 and S1): ADE20K PSNR 20.42, FID 22.04; CelebA-HQ PSNR 24.10,
    FID 5.66; MS-COCO PSNR 20.21, FID 14.45; CUB-200 PSNR 22.19, FID 3.63.
    Hardware: not published; batch 32 and 500 epochs as Dual.
    Data: as the recipe of Dual on that set.
    Differs: quoted from VQCT, and trained here as Dual is. VQGAN's published code puts the weight
    0.25 on the codebook and 1 on the commitment, the other way round than its paper; so does this.
    """
    return _named_run("dual_vqgan", data_set, num_codes, "vq_vae", VQGAN_WEIGHTS, options)


def dual_gumbel(
    *,
    data_set: DualSet = "ade20k",
    num_codes: int = 1024,
    kl: float = 5e-4,
    **options: Unpack[VQGANOptions],
) -> RunConfig:
    """Gumbel-VQ of Dual's Table 1: 1,024 codes drawn by logits, 0.0391 bits per pixel.

    Command: `vqkit train dual_gumbel --data_set ms_coco --path data/ms_coco`.
    Published (Dual, Tables 1 and S1): ADE20K PSNR 20.04, FID 24.12; CelebA-HQ PSNR 23.65,
    FID 6.22; MS-COCO PSNR 20.00, FID 15.30; CUB-200 PSNR 22.11, FID 3.45.
    Hardware: not published; batch 32 and 500 epochs as Dual.
    Data: as the recipe of Dual on that set.
    Differs: quoted from VQCT, and trained here as Dual is. `kl` is the default of VQGAN's module;
    its published Gumbel model has 1e-8, which is none. Temperatures are those of DALL-E.
    """
    return _named_run("dual_gumbel", data_set, num_codes, "gumbel", {"kl": kl}, options)


def dual_cvq(
    *,
    data_set: DualSet = "ade20k",
    num_codes: int = 1024,
    metric: Literal["l2", "cosine"] = "l2",
    anchors: Literal["closest", "random", "probrandom"] = "probrandom",
    contrastive: float = 1.0,
    **options: Unpack[VQGANOptions],
) -> RunConfig:
    """CVQ of Dual's Table 1: 1,024 codes, seldom-used ones move to features, 0.0391 bits per pixel.

    Command: `vqkit train dual_cvq --data_set ms_coco --path data/ms_coco`.
    Published (Dual, Tables 1 and S1): ADE20K PSNR 19.91, FID 33.63; CelebA-HQ PSNR 23.15,
    FID 5.19; MS-COCO PSNR 20.48, FID 9.94; CUB-200 PSNR 22.29, FID 3.61.
    Hardware: not published; batch 32 and 500 epochs as Dual.
    Data: as the recipe of Dual on that set.
    Differs: quoted from VQCT, whose copy of CVQ has L2, drawn anchors and the contrastive term, as
    here; CVQ's own commands have cosine, the closest anchors and none. Trained here as Dual is.
    """
    args = {"metric": metric, "anchors": anchors, "contrastive": contrastive}
    return _named_run("dual_cvq", data_set, num_codes, "cvq", args, options)


def _named_run(
    name: str,
    data_set: SetName,
    num_codes: int,
    method: str,
    args: Mapping[str, Any],
    options: VQGANOptions,
) -> RunConfig:
    quantizer = preset(method, num_codes=num_codes, dim=256, **args)
    return vqgan_run(f"{name}_{num_codes}", data_set, quantizer, DUAL, options)


def _dual(data_set: SetName, options: DualOptions) -> RunConfig:
    num_codes, refiner = options.get("num_codes", 512), options.get("refiner", "transformer")
    channels = tuple(options.get("channels", (128, 128)))
    require(len(channels) == 2, f"channels={channels}", "give those of the global and local half")
    args: dict[str, Any] = {"num_codes": num_codes, "dim": channels, "refiner": refiner}
    if refiner == "transformer":
        args["dropout"] = options.get("dropout", 0.1)
    else:
        require("dropout" not in options, f"dropout with refiner={refiner!r}", "it has no dropout")
    return vqgan_run(f"dual_{num_codes}", data_set, preset("dual", **args), DUAL, options)
