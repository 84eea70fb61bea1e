"""The memory map as a witness: the mirror against QEMU's own flat views, as a whole.

Between operations the lock step judges each access by the mirror's views, so a wrong view shows
where it is looked at. Here all of it is compared, range by range, with ``info mtree -f``; a
difference is a divergence of its own (``divergence:map:…``).
"""

from __future__ import annotations

from collections.abc import Sequence

from qemuglue.mirror.views import ViewDifference
from qemuglue.qemu.events import Kind as EventKind
from qemuglue.qemu.mtree import FLAT_COMMAND
from qemuglue.witness.judging import Suspicion
from qemuglue.witness.session import Session, Step
from qemuglue.witness.verdict import Kind

#: Lines of each side that a finding shows.
MAX_LINES = 8


def check_map(session: Session) -> Suspicion | None:
    """Compare every view once QEMU has come to rest. A map that changed since the last look is
    taken over first, as after any operation; a machine whose mirror was not exact from the
    beginning is left alone, since that was told at its start.

    :raise QemuFailure: QEMU died or hangs.
    """
    if not session.map_exact:
        return None
    if "RESET" in session.quiesce() or any(
        event.kind is EventKind.FLATVIEW_NEW for event in session.events()
    ):
        session.refresh()
    session.maps["compared"] += 1
    found = session.mirror.compare(session.process.monitor.hmp(FLAT_COMMAND))
    return map_suspicion(found) if found else None


def map_suspicion(
    found: Sequence[ViewDifference], index: int | None = None, step: Step | None = None,
) -> Suspicion:
    """What differs, as a suspicion; of one step where it is known which."""
    ranges = [each for each in found if each.model or each.qemu]
    first = (ranges or list(found))[0]
    side = first.model or first.qemu
    return Suspicion(
        index, step, Kind.PORT if first.space == "I/O" else Kind.DEVICE, "map",
        tuple(f"{each.space}: {each.model or each.what or 'nothing'}"
              for each in found[:MAX_LINES]),
        tuple(f"{each.space}: {each.qemu or 'nothing'}" for each in found[:MAX_LINES]),
        side.name if side is not None else "",
    )
