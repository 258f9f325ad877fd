"""The rules of the house: who imports whom, how long a file may be, what an import may cost."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vqkit

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "vqkit"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# A room imports only from rooms above it.
ROOMS = (
    "config",
    "weights",
    "search",
    "clustering",
    "quantizers",
    "data",
    "metrics",
    "models",
    "training",
    "codebooks",
    "tokens",
    "analysis",
    "evaluation",
    "report",
    "generation",
    "classification",
    "recipes",
    "ledger",
    "cli",
)
MAX_FILE_LINES = 300
# The literature stands in one file so that methods can be read side by side.
LONGER = {"src/vqkit/quantizers/presets.py": 470}
MAX_FUNCTION_LINES = 50
HEAVY = {
    "accelerate",
    "constriction",
    "datasets",
    "diffusers",
    "faiss",
    "lmdb",
    "matplotlib",
    "pyarrow",
    "ray",
    "skimage",
    "sklearn",
    "tensorboard",
    "torchmetrics",
    "torchvision",
    "transformers",
}


def room_of(path):
    """`src/vqkit/search/faiss.py` stands in the room `search`, `src/vqkit/cli.py` in `cli`."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def package_of(path):
    """The dotted name that a relative import in `path` starts from."""
    return ".".join(("vqkit", *path.relative_to(PACKAGE).parent.parts))


def imported_rooms(source, package):
    """Yield (line, room) for every import of vqkit in a source text, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(base, package) if node.level else base
            targets = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            parts = target.split(".")
            if parts[0] == "vqkit" and len(parts) > 1:
                yield node.lineno, parts[1]


def functions(source):
    """Yield (name, line, number of lines without the docstring) of every function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node, clean=False) is not None:
                docstring = node.body[0]
                lines -= docstring.end_lineno - docstring.lineno + 1
            yield node.name, node.lineno, lines


def shown(path):
    """A path as an offender is listed."""
    return path.relative_to(ROOT).as_posix()


def test_the_tests_run_this_tree():
    assert Path(vqkit.__file__).resolve().parent == PACKAGE, "another vqkit is installed"


def test_every_room_is_known():
    rooms = {room_of(path) for path in SOURCES} - {"__init__", "__main__"}
    assert rooms <= set(ROOMS), f"give {sorted(rooms - set(ROOMS))} a place in ROOMS"


def test_rooms_import_only_rooms_above_them():
    offenders = []
    for path in SOURCES:
        room = room_of(path)
        if room == "__main__":
            continue
        # The package itself holds nothing but its version, so that importing it costs nothing.
        above = ROOMS[: ROOMS.index(room) + 1] if room in ROOMS else ()
        for line, other in imported_rooms(path.read_text("utf-8"), package_of(path)):
            if other in ROOMS and other not in above:
                offenders.append(f"{shown(path)}:{line} imports {other}")
    assert not offenders, "\n".join(offenders)


@pytest.mark.parametrize(
    ("source", "room"),
    [
        ("import vqkit.models.tokenizer", "models"),
        ("from vqkit import models", "models"),
        ("from vqkit.models import ImageTokenizer", "models"),
        ("from ..models import ImageTokenizer", "models"),
        ("from .. import models", "models"),
        ("def lazy():\n    from vqkit.models import ImageTokenizer", "models"),
        ("from .exact import nearest", "search"),
    ],
)
def test_every_form_of_import_is_seen(source, room):
    assert [found for _, found in imported_rooms(source, "vqkit.search")] == [room]


def test_files_are_short():
    lengths = {shown(path): len(path.read_text("utf-8").splitlines()) for path in SOURCES}
    offenders = [
        f"{name}: {n} lines" for name, n in lengths.items() if n > LONGER.get(name, MAX_FILE_LINES)
    ]
    assert not offenders, "\n".join(offenders)


def test_functions_are_short():
    offenders = [
        f"{shown(path)}:{line} {name}: {lines} lines"
        for path in SOURCES
        for name, line, lines in functions(path.read_text("utf-8"))
        if lines > MAX_FUNCTION_LINES
    ]
    assert not offenders, "\n".join(offenders)


def test_names_say_what_a_module_holds():
    vague = {"utils", "util", "misc", "helpers", "common", "legacy"}
    names = [path.relative_to(PACKAGE).with_suffix("").parts for path in SOURCES]
    parts = {part for name in names for part in name if not part.startswith("__")}
    assert not parts & vague
    assert not parts & sys.stdlib_module_names, "named like a module of the standard library"


def test_only_the_command_line_prints():
    offenders = [
        f"{shown(path)}:{node.lineno}"
        for path in SOURCES
        if room_of(path) != "cli"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert not offenders, "\n".join(offenders)


def test_no_path_of_one_machine():
    pattern = re.compile(r"(?<![\w./:<>-])/(?:work|root|home|Users|opt|mnt)/\w")
    texts = [path for suffix in ("py", "md", "yaml", "toml") for path in find(suffix)]
    texts += [ROOT / "Makefile", ROOT / "constraints.txt", *sorted((ROOT / ".ci").iterdir())]
    offenders = [
        f"{shown(path)}:{number} {line.strip()}"
        for path in texts
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not offenders, "\n".join(offenders)


def find(suffix):
    """The repository's own files of one kind."""
    own = ("src", "tests", "benchmarks", "docs")
    yield from ROOT.glob(f"*.{suffix}")
    for folder in own:
        yield from sorted((ROOT / folder).rglob(f"*.{suffix}"))


def modules_after(statement):
    """Top-level modules that a fresh Python has loaded after `statement`."""
    script = f"{statement}\nimport sys\nprint(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return set(result.stdout.split())


def import_of(module):
    """`import module`, or a skip where the module is not written yet."""
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} does not exist yet")
    return f"import {module}"


@pytest.mark.parametrize("module", ["vqkit", "vqkit.config", "vqkit.recipes", "vqkit.cli"])
def test_light_modules_import_no_torch(module):
    heavy = modules_after(import_of(module)) & ({"torch", "numpy"} | HEAVY)
    assert not heavy


@pytest.mark.slow
def test_quantizers_import_nothing_optional():
    loaded = modules_after(import_of("vqkit.quantizers"))
    assert "torch" in loaded, "the probe must see what an import loads"
    heavy = loaded & HEAVY
    assert not heavy


@pytest.mark.slow
@pytest.mark.parametrize("module", ["quantizers", "models", "tokens"])
def test_the_compiler_is_not_imported(module):
    """It takes as long as torch itself."""
    script = f"import sys, vqkit.{module}\nprint('torch._dynamo' in sys.modules)"
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.strip() == "False"
