"""Checks and conversions that all configurations share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

if TYPE_CHECKING:
    from vqkit.config.run import RunConfig


def require(holds: bool, setting: str, problem: str) -> None:
    """Raise `ValueError("setting: problem")` unless `holds`; every configuration check uses it."""
    if not holds:
        raise ValueError(f"{setting}: {problem}")


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
    """Rebuild a configuration from `to_dict`; an unknown or missing key is a `ValueError`."""
    hints = get_type_hints(cls)
    known = {f.name for f in fields(cls)}
    unknown = sorted(set(values) - known)
    require(not unknown, f"{where}{', '.join(unknown)}", f"unknown key; known are {sorted(known)}")
    built: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            nested = dataclass_of(hints[name], value, f"{where}{name}.")
            if nested is not None:
                value = from_dict(nested, value, f"{where}{name}.")
        elif isinstance(value, list):
            value = tuple(value)
        built[name] = value
    try:
        return cls(**built)
    except TypeError as error:
        raise ValueError(f"{where or cls.__name__}: {error}") from error


def dataclass_of(hint: Any, values: Any, where: str = "") -> type[Any] | None:
    """Return the dataclass in a type hint, None if it holds none.

    Of several, `values["kind"]` names one; without it the first is meant.
    """
    found = dataclasses_in(hint)
    if len(found) < 2:
        return found[0] if found else None
    kinds = {default_of(cls, "kind"): cls for cls in found}
    kind = values.get("kind", next(iter(kinds))) if isinstance(values, dict) else None
    require(
        kind in kinds, f"{where}kind={kind!r}", f"expected one of {', '.join(map(repr, kinds))}"
    )
    return kinds[kind]


def dataclasses_in(hint: Any) -> list[type[Any]]:
    """List the dataclasses of a type hint, which may be a union."""
    options = get_args(hint) or (hint,)
    return [t for t in options if isinstance(t, type) and is_dataclass(t)]


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
