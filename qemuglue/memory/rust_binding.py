"""The Rust face: QEMU's memory as its Rust bindings show it, through vm-memory's interface.

``AddressSpace(space)`` puts that face on a space of the model. ``memory()`` gives a counted
reference to the view it shows now; the ``FlatView`` in it is a ``Bytes`` over ``GuestAddress`` and
over ``(GuestAddress, MemTxAttrs)``, made of ``MemoryRegionSection``s. Types, methods and argument
order are those of the bindings: ``AddressSpace.store(addr, value)`` but ``Bytes.store(value,
addr)``.

Sources: [RFC 00/26] rust/memory (Zhao Liu, qemu-devel 2025-08-07; patches 20 to 24 are section,
view, guard and space), the review of it by Paolo Bonzini, and its rework over vm-memory 0.18
(``get_chunks``, ``Bytes<(GuestAddress, MemTxAttrs)>``). They are called v1, review and v2 below.

What is meant to differ from the C functions (``address_space``), all of it tested side by side:

- The first error ends an access. C ORs the results and goes on.
- ``store`` and ``load`` across the end of RAM raise InvalidBackendAddress. C dispatches them
  whole to the first region. A device has no end in either: such an access runs over it.
- Every MemTxResult other than OK is InvalidBackendAddress, also that of a hole.
- Where ``attrs.memory`` forbids a region, InvalidGuestAddress; also in ``store`` and ``load`` (v2),
  which C lets through.
- A step that would go on beyond 2^64-1 ends the access (GuestAddressOverflow); one that ends
  there goes on at 0, as in C.
- A value of more than 8 bytes is GuestIOError(INVALID_INPUT). Its byte order is its type's (the
  review); v1 had the target's. ``Ordering`` is accepted and means nothing.
- A ``MemoryRegionAddress`` counts from the start of the section, not of the MemoryRegion.

What was moved before an error is told as vm-memory tells it: ``read`` and ``write`` raise only
where nothing was moved and return a short count otherwise, the ``_slice`` forms raise
PartialBuffer with the error as ``__cause__``. v1 raised the error and lost the count; v2 raises it,
or PartialBuffer, and never returns a short count.

Left undone in the bindings, done here: ``write_slice``, ``read_slice``, streams, slices, ``iter``
and ``to_region_addr`` (not implemented or panicking in v1 and v2), holes for ``find_region`` (gave
the unassigned section), the end of a section for ``check_address`` (took one byte too many). And
each step is translated anew as in v1 and C, where v2 stays in a device's region behind its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType

from qemuglue.errors import ModelError
from qemuglue.memory import address_space as c_face
from qemuglue.memory import flatview as c_view
from qemuglue.memory.attrs import UNSPECIFIED, MemTxAttrs
from qemuglue.memory.bytes import (
    ByteValued,
    Ordering,
    Readable,
    V,
    Writable,
    byte_valued,
    size_of,
)
from qemuglue.memory.endian import ByteOrder
from qemuglue.memory.guest_address import ADDRESS_END, GuestAddress, MemoryRegionAddress
from qemuglue.memory.guest_error import (
    ErrorKind,
    GuestAddressOverflow,
    GuestIOError,
    GuestMemoryError,
    HostAddressNotAvailable,
    InvalidBackendAddress,
    InvalidGuestAddress,
)
from qemuglue.memory.guest_memory import (
    GuestAddressSpace,
    GuestMemoryBackend,
    GuestMemoryBackendSliceIterator,
    GuestMemoryRegion,
    Permissions,
)
from qemuglue.memory.plain_number import plain_number
from qemuglue.memory.region import MemoryRegion
from qemuglue.memory.rust_steps import Offset, Place, Stepped, address_of, offset_of, place_of
from qemuglue.memory.section_backing import SectionMemory, section_backing
from qemuglue.memory.section_bitmap import SectionBitmap
from qemuglue.memory.volatile import VolatileMemoryError, VolatileSlice, guest_error_of

#: What one access can be, in bytes: ``MemOp`` has no other sizes up to 8.
ACCESS_SIZES = frozenset((1, 2, 4, 8))


class FlatView(Stepped[Place], GuestMemoryBackend["MemoryRegionSection"]):
    """One view of a space, as a collection of sections and as bytes: a ``GuestMemoryBackend``.

    Reached through a ``FlatViewRefGuard``, and usable as long as that is not released
    (RcuError). The map may change meanwhile; this view does not. Errors are
    GuestMemoryErrors, as the module tells. ``Bytes`` is over every section; slices are of RAM
    whose bytes can be pointed at alone.
    """

    __slots__ = ("_guard", "_space")

    def __init__(self, space: c_face.AddressSpace, guard: c_view.FlatViewRefGuard) -> None:
        self._space = space
        self._guard = guard

    # -- bytes -------------------------------------------------------------------------------

    def store(self, value: ByteValued, addr: Place, order: Ordering = Ordering.RELAXED) -> None:
        """``section_rust_store``: one access, in the byte order of ``value``."""
        raw = byte_valued(value).raw
        at, attrs = place_of(addr)
        region, offset = self._whole(at, len(raw), True, attrs, order)
        space = self._space
        if space.is_direct(region, True, attrs):
            assert region.backing is not None, "is_direct says so"
            region.backing.write(offset, raw)
            space.mark_dirty(region, offset, len(raw))
            return
        number = int.from_bytes(raw, self._order(region))
        if space.dispatch_write(region, offset, number, len(raw), attrs):
            raise InvalidBackendAddress

    def load(self, addr: Place, cls: type[V], order: Ordering = Ordering.RELAXED) -> V:
        """``section_rust_load``: one access, in the byte order of ``cls``. Raises ModelError
        where it runs over the end of a ROM device: QEMU reads beyond that memory."""
        size = size_of(cls)
        at, attrs = place_of(addr)
        region, offset = self._whole(at, size, False, attrs, order)
        space = self._space
        if space.is_direct(region, False, attrs):
            assert region.backing is not None, "is_direct says so"
            raw = region.backing.read(offset, size)
            if len(raw) < size:
                raise ModelError(f"region {region.name!r} ends inside the access")
            return cls.from_raw(raw)
        result, number = space.dispatch_read(region, offset, size, attrs)
        if result:
            raise InvalidBackendAddress
        return cls.from_raw(number.to_bytes(size, self._order(region)))

    # -- sections ----------------------------------------------------------------------------

    def num_regions(self) -> int:
        """How many sections there are; holes are none."""
        return len(self._view.sections)

    def iter(self) -> Iterator[MemoryRegionSection]:
        """The sections by address."""
        for section in self._view.sections:
            yield MemoryRegionSection(self, section)

    def __iter__(self) -> Iterator[MemoryRegionSection]:
        return self.iter()

    def find_region(self, addr: GuestAddress | int) -> MemoryRegionSection | None:
        """The section at ``addr``; None in a hole."""
        section = self._view.find(address_of(addr))
        return None if section is None else MemoryRegionSection(self, section)

    def to_region_addr(
        self, addr: GuestAddress | int
    ) -> tuple[MemoryRegionSection, MemoryRegionAddress] | None:
        """The section at ``addr`` and where in it that is; None in a hole."""
        section = self.find_region(addr)
        if section is None:
            return None
        offset = address_of(addr) - section.start_addr().raw_value()
        return section, MemoryRegionAddress(offset)

    def address_in_range(self, addr: GuestAddress | int) -> bool:
        """Whether a section is at ``addr``. It may still refuse an access."""
        return self._view.find(address_of(addr)) is not None

    def check_address(self, addr: GuestAddress | int) -> GuestAddress | None:
        """``addr`` if a section is there."""
        return GuestAddress(address_of(addr)) if self.address_in_range(addr) else None

    def checked_offset(self, base: GuestAddress | int, offset: int) -> GuestAddress | None:
        """``base`` plus ``offset`` if a section is there."""
        addr = GuestAddress(address_of(base)).checked_add(offset)
        return None if addr is None else self.check_address(addr)

    def check_range(
        self, base: GuestAddress | int, length: int, access: Permissions = Permissions.ReadWrite
    ) -> bool:
        """Whether sections cover ``length`` bytes from ``base`` on without a hole. Behind the
        last address comes the first; no bytes are covered anywhere. Differs from vm-memory's,
        which asks for slices, in that devices count. Raises ModelError for what is no length."""
        at = address_of(base)
        length = plain_number(length, "a length is a plain number")
        if length < 0:
            raise ModelError(f"a length is 0 or more, got {length}")
        if length > ADDRESS_END:
            return False
        while length > 0:
            section = self._view.find(at)
            if section is None:
                return False
            length -= section.start + section.size - at
            at = (section.start + section.size) % ADDRESS_END
        return True

    def last_addr(self) -> GuestAddress:
        """The highest address (inclusive) with a section; 0 for an empty view."""
        sections = self._view.sections
        return GuestAddress(sections[-1].start + sections[-1].size - 1 if sections else 0)

    def get_slice(self, addr: GuestAddress | int, count: int) -> VolatileSlice:
        """``count`` bytes of RAM from ``addr`` on, all in one section. Raises InvalidGuestAddress
        in a hole, and what the section raises."""
        return super().get_slice(GuestAddress(address_of(addr)), count)

    def get_slices(
        self, addr: GuestAddress | int, count: int, access: Permissions = Permissions.ReadWrite
    ) -> GuestMemoryBackendSliceIterator[MemoryRegionSection]:
        """``count`` bytes of RAM from ``addr`` on, section by section; see
        ``GuestMemoryBackend``. What is no RAM is HostAddressNotAvailable."""
        return super().get_slices(GuestAddress(address_of(addr)), count)

    def get_host_address(self, addr: GuestAddress | int) -> memoryview:
        """Raises HostAddressNotAvailable, and InvalidGuestAddress in a hole: nothing in the
        model can be pointed at."""
        found = self.to_region_addr(addr)
        if found is None:
            raise InvalidGuestAddress(GuestAddress(address_of(addr)))
        section, offset = found
        return section.get_host_address(offset)

    # -- inside ------------------------------------------------------------------------------

    @property
    def _view(self) -> c_view.FlatView:
        return self._guard.view

    def _order(self, region: MemoryRegion) -> ByteOrder:
        """How the bytes of a device's value lie in memory (R5)."""
        big = self._space.rules.big(region.contract, self._space.target_big)
        return "big" if big else "little"

    def _whole(
        self, at: int, size: int, is_write: bool, attrs: MemTxAttrs, order: Ordering
    ) -> tuple[MemoryRegion, int]:
        """(region, offset) for one access of ``size`` bytes; raises where there is none."""
        if not isinstance(order, Ordering):
            raise ModelError(f"the order of an access is an Ordering, got {order!r}")
        space = self._space
        section, offset, n = space.translate_in(self._view, at, size, is_write, attrs)
        region = section.region
        if not space.rules.allowed(region, attrs):
            raise InvalidGuestAddress(GuestAddress(at))
        if n < size:
            raise InvalidBackendAddress
        if size not in ACCESS_SIZES:
            raise GuestIOError(
                ErrorKind.INVALID_INPUT, f"one access is 1, 2, 4 or 8 bytes, got {size}"
            )
        return region, offset

    def _read(self, buf: memoryview, addr: Place) -> tuple[int, GuestMemoryError | None]:
        at, attrs = place_of(addr)

        def step(region: MemoryRegion, offset: int, done: int, n: int) -> tuple[int, int]:
            return self._space.read_step(region, offset, buf, done, n, attrs)

        return self._move(at, len(buf), False, attrs, step)

    def _write(self, data: bytes, addr: Place) -> tuple[int, GuestMemoryError | None]:
        at, attrs = place_of(addr)

        def step(region: MemoryRegion, offset: int, done: int, n: int) -> tuple[int, int]:
            return self._space.write_step(region, offset, data, done, n, attrs)

        return self._move(at, len(data), True, attrs, step)

    def _ahead(self, addr: Place, done: int) -> tuple[Place, int]:
        at, attrs = place_of(addr)
        at = (at + done) % ADDRESS_END
        section = self._view.find(at)
        if section is None:
            raise InvalidBackendAddress
        return (at, attrs), section.start + section.size - at

    def _move(
        self, at: int, length: int, is_write: bool, attrs: MemTxAttrs,
        step: Callable[[MemoryRegion, int, int, int], tuple[int, int]],
    ) -> tuple[int, GuestMemoryError | None]:
        """(bytes moved, what ended it early): the loop of ``flatview_read_continue`` and
        ``flatview_write_continue``, which ends with the first error here."""
        space, view = self._space, self._view
        done = 0
        while done < length:
            section, offset, n = space.translate_in(view, at, length - done, is_write, attrs)
            if not space.rules.allowed(section.region, attrs):
                return done, InvalidGuestAddress(GuestAddress(at))
            n, result = step(section.region, offset, done, n)
            if result:
                return done, InvalidBackendAddress()
            done += n
            at += n
            if at >= ADDRESS_END:
                at -= ADDRESS_END
                if at and done < length:
                    return done, GuestAddressOverflow()
        return done, None

    def __repr__(self) -> str:
        return f"<FlatView of {self._space.name!r}>"


class MemoryRegionSection(Stepped[Offset], GuestMemoryRegion):
    """A part of a region that a view shows in one piece: a ``GuestMemoryRegion``.

    Its bytes are at offsets from 0 to ``len() - 1``; an access ends at its end, and one that
    starts behind that is InvalidBackendAddress. All else is as for ``FlatView``.
    """

    __slots__ = ("_flat", "section")

    def __init__(self, flat: FlatView, section: c_view.MemoryRegionSection) -> None:
        self._flat = flat
        #: The model's own section.
        self.section = section

    def len(self) -> int:
        """Bytes, 1 to 2^64."""
        return self.section.size

    def start_addr(self) -> GuestAddress:
        """The first guest address."""
        return GuestAddress(self.section.start)

    def last_addr(self) -> GuestAddress:
        """The last guest address (inclusive)."""
        return GuestAddress(self.section.start + self.section.size - 1)

    def address_in_range(self, addr: MemoryRegionAddress | int) -> bool:
        """Whether ``addr`` lies in the section."""
        return offset_of(addr) < self.section.size

    def check_address(self, addr: MemoryRegionAddress | int) -> MemoryRegionAddress | None:
        """``addr`` if it lies in the section."""
        return MemoryRegionAddress(offset_of(addr)) if self.address_in_range(addr) else None

    def checked_offset(
        self, base: MemoryRegionAddress | int, offset: int
    ) -> MemoryRegionAddress | None:
        """``base`` plus ``offset`` if that lies in the section."""
        addr = MemoryRegionAddress(offset_of(base)).checked_add(offset)
        return None if addr is None else self.check_address(addr)

    def to_region_addr(self, addr: GuestAddress | int) -> MemoryRegionAddress | None:
        """Where in the section a guest address is; None outside."""
        offset = address_of(addr) - self.section.start
        return self.check_address(offset) if offset >= 0 else None

    def bitmap(self) -> SectionBitmap:
        """Dirty memory of the section, as migration sees it."""
        return SectionBitmap(self._flat._space, self.section)

    def get_slice(self, offset: MemoryRegionAddress | int, count: int) -> VolatileSlice:
        """``count`` bytes of RAM from ``offset`` on. Raises InvalidBackendAddress where they do
        not lie in the section, and HostAddressNotAvailable for what is no RAM, may not be
        written, or lies where it cannot be pointed at."""
        backing = section_backing(self._flat._space, self.section)
        if not isinstance(backing, SectionMemory):
            raise HostAddressNotAvailable
        whole = VolatileSlice(backing, 0, self.section.size, bitmap=self.bitmap())
        try:
            return whole.get_slice(offset_of(offset), count)
        except VolatileMemoryError as error:
            raise guest_error_of(error) from error

    def get_host_address(self, addr: MemoryRegionAddress | int) -> memoryview:
        """Raises HostAddressNotAvailable, and InvalidBackendAddress outside the section: nothing
        in the model can be pointed at."""
        if not self.address_in_range(addr):
            raise InvalidBackendAddress
        raise HostAddressNotAvailable

    def store(self, value: ByteValued, addr: Offset, order: Ordering = Ordering.RELAXED) -> None:
        """One access, in the byte order of ``value``."""
        self._flat.store(value, self._fitting(len(byte_valued(value).raw), addr), order)

    def load(self, addr: Offset, cls: type[V], order: Ordering = Ordering.RELAXED) -> V:
        """One access, in the byte order of ``cls``."""
        return self._flat.load(self._fitting(size_of(cls), addr), cls, order)

    def _write(self, data: bytes, addr: Offset) -> tuple[int, GuestMemoryError | None]:
        place, room = self._in_view(addr)
        done, error = self._flat._write(data[:room], place)
        return done, error or (InvalidBackendAddress() if done < len(data) else None)

    def _read(self, buf: memoryview, addr: Offset) -> tuple[int, GuestMemoryError | None]:
        place, room = self._in_view(addr)
        done, error = self._flat._read(buf[:room], place)
        return done, error or (InvalidBackendAddress() if done < len(buf) else None)

    def _ahead(self, addr: Offset, done: int) -> tuple[Offset, int]:
        where, attrs = addr if isinstance(addr, tuple) else (addr, UNSPECIFIED)
        at = offset_of(where) + done
        if at >= self.section.size:
            raise InvalidBackendAddress
        return (at, attrs), self.section.size - at

    def _fitting(self, size: int, addr: Offset) -> Place:
        place, room = self._in_view(addr)
        if size > room:
            raise InvalidBackendAddress
        return place

    def _in_view(self, addr: Offset) -> tuple[Place, int]:
        """``addr`` in the view, and the bytes from there to the end of the section."""
        where, attrs = addr if isinstance(addr, tuple) else (addr, UNSPECIFIED)
        offset = offset_of(where)
        room = max(self.section.size - offset, 0)
        return ((self.section.start + offset) % ADDRESS_END, attrs), room

    def __repr__(self) -> str:
        section = self.section
        return f"<MemoryRegionSection {section.region.name!r} {section.start:#x}+{section.size:#x}>"


class FlatViewRefGuard:
    """A counted reference to a view: while one is held the view is not reclaimed.

    ``with space.memory() as view:`` gives it back at the end; so does ``release``, and Python
    where it collects the guard and every ``view`` taken from it. ``clone`` is another reference,
    given back on its own.
    """

    __slots__ = ("_inner", "_space")

    def __init__(self, space: c_face.AddressSpace, inner: c_view.FlatViewRefGuard) -> None:
        self._space = space
        self._inner = inner

    @property
    def view(self) -> FlatView:
        """The view, as bytes and sections. Every use after the release raises RcuError."""
        return FlatView(self._space, self._inner)

    def clone(self) -> FlatViewRefGuard:
        """Another reference to the same view. Raises RcuError after the release."""
        return FlatViewRefGuard(self._space, self._inner.clone())

    def release(self) -> None:
        """Give the reference back. Raises RcuError the second time."""
        self._inner.release()

    def __enter__(self) -> FlatView:
        self._inner.__enter__()
        return self.view

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._inner.release()


class AddressSpace(GuestAddressSpace[FlatView]):
    """A space of the model with the Rust face: a ``GuestAddressSpace``.

    Each method takes the view of its moment and keeps it to its end, whatever changes meanwhile;
    no RCU section is needed around it (the review asked for that).
    """

    __slots__ = ("_space",)

    def __init__(self, space: c_face.AddressSpace) -> None:
        self._space = space

    @property
    def space(self) -> c_face.AddressSpace:
        """The same space with the C face."""
        return self._space

    def memory(self) -> FlatViewRefGuard:
        """A counted reference to the view shown now; release it (``with``)."""
        space = self.space
        return FlatViewRefGuard(space, space.memory())

    def write(self, buf: Readable, addr: Place) -> int:
        """Write ``buf``; how many bytes were written before the first error, which is raised if
        there are none. See ``FlatView.write``."""
        with self.memory() as view:
            return view.write(buf, addr)

    def read(self, buf: Writable, addr: Place) -> int:
        """Fill ``buf``; how many bytes were read before the first error, which is raised if
        there are none. See ``FlatView.read``."""
        with self.memory() as view:
            return view.read(buf, addr)

    def store(self, addr: Place, value: ByteValued) -> None:
        """Write a typed value in one access: ``store(GuestAddress(0x1000), Le32(42))``. The
        address comes first here. Raises ModelError for an untyped integer."""
        with self.memory() as view:
            view.store(value, addr)

    def load(self, addr: Place, cls: type[V]) -> V:
        """Read a typed value in one access: ``load(GuestAddress(0x1000), Be16)``."""
        with self.memory() as view:
            return view.load(addr, cls)

    def __repr__(self) -> str:
        return f"<AddressSpace {self.space.name!r}, Rust face>"
