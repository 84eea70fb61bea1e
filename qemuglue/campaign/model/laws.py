"""The laws of the model: what must hold of any map, any access, any change.

A law draws a case from a source of random numbers, does it on the model and on a naive oracle (or
in two ways on the model), and raises a Fault where they part. It returns a few words about the
case, which tell an engine that it has seen something new.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Literal

from qemuglue.campaign.inputs.faults import Fault
from qemuglue.campaign.model.c_face import COracle
from qemuglue.campaign.model.changes import Follower, shown, spaces_of, told, world
from qemuglue.campaign.model.oracle import (
    WINDOW,
    Recorder,
    random_contract,
    random_map,
)
from qemuglue.campaign.model.painting import TOP, Node, build, paint, random_tree, spot
from qemuglue.memory import (
    AddressSpace,
    FlatViewRefGuard,
    MemoryRegionCache,
    MemTxAttrs,
    RegionKind,
    Rules,
    register,
    render,
)
from qemuglue.memory.endian import endian_class

#: One version of each set of rules.
VERSIONS = ((7, 2, 0), (10, 0, 2), (11, 1, 0))
#: Makes the rules of a version: as they are, or with a planted defect.
RulesOf = Callable[[tuple[int, ...]], Rules]
Law = Callable[[Random, RulesOf], str]
Order = Literal["little", "big"]


def equal(got: object, want: object, what: str) -> None:
    """:raise Fault: they are not."""
    if got != want:
        raise Fault(what.replace(" ", "-"),
                    f"the model says {str(got)[:300]}; the oracle says {str(want)[:300]}")


# Section: maps


def drawing(rng: Random, rules: RulesOf) -> str:
    """A tree drawn is the tree painted address by address; every address has one section."""
    small = rng.random() < 0.5
    room = 24 if small else rng.choice((1 << 20, (1 << 63) + 5, TOP))
    root = random_tree(rng, room=room, nodes=rng.randint(1, 12))
    view = render(build(root)[0])
    # Nothing of a small tree reaches past this: sizes are at most 24, at most 15 levels deep.
    equal(shown(view), paint(root, every=400 if small else 0), "drawing")
    for address in [edge for s in view.cover for edge in (s.start, s.last)]:
        section, want = view.lookup(address), spot(root, address)
        equal(section.region.name if section.assigned else None,
              want.leaf.name if want else None, "lookup")
        if want is not None:
            equal(section.offset + address - section.start, want.offset, "offset")
    drop_disabled(root, set())
    equal(shown(render(build(root)[0])), shown(view), "disabled")
    kinds = sorted({section.region.kind.name[:2] for section in view.sections})
    flags = {(s.readonly, s.nonvolatile, s.unmergeable) for s in view.sections}
    return f"{len(view.sections)} sections, {''.join(kinds)} {len(flags)}"


def drop_disabled(node: Node, seen: set[Node]) -> None:
    """Take what is disabled out of the tree below ``node``, through aliases too."""
    if node in seen:
        return
    seen.add(node)
    node.children = [entry for entry in node.children if entry[2].enabled]
    for _, _, child in node.children:
        drop_disabled(child, seen)
    if node.target is not None:
        drop_disabled(node.target, seen)


def changing(rng: Random, rules: RulesOf) -> str:
    """Whatever changes, in whatever transactions: a commit shows what painting anew shows, and
    what listeners are told is the difference of the views."""
    here = world(rng, rng.randint(1, 9))
    spaces = spaces_of(here)
    topology = spaces[0][0].topology
    follower = Follower([], "a")
    register(follower, spaces[0][0])
    done = 0
    for _ in range(rng.randint(1, 6)):
        views = [space.view for space, _ in spaces]
        before = [told(section) for section in views[0]]
        depth = rng.randint(0, 3)
        for _ in range(depth):
            topology.begin()
        for _ in range(rng.randint(1, 3)):
            here.change()
            done += 1
            if depth:
                equal([space.view for space, _ in spaces], views, "nothing shows before")
        for _ in range(depth):
            topology.commit()
        for space, node in spaces:
            equal(shown(space.view), paint(node, every=200), "commit")
        equal(sorted(follower.map.values(), key=lambda entry: entry[0]),
              [told(section) for section in spaces[0][0].view], "listener")
        if depth and before != [told(section) for section in spaces[0][0].view]:
            _differences(before, follower)
        alive = {space.view for space, _ in spaces}
        equal([view.reclaimed for view in views if view not in alive],
              [True for view in views if view not in alive], "reclaimed")
    return f"{done} changes, {len(spaces[0][0].view.sections)} sections"


def _differences(before: Sequence[tuple[object, ...]], follower: Follower) -> None:
    assert follower.space is not None, "it is registered"
    after: Sequence[tuple[object, ...]] = [told(section) for section in follower.space.view]
    equal(follower.said, [
        *[("del", entry) for entry in before if entry not in after],
        *[("nop" if entry in before else "add", entry) for entry in after],
    ], "deltas")


def guarding(rng: Random, rules: RulesOf) -> str:
    """A reader's view outlives any change until the last who holds it lets go (RCU)."""
    here = world(rng, rng.randint(2, 8))
    spaces = spaces_of(here)  # all of them: a space that is forgotten keeps its view
    space = spaces[0][0]
    held: list[tuple[FlatViewRefGuard, list[object]]] = []
    steps = ""
    for _ in range(rng.randint(2, 10)):
        if held and rng.random() < 0.4:
            guard, seen = held.pop(rng.randrange(len(held)))
            view = guard.view
            guard.release()
            needed = view is space.view or any(other.view is view for other, _ in held)
            equal(view.reclaimed, not needed, "released")
            steps += "-"
        elif rng.random() < 0.5:
            guard = held[-1][0].clone() if held and rng.random() < 0.3 else space.memory()
            held.append((guard, list(shown(guard.view))))
            steps += "+"
        else:
            here.change()
            steps += "c"
        for guard, seen in held:
            equal(guard.view.reclaimed, False, "held")
            equal(shown(guard.view), seen, "held")
    for guard, _ in held:
        guard.release()
    return steps


# Section: accesses


class _Pair:
    """One random map twice: the model's space and the oracle, with the same device."""

    def __init__(self, rng: Random, rules: RulesOf, version: tuple[int, ...] = ()) -> None:
        self.rng = rng
        self.root, self.base = random_map(rng)
        target_big = rng.random() < 0.5
        region, self.made = build(self.root)
        self.recorder = Recorder()
        self.space = AddressSpace("memory", region, target_big=target_big,
                                  rules=rules(version or rng.choice(VERSIONS[1:])))
        self.space.ops = self.space.observer = self.recorder
        self.oracle = COracle(self.root, target_big=target_big)

    def address(self) -> int:
        return (self.base + self.rng.randrange(-10, WINDOW + 4)) % TOP

    def equal(self, got: object, want: object, what: str) -> None:
        equal(got, want, what)
        equal(self.recorder.log, self.oracle.log, f"{what} log")

    def memory(self) -> None:
        for node, data in self.oracle.ram.items():
            backing = self.made[node].backing
            equal(None if backing is None else backing.read(0, len(data)), bytes(data), "memory")

    def kinds(self) -> str:
        return "".join(sorted({node.kind.name[:2] for node in self.made}))


def accessing(rng: Random, rules: RulesOf, accesses: int = 0) -> str:
    """Reads, writes, single loads and stores against the oracle, byte by byte; so many, or as
    many as are drawn."""
    pair = _Pair(rng, rules)
    results = 0
    for _ in range(accesses or rng.randint(1, 8)):
        address = pair.address()
        length = rng.choice((1, 2, 4, 8, 8, rng.randrange(24)))
        memory, debug = rng.random() < 0.2, rng.random() < 0.1
        attrs = MemTxAttrs(unspecified=not memory, memory=memory, debug=debug)
        verb = rng.randrange(4)
        if verb == 0:
            mine, theirs = bytearray(b"\xee" * length), bytearray(b"\xee" * length)
            result = pair.space.read_into(address, mine, attrs)
            pair.equal((result, mine), (pair.oracle.read(address, theirs, memory=memory), theirs),
                       "read")
        elif verb == 1:
            data = rng.randbytes(length)
            result = pair.space.write(address, data, attrs)
            pair.equal(result, pair.oracle.write(address, data, memory=memory, debug=debug),
                       "write")
        else:
            result = _single(pair, address, is_write=verb == 2)
        results |= result
        pair.memory()
    return f"{pair.kinds()} {results}"


def _single(pair: _Pair, address: int, *, is_write: bool) -> int:
    rng = pair.rng
    size = rng.choice((1, 2, 4, 8))
    order: Order = rng.choice(("little", "big"))
    if is_write:
        data = rng.randbytes(size)
        result = int(pair.space.store_sized(address, int.from_bytes(data, order), size, order))
        pair.equal(result, pair.oracle.store(address, data), "store")
        return result
    here = spot(pair.root, address)
    if here is not None and here.leaf.kind is RegionKind.ROM_DEVICE:
        size = 1  # a wider one could run over the memory's end, where QEMU reads what is there
    status, value = pair.space.load_sized(address, size, order)
    wanted, expected = pair.oracle.load(address, size)
    pair.equal((status, value), (wanted, int.from_bytes(expected, order)), "load")
    return int(status)


def repeating(rng: Random, rules: RulesOf) -> str:
    """A read is its parts, a value stored is the value loaded, a read changes nothing."""
    pair = _Pair(rng, rules)
    address, length = pair.address(), rng.randrange(40)
    cut = rng.randrange(length + 1)
    whole = pair.space.read(address, length)
    equal(pair.space.read(address, length), whole, "again")
    if _only_memory(pair.root, address, length):
        first = pair.space.read(address, cut)
        second = pair.space.read((address + cut) % TOP, length - cut)
        equal((first[0] | second[0], first[1] + second[1]), whole, "parts")
        order: Order = rng.choice(("little", "big"))
        for at in range(length):
            value = pair.space.load_sized((address + at) % TOP, 1, order)[1]
            equal(value, whole[1][at], "loads")
        kind = endian_class(rng.choice((1, 2, 4, 8)), order)
        if kind.size <= length:
            value = rng.getrandbits(8 * kind.size)
            before = pair.space.load_sized(address, kind.size, order)
            stored = int(pair.space.store_sized(address, value, kind.size, order))
            got = pair.space.load_sized(address, kind.size, order)
            written = _writable(pair.root, address, kind.size)
            equal((stored == 0, got[1]), (written, value if written else before[1]), "round trip")
            raw = pair.space.read(address, kind.size)[1]
            equal(int(kind.from_raw(raw)), got[1], "byte order")
    return f"{pair.kinds()} {whole[0]}"


def _only_memory(root: Node, address: int, length: int) -> bool:
    """Whether all of it is one piece of memory, so that no device is asked and nothing cut."""
    spots = [spot(root, (address + at) % TOP) for at in range(length)]
    first = spots[0] if spots else None
    return first is not None and address + length <= TOP and address % 0x1000 + length <= 0x1000 \
        and first.leaf.kind in (RegionKind.RAM, RegionKind.ROM) and all(
            later is not None and first.carried_on_by(later, at) for at, later in enumerate(spots))


def _writable(root: Node, address: int, length: int) -> bool:
    here = spot(root, address)
    return here is not None and here.leaf.kind is RegionKind.RAM and not here.leaf.readonly \
        and not here.readonly


def helping(rng: Random, rules: RulesOf) -> str:
    """Fill, firmware, asking, mapping and caching against the oracle."""
    pair = _Pair(rng, rules, VERSIONS[1])
    space, oracle = pair.space, pair.oracle
    told_of = ""
    for _ in range(rng.randint(1, 6)):
        address, length, is_write = pair.address(), rng.randrange(1, 30), rng.random() < 0.5
        what = rng.randrange(5)
        told_of += "fradc"[what]
        if what == 0:
            byte, length = rng.randrange(256), rng.choice((length, 520))
            pair.equal(space.set(address, byte, length), oracle.fill(address, byte, length), "set")
        elif what == 1:
            data = rng.randbytes(length)
            pair.equal(space.write_rom(address, data), oracle.load_rom(address, data), "write_rom")
        elif what == 2:
            pair.equal(space.access_valid(address, length, is_write),
                       oracle.accepts(address, length, is_write), "access_valid")
        elif what == 3:
            _map(pair, address, length, is_write)
        else:
            _cache(pair, address, length, is_write)
        pair.memory()
    return f"{pair.kinds()} {told_of}"


def _map(pair: _Pair, address: int, length: int, is_write: bool) -> None:
    mapped = pair.space.map(address, length, is_write)
    if mapped is None:
        raise Fault("map", "the only mapping there is was refused")
    n = pair.oracle.mapped(address, length, is_write)
    if not is_write:
        want = bytearray(n)
        pair.oracle.read(address, want)
        pair.equal((len(mapped), bytes(mapped.buffer)), (n, want), "map")
        pair.space.unmap(mapped, pair.rng.randrange(n + 1))
        return
    pair.equal(len(mapped), n, "map")
    accessed, data = pair.rng.randrange(n + 1), pair.rng.randbytes(n)
    mapped.buffer[:accessed] = data[:accessed]
    pair.space.unmap(mapped, accessed)
    pair.oracle.write(address, data[:accessed])
    pair.equal(pair.space.bounce_buffer_size, 0, "unmap")


def _cache(pair: _Pair, address: int, length: int, is_write: bool) -> None:
    rng = pair.rng
    with MemoryRegionCache(pair.space, address, length, is_write) as cache:
        pair.equal(cache.length, pair.oracle.cached(address, length, is_write), "cache")
        for _ in range(rng.randint(1, 3)):
            offset = rng.randrange(cache.length)
            n = rng.randrange(cache.length - offset + 1)
            if not is_write or rng.random() < 0.5:
                pair.equal(cache.read(offset, n),
                           pair.oracle.cache_read(address, offset, n, is_write), "cache read")
            else:
                data = rng.randbytes(n)
                pair.equal(cache.write(offset, data),
                           pair.oracle.cache_write(address, offset, data, True), "cache write")


def cutting(rng: Random, rules: RulesOf) -> str:
    """Chunks are the widest that fit (R6); pieces assemble the device's own bytes (R3)."""
    ours = rules(rng.choice(VERSIONS))
    contract = random_contract(rng)
    offset, length = rng.getrandbits(20), rng.randint(1, 200)
    at = 0
    while at < length:
        n = ours.chunk(contract, length - at, offset + at)
        want = next(
            wider for wider in (64, 32, 16, 8, 4, 2, 1)
            if wider <= (contract.valid_max or 4) and wider <= length - at
            and (contract.impl_unaligned or (offset + at) % wider == 0))
        equal(n, want, "chunk")
        at += n
    size, big = rng.choice((1, 2, 4, 8)), rng.random() < 0.5
    image, order = rng.randbytes(16), "big" if big else "little"
    value = covered = 0
    for piece in ours.pieces(contract, size, big):
        equal(piece.delta, covered, "pieces in order")
        covered += piece.size
        part = int.from_bytes(image[piece.delta : piece.delta + piece.size],
                              "big" if big else "little")
        value |= part << piece.shift if piece.shift >= 0 else part >> -piece.shift
    equal(value % (1 << 8 * size), int.from_bytes(image[:size], "big" if big else "little"),
          "pieces")
    return f"{contract.valid_max} {contract.impl_min} {contract.impl_max} {size} {order}"
