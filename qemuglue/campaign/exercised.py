"""What random accesses to a machine did not show, because too little on it behaves that way."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from qemuglue.memory.contract import Contract
from qemuglue.witness.face import PORT_READS, PORT_WRITES
from qemuglue.witness.fastmap import FastMap
from qemuglue.witness.session import Session, Step
from qemuglue.witness.verdict import Kind

#: ``memory_access_size`` and ``access_with_adjusted_size`` take a maximum of 0 as this.
DEFAULT_MAX = 4

#: A check that covers all of R3 wants a device whose callbacks are called several times for one.
UNSPLIT = (
    "no access reached a device that makes several calls of one (R3), so how they are put "
    "together was not exercised; plug such a device in, where there is PCI with "
    "--qemu-args \"-device pci-testdev\", or ask for more --ops"
)

_PORTS = PORT_READS.keys() | PORT_WRITES.keys()
_DEVICES = frozenset({Kind.DEVICE, Kind.PORT})


def splits(contract: Contract, size: int) -> bool:
    """Whether an aligned access of ``size`` bytes is accepted by its size and becomes several
    calls of the device."""
    size = min(size, contract.valid_max or DEFAULT_MAX)  # R6
    if contract.valid_max and size < contract.valid_min:
        return False
    return size > max(contract.impl_max or DEFAULT_MAX, contract.impl_min)


def split_accesses(session: Session, steps: Iterable[Step]) -> int:
    """How many of the sized, aligned accesses among ``steps`` a device splits, by the
    contracts that the session knows, on its present map."""
    found = 0
    for op, addr in steps:
        fast: FastMap | None = session.fast_io if op.verb in _PORTS else session.fast
        if fast is None or not 1 <= op.size <= 8 or addr % op.size:
            continue
        i = bisect_right(fast.starts, addr) - 1
        if fast.kinds[i] in _DEVICES and addr + op.size <= fast.limits[i]:
            found += splits(fast.sections[i].region.contract, op.size)
    return found
