"""Planted defects: the model with one rule wrong, which a campaign must find.

Each is a ``Rules`` or a ``HostFace`` with one method replaced; nothing else of the model knows
of them. The ``canary`` target runs with one; the tests run with every one.
"""

from __future__ import annotations

from dataclasses import dataclass

from qemuglue.memory.attrs import UNSPECIFIED, MemTxAttrs
from qemuglue.memory.contract import Contract, Reason
from qemuglue.memory.flatview import MemoryRegionSection
from qemuglue.memory.region import MemoryRegion
from qemuglue.memory.rules import Piece, Rules
from qemuglue.mirror import Mirror
from qemuglue.program.operation import Operation
from qemuglue.witness.face import HostFace, Outcome


class _AcceptsRejected(Rules):
    def refusal(
        self, contract: Contract, offset: int, size: int, is_write: bool,
        attrs: MemTxAttrs = UNSPECIFIED,
    ) -> Reason | None:
        found = super().refusal(contract, offset, size, is_write, attrs)
        return None if found is Reason.REJECTED else found


class _RefusedReadsOnes(Rules):
    def refused_value(self, size: int) -> int:
        return (1 << size * 8) - 1


class _PiecesBackwards(Rules):
    def pieces(self, contract: Contract, size: int, big: bool) -> tuple[Piece, ...]:
        return super().pieces(contract, size, big)[::-1]


class _GuardInverted(Rules):
    def blocked(self, engaged: bool) -> bool:
        return not super().blocked(engaged)


class _OrderSwapped(Rules):
    def big(self, contract: Contract, target_big: bool) -> bool:
        return not super().big(contract, target_big)


class _AlignmentIgnored(Rules):
    def chunk(self, contract: Contract, length: int, offset: int) -> int:
        return super().chunk(contract, length, 0)


class _ClampOffByOne(Rules):
    def clamp(
        self, section: MemoryRegionSection, addr: int, length: int, page_bits: int = 12
    ) -> int:
        clamped = super().clamp(section, addr, length, page_bits)
        return max(1, clamped - 1) if clamped < length else clamped


class _NoClamp(Rules):
    def clamp(
        self, section: MemoryRegionSection, addr: int, length: int, page_bits: int = 12
    ) -> int:
        return length


class _AliasOffsetDropped(Rules):
    def region_offset(self, section: MemoryRegionSection, addr: int) -> int:
        return addr - section.start


class _StopsAtError(Rules):
    def goes_on(self, result: int) -> bool:
        return not result


class _RomWritable(Rules):
    def direct_write(self, region: MemoryRegion, attrs: MemTxAttrs) -> bool:
        return region.is_ram or super().direct_write(region, attrs)


class _PortsReadZero(Rules):
    def port_root_value(self, size: int) -> int:
        return 0


class _ValuesBackwards(HostFace):
    def value_bytes(self, value: int, size: int) -> bytes:
        return super().value_bytes(value, size)[::-1]


class _FillShort(HostFace):
    def perform(self, op: Operation, addr: int) -> Outcome:
        if op.verb == "memset" and op.size > 1:
            op = Operation(op.verb, op.place, op.size - 1, op.value)
        return super().perform(op, addr)


@dataclass(frozen=True, slots=True)
class Defect:
    """``rule`` is the R number it breaks; exactly one of ``rules``, ``face`` and ``mirror`` is
    wrong."""

    rule: str
    summary: str
    rules: type[Rules] | None = None
    face: type[HostFace] = HostFace
    mirror: type[Mirror] = Mirror


DEFECTS: dict[str, Defect] = {
    "accepts-rejected": Defect("R1", "a rejected access is accepted", _AcceptsRejected),
    "refused-ones": Defect("R2", "a refused read gives ones, not zeros", _RefusedReadsOnes),
    "pieces-backwards": Defect("R3", "pieces go in the wrong order", _PiecesBackwards),
    "guard-inverted": Defect("R4", "the re-entrancy guard is inverted", _GuardInverted),
    "order-swapped": Defect("R5", "devices have the other byte order", _OrderSwapped),
    "alignment-ignored": Defect("R6", "pieces are not aligned", _AlignmentIgnored),
    "clamp-off-by-one": Defect("R7", "RAM ends one byte early at a boundary", _ClampOffByOne),
    "no-clamp": Defect("R7", "RAM is not clamped at its end", _NoClamp),
    "alias-offset-dropped": Defect("R7", "an alias shows its target from 0", _AliasOffsetDropped),
    "stops-at-error": Defect("R8", "the loop stops at the first error", _StopsAtError),
    "rom-writable": Defect("R9", "read-only is ignored", _RomWritable),
    "ports-read-zero": Defect("R11", "unclaimed ports read zeros", _PortsReadZero),
    "values-backwards": Defect("R20", "values are stored in the other order",
                               face=_ValuesBackwards),
    "fill-short": Defect("R20", "memset leaves out its last byte", face=_FillShort),
}

#: What the canary target plants when nothing else is asked for.
DEFAULT_DEFECT = "alignment-ignored"
