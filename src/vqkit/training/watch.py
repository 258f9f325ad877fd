"""Is the run well? Warnings with a cause and a remedy, from the lines of its log.

A `Watch` reads the lines one by one, while a run writes them or afterwards from `log.jsonl`:

    watch = Watch.for_run(config)
    for line in read_log(folder / "log.jsonl"):
        for warning in watch.look(line):
            ...  # warning.name, .message, .remedy
    watch.active  # names of what holds at the last line
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from vqkit.config import RunConfig
from vqkit.training.symptoms import MACHINE_RULES, REMEDIES, RULES, Rule, Scale, Symptom
from vqkit.training.traces import Traces

FORGOTTEN: Final = 3
"""What has not held for so many times `Scale.long` steps is news again. One good line breaks what
lasts, which then takes up to twice `Scale.long` to be seen again, and is no news."""
LISTED: Final = 3
"""Codebooks that one warning tells of."""


@dataclass(frozen=True, slots=True)
class HealthWarning:
    """What a rule has found."""

    name: str
    """The cause in a word, a key of `REMEDIES`: `codebook_collapse`."""
    message: str
    """What was seen, with numbers."""
    remedy: str
    """What it means and what to change."""


class Watch:
    """Reads the lines of one run in order; every warning is said once.

    It is said again when it is twice as bad, or when it comes back after a while (`FORGOTTEN`). The
    rules are those of `vqkit.training.symptoms`.
    """

    def __init__(
        self, num_steps: int, *, every: int = 1, adaptive_max: float = float("inf")
    ) -> None:
        """Begin before the first line.

        Args:
            num_steps: length of the run.
            every: steps between two lines; others, written for a validation or because the run
                ends, are passed over, so that a run that goes on is told what it would have been.
            adaptive_max: bound of the adaptive weight.
        """
        self.every = every
        self.scale = Scale(long=max(100, num_steps // 50), adaptive_max=adaptive_max)
        self._of_run = _Rules(RULES, self.scale)
        self._of_machine = _Rules(MACHINE_RULES, self.scale)

    @classmethod
    def for_run(cls, config: RunConfig) -> Watch:
        """Return the watch of a run with these settings."""
        adversarial = config.adversarial
        bound = adversarial.adaptive_max if adversarial is not None else float("inf")
        return cls(config.optim.num_steps, every=config.log.every, adaptive_max=bound)

    def look(self, line: Mapping[str, Any]) -> list[HealthWarning]:
        """Return what is to be said after this line; the line stays as it is."""
        return [warning for found in self._judge(line).values() for warning in found]

    def remarks(self, line: Mapping[str, Any]) -> dict[str, list[dict[str, str]]]:
        """Return what `look` returns as JSON values, to be added to the line.

        `warnings` are the same in a resumed run; `machine_warnings` come from the clock. A key
        without warnings is left out.
        """
        found = self._judge(line)
        return {key: [asdict(w) for w in warnings] for key, warnings in found.items() if warnings}

    def _judge(self, line: Mapping[str, Any]) -> dict[str, list[HealthWarning]]:
        if line["step"] % self.every:
            return {}
        return {
            "warnings": self._of_run.look(line),
            "machine_warnings": self._of_machine.look(line),
        }

    @property
    def active(self) -> list[str]:
        """Names of the warnings that hold at the last line."""
        return [*self._of_run.active, *self._of_machine.active]

    def state(self) -> dict[str, Any]:
        """Return the state as JSON values; what the clock said is left out, as on a new machine."""
        return self._of_run.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state()`."""
        self._of_run.restore(state)


class _Rules:
    """Some rules, their traces, and what was said."""

    def __init__(self, rules: tuple[Rule, ...], scale: Scale) -> None:
        self._rules, self._scale = rules, scale
        self._traces = Traces()
        self._said: dict[str, list[float]] = {}
        """Name -> how bad it was when said, and the last step at which it held."""
        self.active: list[str] = []

    def look(self, line: Mapping[str, Any]) -> list[HealthWarning]:
        found: dict[str, list[Symptom]] = {}
        for rule in self._rules:
            for symptom in rule(line, self._traces, self._scale):
                found.setdefault(symptom.name, []).append(symptom)
        step, said = line["step"], []
        for name, symptoms in found.items():
            degree = sum(symptom.degree for symptom in symptoms)
            before = self._said.get(name, [0.0])[0]
            if degree >= 2 * before:
                said.append(HealthWarning(name, _joined(symptoms), REMEDIES[name]))
            self._said[name] = [degree if degree >= 2 * before else before, step]
        recent = step - FORGOTTEN * self._scale.long
        self._said = {name: kept for name, kept in self._said.items() if kept[1] > recent}
        self.active = list(found)
        return said

    def state(self) -> dict[str, Any]:
        said = {name: list(kept) for name, kept in self._said.items()}
        return {"traces": self._traces.state(), "said": said, "active": self.active}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._traces.restore(state["traces"])
        self._said = {name: list(kept) for name, kept in state["said"].items()}
        self.active = list(state["active"])


def _joined(symptoms: list[Symptom]) -> str:
    more = f"; {len(symptoms) - LISTED} more" if len(symptoms) > LISTED else ""
    return "; ".join(symptom.message for symptom in symptoms[:LISTED]) + more
