"""fw_cfg's DMA and bit-bands: what devices do with memory, decoded from what reached them."""

from __future__ import annotations

import struct
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from witness_events import device, space_of

from qemuglue.memory import AddressSpace, ByteBacking, MemoryRegion
from qemuglue.witness.dma import LONGEST
from qemuglue.witness.dma.bitband import BitBand
from qemuglue.witness.dma.device import When
from qemuglue.witness.dma.fw_cfg import FwCfg
from qemuglue.witness.dma.items import Item, Items
from qemuglue.witness.dma.port import ModelPort

RAM = 0x10000
ERROR, READ, WRITE, SKIP, SELECT = 0x01, 0x02, 0x10, 0x04, 0x08

#: What the items of the tests hold: (bytes, size, whether it may be written).
ITEMS = {
    "items": {
        0: (b"QEMU", 4, False),
        0x19: (bytes(range(64)), 64, False),
        0x20: (b"scribble", 8, True),
        0x21: (None, 0x100, False),
    }
}


def machine() -> tuple[AddressSpace, MemoryRegion, MemoryRegion]:
    """RAM of 64 KiB at 0, ROM behind it, the register at 0x80000 (as a PC has it in ports)."""
    ram = MemoryRegion.ram("ram", RAM, ByteBacking(RAM))
    rom = MemoryRegion.rom("rom", 0x1000, ByteBacking(0x1000))
    register = device("fwcfg.dma", 8)
    return space_of((0, ram), (RAM, rom), (0x80000, register)), ram, register


class Desk:
    """A machine with fw_cfg and its port."""

    def __init__(self, known: dict[str, Any] | None = None) -> None:
        self.space, self.ram, self.register = machine()
        self.dma = FwCfg(self.space, Items(ITEMS if known is None else known))
        self.port = ModelPort(self.space)

    def put(self, at: int, control: int, length: int, address: int) -> None:
        assert self.ram.backing is not None
        self.ram.backing.write(at, struct.pack(">IIQ", control, length, address))

    def get(self, at: int, size: int) -> bytes:
        return self.space.read(at, size)[1]

    def start(self, at: int, *, halves: bool = True) -> bool:
        """Write the register; whether something was due, which is done."""
        if halves:
            self.dma.wrote(self.register, 0, 4, at >> 32)
            self.dma.wrote(self.register, 4, 4, at & 0xFFFFFFFF)
        else:
            self.dma.wrote(self.register, 0, 8, at)
        if self.dma.when() is When.NEVER:
            return False
        assert self.dma.when() is When.NOW
        self.dma.act(self.port)
        assert self.dma.when() is When.NEVER
        return True

    def transfer(self, control: int, length: int, address: int, at: int = 0x100) -> int:
        """Do one; its control word afterwards."""
        self.put(at, control, length, address)
        assert self.start(at)
        return int.from_bytes(self.get(at, 4), "big")

    def unknown(self) -> list[tuple[str, int, int]]:
        found = [(each.region.name, each.offset, each.size) for each in self.port.unknowns]
        self.port.unknowns.clear()
        return found


@pytest.mark.parametrize("halves", [True, False])
def test_an_item_is_copied_and_zeros_follow_its_end(halves: bool) -> None:
    desk = Desk()
    desk.space.write(0x2000, b"\xee" * 0x60)
    desk.put(0x100, 0x19 << 16 | SELECT | READ, 0x50, 0x2000)
    assert desk.start(0x100, halves=halves)
    assert desk.get(0x2000, 0x60) == bytes(range(64)) + bytes(16) + b"\xee" * 16
    assert desk.get(0x100, 16) == struct.pack(">IIQ", 0, 0x50, 0x2000), "only the control word"
    assert desk.unknown() == []


def test_reading_goes_on_where_it_was_left() -> None:
    desk = Desk()
    assert desk.transfer(0x19 << 16 | SELECT | READ, 3, 0x2000) == 0
    assert desk.transfer(SKIP, 5, 0) == 0
    assert desk.transfer(READ, 4, 0x2000) == 0
    assert desk.get(0x2000, 4) == bytes([8, 9, 10, 11])
    desk.dma.was_read(device("fwcfg.data", 8), 0, 4, 0)
    assert desk.transfer(READ, 1, 0x2000) == 0
    assert desk.get(0x2000, 1) == bytes([16])
    desk.dma.wrote(device("fwcfg", 2), 0, 2, 0x19)
    assert desk.transfer(READ, 1, 0x2000) == 0
    assert desk.get(0x2000, 1) == bytes([0])


def test_what_the_data_port_answers_is_known() -> None:
    desk = Desk()
    data, ports = device("fwcfg.data", 8), device("fwcfg", 2)

    def read(region: MemoryRegion, size: int) -> int | None:
        answer = desk.dma.reading(region, 0, size, desk.port)
        desk.dma.was_read(region, 0, size, answer or 0)
        return answer

    desk.dma.wrote(device("fwcfg.ctl", 2), 0, 2, 0x19)
    assert [read(data, size) for size in (1, 2, 4, 8)] == [
        0, 0x0102, 0x0304_0506, 0x0708_090A_0B0C_0D0E]
    desk.dma.wrote(ports, 0, 2, 0)
    assert [read(ports, 1) for _ in range(6)] == [*b"QEMU", 0, 0]
    desk.dma.wrote(ports, 0, 2, 0)
    assert (read(data, 1), read(data, 8)) == (0x51, 0x45_4D55_0000_0000_00), "zeros behind it"
    desk.dma.wrote(ports, 0, 2, 0x21)
    assert read(data, 4) is None, "nobody knows"
    desk.dma.wrote(ports, 0, 2, 0x40)
    assert read(data, 4) == 0, "no such key"
    assert desk.dma.reading(desk.register, 0, 4, desk.port) == 0x5145_4D55
    assert desk.dma.reading(desk.register, 6, 2, desk.port) == 0x4647


def test_a_key_without_an_item_reads_as_zeros() -> None:
    desk = Desk()
    for key in (5, 0x3F, 0x40, 0x3FFF, 0xFFFF, 0x8019):
        desk.space.write(0x2000, b"\xee" * 8)
        assert desk.transfer(key << 16 | SELECT | READ, 4, 0x2000) == 0, hex(key)
        assert desk.get(0x2000, 8) == bytes(4) + b"\xee" * 4, hex(key)
        assert desk.transfer(WRITE, 1, 0x2000) == ERROR, hex(key)
        assert desk.transfer(SKIP, 1, 0x2000) == 0, hex(key)


def test_the_bit_of_the_write_channel_does_not_matter() -> None:
    desk = Desk()
    assert desk.transfer(0x4019 << 16 | SELECT | READ, 4, 0x2000) == 0
    assert desk.get(0x2000, 4) == bytes(range(4))


def test_what_may_be_written_is() -> None:
    desk = Desk()
    desk.space.write(0x3000, b"thoughts more")
    assert desk.transfer(0x20 << 16 | SELECT | WRITE, 8, 0x3000) == 0
    assert desk.transfer(0x20 << 16 | SELECT | READ, 8, 0x2000) == 0
    assert desk.get(0x2000, 8) == b"thoughts"
    assert desk.transfer(0x20 << 16 | SELECT | WRITE, 9, 0x3000) == ERROR, "beyond its end"
    assert desk.transfer(0x19 << 16 | SELECT | WRITE, 4, 0x3000) == ERROR, "not this one"
    assert desk.transfer(0x20 << 16 | SELECT | WRITE, 4, 0x70000) == ERROR, "nothing is there"
    assert desk.unknown() == []
    desk.transfer(0x20 << 16 | SELECT | READ, 8, 0x2000)
    assert desk.unknown() == [("ram", 0x2000, 8)], "part of it may have been copied"


def test_read_wins_over_write_over_skip() -> None:
    desk = Desk()
    assert desk.transfer(0x19 << 16 | SELECT | READ | WRITE | SKIP, 4, 0x2000) == 0
    assert desk.get(0x2000, 4) == bytes(range(4))
    assert desk.transfer(0x19 << 16 | SELECT | WRITE | SKIP, 4, 0x2000) == ERROR
    for control in (0, ERROR, 0x20):
        assert desk.transfer(control, 4, 0x2000) == 0, "nothing is asked for"


def test_where_nothing_is_the_transfer_fails() -> None:
    desk = Desk()
    assert desk.transfer(0x19 << 16 | SELECT | READ, 8, 0x70000) == ERROR
    assert desk.transfer(0x05 << 16 | SELECT | READ, 8, 0x70000) == ERROR
    # The offset moved on all the same.
    desk.transfer(0x19 << 16 | SELECT | READ, 8, 0x70000)
    assert desk.transfer(READ, 1, 0x2000) == 0
    assert desk.get(0x2000, 1) == bytes([8])


def test_a_structure_that_cannot_be_read_is_told_so() -> None:
    desk = Desk()
    assert desk.start(0x70000), "the error is written to where nothing is"
    last = RAM + 0x1000 - 8
    assert desk.start(last)
    assert desk.get(last, 8) == bytes(8), "ROM"


def test_what_is_not_known_is_learnt_where_it_lands() -> None:
    desk = Desk()
    desk.transfer(0x21 << 16 | SELECT | READ, 0x20, 0x2000)
    [part] = desk.port.unknowns
    assert (part.region, part.offset, part.size) == (desk.ram, 0x2000, 0x20)
    assert part.learnt is not None
    part.learnt(b"x" * 0x20)
    desk.port.unknowns.clear()
    assert desk.transfer(0x21 << 16 | SELECT | READ, 0x20, 0x3000) == 0
    assert desk.get(0x3000, 0x20) == b"x" * 0x20
    assert desk.unknown() == []
    assert desk.transfer(0x21 << 16 | SELECT | READ, 0x21, 0x3000) == 0
    assert desk.unknown() == [("ram", 0x3000, 0x21)]
    desk.dma.reset()
    desk.transfer(0x21 << 16 | SELECT | READ, 0x10, 0x2000)
    assert desk.unknown() == [("ram", 0x2000, 0x10)], "it is made anew after a reset"


def test_without_knowledge_every_byte_is_learnt() -> None:
    desk = Desk({})
    assert desk.transfer(0x19 << 16 | SELECT | READ, 0x20, 0x2000) == 0
    assert desk.unknown() == [("ram", 0x2000, 0x20)]


def test_only_the_low_half_or_the_whole_register_starts() -> None:
    desk = Desk()
    desk.put(0x1000, SKIP, 0, 0)
    for offset, size, value in [(0, 4, 0), (0, 2, 1), (4, 1, 1), (2, 4, 1), (0, 1, 1)]:
        desk.dma.wrote(desk.register, offset, size, value)
        assert desk.dma.when() is When.NEVER
        assert not desk.dma.kicks(desk.register, 0, b"\0\0\0\0")
    assert desk.dma.kicks(desk.register, 4, b"\0\0\x10\0")
    assert desk.dma.kicks(desk.register, 0, bytes(8))
    desk.dma.wrote(desk.register, 4, 4, 0x1000)
    assert desk.dma.when() is When.NOW


def test_the_high_half_is_forgotten_after_a_start() -> None:
    desk = Desk()
    desk.put(0x1000, 0, 0, 0)
    desk.dma.wrote(desk.register, 0, 4, 1)
    desk.dma.wrote(desk.register, 4, 4, 0)
    desk.dma.act(desk.port)
    assert desk.dma.address == 0
    assert desk.start(0x1000)


def test_a_transfer_beyond_all_bounds_is_seen_before_it_is_started() -> None:
    desk = Desk()
    register = desk.register
    for length, is_one in [(LONGEST, False), (LONGEST + 1, True), (0, False)]:
        desk.put(0x100, READ, length, 0x2000)
        assert desk.dma.floods(register, 4, struct.pack(">I", 0x100)) is is_one, length
        assert desk.dma.floods(register, 0, struct.pack(">Q", 0x100)) is is_one, length
    desk.put(0, READ, LONGEST + 1, 0)
    assert desk.dma.floods(register, 4, bytes(4))
    for offset, data in [(4, b"\0\0"), (5, bytes(3)), (0, bytes(4)), (8, bytes(8))]:
        assert not desk.dma.floods(register, offset, data), (offset, data)
    assert desk.dma.floods(register, 2, bytes(6)), "pieces of 2 and 4: the low half is written"
    assert not desk.dma.floods(register, 4, struct.pack(">I", 0x70000)), "no structure is there"


def test_a_transfer_whose_length_a_device_would_tell_is_not_started() -> None:
    """An empty PCI window reads as ones, and that is a length: QEMU would fill 4 GiB, 4 bytes
    and a line of transcript at a time."""
    desk = Desk()
    at = desk.register.absolute()
    assert desk.dma.floods(desk.register, 4, struct.pack(">I", at))


def test_a_high_half_written_before_counts() -> None:
    desk = Desk()
    desk.put(0x100, READ, LONGEST + 1, 0x2000)
    desk.dma.wrote(desk.register, 0, 4, 1)
    assert not desk.dma.floods(desk.register, 4, struct.pack(">I", 0x100))
    assert not desk.dma.floods(desk.register, 0, struct.pack(">Q", 0x1_0000_0100))


@given(st.integers(0, 1 << 30))
def test_nothing_but_what_was_named_is_written(seed: int) -> None:
    """Whatever the structure holds, only its control word and its buffer may change."""
    rng = Random(seed)
    desk = Desk(ITEMS if seed % 2 else {})
    at = rng.randrange(RAM - 16)
    length, address = rng.randrange(200), rng.randrange(2 * RAM)
    desk.put(at, rng.getrandbits(32), length, address)
    before = desk.get(0, RAM)
    start = rng.getrandbits(64)
    if desk.start(at if seed % 4 else start):
        after = desk.get(0, RAM)
        changed = {i for i in range(RAM) if before[i] != after[i]}
        allowed = {*range(at, at + 4), *range(address, address + length)}
        if not seed % 4:
            allowed |= {(start + i) & 0xFFFF_FFFF_FFFF_FFFF for i in range(4)}
        assert changed <= allowed
        for name, offset, size in desk.unknown():
            assert name in ("ram", "rom") and offset + size <= RAM


# -- items -----------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40), st.integers(1, 20)), max_size=8),
       st.integers(0, 40), st.integers(1, 30))
def test_what_was_learnt_is_known(
    told: list[tuple[bool, int, int]], offset: int, size: int
) -> None:
    """Against a byte at a time."""
    item = Item(48)
    naive: list[int | None] = [None] * 100
    for i, (learns, first, count) in enumerate(told):
        if learns:
            item.learn(first, bytes([i + 1]) * count)
        else:
            item.forget(first, count)
        for at in range(first, min(first + count, 48)):
            naive[at] = i + 1 if learns else None
    expected = naive[offset : offset + size]
    data = item.get(offset, size)
    assert (data is None) == (None in expected)
    assert data is None or list(data) == expected


# -- bit-bands ---------------------------------------------------------------------------------


def set_bit(offset: int, size: int, value: int, *, before: int = 0) -> tuple[int, ...]:
    """Addresses of the bytes that a write of the band changes in RAM full of ``before``."""
    ram = MemoryRegion.ram("sram", RAM, ByteBacking(RAM))
    band = device("bitband", 0x200_0000)
    space = space_of((0x2000_0000, ram), (0x2200_0000, band))
    space.write(0x2000_0000, bytes([before]) * RAM)
    model = BitBand(0x2000_0000)
    assert not model.kicks(band, offset, bytes(size))
    model.wrote(band, offset, size, value)
    assert model.when() is When.NOW
    model.act(ModelPort(space))
    assert model.when() is When.NEVER
    data = space.read(0x2000_0000, RAM)[1]
    return tuple(at << 8 | byte for at, byte in enumerate(data) if byte != before)


@pytest.mark.parametrize(("offset", "size", "changed"), [
    (0x0, 1, 0x0_01), (0x4, 1, 0x0_02), (0x1C, 4, 0x0_80), (0x20, 1, 0x1_01), (0x7C, 4, 0x3_80),
    (0x80, 4, 0x4_01), (0x20, 2, 0x1_01), (0x40, 2, 0x2_01), (0x1FFFE0, 2, 0xFFFF_01),
])
def test_a_bit_band_changes_one_bit(offset: int, size: int, changed: int) -> None:
    assert set_bit(offset, size, 1) == (changed,)
    assert set_bit(offset, size, 0xFFFE) == (), "its lowest bit decides"
    [cleared] = set_bit(offset, size, 2, before=0xFF)
    assert cleared == changed ^ 0xFF
    assert set_bit(offset, size, 3, before=0xFF) == ()


def test_a_bit_where_nothing_is_changes_nothing() -> None:
    assert set_bit(0x20_0000, 4, 1) == ()
