"""``qemuglue diff`` for people and as JSON.

Hundreds of machines change alike, so changes are grouped: one change that is met on 46 machines is
told once, under the machines that have it. Names that differ by a number only (``i2c.bus.0``,
``i2c.bus.1``) are one line as well. ``--json`` has every change of every machine.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.text import Text

from qemuglue.campaign.diff.diffing import Census, DiffOptions, MachineDiff, Status
from qemuglue.qemu.builds import Build
from qemuglue.qemu.builds_machines import Machine
from qemuglue.report.terminal import duration

if TYPE_CHECKING:
    from rich.console import Console

    from qemuglue.campaign.diff.outcomes import OutcomeChange

SCHEMA = 1

#: Names of machines in one line; the rest is counted.
MAX_NAMES = 3
#: Lines under one set of machines, and sets of machines, unless one machine alone is told of.
MAX_LINES = 12
MAX_SETS = 40
#: Lines of a section whose changes come one by one.
MAX_CHANGES = 60
#: Machines that came or went, named on one line.
MAX_CENSUS = 40

_NUMBER = re.compile(r"0x[0-9a-f]+|\d+")

_OUTCOME_WORDS = {
    "death": "ends QEMU", "refusal": "refused otherwise", "pieces": "other calls into the device",
    "event": "other events", "value": "another value",
}


# Section: JSON


def document(
    before: Build, after: Build, census: Census, results: Sequence[MachineDiff],
    options: DiffOptions, *, interrupted: bool = False,
) -> dict[str, Any]:
    """The JSON document; a contract: keys are added, never renamed."""
    counts = Counter(result.status for result in results)
    return {
        "schema": SCHEMA, "from": _build(before), "to": _build(after), "seed": options.seed,
        "ops": options.ops, "contracts": options.contracts, "args": list(options.args),
        "interrupted": interrupted,
        "census": {
            "gone": [m.full_name for m in census.gone], "new": [m.full_name for m in census.new],
            "renamed": [[a.full_name, b.full_name] for a, b in census.renamed],
            "targets_gone": list(census.targets_gone), "targets_new": list(census.targets_new),
            "remarks": [text for _, text in census.remarks],
        },
        "results": [_result(result) for result in results],
        "summary": {
            "machines": len(results),
            **{status: counts[status] for status in (
                Status.SAME, Status.CHANGED, Status.BROKEN, Status.NOT_STARTED, Status.ERROR)},
            "errors": sum(len(result.errors) for result in results),
            "seconds": round(sum(result.seconds for result in results), 3),
        },
    }


def _build(build: Build) -> dict[str, str]:
    return {"build": build.name, "version": build.version, "package": build.package}


def _result(result: MachineDiff) -> dict[str, Any]:
    outcomes = result.outcomes
    return {
        "machine": result.machine, "versioned": result.versioned, "status": result.status,
        "reason": result.reason or None,
        "map": [{**change.to_json(), "error": change in result.errors} for change in result.maps],
        "contracts": [
            {"kind": each.kind, "region": each.region, "name": each.name,
             "direction": each.direction, "before": each.before, "after": each.after}
            for each in result.contracts
        ],
        "outcomes": None if outcomes is None else {
            "performed": outcomes.performed, "unstable": outcomes.unstable,
            "skipped": outcomes.skipped or None,
            "changes": [change.to_json() for change in outcomes.changes],
            "notes": list(outcomes.notes),
        },
        "notes": list(result.notes), "seconds": result.seconds,
    }


# Section: for people


def line(result: MachineDiff) -> Text:
    """One machine as it ends."""
    parts = []
    if result.maps:
        parts.append(_count(len(result.maps), "change") + " of the map")
    if result.contracts:
        parts.append(f"{len(result.contracts)} of contracts")
    if result.outcomes is not None and result.outcomes.changes:
        parts.append(f"{_count(len(result.outcomes.changes), 'operation')} done otherwise")
    told = result.reason or ", ".join(parts) or "the same"
    style = {Status.BROKEN: "bold red", Status.ERROR: "red", Status.SAME: "green"}
    return Text(f"{result.status:<11} {result.machine}: {told} ({duration(result.seconds)})",
                style=style.get(result.status, ""))


def print_diff(
    before: Build, after: Build, census: Census, results: Sequence[MachineDiff],
    options: DiffOptions, console: Console, *, everything: bool, interrupted: bool = False,
) -> None:
    """The page. ``everything``: the machines were not chosen by name, so tell of the lists too."""
    _say(console, f"{before.name} (QEMU {before.version}) -> {after.name} (QEMU {after.version})",
         "bold")
    if interrupted:
        _say(console, "Interrupted; what follows is what was reached.")
    if everything:
        for text in _census(census):
            _say(console, text)
    told_of = {result.machine for result in results}
    for names, text in census.remarks:
        if told_of.intersection(names):
            _say(console, text)
    groups = _grouped(results)
    whole = len(results) == 1
    for heading, style, section in _SECTIONS:
        if groups[section]:
            _say(console, "")
            _say(console, heading, style)
            told = _by_machines if section in _BY_MACHINES else _by_change
            for text in told(groups[section], whole):
                _say(console, text)
    console.print()
    for text in _soft(results, options):
        _say(console, text)
    _say(console, *_verdict(results))


_SECTIONS = (
    ("ERRORS: versioned machine types on which a guest or a migration sees another map",
     "bold red", "error"),
    ("Maps: what a guest can see", "bold", "visible"),
    ("Maps: names, owners, views of devices (no guest sees these)", "bold", "hidden"),
    ("Contracts of devices", "bold", "contract"),
    ("The same program, done otherwise (QEMU against QEMU)", "bold", "outcome"),
    ("Machines that start on one build only", "bold", "start"),
    ("Not compared", "bold", "uncompared"),
    ("Notes", "bold", "note"),
)
#: Sections in which machines have the same changes together; a program meets now this device,
#: now that one, and there the change comes first.
_BY_MACHINES = frozenset({"error", "visible", "hidden"})


def _say(console: Console, text: str, style: str = "") -> None:
    """Texts are copied and searched: never wrapped, never markup."""
    console.print(Text(text, style=style), soft_wrap=True)


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'s' * (n != 1)}"


def _census(census: Census) -> Iterator[str]:
    for word, targets in (("gone", census.targets_gone), ("new", census.targets_new)):
        if targets:
            yield f"targets {word}: {', '.join(targets)}"
    for word, machines in (("gone", census.gone), ("new", census.new)):
        plain = [m for m in machines if not m.versioned]
        names = ", ".join(name for name in _short_names(plain)[:MAX_CENSUS])
        if plain:
            yield f"machines {word}: {len(plain)} ({names})"
        if len(plain) < len(machines):
            yield f"versioned machine types {word}: {len(machines) - len(plain)}"
    for a, b in census.renamed:
        yield f"machine renamed: {a.full_name} -> {b.full_name}"


def _short_names(machines: Sequence[Machine]) -> list[str]:
    """``aarch64|arm/n800``: one name on several targets is told once."""
    targets: defaultdict[str, list[str]] = defaultdict(list)
    for machine in machines:
        targets[machine.name].append(machine.target)
    return [f"{'|'.join(on)}/{name}" for name, on in targets.items()]


@dataclass(slots=True)
class _Group:
    """Changes that are one for people: where each machine has it, and one of them in words."""

    told: str
    places: dict[str, list[str]]
    variants: set[str]


_Groups = dict[str, dict[str, _Group]]


def _grouped(results: Sequence[MachineDiff]) -> _Groups:
    groups: _Groups = {section: {} for _, _, section in _SECTIONS}

    def add(section: str, machine: str, told: str, place: str = "") -> None:
        alike = _NUMBER.sub(lambda found: found[0] if found[0][:2] == "0x" else "#", told)
        group = groups[section].setdefault(alike, _Group(told, {}, set()))
        group.places.setdefault(machine, []).append(place)
        group.variants.add(told)

    for result in results:
        for change in result.maps:
            section = ("hidden" if not change.visible
                       else "error" if result.versioned else "visible")
            add(section, result.machine, change.told, change.place)
        for contract in result.contracts:
            direction = f" of {contract.direction}" if contract.direction else ""
            add("contract", result.machine,
                f"{contract.name}: {contract.kind}{direction}: {contract.before} -> "
                f"{contract.after}")
        for outcome in result.outcomes.changes if result.outcomes else ():
            add("outcome", result.machine, *_outcome(outcome))
        for note in (*result.notes, *(result.outcomes.notes if result.outcomes else ())):
            add("note", result.machine, note)
        if result.outcomes is not None and result.outcomes.skipped:
            add("note", result.machine, f"no program was performed: {result.outcomes.skipped}")
        if result.reason:
            one_side = result.status in (Status.BROKEN, Status.CHANGED)
            broken = result.status == Status.BROKEN
            add("error" if broken else "start" if one_side else "uncompared", result.machine,
                result.reason.replace(result.machine, "it"))
    return groups


def _outcome(change: OutcomeChange) -> tuple[str, str]:
    what, region, shape, *_ = (change.what, change.region or "nothing mapped", change.alike[3])
    if what == "death":
        return (f"{region}: {shape} {_OUTCOME_WORDS[what]}: {change.before} -> {change.after}",
                change.operation)
    return (f"{region} ({change.kind}): {shape}, {_OUTCOME_WORDS[what]}",
            f"{change.operation}: {change.before} -> {change.after}")


def _by_change(groups: dict[str, _Group], whole: bool) -> Iterator[str]:
    """Changes, those of most machines first, each with its machines."""
    ordered = sorted(groups.values(), key=lambda group: -len(group.places))
    for group in ordered[: None if whole else MAX_CHANGES]:
        first, *rest = _group_lines(group, "  ")
        yield first if whole else f"{first}: on {_machines(sorted(group.places))}"
        yield from rest
    if not whole and len(ordered) > MAX_CHANGES:
        yield f"  and {len(ordered) - MAX_CHANGES} more (--json has all)"


def _by_machines(groups: dict[str, _Group], whole: bool) -> Iterator[str]:
    """Sets of machines, the largest first; under each its changes."""
    sets: defaultdict[tuple[str, ...], list[_Group]] = defaultdict(list)
    for group in groups.values():
        sets[tuple(sorted(group.places))].append(group)
    ordered = sorted(sets.items(), key=lambda item: (-len(item[0]), item[0]))
    for machines, mine in ordered[: None if whole else MAX_SETS]:
        if not whole:
            yield f"  on {_machines(machines)}:"
        for group in mine[: None if whole else MAX_LINES]:
            yield from _group_lines(group, "  " if whole else "    ")
        if not whole and len(mine) > MAX_LINES:
            yield f"    and {len(mine) - MAX_LINES} more (--json has all)"
    if not whole and len(ordered) > MAX_SETS:
        rest = ordered[MAX_SETS:]
        yield (f"  and {sum(len(mine) for _, mine in rest)} more changes on "
               f"{_count(len({name for names, _ in rest for name in names}), 'machine')} "
               "(--json has all)")


def _machines(names: Sequence[str]) -> str:
    if len(names) <= MAX_NAMES + 1:
        return ", ".join(names)
    shown = ", ".join(names[:MAX_NAMES])
    return f"{len(names)} machines ({shown} and {len(names) - MAX_NAMES} more)"


def _group_lines(group: _Group, indent: str) -> Iterator[str]:
    first = next(iter(group.places.values()))
    most = max(map(len, group.places.values()))
    place = first[0]
    like = f" ({most} alike)" if most > 1 else ""
    if " -> " in place:  # an operation with what came of it
        yield f"{indent}{group.told}{like}"
        yield f"{indent}  first: {place}"
    elif place:
        yield f"{indent}{place}: {group.told}{like}"
    else:
        yield f"{indent}{group.told}{like}"


def _soft(results: Sequence[MachineDiff], options: DiffOptions) -> Iterator[str]:
    told = [result.outcomes for result in results if result.outcomes is not None]
    performed = sum(outcomes.performed for outcomes in told)
    if performed:
        unstable = sum(outcomes.unstable for outcomes in told)
        yield (f"Performed {_count(performed, 'operation')} in both (seed {options.seed}); "
               f"{unstable} differ between two runs of one build and were compared in part.")
    elif options.ops == 0:
        yield "No program was performed (--ops 0)."
    if not options.contracts:
        yield "Contracts were not compared (--no-contracts)."


def _verdict(results: Sequence[MachineDiff]) -> tuple[str, str]:
    counts = Counter(result.status for result in results)
    words = [
        f"{counts[status]} {text}" for status, text in (
            (Status.SAME, "the same"), (Status.CHANGED, "changed"),
            (Status.BROKEN, "broken (a versioned machine type must keep its map)"),
            (Status.NOT_STARTED, "start on neither build"),
            (Status.ERROR, "could not be compared"),
        ) if counts[status]
    ]
    spent = duration(sum(result.seconds for result in results))
    style = ("bold red" if counts[Status.BROKEN] else "bold yellow" if counts[Status.ERROR]
             else "bold green")
    return f"{_count(len(results), 'machine')}: {', '.join(words) or 'none'}; {spent}", style
