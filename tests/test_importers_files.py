"""Files of `torch.save` are read without running what they hold, and damage is a `ValueError`."""

import argparse
import collections
import io
import os
import pathlib
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from damage import damaged
from foreign_models import Taming
from safetensors.torch import save_file

from vqkit.models.importers import import_tokenizer
from vqkit.models.importers.pickles import Inert, read_pickle
from vqkit.models.importers.sources import check_sizes, find_state, open_source, read_tensors

SAMPLE, CAMPAIGN = 100, 20_000
COUNTS = [pytest.param(SAMPLE), pytest.param(CAMPAIGN, marks=pytest.mark.soak)]
FORMATS = {"zip": True, "legacy": False}


class Callback(collections.OrderedDict):
    """As of Lightning: an object of a class that other machines do not have."""

    def __init__(self):
        super().__init__(best=torch.ones(2))
        self.monitor, self.parent = "val/rec_loss", self


class Attack:
    """Runs whatever it is given as soon as it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


FOREIGN = {
    "callbacks": {Callback: Callback(), "last": Callback()},
    "args": argparse.Namespace(path=pathlib.PurePosixPath("a"), scores=[np.float32(1), np.ones(3)]),
    "optimizer_states": [{"state": {0: {"step": 1, "exp_avg": torch.zeros(3)}}, "set": {1, 2}}],
    "frozen": frozenset("ab"),
    "counts": collections.Counter("ab"),
    "epoch": 3,
    "none": (None, True, False, 2.5, -1, 2**70, b"bytes", bytearray(b"more"), "é", 1 + 2j),
}


def write(path, content, file_format="zip", protocol=2):
    torch.save(
        content, path, _use_new_zipfile_serialization=FORMATS[file_format], pickle_protocol=protocol
    )
    return path


def tensors_of(path):
    """Read all tensors of the state dict of a file."""
    source = open_source(path)
    tensors = find_state(source).tensors
    check_sizes(source, tensors)
    return read_tensors(source, tensors)


def state_of_many_kinds():
    whole = torch.arange(24.0).view(2, 3, 4)
    return {
        "packed": whole,
        "transposed": whole.transpose(0, 2),
        "part": whole[1, 1:, ::2],
        "channels last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "scalar": torch.tensor(3.0),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "half": torch.randn(3).half(),
        "bfloat16": torch.randn(3).bfloat16(),
        "double": torch.randn(3).double(),
        "ids": torch.tensor([[1, -2, 2**40]]),
        "bytes": torch.tensor([0, 255], dtype=torch.uint8),
        "bools": torch.tensor([True, False]),
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("file_format", FORMATS)
def test_tensors_are_those_that_were_saved(file_format, protocol, tmp_path):
    state = state_of_many_kinds()
    content = {"state_dict": state, **FOREIGN}
    found = tensors_of(write(tmp_path / "a.pt", content, file_format, protocol))
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
        assert found[name].is_contiguous()


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_protocol(protocol):
    content = {
        "a": [1, {"b": (2, "c")}],
        "d": FOREIGN["none"][:8],
        "e": collections.OrderedDict(f=1),
    }
    found, storages = read_pickle(io.BytesIO(pickle.dumps(content, protocol)))
    assert storages == {}
    assert found["a"] == [1, {"b": (2, "c")}]
    assert found["d"][:6] == content["d"][:6]
    assert found["e"] == {"f": 1}


def test_foreign_objects_become_placeholders(tmp_path):
    content = open_source(write(tmp_path / "a.ckpt", {"state_dict": {}, **FOREIGN})).content
    assert content["args"] == Inert("argparse.Namespace")
    assert content["callbacks"] == {"last": Inert(f"{__name__}.Callback")}
    assert content["counts"] == Inert("collections.Counter")
    assert content["epoch"] == 3
    assert content["optimizer_states"][0].keys() == {"state", "set"}


@pytest.mark.parametrize("file_format", FORMATS)
def test_code_in_a_file_does_not_run(file_format, tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    attacks = {
        "system": Attack(os.system, f"touch {made}/system"),
        "eval": Attack(eval, f"open('{made}/eval', 'w')"),
        "open": Attack(open, f"{made}/open", "w"),
        "mkdir": Attack(os.mkdir, f"{made}/mkdir"),
    }
    model = Taming()
    content = {"hooks": attacks, "state_dict": {**model.state_dict(), **attacks}}
    path = write(tmp_path / "a.ckpt", content, file_format)
    tokenizer = import_tokenizer(path)
    assert torch.equal(tokenizer.decoder.conv_out.bias, model.decoder.conv_out.bias)
    assert not list(made.iterdir())
    torch.load(path, weights_only=False)  # the attacks are real ones
    assert len(list(made.iterdir())) == len(attacks)


def records(path):
    """The records of a zip file, by name."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_records(path, content, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, record in content.items():
            archive.writestr(name, record)
    return path


SMALL = {"state_dict": {"a": torch.arange(6.0), "b": torch.ones(2, 3)}, "args": FOREIGN["args"]}


def saved(kind, path):
    """Write a small file and return its bytes."""
    if kind == "safetensors":
        save_file(SMALL["state_dict"], path)
    else:
        write(path, SMALL, kind)
    return path.read_bytes()


@pytest.mark.parametrize("kind", [*FORMATS, "safetensors"])
def test_truncated_files(kind, tmp_path):
    path = tmp_path / "a.ckpt"
    content = saved(kind, path)
    for length in range(0, len(content), max(1, len(content) // 60)):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError) as error:
            tensors_of(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", [*FORMATS, "safetensors"])
def test_damaged_files(kind, count, tmp_path):
    path, source = tmp_path / "a.ckpt", np.random.default_rng(5)
    content = saved(kind, path)
    reasons = []
    for _ in range(count):
        path.write_bytes(damaged(content, source))
        try:
            tensors_of(path)
        except ValueError as error:
            reasons.append(str(error))
    assert len(reasons) > count // 20
    assert all("\n" not in reason for reason in reasons)


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_pickles_with_right_checksums(count, tmp_path):
    path, source = tmp_path / "a.ckpt", np.random.default_rng(6)
    saved("zip", path)
    content = records(path)
    name = next(name for name in content if name.endswith("data.pkl"))
    failed = 0
    for _ in range(count):
        write_records(path, {**content, name: damaged(content[name], source)})
        try:
            tensors_of(path)
        except ValueError:
            failed += 1
    assert failed > count // 4


@pytest.mark.parametrize("count", [pytest.param(12), pytest.param(300, marks=pytest.mark.soak)])
def test_damaged_checkpoints_of_a_model(count, tmp_path):
    path, source = tmp_path / "a.ckpt", np.random.default_rng(7)
    write(path, {"state_dict": Taming().state_dict()})
    content = records(path)
    name = next(name for name in content if name.endswith("data.pkl"))
    reasons = []
    for _ in range(count):
        write_records(path, {**content, name: damaged(content[name], source)})
        try:
            import_tokenizer(path)
        except ValueError as error:
            reasons.append(str(error))
    assert reasons
    assert all(str(path) in reason and "\n" not in reason for reason in reasons)


def tensor(shape, stride=None, offset=0, numel=4, key="0", kind="FloatStorage", more=()):
    """A pickle that describes one tensor, as torch.save writes it, but of any sizes.

    `more` are further references to storages.
    """

    class Saved(pickle.Pickler):
        def persistent_id(self, value):
            return value if isinstance(value, tuple) and value[:1] == ("storage",) else None

    class Rebuilt:
        def __reduce__(self):
            storage = ("storage", getattr(torch, kind), key, "cpu", numel)
            strides = (1,) * len(shape) if stride is None else stride
            arguments = (storage, offset, shape, strides, False, collections.OrderedDict())
            return torch._utils._rebuild_tensor_v2, arguments

    stream = io.BytesIO()
    Saved(stream, 2).dump({"state_dict": {"a": Rebuilt()}, "more": more})
    return stream.getvalue()


@pytest.mark.parametrize(
    ("pickled", "reason"),
    [
        pytest.param(tensor((10**6, 10**6), (0, 0)), "outside of its storage", id="repeated"),
        pytest.param(tensor((4,), (1,), offset=1), "outside of its storage", id="behind the end"),
        pytest.param(tensor((2,), (10**30,)), "outside of its storage", id="far away"),
        pytest.param(tensor((0,), (1,)), "outside of its storage", id="nothing"),
        pytest.param(tensor((-1,), (1,)), "without a proper shape", id="negative"),
        pytest.param(tensor((1,) * 30), "without a proper shape", id="dimensions"),
        pytest.param(tensor((2,), (1, 1)), "without a proper shape", id="strides"),
        pytest.param(tensor((4,), (1,), numel=2**40), "is not whole", id="promised"),
        pytest.param(tensor((4,), (1,), key="../version"), "damaged", id="another record"),
        pytest.param(tensor((4,), (1,), kind="ComplexFloatStorage"), "of the kind", id="complex"),
        pytest.param(
            tensor((4,), more=[("storage", torch.FloatStorage, "0", "cpu", 9)]),
            "a storage has two sizes",
            id="two sizes",
        ),
        pytest.param(b"\x80\x02]" + b"0" * 9 + b".", "damaged or foreign", id="empty stack"),
        pytest.param(b"\x80\x02]r\xff\xff\xff\xff.", "of the memo", id="memo"),
        pytest.param(b"\x80\x02\x8e" + b"\xff" * 7 + b"\x0f.", "damaged", id="long bytes"),
        pytest.param(b"\x80\x02" + b"(" * 10**5 + b"t" * 10**5 + b".", "no dict", id="nested"),
        pytest.param(b"\x80\x02K\x01" + b"\x85" * 10**5 + b"K\x01s.", "damaged", id="deep keys"),
        pytest.param(b"\x80\x02\x82\x01.", "EXT1 has no place", id="extension"),
        pytest.param(
            b"\x80\x02]q\x00("
            + b"X\x01\0\0\0aK\x01\x86" * 1000
            + b"e"
            + b"ccollections\nOrderedDict\nh\x00\x85R" * 1000
            + b".",
            "copies more than it holds",
            id="one list again and again",
        ),
    ],
)
def test_pickles_that_promise_what_is_not_there(pickled, reason, tmp_path):
    path = write_records(tmp_path / "a.pt", {"a/data.pkl": pickled, "a/data/0": bytes(16)})
    with pytest.raises(ValueError, match=reason):
        tensors_of(path)


@pytest.mark.slow
def test_deep_tuples_are_no_keys():
    # hash() of a deeply nested tuple would overflow the stack of the interpreter
    deep = b"K\x01" + b"\x85" * 3 * 10**5
    found, _ = read_pickle(io.BytesIO(b"\x80\x02}" + deep + b"K\x01sX\x01\0\0\0aK\x02s."))
    assert found == {"a": 2}


def test_tensors_that_overlap_are_not_multiplied(tmp_path):
    whole = torch.ones(1000)
    path = write(tmp_path / "a.pt", {f"part{i}": whole[: 990 + i] for i in range(8)})
    source = open_source(path)
    with pytest.raises(ValueError, match="overlap: they have"):
        check_sizes(source, find_state(source).tensors)


def test_models_are_not_built_before_their_tensors_are_seen(tmp_path):
    """Names and shapes of a network of terabytes, over a storage of a few bytes."""
    shapes = {name: tensor.shape for name, tensor in Taming().state_dict().items()}
    state = {
        name: torch.zeros(()).expand([side * 2**12 if side > 3 else side for side in shape])
        for name, shape in shapes.items()
    }
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"conv_in.weight: lies outside of its storage"):
        import_tokenizer(tmp_path / "a.pt")


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_compressed_records_are_refused(compression, tmp_path):
    saved("zip", tmp_path / "a.pt")
    write_records(tmp_path / "b.pt", records(tmp_path / "a.pt"), compression)
    with pytest.raises(ValueError, match="compressed record"):
        tensors_of(tmp_path / "b.pt")


@pytest.mark.parametrize("file_format", FORMATS)
def test_pickles_of_more_than_the_limit_are_refused(file_format, tmp_path, monkeypatch):
    monkeypatch.setattr("vqkit.models.importers.torch_files.MOST_BYTES", 1000)
    write(tmp_path / "a.pt", {**SMALL, "long": list(range(1000))}, file_format)
    with pytest.raises(ValueError, match=r"more than 1,000|damaged or foreign pickle"):
        tensors_of(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<!DOCTYPE html><html>Sign in to download", "begins with b'<!DOCTYPE html><'"),
        (b"", "begins with b''"),
        (pickle.dumps({"a": 1}), "is no file that torch.save or safetensors wrote"),
        (b"PK\x03\x04" + bytes(100), "damaged zip archive"),
    ],
)
def test_other_files(content, reason, tmp_path):
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=reason) as error:
        open_source(tmp_path / "a.ckpt")
    assert str(error.value).startswith(str(tmp_path / "a.ckpt"))


@pytest.mark.parametrize("keys", [[1], "ab", ["1"], [], None])
def test_legacy_files_with_wrong_lists_of_storages(keys, tmp_path):
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    head = b"".join(pickle.dumps(part, 2) for part in parts) + tensor((4,))
    path = tmp_path / "a.pt"
    path.write_bytes(head + pickle.dumps(["0"], 2) + struct.pack("<q4f", 4, 1, 2, 3, 4))
    assert tensors_of(path)["a"].tolist() == [1, 2, 3, 4]
    path.write_bytes(head + pickle.dumps(keys, 2) + struct.pack("<q4f", 4, 1, 2, 3, 4))
    with pytest.raises(ValueError, match="does not list its storages"):
        tensors_of(path)


def test_zip_files_of_other_things(tmp_path):
    write_records(tmp_path / "a.zip", {"photos/1.txt": b"x"})
    with pytest.raises(ValueError, match="zip archive with 0 records"):
        open_source(tmp_path / "a.zip")


def test_big_endian_files_are_refused(tmp_path):
    saved("zip", tmp_path / "a.pt")
    content = records(tmp_path / "a.pt")
    name = next(name for name in content if name.endswith("byteorder"))
    write_records(tmp_path / "a.pt", {**content, name: b"big"})
    with pytest.raises(ValueError, match="big-endian"):
        open_source(tmp_path / "a.pt")


@pytest.mark.parametrize("content", [3, [torch.ones(2)], {"a": 1}, argparse.Namespace(b=2)])
def test_files_without_a_state_dict(content, tmp_path):
    write(tmp_path / "a.pt", content)
    with pytest.raises(ValueError, match="holds no"):
        find_state(open_source(tmp_path / "a.pt"))


def test_one_of_several_state_dicts_is_named(tmp_path):
    path = write(tmp_path / "a.pt", {"net": SMALL["state_dict"], "other": SMALL["state_dict"]})
    with pytest.raises(ValueError, match="has tensors in net, other; name one as `weights`"):
        find_state(open_source(path))
    assert find_state(open_source(path), "other").entry == "other"
