"""The contract between a device whose DMA is decoded and the lock step.

A decoded device is a small model of what the real one does with *guest memory*, driven by what
the transcript shows of its registers. It is told of every piece that reached the device, in
order; when something is due it performs its accesses on the model through a :class:`Port`. What
it writes lands in the model's RAM, so the ordinary comparison of RAM judges it; what it accesses
that is no RAM must be in QEMU's transcript, as for any access. Only what nobody can know (random
numbers, the time) is *adopted*, and only inside the range the program named for it.

A device that is not sure says so (``lost``): from then on RAM that differs while this device may
write is unjudged, with its reason, until it is reset. It never guesses.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.attrs import UNSPECIFIED, MemTxAttrs
from qemuglue.memory.region import MemoryRegion


class When(enum.Enum):
    """When a device does what it was told."""

    NEVER = "nothing is due"
    #: Inside the access itself, before qtest answers (fw_cfg, e1000e's transmitter).
    NOW = "inside the access"
    #: When QEMU's main loop comes round (a virtqueue behind an ioeventfd, a block request).
    SOON = "from the main loop"
    #: When the virtual clock has moved on (edu): never while the VM is stopped.
    TIMER = "by a timer of the virtual clock"


class Port(Protocol):
    """How a device reaches guest memory: its own address space, its attributes, translation.

    Addresses are the device's (``dma_addr_t``, 64 bits); data is in address order.
    """

    space: AddressSpace

    def read(self, addr: int, size: int, attrs: MemTxAttrs = UNSPECIFIED) -> bytes | None:
        """What ``address_space_read`` gives the device; None if it fails. Where other devices
        answer, their values come from the transcript."""

    def write(self, addr: int, data: bytes, attrs: MemTxAttrs = UNSPECIFIED) -> bool:
        """Perform the write on the model; whether it succeeded."""

    def unknown(
        self, addr: int, size: int, attrs: MemTxAttrs = UNSPECIFIED,
        learnt: Callable[[bytes], None] | None = None,
    ) -> bool:
        """Perform a write of ``size`` bytes that nobody can predict; whether it succeeded. In RAM
        QEMU's are adopted once everything else of this action has arrived, and nowhere else;
        ``learnt`` is told them then. Where a device takes them any value will do. The kick must
        have ended its batch."""


#: Parts of a region: (first offset, end), the end excluded.
Stretches = tuple[tuple[int, int], ...]


def apart(stretches: Stretches | None, offset: int, size: int) -> bool:
    """Whether ``size`` bytes at ``offset`` touch none of the stretches; None is all there is."""
    if stretches is None:
        return False
    for first, end in stretches:  # noqa: SIM110 - asked for every write; a generator costs more
        if offset < end and first < offset + size:
            return False
    return True


class DmaDevice(Protocol):
    """One decoded device of one running QEMU.

    Calls come in the order of the transcript: ``wrote`` or ``was_read`` for a piece, then, if
    ``when()`` is not NEVER, ``act`` as soon as that time has come. ``NOW`` acts before the next
    piece is looked at; ``SOON`` and ``TIMER`` act when the batch has ended, after every operation
    before them, and the kick has ended the batch (``kicks``).

    A write that QEMU takes by an ioeventfd leaves no line and is not told of here: the device puts
    its ioeventfds onto its regions (``MemoryRegion.add_eventfd``), and their notifiers are called.
    """

    #: As a person would call it: "edu", "virtio-blk-pci".
    name: str
    #: Why its DMA cannot be followed any more; "" while it can. A reset clears it.
    lost: str
    # A device may have more, which are looked up by name:
    #   delay_s: float       TIMER: seconds of the virtual clock until it acts (0 if left out)
    #   heeds(region)        stretches of the region's offsets (``Stretches``): a write outside
    #                        them, whatever it writes and whenever, changes nothing in the model
    #                        and never kicks, so it need not be told; None: any may
    #   harmful: bool        True: what it is told while it is lost may end QEMU, or worse, so
    #                        ``kicks`` and ``floods`` are asked of it even then
    #   hears_reads: bool    False: ``was_read`` is not called, and reads are judged faster
    #   reading(region, offset, size, port) -> int | None
    #                        a read is about to reach it: what it reads by DMA before it answers,
    #                        and the answer where it is known (QEMU's is compared with it)
    #   mapped(regions)      the map changed; its regions by name, as in ``Place``
    #   revived(why)         it had been lost, and ``reset`` has just been called: the machine was;
    #                        what a reset leaves as it is (its own memory, say) is not known
    #                        any more; it may set ``lost`` again
    #   bdf: int             bus, device and function (16 bits) of a PCI function, with
    #   configured(register, size, value)    a write to its configuration space

    def wrote(self, region: MemoryRegion, offset: int, size: int, value: int) -> None:
        """The device was passed this write (the number the transcript shows)."""

    def was_read(self, region: MemoryRegion, offset: int, size: int, value: int) -> None:
        """The device answered this read with ``value``; reads may have effects as well."""

    def kicks(self, region: MemoryRegion, offset: int, data: bytes) -> bool:
        """Whether a write of ``data`` (address order) may start something that is not done when
        qtest answers, or must not be overtaken: it is a batch of its own. Asked before it is
        sent, when what comes before it may not have reached the model yet: so the answer may
        depend on the place and the data, not on what earlier operations have set."""

    def floods(self, region: MemoryRegion, offset: int, data: bytes) -> bool:
        """Whether this write would start more than can be waited for: it is not sent then. Asked
        only where ``kicks`` says yes, when everything before it has reached the model."""

    def when(self) -> When:
        """When the next action is due."""

    def act(self, port: Port) -> None:
        """Do on the model what is due."""

    def reset(self) -> None:
        """The machine was reset."""


def heard(device: DmaDevice) -> bool:
    """Whether ``kicks`` and ``floods`` of the device are to be asked."""
    return not device.lost or getattr(device, "harmful", False)


class Silent:
    """What a device has in common that has registers to be followed and never acts by itself."""

    hears_reads = False

    def was_read(self, region: MemoryRegion, offset: int, size: int, value: int) -> None:
        """Reads have no effect on memory."""

    def kicks(self, region: MemoryRegion, offset: int, data: bytes) -> bool:
        return False

    def floods(self, region: MemoryRegion, offset: int, data: bytes) -> bool:
        return False

    def when(self) -> When:
        return When.NEVER

    def act(self, port: Port) -> None:
        raise AssertionError("it never acts")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a device sits and what may be asked about it before its model is made."""

    #: Path in QEMU's object model, which owns its regions and its address space.
    owner: str
    #: Its regions by name, as the mirror knows them.
    regions: Mapping[str, MemoryRegion]
    #: The space its DMA goes through (its bus master space, else the system's memory).
    space: AddressSpace
    #: The system's memory.
    memory: AddressSpace
    #: QEMU's version.
    version: tuple[int, ...]
    #: (path, property) -> value, by QMP ``qom-get``; None where there is no such property.
    qom_get: Callable[[str, str], Any]
    #: QEMU's answer to a QMP command without arguments; None where it refuses.
    ask: Callable[[str], object]
    #: Whether the guest's clock moves.
    parked: bool
    #: Kept by the machine's ``Knowledge``: what one session learnt of this device, for the next.
    known: dict[str, Any]


#: Makes the model of the device at a place, or None if it is none of its kind.
Maker = Callable[[Place], DmaDevice | None]
