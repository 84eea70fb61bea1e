"""What the conformance suite of ``Bytes`` knows of the implementation it is run on.

``bytes_conformance`` tells how all this is used.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from qemuglue.memory.bytes import Bytes, ByteValued
from qemuglue.memory.endian import U8, Be16, Be32, Be64, Le16, Le32, Le64
from qemuglue.memory.guest_error import (
    GuestIOError,
    InvalidBackendAddress,
    InvalidGuestAddress,
    PartialBuffer,
)

#: Rules need so many contiguous bytes.
MIN_LENGTH = 48


class Streams(enum.Enum):
    """How an implementation treats streams; the values are words for people."""

    SLICE = "one read or write of the stream, the exact forms must fit: vm-memory's VolatileSlice"
    MEMORY = "one read of the source a region, sinks take all: vm-memory's GuestMemory"
    PLAIN = "what Bytes itself does with read and write"


@dataclass(frozen=True)
class Contract:
    """What may differ between implementations of ``Bytes``, known before there is one.

    ``length`` is how many bytes can be accessed in one go from the first address of the run on:
    at its end is a hole, or the end. ``seam`` is where in it a second region begins, if one does;
    best at an odd multiple of 4.
    """

    length: int
    seam: int | None = None
    #: Raised where not even the first byte can be moved; its ``addr`` is that byte's address if
    #: ``outside_says_where``.
    outside: type[Exception] = InvalidGuestAddress
    outside_says_where: bool = True
    #: Raised by the ``_slice`` forms, with ``expected`` and ``completed``, where a later byte
    #: cannot.
    partial: type[Exception] = PartialBuffer
    #: Raised for objects that do not fit, which are then not moved at all; None where they are
    #: moved like slices.
    whole_objects: type[Exception] | None = None
    #: Raised for every access of which any byte is outside, and nothing is moved then; None where
    #: what can be moved is.
    never_short: type[Exception] | None = None
    #: Raised by ``store`` and ``load`` that cannot be one access.
    not_one: type[Exception] = InvalidBackendAddress
    #: Likewise, where already the first byte is outside; None: as ``outside``.
    not_one_outside: type[Exception] | None = None
    #: Whether ``store`` and ``load`` must be aligned.
    aligned: bool = True
    #: What ``store`` and ``load`` take.
    atomics: tuple[type[ByteValued], ...] = (U8, Le16, Be16, Le32, Be32, Le64, Be64)
    #: None: it has no stream forms, or none that are judged here.
    streams: Streams | None = Streams.MEMORY
    #: Raised for what a stream itself raises, with its ``kind``.
    io_error: type[Exception] = GuestIOError
    #: Raised by every form of write, where nothing can be written.
    read_only: type[Exception] | None = None
    #: Whether ``Subject.calls`` is kept.
    counted: bool = False
    #: Whether there is an address 2^64-1 (``Subject.top``), outside.
    has_top: bool = True

    def __post_init__(self) -> None:
        assert self.length >= MIN_LENGTH, f"the rules need {MIN_LENGTH} bytes in one go"
        assert self.seam is None or 8 < self.seam < self.length - 8, "a seam has 8 bytes around it"

    @property
    def first_region(self) -> int:
        """Bytes of the run before the seam."""
        return self.length if self.seam is None else self.seam


@dataclass
class Subject:
    """One object under test, and the way behind its back.

    ``address(n)`` is the address of byte ``n`` of the run, for every n from 0 to a good deal
    behind the end. ``snapshot`` gives all bytes that could be touched by mistake, of which the
    run begins at ``margin``; ``fill`` sets them all.
    """

    bytes: Bytes[Any]
    address: Callable[[int], Any]
    snapshot: Callable[[], bytes]
    fill: Callable[[bytes], None]
    margin: int = 0
    #: (what, offset, size) of each access to what the bytes are kept in, appended as it happens.
    calls: list[tuple[str, int, int]] = field(default_factory=list)
    #: The address 2^64-1, where the contract has it; None: its type is called with that.
    top: Any = None


class Probe:
    """A subject whose bytes are known; what they should be now is kept beside them."""

    def __init__(self, contract: Contract, subject: Subject) -> None:
        self.contract = contract
        self.bytes = subject.bytes
        self.at = subject.address
        top = (1 << 64) - 1
        self.top = type(subject.address(0))(top) if subject.top is None else subject.top
        self.calls = subject.calls
        self._subject = subject
        self._expected = bytearray(_pattern(len(subject.snapshot())))
        subject.fill(bytes(self._expected))
        self.settle("filling it")
        self.calls.clear()

    @property
    def length(self) -> int:
        return self.contract.length

    def have(self, offset: int, size: int) -> bytes:
        """The ``size`` bytes that should be at ``offset`` of the run."""
        assert offset >= 0 and offset + size <= self.length
        start = self._subject.margin + offset
        return bytes(self._expected[start : start + size])

    def put(self, offset: int, data: bytes) -> None:
        """From now on ``data`` should be at ``offset``."""
        assert offset >= 0 and offset + len(data) <= self.length
        start = self._subject.margin + offset
        self._expected[start : start + len(data)] = data

    def poke(self, offset: int, data: bytes) -> None:
        """Put ``data`` at ``offset`` behind the subject's back."""
        self.put(offset, data)
        self._subject.fill(bytes(self._expected))

    def settle(self, what: str) -> None:
        """Fail unless every byte is what it should be, after ``what``."""
        got = self._subject.snapshot()
        if got == self._expected:
            return
        assert len(got) == len(self._expected), f"{what}: a snapshot of another size"
        wrong = [i for i, pair in enumerate(zip(got, self._expected, strict=True))
                 if pair[0] != pair[1]]
        first = wrong[0]
        raise AssertionError(
            f"{what}: {len(wrong)} bytes are not what they should be, the first at "
            f"{first - self._subject.margin:#x} of the run: {got[first]:#04x} instead of "
            f"{self._expected[first]:#04x}"
        )

    def refused(self, call: Callable[[], object], kind: type[Exception], what: str) -> Exception:
        """Call, which must raise ``kind``; the error."""
        try:
            got = call()
        except kind as error:
            return error
        except Exception as error:
            raise AssertionError(
                f"{what}: {error!r} was raised instead of {kind.__name__}"
            ) from error
        raise AssertionError(f"{what}: {got!r} came back, {kind.__name__} should be raised")


@dataclass(frozen=True)
class Rule:
    """One rule: what it says, whether it is about such implementations, and its check."""

    says: str
    applies: Callable[[Contract], bool]
    check: Callable[[Probe], None]

    @property
    def name(self) -> str:
        return self.check.__name__

    def run(self, contract: Contract, subject: Subject) -> None:
        """Fail unless ``subject`` keeps the rule."""
        self.check(Probe(contract, subject))


RULES: list[Rule] = []


def rule(
    says: str, applies: Callable[[Contract], bool] = lambda contract: True
) -> Callable[[Callable[[Probe], None]], Callable[[Probe], None]]:
    """Make a check a rule."""

    def add(check: Callable[[Probe], None]) -> Callable[[Probe], None]:
        RULES.append(Rule(says, applies, check))
        return check

    return add


def writable(contract: Contract) -> bool:
    """Rules about writing are for what can be written."""
    return contract.read_only is None


def short(contract: Contract) -> bool:
    """Rules about accesses that end early are for what does not refuse them whole."""
    return contract.never_short is None


def short_and_writable(contract: Contract) -> bool:
    return short(contract) and writable(contract)


def _pattern(size: int) -> bytes:
    """Bytes that differ from their neighbours, and from those a page away."""
    return bytes((i * 167 + (i >> 8) * 13 + 5) & 0xFF for i in range(size))


def other(data: bytes) -> bytes:
    """As many bytes, each different from what is there."""
    return bytes(byte ^ 0xA5 for byte in data)
