"""The object model as a second source: what the mirror took from one text, asked of another.

``info mtree`` prints regions by walking address spaces; QOM knows them as objects of their
owners. Both must tell the same of every region: size, priority, address in its container, and
which container that is (by the owner's path and name, since QEMU gives no better name).

* A region of QOM has to be in the mirror if its container is: ``info mtree -D`` prints all
  children. One without a container may be in no sight (an unmapped BAR).
* A region of the mirror has to be in QOM, unless its owner is in no tree of objects.
* Equals (same owner, same name) are told apart by these facts only, so they are compared as a
  bag. Sizes 0 and 1 print alike; where the mirror says 1 and QOM 0, neither is wrong.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection
from itertools import zip_longest

from qemuglue.memory import MemoryRegion
from qemuglue.mirror import Mirror
from qemuglue.qemu.monitor import Monitor
from qemuglue.qemu.qom import QomRegion, memory_regions, split
from qemuglue.witness.account import Account

#: Path of the owner ("" where owners were not printed), name.
Key = tuple[str, str]
#: Size, priority, address, container.
Facts = tuple[int, int, int, Key | None]

#: Where a device is whose id the user gave.
_DEVICES = "/machine/peripheral/"
#: Some devices give themselves an id and live elsewhere ("platform-bus-device", those of VIO):
#: the text then has the id only, and all of them together are one owner here.
_NAMES_ITSELF = "a device that names itself"


def check_qom(monitor: Monitor, mirror: Mirror, version: tuple[int, ...]) -> Account:
    """Compare the mirror with the objects of the QEMU it was taken from. ``compared`` counts
    regions. Raises what the monitor raises."""
    return compare(mirror.regions, memory_regions(monitor, version), owners=monitor.owners)


def compare(
    regions: Collection[MemoryRegion], objects: Collection[QomRegion], *, owners: bool = True
) -> Account:
    """The comparison itself. Without ``owners`` regions are told apart by name alone."""
    account = Account("qom")
    known = {_path_key(each.path, owners) for each in objects}
    ours: defaultdict[Key, list[Facts]] = defaultdict(list)
    for region in regions:
        container = region.container
        ours[_key(region, known, owners)].append((
            region.size, region.priority, region.addr,
            None if container is None else _key(container, known, owners),
        ))

    def as_ours(path: str) -> Key:
        key = _path_key(path, owners)
        named = _NAMES_ITSELF, key[1]
        return named if key not in ours and named in ours else key

    theirs: defaultdict[Key, list[Facts]] = defaultdict(list)
    hidden: defaultdict[Key, list[Facts]] = defaultdict(list)
    for each in objects:
        inside = as_ours(each.container) if each.container else None
        if inside is not None and inside not in ours:
            inside = None  # it is in no sight either
        facts = (each.size, each.priority, each.addr, inside)
        (theirs if inside is not None else hidden)[as_ours(each.path)].append(facts)
    for key in dict.fromkeys((*ours, *theirs)):
        if not (key[0].startswith(("/", _NAMES_ITSELF)) or key in known):
            # Or, without owners: QEMU was told a wrong one, and made no object of the region.
            account.unjudged["its owner is in no tree of objects"] += len(ours[key])
            continue
        _compare(account, key, ours[key], theirs[key], hidden[key])
    return account


def _compare(
    account: Account, key: Key, ours: list[Facts], theirs: list[Facts], hidden: list[Facts]
) -> None:
    """One owner's regions of one name. ``hidden`` may be in the mirror and need not."""
    account.compared += len(ours)
    mine, there, maybe = Counter(ours), Counter(theirs), Counter(hidden)
    same = mine & there
    mine, there = mine - same, there - same
    same = mine & maybe
    mine, maybe = mine - same, maybe - same
    for facts in list(mine.elements()):
        nothing = (0, *facts[1:])
        for known in (there, maybe):
            if facts[0] == 1 and known[nothing]:
                known[nothing] -= 1
                mine[facts] -= 1
                account.unjudged["a size of 0 prints like one of 1"] += 1
                break
    left = sorted((+mine).elements(), key=str)
    # What is left here is in no object as it is: an object of the same name tells best how.
    missing = sorted((+there).elements(), key=str)
    missing += sorted((+maybe).elements(), key=str)[: max(0, len(left) - len(missing))]
    for one, other in zip_longest(left, missing):
        account.differs(_place(key), _told(one), _told(other))


def _key(region: MemoryRegion, known: Collection[Key], owners: bool) -> Key:
    """The key of a mirrored region, in QOM's terms as far as the owner's name allows it."""
    owner, name = region.key.owner, region.key.name
    if not owners:
        return "", name
    if owner.startswith("id="):
        path = _DEVICES + owner.removeprefix("id=")
        return path if (path, name) in known else _NAMES_ITSELF, name
    # An object without a path of its own (a list of ports): the region is its parent's.
    return owner.partition("/<")[0], name


def _path_key(path: str, owners: bool) -> Key:
    parent, name = split(path)
    return parent if owners else "", name


def _place(key: Key) -> str:
    return ":".join(key) if key[0] else key[1]


def _told(facts: Facts | None) -> str:
    if facts is None:
        return "there is none"
    size, priority, addr, container = facts
    inside = "no container" if container is None else _place(container)
    return f"size {size:#x}, priority {priority}, at {addr:#x} in {inside}"
