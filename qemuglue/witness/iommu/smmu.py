"""QEMU's SMMUv3 (``-M virt,iommu=smmuv3``): what it makes of the addresses of PCI devices.

Its queues are in guest memory: commands are performed inside the register write that makes them
known, and each fault writes a record, which the comparison of RAM judges. What it keeps (one
configuration a stream, 256 translations) is kept here as well, so that a change without the
command for it is as stale here as there.
Source: ``hw/arm/smmuv3.c`` and ``hw/arm/smmu-common.c`` of 7.2 and 10.0; 11.1 by measurement.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.attrs import OK
from qemuglue.memory.iommu import IommuAccess, IommuTlbEntry
from qemuglue.memory.region import MASK64, MAX_SIZE, MemoryRegion
from qemuglue.witness.dma.device import Place, Port, When
from qemuglue.witness.iommu import smmu_decode as decode
from qemuglue.witness.iommu.smmu_decode import Event, Features, Stream
from qemuglue.witness.iommu.smmu_queue import LARGEST, Queue, perform
from qemuglue.witness.iommu.smmu_walk import Fault, Walker
from qemuglue.witness.iommu.tables import Bindings, bits, functions, nowhere, on_bus_zero, through

#: Name of its registers; page 1 shows those of page 0.
REGION = "arm-smmuv3"
_PAGES = 0x1_0000

CR0, CR0ACK, GBPA, IRQ_CTRL, GERROR, GERRORN = 0x20, 0x24, 0x44, 0x50, 0x60, 0x64
STRTAB, STRTAB_CFG, CMDQ, CMDQ_PROD, CMDQ_CONS = 0x80, 0x88, 0x90, 0x98, 0x9C
EVENTQ, EVENTQ_PROD, EVENTQ_CONS = 0xA0, 0xA8, 0xAC

#: Bits of CR0.
ENABLE, EVENTS_ON, COMMANDS_ON = 1, 4, 8
#: Bits of GERROR.
COMMAND_ERROR, EVENT_ERROR = 1, 4

#: Commands that one register write may start; more are not waited for.
MAX_COMMANDS = 4096

#: Since when there is a second stage, and what came with it.
STAGE_2_SINCE = (8, 1)

_KEPT = "where its tables and queues are was told while it was not followed"

_CLASS_CD, _CLASS_TT, _CLASS_IN = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Refusal:
    """An access that is not let through, and what is recorded of it."""

    event: Event | None = None


class Smmu:
    """The device, and the translation of every stream."""

    name = "arm-smmuv3"

    def __init__(self, memory: AddressSpace, features: Features | None = None) -> None:
        self.memory = memory
        self.features = features or Features()
        self.lost = ""
        self.walker = Walker(memory, self.features)
        self.streams: dict[int, Stream] = {}
        self.commands, self.events = Queue(16), Queue(32)
        self._registers: dict[int, int] = {}
        self._bindings = Bindings()
        self._consume = False
        #: Bits of registers that were written while nobody followed, and that a reset leaves.
        self._unsure: dict[int, int] = {}
        self.reset()

    def revived(self, why: str) -> None:
        """Where its tables and queues are is what it was told meanwhile, until it is told
        again."""
        self._unsure = dict.fromkeys((STRTAB, STRTAB_CFG, CMDQ, EVENTQ), MASK64)
        self.commands.log2 = self.events.log2 = LARGEST

    def _sure(self, *registers: int) -> bool:
        """Whether these are known; it is lost where they are needed and are not."""
        if any(self._unsure.get(each) for each in registers):
            self.lost = _KEPT
        return not self.lost

    def reset(self) -> None:
        """The machine was reset (``smmuv3_init_regs``): table and queue bases stay."""
        self.lost = ""
        self.walker.cache.clear()
        self.streams.clear()
        self.commands.reset()
        self.events.reset()
        for offset in (CR0, CR0ACK, IRQ_CTRL, GERROR, GERRORN):
            self._registers[offset] = 0
        self._registers[GBPA] = 0x1000
        self._two_levels, self._split = False, 0
        self._consume = False

    # -- registers ---------------------------------------------------------------------------------

    def wrote(self, region: MemoryRegion, offset: int, size: int, value: int) -> None:
        """A register was written: 4 bytes, or 8 of one that is so wide."""
        offset &= ~_PAGES
        if region.name != REGION or size not in (4, 8):
            return
        if size == 8:
            if offset in (STRTAB, CMDQ, EVENTQ):
                self._set_base(offset, value, MASK64)
        elif offset & ~4 in (STRTAB, CMDQ, EVENTQ):
            high = 8 * (offset & 4)
            self._set_base(offset & ~4, value << high, 0xFFFF_FFFF << high)
        else:
            self._write_word(offset, value)

    def _set_base(self, offset: int, value: int, mask: int) -> None:
        self._unsure[offset] = self._unsure.get(offset, 0) & ~mask
        if offset == STRTAB:
            self._registers[STRTAB] = self._registers.get(STRTAB, 0) & ~mask | value
            return
        queue = self.commands if offset == CMDQ else self.events
        queue.set_base(queue.base & ~mask | value, resize=bool(mask & 1))

    def _write_word(self, offset: int, value: int) -> None:
        if offset == CR0:
            self._registers[CR0], self._registers[CR0ACK] = value, value & 0x3DF
            self._consume = True
        elif offset == GERRORN:
            self._registers[GERRORN] = value
            self._consume = True
        elif offset == GBPA:
            if value >> 31 and not self.features.old:
                self._registers[GBPA] = value & 0x7FFF_FFFF
        elif offset == STRTAB_CFG:
            self._registers[STRTAB_CFG] = value
            self._unsure.pop(STRTAB_CFG, None)
            if bits(value, 16, 2) == 1:
                self._split, self._two_levels = bits(value, 6, 5), True
        elif offset == CMDQ_PROD:
            self.commands.prod = value
            self._consume = True
        elif offset == CMDQ_CONS:
            self.commands.cons = value
        elif offset == EVENTQ_PROD:
            self.events.prod = value
        elif offset == EVENTQ_CONS:
            self.events.cons = value
        elif offset == IRQ_CTRL:
            self._registers[IRQ_CTRL] = value

    def was_read(self, region: MemoryRegion, offset: int, size: int, value: int) -> None:
        """A register was read: its queues and errors say whether the model is right."""
        if region.name != REGION or self.lost or size != 4:
            return
        known = self.known(offset & ~_PAGES)
        if known is not None and known != value:
            self.lost = (f"{REGION}+{offset:#x} reads {value:#x} where {known:#x} was expected: "
                         "what it translates is not known")

    def known(self, offset: int) -> int | None:
        """What a register of 4 bytes says; None for those that are not modelled."""
        queues = {
            CMDQ_PROD: self.commands.prod, CMDQ_CONS: self.commands.cons,
            EVENTQ_PROD: self.events.prod, EVENTQ_CONS: self.events.cons,
        }
        if offset in queues:
            return queues[offset]
        if offset in (CR0, GERROR, GERRORN, IRQ_CTRL) or (
            offset == GBPA and not self.features.old
        ):
            return self._registers[offset]
        return None

    def kicks(self, region: MemoryRegion, offset: int, data: bytes) -> bool:
        """Commands are performed inside the write; there may be too many."""
        last = offset + len(data) - 1
        return region.name == REGION and any(
            offset <= page + each + 3 and page + each <= last
            for page in (0, _PAGES) for each in (CR0, GERRORN, CMDQ_PROD))

    def floods(self, region: MemoryRegion, offset: int, data: bytes) -> bool:
        """Whether the write would start more commands than can be waited for. A longer one may
        change the queue's size on its way."""
        if not self.kicks(region, offset, data):
            return False
        prod, size = self.commands.prod, self.commands.log2 if len(data) <= 8 else LARGEST
        for page in (0, _PAGES):
            at = page + CMDQ_PROD - offset
            if 0 <= at <= len(data) - 4:
                prod = int.from_bytes(data[at : at + 4], "little")
        return replace(self.commands, log2=size).waiting(prod) > MAX_COMMANDS

    def when(self) -> When:
        return When.NOW if self._consume else When.NEVER

    def act(self, port: Port) -> None:
        """``smmuv3_cmdq_consume``."""
        self._consume = False
        if not self._registers[CR0] & COMMANDS_ON or not self._sure(CMDQ):
            return
        queue, error = self.commands, 0
        while not queue.empty and not self._pending() & COMMAND_ERROR:
            data = port.read(queue.address(queue.cons), 16)
            error = 2 if data is None else perform(data, self)
            if error:
                queue.fail(error)
                self._error(COMMAND_ERROR)
                return
            queue.consumed()

    def _pending(self) -> int:
        return self._registers[GERROR] ^ self._registers[GERRORN]

    def _error(self, bit: int) -> None:
        self._registers[GERROR] ^= ~self._pending() & bit

    # -- who asks ----------------------------------------------------------------------------------

    def bind(self, regions: Iterable[MemoryRegion], buses: object) -> None:
        """After every change of the map; see ``tables.Translates``."""
        found = functions(buses)
        for region in regions:
            parts = region.name.split("-")
            if not region.name.startswith("smmuv3-iommu-memory-region-") or len(parts) != 6:
                continue
            stream = on_bus_zero(found, int(parts[4])) if parts[4].isdecimal() else None
            if stream is None:
                self._bindings.bind(
                    region, lambda addr, _: nowhere(self.memory, addr),
                    lambda: "which of two functions behind bridges it serves is not known")
            else:
                self._bindings.bind(region, partial(self.translate, stream), lambda: self.lost)

    def unbind(self) -> None:
        """Before the mirror looks at the map again."""
        self._bindings.unbind()

    # -- translation -------------------------------------------------------------------------------

    def translate(self, stream_id: int, addr: int, access: IommuAccess) -> IommuTlbEntry:
        """``smmuv3_translate``."""
        refused = nowhere(self.memory, addr, MAX_SIZE - 1)
        if not self._registers[CR0] & ENABLE:
            if bits(self._registers[GBPA], 20, 1) and not self.features.old:
                return refused
            return replace(through(self.memory, addr, self.features.page_mask), perm=access)
        stream = self._stream(stream_id, addr)
        if stream is None or stream.aborts:
            return refused
        if stream.bypasses:
            return replace(through(self.memory, addr, self.features.page_mask), perm=access)
        found = self.walker.translate(stream, addr, access)
        if isinstance(found, Fault):
            self._record(self._event(stream, found, _CLASS_IN, access), stream_id, addr)
            return refused
        start = found.address(addr) & ~found.mask & MASK64
        return IommuTlbEntry(self.memory, addr & ~found.mask, start, found.mask, found.perm)

    def _stream(self, stream_id: int, addr: int) -> Stream | None:
        """``smmuv3_get_config``: the stream as it is remembered, or as its entries say."""
        known = self.streams.get(stream_id)
        if known is not None:
            return known
        found = self._decode(stream_id)
        if isinstance(found, Refusal):
            self._record(found.event, stream_id, addr)
            return None
        self.streams[stream_id] = found
        return found

    def _decode(self, stream_id: int) -> Stream | Refusal:
        """``smmuv3_decode_config``."""
        if not self._sure(STRTAB, STRTAB_CFG):
            return Refusal()
        data = self._entry(stream_id)
        if isinstance(data, Event):
            return Refusal(data)
        stream = decode.decode_stream(data, self.features)
        if stream is None:
            self.lost = "a stream table entry at which QEMU ends"
            return Refusal()
        if isinstance(stream, Event):
            return Refusal(stream)
        if stream.aborts or stream.bypasses or stream.stage == decode.STAGE_2:
            return stream
        return self._context(stream)

    def _entry(self, stream_id: int) -> bytes | Event:
        """The stream table entry (``smmu_find_ste``)."""
        config = self._registers.get(STRTAB_CFG, 0)
        size = bits(config, 0, 6)
        if stream_id >> min(size, decode.STREAM_BITS):
            return Event(decode.BAD_STREAM)
        base = self._registers.get(STRTAB, 0) & decode.BASE_MASK
        if not self._two_levels:
            return self._read(
                (base & -(1 << size + 5)) + 64 * stream_id, 64, decode.STE_FETCH)
        base &= -(1 << max(5, size - self._split + 2))
        at = base + 8 * (stream_id >> self._split)
        data = self._read(at, 8, decode.STE_FETCH)
        if isinstance(data, Event):
            return data
        pointer = int.from_bytes(data, "little")
        span, second = bits(pointer, 0, 5), stream_id & (1 << self._split) - 1
        if not span:
            return Event(decode.BAD_STREAM)
        if second > (1 << span) - 1:
            return Event(decode.BAD_STE)
        return self._read((pointer & ~0x1F) + 64 * second, 64, decode.STE_FETCH)

    def _read(self, addr: int, size: int, failure: int) -> bytes | Event:
        result, data = self.memory.read(addr & MASK64, size)
        if result == OK:
            return data
        if failure == decode.STE_FETCH:
            return Event(failure, addr2=addr)
        return Event(failure, addr=addr)

    def _context(self, stream: Stream) -> Stream | Refusal:
        """The context descriptor, and where its tables are (``smmu_get_cd``, ``decode_cd``)."""
        at = stream.descriptor
        if stream.stage == decode.NESTED:
            found = self._through_second(stream, at, _CLASS_CD)
            if isinstance(found, Refusal):
                return found
            at = found
        data = self._read(at, 64, decode.CD_FETCH)
        if isinstance(data, Event):
            return Refusal(data)
        context = decode.decode_context(data, stream, self.features)
        if context is None:
            self.lost = "a context descriptor at which QEMU ends"
            return Refusal()
        if isinstance(context, Event):
            return Refusal(context)
        if stream.stage != decode.NESTED:
            return context
        tables = list(context.tables)
        for index, each in enumerate(tables):
            if not each.disabled:
                base = self._through_second(
                    replace(context, records=False), each.base, _CLASS_TT)
                if isinstance(base, Refusal):
                    return base
                tables[index] = replace(each, base=base)
        return replace(context, tables=(tables[0], tables[1]))

    def _through_second(self, stream: Stream, addr: int, what: int) -> int | Refusal:
        found = self.walker.translate(
            replace(stream, stage=decode.STAGE_2, asid=-1), addr, IommuAccess.RO)
        if isinstance(found, Fault):
            return Refusal(self._event(stream, found, what, IommuAccess.RO))
        return found.address(addr)

    # -- events ------------------------------------------------------------------------------------

    def _event(
        self, stream: Stream, fault: Fault, what: int, access: IommuAccess
    ) -> Event | None:
        """What is recorded of a failed walk (``smmuv3_do_translate``)."""
        abort = fault.type == decode.WALK_ABORT
        second = fault.stage == decode.STAGE_2
        if not abort and not (stream.second.records if second else stream.records):
            return None
        reads = bool(access & IommuAccess.RO)
        if self.features.old:
            return Event(fault.type, fault.addr if abort else 0, walk=True, reads=reads,
                         fault_class=_CLASS_TT * abort)
        what = _CLASS_TT if fault.descriptor else what
        if abort and not second:
            what = _CLASS_TT
        return Event(
            fault.type, fault.addr, walk=True, reads=reads, fault_class=what, stage2=second)

    def _record(self, event: Event | None, stream_id: int, addr: int) -> None:
        """``smmuv3_record_event``."""
        if event is None or not self._registers[CR0] & EVENTS_ON or not self._sure(EVENTQ):
            return
        queue = self.events
        data = decode.record(event, stream_id, addr)
        if not queue.full and self.memory.write(queue.address(queue.prod), data) == OK:
            queue.produced()
        else:
            self._error(EVENT_ERROR)


def make(place: Place) -> Smmu | None:
    """The model of the SMMUv3 at ``place``."""
    if REGION not in place.regions:
        return None
    old = place.version < STAGE_2_SINCE
    stage = "1" if old else place.qom_get(place.owner, "stage") or "1"
    features = Features(
        stage1=stage != "2", stage2=stage in ("2", "nested"), old=old,
        page_mask=(1 << place.memory.page_bits) - 1)
    return Smmu(place.memory, features)
