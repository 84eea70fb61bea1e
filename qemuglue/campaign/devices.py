"""The device that the target ``device`` is about: chosen by name, or by the seed."""

from __future__ import annotations

from random import Random

from qemuglue.errors import UsageError
from qemuglue.qemu.builds import Build
from qemuglue.qemu.builds_devices import Device, device_list

#: The id that the target ``device`` gives its device.
DEVICE_ID = "fuzzed"

#: Devices whose DMA is decoded, by the beginnings of their names: only they may master the bus.
#: What another one did to RAM by itself could not be judged.
MASTERS = ("edu", "e1000e", "virtio-blk-", "virtio-rng-")

#: Those of them that act when the guest's clock has moved on.
CLOCKED = ("edu", "virtio-rng-")

#: What the seed chooses among, where the build has it: PCI devices that need nothing else.
CHOICE = (
    "edu", "pci-testdev", "e1000", "e1000e", "igb", "rtl8139", "pcnet", "ne2k_pci", "vmxnet3",
    "i82550", "tulip", "virtio-rng-pci", "virtio-net-pci", "virtio-balloon-pci",
    "virtio-keyboard-pci", "virtio-gpu-pci", "virtio-scsi-pci", "VGA", "bochs-display",
    "cirrus-vga", "qemu-xhci", "nec-usb-xhci", "usb-ehci", "piix3-usb-uhci", "pci-ohci", "AC97",
    "ES1370", "intel-hda", "ich9-ahci", "lsi53c895a", "megasas", "am53c974", "sdhci-pci",
    "pci-serial",
)
#: Names of devices that a sentence lists at most.
SHOWN = 12


def with_id(device: str) -> str:
    """``-device``'s value with the id by which the device's regions are found.

    :raise UsageError: it has an id of its own.
    """
    words = device.split(",")
    given = [word for word in words[1:] if word.startswith("id=")]
    if given and given != [f"id={DEVICE_ID}"]:
        raise UsageError(f"the target device gives its device the id {DEVICE_ID!r}; leave out "
                         f"{given[0]!r}")
    return device if given else f"{device},id={DEVICE_ID}"


def choose(build: Build, target: str, seed: int) -> str:
    """A device of ``CHOICE`` that this build has.

    :raise UsageError: it has none of them.
    """
    there = {device.name for device in device_list(build, target)}
    names = [name for name in CHOICE if name in there]
    if not names:
        raise UsageError(f"build {build.name} has none of the devices that are chosen among; "
                         "name one with --device")
    return Random(seed).choice(names)


def check(build: Build, target: str, device: str) -> Device:
    """What the build says of a device.

    :raise UsageError: it has none of that name; the sentence lists those that are near.
    """
    name = device.split(",")[0]
    known = device_list(build, target)
    for each in known:
        if each.name == name:
            return each
    near = [each.name for each in known if name.lower()[:3] in each.name.lower()]
    names = ", ".join((near or [each.name for each in known if each.name in CHOICE])[:SHOWN])
    raise UsageError(
        f"build {build.name} has no device {name!r} for {target}; there are {len(known)}, among "
        f"them {names or 'none that is near'} (`qemuglue targets --devices` lists all)"
    )
