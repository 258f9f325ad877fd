"""Third-party weights: where they are looked for, what is said without them, what is refused."""

import hashlib
import http.server
import pickle
import subprocess
import sys
import threading
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import damaged
from safetensors.torch import save_file

from vqkit import weights
from vqkit.weights import KNOWN, cache_folder, find_weights, read_weights, sha256_of

DOCS = Path(__file__).parents[1] / "docs" / "weights.md"
# Not importorskip: it would import the package, which takes seconds.
WITH_HEADS = pytest.mark.skipif(not find_spec("torchmetrics"), reason="torchmetrics has the heads")
CONTENT = b"weights of a network" * 1000


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A machine without any weights; the home of its user."""
    for name in (weights.FOLDER, *(f"{weights.FOLDER}_{name.upper()}" for name in KNOWN)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("TORCH_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def known(monkeypatch):
    """A small file under a known name, from nowhere."""
    entry = replace(
        KNOWN["vgg16"],
        file="tiny-0123.pth",
        url="http://127.0.0.1:9/tiny-0123.pth",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        size=len(CONTENT),
    )
    monkeypatch.setattr(weights, "KNOWN", {**KNOWN, "tiny": entry})
    return entry


def put(path, content=CONTENT):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_every_known_file_is_described_whole():
    for name, entry in KNOWN.items():
        assert name.isidentifier(), name
        assert entry.url.startswith("https://")
        assert len(bytes.fromhex(entry.sha256)) == 32
        assert entry.size > 1000
        assert all((entry.licence, entry.purpose, entry.otherwise))
        stem, _, digits = Path(entry.file).stem.rpartition("-")
        if stem:  # torchvision's names end with the first digits of their SHA-256
            assert entry.sha256.startswith(digits)
            assert len(digits) == 8
    assert len({entry.file for entry in KNOWN.values()}) == len(KNOWN)


@pytest.mark.skipif(not DOCS.exists(), reason="a source package has no docs")
def test_the_page_lists_every_known_file():
    text = DOCS.read_text("utf-8")
    for name, entry in KNOWN.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
        for fact in (entry.file, entry.url, entry.sha256, f"{entry.size:,}", entry.licence):
            assert fact in row, f"{name}: {fact}"


@WITH_HEADS
@pytest.mark.parametrize("name", ["lpips_vgg", "lpips_alex"])
def test_files_in_a_wheel_are_the_published_ones(name):
    path = find_weights(name)
    assert path.stat().st_size == KNOWN[name].size
    assert sha256_of(path) == KNOWN[name].sha256


@WITH_HEADS
def test_the_wheel_is_not_imported():
    script = (
        "import sys, vqkit.weights as w; w.find_weights('lpips_vgg')\n"
        "assert not {'torchmetrics', 'torch'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_places_are_tried_in_the_stated_order(known, home, tmp_path, monkeypatch):
    # From the last place to the first: each new file is found before those that are there.
    torch_cache = put(home / ".cache/torch/hub/checkpoints" / known.file)
    assert find_weights("tiny") == torch_cache
    cache = put(home / ".cache/vqkit/weights" / known.file)
    assert find_weights("tiny") == cache
    assert cache.parent == cache_folder()
    folder = put(tmp_path / "folder" / known.file)
    monkeypatch.setenv("VQKIT_WEIGHTS", str(folder.parent))
    assert find_weights("tiny") == folder
    file = put(tmp_path / "single")
    monkeypatch.setenv("VQKIT_WEIGHTS_TINY", str(file))
    assert find_weights("tiny") == file
    explicit = put(tmp_path / "explicit.bin")
    assert find_weights("tiny", explicit) == find_weights("tiny", str(explicit)) == explicit


def test_caches_can_lie_elsewhere_and_hold_safetensors(known, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    of_torch = put(tmp_path / "torch/hub/checkpoints" / known.file)
    assert find_weights("tiny") == of_torch
    other = put(tmp_path / "xdg/vqkit/weights/tiny-0123.safetensors", b"of any size")
    assert find_weights("tiny") == other


def test_a_missing_file_is_explained(known, home):
    with pytest.raises(ValueError) as error:
        find_weights("tiny")
    text = str(error.value)
    facts = [known.file, known.purpose, known.url, known.sha256, known.licence, known.otherwise]
    facts += ["VQKIT_WEIGHTS=", "VQKIT_WEIGHTS_TINY=", "find_weights('tiny', download=True)"]
    facts += [str(home / ".cache/vqkit/weights"), "objective.perceptual='none'"]
    for fact in facts:
        assert fact in text, fact
    assert not home.exists(), "nothing is written"


def test_a_path_that_names_nothing_is_an_error_and_not_passed_over(known, home, monkeypatch):
    put(home / ".cache/vqkit/weights" / known.file)
    with pytest.raises(ValueError, match=r"weights of tiny=/nowhere/x\.pth: is no file; get it"):
        find_weights("tiny", "/nowhere/x.pth")
    monkeypatch.setenv("VQKIT_WEIGHTS_TINY", str(home))
    with pytest.raises(ValueError, match=r"VQKIT_WEIGHTS_TINY=.*home: is no file; get it"):
        find_weights("tiny")
    monkeypatch.delenv("VQKIT_WEIGHTS_TINY")
    monkeypatch.setenv("VQKIT_WEIGHTS", "/nowhere")
    with pytest.raises(ValueError, match="VQKIT_WEIGHTS=/nowhere: is no folder"):
        find_weights("tiny")


def test_a_torn_or_unknown_file_is_refused(known, home):
    path = put(home / ".cache/vqkit/weights" / known.file, CONTENT[:-1])
    with pytest.raises(ValueError, match=r"has 19,999 bytes, not 20,000: it is torn") as error:
        find_weights("tiny", download=True)
    assert str(path) in str(error.value)
    with pytest.raises(ValueError, match="weights='vgg19': expected one of vgg16, alexnet"):
        find_weights("vgg19")


@pytest.fixture
def server(tmp_path):
    """A server of files on this machine; yields its address and its folder."""
    (tmp_path / "served").mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path / "served"))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", tmp_path / "served"
        running.shutdown()


def serve(monkeypatch, entry, address):
    entry = replace(entry, url=f"{address}/{entry.file}")
    monkeypatch.setattr(weights, "KNOWN", {**KNOWN, "tiny": entry})


def test_a_download_is_checked_kept_and_made_once(known, server, monkeypatch):
    address, folder = server
    served = put(folder / known.file)
    serve(monkeypatch, known, address)
    path = find_weights("tiny", download=True)
    assert path == cache_folder() / known.file
    assert path.read_bytes() == CONTENT
    assert sha256_of(path) == known.sha256
    served.unlink()
    assert find_weights("tiny", download=True) == find_weights("tiny") == path
    assert list(cache_folder().iterdir()) == [path]


def test_a_download_that_is_another_file_or_none_leaves_nothing(known, server, monkeypatch):
    address, folder = server
    put(folder / known.file, CONTENT[:-1] + b"!")
    serve(monkeypatch, known, address)
    with pytest.raises(ValueError, match=r"sent a file with SHA-256 .* nothing is kept"):
        find_weights("tiny", download=True)
    (folder / known.file).unlink()
    with pytest.raises(ValueError, match=r"tiny-0123\.pth: cannot be fetched into .*404"):
        find_weights("tiny", download=True)
    serve(monkeypatch, known, "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="cannot be fetched into"):
        find_weights("tiny", download=True)
    assert not list(cache_folder().iterdir())


def test_a_download_into_a_place_that_cannot_be_written(known, server, home, monkeypatch):
    address, folder = server
    put(folder / known.file)
    serve(monkeypatch, known, address)
    put(home, b"a file where the home should be")
    with pytest.raises(ValueError, match="cannot be fetched into"):
        find_weights("tiny", download=True)


TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2])}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pth_files_of_both_formats_are_read(tmp_path, zipped):
    parameters = {**TENSORS, "c": torch.nn.Parameter(torch.ones(2))}
    torch.save(parameters, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    found = read_weights(tmp_path / "x.pth")
    assert found.keys() == parameters.keys()
    assert all(torch.equal(found[name], parameters[name]) for name in found)
    assert not any(tensor.requires_grad for tensor in found.values())


def test_safetensors_are_read(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors")
    found = read_weights(tmp_path / "x.safetensors")
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS | found)


class Foreign:
    """A pickle that writes a file when it is opened by pickle itself."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_runs_nothing(tmp_path):
    trace = tmp_path / "trace"
    torch.save({"a": Foreign(trace)}, tmp_path / "x.pth")
    (tmp_path / "y.pth").write_bytes(pickle.dumps({"a": Foreign(trace)}))
    for name in ("x.pth", "y.pth"):
        with pytest.raises(ValueError, match=rf"{name}: cannot be read as tensors"):
            read_weights(tmp_path / name)
    assert not trace.exists()


def test_what_holds_no_tensors_by_name_is_refused(tmp_path):
    for content in (torch.ones(2), {"a": 1}, {"state_dict": {"a": torch.ones(1)}}):
        torch.save(content, tmp_path / "x.pth")
        with pytest.raises(ValueError, match="something else than tensors by name"):
            read_weights(tmp_path / "x.pth")
    with pytest.raises(ValueError, match="cannot be read as tensors"):
        read_weights(tmp_path / "missing.pth")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damaged_files_are_a_value_error_or_tensors(tmp_path, kind):
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pth")
    if kind == "safetensors":
        save_file(TENSORS, path)
    else:
        torch.save(TENSORS, path, _use_new_zipfile_serialization=kind == "zip")
    whole, source = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(100):
        path.write_bytes(damaged(whole, source))
        try:
            read_weights(path)
        except ValueError:  # any other error is a failure
            refused += 1
    assert refused > 50
