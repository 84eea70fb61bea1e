"""AddressSpace: accesses over a view, by QEMU's rules (the C face of the model).

``read``/``write`` are ``address_space_read``/``address_space_write``: byte ranges, cut into
dispatches (R6), that go on after an error. ``load``/``store`` are ``address_space_ldl`` and
its kin: one sized access, one dispatch (R10). Addresses are 0 to 2^64-1 and wrap.
"""

from __future__ import annotations

from typing import Literal

from qemuglue.errors import ModelError
from qemuglue.memory.attrs import ACCESS_ERROR, DECODE_ERROR, OK, UNSPECIFIED, MemTxAttrs
from qemuglue.memory.contract import Contract
from qemuglue.memory.flatview import FlatView, MemoryRegionSection, render
from qemuglue.memory.ops import MemoryRegionOps, Observer
from qemuglue.memory.region import MAX_SIZE, MemoryRegion
from qemuglue.memory.rules import RULES_10_0, Rules

MASK64 = MAX_SIZE - 1

ByteOrder = Literal["little", "big"]


class AddressSpace:
    """A name, a root region, and the view drawn from it.

    ``ops`` serves every device region that has no callbacks of its own; ``observer`` hears of
    refused accesses. ``target_big`` is the byte order of the target, which NATIVE devices have.
    ``engaged`` holds the owners that are handling an access just now (R4): the spaces of one
    machine share it, since a device's DMA goes through a space of its own.
    """

    def __init__(
        self, name: str, root: MemoryRegion, *, rules: Rules = RULES_10_0,
        target_big: bool = False, engaged: set[object] | None = None,
    ) -> None:
        self.name = name
        self.root = root
        self.rules = rules
        self.target_big = target_big
        self.ops: MemoryRegionOps | None = None
        self.observer: Observer | None = None
        #: Counts the views; every judged access belongs to one.
        self.generation = 0
        self.engaged: set[object] = set() if engaged is None else engaged
        self._view: FlatView | None = None

    @property
    def view(self) -> FlatView:
        """The current view; drawn on first use and by ``update``."""
        if self._view is None:
            self._view = render(self.root)
        return self._view

    def update(self) -> FlatView:
        """Draw the view again after the tree changed."""
        self._view = render(self.root)
        self.generation += 1
        return self._view

    # -- byte ranges -----------------------------------------------------------------------

    def translate(self, addr: int, length: int) -> tuple[MemoryRegionSection, int, int]:
        """(section, offset in its region, bytes of ``length`` that can be done at once)."""
        section = self.view.lookup(addr)
        return (
            section,
            self.rules.region_offset(section, addr),
            self.rules.clamp(section, addr, length),
        )

    def read(
        self, addr: int, length: int, attrs: MemTxAttrs = UNSPECIFIED
    ) -> tuple[int, bytes]:
        """(result, ``length`` bytes). Refused bytes are 0. Length 0 is OK and does nothing."""
        buffer = bytearray(length)
        result = self.read_into(addr, buffer, attrs)
        return result, bytes(buffer)

    def read_into(self, addr: int, buffer: bytearray, attrs: MemTxAttrs = UNSPECIFIED) -> int:
        """``address_space_read`` into ``buffer``; bytes denied by ``attrs.memory`` stay."""
        _check_address(addr)
        rules = self.rules
        at, length, result = 0, len(buffer), OK
        while at < length:
            section, offset, n = self.translate((addr + at) & MASK64, length - at)
            region = section.region
            if not rules.allowed(region, attrs):
                result = rules.combine(result, ACCESS_ERROR)
                if at == 0:
                    return result
            elif rules.direct_read(region) and region.backing is not None:
                data = region.backing.read(offset, n)
                n = len(data)
                if not n:
                    raise ModelError(f"region {region.name!r} has no byte {offset:#x}")
                buffer[at : at + n] = data
            else:
                n = rules.chunk(region.contract, n, offset)
                piece, value = self.dispatch_read(region, offset, n, attrs)
                result = rules.combine(result, piece)
                big = rules.big(region.contract, self.target_big)
                buffer[at : at + n] = value.to_bytes(n, "big" if big else "little")
            if not rules.goes_on(result):
                break
            at += n
        return result

    def write(self, addr: int, data: bytes, attrs: MemTxAttrs = UNSPECIFIED) -> int:
        """``address_space_write``: the ORed result; what is refused is dropped."""
        _check_address(addr)
        rules = self.rules
        at, length, result = 0, len(data), OK
        while at < length:
            section, offset, n = self.translate((addr + at) & MASK64, length - at)
            region = section.region
            if not rules.allowed(region, attrs):
                result = rules.combine(result, ACCESS_ERROR)
                if at == 0:
                    return result
            elif rules.direct_write(region, attrs) and region.backing is not None:
                n = min(n, len(region.backing) - offset)
                if n <= 0:
                    raise ModelError(f"region {region.name!r} has no byte {offset:#x}")
                region.backing.write(offset, data[at : at + n])
            else:
                n = rules.chunk(region.contract, n, offset)
                big = rules.big(region.contract, self.target_big)
                value = int.from_bytes(data[at : at + n], "big" if big else "little")
                result = rules.combine(result, self.dispatch_write(region, offset, value, n, attrs))
            if not rules.goes_on(result):
                break
            at += n
        return result

    # -- single accesses ---------------------------------------------------------------------

    def load(
        self, addr: int, size: int, order: ByteOrder, attrs: MemTxAttrs = UNSPECIFIED
    ) -> tuple[int, int]:
        """``address_space_ldub/lduw/ldl/ldq``: (result, value in ``order``), R10."""
        _check_address(addr)
        section, offset, n = self.translate(addr, size)
        region = section.region
        if n >= size and self.rules.direct_read(region) and region.backing is not None:
            return OK, int.from_bytes(region.backing.read(offset, size), order)
        result, value = self.dispatch_read(region, offset, size, attrs)
        return result, self._reorder(region.contract, value, size, order)

    def store(
        self, addr: int, value: int, size: int, order: ByteOrder,
        attrs: MemTxAttrs = UNSPECIFIED,
    ) -> int:
        """``address_space_stb/stw/stl/stq``: the result, R10."""
        _check_address(addr)
        section, offset, n = self.translate(addr, size)
        region = section.region
        if n >= size and self.rules.direct_write(region, attrs) and region.backing is not None:
            region.backing.write(offset, value.to_bytes(size, order))
            return OK
        value = self._reorder(region.contract, value, size, order)
        return self.dispatch_write(region, offset, value, size, attrs)

    def _reorder(self, contract: Contract, value: int, size: int, order: ByteOrder) -> int:
        big = self.rules.big(contract, self.target_big)
        if big == (order == "big"):
            return value
        return int.from_bytes(value.to_bytes(size, "big"), "little")

    # -- dispatch to a device ------------------------------------------------------------------

    def dispatch_read(
        self, region: MemoryRegion, offset: int, size: int, attrs: MemTxAttrs = UNSPECIFIED
    ) -> tuple[int, int]:
        """``memory_region_dispatch_read``: (result, value in the device's order), R2-R4."""
        rules = self.rules
        while region.alias is not None:
            region, offset = region.alias, (offset + region.alias_offset) & MASK64
        contract = region.contract
        reason = rules.refusal(contract, offset, size, False)
        if reason is not None:
            if self.observer is not None:
                self.observer.invalid(region, offset, size, False, reason)
            return DECODE_ERROR, rules.refused_value(size)
        ops = region.ops or self.ops
        if ops is None:
            return OK, 0
        guarded = region.owner is not None and rules.guarded(region)
        if guarded:
            if rules.blocked(region.owner in self.engaged):
                return ACCESS_ERROR, 0
            self.engaged.add(region.owner)
        result = value = 0
        try:
            for piece in rules.pieces(contract, size, rules.big(contract, self.target_big)):
                status, part = ops.read(region, (offset + piece.delta) & MASK64, piece.size, attrs)
                part &= (1 << piece.size * 8) - 1
                value |= part << piece.shift if piece.shift >= 0 else part >> -piece.shift
                result |= status
        finally:
            if guarded or rules.unguarded_releases:
                self.engaged.discard(region.owner)
        return result, value & ((1 << size * 8) - 1)

    def dispatch_write(
        self, region: MemoryRegion, offset: int, value: int, size: int,
        attrs: MemTxAttrs = UNSPECIFIED,
    ) -> int:
        """``memory_region_dispatch_write``: the result; ``value`` is in the device's order."""
        rules = self.rules
        while region.alias is not None:
            region, offset = region.alias, (offset + region.alias_offset) & MASK64
        contract = region.contract
        reason = rules.refusal(contract, offset, size, True)
        if reason is not None:
            if self.observer is not None:
                self.observer.invalid(region, offset, size, True, reason)
            return DECODE_ERROR
        if region.ioeventfds and rules.swallowed(region, offset, size, value):
            return OK
        ops = region.ops or self.ops
        if ops is None:
            return OK
        guarded = region.owner is not None and rules.guarded(region)
        if guarded:
            if rules.blocked(region.owner in self.engaged):
                return ACCESS_ERROR
            self.engaged.add(region.owner)
        result = OK
        try:
            for piece in rules.pieces(contract, size, rules.big(contract, self.target_big)):
                part = value >> piece.shift if piece.shift >= 0 else value << -piece.shift
                part &= (1 << piece.size * 8) - 1
                result |= ops.write(
                    region, (offset + piece.delta) & MASK64, part, piece.size, attrs
                )
        finally:
            if guarded or rules.unguarded_releases:
                self.engaged.discard(region.owner)
        return result

    def __repr__(self) -> str:
        return f"<AddressSpace {self.name!r} over {self.root.name!r}>"


def _check_address(addr: int) -> None:
    if not 0 <= addr <= MASK64:
        raise ModelError(f"address {addr:#x} is not in 0..2^64-1")
