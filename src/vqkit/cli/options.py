"""Options of a command, typed by the configuration's own fields and by functions' signatures.

Built on jsonargparse, with plain values only: no option and no file can name a class to import.
Options that are not given stay absent, so that the result is just what to change. Names
(recipes, folders) come before options.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import re
import sys
import textwrap
from argparse import SUPPRESS
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from vqkit.config.core import dataclasses_in, default_of

Values = dict[str, Any]
_SYNONYMS: Final = {"learning_rate": "lr"}
"""Names by which others know an option, which look unlike ours."""


class Options:
    """The options of one command: declare them with `add...`, then `parse`."""

    def __init__(self, usage: str, description: str | None) -> None:
        """`usage` is the command with its names, such as "train RECIPE"."""
        self._parser = ArgumentParser(
            prog=f"vqkit {usage.split()[0]}",
            usage=f"vqkit {usage} [--option value ...]",
            description=inspect.cleandoc(description or ""),
            exit_on_error=False,
        )
        self._hints: dict[str, Any] = {}
        self._flags: set[str] = set()

    def add(self, name: str, hint: Any, help: str, count: int | Literal["+"] | None = None) -> None:
        """Add `--name value` of a type, or with `count` values, "+" for one or more."""
        if name not in self._hints:
            self._hints[name] = hint
            text = help.replace("%", "%%")
            self._parser.add_argument(
                f"--{name}", type=hint, nargs=count, default=SUPPRESS, help=text
            )

    def add_flag(self, name: str, help: str) -> None:
        """Add `--name`, False unless given."""
        self._hints[name] = bool
        self._flags.add(name)
        self._parser.add_argument(f"--{name}", action="store_true", help=help)

    def add_fields(
        self,
        cls: type[Any],
        prefix: str = "",
        base: Values | None = None,
        skip: Iterable[str] = (),
    ) -> None:
        """Add `--prefix.field` for all fields of a dataclass, nested ones included.

        `base` holds present values, for the help; fields named in `skip` are left out.
        """
        hints, notes = get_type_hints(cls), _field_notes(cls)
        for item in (one for one in fields(cls) if one.name not in skip):
            name, hint = f"{prefix}{item.name}", hints[item.name]
            value = (base or {}).get(item.name)
            inner = dataclasses_in(hint)
            if len(inner) > 1:
                kinds: Any = Literal[tuple(default_of(kind, "kind") for kind in inner)]
                self.add(f"{name}.kind", kinds, "which of these; each has settings of its own")
            for kind in inner:  # of a union, the settings of every kind
                self.add_fields(kind, f"{name}.", value)
            if not inner:
                now = f" (now: {value!r})" if base else ""
                self.add(name, hint, notes.get(item.name, "") + now)

    def add_parameters(
        self, function: Callable[..., Any], shown: Values | None = None, skip: Iterable[str] = ()
    ) -> list[str]:
        """Add an option for every parameter of a function and return their names.

        A `**options: Unpack[SomeTypedDict]` gives the dictionary's keys. `shown` are values that
        hold where the signature has no default.
        """
        hints = get_type_hints(function)
        names = []
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                keys = get_args(hints[name])[0]
                for key, hint in get_type_hints(keys).items():
                    self.add(key, hint, _field_notes(keys).get(key, ""))
                    names.append(key)
            elif name not in skip:
                default = (shown or {}).get(name, parameter.default)
                given = "" if default is parameter.empty else f"default {default!r}"
                self.add(name, hints[name], given)
                names.append(name)
        return names

    def parse(self, words: Sequence[str]) -> Values:
        """Return what was given, nested by the dots; bad input is a `ValueError` of one line."""
        # Not left to jsonargparse, which has plans of its own for --print_config.
        flags = {name: f"--{name}" in words for name in self._flags}
        words = [
            word
            for word in words
            if word.removeprefix("--") not in self._flags or not word.startswith("--")
        ]
        for word in words:
            key = word[2:].partition("=")[0]
            if word.startswith("--") and key and key != "help":
                self._check_known(key, "--")
        try:
            return {**self._parser.parse_args(words).as_dict(), **flags}
        except ArgumentError as error:
            raise self._explain(error) from error

    def read(self, path: str | Path) -> Values:
        """Return the settings in a YAML or JSON file, which may hold what `parse` takes."""
        file = Path(path).expanduser()
        if not file.is_file():
            raise ValueError(f"config={path}: no such file; name a YAML or JSON file of settings")
        text = file.read_text(encoding="utf-8")
        try:
            values: Values = self._parser.parse_string(text).as_dict()
        except ArgumentError as error:
            raise ValueError(f"{path}: {self._explain(error)}") from error
        self._check_sections(values, f"{path}: ")
        return {key: value for key, value in values.items() if key not in self._flags}

    def _check_sections(self, values: Values, where: str) -> None:
        """Refuse a plain value where settings belong, such as `optim: 3`."""
        for key, value in values.items():
            section = any(name.startswith(f"{key}.") for name in self._hints)
            if section and value is not None and not isinstance(value, dict):
                raise ValueError(f"{where}{key}={value!r}: holds settings of its own; give those")

    def _check_known(self, key: str, prefix: str = "") -> None:
        known = key in self._hints or any(
            key.startswith(f"{name}.")
            for name, hint in self._hints.items()
            if get_origin(hint) is dict
        )
        if not known:
            section, dot, last = key.rpartition(".")
            ours = f".{section}{dot}{_SYNONYMS.get(last, last)}"
            near = [name for name in self._hints if f".{name}".endswith(ours)]
            near += difflib.get_close_matches(key, self._hints, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else "--help lists what there is"
            raise ValueError(f"{prefix}{key}: unknown option; {hint}")

    def _explain(self, error: ArgumentError) -> ValueError:
        """Turn a message of the parser into one line in the form of the house."""
        text = " ".join(str(error).split())
        quoted = [] if "parsing" in text else re.findall(r"[\"'](?:--)?(\w[\w.]*)[\"']", text)
        for key in quoted:
            try:
                self._check_known(key)
            except ValueError as unknown:
                return unknown
            if key in self._hints:
                value = re.search(r"(?:Got|Given) value: (.*)", text)
                shown = f"{key}={value[1]}" if value else key
                return ValueError(f"{shown}: expected {_named(self._hints[key])}")
        stray = re.fullmatch(r"[Uu]nrecognized arguments: (.*)", text)
        if stray:
            return ValueError(f"{stray[1]}: unexpected; names come first, then --option value")
        return ValueError(text.removeprefix("argument "))


def split_names(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the words of a command into the names in front and the options behind."""
    count = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    return list(words[:count]), list(words[count:])


def one_name(words: Sequence[str], what: str, help: str) -> tuple[str | None, list[str]]:
    """Split off at most one name; more are a `ValueError`."""
    names, rest = split_names(words)
    if len(names) > 1:
        raise ValueError(f"{' '.join(names)}: expected one {what}; {help}")
    return (names[0] if names else None), rest


def merged(base: Values, changes: Mapping[str, Any]) -> Values:
    """Copy `base` with `changes` laid over it, dict by dict.

    Another `quantizer.preset` starts with no arguments, another `network.kind` with no settings:
    those of the former are not its own.
    """
    result = dict(base)
    if changes.get("kind", base.get("kind")) != base.get("kind"):
        result = {}
    if changes.get("preset", base.get("preset")) != base.get("preset") and "args" in base:
        result["args"] = {}
    for key, value in changes.items():
        present = result.get(key)
        if isinstance(present, dict) and value is not None:
            result[key] = merged(present, value)
        else:
            result[key] = value
    return result


def _named(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(repr, get_args(hint)))}"
    if isinstance(hint, type) and not get_args(hint):
        return {"int": "a whole number", "float": "a number", "bool": "true or false"}.get(
            hint.__name__, hint.__name__
        )
    if get_args(hint):
        return str(hint).replace("typing.", "").replace("NoneType", "null").replace("None", "null")
    return str(hint)


def _field_notes(cls: type[Any]) -> dict[str, str]:
    """Read the docstrings below the fields of a class and of those it inherits from, by field."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    notes: dict[str, str] = {}
    for base in body.bases:  # by name: at run time a TypedDict does not know what it was made of
        named = base.id if isinstance(base, ast.Name) else ""
        parent = vars(sys.modules[cls.__module__]).get(named)
        if isinstance(parent, type) and parent.__module__.startswith("vqkit."):
            notes |= _field_notes(parent)
    for item, note in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(item, ast.AnnAssign)
            and isinstance(item.target, ast.Name)
            and isinstance(note, ast.Expr)
            and isinstance(note.value, ast.Constant)
        ):
            notes[item.target.id] = " ".join(str(note.value.value).split())
    return notes
