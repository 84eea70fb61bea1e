"""What vm-memory's methods, and the aligned ones over them, must come to: see ``faces.specs``."""

from __future__ import annotations

from qemuglue.campaign.faces.ground import Ground, Refused
from qemuglue.campaign.faces.ops import FaceOp, Outcome
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
from qemuglue.memory.flatview import MemoryRegionSection
from qemuglue.memory.region import MAX_SIZE

#: What vm-memory copies in aligned units: up to so many bytes.
_UNITS = 8


# Section: vm-memory


def _units(start: int, total: int, align: int) -> list[int]:
    """The pieces in which up to 8 bytes are copied: as wide as both places are aligned."""
    place = start & -start or 1 << 12
    align = min(align, place)
    found: list[int] = []
    for unit in (8, 4, 2, 1):
        while unit <= align and unit <= total - sum(found):
            found.append(unit)
    return found


def _vm_piece(
    ground: Ground, section: MemoryRegionSection, offset: int, data: bytes, size: int,
    buffer_align: int, out: bytearray | None,
) -> int:
    """Bytes of one region that were moved before an error."""
    parts = [size] if size > _UNITS else _units(offset, size, buffer_align)
    done = 0
    for part in parts:
        try:
            if out is not None:
                out += ground.read(section, offset + done, part)
            else:
                ground.write(section, offset + done, data[done : done + part])
        except Refused as refused:
            note_refusal(ground, refused)
            return done
        done += part
    return done


def _vm_move(
    ground: Ground, addr: int, size: int, data: bytes = b"", out: bytearray | None = None, *,
    own_buffer: bool = True, whole_pieces: bool = False,
) -> tuple[int, str]:
    """(bytes moved, the error that ended it before the first): region by region. ``own_buffer``:
    the pieces lie in the caller's buffer, one behind the other. ``whole_pieces``: what was moved
    of a region counts only if it is all."""
    done, at = 0, addr
    while done < size:
        section = ground.find(at)
        if section is None:
            return ended(ground, done, size, hole(at))
        offset = at - section.start
        n = min(section.size - offset, size - done)
        align = (done & -done or 1 << 12) if own_buffer and out is not None else 1 << 12
        part = bytearray() if out is not None else None
        moved = _vm_piece(ground, section, offset, data[done : done + n], n, align, part)
        if moved < n and whole_pieces:
            return ended(ground, done, size, BACKEND)
        if out is not None and part is not None:
            out += part
        done += moved
        if moved < n:
            return ended(ground, done, size, BACKEND)
        at = (at + n) % MAX_SIZE
    return done, ""


def _vm_read(ground: Ground, op: FaceOp) -> Outcome:
    out = bytearray()
    done, error = _vm_move(ground, op.addr, op.size, out=out)
    return count(done, error, "read", bytes(out))


def _vm_write(ground: Ground, op: FaceOp) -> Outcome:
    return count(*_vm_move(ground, op.addr, op.size, op.data), "wrote")


def _vm_read_slice(ground: Ground, op: FaceOp) -> Outcome:
    out = bytearray()
    done, error = _vm_move(ground, op.addr, op.size, out=out)
    return moved_all(op.size, done, error, bytes(out))


def _vm_write_slice(ground: Ground, op: FaceOp) -> Outcome:
    return moved_all(op.size, *_vm_move(ground, op.addr, op.size, op.data))


def _vm_read_obj(ground: Ground, op: FaceOp) -> Outcome:
    found = _vm_read_slice(ground, op)
    return typed(op, found.data) if found.told == "done" else found


def _vm_to_stream(ground: Ground, op: FaceOp) -> Outcome:
    out = bytearray()
    done, error = _vm_move(
        ground, op.addr, op.size, out=out, own_buffer=False, whole_pieces=True)
    return count(done, error, "read", bytes(out))


def _vm_all_to_stream(ground: Ground, op: FaceOp) -> Outcome:
    out = bytearray()
    done, error = _vm_move(
        ground, op.addr, op.size, out=out, own_buffer=False, whole_pieces=True)
    return moved_all(op.size, done, error, bytes(out))


def _first_slice(ground: Ground, op: FaceOp) -> MemoryRegionSection | Outcome:
    """Where one access lies whole and aligned, or what it owes."""
    section = ground.find(op.addr)
    if section is None:
        return Outcome(hole(op.addr))
    offset = op.addr - section.start
    if op.size > section.size - offset:
        if ground.mapped(op.addr, op.size):
            ground.designs.add("one-region")
        return Outcome(BACKEND)
    if offset % op.size:
        ground.designs.add("aligned-only")
        return Outcome(BACKEND)
    return section


def _vm_load(ground: Ground, op: FaceOp) -> Outcome:
    section = _first_slice(ground, op)
    if isinstance(section, Outcome):
        return section
    try:
        return typed(op, ground.read(section, op.addr - section.start, op.size))
    except Refused as refused:
        note_refusal(ground, refused)
        return Outcome(BACKEND)


def _vm_store(ground: Ground, op: FaceOp) -> Outcome:
    section = _first_slice(ground, op)
    if isinstance(section, Outcome):
        return section
    try:
        ground.write(section, op.addr - section.start, op.data)
    except Refused as refused:
        note_refusal(ground, refused)
        return Outcome(BACKEND)
    return Outcome("done")


def _vm_get_slice(ground: Ground, op: FaceOp) -> Outcome:
    section = ground.find(op.addr)
    if section is None:
        return Outcome(hole(op.addr))
    if op.size > section.size - (op.addr - section.start):
        if ground.mapped(op.addr, op.size):
            ground.designs.add("one-region")
        return Outcome(BACKEND)
    return Outcome(f"a slice of {op.size}")


def _vm_host(ground: Ground, op: FaceOp) -> Outcome:
    section = ground.find(op.addr)
    if section is None:
        return Outcome(hole(op.addr))
    if not ground.is_here(section):
        return Outcome(no_pointer(ground, section))
    offset = op.addr - section.start
    return Outcome("a pointer", ground.read(section, offset, min(op.size, section.size - offset)))


# Section: aligned and atomic


def _aligned(spec: Spec) -> Spec:
    """Only at an address that was checked."""

    def checked(ground: Ground, op: FaceOp) -> Outcome:
        if op.addr % op.size:
            ground.designs.add("aligned-only")
            return Outcome(f"MisalignedGuestAddress({op.addr:#x}, {op.size})")
        return spec(ground, op)

    return checked


def _atomic(spec: Spec) -> Spec:
    """Only where it is one access all the way."""

    def one(ground: Ground, op: FaceOp) -> Outcome:
        why = _why_not_one(ground, op)
        if why:
            ground.designs.add("atomic-only")
            return Outcome(f"NotOneAccess({op.addr:#x}, {op.size}, {why})")
        return spec(ground, op)

    return one


def _why_not_one(ground: Ground, op: FaceOp) -> str:
    section = ground.find(op.addr)
    if section is None:
        return ""
    offset = op.addr - section.start
    if op.size > section.size - offset:
        return "CROSSES"
    at = section.offset + offset
    if not ground.is_memory(section, is_write=op.is_write):
        calls = ground.calls(section.region, at, op.size, is_write=op.is_write)
        return "SPLIT" if calls > 1 else ""
    if at % op.size:
        return "HOST_ALIGNMENT"
    source = ground.session.ram.sources[section.region]
    return "BACKING" if source.coverage.value != "shared" and op.size > 1 else ""


#: Face -> method -> what it owes.
VM_SPECS: dict[str, dict[str, Spec]] = {
    "vm-memory": {
        "read": _vm_read, "write": _vm_write,
        "read_slice": _vm_read_slice, "write_slice": _vm_write_slice,
        "read_obj": _vm_read_obj, "write_obj": _vm_write_slice,
        "load": _vm_load, "store": _vm_store,
        "read_volatile_from": _vm_write, "read_exact_volatile_from": _vm_write_slice,
        "write_volatile_to": _vm_to_stream, "write_all_volatile_to": _vm_all_to_stream,
        "check_range": check_range, "find_region": find_region,
        "get_slice": _vm_get_slice, "get_host_address": _vm_host,
    },
    "aligned": {
        "read_atomic": _aligned(_atomic(_vm_load)), "write_atomic": _aligned(_atomic(_vm_store)),
        "read_obj": _aligned(_vm_read_obj), "write_obj": _aligned(_vm_write_slice),
        "read_obj_unaligned": _vm_read_obj, "write_obj_unaligned": _vm_write_slice,
    },
}
