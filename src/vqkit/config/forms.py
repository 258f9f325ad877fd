"""Whether JSON values that were read from a file have the form that the code relies on."""

from __future__ import annotations

import math
from typing import Any, Final

from vqkit.config.core import require, short

Form = Any
"""A type (`int`, `float`, `str`, `bool`, `dict`, `list`); `(None, form)`, which may be null;
`[form]`, a list of values of one form; or `{"key": form}`, an object with these keys and others."""

_WORDS: Final = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    list: "a list",
    dict: "an object",
}


def check_form(values: Any, form: Form, where: str, what_to_do: str) -> None:
    """Raise `ValueError` naming the first value that is missing or of another form.

    Args:
        values: what `json` has read.
        form: what is expected of it.
        where: the file, say; begins the message.
        what_to_do: ends it.
    """
    problem = _misfit(values, form, "")
    require(not problem, where, f"{problem}; {what_to_do}")


def _misfit(value: Any, form: Form, name: str) -> str:
    """Say what is wrong, "" if nothing is."""
    if isinstance(form, tuple):
        return "" if value is None else _misfit(value, form[1], name)
    kind = form if isinstance(form, type) else type(form)
    fits = type(value) is kind or (kind is float and type(value) is int)
    if not fits or (kind is float and not math.isfinite(value)):
        return f"{name or 'the whole'}={short(value)}: expected {_WORDS[kind]}"
    if isinstance(form, dict):
        return _first(_member(value, key, inner, name) for key, inner in form.items())
    if isinstance(form, list):
        return _first(_misfit(one, form[0], f"{name}[{n}]") for n, one in enumerate(value))
    return ""


def _member(values: dict[str, Any], key: str, form: Form, name: str) -> str:
    path = f"{name}.{key}" if name else key
    return _misfit(values[key], form, path) if key in values else f"{path}: is missing"


def _first(problems: Any) -> str:
    return next((problem for problem in problems if problem), "")
