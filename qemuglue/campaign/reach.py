"""What a program reached in QEMU, read from the transcript's text: states and trace events.

A *state* is (region, offset, size, outcome): an access that QEMU passed to a device, or refused,
with the class of the value a read returned. Trace events of the devices come as their names and
shapes (``trace_events``); their lines are taken out of the text here, so that what judges the
accesses does not have to step over them.

``Reach`` sits on the transcript of the session at hand (``Transcript.listener``) and judges
nothing. Its facts are the same for the same program from the same state of the machine; what is not
(clocks, other threads) is for ``feedback.Stability`` to find.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from qemuglue.campaign.guide import Guide
from qemuglue.campaign.trace_events import TraceEvents
from qemuglue.program.verbs import IO, MEMORY

if TYPE_CHECKING:
    from qemuglue.program.layout import Layout
    from qemuglue.program.operation import Place
    from qemuglue.witness.session import Session

#: A fact about one program, hashable.
Fact = tuple[object, ...]
#: A register: space, place in it. None where the layout of the start does not show it there.
Register = tuple[str, "Place"]

#: Different values of one register that are told apart; later ones by their width in bits.
EXACT_VALUES: Final = 16
#: Registers remembered; beyond that the names are a hostile QEMU's.
MAX_REGISTERS: Final = 1 << 18

_ACCESS: Final = re.compile(
    rb"memory_region_ops_(read|write) cpu -?[0-9]{1,9} mr \S{1,20} addr 0x([0-9a-f]{1,16}) "
    rb"value 0x([0-9a-f]{1,16}) size ([1-8]) name '([^\n]{0,255})'")
_REFUSED: Final = re.compile(
    rb"Invalid (read|write) at addr 0x([0-9A-F]{1,16}), size ([0-9]{1,4}), "
    rb"region '([^\n]{0,255})', reason: (\w+)")


class Places:
    """From a transcript's (name, address) to the register, on the layout of the start."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._known: dict[tuple[str, int], Register | None] = {}

    def find(self, name: str, address: int) -> Register | None:
        """None where the region is not seen at that address: it has moved since, or its address
        is not the bus address (behind an alias)."""
        key = name, address
        if key not in self._known:
            if len(self._known) >= MAX_REGISTERS:
                self._known.clear()
            self._known[key] = self._look(name, address)
        return self._known[key]

    def _look(self, name: str, address: int) -> Register | None:
        for space in (MEMORY, IO):
            if space == IO and address > 0xFFFF:
                continue
            found = self._layout.range_at(address & 0xFFFF_FFFF_FFFF_FFFF, space)
            if found.region == name and found.kind == "device":
                return space, self._layout.place_of(address, space)
        return None


class Reach:
    """Facts of the program that runs. ``trace`` and ``guide`` may be left out."""

    def __init__(
        self, layout: Callable[[], Layout], *, trace: TraceEvents | None = None,
        guide: Guide | None = None,
    ) -> None:
        self.facts: set[Fact] = set()
        self.trace = trace
        self.guide = guide
        self._make_layout = layout
        self._places: Places | None = None
        self._session: Session | None = None
        self._values: dict[tuple[str, int], set[int]] = {}
        self._last: Register | None = None
        self._names: dict[bytes, str] = {}

    def attach(self, session: Session) -> None:
        """Listen to a QEMU that has just started.

        :raise QemuFailure: it ended meanwhile.
        """
        self._session = session
        if self.trace is not None:
            self.trace.attach(session)
        session.process.transcript.listener = self.take

    def begin(self) -> None:
        """A program begins."""
        self.facts = set()
        self._last = None

    def end(self, operations: int) -> None:
        """It has ended, after so many operations: events that were too loud go off."""
        if self.trace is not None:
            self.trace.settle(self._session, operations)

    def take(self, text: bytes) -> bytes:
        """Read whole lines; they come back without those of the trace events."""
        if self._places is None:
            self._places = Places(self._make_layout())
        kept: list[bytes] = []
        lines = text.split(b"\n")
        names = self.trace.names if self.trace is not None else {}
        for line in lines:
            if line[:18] == b"memory_region_ops_":
                self._access(line)
            elif line[:8] == b"Invalid ":
                self._refusal(line)
            else:
                name = names.get(line[:line.find(b" ")] if b" " in line else line)
                if name is not None:
                    self._event(name, line)
                    continue
            kept.append(line)
        return text if len(kept) == len(lines) else b"\n".join(kept)

    def _access(self, line: bytes) -> None:
        found = _ACCESS.match(line)
        if found is None or self._places is None:
            return
        verb, address, printed, size, raw = found.groups()
        at, length, name = int(address, 16), int(size), self._text(raw)
        value = int(printed, 16) & ((1 << 8 * length) - 1)
        register = self._places.find(name, at)
        offset = at & 0xFFF if register is None else register[1].offset
        self._last = register
        if verb == b"write":
            fact: Fact = ("write", name, offset, length)
        else:
            fact = ("read", name, offset, length, self._class(name, offset, value))
        if self.guide is not None and register is not None:
            self.guide.accessed(register, length, None if verb == b"write" else value, fact)
        self.facts.add(fact)

    def _class(self, name: str, offset: int, value: int) -> int:
        """The value while the register has shown few, minus its width in bits later."""
        seen = self._values.setdefault((name, offset), set())
        if value in seen:
            return value
        if len(seen) < EXACT_VALUES:
            if len(self._values) > MAX_REGISTERS:
                self._values.clear()
            seen.add(value)
            return value
        return -value.bit_length()

    def _refusal(self, line: bytes) -> None:
        found = _REFUSED.match(line)
        if found is None:
            return
        verb, address, size, raw, why = found.groups()
        name = self._text(raw)
        # Where nothing is, one address is like another.
        offset = int(address, 16) if name != "(null)" else int(address, 16).bit_length()
        self.facts.add(("refused", verb == b"write", name, offset, int(size), self._text(why)))

    def _event(self, name: str, line: bytes) -> None:
        assert self.trace is not None
        self.trace.counted(name)
        self.facts.add(("event", name))
        shape = self.trace.shape(name, line)
        if shape is not None:
            fact = ("shape", shape)
            self.facts.add(fact)
            if self.guide is not None and self._last is not None:
                self.guide.fired(self._last, fact)

    def _text(self, raw: bytes) -> str:
        """Few different ones, so decoded once."""
        text = self._names.get(raw)
        if text is None:
            if len(self._names) > MAX_REGISTERS:
                self._names.clear()
            text = self._names[raw] = raw.decode("ascii", "backslashreplace")
        return text


def names_of(facts: Iterable[Fact]) -> set[str]:
    """The trace events among facts, by name."""
    return {str(fact[1]) for fact in facts if fact[0] == "event"}
