"""The systems of the VQGAN-LC paper: VQGAN, -FC, -EMA and -LC on ImageNet and FFHQ.

All share one way to train, that of its code: L1 + LPIPS + 0.1 times the quantizer's loss
(commitment 1, codebook 0.33) + 0.1 times the adaptive GAN loss from step 50,000 on, a discriminator
with two strided layers, Adam (.5, .9) at 5e-4 for both networks, 5 epochs of warm-up and half a
cosine.
Images: shorter side 256, random crops (ImageNet), no mirroring. What is not clear, and how it is
read here:

- Batch. The command in its README says 256 on each of 8 GPUs; then the discriminator, which starts
  at step 50,000, would never run in the 20 published epochs (12,520 steps). Here 256 is the batch
  over all 32 GPUs: 100,080 steps, the discriminator from half of them on.
- Learning rate and length. The paper has 5e-4 and 20 (ImageNet) or 800 (FFHQ) epochs, as here; the
  scripts of its code have 100 epochs, and one of them 1e-4.
- Losses. The paper weighs commitment and codebook 1 and 0.33, squares the reconstruction error and
  puts no 0.1 before the GAN loss; the code as above.
- Assignment. The paper speaks of the cosine and writes the L2 distance; the code has L2.
  `metric` gives either.
- FC here is a codebook of 8 numbers without any normalisation, as its code runs it;
  `metric="cosine"` gives the codes of unit length of ViT-VQGAN, from whom the idea is.
- Its measures: PSNR on the luma alone, LPIPS with AlexNet on a wrong range, FID against images of
  the original size.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, Literal, Unpack

from vqkit.config import (
    AdversarialConfig,
    OptimConfig,
    QuantizerConfig,
    RunConfig,
    VQGANNetwork,
    require,
)
from vqkit.recipes.vqgan_systems import (
    F8,
    F16,
    Schedule,
    VQGANOptions,
    preset,
    vqgan_run,
)

LCSet = Literal["imagenet", "ffhq"]
Metric = Literal["l2", "cosine"]

LC: Final = Schedule(
    optim=OptimConfig(
        num_steps=1, batch_size=256, lr=5e-4, schedule="cosine", betas=(0.5, 0.9), eps=1e-7
    ),
    epochs=20,
    warmup_epochs=5,
    adversarial=AdversarialConfig(start=50_000, weight=0.1, num_layers=2),
)
EPOCHS: Final[dict[LCSet, int]] = {"imagenet": 20, "ffhq": 800}
NETWORKS: Final[dict[int, VQGANNetwork]] = {256: F16, 1024: F8}
"""By tokens for an image of 256 x 256 pixels."""
WEIGHTS: Final = {"commitment": 0.1, "codebook": 0.033}
FEATURES: Final = 768
"""Numbers of a feature of CLIP ViT-L/14, behind its projection."""


class LCOptions(VQGANOptions, total=False):
    """What every recipe of VQGAN-LC takes."""

    codebook: str
    """Safetensors file with one tensor (K, F), the frozen features; default
    data/codebooks/<data set>.safetensors. That of another set is a row of Table 8."""
    random_codes: int
    """So many random vectors instead of a file, the first row of Table 6. It does not work there
    (rFID 108.7), and is for tests."""
    tokens: int
    """256 (f16) or 1,024 (f8)."""
    dim: int
    """Length of a projected code (Table 10); default 8."""
    metric: Metric
    """Distance of a feature to a projected code; default l2."""
    frozen: bool
    """Keep the features as they are (default), or train them too (Table 9)."""
    projector: bool
    """Project the features to `dim` numbers (default), or take them as codes (Table 9)."""


def vqgan_lc_imagenet(**options: Unpack[LCOptions]) -> RunConfig:
    """VQGAN-LC on ImageNet: 100,000 frozen features, projected; 256 tokens, 0.0649 bits per pixel.

    Command: `vqkit train vqgan_lc_imagenet --path data/imagenet --codebook features.safetensors`.
    Published (VQGAN-LC, Table 2): PSNR 23.8, SSIM 58.9 %, FID 2.62, LPIPS 0.12, usage 99.9 %; with
    1,024 tokens (0.26 bits per pixel): PSNR 27.0, SSIM 71.6 %, FID 1.29, LPIPS 0.07. Other sizes of
    the codebook, Tables 1 and 7: FID 4.98 (1,000), 4.97 (1,024), 3.80 (10,000), 3.01 (16,384), 2.75
    (50,000), 2.66 (200,000).
    Hardware: 32 V100, batch 256, 20 epochs = 100,080 steps at 5e-4.
    Data: ImageNet-1k and a codebook of features (docs/datasets.md).
    Differs: Table 9 prints SSIM 58.1 % for this system; Table 10, which varies `dim`, was most
    likely run with 200,000 codes. See also the list at the head of `vqkit.recipes.vqgan_lc`.
    """
    return _lc("imagenet", options)


def vqgan_lc_ffhq(**options: Unpack[LCOptions]) -> RunConfig:
    """VQGAN-LC on FFHQ: 100,000 frozen features, projected; 256 tokens, 0.0649 bits per pixel.

    Command: `vqkit train vqgan_lc_ffhq --path data/ffhq --codebook features.safetensors`.
    Published (VQGAN-LC, Table 3): PSNR 26.1, SSIM 69.4 %, FID 3.81, LPIPS 0.08, usage 99.5 %; with
    a codebook made of ImageNet (Table 8): FID 4.08.
    Hardware: 32 V100, batch 256, 800 epochs = 187,200 steps at 5e-4.
    Data: 60,000 faces to train and 10,000 to test, and a codebook (docs/datasets.md).
    Differs: how its codebook was made of a set without classes is not published. See also the list
    at the head of `vqkit.recipes.vqgan_lc`.
    """
    return _lc("ffhq", options)


def lc_vqgan(
    *,
    data_set: LCSet = "imagenet",
    num_codes: int = 16_384,
    tokens: int = 256,
    metric: Metric = "l2",
    **options: Unpack[VQGANOptions],
) -> RunConfig:
    """VQGAN as VQGAN-LC trains it: 16,384 codes of 256 numbers, 256 tokens, 0.0547 bits per pixel.

    Command: `vqkit train lc_vqgan --path data/imagenet`.
    Published (VQGAN-LC, Tables 2 and 3): ImageNet PSNR 23.3, SSIM 52.4 %, FID 5.96, usage 3.4 %;
    with 50,000 codes PSNR 22.5, FID 5.44, usage 1.1 %; with 100,000 codes PSNR 22.3, FID 5.44,
    usage 0.5 %. FFHQ PSNR 24.4, SSIM 63.3 %, FID 5.25, usage 2.3 %.
    Hardware: 32 V100, batch 256, 20 epochs (FFHQ 800) at 5e-4.
    Data: as `vqgan_lc_imagenet` and `vqgan_lc_ffhq`, without a codebook.
    Differs: see the list at the head of `vqkit.recipes.vqgan_lc`.
    """
    _check_metric(metric)
    quantizer = preset("vq_vae", num_codes=num_codes, dim=256, metric=metric, **WEIGHTS)
    return _run(f"lc_vqgan_{num_codes}", data_set, quantizer, tokens, options)


def lc_vqgan_fc(
    *,
    data_set: LCSet = "imagenet",
    num_codes: int = 16_384,
    tokens: int = 256,
    dim: int = 8,
    metric: Metric = "l2",
    **options: Unpack[VQGANOptions],
) -> RunConfig:
    """VQGAN-FC of VQGAN-LC's paper: 16,384 codes of 8 numbers, 256 tokens, 0.0547 bits per pixel.

    Command: `vqkit train lc_vqgan_fc --path data/imagenet`.
    Published (VQGAN-LC, Tables 1 to 3): ImageNet PSNR 22.8, SSIM 54.5 %, FID 4.29, usage 11.2 %;
    with 1,024 codes FID 4.82; with 50,000 PSNR 23.1, FID 4.96; with 100,000 PSNR 22.9, FID 4.65.
    FFHQ PSNR 24.8, SSIM 64.6 %, FID 4.86, usage 10.9 %.
    Hardware: 32 V100, batch 256, 20 epochs (FFHQ 800) at 5e-4.
    Data: as `vqgan_lc_imagenet` and `vqgan_lc_ffhq`, without a codebook.
    Differs: nothing is normalised, as in its code; `--metric cosine` is ViT-VQGAN's factorised
    code, on unit vectors. See also the list at the head of `vqkit.recipes.vqgan_lc`.
    """
    _check_metric(metric)
    method = "vqgan_fc" if metric == "l2" else "vit_vqgan"
    quantizer = preset(method, num_codes=num_codes, dim=dim, in_channels=None, **WEIGHTS)
    return _run(f"lc_vqgan_fc_{num_codes}", data_set, quantizer, tokens, options)


def lc_vqgan_ema(
    *,
    data_set: LCSet = "imagenet",
    num_codes: int = 16_384,
    tokens: int = 256,
    dim: int = 8,
    metric: Metric = "l2",
    **options: Unpack[VQGANOptions],
) -> RunConfig:
    """VQGAN-EMA of VQGAN-LC's paper: 16,384 moving averages, 256 tokens, 0.0547 bits per pixel.

    Command: `vqkit train lc_vqgan_ema --path data/imagenet`.
    Published (VQGAN-LC, Tables 1 to 3): ImageNet PSNR 23.5, SSIM 56.6 %, FID 3.41, usage 83.2 %;
    with 1,024 codes FID 4.93; with 50,000 PSNR 23.2, FID 3.88; with 100,000 PSNR 23.4, FID 3.46.
    FFHQ PSNR 25.4, SSIM 66.1 %, FID 4.79, usage 68.2 %.
    Hardware: 32 V100, batch 256, 20 epochs (FFHQ 800) at 5e-4.
    Data: as `vqgan_lc_imagenet` and `vqgan_lc_ffhq`, without a codebook.
    Differs: its code moves the codes twice a step, also in evaluation, on every GPU for itself, and
    from counts of zero; here once, in training, jointly, from counts of one.
    """
    _check_metric(metric)
    commitment = WEIGHTS["commitment"]
    quantizer = preset("vq_ema", num_codes=num_codes, dim=dim, metric=metric, commitment=commitment)
    return _run(f"lc_vqgan_ema_{num_codes}", data_set, quantizer, tokens, options)


def _lc(data_set: LCSet, options: LCOptions) -> RunConfig:
    codebook, random_codes = options.get("codebook"), options.get("random_codes")
    require(
        codebook is None or random_codes is None,
        f"codebook={codebook!r} with random_codes={random_codes}",
        "give one of them",
    )
    features: dict[str, Any] = {"file": codebook or f"data/codebooks/{data_set}.safetensors"}
    if random_codes is not None:
        features = {"normal": {"shape": (random_codes, FEATURES)}}
    metric, projector = options.get("metric", "l2"), options.get("projector", True)
    _check_metric(metric)
    require(
        projector or "dim" not in options,
        f"dim={options.get('dim')} with projector={projector}",
        "features that are not projected keep their length; leave dim out",
    )
    quantizer = preset(
        "vqgan_lc",
        features=features,
        dim=options.get("dim", 8) if projector else None,
        frozen=options.get("frozen", True),
        projector=projector,
        metric=metric,
        in_channels=None,
        **WEIGHTS,
    )
    return _run("vqgan_lc", data_set, quantizer, options.get("tokens", 256), options)


def _run(
    name: str, data_set: LCSet, quantizer: QuantizerConfig, tokens: int, options: VQGANOptions
) -> RunConfig:
    require(data_set in EPOCHS, f"data_set={data_set!r}", f"expected one of {list(EPOCHS)}")
    require(tokens in NETWORKS, f"tokens={tokens}", "expected 256 (f16) or 1024 (f8)")
    schedule = replace(LC, epochs=EPOCHS[data_set])
    long = name if tokens == 256 else f"{name}_{tokens}tokens"
    return vqgan_run(long, data_set, quantizer, schedule, options, network=NETWORKS[tokens])


def _check_metric(metric: Metric) -> None:
    require(metric in ("l2", "cosine"), f"metric={metric!r}", "expected 'l2' or 'cosine'")
