"""The documents' code runs as printed."""

import re
from pathlib import Path

import pytest
from PIL import Image

from vqkit.config import NetworkConfig, QuantizerConfig
from vqkit.models import ImageTokenizer, TokenizerConfig

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "docs/quantizers.md"]
BLOCKS = [
    pytest.param(code, id=f"{page}-{number}")
    for page in PAGES
    for number, code in enumerate(
        re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    )
]


@pytest.mark.parametrize("code", BLOCKS)
def test_code_in_the_documents_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "from_pretrained" in code:
        config = TokenizerConfig(
            network=NetworkConfig(hidden=8, residual_hidden=4),
            quantizer=QuantizerConfig(preset="vq_vae", args={"num_codes": 8, "dim": 4}),
        )
        ImageTokenizer(config).save_pretrained(tmp_path / "runs/photos_looc/tokenizer")
        (tmp_path / "my/photos").mkdir(parents=True)
        Image.new("RGB", (41, 30), (200, 90, 30)).save(tmp_path / "my/photos/one.png")
    names = {}
    exec(compile(code, "block", "exec"), names)
    if "tokenizer" in names:
        assert names["pixels"].shape == (1, 3, 30, 41)


def test_linked_files_exist():
    for page in PAGES:
        path = ROOT / page
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{page} -> {target}"


def test_there_are_blocks():
    assert len(BLOCKS) >= 4
