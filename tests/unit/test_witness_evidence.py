"""The transcript as the model's devices: what counts as met, and what never does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from witness_events import (
    call,
    device,
    judged,
    message,
    refusal,
    remapped,
    space_of,
    unassigned,
)

from qemuglue.memory import AddressSpace, Contract, Endian, MemoryRegion, Reason, RegionKind
from qemuglue.memory.attrs import OK
from qemuglue.memory.rules import RULES_10_0
from qemuglue.qemu.events import Event, Kind, Refusal
from qemuglue.witness.evidence import Evidence, Expected
from qemuglue.witness.port_root import IoRootOps
from qemuglue.witness.session import twins
from qemuglue.witness.verdict import Tally

FOUR = Contract(valid_min=4, valid_max=4)


class Desk:
    """A space with device ``dev`` at 0x1000 and ``other`` at 0x2000, judged by ``evidence``."""

    def __init__(self, contract: Contract | None = None) -> None:
        self.dev = device("dev", 0x100, contract)
        self.other = device("other", 0x100)
        self.space: AddressSpace = space_of((0x1000, self.dev), (0x2000, self.other))
        self.evidence = judged(self.space, Evidence())

    def reads(self, addr: int, size: int, events: list[Event]) -> bytes:
        """What a read gives when these are the events of its batch."""
        self.evidence.load(events)
        self.evidence.op_addr, self.evidence.op_size = addr, size
        data = self.space.read(addr, size)[1]
        self.evidence.settle()
        self.evidence.finish()
        return data

    def writes(self, addr: int, data: bytes, events: list[Event]) -> None:
        self.evidence.load(events)
        self.evidence.op_addr, self.evidence.op_size = addr, len(data)
        self.space.write(addr, data)
        self.evidence.settle()
        self.evidence.finish()

    @property
    def missed(self) -> tuple[str, str]:
        """(model says, QEMU says)."""
        assert self.evidence.mismatch is not None, "nothing was missed"
        return self.evidence.mismatch.describe()


# -- pieces ------------------------------------------------------------------------------


def test_a_read_gives_what_the_device_returned() -> None:
    desk = Desk()
    data = desk.reads(0x1010, 4, [call(desk.dev, 0x10, 4, 0x11223344)])
    assert data == bytes.fromhex("44332211")
    assert desk.evidence.mismatch is None and desk.evidence.pos == 1


def test_a_wide_read_is_two_pieces_in_order() -> None:
    desk = Desk()
    low, high = call(desk.dev, 0x10, 4, 1), call(desk.dev, 0x14, 4, 2)
    assert desk.reads(0x1010, 8, [low, high]) == (2 << 32 | 1).to_bytes(8, "little")
    assert desk.evidence.mismatch is None
    desk.reads(0x1010, 8, [high, low])
    assert desk.missed == ("read of 4 at dev+0x10", "read of 4 at 0x1014 of 'dev' -> 0x2")


def test_a_write_is_met_by_its_value() -> None:
    desk = Desk()
    desk.writes(0x1000, b"\x78\x56\x34\x12", [call(desk.dev, 0, 4, 0x12345678, is_write=True)])
    assert desk.evidence.mismatch is None


def test_a_big_endian_device_is_given_the_other_number() -> None:
    desk = Desk(Contract(endian=Endian.BIG))
    desk.writes(0x1000, b"\x78\x56\x34\x12", [call(desk.dev, 0, 4, 0x78563412, is_write=True)])
    assert desk.evidence.mismatch is None
    desk.writes(0x1000, b"\x78\x56\x34\x12", [call(desk.dev, 0, 4, 0x12345678, is_write=True)])
    assert desk.evidence.mismatch is not None


def test_what_does_not_fit_a_read() -> None:
    desk = Desk()
    right = call(desk.dev, 0x10, 4, 7)
    for wrong in (
        call(desk.dev, 0x14, 4, 7),
        call(desk.dev, 0x10, 2, 7),
        call(desk.dev, 0x10, 4, 7, is_write=True),
        call(desk.dev, 0x10, 4, 7, kind=Kind.RAM_DEVICE_READ),
        right._replace(name="de"),
        call(desk.other, 0x10, 4, 7),
        refusal(desk.dev, 0x10, 4, Reason.REJECTED),
    ):
        desk = Desk()
        desk.reads(0x1010, 4, [wrong._replace(mr=wrong.mr and 1), right._replace(mr=2)])
        assert desk.missed[0] == "read of 4 at dev+0x10", wrong
        assert desk.evidence.pos == 0, "nothing is consumed after the first misfit"


@pytest.mark.parametrize(("offset", "size", "value"), [(0, 4, 8), (4, 4, 7), (0, 2, 7)])
def test_what_does_not_fit_a_write(offset: int, size: int, value: int) -> None:
    desk = Desk()
    desk.writes(0x1000, b"\x07\0\0\0", [call(desk.dev, offset, size, value, is_write=True)])
    assert desk.missed[0] == "write of 4 at dev+0x0 value 0x7"


def test_a_piece_that_is_missing() -> None:
    desk = Desk()
    desk.reads(0x1010, 8, [call(desk.dev, 0x10, 4, 1)])
    assert desk.missed == ("read of 4 at dev+0x14", "nothing more in the transcript")


@pytest.mark.parametrize("extra", [
    lambda desk: call(desk.dev, 0x10, 4, 1),
    lambda desk: call(desk.other, 0, 4, 1, is_write=True),
    lambda desk: refusal(desk.dev, 0, 2, Reason.INVALID_SIZE),
])
def test_a_piece_too_many(extra: object) -> None:
    desk = Desk()
    surplus = extra(desk)  # type: ignore[operator]
    desk.reads(0x1010, 4, [call(desk.dev, 0x10, 4, 1), surplus])
    assert desk.missed[0] == "no further access"


def test_after_a_misfit_nothing_is_consumed() -> None:
    desk = Desk()
    desk.reads(0x1010, 4, [call(desk.dev, 0, 4, 1), call(desk.dev, 0x10, 4, 2)])
    before = desk.evidence.mismatch
    assert desk.space.read(0x1010, 4) == (OK, bytes(4))
    desk.space.read(0x9000, 4)
    assert (desk.evidence.pos, desk.evidence.mismatch) == (0, before)


def test_messages_are_stepped_over() -> None:
    desk = Desk()
    desk.reads(0x1010, 4, [message(), call(desk.dev, 0x10, 4, 1), message()])
    assert desk.evidence.mismatch is None and desk.evidence.pos == 3
    assert not desk.evidence.sides


def test_values_above_the_region_wrap_at_64_bits() -> None:
    """A device at the end of the address space that is accessed over it."""
    dev = device("top", 0x10)
    space = space_of(((1 << 64) - 0x10, dev))
    evidence = judged(space, Evidence())
    evidence.load([call(dev, 0xC, 4, 5)])
    assert space.read((1 << 64) - 4, 4)[1] == b"\x05\0\0\0"
    assert evidence.mismatch is None


def test_a_ram_device_shows_as_one() -> None:
    region = MemoryRegion("ramd", 0x100, RegionKind.RAM_DEVICE, contract=Contract(
        valid_min=1, valid_max=8, valid_unaligned=True, impl_min=1, impl_max=8,
        impl_unaligned=True, endian=Endian.LITTLE))
    space = space_of((0x1000, region))
    evidence = judged(space, Evidence())
    evidence.load([call(region, 3, 8, 9, kind=Kind.RAM_DEVICE_READ)])
    assert space.read(0x1003, 8)[1] == b"\x09" + bytes(7) and evidence.mismatch is None
    evidence.load([call(region, 3, 8, 9)])
    space.read(0x1003, 8)
    assert evidence.mismatch is not None, "a RAM device has records of its own"


# -- refusals --------------------------------------------------------------------------------


def test_a_refusal_is_met() -> None:
    desk = Desk(FOUR)
    data = desk.reads(0x1002, 2, [refusal(desk.dev, 2, 2, Reason.INVALID_SIZE)])
    assert data == bytes(2) and desk.evidence.mismatch is None


@pytest.mark.parametrize("change", [
    {"address": 6}, {"size": 1}, {"kind": Kind.INVALID_WRITE}, {"name": "other"}, {"name": None},
    {"refusal": Refusal(Reason.UNALIGNED, 0, 0)},
    {"refusal": Refusal(Reason.INVALID_SIZE, 4, 8)},
    {"refusal": Refusal(Reason.INVALID_SIZE, 2, 4)},
])
def test_what_does_not_fit_a_refusal(change: dict[str, object]) -> None:
    desk = Desk(FOUR)
    right = refusal(desk.dev, 2, 2, Reason.INVALID_SIZE)
    desk.reads(0x1002, 2, [right._replace(**change)])  # type: ignore[arg-type]
    assert desk.missed[0] == "read of 2 at dev+0x2 refused: invalid size"


def test_a_call_where_the_model_refuses_is_a_misfit() -> None:
    desk = Desk(FOUR)
    desk.reads(0x1002, 2, [call(desk.dev, 2, 2, 5)])
    assert desk.missed[0] == "read of 2 at dev+0x2 refused: invalid size"


def test_unassigned_memory_is_refused_by_its_address() -> None:
    desk = Desk()
    desk.reads(0x9000, 8, [unassigned(0x9000, 4), unassigned(0x9004, 4)])
    assert desk.evidence.mismatch is None
    desk.reads(0x9000, 8, [unassigned(0x9004, 4), unassigned(0x9000, 4)])
    assert desk.missed == (
        "read of 4 at unassigned+0x9000 refused: rejected",
        "refused read of 4 at 0x9004 of unassigned memory: rejected",
    )


def test_refusals_outside_the_operations_bytes_are_the_devices_own() -> None:
    """A device may do DMA to where nothing is, inside the operation that makes it act."""
    desk = Desk()
    data = desk.reads(0x1000, 4, [unassigned(0x5000, 4), call(desk.dev, 0, 4, 1),
                                  unassigned(0x6000, 1, is_write=True)])
    assert data == b"\x01\0\0\0" and desk.evidence.mismatch is None
    assert sum(desk.evidence.sides.values()) == 2
    desk.reads(0x9000, 4, [unassigned(0x5000, 4), unassigned(0x9000, 4)])
    assert desk.evidence.mismatch is None


@pytest.mark.parametrize("addr", [0x9000, 0x9002, 0x9003])
def test_refusals_inside_the_operations_bytes_are_its_own(addr: int) -> None:
    """One more refusal there is a piece the model does not know of."""
    desk = Desk()
    desk.reads(0x9000, 4, [unassigned(0x9000, 4), unassigned(addr, 1)])
    assert desk.missed[0] == "no further access"


def test_the_operations_bytes_wrap() -> None:
    desk = Desk()
    last = (1 << 64) - 2
    desk.reads(last, 4, [unassigned(last, 2), unassigned(0, 2)])
    assert desk.evidence.mismatch is None
    desk.reads(last, 4, [unassigned(last, 2), unassigned(0, 2), unassigned(1, 1)])
    assert desk.evidence.mismatch is not None


# -- what devices do by themselves -------------------------------------------------------------


def test_an_msi_is_a_side_write() -> None:
    msi = device("apic-msi", 0x1000)
    desk = Desk()
    for events in (
        [call(desk.dev, 0, 4, 7, is_write=True), call(msi, 0, 4, 3, is_write=True)],
        [call(msi, 0, 4, 3, is_write=True), call(desk.dev, 0, 4, 7, is_write=True)],
    ):
        desk.evidence.sides.clear()
        desk.writes(0x1000, b"\x07\0\0\0", events)
        assert desk.evidence.mismatch is None
        assert sum(desk.evidence.sides.values()) == 1
    desk.writes(0x1000, b"\x07\0\0\0", [
        call(desk.dev, 0, 4, 7, is_write=True), call(msi, 0, 4, 3)])
    assert desk.evidence.mismatch is not None, "an interrupt is never a read"


def test_side_accesses_are_counted_by_who_and_where() -> None:
    msi = device("apic-msi", 0x1000)
    desk = Desk()
    desk.writes(0x1000, b"\x07\0\0\0", [
        call(desk.dev, 0, 4, 7, is_write=True), call(msi, 0, 4, 3, is_write=True)])
    assert desk.evidence.sides == {"dev -> apic-msi": 1}
    tally = Tally()
    tally.side_accesses.update(desk.evidence.sides)
    assert tally.to_json()["device_initiated"] == {"dev -> apic-msi": 1}


def test_a_known_pair_is_allowed_and_no_other() -> None:
    desk = Desk()
    events = [call(desk.dev, 0, 4, 7, is_write=True), call(desk.other, 8, 4, 1)]
    desk.writes(0x1000, b"\x07\0\0\0", events)
    assert desk.evidence.mismatch is not None
    desk.evidence.known_sides.add(("other", "dev"))
    desk.writes(0x1000, b"\x07\0\0\0", events)
    assert desk.evidence.mismatch is not None, "the pair has a direction"
    desk.evidence.known_sides.add(("dev", "other"))
    desk.writes(0x1000, b"\x07\0\0\0", events)
    assert desk.evidence.mismatch is None


def test_the_slow_judge_is_lenient_except_on_the_operations_own_regions() -> None:
    desk = Desk()
    desk.evidence.lenient = True
    desk.evidence.targets = {"dev"}
    desk.writes(0x1000, b"\x07\0\0\0", [
        call(desk.dev, 0, 4, 7, is_write=True), call(desk.other, 8, 4, 1)])
    assert desk.evidence.mismatch is None
    desk.writes(0x1000, b"\x07\0\0\0", [
        call(desk.dev, 0, 4, 7, is_write=True), call(desk.dev, 8, 4, 1)])
    assert desk.evidence.mismatch is not None


def test_more_events_may_come_while_a_device_acts() -> None:
    other = device("other")
    space = space_of((0x2000, other))
    evidence = judged(space, Evidence())
    evidence.load([])
    late = [call(other, 0, 4, 9), unassigned(0x9000, 1)]

    def more() -> bool:
        evidence.append([late.pop(0)] if late else [])
        return bool(evidence.events)

    evidence.more = more
    assert space.read(0x2000, 4) == (0, (9).to_bytes(4, "little"))
    assert space.read(0x9000, 1)[0] != 0
    assert evidence.mismatch is None
    space.read(0x2000, 4)
    assert evidence.mismatch is not None, "nothing more comes"


def test_writes_that_reach_flash_are_noted() -> None:
    flash = MemoryRegion.rom_device("flash", 0x1000, Contract())
    space = space_of((0x1000, flash))
    evidence = judged(space, Evidence())
    evidence.load([call(flash, 0x10, 4, 7, is_write=True), call(flash, 0x14, 4, 0, is_write=True)])
    space.write(0x1010, b"\7\0\0\0\0\0\0\0")
    assert evidence.mismatch is None
    assert evidence.stored == [(flash, 0x10), (flash, 0x14)]
    evidence.load([])
    assert not evidence.stored


# -- the map -----------------------------------------------------------------------------------


def test_a_new_flat_view_is_noticed_wherever_it_stands() -> None:
    desk = Desk()
    piece = call(desk.dev, 0, 4, 1)
    for events in ([piece, remapped()], [remapped(), piece], [piece, message(), remapped()]):
        desk.reads(0x1000, 4, events)
        assert desk.evidence.mismatch is None and desk.evidence.topology, events
    desk.reads(0x1000, 4, [piece])
    assert not desk.evidence.topology, "a batch starts anew"


def test_settle_looks_no_further_than_the_next_operations_events() -> None:
    desk = Desk()
    first, second = call(desk.dev, 0, 4, 1), call(desk.dev, 4, 4, 2)
    desk.evidence.load([first, second, remapped()])
    desk.space.read(0x1000, 4)
    desk.evidence.settle()
    assert not desk.evidence.topology and desk.evidence.pos == 1
    desk.space.read(0x1004, 4)
    desk.evidence.settle()
    assert desk.evidence.topology


# -- ioeventfds ----------------------------------------------------------------------------------


def test_a_swallowed_write_keeps_what_was_stepped_over() -> None:
    """No event for the write; the interrupt that stands there belongs to what follows."""
    notify = device("virtio-pci-notify-virtio-rng", 0x1000)
    msi = device("apic-msi", 0x1000)
    dev = device()
    space = space_of((0x1000, notify), (0x4000, dev))
    evidence = judged(space, Evidence())
    side = call(msi, 0, 4, 1, is_write=True)
    evidence.load([side, message(), call(dev, 0, 4, 7)])
    assert space.write(0x1000, b"\0\0") == OK
    assert evidence.swallowed and evidence.mismatch is None
    assert evidence.pos == 0 and sum(evidence.sides.values()) == 0
    assert space.read(0x4000, 4)[1] == b"\x07\0\0\0"
    evidence.finish()
    assert evidence.mismatch is None and sum(evidence.sides.values()) == 1


def test_a_write_that_is_not_swallowed_is_judged() -> None:
    notify = device("virtio-pci-notify-virtio-rng", 0x1000)
    space = space_of((0x1000, notify))
    evidence = judged(space, Evidence())
    evidence.load([call(notify, 0, 2, 0, is_write=True)])
    space.write(0x1000, b"\0\0")
    assert not evidence.swallowed and evidence.pos == 1


def test_only_writes_to_regions_with_eventfds_are_swallowed() -> None:
    notify = device("virtio-pci-notify-virtio-rng", 0x1000)
    space = space_of((0x1000, notify))
    evidence = judged(space, Evidence())
    evidence.load([])
    space.read(0x1000, 2)
    assert evidence.mismatch is not None, "a read is never swallowed"
    desk = Desk()
    desk.writes(0x1000, b"\0\0\0\0", [])
    assert desk.evidence.mismatch is not None and not desk.evidence.swallowed


# -- pointers --------------------------------------------------------------------------------------


def test_a_region_has_one_pointer() -> None:
    desk = Desk()
    desk.reads(0x1000, 4, [call(desk.dev, 0, 4, 1, pointer=77)])
    desk.reads(0x1000, 4, [call(desk.dev, 0, 4, 1, pointer=77)])
    assert desk.evidence.mismatch is None
    desk.reads(0x1000, 4, [call(desk.dev, 0, 4, 1, pointer=78)])
    assert desk.missed[0] == "read of 4 at dev+0x0"
    assert desk.evidence.replaced is None, "the map is the same: this is another region"


def test_a_pointer_has_one_region() -> None:
    """Of two namesakes, each is its own."""
    one, two = device("same"), device("same")
    space = space_of((0x1000, one), (0x2000, two))
    evidence = judged(space, Evidence())
    evidence.load([call(one, 0, 4, 1, pointer=77)])
    space.read(0x1000, 4)
    evidence.load([call(two, 0, 4, 1, pointer=77)])
    space.read(0x2000, 4)
    assert evidence.mismatch is not None
    evidence.load([call(two, 0, 4, 1, pointer=78)])
    space.read(0x2000, 4)
    assert evidence.mismatch is None


def test_pointers_of_another_process_mean_nothing() -> None:
    desk = Desk()
    desk.reads(0x1000, 4, [call(desk.dev, 0, 4, 1, pointer=77)])
    desk.evidence.new_process()
    desk.reads(0x1000, 4, [call(desk.dev, 0, 4, 1, pointer=78)])
    assert desk.evidence.mismatch is None


def test_a_namesake_that_took_the_regions_place_is_told_apart() -> None:
    desk = Desk()
    evidence = desk.evidence
    desk.reads(0x1000, 4, [call(desk.dev, 0, 4, 1, pointer=77)])
    evidence.new_map()
    desk.reads(0x1000, 4, [call(desk.dev, 0, 4, 1, pointer=78)])
    assert evidence.mismatch is not None and evidence.replaced is desk.dev
    evidence.replaced = None
    evidence.forget(desk.dev)
    evidence.new_map()
    desk.reads(0x1000, 4, [call(desk.dev, 0, 4, 1, pointer=78)])
    assert evidence.mismatch is None and evidence.replaced is None


def test_a_namesake_is_told_apart_behind_a_device_that_may_do_anything() -> None:
    desk = Desk()
    evidence = desk.evidence
    desk.reads(0x1000, 4, [call(desk.dev, 0, 4, 1, pointer=77)])
    evidence.new_map()
    evidence.known_sides = {("other", "dev")}
    evidence.load([
        call(desk.other, 0, 4, 1, pointer=99), call(desk.dev, 0, 4, 1, pointer=78)])
    for addr in (0x2000, 0x1000):
        evidence.op_addr, evidence.op_size = addr, 4
        desk.space.read(addr, 4)
    assert evidence.replaced is desk.dev


def test_a_write_that_may_be_swallowed_is_not_sought_behind_a_lost_device() -> None:
    """A later one of the same value would be taken for it, and what is between is gone."""
    notify, other = device("virtio-pci-notify-x", 0x100), device("other", 0x100)
    space = space_of((0x1000, notify), (0x2000, other))
    evidence = judged(space, Evidence())
    lost: Any = SimpleNamespace(
        is_lost=lambda region: True, of=lambda region: object(), heard=lambda *told: None,
        reading=lambda *asked: None)
    evidence.following = lost
    evidence.load([
        call(other, 0, 4, 7), call(notify, 0, 4, 1, is_write=True)])
    space.write(0x1000, b"\1\0\0\0")
    assert evidence.swallowed and evidence.pos == 0
    assert space.read(0x2000, 4)[1] == b"\7\0\0\0"


def test_what_is_no_replacement() -> None:
    desk = Desk()
    evidence = desk.evidence
    desk.reads(0x1000, 4, [call(desk.dev, 0, 4, 1, pointer=77)])
    desk.reads(0x2000, 4, [call(desk.other, 0, 4, 1, pointer=99)])
    evidence.new_map()
    for event in (
        call(desk.other, 0, 4, 1, pointer=98),  # another name
        call(desk.dev, 0, 4, 1, pointer=99),  # a pointer that is somebody's
        call(desk.dev, 4, 4, 1, pointer=77),  # the same region, elsewhere
        unassigned(0x1000, 4),
    ):
        desk.reads(0x1000, 4, [event])
        assert evidence.mismatch is not None and evidence.replaced is None, event


def test_a_region_that_moved_is_looked_for_at_its_new_address() -> None:
    desk = Desk()
    desk.reads(0x1000, 4, [call(desk.dev, 0, 4, 1)])
    desk.dev.set_address(0x8000)
    desk.space.update()
    desk.evidence.new_map()
    desk.reads(0x8000, 4, [call(desk.dev, 0, 4, 2)])
    assert desk.evidence.mismatch is None


# -- the rest ------------------------------------------------------------------------------------


def test_every_piece_that_was_met_is_told() -> None:
    desk = Desk(FOUR)
    told: list[str] = []
    desk.evidence.on_piece = lambda expected, event: told.append(expected.describe())
    desk.reads(0x1000, 4, [call(desk.dev, 0, 4, 1)])
    desk.reads(0x1001, 1, [refusal(desk.dev, 1, 1, Reason.INVALID_SIZE)])
    desk.writes(0x1004, b"\1\0\0\0", [call(desk.dev, 4, 4, 1, is_write=True)])
    desk.reads(0x1000, 4, [])
    assert told == ["read of 4 at dev+0x0", "read of 1 at dev+0x1 refused: invalid size",
                    "write of 4 at dev+0x4 value 0x1"]


def test_the_root_of_the_ports_answers_by_rule_but_must_be_seen() -> None:
    root = MemoryRegion.io("io", 0x10000, Contract())
    space = AddressSpace("I/O", root)
    evidence = judged(space, Evidence())
    root.ops = IoRootOps(evidence, RULES_10_0)
    evidence.load([call(root, 0x80, 2, 0x1234), call(root, 0x80, 1, 5, is_write=True)])
    assert space.read(0x80, 2) == (OK, b"\xff\xff"), "not what the transcript says"
    assert space.write(0x80, b"\5") == OK
    assert evidence.mismatch is None and evidence.pos == 2
    evidence.load([])
    space.read(0x80, 1)
    assert evidence.mismatch is not None


def test_the_next_refusal_is_looked_at_without_consuming() -> None:
    desk = Desk()
    evidence = desk.evidence
    evidence.load([message(), refusal(desk.dev, 8, 4, Reason.REJECTED)])
    assert evidence.refused_next(desk.dev, 8, 4, False)
    assert not evidence.refused_next(desk.dev, 8, 4, True)
    assert not evidence.refused_next(desk.dev, 0, 4, False)
    assert not evidence.refused_next(desk.other, 8, 4, False)
    assert evidence.pos == 0
    evidence.load([refusal(desk.dev, 8, 4, Reason.UNALIGNED)])
    assert not evidence.refused_next(desk.dev, 8, 4, False), "only the device's own rule"
    evidence.load([])
    assert not evidence.refused_next(desk.dev, 8, 4, False)


def test_a_refusal_behind_a_change_of_the_map_is_found() -> None:
    """A write to dino changes the map before its next piece is refused."""
    desk = Desk()
    desk.evidence.load([remapped(), message(), refusal(desk.dev, 8, 4, Reason.REJECTED)])
    assert desk.evidence.refused_next(desk.dev, 8, 4, False) is True


def test_what_tells_nothing_of_a_refusal_is_not_taken_for_an_acceptance() -> None:
    desk = Desk()
    evidence = desk.evidence
    evidence.load([call(desk.dev, 8, 4, 1)])
    assert evidence.refused_next(desk.dev, 8, 4, False) is False, "the device was called"
    evidence.load([call(desk.other, 0, 4, 1), refusal(desk.dev, 8, 4, Reason.REJECTED)])
    assert evidence.refused_next(desk.dev, 8, 4, False) is None, "somebody else was"
    evidence.load([])
    assert evidence.refused_next(desk.dev, 8, 4, False) is None
    evidence.load([refusal(desk.dev, 8, 4, Reason.REJECTED)])
    desk.space.read(0x1000, 4)
    assert evidence.mismatch is not None
    assert evidence.refused_next(desk.dev, 8, 4, False) is None, "they have parted already"


def test_expectations_in_words() -> None:
    dev = device()
    assert Expected(dev, 4, 2, False).describe() == "read of 2 at dev+0x4"
    assert Expected(dev, 4, 2, True, 9).describe() == "write of 2 at dev+0x4 value 0x9"
    told = Expected(dev, 4, 2, True, reason=Reason.UNALIGNED).describe()
    assert told == "write of 2 at dev+0x4 refused: unaligned"


# -- forwarders and twins ----------------------------------------------------------------------


@pytest.mark.parametrize(("size", "goes_on"), [(0x1000, True), (0x100, False)])
def test_the_clock_of_a_jazz_board_passes_accesses_on(size: int, goes_on: bool) -> None:
    """Read: the line of the clock itself comes first; written: behind. A clock of another size
    is nobody's messenger."""
    page, clock = device("rtc", size), device("rtc", 2)
    space = space_of((0x1000, page), (0x9000, clock))
    evidence = judged(space, Evidence())
    evidence.load([call(clock, 1, 1, 3), call(page, 4, 1, 3)])
    space.read(0x1004, 1)
    evidence.finish()
    assert (evidence.mismatch is None) is goes_on
    evidence.load([
        call(page, 4, 1, 5, is_write=True), call(clock, 1, 1, 5, is_write=True)])
    space.write(0x1004, b"\5")
    evidence.finish()
    assert (evidence.mismatch is None) is goes_on


def test_a_twin_is_taken_for_the_other_but_told() -> None:
    """Two regions that only aliases show: the texts of QEMU do not tell which is which."""
    first, second, other = device("timer", 0x30), device("timer", 0x30), device("timer", 0x40)
    space = space_of(
        (0x1000, MemoryRegion.alias_of("a", first, 0, 0x30)),
        (0x2000, MemoryRegion.alias_of("b", second, 0, 0x30)),
    )
    assert twins([first, second, other, device("clock", 0x30)]) == {first, second}
    for known, mistaken in ((frozenset(), False), (twins([first, second]), True)):
        evidence = judged(space, Evidence())
        evidence.twins = known
        evidence.load([call(first, 4, 4, 1), call(second, 4, 4, 2), call(first, 8, 4, 3)])
        space.read(0x1004, 4)
        space.read(0x2004, 4)
        assert (evidence.mismatch, evidence.mistaken) == (None, False)
        data = space.read(0x2008, 4)[1]
        assert (evidence.mismatch is None) is mistaken is evidence.mistaken
        assert data[0] == (3 if mistaken else 0)


def test_no_stranger_is_taken_for_a_twin() -> None:
    first, second, other = device("timer", 0x30), device("timer", 0x30), device("timer", 0x40)
    space = space_of(
        (0x1000, MemoryRegion.alias_of("a", first, 0, 0x30)), (0x3000, other),
    )
    evidence = judged(space, Evidence())
    evidence.twins = twins([first, second])
    evidence.load([call(other, 4, 4, 1), call(other, 4, 4, 1)])
    space.read(0x3004, 4)
    space.read(0x1004, 4)
    assert evidence.mismatch is not None and not evidence.mistaken
