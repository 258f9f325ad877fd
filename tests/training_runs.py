"""Tiny runs for the tests of training; run as a script it trains, and kills itself if told to."""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vqkit.config import (
    AdversarialConfig,
    DataConfig,
    LogConfig,
    NetworkConfig,
    ObjectiveConfig,
    OptimConfig,
    QuantizerConfig,
    RunConfig,
    VQGANNetwork,
    with_changes,
)
from vqkit.training import CLOCK_KEYS, read_log

NETWORK = NetworkConfig(hidden=16, residual_hidden=4, num_residual_blocks=1)

# One preset of every kind of state: anchors, drawn noise and temperature, averages and restarts,
# dropout inside the codebook's network, plain gradient.
PRESETS = {
    "looc": {"num_codes": 8, "dim": 2, "num_segments": 4},
    "cvq": {"num_codes": 8, "dim": 4, "anchors": "probrandom"},
    "sq_vae": {"num_codes": 8, "dim": 4},
    "vq_ema": {"num_codes": 8, "dim": 4, "restart_below": 1.0},
    "rq": {"num_codes": 8, "dim": 4, "num_levels": 2},
    "dual": {"num_codes": 8, "dim": 4, "num_layers": 1, "num_heads": 2},
    "gumbel": {"num_codes": 8, "dim": 4},
    "vq_vae": {"num_codes": 8, "dim": 4},
}


def write_images(folder, *, count=24, side=8, seed=0):
    """Smooth random pictures as files."""
    source = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        coarse = source.integers(0, 256, (2, 2, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((side, side), Image.Resampling.BILINEAR)
        picture.save(folder / f"{number:02}.png")
    return folder


def run_config(images, preset="looc", **changes):
    """A run of 12 steps of 8 images, a checkpoint every 4."""
    logarithmic = preset == "sq_vae"
    config = RunConfig(
        name=f"tiny_{preset}",
        quantizer=QuantizerConfig(preset=preset, args=PRESETS[preset]),
        network=NETWORK,
        data=DataConfig(source="folder", path=str(images)),
        objective=ObjectiveConfig(reconstruction="log_mse" if logarithmic else "mse"),
        optim=OptimConfig(num_steps=12, batch_size=8, lr=3e-3),
        log=LogConfig(every=1, checkpoint_every=4),
    )
    return with_changes(config, **changes)


def adversarial_config(images, preset="looc", **changes):
    """A run of 12 steps of 8 images of 16 x 16 pixels with VQGAN's networks and a discriminator."""
    network = VQGANNetwork(
        width=8,
        multipliers=(1, 2),
        num_res_blocks=1,
        attention_strides=(),
        z_channels=8,
        norm_groups=4,
    )
    judge = AdversarialConfig(
        start=4, warmup=2, num_layers=1, width=4, norm="synced_batch", lecam=0.1, r1=0.1, r1_every=2
    )
    changes = {"network": network, "adversarial": judge, "optim__weight_ema": 0.9} | changes
    # A large eps: Adam would make steps of the rounding noise of gradients that are zero.
    return run_config(images, preset, **({"optim__eps": 1e-3} | changes))


def comparable_log(folder):
    """The log without what depends on the clock."""
    lines = read_log(Path(folder) / "log.jsonl")
    return [{k: v for k, v in line.items() if k not in CLOCK_KEYS} for line in lines]


def assert_same_run(one, other, step):
    """Losses, weights, codebooks, optimizer and random state of two folders agree, bit for bit."""
    assert comparable_log(one) == comparable_log(other)
    here, there = (Path(folder) / f"step_{step:08}" for folder in (one, other))
    names = sorted(path.name for path in here.glob("*.safetensors"))
    assert names == sorted(path.name for path in there.glob("*.safetensors"))
    for name in names:
        assert (here / name).read_bytes() == (there / name).read_bytes(), name
    tokenizers = [Path(folder) / "tokenizer" / "model.safetensors" for folder in (one, other)]
    assert tokenizers[0].read_bytes() == tokenizers[1].read_bytes()


def kill_at(place, step):
    """Make this process kill itself, as the machine's power failing would, at `step`."""
    from vqkit.training import checkpoint, log

    def die():
        if place == "term":  # a pre-empted job: everything that torchrun started is told to end
            os.kill(os.getppid(), signal.SIGTERM)
        elif place != "one" or os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)

    if place in ("step", "one", "term"):
        write = log.RunLog.write

        def write_and_die(self, line):
            write(self, line)
            if line["step"] == step and (place != "term" or os.environ["RANK"] == "0"):
                die()

        log.RunLog.write = write_and_die
        return
    whole = checkpoint.write_whole

    def write_half_and_die(path, content):
        if path.parent.name.endswith(f"{step:08}") and path.name == "optimizer.safetensors":
            path.write_bytes(content[: len(content) // 2])
            die()
        whole(path, content)

    checkpoint.write_whole = write_half_and_die


def main(settings, out, place, step):
    """Train the settings of a JSON file into `out`; every process saves its final weights."""
    from safetensors.torch import save_file

    from vqkit.config import from_dict
    from vqkit.training import health, train

    torch.set_num_threads(1)
    if place != "none":
        kill_at(place, int(step))

    def save_weights(model, device, step):
        state = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
        save_file(state, f"{out}_rank{os.environ.get('RANK', 0)}_{step}.safetensors")
        agree(model, device, step)

    agree = health.check_ranks_agree
    health.check_ranks_agree = save_weights
    config = from_dict(RunConfig, json.loads(Path(settings).read_text()))
    train(config, out=out, progress=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
