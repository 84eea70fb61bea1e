"""The fuzz targets: what a campaign explores when nothing more is said.

A target is a name for a way of exploring plus defaults; every default can be replaced on the
command line. ``canary`` is ``access`` with one rule of the model wrong on purpose: a pipeline
that stays silent on it is broken. ``text`` has no machine: it needs no QEMU, only its words.
"""

from __future__ import annotations

from dataclasses import dataclass

from qemuglue.campaign.defects import DEFAULT_DEFECT
from qemuglue.errors import UsageError


@dataclass(frozen=True, slots=True)
class Target:
    """``machine`` is "" where no QEMU is needed; ``setup`` is one of ``program.verbs.SETUPS``;
    ``defect`` a name of ``defects.DEFECTS`` or "" for none."""

    name: str
    help: str
    machine: str = "x86_64/q35"
    devices: tuple[str, ...] = ()
    setup: str = "pci"
    defect: str = ""


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("access", "host-path accesses to a machine, each judged against the model",
               devices=("edu", "pci-testdev")),
        Target("canary", "the same with one rule of the model wrong on purpose; must be found",
               devices=("edu", "pci-testdev"), defect=DEFAULT_DEFECT),
        Target("text", "what QEMU says, damaged: every parser gives a value or one sentence",
               machine=""),
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
