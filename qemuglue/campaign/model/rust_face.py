"""A naive oracle for the Rust face, written apart from it: who answers is asked for every byte.

Written from the RFC's ``try_access`` and vm-memory's contract, on the spots of ``oracle``. What an
access comes to is a plain ``Outcome``, so that the face's answers and exceptions compare with it.
"""

from __future__ import annotations

from random import Random
from typing import TypeGuard

from qemuglue.campaign.model.oracle import WINDOW, Oracle, random_contract
from qemuglue.campaign.model.painting import TOP, Node, Spot, edges_of
from qemuglue.errors import ModelError
from qemuglue.memory import Contract, RegionKind
from qemuglue.memory.guest_error import (
    GuestIOError,
    InvalidGuestAddress,
    PartialBuffer,
)

PAGE = 4096

#: ("moved", bytes), ("stored",), ("loaded", bytes in memory order), or an error's name and data.
Outcome = tuple[object, ...]

BACKEND: Outcome = ("InvalidBackendAddress",)


def outcome_of(error: ModelError) -> Outcome:
    """An exception of the face as the oracle would say it."""
    name = type(error).__name__
    if isinstance(error, InvalidGuestAddress):
        return name, error.addr.raw_value()
    if isinstance(error, PartialBuffer):
        cause = error.__cause__
        assert isinstance(cause, ModelError), "what ended it is told"
        return name, error.expected, error.completed, outcome_of(cause)
    if isinstance(error, GuestIOError):
        return name, error.kind.name
    return (name,)


def told(length: int, done: int, error: Outcome | None, *, whole: bool) -> Outcome:
    """What the caller hears: ``whole`` is a ``_slice`` access."""
    if error is None:
        assert done == length
        return "moved", length
    if not done:
        return error
    return ("PartialBuffer", length, done, error) if whole else ("moved", done)


class RustOracle(Oracle):
    """Accesses through the Rust face; ``memory`` is ``attrs.memory``."""

    def rust_read(
        self, address: int, buffer: bytearray, *, memory: bool = False
    ) -> tuple[int, Outcome | None]:
        """(bytes read, what ended it)."""
        done, at = 0, address
        while done < len(buffer):
            if at > TOP:
                return done, ("GuestAddressOverflow",)
            at %= TOP
            here, left = self._at(at), len(buffer) - done
            if memory and not in_ram(here):
                return done, ("InvalidGuestAddress", at)
            status = 0
            if here is not None and here.leaf.kind is RegionKind.ROM_DEVICE and here.leaf.romd:
                part = bytes(self.bytes_of(here.leaf)[here.offset : here.offset + left])
            elif in_ram(here):
                part = bytes(self.bytes_of(here.leaf)[here.offset : here.offset + 1])
            else:
                part, status = self._ask(here, at, self._chunk(at, left))
            buffer[done : done + len(part)] = part
            if status:
                return done, BACKEND
            done += len(part)
            at += len(part)
        return done, None

    def rust_write(
        self, address: int, data: bytes, *, memory: bool = False
    ) -> tuple[int, Outcome | None]:
        """(bytes written, what ended it)."""
        done, at = 0, address
        while done < len(data):
            if at > TOP:
                return done, ("GuestAddressOverflow",)
            at %= TOP
            here = self._at(at)
            if memory and not in_ram(here):
                return done, ("InvalidGuestAddress", at)
            if self._writable(here, False):
                size = 1
                self.bytes_of(here.leaf)[here.offset] = data[done]
            else:
                size = self._chunk(at, len(data) - done)
                if self._tell(here, at, data[done : done + size]):
                    return done, BACKEND
            done += size
            at += size
        return done, None

    def rust_load(self, address: int, size: int, *, memory: bool = False) -> Outcome:
        here = self._at(address)
        refused = self._no_single_access(address, size, memory)
        if refused is not None:
            return refused
        if here is not None and here.leaf.kind is RegionKind.ROM_DEVICE and here.leaf.romd:
            part = bytes(self.bytes_of(here.leaf)[here.offset : here.offset + size])
            return ("loaded", part) if len(part) == size else ("ModelError",)
        if in_ram(here):
            return "loaded", bytes(self.bytes_of(here.leaf)[here.offset : here.offset + size])
        part, status = self._ask(here, address, size)
        return BACKEND if status else ("loaded", part)

    def rust_store(self, address: int, data: bytes, *, memory: bool = False) -> Outcome:
        here = self._at(address)
        refused = self._no_single_access(address, len(data), memory)
        if refused is not None:
            return refused
        if self._writable(here, False):
            self.bytes_of(here.leaf)[here.offset : here.offset + len(data)] = data
            return ("stored",)
        return BACKEND if self._tell(here, address, data) else ("stored",)

    def _no_single_access(self, address: int, size: int, memory: bool) -> Outcome | None:
        here = self._at(address)
        if memory and not in_ram(here):
            return "InvalidGuestAddress", address
        if in_ram(here):
            for count in range(1, size):
                if address + count >= TOP or self._cut_between(address, count):
                    return BACKEND
        return None if size in (1, 2, 4, 8) else ("GuestIOError", "INVALID_INPUT")

    def _cut_between(self, address: int, count: int) -> bool:
        """Whether the byte ``count`` further on is dispatched apart: it belongs to another
        section, or a page begins with it and not both pages are the section's whole."""
        later, here = self._at(address + count), self._at(address)
        assert here is not None
        if later is None or not here.carried_on_by(later, count):
            return True
        if (address + count) % PAGE:
            return False
        cut = address + count
        return not (
            self._all_one(address, cut - PAGE, cut) and self._all_one(address, cut, cut + PAGE)
        )

    def _all_one(self, address: int, low: int, high: int) -> bool:
        """Whether [low, high) all shows the section that ``address`` does: asked at both ends,
        and around every place in between where anything starts or ends."""
        edges = [edge for edge in edges_of(self.root, 0) if low < edge < high]
        asked = {low, high - 1, *edges, *(edge - 1 for edge in edges)}
        here = self._at(address)
        assert here is not None
        for other in asked:
            later = self._at(other) if 0 <= other < TOP else None
            if later is None or not here.carried_on_by(later, other - address):
                return False
        return True


def in_ram(here: Spot | None) -> TypeGuard[Spot]:
    """``memory_region_is_ram``; a ROM device is none."""
    return here is not None and here.leaf.kind in (RegionKind.RAM, RegionKind.ROM)


def rust_map(rng: Random) -> tuple[Node, int]:
    """Small regions of every kind around a page boundary or an end of the space, and the
    address of the window they lie in."""
    base = rng.choice((0, PAGE - WINDOW // 2, 3 * PAGE, TOP - WINDOW))
    root = Node("system", TOP, RegionKind.CONTAINER)
    root.add(TOP // 2, 0, Node("far", 16, RegionKind.RAM))
    kinds = (
        RegionKind.RAM, RegionKind.RAM, RegionKind.RAM, RegionKind.ROM, RegionKind.ROM_DEVICE,
        RegionKind.IO, RegionKind.IO, RegionKind.RESERVATION, RegionKind.ALIAS,
    )
    made: list[Node] = []
    for index in range(rng.randrange(1, 8)):
        kind = rng.choice(kinds)
        size = rng.randrange(1, WINDOW)
        if kind is RegionKind.ALIAS and made:
            node = Node(f"alias{index}", size, kind, target=rng.choice(made),
                        target_offset=rng.randrange(0, 8), readonly=rng.random() < 0.5)
        else:
            kind = RegionKind.RAM if kind is RegionKind.ALIAS else kind
            node = Node(f"{kind.name}{index}", size, kind, contract=random_contract(rng),
                        romd=rng.random() < 0.7)
            made.append(node)
        root.add(base + rng.randrange(0, WINDOW - size), rng.randrange(-1, 2), node)
    if base == TOP - WINDOW:
        # Something behind the last address, and a device that reaches over it.
        root.add(0, 0, Node("zero", 16, RegionKind.RAM))
        if rng.random() < 0.5:
            wide = Contract(valid_unaligned=True, impl_unaligned=True, valid_max=8)
            root.add(TOP - 8, 2, Node("edge", 8, RegionKind.IO, contract=wide))
    if base == 3 * PAGE and rng.random() < 0.5:
        # RAM with whole pages, and a part of a page at either end.
        root.add(PAGE - 20, -2, Node("pages", 3 * PAGE + 50, RegionKind.RAM))
        base = rng.choice((PAGE, 2 * PAGE, 3 * PAGE, 4 * PAGE)) - WINDOW // 2
    return root, base
