"""The network controller e1000e (82574L), followed: what it reads and writes in guest memory.

Its transmitter runs inside the register write that kicks it. It reads descriptors and buffers,
writes status back and, where a packet asks for it, TCP and UDP checksums into the packet's own
buffer. What it sends comes back to it in loopback mode, and lands in receive buffers. Packets
of a network backend are nobody's to foresee: with one, the device is lost once it receives.

Three generations of the code are followed: that of QEMU 7.2, of 10.0, and of 11; others are not
decoded, because nobody has looked.
"""

from __future__ import annotations

import copy
from typing import Final

from qemuglue.errors import ModelError
from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.region import MemoryRegion
from qemuglue.witness.dma import e1000e_registers as regs
from qemuglue.witness.dma.device import Place, Port, When
from qemuglue.witness.dma.e1000e_packet import Style
from qemuglue.witness.dma.e1000e_receive import Receiver
from qemuglue.witness.dma.e1000e_registers import RECEIVE, STARTERS, TRANSMIT, Registers
from qemuglue.witness.dma.e1000e_status import is_spread
from qemuglue.witness.dma.e1000e_transmit import DESCRIPTOR, Transmitter

MMIO, IO = "e1000e-mmio", "e1000e-io"
_IODATA: Final = 4
#: In configuration space: the command register, and the control words of both kinds of messages.
_COMMAND, _MASTER = 0x04, 0x04
_MSI_CONTROL, _MSIX_CONTROL = 0xD2, 0xA2
_IO_LAST: Final = 0x1FFFF

#: Descriptors of one kick; each takes QEMU and the model some microseconds.
MOST_DESCRIPTORS = 1024
#: Lines that one kick may leave in the transcript.
MOST_LINES = 1 << 16

#: Byte offsets of the registers that start the transmitter.
_STARTS: Final = tuple(
    sorted(at for at in range(0, 0x20000, 4) if regs.index_of(at) in STARTERS))
_RECEIVE_TAILS: Final = frozenset(ring.tail for ring in RECEIVE)


class E1000e:
    """``device.DmaDevice`` for one e1000e. ``mac`` is its station address, ``peer`` the name of
    its network backend, ``vet`` the VLAN type that a reset of the machine sets."""

    name = "e1000e"
    hears_reads = False

    def __init__(
        self, space: AddressSpace, mac: bytes, version: tuple[int, ...], *, peer: str = "",
        parked: bool = False, vet: int = 0x8100, bdf: int | None = None,
    ) -> None:
        old = version < (8,)
        self.lost = ""
        self.bdf = bdf
        #: Whether interrupts may be messages, and whether any interrupt is let through.
        self._messages = bdf is None
        self._unmasked = False
        self.registers = Registers(mac, sw_reset=not old, vet=vet)
        self._peer = peer
        self._space = space
        #: None if nobody knows it.
        self._io_address: int | None = 0
        self._reworked = is_reworked(version)
        self._receiver = Receiver(
            self.registers, old=old, reworked=self._reworked, parked=parked,
            told_of_command=bdf is not None)
        style = Style(old=old, virtio=old and not peer, keeps_length=version >= (11,))
        self._transmitter = Transmitter(self.registers, self._receiver.loop, style)
        self._due: list[int] = []
        self._acting = False
        #: Who handles the access that started the transmitter.
        self._handler: object = None

    # -- what it is told -------------------------------------------------------------------------

    def wrote(self, region: MemoryRegion, offset: int, size: int, value: int) -> None:
        value &= regs.MASK32
        self._handler = region.owner
        if region.name == MMIO:
            self._write(regs.index_of(offset), value)
        elif region.name == IO and offset == 0:
            self._io_address = value
        elif region.name == IO and offset == _IODATA:
            if self._io_address is None:
                self.lost = "which register its I/O window shows is not known"
            elif self._io_address < _IO_LAST:
                self._write(regs.index_of(self._io_address), value)

    def _write(self, index: int, value: int) -> None:
        if self._acting:
            self.lost = "its DMA writes to its own registers"
            return
        registers = self.registers
        if registers.write(index, value):
            self._transmitter.reset(by_software=True)
        if index == regs.IMS and value:
            self._unmasked = True
            self._lose_to_messages()
        if index in _RECEIVE_TAILS or (index == regs.RCTL and value & regs.RCTL_EN):
            self._receiver.wake()
        if self._peer and registers[regs.RCTL] & regs.RCTL_EN:
            self.lost = f"what its network backend {self._peer!r} sends is not known"
        for number, ring in enumerate(TRANSMIT):
            if index in (regs.TCTL, ring.tail) and registers[regs.TARC[number]] & regs.TARC_ENABLE:
                self._due.append(number)

    def configured(self, register: int, size: int, value: int) -> None:
        """A write to its configuration space: bus mastering lets packets in again
        (``e1000e_write_config``); messages may be switched on."""
        def written(at: int) -> int:
            return value >> 8 * (at - register) if register <= at < register + size else 0

        if written(_COMMAND) & _MASTER:
            self._receiver.wake()
        if written(_MSI_CONTROL) & 0x01 or written(_MSIX_CONTROL + 1) & 0x80:
            self._messages = True
            self._lose_to_messages()

    def _lose_to_messages(self) -> None:
        if self._messages and self._unmasked:
            self.lost = "its interrupts may be messages, which go wherever its driver says"

    def was_read(self, region: MemoryRegion, offset: int, size: int, value: int) -> None:
        pass

    def reset(self) -> None:
        self._messages = self.bdf is None
        self._unmasked = False
        self.registers.reset()
        self._transmitter.reset(by_software=False)
        self._due.clear()

    def revived(self, why: str) -> None:
        """See ``device.DmaDevice``."""
        self._io_address = None
        self._receiver.revived()

    # -- before a write is sent ------------------------------------------------------------------

    def kicks(self, region: MemoryRegion, offset: int, data: bytes) -> bool:
        last = offset + len(data) - 1
        if region.name == IO:
            return last >= _IODATA and offset <= _IODATA + 3
        return region.name == MMIO and any(at - 3 <= last and offset <= at + 3 for at in _STARTS)

    def floods(self, region: MemoryRegion, offset: int, data: bytes) -> bool:
        registers = copy.copy(self.registers)
        registers.detach()
        at = self._io_address
        for start in range(offset & ~3, offset + len(data), 4):
            piece = data[max(0, start - offset) : start + 4 - offset]
            value = int.from_bytes(piece, "little") << max(0, offset - start) * 8
            if region.name == IO and start == 0:
                at = value
            if region.name == IO and at is None:
                return True
            index = regs.index_of(start if region.name == MMIO or at is None else at)
            registers.write(index, value)
            starts = [
                ring for ring in TRANSMIT
                if index in (regs.TCTL, ring.tail) and not registers.empty(ring)]
            if any(self._is_long(registers, ring) for ring in starts):
                return True
            if starts and self._is_endless(registers):
                return True
        return False

    def _is_endless(self, registers: Registers) -> bool:
        """Whether a looped-back packet may never find an end: the head of a ring of descriptors
        of 32 bytes steps over an odd tail, and one without a buffer takes nothing. What was
        written back has none, so the second time round will do."""
        if not self._reworked or not registers.looped or registers.descriptor != 32:
            return False
        rings = RECEIVE if is_spread(registers) else RECEIVE[:1]
        return any(
            registers[ring.tail] % 2 and registers[ring.tail] < registers.descriptors(ring)
            for ring in rings)

    def _is_long(self, registers: Registers, ring: regs.Ring) -> bool:
        """Whether sending what the ring holds takes too long."""
        head, tail, count = registers[ring.head], registers[ring.tail], registers.descriptors(ring)
        pending = tail - head if head < tail else max(count - head, 1) + tail
        if pending > MOST_DESCRIPTORS:
            return True
        lines, wide = 0, registers.looped
        for number in range(pending):
            at = registers.base(ring) + DESCRIPTOR * ((head + number) % max(count, 1))
            lines += self._lines(at, DESCRIPTOR)
            found = self._peek(at)
            if found is not None:
                address, size = found
                lines += self._lines(address, size) + (4 * size if wide else 0) // 64
        return lines > MOST_LINES

    def _lines(self, at: int, size: int) -> int:
        section = self._space.view.lookup(at & regs.MASK64)
        return 0 if section.region.is_ram or not section.assigned else (min(size, 4096) + 3) // 4

    def _peek(self, at: int) -> tuple[int, int] | None:
        """(address, size) of the buffer of a descriptor that lies in RAM."""
        at &= regs.MASK64
        section = self._space.view.lookup(at)
        backing = section.region.backing
        if backing is None or at + DESCRIPTOR > section.start + section.size:
            return None
        data = backing.read(at - section.start + section.offset, DESCRIPTOR)
        return int.from_bytes(data[:8], "little"), int.from_bytes(data[8:10], "little")

    # -- what it does ------------------------------------------------------------------------------

    def when(self) -> When:
        return When.NOW if self._due else When.NEVER

    def act(self, port: Port) -> None:
        self._space = port.space
        self._acting = True
        # It is inside an access of its own, also where the lock step performed none to tell of it.
        engaged, handler = port.space.engaged, self._handler
        was_engaged = handler is None or handler in engaged
        if not was_engaged:
            engaged.add(handler)
        try:
            while self._due and not self.lost:
                self._transmitter.start(port, self._due.pop(0))
        except ModelError as error:
            self.lost = str(error)
        finally:
            self._acting = False
            self._due.clear()
            if not was_engaged:
                engaged.discard(handler)


def make(place: Place) -> E1000e | None:
    """The model of an e1000e of a known generation."""
    if MMIO not in place.regions or not _is_known(place.version):
        return None
    owner = place.owner
    path = f"/machine/peripheral/{owner[3:]}" if owner.startswith("id=") else owner
    mac = bytes.fromhex(str(place.qom_get(path, "mac") or "").replace(":", ""))
    if len(mac) != 6:
        return None
    # On another than the root bus its number is what a program gives it.
    bus, address = place.qom_get(path, "parent_bus"), place.qom_get(path, "addr")
    root = isinstance(bus, str) and bus.rsplit("/", 1)[-1] in ("pci.0", "pcie.0")
    return E1000e(
        place.space, mac, place.version, peer=str(place.qom_get(path, "netdev") or ""),
        parked=place.parked, vet=0 if place.qom_get(path, "init-vet") is False else 0x8100,
        bdf=address if root and isinstance(address, int) and 0 <= address < 256 else None,
    )


def _is_known(version: tuple[int, ...]) -> bool:
    return version[:2] in ((7, 2), (10, 0)) or version >= (11,)


def is_reworked(version: tuple[int, ...]) -> bool:
    """Whether the receiver has the bounds of November 2025: 10.2 and the stable releases."""
    return version >= (10, 1, 3) or (10, 0, 7) <= version < (10, 1) or (
        (7, 2, 22) <= version < (8,))
