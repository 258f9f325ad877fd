"""Losses of the recipes' tiny forms, recorded; run as a script it records them anew.

python tests/golden_losses.py            # all recipes
python tests/golden_losses.py looc_mnist
"""

import json
import sys
import tempfile
from pathlib import Path

import torch

from vqkit.config import NetworkConfig
from vqkit.recipes import RECIPES, tiny
from vqkit.training import train

FOLDER = Path(__file__).with_name("golden")
# Those without a discriminator, whose error must fall, and without a file of features.
RECORDED = [
    name
    for name, make in RECIPES.items()
    if isinstance(make().network, NetworkConfig) and "features" not in make().quantizer.args
]


def tiny_losses(name, out):
    """Train the tiny form of a recipe into `out`; the loss of each of its 20 steps."""
    result = train(tiny(RECIPES[name]()), out=out, progress=False)
    return [line["loss"] for line in result.log]


def processor():
    """Vendor, family and model, where Linux tells: math libraries choose their kernels by them."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().split("\n\n")[0].splitlines() if info.exists() else []
    known = dict(line.split(":", 1) for line in lines if ":" in line)
    keys = {key.strip(): value.strip() for key, value in known.items()}
    return [keys.get(key, "") for key in ("vendor_id", "cpu family", "model")]


def machine():
    """What losses depend on beyond the code; close agreement is asked where it is the same."""
    return {
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
    }


def main(names):
    """Record the losses of the named recipes, all by default."""
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for name in names or RECORDED:
        with tempfile.TemporaryDirectory() as out:
            content = {**machine(), "losses": tiny_losses(name, Path(out) / "run")}
        (FOLDER / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
        sys.stdout.write(f"{name}: {content['losses'][0]:.4g} to {content['losses'][-1]:.4g}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
