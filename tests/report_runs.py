"""Small runs for the tests of the report: folders as a training leaves them, never trained."""

import json
from dataclasses import replace

import torch
from PIL import Image

from vqkit.config import DataConfig, NetworkConfig, OptimConfig, QuantizerConfig, RunConfig
from vqkit.data import load_images
from vqkit.evaluation import evaluate
from vqkit.models import ImageTokenizer, TokenizerConfig
from vqkit.training.run_folder import config_to_json, write_result

HOSTILE = "<script>alert('1')</script>\"><img src=x onerror=alert(2)>"


def write_pictures(folder, count=3, size=(32, 40)):
    """Write smooth pictures and return the settings that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        rows, columns = torch.arange(size[0])[:, None], torch.arange(size[1])[None, :]
        grey = ((rows * (3 * i + 4) + columns * 5) % 256).to(torch.uint8)
        colour = torch.stack([grey, 255 - grey, grey.roll(7, 1)], dim=-1)
        Image.fromarray(colour.numpy()).save(folder / f"{i}.png")
    return DataConfig(source="folder", path=str(folder))


def make_tokenizer(seed=0, channels=3, **args):
    """An untrained tokenizer of LooC, 3 segments that share `num_codes` codes."""
    torch.manual_seed(seed)
    network = NetworkConfig(image_channels=channels, hidden=8, residual_hidden=4)
    settings = {"dim": 2, "num_segments": 3, "num_codes": 8, **args}
    quantizer = QuantizerConfig(preset="looc", args=settings)
    return ImageTokenizer(TokenizerConfig(network=network, quantizer=quantizer)).eval()


def write_run(folder, data, name="first", seed=0, steps=40, **args):
    """Write the folder of a finished run: settings, log, tokenizer and result."""
    tokenizer = make_tokenizer(seed, **args)
    config = RunConfig(
        name=name,
        quantizer=tokenizer.config.quantizer,
        network=tokenizer.config.network,
        data=replace(data, crop="random", crop_size=16),
        optim=OptimConfig(num_steps=steps, batch_size=4, lr=1e-3 * (seed + 1)),
        test_data=data,
        seed=seed,
    )
    folder.mkdir(parents=True)
    settings = config_to_json(config)
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    lines = [log_line(step) for step in range(10, steps + 1, 10)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "log.jsonl").write_text(text, encoding="utf-8")
    result = {
        "steps": steps,
        "config": settings,
        "seconds": 90.0,
        "data": {"fingerprint": "ab" * 32, "images": 3},
        "versions": {"vqkit": "0.1.0", "torch": "2.9.0"},
        "git_revision": "0123456789abcdef",
        "hardware": {"device": "cpu", "processor": "a processor", "threads": 1},
        "last_line": lines[-1],
    }
    write_result(folder, "tokenizer", tokenizer.save_pretrained, result)
    return folder


def log_line(step):
    """One line of a log."""
    return {
        "step": step,
        "loss": 10 / step,
        "mse": 0.4 / step,
        "codes_used": min(1.0, step / 50),
        "perplexity": 1 + step / 10,
        "seconds": step * 2.0,
        "images_per_second": 5.0,
        "memory_bytes": (100 + step) * 2**20,
    }


def measure(folder, data, name):
    """Write `evaluation.json` into the folder of a run."""
    tokenizer = ImageTokenizer.from_pretrained(folder / "tokenizer")
    found = evaluate(tokenizer, load_images(data), name=name)
    found.save(folder / "evaluation.json")
    return found
