"""Images per second of VQGAN's adversarial training step, ours and written plainly.

    python benchmarks/vqgan_step.py --page docs/results/vqgan_step.md          (CUDA)
    python benchmarks/vqgan_step.py --device cpu --quick                       (tries it)

The step: full f16 networks (72 million parameters) on 256 x 256 pixels, L1 + LPIPS (VGG16 of random
weights: same cost) + adaptive hinge GAN after its start, one update of both networks. Ours is
`vqkit.training.Trainer` in bf16, compiled; the plain step is written below as the reference codes
do it: float32, backward through LPIPS and discriminator once for the adaptive weight and once more
for the update, a second forward for the discriminator's turn left out in its favour. The limit:
operations of the step, counted, over the rate of a large bf16 matrix product in the same run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from side_by_side import Page, alternate, limits, median
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from vqkit.config import (
    AdversarialConfig,
    DataConfig,
    ObjectiveConfig,
    OptimConfig,
    QuantizerConfig,
    RunConfig,
    VQGANNetwork,
)
from vqkit.data import Batch, to_float
from vqkit.metrics.lpips import LPIPS
from vqkit.models import ImageTokenizer, TokenizerConfig
from vqkit.models.discriminator import PatchDiscriminator
from vqkit.training.machine import make_accelerator
from vqkit.training.objective import TokenizerObjective
from vqkit.training.trainer import Trainer

PRESETS = {
    "VQGAN 16,384 x 256": QuantizerConfig(preset="vq_vae", args={"num_codes": 16384, "dim": 256}),
    "Dual 2 x 512 x 128": QuantizerConfig(preset="dual", args={"num_codes": 512, "dim": 128}),
}


def config_of(quantizer: QuantizerConfig, batch: int, ours: bool, quick: bool) -> RunConfig:
    """Settings of a run that is past the start of its discriminator."""
    network = (
        VQGANNetwork(width=32, multipliers=(1, 2), attention_strides=())
        if quick
        else VQGANNetwork()
    )
    return RunConfig(
        name="step",
        quantizer=quantizer,
        network=network,
        data=DataConfig(source="photos"),
        objective=ObjectiveConfig(reconstruction="l1"),
        adversarial=AdversarialConfig(start=0),
        optim=OptimConfig(
            num_steps=10**6,
            batch_size=batch,
            lr=1.44e-4,
            betas=(0.5, 0.9),
            precision="bf16" if ours else "fp32",
            compile=ours,
            deterministic=False,
        ),
    )


class Perceptual(TokenizerObjective):
    """The objective with LPIPS of random weights: its cost, not its judgement."""

    def __init__(self, config: ObjectiveConfig, device: torch.device, compiled: bool) -> None:
        super().__init__(config)
        self.lpips = LPIPS.random(seed=0).to(device, memory_format=torch.channels_last)
        if compiled:
            self.lpips.compile()


def our_step(config: RunConfig, images: Tensor, device: torch.device) -> Callable[[], object]:
    """The step of `vqkit.training`."""
    objective = Perceptual(config.objective, device, config.optim.compile)
    trainer = Trainer(config, make_accelerator(), objective)
    batch = Batch(images, [""] * len(images))

    def step() -> object:
        report = trainer.step(batch)
        if report.problem:
            raise SystemExit(report.problem)
        return report

    return step


def plain_step(config: RunConfig, images: Tensor, device: torch.device) -> Callable[[], object]:
    """The step as it is written in the reference codes, with the same networks."""
    assert config.adversarial is not None
    torch.manual_seed(0)
    settings = TokenizerConfig(network=config.network, quantizer=config.quantizer)
    model = ImageTokenizer(settings).to(device).train()
    judge = PatchDiscriminator(config.adversarial, 3).to(device).train()
    lpips = LPIPS.random(seed=0).to(device)
    options = {"lr": config.optim.lr, "betas": config.optim.betas}
    generator = torch.optim.Adam(model.parameters(), **options)
    discriminator = torch.optim.Adam(judge.parameters(), **options)
    last = model.decoder.last_weight

    def step() -> object:
        real = to_float(images.to(device))
        out = model(real)
        rec = (out.images - real).abs().mean() + lpips(out.images, real).mean()
        gan = -judge(out.images).mean()
        of_rec = torch.autograd.grad(rec, last, retain_graph=True)[0]
        of_gan = torch.autograd.grad(gan, last, retain_graph=True)[0]
        weight = (of_rec.norm() / (of_gan.norm() + 1e-4)).clamp(0, 1e4).detach()
        generator.zero_grad()
        (rec + out.quantized.loss + 0.8 * weight * gan).backward()
        generator.step()
        fake, true = judge(out.images.detach()), judge(real)
        loss = (F.relu(1 - true).mean() + F.relu(1 + fake).mean()) / 2
        discriminator.zero_grad()
        loss.backward()
        discriminator.step()
        return loss.item()

    return step


def vqgan_part(page: Page, device: torch.device, *, batch: int, pairs: int, quick: bool) -> None:
    """Fill the table of the page."""
    known = limits(device)
    side = 64 if quick else 256
    source = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, generator=source)
    page.text(f"Limits measured in this run: {known}.")
    rows = []
    for name, quantizer in PRESETS.items():
        plain = plain_step(config_of(quantizer, batch, False, quick), images, device)
        with FlopCounterMode(display=False) as counter:
            plain()
        flops = counter.get_total_flops()
        ours = our_step(config_of(quantizer, batch, True, quick), images, device)
        times = alternate({"ours": ours, "plain": plain}, pairs)
        seconds, others = median(times["ours"]), median(times["plain"])
        share = flops / seconds / known.bf16_flops
        if device.type == "cuda":
            memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f}"
            torch.cuda.reset_peak_memory_stats()
        else:
            memory = "–"
        rows.append(
            [
                name,
                batch,
                batch / seconds,
                batch / others,
                others / seconds,
                flops / batch / 1e12,
                f"{share:.1%}",
                memory,
            ]
        )
        del ours, plain
    page.table(
        [
            "quantizer",
            "batch",
            "vqkit, images/s",
            "plain float32, images/s",
            "times faster",
            "10^12 operations an image",
            "share of the bf16 product rate",
            "peak GiB of both",
        ],
        rows,
    )


def main() -> None:
    """Read the command line and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--quick", action="store_true", help="tiny networks, to try the script")
    parser.add_argument("--page", type=Path, default=None)
    given = parser.parse_args()
    page = Page("VQGAN's training step", __doc__ or "")
    pairs, batch = (2, 2) if given.quick else (given.pairs, given.batch)
    vqgan_part(page, torch.device(given.device), batch=batch, pairs=pairs, quick=given.quick)
    if given.page is not None:
        page.write(given.page)


if __name__ == "__main__":
    main()
