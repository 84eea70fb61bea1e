"""What an access to a device owes to the transcript, as text.

The rules decide once for a shape (size, low bits of the offset, direction) which calls and
refusals an access is made of; after that QEMU's lines for it are known but for address and value,
and are compared as text, without taking them apart. A form is only made for lines that the
parser reads back as exactly the events meant (``call_text``, ``refusal_text``), so a line equal
to the text owed is the event owed. What has no form is left to whoever takes lines apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache

from qemuglue.memory.attrs import DECODE_ERROR
from qemuglue.memory.contract import UNASSIGNED_CONTRACT, Contract, Reason
from qemuglue.memory.flatview import UNASSIGNED
from qemuglue.memory.region import MemoryRegion
from qemuglue.memory.rules import Rules
from qemuglue.qemu.events import Event, Kind, Refusal, parse
from qemuglue.witness.contracts import Veto

#: A number in QEMU's lines, as the parser has it.
_DIGITS = re.compile(rb"[0-9a-f]{1,16}")

#: Texts kept: a machine's regions times sizes and directions.
_TEXTS = 1 << 13

#: A sample address and value, to see what the parser makes of a text.
_ADDRESS, _VALUE = 0xFEDCBA98, 0x5A

#: ``unassigned_io_read`` returns all-ones of 64 bits, whatever the size.
_ROOT_VALUE = b" value 0x%x ", b" value 0xffffffffffffffff "


@dataclass(frozen=True, slots=True)
class Line:
    """One line owed. ``text`` is filled with the place, ``delta`` bytes from the access on: its
    offset in the region where it is ``refused``, else its bus address; and, if it is
    ``filled``, with the bits ``value >> right & mask`` shifted ``left``."""

    text: bytes
    delta: int
    size: int
    refused: bool = False
    filled: bool = True
    right: int = 0
    mask: int = 0
    left: int = 0
    #: The text in front of the value's digits, which is filled with the place, and behind them.
    head: bytes = b""
    tail: bytes = b""

    def holds(self, line: bytes, place: int, value: int) -> bool:
        """Whether ``line`` is this read with the bits of ``value``: a device may return more bits
        than count (all-ones of 64 bits, say), and QEMU prints them."""
        head = self.head % place
        if not (line.startswith(head) and line.endswith(self.tail)):
            return False
        digits = line[len(head) : -len(self.tail)]
        return _DIGITS.fullmatch(digits) is not None and (
            int(digits, 16) >> self.left & self.mask == value >> self.right & self.mask)


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """The lines of an access in order. ``swapped``: they have the value in the byte order that
    is not the target's. ``fixed`` are the bits of a read's value that no device gives; they must
    be ``filling``. ``plain`` is the text of a single call with just the access's own value.
    ``feature`` is what the access shows to coverage feedback, on this road or the general one.
    """

    lines: tuple[Line, ...]
    swapped: bool
    fixed: int
    filling: int
    #: Whether a device is called at all.
    calls: bool
    plain: bytes
    feature: tuple[object, ...]
    #: The end of ``feature``: (region, size, refusal) of each line, and the MemTxResult.
    shape: tuple[object, ...]
    result: int
    #: A decoded device has to be told of the call, unless it does not heed the place: then
    #: ``quiet`` is what ``plain`` would be.
    heard: bool = False
    quiet: bytes = b""

    @property
    def can_be_heard(self) -> bool:
        """Whether its lines say what the device has to be told."""
        return all(line.filled and line.mask == (1 << 8 * line.size) - 1 for line in self.lines)


@dataclass(frozen=True, slots=True)
class Access:
    """``single`` dispatch is not cut into chunks (R10, ports from QEMU 11 on)."""

    offset: int
    size: int
    is_write: bool
    single: bool = False


def form_of(
    rules: Rules, region: MemoryRegion, access: Access, pointer: int, *, target_big: bool,
    is_root: bool = False, feature: tuple[object, ...] = (),
) -> Form | None:
    """The form of an access inside ``region``, which QEMU's texts call by ``pointer``; None
    where the lines cannot be known beforehand. ``is_root``: it is the root of the I/O space,
    whose reads give what R11 says. ``feature`` is put in front of the form's own."""
    contract = region.contract
    veto = contract.accepts if isinstance(contract.accepts, Veto) else None
    if contract.accepts_attrs is not None or (
        veto is None and contract.accepts not in (None, UNASSIGNED_CONTRACT.accepts)
    ):
        return None  # its answer may depend on the whole offset
    plain = replace(contract, accepts=None) if veto is not None else contract
    big = rules.big(contract, target_big)
    lines: list[Line] = []
    shape: list[object] = []
    fixed = filling = result = 0
    at, size, is_write = 0, access.size, access.is_write
    while at < size:
        offset = access.offset + at
        n = size - at if access.single else rules.chunk(contract, size - at, offset)
        asked = plain
        if veto is not None and veto.vetoing:
            accepted = veto.known(offset, n, is_write)
            if accepted is None:
                return None
            if not accepted:
                asked = replace(plain, accepts=UNASSIGNED_CONTRACT.accepts)
        reason = rules.refusal(asked, offset, n, is_write)
        shift, bits = 8 * (size - at - n if big else at), (1 << 8 * n) - 1
        if reason is not None:
            made = _refusal(region, at, n, is_write, reason)
            result = rules.combine(result, DECODE_ERROR)
            value = rules.refused_value(n)
        elif region.is_ram:
            return None  # what it is dispatched to is not a device
        else:
            made = _calls(rules, plain, region, (at, n, shift), big, is_write, pointer)
            value = rules.port_root_value(n)
        if made is None or not (at + n == size or rules.goes_on(result)):
            return None
        lines += made
        shape += [(region.name, each.size, reason.value if reason else None) for each in made]
        if reason is not None or is_root:
            fixed |= bits << shift
            filling |= (value & bits) << shift
        at += n
    if is_root and not is_write:
        lines = [each if each.refused else _of_root(each) for each in lines]
    [single, *others] = lines
    whole = (single.size, single.right, single.mask) == (size, 0, (1 << 8 * size) - 1)
    simple = whole and single.filled and not (others or single.refused or big != target_big)
    return Form(
        tuple(lines), big != target_big, fixed, filling, any(not x.refused for x in lines),
        single.text if simple else b"", (*feature, tuple(shape), result), tuple(shape), result,
    )


def _of_root(line: Line) -> Line:
    return replace(line, text=line.text.replace(*_ROOT_VALUE), filled=False)


def _refusal(
    region: MemoryRegion, at: int, size: int, is_write: bool, reason: Reason
) -> list[Line] | None:
    text = refusal_text(region, size, is_write, reason)
    return None if text is None else [Line(text, at, size, refused=True, filled=False)]


def _calls(
    rules: Rules, contract: Contract, region: MemoryRegion, part: tuple[int, int, int],
    big: bool, is_write: bool, pointer: int,
) -> list[Line] | None:
    """The calls of one accepted dispatch, whose ``part`` of the access is (bytes before it, its
    size, bits before it); None where pieces of a read share bits or leave some
    out, so that its value does not tell what each returned."""
    found: list[Line] = []
    at, size, shift = part
    told, bits = 0, (1 << 8 * size) - 1
    for piece in rules.pieces(contract, size, big):
        width = (1 << 8 * piece.size) - 1
        right, left = max(0, piece.shift), max(0, -piece.shift)
        mask = (bits >> right) & (width >> left)
        covered = mask << right
        if not is_write and told & covered:
            return None
        told |= covered
        text = call_text(region, piece.size, is_write, pointer)
        if text is None:
            return None
        head, mark, tail = text.partition(b" value 0x")
        found.append(Line(
            text, at + piece.delta, piece.size, False, True, shift + right, mask, left,
            head + mark, tail[len(b"%x"):].replace(b"%%", b"%"),
        ))
    return found if is_write or told == bits else None


def call_text(region: MemoryRegion, size: int, is_write: bool, pointer: int) -> bytes | None:
    """``memory_region_ops_read`` or ``_write`` by nobody's CPU, to be filled with address and
    value; None where the parser would not read it as that."""
    return _call_text(region.name, size, is_write, pointer)


@lru_cache(maxsize=_TEXTS)
def _call_text(name: str, size: int, is_write: bool, pointer: int) -> bytes | None:
    verb = b"write" if is_write else b"read"
    text = b"memory_region_ops_%b cpu -1 mr 0x%x addr 0x%%x value 0x%%x size %d name '%b'" % (
        verb, pointer, size, _escaped(name))
    kind = Kind.WRITE if is_write else Kind.READ
    meant = Event(kind, -1, pointer, _ADDRESS, _VALUE, size, name, None, "")
    return text if parse(text % (_ADDRESS, _VALUE)) == [meant] else None


def refusal_text(
    region: MemoryRegion, size: int, is_write: bool, reason: Reason
) -> bytes | None:
    """``Invalid read`` or ``write``, to be filled with the offset; None as above."""
    limits = (0, 0)
    if reason is Reason.INVALID_SIZE:
        limits = region.contract.valid_min, region.contract.valid_max
    name = None if region is UNASSIGNED else region.name
    return _refusal_text(name, size, is_write, reason, limits)


@lru_cache(maxsize=_TEXTS)
def _refusal_text(
    name: str | None, size: int, is_write: bool, reason: Reason, limits: tuple[int, int]
) -> bytes | None:
    words = reason.value.encode()
    if reason is Reason.INVALID_SIZE:
        words += b" (min:%d max:%d)" % limits
    text = b"Invalid %b at addr 0x%%X, size %d, region '%b', reason: %b" % (
        b"write" if is_write else b"read", size,
        _escaped("(null)" if name is None else name), words)
    meant = Event(
        Kind.INVALID_WRITE if is_write else Kind.INVALID_READ, -1, 0, _ADDRESS, 0, size,
        name, Refusal(reason, *limits), "")
    return text if parse(text % _ADDRESS) == [meant] else None


def _escaped(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape").replace(b"%", b"%%")
