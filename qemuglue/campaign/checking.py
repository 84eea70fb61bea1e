"""The check of one machine: its map, random accesses, and every witness of its state.

In order: the machine is started as a plain command line gives it and mirrored (the map must
equal QEMU's own views, range by range, and what its object model tells); with operations, it is
started again without the devices for a person at a screen, and mirrored; random operations are
judged one by one, each divergence confirmed in a fresh QEMU (``explorer``); then, in a QEMU that
has performed one more program, the witnesses of a whole state are asked: ``gpa2hva``, the core
dump, ``xp``, and the map again. What they say is confirmed in another fresh QEMU. All of it is
one value.

An access that ends QEMU is a finding like a divergence. It must not end the check as well: the
place is left out from then on, and its operations are counted as unjudged, with that reason.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from qemuglue.campaign.check_result import CheckResult, Divergence, MapResult, Status, map_result
from qemuglue.campaign.exercised import UNSPLIT, split_accesses
from qemuglue.campaign.explorer import Explorer, Progress
from qemuglue.campaign.fatal import FatalPlaces
from qemuglue.campaign.faults import Fault
from qemuglue.campaign.findings import Finding
from qemuglue.campaign.map_check import check_map as check_plain_map
from qemuglue.campaign.planted import PLANTED
from qemuglue.campaign.settings import DEFAULT_RAM, Settings, ask_ram_id, rules_of
from qemuglue.campaign.starting import start_machine
from qemuglue.errors import LaunchError, QemuFailure, QemuglueError, UsageError
from qemuglue.program.generate import Generator
from qemuglue.program.operation import Operation, Place, Program
from qemuglue.qemu.builds import Build
from qemuglue.qemu.config import QemuConfig, VmMode, machine_name
from qemuglue.witness.account import Account, Difference
from qemuglue.witness.contract_table import ContractTable
from qemuglue.witness.contracts import contracts_for
from qemuglue.witness.elf_dump import check_dump
from qemuglue.witness.judge import Judgement, Scene, failure_judgement, resolve
from qemuglue.witness.lockstep import LockStep, Stop
from qemuglue.witness.probe import A_CONTRACT, NO_CONTRACT
from qemuglue.witness.session import Knowledge, Session
from qemuglue.witness.translation import check_translation
from qemuglue.witness.verdict import Tally, Verdict
from qemuglue.witness.xp import Read, check_xp

#: Random operations where nothing is said: a few seconds, and every region is met.
DEFAULT_OPS = 2000

#: More than this is a campaign's work.
MAX_OPS = 10_000_000

#: Operations of one program: what a divergence takes to be shown again stays short.
PROGRAM_OPS = 64

#: Programs that end early are made up for, up to so many times the operations asked for.
MOST_TRIED = 3

#: After this many seconds no further program is started: QEMU dies at every other access, say.
PATIENCE_S = 900.0

#: Fresh QEMUs in which the witnesses of a state must say the same.
STATE_TRIES = 3

#: Reads by xp that end QEMU before the witness is given up.
MAX_FATAL_READS = 4

#: A program's text in a result, at most; the finding's folder has all of it.
MAX_TEXT = 64 << 10

#: What QEMU says of a name that is no machine's.
_UNKNOWN = "unsupported machine type"

#: What the model enters: without a CPU there is no space that qtest could.
_CPU_SPACE = "cpu-memory-0"


def check_machine(
    build: Build, machine: str, *, args: Sequence[str] = (), ops: int = DEFAULT_OPS,
    seed: int = 0, defect: str = "", qom: bool = False,
    contracts: ContractTable | None = None, folder: Path,
) -> CheckResult:
    """Check ``TARGET/NAME``. Findings are recorded under ``folder``. Never raises for what QEMU
    does: that is a result. Without operations only the map is judged, by one QEMU; its object
    model is asked too with operations or ``qom``. The devices are held to ``contracts``, perhaps
    of another build; regions that are not in it are probed.

    :raise UsageError: the build has no such machine, no such defect, too many operations.
    :raise BuildError: the build has no binary for the target.
    """
    if not 0 <= ops <= MAX_OPS:
        raise UsageError(f"{ops} operations; give 0 to {MAX_OPS}")
    target, name = machine_name(machine)
    build.binary(target)
    check = _Check(build, target, name, tuple(args), ops, seed, defect, folder)
    check.qom = qom or ops > 0
    check.saved = contracts
    return check.run()


@dataclass(slots=True)
class _Look:
    """What the witnesses of a state said in one QEMU, and how it ended if it did."""

    accounts: list[Account] = field(default_factory=list)
    ended: Judgement | None = None
    asked: str = ""  #: the witness that was being asked when it ended


class _Check:
    """One check while it is made."""

    def __init__(
        self, build: Build, target: str, name: str, args: tuple[str, ...], ops: int, seed: int,
        defect: str, folder: Path,
    ) -> None:
        self.build = build
        self.machine = f"{target}/{name}"
        self.args = args
        self.ops = ops
        self.seed = seed
        self.defect = defect
        self.folder = folder
        self.rules, self.face = rules_of(
            Settings(machine=self.machine, defect=defect, ram=DEFAULT_RAM), build
        )
        self.config = QemuConfig(
            build=build, target=target, machine=name, args=args, ram=DEFAULT_RAM,
            ram_id=None, mode=VmMode.STOPPED,
        )
        #: The machine decides the stream too: two machines are not given the same numbers.
        self.rng = Random(f"{seed}/{self.machine}")
        self.qom = False
        self.saved: ContractTable | None = None
        self.setup = ""
        self.map = MapResult()
        self.map_accounts: tuple[Account, ...] = ()
        self.progress = Progress()
        self.accounts: tuple[Account, ...] = ()
        self.divergences: list[Divergence] = []
        self.notes: list[str] = []
        self.ram: tuple[tuple[str, str, int], ...] = ()
        self.flaky = 0
        self.fatal = FatalPlaces()
        self._last_read: Operation | None = None
        self.start_s = time.monotonic()

    def run(self) -> CheckResult:
        """Everything, in order."""
        try:
            try:
                self._map()
            except LaunchError as error:
                if _UNKNOWN in error.stderr:
                    ask_ram_id(self.build, self.config.target, self.config.machine)
                return self._result(Status.NOT_STARTED, _reason(error))
            if self.ops:
                self._start()
            if self.ops:
                self._access()
                self._look_at_states()
        except (QemuglueError, OSError) as error:
            if type(error) is UsageError and not self.map.spaces:
                raise  # it cannot be asked for; later ones would be mistakes of ours
            return self._result(Status.ERROR, _reason(error))  # what was found is kept
        return self._result(Status.DIVERGED if self.divergences else Status.MATCH)

    def _result(self, status: str, reason: str = "") -> CheckResult:
        progress = self.progress
        return CheckResult(
            build=self.build.name, version=self.build.version, machine=self.machine,
            status=status, seed=self.seed, ops=self.ops, reason=reason, map=self.map,
            seconds=round(time.monotonic() - self.start_s, 3), tally=progress.tally,
            accounts=(*self.map_accounts, *self.accounts), divergences=tuple(self.divergences),
            notes=tuple(dict.fromkeys((*self.notes, *progress.notes))),
            ram=tuple((name, coverage) for name, coverage, _ in self.ram),
            ram_bytes=_bytes(self.ram),
            restarts=progress.restarts, deaths=progress.deaths,
            flaky=progress.flaky + self.flaky, defect=self.defect,
        )

    # -- the map -------------------------------------------------------------------------------

    def _map(self) -> None:
        """The machine as a plain command line gives it."""
        found = check_plain_map(self.build, self.machine, args=self.args, qom=self.qom)
        self.map = found.result
        self.args = found.config.args  # an image may have been added
        self.notes += found.notes
        self._add_map_differences("the machine as started", self.map)
        if found.qom is not None:
            self.map_accounts = (found.qom,)
            for difference in found.qom.differences:
                self._add_difference(difference, 1, 1)

    def _add_map_differences(self, place: str, result: MapResult) -> None:
        for difference in result.differences:
            self._add_difference(Difference("map", place, "", difference), 1, 1)

    def _start(self) -> None:
        """The machine that accesses are made to."""
        ram_id = ask_ram_id(self.build, self.config.target, self.config.machine) or None
        wanted = QemuConfig(
            build=self.build, target=self.config.target, machine=self.config.machine,
            args=self.args, ram=DEFAULT_RAM if ram_id else None, ram_id=ram_id,
            mode=self.config.mode,
        )
        self.config, mirror = start_machine(wanted)
        names = {region.name for region in mirror.regions}
        self.setup = "pci" if "pci-conf-data" in names else ""
        self._add_map_differences("the machine with -nodefaults", map_result(mirror))
        if _CPU_SPACE not in {space.name for space in mirror.spaces} and self.ops:
            self.notes.append("no CPU: there is no address space to make accesses in")
            self.ops = 0

    # -- accesses ------------------------------------------------------------------------------

    def _scene(self, knowledge: Knowledge) -> Scene:
        planted = PLANTED.get(self.defect)
        tamper = planted.attach if isinstance(planted, Fault) else None
        return Scene(self.config, knowledge, self.setup, self.rules, self.face, tamper)

    def _program(self, operations: Sequence[Operation]) -> Program:
        return Program(
            self.machine, self.args, tuple(operations), self.config.mode.value, self.setup
        )

    def _access(self) -> None:
        self.knowledge = Knowledge()
        if self.saved is not None:
            self._take_saved(self.saved)
        explorer = Explorer(
            self._scene(self.knowledge), self.folder, seed=self.seed, defect=self.defect,
            on_finding=self._on_finding,
        )
        self.progress = explorer.progress
        try:
            self.layout = explorer.start()
            self.generator = Generator(self.layout)
            tried = split = 0
            while self._performed < self.ops and tried < MOST_TRIED * self.ops:
                count = min(PROGRAM_OPS, self.ops - self._performed)
                operations = self._draw(count, self.progress.tally)
                tried += count
                if operations:
                    explorer.execute(self._program(operations))
                    split += split_accesses(
                        explorer.session(), resolve(self.layout, operations))
                if time.monotonic() - self.start_s > PATIENCE_S:
                    self.notes.append(f"stopped after {PATIENCE_S:.0f} s: QEMU had to be "
                                      f"started again {self.progress.restarts} times")
                    break
            session = explorer.session()
            self.ram = tuple(session.ram.coverage())
            if self._performed and not split:
                self.notes.append(UNSPLIT)
            self._add_unexplained(session)
        finally:
            explorer.close()

    def _add_unexplained(self, session: Session) -> None:
        """Devices whose answers no contract gives, which the probe has shown: the rules of the
        model are not QEMU's there, so it is a divergence, though no access of it is judged."""
        for region in session.device_regions():
            why = session.unjudgeable(region) or ""
            if NO_CONTRACT in why:
                self._add_difference(Difference(
                    "contract", f"{region.absolute():#x} ({region.name})", A_CONTRACT, why), 1, 1)

    def _take_saved(self, saved: ContractTable) -> None:
        """Know what the table says before anything is probed, and tell how much that is: a
        region that is not in it is probed in silence."""
        with self._scene(Knowledge()).session() as session:
            regions = list(session.device_regions())
        self.knowledge.contracts = contracts = contracts_for(saved, regions)
        used = sum(contracts.get(region.key) is not None for region in regions)
        self.notes.append(f"{used} of {len(regions)} device regions were held to the contracts "
                          f"saved of {saved.build}")

    @property
    def _performed(self) -> int:
        return self.progress.tally.total

    def _draw(self, count: int, tally: Tally) -> list[Operation]:
        """Random operations, without those that were seen to end QEMU: ``tally`` has these."""
        kept: list[Operation] = []
        for op in self.generator.operations(self.rng, count):
            why, row = self.fatal.why(self.layout, op)
            if why:
                tally.cells[row, Verdict.UNJUDGED] += 1
                tally.reasons[why] += 1
                tally.verbs[op.verb] += 1
            else:
                kept.append(op)
        return kept

    def _on_finding(self, finding: Finding) -> None:
        told = finding.details
        if finding.kind == "divergence":
            where = f"{told.get('address', 'guest RAM')} ({told.get('region') or 'unassigned'})"
            if told.get("verb"):
                where = f"{told['verb']} {where}"
            model, qemu = tuple(told["model_says"]), tuple(told["qemu_says"])
            witness = {"reply": "qtest", "ram": "ram"}.get(str(told["what"]), "transcript")
        else:
            where = self.fatal.add(self.layout, finding)
            model, qemu = ("QEMU goes on",), (str(told.get("error") or finding.signature),)
            witness = "process"
        self.divergences.append(Divergence(
            finding.kind, witness, finding.signature, where, model, qemu, finding.confirmed,
            _text(finding.program), str(finding.path or ""),
        ))

    # -- witnesses of a state ------------------------------------------------------------------

    def _look_at_states(self) -> None:
        """In a fresh QEMU after one more program; what differs is looked at again. A read that
        ends QEMU is left out, and everything asked once more."""
        operations = self._draw(PROGRAM_OPS, Tally())
        # Every try takes its sample from the same seed, so that it asks for the same places.
        seed = self.rng.getrandbits(64)
        found = self._look(operations, seed)
        if found is None:
            operations = []
            found = self._look(operations, seed)
        for _ in range(MAX_FATAL_READS):
            if found is None or found.ended is None:
                break
            self._asking_ended_qemu(found, operations, seed)
            if self._last_read is None:
                break  # there is no place to leave out: it would only be seen again
            found = self._look(operations, seed)
        if found is None:
            self.notes.append("the witnesses of a state were not asked: no session lasted")
            return
        self.accounts = tuple(found.accounts)
        self._report_accounts(operations, seed)

    def _look(self, operations: Sequence[Operation], seed: int) -> _Look | None:
        """What each witness says after ``operations``; None if they end otherwise than well."""
        rng = Random(seed)
        looks: dict[str, Callable[[Session], Account]] = {
            "gpa2hva": lambda session: check_translation(session, rng), "the dump": check_dump,
            "xp": lambda session: check_xp(session, rng, avoid=self._fatal_read),
            "the map": check_map,
        }
        with self._scene(self.knowledge).session() as session:
            try:
                lockstep = LockStep(session)
                end = lockstep.run(resolve(session.layout(), operations))
                if end.stop is not Stop.DONE or lockstep.check_ram(full=True) is not None:
                    return None
            except QemuFailure:
                return None
            found = _Look()
            for name, look in looks.items():
                self._last_read = None
                try:
                    found.accounts.append(look(session))
                except QemuFailure as error:
                    found.ended, found.asked = failure_judgement(session, error), name
                    break
            return found

    def _fatal_read(self, read: Read) -> str:
        op = Operation("read", Place(offset=read.addr), read.size)
        why = self.fatal.why(self.layout, op)[0]
        if not why:
            self._last_read = op
        return why

    def _asking_ended_qemu(
        self, look: _Look, operations: Sequence[Operation], seed: int
    ) -> None:
        """QEMU died or hung while a witness was asked: xp most likely at its last read, any other
        of what was done before."""
        found, op = look.ended, self._last_read
        assert found is not None
        again = self._look(operations, seed)
        same = again is not None and again.ended is not None and (
            again.ended.signature == found.signature
        )
        self._last_read = op
        place = f"while {look.asked} was asked"
        if op is not None:
            place = f"xp, like {self.fatal.add_operation(self.layout, op, found.signature)}"
        self.divergences.append(Divergence(
            found.kind.value, "process", found.signature, place, ("QEMU goes on",),
            (found.error or found.signature,), (1 + same, 2), _text(self._program(operations)),
        ))

    def _report_accounts(self, operations: Sequence[Operation], seed: int) -> None:
        found = [each for account in self.accounts for each in account.differences]
        if not found:
            return
        seen = dict.fromkeys(((each.witness, each.place) for each in found), 1)
        for _ in range(STATE_TRIES - 1):
            again = self._look(operations, seed)
            for account in again.accounts if again is not None else ():
                for each in account.differences:
                    if (each.witness, each.place) in seen:
                        seen[each.witness, each.place] += 1
        for each in found:
            count = seen[each.witness, each.place]
            if count == 1:
                self.flaky += 1
            else:
                self._add_difference(each, count, STATE_TRIES, self._program(operations))

    def _add_difference(
        self, found: Difference, k: int, n: int, program: Program | None = None
    ) -> None:
        self.divergences.append(Divergence(
            "divergence", found.witness, f"divergence:{found.witness}", found.place,
            (found.model,) if found.model else (), (found.qemu,), (k, n),
            _text(program) if program is not None else "",
        ))


def _bytes(ram: Sequence[tuple[str, str, int]]) -> tuple[tuple[str, int], ...]:
    """Bytes of each coverage."""
    found: Counter[str] = Counter()
    for _, coverage, size in ram:
        found[coverage] += size
    return tuple(sorted(found.items()))


def check_map(session: Session) -> Account:
    """The map after accesses: drawn from the tree's text, compared with QEMU's own views."""
    account = Account("map")
    session.refresh()
    account.compared = map_result(session.mirror).ranges
    for difference in session.mirror.differences:
        account.differs(
            difference.space, str(difference.model or difference.what or "nothing"),
            str(difference.qemu or "nothing"),
        )
    return account


def _reason(error: Exception) -> str:
    """QEMU's own words, where it said any."""
    said = [line.strip() for line in getattr(error, "stderr", "").splitlines() if line.strip()]
    text = str(error)
    return text if not said or said[-1] in text else f"{text}: {said[-1]}"


def _text(program: Program) -> str:
    text = program.canonical_text()
    return text if len(text) <= MAX_TEXT else ""
