"""How QEMU's intel-iommu tells of faults: one recording register, and an event.

Source: ``vtd_report_frcd_fault`` and ``vtd_generate_fault_event`` in ``hw/i386/intel_iommu.c``.
The event's interrupt goes to the APIC directly and is no access to memory.
"""

from __future__ import annotations

from qemuglue.memory.region import MASK64
from qemuglue.witness.iommu import intel_registers as reg
from qemuglue.witness.iommu.tables import PAGE


def record(
    registers: reg.Registers, requester: int, addr: int, reason: int, is_write: bool, pasid: int
) -> None:
    """A translation failed. Faults of a requester whose last one is still recorded say nothing
    new; those of another overflow."""
    status, kept = registers.get(reg.FSTS, 4), registers.get(reg.FRCD + 8)
    if status & reg.PFO or (kept & reg.FRCD_F and kept & 0xFFFF == requester):
        return
    if kept & reg.FRCD_F:
        registers.change(reg.FSTS, 4, 0, reg.PFO)
        return
    high = requester | reason << 32 | pasid | (0 if is_write else 1 << 62)
    registers.put(reg.FRCD, 8, addr & -PAGE & MASK64)
    registers.put(reg.FRCD + 8, 8, high | reg.FRCD_F)
    pend(registers)
    if not status & reg.PPF:
        registers.change(reg.FSTS, 4, 0xFF00, 0)
        event(registers, status)


def pend(registers: reg.Registers) -> None:
    """Say whether a fault is recorded (``vtd_update_fsts_ppf``)."""
    pending = bool(registers.get(reg.FRCD + 8) & reg.FRCD_F)
    registers.change(reg.FSTS, 4, reg.PPF, reg.PPF * pending)


def event(registers: reg.Registers, before: int) -> None:
    """Raise the event, or keep it pending while it is masked; ``before`` is the status of before
    the fault: an older one that nobody looked at yet keeps new ones quiet."""
    if before & (reg.PPF | reg.PFO | reg.IQE):
        return
    if registers.get(reg.FECTL, 4) & reg.MASKED:
        registers.change(reg.FECTL, 4, 0, reg.PENDING)
