"""What each method of each face must come to on a given ground: the check's own account.

Written from the documents of the interfaces, not from the faces: that is what lets it find them
wrong. A spec moves bytes on the ``Ground``, which holds each access against what QEMU did, and
answers with the Outcome owed. Where the face is meant to differ from what QEMU's C functions would
do with the same request, the spec names the design (``faces.designs``).
"""

from __future__ import annotations

from dataclasses import replace

from qemuglue.campaign.faces.ground import Cut, Ground, Refused
from qemuglue.campaign.faces.ops import FaceOp, Outcome
from qemuglue.campaign.faces.specs_vm import VM_SPECS
from qemuglue.campaign.faces.telling import (
    BACKEND,
    Spec,
    check_range,
    count,
    ended,
    find_region,
    hole,
    moved_all,
    no_pointer,
    note_refusal,
    typed,
)
from qemuglue.memory.attrs import UNSPECIFIED
from qemuglue.memory.region import MAX_SIZE


def expected(ground: Ground, op: FaceOp) -> Outcome:
    """What ``op`` owes; the ground's ``designs`` say how that differs from QEMU's own doing."""
    ground.designs = set()
    ground.asked_device = False
    try:
        return SPECS[op.face][op.method](ground, op)
    except Cut:
        ground.designs.add("cut-by-qtest")
        return Outcome("CutByQtest()")


# Section: the first model


def _one_region(ground: Ground, op: FaceOp, error: str) -> Outcome:
    """What is refused because one region does not hold it all."""
    if ground.mapped(op.addr, op.size) and op.size:
        ground.designs.add("one-region")
    return Outcome(error)


def _map_partial(ground: Ground, op: FaceOp, out: bytearray | None) -> tuple[int, str]:
    """(bytes moved, error): within the region at the address, in one piece."""
    if not op.size:
        return 0, ""
    section = ground.find(op.addr)
    if section is None:
        return 0, hole(op.addr)
    offset = op.addr - section.start
    n = min(op.size, section.size - offset)
    try:
        if out is not None:
            out += ground.read(section, offset, n)
        else:
            ground.write(section, offset, op.data[:n])
    except Refused as refused:
        note_refusal(ground, refused)
        return 0, f"MemoryAccess({op.addr:#x}, {BACKEND})"
    if n < op.size and ground.mapped(op.addr, op.size):
        ground.designs.add("one-region")
    return n, ""


def _map_read(ground: Ground, op: FaceOp) -> Outcome:
    out = bytearray()
    done, error = _map_partial(ground, op, out)
    return count(done, error, "read", bytes(out))


def _map_write(ground: Ground, op: FaceOp) -> Outcome:
    return count(*_map_partial(ground, op, None), "wrote")


def _map_read_all(ground: Ground, op: FaceOp) -> Outcome:
    out = bytearray()
    done, error = _map_partial(ground, op, out)
    return moved_all(op.size, done, error, bytes(out))


def _map_write_all(ground: Ground, op: FaceOp) -> Outcome:
    return moved_all(op.size, *_map_partial(ground, op, None))


def _map_whole(ground: Ground, op: FaceOp, *, aligned: bool = False) -> Outcome:
    """All of it in one region, or nothing."""
    section = ground.find(op.addr)
    if section is None or op.size > section.size - (op.addr - section.start):
        return _one_region(ground, op, f"InvalidGuestAddressRange({op.addr:#x}, {op.size})")
    offset = op.addr - section.start
    refused_as = Outcome(f"MemoryAccess({op.addr:#x}, {BACKEND})")
    if aligned and offset % op.size:
        ground.designs.add("aligned-only")
        return refused_as
    if not op.size:
        return Outcome("done")
    try:
        if op.is_write:
            ground.write(section, offset, op.data)
            return Outcome("done")
        data = ground.read(section, offset, op.size)
    except Refused as refused:
        note_refusal(ground, refused)
        return refused_as
    return typed(op, data) if op.cls else Outcome("done", data)


def _map_access(ground: Ground, op: FaceOp) -> Outcome:
    return _map_whole(ground, op, aligned=True)


def _map_host(ground: Ground, op: FaceOp) -> Outcome:
    section = ground.find(op.addr)
    if section is None:
        return Outcome(f"InvalidGuestAddressRange({op.addr:#x}, 1)")
    if not ground.is_here(section):
        return Outcome(f"MemoryAccess({op.addr:#x}, {no_pointer(ground, section)})")
    offset = op.addr - section.start
    return Outcome("a pointer", ground.read(section, offset, min(op.size, section.size - offset)))


# Section: axaddrspace


def _ax_limit(ground: Ground, op: FaceOp) -> Outcome:
    section = ground.find(op.addr)
    if section is None:
        return Outcome("None")
    return Outcome(f"{section.last + 1 - op.addr:#x} bytes from there on")


def _ax_obj(ground: Ground, op: FaceOp) -> Outcome:
    section = ground.find(op.addr)
    if section is None or op.size > section.last + 1 - op.addr:
        return _one_region(ground, op, f"InvalidInput({op.addr:#x}, {op.size}, 0)")
    offset = op.addr - section.start
    try:
        if not op.is_write:
            return typed(op, ground.read(section, offset, op.size))
        ground.write(section, offset, op.data)
    except Refused as refused:
        note_refusal(ground, refused)
        return Outcome(BACKEND)
    return Outcome("done")


def _ax_buffer(ground: Ground, op: FaceOp) -> Outcome:
    done, out = 0, bytearray()
    while done < op.size:
        at = op.addr + done
        if at >= MAX_SIZE:
            ground.designs.add("no-wrap")
            return Outcome(f"AddressOverflow({op.addr:#x}, {op.size})")
        section = ground.find(at)
        if section is None:
            return Outcome(f"InvalidInput({at:#x}, {op.size - done}, {done})")
        n = min(op.size - done, section.last + 1 - at)
        try:
            if op.is_write:
                ground.write(section, at - section.start, op.data[done : done + n])
            else:
                out += ground.read(section, at - section.start, n)
        except Refused as refused:
            note_refusal(ground, refused)
            return Outcome(BACKEND)
        done += n
    return Outcome("done", bytes(out))


# Section: QEMU's Rust bindings


def _rust_move(ground: Ground, op: FaceOp, buffer: bytearray | None) -> tuple[int, str]:
    """(bytes moved, error): step by step as ``flatview_read`` and ``flatview_write``, which
    end with the first error here."""
    space, done, at = ground.space, 0, op.addr
    while done < op.size:
        section, offset, n = space.translate_in(
            space.view, at, op.size - done, op.is_write, UNSPECIFIED)
        if not ground.is_memory(section, is_write=op.is_write):
            ground.asked_device = True
        if buffer is not None:
            n, result = space.read_step(section.region, offset, buffer, done, n, UNSPECIFIED)
        else:
            n, result = space.write_step(section.region, offset, op.data, done, n, UNSPECIFIED)
        if result:
            return ended(ground, done, op.size, BACKEND)
        done += n
        at += n
        if at >= MAX_SIZE:
            at -= MAX_SIZE
            if at and done < op.size:
                return ended(ground, done, op.size, "GuestAddressOverflow()")
    return done, ""


def _rust_read(ground: Ground, op: FaceOp) -> Outcome:
    """With all of the buffer: what the step that fails leaves in it is told."""
    buffer = bytearray(b"\xee" * op.size)
    done, error = _rust_move(ground, op, buffer)
    if error and not done:
        return Outcome(error, bytes(buffer))
    return Outcome(f"read {done}", bytes(buffer))


def _rust_stream(ground: Ground, op: FaceOp, out: bytearray | None) -> tuple[int, str]:
    """(bytes moved, error): section by section, as a stream is moved."""
    done = 0
    while done < op.size:
        at = (op.addr + done) % MAX_SIZE
        section = ground.find(at, reserved=True)
        if section is None:
            return ended(ground, done, op.size, BACKEND)
        n = min(section.start + section.size - at, op.size - done)
        part = replace(op, addr=at, size=n, data=op.data[done : done + n])
        buffer = bytearray(n) if out is not None else None
        moved, error = _rust_move(ground, part, buffer)
        if out is not None and buffer is not None:
            out += buffer[:moved]
        done += moved
        if error:
            return ended(ground, done, op.size, error)
    return done, ""


def _rust_from_stream(ground: Ground, op: FaceOp) -> Outcome:
    return count(*_rust_stream(ground, op, None), "wrote")


def _rust_exact_from_stream(ground: Ground, op: FaceOp) -> Outcome:
    return moved_all(op.size, *_rust_stream(ground, op, None))


def _rust_to_stream(ground: Ground, op: FaceOp) -> Outcome:
    out = bytearray()
    done, error = _rust_stream(ground, op, out)
    return count(done, error, "read", bytes(out))


def _rust_all_to_stream(ground: Ground, op: FaceOp) -> Outcome:
    out = bytearray()
    done, error = _rust_stream(ground, op, out)
    return moved_all(op.size, done, error, bytes(out))


def _rust_write(ground: Ground, op: FaceOp) -> Outcome:
    return count(*_rust_move(ground, op, None), "wrote")


def _rust_read_slice(ground: Ground, op: FaceOp) -> Outcome:
    buffer = bytearray(op.size)
    done, error = _rust_move(ground, op, buffer)
    return moved_all(op.size, done, error, bytes(buffer))


def _rust_write_slice(ground: Ground, op: FaceOp) -> Outcome:
    return moved_all(op.size, *_rust_move(ground, op, None))


def _rust_read_obj(ground: Ground, op: FaceOp) -> Outcome:
    found = _rust_read_slice(ground, op)
    return typed(op, found.data) if found.told == "done" else found


def _rust_one(ground: Ground, op: FaceOp) -> Outcome:
    space = ground.space
    section, offset, n = space.translate_in(
        space.view, op.addr, op.size, op.is_write, UNSPECIFIED)
    if n < op.size:
        if ground.mapped(op.addr, op.size):
            ground.designs.add("one-region")
        return Outcome(BACKEND)
    region = section.region
    direct = ground.is_memory(section, is_write=op.is_write)
    try:
        if direct:
            assert region.backing is not None, "is_direct says so"
            if op.is_write:
                region.backing.write(offset, op.data)
                return Outcome("done")
            data = region.backing.read(offset, op.size)
            if len(data) < op.size:
                ground.designs.add("rom-device-end")
                return Outcome("ModelError()")
            return typed(op, data)
        if op.is_write:
            ground.one_write(region, offset, op.data)
            return Outcome("done")
        return typed(op, ground.one_read(region, offset, op.size))
    except Refused as refused:
        note_refusal(ground, refused)
        return Outcome(BACKEND)


def _rust_host(ground: Ground, op: FaceOp) -> Outcome:
    section = ground.find(op.addr, reserved=True)
    if section is None:
        return Outcome(hole(op.addr))
    return Outcome(no_pointer(ground, section))


#: Face -> method -> what it owes; the same names as ``faces.ops.METHODS``.
SPECS: dict[str, dict[str, Spec]] = {
    **VM_SPECS,
    "memory-map": {
        "read": _map_read, "write": _map_write,
        "read_slice": _map_read_all, "write_slice": _map_write_all,
        "read_obj": _map_whole, "write_obj": _map_whole,
        "load": _map_access, "store": _map_access,
        "read_volatile_from": _map_write, "read_exact_volatile_from": _map_write_all,
        "write_volatile_to": _map_read, "write_all_volatile_to": _map_read_all,
        "read_to_memory": _map_whole, "write_from_memory": _map_whole,
        "get_host_address": _map_host,
    },
    "accessor": {
        "translate_and_get_limit": _ax_limit,
        "read_obj": _ax_obj, "write_obj": _ax_obj,
        "read_buffer": _ax_buffer, "write_buffer": _ax_buffer,
        "read_volatile": _ax_obj, "write_volatile": _ax_obj,
    },
    "rust": {
        "read": _rust_read, "write": _rust_write,
        "read_slice": _rust_read_slice, "write_slice": _rust_write_slice,
        "read_obj": _rust_read_obj, "write_obj": _rust_write_slice,
        "load": _rust_one, "store": _rust_one,
        "read_volatile_from": _rust_from_stream,
        "read_exact_volatile_from": _rust_exact_from_stream,
        "write_volatile_to": _rust_to_stream, "write_all_volatile_to": _rust_all_to_stream,
        "check_range": check_range, "find_region": find_region,
        "get_host_address": _rust_host,
    },
}
