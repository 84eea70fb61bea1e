"""edu: QEMU's teaching device, which copies between guest RAM and 4 KiB of its own.

Four registers (source, destination, count, command) and a timer: 100 ms of the virtual clock after
a command that has its lowest bit set, what the registers then say is done. While that bit is set
the registers take no writes. One of the two addresses is the device's own (its 4 KiB are at
0x40000), the other goes through ``dma_mask``, 28 bits unless a property says otherwise. What its
own memory holds is followed from the start (zeros), so what it writes into RAM is predicted.

A transfer of which any byte lies outside the 4 KiB ends QEMU 7.2 (``hw_error``); so does one of
no bytes, and one that ends just where the 4 KiB do (``edu_check_range`` was wrong by one). 10.0
only logs it, and copies from or over whatever lies behind that array in QEMU's own memory. In
both, such a transfer is not started where it would be carried out: in parked mode. 11.1 leaves
out the copying, and nothing else.

The device has no reset: registers and memory stay as they are. Its interrupts are messages once
the guest asks for those; when a message comes nobody follows, so the device is lost then.
Source: QEMU ``hw/misc/edu.c``.
"""

from __future__ import annotations

from typing import Final

from qemuglue.memory.attrs import UNSPECIFIED
from qemuglue.memory.region import MASK64, MemoryRegion
from qemuglue.witness.dma.device import DmaDevice, Place, Port, Stretches, When

REGION: Final = "edu-mmio"

#: The device's own memory, by its own addresses (``DMA_START``, ``DMA_SIZE``).
START: Final = 0x40000
SIZE: Final = 0x1000

SRC, DST, CNT, CMD = 0x80, 0x88, 0x90, 0x98
#: Bits of the command (``EDU_DMA_*``): go, from the device into RAM, raise an interrupt.
RUN, TO_RAM, IRQ = 0x1, 0x2, 0x4

#: ``dma_mask`` where it cannot be asked for.
MASK: Final = (1 << 28) - 1

#: The timer's delay; QEMU counts it in whole milliseconds.
DELAY_S: Final = 0.1

#: From here on ``edu_check_range`` is known to be right; what is refused between 7.2, where it is
#: known to be wrong, and this, is what either of the two refuses.
RIGHT_SINCE: Final = (10, 0)

#: From here on a transfer that it refuses is known not to be carried out.
HARMLESS_SINCE: Final = (11, 1)

#: In configuration space: the control word of its messages, and the bit that switches them on.
_MSI_CONTROL, _MSI_ENABLE = 0x42, 0x01


class Edu:
    """One edu (``device.DmaDevice``)."""

    name = "edu"
    hears_reads = True
    harmful = True
    delay_s = DELAY_S

    def __init__(
        self, mask: int = MASK, *, parked: bool, version: tuple[int, ...],
        big_endian: bool = False, bdf: int | None = None,
    ) -> None:
        self.lost = ""
        self._big = big_endian
        self.mask = mask
        self.parked = parked
        self.bdf = bdf
        self._right = version >= RIGHT_SINCE
        self._harmless = version >= HARMLESS_SINCE
        self.registers = {SRC: 0, DST: 0, CNT: 0, CMD: 0}
        self.memory = bytearray(SIZE)

    # -- registers -----------------------------------------------------------------------------

    def wrote(self, region: MemoryRegion, offset: int, size: int, value: int) -> None:
        """``edu_mmio_write``: only whole registers of 4 or 8 bytes, and none while it runs."""
        if region.name != REGION or size not in (4, 8) or offset not in self.registers:
            return
        if self.registers[CMD] & RUN:
            return
        value &= (1 << 8 * size) - 1
        if offset != CMD or value & RUN:
            self.registers[offset] = value

    def was_read(self, region: MemoryRegion, offset: int, size: int, value: int) -> None:
        """What a register shows must be what the model has; where it is not, the model has missed
        something, and what it would predict is worth nothing."""
        if region.name != REGION or size not in (4, 8) or offset not in self.registers:
            return
        shown = (1 << 8 * size) - 1
        if (value ^ self.registers[offset]) & shown:
            self.lost = "its registers are not what it was told"

    def configured(self, register: int, size: int, value: int) -> None:
        """A write to configuration space: does it ask for messages?"""
        shift = 8 * (_MSI_CONTROL - register)
        if 0 <= shift < 8 * size and value >> shift & _MSI_ENABLE:
            self.lost = "its interrupts are messages, which come when nobody can tell"

    def reset(self) -> None:
        """It has no reset; messages are switched off by that of its bus."""

    def revived(self, why: str) -> None:
        """What became of its registers and its memory meanwhile stays with it."""
        self.lost = why

    # -- what the lock step asks ---------------------------------------------------------------

    def kicks(self, region: MemoryRegion, offset: int, data: bytes) -> bool:
        """Whether the command's lowest bit is written. Without a clock that moves nothing ever
        comes of it."""
        if not self.parked or region.name != REGION:
            return False
        lowest = (CMD + 3, CMD + 7) if self._big else (CMD,)
        return any(
            data[at - offset] & RUN for at in lowest if offset <= at < offset + len(data)
        )

    def heeds(self, region: MemoryRegion) -> Stretches:
        """The registers of its DMA, 8 bytes each; interrupts and the factorial move nothing."""
        return ((SRC, CMD + 8),) if region.name == REGION else ()

    def floods(self, region: MemoryRegion, offset: int, data: bytes) -> bool:
        """Whether the transfer that this write starts leaves the device's own memory, or may:
        a longer write sets several registers, one after the other."""
        if self._harmless:
            return False
        if self.lost:
            return True  # nobody knows what its registers say
        if self.registers[CMD] & RUN:
            return False
        if offset != CMD or len(data) not in (4, 8):
            return True
        return not self.allowed(int.from_bytes(data, "big" if self._big else "little"))

    def allowed(self, command: int) -> bool:
        """Whether ``edu_check_range`` lets the transfer pass that ``command`` would start."""
        own = self.registers[SRC if command & TO_RAM else DST]
        last = own + self.registers[CNT]
        if own < START or last > START + SIZE:
            return False
        return self._right or START <= own < last < START + SIZE

    def when(self) -> When:
        return When.TIMER if self.registers[CMD] & RUN else When.NEVER

    # -- a transfer ----------------------------------------------------------------------------

    def act(self, port: Port) -> None:
        """``edu_dma_timer``."""
        command = self.registers[CMD]
        assert command & RUN, "act is called when a transfer is due"
        if self.allowed(command):
            self._copy(port, command)
        elif not self._harmless:
            self.lost = "it was told to leave its own memory"
        self.registers[CMD] = command & ~RUN & MASK64

    def _copy(self, port: Port, command: int) -> None:
        size = self.registers[CNT]
        if command & TO_RAM:
            at = self.registers[SRC] - START
            port.write(self.registers[DST] & self.mask, bytes(self.memory[at : at + size]))
            return
        at = self.registers[DST] - START
        # Also what failed lands: zeros, where nothing is (``flatview_read_continue``).
        _, data = port.space.read(self.registers[SRC] & self.mask, size, UNSPECIFIED)
        self.memory[at : at + size] = data


def make(place: Place) -> DmaDevice | None:
    """The edu at ``place``, if it is one."""
    if REGION not in place.regions:
        return None
    owner = place.owner
    path = f"/machine/peripheral/{owner[3:]}" if owner.startswith("id=") else owner
    mask = place.qom_get(path, "dma_mask")
    # On another than the root bus its number is what a program gives it.
    bus, address = place.qom_get(path, "parent_bus"), place.qom_get(path, "addr")
    root = isinstance(bus, str) and bus.rsplit("/", 1)[-1] in ("pci.0", "pcie.0")
    return Edu(
        mask if isinstance(mask, int) else MASK, parked=place.parked, version=place.version,
        big_endian=place.memory.target_big,
        bdf=address if root and isinstance(address, int) and 0 <= address < 256 else None,
    )
