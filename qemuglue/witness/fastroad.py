"""The fast road through a batch: operations that lie inside one section, judged without calls
into the model.

RAM is a slice of the model's bytes; a sized access to a device goes by the region's plan. It
stops in front of the first operation that is not exactly what the rules owe, or that it does not
know, and has consumed nothing of it. It never finds fault.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from struct import Struct

from qemuglue.memory.attrs import OK
from qemuglue.program.operation import Operation
from qemuglue.witness.face import (
    OK_REPLY,
    PORT_READS,
    PORT_WRITES,
    SIZED_READS,
    SIZED_WRITES,
    HostFace,
)
from qemuglue.witness.forms import Form
from qemuglue.witness.ram import PAGE, PAGE_BITS
from qemuglue.witness.session import Session, Step
from qemuglue.witness.verdict import Kind, Tally, Verdict

#: verb -> (size, is it a write)
_SIZED = {
    **{verb: (size, False) for verb, size in SIZED_READS.items()},
    **{verb: (size, True) for verb, size in SIZED_WRITES.items()},
}
_PORTS = {
    **{verb: (size, False) for verb, size in PORT_READS.items()},
    **{verb: (size, True) for verb, size in PORT_WRITES.items()},
}
_CODES = {1: "B", 2: "H", 4: "I", 8: "Q"}

#: The root of the I/O space: beyond it ports are refused without a name.
PORT_ROOT_SIZE = 1 << 16


class FastRoad:
    """Judges operations of one batch into ``tally``; ``close`` counts them.

    ``features`` gets what the general road would tell of the same accesses.
    """

    def __init__(self, session: Session, tally: Tally, features: set[object] | None) -> None:
        self._evidence = session.evidence
        self._memory = session.fast
        self._io = session.fast_io
        self._tally = tally
        self._features = features
        self._forms: set[Form] | None = None if features is None else set()
        self._plain: set[tuple[Kind, str]] = set()
        self._counts = [0] * len(self._memory.starts)
        self._port_counts: Counter[int] = Counter()
        #: Another face than QEMU's own (a planted defect) is for the general road.
        self._open = type(session.face) is HostFace
        order = "<" if session.face.order == "little" else ">"
        structs = {size: Struct(order + code) for size, code in _CODES.items()}
        self._unpack = {size: each.unpack_from for size, each in structs.items()}
        self._pack = {size: each.pack_into for size, each in structs.items()}

    def run(self, steps: Sequence[Step], lines: Sequence[bytes], at: int, stop: int) -> int:
        """The number of the first operation from ``at`` on that is left to the general road, or
        that comes behind a change of the map (``evidence.topology``); ``stop`` if there is none.
        """
        if not self._open:
            return at
        evidence, fast, forms = self._evidence, self._memory, self._forms
        starts, limits, delta, plans = fast.starts, fast.limits, fast.delta, fast.plans
        rdata, wdata, dirty = fast.rdata, fast.wdata, fast.dirty
        unpack, pack = self._unpack, self._pack
        counts, verbs, remaps = self._counts, self._tally.verbs, evidence.may_remap
        for k in range(at, stop):
            op, addr = steps[k]
            verb = op.verb
            way = _SIZED.get(verb)
            if way is None:
                if not self._other(op, addr, lines[k]):
                    return k
            else:
                size, is_write = way
                i = bisect_right(starts, addr) - 1
                if addr + size > limits[i]:
                    return k
                if remaps:
                    evidence.op_addr, evidence.op_size = addr, size
                if is_write:
                    data = wdata[i]
                    if data is None:
                        if not plans[i].writes(
                            evidence, addr + delta[i], size, op.value, lines[k], forms
                        ):
                            return k
                    else:
                        if lines[k] != OK_REPLY:
                            return k
                        place = addr + delta[i]
                        pack[size](data, place, op.value)
                        dirty[i].add(place >> PAGE_BITS)
                        if place % PAGE > PAGE - size:
                            dirty[i].add((place >> PAGE_BITS) + 1)
                        if forms is not None:
                            self._plain.add((fast.kinds[i], verb))
                else:
                    data = rdata[i]
                    if data is None:
                        if not plans[i].reads(evidence, addr + delta[i], size, lines[k], forms):
                            return k
                    else:
                        if lines[k] != b"OK 0x%016x" % unpack[size](data, addr + delta[i])[0]:
                            return k
                        if forms is not None:
                            self._plain.add((fast.kinds[i], verb))
                counts[i] += 1
            verbs[verb] += 1
            if remaps and evidence.topology:
                return k + 1
        return stop

    def close(self) -> None:
        """Count what was judged; once, at the end of the batch."""
        cells = self._tally.cells
        for i, n in enumerate(self._counts):
            if n:
                cells[self._memory.kinds[i], Verdict.MATCH] += n
        if self._io is not None:
            for i, n in self._port_counts.items():
                cells[self._io.kinds[i], Verdict.MATCH] += n
        if self._features is not None and self._forms is not None:
            self._features.update(form.feature for form in self._forms)
            self._features.update((kind, verb, (), OK) for kind, verb in self._plain)

    # -- other verbs ---------------------------------------------------------------------------

    def _other(self, op: Operation, addr: int, reply: bytes) -> bool:
        """A port access or a byte string; whether it was judged."""
        way = _PORTS.get(op.verb)
        if way is None:
            return self._bytes(op, addr, reply)
        io, evidence = self._io, self._evidence
        if io is None:
            return False
        i = bisect_right(io.starts, addr) - 1
        size, is_write = way
        if addr + size > io.limits[i]:
            return False
        if evidence.may_remap:
            evidence.op_addr, evidence.op_size = PORT_ROOT_SIZE, size
        plan, offset = io.plans[i], addr + io.delta[i]
        if is_write:
            met = plan.writes(evidence, offset, size, op.value, reply, self._forms)
        else:
            met = plan.reads(evidence, offset, size, reply, self._forms)
        if met:
            self._port_counts[i] += 1
        return met

    def _bytes(self, op: Operation, addr: int, reply: bytes) -> bool:
        """``read``, ``write`` or ``memset`` inside one section of memory."""
        fast = self._memory
        i = bisect_right(fast.starts, addr) - 1
        if addr + op.size > fast.limits[i]:
            return False
        place = addr + fast.delta[i]
        last = place + op.size
        if op.verb == "read":
            data = fast.rdata[i]
            if data is None or reply != b"OK 0x%b" % data[place:last].hex().encode():
                return False
        else:
            data = fast.wdata[i]
            if data is None or reply != OK_REPLY or op.verb not in ("write", "memset"):
                return False
            fill = op.data if op.verb == "write" else bytes([op.value]) * op.size
            if len(fill) != op.size:
                return False
            data[place:last] = fill
            fast.dirty[i].update(
                range(place >> PAGE_BITS, ((last - 1) >> PAGE_BITS) + 1))
        self._counts[i] += 1
        if self._forms is not None:
            self._plain.add((fast.kinds[i], op.verb))
        return True
