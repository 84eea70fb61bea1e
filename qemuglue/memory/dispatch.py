"""Dispatch: one accepted access becomes calls into a device (R1-R5).

It is the same for every way in: byte ranges, single accesses, caches and the guest's CPU.
"""

from __future__ import annotations

from qemuglue.memory.attrs import ACCESS_ERROR, DECODE_ERROR, OK, UNSPECIFIED, MemTxAttrs
from qemuglue.memory.ops import MemoryRegionOps, Observer
from qemuglue.memory.region import MASK64, MemoryRegion
from qemuglue.memory.rules import Rules


class Dispatcher:
    """What an access needs beside its map.

    ``ops`` serves every device region that has no callbacks of its own; ``observer`` hears of
    refused accesses. ``target_big`` is the byte order of the target, which NATIVE devices have.
    ``engaged`` holds the owners that are handling an access just now (R4): the spaces of one
    machine share it, since a device's DMA goes through a space of its own.
    """

    def __init__(self, *, rules: Rules, target_big: bool, engaged: set[object]) -> None:
        self._rules = rules
        self.target_big = target_big
        self.engaged = engaged
        self.ops: MemoryRegionOps | None = None
        self.observer: Observer | None = None

    @property
    def rules(self) -> Rules:
        return self._rules

    @rules.setter
    def rules(self, rules: Rules) -> None:
        self._rules = rules
        self._rules_changed()

    def _rules_changed(self) -> None:
        """Forget what followed from the old rules."""

    def engage(self, region: MemoryRegion) -> bool:
        """Engage the region's owner (R4) as an accepted access does: for whoever takes such an
        access without performing it, and then lets the device act. Give ``release`` what this
        returns, whatever happens in between."""
        guarded = region.owner is not None and self._rules.guarded(region)
        if guarded:
            self.engaged.add(region.owner)
        return guarded

    def release(self, region: MemoryRegion, guarded: bool) -> None:
        """The end of ``engage``."""
        if guarded or self._rules.unguarded_releases:
            self.engaged.discard(region.owner)

    def dispatch_read(
        self, region: MemoryRegion, offset: int, size: int, attrs: MemTxAttrs = UNSPECIFIED,
        *, wide: bool = False,
    ) -> tuple[int, int]:
        """``memory_region_dispatch_read``: (result, value in the device's order), R2-R4.

        ``wide`` leaves what a widened piece gives beyond ``size``, as C does; whoever moves
        bytes cuts it off anyway, a CPU does not.
        """
        rules = self._rules
        while region.alias is not None:
            region, offset = region.alias, (offset + region.alias_offset) & MASK64
        contract = region.contract
        reason = rules.refusal(contract, offset, size, False, attrs)
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
        return result, value if wide else value & ((1 << size * 8) - 1)

    def dispatch_write(
        self, region: MemoryRegion, offset: int, value: int, size: int,
        attrs: MemTxAttrs = UNSPECIFIED,
    ) -> int:
        """``memory_region_dispatch_write``: the result; ``value`` is in the device's order."""
        rules = self._rules
        while region.alias is not None:
            region, offset = region.alias, (offset + region.alias_offset) & MASK64
        contract = region.contract
        reason = rules.refusal(contract, offset, size, True, attrs)
        if reason is not None:
            if self.observer is not None:
                self.observer.invalid(region, offset, size, True, reason)
            return DECODE_ERROR
        if region.ioeventfds and rules.swallowed(region, offset, size, value):
            for fd in region.ioeventfds:
                if fd.takes(offset, size, value):
                    fd.signal()
                    break
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
