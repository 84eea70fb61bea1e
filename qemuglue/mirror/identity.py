"""Which lines of the tree text are the same region.

QEMU prints a region once for every root it is reached from: under its container, again as an
address space's own root, again as ``memory-region: NAME`` when an alias shows it. The text has
no ids, so sameness is found from what is printed:

* Every listing is one region, and two listings of one sort (roots of address spaces, alias
  targets) are two regions: QEMU lists each once.
* A listing is the region of an inner line if both print the same: name, owner, address in its
  container, size, priority, type, state and everything below. A root prints its address in its
  container although the container is not there, which makes this sharp.
* An alias means the listing with its target's name. Where names repeat, listings come in the
  order their first aliases came, which leaves few candidates; the likeliest is taken, the
  others are kept as ``options`` for the inference to try.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from qemuglue.errors import ProtocolError
from qemuglue.qemu.mtree import TREE_COMMAND, Listing, TreeNode, TreeText

#: Aliases that show one another in a row. QEMU's own recursion ends a longer chain.
MAX_ALIAS_CHAIN = 64
#: Listings of one name that an alias may mean: the latest so many, and those of its owner.
MAX_OPTIONS = 64
#: Lines looked at to find one that prints like a listing; what is over is taken for a region of
#: its own. No more than the namesakes of real machines times themselves.
MAX_TWINS = 1_000_000


@dataclass(frozen=True, slots=True)
class RegionKey:
    """A region's identity across runs: its owner's path, its name, and which of the equals
    among all regions of the machine it is (from 0)."""

    owner: str
    name: str
    index: int = 0

    def __str__(self) -> str:
        return f"{self.owner}:{self.name}" + (f"#{self.index}" if self.index else "")


class Spec:
    """One region as the text tells it. ``children`` are in print order."""

    __slots__ = ("children", "key", "line", "name", "node", "options", "parent", "same",
                 "shape", "target", "weight")

    def __init__(self, node: TreeNode, parent: Spec | None, first_line: int) -> None:
        self.node = node
        #: Its line in the text, from 1.
        self.line = first_line + node.line
        self.parent = parent
        self.children: tuple[Spec, ...] = ()
        self.name = node.name
        #: Interned: equal for lines that print alike all the way down.
        self.shape = 0
        #: Lines below and including this one.
        self.weight = 1
        #: The line that stands for this one, when the region is printed more than once.
        self.same: Spec | None = None
        self.target: Spec | None = None
        #: Every region an alias may mean, likeliest first; empty when there is no doubt.
        self.options: tuple[Spec, ...] = ()
        self.key: RegionKey | None = None

    def __repr__(self) -> str:
        return f"<Spec {self.name!r} {self.node.start:#x}>"


def canonical(spec: Spec) -> Spec:
    """The line that stands for ``spec``'s region."""
    while spec.same is not None:
        spec = spec.same
    return spec


@dataclass(frozen=True, slots=True)
class Identity:
    """All regions of a machine. ``regions`` has each once, containers before their children;
    ``spaces`` pairs every address space's name with its root (None: it has none)."""

    regions: tuple[Spec, ...]
    spaces: tuple[tuple[str, Spec | None], ...]


def identify(text: TreeText) -> Identity:
    """Find the regions behind the lines. Raises ProtocolError if an alias shows a region
    that is not listed."""
    shapes: dict[tuple[object, ...], int] = {}
    own = [(listing, _specs(listing, shapes)) for listing in text.spaces]
    targets = [_specs(listing, shapes) for listing in text.targets]
    roots = [root for _, root in own if root is not None]
    shown = [root for root in targets if root is not None]
    _unify(roots, shown)
    _resolve(text.targets, roots, shown)
    regions = _canonical_regions(roots, shown)
    _name(regions)
    return Identity(
        tuple(regions),
        tuple((name, None if root is None else canonical(root))
              for listing, root in own for name in listing.spaces),
    )


def _specs(listing: Listing, shapes: dict[tuple[object, ...], int]) -> Spec | None:
    if listing.root is None:
        return None

    def make(node: TreeNode, parent: Spec | None) -> Spec:
        spec = Spec(node, parent, listing.line)
        if node.children:
            spec.children = tuple(make(child, spec) for child in node.children)
            spec.weight += sum(child.weight for child in spec.children)
        shape = (
            node.name, node.owner.path, node.addr, node.size, node.priority, node.type,
            node.nonvolatile, node.enabled, node.target, node.target_offset,
            *[child.shape for child in spec.children],
        )
        spec.shape = shapes.setdefault(shape, len(shapes))
        return spec

    return make(listing.root, None)


def walk(spec: Spec) -> Iterator[Spec]:
    """``spec`` and every line below it, in print order."""
    stack = [spec]
    while stack:
        spec = stack.pop()
        yield spec
        stack.extend(reversed(spec.children))


def _unify(roots: list[Spec], shown: list[Spec]) -> None:
    """Set ``same`` on every line of a listing whose region is printed elsewhere too."""
    alike: defaultdict[int, list[Spec]] = defaultdict(list)
    wanted = {root.shape for root in (*roots, *shown)}
    is_root = set(roots)
    for root in (*roots, *shown):
        for spec in walk(root):
            if spec.shape in wanted and (spec.parent is not None or spec in is_root):
                alike[spec.shape].append(spec)
    # Larger listings first: what is inside them can then be taken for its canonical self.
    # At the same size a space's root goes before an alias target.
    taken: dict[bool, set[Spec]] = {True: set(), False: set()}
    looks = MAX_TWINS
    for listing in sorted((*roots, *shown), key=lambda spec: -spec.weight):
        claimed = taken[listing in is_root]
        for twin in alike[listing.shape]:
            looks -= 1
            if looks < 0:
                return
            stands = canonical(twin)
            if stands is listing or stands in claimed or twin is listing:
                continue
            if listing in is_root and stands.parent is None:
                continue
            claimed.add(stands)
            _merge(listing, stands)
            break


def _merge(spec: Spec, stands: Spec) -> None:
    for one, other in zip(walk(spec), walk(stands), strict=True):
        one.same = other


def _resolve(listings: tuple[Listing, ...], roots: list[Spec], shown: list[Spec]) -> None:
    """Set ``target`` (and ``options``) on every alias, in the order QEMU met them.

    A device's windows mostly show what is its own, so that is assumed first; every listing has
    to be met by someone, and if one is not, then what is listed next goes before."""
    named = _Named(listings, shown)
    if _meet(roots, shown, named, own_first=True):
        return
    for root in (*roots, *shown):
        for spec in walk(root):
            spec.target, spec.options = None, ()
    _meet(roots, shown, named, own_first=False)


def _meet(
    roots: list[Spec], shown: list[Spec], named: _Named, *, own_first: bool
) -> bool:
    """Whether every listing was met. With ``own_first`` False, an alias that can show none
    raises ProtocolError."""
    met = 0
    for root in (*roots, *shown):
        for spec in walk(root):
            stands = canonical(spec)
            if spec.node.target is None or stands.target is not None:
                continue
            numbers = named.candidates(stands, met)
            options = [shown[n] for n in numbers]
            if not options:
                if own_first:
                    return False
                raise ProtocolError(
                    f"line {spec.line}: alias {spec.name!r} shows {spec.node.target!r}, "
                    "which is not listed",
                    channel=TREE_COMMAND, text=spec.node.target,
                )
            fresh = shown[met] if met in numbers[-1:] else None
            if fresh is not None and own_first:
                owner = spec.node.owner.path
                own = [option for option in options if option.node.owner.path == owner]
                if own and fresh not in own:
                    fresh = None
            if fresh is not None:
                met += 1
            _choose(stands, options, fresh)
    return met == len(shown)


class _Named:
    """Numbers of the listings by what an alias says of its target, in the order listed."""

    def __init__(self, listings: tuple[Listing, ...], shown: list[Spec]) -> None:
        self._by: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        for number, (listing, root) in enumerate(zip(listings, shown, strict=True)):
            name, kind, owner = listing.name, root.node.type, root.node.owner.path
            for key in ((name,), (name, kind), (name, owner, kind), (name, owner, "any")):
                self._by[key].append(number)

    def candidates(self, spec: Spec, met: int) -> list[int]:
        """Those the alias may mean by name and type, up to number ``met``: the latest, and the
        latest of its owner."""
        node = spec.node
        assert node.target is not None
        name = node.target
        if (name,) not in self._by:
            for own, target in node.also:
                if (target,) in self._by:
                    spec.name, name = own, target
                    break
        # An alias prints the type of what it shows.
        typed = (name, node.type) in self._by
        every = self._latest((name, node.type) if typed else (name,), met)
        if len(every) < MAX_OPTIONS:
            return every
        own_too = self._latest((name, node.owner.path, node.type if typed else "any"), met)
        return sorted({*every, *own_too})

    def _latest(self, key: tuple[str, ...], met: int) -> list[int]:
        numbers = self._by.get(key, [])
        stop = bisect_right(numbers, met)
        return numbers[max(0, stop - MAX_OPTIONS):stop]


def _choose(spec: Spec, options: list[Spec], fresh: Spec | None) -> None:
    """Order ``options`` by likelihood. A listing met for the first time is the likeliest (it
    has to be met by someone); then one of the same owner, one the window fits in, the latest."""
    node = spec.node
    above = _above(spec)

    def unlikely(numbered: tuple[int, Spec]) -> tuple[bool, bool, bool, bool, int]:
        number, option = numbered
        target = option.node
        return (
            not above.isdisjoint(_chain(canonical(option))),
            option is not fresh,
            target.owner.path != node.owner.path,
            node.target_offset + node.size > target.size,
            -number,
        )

    ordered = [canonical(option) for _, option in sorted(enumerate(options), key=unlikely)]
    ordered = list(dict.fromkeys(ordered))
    spec.target = ordered[0]
    spec.options = tuple(ordered) if len(ordered) > 1 else ()


def _above(spec: Spec) -> set[Spec]:
    """``spec`` and what holds it: an alias of those would show itself."""
    above: set[Spec] = set()
    at: Spec | None = spec
    while at is not None:
        above.add(at)
        at = at.parent
    return above


def _chain(spec: Spec) -> list[Spec]:
    """``spec`` and the aliases behind it, as far as they are known."""
    chain = [spec]
    while (chain[-1].target is not None and chain[-1].target not in chain
           and len(chain) <= MAX_ALIAS_CHAIN):
        chain.append(chain[-1].target)
    return chain


def _canonical_regions(roots: list[Spec], shown: list[Spec]) -> list[Spec]:
    return [spec for root in (*roots, *shown) if root.same is None for spec in walk(root)]


def _name(regions: list[Spec]) -> None:
    counts: defaultdict[tuple[str, str], int] = defaultdict(int)
    for spec in regions:
        owner = spec.node.owner.path
        spec.key = RegionKey(owner, spec.name, counts[owner, spec.name])
        counts[owner, spec.name] += 1
