"""One operation of a face, and how it is performed: what ``check --face`` makes of its numbers.

A ``FaceOp`` is a method of a face with an address, a number of bytes or a type, and bytes to write.
``perform`` calls it on the face itself; what came of it is an ``Outcome``, errors included, as text
that two accounts of the same operation can be compared by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from qemuglue.errors import ModelError
from qemuglue.memory.aligned import AlignedGuestAddress, MisalignedGuestAddress
from qemuglue.memory.endian import ENDIAN_TYPES, EndianInt
from qemuglue.memory.guest_address import GuestAddress

#: The types that values have, by name.
TYPES: dict[str, type[EndianInt]] = {cls.__name__: cls for cls in ENDIAN_TYPES}


@dataclass(frozen=True, slots=True)
class FaceOp:
    """``method`` of ``face`` at ``addr``: ``size`` bytes, or a value of type ``cls`` (then
    ``size`` is its size); ``data`` is what a write moves."""

    face: str
    method: str
    addr: int
    size: int
    cls: str = ""
    data: bytes = b""

    @property
    def is_write(self) -> bool:
        """Whether memory changes."""
        return METHODS[self.face][self.method].is_write

    def __str__(self) -> str:
        what = self.cls or f"{self.size} bytes"
        moved = f" {_hex(self.data)}" if self.data else ""
        return f"{self.face} {self.method} {self.addr:#x} {what}{moved}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an operation came to: ``told`` in words, ``data`` the bytes that it gave."""

    told: str
    data: bytes = b""

    def __str__(self) -> str:
        return f"{self.told}: {_hex(self.data)}" if self.data else self.told


@dataclass(frozen=True, slots=True)
class Method:
    """How a method is called. ``typed``: it takes a type or value. ``query``: it moves nothing."""

    call: Callable[[Any, FaceOp], Outcome]
    is_write: bool = False
    typed: bool = False
    query: bool = False


def perform(face: Any, op: FaceOp) -> Outcome:
    """Do ``op`` on ``face``. What the face raises is an outcome; what QEMU does is not."""
    try:
        return METHODS[op.face][op.method].call(face, op)
    except ModelError as error:
        return Outcome(told(error))


def told(error: BaseException) -> str:
    """An error as text: its type, and what it carries."""
    fields = [_field(each) for each in error.args if not isinstance(each, str)]
    return f"{type(error).__name__}({', '.join(fields)})"


def _field(value: object) -> str:
    if isinstance(value, GuestAddress):
        return hex(value.raw_value())
    if isinstance(value, BaseException):
        return told(value)
    return str(getattr(value, "name", value))


def _hex(data: bytes) -> str:
    return data.hex() if len(data) <= 32 else f"{data[:32].hex()}… ({len(data)} bytes)"


# Section: vm-memory's Bytes, which the first model and QEMU's bindings have as well


def _at(op: FaceOp) -> GuestAddress:
    return GuestAddress(op.addr)


def _value(op: FaceOp) -> EndianInt:
    return TYPES[op.cls].from_raw(op.data)


def _read(memory: Any, op: FaceOp) -> Outcome:
    buf = bytearray(op.size)
    count = memory.read(buf, _at(op))
    return Outcome(f"read {count}", bytes(buf[:count]))


def _write(memory: Any, op: FaceOp) -> Outcome:
    return Outcome(f"wrote {memory.write(op.data, _at(op))}")


def _read_slice(memory: Any, op: FaceOp) -> Outcome:
    buf = bytearray(op.size)
    memory.read_slice(buf, _at(op))
    return Outcome("done", bytes(buf))


def _write_slice(memory: Any, op: FaceOp) -> Outcome:
    memory.write_slice(op.data, _at(op))
    return Outcome("done")


def _read_obj(memory: Any, op: FaceOp) -> Outcome:
    return _got(op, memory.read_obj(_at(op), TYPES[op.cls]))


def _write_obj(memory: Any, op: FaceOp) -> Outcome:
    memory.write_obj(_value(op), _at(op))
    return Outcome("done")


def _load(memory: Any, op: FaceOp) -> Outcome:
    return _got(op, memory.load(_at(op), TYPES[op.cls]))


def _store(memory: Any, op: FaceOp) -> Outcome:
    memory.store(_value(op), _at(op))
    return Outcome("done")


def _from_stream(memory: Any, op: FaceOp) -> Outcome:
    source = BytesIO(op.data)
    return Outcome(f"wrote {memory.read_volatile_from(_at(op), source, op.size)}")


def _exact_from_stream(memory: Any, op: FaceOp) -> Outcome:
    memory.read_exact_volatile_from(_at(op), BytesIO(op.data), op.size)
    return Outcome("done")


def _to_stream(memory: Any, op: FaceOp) -> Outcome:
    sink = bytearray()
    return Outcome(f"read {memory.write_volatile_to(_at(op), sink, op.size)}", bytes(sink))


def _all_to_stream(memory: Any, op: FaceOp) -> Outcome:
    sink = bytearray()
    memory.write_all_volatile_to(_at(op), sink, op.size)
    return Outcome("done", bytes(sink))


def _got(op: FaceOp, value: EndianInt) -> Outcome:
    """The value as the number it is; its bytes follow from the type that was asked for."""
    return Outcome(f"{type(value).__name__} {int(value):#x}")


def _check_range(memory: Any, op: FaceOp) -> Outcome:
    return Outcome(str(memory.check_range(_at(op), op.size)))


def _find_region(memory: Any, op: FaceOp) -> Outcome:
    region = memory.find_region(_at(op))
    if region is None:
        return Outcome("None")
    return Outcome(f"{region.start_addr().raw_value():#x} to {region.last_addr().raw_value():#x}")


def _get_slice(memory: Any, op: FaceOp) -> Outcome:
    return Outcome(f"a slice of {memory.get_slice(_at(op), op.size).len()}")


def _host_bytes(memory: Any, op: FaceOp) -> Outcome:
    view = memory.get_host_address(_at(op))
    return Outcome("a pointer", bytes(view[: op.size]))


_BYTES: dict[str, Method] = {
    "read": Method(_read),
    "write": Method(_write, is_write=True),
    "read_slice": Method(_read_slice),
    "write_slice": Method(_write_slice, is_write=True),
    "read_obj": Method(_read_obj, typed=True),
    "write_obj": Method(_write_obj, is_write=True, typed=True),
    "load": Method(_load, typed=True),
    "store": Method(_store, is_write=True, typed=True),
    "read_volatile_from": Method(_from_stream, is_write=True),
    "read_exact_volatile_from": Method(_exact_from_stream, is_write=True),
    "write_volatile_to": Method(_to_stream),
    "write_all_volatile_to": Method(_all_to_stream),
}
_MAP_QUERIES: dict[str, Method] = {
    "check_range": Method(_check_range, query=True),
    "find_region": Method(_find_region, query=True),
}


# Section: QEMU's Rust bindings


def _of_view(method: Method) -> Method:
    """The same on the view that the space shows now."""

    def call(space: Any, op: FaceOp) -> Outcome:
        with space.memory() as view:
            return method.call(view, op)

    return Method(call, method.is_write, method.typed, method.query)


def _rust_load(space: Any, op: FaceOp) -> Outcome:
    return _got(op, space.load(_at(op), TYPES[op.cls]))


def _rust_store(space: Any, op: FaceOp) -> Outcome:
    space.store(_at(op), _value(op))
    return Outcome("done")


def _rust_read(space: Any, op: FaceOp) -> Outcome:
    """The whole buffer is looked at: the step that fails leaves in it what C leaves there."""
    buf = bytearray(b"\xee" * op.size)
    try:
        return Outcome(f"read {space.read(buf, _at(op))}", bytes(buf))
    except ModelError as error:
        return Outcome(told(error), bytes(buf))


# Section: the first model, axaddrspace, and the aligned accesses


def _to_memory(memory: Any, op: FaceOp) -> Outcome:
    memory.read_to_memory(_at(op), BytesIO(op.data), op.size)
    return Outcome("done")


def _from_memory(memory: Any, op: FaceOp) -> Outcome:
    sink = bytearray()
    memory.write_from_memory(_at(op), sink, op.size)
    return Outcome("done", bytes(sink))


def _limit(accessor: Any, op: FaceOp) -> Outcome:
    found = accessor.translate_and_get_limit(_at(op))
    return Outcome("None" if found is None else f"{found[1]:#x} bytes from there on")


def _read_buffer(accessor: Any, op: FaceOp) -> Outcome:
    buf = bytearray(op.size)
    accessor.read_buffer(_at(op), buf)
    return Outcome("done", bytes(buf))


def _write_buffer(accessor: Any, op: FaceOp) -> Outcome:
    accessor.write_buffer(_at(op), op.data)
    return Outcome("done")


def _accessor_write(name: str) -> Callable[[Any, FaceOp], Outcome]:
    def call(accessor: Any, op: FaceOp) -> Outcome:
        getattr(accessor, name)(_at(op), _value(op))
        return Outcome("done")

    return call


def _aligned_read(name: str) -> Callable[[Any, FaceOp], Outcome]:
    def call(memory: Any, op: FaceOp) -> Outcome:
        return _got(op, getattr(memory, name)(AlignedGuestAddress.of(op.addr, TYPES[op.cls])))

    return call


def _aligned_write(name: str) -> Callable[[Any, FaceOp], Outcome]:
    def call(memory: Any, op: FaceOp) -> Outcome:
        getattr(memory, name)(_value(op), AlignedGuestAddress.of(op.addr, TYPES[op.cls]))
        return Outcome("done")

    return call


#: Face -> its methods.
METHODS: dict[str, dict[str, Method]] = {
    "vm-memory": {
        **_BYTES, **_MAP_QUERIES,
        "get_slice": Method(_get_slice, query=True),
        "get_host_address": Method(_host_bytes),
    },
    "aligned": {
        "read_atomic": Method(_aligned_read("read_atomic"), typed=True),
        "write_atomic": Method(_aligned_write("write_atomic"), is_write=True, typed=True),
        "read_obj": Method(_aligned_read("read_obj"), typed=True),
        "write_obj": Method(_aligned_write("write_obj"), is_write=True, typed=True),
        "read_obj_unaligned": Method(
            lambda memory, op: _got(op, memory.read_obj_unaligned(_at(op), TYPES[op.cls])),
            typed=True),
        "write_obj_unaligned": Method(
            lambda memory, op: _none(memory.write_obj_unaligned(_value(op), _at(op))),
            is_write=True, typed=True),
    },
    "memory-map": {
        **_BYTES,
        "read_to_memory": Method(_to_memory, is_write=True),
        "write_from_memory": Method(_from_memory),
        "get_host_address": Method(_host_bytes),
    },
    "accessor": {
        "translate_and_get_limit": Method(_limit, query=True),
        "read_obj": Method(_read_obj, typed=True),
        "write_obj": Method(_accessor_write("write_obj"), is_write=True, typed=True),
        "read_buffer": Method(_read_buffer),
        "write_buffer": Method(_write_buffer, is_write=True),
        "read_volatile": Method(
            lambda memory, op: _got(op, memory.read_volatile(_at(op), TYPES[op.cls])),
            typed=True),
        "write_volatile": Method(_accessor_write("write_volatile"), is_write=True, typed=True),
    },
    "rust": {
        **{name: _of_view(method) for name, method in (_BYTES | _MAP_QUERIES).items()},
        "read": Method(_rust_read),
        "write": Method(_write, is_write=True),
        "load": Method(_rust_load, typed=True),
        "store": Method(_rust_store, is_write=True, typed=True),
        "get_host_address": _of_view(Method(_host_bytes)),
    },
}


def _none(_: None) -> Outcome:
    return Outcome("done")


__all__ = ["METHODS", "TYPES", "FaceOp", "Method", "MisalignedGuestAddress", "Outcome", "perform"]
