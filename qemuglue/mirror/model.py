"""The regions of one machine as model objects, kept through every change of its tree.

A region that is printed again is the same MemoryRegion object again, whatever moved, so that
evidence tied to it (a contract, a pointer of the trace) survives. One that is not printed any
more (a BAR that is not mapped) is kept aside and comes back as itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count, pairwise

from qemuglue.errors import ProtocolError
from qemuglue.memory import Contract, MemoryRegion, RegionKind
from qemuglue.memory.contract import UNASSIGNED_CONTRACT
from qemuglue.mirror.facts import Facts, Inference, Kin, Pair, at, does
from qemuglue.mirror.identity import MAX_ALIAS_CHAIN, Identity, RegionKey, Spec
from qemuglue.mirror.known import KNOWN_ANSWERS, KNOWN_READONLY
from qemuglue.mirror.likeness import LIKENESS, MAX_COMPARED, fits, in_order
from qemuglue.mirror.moves import guess, in_turn, is_moved, overtaking, rebuilt
from qemuglue.mirror.order import arrange
from qemuglue.qemu.mtree import TREE_COMMAND

#: Regions out of sight that are remembered; beyond it those away longest are forgotten.
MAX_ASIDE = 20_000

_KINDS = {
    "ram": RegionKind.RAM, "rom": RegionKind.ROM, "romd": RegionKind.ROM_DEVICE,
    "ramd": RegionKind.RAM_DEVICE,
}
_RAM = frozenset({RegionKind.RAM, RegionKind.ROM, RegionKind.RAM_DEVICE})
#: (space, root): whether that root answers itself. Every machine has these two, made by
#: ``memory_map_init``.
_ROOTS = {("I/O", "io"): True, ("memory", "system"): False}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What inference changes: facts, and the order of every container's children."""

    facts: Facts
    orders: dict[MemoryRegion, tuple[MemoryRegion, ...]]


class Model:
    """Regions, their tree, and the facts the text does not tell."""

    def __init__(self) -> None:
        self.facts = Facts()
        #: Regions that print as ``container`` instead of ``i/o``.
        self.labels: frozenset[MemoryRegion] = frozenset()
        #: (name, root) of every address space, in print order; None: it has no root.
        self.spaces: tuple[tuple[str, MemoryRegion | None], ...] = ()
        #: Every region in sight, containers before their children.
        self.regions: tuple[MemoryRegion, ...] = ()
        #: Targets an alias may have, where its name leaves a doubt; likeliest first.
        self.options: dict[MemoryRegion, tuple[MemoryRegion, ...]] = {}
        #: Children of a container in the order QEMU prints them.
        self.printed: dict[MemoryRegion, tuple[MemoryRegion, ...]] = {}
        #: The line each region was last printed on.
        self.lines: dict[MemoryRegion, int] = {}
        #: Regions that a right view has shown: they answer for themselves.
        self.shown: set[MemoryRegion] = set()
        #: Whether what is known of QEMU's own devices by name is used (``known``).
        self.knows = False
        #: Whether a region answers itself as far as the text tells; facts come on top.
        self._defaults: dict[MemoryRegion, bool] = {}
        self._known: defaultdict[tuple[str, str], list[MemoryRegion]] = defaultdict(list)

    # -- from the text -----------------------------------------------------------------

    def update(self, identity: Identity) -> None:
        """Bring every region to what the text says. Raises ProtocolError if that is no tree
        of regions. Facts about what is still there are kept."""
        matched = self._match(identity.regions)
        specs = _in_alias_order(identity.regions)
        indexes = self._indexes([spec for spec in identity.regions if spec not in matched])
        for spec in specs:
            if spec not in matched:
                matched[spec] = self._create(spec, matched, indexes[spec])
        before = set(self.regions)
        moved = {
            matched[spec] for spec in identity.regions
            if matched[spec] not in before or is_moved(spec, matched)
        }
        moved |= overtaking(identity.regions, matched, self.printed, moved)
        if self.knows:
            moved |= rebuilt(matched, before, moved)
        self._forget_pairs(moved)
        for spec in identity.regions:
            self._set(spec, matched)
        self.lines = {matched[spec]: spec.line for spec in identity.regions}
        self._set_roots(identity, matched)
        self._place(identity, matched, moved, before)
        self.regions = tuple(matched[spec] for spec in identity.regions)
        self.labels = frozenset(
            matched[spec] for spec in identity.regions if spec.node.type == "container"
        )
        self.spaces = tuple(
            (name, None if root is None else matched[root]) for name, root in identity.spaces
        )
        self._forget(before)

    def _match(self, specs: Sequence[Spec]) -> dict[Spec, MemoryRegion]:
        """Regions that are known already. Among equals the one that changed least is taken."""
        matched: dict[Spec, MemoryRegion] = {}
        if not self._known:
            return matched
        groups: defaultdict[tuple[str, str], list[Spec]] = defaultdict(list)
        for spec in specs:
            groups[spec.node.owner.path, spec.name].append(spec)
        for name, group in groups.items():
            known = self._known.get(name)
            if known is None:
                continue
            if len(group) == len(known) == 1:
                if fits(group[0], known[0]):
                    matched[group[0]] = known[0]
                continue
            free = dict.fromkeys(sorted(known, key=lambda region: region.container is None))
            if len(group) * len(free) > MAX_COMPARED:
                matched.update(in_order(group, free))
                continue
            for likeness in LIKENESS:
                for spec in group:
                    if spec in matched:
                        continue
                    found = next((r for r in free if likeness(spec, r, matched)), None)
                    if found is not None:
                        matched[spec] = found
                        del free[found]
        return matched

    def _indexes(self, fresh: Sequence[Spec]) -> dict[Spec, int]:
        """Numbers for regions that are new, by what they are and not by where QEMU prints them:
        address spaces, and with them the regions below, come in another order in every run."""
        groups: defaultdict[tuple[str, str], list[Spec]] = defaultdict(list)
        for spec in fresh:
            groups[spec.node.owner.path, spec.name].append(spec)
        indexes: dict[Spec, int] = {}
        for name, group in groups.items():
            taken = {other.key.index for other in self._known.get(name, ())}
            free = (n for n in count() if n not in taken)
            indexes.update((spec, next(free)) for spec in sorted(group, key=_nature))
        return indexes

    def _create(self, spec: Spec, matched: dict[Spec, MemoryRegion], index: int) -> MemoryRegion:
        node = spec.node
        owner = node.owner.path if node.owner.device else None
        if spec.target is not None:
            region = MemoryRegion.alias_of(
                spec.name, matched[spec.target], node.target_offset, node.size, owner=owner
            )
        else:
            region = MemoryRegion(
                spec.name, node.size, RegionKind.CONTAINER, owner=owner, contract=Contract()
            )
        region.key = RegionKey(node.owner.path, spec.name, index)
        self._known[node.owner.path, spec.name].append(region)
        return region

    def _set(self, spec: Spec, matched: dict[Spec, MemoryRegion]) -> None:
        """Everything but the place in the tree."""
        region, node = matched[spec], spec.node
        region.size = 0 if node.size == 1 and self._is_empty(region) else node.size
        region.nonvolatile = node.nonvolatile
        region.enabled = node.enabled
        if spec.target is not None:
            region.alias_offset = node.target_offset
            self.options.pop(region, None)
            target = matched[spec.target]
            if spec.options:
                self.options[region] = tuple(matched[option] for option in spec.options)
                target = self.facts.aliases.get(region, target)
            region.alias = target
            self._set_readonly(region)
        else:
            # Once with children, a container stays one when it is empty again.
            childless = not spec.children and self._defaults.get(region, True)
            self._defaults[region] = childless or region in self.shown
            self._set_type(region, node.type)
        if spec.parent is None:
            region.priority = node.priority

    def _set_type(self, region: MemoryRegion, kind: str) -> None:
        device = kind in ("i/o", "container")
        if device and region.kind is RegionKind.ROM_DEVICE:
            # A ROM device out of ROMD mode prints as a device.
            region.romd = False
            return
        region.kind = RegionKind.CONTAINER if device else _KINDS[kind]
        if region.kind in (RegionKind.RAM, RegionKind.ROM):
            region.contract = UNASSIGNED_CONTRACT
        region.is_ram = region.kind in _RAM
        region.romd = region.kind is RegionKind.ROM_DEVICE
        self._set_readonly(region)
        if device:
            self._set_terminates(region)
        else:
            region.terminates = True

    def _set_terminates(self, region: MemoryRegion) -> None:
        region.terminates = self.facts.terminates.get(region, self._default_answers(region))
        region.kind = RegionKind.IO if region.terminates else RegionKind.CONTAINER

    def _default_answers(self, region: MemoryRegion) -> bool:
        if self.knows and region not in self.shown:
            return KNOWN_ANSWERS.get(region.name, self._defaults[region])
        return self._defaults[region]

    def _set_roots(self, identity: Identity, matched: dict[Spec, MemoryRegion]) -> None:
        """The roots of which every machine says the same."""
        for name, root in identity.spaces:
            if root is not None and root.target is None and (name, root.name) in _ROOTS:
                region = matched[root]
                self._defaults[region] = _ROOTS[name, root.name]
                self._set_type(region, root.node.type)

    def _place(
        self, identity: Identity, matched: dict[Spec, MemoryRegion], moved: set[MemoryRegion],
        before: set[MemoryRegion],
    ) -> None:
        """Put the tree together: what moved or is new is the newest of its priority
        (``memory_region_readd_subregion``), everything else keeps its order."""
        addresses = {matched[s]: (s.node.addr, s.node.priority) for s in identity.regions}
        wanted: list[tuple[MemoryRegion, list[MemoryRegion]]] = []
        printed: dict[MemoryRegion, tuple[MemoryRegion, ...]] = {}
        for spec in identity.regions:
            container = matched[spec]
            children = tuple(matched[child] for child in spec.children)
            if children:
                printed[container] = children
            old = container.subregions
            inside = set(children)
            if children == self.printed.get(container, ()) and moved.isdisjoint(inside):
                continue
            fresh = guess([c for c in children if c in moved], addresses)
            if self.knows:
                fresh = in_turn(fresh)
            kept = [c for c in old if c in inside and c not in moved]
            wanted.append((container, fresh + kept))
        for region in before:
            if region not in addresses:
                wanted.append((region, []))
        self.printed = printed
        for container, _ in wanted:
            for child in container.subregions:
                container.del_subregion(child)
        for spec in identity.regions:
            if spec.parent is None:
                matched[spec].addr = spec.node.addr
        for container, children_in_order in wanted:
            pairs = self._hard_pairs(container, addresses) | self.facts.pairs.get(container, set())
            order = arrange(children_in_order, lambda c: addresses[c][1], pairs)
            if order is None:
                # What was learnt contradicts the text by now: the text is right.
                self.facts.pairs.pop(container, None)
                pairs = self._hard_pairs(container, addresses)
                order = arrange(children_in_order, lambda c: addresses[c][1], pairs)
                assert order is not None, "print order contradicts itself"
            for child in reversed(order):
                container.add_subregion_overlap(addresses[child][0], child, addresses[child][1])

    def _hard_pairs(
        self, container: MemoryRegion, addresses: dict[MemoryRegion, tuple[int, int]]
    ) -> set[Pair]:
        """Neighbours that print in their true order: same address, same priority."""
        printed = self.printed.get(container, ())
        return {
            (one, other) for one, other in pairwise(printed)
            if addresses[one] == addresses[other]
        }

    def _forget_pairs(self, moved: set[MemoryRegion]) -> None:
        for container, pairs in list(self.facts.pairs.items()):
            pairs -= {pair for pair in pairs if not moved.isdisjoint(pair)}
            if not pairs:
                del self.facts.pairs[container]

    def _forget(self, before: set[MemoryRegion]) -> None:
        """Bound what is remembered of regions out of sight."""
        here = set(self.regions)
        aside = [r for group in self._known.values() for r in group if r not in here]
        for region in aside[: max(0, len(aside) - MAX_ASIDE)]:
            self._known[region.key.owner, region.key.name].remove(region)
            self._defaults.pop(region, None)
            self.facts.terminates.pop(region, None)
            self.facts.readonly.pop(region, None)

    # -- facts ---------------------------------------------------------------------------

    def known_order(self, one: MemoryRegion, other: MemoryRegion) -> int | None:
        """-1 if the text says that ``one`` lies over its sibling ``other``, 1 for the other way
        round, None if it does not say."""
        if one.priority != other.priority:
            return -1 if one.priority > other.priority else 1
        if one.addr != other.addr or one.container is None:
            return None
        for region in self.printed[one.container]:
            if region is one:
                return -1
            if region is other:
                return 1
        raise AssertionError("no siblings")

    def add_pair(self, first: MemoryRegion, second: MemoryRegion) -> bool:
        """Learn that ``first`` lies over ``second``; False if that contradicts what is known."""
        container = first.container
        assert container is not None and container is second.container, "no siblings"
        pairs = self.facts.pairs.setdefault(container, set())
        if (first, second) in pairs:
            return False
        pairs.add((first, second))
        if self._arrange(container):
            return True
        pairs.discard((first, second))
        return False

    def _arrange(self, container: MemoryRegion) -> bool:
        children = container.subregions
        addresses = {child: (child.addr, child.priority) for child in children}
        pairs = self._hard_pairs(container, addresses) | self.facts.pairs.get(container, set())
        order = arrange(children, lambda child: child.priority, pairs)
        if order is None:
            return False
        _reorder(container, order)
        return True

    def set_terminates(self, region: MemoryRegion, value: bool) -> None:
        """Learn whether a region answers itself. Only of ``i/o`` regions, the others do."""
        assert not region.is_ram and region.alias is None, f"{region!r} is sure"
        if value == self._default_answers(region):
            self.facts.terminates.pop(region, None)
        else:
            self.facts.terminates[region] = value
        self._set_terminates(region)

    def set_readonly(self, region: MemoryRegion, value: bool) -> None:
        """Learn whether a region is read-only. Its kin, made alike, are taken to be the same
        until they show otherwise: what one PAM window tells holds for all thirteen."""
        if value == self._default_readonly(region):
            self.facts.readonly.pop(region, None)
        else:
            self.facts.readonly[region] = value
            self.facts.kin.setdefault(_kin(region), value)
        for other in self.regions:
            self._set_readonly(other)

    def _set_readonly(self, region: MemoryRegion) -> None:
        value = self.facts.readonly.get(region)
        region.readonly = self._default_readonly(region) if value is None else value

    def _default_readonly(self, region: MemoryRegion) -> bool:
        if region.alias is not None:
            default = self.knows and region.name in KNOWN_READONLY
            return self.facts.kin.get(_kin(region), default) if self.facts.kin else default
        return region.kind is RegionKind.ROM

    def set_empty(self, region: MemoryRegion, empty: bool) -> None:
        """Learn that a region of which the text says 1 byte has none, or one after all."""
        if empty == _default_empty(region):
            self.facts.empty.pop(region, None)
        else:
            self.facts.empty[region] = empty
        region.size = 0 if empty else 1

    def _is_empty(self, region: MemoryRegion) -> bool:
        return self.facts.empty.get(region, _default_empty(region))

    def set_unmergeable(self, region: MemoryRegion) -> None:
        self.facts.unmergeable.add(region)
        region.unmergeable = True

    def set_target(self, alias: MemoryRegion, target: MemoryRegion) -> None:
        """Learn which of its ``options`` an alias shows."""
        options = self.options[alias]
        assert target in options, f"{target!r} is no option of {alias!r}"
        if target is options[0]:
            self.facts.aliases.pop(alias, None)
        else:
            self.facts.aliases[alias] = target
        alias.alias = target

    def use_known(self) -> bool:
        """From now on take what is known by name for granted; whether that changed a region."""
        self.knows = True
        before = [(region.terminates, region.readonly) for region in self.regions]
        for region in self.regions:
            self._set_known(region)
        return before != [(region.terminates, region.readonly) for region in self.regions]

    def _set_known(self, region: MemoryRegion) -> None:
        if region.alias is None and region.kind in (RegionKind.IO, RegionKind.CONTAINER):
            self._set_terminates(region)
        self._set_readonly(region)

    def known(self) -> Inference:
        """What is taken for granted by name and the text alone would not have told."""
        facts: list[str] = []
        for region in self.regions:
            if region.alias is not None:
                if self.knows and region.name in KNOWN_READONLY and region.readonly:
                    facts.append(f"{at(region)} is read-only")
            elif self.knows and region.kind in (RegionKind.IO, RegionKind.CONTAINER):
                answers = KNOWN_ANSWERS.get(region.name)
                if answers is region.terminates and answers == bool(region.subregions):
                    facts.append(f"{at(region)} {does(answers)} for itself")
        return Inference(bits=len(facts), facts=tuple(facts))

    def snapshot(self) -> Snapshot:
        """The facts and the orders that hold now."""
        return Snapshot(
            self.facts.copy(), {container: container.subregions for container in self.printed}
        )

    def blank(self) -> Snapshot:
        """The same tree as if nothing had been learnt yet."""
        orders = {
            container: tuple(sorted(
                guess(list(children), {child: (child.addr, 0) for child in children}),
                key=lambda child: -child.priority,
            ))
            for container, children in self.printed.items()
        }
        return Snapshot(Facts(), orders)

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to other facts of the same tree."""
        self.facts = facts = snapshot.facts.copy()
        for region in self.regions:
            if region.alias is not None:
                if region in self.options:
                    region.alias = facts.aliases.get(region, self.options[region][0])
            elif region.kind in (RegionKind.IO, RegionKind.CONTAINER):
                self._set_terminates(region)
            self._set_readonly(region)
            region.unmergeable = region in facts.unmergeable
            if region.size <= 1:
                region.size = 0 if self._is_empty(region) else 1
        for container, order in snapshot.orders.items():
            if container.subregions != order:
                _reorder(container, order)


def _reorder(container: MemoryRegion, order: Sequence[MemoryRegion]) -> None:
    """Put the children of a container into another order, by adding them again."""
    for child in container.subregions:
        container.del_subregion(child)
    for child in reversed(order):
        container.add_subregion_overlap(child.addr, child, child.priority)


def _default_empty(region: MemoryRegion) -> bool:
    """Sizes 0 and 1 print alike. A window that is closed is an alias of 0 bytes
    (``pci_bridge_init_alias``); none is known that shows a single byte."""
    return region.alias is not None


def _kin(region: MemoryRegion) -> Kin:
    """What aliases that one device made for one purpose have in common."""
    target = region.alias.key if region.alias is not None else None
    return region.key.owner, region.name, target


def _in_alias_order(specs: Iterable[Spec]) -> list[Spec]:
    """Targets before the aliases that show them."""
    order: list[Spec] = []
    done: set[Spec] = set()
    for spec in specs:
        chain: list[Spec] = []
        at: Spec | None = spec
        while at is not None and at not in done:
            chain.append(at)
            if len(chain) > MAX_ALIAS_CHAIN:
                where = "in a circle" if at in chain[:-1] else (
                    f"through more than {MAX_ALIAS_CHAIN} aliases"
                )
                raise ProtocolError(
                    f"line {spec.line}: alias {spec.name!r} leads {where}",
                    channel=TREE_COMMAND, text=spec.name,
                )
            at = at.target
        for link in reversed(chain):
            done.add(link)
            order.append(link)
    return order


def _nature(spec: Spec) -> tuple[object, ...]:
    """What tells namesakes of one owner apart in every run alike."""
    node = spec.node
    return node.size, node.type, node.target or "", node.addr, node.priority, not node.enabled
