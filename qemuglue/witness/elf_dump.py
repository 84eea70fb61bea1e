"""QEMU's own core dump as a witness: where guest memory is, and every byte of it.

``dump-guest-memory`` walks the machine's memory space with a listener of its own
(``guest_phys_blocks_region_add`` in ``system/memory_mapping.c``): RAM and ROM are in, RAM
devices, non-volatile memory and ROM devices (flash) are not. So its ranges are compared with
the model's view and its bytes with the model's RAM.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from qemuglue.errors import ResourceError
from qemuglue.memory.flatview import FlatView, MemoryRegionSection
from qemuglue.memory.region import RegionKind
from qemuglue.qemu.dump import Segment, dump_guest_memory
from qemuglue.qemu.libc import differing_ranges
from qemuglue.qemu.monitor import MonitorRefused
from qemuglue.witness.account import MAX_DIFFERENCES, Account
from qemuglue.witness.ram import TrackedBacking
from qemuglue.witness.session import Session
from qemuglue.witness.translation import describe, system_memory

WITNESS = "dump"

#: Memory up to this size is dumped whole (QEMU writes 0.5 GB/s, into our memory).
MAX_WHOLE = 512 << 20

#: Of more memory than that, so much of both ends of each range.
WINDOW = 1 << 20

#: Bytes compared at a time.
STEP = 4 << 20


@dataclass(frozen=True, slots=True)
class Span:
    """``size`` bytes of guest memory from ``start`` on."""

    start: int
    size: int

    @property
    def last(self) -> int:
        return self.start + self.size - 1

    def __str__(self) -> str:
        return f"{self.start:#x}-{self.last:#x}"


def check_dump(session: Session) -> Account:
    """Compare a dump with the model; ``unsupported`` where this QEMU does not dump.

    ``compared`` counts bytes. Raises what the monitor raises, ProtocolError for a dump that is
    no ELF file.
    """
    account = Account(WITNESS)
    view = system_memory(session).view
    spans = merged(Span(s.start, s.size) for s in view.sections if is_dumped(s))
    total = sum(span.size for span in spans)
    if not spans:
        account.unsupported = "no RAM is mapped"
        return account
    try:
        if total <= MAX_WHOLE:
            wanted = spans
            segments = dump_guest_memory(session.process)
        else:
            wanted = merged(windows(spans))
            account.unjudged["bytes of a memory too large to dump whole"] += total - sum(
                span.size for span in wanted
            )
            segments = [
                segment for span in wanted
                for segment in dump_guest_memory(session.process, start=span.start, size=span.size)
            ]
    except MonitorRefused as error:
        account.unsupported = error.description
        return account
    except ResourceError as error:
        account.unsupported = str(error)
        return account
    if any(segment.bits == 32 for segment in segments) and wanted[-1].last >= 1 << 32:
        account.unsupported = (
            "QEMU writes an ELF file of 32 bits, and cuts the addresses of memory beyond 4 GiB")
        return account
    misplaced = max((segment.misplaced for segment in segments), default=0)
    if misplaced:
        account.unjudged[f"headers of the dump that are {misplaced} bytes off: QEMU took the "
                         "notes of every CPU to be as long as the first one's"] += 1
    found = merged(Span(segment.start, segment.size) for segment in segments)
    for span in _outside(wanted, found):
        account.differs(str(span), "memory", "not in the dump")
    for span in _outside(found, wanted):
        account.differs(str(span), "no memory", "in the dump")
    for segment in segments:
        _compare(segment, view, account)
    return account


def is_dumped(section: MemoryRegionSection) -> bool:
    """Whether QEMU's dump holds the section (``guest_phys_blocks_region_add``)."""
    region = section.region
    return (
        region.is_ram and region.kind is not RegionKind.RAM_DEVICE
        and not section.nonvolatile and not region.nonvolatile
    )


def merged(spans: Iterable[Span]) -> list[Span]:
    """In order, those that touch or overlap joined."""
    joined: list[Span] = []
    for span in sorted(spans, key=lambda each: each.start):
        if joined and span.start <= joined[-1].last + 1:
            first = joined.pop()
            span = Span(first.start, max(first.last, span.last) + 1 - first.start)
        joined.append(span)
    return joined


def windows(spans: Iterable[Span]) -> Iterator[Span]:
    """Both ends of each span."""
    for span in spans:
        size = min(WINDOW, span.size)
        yield Span(span.start, size)
        yield Span(span.last + 1 - size, size)


def _outside(spans: Iterable[Span], other: Iterable[Span]) -> Iterator[Span]:
    """The parts of ``spans`` that no span of ``other`` holds; both merged."""
    others = list(other)
    for span in spans:
        at = span.start
        for hole in others:
            if hole.last < at or hole.start > span.last:
                continue
            if hole.start > at:
                yield Span(at, hole.start - at)
            at = max(at, hole.last + 1)
        if at <= span.last:
            yield Span(at, span.last + 1 - at)


def _compare(segment: Segment, view: FlatView, account: Account) -> None:
    """The bytes of one segment with what the model has at their addresses."""
    at = segment.start
    while at <= segment.last and not account.full:
        section = view.lookup(at)
        size = min(segment.last, section.last) + 1 - at
        backing = section.region.backing
        if not is_dumped(section):
            pass  # told as a range
        elif not isinstance(backing, TrackedBacking):
            account.unjudged[f"bytes of {section.region.name}: not readable from outside"] += size
        else:
            _compare_bytes(segment, section, backing, Span(at, size), account)
        at += size


def _compare_bytes(
    segment: Segment, section: MemoryRegionSection, backing: TrackedBacking, span: Span,
    account: Account,
) -> None:
    delta = section.offset - section.start
    with memoryview(backing.data) as data:
        for at in range(span.start, span.last + 1, STEP):
            size = min(STEP, span.last + 1 - at)
            account.compared += size
            theirs = segment.read(at, size)
            with data[at + delta : at + delta + size] as ours:
                for start, length in islice(differing_ranges(theirs, ours), MAX_DIFFERENCES):
                    account.differs(
                        f"{describe(section, at + start)}, {length} bytes",
                        bytes(ours[start : start + min(length, 16)]).hex(),
                        theirs[start : start + min(length, 16)].hex(),
                    )
