"""What is refused because it cannot be one access; and what is torn where nobody promised."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from oracle import Recorder
from rule_checks import io, ram, space_of

from qemuglue.memory import (
    AddressSpace,
    Contract,
    Endian,
    IoEventFd,
    MemoryRegion,
    MemTxAttrs,
)
from qemuglue.memory.aligned import AlignedAccess, AlignedGuestAddress
from qemuglue.memory.backing import Backing, ByteBacking, SparseBacking
from qemuglue.memory.bytes import ByteValued
from qemuglue.memory.endian import U8, Be32, EndianInt, Le16, Le32, Le64
from qemuglue.memory.guest_address import GuestAddress
from qemuglue.memory.guest_error import (
    InvalidBackendAddress,
    InvalidGuestAddress,
    IommuError,
    PartialBuffer,
)
from qemuglue.memory.guest_memory import (
    CannotResolve,
    GuestRegion,
    GuestRegionCollection,
    Iommu,
    IommuMemory,
    Iotlb,
    IotlbFails,
    IotlbIterator,
    Permissions,
)
from qemuglue.memory.iommu import IommuAccess, IommuTlbEntry
from qemuglue.memory.memory_map import GuestMemory, InvalidGuestAddressRange, MemoryMapping
from qemuglue.memory.one_access import NotOneAccess, WhyNot, atomic_size, device_calls
from qemuglue.memory.rules import RULES_10_0
from qemuglue.memory.rust_binding import AddressSpace as RustSpace
from qemuglue.memory.section_backing import section_backing

#: Two values no byte of which is the same.
OLD, NEW = 0x1111_1111_1111_1111, 0x2222_2222_2222_2222


class Copied:
    """Bytes that are copied one by one, as another process's may be: not in this process, and
    somebody may act in between."""

    def __init__(self, size: int, between: Callable[[int], None] = lambda moved: None) -> None:
        self.bytes = bytearray(size)
        self.between = between
        self.calls: list[tuple[str, int, int]] = []

    def __len__(self) -> int:
        return len(self.bytes)

    def read(self, offset: int, size: int) -> bytes:
        self.calls.append(("read", offset, size))
        moved = bytearray()
        for at in range(offset, offset + size):
            moved.append(self.bytes[at])
            self.between(len(moved))
        return bytes(moved)

    def write(self, offset: int, data: bytes) -> None:
        self.calls.append(("write", offset, len(data)))
        for moved, byte in enumerate(data):
            self.bytes[offset + moved] = byte
            self.between(moved + 1)


class Whole(Copied):
    """The same, but up to 4 bytes go in one: it says so."""

    atomic_size = 4


def regions(*placed: tuple[int, Backing]) -> AlignedAccess:
    made = [GuestRegion(*each) for each in placed]
    return AlignedAccess(GuestRegionCollection.from_regions(made))


def first_model(*placed: tuple[int, Backing | MemoryMapping]) -> AlignedAccess:
    return AlignedAccess(GuestMemory.from_regions(placed))


def refused(access: AlignedAccess, addr: int, cls: type[ByteValued]) -> set[WhyNot]:
    """Why reading and writing a ``cls`` there is refused; both must be, or neither."""
    place = AlignedGuestAddress.of(addr, cls)
    whys = set()
    for call in (
        lambda: access.read_atomic(place),
        lambda: access.write_atomic(cls.from_raw(bytes(cls.size)), place),
    ):
        try:
            call()
        except NotOneAccess as error:
            assert (error.addr, error.size) == (GuestAddress(addr), cls.size)
            whys.add(error.why)
        else:
            assert not whys
    return whys


# -- torn ---------------------------------------------------------------------------------------


def test_an_object_may_be_torn_where_an_atomic_read_is_refused() -> None:
    """Another thread writes all 8 bytes while 4 of them were read."""
    turn, back = threading.Event(), threading.Event()

    def between(moved: int) -> None:
        if moved == 4 and threading.current_thread() is threading.main_thread():
            turn.set()
            assert back.wait(10)

    backing = Copied(8, between)
    backing.bytes[:] = Le64(OLD).raw
    access = regions((0x1000, backing))
    place = AlignedGuestAddress.of(0x1000, Le64)

    def write() -> None:
        assert turn.wait(10)
        access.write_obj(Le64(NEW), place)
        back.set()

    writer = threading.Thread(target=write)
    writer.start()
    torn = access.read_obj(place)
    writer.join(10)
    assert torn == 0x2222_2222_1111_1111, "half old, half new: nobody ever wrote that"
    backing.calls.clear()
    assert refused(access, 0x1000, Le64) == {WhyNot.BACKING}
    assert not backing.calls, "and nothing was touched"


def test_an_atomic_read_is_never_torn_while_a_thread_writes() -> None:
    access = regions((0x1000, ByteBacking(bytearray(Le64(OLD).raw))))
    place = AlignedGuestAddress.of(0x1000, Le64)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            access.write_atomic(Le64(NEW), place)
            access.write_atomic(Le64(OLD), place)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = {int(access.read_atomic(place)) for _ in range(2000)}
    finally:
        stop.set()
        writer.join(10)
    assert seen <= {OLD, NEW}


def test_an_object_in_two_regions_is_two_accesses() -> None:
    """Aligned for the guest and nevertheless in two pieces: torn, or refused."""
    low, high = Copied(4), Copied(4)
    access = regions((0x1000, low), (0x1004, high))
    place = AlignedGuestAddress.of(0x1000, Le64)
    access.write_obj(Le64(OLD), place)
    low.between = lambda moved: high.bytes.__setitem__(slice(0, 4), Le32(NEW >> 32).raw)
    assert access.read_obj(place) == 0x2222_2222_1111_1111
    low.calls.clear()
    high.calls.clear()
    assert refused(access, 0x1000, Le64) == {WhyNot.CROSSES}
    assert not low.calls and not high.calls


# -- memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [regions, first_model])
def test_into_the_next_region_and_into_a_hole(made: Callable[..., AlignedAccess]) -> None:
    access = made((0x1000, ByteBacking(0x10)), (0x1010, ByteBacking(4)), (0x2000, ByteBacking(6)))
    assert refused(access, 0x1008, Le64) == set()
    assert refused(access, 0x1010, Le64) == {WhyNot.CROSSES}
    assert refused(access, 0x1010, Le32) == set()
    assert refused(access, 0x2004, Le32) == {WhyNot.CROSSES}
    assert refused(access, 0x2004, Le16) == set()
    odd = made((0x1000, ByteBacking(7)))
    assert refused(odd, 0x1000, Le64) == {WhyNot.CROSSES}, "by a single byte"
    assert refused(odd, 0x1004, Le32) == {WhyNot.CROSSES}
    with pytest.raises((InvalidGuestAddress, InvalidGuestAddressRange)):
        access.read_atomic(AlignedGuestAddress.of(0x3000, Le16))


@pytest.mark.parametrize("made", [regions, first_model])
def test_aligned_for_the_guest_is_not_aligned_for_the_host(
    made: Callable[..., AlignedAccess]
) -> None:
    access = made((0x1002, ByteBacking(0x20)))
    assert refused(access, 0x1004, Le32) == {WhyNot.HOST_ALIGNMENT}
    assert refused(access, 0x1004, Le16) == set()
    assert refused(access, 0x1004, U8) == set()


def test_the_host_address_of_a_backing_counts() -> None:
    class Placed(Whole):
        host_address = 0x7F00_0002

    access = regions((0x1000, Placed(0x10)))
    assert refused(access, 0x1000, Le32) == {WhyNot.HOST_ALIGNMENT}
    assert refused(regions((0x1002, Placed(0x10))), 0x1004, Le32) == set()


def test_a_window_counts_from_where_it_is_in_its_backing() -> None:
    access = first_model((0x1000, MemoryMapping(ByteBacking(0x20), 2)))
    assert refused(access, 0x1004, Le32) == {WhyNot.HOST_ALIGNMENT}
    assert refused(access, 0x1004, Le16) == set()


def test_how_much_a_backing_moves_in_one() -> None:
    assert atomic_size(ByteBacking(8)) == atomic_size(SparseBacking(8)) == 8
    assert (atomic_size(Copied(8)), atomic_size(Whole(8))) == (1, 4)
    access = regions((0x1000, Whole(0x10)), (0x2000, Copied(0x10)), (0x3000, SparseBacking(0x10)))
    assert refused(access, 0x1000, Le32) == set()
    assert refused(access, 0x1000, Le64) == {WhyNot.BACKING}
    assert refused(access, 0x2000, U8) == set()
    assert refused(access, 0x2000, Le16) == {WhyNot.BACKING}
    assert refused(access, 0x3000, Le64) == set()


@pytest.mark.parametrize("made", [regions, first_model])
def test_one_access_is_one_call_of_the_backing(made: Callable[..., AlignedAccess]) -> None:
    backing = Whole(0x10)
    access = made((0x1000, backing))
    place = AlignedGuestAddress.of(0x1004, Le32)
    access.write_atomic(Le32(7), place)
    assert access.read_atomic(place) == 7
    assert backing.calls == [("write", 4, 4), ("read", 4, 4)]


# -- devices ------------------------------------------------------------------------------------


def view_over(*placed: tuple[int, MemoryRegion]) -> tuple[AlignedAccess, Recorder]:
    """A FlatView with the methods of the proposal, and what its devices hear."""
    space, device = space_of(RULES_10_0, *placed)
    return AlignedAccess(RustSpace(space).memory().view), device


def test_a_device_that_takes_it_whole_is_one_access() -> None:
    access, device = view_over((0x1000, io(Contract(valid_max=8, impl_max=8))))
    assert refused(access, 0x1008, Le64) == set()
    assert device.log == [("read", "dev", 8, 8), ("write", "dev", 8, 8, 0)]


def test_a_device_that_is_called_twice_is_refused_and_hears_nothing() -> None:
    access, device = view_over((0x1000, io(Contract(valid_max=8, impl_max=4))))
    assert refused(access, 0x1008, Le64) == {WhyNot.SPLIT}
    assert not device.log
    assert refused(access, 0x1008, Le32) == set()
    place = AlignedGuestAddress.of(0x1008, Le64)
    device.log.clear()
    assert access.memory.load(place.to_guest_address(), Le64) is not None
    assert len(device.log) == 2, "load itself goes on: QEMU hands over one access"


def test_a_widened_call_is_still_one() -> None:
    access, device = view_over((0x1000, io(Contract(impl_min=4))))
    assert refused(access, 0x1002, Le16) == set()
    assert len(device.log) == 2


def test_an_access_that_a_device_refuses_fails_as_load_does() -> None:
    access, device = view_over((0x1000, io(Contract(valid_max=4, impl_max=1))))
    with pytest.raises(InvalidBackendAddress):
        access.read_atomic(AlignedGuestAddress.of(0x1000, Le64))
    assert refused(access, 0x1000, Le32) == {WhyNot.SPLIT}
    assert device.log == [("invalid", "dev", 0, 8, False, "invalid size")], "told once"


def test_ram_in_a_view_is_asked_for_its_alignment_and_end() -> None:
    access, _ = view_over((0x1000, ram(0x1006)))
    assert refused(access, 0x2000, Le32) == set()
    assert refused(access, 0x2004, Le32) == {WhyNot.CROSSES}
    with pytest.raises(InvalidBackendAddress):
        access.read_atomic(AlignedGuestAddress.of(0x8000, Le32))
    alias = MemoryRegion.alias_of("window", ram(0x1000), 2, 0x100)
    access, _ = view_over((0x1000, alias))
    assert refused(access, 0x1004, Le32) == {WhyNot.HOST_ALIGNMENT}


def test_sections_as_backings_are_asked_the_same() -> None:
    space, device = space_of(
        RULES_10_0,
        (0x1000, io(Contract(valid_max=8, impl_max=4, endian=Endian.BIG))), (0x4000, ram()),
    )
    placed = [(each.start, section_backing(space, each)) for each in space.view.sections]
    for made in (regions, first_model):
        device.log.clear()
        access = made(*placed)
        assert refused(access, 0x1008, Le64) == {WhyNot.SPLIT}
        assert not device.log
        assert refused(access, 0x1008, Be32) == set()
        assert refused(access, 0x4000, Le64) == set()


def test_calls_are_counted_through_an_alias() -> None:
    device = io(Contract(impl_max=2, accepts=lambda offset, size, is_write: offset < 8))
    alias = MemoryRegion.alias_of("window", device, 4, 0x10)
    space, _ = space_of(RULES_10_0, (0x1000, device))
    assert device_calls(space, device, 4, 4) == device_calls(space, alias, 0, 4) == 2
    assert device_calls(space, device, 4, 2) == 1
    assert device_calls(space, device, 5, 2) == 0, "refused: not aligned"
    assert device_calls(space, device, 8, 4) == device_calls(space, alias, 4, 4) == 0


@pytest.mark.parametrize(("endian", "cls"), [(Endian.LITTLE, Le32), (Endian.BIG, Be32)])
def test_a_write_that_an_ioeventfd_swallows_is_no_call(
    endian: Endian, cls: type[EndianInt]
) -> None:
    """The data is compared with the value that the device would get, in its own order."""
    device = io(Contract(impl_max=2, endian=endian))
    device.ioeventfds = (IoEventFd(4, 4, 7, None),)
    access, heard = view_over((0x1000, device))
    place = AlignedGuestAddress.of(0x1004, cls)
    access.write_atomic(cls(7), place)
    assert not heard.log, "swallowed"
    other = cls(7 << 24)
    for call in (lambda: access.write_atomic(other, place), lambda: access.read_atomic(place)):
        with pytest.raises(NotOneAccess) as caught:
            call()
        assert caught.value.why is WhyNot.SPLIT
    assert not heard.log


def test_a_device_that_is_busy_is_not_called_at_all() -> None:
    """Its own DMA may not enter it again (R4): ACCESS_ERROR, and no call that could be cut."""
    device = io(Contract(valid_max=8, impl_max=4))
    device.owner = "nic"
    access, heard = view_over((0x1000, device))
    assert refused(access, 0x1008, Le64) == {WhyNot.SPLIT}
    space = access.memory._space  # type: ignore[attr-defined]
    space.engaged.add("nic")
    with pytest.raises(InvalidBackendAddress):
        access.read_atomic(AlignedGuestAddress.of(0x1008, Le64))
    assert device_calls(space, device, 8, 8) == 0
    device.guarded = False
    assert device_calls(space, device, 8, 8) == 2
    assert not heard.log


def test_nobody_there_to_be_called_twice() -> None:
    device = io(Contract(valid_max=8, impl_max=4))
    space, heard = space_of(RULES_10_0, (0x1000, device))
    space.ops = None
    assert device_calls(space, device, 0, 8) == 0
    device.ops = heard  # type: ignore[assignment]
    assert device_calls(space, device, 0, 8) == 2


class ReadsHere:
    """An IOMMU that sends reads to 0x1000 and writes to 0x2000."""

    target: AddressSpace

    def attrs_to_index(self, region: MemoryRegion, attrs: MemTxAttrs) -> int:
        return 0

    def translate(
        self, region: MemoryRegion, addr: int, access: IommuAccess, index: int
    ) -> IommuTlbEntry:
        there = 0x2000 if access & IommuAccess.WO else 0x1000
        return IommuTlbEntry(self.target, addr, there, 0xFFF, access)


def test_behind_an_iommu_reads_and_writes_are_asked_apart() -> None:
    iommu = ReadsHere()
    iommu.target, device = space_of(
        RULES_10_0, (0x1000, ram()), (0x2000, io(Contract(valid_max=8, impl_max=4)))
    )
    access, heard = view_over((0, MemoryRegion.iommu("iommu", 0x1000, iommu)))
    place = AlignedGuestAddress.of(0x10, Le64)
    assert access.read_atomic(place) == 0
    with pytest.raises(NotOneAccess) as caught:
        access.write_atomic(Le64(1), place)
    assert caught.value.why is WhyNot.SPLIT
    assert not device.log and not heard.log


class Mapped(Iommu):
    """vm-memory's kind of IOMMU, by what it was told."""

    def __init__(self, *mappings: tuple[int, int, int, Permissions]) -> None:
        self.tlb = Iotlb()
        for mapping in mappings:
            self.tlb.set_mapping(*mapping)

    def translate(self, iova: GuestAddress, length: int, access: Permissions) -> IotlbIterator:
        try:
            return self.tlb.lookup(iova, length, access)
        except IotlbFails as fails:
            raise CannotResolve([*fails.misses, *fails.access_fails][0], "not told") from None


def test_behind_an_iommu_of_vm_memory() -> None:
    """Aligned as the device sees it, in one piece or not as the memory lies."""
    both, read = Permissions.ReadWrite, Permissions.Read
    table = Mapped(
        (0x7000, 0x1010, 4, both), (0x7004, 0x1000, 4, both), (0x7100, 0x1002, 8, both),
        (0x7200, 0x1008, 8, read), (0x7300, 0x9000, 8, both),
    )
    regions_behind = GuestRegionCollection.from_regions([GuestRegion(0x1000, ByteBacking(0x20))])
    access = AlignedAccess(IommuMemory(regions_behind, table))
    assert refused(access, 0x7000, Le32) == set()
    assert refused(access, 0x7000, Le64) == {WhyNot.CROSSES}
    assert refused(access, 0x7100, Le32) == {WhyNot.HOST_ALIGNMENT}
    assert refused(access, 0x7102, Le16) == set()
    place = AlignedGuestAddress.of(0x7200, Le64)
    assert access.read_atomic(place) == 0
    with pytest.raises(IommuError):
        access.write_atomic(Le64(1), place)
    with pytest.raises(IommuError):
        access.read_atomic(AlignedGuestAddress.of(0x7208, Le64))
    with pytest.raises(InvalidGuestAddress):
        access.read_atomic(AlignedGuestAddress.of(0x7300, Le64))


def test_a_torn_write_is_seen_by_an_object_read() -> None:
    access = regions((0x1000, ByteBacking(6)))
    place = AlignedGuestAddress.of(0x1000, Le64)
    with pytest.raises(PartialBuffer):
        access.write_obj(Le64(OLD), place)
    assert access.read_obj_unaligned(0x1002, Le32) == OLD & 0xFFFF_FFFF, "a part was written"
    assert refused(access, 0x1000, Le64) == {WhyNot.CROSSES}
