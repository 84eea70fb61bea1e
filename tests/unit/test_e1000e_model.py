"""The e1000e's model by itself: registers, packets, rings; no QEMU."""

from __future__ import annotations

from random import Random

import pytest

from qemuglue.errors import ModelError
from qemuglue.memory import AddressSpace, ByteBacking, MemoryRegion, RegionKind
from qemuglue.memory.attrs import UNSPECIFIED, MemTxAttrs
from qemuglue.program.recipes.e1000e_packets import checksum, packet
from qemuglue.witness.dma import e1000e_registers as regs
from qemuglue.witness.dma.device import When
from qemuglue.witness.dma.e1000e import E1000e, is_reworked
from qemuglue.witness.dma.e1000e_headers import Parsed, link_header, parse, parse_ip6
from qemuglue.witness.dma.e1000e_packet import Packet, Style
from qemuglue.witness.dma.e1000e_vector import (
    Vector,
    checksum_finish,
    checksum_sum,
    private,
    toeplitz,
)

MAC = bytes.fromhex("525400123456")
SIZE = 0x10_0000
MMIO = MemoryRegion("e1000e-mmio", 0x20000, RegionKind.IO)
IO = MemoryRegion("e1000e-io", 0x20, RegionKind.IO)
EOP, RS, DATA = 1 << 24, 1 << 27, 3 << 20 | 1 << 29
TX, RX, BUFFER, LANDING = 0x1000, 0x2000, 0x4000, 0x8000


class Rig:
    """A device over a megabyte of RAM; a port of the simplest kind."""

    def __init__(
        self, version: tuple[int, ...] = (10, 0, 2), peer: str = "", bdf: int | None = 8
    ) -> None:
        root = MemoryRegion("root", 1 << 64, RegionKind.CONTAINER)
        self.backing = ByteBacking(SIZE)
        ram = MemoryRegion("ram", SIZE, RegionKind.RAM, backing=self.backing)
        root.add_subregion(0, ram)
        self.space = AddressSpace("e1000e", root)
        self.device = E1000e(self.space, MAC, version, peer=peer, bdf=bdf)
        self.writes: list[tuple[int, bytes]] = []

    def read(self, addr: int, size: int, attrs: MemTxAttrs = UNSPECIFIED) -> bytes | None:
        return self.space.read(addr, size)[1]

    def write(self, addr: int, data: bytes, attrs: MemTxAttrs = UNSPECIFIED) -> bool:
        self.writes.append((addr, data))
        return self.space.write(addr, data) == 0

    def unknown(self, *_: object, **__: object) -> bool:
        raise AssertionError("everything is known")

    def put(self, addr: int, data: bytes) -> None:
        self.backing.write(addr, data)

    def get(self, addr: int, size: int) -> bytes:
        return self.backing.read(addr, size)

    def set(self, offset: int, value: int) -> None:
        """One register write, and what follows from it at once."""
        self.device.wrote(MMIO, offset, 4, value)
        if self.device.when() is When.NOW:
            self.device.act(self)

    def receive(self, addresses: list[int], rctl: int = 0) -> None:
        self.put(RX, b"".join(addr.to_bytes(8, "little") + bytes(8) for addr in addresses))
        for offset, value in ((0x2800, RX), (0x2808, 128), (0x2818, len(addresses)),
                              (0x100, 0x8042 | rctl)):
            self.set(offset, value)

    def send(self, *descriptors: bytes) -> None:
        self.put(TX, b"".join(descriptors))
        for offset, value in ((0x3800, TX), (0x3808, 2048), (0x400, 2),
                              (0x3818, len(descriptors))):
            self.set(offset, value)


def descriptor(addr: int, size: int, command: int, options: int = 0) -> bytes:
    return (addr.to_bytes(8, "little") + (size | command).to_bytes(4, "little")
            + options.to_bytes(4, "little"))


def udp(size: int = 20) -> bytes:
    body = bytes([1, 2, 3, 4]) + (8 + size).to_bytes(2, "big") + bytes(2) + bytes(range(size))
    ip = (b"\x45\0" + (20 + len(body)).to_bytes(2, "big") + bytes(4) + bytes([64, 17, 0, 0])
          + bytes([10, 0, 0, 1, 10, 0, 0, 2]))
    return b"\xff" * 6 + bytes(6) + b"\x08\0" + ip + body


# -- registers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("offset", "index"), [
    (0x3818, 0xE06), (0x381A, 0xE06), (0x438, 0xE06), (0x420, 0xE00), (0x110, 0xA00),
    (0x128, 0xA06), (0x40, regs.RA), (0x600, regs.VFTA), (0x23818, 0xE06),
])
def test_a_register_has_aliases(offset: int, index: int) -> None:
    assert regs.index_of(offset) == index


def test_a_write_keeps_what_the_register_has() -> None:
    registers = regs.Registers(MAC, sw_reset=True)
    ring = regs.TRANSMIT[0]
    for index, value, kept in ((ring.low, 0x1234_567F, 0x1234_5670), (ring.length, 0xFFFF_FFFF,
                               0xF_FF80), (ring.tail, 0x1_0005, 5), (regs.STATUS, 0, 0x282)):
        registers.write(index, value)
        assert registers[index] == kept


@pytest.mark.parametrize(("rctl", "psrctl", "sizes"), [
    (2, 0, [2048, 0, 0, 0]), (2 | 3 << 16, 0, [256, 0, 0, 0]),
    (2 | 1 << 25 | 1 << 16, 0, [16384, 0, 0, 0]), (2 | 1 << 25, 0, [2048, 0, 0, 0]),
    (2 | 3 << 27, 0, [3072, 0, 0, 0]), (2 | 0x400, 0x0304_0201, [128, 2048, 4096, 3072]),
])
def test_sizes_of_receive_buffers(rctl: int, psrctl: int, sizes: list[int]) -> None:
    registers = regs.Registers(MAC, sw_reset=True)
    registers.write(regs.PSRCTL, psrctl)
    registers.write(regs.RCTL, rctl)
    assert registers.buffers == sizes


def test_a_reset_by_software() -> None:
    for sw_reset in (True, False):
        registers = regs.Registers(MAC, sw_reset=sw_reset)
        registers.write(regs.TCTL, 2)
        registers.write(regs.RA, 0)
        assert registers.write(regs.CTRL, regs.CTRL_RST) is sw_reset
        assert registers[regs.RA] == 0x1200_5452
        assert (registers[regs.TCTL], registers[regs.VET]) == ((0, 0) if sw_reset else (2, 0x8100))


def test_a_ring_wraps() -> None:
    registers = regs.Registers(MAC, sw_reset=True)
    ring = regs.RECEIVE[0]
    for index, value in ((ring.length, 128), (ring.head, 7), (ring.tail, 1)):
        registers.write(index, value)
    assert registers.free(ring) == 2 and not registers.empty(ring)
    registers.advance(ring, 1)
    assert registers[ring.head] == 0
    registers.write(ring.tail, 8)
    assert registers.empty(ring), "a tail beyond the ring"


# -- packets ---------------------------------------------------------------------------------------


def test_sums_against_the_plain_way() -> None:
    rng = Random(1)
    for _ in range(200):
        data = rng.randbytes(rng.randrange(200))
        assert checksum_finish(checksum_sum(data)) == checksum(data)


def test_the_hash_of_the_specification() -> None:
    """Microsoft's verification suite for receive side scaling, IPv4 with ports."""
    key = bytes.fromhex(
        "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa")
    data = bytes([66, 9, 149, 187, 161, 142, 100, 80]) + b"\x0a\xea\x06\xe6"
    assert toeplitz(key, data) == 0x51CCC178
    assert toeplitz(key, data[:8]) == 0x323E8FC2


def test_pieces_are_one_packet() -> None:
    rng = Random(2)
    data = rng.randbytes(300)
    vector = Vector(private(data[a : a + 17]) for a in range(0, 300, 17))
    assert vector.read(0, 1000) == data
    assert vector.read(10, 40) == data[10:50]
    assert vector.cut(33, 100).read(0, 100) == data[33:133]
    vector.write(15, b"\1\2\3\4")
    assert vector.read(0, 300) == data[:15] + b"\1\2\3\4" + data[19:]
    vector.write(299, b"xy")
    assert vector.size == 300
    with pytest.raises(ModelError, match="asserts"):
        vector.write(301, b"x")


@pytest.mark.parametrize(("kinds", "size"), [
    ("0800", 14), ("8100000008004500", 18), ("88a8000008004500", 18), ("88a8000081000000", 22),
])
def test_link_headers(kinds: str, size: int) -> None:
    assert link_header(bytes(12) + bytes.fromhex(kinds).ljust(8, b"\0")) == size


def test_extension_headers_are_skipped() -> None:
    header = bytes([0x60, 0, 0, 0, 0, 0, 0, 64]) + bytes(32)
    routing = bytes([6, 2, 2, 1, 0, 0, 0, 0]) + bytes(range(16))
    hop = bytes([43, 0]) + bytes(6)
    found = parse_ip6(Vector([private(header + hop + routing)]), 0)
    assert found is not None
    assert (found.size, found.protocol, found.extended) == (72, 6, True)
    assert found.destination == bytes(range(16)) and found.source is None
    assert parse_ip6(Vector([private(header + hop + routing[:1])]), 0) is None


def test_any_packet_can_be_parsed() -> None:
    rng, before = Random(3), Parsed()
    for _ in range(2000):
        data = Vector([private(packet(rng).ljust(60, b"\0"))])
        for old in (False, True):
            try:
                before = parse(data, before, old=old)
            except ModelError:
                assert old
        made = Packet(data, Style())
        if made.parsed:
            made.offload(segment=False, mss=0, transport=True, ip=True)


# -- the device ------------------------------------------------------------------------------------


def test_a_packet_is_sent_and_its_descriptor_written_back() -> None:
    rig = Rig()
    rig.put(BUFFER, udp())
    rig.send(descriptor(BUFFER, 62, EOP | RS, 0xAB00), descriptor(BUFFER, 62, EOP, 0xCD00))
    assert rig.writes == [(TX + 12, b"\x01\xab\0\0")], "only where the descriptor asks for it"
    assert rig.device.registers[regs.TRANSMIT[0].head] == 2


def test_a_checksum_goes_into_the_buffer() -> None:
    for version, changed in (((10, 0, 2), True), ((7, 2, 22), False)):
        rig = Rig(version)
        rig.put(BUFFER, udp())
        rig.send(descriptor(BUFFER, 62, DATA | EOP, 0x200))
        sent = rig.get(BUFFER, 62)
        assert (sent != udp()) == changed, "7.2 leaves it to a virtio header nobody reads"
        if changed:
            pseudo = sent[26:34] + bytes([0, 17]) + sent[38:40]
            assert checksum(pseudo + sent[34:]) == 0


def test_what_is_looped_back_lands() -> None:
    for version, lengths in (((10, 0, 2), (66, 0)), ((11, 1, 3), (62, 4)), ((7, 2, 22), (62, 4))):
        rig = Rig(version)
        rig.put(BUFFER, udp())
        rig.receive([LANDING, LANDING + 0x800, LANDING + 0x1000])
        rig.send(descriptor(BUFFER, 62, EOP))
        assert rig.get(LANDING, 62) == udp()
        assert tuple(rig.get(RX + 8 + 16 * i, 1)[0] for i in range(2)) == lengths
        last = RX + 12 + 16 * (lengths[1] > 0)
        assert rig.get(last, 2)[0] & 3 == 3, "done, and the end of the packet"


def test_filters_and_links() -> None:
    for setup, lands in (
        ([], True), ([(0x100, 0x42)], False),  # no broadcasts
        ([(0x20, 0x0420_1200 | 1 << 21)], False),  # auto-negotiation starts again: the link is down
        ([(0x100, 0x8002)], False),  # no loopback
        ([(0x100, 0x8002), (0x20, 0x0420_4000)], True),  # one in the PHY
    ):
        rig = Rig()
        rig.put(BUFFER, udp())
        rig.receive([LANDING, LANDING])
        for offset, value in setup:
            rig.set(offset, value)
        rig.send(descriptor(BUFFER, 62, EOP))
        assert any(rig.get(LANDING, 62)) == lands, setup


def test_registers_through_the_ports() -> None:
    rig = Rig()
    for address, value in ((0x3800, TX), (0x3808, 1024), (0x400, 2), (0x3818, 1)):
        rig.device.wrote(IO, 0, 4, address)
        rig.device.wrote(IO, 4, 4, value)
    assert rig.device.when() is When.NOW
    rig.put(TX, descriptor(BUFFER, 60, EOP | RS))
    rig.device.act(rig)
    assert rig.get(TX + 12, 1) == b"\x01"
    rig.device.wrote(IO, 0, 4, 0x8_0000)
    rig.device.wrote(IO, 4, 4, 7)
    assert rig.device.registers[regs.TRANSMIT[0].tail] == 1, "beyond the registers"


def test_a_network_backend_is_not_foreseen() -> None:
    rig = Rig(peer="net0")
    rig.send(descriptor(BUFFER, 60, EOP | RS))
    assert not rig.device.lost
    rig.set(0x100, 2)
    assert "net0" in rig.device.lost


def test_messages_are_not_followed() -> None:
    for bdf, register, value, unmask, lost in (
        (8, 0xD2, 1, 4, True), (8, 0xD0, 0x1_0005, 4, True), (8, 0xA3, 0x80, 4, True),
        (8, 0xD2, 1, 0, False), (8, 0xD2, 0, 4, False), (8, 0x04, 7, 4, False),
        (None, 0x04, 7, 4, True),
    ):
        rig = Rig(bdf=bdf)
        rig.device.configured(register, 4 if register != 0xA3 else 1, value)
        rig.set(0xD0, unmask)
        assert bool(rig.device.lost) == lost, (register, value, unmask)


def test_bus_mastering_lets_packets_in_again() -> None:
    """Up to 7.2 a packet without buffers keeps the next ones away until somebody wakes it."""
    rig = Rig((7, 2, 22))
    rig.put(BUFFER, udp())
    rig.receive([LANDING])
    rig.set(0x2818, 0)  # no buffers, but the other ring has some
    for offset, value in ((0x2900, RX), (0x2908, 128), (0x2918, 7)):
        rig.set(offset, value)
    rig.send(descriptor(BUFFER, 62, EOP))
    rig.device.registers.write(regs.RECEIVE[0].tail, 3)
    rig.set(0x3810, 0)
    rig.set(0x3818, 1)
    assert not any(rig.get(LANDING, 62))
    rig.device.configured(0x04, 2, 7)
    rig.set(0x3810, 0)
    rig.set(0x3818, 1)
    assert any(rig.get(LANDING, 62)) and not rig.device.lost


def test_what_starts_the_transmitter_is_a_batch_of_its_own() -> None:
    device = Rig().device
    for offset, data, kicks in (
        (0x3818, bytes(4), True), (0x3810, bytes(4), False), (0x3810, bytes(16), True),
        (0x400, bytes(4), True), (0x438, bytes(2), True), (0x3918, bytes(1), True),
        (0x0, bytes(0x300), False),
    ):
        assert device.kicks(MMIO, offset, data) == kicks, hex(offset)
    assert device.kicks(IO, 4, bytes(4)) and not device.kicks(IO, 0, bytes(4))


def test_what_takes_too_long_is_not_started() -> None:
    rig = Rig((11, 1, 3))
    rig.set(0x400, 2)
    rig.set(0x3808, 0xF_FF80)
    assert rig.device.floods(MMIO, 0x3818, (60000).to_bytes(4, "little"))
    assert not rig.device.floods(MMIO, 0x3818, (600).to_bytes(4, "little"))
    assert rig.device.registers[regs.TRANSMIT[0].tail] == 0, "asking changes nothing"
    rig.set(0x5008, 1 << 15)
    rig.receive([LANDING] * 7, 0x400)
    assert rig.device.floods(MMIO, 0x3818, (6).to_bytes(4, "little")), "the tail is never met"
    rig.set(0x2818, 6)
    assert not rig.device.floods(MMIO, 0x3818, (6).to_bytes(4, "little"))


def test_what_ends_qemu_is_not_guessed() -> None:
    rig = Rig()
    rig.put(BUFFER, udp(200))
    context = bytes(8) + (1 << 29 | 1 << 26).to_bytes(4, "little") + bytes([0, 42, 128, 0])
    parts = [descriptor(BUFFER + 42 + i, 1, DATA | 1 << 26 | (EOP if i == 62 else 0))
             for i in range(63)]
    rig.send(context, descriptor(BUFFER, 42, DATA | 1 << 26), *parts)
    assert "asserts" in rig.device.lost


@pytest.mark.parametrize(("version", "expected"), [
    ((7, 2, 21), False), ((7, 2, 22), True), ((10, 0, 2), False), ((10, 0, 7), True),
    ((10, 1, 2), False), ((10, 1, 3), True), ((11, 1, 3), True),
])
def test_which_versions_were_reworked(version: tuple[int, ...], expected: bool) -> None:
    assert is_reworked(version) == expected
