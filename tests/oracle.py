"""Naive oracles for the memory model, written apart from it: slow, byte by byte, obvious.

A map is a tree of plain ``Node``s. ``spot`` asks, for one address, who answers there, by walking
down the tree; ``paint`` asks that for every address where anything can change. ``Oracle`` does
accesses from such spots. Nothing here reads the model's rules, views or dispatch; the model's
tree is only built (``build``), from the same nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

from qemuglue.memory import (
    AddressSpace,
    ByteBacking,
    Contract,
    Endian,
    MemoryRegion,
    MemTxAttrs,
    Reason,
    RegionKind,
    Rules,
)

TOP = 1 << 64
OK, ERROR, DECODE_ERROR, ACCESS_ERROR = 0, 1, 2, 4
MEMORY = (RegionKind.RAM, RegionKind.ROM)
PAGE = 0x1000


@dataclass(eq=False)
class Node:
    """A region, described. ``children`` are (offset, priority, node) in order of addition."""

    name: str
    size: int
    kind: RegionKind
    children: list[tuple[int, int, Node]] = field(default_factory=list)
    target: Node | None = None
    target_offset: int = 0
    enabled: bool = True
    readonly: bool = False
    nonvolatile: bool = False
    unmergeable: bool = False
    romd: bool = True
    contract: Contract = field(default_factory=Contract)
    addr: int = 0

    def add(self, addr: int, priority: int, child: Node) -> None:
        self.children.append((addr, priority, child))
        child.addr = addr

    @property
    def terminates(self) -> bool:
        return self.kind not in (RegionKind.CONTAINER, RegionKind.ALIAS)


@dataclass(frozen=True)
class Spot:
    """Who answers at one address: ``leaf``, at ``offset`` in it, reached along ``path``."""

    leaf: Node
    offset: int
    readonly: bool
    nonvolatile: bool
    unmergeable: bool
    path: tuple[Node, ...]

    def carried_on_by(self, later: Spot, distance: int) -> bool:
        """Whether ``later``, so many bytes on, belongs to the same section."""
        return (
            self.leaf is later.leaf
            and later.offset == self.offset + distance
            and self.readonly == later.readonly
            and self.nonvolatile == later.nonvolatile
            and (
                self.path == later.path
                or not (self.unmergeable or later.unmergeable)
            )
        )


def _spot(
    node: Node, offset: int, readonly: bool, nonvolatile: bool, unmergeable: bool,
    path: tuple[Node, ...],
) -> Spot | None:
    if not node.enabled or not 0 <= offset < node.size:
        return None
    readonly |= node.readonly or node.kind is RegionKind.ROM
    nonvolatile |= node.nonvolatile
    unmergeable |= node.unmergeable
    path = (*path, node)
    if node.target is not None:
        return _spot(
            node.target, offset + node.target_offset, readonly, nonvolatile, unmergeable, path
        )
    newest_first = list(reversed(node.children))
    for addr, _, child in sorted(newest_first, key=lambda entry: -entry[1]):
        found = _spot(child, offset - addr, readonly, nonvolatile, unmergeable, path)
        if found is not None:
            return found
    if not node.terminates:
        return None
    return Spot(node, offset, readonly, nonvolatile, unmergeable, path)


def top_of(root: Node) -> Node:
    """The node whose map is drawn for a space over ``root``: whole aliases and containers of
    one thing are looked through."""
    while root.enabled:
        shown = [entry for entry in root.children if entry[2].enabled]
        if root.target is not None and root.target_offset == 0 and root.target.size <= root.size:
            root = root.target
        elif (root.kind is RegionKind.CONTAINER and len(shown) == 1
              and shown[0][0] == 0 and shown[0][2].size <= root.size):
            root = shown[0][2]
        else:
            break
    return root


def spot(root: Node, address: int) -> Spot | None:
    top = top_of(root)
    return _spot(top, address - top.addr, False, False, False, ())


def _edges(node: Node, base: int) -> Iterator[int]:
    yield from (base, base + node.size)
    if node.target is not None:
        yield from _edges(node.target, base - node.target_offset)
    for addr, _, child in node.children:
        yield from _edges(child, base + addr)


#: (start, size, name, offset, readonly, nonvolatile)
Painted = tuple[int, int, str, int, bool, bool]


def paint(root: Node, *, every: int = 0) -> list[Painted]:
    """The map as sections. ``every`` asks at each address below it and nowhere else;
    otherwise once between any two addresses where a node starts or ends."""
    top = top_of(root)
    cuts = range(every + 1) if every else sorted(
        {0, TOP} | {edge for edge in _edges(top, top.addr) if 0 < edge < TOP}
    )
    sections: list[list[tuple[int, int, Spot]]] = []
    for start, stop in pairwise(cuts):
        here = spot(root, start)
        if here is None:
            continue
        if sections:
            before, size, last = sections[-1][-1]
            if before + size == start and last.carried_on_by(here, start - before):
                sections[-1].append((start, stop - start, here))
                continue
        sections.append([(start, stop - start, here)])
    return [
        (parts[0][0], sum(size for _, size, _ in parts), first.leaf.name, first.offset,
         first.readonly, first.nonvolatile)
        for parts in sections for first in [parts[0][2]]
    ]


# -- the same map as the model's regions ---------------------------------------------------


def build(root: Node) -> tuple[MemoryRegion, dict[Node, MemoryRegion]]:
    """The model's tree for ``root``, and the region of each node."""
    made: dict[Node, MemoryRegion] = {}
    return _build(root, made), made


def _build(node: Node, made: dict[Node, MemoryRegion]) -> MemoryRegion:
    if node in made:
        return made[node]
    holds_bytes = node.kind in (*MEMORY, RegionKind.ROM_DEVICE) and node.size <= 1 << 16
    region = MemoryRegion(
        node.name, node.size, node.kind,
        backing=ByteBacking(bytearray(contents(node))) if holds_bytes else None,
        alias=None if node.target is None else _build(node.target, made),
        alias_offset=node.target_offset,
    )
    made[node] = region
    if node.kind in (RegionKind.IO, RegionKind.ROM_DEVICE):
        region.contract = node.contract
    if node.kind is RegionKind.ROM_DEVICE:
        region.set_romd(node.romd)
    if node.readonly:
        region.set_readonly(True)
    region.set_nonvolatile(node.nonvolatile)
    region.unmergeable = node.unmergeable
    region.set_enabled(node.enabled)
    for addr, priority, child in node.children:
        region.add_subregion_overlap(addr, _build(child, made), priority)
    return region


def contents(node: Node) -> bytes:
    """What a node's memory holds at first: bytes that tell the node and the offset."""
    seed = sum(node.name.encode())
    return bytes((seed * 31 + offset * 7 + 1) & 0xFF for offset in range(node.size))


# -- a device that is a pure function, and what it is asked -----------------------------------

Event = tuple[object, ...]


def device_value(offset: int, size: int) -> int:
    """What the test device reads as; bits above ``size`` are set as well, as devices do."""
    return ((offset + 1) * 0x9E3779B97F4A7C15 + size * 0x0123456789ABCDEF) % TOP


def device_status(offset: int) -> int:
    return ERROR if offset % 7 == 3 else OK


class Recorder:
    """The test device and the observer of the model, keeping a log of both."""

    def __init__(self) -> None:
        self.log: list[Event] = []

    def read(
        self, region: MemoryRegion, offset: int, size: int, attrs: MemTxAttrs
    ) -> tuple[int, int]:
        self.log.append(("read", region.name, offset, size))
        return device_status(offset), device_value(offset, size)

    def write(
        self, region: MemoryRegion, offset: int, value: int, size: int, attrs: MemTxAttrs
    ) -> int:
        self.log.append(("write", region.name, offset, size, value))
        return device_status(offset)

    def invalid(
        self, region: MemoryRegion, offset: int, size: int, is_write: bool, reason: Reason
    ) -> None:
        self.log.append(("invalid", region.name, offset, size, is_write, reason.value))


# -- accesses ------------------------------------------------------------------------------------


class Oracle:
    """Accesses to a map, a byte or a piece at a time. ``log`` is what a Recorder should hold."""

    def __init__(self, root: Node, *, target_big: bool = False) -> None:
        self.root = root
        self.target_big = target_big
        self.log: list[Event] = []
        self.ram: dict[Node, bytearray] = {}
        self._spots: dict[int, Spot | None] = {}

    def bytes_of(self, node: Node) -> bytearray:
        return self.ram.setdefault(node, bytearray(contents(node)))

    def _at(self, address: int) -> Spot | None:
        address %= TOP
        if address not in self._spots:
            self._spots[address] = spot(self.root, address)
        return self._spots[address]

    def read(
        self, address: int, buffer: bytearray, *, memory: bool = False
    ) -> int:
        """Fill ``buffer``; what ``memory`` forbids is left as it was."""
        done, result = 0, OK
        while done < len(buffer):
            here = self._at(address + done)
            left = len(buffer) - done
            if memory and not _is_memory(here):
                return result | ACCESS_ERROR
            if here is not None and here.leaf.kind is RegionKind.ROM_DEVICE and here.leaf.romd:
                # Only the end of the memory itself stops such a read, not the section's.
                part = self.bytes_of(here.leaf)[here.offset : here.offset + left]
                status = OK
            elif _is_memory(here):
                part, status = self.bytes_of(here.leaf)[here.offset : here.offset + 1], OK
            else:
                part, status = self._ask(here, address + done, self._chunk(address + done, left))
            buffer[done : done + len(part)] = part
            done += len(part)
            result |= status
        return result

    def write(
        self, address: int, data: bytes, *, memory: bool = False, debug: bool = False
    ) -> int:
        done, result = 0, OK
        while done < len(data):
            here = self._at(address + done)
            if memory and not _is_memory(here):
                return result | ACCESS_ERROR
            if self._writable(here, debug):
                room = len(self.bytes_of(here.leaf)) - here.offset
                size = 1 if _is_memory(here) else min(len(data) - done, room)
                self.bytes_of(here.leaf)[here.offset : here.offset + size] = (
                    data[done : done + size]
                )
            else:
                size = self._chunk(address + done, len(data) - done)
                result |= self._tell(here, address + done, data[done : done + size])
            done += size
        return result

    def load(self, address: int, size: int) -> tuple[int, bytes]:
        """One access, whole: (result, the bytes in memory order)."""
        here = self._at(address)
        if here is not None and here.leaf.kind is RegionKind.ROM_DEVICE and here.leaf.romd:
            return OK, bytes(self.bytes_of(here.leaf)[here.offset : here.offset + size])
        if _is_memory(here) and self._whole(address, size):
            return OK, bytes(self.bytes_of(here.leaf)[here.offset : here.offset + size])
        part, status = self._ask(here, address, size)
        return status, bytes(part)

    def store(self, address: int, data: bytes) -> int:
        here = self._at(address)
        if self._writable(here, False) and self._whole(address, len(data)):
            self.bytes_of(here.leaf)[here.offset : here.offset + len(data)] = data
            return OK
        return self._tell(here, address, data)

    # what one region does

    def _writable(self, here: Spot | None, debug: bool) -> bool:
        if here is None:
            return False
        if here.leaf.kind is RegionKind.ROM_DEVICE:
            return debug and here.leaf.romd
        if here.leaf.kind is RegionKind.ROM or here.leaf.readonly:
            return debug and _is_memory(here)
        return here.leaf.kind is RegionKind.RAM

    def _whole(self, address: int, size: int) -> bool:
        """Whether a single access lies in one part of memory. No section of these maps has a
        whole page, so every page is a part of its own."""
        return self._left(address, size) == size <= PAGE - address % PAGE

    def _left(self, address: int, limit: int) -> int:
        """Bytes from ``address`` on that are of one section, up to ``limit``."""
        first, count = self._at(address), 1
        assert first is not None
        while count < limit and address % TOP + count < TOP:
            later = self._at(address + count)
            if later is None or not first.carried_on_by(later, count):
                break
            count += 1
        return count

    def _chunk(self, address: int, left: int) -> int:
        here = self._at(address)
        cap, unaligned, offset = 4, False, address % TOP
        if here is not None:
            offset = here.offset
            if _is_memory(here):
                left = min(self._left(address, left), PAGE - address % PAGE)
            elif here.leaf.kind in (RegionKind.IO, RegionKind.ROM_DEVICE):
                cap = here.leaf.contract.valid_max or 4
                unaligned = here.leaf.contract.impl_unaligned
        fitting = [
            size for size in (1, 2, 4, 8)
            if size <= cap and size <= left and (unaligned or offset % size == 0)
        ]
        return fitting[-1]

    def _refused(self, here: Spot | None, address: int, size: int, is_write: bool) -> bool:
        name = "" if here is None else here.leaf.name
        offset = address % TOP if here is None else here.offset
        reason = None
        if here is None or here.leaf.kind not in (RegionKind.IO, RegionKind.ROM_DEVICE):
            reason = "rejected"
        else:
            contract = here.leaf.contract
            if contract.accepts is not None and not contract.accepts(offset, size, is_write):
                reason = "rejected"
            elif offset % size != 0 and not contract.valid_unaligned:
                reason = "unaligned"
            elif contract.valid_max != 0 and (
                size < contract.valid_min or size > contract.valid_max
            ):
                reason = "invalid size"
        if reason is not None:
            self.log.append(("invalid", name, offset, size, is_write, reason))
        return reason is not None

    def _order(self, contract: Contract) -> str:
        if contract.endian is Endian.NATIVE:
            return "big" if self.target_big else "little"
        return contract.endian.value

    def _steps(self, contract: Contract, size: int) -> tuple[int, range]:
        piece = size
        piece = min(piece, 4 if contract.impl_max == 0 else contract.impl_max)
        piece = max(piece, 1 if contract.impl_min == 0 else contract.impl_min)
        return piece, range(0, size, piece)

    def _ask(self, here: Spot | None, address: int, size: int) -> tuple[bytes, int]:
        """The bytes, in memory order, and the result of one dispatch."""
        if self._refused(here, address, size, False):
            return bytes(size), DECODE_ERROR
        assert here is not None
        contract = here.leaf.contract
        answer, status = b"", OK
        piece, steps = self._steps(contract, size)
        for step in steps:
            offset = (here.offset + step) % TOP
            self.log.append(("read", here.leaf.name, offset, piece))
            value = device_value(offset, piece) % (1 << 8 * piece)
            answer += value.to_bytes(piece, self._order(contract))  # type: ignore[arg-type]
            status |= device_status(offset)
        return answer[:size], status

    def _tell(self, here: Spot | None, address: int, data: bytes) -> int:
        if self._refused(here, address, len(data), True):
            return DECODE_ERROR
        assert here is not None
        contract = here.leaf.contract
        status = OK
        piece, steps = self._steps(contract, len(data))
        for step in steps:
            offset = (here.offset + step) % TOP
            part = data[step : step + piece].ljust(piece, b"\0")
            value = int.from_bytes(part, self._order(contract))  # type: ignore[arg-type]
            self.log.append(("write", here.leaf.name, offset, piece, value))
            status |= device_status(offset)
        return status


def _is_memory(here: Spot | None) -> bool:
    return here is not None and here.leaf.kind in MEMORY


# -- random maps -----------------------------------------------------------------------------------


def random_tree(rng: Random, *, room: int, nodes: int) -> Node:
    """A tree of up to ``nodes`` nodes over ``room`` bytes: overlaps, aliases, all flags."""
    free: list[Node] = []
    made: list[Node] = []
    leaves = (RegionKind.RAM, RegionKind.ROM, RegionKind.IO, RegionKind.RESERVATION)
    for index in range(nodes):
        name = f"n{index}"
        kind = rng.choice((*leaves, RegionKind.CONTAINER, RegionKind.CONTAINER, RegionKind.ALIAS))
        size = rng.choice((rng.randrange(0, room // 2 + 2), room // 4 + 1, room))
        if kind is RegionKind.ALIAS and made:
            target = rng.choice(made)
            node = Node(name, size, kind, target=target, target_offset=rng.choice(
                (0, rng.randrange(0, target.size + 2), rng.randrange(0, room))))
        else:
            node = Node(name, size, RegionKind.RAM if kind is RegionKind.ALIAS else kind)
            for child in list(free):
                if rng.random() < 0.4:
                    node.add(rng.choice((0, rng.randrange(0, room))), rng.randrange(-1, 3), child)
                    free.remove(child)
        node.enabled = rng.random() < 0.9
        node.readonly = rng.random() < 0.15
        node.nonvolatile = rng.random() < 0.1
        node.unmergeable = rng.random() < 0.1
        free.append(node)
        made.append(node)
    root = Node("root", rng.choice((room, TOP)), RegionKind.CONTAINER)
    for child in free:
        root.add(rng.choice((0, rng.randrange(0, room))), rng.randrange(-1, 2), child)
    return root


_SIZES = (0, 0, 1, 2, 4, 8)


def random_contract(rng: Random) -> Contract:
    veto = rng.randrange(2, 6)
    return Contract(
        valid_min=rng.choice((0, 0, 1, 2, 4)), valid_max=rng.choice(_SIZES),
        valid_unaligned=rng.random() < 0.5,
        impl_min=rng.choice(_SIZES), impl_max=rng.choice(_SIZES),
        impl_unaligned=rng.random() < 0.3, endian=rng.choice(list(Endian)),
        accepts=None if rng.random() < 0.7 else (
            lambda offset, size, is_write: (offset + size + is_write) % veto != 0),
    )


#: Where a random map's regions lie, so that some end at the end of the space.
WINDOW = 48


def random_map(rng: Random) -> tuple[Node, int]:
    """A flat map of small regions of every kind, and the address of its window."""
    base = rng.choice((0, PAGE - WINDOW // 2, TOP - WINDOW))
    root = Node("system", TOP, RegionKind.CONTAINER)
    # A second child keeps the root from being looked through; that has tests of its own.
    root.add(TOP // 2, 0, Node("far", 16, RegionKind.RAM))
    kinds = (RegionKind.RAM, RegionKind.ROM, RegionKind.ROM_DEVICE, RegionKind.IO, RegionKind.IO,
             RegionKind.RESERVATION, RegionKind.ALIAS)
    here: list[Node] = []
    for index in range(rng.randrange(1, 7)):
        kind = rng.choice(kinds)
        size = rng.randrange(1, WINDOW // 2)
        if kind is RegionKind.ALIAS and here:
            node = Node(f"alias{index}", size, kind, target=rng.choice(here),
                        target_offset=rng.randrange(0, 8), readonly=rng.random() < 0.5)
        else:
            kind = RegionKind.RAM if kind is RegionKind.ALIAS else kind
            node = Node(f"{kind.name}{index}", size, kind, contract=random_contract(rng),
                        romd=rng.random() < 0.7)
            here.append(node)
        root.add(base + rng.randrange(0, WINDOW - size), rng.randrange(-1, 2), node)
    return root, base


def compare_accesses(rng: Random, rules: Rules, *, accesses: int) -> None:
    """One random map, some random accesses: the model under ``rules`` against the oracle."""
    root, base = random_map(rng)
    target_big = rng.random() < 0.5
    region, made = build(root)
    recorder = Recorder()
    space = AddressSpace("memory", region, rules=rules, target_big=target_big)
    space.ops = space.observer = recorder
    oracle = Oracle(root, target_big=target_big)
    for _ in range(accesses):
        address = (base + rng.randrange(-10, WINDOW + 4)) % TOP
        length = rng.choice((1, 2, 4, 8, 8, rng.randrange(0, 24)))
        memory, debug = rng.random() < 0.2, rng.random() < 0.1
        attrs = MemTxAttrs(unspecified=not memory, memory=memory, debug=debug)
        verb = rng.randrange(4)
        if verb == 0:
            mine, theirs = bytearray(b"\xee" * length), bytearray(b"\xee" * length)
            got: object = (space.read_into(address, mine, attrs), mine)
            want: object = (oracle.read(address, theirs, memory=memory), theirs)
        elif verb == 1:
            data = rng.randbytes(length)
            got = space.write(address, data, attrs)
            want = oracle.write(address, data, memory=memory, debug=debug)
        else:
            got, want = _single(rng, space, oracle, address, is_write=verb == 2)
        assert got == want, f"{address:#x}+{length}: got {got}, want {want}"
        assert recorder.log == oracle.log, f"{address:#x}+{length}"
    for node, data in oracle.ram.items():
        backing = made[node].backing
        assert backing is not None and backing.read(0, len(data)) == data, node.name


def _single(
    rng: Random, space: AddressSpace, oracle: Oracle, address: int, *, is_write: bool
) -> tuple[object, object]:
    size = rng.choice((1, 2, 4, 8))
    order = rng.choice(("little", "big"))
    if is_write:
        data = rng.randbytes(size)
        got: object = space.store_sized(address, int.from_bytes(data, order), size, order)
        return got, oracle.store(address, data)
    here = oracle._at(address)
    if here is not None and here.leaf.kind is RegionKind.ROM_DEVICE:
        size = 1  # a wider one could run over the memory's end, where QEMU reads what is there
    result, value = space.load_sized(address, size, order)
    status, expected = oracle.load(address, size)
    return (result, value), (status, int.from_bytes(expected, order))
