"""The jobs of ``qemuglue check``: a machine each, and each known oddity shown again.

They run in worker processes (``schedule``); what they give is what the reports are made of.

**A QEMU that somebody else ended** (SIGKILL by hand or by a host that ran out of memory; QEMU
itself never sends it) says nothing of the machine. While the machine starts, or its map is
read, the whole check is made once more; a second such end is an error, never a match and never
"not started". Among accesses the end is tried again by the slow judge: if QEMU goes on at least
once, it was no finding, and the result carries a note.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from qemuglue.campaign.check_result import CheckResult, Divergence, Known, Status
from qemuglue.campaign.checking import check_machine
from qemuglue.campaign.settings import DEFAULT_RAM, Settings, ask_ram_id, rules_of
from qemuglue.campaign.starting import start_machine
from qemuglue.errors import EnvironmentFailure, LaunchError, QemuFailure, UsageError
from qemuglue.qemu.builds import Build, parse_version
from qemuglue.qemu.builds_machines import Machine, machine_list
from qemuglue.qemu.config import QemuConfig, VmMode, machine_name
from qemuglue.witness.contract_table import ContractTable
from qemuglue.witness.judge import Judgement, Scene, prepare, replay
from qemuglue.witness.oddities import Oddity, standard
from qemuglue.witness.session import Knowledge

#: Fresh QEMUs that an oddity's program is performed in before it is said to show nothing.
SHOW_TRIES = 2

#: As QemuDied words it; and as QEMU does for the signals it takes as a wish to end.
_FROM_OUTSIDE = re.compile(
    r"QEMU was ended by SIG(KILL|TERM|INT|HUP)\b|terminating on signal \d+ from pid")

#: Signatures of such an end among accesses.
_KILLED = re.compile(r"crash:signal:SIG(KILL|TERM|INT|HUP)\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckJob:
    """One machine to check; with ``oddity``, an entry's id, its program to be performed there."""

    build: Build
    machine: str
    args: tuple[str, ...] = ()
    ops: int = 0
    seed: int = 0
    defect: str = ""
    folder: Path = Path()
    oddity: str = ""
    qom: bool = False
    contracts: ContractTable | None = None


@dataclass(frozen=True, slots=True)
class Shown:
    """What the program of an oddity did. ``shows`` is None where it could not be tried, for the
    ``reason`` given; ``signature`` is what was seen last, "" for nothing."""

    oddity: str
    build: str
    version: str
    machine: str
    shows: bool | None
    signature: str = ""
    reason: str = ""


def machines_of(build: Build, targets: Sequence[str]) -> list[Machine]:
    """The machines of these targets, in their order; the binaries are asked side by side.

    :raise BuildError: the build has no such target, or a binary does not answer.
    """
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        lists = pool.map(lambda target: machine_list(build, target), targets)
        return [machine for each in lists for machine in each]


def jobs_of(
    chosen: Sequence[tuple[Build, str]], *, args: Sequence[str], ops: int, seed: int,
    defect: str, folder: Path, qom: bool = False, contracts: Sequence[ContractTable] = (),
) -> list[CheckJob]:
    """A job for each machine, with the contracts saved of it if there are any; and, where
    accesses are made and the machine is as QEMU makes it, one for each oddity in scope: once a
    build, on the machine its program names."""
    saved = {table.machine: table for table in contracts}
    machines = [
        CheckJob(build=build, machine=machine, args=tuple(args), ops=ops, seed=seed,
                 defect=defect, folder=folder, qom=qom, contracts=saved.get(machine))
        for build, machine in chosen
    ]
    if not ops or args or defect:
        return machines
    return machines + [
        CheckJob(build=build, machine=machine, oddity=oddity.id)
        for oddity in standard() if oddity.program is not None
        for build, machine in chosen
        if machine == oddity.program.machine and oddity.in_scope(build.version_tuple, machine)
    ]


def perform(job: CheckJob) -> CheckResult | Shown:
    """Do the job, in the process that it is called in. What QEMU does is a result.

    :raise UsageError: the build has no such machine, there is no such oddity.
    :raise BuildError: the build has no binary for the target.
    """
    if job.oddity:
        return show(job.build, find(job.oddity))
    result = _check(job)
    why = ended_from_outside(result)
    if why:
        result = _check(job)
        again = ended_from_outside(result)
        if again:
            # Somebody is at it: that its ends showed again says nothing either.
            kept = tuple(each for each in result.divergences if not _KILLED.match(each.signature))
            result = replace(result, status=Status.ERROR, divergences=kept,
                             reason=f"QEMU was ended from outside, twice: {again}")
        else:
            note = f"QEMU was ended from outside ({why}), and the machine checked once more"
            result = replace(result, notes=(note, *result.notes))
    return sort_known(_without_killed(result))


def _check(job: CheckJob) -> CheckResult:
    return check_machine(
        job.build, job.machine, args=job.args, ops=job.ops, seed=job.seed, defect=job.defect,
        folder=job.folder, qom=job.qom, contracts=job.contracts,
    )


def ended_from_outside(result: CheckResult) -> str:
    """The reason of a machine that could not be checked, if it is that somebody ended QEMU."""
    unsettled = result.status in (Status.ERROR, Status.NOT_STARTED)
    return result.reason if unsettled and _FROM_OUTSIDE.search(result.reason) else ""


def _without_killed(result: CheckResult) -> CheckResult:
    """Ends by SIGKILL that not every fresh QEMU showed again are notes: what an access makes a
    host do (its memory running out) happens each time."""
    kept = tuple(each for each in result.divergences if not _was_killed(each))
    killed = len(result.divergences) - len(kept)
    if not killed:
        return result
    times = "once" if killed == 1 else f"{killed} times"
    note = (f"QEMU was ended from outside {times} among the accesses, and not each time "
            "when they were made again")
    return _settled(replace(result, divergences=kept, notes=(*result.notes, note)))


def _was_killed(found: Divergence) -> bool:
    k, n = found.confirmed
    return k < n and _KILLED.match(found.signature) is not None


# Section: oddities


def find(oddity_id: str) -> Oddity:
    """The entry of this id.

    :raise UsageError: there is none.
    """
    for each in standard():
        if each.id == oddity_id:
            return each
    raise UsageError(f"no oddity {oddity_id!r}; `qemuglue check --oddities` lists them")


def sort_known(result: CheckResult, oddities: Sequence[Oddity] | None = None) -> CheckResult:
    """The result with the findings that an oddity in scope explains put apart. ``oddities``
    are those of the reviewed file where none are given."""
    version = parse_version(result.version)
    scope = [each for each in (standard() if oddities is None else oddities)
             if each.in_scope(version, result.machine)]
    kept: list[Divergence] = []
    known: list[Known] = list(result.known)
    for found in result.divergences:
        entry = next(
            (each for each in scope if each.explains(found.signature, found.region)), None)
        if entry is None:
            kept.append(found)
        else:
            known.append(Known(entry.id, found))
    if len(kept) == len(result.divergences):
        return result
    return _settled(replace(result, divergences=tuple(kept), known=tuple(known)))


def _settled(result: CheckResult) -> CheckResult:
    """With the status that what is left of the findings gives."""
    if result.status == Status.DIVERGED and not result.divergences:
        return replace(result, status=Status.MATCH)
    return result


def show(build: Build, oddity: Oddity) -> Shown:
    """Perform the program of an oddity in fresh QEMUs by the slow judge, nothing left out."""
    program = oddity.program
    assert program is not None, "only entries with a program are shown"
    told = Shown(oddity.id, build.name, build.version, program.machine, None)
    found: Judgement | None = None
    try:
        scene = _scene(build, oddity)
        for _ in range(SHOW_TRIES):
            if oddity.kind == "divergence":
                prepare(scene)
            found = replay(scene, program, avoid=False)
            if _explained(oddity, found):
                return replace(told, shows=True, signature=found.signature)
    except (QemuFailure, EnvironmentFailure, UsageError) as error:
        said = error.stderr.strip().splitlines() if isinstance(error, LaunchError) else []
        return replace(told, reason=" ".join([str(error), *said[-1:]]))
    return replace(told, shows=False, signature=found.signature if found else "")


def _explained(oddity: Oddity, found: Judgement) -> bool:
    """By the signature alone: the place is the program's."""
    return bool(found.signature) and replace(oddity, region="*").explains(found.signature, "")


def _scene(build: Build, oddity: Oddity) -> Scene:
    program = oddity.program
    assert program is not None
    target, name = machine_name(program.machine)
    ram_id = ask_ram_id(build, target, name)
    config, _ = start_machine(QemuConfig(
        build=build, target=target, machine=name, args=program.args,
        ram=DEFAULT_RAM if ram_id else None, ram_id=ram_id or None, mode=VmMode(program.mode),
    ))
    rules, face = rules_of(Settings(machine=program.machine), build)
    return Scene(config, Knowledge(), program.setup, rules, face)
