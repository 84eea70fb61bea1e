"""ByteValued: values that are their bytes, and bytes that are a value.

``bytes.ByteValued`` says what such a value must have: a ``size``, its ``raw`` bytes, ``from_raw``.
``ByteValuedType`` is what vm-memory's trait gives to each of them besides (``src/bytes.rs``, 0.18),
and the base of all that this package has:

- ``endian``: ``Le32``, ``Be16`` and their kin, whose byte order is in their name;
- ``native``: ``NativeU32``, ``NativeI64``, ``NativeUsize``, ..., in the order of this host;
- ``ByteStructure`` here: your own, made of fields;
- ``byte_array``: values of any of these in a row.

Rust hands out references; a Python integer cannot change. So where the crate gives a ``&mut T``
there is a ``ByteCell``: a place in memory that holds a value. ``cell.value`` is what is there now,
setting it puts it there.

An address is aligned for a type if it is a multiple of ``align``. Whatever object owns the bytes is
taken to begin aligned, so that an answer does not depend on where Python put it; what counts is
how far into it a memoryview begins.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, Self, TypeVar

from qemuglue.errors import ModelError
from qemuglue.memory.guest_error import ErrorKind, GuestIOError

if TYPE_CHECKING:
    from qemuglue.memory.volatile.slice import VolatileSlice

Readable = bytes | bytearray | memoryview
Writable = bytearray | memoryview


class Writer(Protocol):
    """``std::io::Write``: a binary file or BytesIO."""

    def write(self, data: bytes, /) -> int | None: ...


class Reader(Protocol):
    """``std::io::Read``: a binary file or BytesIO."""

    def read(self, size: int, /) -> bytes | None: ...


class ByteValuedType:
    """What every type of values that are their bytes can do."""

    __slots__ = ()

    #: Bytes in memory.
    size: ClassVar[int] = 0
    #: What an aligned address of one is a multiple of, in bytes: a power of two.
    align: ClassVar[int] = 1

    @property
    def raw(self) -> bytes:
        """The ``size`` bytes as they stand in memory."""
        raise NotImplementedError

    @classmethod
    def from_raw(cls, data: Readable) -> Self:
        """The value whose bytes are ``data``, exactly ``size`` of them."""
        raise NotImplementedError

    @classmethod
    def from_slice(cls, data: Readable) -> Self | None:
        """The value whose bytes are ``data``; None if they are not ``size`` bytes, or not
        aligned. It does not change with ``data`` (in Rust nothing can change that meanwhile)."""
        view = flat(data)
        return cls.from_raw(view) if _fits(cls, view) else None

    @classmethod
    def from_mut_slice(cls, data: Writable) -> ByteCell[Self] | None:
        """The place ``data`` as one that holds a value; None if it is not ``size`` bytes, or not
        aligned."""
        view = flat(data)
        return ByteCell(cls, view) if _fits(cls, view) else None

    def as_slice(self) -> bytes:
        """Its bytes in memory: ``raw``."""
        return self.raw

    def as_mut_slice(self) -> memoryview:
        """Its bytes, which can be written. Raises ModelError for a value that cannot change,
        such as an integer: ``ByteCell.of(value)`` can."""
        raise ModelError(
            f"{type(self).__name__} values do not change; ByteCell.of(value) is a place that does"
        )

    def as_bytes(self) -> VolatileSlice:
        """Its bytes as a VolatileSlice, to read and write at offsets. Raises as
        ``as_mut_slice``."""
        return _slice_of(self.as_mut_slice())

    @classmethod
    def zeroed(cls) -> Self:
        """The value whose bytes are all 0."""
        return cls.from_raw(bytes(cls.size))

    def write_all_to(self, writer: Writer) -> None:
        """Write the bytes to a binary stream, in as many writes as that needs. Raises
        GuestIOError WRITE_ZERO when the stream takes no more, and what the stream raises."""
        data = self.raw
        while data:
            try:
                n = writer.write(data)
            except InterruptedError:
                continue
            if not n:
                raise GuestIOError(ErrorKind.WRITE_ZERO, "failed to write whole buffer")
            data = data[n:]

    @classmethod
    def read_exact_from(cls, reader: Reader) -> Self:
        """Read a value from a binary stream, in as many reads as that needs. Raises
        GuestIOError UNEXPECTED_EOF when the stream ends before, and what the stream raises."""
        data = b""
        while len(data) < cls.size:
            try:
                part = reader.read(cls.size - len(data))
            except InterruptedError:
                continue
            if not part:
                raise GuestIOError(ErrorKind.UNEXPECTED_EOF, "failed to fill whole buffer")
            data += part
        return cls.from_raw(data)


class _Valued(Protocol):
    """``bytes.ByteValued``, which cannot be imported here: the endian types are below it."""

    @property
    def raw(self) -> bytes: ...

    @classmethod
    def from_raw(cls, data: Readable) -> Self: ...


T = TypeVar("T", bound=_Valued)


class ByteCell(Generic[T]):
    """A place that holds a value of type ``cls``: ``view``, of exactly that many bytes."""

    __slots__ = ("_cls", "_view")

    def __init__(self, cls: type[T], view: memoryview) -> None:
        size = getattr(cls, "size", None)
        if size != len(view):
            raise ModelError(f"{cls.__name__} is {size} bytes in memory, got {len(view)}")
        self._cls = cls
        self._view = view

    @classmethod
    def of(cls, value: T) -> ByteCell[T]:
        """A new place that holds ``value``: Rust's ``let mut``."""
        return cls(type(value), memoryview(bytearray(value.raw)))

    @property
    def value(self) -> T:
        """What is there now. A ByteStructure is the place itself: setting its fields changes
        what is there."""
        if issubclass(self._cls, ByteStructure) and not self._view.readonly:
            return self._cls.from_buffer(self._view)
        return self._cls.from_raw(bytes(self._view))

    @value.setter
    def value(self, value: T) -> None:
        if not isinstance(value, self._cls):
            raise ModelError(f"this place holds {self._cls.__name__}, got {value!r}")
        if self._view.readonly:
            raise ModelError("this place can only be read")
        self._view[:] = value.raw

    def as_slice(self) -> bytes:
        """The bytes that are there now."""
        return bytes(self._view)

    def as_mut_slice(self) -> memoryview:
        """The bytes themselves; what is written to them is in the value. Raises ModelError for
        a place that can only be read."""
        if self._view.readonly:
            raise ModelError("this place can only be read")
        return self._view

    def as_bytes(self) -> VolatileSlice:
        """The place as a VolatileSlice. Raises as ``as_mut_slice``."""
        return _slice_of(self.as_mut_slice())

    def __repr__(self) -> str:
        return f"ByteCell({self.value!r})"


class _OfStructure:
    """A number that ctypes knows of a structure once its fields are set."""

    def __init__(self, what: Any) -> None:
        self._what = what

    def __get__(self, _: object, owner: Any) -> int:
        number: int = self._what(owner)
        return number


class ByteStructure(ByteValuedType):
    """The base, with one of ctypes' structures, of a value made of fields::

        class Descriptor(ByteStructure, ctypes.LittleEndianStructure):
            _fields_ = [("addr", ctypes.c_uint64), ("len", ctypes.c_uint32),
                        ("flags", ctypes.c_uint16), ("next", ctypes.c_uint16)]

    Byte order, size and alignment are those of the ctypes structure (``_pack_ = 1`` for a packed
    one). Bytes between or behind the fields belong to no field, so such a structure is no
    ByteValued: asking for its ``size`` raises ModelError. Two are equal if their bytes are.
    """

    __slots__ = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for field in cls.__dict__.get("_fields_", ()):
            if field[0] in dir(ByteStructure):
                raise ModelError(f"a field cannot be named {field[0]!r}: that is a method here")

    if not TYPE_CHECKING:
        size = _OfStructure(lambda cls: _without_holes(cls))
        align = _OfStructure(lambda cls: ctypes.alignment(cls))

    if TYPE_CHECKING:
        @classmethod
        def from_buffer(cls, source: memoryview) -> Self: ...
        @classmethod
        def from_buffer_copy(cls, source: bytes) -> Self: ...

    @property
    def raw(self) -> bytes:
        """The bytes as they stand in memory."""
        return bytes(self.as_mut_slice())

    @classmethod
    def from_raw(cls, data: Readable) -> Self:
        """A structure of its own whose bytes are ``data``. Raises ModelError unless there are
        exactly ``size`` of them."""
        if len(data) != cls.size:
            raise ModelError(f"{cls.__name__} is {cls.size} bytes in memory, got {len(data)}")
        return cls.from_buffer_copy(bytes(data))

    def as_mut_slice(self) -> memoryview:
        """The bytes themselves; what is written to them is in the fields."""
        return memoryview(self).cast("B")  # type: ignore[arg-type]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.raw == other.raw

    __hash__ = None  # type: ignore[assignment]  # its fields may change

    def __repr__(self) -> str:
        fields = getattr(self, "_fields_", ())
        parts = ", ".join(f"{field[0]}={getattr(self, field[0])!r}" for field in fields)
        return f"{type(self).__name__}({parts})"


def align_of(cls: type) -> int:
    """What an aligned address of a ``cls`` is a multiple of; 1 for types that do not say."""
    align = getattr(cls, "align", 1)
    return align if isinstance(align, int) else 1


def flat(data: Readable) -> memoryview:
    """``data`` as single bytes. Raises ModelError for what is no contiguous buffer."""
    try:
        view = memoryview(data)
        # Casting refuses what is not contiguous.
        whole = view.format == "B" and view.ndim == 1 and view.contiguous
        return view if whole else view.cast("B")
    except TypeError:
        raise ModelError(
            f"a buffer is bytes, a bytearray or a contiguous memoryview, not {type(data).__name__}"
        ) from None


def offset_in_owner(view: Readable) -> int:
    """How many bytes into the object that owns them these bytes begin: 0 unless ``view`` is a
    memoryview of a part."""
    if not isinstance(view, memoryview) or not view.nbytes:
        return 0
    return _start_of(view) - _start_of(view.obj)


def _fits(cls: Any, view: memoryview) -> bool:
    return len(view) == cls.size and offset_in_owner(view) % align_of(cls) == 0


def _slice_of(view: memoryview) -> VolatileSlice:
    # Not at the top: slices are made of values, and this is the one way back.
    from qemuglue.memory.backing import ViewBacking
    from qemuglue.memory.volatile.slice import VolatileSlice

    return VolatileSlice(ViewBacking(view))


def _without_holes(cls: Any) -> int:
    """Bytes of a structure. Raises ModelError if some belong to no field."""
    if not issubclass(cls, ctypes.Structure):
        raise ModelError(f"{cls.__name__} is not one of ctypes' structures")
    size = ctypes.sizeof(cls)
    last = 0
    for field in getattr(cls, "_fields_", ()):
        place = getattr(cls, field[0])
        # Behind ``last``: a bit field is in the unit of the one before it.
        if place.offset > last:
            raise ModelError(f"{cls.__name__} has bytes before {field[0]} that are no field's")
        last = max(last, place.offset + ctypes.sizeof(field[1]))
    if last != size:
        raise ModelError(f"{cls.__name__} has bytes behind its last field that are no field's")
    return size


class _PyBuffer(ctypes.Structure):
    """``Py_buffer``, part of Python's stable ABI: the only place that tells where a buffer
    that cannot be written begins."""

    _fields_ = (
        ("buf", ctypes.c_void_p), ("obj", ctypes.py_object), ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t), ("readonly", ctypes.c_int), ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p), ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p), ("internal", ctypes.c_void_p),
    )


#: ``PyBUF_STRIDES``: also of a view that skips bytes.
_STRIDES = 0x18


def _start_of(buffer: object) -> int:
    """Where in this process ``buffer``'s bytes are now."""
    info = _PyBuffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(buffer), ctypes.byref(info), _STRIDES)
    try:
        return info.buf or 0
    finally:
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(info))
