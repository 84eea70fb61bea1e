"""What is known to be odd in QEMU and is not reported again, each with its reason.

``ROM_DEVICE_END``: a sized read that runs over the end of a ROM device in ROMD mode copies
beyond the device's memory and ends QEMU with SIGSEGV (seen on aarch64/virt and arm/versatilepb
with 7.2.22, 10.0.2 and 11.1.3: ``readl virt.flash0+0x3fffffd``). Byte strings do not.

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

#: Why a sized read over the end of a ROM device is not sent.
ROM_DEVICE_END = (
    "a sized read over the end of a ROM device in ROMD mode ends QEMU (SIGSEGV on all versions)"
)
