"""QEMU's object model (QOM), as far as it tells of memory regions.

A region is a child of the object that owns it (``memory_region_do_init``): ``/machine/unattached``
where it has no owner. The child is called NAME[N], N counting equal names under one owner from 0.
Four of its facts can be asked: address in its container, size, priority, and the container. That
is all: neither its type nor whether it is enabled, an alias or read-only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from qemuglue.errors import ProtocolError
from qemuglue.qemu.monitor import CHANNEL, Monitor

TREE_COMMAND = "info qom-tree /"
LIST_GET_SINCE = (10, 1)
"""One question for any number of objects (``qom-list-get``), 40 times as fast as one by one."""

#: Objects inside each other; real trees have at most 12.
MAX_DEPTH = 100
#: Regions in one machine; q35 with 800 devices has 10,000.
MAX_REGIONS = 100_000
#: Paths in one question: the reply to so many is a megabyte.
AT_ONCE = 2000

_LINE = re.compile(r"( *)/(.*) \(([^()]*)\)")
_CHILD = re.compile(r"(.*)\[(\d{1,9})\]")
_ESCAPE = re.compile(r"\\x([0-9a-f]{2})")
_FACTS = ("addr", "size", "priority", "container")


@dataclass(frozen=True, slots=True)
class QomRegion:
    """A memory region. ``parent`` is the path of its owner, ``name`` QEMU's name for it.

    ``addr`` is relative to the container and ``container`` that one's path, "" for none;
    ``size`` is 0 to 2^64.
    """

    path: str
    addr: int
    size: int
    priority: int
    container: str

    @property
    def parent(self) -> str:
        return split(self.path)[0]

    @property
    def name(self) -> str:
        return split(self.path)[1]


def split(path: str) -> tuple[str, str]:
    """(path of the owner, name of the region) of a region's own path; its number is dropped."""
    parent, _, child = path.rpartition("/")
    match = _CHILD.fullmatch(child)
    # memory_region_escape_name: of / [ ] and the backslash.
    return parent, _ESCAPE.sub(lambda found: chr(int(found[1], 16)), match[1] if match else child)


def region_paths(text: str) -> Iterator[str]:
    """Paths of the memory regions in the text of ``info qom-tree /``, in its order.

    :raise ProtocolError: it is no such text; the message has the number of the line.
    """
    stack: list[str] = []
    found = 0
    for number, line in enumerate(text.splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise ProtocolError(f"line {number}: no object", channel=TREE_COMMAND, text=line[:200])
        depth, left = divmod(len(match[1]), 2)
        if left or depth > len(stack) or depth > MAX_DEPTH:
            raise ProtocolError(f"line {number}: unexpected indentation", channel=TREE_COMMAND,
                                text=line[:200])
        del stack[depth:]
        stack.append(match[2])
        # Every kind of region an IOMMU makes ends like this as well.
        if match[3].endswith("memory-region"):
            found += 1
            if found > MAX_REGIONS:
                raise ProtocolError(f"line {number}: more than {MAX_REGIONS} regions",
                                    channel=TREE_COMMAND)
            yield "/".join(stack) if not stack[0] else "/" + "/".join(stack)


def memory_regions(monitor: Monitor, version: tuple[int, ...]) -> list[QomRegion]:
    """Every memory region of the object tree. Takes 1 to 2 ms a region before 10.1, less after.

    :raise ProtocolError: an answer is none; QemuDied, QemuHang as ``Monitor.execute`` does.
    """
    paths = list(region_paths(monitor.hmp(TREE_COMMAND)))
    if version < LIST_GET_SINCE:
        return [_region(path, {
            fact: monitor.execute("qom-get", {"path": path, "property": fact}) for fact in _FACTS
        }) for path in paths]
    found: list[QomRegion] = []
    for first in range(0, len(paths), AT_ONCE):
        asked = paths[first:first + AT_ONCE]
        found += _listed(asked, monitor.execute("qom-list-get", {"paths": asked}))
    return found


def _listed(paths: list[str], answer: object) -> list[QomRegion]:
    try:
        assert isinstance(answer, list) and len(answer) == len(paths)
        return [
            _region(path, {each["name"]: each.get("value") for each in one["properties"]})
            for path, one in zip(paths, answer, strict=True)
        ]
    except (AssertionError, KeyError, TypeError, AttributeError):
        raise ProtocolError("no properties in the answer to qom-list-get", channel=CHANNEL,
                            text=repr(answer)[:200]) from None


def _region(path: str, facts: Mapping[str, object]) -> QomRegion:
    addr, size, priority, container = (facts.get(fact) for fact in _FACTS)
    if not (isinstance(addr, int) and isinstance(size, int) and isinstance(priority, int)
            and isinstance(container, str)):
        raise ProtocolError(f"{path} is no memory region: {dict(facts)!r}"[:400], channel=CHANNEL)
    # memory_region_get_size cannot print 2^64.
    return QomRegion(path, addr, 1 << 64 if size == (1 << 64) - 1 else size, priority, container)
