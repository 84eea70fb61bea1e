"""HMP ``gpa2hva`` as a witness: which region answers at an address, and where its bytes are.

QEMU (``gpa2hva`` in ``monitor/hmp-cmds.c``, ``memory_region_find``) looks one byte up in the
machine's memory and says the RAM region's name and the byte's host address, that it is no RAM
(a device), or that nothing is mapped. The lookup first climbs from the system's region to its
outermost container: where the secure world's memory holds the normal world's, as on arm boards
with TrustZone, the answer is the secure world's. A ROM device counts as RAM while it reads as
memory. Host addresses are only compared with each other: inside one region they must rise with
the offset, and no two regions may share bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.flatview import FlatView, MemoryRegionSection
from qemuglue.memory.region import MemoryRegion, RegionKind
from qemuglue.qemu.guest_ram import Hva, NotRam, Unmapped, hva_of
from qemuglue.witness.account import Account
from qemuglue.witness.session import Session

WITNESS = "gpa2hva"

#: Sections asked for: an answer takes a third of a millisecond, the largest board has 800.
MAX_SECTIONS = 1000

Answer = Hva | NotRam | Unmapped


def check_translation(session: Session, rng: Random) -> Account:
    """Ask for the first, the middle and the last byte of every section and every hole.

    Raises what the monitor raises; an answer that is none is a ProtocolError.
    """
    account = Account(WITNESS)
    bases: dict[MemoryRegion, tuple[int, str]] = {}
    view = lookup_space(session.mirror.spaces, system_memory(session)).view
    for section, addr in points(view, rng):
        answer = hva_of(session.process.monitor, addr)
        account.compared += 1
        place = describe(section, addr)
        expected = expected_answer(section)
        if _words(answer) != expected:
            account.differs(place, expected, _words(answer))
        elif isinstance(answer, Hva):
            base = answer.address - (addr - section.start + section.offset)
            known, where = bases.setdefault(section.region, (base, place))
            if known != base:
                account.differs(
                    place, f"one block with {where}", f"{base - known:+#x} bytes out of line"
                )
        if account.full:
            break
    _check_overlap(bases, account)
    return account


def system_memory(session: Session) -> AddressSpace:
    """The machine's memory space: what QEMU calls ``memory``, not a CPU's."""
    spaces = session.mirror.spaces
    return next((space for space in spaces if space.name == "memory"), session.mirror.memory)


def lookup_space(spaces: Sequence[AddressSpace], memory: AddressSpace) -> AddressSpace:
    """Where ``memory_region_find`` looks for a byte of ``memory``: in the space over the
    outermost container of its root. Every such container known has its child at 0."""
    root = memory.root
    while root.container is not None and root.addr == 0:
        root = root.container
    return next((space for space in spaces if space.root is root), memory)


def points(view: FlatView, rng: Random) -> Iterator[tuple[MemoryRegionSection, int]]:
    """The sections, holes included, each with its first, middle and last address."""
    sections = list(view.cover)
    if len(sections) > MAX_SECTIONS:
        sections = sorted(rng.sample(sections, MAX_SECTIONS), key=lambda each: each.start)
    for section in sections:
        for addr in sorted({section.start, section.start + section.size // 2, section.last}):
            yield section, addr


def expected_answer(section: MemoryRegionSection) -> str:
    """What the model says of any byte of the section, in the words of ``_words``."""
    region = section.region
    if not section.assigned:
        return "nothing mapped"
    if region.is_ram or (region.kind is RegionKind.ROM_DEVICE and region.romd):
        return f"RAM of {region.name!r}"
    return "no RAM"


def describe(section: MemoryRegionSection, addr: int) -> str:
    """An address and the byte of a region it is."""
    if not section.assigned:
        return f"{addr:#x} (unassigned)"
    return f"{addr:#x} ({section.region.name}+{addr - section.start + section.offset:#x})"


def _words(answer: Answer) -> str:
    if isinstance(answer, Hva):
        return f"RAM of {answer.region!r}"
    return "no RAM" if isinstance(answer, NotRam) else "nothing mapped"


def _check_overlap(bases: dict[MemoryRegion, tuple[int, str]], account: Account) -> None:
    """Two regions with bytes in common would be one block under two names."""
    last: tuple[int, MemoryRegion] | None = None
    for base, region in sorted(
        ((base, region) for region, (base, _) in bases.items()), key=lambda each: each[0]
    ):
        if last is not None and base < last[0]:
            account.differs(
                f"host memory of {region.name!r}", f"apart from {last[1].name!r}",
                f"{last[0] - base:#x} bytes shared",
            )
        if last is None or base + region.size > last[0]:
            last = base + region.size, region
