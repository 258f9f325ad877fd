"""The hub, replaced by a folder: no test reaches the network."""

import shutil
import types

import huggingface_hub
import pytest
import torch

from vqkit.config import NetworkConfig, QuantizerConfig
from vqkit.models import ImageTokenizer, TokenizerConfig

CONFIG = TokenizerConfig(
    quantizer=QuantizerConfig(preset="vq_vae", args={"num_codes": 8, "dim": 4}),
    network=NetworkConfig(hidden=8, residual_hidden=4, num_residual_blocks=1),
)


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    return ImageTokenizer(CONFIG)


class Hub:
    """Stands in for `huggingface_hub.HfApi`: keeps a repository in a folder."""

    def __init__(self, root):
        self.root, self.private, self.token = root, None, None

    def __call__(self, token=None):
        self.token = token
        return self

    def create_repo(self, repo_id, *, private, exist_ok):
        assert exist_ok
        self.private = private
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)

    def file_exists(self, repo_id, name):
        return (self.root / repo_id / name).exists()

    def upload_folder(self, *, repo_id, folder_path, commit_message, allow_patterns):
        for name in allow_patterns:
            shutil.copy(folder_path / name, self.root / repo_id / name)
        return types.SimpleNamespace(commit_url=f"{repo_id}: {commit_message}")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    return hub


def test_a_pushed_model_comes_back(tokenizer, hub, monkeypatch):
    url = tokenizer.push_to_hub(
        "me/model", license="cc-by-4.0", private=True, token="secret", message="first"
    )
    assert (url, hub.private, hub.token) == ("me/model: first", True, "secret")
    asked = {}

    def download(repo_id, **options):
        asked.update(repo_id=repo_id, **options)
        return str(hub.root / repo_id)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    loaded = ImageTokenizer.from_pretrained("me/model", revision="v1", token="t", cache_dir="c")
    assert asked == {
        "repo_id": "me/model",
        "revision": "v1",
        "token": "t",
        "cache_dir": "c",
        "allow_patterns": ["config.json", "model.safetensors", "frequencies.safetensors"],
    }
    for name, value in tokenizer.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])


def test_the_card_names_licence_preset_and_rate(tokenizer, hub):
    tokenizer.push_to_hub("me/model", license="cc-by-4.0")
    card = (hub.root / "me" / "model" / "README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-4.0\n")
    assert "`vq_vae`" in card
    assert "0.1875" in card  # log2(8) bits per 4 x 4 pixels
    assert 'from_pretrained("me/model")' in card


def test_a_card_of_the_user_is_kept(tokenizer, hub):
    (hub.root / "me" / "model").mkdir(parents=True)
    (hub.root / "me" / "model" / "README.md").write_text("mine")
    tokenizer.push_to_hub("me/model", license="mit")
    assert (hub.root / "me" / "model" / "README.md").read_text() == "mine"
    assert (hub.root / "me" / "model" / "config.json").exists()


@pytest.mark.parametrize("license", ["", "mit\ntags: x", "my own"])
def test_a_licence_is_an_identifier(tokenizer, hub, license):
    with pytest.raises(ValueError, match="license="):
        tokenizer.push_to_hub("me/model", license=license)
    assert not (hub.root / "me").exists()


@pytest.mark.parametrize("name", ["runs/typo", "here/typo"])
def test_a_mistyped_folder_is_not_asked_of_the_hub(name, tmp_path, monkeypatch):
    def download(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(ValueError, match=f"name='{name}': there is no such folder"):
        ImageTokenizer.from_pretrained(name)


def test_what_the_hub_does_not_have_is_refused(monkeypatch):
    def download(repo_id, **options):
        raise huggingface_hub.errors.LocalEntryNotFoundError("cannot reach the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ValueError, match=r"no-one/nothing.*cannot reach the hub"):
        ImageTokenizer.from_pretrained("no-one/nothing")
