"""The access transcript as the devices of the model.

The model performs an operation; each call it makes into a device is answered by the next event
of QEMU's transcript, if that event is the call the model makes: same region, same offset, same
size, and for a write the same value. So QEMU's pieces are compared with the model's by the
model's own code, and a device read gets the value the real device returned. The first event
that does not fit is the mismatch; nothing is consumed after it.

Events that no operation asked for are allowed in two cases only: a device that signals an
interrupt by a memory write (MSI), and what a device does by itself inside an operation that is
known to make it act, as the slow judge found (``known_sides``). Both are counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass

from qemuglue.memory.attrs import OK, MemTxAttrs
from qemuglue.memory.contract import Reason
from qemuglue.memory.flatview import UNASSIGNED
from qemuglue.memory.region import MAX_SIZE, MemoryRegion, RegionKind
from qemuglue.qemu.events import Event, Lines, describe
from qemuglue.qemu.events import Kind as EventKind
from qemuglue.witness.dma import Following, forwards

MASK64 = MAX_SIZE - 1

#: Regions that devices write to when they raise an interrupt.
MSI_REGIONS = frozenset({"apic-msi", "gicv2m", "gicv3_its_translation", "translation"})

#: Regions that may carry ioeventfds: QEMU swallows a matching write without a trace line, and
#: no text of QEMU's says which are registered.
EVENTFD_REGIONS = re.compile(r"virtio-pci-notify.*|virtio-pci|virtio-mmio|pci-testdev-.*")

_OTHER = EventKind.OTHER
_TOPOLOGY = EventKind.FLATVIEW_NEW
_INVALID = frozenset({EventKind.INVALID_READ, EventKind.INVALID_WRITE})
_READ = EventKind.READ
_WRITE = EventKind.WRITE


@dataclass(frozen=True, slots=True)
class Expected:
    """One event the model expects. ``reason`` is set for a refusal; ``value`` for a write."""

    region: MemoryRegion
    offset: int
    size: int
    is_write: bool
    value: int | None = None
    reason: Reason | None = None

    def describe(self) -> str:
        verb = "write" if self.is_write else "read"
        name = self.region.name or "unassigned"
        text = f"{verb} of {self.size} at {name}+{self.offset:#x}"
        if self.value is not None:
            text += f" value {self.value:#x}"
        return f"{text} refused: {self.reason.value}" if self.reason is not None else text


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Where model and transcript part. None: nothing (more) was expected, or nothing came."""

    expected: Expected | None
    seen: Event | None

    def describe(self) -> tuple[str, str]:
        """(model says, QEMU says)."""
        model = self.expected.describe() if self.expected else "no further access"
        seen = describe(self.seen) if self.seen is not None else "nothing more in the transcript"
        return model, seen


class Evidence:
    """A cursor over the events of one batch; serves the model as ops and observer."""

    def __init__(self) -> None:
        self.events: Sequence[Event] = ()
        #: Their lines as QEMU wrote them, and ``b""`` behind the last; ``b""`` where that is not
        #: known.
        self.text: list[bytes] = [b""]
        self.pos = 0
        self.mismatch: Mismatch | None = None
        #: Set once the map changed inside this batch: what follows ran on another map.
        self.topology = False
        #: Device-initiated accesses, "operation's region -> region", for the report.
        self.sides: Counter[str] = Counter()
        #: (region the operation is on, region name of the extra event): allowed.
        self.known_sides: set[tuple[str, str]] = set()
        #: Regions of the operation at hand; the slow judge allows extra events elsewhere.
        self.targets: Container[str] = ()
        #: The region whose device was called last: what comes unasked for is its doing.
        self._last_region = UNASSIGNED
        #: The bytes of the operation at hand: a refusal of unassigned memory inside is its own.
        self.op_addr = 0
        self.op_size = 0
        self.lenient = False
        #: MemTxResults other than OK of what was judged without the model; for the tally.
        self.results: Counter[int] = Counter()
        #: Set when a write was expected on a region with ioeventfds and no event came.
        self.swallowed = False
        #: Regions that QEMU's texts cannot tell from a namesake: of one size, and in no container,
        #: so that only aliases show them. Which alias shows which is the mirror's guess.
        self.twins: frozenset[MemoryRegion] = frozenset()
        #: Set when one of them was called and the pointer is another's.
        self.mistaken = False
        #: The decoded devices, which are told of every piece that reached them.
        self.following: Following | None = None
        #: More events, or False where nothing comes: asked while a device acts by itself, whose
        #: accesses QEMU may make later than the model.
        self.more: Callable[[], bool] | None = None
        #: Writes to ROM devices (region, offset), since the last batch: the device may have
        #: programmed or erased its memory.
        self.stored: list[tuple[MemoryRegion, int]] = []
        #: Told of every expectation that was met, when somebody wants shapes or an account.
        self.on_piece: Callable[[Expected, Event], None] | None = None
        #: A region whose place was taken by a namesake: events come from another pointer
        #: than before, after the map changed. Its contract is not known any more.
        self.replaced: MemoryRegion | None = None
        #: Counts whenever a pointer known ceases to be.
        self.epoch = 0
        #: Whether the batch at hand may hold changes of the map.
        self.may_remap = False
        #: Position behind an event -> behind what a decoded device did when it was told of it.
        self._told: dict[int, int] = {}
        self._told_to = 0
        self._map = 0
        self._passed: list[str] = []
        self._bound: dict[int, MemoryRegion] = {}
        self._pointers: dict[MemoryRegion, tuple[int, int]] = {}
        self._base: dict[MemoryRegion, int] = {}

    @property
    def last_name(self) -> str:
        """Name of the region whose device was called last, "" if none was in this batch."""
        return self._last_region.name

    # -- life cycle --------------------------------------------------------------------------

    def new_process(self) -> None:
        """Pointers of another process mean nothing."""
        self.epoch += 1
        self._bound.clear()
        self._pointers.clear()
        self._base.clear()

    def new_map(self) -> None:
        """Regions may have moved, or been replaced."""
        self._base.clear()
        self._map += 1

    def forget(self, region: MemoryRegion) -> None:
        """The region is another one now."""
        self.epoch += 1
        pointer, _ = self._pointers.pop(region)
        del self._bound[pointer]

    def load(self, events: Sequence[Event]) -> None:
        """Start on the events of the next batch. As ``Lines`` they are compared faster."""
        self._hold(events)
        self.pos = 0
        self.mismatch = None
        self.topology = False
        self.stored.clear()
        self._last_region = UNASSIGNED  # whoever was called last has had its time
        self._told.clear()
        self._told_to = 0

    def _hold(self, events: Sequence[Event]) -> None:
        self.events = events
        if isinstance(events, Lines):
            self.text = events.text
            self.may_remap = events.tells_of_map
        else:
            self.text = [b""] * (len(events) + 1)
            self.may_remap = any(event[0] is _TOPOLOGY for event in events)

    # -- the model's side ----------------------------------------------------------------------

    def read(
        self, region: MemoryRegion, offset: int, size: int, attrs: MemTxAttrs
    ) -> tuple[int, int]:
        """A device read: the value QEMU's device returned."""
        answer = None
        told = self.pos < self._told_to  # an operation that is performed again
        if self.following is not None and self.mismatch is None and not told:
            answer = self.following.reading(region, offset, size)
        event = self._take(region, offset, size, False, None)
        if answer is not None and event is not None and event.value != answer:
            self.mismatch = Mismatch(Expected(region, offset, size, False, answer), event)
        return OK, event.value if event is not None else 0

    def write(
        self, region: MemoryRegion, offset: int, value: int, size: int, attrs: MemTxAttrs
    ) -> int:
        """A device write: compared with what QEMU passed to its device."""
        self._take(region, offset, size, True, value)
        return OK

    def invalid(
        self, region: MemoryRegion, offset: int, size: int, is_write: bool, reason: Reason
    ) -> None:
        """A refusal: QEMU must have logged the same."""
        if self.mismatch is not None:
            return
        while self.pos < len(self.events):
            event = self.events[self.pos]
            if event.kind in _INVALID and self._is_refusal(
                event, region, offset, size, is_write, reason
            ):
                self.pos += 1
                if self.on_piece is not None:
                    self.on_piece(Expected(region, offset, size, is_write, reason=reason), event)
                return
            if not self._pass_by(event):
                break
        if self.pos >= len(self.events) and self.more is not None and self.more():
            self.invalid(region, offset, size, is_write, reason)
            return
        self._miss(Expected(region, offset, size, is_write, reason=reason))

    def refused_next(
        self, region: MemoryRegion, offset: int, size: int, is_write: bool
    ) -> bool | None:
        """Whether the next event is the device's own refusal of just this access, looking past
        what ``invalid`` would step over. None: there is nothing to tell by, because the events
        have ended, model and transcript have parted already, or what comes next is somebody
        else's (a device may act on others before it is known to)."""
        if self.mismatch is not None:
            return None
        for at in range(self.pos, len(self.events)):
            event = self.events[at]
            if self._is_refusal(event, region, offset, size, is_write, Reason.REJECTED):
                return True
            passing = event.kind is _OTHER or event.kind is _TOPOLOGY
            if not passing and not self._is_side(event):
                return False if event.name == region.name else None
        return None

    # -- the fast road -------------------------------------------------------------------------

    def pointer(self, region: MemoryRegion) -> int | None:
        """What QEMU's texts call the region by; None if it was not met yet."""
        known = self._pointers.get(region)
        return None if known is None else known[0]

    def step_to(
        self, pos: int, called: MemoryRegion | None, *, settle: bool = True
    ) -> None:
        """Consume what was just looked at, which called that region's device or was refused;
        has it changed the map?"""
        self.pos = pos
        if called is not None:
            self._last_region = called
        if settle and self.may_remap:
            self.settle()

    # -- around an operation -------------------------------------------------------------------

    def settle(self) -> None:
        """After an operation: has it changed the map? (Its event comes before the next's.)"""
        at = self.pos
        while at < len(self.events):
            event = self.events[at]
            if event.kind is _TOPOLOGY:
                self.topology = True
                return
            if event.kind is not _OTHER and not self._is_side(event):
                return
            at += 1

    def finish(self) -> None:
        """At the end of the batch: nothing may be left but what a device does by itself."""
        while self.mismatch is None and self.pos < len(self.events):
            if not self._pass_by(self.events[self.pos]):
                self.mismatch = Mismatch(None, self.events[self.pos])

    def skip(self, *, known: bool) -> None:
        """Leave out what is left of the batch. Decoded devices are told what reached them if the
        map is ``known`` to be the same; otherwise they are not followed any more."""
        self.mismatch = None
        while self.pos < len(self.events):
            event = self.events[self.pos]
            self.pos += 1
            self.topology = self.topology or event.kind is _TOPOLOGY
            if known and self.mismatch is None:
                self._tell_of(event)
            else:  # what it would do by DMA is not what comes
                self.overlook([event])
        self.mismatch = None

    def overlook(self, events: Iterable[Event]) -> None:
        """These happened on a map that is not known: decoded devices that they reached are not
        followed any more."""
        for event in events:
            if self.following is None or event.kind not in (_READ, _WRITE):
                continue
            region = self._bound.get(event.mr)
            if region is not None:
                self.following.missed(region)
            else:
                self.following.missed_name(event.name)

    def append(self, events: Sequence[Event]) -> None:
        """More events of the same batch."""
        self._told.clear()
        self._told_to = 0
        self._hold([*self.events[self.pos :], *events])
        self.pos = 0

    # -- inside ----------------------------------------------------------------------------------

    def _take(
        self, region: MemoryRegion, offset: int, size: int, is_write: bool, value: int | None
    ) -> Event | None:
        if self.mismatch is not None:
            return None
        base = self._base.get(region)
        if base is None:
            base = self._base[region] = region.absolute()
        addr = (base + offset) & MASK64
        kind = _WRITE if is_write else _READ
        if region.kind is RegionKind.RAM_DEVICE:
            kind = EventKind.RAM_DEVICE_WRITE if is_write else EventKind.RAM_DEVICE_READ
        events = self.events
        start = self.pos
        self._passed.clear()
        swallowable = is_write and self._may_be_swallowed(region)
        # Behind a device that may do anything a later write of the same would be taken for it.
        lost = self.following is not None and self.following.is_lost(self._last_region)
        while self.pos < len(events):
            event = events[self.pos]
            if (
                event.kind is kind and event.address == addr and event.size == size
                and (value is None or event.value == value or self._any_value())
                and (self._binds(event, region) or self._is_twin(event, region))
            ):
                self.pos += 1
                self._last_region = region
                if self.on_piece is not None:
                    self.on_piece(Expected(region, offset, size, is_write, value), event)
                if value is not None and region.kind is RegionKind.ROM_DEVICE:
                    self.stored.append((region, offset))
                self._tell(region, offset, event)
                return event
            if event.kind is kind and event.address == addr and self._is_replacement(event, region):
                break  # also behind a device that may do anything
            if swallowable and lost and event.kind not in (_OTHER, _TOPOLOGY):
                break
            if not self._pass_by(event, forwarder=forwards(region) and not self._followed(region)):
                break
        if swallowable:
            # What was stepped over in search of it belongs to what comes next.
            self.pos = start
            self.sides.subtract(self._passed)
            self._passed.clear()
            self.swallowed = True
            return None
        if self.pos >= len(events) and self.more is not None and self.more():
            return self._take(region, offset, size, is_write, value)
        self._miss(Expected(region, offset, size, is_write, value))
        return None

    def _any_value(self) -> bool:
        """Whether a decoded device is writing what nobody can predict."""
        return self.following is not None and self.following.wild.any_value

    def _followed(self, region: MemoryRegion) -> bool:
        """Whether the region's device is decoded, so that its ioeventfds are known."""
        following = self.following
        return following is not None and (
            following.of(region) is not None and not following.is_lost(region))

    def _may_be_swallowed(self, region: MemoryRegion) -> bool:
        return EVENTFD_REGIONS.fullmatch(region.name) is not None and not self._followed(region)

    def _binds(self, event: Event, region: MemoryRegion) -> bool:
        """One pointer is one region for the life of a process."""
        known = self._bound.get(event.mr)
        if known is None and event.name == region.name and region not in self._pointers:
            self._bound[event.mr] = region
            self._pointers[region] = event.mr, self._map
            return True
        return known is region

    def _is_twin(self, event: Event, region: MemoryRegion) -> bool:
        """Whether the event is the access asked for, by a namesake that the mirror may have
        taken for ``region``."""
        if region not in self.twins or event.name != region.name:
            return False
        other = self._bound.get(event.mr)
        if other is not None and (other not in self.twins or other.size != region.size):
            return False
        self.mistaken = True
        return True

    def _is_replacement(self, event: Event, region: MemoryRegion) -> bool:
        """Whether ``event`` comes from a namesake that took the region's place."""
        known = self._pointers.get(region)
        return (
            known is not None and known[1] < self._map and event.mr not in (0, known[0])
            and event.name == region.name and event.mr not in self._bound
        )

    @staticmethod
    def _is_refusal(
        event: Event, region: MemoryRegion, offset: int, size: int, is_write: bool,
        reason: Reason,
    ) -> bool:
        refusal = event.refusal
        if refusal is None or not (
            event.address == offset and event.size == size
            and (event.kind is EventKind.INVALID_WRITE) == is_write
            and event.name == (None if region is UNASSIGNED else region.name)
            and refusal.reason is reason
        ):
            return False
        contract = region.contract
        return reason is not Reason.INVALID_SIZE or (
            refusal.size_min == contract.valid_min and refusal.size_max == contract.valid_max
        )

    def _pass_by(self, event: Event, *, forwarder: bool = False) -> bool:
        """Step over an event that is nobody's piece; False when it may not be stepped over.
        A ``forwarder``'s own line comes behind those of the read that it passes on."""
        if event.kind is _TOPOLOGY:
            self.topology = True
        elif event.kind is not _OTHER:
            if not forwarder and not self._is_side(event):
                return False
            pair = f"{self.last_name} -> {event.name or 'unassigned'}"
            self.sides[pair] += 1
            self._passed.append(pair)
            self.pos += 1
            self._tell_of(event)
            return True
        self.pos += 1
        return True

    def _tell_of(self, event: Event) -> None:
        """The event just consumed may have reached a decoded device by way of another one (a
        window in PCI configuration space)."""
        region = self._bound.get(event.mr)
        if self.following is None or event.kind not in (_READ, _WRITE):
            return
        if region is None:
            self.following.missed_name(event.name)
        else:
            last = self._last_region
            self._tell(region, (event.address - region.absolute()) & MASK64, event)
            self._last_region = last

    def _tell(self, region: MemoryRegion, offset: int, event: Event) -> None:
        """Tell a decoded device of the event just consumed, once: an operation that is performed
        again, in another byte order, finds what it did the first time."""
        if self.following is None:
            return
        at = self.pos
        behind = self._told.get(at)
        if behind is None:
            is_write = event.kind in (_WRITE, EventKind.RAM_DEVICE_WRITE)
            self.following.heard(region, offset, event.size, is_write, event.value)
            behind = self._told[at] = self._told_to = self.pos
            self._last_region = region  # whoever it called by DMA has returned
        self.pos = behind

    def _is_side(self, event: Event) -> bool:
        name = event.name or ""
        if self.following is not None and self.following.of(self._last_region) is not None:
            if self.following.is_lost(self._last_region):
                return True  # its DMA is not followed any more
            # All that it does is predicted, but for the interrupts it sends.
            return event.kind is EventKind.WRITE and name in MSI_REGIONS
        if forwards(self._last_region):
            return True
        if event.refusal is not None and not name:
            # A device's own DMA to where nothing is. The operation's own refusals lie inside
            # its bytes; one that QEMU makes elsewhere instead is missed here as expected.
            return ((event.address - self.op_addr) & MASK64) >= self.op_size
        if event.kind is EventKind.WRITE and name in MSI_REGIONS:
            return True
        if (self.last_name, name) in self.known_sides:
            return True
        return self.lenient and name not in self.targets

    @staticmethod
    def describe_event(event: Event) -> str:
        """The event in words, for an account."""
        return describe(event)

    def _miss(self, expected: Expected) -> None:
        seen = self.events[self.pos] if self.pos < len(self.events) else None
        if seen is not None and self._is_replacement(seen, expected.region):
            self.replaced = expected.region
        self.mismatch = Mismatch(expected, seen)
