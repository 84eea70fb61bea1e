"""axaddrspace's face: ``GuestMemoryAccessor``, seven methods over one translation.

An accessor says where the host has a guest address and how many bytes may be touched from there
on (``translate_and_get_limit``); the six other methods follow from that. Names, argument order
and meaning are those of the trait in axaddrspace (``src/memory_accessor.rs``; 0.3.0 and 0.5.5
differ only in the crates that the types come from). An ``Option`` is a value or None, an
``AxResult`` a value or an ``AxError``.

Its host addresses are pointers. Here one is a ``PhysAddr``: a place in a ``Backing``, so that the
face works on a bytearray, on memory that QEMU shares, on another process's memory and behind a
device. As with any pointer, no bitmap hears of what is written through one (a backing may tell).

What each face makes of one request (vm-memory: ``Bytes`` of its ``GuestMemory``)

========================  ==========================  ================================
request                   here                        vm-memory
========================  ==========================  ================================
nothing at the address    InvalidInput                InvalidGuestAddress(addr)
no bytes, bad address     a buffer is done, an        done (0)
                          object InvalidInput
an object that two        InvalidInput, although the  ``read_obj`` is done in two
regions share             bytes are all there         parts; ``load`` is
                                                      InvalidBackendAddress
a buffer over contiguous  done                        done
regions
a buffer that runs into   InvalidInput; what was      ``read`` counts what was moved,
a hole                    moved stays (``moved`` is   ``read_slice``: PartialBuffer
                          ours, upstream is silent)   (expected, completed)
an object at an odd       done, in one access         ``read_obj`` is done; ``load``
address                                               is InvalidBackendAddress
a buffer beyond 2^64-1    AddressOverflow             goes on at address 0, as QEMU's
                                                      ``address_space_rw`` does
========================  ==========================  ================================

QEMU's ``address_space_ld*`` do an object that crosses the end of RAM as one access of the first
region, which fails; its ``address_space_read`` cuts it as ``read_obj`` of vm-memory does.

Where upstream says nothing, its code does what no caller wants. All that is refused here with an
``AccessorDefect``:

- ``limit`` 0 for a mapped address: ``read_buffer`` and ``write_buffer`` never end upstream
  (ZeroLimit). An object is InvalidInput there and here.
- a ``limit`` that is more than what is left, such as that of ``AddrSpace`` in 0.3.0, which is
  always the size of the whole area: upstream runs on into whatever the host has behind the area
  (LimitTooLarge). It is told at every use, also where the bytes wanted happen to be there: the
  next ones may not be. ``RegionAccessor(…, whole_area_limit=True)`` does what 0.3.0 does, to show
  code that relies on it wrong.
- bytes beyond 2^64-1: the addition overflows, which Rust's debug builds panic at and others wrap
  to 0 (AddressOverflow). A buffer that ends exactly there is done here; debug builds panic at it
  too where its last bytes are in a second region.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from qemuglue.errors import ModelError
from qemuglue.memory.backing import Backing
from qemuglue.memory.bytes import (
    ByteValued,
    Readable,
    V,
    Writable,
    byte_valued,
    readable,
    size_of,
    writable,
)
from qemuglue.memory.guest_address import ADDRESS_END, GuestAddress
from qemuglue.memory.guest_error import HostAddressNotAvailable
from qemuglue.memory.plain_number import plain_number
from qemuglue.memory.volatile.window import load_one, store_one

#: Where in guest memory (upstream: ``GuestPhysAddr``).
GuestPlace = GuestAddress | int


class AxError(ModelError):
    """Root of this face's errors (``ax_errno``); never raised itself.

    ::

        ModelError
        └── AxError
            ├── InvalidInput       the one error that the trait names (guest_addr, size, moved)
            └── AccessorDefect     what upstream does not notice; never raised itself
                ├── ZeroLimit        (guest_addr)
                ├── LimitTooLarge    (guest_addr, limit, left)
                └── AddressOverflow  (guest_addr, size)

    What a backing itself raises passes through; what was moved before stays moved.
    """


class InvalidInput(AxError):
    """``guest_addr`` cannot be translated, or the object of ``size`` bytes there does not fit
    in what is accessible. Of a buffer, ``moved`` bytes were moved before and stay moved, and
    ``size`` are missing; upstream does not tell either."""

    def __init__(self, guest_addr: GuestAddress, size: int, moved: int = 0) -> None:
        self.guest_addr = guest_addr
        self.size = size
        self.moved = moved
        super().__init__(guest_addr, size, moved)

    def __str__(self) -> str:
        before = f"; {self.moved} before them were moved" if self.moved else ""
        return (
            f"invalid input: {self.size} bytes at guest address "
            f"{self.guest_addr.raw_value():#x} are not accessible{before}"
        )


class AccessorDefect(AxError):
    """``translate_and_get_limit`` answered, or would be asked, what makes upstream's code go
    astray. Never raised itself."""


class ZeroLimit(AccessorDefect):
    """``guest_addr`` is translated, but no byte of it may be touched."""

    def __init__(self, guest_addr: GuestAddress) -> None:
        self.guest_addr = guest_addr
        super().__init__(guest_addr)

    def __str__(self) -> str:
        return (
            f"guest address {self.guest_addr.raw_value():#x} is translated with a limit of 0, at "
            "which axaddrspace's loop never ends: translate to None instead"
        )


class LimitTooLarge(AccessorDefect):
    """``limit`` bytes are said to be accessible at ``guest_addr``, where only ``left`` are."""

    def __init__(self, guest_addr: GuestAddress, limit: int, left: int) -> None:
        self.guest_addr = guest_addr
        self.limit = limit
        self.left = left
        super().__init__(guest_addr, limit, left)

    def __str__(self) -> str:
        return (
            f"guest address {self.guest_addr.raw_value():#x} is translated with a limit of "
            f"{self.limit:#x} bytes where {self.left:#x} are left: axaddrspace would run on into "
            "what lies behind them"
        )


class AddressOverflow(AccessorDefect):
    """``size`` bytes at ``guest_addr`` do not end below 2^64. Those below it were moved."""

    def __init__(self, guest_addr: GuestAddress, size: int) -> None:
        self.guest_addr = guest_addr
        self.size = size
        super().__init__(guest_addr, size)

    def __str__(self) -> str:
        return (
            f"{self.size} bytes at guest address {self.guest_addr.raw_value():#x} go on beyond "
            "2^64-1, where axaddrspace's addition overflows"
        )


@dataclass(frozen=True, slots=True)
class PhysAddr:
    """A host address: ``offset`` bytes into ``backing``. Upstream it is a number that is used
    as a pointer; here it can be read and written whatever the backing is.

    It has a number where the backing has one. Two are equal if they are the same place of the
    same backing.
    """

    backing: Backing
    offset: int

    @property
    def host_address(self) -> int | None:
        """The number, in the process that holds the bytes: the backing's ``host_address`` plus
        the offset. None where the backing has no such attribute, as a bytearray's."""
        base: int | None = getattr(self.backing, "host_address", None)
        return None if base is None else base + self.offset

    def as_usize(self) -> int:
        """The number. Raises HostAddressNotAvailable where there is none."""
        number = self.host_address
        if number is None:
            raise HostAddressNotAvailable
        return number

    @property
    def left(self) -> int:
        """Bytes from here to the end of the backing."""
        return max(len(self.backing) - self.offset, 0)

    def read(self, size: int) -> bytes:
        """``size`` bytes, in one call of the backing; they must be there."""
        return self.backing.read(self.offset, size)

    def write(self, data: bytes) -> None:
        """Put ``data`` here, in one call of the backing; it must fit."""
        self.backing.write(self.offset, data)

    def read_volatile(self, size: int) -> bytes:
        """As ``read``; 1, 2, 4 or 8 bytes that can be pointed at are one load of that width."""
        return load_one(self.backing, self.offset, size)

    def write_volatile(self, data: bytes) -> None:
        """As ``write``; 1, 2, 4 or 8 bytes that can be pointed at are one store of that width."""
        store_one(self.backing, self.offset, data)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PhysAddr):
            return NotImplemented
        return self.backing is other.backing and self.offset == other.offset

    def __hash__(self) -> int:
        return hash((id(self.backing), self.offset))

    def __repr__(self) -> str:
        number = self.host_address
        where = f"{type(self.backing).__name__}+{self.offset:#x}"
        return f"PhysAddr({where})" if number is None else f"PhysAddr({number:#x}: {where})"


class GuestMemoryAccessor(ABC):
    """Access to a guest's memory, given where the host has it.

    Guest addresses are GuestAddress or plain numbers. Values are ``ByteValued``: any bytes are
    one, which stands for upstream's ``V: Copy``; types without bytes are not among them.
    Every method raises ModelError for what is neither.
    """

    __slots__ = ()

    #: True takes a limit at its word, as upstream does: only an access that would leave the
    #: backing is LimitTooLarge then.
    trusts_limits: bool = False

    @abstractmethod
    def translate_and_get_limit(self, guest_addr: GuestPlace) -> tuple[PhysAddr, int] | None:
        """Where the host has ``guest_addr``, and how many bytes, at least 1, may be touched
        from there on: all of them in one piece there. None where it is not mapped."""

    def bytes_left(self, guest_addr: GuestAddress) -> int | None:
        """How many bytes really follow ``guest_addr`` in its region, for an accessor that knows
        its regions apart from what it answers: limits are held against it. None: unknown."""
        return None

    def read_obj(self, guest_addr: GuestPlace, cls: type[V]) -> V:
        """A value of type ``cls``, in one access. Raises InvalidInput unless all of it is
        accessible in one piece; it may lie at any address."""
        size = size_of(cls)
        return cls.from_raw(self._object(guest_addr, size).read_volatile(size))

    def write_obj(self, guest_addr: GuestPlace, val: ByteValued) -> None:
        """Write ``val``, in one access. Raises as ``read_obj`` does, before anything is
        written."""
        raw = byte_valued(val).raw
        self._object(guest_addr, len(raw)).write_volatile(raw)

    def read_buffer(self, guest_addr: GuestPlace, buffer: Writable) -> None:
        """Fill ``buffer``, region by region. An empty one is filled without translating.
        Raises InvalidInput at the first region that is not there; what was moved stays."""
        view = writable(buffer)
        for host, done, n in self._pieces(guest_addr, len(view)):
            view[done : done + n] = host.read(n)

    def write_buffer(self, guest_addr: GuestPlace, buffer: Readable) -> None:
        """Write ``buffer``, region by region. Raises as ``read_buffer`` does."""
        data = readable(buffer)
        for host, done, n in self._pieces(guest_addr, len(data)):
            host.write(data[done : done + n])

    def read_volatile(self, guest_addr: GuestPlace, cls: type[V]) -> V:
        """``read_obj`` by another name."""
        return self.read_obj(guest_addr, cls)

    def write_volatile(self, guest_addr: GuestPlace, val: ByteValued) -> None:
        """``write_obj`` by another name."""
        self.write_obj(guest_addr, val)

    # -- inside ------------------------------------------------------------------------------

    def _object(self, guest_addr: GuestPlace, size: int) -> PhysAddr:
        """Where all ``size`` bytes are; raises unless one region has them."""
        at = guest_address(guest_addr)
        found = self.translate_and_get_limit(at)
        if found is None:
            raise InvalidInput(at, size)
        host, limit = found
        self._check_limit(at, host, limit, size if size <= limit else 0)
        if limit < size:
            raise InvalidInput(at, size)
        return host

    def _pieces(self, guest_addr: GuestPlace, size: int) -> Iterator[tuple[PhysAddr, int, int]]:
        """(where, bytes before it, bytes) of each region's part. The next one is translated
        when this one was moved."""
        start = guest_address(guest_addr).raw_value()
        done = 0
        while done < size:
            if start + done >= ADDRESS_END:
                raise AddressOverflow(GuestAddress(start), size)
            at = GuestAddress(start + done)
            found = self.translate_and_get_limit(at)
            if found is None:
                raise InvalidInput(at, size - done, done)
            host, limit = found
            if not limit:
                raise ZeroLimit(at)
            n = min(size - done, limit)
            self._check_limit(at, host, limit, n)
            yield host, done, n
            done += n

    def _check_limit(self, at: GuestAddress, host: PhysAddr, limit: int, wanted: int) -> None:
        """Raise LimitTooLarge where ``limit`` promises more than there is."""
        left = host.left
        if self.trusts_limits:
            if wanted > left:
                raise LimitTooLarge(at, limit, left)
            return
        known = self.bytes_left(at)
        if known is not None:
            left = min(left, known)
        if limit > left:
            raise LimitTooLarge(at, limit, left)


def guest_address(addr: GuestPlace) -> GuestAddress:
    """``addr`` as a GuestAddress. Raises ModelError for what is none."""
    if isinstance(addr, GuestAddress):
        return addr
    return GuestAddress(
        plain_number(addr, "a guest address is GuestAddress(…) or a plain number"))
