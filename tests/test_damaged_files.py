"""Damaged files are refused with a reason or read as what they are: no other error, no hang.

`make test` tries a seeded sample, `make soak` many more.
"""

import io
import warnings

import numpy as np
import pytest
import torch
from damage import damaged
from PIL import Image

from vqkit.config import DataConfig, NetworkConfig, QuantizerConfig
from vqkit.data import load_images
from vqkit.models import ImageTokenizer, TokenizerConfig
from vqkit.training import load_checkpoint, train

SAMPLE, CAMPAIGN = 60, 50_000
COUNTS = [pytest.param(SAMPLE), pytest.param(CAMPAIGN, marks=pytest.mark.soak)]


def picture(kind):
    """Bytes of a small image file."""
    pixels = np.random.default_rng(3).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])
def test_damaged_images(kind, count, tmp_path):
    source, content = np.random.default_rng(0), picture(kind)
    reasons = []
    for _ in range(count):
        (tmp_path / f"image.{kind.lower()}").write_bytes(damaged(content, source))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                image = load_images(DataConfig(source="folder", path=str(tmp_path))).image(0)
                assert image.dtype == torch.uint8
                assert image.shape[0] == 3
            except ValueError as error:
                reasons.append(str(error))
    assert len(reasons) > count // 20
    assert all(f"image.{kind.lower()}" in reason for reason in reasons)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_damaged_tokenizers(name, count, tmp_path):
    config = TokenizerConfig(
        network=NetworkConfig(hidden=4, residual_hidden=2, num_residual_blocks=1),
        quantizer=QuantizerConfig(preset="vq_vae", args={"num_codes": 4, "dim": 2}),
    )
    tokenizer = ImageTokenizer(config)
    tokenizer.save_pretrained(tmp_path)
    content, expected = (tmp_path / name).read_bytes(), tokenizer.state_dict()
    source = np.random.default_rng(1)
    for _ in range(count):
        (tmp_path / name).write_bytes(damaged(content, source))
        try:
            found = ImageTokenizer.from_pretrained(tmp_path).state_dict()
        except ValueError:
            continue
        # Only a change that means nothing (white space, the version's text) may pass.
        assert name == "config.json"
        assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_checkpoints(count, tmp_path, monkeypatch):
    from training_runs import run_config, write_images

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    images = write_images(tmp_path / "images")
    config = run_config(images, "rq", optim__num_steps=2, log__checkpoint_every=2)
    train(config, out=tmp_path / "run", progress=False)
    folder = tmp_path / "run" / "step_00000002"
    files = {path: path.read_bytes() for path in sorted(folder.iterdir())}
    source = np.random.default_rng(2)
    for _ in range(count):
        path = list(files)[source.integers(len(files))]
        path.write_bytes(damaged(files[path], source))
        try:
            assert load_checkpoint(folder).step == 2
            assert path.name == "trainer.json"  # white space inside it means nothing
        except ValueError:
            pass
        path.write_bytes(files[path])
    assert load_checkpoint(folder).step == 2
