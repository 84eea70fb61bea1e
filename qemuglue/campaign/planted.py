"""Everything that can be planted to see whether it is found: by name, as ``--defect`` takes it."""

from __future__ import annotations

from qemuglue.campaign.defects import DEFAULT_DEFECT, DEFECTS, Defect
from qemuglue.campaign.faults import FAULTS, Fault
from qemuglue.campaign.map_defects import MAP_DEFECTS

__all__ = ["DEFAULT_DEFECT", "PLANTED"]

#: Defects of the model and of the mirror, and faults on the wire; all have a ``rule`` and a
#: ``summary``.
PLANTED: dict[str, Defect | Fault] = {**DEFECTS, **MAP_DEFECTS, **FAULTS}
