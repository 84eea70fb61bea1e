"""Where a face is meant to answer otherwise than QEMU's own C functions would: by name.

``check --face`` counts such an operation apart, as "by design", and tells which. Everything here is
documented by the face's own module; nothing else may differ.
"""

from __future__ import annotations

#: ``cut-by-qtest`` is the live machine's, not a face's: such an operation is not judged.
#: Name -> what the face does, and what QEMU does with the same request.
DESIGNS: dict[str, str] = {
    "one-region": (
        "what does not lie in one region is refused, or ends with the region; "
        "address_space_rw goes on in the next"
    ),
    "aligned-only": (
        "a value at an address that is no multiple of its size is refused; "
        "address_space_rw moves it"
    ),
    "atomic-only": (
        "what cannot be one access all the way (a device whose contract cuts it, memory of another "
        "process) is refused; address_space_ldl makes it in several"
    ),
    "one-access": (
        "1, 2, 4 or 8 bytes of a device are one access, which it refuses; address_space_rw cuts "
        "them as the device likes"
    ),
    "first-error-ends": (
        "the first error ends it, and what was moved before is told; address_space_rw goes on "
        "behind it"
    ),
    "rom-device-end": (
        "one access over the end of a ROM device is refused; QEMU reads beyond that memory"
    ),
    "no-wrap": "bytes beyond 2^64-1 are refused; address_space_rw goes on at 0",
    "host-elsewhere": (
        "there is no pointer to memory that only QEMU's process has; gpa2hva knows one there"
    ),
    "cut-by-qtest": (
        "what was to be one access of a device was not made, since qtest would cut it "
        "(cut-by-qtest)"
    ),
}
