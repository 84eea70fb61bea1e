"""One running QEMU with everything that watches it: mirror, evidence, RAM, contracts.

A session starts a QEMU, performs the set-up operations, mirrors it, and keeps the mirror equal
to it. What is learnt (contracts, barriers, pairs of regions) outlives it in ``Knowledge``.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Any

from qemuglue.errors import ModelError, QemuFailure, UsageError
from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.contract import UNASSIGNED_CONTRACT, Contract
from qemuglue.memory.flatview import FlatView
from qemuglue.memory.region import MemoryRegion, RegionKind
from qemuglue.memory.rules import Rules, rules_for
from qemuglue.mirror import Mirror
from qemuglue.program.layout import Layout
from qemuglue.program.operation import Operation
from qemuglue.program.recipes.pci import CONFIG_ADDRESS
from qemuglue.program.verbs import SETUPS
from qemuglue.qemu.config import QemuConfig, VmMode
from qemuglue.qemu.events import Event, Lines, parse
from qemuglue.qemu.guest_ram import ProcMem
from qemuglue.qemu.monitor import MonitorRefused
from qemuglue.qemu.process import QemuProcess
from qemuglue.qemu.roms import restored
from qemuglue.witness.barriers import Barriers
from qemuglue.witness.contracts import Contracts, Veto
from qemuglue.witness.dma import MAKERS, QUIET, Following, owner_of
from qemuglue.witness.evidence import Evidence
from qemuglue.witness.face import HostFace, encode
from qemuglue.witness.fastmap import FastMap, is_io_root
from qemuglue.witness.oddities import avoided
from qemuglue.witness.pci import SELECTED, pci_setup
from qemuglue.witness.port_root import IoRootOps
from qemuglue.witness.ram import RamDifference, RamSource, RamWitness, ram_regions
from qemuglue.witness.ramsource import source_for

#: An operation and the address it was resolved to.
Step = tuple[Operation, int]



@dataclass(slots=True)
class Knowledge:
    """What sessions of one machine on one build have learnt; shared by all of them."""

    contracts: Contracts = field(default_factory=Contracts)
    barriers: Barriers = field(default_factory=Barriers)
    #: (region an operation was on, region its device then accessed), see ``Evidence``.
    sides: set[tuple[str, str]] = field(default_factory=set)
    #: Keys of regions that were written to see their byte order.
    written: set[Hashable] = field(default_factory=set)
    #: Region key to the groups of eight bytes (offset >> 3) where probing it ended QEMU.
    deadly: dict[Hashable, frozenset[int]] = field(default_factory=dict)
    #: Region key to why its contract could not be learnt.
    hopeless: dict[Hashable, str] = field(default_factory=dict)
    #: Path of a decoded device to what was learnt of it (``dma.Place.known``).
    devices: dict[str, dict[str, Any]] = field(default_factory=dict)


#: Targets whose machines were seen to leave RAM alone in a reset (q35, pc, isapc, microvm).
_RESETS_SPARE_RAM = ("x86_64", "i386")


class Session:
    """Use as a context manager; leaving it ends QEMU. Raises what ``QemuProcess`` raises."""

    def __init__(
        self, config: QemuConfig, *, knowledge: Knowledge | None = None,
        setup: str = "", rules: Rules | None = None, face: type[HostFace] = HostFace,
        tamper: Callable[[QemuProcess], None] | None = None, mirror: type[Mirror] = Mirror,
    ) -> None:
        if setup not in SETUPS:
            raise UsageError(f"unknown set-up {setup!r}; use one of {', '.join(SETUPS[1:])}")
        self.config = config
        self.setup = setup
        self.rules = rules or rules_for(config.build.version_tuple)
        self.knowledge = knowledge or Knowledge()
        self.process = QemuProcess(config)
        #: Called before operations are judged: a planted fault takes hold of the wires. What is
        #: learnt before is learnt from QEMU as it is.
        self.tamper = tamper
        self.evidence = Evidence()
        self.evidence.known_sides = self.knowledge.sides
        self.ram = RamWitness()
        self.following = Following(
            MAKERS, self.ram, qom_get=self.qom_get, version=config.build.version_tuple,
            parked=config.mode is VmMode.PARKED, known=self.knowledge.devices,
            buses=self.buses, ask=self.ask,
        )
        self.evidence.following = self.following
        #: Everything sent since QEMU started, set-up included.
        self.journal: list[Step] = []
        self.learnt_now = False
        self.mirror: Mirror
        self.face: HostFace
        self._face = face
        self._mirror = mirror
        self.fast: FastMap
        self.fast_io: FastMap | None = None
        self._unknown: dict[MemoryRegion, str] = {}
        #: Regions that are never touched on this machine.
        self.avoided = avoided(config.build.version_tuple, config.full_name)
        self._procmem: ProcMem | None = None
        #: Path of a device to its QOM type.
        self._types: dict[str, Any] = {}
        self._replaced: dict[MemoryRegion, int] = {}
        self._unparsed = b""
        self._marks = 0
        self._marker_base = 0
        self.setup_steps: list[Step] = []
        #: Counts changes of the map since the set-up was last performed.
        self.changes = 0
        #: What became of them, see ``verdict.MAPS``; whoever wants sums puts his own here.
        self.maps: Counter[str] = Counter()
        #: Whether the mirror was exact when the session began: only then it must stay so.
        self.map_exact = True

    def __enter__(self) -> Session:
        self.process.__enter__()
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End QEMU; nothing is asked of it any more.

        The model's copy of guest RAM is let go at once: a session is full of cycles, and the
        garbage collector does not know how large a bytearray is.
        """
        self.ram.release()
        self.__dict__.pop("fast", None)
        self.__dict__.pop("fast_io", None)
        if self._procmem is not None:
            self._procmem.close()
            self._procmem = None
        self.process.close(soft=False)

    def _start(self) -> None:
        self.target_big = self.process.endianness == "big"
        ops = pci_setup(
            self.process.monitor, self.config.full_name, masters=self.setup == "dma",
            big=self.target_big,
        ) if self.setup else ()
        steps = [(op, op.place.offset) for op in ops if op.place is not None]
        if steps:
            request = b"".join(encode(op, addr) for op, addr in steps)
            self.process.channel.exchange(request, len(steps))
            self.journal.extend(steps)
            self.setup_steps = steps
            self.following.config.address = SELECTED
        for op, addr in steps:
            if addr == CONFIG_ADDRESS:
                self.following.config.address = op.value
        self.process.monitor.round_trip()
        self.process.monitor.events()
        self.mirror = self._mirror.take(self.process.monitor.hmp)
        self.map_exact = self.mirror.exact
        self.evidence.new_process()
        self.attach()
        self.events()  # what the set-up caused is nobody's evidence

    # -- the mirror ----------------------------------------------------------------------------

    def attach(self) -> None:
        """Connect the model's spaces to this QEMU's witnesses; after every change of the map."""
        self.evidence.new_map()
        self.evidence.twins = twins(self.mirror.regions)
        self.mirror.topology.rules = self.rules
        self.mirror.topology.target_big = self.target_big
        for space in self.mirror.spaces:
            space.rules = self.rules
            space.target_big = self.target_big
            space.ops = self.evidence
            space.observer = self.evidence
        self._attach_ram()
        self._attach_contracts()
        self.following.attach(self.mirror.regions, self.mirror.spaces, self.mirror.memory)
        if self.mirror.io is not None and is_io_root(self.mirror.io.root):
            self.mirror.io.root.ops = IoRootOps(self.evidence, self.rules)
        memory, io = self.mirror.memory, self.mirror.io
        self._marker_base = marker_base(memory.view)
        self.face = self._face(memory, io)
        self.draw_fast_maps()

    def draw_fast_maps(self) -> None:
        """After a change of the map, or of what is known of barriers and contracts."""
        memory, io, barriers = self.mirror.memory, self.mirror.io, self.knowledge.barriers
        self.fast = FastMap(
            memory, barriers, self.unjudgeable, avoided=self.avoided.why,
            following=self.following, before=getattr(self, "fast", None),
        )
        self.fast_io = (
            FastMap(io, barriers, self.unjudgeable, avoided=self.avoided.why, ports=True,
                    following=self.following, before=self.fast_io)
            if io is not None else None
        )

    def _attach_ram(self) -> None:
        for region in ram_regions(self.mirror.memory.view):
            if region.kind is not RegionKind.ROM_DEVICE:
                region.contract = UNASSIGNED_CONTRACT
            if region not in self.ram.sources and region not in self.ram.uncovered:
                self.ram.add(region, self._source(region))

    def _source(self, region: MemoryRegion) -> RamSource | None:
        if self._procmem is None:
            self._procmem = ProcMem(self.process.pid)
        return source_for(self.process, self._procmem, self.mirror.memory, region)

    def _attach_contracts(self) -> None:
        for region in self.device_regions():
            learned = self.knowledge.contracts.get(self.contract_key(region))
            if learned is None:
                self._unknown[region] = self.knowledge.hopeless.get(
                    self.contract_key(region), "its contract is not known"
                )
                continue
            self._unknown.pop(region, None)
            if isinstance(region.contract.accepts, Veto):
                continue
            veto = Veto(learned, partial(self.evidence.refused_next, region), self._note_learnt)
            region.contract = replace(learned.contract, accepts=veto)

    def contract_key(self, region: MemoryRegion) -> Hashable:
        """What a region's contract is known by: its identity, and how often a namesake took
        its place (ACPI CPU hot-plug swaps its legacy registers for modern ones, say)."""
        times = self._replaced.get(region, 0)
        return (region.key, times) if times else region.key

    def replaced(self, region: MemoryRegion) -> None:
        """A namesake took the region's place: what was learnt of it does not hold."""
        self._replaced[region] = self._replaced.get(region, 0) + 1
        self.evidence.forget(region)
        region.contract = Contract()
        self.attach()

    def _note_learnt(self) -> None:
        self.learnt_now = True

    def spaces(self) -> Iterator[AddressSpace]:
        """The spaces the host path reaches."""
        yield self.mirror.memory
        if self.mirror.io is not None:
            yield self.mirror.io

    def device_regions(self) -> Iterator[MemoryRegion]:
        """Regions in view whose accesses reach a device, each once."""
        seen: set[MemoryRegion] = set()
        for space in self.spaces():
            for section in space.view.sections:
                region = section.region
                device = region.kind in (
                    RegionKind.IO, RegionKind.ROM_DEVICE, RegionKind.RAM_DEVICE,
                    RegionKind.CONTAINER,
                )
                if device and region not in seen:
                    seen.add(region)
                    yield region

    def missing_contracts(self) -> list[MemoryRegion]:
        """Device regions in view that can be probed and have not been."""
        return [
            region for region in self.device_regions()
            if region in self._unknown and self.avoided.why(region.name) is None
            and self.contract_key(region) not in self.knowledge.hopeless
        ]

    def give_up_on(self, region: MemoryRegion, why: str) -> None:
        """Operations on the region are unjudged from now on, with this reason."""
        self._unknown[region] = why

    def unjudgeable(self, region: MemoryRegion) -> str | None:
        """Why nothing can be said of accesses to ``region``, or None."""
        why = self.avoided.why(region.name)
        if why is not None:
            return f"{region.name}: {why}"
        if region in self._unknown:
            return f"{region.name}: {self._unknown[region]}"
        if region in self.ram.uncovered:
            return f"{region.name}: its memory cannot be read from outside"
        if region.kind is RegionKind.IOMMU:
            return f"{region.name}: IOMMU translation is not modelled yet"
        return None

    def refresh(self) -> None:
        """Take the map again after it changed."""
        self.following.detach()
        seen = self.mirror.refresh(self.process.monitor.hmp)
        if seen.changed:
            self.maps.update(changed=1, predicted=int(seen.predicted), learnt=seen.learnt.total)
            if not seen.exact and self.map_exact:
                self.maps["inexact"] += 1
        self.changes += 1
        self.attach()

    def layout(self) -> Layout:
        return self.mirror.layout()

    # -- talking to QEMU -------------------------------------------------------------------------

    def next_marker(self) -> int:
        """An address whose one-byte read leaves a refusal that marks a place in the transcript."""
        self._marks = (self._marks + 1) & 0xFFFF
        return self._marker_base + self._marks

    def exchange(self, request: bytes, replies: int) -> list[bytes]:
        """Send a batch; the reply lines. Raises QtestDied or QtestHang with what came."""
        lines = self.process.channel.exchange(request, replies).split(b"\n")
        lines.pop()
        return lines

    def events(self) -> list[Event]:
        """Events of the transcript since the last call."""
        text, self._unparsed = self._unparsed + self.process.transcript.read_new(), b""
        return parse(text)

    def events_until(self, marker: int) -> Lines:
        """Events up to the mark, which is taken out; all there are if it is not there (QEMU
        has died on the way)."""
        text = self._unparsed + self.process.transcript.read_new()
        mark = b"Invalid read at addr 0x%X, size 1, region '(null)', reason: rejected" % marker
        at = text.find(mark)
        if at < 0:
            self._unparsed = b""
            return Lines(text)
        stop = text.find(b"\n", at) + 1
        self._unparsed = text[stop:] if stop else b""
        return Lines(text[:at])

    def quiesce(self) -> list[str]:
        """Let the main loop run; names of QMP events since the last time.

        A reset or power-off that an operation asked for is carried out when QEMU's main loop
        comes round, before it takes the next qtest command: so one more command that leaves no
        trace is enough, and its reply comes after QMP's event.
        """
        self.process.channel.exchange(b"endianness\n", 1)
        if not self.process.monitor.pending():
            return []
        return [event.name for event in self.process.monitor.events()]

    def reset_seen(self) -> bool:
        """Whether QEMU was reset since the last look."""
        try:
            return "RESET" in self.quiesce()
        except (QemuFailure, UsageError):  # it has ended, or its channel is out of step
            return False

    def strays_at_reset(self) -> list[RamDifference]:
        """RAM that differs right after a reset and that nothing explains: a reset leaves RAM as
        it is, but for the blobs that QEMU copies again. Shown for PCs; boards write RAM in resets
        of their own (a device tree, say), so there everything is adopted. Before ``after_reset``.
        """
        if self.config.target not in _RESETS_SPARE_RAM or self.suspects():
            return []
        found = [each for each in self.ram.check_all() if each.region is self._main_ram()]
        if not found:
            return []
        blobs = restored(self.process.monitor.hmp("info roms"))
        sections = [section for section in self.mirror.memory.view.sections
                    if section.region is self._main_ram()]
        spared = [
            (max(addr, section.start) - section.start + section.offset,
             min(addr + size, section.start + section.size) - section.start + section.offset)
            for addr, size in blobs for section in sections
        ]
        return [each for each in found
                if not any(first <= each.offset and each.last < stop for first, stop in spared)]

    def _main_ram(self) -> MemoryRegion | None:
        """The largest region of plain RAM in view."""
        plain = [each for each in ram_regions(self.mirror.memory.view)
                 if each.kind is RegionKind.RAM and not each.readonly]
        return max(plain, key=lambda each: each.size, default=None)

    def after_reset(self) -> None:
        """The machine was reset: take its map and its RAM again."""
        self.events()
        self.refresh()
        self.ram.adopt_all()
        self.following.reset()

    def qom_get(self, path: str, name: str) -> Any:
        """A property of an object; None where there is none."""
        try:
            return self.process.monitor.execute("qom-get", {"path": path, "property": name})
        except MonitorRefused:
            return None

    def ask(self, command: str) -> object:
        """QEMU's answer to a QMP command without arguments; None where it refuses."""
        try:
            return self.process.monitor.execute(command)
        except MonitorRefused:
            return None

    def buses(self) -> object:
        """QEMU's answer to QMP ``query-pci``; an empty list where there is no PCI."""
        try:
            return self.process.monitor.execute("query-pci")
        except MonitorRefused:
            return []

    def does_no_dma(self, owner: str) -> bool:
        """Whether the device at that path is of a type that is known to leave memory alone."""
        if owner not in self._types:
            self._types[owner] = self.qom_get(owner, "type")
        return self._types[owner] in QUIET

    # -- knowledge of the map ----------------------------------------------------------------------

    def suspects(self) -> list[str]:
        """Devices that may write RAM by themselves and that nothing here follows: those decoded
        that are lost, and those that no model decodes, whose own address space shows RAM and
        that were accessed since the last reset (one that nobody told anything does nothing)."""
        found = {
            name for owner, name in self.following.lost().items() if not self.does_no_dma(owner)
        }
        accessed = self.following.owners_accessed()
        for space in self.mirror.spaces:
            if space.name in _PASSIVE or space.name.startswith("cpu-"):
                continue
            owner = owner_of(space.root)
            if owner in self.following.followers or not reached(owner, accessed):
                continue
            if self.does_no_dma(owner):
                continue
            if any(reaches_ram(section.region) for section in space.view.sections):
                found.add(space.name)
        return sorted(found)


def reached(owner: str, accessed: Iterable[str]) -> bool:
    """Whether the object or a part of it is among those accessed; where nobody knows it is."""
    return not owner or any(
        not path or path == owner or path.startswith(owner + "/") for path in accessed)


#: Spaces that no device writes through by itself: a bus's own (``pci-bm``, ``raven-bm``) only
#: stands behind those of the devices on it.
_PASSIVE = frozenset({"memory", "I/O", "bitband-source", "virtio-pci-cfg-mem-as",
                      "virtio-pci-cfg-io-as", "smmu-memory-view", "pci-bm", "raven-bm"})


def reaches_ram(region: MemoryRegion) -> bool:
    """Whether an access to the region may end in RAM."""
    return region.is_ram or region.kind is RegionKind.IOMMU


def twins(regions: Iterable[MemoryRegion]) -> frozenset[MemoryRegion]:
    """The regions that only aliases show and that have a namesake of their size: QEMU prints an
    alias with its target's name, and nothing tells which of the two is meant."""
    found: defaultdict[tuple[str, int], list[MemoryRegion]] = defaultdict(list)
    for region in regions:
        if region.container is None and region.alias is None:
            found[region.name, region.size].append(region)
    return frozenset(
        region for alike in found.values() if len(alike) > 1 for region in alike)


#: Markers need this many unassigned bytes in a row.
MARKERS = 1 << 16


def marker_base(view: FlatView) -> int:
    """The start of an unassigned stretch of memory, far from everything."""
    holes = [s for s in view.cover if not s.assigned and s.size >= 2 * MARKERS]
    if not holes:
        raise ModelError("no 128 KiB of the memory space are unassigned: no place for markers")
    hole = max(holes, key=lambda s: s.size)
    return (hole.start + hole.size // 2) & ~(MARKERS - 1)
