"""ModelIommu against AddressSpace: the same accesses through the same IOMMU, on two machines.

What vm-memory's face does of an access is what QEMU does of it when all of it is let through.
Where some of it is not, it is nothing; and where there is no memory behind, it is what comes
before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from hypothesis import given, settings
from hypothesis import strategies as st
from iommu_bridge import NONE, PAGE, RAM_SIZE, RO, RW, WINDOW, WO, Face, Machine, Pages, machine

from qemuglue.memory.guest_address import GuestAddress
from qemuglue.memory.guest_error import InvalidGuestAddress, IommuError, PartialBuffer
from qemuglue.memory.guest_memory.iommu import CannotResolve
from qemuglue.memory.guest_memory.permissions import Permissions

#: Pages of the device that have an entry, and where they lead: 4 pages of RAM, then nothing.
PAGES, TARGETS = 5, (0, 1, 2, 3, 5)
TABLES = st.dictionaries(
    st.integers(0, PAGES - 1),
    st.tuples(st.sampled_from(TARGETS), st.sampled_from((RO, WO, RW, RW, RW, NONE))),
)
#: Around the seams.
ADDRESSES = st.builds(
    lambda page, off: max(0, page * PAGE + off), st.integers(0, PAGES), st.integers(-9, 9))
SIZES = st.one_of(st.integers(1, 24), st.sampled_from((PAGE, PAGE + 7, 2 * PAGE + 3)))
ACCESSES = st.lists(st.tuples(ADDRESSES, SIZES, st.booleans()), min_size=1, max_size=6)


def denied(table: Pages, is_write: bool, addr: int) -> bool:
    return not table.get(addr // PAGE, (0, NONE))[1] & (WO if is_write else RO)


def before(addr: int, size: int, fails: Callable[[int], bool]) -> int:
    """Bytes before the first one that ``fails``; ``size`` if none does."""
    return next((n for n in range(size) if fails(addr + n)), size)


def through_qemu(
    m: Machine, addr: int, size: int, data: bytes | None
) -> tuple[bool, bytes]:
    """(whether all was well, the bytes)."""
    if data is None:
        result, found = m.space.read(WINDOW + addr, size)
        return result == 0, found
    return m.space.write(WINDOW + addr, data) == 0, data


def through_face(
    face: Face, addr: int, size: int, data: bytes | None
) -> tuple[int, bytes, int | None, bool]:
    """(bytes moved, the bytes, the first I/O address refused, whether memory was missing)."""
    where, buffer = GuestAddress(WINDOW + addr), bytearray(data or size)
    try:
        if data is None:
            face.read_slice(buffer, where)
        else:
            face.write_slice(data, where)
    except IommuError as error:
        assert isinstance(error.error, CannotResolve)
        return 0, b"", error.error.iova_range.base.raw_value() - WINDOW, False
    except InvalidGuestAddress:
        return 0, b"", None, True
    except PartialBuffer as error:
        assert isinstance(error.__cause__, InvalidGuestAddress) and error.expected == size
        return error.completed, bytes(buffer), None, True
    return size, bytes(buffer), None, False


@settings(max_examples=120, deadline=None)
@given(table=TABLES, accesses=ACCESSES, mask=st.sampled_from((PAGE - 1, 0xFF)))
def test_an_access_is_the_same_or_refused_as_told(
    table: Pages, accesses: list[tuple[int, int, bool]], mask: int
) -> None:
    qemu, other = machine(table), machine(table)
    qemu.table.mask = other.table.mask = mask
    face = other.face()
    for number, (addr, size, is_write) in enumerate(accesses):
        data = bytes((number + 17 * at) % 251 for at in range(size)) if is_write else None
        old = qemu.ram()
        assert other.ram() == old
        well, expected = through_qemu(qemu, addr, size, data)
        moved, found, refused, missing = through_face(face, addr, size, data)
        lost = before(addr, size, partial(denied, table, is_write))
        assert refused == (addr + lost if lost < size else None)
        assert well == (refused is None and not missing)
        access = Permissions.Write if is_write else Permissions.Read
        assert face.check_range(GuestAddress(WINDOW + addr), size, access) == well
        if refused is not None:
            assert other.ram() == old, "nothing of it was done"
        elif missing:
            assert moved == before(
                addr, size, lambda at: table[at // PAGE][0] * PAGE >= RAM_SIZE)
        if not is_write:
            assert found[:moved] == expected[:moved]
        elif well:
            assert other.ram() == qemu.ram()
        if other.ram() != qemu.ram():  # go on from the same bytes
            qemu.target.write(0, other.ram())
