"""Everything that can be planted to see whether it is found: by name, as ``--defect`` takes it."""

from __future__ import annotations

from qemuglue.campaign.defects import DEFAULT_DEFECT, DEFECTS, Defect
from qemuglue.campaign.faults import FAULTS, Fault

__all__ = ["DEFAULT_DEFECT", "PLANTED"]

#: Defects of the model and faults on the wire; both have a ``rule`` and a ``summary``.
PLANTED: dict[str, Defect | Fault] = {**DEFECTS, **FAULTS}
