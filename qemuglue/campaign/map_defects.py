"""Planted defects of the mirror: the map is followed wrongly when it changes.

An access shows them only where it meets the part of the map that is wrong; the target
``topology``, which compares the whole map, must find each.
"""

from __future__ import annotations

from qemuglue.campaign.defects import Defect
from qemuglue.memory import MemoryRegion
from qemuglue.mirror import Mirror
from qemuglue.mirror.touched import Look, looks

#: Places in a region's look (``mirror/touched.py``): its address, whether it is enabled, its
#: subregions.
_ADDR, _ENABLED, _SUBREGIONS = 0, 2, 11


class _Unseen(Mirror):
    """What differs in one point only is not drawn again."""

    POINT = _ADDR

    def _show(self) -> None:
        for region, look in looks(self._model.regions).items():
            old = self._looks.get(region)
            if old is not None and self._alike(old, look):
                self._looks[region] = look
        super()._show()

    def _alike(self, old: Look, new: Look) -> bool:
        skipped = (self.POINT, _SUBREGIONS)
        same = all(a == b for at, (a, b) in enumerate(zip(old, new, strict=True))
                   if at not in skipped)
        return same and _children(old) == _children(new)


class _SwitchesUnseen(_Unseen):
    POINT = _ENABLED


def _children(look: Look) -> set[MemoryRegion]:
    """Which they are; their order changes when one is moved."""
    found = look[_SUBREGIONS]
    assert isinstance(found, tuple), "the subregions are the last of a look"
    return set(found)


#: By name, as ``--defect`` takes it.
MAP_DEFECTS: dict[str, Defect] = {
    "moves-unseen": Defect("map", "a region that only moves is drawn where it was",
                           mirror=_Unseen),
    "switches-unseen": Defect("map", "a region that is switched on or off is drawn as before",
                              mirror=_SwitchesUnseen),
}
