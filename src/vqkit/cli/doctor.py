"""`vqkit doctor`: is a run well, and if not, what to do."""

from __future__ import annotations

from collections.abc import Sequence

from vqkit.cli.console import say
from vqkit.cli.options import Options, one_name

PROBLEM = 1
"""Exit code where something is wrong with the run."""


def run(words: Sequence[str]) -> int:
    """Tell whether a run is well; if not, name what is wrong, what was seen, and a remedy.

    RUN is the folder of a run: healthy, unfinished, broken or collapsed. Every byte of its
    checkpoints is verified. Exit code 0: nothing is wrong (an interrupted run waits to go on), 1:
    a problem was found, 2: this is no run.
    """
    name, rest = one_name(words, "run", "name the folder of one training run")
    Options("doctor RUN", run.__doc__).parse(rest)
    if name is None:
        raise ValueError("run: none is named; give the folder of a training run")
    from vqkit.training.doctor import diagnose

    found = diagnose(name)
    say(f"{name}: {found.name}, {found.state}")
    say("\n".join(f"  {fact}" for fact in found.facts))
    for finding in found.findings:
        say(f"\nproblem: {finding.cause}\n  seen: {finding.seen}\n  remedy: {finding.remedy}")
    if not found.findings:
        say("healthy: nothing wrong was found")
    return PROBLEM if found.findings else 0
