"""The words that choose: commands of `vqkit`, verbs of a command; help, and a hint if misspelt."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence


def choose(
    words: Sequence[str],
    known: Mapping[str, str],
    usage: str,
    *,
    kind: str = "verb",
    elsewhere: Callable[[], Mapping[str, str]] = dict,
) -> tuple[str, list[str]] | None:
    """Return the verb that `words` begin with and the words after it; None if help was shown.

    Args:
        words: none, -h or --help show `usage`.
        known: verb to its summary.
        usage: the help; `{verbs}` in it becomes the list of verbs.
        kind: what the verbs are called.
        elsewhere: gives verbs of other commands, each with what is to be typed for it.

    Raises:
        ValueError: a verb that is not known, with the one most like it.
    """
    if not words or words[0] in ("-h", "--help"):
        width = max(map(len, known)) + 2
        verbs = "\n".join(f"  {name:<{width}}{summary}" for name, summary in known.items())
        sys.stdout.write(usage.format(verbs=verbs))
        return None
    name, *rest = words
    if name not in known:
        full = {**elsewhere(), **{one: one for one in known}}
        near = difflib.get_close_matches(name, full, n=1)
        hint = f"did you mean {full[near[0]]!r}?" if near else f"known are {', '.join(known)}"
        raise ValueError(f"{kind}={name!r}: unknown; {hint}")
    return name, rest


def run_verb(
    words: Sequence[str], verbs: Mapping[str, tuple[str, str, str]], usage: str
) -> int | None:
    """Run the verb that `words` begin with and return its exit code; without any, show `usage`.

    `verbs` maps each to its module in this room, its function there, and a summary.
    """
    chosen = choose(words, {name: summary for name, (_, _, summary) in verbs.items()}, usage)
    if chosen is None:
        return None
    name, rest = chosen
    module, function, _ = verbs[name]
    code: int | None = getattr(importlib.import_module(f"vqkit.cli.{module}"), function)(rest)
    return code
