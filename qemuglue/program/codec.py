"""Program bytes v1: the fuzzer's side of a program. Total: any bytes decode to valid operations.

One version byte, then records of 24 bytes, little-endian (FORMAT.md has the table):

====== ==== =========================================================================
offset size field
====== ==== =========================================================================
0      1    verb: a slot of ``VERB_SLOTS``
1      1    aim: its low 4 bits are a slot of ``AIM_SLOTS``
2      2    selector: a row of the layout, modulo their number
4      8    x: the number the aim scales to the range, or the absolute address
12     2    length of ``read``, ``write``, ``memset``, coded
14     1    what the value means: its low 2 bits are a ``Meaning``
15     1    unused
16     8    value
====== ==== =========================================================================

Fixed widths let a fuzzer's byte mutations stay inside one operation. The selector counts rows of
``Layout.rows`` (``port_rows`` for ports), so the same bytes mean something on every machine.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum

from qemuglue.program.aim import Aim, place_at, reach
from qemuglue.program.layout import Layout, Row
from qemuglue.program.operation import Operation, Place, Program
from qemuglue.program.values import SPECIAL, pointer, repeated, stream
from qemuglue.program.verbs import IO, MAX_LENGTH, MEMORY, PORT_MAX, VERBS, Kind

VERSION = 1
_RECORD = struct.Struct("<BBHQHBxQ")
RECORD_SIZE = _RECORD.size
#: Operations in one input unless the caller says otherwise: a campaign wants short programs.
DEFAULT_MAX_OPS = 256

#: Verb of each value of the verb byte: (verb, how many values), in order, 256 in all. The last
#: value is ``reset``, and only together with aim byte 0xff: it costs a machine a round trip.
VERB_SLOTS: tuple[tuple[str, int], ...] = (
    ("readb", 18), ("writeb", 18), ("readw", 20), ("writew", 20), ("readl", 24), ("writel", 24),
    ("readq", 18), ("writeq", 18), ("read", 14), ("write", 14), ("memset", 10),
    ("inb", 10), ("outb", 10), ("inw", 9), ("outw", 9), ("inl", 9), ("outl", 10), ("reset", 1),
)
#: Aim of each value of the aim byte's low 4 bits.
AIM_SLOTS: tuple[Aim, ...] = (
    Aim.UNIFORM, Aim.UNIFORM, Aim.ALIGNED, Aim.ALIGNED, Aim.ALIGNED,
    Aim.REGISTER, Aim.REGISTER, Aim.REGISTER, Aim.NEAR_START, Aim.NEAR_START, Aim.NEAR_LAST,
    Aim.CROSS_LAST, Aim.CROSS_LAST, Aim.CROSS_START, Aim.CROSS_START, Aim.ABSOLUTE,
)
_RESET_AIM = 0xFF


class Meaning(IntEnum):
    """What the value field means. memset always takes its low byte."""

    #: The value itself; ``write``: its 8 bytes over and over.
    LITERAL = 0
    #: The value itself; ``write``: its 8 bytes, then a stream seeded by them.
    STREAM = 1
    #: One of ``SPECIAL``; ``write``: over and over.
    SPECIAL = 2
    #: An address in RAM; ``write``: over and over.
    POINTER = 3


# Plain tuples and numbers: naming attributes and enum members is half of decode's time.
_VERBS: tuple[tuple[str, int | None, bool, str, Kind], ...] = tuple(
    (info.name, info.size, info.is_write, info.space or "", info.kind)
    for info, count in ((VERBS[name], count) for name, count in VERB_SLOTS) for _ in range(count)
)
assert len(_VERBS) == 256, f"the verb byte has 256 values, the table {len(_VERBS)}"
#: What stands for ``reset`` where the aim byte does not confirm it.
_INSTEAD = next(row for row in _VERBS if row[0] == "readl")
_AIMS = tuple(map(int, AIM_SLOTS))
_ABSOLUTE = int(Aim.ABSOLUTE)
_STREAM, _SPECIAL, _POINTER = map(int, (Meaning.STREAM, Meaning.SPECIAL, Meaning.POINTER))
_FIRST_VERB = {row[0]: slot for slot, row in reversed(tuple(enumerate(_VERBS)))}
_FIRST_AIM = {aim: slot for slot, aim in reversed(tuple(enumerate(AIM_SLOTS)))}
_MASKS = {size: (1 << 8 * size) - 1 for size in (1, 2, 4, 8)}


def length_of(code: int) -> int:
    """Length from its code, 0..0xffff: mostly up to 32, sometimes 256, now and then 4096."""
    top = code >> 12
    if top == 15:
        return 1 + (code & 0xFFF)
    return 1 + (code & (0xFF if top >= 12 else 0x1F))


def code_of(length: int) -> int:
    """The code that gives any length from 1 to 4096."""
    assert 1 <= length <= MAX_LENGTH, f"length {length}"
    return 0xF000 | (length - 1)


def decode(
    data: bytes, layout: Layout, machine: str, args: Sequence[str] = (),
    max_ops: int = DEFAULT_MAX_OPS, mode: str = "stopped", setup: str = "",
) -> Program:
    """The program that ``data`` means on this machine: at most ``max_ops`` operations, all valid.

    Never fails on ``data``: a last record that is cut short is read as if zeros followed, no
    records give an empty program. Every version byte is read as version 1 as long as there is
    no other.
    """
    body = data[1:1 + RECORD_SIZE * max_ops]
    body += bytes(-len(body) % RECORD_SIZE)
    rows, ports = layout.rows, layout.port_rows
    operations = tuple([
        _operation(record, layout, rows, ports) for record in _RECORD.iter_unpack(body)
    ])
    return Program(machine, tuple(args), operations, mode, setup)


def _operation(
    record: tuple[int, ...], layout: Layout, rows: tuple[Row, ...], ports: tuple[Row, ...],
) -> Operation:
    slot, aim_slot, selector, x, code, meaning, value = record
    verb, size, is_write, space, kind = _VERBS[slot]
    if not space:
        if aim_slot == _RESET_AIM:
            return Operation(verb, None, 0)
        verb, size, is_write, space, kind = _INSTEAD
    length = size or length_of(code)
    aim = _AIMS[aim_slot & 15]
    if aim == _ABSOLUTE:
        place = Place(None, 0, x & PORT_MAX if space == IO else x, None)
    else:
        table = ports if space == IO else rows
        row = table[selector % len(table)]
        place = place_at(layout, row, reach(aim, row[1], length, x), space)[0]
    if not is_write:
        return Operation(verb, place, length)
    if kind is Kind.FILL:
        return Operation(verb, place, length, value & 0xFF)
    meaning &= 3
    if meaning == _SPECIAL:
        value = SPECIAL[value % len(SPECIAL)]
    elif meaning == _POINTER:
        value = pointer(layout.pointers, value)
    if size:
        return Operation(verb, place, size, value & _MASKS[size])
    make = stream if meaning == _STREAM else repeated
    return Operation(verb, place, length, 0, make(value, length))


def encode(program: Program, layout: Layout) -> bytes:
    """Bytes that decode to this program's operations on the same layout.

    Every operation comes back with its verb, size, resolved address and value. Not kept:

    - operations whose region the layout lacks: left out;
    - machine, args, mode and setup: not part of the bytes;
    - how a place was written: a region-relative place may come back under the name of the range
      that its address falls in;
    - the data of a ``write`` over 8 bytes, unless it repeats every 8 bytes or is the stream that
      its first 8 bytes seed (all that ``decode`` makes is): the first 8 are kept.
    """
    selectors = {space: _selectors(layout, space) for space in (MEMORY, IO)}
    records = [bytes([VERSION])]
    for op in program.operations:
        if op.place is None:
            records.append(_RECORD.pack(_FIRST_VERB[op.verb], _RESET_AIM, 0, 0, 0, 0, 0))
            continue
        space = op.info.space
        assert space is not None, f"{op.verb} has a place but no space"
        address = layout.address_of(op, strict=False)
        if address is None:
            continue
        aim, selector, x = Aim.ABSOLUTE, 0, address
        if op.place.region is not None:
            found = layout.range_at(address, space)
            if found.start in selectors[space]:
                selector = selectors[space][found.start]
                aim, x = Aim.UNIFORM, address - found.start
        meaning, value = _value(op)
        code = 0 if op.info.size is not None else code_of(op.size)
        records.append(_RECORD.pack(_FIRST_VERB[op.verb], _FIRST_AIM[aim], selector, x, code,
                                    meaning, value))
    return b"".join(records)


def _selectors(layout: Layout, space: str) -> dict[int, int]:
    """First selector of each range, by its start; those past 16 bits are out of reach."""
    rows = layout.port_rows if space == IO else layout.rows
    selectors: dict[int, int] = {}
    for number, row in enumerate(rows[:0x10000]):
        selectors.setdefault(row.start, number)
    return selectors


def _value(op: Operation) -> tuple[Meaning, int]:
    if op.verb != "write":
        return Meaning.LITERAL, op.value
    value = int.from_bytes(op.data[:8], "little")
    is_stream = len(op.data) > 8 and op.data != repeated(value, op.size)
    return (Meaning.STREAM if is_stream else Meaning.LITERAL), value
