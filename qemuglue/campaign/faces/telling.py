"""What the specs of all faces share: how a value, an error and a count are told."""

from __future__ import annotations

from collections.abc import Callable

from qemuglue.campaign.faces.ground import Ground, Refused
from qemuglue.campaign.faces.ops import TYPES, FaceOp, Outcome
from qemuglue.memory.flatview import MemoryRegionSection

Spec = Callable[[Ground, FaceOp], Outcome]

BACKEND = "InvalidBackendAddress()"


def typed(op: FaceOp, data: bytes) -> Outcome:
    """A value of the type asked for, from the bytes as they stand in memory."""
    order = TYPES[op.cls].order
    return Outcome(f"{op.cls} {int.from_bytes(data, order):#x}")


def hole(addr: int) -> str:
    """vm-memory's error for an address where nothing is."""
    return f"InvalidGuestAddress({addr:#x})"


def note_refusal(ground: Ground, refused: Refused) -> None:
    """Name the design where QEMU's own functions would have cut what was refused."""
    if refused.cut:
        ground.designs.add("one-access")


def ended(ground: Ground, done: int, size: int, error: str) -> tuple[int, str]:
    """(bytes moved, error) of what ends early, behind which QEMU's own functions go on."""
    if done:
        ground.designs.add("first-error-ends")
    return done, error


def count(done: int, error: str, verb: str, data: bytes = b"") -> Outcome:
    """What moves as much as it can: the error only where nothing was moved."""
    if error and not done:
        return Outcome(error)
    return Outcome(f"{verb} {done}", data)


def moved_all(size: int, done: int, error: str, data: bytes = b"") -> Outcome:
    """What moves all: the error, or PartialBuffer where something was moved before it."""
    if error and not done:
        return Outcome(error)
    if done != size:
        return Outcome(f"PartialBuffer({size}, {done})")
    return Outcome("done", data)


def check_range(ground: Ground, op: FaceOp) -> Outcome:
    """Whether sections cover a range; for QEMU\'s bindings also those that only claim addresses."""
    return Outcome(str(ground.mapped(op.addr, op.size, reserved=op.face == "rust")))


def find_region(ground: Ground, op: FaceOp) -> Outcome:
    """The section at an address."""
    section = ground.find(op.addr, reserved=op.face == "rust")
    if section is None:
        return Outcome("None")
    return Outcome(f"{section.start:#x} to {section.last:#x}")


def no_pointer(ground: Ground, section: MemoryRegionSection) -> str:
    """The error where there is no pointer in this process, though QEMU may have one in its own."""
    if section.region.is_ram or section.region.backing is not None:
        ground.designs.add("host-elsewhere")
    return "HostAddressNotAvailable()"
