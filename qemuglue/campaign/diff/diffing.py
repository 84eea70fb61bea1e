"""What changed between two builds, machine by machine.

Each machine is started on both builds as a plain command line gives it (no ``-nodefaults``), and
compared in three ways: its map (``diff/maps``), what one and the same program does on both
(``diff/outcomes``), and the contracts of its devices (``witness/contract_table``).

A versioned machine type (``pc-q35-7.2``) promises the same virtual hardware in every release: a
running guest is migrated to a newer QEMU, and saved state is loaded by it. So whatever a guest or a
migration can see of its map must stay; a change of that is the status ``broken``, an error. So is
a type that starts on the first build and not on the second. Everything else is a note: names, other
machines, and how devices answer (contracts and outcomes), which releases mean to mend.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qemuglue.campaign.contracting import probe_machine
from qemuglue.campaign.diff.firmware import firmware_behind
from qemuglue.campaign.diff.maps import MapChange, compare_maps
from qemuglue.campaign.diff.outcomes import DEFAULT_OPS, Outcomes, compare_outcomes
from qemuglue.errors import EnvironmentFailure, LaunchError, QemuFailure, QemuHang
from qemuglue.mirror.snapshot import Snapshot, take_snapshot
from qemuglue.qemu import ways
from qemuglue.qemu.builds import Build
from qemuglue.qemu.builds_machines import Machine, machine_list
from qemuglue.qemu.config import QemuConfig, machine_name
from qemuglue.qemu.process import QemuProcess
from qemuglue.qemu.quirks import prints_owners
from qemuglue.witness.contract_table import ChangeKind, ContractChange, differences


class Status:
    """How a machine compares; the words are those of ``--json``."""

    SAME = "same"
    CHANGED = "changed"
    BROKEN = "broken"
    NOT_STARTED = "not-started"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class DiffOptions:
    """What is compared and how. ``args`` are words appended to both command lines; ``args_after``
    (None: the same) to the second build's, which is how a difference is planted in a test.
    ``ops`` 0 performs no program."""

    ops: int = DEFAULT_OPS
    seed: int = 0
    contracts: bool = True
    args: tuple[str, ...] = ()
    args_after: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class MachineDiff:
    """What became of one machine. ``reason`` says why it was not compared (or what broke it
    besides its map); ``outcomes`` is None where no program was asked for."""

    machine: str
    versioned: bool
    status: str
    reason: str = ""
    maps: tuple[MapChange, ...] = ()
    contracts: tuple[ContractChange, ...] = ()
    outcomes: Outcomes | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def errors(self) -> tuple[MapChange, ...]:
        """The changes that a versioned machine type must not make."""
        return tuple(change for change in self.maps if change.visible) if self.versioned else ()


def diff_machine(
    before: Build, after: Build, machine: Machine, options: DiffOptions
) -> MachineDiff:
    """Compare one machine that both builds have. Never raises for what QEMU does."""
    return _Diff(before, after, machine, options).run()


class _Diff:
    """One comparison while it is made."""

    def __init__(
        self, before: Build, after: Build, machine: Machine, options: DiffOptions
    ) -> None:
        self.builds = (before, after)
        self.machine = machine
        self.options = options
        self.notes: list[str] = []
        self.start_s = time.monotonic()

    def run(self) -> MachineDiff:
        told = self._started()
        if isinstance(told, MachineDiff):
            return told
        (old, a), (new, b) = told
        maps = self._judged(compare_maps(old, new))
        outcomes = self._outcomes(a, b) if self.options.ops else None
        contracts = self._contracts() if self.options.contracts else ()
        found = MachineDiff(
            self.machine.full_name, self.machine.versioned, Status.SAME, "", maps, contracts,
            outcomes,
        )
        status = Status.SAME
        if maps or contracts or (outcomes is not None and outcomes.changes):
            status = Status.BROKEN if found.errors else Status.CHANGED
        return self._finished(replace(found, status=status))

    def _finished(self, found: MachineDiff) -> MachineDiff:
        seconds = round(time.monotonic() - self.start_s, 3)
        return replace(found, notes=tuple(self.notes), seconds=seconds)

    # -- maps ------------------------------------------------------------------------------------

    def _started(
        self,
    ) -> MachineDiff | tuple[tuple[Snapshot, QemuConfig], tuple[Snapshot, QemuConfig]]:
        """The snapshots and what was started; or the result, if one side did not come so far."""
        found: list[tuple[Snapshot, QemuConfig]] = []
        refused = ["", ""]
        for side, (build, args) in enumerate(zip(self.builds, self._args(), strict=True)):
            try:
                found.append(self._snapshot(build, args))
            except LaunchError as error:
                refused[side] = f"{build.name}: {_said(error)}"
            except (QemuFailure, EnvironmentFailure) as error:
                return self._result(Status.ERROR, f"{build.name}: {error}")
        if not any(refused):
            return found[0], found[1]
        if all(refused):
            return self._result(Status.NOT_STARTED, "; ".join(refused))
        if refused[0]:
            return self._result(Status.CHANGED, f"starts now; before, {refused[0]}")
        status = Status.BROKEN if self.machine.versioned else Status.CHANGED
        return self._result(status, f"does not start any more: {refused[1]}")

    def _result(self, status: str, reason: str) -> MachineDiff:
        return self._finished(
            MachineDiff(self.machine.full_name, self.machine.versioned, status, reason)
        )

    def _args(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        second = self.options.args_after
        return self.options.args, self.options.args if second is None else second

    def _snapshot(self, build: Build, args: tuple[str, ...]) -> tuple[Snapshot, QemuConfig]:
        target, name = machine_name(self.machine.full_name)
        config = QemuConfig(
            build=build, target=target, machine=name, args=args, nodefaults=False,
            transcript=False,
        )
        try:
            snapshot, started, way = ways.start(config, _take)
        except QemuHang:
            if not prints_owners(config):
                raise
            config = replace(config, owners=False)
            snapshot, started, way = ways.start(config, _take)
            self.notes.append(f"{build.name}: compared without owners, which it cannot print")
        if way:
            self.notes.append(f"{build.name}: started with {way}")
        return snapshot, started

    def _judged(self, changes: Sequence[MapChange]) -> tuple[MapChange, ...]:
        """A firmware file of another size is the package's doing, wherever the map shows it."""
        files: dict[str, str] = {}
        for change in changes:
            if change.firmware and change.visible:
                because = firmware_behind(*self.builds, change.sizes)
                if because:
                    files |= dict.fromkeys(change.names or (change.before,), because)
        return tuple(self._explained(change, files) for change in changes)

    @staticmethod
    def _explained(change: MapChange, files: dict[str, str]) -> MapChange:
        names = change.names or (change.before,)
        because = next((files[name] for name in names if name in files), "")
        return replace(change, visible=False, because=because) if because else change

    # -- behaviour ---------------------------------------------------------------------------------

    def _outcomes(self, a: QemuConfig, b: QemuConfig) -> Outcomes:
        try:
            return compare_outcomes(a, b, ops=self.options.ops, seed=self.options.seed)
        except (QemuFailure, EnvironmentFailure) as error:
            return Outcomes(skipped=str(error))

    def _contracts(self) -> tuple[ContractChange, ...]:
        tables = []
        for build, args in zip(self.builds, self._args(), strict=True):
            try:
                tables.append(probe_machine(build, self.machine.full_name, args))
            except (QemuFailure, EnvironmentFailure) as error:
                self.notes.append(f"contracts were not compared: {build.name}: {error}")
                return ()
        # Regions that came and went are told by the map.
        return tuple(
            change for change in differences(tables[0], tables[1])
            if change.kind not in (ChangeKind.ADDED, ChangeKind.REMOVED)
        )


def _take(config: QemuConfig) -> Snapshot:
    with QemuProcess(config) as process:
        snapshot = take_snapshot(
            process.monitor, machine=config.full_name, build=config.build.name,
            version=config.build.version, owners=prints_owners(config),
        )
        process.kill()
        return snapshot


def _said(error: LaunchError) -> str:
    text = str(error)
    return text.partition(": ")[2] or text


# Section: which machines there are


@dataclass(frozen=True, slots=True)
class Census:
    """The machines of two builds, each ``TARGET/NAME``. ``common`` are in both, as the second
    build lists them; ``renamed`` is (before, after) of one description under another name;
    ``remarks`` are sentences, each with the machines it is about."""

    common: tuple[Machine, ...] = ()
    gone: tuple[Machine, ...] = ()
    new: tuple[Machine, ...] = ()
    renamed: tuple[tuple[Machine, Machine], ...] = ()
    targets_gone: tuple[str, ...] = ()
    targets_new: tuple[str, ...] = ()
    remarks: tuple[tuple[tuple[str, ...], str], ...] = ()


def take_census(before: Build, after: Build, targets: Sequence[str] = ()) -> Census:
    """Compare the lists of machines, on ``targets`` or on all.

    :raise BuildError: a build does not tell its machines.
    """
    old_targets = [each for each in before.targets() if not targets or each in targets]
    new_targets = [each for each in after.targets() if not targets or each in targets]
    both = [each for each in old_targets if each in new_targets]
    old = {m.full_name: m for target in both for m in machine_list(before, target)}
    new = {m.full_name: m for target in both for m in machine_list(after, target)}
    gone = {name: m for name, m in old.items() if name not in new}
    came = {name: m for name, m in new.items() if name not in old}
    renamed = tuple(_renamed(gone, came))
    for a, b in renamed:
        del gone[a.full_name], came[b.full_name]
    return Census(
        tuple(new[name] for name in old if name in new), tuple(gone.values()),
        tuple(came.values()), renamed,
        tuple(each for each in old_targets if each not in new_targets),
        tuple(each for each in new_targets if each not in old_targets),
        tuple(_remarks(old, new)),
    )


def _renamed(
    gone: dict[str, Machine], came: dict[str, Machine]
) -> list[tuple[Machine, Machine]]:
    """One machine under another name: the only two of a target with one description."""
    found = []
    for a in gone.values():
        def alike(m: Machine, a: Machine = a) -> bool:
            return (m.target, m.description) == (a.target, a.description) and not m.versioned

        here = [m for m in gone.values() if alike(m)]
        there = [m for m in came.values() if alike(m)]
        if not a.versioned and len(here) == len(there) == 1:
            found.append((a, there[0]))
    return found


def _remarks(
    old: dict[str, Machine], new: dict[str, Machine]
) -> list[tuple[tuple[str, ...], str]]:
    """Aliases that stand for another machine now."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for name, a in old.items():
        b = new.get(name)
        if b is not None and a.alias_of != b.alias_of:
            key = (a.name, a.alias_of or a.name, b.alias_of or b.name)
            found.setdefault(key, []).append(name)
    return [
        (tuple(names), f"{name} is {before} before and {after} after ({', '.join(names)})")
        for (name, before, after), names in found.items()
    ]
