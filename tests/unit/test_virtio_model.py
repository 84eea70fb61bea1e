"""The model of virtio: queues, a disk, ioeventfds, and what breaks a device."""

from __future__ import annotations

import struct

import pytest
from virtio_bench import AVAIL, DESC, EVENT_IDX, INDIRECT, NEXT, RAM, VERSION_1, WRITE, Bench

from qemuglue.witness.dma.device import When
from qemuglue.witness.dma.virtio_blk import Blk, Disk
from qemuglue.witness.dma.virtio_device import NEEDS_RESET
from qemuglue.witness.dma.virtio_medium import Null, Unknown, medium_of
from qemuglue.witness.dma.virtio_msix import MsixTable
from qemuglue.witness.dma.virtio_rng import Rng

IN, OUT, FLUSH, GET_ID, DISCARD, SCSI = 0, 1, 4, 8, 11, 2
STATUS = (0x6000, 1, True)


def test_an_identity_is_copied_with_its_end_and_the_status_comes_last() -> None:
    bench = Bench()
    bench.put(0x5000, b"\xee" * 32)
    bench.start()
    bench.chain([bench.request(GET_ID), (0x5000, 20, True), STATUS])
    bench.kick()
    assert bench.get(0x5000, 21) == b"serial\0" + b"\xee" * 14
    assert bench.get(0x6000, 1) == b"\0"
    assert bench.used == [(0, 21)]


def test_a_read_is_completed_later_and_says_how_much_was_written() -> None:
    bench = Bench()
    bench.put(0x5000, b"\xee" * 513)
    bench.start()
    bench.chain([bench.request(IN), (0x5000, 512, True), STATUS])
    bench.pci.wrote(bench.notify, 0, 2, 0)
    bench.act(When.NOW)
    assert bench.used == [], "the block layer has not answered yet"
    bench.act(When.SOON)
    assert bench.used == [(0, 513)]
    assert bench.get(0x5000, 513) == bytes(512) + b"\xee"


def test_requests_are_completed_backwards_but_neighbours_together() -> None:
    bench = Bench(queues=(16,))
    bench.start(num=16)
    for first, sector in ((0, 9), (3, 1), (6, 2)):
        head = bench.request(IN, sector, 0x4000 + 16 * first)
        bench.chain([head, (0x5000, 512, True), (0x6000 + first, 1, True)], first)
    bench.kick()
    # In order of sectors 1 and 2 go together, 9 is alone and was given to the block layer last.
    assert [head for head, _ in bench.used] == [0, 3, 6]


@pytest.mark.parametrize(("sector", "size"), [(2048, 512), (2047, 1024), (0, 511), (1 << 63, 512)])
def test_what_does_not_fit_the_disk_is_an_error(sector: int, size: int) -> None:
    bench = Bench()
    bench.start()
    bench.chain([bench.request(IN, sector), (0x5000, size, True), STATUS])
    bench.kick()
    assert bench.get(0x6000, 1) == b"\x01"
    assert bench.used == [(0, size + 1)]


def test_an_answer_to_scsi_goes_beyond_a_short_buffer_in_older_builds() -> None:
    for version, expected in (((10, 0, 2), b"\xff\0\0\0"), ((11, 1, 3), b"\xee" * 4)):
        bench = Bench(version=version)
        bench.put(0x5000, b"\xee" * 8)
        bench.start()
        bench.chain([
            bench.request(SCSI), (0x4100, 8, False), (0x4200, 8, True), (0x5000, 1, True), STATUS])
        bench.kick()
        assert bench.get(0x5000, 4) == expected


BROKEN = {
    "zero sized": [(DESC, struct.pack("<QIHH", 0x4000, 0, 0, 0))],
    "Looped": [(DESC, struct.pack("<QIHH", 0x4000, 16, NEXT, 0))],
    "Desc next is 8": [(DESC, struct.pack("<QIHH", 0x4000, 16, NEXT, 8))],
    "Incorrect order": [(DESC, struct.pack("<QIHH", 0x4000, 16, NEXT | WRITE, 1)),
                        (DESC + 16, struct.pack("<QIHH", 0x4000, 16, 0, 0))],
    "Invalid size for indirect": [(DESC, struct.pack("<QIHH", 0x4000, 15, INDIRECT, 0))],
    "Cannot map indirect": [(DESC, struct.pack("<QIHH", RAM - 16, 32, INDIRECT, 0))],
    "index 8 is available": [(AVAIL + 4, struct.pack("<H", 8))],
    "missing headers": [(DESC, struct.pack("<QIHH", 0x4000, 16, 0, 0))],
    "outhdr too short": [(DESC, struct.pack("<QIHH", 0x4000, 15, NEXT, 1)),
                         (DESC + 16, struct.pack("<QIHH", 0x5000, 1, WRITE, 0))],
}


@pytest.mark.parametrize("error", BROKEN)
def test_a_bad_chain_breaks_the_device(error: str) -> None:
    bench = Bench()
    bench.start()
    for addr, data in BROKEN[error]:
        bench.put(addr, data)
    bench.put(AVAIL + 2, b"\1\0")
    bench.kick()
    assert error in bench.device.error
    assert bench.device.broken
    assert bench.device.status & NEEDS_RESET
    assert bench.used == []
    bench.start()
    assert not bench.device.broken


def test_rings_that_cannot_be_cached_whole_break_it_at_once() -> None:
    bench = Bench()
    bench.start(used=RAM - 8)
    assert bench.device.error == "Cannot map used"


def test_an_ioeventfd_takes_notifies_of_any_size_since_8_2_and_of_two_bytes_before() -> None:
    for any_size, size, taken in ((True, 4, True), (False, 4, False), (False, 2, True)):
        bench = Bench(ioeventfd=True)
        bench.pci.notify_size = 0 if any_size else 2
        bench.start()
        assert bench.device.ioeventfd_started
        bench.space.store_sized(0x101000, 0, size, "little")
        assert (bench.pci.when() is When.SOON) == taken
        bench.write(0x14, 1, 0)
        assert not bench.notify.ioeventfds


def test_an_eventfd_set_twice_is_one_event() -> None:
    bench = Bench(ioeventfd=True)
    bench.start()
    handled: list[int] = []
    bench.device.function.handle = lambda queue: handled.append(queue.index)  # type: ignore[method-assign]
    bench.space.store_sized(0x101000, 0, 2, "little")
    bench.pci.wrote(bench.notify, 2, 1, 0)  # beside it: no eventfd, but the same queue
    bench.act(When.NOW)
    bench.act(When.SOON)
    assert handled == [0]


def test_every_queue_is_looked_at_when_the_driver_is_ready() -> None:
    bench = Bench(ioeventfd=True)
    bench.chain([bench.request(GET_ID), (0x5000, 20, True), STATUS])
    bench.start()
    assert bench.used == [(0, 21)]


def test_without_bus_mastering_nothing_moves_until_a_reset() -> None:
    bench = Bench()
    bench.start()
    bench.pci.configured(4, 2, 3)
    bench.chain([bench.request(GET_ID), (0x5000, 20, True), STATUS])
    bench.kick()
    assert bench.used == []
    bench.index = 0
    bench.start()  # a reset forgets that it may not (``virtio_reset``)
    bench.kick()
    assert bench.used == [(0, 21)]


def test_event_indexes_are_kept_at_the_ends_of_the_rings() -> None:
    bench = Bench()
    bench.start(VERSION_1 | EVENT_IDX)
    bench.chain([bench.request(GET_ID), (0x5000, 20, True), STATUS])
    bench.kick()
    assert bench.get(0x3000 + 4 + 64, 2) == b"\1\0"
    assert bench.get(0x3000, 2) == b"\0\0", "the flags are not used then"


def test_a_packed_queue_is_not_guessed() -> None:
    bench = Bench()
    object.__setattr__(bench.device.traits, "offered", (1 << 64) - 1 & ~(1 << 33))
    bench.start(VERSION_1 | 1 << 34)
    assert "not modelled" in bench.pci.lost


def test_a_medium_of_unknown_contents_is_adopted_inside_the_buffer_only() -> None:
    bench = Bench(Blk(Disk(Unknown(1 << 20), b"")))
    bench.start()
    bench.chain([bench.request(IN), (0x5000, 512, True), STATUS])
    bench.kick()
    assert [(each.offset, each.size) for each in bench.port.unknowns] == [(0x5000, 512)]


def test_random_numbers_come_only_while_the_machine_runs() -> None:
    for parked in (False, True):
        bench = Bench(Rng(builtin=True), parked=parked)
        bench.start()
        bench.chain([(0x5000, 7, True), (0x5100, 3, True)])
        bench.kick()
        unknown = [(each.offset, each.size) for each in bench.port.unknowns]
        assert unknown == ([(0x5000, 7), (0x5100, 3)] if parked else [])
        assert bench.used == ([(0, 10)] if parked else [])


def test_a_message_waits_for_its_mask() -> None:
    table = MsixTable(2)
    assert not table.raised(0), "messages are off"
    table.configure(enabled=True, masked=False)
    assert not table.raised(1)
    table.write(16, 4, 0x5000)
    table.write(24, 4, 0x41)
    assert table.write(28, 4, 0) == [1]
    assert table.message(1) == (0x5000, 0x41)
    assert table.raised(1)


def test_the_medium_is_what_qmp_says() -> None:
    inserted = {
        "image": {"virtual-size": 4096}, "drv": "null-co", "ro": False,
        "file": 'json:{"read-zeroes": true, "driver": "null-co"}',
    }
    answer = [{"qdev": "/machine/peripheral/d/virtio-backend", "inserted": inserted}]
    path = "/machine/peripheral/d/virtio-backend"
    assert medium_of(answer, path) == Null(4096, zeroes=True)
    for change, medium in (({"drv": "file"}, Unknown(4096)), ({"ro": True}, None)):
        changed = {**answer[0], "inserted": {**inserted, **change}}
        assert medium_of([changed], path) == medium
    assert medium_of("nonsense", path) is None
