"""What some QEMUs cannot be asked on some machines."""

from __future__ import annotations

from qemuglue.qemu.config import QemuConfig

#: Boards with a ds1225y NVRAM. ``nvram_sysbus_realize`` (hw/nvram/ds1225y.c) gives the chip's
#: region ``OBJECT(s)`` for its owner, and ``s`` is no object but a part of one. To print the
#: owner QEMU follows pointers out of it (``object_get_canonical_path``) and never comes back:
#: seen on 7.2.22 and 10.0.2. In 11.1.3 the owner is the device.
_WILD_OWNER_MACHINES = frozenset({"magnum", "pica61"})
_WILD_OWNER_FIXED = (11,)


def prints_owners(config: QemuConfig) -> bool:
    """Whether ``info mtree -o`` comes to an end on this machine."""
    return config.owners and not (
        config.machine in _WILD_OWNER_MACHINES
        and config.build.version_tuple < _WILD_OWNER_FIXED
    )
