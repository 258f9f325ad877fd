"""Checks and conversions that all configurations share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from vqkit.config.run import RunConfig


def require(holds: bool, setting: str, problem: str) -> None:
    """Raise `ValueError("setting: problem")` unless `holds`; every configuration check uses it."""
    if not holds:
        raise ValueError(f"{setting}: {problem}")


def short(value: object) -> str:
    """Return a value as messages show it: its first 37 characters, if it is long."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def check_choice(setting: str, value: object, choices: Any) -> None:
    """Raise `ValueError` unless `value` is one of the `Literal` choices."""
    listed = ", ".join(map(repr, get_args(choices)))
    require(value in get_args(choices), f"{setting}={value!r}", f"expected one of {listed}")


def check_at_least(section: str, config: Any, names: Iterable[str], least: float) -> None:
    """Raise `ValueError` unless every named field of `config` is None or at least `least`."""
    for name in names:
        value = getattr(config, name)
        require(
            value is None or value >= least,
            f"{section}.{name}={value}",
            f"must be at least {least}",
        )


def to_dict(config: Any) -> dict[str, Any]:
    """Turn any configuration into plain JSON values."""
    return asdict(config)


def from_dict(cls: type[Any], values: dict[str, Any], where: str = "") -> Any:
    """Rebuild a configuration from `to_dict`.

    Raises:
        ValueError: an unknown or missing key, or a value of another kind than the field's.
    """
    name = where.removesuffix(".") or cls.__name__
    require(isinstance(values, dict), f"{name}={short(values)}", "expected an object")
    hints = get_type_hints(cls)
    known = {f.name for f in fields(cls)}
    unknown = sorted(set(values) - known)
    require(not unknown, f"{where}{', '.join(unknown)}", f"unknown key; known are {sorted(known)}")
    built = {name: _built(hints[name], value, f"{where}{name}") for name, value in values.items()}
    try:
        return cls(**built)
    except TypeError as error:
        raise ValueError(f"{where or cls.__name__}: {error}") from error


def _built(hint: Any, value: Any, name: str) -> Any:
    """Return a field's value from JSON: tuples for lists, configurations for objects."""
    if isinstance(value, dict):
        nested = dataclass_of(hint, value, f"{name}.")
        if nested is not None:
            return from_dict(nested, value, f"{name}.")
    elif isinstance(value, list | tuple):
        rows = next((one for one in _options(hint) if get_origin(one) is tuple), tuple[Any, ...])
        kinds = get_args(rows)
        same = kinds[-1] is Ellipsis
        value = tuple(
            _built(kinds[0] if same or n >= len(kinds) else kinds[n], item, f"{name}[{n}]")
            for n, item in enumerate(value)
        )
    require(_fits(value, hint), f"{name}={short(value)}", f"expected {_in_words(hint)}")
    return value


_WORDS: Final = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the kind that a type hint says."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in get_args(hint))
    if origin is tuple:
        kinds = get_args(hint)
        return isinstance(value, tuple) and (kinds[-1] is Ellipsis or len(value) == len(kinds))
    if hint in (int, float):
        wanted = int if hint is int else int | float
        return isinstance(value, wanted) and not isinstance(value, bool)
    if hint in (bool, str, NoneType) or is_dataclass(hint):
        return isinstance(value, hint)
    return origin not in (dict, Mapping) or isinstance(value, dict)


def _in_words(hint: Any) -> str:
    words = []
    for one in _options(hint):
        kinds = get_args(one)
        if one is NoneType:
            words.append("null")
        elif get_origin(one) is Literal:
            words.append(f"one of {', '.join(map(repr, kinds))}")
        elif get_origin(one) is tuple:
            words.append("a list" if kinds[-1] is Ellipsis else f"a list of {len(kinds)}")
        elif isinstance(one, type) and is_dataclass(one):
            words.append(f"a {one.__name__}")
        else:
            words.append(_WORDS.get(one, "an object"))
    return " or ".join(words)


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def dataclass_of(hint: Any, values: Any, where: str = "") -> type[Any] | None:
    """Return the dataclass in a type hint, None if it holds none.

    Of several, `values["kind"]` names one; without it the first is meant.
    """
    found = dataclasses_in(hint)
    if len(found) < 2:
        return found[0] if found else None
    kinds = {default_of(cls, "kind"): cls for cls in found}
    kind = values.get("kind", next(iter(kinds))) if isinstance(values, dict) else None
    known = isinstance(kind, str) and kind in kinds
    require(known, f"{where}kind={kind!r}", f"expected one of {', '.join(map(repr, kinds))}")
    return kinds[kind]


def dataclasses_in(hint: Any) -> list[type[Any]]:
    """List the dataclasses of a type hint, which may be a union."""
    return [t for t in _options(hint) if isinstance(t, type) and is_dataclass(t)]


def default_of(cls: type[Any], name: str) -> Any:
    """Return the default of a field."""
    return next(f.default for f in fields(cls) if f.name == name)


def with_changes(config: RunConfig, **changes: Any) -> RunConfig:
    """Copy a run with changed fields; `optim__lr=1e-3` reaches inside."""
    nested: dict[str, dict[str, Any]] = {}
    flat: dict[str, Any] = {}
    for key, value in changes.items():
        outer, _, inner = key.partition("__")
        if inner:
            nested.setdefault(outer, {})[inner] = value
        else:
            flat[outer] = value
    for outer, inner_changes in nested.items():
        flat[outer] = replace(flat.get(outer, getattr(config, outer)), **inner_changes)
    return replace(config, **flat)
