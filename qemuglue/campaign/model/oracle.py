"""Naive oracles for the memory model, written apart from it: slow, byte by byte, obvious.

``Oracle`` does accesses from the spots of ``painting``; a ``Recorder`` is the same device on the
model's side. Nothing here reads the model's rules, views or dispatch.
"""

from __future__ import annotations

from random import Random
from typing import Literal, TypeGuard

from qemuglue.campaign.model.painting import MEMORY, TOP, Node, Spot, contents, spot
from qemuglue.memory import (
    Contract,
    Endian,
    MemoryRegion,
    MemTxAttrs,
    Reason,
    RegionKind,
)

OK, ERROR, DECODE_ERROR, ACCESS_ERROR = 0, 1, 2, 4
PAGE = 0x1000

# -- a device that is a pure function, and what it is asked -----------------------------------

Event = tuple[object, ...]


def device_value(offset: int, size: int) -> int:
    """What the test device reads as; bits above ``size`` are set as well, as devices do."""
    return ((offset + 1) * 0x9E3779B97F4A7C15 + size * 0x0123456789ABCDEF) % TOP


def device_status(offset: int) -> int:
    return ERROR if offset % 7 == 3 else OK


class Recorder:
    """The test device and the observer of the model, keeping a log of both."""

    def __init__(self) -> None:
        self.log: list[Event] = []

    def read(
        self, region: MemoryRegion, offset: int, size: int, attrs: MemTxAttrs
    ) -> tuple[int, int]:
        self.log.append(("read", region.name, offset, size))
        return device_status(offset), device_value(offset, size)

    def write(
        self, region: MemoryRegion, offset: int, value: int, size: int, attrs: MemTxAttrs
    ) -> int:
        self.log.append(("write", region.name, offset, size, value))
        return device_status(offset)

    def invalid(
        self, region: MemoryRegion, offset: int, size: int, is_write: bool, reason: Reason
    ) -> None:
        self.log.append(("invalid", region.name, offset, size, is_write, reason.value))


# -- accesses ------------------------------------------------------------------------------------


class Oracle:
    """Accesses to a map, a byte or a piece at a time. ``log`` is what a Recorder should hold."""

    def __init__(self, root: Node, *, target_big: bool = False) -> None:
        self.root = root
        self.target_big = target_big
        self.log: list[Event] = []
        self.ram: dict[Node, bytearray] = {}
        self._spots: dict[int, Spot | None] = {}

    def bytes_of(self, node: Node) -> bytearray:
        return self.ram.setdefault(node, bytearray(contents(node)))

    def _at(self, address: int) -> Spot | None:
        address %= TOP
        if address not in self._spots:
            self._spots[address] = spot(self.root, address)
        return self._spots[address]

    def read(
        self, address: int, buffer: bytearray, *, memory: bool = False
    ) -> int:
        """Fill ``buffer``; what ``memory`` forbids is left as it was."""
        done, result = 0, OK
        while done < len(buffer):
            here = self._at(address + done)
            left = len(buffer) - done
            if memory and not is_memory(here):
                return result | ACCESS_ERROR
            if here is not None and here.leaf.kind is RegionKind.ROM_DEVICE and here.leaf.romd:
                # Only the end of the memory itself stops such a read, not the section's.
                part = bytes(self.bytes_of(here.leaf)[here.offset : here.offset + left])
                status = OK
            elif is_memory(here):
                part = bytes(self.bytes_of(here.leaf)[here.offset : here.offset + 1])
                status = OK
            else:
                part, status = self._ask(here, address + done, self._chunk(address + done, left))
            buffer[done : done + len(part)] = part
            done += len(part)
            result |= status
        return result

    def write(
        self, address: int, data: bytes, *, memory: bool = False, debug: bool = False
    ) -> int:
        done, result = 0, OK
        while done < len(data):
            here = self._at(address + done)
            if memory and not is_memory(here):
                return result | ACCESS_ERROR
            if self._writable(here, debug):
                room = len(self.bytes_of(here.leaf)) - here.offset
                size = 1 if is_memory(here) else min(len(data) - done, room)
                self.bytes_of(here.leaf)[here.offset : here.offset + size] = (
                    data[done : done + size]
                )
            else:
                size = self._chunk(address + done, len(data) - done)
                result |= self._tell(here, address + done, data[done : done + size])
            done += size
        return result

    def load(self, address: int, size: int) -> tuple[int, bytes]:
        """One access, whole: (result, the bytes in memory order)."""
        here = self._at(address)
        if here is not None and here.leaf.kind is RegionKind.ROM_DEVICE and here.leaf.romd:
            return OK, bytes(self.bytes_of(here.leaf)[here.offset : here.offset + size])
        if is_memory(here) and self._whole(address, size):
            return OK, bytes(self.bytes_of(here.leaf)[here.offset : here.offset + size])
        part, status = self._ask(here, address, size)
        return status, bytes(part)

    def store(self, address: int, data: bytes) -> int:
        here = self._at(address)
        if self._writable(here, False) and self._whole(address, len(data)):
            self.bytes_of(here.leaf)[here.offset : here.offset + len(data)] = data
            return OK
        return self._tell(here, address, data)

    # what one region does

    def _writable(self, here: Spot | None, debug: bool) -> TypeGuard[Spot]:
        if here is None:
            return False
        if here.leaf.kind is RegionKind.ROM_DEVICE:
            return debug and here.leaf.romd
        if here.leaf.kind is RegionKind.ROM or here.leaf.readonly:
            return debug and is_memory(here)
        return here.leaf.kind is RegionKind.RAM

    def _whole(self, address: int, size: int) -> bool:
        """Whether a single access lies in one part of memory. No section of these maps has a
        whole page, so every page is a part of its own."""
        return self._left(address, size) == size <= PAGE - address % PAGE

    def _left(self, address: int, limit: int) -> int:
        """Bytes from ``address`` on that are of one section, up to ``limit``."""
        first, count = self._at(address), 1
        assert first is not None
        while count < limit and address % TOP + count < TOP:
            later = self._at(address + count)
            if later is None or not first.carried_on_by(later, count):
                break
            count += 1
        return count

    def _chunk(self, address: int, left: int) -> int:
        here = self._at(address)
        cap, unaligned, offset = 4, False, address % TOP
        if here is not None:
            offset = here.offset
            if is_memory(here):
                left = min(self._left(address, left), PAGE - address % PAGE)
            elif here.leaf.kind in (RegionKind.IO, RegionKind.ROM_DEVICE):
                cap = here.leaf.contract.valid_max or 4
                unaligned = here.leaf.contract.impl_unaligned
        fitting = [
            size for size in (1, 2, 4, 8)
            if size <= cap and size <= left and (unaligned or offset % size == 0)
        ]
        return fitting[-1]

    def _refused(self, here: Spot | None, address: int, size: int, is_write: bool) -> bool:
        name = "" if here is None else here.leaf.name
        offset = address % TOP if here is None else here.offset
        reason = None
        if here is None or here.leaf.kind not in (RegionKind.IO, RegionKind.ROM_DEVICE):
            reason = "rejected"
        else:
            contract = here.leaf.contract
            if contract.accepts is not None and not contract.accepts(offset, size, is_write):
                reason = "rejected"
            elif offset % size != 0 and not contract.valid_unaligned:
                reason = "unaligned"
            elif contract.valid_max != 0 and (
                size < contract.valid_min or size > contract.valid_max
            ):
                reason = "invalid size"
        if reason is not None:
            self.log.append(("invalid", name, offset, size, is_write, reason))
        return reason is not None

    def _order(self, contract: Contract) -> Literal["little", "big"]:
        if contract.endian is Endian.NATIVE:
            return "big" if self.target_big else "little"
        return "big" if contract.endian is Endian.BIG else "little"

    def _steps(self, contract: Contract, size: int) -> tuple[int, range]:
        piece = size
        piece = min(piece, 4 if contract.impl_max == 0 else contract.impl_max)
        piece = max(piece, 1 if contract.impl_min == 0 else contract.impl_min)
        return piece, range(0, size, piece)

    def _ask(self, here: Spot | None, address: int, size: int) -> tuple[bytes, int]:
        """The bytes, in memory order, and the result of one dispatch."""
        if self._refused(here, address, size, False):
            return bytes(size), DECODE_ERROR
        assert here is not None
        contract = here.leaf.contract
        answer, status = b"", OK
        piece, steps = self._steps(contract, size)
        for step in steps:
            offset = (here.offset + step) % TOP
            self.log.append(("read", here.leaf.name, offset, piece))
            value = device_value(offset, piece) % (1 << 8 * piece)
            answer += value.to_bytes(piece, self._order(contract))
            status |= device_status(offset)
        return answer[:size], status

    def _tell(self, here: Spot | None, address: int, data: bytes) -> int:
        if self._refused(here, address, len(data), True):
            return DECODE_ERROR
        assert here is not None
        contract = here.leaf.contract
        status = OK
        piece, steps = self._steps(contract, len(data))
        for step in steps:
            offset = (here.offset + step) % TOP
            part = data[step : step + piece].ljust(piece, b"\0")
            value = int.from_bytes(part, self._order(contract))
            self.log.append(("write", here.leaf.name, offset, piece, value))
            status |= device_status(offset)
        return status


def is_memory(here: Spot | None) -> TypeGuard[Spot]:
    """Whether memory without a device answers there."""
    return here is not None and here.leaf.kind in MEMORY


# -- random maps ---------------------------------------------------------------------------


_SIZES = (0, 0, 1, 2, 4, 8)


def random_contract(rng: Random) -> Contract:
    veto = rng.randrange(2, 6)
    return Contract(
        valid_min=rng.choice((0, 0, 1, 2, 4)), valid_max=rng.choice(_SIZES),
        valid_unaligned=rng.random() < 0.5,
        impl_min=rng.choice(_SIZES), impl_max=rng.choice(_SIZES),
        impl_unaligned=rng.random() < 0.3, endian=rng.choice(list(Endian)),
        accepts=None if rng.random() < 0.7 else (
            lambda offset, size, is_write: (offset + size + is_write) % veto != 0),
    )


#: Where a random map's regions lie, so that some end at the end of the space.
WINDOW = 48


def random_map(rng: Random) -> tuple[Node, int]:
    """A flat map of small regions of every kind, and the address of its window."""
    base = rng.choice((0, PAGE - WINDOW // 2, TOP - WINDOW))
    root = Node("system", TOP, RegionKind.CONTAINER)
    # A second child keeps the root from being looked through; that has tests of its own.
    root.add(TOP // 2, 0, Node("far", 16, RegionKind.RAM))
    kinds = (RegionKind.RAM, RegionKind.ROM, RegionKind.ROM_DEVICE, RegionKind.IO, RegionKind.IO,
             RegionKind.RESERVATION, RegionKind.ALIAS)
    here: list[Node] = []
    for index in range(rng.randrange(1, 7)):
        kind = rng.choice(kinds)
        size = rng.randrange(1, WINDOW // 2)
        if kind is RegionKind.ALIAS and here:
            node = Node(f"alias{index}", size, kind, target=rng.choice(here),
                        target_offset=rng.randrange(0, 8), readonly=rng.random() < 0.5)
        else:
            kind = RegionKind.RAM if kind is RegionKind.ALIAS else kind
            node = Node(f"{kind.name}{index}", size, kind, contract=random_contract(rng),
                        romd=rng.random() < 0.7)
            here.append(node)
        root.add(base + rng.randrange(0, WINDOW - size), rng.randrange(-1, 2), node)
    return root, base
