"""The wheel: what is inside, and what it asks for. `make check-wheel` installs it."""

import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import vqkit

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
BASE = {"torch", "numpy", "safetensors", "huggingface-hub", "pillow", "jsonargparse"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


@pytest.fixture(scope="module")
def metadata(wheel):
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def package_name(requirement):
    """`huggingface_hub>=0.30; extra == 'x'` asks for `huggingface-hub`."""
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def test_wheel_holds_the_package_and_no_tests(wheel):
    names = set(wheel.namelist())
    kinds = ("py", "json", "html", "css", "js")
    package = [path for kind in kinds for path in (ROOT / "src/vqkit").rglob(f"*.{kind}")]
    sources = {path.relative_to(ROOT / "src") for path in package}
    assert {path.as_posix() for path in sources} <= names
    assert "vqkit/py.typed" in names
    assert any(re.fullmatch(r"vqkit-.*\.dist-info/licenses/LICENSE", name) for name in names)
    tops = {name.split("/")[0] for name in names}
    assert tops == {"vqkit", f"vqkit-{vqkit.__version__}.dist-info"}


def test_metadata_states_version_python_and_licence(metadata):
    assert metadata["Version"] == vqkit.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"


def test_base_install_is_light(metadata):
    requirements = metadata.get_all("Requires-Dist")
    base = {package_name(r) for r in requirements if "extra ==" not in r}
    assert base == BASE
    assert "torch>=2.9" in requirements, "a lower bound alone: a pinned library is useless"


def test_torchvision_is_never_asked_for(metadata):
    assert "torchvision" not in {package_name(r) for r in metadata.get_all("Requires-Dist")}
    assert "torchvision" not in (ROOT / "constraints.txt").read_text("utf-8")


def test_every_requirement_is_pinned_for_the_tests():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        wanted += extra
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = {package_name(line) for line in lines if re.fullmatch(r"[\w.-]+==[\w.]+", line)}
    assert {package_name(r) for r in wanted} - {"vqkit"} <= pinned
