"""The fuzz targets: what a campaign explores when nothing more is said.

A target is a name for a way of exploring plus defaults; every default can be replaced on the
command line. ``canary`` is ``access`` with one rule of the model wrong on purpose: a pipeline
that stays silent on it is broken. ``text`` and ``model`` have no machine: they need no QEMU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qemuglue.campaign.defects import DEFAULT_DEFECT
from qemuglue.errors import UsageError

#: The disk that devices may name.
DISK_NODE = "disk"
DISK = ("-blockdev", f"null-co,node-name={DISK_NODE},size=1048576,read-zeroes=on")


def disk_for(devices: Sequence[str], qemu_args: Sequence[str] = ()) -> tuple[str, ...]:
    """The disk, where a device names it and ``qemu_args`` do not make it."""
    wanted = any(f"drive={DISK_NODE}" in each.split(",") for each in devices)
    there = any(f"node-name={DISK_NODE}" in word.split(",") for word in qemu_args)
    return DISK if wanted and not there else ()


@dataclass(frozen=True, slots=True)
class Target:
    """``machine`` is "" where no QEMU is needed; ``setup`` is one of ``program.verbs.SETUPS``;
    ``defect`` a name of ``planted.PLANTED`` or "" for none. ``draws`` is how programs are made
    (``drawing.WAYS``), ``operations`` what they need in length;
    ``mode`` is the VM's, on machines that are known to take it (``qemu.parked.PARKED``)."""

    name: str
    help: str
    machine: str = "x86_64/q35"
    devices: tuple[str, ...] = ()
    setup: str = "pci"
    defect: str = ""
    draws: str = "access"
    operations: int = 64
    mode: str = "stopped"

    @property
    def qemu_args(self) -> tuple[str, ...]:
        """What its devices need of QEMU's command line."""
        return disk_for(self.devices)


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("access", "host-path accesses to a machine, each judged against the model",
               devices=("edu", "pci-testdev")),
        Target("topology", "the memory map changes all the time; accesses to what moved, and the "
               "whole map compared after each program",
               devices=("edu", "pci-testdev", "VGA", "pcie-root-port,id=below",
                        "pci-testdev,bus=below"), draws="topology"),
        Target("dma", "devices are told to read and write guest RAM by themselves, as drivers do",
               devices=("edu", "virtio-rng-pci", f"virtio-blk-pci,drive={DISK_NODE}", "e1000e"),
               setup="dma", draws="dma", operations=128, mode="parked"),
        Target("device", "one device: all its regions, its configuration space, its DMA "
               "(--device NAME; without it the seed chooses one)",
               setup="dma", draws="device"),
        Target("model", "the model by itself against naive oracles: maps, accesses, changes, RCU",
               machine=""),
        Target("text", "what QEMU says, damaged: every parser gives a value or one sentence",
               machine=""),
        Target("canary", "access with one rule of the model wrong on purpose; must be found",
               devices=("edu", "pci-testdev"), defect=DEFAULT_DEFECT),
    )
}

DEFAULT_TARGET = "access"


def find_target(name: str) -> Target:
    """The target of that name.

    :raise UsageError: there is none; the message lists those there are.
    """
    try:
        return TARGETS[name]
    except KeyError:
        raise UsageError(f"no target {name!r}; there are {', '.join(TARGETS)}") from None
