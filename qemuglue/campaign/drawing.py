"""How a target's programs are drawn: ordinary accesses, or what its recipes make.

A :class:`Drawing` belongs to one machine: it is made of a running session, since only QEMU can
tell which PCI functions there are and which regions are a device's. The same settings, layout and
random numbers draw the same programs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

from qemuglue.campaign.devices import DEVICE_ID
from qemuglue.campaign.targets import find_target
from qemuglue.errors import QemuFailure
from qemuglue.program.generate import DEFAULT_WEIGHTS, Generator, Weights, swarm
from qemuglue.program.layout import Layout
from qemuglue.program.operation import Operation
from qemuglue.program.recipes import RECIPES
from qemuglue.program.recipes.focus import Focus, Focused
from qemuglue.program.recipes.fw_cfg import FwCfgRecipe
from qemuglue.program.recipes.mix import Mix, Share, Wild
from qemuglue.program.recipes.pci import Function, functions_of
from qemuglue.program.recipes.topology import Topology
from qemuglue.program.verbs import IO, MEMORY
from qemuglue.witness.session import Session

#: Share of a program that recipes make, for the targets that have them. A device's own registers
#: matter more than its DMA, and some take a tenth of a second for one.
DMA_SHARE, DEVICE_SHARE = 0.6, 0.15


class Plain:
    """Ordinary accesses anywhere: the targets ``access`` and ``canary``."""

    def __init__(self, layout: Layout, generator: Generator | None = None) -> None:
        self._layout = layout
        self._generator = generator or Generator(layout)

    def operations(self, rng: Random, n: int) -> tuple[Operation, ...]:
        return self._generator.operations(rng, n)

    def wild(self, rng: Random) -> Plain:
        return Plain(self._layout, Generator(self._layout, wild_weights(rng)))


#: Of the wild mixes, so many in a hundred keep devices in; what they answer is what is tested.
DEVICES_KEPT = 80


def wild_weights(rng: Random) -> Weights:
    """Wild weights, most of them with as many accesses to devices as to all other kinds: half
    of all draws would leave devices out."""
    weights = swarm(rng, DEFAULT_WEIGHTS)
    if rng.randrange(100) >= DEVICES_KEPT:
        return weights
    kinds = dict(weights.kinds)
    kinds["device"] = 0.0
    kinds["device"] = sum(kinds.values()) or 1.0
    return replace(weights, kinds=kinds)


def drawing(target: str, session: Session, layout: Layout) -> Wild:
    """What the target's programs are drawn from, on the machine that ``session`` runs."""
    return WAYS[find_target(target).draws](session, layout)


def _access(session: Session, layout: Layout) -> Wild:
    return Plain(layout)


def _topology(session: Session, layout: Layout) -> Wild:
    return Topology(layout, _functions(session), session.config.full_name)


def _dma(session: Session, layout: Layout) -> Wild:
    return Mix(layout, [Share(each) for each in RECIPES], share=DMA_SHARE)


def _device(session: Session, layout: Layout) -> Wild:
    """Its recipes are those that fit this machine: the other devices have none but fw_cfg."""
    focus = focus_of(session, DEVICE_ID, _functions(session))
    recipes = [Share(each) for each in RECIPES if not isinstance(each, FwCfgRecipe)]
    return Mix(layout, recipes, share=DEVICE_SHARE, ordinary=Focused(layout, focus))


#: By ``Target.draws``.
WAYS: dict[str, Callable[[Session, Layout], Wild]] = {
    "access": _access, "topology": _topology, "dma": _dma, "device": _device,
}


def _functions(session: Session) -> tuple[Function, ...]:
    """QMP's account of PCI; a machine without PCI refuses, and has none."""
    try:
        return functions_of(session.process.monitor.execute("query-pci"))
    except QemuFailure:
        return ()


def focus_of(session: Session, name: str, functions: tuple[Function, ...] = ()) -> Focus:
    """What belongs to the device of that id: regions it owns, or that something in it owns."""
    starts: set[tuple[str, int]] = set()
    mirror = session.mirror
    for space, views in ((MEMORY, mirror.memory), (IO, mirror.io)):
        for section in views.view.sections if views is not None else ():
            key = section.region.key
            if key is not None and owned(key.owner, name):
                starts.add((space, section.start))
    function = next((each for each in functions if each.qdev == name), None)
    return Focus(frozenset(starts), function)


def owned(owner: str, name: str) -> bool:
    """Whether an owner, as QEMU prints it, is the device of that id or a part of it."""
    paths = (f"id={name}", f"/machine/peripheral/{name}")
    return any(owner == path or owner.startswith(f"{path}/") for path in paths)
