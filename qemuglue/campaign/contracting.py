"""The contracts of a whole machine, asked in QEMUs that are thrown away.

First every region is read, then every region is written; each access that ends QEMU, and each
write that moves the region away or resets the machine, costs a fresh QEMU and nothing else.

Written is what was read at the same place: of all values the one least likely to switch off or
move what is being asked (0, where nothing was read). Where neither reads nor those writes tell
the byte order, because the registers read the same backwards, up to four writes of 01 02 03 …
follow, which no byte order leaves alone. 0 is written where a write starts a DMA.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from fnmatch import fnmatchcase
from functools import partial

from qemuglue.campaign.settings import DEFAULT_RAM, ask_ram_id
from qemuglue.campaign.starting import start_machine
from qemuglue.errors import QemuFailure
from qemuglue.memory.contract import Contract
from qemuglue.memory.region import MemoryRegion, RegionKind
from qemuglue.memory.rules import rules_for
from qemuglue.qemu.builds import Build
from qemuglue.qemu.config import QemuConfig, VmMode, machine_name
from qemuglue.witness.contract_table import Access, ContractRow, ContractTable
from qemuglue.witness.describing import access_of, unknown
from qemuglue.witness.dma import KICK_REGIONS
from qemuglue.witness.explaining import Cache, explain, vetoes
from qemuglue.witness.judge import Scene
from qemuglue.witness.probe import follows_none, writes_only
from qemuglue.witness.probing import (
    Ask,
    Place,
    Probe,
    ask,
    every_size,
    first_windows,
    powers_of_two,
)
from qemuglue.witness.session import Knowledge, Session
from qemuglue.witness.vetoes import learn_veto

#: QEMUs that one region may cost in one direction; each is a start of 0.1 to 2 s.
LOST_PER_REGION = 4
#: Where the very first accesses end QEMU, this many are lost before the region is given up.
LOST_FOR_NOTHING = 2
#: Times the map may be taken again for one region because a write changed it.
REFRESHES = 24
#: Bytes that no byte order leaves alone.
PATTERN = bytes(range(1, 9))
#: Accesses with that pattern.
PATTERN_WRITES = 4
#: The first CPU's address space.
CPU_SPACE = "cpu-memory-0"
#: Why nothing is known of a direction that nobody wanted to know about.
NOT_ASKED = "not asked"
#: CFI commands that take a flash out of ROMD mode: read status, read identity.
LEAVE_ROMD = (0x70, 0x90)


def probe_machine(
    build: Build, machine: str, args: Sequence[str] = (), *, writes: bool = True,
    regions: Sequence[str] = (),
) -> ContractTable:
    """Ask every device region in view of ``TARGET/NAME``; without ``writes`` only by reads; of
    ``regions``, where given, only those whose name or identity matches one of the globs.

    :raise UsageError: ``machine`` is no such name.
    :raise LaunchError: the machine does not start; the reason is QEMU's.
    :raise QemuFailure: it starts, and then ends before anything is asked.
    """
    target, name = machine_name(machine)
    build.binary(target)
    ram_id = ask_ram_id(build, target, name) or None
    config, mirror = start_machine(QemuConfig(
        build=build, target=target, machine=name, args=tuple(args),
        ram=DEFAULT_RAM if ram_id else None, ram_id=ram_id, mode=VmMode.STOPPED,
    ))
    names = {region.name for region in mirror.regions}
    scene = Scene(config, Knowledge(), "pci" if "pci-conf-data" in names else "")
    prober = _Prober(scene)
    try:
        rows = prober.rows(writes=writes, regions=regions)
    finally:
        prober.drop()
    return ContractTable(
        machine, build.name, build.version, tuple(args), tuple(rows), tuple(prober.notes)
    )


def matches(name: str, region: str, globs: Sequence[str]) -> bool:
    """Whether a region's name or its identity matches one of the globs."""
    return any(fnmatchcase(name, glob) or fnmatchcase(region, glob) for glob in globs)


def _harm(one: Ask) -> bool:
    """Aligned accesses of a register's size come first: others are what devices assert on."""
    return one.size < 4 or one.offset % one.size != 0


class _Row:
    """A region while it is asked."""

    def __init__(self, place: Place, key: Hashable) -> None:
        region = place.region
        self.key = key
        self.name = region.name
        self.size = region.size
        self.kind = region.kind
        self.owner = str(getattr(region.key, "owner", ""))
        self.text = str(region.key)
        self.space = "I/O" if place.ports else "memory"
        self.address = min(section.start for section in place.sections)
        self.probes: list[Probe] = []
        self.reads = Access(unknown=NOT_ASKED)
        self.writes = Access(unknown=NOT_ASKED)
        self.contract: Contract | None = None

    def row(self) -> ContractRow:
        return ContractRow(
            region=self.text, name=self.name, owner=self.owner, size=self.size,
            kind=self.kind.value, space=self.space, address=self.address,
            reads=self.reads, writes=self.writes,
        )


class _Prober:
    """Asks regions one by one, with a fresh QEMU whenever the last is no more what it was."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        # The true rules: contracts are facts.
        self.rules = rules_for(scene.config.build.version_tuple)
        self.notes: list[str] = []
        self.cache: Cache = {}
        self._session: Session | None = None
        self._lost = 0

    def session(self) -> Session:
        if self._session is None:
            session = self.scene.session()
            session.__enter__()
            self._session = session
        return self._session

    def drop(self) -> None:
        """The next region gets a fresh QEMU."""
        if self._session is not None:
            self._session.close()
            self._session = None

    # -- all regions ---------------------------------------------------------------------------

    def rows(self, *, writes: bool, regions: Sequence[str]) -> list[ContractRow]:
        session = self.session()
        rows = []
        for region in session.device_regions():
            place = Place.of(session, region)
            wanted = not regions or matches(region.name, str(region.key), regions)
            if place is not None and wanted:
                rows.append(_Row(place, session.contract_key(region)))
        for row in rows:
            why = self._unaskable(row)
            if why:
                row.reads = row.writes = Access(unknown=why)
                continue
            self._read(row)
        if writes:
            self.drop()
            for row in rows:
                if not self._unaskable(row):
                    self._write(row)
        return [row.row() for row in rows]

    def _unaskable(self, row: _Row) -> str:
        """Why the region is never touched (``witness/oddities.toml``), or ""."""
        if all(space.name != CPU_SPACE for space in self.session().mirror.spaces):
            return "the machine has no CPU, and that is whose address space qtest enters"
        return self.session().avoided.why(row.name) or ""

    def _region(self, key: Hashable) -> MemoryRegion | None:
        session = self.session()
        return next(
            (r for r in session.device_regions() if session.contract_key(r) == key), None
        )

    def _place(self, row: _Row) -> Place | None:
        region = self._region(row.key)
        return None if region is None else Place.of(self.session(), region)

    # -- reads ---------------------------------------------------------------------------------

    def _read(self, row: _Row) -> None:
        place = self._place(row)
        if place is None:
            row.reads = Access(unknown="it is not in view of a fresh QEMU any more")
            return
        if writes_only(place):
            row.reads = Access(unknown="reads come from memory (ROMD mode)")
            return
        notes: list[str] = []
        windows = sorted(every_size(place, first_windows(place)), key=_harm)
        probes = self._gather(row, windows, notes)
        elsewhere = self._gather(row, powers_of_two(place), notes) if probes else []
        row.probes = probes + elsewhere
        row.reads = self._explained(row, probes, elsewhere, notes, is_write=False)

    def _explained(
        self, row: _Row, probes: list[Probe], elsewhere: list[Probe], notes: list[str], *,
        is_write: bool,
    ) -> Access:
        """What the probes show; those ``elsewhere`` must fit too, or it is said."""
        if not probes:
            return unknown(notes[0] if notes else "no access was answered", probes, notes)
        every = probes + elsewhere
        learned = explain(self.rules, every, self.cache)
        if learned is None and elsewhere:
            learned = explain(self.rules, probes, self.cache)
            if learned is not None:
                notes.append(f"elsewhere it behaves otherwise: {elsewhere[0]}, say")
                every = probes
        if learned is None:
            return unknown(
                follows_none(self.rules, probes, self._region(row.key)), probes, notes)
        row.contract = row.contract or learned.contract
        veto = None
        if vetoes(every):
            place = self._place(row)
            asker = partial(self._gather, row, notes=notes)
            if place is not None:
                veto = learn_veto(place, learned.contract, asker, is_write=is_write)
        return access_of(self.rules, every, learned, veto, notes)

    # -- writes --------------------------------------------------------------------------------

    def _write(self, row: _Row) -> None:
        place = self._place(row)
        if place is None:
            row.writes = Access(unknown="it is not in view of a fresh QEMU any more")
            return
        if row.name in KICK_REGIONS:
            self.drop()  # RAM at 0 must be as the machine has it: that is the command
        notes: list[str] = []
        asks = [self._valued(row, one) for one in
                sorted(every_size(place, first_windows(place), is_write=True), key=_harm)]
        probes = self._gather(row, asks, notes)
        self._after_writes(notes)
        if probes and not row.reads.order and row.name not in KICK_REGIONS:
            probes += self._pattern(row, place, probes, notes)
        row.writes = self._explained(row, probes, [], notes, is_write=True)
        if row.kind is RegionKind.ROM_DEVICE and not row.reads.known:
            self._read_flash(row)
        self._after_writes(notes)

    def _valued(self, row: _Row, one: Ask) -> Ask:
        """The write, of what was read there; of 0 where a write starts a DMA (what was read is
        no address: QEMU may take the machine's whole memory for its command)."""
        if row.name in KICK_REGIONS:
            return one
        order = self.session().face.order
        for probe in row.probes:
            if (probe.offset, probe.size) == (one.offset, one.size):
                value = int.from_bytes(probe.data, "little" if probe.single else order)
                return one._replace(value=value)
        return one

    def _pattern(
        self, row: _Row, place: Place, probes: list[Probe], notes: list[str]
    ) -> list[Probe]:
        """Writes whose value shows the byte order, where those made so far do not."""
        learned = explain(self.rules, probes, self.cache)
        if learned is None or learned.endian_known:
            return []
        wanted = [
            probe for probe in probes
            if probe.size > 1 and not probe.crossing and probe.offset % probe.size == 0
            and probe.seen and probe.seen[0].reason is None and probe.seen[0].size > 1
        ]
        wanted.sort(key=lambda probe: -probe.size)
        order = self.session().face.order
        asks = [
            Ask(probe.offset, probe.size, True, int.from_bytes(PATTERN[: probe.size], order))
            for probe in wanted[:PATTERN_WRITES]
        ]
        return self._gather(row, asks, notes)

    def _read_flash(self, row: _Row) -> None:
        """Reads of a ROM device that a command has taken out of ROMD mode."""
        notes: list[str] = []
        for command in LEAVE_ROMD:
            place = self._place(row)
            if place is None:
                return
            try:
                session = self.session()
                ask(session, place, [Ask(place.main.offset, 1, True, command)], self.rules)
                session.refresh()
                place = self._place(row)
                if place is None or writes_only(place):
                    continue
                answers = ask(session, place, every_size(place, first_windows(place)),
                              self.rules)
            except QemuFailure:
                self.drop()
                return
            if answers.ended is not None:
                self.drop()
                return
            notes.append(f"read after command {command:#x}, which ends ROMD mode")
            row.reads = self._explained(row, list(answers.probes), [], notes, is_write=False)
            return

    def _after_writes(self, notes: list[str]) -> None:
        """A machine that was reset, or wants to be, is not asked any further."""
        if self._session is None:
            return
        try:
            events = self._session.quiesce()
        except QemuFailure:
            events = ["SHUTDOWN"]
        told = [name for name in events if name in ("RESET", "SHUTDOWN")]
        if told:
            notes.append(f"a write made the machine {told[0].lower()}")
            self.drop()

    # -- asking --------------------------------------------------------------------------------

    def _gather(self, row: _Row, asks: Iterable[Ask], notes: list[str]) -> list[Probe]:
        """The probes of ``asks``, in fresh QEMUs where one is lost. A place where QEMU died is
        left out from then on: the eight bytes around it."""
        rest = list(asks)
        probes: list[Probe] = []
        lost = refreshes = 0
        while rest:
            place = self._place(row)
            if place is None:
                notes.append(f"{len(rest)} accesses were not made: it is not in view any more")
                break
            matters = row.kind is not RegionKind.ROM_DEVICE and refreshes < REFRESHES
            answers = ask(self.session(), place, rest, self.rules, map_matters=matters)
            probes += answers.probes
            rest = list(answers.rest)
            culprit = answers.culprit
            if culprit is None:
                break
            if answers.ended is None:
                refreshes += 1
                if not self._still_there(place):
                    notes.append(f"a {culprit} moves it or takes it away")
                    self.drop()
                    lost += 1
            else:
                notes.append(f"a {culprit} ended with: {answers.ended}")
                self.drop()
                lost += 1
                rest = [one for one in rest if one.offset >> 3 != culprit.offset >> 3]
            if lost >= (LOST_PER_REGION if probes else LOST_FOR_NOTHING) and rest:
                notes.append(f"{len(rest)} accesses were not made")
                break
        return probes

    def _still_there(self, place: Place) -> bool:
        """After a change of the map: whether the region shows where it did."""
        session = self.session()
        try:
            session.refresh()
        except QemuFailure:
            return False
        return Place.of(session, place.region) == place
