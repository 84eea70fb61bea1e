"""The mirror: `info mtree` text -> model, kept equal to a live QEMU.

The renderer never reads ``info mtree -f``; that text is compared with, and mined for what the
tree text cannot tell. It starts and stops no QEMU, and it makes no access.

============  ==============================================================================
``mirror``    Mirror: take, refresh, compare
``identity``  which lines of the text are the same region
``model``     the regions as objects that survive every change
``order``     siblings in QEMU's order, as far as it is known
``layers``    what lies over an address, and where a drawing differs from QEMU's
``infer``     learning from the flat views
``search``    choosing among explanations
``facts``     what was learnt, counted
``known``     what is known of QEMU's own regions by their names, counted apart
``likeness``  which printed line is which known region
``moves``     which regions were added anew
``touched``   which views a change can have touched
``watch``     whether a mirror is stale, from the transcript
``views``     the comparison of views
``changes``   what changed between two maps
``pairing``   which of QEMU's views belongs to which root
``effort``    what one look at a map may cost
``layout``    the views as programs see them
``shadow``    what hides what
============  ==============================================================================
"""

from qemuglue.mirror.facts import Inference
from qemuglue.mirror.identity import RegionKey
from qemuglue.mirror.mirror import Mirror, MirroredSpace, RefreshResult, Score
from qemuglue.mirror.views import RangeLine, ViewDifference, type_of
from qemuglue.mirror.watch import Watch

__all__ = [
    "Inference",
    "Mirror",
    "MirroredSpace",
    "RangeLine",
    "RefreshResult",
    "RegionKey",
    "Score",
    "ViewDifference",
    "Watch",
    "type_of",
]
