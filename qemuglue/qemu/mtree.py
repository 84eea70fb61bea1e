"""The text of ``info mtree``, read into typed nodes.

Two texts are read: the tree (``info mtree -o -D``) and the flat views (``info mtree -f -o``,
also with ``-d``). QEMU takes the flags only in the order ``-f -d -o -D``; any other order is
refused with "extraneous characters". The text is untrusted: whatever does not parse raises
ProtocolError with the number of its line, and every size has a limit. So has time: a line is
matched in a time proportional to its length, and blocks that were read before are not read again.

What the text says, and what it does not (QEMU ``mtree_print_mr``, ``mtree_print_flatview``):

* Ranges are inclusive; a size of 0 prints like a size of 1. Addresses wrap at 2^64.
* A root's start is its own address inside a container printed elsewhere, or 0.
* Siblings come by address, then by priority. Those equal in both come in the order QEMU
  resolves them; of all others that order is not told.
* The type of an alias is its target's. ``container`` (11.1 and later) says that the region
  lies in no other, not that it answers nothing.
* Aliases name their targets; each distinct target is listed once as ``memory-region:``, in
  the order the aliases met them.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Generic, TypeVar

from qemuglue.errors import ProtocolError

#: The command lines that give the texts, in the flag order every version takes.
TREE_COMMAND = "info mtree -o -D"
FLAT_COMMAND = "info mtree -f -o"

#: Longer texts are refused. 837 devices on q35 give 1 MB; QMP itself stops at 10 MB.
MAX_TEXT = 10_000_000
#: Longer lines are refused; a real one has a name, an owner path and four addresses.
MAX_LINE = 4096
#: Nodes inside each other. Real machines have at most 12; the model draws 200.
MAX_DEPTH = 100
#: Nodes or ranges in one text; bounds the memory a hostile text can take.
MAX_NODES = 200_000
#: Lines in one text; the rest of what bounds the memory it can take.
MAX_LINES = 400_000
#: Address spaces in one text: each is drawn, and namesakes are told apart one by one. Every PCI
#: device has one; the largest real machine has 850.
MAX_SPACES = 5_000
#: Ways to cut ``NAME @TARGET`` that are kept; no real name holds `` @`` even once.
MAX_CUTS = 8
#: Lines whose parse is kept, so that an unchanged block costs nothing on a refresh: ten times
#: the largest real machine, and 50 MB.
CACHED_LINES = 50_000

#: Region types as QEMU prints them.
TYPES = frozenset({"ram", "rom", "romd", "ramd", "i/o", "container"})

MASK64 = (1 << 64) - 1
_INT32 = range(-(1 << 31), 1 << 31)

_HEX = r"([0-9a-f]{16})"
_WHO = r"\{(?:dev|obj) (?:id|path|type)=[^{}]*\}"
_OWNER = rf"((?: owner:{_WHO})?(?: parent:{_WHO})?| orphan)"
_HEAD = rf"{_HEX}-{_HEX} \(prio (-?[0-9]{{1,10}}), (nv-)?([a-z/]{{1,16}})\): "
_NODE = re.compile(
    rf"(\[DETECTED OVERFLOW!\] )?( *){_HEAD}"
    rf"(?:alias (.*) @(.*) {_HEX}-{_HEX}|(.*?))( \[disabled\])?{_OWNER}"
)
#: Accelerators name the ranges they map; a bare word would eat the end of a region's name.
_ACCELERATORS = (" KVM", " HVF", " WHPX", " MSHV", " NVMM", " Xen")
_RANGE = re.compile(rf"  {_HEAD}(.*?)(?: @{_HEX})?{_OWNER}")
_VIEW_SPACE = re.compile(r' AS "(.*)", root: (.*?)(?:, alias (.*))?')
_SECTION = re.compile(rf"      #([0-9]{{1,9}}) @{_HEX}\.\.{_HEX} (.*?)((?: \[[A-Za-z ]+\]){{0,4}})")
#: The nodes of a dispatch tree (``mtree_print_phys_entries``), which nobody reads.
_ENTRY = re.compile(
    r"      \[[0-9]{1,9}\]"
    r"|\t *[0-9]{1,9}(?:\.\.[0-9]{1,9})? *skip=[0-9]{1,9}  ptr=(?:NIL|#[0-9]{1,9}|\[[0-9]{1,9}\])"
)
_TITLES = ("address-space: ", "memory-region: ", "FlatView #")
#: Never in a name: control characters but the tab before the nodes of a dispatch tree, and what
#: a terminal might obey or hide. (QEMU itself sends U+FFFD for what is no UTF-8.)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]|(?<!\n)\t")
_UNPRINTABLE = re.compile(
    "[\x80-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e0fff]"
)
_PART = re.compile(r" (owner|parent):\{(dev|obj) (path|id|type)=([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Owner:
    """Who made a region. ``path`` identifies the owner within a machine: a QOM path,
    ``id=NAME`` where the user named the device, ``PATH/<TYPE>`` for an object without a path;
    empty where the text tells nothing. ``device`` is whether it is a device, so that QEMU
    guards it against re-entrancy."""

    path: str = ""
    device: bool = False


NO_OWNER = Owner()


@dataclass(frozen=True, slots=True)
class TreeNode:
    """One line of the tree, with the lines indented under it.

    ``start`` and ``last`` are absolute within the printed tree, ``last`` inclusive; ``addr``
    is relative to the parent (a root's is its ``start``). ``size`` is 1 to 2^64, and 1 may
    mean 0. An alias has ``target`` (a name) and ``target_offset``.
    """

    start: int
    last: int
    addr: int
    size: int
    priority: int
    type: str
    nonvolatile: bool
    name: str
    enabled: bool
    owner: Owner
    target: str | None
    target_offset: int
    #: Other ways to cut ``NAME @TARGET`` where a name holds `` @`` itself.
    also: tuple[tuple[str, str], ...]
    children: tuple[TreeNode, ...]
    #: Its line within its block, from 0: blocks are kept, and stand elsewhere the next time.
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Listing:
    """One block of the tree text: a root region printed for some address spaces, or (no
    ``spaces``) as ``memory-region: NAME`` because an alias shows it. ``name`` is that NAME.
    A space without a root has None. ``line`` is the block's first line in the text, from 1."""

    spaces: tuple[str, ...]
    name: str
    root: TreeNode | None
    line: int = field(default=1, compare=False)


@dataclass(frozen=True, slots=True)
class TreeText:
    """All of ``info mtree``: address spaces first, then alias targets in the order met."""

    spaces: tuple[Listing, ...]
    targets: tuple[Listing, ...]


@dataclass(frozen=True, slots=True)
class FlatLine:
    """One range of a flat view; ``last`` inclusive. ``type`` is ``rom`` whenever the range
    is read-only, whatever the region is."""

    start: int
    last: int
    priority: int
    type: str
    nonvolatile: bool
    name: str
    offset: int
    owner: Owner


@dataclass(frozen=True, slots=True)
class FlatSpace:
    """An address space that shows a flat view: its name, its root's, its root's alias'."""

    name: str
    root: str
    alias: str | None


@dataclass(frozen=True, slots=True)
class DispatchSection:
    """A physical section of ``-f -d``. ``name`` is empty for an unnamed region. The labels
    QEMU prints behind mark the numbers 0-3 and the cache, nothing else; they are dropped."""

    number: int
    start: int
    last: int
    name: str


@dataclass(frozen=True, slots=True)
class FlatText:
    """One flat view. ``root`` is None where nothing is rendered at all."""

    spaces: tuple[FlatSpace, ...]
    root: str | None
    ranges: tuple[FlatLine, ...]
    sections: tuple[DispatchSection, ...] = field(default=())


def parse_tree(text: str) -> TreeText:
    """Read ``info mtree [-o] [-D]``.

    Raises ProtocolError for anything else, with the line. Children of a disabled container
    are only told from its siblings with ``-D``, owners only with ``-o``.
    """
    spaces: list[Listing] = []
    targets: list[Listing] = []
    budget, names = MAX_NODES, MAX_SPACES
    for first_line, block in _blocks(text, TREE_COMMAND):
        listing, nodes = _listing(block, first_line)
        budget -= nodes
        names -= len(listing.spaces)
        if budget < 0:
            raise _bad(TREE_COMMAND, first_line, f"more than {MAX_NODES} regions", "")
        if names < 0:
            raise _bad(TREE_COMMAND, first_line, f"more than {MAX_SPACES} address spaces", "")
        if listing.spaces and targets:
            raise _bad(TREE_COMMAND, first_line, "an address space after the alias targets",
                       block[0])
        (spaces if listing.spaces else targets).append(replace(listing, line=first_line))
    if not spaces:
        raise _bad(TREE_COMMAND, 1, "no address space in the answer", text[:200])
    return TreeText(tuple(spaces), tuple(targets))


def parse_flat(text: str) -> tuple[FlatText, ...]:
    """Read ``info mtree -f [-d] [-o]``. Raises ProtocolError for anything else."""
    views: list[FlatText] = []
    budget, names = MAX_NODES, MAX_SPACES
    for first_line, block in _blocks(text, FLAT_COMMAND):
        view = _view(block, first_line)
        budget -= len(view.ranges) + len(view.sections)
        names -= len(view.spaces)
        if budget < 0:
            raise _bad(FLAT_COMMAND, first_line, f"more than {MAX_NODES} ranges", "")
        if names < 0:
            raise _bad(FLAT_COMMAND, first_line, f"more than {MAX_SPACES} address spaces", "")
        views.append(view)
    if not views:
        raise _bad(FLAT_COMMAND, 1, "no flat view in the answer", text[:200])
    return tuple(views)


def _bad(channel: str, line: int, message: str, text: str) -> ProtocolError:
    return ProtocolError(f"line {line}: {message}", channel=channel, text=text[:MAX_LINE])


def _blocks(text: str, channel: str) -> list[tuple[int, tuple[str, ...]]]:
    """(number of the first line, lines) of every block between empty lines."""
    if len(text) > MAX_TEXT:
        raise _bad(channel, text.count("\n", 0, MAX_TEXT) + 1,
                   f"an answer of more than {MAX_TEXT} characters", "")
    if text.count("\n") > MAX_LINES:
        raise _bad(channel, MAX_LINES + 1, f"more than {MAX_LINES} lines", "")
    blocks: list[tuple[int, tuple[str, ...]]] = []
    lines: list[str] = []
    text = text.replace("\r\n", "\n")
    for pattern in (_CONTROL,) if text.isascii() else (_CONTROL, _UNPRINTABLE):
        control = pattern.search(text)
        if control is not None:
            raise _bad(channel, text.count("\n", 0, control.start()) + 1,
                       f"control character {control[0]!r}", "")
    *whole_lines, rest = text.split("\n")
    for number, line in enumerate(whole_lines, 1):
        if len(line) > MAX_LINE:
            raise _bad(channel, number, f"longer than {MAX_LINE} characters", line)
        if line:
            lines.append(line)
        elif lines:
            blocks.append((number - len(lines), tuple(lines)))
            lines = []
    if lines or rest:
        # The last block always ends in an empty line: a text cut short must not pass.
        first = (whole_lines[0] if whole_lines else rest)[:80]
        if not blocks and not first.startswith(_TITLES):
            raise _bad(channel, 1, f"no answer to this command: {first!r}", text[:200])
        raise _bad(channel, len(whole_lines) + 1, "the answer ends inside a block", rest)
    return blocks


_T = TypeVar("_T")


class _Kept(Generic[_T]):
    """Parses of blocks, the least recently used forgotten first. Counted in lines, since one
    block may be as long as all others together.

    An error is not kept: it needs the number of the block's first line, which is no part of
    the key, since it changes with the blocks before.
    """

    def __init__(self, parse: Callable[[tuple[str, ...], int], _T]) -> None:
        self._parse = parse
        self._known: OrderedDict[tuple[str, ...], _T] = OrderedDict()
        self._lines = 0

    def __call__(self, block: tuple[str, ...], first_line: int) -> _T:
        found = self._known.get(block)
        if found is not None:
            self._known.move_to_end(block)
            return found
        found = self._known[block] = self._parse(block, first_line)
        self._lines += len(block)
        while self._lines > CACHED_LINES:
            self._lines -= len(self._known.popitem(last=False)[0])
        return found

    def clear(self) -> None:
        """Forget all."""
        self._known.clear()
        self._lines = 0


@_Kept
def _listing(block: tuple[str, ...], first_line: int) -> tuple[Listing, int]:
    """One block of the tree text, and the number of its nodes."""
    names: list[str] = []
    prefix = "address-space: "
    at = 0
    while at < len(block) and block[at].startswith(prefix):
        names.append(block[at][len(prefix):])
        at += 1
    name = ""
    if not names:
        prefix = "memory-region: "
        if not block[0].startswith(prefix):
            raise _bad(TREE_COMMAND, first_line,
                       "neither an address space nor a memory region", block[0])
        name = block[0][len(prefix):]
        at = 1
    roots = _nodes(block, at, first_line)
    if len(roots) > 1 or (not names and not roots):
        raise _bad(TREE_COMMAND, first_line, f"{len(roots)} roots where one belongs", block[0])
    root = roots[0] if roots else None
    if root is not None and not names and root.target is None and root.name != name:
        raise _bad(TREE_COMMAND, first_line, "the root has another name than its title", block[0])
    return Listing(tuple(names), name, root), len(block) - at


def _nodes(block: tuple[str, ...], at: int, first_line: int) -> list[TreeNode]:
    """The roots of an indented block, children inside. Without recursion: the depth is
    whatever the text says."""
    lines: list[tuple[int, int, int, re.Match[str]]] = []
    starts = [0]
    for number in range(at, len(block)):
        line = block[number]
        # Each `` @`` is a way to cut an alias, and each is tried.
        match = _NODE.fullmatch(line) if line.count(" @") <= MAX_CUTS else None
        if match is None or match[7] not in TYPES or int(match[5]) not in _INT32:
            raise _bad(TREE_COMMAND, first_line + number, "not a region", line)
        indent = len(match[2])
        level = indent // 2
        if indent % 2 or not 1 <= level <= len(starts):
            raise _bad(TREE_COMMAND, first_line + number, "unexpected indentation (without -D "
                       "a disabled container is not printed, but what is in it is)", line)
        if level > MAX_DEPTH:
            raise _bad(TREE_COMMAND, first_line + number, f"more than {MAX_DEPTH} levels", "")
        start = int(match[3], 16)
        if match[8] is not None and (int(match[4], 16) - start - int(match[11], 16)
                                     + int(match[10], 16)) & MASK64:
            raise _bad(TREE_COMMAND, first_line + number,
                       "an alias that shows more or less than its size", line)
        lines.append((number, level, starts[level - 1], match))
        del starts[level:]
        starts.append(start)
    # Backwards, so that the children of a node are complete when it is made.
    pending: list[list[TreeNode]] = [[] for _ in range(MAX_DEPTH + 2)]
    for number, level, base, match in reversed(lines):
        children = tuple(reversed(pending[level + 1]))
        pending[level + 1].clear()
        pending[level].append(_node(match, base, children, number))
    return pending[1][::-1]


def _node(
    match: re.Match[str], base: int, children: tuple[TreeNode, ...], line: int
) -> TreeNode:
    (_, _, start_text, last_text, priority, nonvolatile, kind, alias, target, target_start, _,
     name, disabled, owner) = match.groups()
    start = int(start_text, 16)
    last = int(last_text, 16)
    also: tuple[tuple[str, str], ...] = ()
    if alias is not None and " @" in alias:
        also = _other_cuts(alias, target)
    return TreeNode(
        start, last, (start - base) & MASK64, ((last - start) & MASK64) + 1, int(priority), kind,
        nonvolatile is not None, name if alias is None else alias, disabled is None,
        _owner(owner), target, int(target_start, 16) if target_start else 0, also, children,
        line,
    )


def _other_cuts(alias: str, target: str) -> tuple[tuple[str, str], ...]:
    whole = f"{alias} @{target}"
    cuts: list[tuple[str, str]] = []
    at = whole.find(" @")
    while at >= 0 and len(cuts) < MAX_CUTS:
        if at != len(alias):
            cuts.append((whole[:at], whole[at + 2:]))
        at = whole.find(" @", at + 1)
    return tuple(cuts)


@lru_cache(maxsize=4096)
def _owner(text: str) -> Owner:
    parts = {label: (what, key, value) for label, what, key, value in _PART.findall(text)}
    parent = parts.get("parent")
    inside = parent[2] if parent else ""
    if "owner" not in parts:
        return Owner(inside, False)
    what, key, value = parts["owner"]
    if key == "id":
        path = f"id={value}"
    elif key == "type":
        # An object outside the composition tree, such as a portio list.
        path = f"{inside}/<{value}>"
    else:
        path = value
    return Owner(path, what == "dev")


@_Kept
def _view_at(block: tuple[str, ...], first_line: int) -> FlatText:
    """One view. Its title is left out: its number differs between runs."""
    at = 1
    spaces: list[FlatSpace] = []
    while at < len(block) and (match := _VIEW_SPACE.fullmatch(block[at])):
        spaces.append(FlatSpace(match[1], match[2], match[3]))
        at += 1
    title = " Root memory region: "
    if not spaces or at == len(block) or not block[at].startswith(title):
        at = min(at, len(block) - 1)
        raise _bad(FLAT_COMMAND, first_line + at, "no root memory region", block[at])
    root: str | None = block[at][len(title):]
    at += 1
    if block[at:] == ("  No rendered FlatView",):
        # A region may be called "(none)"; it is none only together with this line.
        return FlatText(tuple(spaces), None if root == "(none)" else root, ())
    ranges: list[FlatLine] = []
    while at < len(block) and block[at] != "  Dispatch":
        ranges.append(_range(block[at], first_line + at, ranges[-1].last if ranges else -1))
        at += 1
    if not ranges:
        raise _bad(FLAT_COMMAND, first_line + at, "a flat view without ranges", block[-1])
    return FlatText(tuple(spaces), root, tuple(ranges), _sections(block[at:], first_line + at))


def _view(block: tuple[str, ...], first_line: int) -> FlatText:
    if not re.fullmatch(r"FlatView #[0-9]{1,9}", block[0]):
        raise _bad(FLAT_COMMAND, first_line, "not a flat view", block[0])
    return _view_at(("", *block[1:]), first_line)


def _range(line: str, number: int, before: int) -> FlatLine:
    stop = len(line)
    while line.endswith(_ACCELERATORS, 0, stop):
        stop = line.rindex(" ", 0, stop)
    match = _RANGE.fullmatch(line, 0, stop)
    if match is None or match[5] not in TYPES or int(match[3]) not in _INT32:
        raise _bad(FLAT_COMMAND, number, "not a range", line)
    start, last = int(match[1], 16), int(match[2], 16)
    if not before < start <= last:
        raise _bad(FLAT_COMMAND, number, "ranges out of order", line)
    return FlatLine(
        start, last, int(match[3]), match[5], match[4] is not None, match[6],
        int(match[7], 16) if match[7] else 0, _owner(match[8]),
    )


def _sections(lines: tuple[str, ...], first_line: int) -> tuple[DispatchSection, ...]:
    """The physical sections of a dispatch tree; its nodes behind them are skipped."""
    if not lines:
        return ()
    if lines[:2] != ("  Dispatch", "    Physical sections"):
        raise _bad(FLAT_COMMAND, first_line, "not a dispatch tree", lines[0])
    sections: list[DispatchSection] = []
    for number, line in enumerate(lines[2:], first_line + 2):
        if line.startswith("    Nodes ("):
            _skip_nodes(lines[number - first_line + 1:], number + 1)
            return tuple(sections)
        match = _SECTION.fullmatch(line)
        if match is None or int(match[1]) != len(sections):
            raise _bad(FLAT_COMMAND, number, "not a physical section", line)
        name = "" if match[4] == "(noname)" else match[4]
        sections.append(DispatchSection(len(sections), int(match[2], 16), int(match[3], 16), name))
    raise _bad(FLAT_COMMAND, first_line + len(lines), "a dispatch tree without nodes", lines[-1])


def _skip_nodes(lines: tuple[str, ...], first_line: int) -> None:
    """See that what follows are the nodes of a dispatch tree."""
    for number, line in enumerate(lines, first_line):
        if _ENTRY.fullmatch(line) is None:
            raise _bad(FLAT_COMMAND, number, "not a node of a dispatch tree", line)
