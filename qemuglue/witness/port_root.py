"""What answers where no port is."""

from __future__ import annotations

from qemuglue.memory.attrs import MemTxAttrs
from qemuglue.memory.region import MemoryRegion
from qemuglue.memory.rules import Rules
from qemuglue.witness.evidence import Evidence


class IoRootOps:
    """The root of the I/O space: its pieces must be in the transcript like any device's, but
    what it returns is a rule (R11), so the value is the model's own."""

    def __init__(self, evidence: Evidence, rules: Rules) -> None:
        self._evidence = evidence
        self._rules = rules

    def read(
        self, region: MemoryRegion, offset: int, size: int, attrs: MemTxAttrs
    ) -> tuple[int, int]:
        result, _ = self._evidence.read(region, offset, size, attrs)
        return result, self._rules.port_root_value(size)

    def write(
        self, region: MemoryRegion, offset: int, value: int, size: int, attrs: MemTxAttrs
    ) -> int:
        return self._evidence.write(region, offset, value, size, attrs)
