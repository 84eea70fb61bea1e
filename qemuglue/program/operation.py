"""Operations, places and programs: the nouns of this room, and the one judge of validity.

An operation that passes :func:`validate` can be sent to qtest without tripping one of qtest's
own assertions (rule R20: a port above 0xffff, a ``read`` of no bytes and a huge length all end
QEMU). Every transformation in this room ends in ``validate``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from dataclasses import dataclass
from typing import Any

from qemuglue.errors import ProgramError
from qemuglue.program.verbs import (
    ADDRESS_MASK,
    IO,
    MAX_ARGS,
    MAX_INDEX,
    MAX_LENGTH,
    MAX_NAME,
    MAX_OPERATIONS,
    MEMORY,
    MODES,
    PORT_MAX,
    SETUPS,
    VERBS,
    Kind,
    VerbInfo,
)
from qemuglue.program.words import format_args, format_operation

HEADER = "# qemuglue program 1"
_MACHINE = re.compile(r"[A-Za-z0-9_.+-]{1,64}/[A-Za-z0-9_.+-]{1,128}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where an operation acts.

    With ``region`` None: the absolute address ``offset``, 0..2**64-1 (ports: 0..0xffff).
    Otherwise: byte ``offset`` of the ``index``-th distinct region called ``region``, in the
    order in which the view shows them. ``Layout.resolve`` says which address that is.
    ``space`` names the view the region is looked up in; None means the verb's own space. The
    operation itself always acts on its verb's own space.
    """

    region: str | None = None
    index: int = 0
    offset: int = 0
    space: str | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """One access or event.

    ``size``: bytes moved (1, 2, 4, 8 for sized verbs, the length for read, write and memset,
    0 for events). ``value``: the value of sized writes and ``out*`` (a number, in no byte
    order; the target's applies when it is stored), the fill byte of ``memset``, else 0.
    ``data``: the bytes of ``write`` in address order, else empty.
    """

    verb: str
    place: Place | None
    size: int
    value: int = 0
    data: bytes = b""

    @property
    def info(self) -> VerbInfo:
        """The row of ``VERBS``; raises KeyError for a verb that is not there."""
        return VERBS[self.verb]


def validate(op: Operation) -> Operation:
    """Return ``op`` if it may be sent to QEMU, else raise ProgramError with a next step."""
    info = VERBS.get(op.verb)
    if info is None:
        raise ProgramError(f"unknown verb {op.verb[:40]!r}; use one of {', '.join(VERBS)}")
    if info.kind is Kind.EVENT:
        if op.place is not None or op.size or op.value or op.data:
            raise ProgramError(f"{op.verb} takes nothing; give the verb alone")
        return op
    if op.place is None:
        raise ProgramError(f"{op.verb} needs a place; write @ADDRESS or REGION+OFFSET")
    _validate_place(op.place, info)
    if info.size is not None:
        if op.size != info.size:
            raise ProgramError(f"{op.verb} moves {info.size} bytes, not {op.size}; "
                               "use the verb of that size")
    elif not 1 <= op.size <= MAX_LENGTH:
        raise ProgramError(f"{op.verb} of {op.size} bytes; give a length from 1 to {MAX_LENGTH}")
    _validate_value(op, info)
    return op


def _validate_place(place: Place, info: VerbInfo) -> None:
    if not 0 <= place.offset <= ADDRESS_MASK:
        raise ProgramError("address or offset outside 0..0xffffffffffffffff; use 64 bits")
    if not 0 <= place.index <= MAX_INDEX:
        raise ProgramError(f"region index outside 0..{MAX_INDEX}; count from #0")
    if place.region is None:
        if place.index:
            raise ProgramError("an absolute address has no region index; drop it")
        if info.space == IO and place.offset > PORT_MAX:
            raise ProgramError(f"port {place.offset:#x}; ports go from 0 to {PORT_MAX:#x}")
    elif not 1 <= len(place.region) <= MAX_NAME:
        raise ProgramError(f"a region name has 1 to {MAX_NAME} characters; use @ADDRESS instead")
    if place.space is not None:
        if not 1 <= len(place.space) <= MAX_NAME:
            raise ProgramError(f"a space name has 1 to {MAX_NAME} characters; shorten it")
        other = MEMORY if info.space == IO else IO
        if place.space == other or (info.space == IO and place.space != IO):
            raise ProgramError(f"{info.name} acts on {info.space}, its place cannot be looked up "
                               f"in {place.space[:40]!r}; drop the space")


def _validate_value(op: Operation, info: VerbInfo) -> None:
    if op.verb == "write":
        if len(op.data) != op.size:
            raise ProgramError(f"write of {op.size} bytes has {len(op.data)} bytes of data; "
                               "make them equal")
    elif op.data:
        raise ProgramError(f"{op.verb} carries no data bytes; use write")
    if info.kind is Kind.FILL:
        limit = 0xFF
    elif info.is_write and info.size is not None:
        limit = (1 << 8 * info.size) - 1
    else:
        limit = 0
    if not 0 <= op.value <= limit:
        if limit == 0:
            raise ProgramError(f"{op.verb} takes no value; drop {op.value:#x}")
        raise ProgramError(f"value {op.value:#x} does not fit {op.verb}; "
                           f"give at most {limit:#x}")


def recast(op: Operation, verb: str, size: int | None = None) -> Operation:
    """``op`` done by another verb of the same space: place kept, the rest kept as far as it fits.

    ``size`` counts for verbs without one of their own and is clamped to 1..MAX_LENGTH. A value
    is cut to its low bytes; data bytes become a value, and a value becomes data, lowest byte
    first; data is cut, or filled up with zeros.
    """
    info = VERBS[verb]
    assert op.place is not None and info.space == op.info.space, f"{op.verb} recast as {verb}"
    length = info.size or min(max(op.size if size is None else size, 1), MAX_LENGTH)
    if not info.is_write:
        return Operation(verb, op.place, length)
    value = op.value or int.from_bytes(op.data[:8], "little")
    if info.kind is Kind.FILL:
        return Operation(verb, op.place, length, value & 0xFF)
    if info.size is None:
        data = op.data or value.to_bytes(8, "little")
        return Operation(verb, op.place, length, 0, data[:length].ljust(length, b"\0"))
    return Operation(verb, op.place, length, value & ((1 << 8 * length) - 1))


@dataclass(frozen=True, slots=True)
class Program:
    """A sequence of operations for one machine and command line.

    ``machine`` is ``TARGET/NAME``; ``args`` are words appended to QEMU's command line;
    ``mode`` is one of ``MODES``, ``setup`` one of ``SETUPS``. Immutable; nothing is checked until
    :meth:`validate`.
    """

    machine: str
    args: tuple[str, ...] = ()
    operations: tuple[Operation, ...] = ()
    mode: str = "stopped"
    setup: str = ""

    def canonical_text(self) -> str:
        """The one spelling of this program; ``text.parse`` gives the program back."""
        lines = [HEADER, f"machine {self.machine}"]
        if self.args:
            lines.append(f"args {format_args(self.args)}")
        if self.mode != "stopped":
            lines.append(f"mode {self.mode}")
        if self.setup:
            lines.append(f"setup {self.setup}")
        lines.extend(map(format_operation, self.operations))
        return "\n".join(lines) + "\n"

    def sha1(self) -> str:
        """Hex SHA-1 of the canonical text in UTF-8: the program's name in corpora, findings."""
        text = self.canonical_text().encode("utf-8", "surrogatepass")
        return hashlib.sha1(text, usedforsecurity=False).hexdigest()

    def replace(self, **changes: Any) -> Program:
        """A copy with some fields changed; the caller validates what it made up."""
        return dataclasses.replace(self, **changes)

    def validate(self) -> Program:
        """Return self, or raise ProgramError; the error says which operation (from 0)."""
        if not _MACHINE.fullmatch(self.machine):
            raise ProgramError(f"machine {self.machine[:80]!r} is not TARGET/NAME; "
                               "write for instance x86_64/q35")
        if self.mode not in MODES:
            raise ProgramError(f"mode {self.mode[:40]!r}; use one of {', '.join(MODES)}")
        if self.setup not in SETUPS:
            raise ProgramError(f"set-up {self.setup[:40]!r}; write 'setup pci', 'setup dma' or "
                               "nothing")
        if len(self.args) > MAX_ARGS:
            raise ProgramError(f"more than {MAX_ARGS} arguments; use fewer devices")
        for arg in self.args:
            if not printable(arg):
                raise ProgramError(f"argument {arg[:40]!r} has a control character or is not "
                                   "Unicode text; remove it")
        if len(self.operations) > MAX_OPERATIONS:
            raise ProgramError(f"more than {MAX_OPERATIONS} operations; split the program")
        for number, op in enumerate(self.operations):
            try:
                validate(op)
            except ProgramError as error:
                raise ProgramError(f"operation {number}: {error}") from error
        return self


_UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


def printable(text: str) -> bool:
    """Whether ``text`` can stand on one line of UTF-8: no control characters, no surrogates."""
    return _UNPRINTABLE.search(text) is None
