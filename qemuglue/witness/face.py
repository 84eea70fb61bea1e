"""The host path: what each qtest verb means on the model, and the reply QEMU owes for it.

R20, QEMU ``system/qtest.c``: sized verbs move 1, 2, 4 or 8 bytes by ``address_space_read`` or
``_write`` and take or give their value in the target's byte order; ``read``, ``write`` and
``memset`` move byte strings; ``in*``/``out*`` do the same in the I/O space (``cpu_inw`` reads
two bytes and takes them in target order; from 11 on it is one ``address_space_lduw``, which is
not cut: an unaligned port access that a region does not take is refused whole). The reply says
OK whatever the MemTxResult was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qemuglue.memory.address_space import AddressSpace
from qemuglue.program.operation import Operation

#: verb -> size of its access
SIZED_READS = {"readb": 1, "readw": 2, "readl": 4, "readq": 8}
SIZED_WRITES = {"writeb": 1, "writew": 2, "writel": 4, "writeq": 8}
PORT_READS = {"inb": 1, "inw": 2, "inl": 4}
PORT_WRITES = {"outb": 1, "outw": 2, "outl": 4}

OK_REPLY = b"OK"


_READ_LINES = {verb: b"%b 0x%%x\n" % verb.encode() for verb in SIZED_READS | PORT_READS}
_WRITE_LINES = {
    verb: b"%b 0x%%x 0x%%x\n" % verb.encode() for verb in SIZED_WRITES | PORT_WRITES
}


def encode_all(steps: Sequence[tuple[Operation, int]]) -> list[bytes]:
    """The qtest line of each step; the operations are already validated."""
    lines = []
    for op, addr in steps:
        line = _READ_LINES.get(op.verb)
        if line is not None:
            lines.append(line % addr)
            continue
        line = _WRITE_LINES.get(op.verb)
        lines.append(line % (addr, op.value) if line is not None else encode(op, addr))
    return lines


def encode(op: Operation, addr: int) -> bytes:
    """The qtest line for ``op`` at the resolved address; the operation is already validated."""
    verb = op.verb
    if verb in _READ_LINES:
        return _READ_LINES[verb] % addr
    if verb in _WRITE_LINES:
        return _WRITE_LINES[verb] % (addr, op.value)
    if verb == "read":
        return b"read 0x%x 0x%x\n" % (addr, op.size)
    if verb == "memset":
        return b"memset 0x%x 0x%x 0x%x\n" % (addr, op.size, op.value)
    assert verb == "write", f"{verb} is not a host-path verb"
    return b"write 0x%x 0x%x 0x%b\n" % (addr, op.size, op.data.hex().encode())


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the model says: the reply QEMU owes, and the MemTxResult it hides."""

    reply: bytes
    result: int


class HostFace:
    """The verbs over the memory space and, where the machine has one, the I/O space."""

    def __init__(self, memory: AddressSpace, io: AddressSpace | None) -> None:
        self.memory = memory
        self.io = io
        #: Byte order of the value forms.
        self.order: Literal["little", "big"] = "big" if memory.target_big else "little"

    def value_bytes(self, value: int, size: int) -> bytes:
        """The bytes that a sized write of ``value`` moves."""
        return value.to_bytes(size, self.order)

    def value_of(self, data: bytes) -> int:
        """The value that a sized read of ``data`` replies."""
        return int.from_bytes(data, self.order)

    def perform(self, op: Operation, addr: int) -> Outcome:
        """Do ``op`` at ``addr`` on the model."""
        verb = op.verb
        if verb in SIZED_READS:
            result, data = self.memory.read(addr, op.size)
            return Outcome(b"OK 0x%016x" % self.value_of(data), result)
        if verb in SIZED_WRITES:
            data = self.value_bytes(op.value, op.size)
            return Outcome(OK_REPLY, self.memory.write(addr, data))
        if verb == "read":
            result, data = self.memory.read(addr, op.size)
            return Outcome(b"OK 0x" + data.hex().encode(), result)
        if verb == "write":
            data = op.data[: op.size].ljust(op.size, b"\0")
            return Outcome(OK_REPLY, self.memory.write(addr, data))
        if verb == "memset":
            return Outcome(OK_REPLY, self.memory.write(addr, bytes([op.value]) * op.size))
        return self._port(op, addr)

    def _port(self, op: Operation, addr: int) -> Outcome:
        assert self.io is not None, "this machine has no I/O space"
        single = self.io.rules.ports_single_dispatch
        if op.verb in PORT_READS:
            if single:
                result, value = self.io.load_sized(addr, op.size, "little")
                return Outcome(b"OK 0x%04x" % value, result)
            result, data = self.io.read(addr, op.size)
            return Outcome(b"OK 0x%04x" % self.value_of(data), result)
        assert op.verb in PORT_WRITES, f"{op.verb} is not a host-path verb"
        if single:
            return Outcome(OK_REPLY, self.io.store_sized(addr, op.value, op.size, "little"))
        return Outcome(OK_REPLY, self.io.write(addr, self.value_bytes(op.value, op.size)))
