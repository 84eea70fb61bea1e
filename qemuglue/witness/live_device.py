"""The devices of a mirrored QEMU, reached through qtest: what a live model calls.

The model decides what an access is (which region, at which offset, how it is cut, whether its
contract takes it); each dispatch is then one sized qtest access at the same address, which QEMU
performs by its own rules: QEMU makes the pieces that the device implements, not the model. The
transcript tells what qtest's reply does not: that QEMU refused.

What the model refuses is sent too, where qtest can make that access at all, so that QEMU refuses
it itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from qemuglue.errors import ModelError
from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.attrs import ACCESS_ERROR, DECODE_ERROR, OK, UNSPECIFIED, MemTxAttrs
from qemuglue.memory.contract import Contract
from qemuglue.memory.region import MASK64, MemoryRegion
from qemuglue.memory.rules import Rules
from qemuglue.mirror.mirror import MirroredSpace
from qemuglue.qemu.events import Event
from qemuglue.qemu.events import Kind as EventKind
from qemuglue.qemu.process import QemuProcess
from qemuglue.qemu.qtest_lines import (
    inb,
    inl,
    inw,
    outb,
    outl,
    outw,
    parse_value,
    readb,
    readl,
    readq,
    readw,
    writeb,
    writel,
    writeq,
    writew,
)

#: Size -> the encoders of its read and its write.
_MEMORY = {1: (readb, writeb), 2: (readw, writew), 4: (readl, writel), 8: (readq, writeq)}
_PORTS = {1: (inb, outb), 2: (inw, outw), 4: (inl, outl)}

#: Where nobody knows what a device takes QEMU decides: nothing is refused here, nothing cut.
ANY_ACCESS = Contract(
    valid_min=1, valid_max=8, valid_unaligned=True, impl_min=1, impl_max=8, impl_unaligned=True)


class CutByQtest(ModelError):
    """This was to be one access, and qtest cuts it: it moves byte ranges, which QEMU cuts by their
    alignment, and to four bytes where a device names no larger size (R6). Whether the device would
    take it in one cannot be seen through qtest."""


class Piece(NamedTuple):
    """What the model expects to reach a device, or to be ``refused``. ``value`` is None for a
    read."""

    region: MemoryRegion
    offset: int
    size: int
    value: int | None
    is_write: bool
    refused: bool = False


@dataclass(slots=True)
class Told:
    """What QEMU logged of the accesses made, oldest first, and what the model expected it to log;
    kept only while ``kept`` is set. ``remapped`` says that QEMU's memory map may have changed since
    it was last cleared."""

    kept: bool = False
    events: list[Event] = field(default_factory=list)
    expected: list[Piece] = field(default_factory=list)
    #: The byte order that a device was seen to have: what qtest moved, against what QEMU says
    #: reached the device.
    orders: dict[MemoryRegion, Literal["little", "big"]] = field(default_factory=dict)
    remapped: bool = False

    def add(self, events: Iterable[Event]) -> None:
        for event in events:
            self.remapped = self.remapped or event.kind is EventKind.FLATVIEW_NEW
            if self.kept:
                self.events.append(event)

    def expect(self, pieces: Iterable[Piece]) -> None:
        if self.kept:
            self.expected += pieces

    def take(self) -> tuple[list[Event], list[Piece]]:
        """(the events, the pieces expected); none are left."""
        found = self.events, self.expected
        self.events, self.expected = [], []
        return found


class LiveDevices:
    """The devices of one space of a QEMU: the model's ops, a call a dispatch.

    ``contracts`` has the contract of each region, where it is known; ``rules`` are QEMU's. ``hear``
    gives what was logged since the last call. Raises QemuDied where QEMU ends, QemuHang where it
    does not answer, and CutByQtest.
    """

    def __init__(
        self, process: QemuProcess, space: AddressSpace, rules: Rules,
        contracts: dict[MemoryRegion, Contract], hear: Callable[[], list[Event]], told: Told, *,
        ports: bool = False,
    ) -> None:
        self._process = process
        self._space = space
        self._rules = rules
        self._contracts = contracts
        self._hear = hear
        self.told = told
        self._single = ports and rules.ports_single_dispatch
        self._verbs = _PORTS if ports else _MEMORY
        self._target_big = process.endianness == "big"
        #: Byte order of the values in requests and replies.
        big = self._target_big and not self._single
        self._order: Literal["little", "big"] = "big" if big else "little"

    def read(
        self, region: MemoryRegion, offset: int, size: int, attrs: MemTxAttrs
    ) -> tuple[int, int]:
        """(result, value in the device's order)."""
        result, raw = self._access(region, offset, size, None)
        return result, int.from_bytes(raw, self._device_order(region))

    def write(
        self, region: MemoryRegion, offset: int, value: int, size: int, attrs: MemTxAttrs
    ) -> int:
        """The result."""
        return self._access(
            region, offset, size, value.to_bytes(size, self._device_order(region)))[0]

    def refused(self, region: MemoryRegion, offset: int, size: int, is_write: bool) -> None:
        """The model refused an access: QEMU is asked as well, with zeros."""
        if self.sent_whole(region, offset, size):
            value = 0 if is_write else None
            self.told.expect([Piece(region, offset, size, value, is_write, refused=True)])
            self._access(region, offset, size, bytes(size) if is_write else None)

    def sent_whole(self, region: MemoryRegion, offset: int, size: int) -> bool:
        """Whether a qtest access of this size is one dispatch in QEMU (R6, R20)."""
        if size not in self._verbs:
            return False
        contract = self._contracts.get(region, region.contract)
        return self._single or self._rules.chunk(contract, size, offset) == size

    # -- inside --------------------------------------------------------------------------------

    def _access(
        self, region: MemoryRegion, offset: int, size: int, data: bytes | None
    ) -> tuple[int, bytes]:
        """(result, the bytes in the order of addresses) of one qtest access."""
        if not self.sent_whole(region, offset, size):
            verb = "read" if data is None else "write"
            raise CutByQtest(
                f"qtest cuts a {verb} of {size} bytes at {region.name}+{offset:#x}: it cannot be "
                "made as the one access that it was to be")
        addr = self._address(region, offset)
        reader, writer = self._verbs[size]
        line = reader(addr) if data is None else writer(addr, int.from_bytes(data, self._order))
        reply = self._process.channel.exchange(line, 1)
        events = self._hear()
        self.told.add(events)
        refused = any(_refuses(event, region, offset, size) for event in events)
        raw = b""
        if data is None:
            value = parse_value(reply.rstrip(b"\n")) & ((1 << 8 * size) - 1)
            raw = value.to_bytes(size, self._order)
        if self.told.kept and size > 1 and region not in self.told.orders:
            self._note_order(region, offset, raw if data is None else data, events)
        return DECODE_ERROR if refused else OK, raw

    def _note_order(
        self, region: MemoryRegion, offset: int, raw: bytes, events: Iterable[Event]
    ) -> None:
        """The device's byte order, where one call of it had all of ``raw``."""
        where = region.absolute(offset)
        little, big = int.from_bytes(raw, "little"), int.from_bytes(raw, "big")
        for event in events:
            whole = event.name == region.name and event.address == where and (
                event.size == len(raw) and event.refusal is None)
            if whole and little != big and event.value in (little, big):
                self.told.orders[region] = "big" if event.value == big else "little"

    def _device_order(self, region: MemoryRegion) -> Literal["little", "big"]:
        contract = self._contracts.get(region, region.contract)
        return "big" if self._rules.big(contract, self._target_big) else "little"

    def _address(self, region: MemoryRegion, offset: int) -> int:
        """Where the space shows the offset; a section that shows it runs on behind its end."""
        view = self._space.view
        found: int | None = None
        for section in view.cover if not region.name else view.sections:
            if section.region is region:
                at = offset - section.offset
                if 0 <= at < section.size:
                    return section.start + at
                if at >= 0:
                    found = section.start + at if found is None else found
        if found is None:
            raise ModelError(f"{region.name}+{offset:#x} is not in view of {self._space.name!r}")
        return found & MASK64


class LiveSpace(MirroredSpace):
    """A mirrored space whose devices are really there: each dispatch is one call of its ops, and
    QEMU makes the pieces. Everything before that is the model's, everything after it QEMU's."""

    live: LiveDevices

    def dispatch_read(
        self, region: MemoryRegion, offset: int, size: int, attrs: MemTxAttrs = UNSPECIFIED,
        *, wide: bool = False,
    ) -> tuple[int, int]:
        """``Dispatcher.dispatch_read``: (result, value in the device's order)."""
        if self._refused(region, offset, size, False, attrs):
            return DECODE_ERROR, self.rules.refused_value(size)
        if self._blocked(region):
            return ACCESS_ERROR, 0
        found = (region.ops or self.live).read(region, offset, size, attrs)
        big = self.rules.big(region.contract, self.target_big)
        self.live.told.expect(
            Piece(region, offset + each.delta, each.size, None, False)
            for each in self.rules.pieces(region.contract, size, big))
        return found

    def dispatch_write(
        self, region: MemoryRegion, offset: int, value: int, size: int,
        attrs: MemTxAttrs = UNSPECIFIED,
    ) -> int:
        """``Dispatcher.dispatch_write``: the result."""
        if self._refused(region, offset, size, True, attrs):
            return DECODE_ERROR
        if self._blocked(region):
            return ACCESS_ERROR
        result = (region.ops or self.live).write(region, offset, value, size, attrs)
        big = self.rules.big(region.contract, self.target_big)
        for each in self.rules.pieces(region.contract, size, big):
            part = value >> each.shift if each.shift >= 0 else value << -each.shift
            part &= (1 << each.size * 8) - 1
            self.live.told.expect([Piece(region, offset + each.delta, each.size, part, True)])
        return result

    def _refused(
        self, region: MemoryRegion, offset: int, size: int, is_write: bool, attrs: MemTxAttrs
    ) -> bool:
        reason = self.rules.refusal(region.contract, offset, size, is_write, attrs)
        if reason is None:
            return False
        if self.observer is not None:
            self.observer.invalid(region, offset, size, is_write, reason)
        self.live.refused(region, offset, size, is_write)
        return True

    def _blocked(self, region: MemoryRegion) -> bool:
        """R4; nothing is ever engaged here, since QEMU's devices call QEMU's memory."""
        guarded = region.owner is not None and self.rules.guarded(region)
        return guarded and self.rules.blocked(region.owner in self.engaged)


def _refuses(event: Event, region: MemoryRegion, offset: int, size: int) -> bool:
    """Whether QEMU says there that it refused (a part of) this access."""
    return (
        event.refusal is not None and event.name == (region.name or None)
        and 0 <= (event.address - offset) & MASK64 < size
    )
