"""A stand-in for a running QEMU's `info mtree`: prints any tree of model regions the way QEMU
does, hiding what QEMU hides. Written from QEMU's printing rules, apart from the parser."""

from __future__ import annotations

from random import Random

from qemuglue.memory import MemoryRegion, RegionKind, render

MASK = (1 << 64) - 1


class FakeMtree:
    """``hmp`` answers the two lines the mirror asks. ``spaces`` are (name, root)."""

    def __init__(self, spaces: list[tuple[str, MemoryRegion]], *, labels: bool = False) -> None:
        self.spaces = spaces
        self.labels = labels
        self.asked: list[str] = []

    def hmp(self, line: str) -> str:
        self.asked.append(line)
        text = {"info mtree -o -D": self.tree, "info mtree -f -o": self.flat}[line]()
        return text.replace("\n", "\r\n")

    # -- the tree -------------------------------------------------------------------------

    def tree(self) -> str:
        out: list[str] = []
        queue: list[MemoryRegion] = []
        by_root: dict[MemoryRegion, list[str]] = {}
        for name, root in self.spaces:
            by_root.setdefault(root, []).append(name)
        for root, names in by_root.items():
            out += [f"address-space: {name}" for name in sorted(names)]
            self._print(root, 1, 0, queue, out)
            out.append("")
        for target in queue:  # grows while it is printed
            out.append(f"memory-region: {target.name}")
            self._print(target, 1, 0, queue, out)
            out.append("")
        return "\n".join(out) + "\n"

    def _print(
        self, mr: MemoryRegion, level: int, base: int, queue: list[MemoryRegion], out: list[str]
    ) -> None:
        start = base + mr.addr & MASK
        last = start + _size(mr) & MASK
        line = "[DETECTED OVERFLOW!] " if base + mr.addr > MASK or start + _size(mr) > MASK else ""
        line += f"{'  ' * level}{start:016x}-{last:016x} (prio {mr.priority}, "
        line += f"{'nv-' * mr.nonvolatile}{self.type_of(mr)}): "
        if mr.alias is not None:
            if mr.alias not in queue:
                queue.append(mr.alias)
            stop = mr.alias_offset + _size(mr) & MASK
            line += f"alias {mr.name} @{mr.alias.name} {mr.alias_offset:016x}-{stop:016x}"
        else:
            line += mr.name
        out.append(line + " [disabled]" * (not mr.enabled) + _owner(mr))
        shown: list[MemoryRegion] = []
        for child in mr.subregions:
            for at, other in enumerate(shown):
                if child.addr < other.addr or (
                    child.addr == other.addr and child.priority > other.priority
                ):
                    shown.insert(at, child)
                    break
            else:
                shown.append(child)
        for child in shown:
            self._print(child, level + 1, start, queue, out)

    # -- the views ------------------------------------------------------------------------

    def flat(self) -> str:
        views = [(name, root, render(root)) for name, root in self.spaces]
        groups: dict[MemoryRegion | None, list[tuple[str, MemoryRegion]]] = {}
        for name, root, view in views:
            groups.setdefault(view.root, []).append((name, root))
        drawn = {view.root: view for _, _, view in views}
        out: list[str] = []
        for number, (drawn_root, members) in enumerate(groups.items()):
            out.append(f"FlatView #{number}")
            for name, top in members:
                alias = f", alias {top.alias.name}" if top.alias is not None else ""
                out.append(f' AS "{name}", root: {top.name}{alias}')
            shown = "(none)" if drawn_root is None else drawn_root.name
            out.append(f" Root memory region: {shown}")
            for s in drawn[drawn_root].sections:
                kind = "rom" if s.readonly else self.type_of(s.region)
                offset = f" @{s.offset:016x}" if s.offset else ""
                out.append(
                    f"  {s.start:016x}-{s.last:016x} (prio {s.region.priority}, "
                    f"{'nv-' * s.nonvolatile}{kind}): {s.region.name}{offset}{_owner(s.region)}"
                )
            if not drawn[drawn_root].sections:
                out.append("  No rendered FlatView")
            out.append("")
        return "\n".join(out) + "\n"

    def type_of(self, mr: MemoryRegion) -> str:
        if mr.alias is not None:
            return self.type_of(mr.alias)
        if mr.kind is RegionKind.RAM_DEVICE:
            return "ramd"
        if mr.kind is RegionKind.ROM_DEVICE:
            return "romd" if mr.romd else self._device(mr)
        if mr.is_ram:
            return "rom" if mr.readonly else "ram"
        return self._device(mr)

    def _device(self, mr: MemoryRegion) -> str:
        return "container" if self.labels and mr.container is None else "i/o"


def _size(mr: MemoryRegion) -> int:
    """What is added to the start to print the last address."""
    return mr.size - 1 if mr.size else 0


def _owner(mr: MemoryRegion) -> str:
    return f" owner:{{dev path={mr.owner}}}" if mr.owner else " parent:{obj path=/machine/none}"


#: Sizes and offsets overlap often when there are few of them.
SIZES = (0, 1, 2, 0x10, 0x20, 0x40, 0x80, 0x100)
KINDS = (
    RegionKind.CONTAINER, RegionKind.CONTAINER, RegionKind.IO, RegionKind.IO, RegionKind.RAM,
    RegionKind.ROM, RegionKind.ROM_DEVICE, RegionKind.RAM_DEVICE,
)


class Machine:
    """A random machine: a few spaces over a tree with overlaps, aliases and shared roots.

    ``unique`` names every region differently; without it names and owners repeat.
    """

    def __init__(self, rng: Random, *, regions: int = 14, unique: bool = True,
                 labels: bool = False) -> None:
        self.rng = rng
        self.unique = unique
        self.regions: list[MemoryRegion] = []
        top = self._region(RegionKind.CONTAINER, "system", 1 << 64)
        aside = self._region(RegionKind.CONTAINER, "aside", 0x400)
        self.roots = [top, aside]
        for _ in range(regions):
            self._add()
        io = self._region(RegionKind.IO, "io", 0x10000)
        spaces = [("memory", top), ("cpu-memory-0", top), ("I/O", io), ("dev", aside)]
        whole = MemoryRegion.alias_of("whole", top, 0, top.size)
        spaces.append(("master", whole))
        inner = [r for r in self.regions if r.container is not None]
        if inner:
            spaces.append(("inner", rng.choice(inner)))
        self.fake = FakeMtree(spaces, labels=labels)

    def _region(self, kind: RegionKind, name: str, size: int) -> MemoryRegion:
        region = MemoryRegion(name, size, kind)
        self.regions.append(region)
        return region

    def _add(self) -> None:
        rng = self.rng
        name = f"r{len(self.regions)}" if self.unique else f"r{rng.randrange(4)}"
        size = rng.choice(SIZES[1:])
        containers = [r for r in self.regions if r.alias is None]
        if rng.random() < 0.3:
            # Only earlier regions are shown, so no alias can lead back to itself.
            target = rng.choice(self.regions[1:])
            region = MemoryRegion.alias_of(name, target, rng.choice((0, 0, 1, 0x10)), size)
            self.regions.append(region)
            containers = [c for c in containers if not _leads_to(target, c)]
        else:
            region = self._region(rng.choice(KINDS), name, size)
        region.owner = f"/machine/dev{rng.randrange(2 if not self.unique else 9)}"
        region.nonvolatile = rng.random() < 0.05
        region.enabled = rng.random() < 0.85
        if containers and rng.random() < 0.9:
            container = rng.choice(containers)
            container.add_subregion_overlap(
                rng.choice((0, 1, 8, 0x10, 0x20, 0x40)), region, rng.choice((0, 0, 0, 1, -1))
            )

    def change(self) -> None:
        """Move, switch, or remap something, as a guest would."""
        rng = self.rng
        region = rng.choice(self.regions[2:])
        what = rng.randrange(4)
        if what == 0 and region.container is not None:
            region.set_address(rng.choice((0, 1, 8, 0x10, 0x20, 0x40)))
        elif what == 1:
            region.set_enabled(not region.enabled)
        elif what == 2 and region.container is not None:
            container, addr, priority = region.container, region.addr, region.priority
            container.del_subregion(region)
            container.add_subregion_overlap(addr ^ 0x80, region, priority)
        elif region.kind is RegionKind.ROM_DEVICE:
            region.set_romd(not region.romd)


def _leads_to(region: MemoryRegion, goal: MemoryRegion) -> bool:
    """Whether ``goal`` is drawn inside ``region``, or holds it."""
    if region is goal:
        return True
    below = any(_leads_to(child, goal) for child in region.subregions)
    return below or (region.alias is not None and _leads_to(region.alias, goal))
