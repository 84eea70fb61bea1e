"""fw_cfg's DMA decoded from what the program wrote."""

from __future__ import annotations

import struct
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from witness_events import device, space_of

from qemuglue.memory import AddressSpace, ByteBacking, MemoryRegion
from qemuglue.witness.dma import LONGEST, FwCfgDma, Kick, bitband_ranges, floods, ranges

RAM = 0x10000
READ, WRITE, SKIP = 0x02, 0x10, 0x04


def machine() -> tuple[AddressSpace, MemoryRegion, MemoryRegion]:
    """RAM of 64 KiB at 0, ROM behind it, the register at 0x80000 (as a PC has it in ports)."""
    ram = MemoryRegion.ram("ram", RAM, ByteBacking(RAM))
    rom = MemoryRegion.rom("rom", 0x1000, ByteBacking(0x1000))
    register = device("fwcfg.dma", 8)
    return space_of((0, ram), (RAM, rom), (0x80000, register)), ram, register


def put(ram: MemoryRegion, at: int, control: int, length: int, address: int) -> None:
    assert ram.backing is not None
    ram.backing.write(at, struct.pack(">IIQ", control, length, address))


def kicks(register: MemoryRegion, start: int, *, halves: bool = True) -> list[Kick]:
    if not halves:
        return [Kick(register, 0, 8, start)]
    return [Kick(register, 0, 4, start >> 32), Kick(register, 4, 4, start & 0xFFFFFFFF)]


def allowed(
    space: AddressSpace, found: list[Kick], dma: FwCfgDma | None = None
) -> list[tuple[str, int, int]]:
    return [(region.name, offset, size)
            for region, offset, size in ranges(dma or FwCfgDma(), found, space)]


def test_a_read_into_ram_allows_its_buffer_and_its_control_word() -> None:
    space, ram, register = machine()
    put(ram, 0x100, 0x19 << 16 | READ | 8, 0x40, 0x2000)
    for halves in (True, False):
        assert allowed(space, kicks(register, 0x100, halves=halves)) == [
            ("ram", 0x100, 4), ("ram", 0x2000, 0x40)]


@pytest.mark.parametrize("control", [0, SKIP, WRITE, 8, 0xFFFD0000])
def test_other_transfers_allow_the_control_word_only(control: int) -> None:
    space, ram, register = machine()
    put(ram, 0x100, control, 0x40, 0x2000)
    assert allowed(space, kicks(register, 0x100)) == [("ram", 0x100, 4)]


def test_only_ram_is_written() -> None:
    space, ram, register = machine()
    put(ram, 0x100, READ, 0x40, RAM - 0x10)  # runs on into ROM
    assert allowed(space, kicks(register, 0x100)) == [("ram", 0x100, 4), ("ram", RAM - 0x10, 0x10),
                                                     ("rom", 0, 0x30)]
    put(ram, 0x100, READ, 0x40, 0x70000)  # nothing is there
    assert allowed(space, kicks(register, 0x100)) == [("ram", 0x100, 4)]
    assert allowed(space, kicks(register, 0x70000)) == [], "nor is there a structure"
    flash = MemoryRegion.rom_device("flash", 0x1000, register.contract,
                                    backing=ByteBacking(0x1000))
    space.root.add_subregion(0x20000, flash)
    space.update()
    put(ram, 0x100, READ, 0x40, 0x20000)
    assert allowed(space, kicks(register, 0x100)) == [("ram", 0x100, 4)]


def test_a_structure_over_the_end_of_ram_cannot_be_read() -> None:
    space, _, register = machine()
    last = RAM + 0x1000 - 8
    assert allowed(space, kicks(register, last)) == [("rom", 0x1000 - 8, 4)]


def test_addresses_wrap_at_64_bits() -> None:
    space, ram, register = machine()
    put(ram, 0x100, READ, 0x20, (1 << 64) - 0x10)
    assert allowed(space, kicks(register, 0x100)) == [("ram", 0x100, 4), ("ram", 0, 0x10)]


def test_the_low_half_starts_it_and_the_high_half_is_used_up() -> None:
    register = device("fwcfg.dma", 8)
    dma = FwCfgDma()
    assert dma.write(Kick(register, 0, 4, 0x1)) is None
    assert dma.write(Kick(register, 4, 4, 0x20)) == 0x1_0000_0020
    assert dma.write(Kick(register, 4, 4, 0x20)) == 0x20
    assert dma.write(Kick(register, 0, 8, 0x1_0000_0030)) == 0x1_0000_0030
    for offset, size in ((0, 1), (4, 2), (2, 4), (1, 8)):
        assert dma.write(Kick(register, offset, size, 0xFF)) is None, "no such register"
    assert dma.write(Kick(register, 4, 4, 0x20)) == 0x20


def test_the_high_half_survives_until_the_next_batch() -> None:
    space, ram, register = machine()
    put(ram, 0x100, READ, 4, 0x2000)
    dma = FwCfgDma()
    high, low = kicks(register, 0x1_0000_0100)
    assert allowed(space, [high], dma) == []
    assert allowed(space, [low], dma) == [], "4 GiB up there is nothing"
    assert allowed(space, [low], dma) == [("ram", 0x100, 4), ("ram", 0x2000, 4)]


# -- floods -------------------------------------------------------------------------------------


def test_only_transfers_that_are_too_long_flood() -> None:
    space, ram, _ = machine()
    for length, is_one in ((4, False), (LONGEST, False), (LONGEST + 1, True), (0xFFFFFFFF, True)):
        put(ram, 0x100, READ, length, 0x2000)
        assert floods(FwCfgDma(), space, 4, struct.pack(">I", 0x100)) is is_one, length
        assert floods(FwCfgDma(), space, 0, struct.pack(">Q", 0x100)) is is_one, length


def test_what_starts_nothing_floods_nothing() -> None:
    space, ram, _ = machine()
    put(ram, 0, READ, 0xFFFFFFFF, 0x2000)
    assert floods(FwCfgDma(), space, 4, bytes(4))
    for offset, data in ((0, bytes(4)), (0, bytes(7)), (4, bytes(3)), (5, bytes(4)), (6, b"\0\0")):
        assert not floods(FwCfgDma(), space, offset, data), (offset, data)
    assert floods(FwCfgDma(), space, 2, bytes(6)), "pieces of 2 and 4: the low half is written"
    assert not floods(FwCfgDma(), space, 4, struct.pack(">I", 0x70000)), "no structure is there"


def test_a_length_that_a_device_would_tell_may_flood() -> None:
    """An empty PCI window reads as ones, and QEMU takes those for the command."""
    space, _, register = machine()
    window = space.view.lookup(register.absolute())
    assert window.region is register
    assert floods(FwCfgDma(), space, 4, struct.pack(">I", register.absolute()))


def test_the_high_half_counts() -> None:
    space, ram, register = machine()
    put(ram, 0x100, READ, 0xFFFFFFFF, 0x2000)
    dma = FwCfgDma()
    dma.write(Kick(register, 0, 4, 1))
    assert not floods(dma, space, 4, struct.pack(">I", 0x100))
    assert floods(dma, space, 0, struct.pack(">Q", 0x100)), "all eight bytes at once"
    assert not floods(FwCfgDma(), space, 0, struct.pack(">Q", 0x1_0000_0100))
    assert dma.address == 1 << 32, "looking changes nothing"


@given(st.integers(0, 1 << 32), st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1),
       st.integers(0, (1 << 32) - 1))
def test_whatever_the_guest_says_ranges_lie_inside_regions(
    seed: int, start: int, address: int, length: int
) -> None:
    """A length of 4 GiB over 64 KiB of RAM must not take 4 GiB of work either."""
    space, ram, register = machine()
    at = start % (RAM + 0x2000)
    if at <= RAM - 16:
        put(ram, at, Random(seed).getrandbits(32), length, address)
    found = list(ranges(FwCfgDma(), kicks(register, at if seed % 4 else start), space))
    for region, offset, size in found:
        assert 0 <= offset < region.size and 0 < size <= region.size - offset


@pytest.mark.parametrize(("offset", "size", "expected"), [
    (0x0, 1, (0x0, 1)), (0x4, 1, (0x0, 1)), (0x20, 1, (0x1, 1)), (0x7C, 4, (0x0, 4)),
    (0x80, 4, (0x4, 4)), (0x1FFFE0, 2, (0xFFFE, 2)),
])
def test_a_bit_band_changes_the_bytes_that_hold_the_bit(
    offset: int, size: int, expected: tuple[int, int],
) -> None:
    ram, band = MemoryRegion.ram("sram", RAM, ByteBacking(RAM)), device("bitband", 0x2000000)
    space = space_of((0x20000000, ram), (0x22000000, band))
    [(region, *found)] = bitband_ranges([(band, offset, size)], space)
    assert region is ram and tuple(found) == expected
    beyond = bitband_ranges([(band, 0x1000000, size)], space)
    assert list(beyond) == [], "nothing to adopt where no RAM is"
