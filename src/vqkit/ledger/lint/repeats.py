"""Rows that stand in several tables: other numbers, other settings, other names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from vqkit.ledger.cells import Cell, Setting
from vqkit.ledger.lint.findings import Dossier, Finding, Level, Line, apart, digits, shown

ENOUGH = 8
"""Printed digits that two rows must share before their likeness is hardly chance."""
FEW = 3
"""The same for a row that a source copied, and printed twice with nothing else in it."""
_SATURATED = frozenset({"utilization", "usage", "usage_ceiling"})
"""Metrics that many rows share by nature, at 100 %."""
_NOT_OF_TOKENIZERS = frozenset({"generator"})
"""Settings of what was trained on the tokens; only generation depends on them."""


def repeat_rules(dossier: Dossier) -> Iterator[Finding]:
    """Yield what repeated rows say about each other."""
    lines = list(dossier.lines())
    yield from _other_numbers(dossier, lines)
    yield from _likeness(dossier, lines)
    yield from _other_metric(lines)
    yield from _other_source(dossier, lines)


def _settings(dossier: Dossier, line: Line, metric: str) -> dict[str, Setting]:
    """Settings that a metric depends on; what is unknown stays None."""
    kept = () if metric == "gfid" else _NOT_OF_TOKENIZERS
    return {k: v for k, v in dossier.settings(line).items() if k not in kept}


@dataclass(frozen=True, slots=True)
class _Group:
    """Cells of one metric that should agree."""

    metric: str
    settings: dict[str, Setting]
    members: list[tuple[Line, Cell]]

    def pairs(self) -> Iterator[tuple[Line, Line]]:
        for (one, a), (two, b) in combinations(self.members, 2):
            if apart(a, b):
                yield one, two


def _other_numbers(dossier: Dossier, lines: Sequence[Line]) -> Iterator[Finding]:
    """One source, one system, the same settings, different numbers; alike groups in one finding."""
    groups: dict[str, _Group] = {}
    for line in lines:
        for metric, cell in line.cells.items():
            settings = _settings(dossier, line, metric)
            where = (line.table.paper, line.row.system, line.dataset, metric)
            key = repr((where, sorted(settings.items())))
            groups.setdefault(key, _Group(metric, settings, [])).members.append((line, cell))
    alike: dict[tuple[str, ...], list[_Group]] = {}
    for group in groups.values():
        if any(group.pairs()):
            alike.setdefault(tuple(line.key for line, _ in group.members), []).append(group)
    for together in alike.values():
        yield _disagreement(lines, together)


def _disagreement(lines: Sequence[Line], groups: Sequence[_Group]) -> Finding:
    first = groups[0]
    line = first.members[0][0]
    same = any(_same_way(one, two) for group in groups for one, two in group.pairs())
    level: Level = "contradiction" if same else "suspicion"
    arithmetic, differ = [], []
    for group in groups:
        by_value: dict[str, list[str]] = {}
        for _, cell in group.members:
            by_value.setdefault(cell.printed, []).append(cell.row_key)
        told = "; ".join(f"{value} in {', '.join(keys)}" for value, keys in by_value.items())
        differ.append(f"{group.metric} ({', '.join(by_value)})")
        arithmetic.append(f"{group.metric} on {line.dataset}: {told}")
        arithmetic.extend(_elsewhere(lines, [cell for _, cell in group.members]))
    arithmetic.append(f"settings: {_named(first.settings)}")
    arithmetic.extend(_not_printed(groups))
    return Finding(
        level=level,
        rule="same-settings",
        place=line.key,
        statement=f"Rows of {line.row.system} on {line.dataset} with the same settings differ in "
        f"{', '.join(differ)}{'' if same else ', though perhaps not measured alike'}.",
        arithmetic=tuple(arithmetic),
        cells=tuple(cell for group in groups for _, cell in group.members),
    )


def _not_printed(groups: Sequence[_Group]) -> Iterator[str]:
    """Name the settings of deviating rows that stand elsewhere in the source, each row once."""
    told = set()
    for group in groups:
        usual = max((cell.printed for _, cell in group.members), key=_counted(group))
        for line, cell in group.members:
            deviates = cell.printed != usual and line.row.not_printed
            if deviates and line.row_key not in told:
                told.add(line.row_key)
                yield f"not in the row {line.row_key} itself: {', '.join(line.row.not_printed)}"


def _counted(group: _Group) -> Callable[[str], int]:
    return [cell.printed for _, cell in group.members].count


def _same_way(one: Line, two: Line) -> bool:
    """Return whether nothing that is printed could explain a difference."""
    apart_by = {one.row.settings.get(k) != two.row.settings.get(k) for k in _NOT_OF_TOKENIZERS}
    return one.table.protocol == two.table.protocol and apart_by == {False}


def _named(settings: Mapping[str, Setting]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items()) or "none printed"


def _elsewhere(lines: Sequence[Line], members: Sequence[Cell]) -> Iterator[str]:
    """Name the other data set that a deviating number is printed for."""
    counts = [cell.printed for cell in members]
    for cell in members:
        if counts.count(cell.printed) == max(map(counts.count, counts)):
            continue
        twins = [
            other
            for line in lines
            if (other := line.cells.get(cell.metric)) is not None
            and (other.paper, other.system) == (cell.paper, cell.system)
            and other.dataset != cell.dataset
            and other.printed == cell.printed
            and other.settings.get("codebook_size") == cell.settings.get("codebook_size")
        ]
        if len(twins) > 1:  # a single one may be chance
            yield f"{cell.key} = {cell.printed} is the number of {twins[0].dataset}: {shown(twins)}"


def _likeness(dossier: Dossier, lines: Sequence[Line]) -> Iterator[Finding]:
    """One source, the same numbers, other settings or another name."""
    done: set[frozenset[str]] = set()
    for one, two in combinations(lines, 2):
        if (one.table.paper, one.dataset) != (two.table.paper, two.dataset):
            continue
        shared = [m for m in one.cells if m in two.cells and m not in _SATURATED]
        if not shared or any(apart(one.cells[m], two.cells[m]) for m in shared):
            continue
        weight = sum(min(digits(one.cells[m]), digits(two.cells[m])) for m in shared)
        if one.row.system != two.row.system:
            names = frozenset((one.row.system, two.row.system, one.table.paper, one.dataset))
            if weight >= ENOUGH and names not in done:
                done.add(names)
                yield _alike(one, two, shared, f"{one.row.method} and {two.row.method}")
            continue
        mine, theirs = (_settings(dossier, line, shared[0]) for line in (one, two))
        differ = [
            name
            for name in mine
            if None not in (mine[name], theirs.get(name)) and mine[name] != theirs[name]
        ]
        copied = one.row.quoted and two.row.quoted and one.table != two.table
        if differ and weight >= (FEW if copied else ENOUGH):
            said = " and ".join(
                ", ".join(f"{name} {values[name]}" for name in differ) for values in (mine, theirs)
            )
            yield _alike(one, two, shared, said)


def _alike(one: Line, two: Line, shared: Sequence[str], differ: str) -> Finding:
    name = one.row.system != two.row.system
    return Finding(
        level="suspicion",
        rule="same-numbers",
        place=one.key,
        statement=f"Two rows show the same numbers under other {'names' if name else 'settings'}: "
        f"{differ}.",
        arithmetic=tuple(
            f"{one.cells[m].key} = {one.cells[m].printed}; {two.cells[m].key} = "
            f"{two.cells[m].printed}"
            for m in shared
        ),
        cells=tuple(line.cells[m] for line in (one, two) for m in shared),
    )


def _other_metric(lines: Sequence[Line]) -> Iterator[Finding]:
    """The same number of one system as FID of reconstructions and of generated images."""
    places: dict[tuple[str, str, str], list[Cell]] = {}
    for line in lines:
        for metric in ("rfid", "gfid"):
            cell = line.cells.get(metric)
            if cell is not None and digits(cell) >= FEW:
                place = (line.row.system, line.dataset, cell.printed)
                places.setdefault(place, []).append(cell)
    for (system, dataset, _), cells in places.items():
        if len({cell.metric for cell in cells}) == 2:
            yield Finding(
                level="suspicion",
                rule="two-metrics",
                place=cells[0].row_key,
                statement=f"The same FID of {system} on {dataset} stands for reconstructions and "
                "for generated images; one of the two seems misfiled.",
                arithmetic=(shown(cells),),
                cells=tuple(cells),
            )


def _other_source(dossier: Dossier, lines: Sequence[Line]) -> Iterator[Finding]:
    """A copied row that another source prints with other numbers."""
    done: set[str] = set()
    for line in lines:
        rivals = [other for other in lines if _fits(dossier, line, other)]
        if line.row_key in done or not rivals:
            continue
        ours = [one for one in lines if any(_fits(dossier, other, one) for other in rivals)]
        metrics = [
            metric
            for metric in line.cells
            if (theirs := [other.cells[metric] for other in rivals if metric in other.cells])
            and all(apart(line.cells[metric], cell) for cell in theirs)
            and not any(
                metric in one.cells and not apart(one.cells[metric], cell)
                for one in ours
                for cell in theirs
            )
        ]
        if metrics:
            done |= {one.row_key for one in (line, *rivals)}
            cells = [one.cells[m] for m in metrics for one in (line, *rivals) if m in one.cells]
            agree = [
                m
                for m in line.cells
                for other in rivals
                if m in other.cells and not apart(line.cells[m], other.cells[m])
            ]
            yield Finding(
                level="suspicion",
                rule="two-sources",
                place=line.key,
                statement=f"{' and '.join(metrics)} of {line.row.system} on {line.dataset} differ "
                "between two sources that agree in the settings both print.",
                arithmetic=(shown(cells), f"agreeing: {', '.join(dict.fromkeys(agree)) or 'none'}"),
                cells=tuple(cells),
            )


def _fits(dossier: Dossier, line: Line, other: Line) -> bool:
    """Return whether `other` is the same copied row in another source."""
    same = line.row.system == other.row.system and line.dataset == other.dataset
    copied = line.row.quoted and other.row.quoted
    if not same or not copied or line.table.paper == other.table.paper:
        return False
    mine, theirs = dossier.settings(line), dossier.settings(other)
    stated = [k for k in mine if None not in (mine[k], theirs.get(k))]
    return "codebook_size" in stated and all(mine[k] == theirs[k] for k in stated)
