"""Pickles of checkpoints, read without running anything that they ask for.

A pickle is a program: it may import what it likes and call it. The machine here takes its steps
one by one (`pickletools` of the standard library only cuts the bytes into steps) and has no step
that imports or calls. Names of classes and functions stay names; of all calls only those that
describe tensors and dictionaries mean something. Every other one yields an inert placeholder, be
it a Lightning callback, a configuration of omegaconf or an attack.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, Final

import torch

from vqkit.models.importers.stored import Storage, StoredTensor

MOST_BYTES: Final = 1 << 24
"""Longest pickle that is read. Those of published checkpoints have less than a tenth of it; a
longer one could only fill the memory, with up to a hundred times its length."""

_DTYPES: Final = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function that a pickle names. It is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, slots=True)
class Inert:
    """What stands for an object that is nothing to us; it keeps nothing but a name."""

    kind: str


def read_pickle(stream: IO[bytes]) -> tuple[object, dict[str, Storage]]:
    """Read one pickle; return what it says and every storage that it refers to, by key.

    The stream is left behind its end. Dictionaries keep only what stands under text: a state dict
    has nothing else. Whatever is no whole pickle is a `ValueError`.
    """
    machine = _Machine()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in damaged text
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "STOP":
                    return machine.stack[-1], machine.storages
                machine.step(opcode.name, argument)
    except (ValueError, TypeError, LookupError, ArithmeticError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"holds a damaged or foreign pickle ({reason})") from error
    raise AssertionError("genops ends with STOP or an error")


class _Machine:
    """The stack of a pickle and the steps that change it."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.steps = 0
        self.copied = 0
        """Pairs that calls have made dictionaries of: every pair took a step to write."""

    def step(self, name: str, argument: Any) -> None:
        """Take one step."""
        self.steps += 1
        if name in _VALUES:
            self.stack.append(argument)
            return
        action = _STEPS.get(name)
        if action is None:
            raise ValueError(f"{name} has no place in a checkpoint")
        action(self, argument)

    def push(self, value: object) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def mark(self) -> None:
        """Set a mark: what follows belongs together."""
        self.outer.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        """Take everything above the last mark."""
        items, self.stack = self.stack, self.outer.pop()
        return items

    def forget(self, kind: str) -> None:
        """Put a placeholder in the place of everything above the last mark."""
        self.since_mark()
        self.push(Inert(kind[:100]))

    def last(self, count: int) -> list[Any]:
        """Take the topmost values."""
        if len(self.stack) < count:
            raise ValueError("too few values")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def drop(self) -> None:
        """Forget the top, which may be a mark."""
        if self.stack:
            self.stack.pop()
        else:
            self.since_mark()

    def remember(self, place: int | None) -> None:
        """Keep the top under a number."""
        if place is not None and not 0 <= place < MOST_BYTES:
            raise ValueError(f"place {place} of the memo")
        self.memo[len(self.memo) if place is None else place] = self.stack[-1]

    def append(self, items: list[Any]) -> None:
        """Add to the list at the top; placeholders swallow it."""
        if type(self.stack[-1]) is list:
            self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        """Add keys and values to the dictionary at the top; placeholders swallow them."""
        if type(self.stack[-1]) is dict:
            self.stack[-1].update(_dictionary(items))

    def call(self, name: object, arguments: object) -> None:
        """Put on the stack what a call would yield; nothing is called."""
        match arguments:
            case (list(pairs),):  # one list may be named again and again, and is copied every time
                self.copied += len(pairs)
                if self.copied > self.steps:
                    raise ValueError("it copies more than it holds")
        self.push(_made(name, arguments) if type(arguments) is tuple else Inert("an object"))

    def refer(self, what: object) -> None:
        """Put on the stack what a reference to something outside the pickle stands for."""
        if type(what) is not tuple or what[:1] != ("storage",):
            self.push(Inert("a reference"))
            return
        storage = _storage(what)
        if self.storages.setdefault(storage.key, storage).nbytes != storage.nbytes:
            raise ValueError("a storage has two sizes")
        self.push(storage)

    def name(self, module: object, name: object) -> None:
        """Put the name of a class or function on the stack."""
        if type(module) is not str or type(name) is not str:
            raise ValueError("a name is no text")
        self.push(Name(module, name))


def _dictionary(items: list[Any]) -> dict[str, Any]:
    """Pair up keys and values; only text may be a key."""
    pairs = zip(items[::2], items[1::2], strict=True)
    return {key: value for key, value in pairs if type(key) is str}


def _made(name: object, arguments: tuple[Any, ...]) -> object:
    """Return what a call yields, as far as it matters to us."""
    match (str(name) if isinstance(name, Name) else "an object", arguments):
        case "collections.OrderedDict", ():
            return {}
        case "collections.OrderedDict", (list(pairs),):  # as Python 2 wrote it
            return _dictionary([part for key, value in pairs for part in (key, value)])
        case "torch.Size", (tuple(sizes),):
            return sizes
        case (
            "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2",
            (Storage() as storage, offset, shape, stride, *_),
        ):
            return _tensor(storage, offset, shape, stride)
        case "torch._utils._rebuild_parameter", (StoredTensor() as tensor, *_):
            return tensor
        case kind, _:
            return Inert(kind[:100])


def _storage(reference: tuple[Any, ...]) -> Storage:
    """Read ("storage", type, key, device, length), to which the oldest files add a None."""
    match reference:
        case (_, Name(name=kind), str(key), _, int(numel), *rest) if rest in ([], [None]):
            if kind not in _DTYPES:
                raise ValueError(f"numbers of the kind {kind[:50]!r}")
            if numel < 0:
                raise ValueError(f"a storage of {numel} numbers")
            return Storage(key, _DTYPES[kind], numel)
    raise ValueError("a storage that torch.save does not write")


def _tensor(storage: Storage, offset: object, shape: object, stride: object) -> StoredTensor:
    """Check that these describe a tensor; whether it `fits` is asked where it is read."""
    match offset, shape, stride:
        case int(start), tuple(sizes), tuple(steps) if len(sizes) == len(steps):
            numbers = (start, *sizes, *steps)
            if len(sizes) <= 8 and all(type(n) is int and n >= 0 for n in numbers):
                return StoredTensor(storage, start, sizes, steps)
    raise ValueError("a tensor without a proper shape")


# Steps that put their argument on the stack.
_VALUES: Final = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BYTEARRAY8"),
    )
)

# All others, called with the machine and the argument of the step. Those that are left out belong
# to no checkpoint: registered extensions and buffers outside the file.
_STEPS: Final[dict[str, Callable[[_Machine, Any], object]]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda m, _: None),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "EMPTY_SET": lambda m, _: m.push(Inert("a set")),
    "MARK": lambda m, _: m.mark(),
    "POP": lambda m, _: m.drop(),
    "POP_MARK": lambda m, _: m.since_mark(),
    "DUP": lambda m, _: m.push(m.stack[-1]),
    **dict.fromkeys(("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"), lambda m, at: m.remember(at)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, at: m.push(m.memo[at])),
    "LIST": lambda m, _: m.push(m.since_mark()),
    "TUPLE": lambda m, _: m.push(tuple(m.since_mark())),
    "TUPLE1": lambda m, _: m.push(tuple(m.last(1))),
    "TUPLE2": lambda m, _: m.push(tuple(m.last(2))),
    "TUPLE3": lambda m, _: m.push(tuple(m.last(3))),
    "DICT": lambda m, _: m.push(_dictionary(m.since_mark())),
    "FROZENSET": lambda m, _: m.forget("a set"),
    "APPEND": lambda m, _: m.append(m.last(1)),
    "APPENDS": lambda m, _: m.append(m.since_mark()),
    "SETITEM": lambda m, _: m.set_items(m.last(2)),
    "SETITEMS": lambda m, _: m.set_items(m.since_mark()),
    "ADDITEMS": lambda m, _: m.since_mark(),
    "GLOBAL": lambda m, text: m.name(*text.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.name(*m.last(2)),
    "REDUCE": lambda m, _: m.call(*m.last(2)),
    "NEWOBJ": lambda m, _: m.call(*m.last(2)),
    "NEWOBJ_EX": lambda m, _: m.call(m.last(3)[0], None),
    "INST": lambda m, text: m.forget(text),
    "OBJ": lambda m, _: m.forget("an object"),
    "BUILD": lambda m, _: m.last(1),
    "PERSID": lambda m, _: m.push(Inert("a reference")),
    "BINPERSID": lambda m, _: m.refer(*m.last(1)),
}
