"""What is known to be odd in QEMU and is not reported again, each with its reason.

``AVOIDED``: regions that are not touched at all, because QEMU dies there for a reason that only
qtest can reach. Operations on them are unjudged and counted, so nothing is hidden.
"""

from __future__ import annotations

_NO_CPU = (
    "QEMU dereferences the CPU that does the access, and an access by qtest has none "
    "(only reachable from qtest)"
)

#: Region name -> reason.
AVOIDED = {
    "vmport": _NO_CPU,
    "kvmvapic": _NO_CPU,
}
