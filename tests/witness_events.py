"""Transcript events made by hand, and a QEMU made of the model itself, for the witness room.

``Simulated`` performs accesses on a map of its own and writes down what QEMU's transcript would
show: it stands in for QEMU where a test wants many random accesses and no process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random

from qemuglue.memory import (
    UNASSIGNED,
    AddressSpace,
    Contract,
    MemoryRegion,
    MemTxAttrs,
    Reason,
    Rules,
)
from qemuglue.memory.rules import RULES_10_0
from qemuglue.mirror.identity import RegionKey
from qemuglue.qemu.events import Event, Kind, Refusal
from qemuglue.witness.dma import Following
from qemuglue.witness.dma.device import Maker
from qemuglue.witness.evidence import Evidence
from qemuglue.witness.ram import RamWitness

TOP = 1 << 64
MASK64 = TOP - 1


def pointer_of(region: MemoryRegion) -> int:
    """A pointer that is the same for one region and differs between regions."""
    return id(region)


def call(
    region: MemoryRegion, offset: int, size: int, value: int, *, is_write: bool = False,
    pointer: int | None = None, kind: Kind | None = None,
) -> Event:
    """A call into a device: ``memory_region_ops_read`` or ``_write``."""
    at = region.absolute(offset)
    mr = pointer_of(region) if pointer is None else pointer
    plain = Kind.WRITE if is_write else Kind.READ
    return Event(plain if kind is None else kind, -1, mr, at, value, size, region.name, None, "")


def refusal(
    region: MemoryRegion, offset: int, size: int, reason: Reason, *, is_write: bool = False
) -> Event:
    """An ``Invalid read`` or ``Invalid write``, with the limits of the region's contract."""
    limits = (0, 0)
    if reason is Reason.INVALID_SIZE:
        limits = region.contract.valid_min, region.contract.valid_max
    return Event(
        Kind.INVALID_WRITE if is_write else Kind.INVALID_READ, -1, 0, offset, 0, size,
        None if region is UNASSIGNED else region.name, Refusal(reason, *limits), "",
    )


def unassigned(addr: int, size: int, *, is_write: bool = False) -> Event:
    """An access to where nothing is."""
    return refusal(UNASSIGNED, addr, size, Reason.REJECTED, is_write=is_write)


def remapped() -> Event:
    return Event(Kind.FLATVIEW_NEW, -1, 1, 2, 0, 0, None, None, "")


def message(text: str = "hpet: something") -> Event:
    return Event(Kind.OTHER, -1, 0, 0, 0, 0, None, None, text)


_WORDS = {
    Kind.READ: "memory_region_ops_read", Kind.WRITE: "memory_region_ops_write",
    Kind.RAM_DEVICE_READ: "memory_region_ram_device_read",
    Kind.RAM_DEVICE_WRITE: "memory_region_ram_device_write",
    Kind.INVALID_READ: "Invalid read", Kind.INVALID_WRITE: "Invalid write",
}


def written(events: Iterable[Event]) -> bytes:
    """The text that QEMU writes for these events."""
    return b"".join(b"%s\n" % _line(event).encode() for event in events)


def _line(event: Event) -> str:
    if event.kind is Kind.OTHER:
        return event.text
    if event.kind is Kind.FLATVIEW_NEW:
        return f"flatview_new {event.address:#x} (root {event.mr:#x})"
    word, name = _WORDS[event.kind], event.name or ""
    if event.kind in (Kind.INVALID_READ, Kind.INVALID_WRITE):
        reason, low, high = event.refusal or (Reason.REJECTED, 0, 0)
        limits = f" (min:{low} max:{high})" if reason is Reason.INVALID_SIZE else ""
        return (f"{word} at addr 0x{event.address:X}, size {event.size}, "
                f"region '{event.name or '(null)'}', reason: {reason.value}{limits}")
    tail = f" name '{name}'" if event.kind in (Kind.READ, Kind.WRITE) else ""
    return (f"{word} cpu {event.cpu} mr {event.mr:#x} addr {event.address:#x} "
            f"value {event.value:#x} size {event.size}{tail}")


def space_of(
    *placed: tuple[int, MemoryRegion], rules: Rules = RULES_10_0, target_big: bool = False
) -> AddressSpace:
    """A memory space with these regions at these addresses."""
    root = MemoryRegion.container_of("system", TOP)
    for addr, region in placed:
        root.add_subregion(addr, region)
    return AddressSpace("memory", root, rules=rules, target_big=target_big)


def judged(space: AddressSpace, evidence: Evidence) -> Evidence:
    """Let ``evidence`` answer for the devices of ``space``."""
    space.ops = space.observer = evidence
    return evidence


def device(name: str = "dev", size: int = 0x100, contract: Contract | None = None) -> MemoryRegion:
    return MemoryRegion.io(name, size, contract)


def following_of(
    space: AddressSpace, *makers: Maker, parked: bool = False, only: MemoryRegion | None = None
) -> Following:
    """The decoded devices of the regions that ``space`` shows (or of one), owned by one object."""
    found = Following(makers, RamWitness(), qom_get=lambda path, name: None, version=(10, 0),
                      parked=parked, known={})
    regions = [section.region for section in space.view.sections] if only is None else [only]
    for region in regions:
        region.key = RegionKey("/machine/dev", region.name)
    found.attach(regions, [space], space)
    return found


class Simulated:
    """The devices of a space that answers as QEMU would, writing the transcript as it goes.

    A register reads as whatever ``value`` gives for (region, offset, size).
    """

    def __init__(
        self, space: AddressSpace, value: Callable[[MemoryRegion, int, int], int]
    ) -> None:
        self.space = space
        self.value = value
        self.events: list[Event] = []
        space.ops = space.observer = self

    @classmethod
    def seeded(cls, space: AddressSpace, rng: Random) -> Simulated:
        return cls(space, lambda region, offset, size: rng.getrandbits(8 * size))

    def take(self) -> list[Event]:
        """The events since the last call."""
        events, self.events = self.events, []
        return events

    def read(
        self, region: MemoryRegion, offset: int, size: int, attrs: MemTxAttrs
    ) -> tuple[int, int]:
        value = self.value(region, offset, size)
        self.events.append(call(region, offset, size, value))
        return 0, value

    def write(
        self, region: MemoryRegion, offset: int, value: int, size: int, attrs: MemTxAttrs
    ) -> int:
        self.events.append(call(region, offset, size, value, is_write=True))
        return 0

    def invalid(
        self, region: MemoryRegion, offset: int, size: int, is_write: bool, reason: Reason
    ) -> None:
        self.events.append(refusal(region, offset, size, reason, is_write=is_write))


#: Sizes a contract may declare; 0 is the default.
SIZES = (0, 1, 2, 4, 8)


def random_contract(rng: Random, **fixed: object) -> Contract:
    """Any declared half of a contract; ``fixed`` wins."""
    drawn: dict[str, object] = {
        "valid_min": rng.choice(SIZES), "valid_max": rng.choice(SIZES),
        "valid_unaligned": rng.random() < 0.5, "impl_min": rng.choice(SIZES),
        "impl_max": rng.choice(SIZES), "impl_unaligned": rng.random() < 0.5,
    }
    return Contract(**{**drawn, **fixed})  # type: ignore[arg-type]
