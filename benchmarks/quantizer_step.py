"""Time a quantizer's training step against its peers, and measure the memory that it needs.

    python quantizer_step.py [--pairs 11] [--threads 2] [--out ../docs/results/quantizer_step.md]

Needs vector-quantize-pytorch (`pip install 'vqkit[dev]'`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from side_by_side import Limits, Page, alternate, limits, median, ratio
from torch import Tensor, nn

from vqkit.quantizers import PRESETS, GridQuantizer

SHAPES = {
    (4096, 16384, 8): (16, 16, 16),
    (1024, 100000, 8): (4, 16, 16),
    (4096, 16384, 256): (16, 16, 16),
    (32768, 256, 4): (32, 32, 32),
}
"""(N vectors, K codes, D dim) -> images, height and width of the feature maps that make N."""
WARM_UP = (64, 64, 8)
"""A step so small that what it leaves in the heap hides nothing."""
BATCHES = 4
"""Feature maps that take turns, so that codes do not learn one by heart."""
PEERS = (
    "vector-quantize-pytorch, EMA",
    "vector-quantize-pytorch, learnable",
    "taming-style",
)
OURS = ("vq_ema", "vq_vae")
ASKED = {"vector-quantize-pytorch, EMA": (20, 20, 8, 8), "taming-style": (10, 10, 3, 3)}
"""How many times faster the step is asked to be, shape by shape."""
DRAWN = ("gumbel", "sq_vae")
ABOUT = """
A step is: forward of a feature map (B, D, h, w) in training mode, float32; the backward pass from a
fixed gradient at z_q and from the quantizer's loss, to the gradient of z and, where the codebook is
trained by gradient, to its dense gradient (K, D), as optimizers take it; and the update of the
codebook where a rule moves it (EMA: in vqkit `quantizer.step()`, elsewhere inside the forward). The
optimizer's own arithmetic is outside, and so are encoder and decoder. Every quantizer is called as
its users call it: with the map, and with its library's default settings. Vectors and codes are
standard normal, the codes the same for all; four maps take turns.

`taming-style` is the usual published code: |z|² + |c|² - 2 z c for all pairs, argmin, embedding,
two mean squared errors, straight-through.

The limit is the longer of two times that no step can beat on this machine: its N·K·D
multiply-additions at the rate of a large matrix product (bf16 where the search screens in it, at
64 dimensions and more), and reading z and the gradient, writing z_q and the gradient of z, reading
the codes and writing them or their gradient, at the bandwidth of memory.
"""

Step = Callable[[], object]


class Taming(nn.Module):
    """What most published code does with a codebook that is trained by gradient."""

    def __init__(self, num_codes: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_codes, dim)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize a map (B, D, h, w) -> z_q, ids, loss."""
        rows = z.permute(0, 2, 3, 1).contiguous()
        flat, codes = rows.view(-1, rows.shape[-1]), self.embedding.weight
        squares = flat.square().sum(1, keepdim=True) + codes.square().sum(1)
        ids = (squares - 2 * flat @ codes.T).argmin(1)
        z_q = self.embedding(ids).view(rows.shape)
        loss = 0.25 * F.mse_loss(z_q.detach(), rows) + F.mse_loss(z_q, rows.detach())
        z_q = rows + (z_q - rows).detach()
        return z_q.permute(0, 3, 1, 2).contiguous(), ids, loss


def peer(name: str, codes: Tensor) -> nn.Module:
    """Build a peer that starts at `codes` (K, D)."""
    num_codes, dim = codes.shape
    if name == "taming-style":
        model: nn.Module = Taming(num_codes, dim)
        target = model.embedding.weight
    else:
        from vector_quantize_pytorch import VectorQuantize

        learnable = {"learnable_codebook": True, "ema_update": False}
        options = learnable if name.endswith("learnable") else {}
        model = VectorQuantize(dim, num_codes, accept_image_fmap=True, **options)
        target = model.codebook
    with torch.no_grad():
        target.copy_(codes)
    if hasattr(model, "_codebook") and hasattr(model._codebook, "embed_avg"):
        model._codebook.embed_avg.copy_(model._codebook.embed)
    return model.train()


def preset(name: str, codes: Tensor) -> GridQuantizer:
    """Build a preset for vectors of D numbers whose codes are `codes` (K, D) where it has such."""
    num_codes, dim = codes.shape
    arguments: dict[str, object] = {"num_codes": num_codes, "dim": dim}
    if name in ("vqgan_fc", "vit_vqgan"):
        arguments["in_channels"] = None
    elif name == "vqgan_lc":
        arguments = {"features": codes, "dim": dim, "in_channels": None}
    elif name in ("pq", "movq_codes", "looc"):
        arguments |= {"dim": dim // 4, "num_segments": 4}
    elif name == "dual":
        arguments |= {"dim": dim // 2, "refiner": "linear"}
    elif name == "fsq":
        arguments = {"in_channels": dim}
    elif name == "lfq":
        arguments = {"dim": 10, "in_channels": dim}
    quantizer = PRESETS[name](**arguments).train()
    for leaf in quantizer.quantizer.leaves():
        held = getattr(leaf.codebook, "codes", None)
        if held is not None and held.shape == (1, *codes.shape):
            with torch.no_grad():
                held.copy_(codes)
            for rule in leaf.rules:
                if hasattr(rule, "sums"):
                    rule.sums.copy_(codes)
    quantizer.auto_step = False
    return quantizer


def make_step(model: nn.Module, shape: tuple[int, int, int]) -> Step:
    """Return a function that makes one step."""
    source = torch.Generator().manual_seed(1)
    images, height, width = SHAPES.get(shape, (1, 1, shape[0]))
    size = (images, shape[2], height, width)
    maps = [torch.randn(size, generator=source).requires_grad_() for _ in range(BATCHES)]
    gradient = torch.randn(size, generator=source) / shape[0]
    turn = itertools.cycle(maps)

    def step() -> None:
        z = next(turn)
        z.grad = None
        model.zero_grad(set_to_none=True)
        out = model(z)
        if isinstance(model, GridQuantizer):
            z_q, loss = out.z_q, out.loss
        else:
            z_q, _, loss = out
        roots = [(z_q, gradient), (loss, torch.ones_like(loss))]
        roots = [(root, slope) for root, slope in roots if root.requires_grad]
        torch.autograd.backward(*map(list, zip(*roots, strict=True)))
        if isinstance(model, GridQuantizer):
            model.step()

    return step


def build(name: str, shape: tuple[int, int, int]) -> Step:
    """Make a step of a peer or a preset."""
    torch.manual_seed(0)
    codes = torch.randn(shape[1:], generator=torch.Generator().manual_seed(0))
    return make_step(peer(name, codes) if name in PEERS else preset(name, codes), shape)


def limit(shape: tuple[int, int, int], machine: Limits) -> float:
    """Seconds that no step can beat."""
    num_vectors, num_codes, dim = shape
    rate = machine.bf16_flops if dim >= 64 else machine.float32_flops
    product = 2 * num_vectors * num_codes * dim / max(rate, machine.float32_flops)
    moved = 4 * (4 * num_vectors * dim + 2 * num_codes * dim)
    return max(product, moved / machine.bytes_per_second)


def peak_rise(name: str, shape: tuple[int, int, int], threads: int) -> float:
    """Bytes by which a fresh process's peak rises in two steps, above model and inputs."""
    command = [sys.executable, __file__, "--rise", name, "--threads", str(threads)]
    done = subprocess.run(
        [*command, "--shape", *map(str, shape)], check=True, capture_output=True, text=True
    )
    return float(json.loads(done.stdout))


def print_rise(name: str, shape: tuple[int, int, int]) -> None:
    """What the fresh process does."""
    build(name, WARM_UP)()  # libraries load outside the measure
    step = build(name, shape)
    before = _peak()
    step()
    step()
    print(json.dumps(_peak() - before))


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def compare(page: Page, pairs: int) -> None:
    """Add the tables of times against the peers."""
    machine = limits()
    page.text(f"Limits, measured in this run: {machine}.")
    rows, ratios = [], []
    for place, shape in enumerate(SHAPES):
        works = {name: build(name, shape) for name in (*OURS, *PEERS)}
        times = alternate(works, pairs)
        floor = limit(shape, machine)
        milliseconds = [1e3 * median(times[name]) for name in works]
        rows.append([_title(shape), *milliseconds, 1e3 * floor, floor / median(times["vq_ema"])])
        for ours, rival in zip(OURS, ("vector-quantize-pytorch, EMA", "taming-style"), strict=True):
            faster = 1 / ratio(times, ours, rival)
            asked = ASKED[rival][place]
            pairs_of = [b / a for a, b in zip(times[ours], times[rival], strict=True)]
            spread = f"{min(pairs_of):.3g} to {max(pairs_of):.3g}"
            met = "yes" if faster >= asked else "no"
            ratios.append([_title(shape), ours, rival, faster, spread, asked, met])
    page.text("## Milliseconds of a step, median")
    page.table(["N, K, D", *OURS, *PEERS, "limit", "limit / vq_ema"], rows)
    page.text("## How many times faster, median over pairs")
    page.table(["N, K, D", "ours", "peer", "faster", "pairs", "asked", "met"], ratios)


def memory(page: Page, threads: int) -> None:
    """Add the table of memory at the largest codebook."""
    shape = (1024, 100000, 8)
    rises = {name: peak_rise(name, shape, threads) for name in (*OURS, *PEERS)}
    page.text(f"## Peak memory of a step above model and inputs, at {_title(shape)}")
    best = max(rises[name] for name in OURS)
    rows = [
        [name, rise / 2**20, "–" if name in OURS else f"{rise / best:.3g}"]
        for name, rise in rises.items()
    ]
    page.table(["", "MiB", "times the larger of ours (20 asked)"], rows)
    page.text("The peak of a fresh process (VmHWM), after a step of 64 vectors; then two steps.")


def presets(page: Page, pairs: int) -> None:
    """Add the table of all presets."""
    rows = []
    for name in PRESETS:
        row: list[object] = [name]
        for shape in SHAPES:
            repeats = 1 if name in DRAWN else pairs
            times = alternate({name: build(name, shape)}, repeats)
            row.append(1e3 * median(times[name]))
        rows.append(row)
        print(*row, flush=True)
    page.text("## Milliseconds of a step of every preset, median")
    page.table(["preset", *map(_title, SHAPES)], rows)
    page.text(
        "D is divided among segments: 4 for `pq`, `looc` and `movq_codes` (which then search 4·N "
        "vectors), 2 for `dual` (linear refiner). `rq` has 4 levels. `fsq` and `lfq` have their "
        "default lattices of 1,000 and 1,024 points behind 1×1 projections. `gumbel` and `sq_vae` "
        "score all codes by definition."
    )


def _title(shape: tuple[int, int, int]) -> str:
    return ", ".join(map(str, shape))


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rise", help=argparse.SUPPRESS)
    parser.add_argument("--shape", type=int, nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.rise:
        print_rise(args.rise, tuple(args.shape))
        return
    page = Page("A quantizer's training step", ABOUT)
    compare(page, args.pairs)
    memory(page, args.threads)
    presets(page, args.pairs)
    if args.out:
        page.write(args.out)


if __name__ == "__main__":
    main()
