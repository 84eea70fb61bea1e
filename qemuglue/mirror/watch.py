"""Whether a mirror is stale, known at once and without asking QEMU.

QEMU writes ``flatview_new`` into the transcript whenever it draws a memory map again, before it
answers the command that changed it. So after any answer the transcript says whether the mirror
may still be believed, at the price of a search in text that is read anyway.

``flatview_new`` says that a map was drawn, not that it differs: a change under something that
hides it draws the same map again. A mirror is called stale then too; the refresh finds nothing
changed, which is cheap. The other way round there is one thing QEMU draws nothing for: a device
that goes away with its address space while all it ever mapped is unmapped. QMP tells of that
(``DEVICE_DELETED``).
"""

from __future__ import annotations

from collections.abc import Iterable

from qemuglue.mirror.mirror import Hmp, Mirror, RefreshResult
from qemuglue.qemu.events import Event, Kind

#: QMP events after which spaces or regions may be others. A reset is carried out later than it
#: is asked for, and its event comes before it is done with.
QMP_SIGNS = frozenset({"DEVICE_DELETED", "RESET"})

_SIGN = b"flatview_new "


class Watch:
    """Tells when ``mirror`` is stale and brings it up to date; starts as not stale.

    Give it everything the transcript says, as events or as text, and the names of QMP's events;
    each call returns whether the mirror is stale now. It stays so until ``refresh``.
    """

    def __init__(self, mirror: Mirror, hmp: Hmp) -> None:
        self.mirror = mirror
        self.stale = False
        #: Maps drawn since the last refresh, as far as the transcript was given.
        self.drawn = 0
        self._hmp = hmp

    def see(self, events: Iterable[Event]) -> bool:
        """Events of the transcript, in any portions."""
        self.drawn += sum(event.kind is Kind.FLATVIEW_NEW for event in events)
        self.stale |= self.drawn > 0
        return self.stale

    def see_text(self, text: bytes) -> bool:
        """The transcript's text, whole lines. No more than a search: a name that says
        ``flatview_new`` makes a mirror stale that is not, never the other way round."""
        self.drawn += text.count(_SIGN)
        self.stale |= self.drawn > 0
        return self.stale

    def hear(self, names: Iterable[str]) -> bool:
        """Names of QMP events."""
        self.stale |= not QMP_SIGNS.isdisjoint(names)
        return self.stale

    def refresh(self) -> RefreshResult | None:
        """Refresh the mirror if it is stale; None if it is not. Raises what ``Mirror.refresh``
        raises, and the mirror stays stale then."""
        if not self.stale:
            return None
        result = self.mirror.refresh(self._hmp)
        self.stale = False
        self.drawn = 0
        return result
