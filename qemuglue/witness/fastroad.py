"""The fast road through a batch: operations that lie inside one section, judged without calls
into the model.

RAM is a slice of the model's bytes; a sized access to a device goes by the region's plan. It
stops in front of the first operation that is not exactly what the rules owe, or that it does not
know, and has consumed nothing of it. The only fault it can meet is that of a decoded device that
it told of an access.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from struct import Struct

from qemuglue.memory.attrs import OK
from qemuglue.memory.region import MemoryRegion
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
from qemuglue.witness.spread import store, walk
from qemuglue.witness.verdict import Kind, Tally, Verdict

#: verb -> (size, is it a write)
SIZED = {
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


#: Replies of device reads -> their values: most registers read the same again and again.
_VALUES: dict[bytes, int] = {}
MAX_VALUES = 1 << 14


def _moved(op: Operation, reply: bytes, is_write: bool, size: int) -> int | None:
    """The value that a device access moved by its reply; None if that is no such reply."""
    if is_write:
        return op.value if reply == OK_REPLY else None
    value = _VALUES.get(reply)
    if value is None:
        try:
            value = int(reply[5:], 16)
        except ValueError:
            return None
        if reply != b"OK 0x%016x" % value:
            return None
        if len(_VALUES) < MAX_VALUES:
            _VALUES[reply] = value
    return None if value >> 8 * size else value


class FastRoad:
    """Judges operations of one batch into ``tally``; ``close`` counts them.

    ``features`` gets what the general road would tell of the same accesses.
    """

    def __init__(self, session: Session, tally: Tally, features: set[object] | None) -> None:
        self._evidence = session.evidence
        self._accessed = session.following.accessed
        self._memory = session.fast
        self._io = session.fast_io
        self._tally = tally
        self._verbs = tally.verbs
        self._features = features
        self._forms: set[Form] | None = None if features is None else set()
        self._plain: set[tuple[Kind, str]] = set()
        self._counts = [0] * len(self._memory.starts)
        self._port_counts: Counter[int] = Counter()
        self._kinds: Counter[Kind] = Counter()
        self._rules = session.mirror.memory.rules
        #: Another face than QEMU's own (a planted defect) is for the general road.
        self._open = type(session.face) is HostFace
        self._turn = object()
        self._order = session.face.order
        mark = "<" if self._order == "little" else ">"
        structs = {size: Struct(mark + code) for size, code in _CODES.items()}
        self._unpack = {size: each.unpack_from for size, each in structs.items()}
        self._pack = {size: each.pack_into for size, each in structs.items()}

    def run(self, steps: Sequence[Step], lines: Sequence[bytes], at: int, stop: int) -> int:
        """The number of the first operation from ``at`` on that is left to the general road, or
        that comes behind one that changed the map (``evidence.topology``), or at which a decoded
        device did otherwise than the model (``evidence.mismatch``); ``stop`` if there is none.
        """
        self._turn = object()
        if not self._open:
            return at
        if self._evidence.may_remap:
            return self._run_carefully(steps, lines, at, stop)
        return self._run(steps, lines, at, stop)

    def _run(self, steps: Sequence[Step], lines: Sequence[bytes], at: int, stop: int) -> int:
        """Where the map cannot change. One loop, without calls for what is most frequent,
        because it is entered hundreds of thousands of times a second; ``_one`` is the same."""
        evidence, fast, forms, turn = self._evidence, self._memory, self._forms, self._turn
        starts, limits, delta = fast.starts, fast.limits, fast.delta
        unpack, pack, counts, verbs = self._unpack, self._pack, self._counts, self._verbs
        text, pos = evidence.text, evidence.pos
        called: MemoryRegion | None = None
        for k in range(at, stop):
            op, addr = steps[k]
            verb, reply = op.verb, lines[k]
            size, is_write = SIZED.get(verb, (0, False))
            i = bisect_right(starts, addr) - 1
            if not size or addr + size > limits[i]:
                evidence.step_to(pos, called)
                if not self._one(op, addr, reply):
                    return k
                if evidence.mismatch is not None:
                    return k + 1
                pos, called = evidence.pos, None
                continue
            place = addr + delta[i]
            data = fast.wdata[i] if is_write else fast.rdata[i]
            if data is None:
                plan = fast.plans[i]
                if plan.checked is not turn:
                    plan.check(evidence, turn)
                key = (place & plan.mask) << 5 | size << 1 | is_write
                found = plan.forms.get(key) or plan.find(evidence, key, place, size, is_write)
                value = _moved(op, reply, is_write, size)
                if found is None or value is None:
                    break
                owed, form = found
                if not owed and form.quiet and plan.ignored(place, size):
                    owed = form.quiet
                if owed:
                    if text[pos] != owed % (plan.base + place, value) and (
                        is_write or not form.lines[0].holds(text[pos], plan.base + place, value)
                    ):
                        break
                    pos, called = pos + 1, plan.region
                    if forms is not None:
                        forms.add(form)
                else:
                    evidence.step_to(pos, called)
                    evidence.op_addr, evidence.op_size = addr, size
                    if not plan.met(evidence, form, place, size, value, is_write, forms):
                        return k
                    if evidence.mismatch is not None:
                        verbs[verb] += 1
                        return k + 1
                    pos, called = evidence.pos, None
            elif is_write:
                if reply != OK_REPLY:
                    break
                pack[size](data, place, op.value)
                fast.dirty[i].add(place >> PAGE_BITS)
                if place % PAGE > PAGE - size:
                    fast.dirty[i].add((place >> PAGE_BITS) + 1)
            elif reply != b"OK 0x%016x" % unpack[size](data, place)[0]:
                break
            if data is not None and forms is not None:
                self._plain.add((fast.kinds[i], verb))
            counts[i] += 1
            verbs[verb] += 1
        else:
            k = stop
        evidence.step_to(pos, called)
        return k

    def _run_carefully(
        self, steps: Sequence[Step], lines: Sequence[bytes], at: int, stop: int
    ) -> int:
        """Where each operation may have changed the map."""
        evidence = self._evidence
        for k in range(at, stop):
            op, addr = steps[k]
            if not self._one(op, addr, lines[k]):
                return k
            if evidence.topology or evidence.mismatch is not None:
                return k + 1
        return stop

    def close(self) -> None:
        """Count what was judged; once, at the end of the batch."""
        cells = self._tally.cells
        for i, n in enumerate(self._counts):
            if n:
                cells[self._memory.kinds[i], Verdict.MATCH] += n
                self._accessed.add(self._memory.sections[i].region)
        if self._io is not None:
            for i, n in self._port_counts.items():
                cells[self._io.kinds[i], Verdict.MATCH] += n
                self._accessed.add(self._io.sections[i].region)
        for kind, n in self._kinds.items():
            cells[kind, Verdict.MATCH] += n
        self._tally.results.update(self._evidence.results)
        self._evidence.results.clear()
        if self._features is not None and self._forms is not None:
            self._features.update(form.feature for form in self._forms)
            self._features.update((kind, verb, (), OK) for kind, verb in self._plain)

    # -- one operation -------------------------------------------------------------------------

    def _one(self, op: Operation, addr: int, reply: bytes) -> bool:
        """Judge one operation; False if it is not for this road."""
        verb, evidence = op.verb, self._evidence
        evidence.op_addr, evidence.op_size = addr, op.size
        done = self._port(op, addr, reply) if verb in _PORTS else self._bytes(op, addr, reply)
        if done:
            self._verbs[verb] += 1
        return done

    def _port(self, op: Operation, addr: int, reply: bytes) -> bool:
        io, evidence = self._io, self._evidence
        if io is None:
            return False
        evidence.op_addr = PORT_ROOT_SIZE
        size, is_write = _PORTS[op.verb]
        i = bisect_right(io.starts, addr) - 1
        crossing = addr + size > io.limits[i]
        if crossing and not self._rules.ports_single_dispatch:
            return False
        plan, offset = io.plans[i], addr + io.delta[i]
        met: set[Form] | None = set() if crossing else self._forms
        if is_write:
            done = plan.writes(evidence, offset, size, op.value, reply, met)
        else:
            done = plan.reads(evidence, offset, size, reply, met)
        if not done or evidence.mismatch is not None:
            return done
        if not crossing or met is None:
            self._port_counts[i] += 1
            return True
        self._kinds[Kind.CROSSING] += 1
        if self._features is not None:
            self._features.update((Kind.CROSSING, *form.feature[1:]) for form in met)
        return True

    def _bytes(self, op: Operation, addr: int, reply: bytes) -> bool:
        """A sized access or a byte string, anywhere in memory."""
        fast, evidence = self._memory, self._evidence
        is_write = op.verb not in SIZED_READS and op.verb != "read"
        moved = self._written(op) if is_write else self._read(op, reply)
        if len(moved) != op.size or (is_write and reply != OK_REPLY):
            return False
        found = walk(
            fast, self._rules, evidence, self._turn, addr, moved, is_write=is_write,
            order=self._order)
        if found is None:
            return self._told(op, addr, reply)
        store(fast, found, moved)
        if found.result:
            evidence.results[found.result] += 1
        evidence.step_to(found.pos, found.called)
        kind = fast.kinds[bisect_right(fast.starts, addr) - 1]
        if addr + op.size > fast.limits[bisect_right(fast.starts, addr) - 1]:
            kind = Kind.CROSSING
        self._kinds[kind] += 1
        if self._features is not None:
            self._features.add((kind, op.verb, tuple(found.shape), found.result))
        return True

    def _told(self, op: Operation, addr: int, reply: bytes) -> bool:
        """A sized access to a decoded device, which must be told."""
        fast, evidence = self._memory, self._evidence
        i = bisect_right(fast.starts, addr) - 1
        if op.verb not in SIZED or addr + op.size > fast.limits[i]:
            return False
        size, is_write = SIZED[op.verb]
        place, plan = addr + fast.delta[i], fast.plans[i]
        if is_write:
            met = plan.writes(evidence, place, size, op.value, reply, self._forms)
        else:
            met = plan.reads(evidence, place, size, reply, self._forms)
        self._counts[i] += met and evidence.mismatch is None
        return met

    def _read(self, op: Operation, reply: bytes) -> bytes:
        """The bytes that a reply says were read; none where it is no such reply."""
        if op.verb in SIZED_READS:
            value = _moved(op, reply, False, op.size)
            return b"" if value is None else value.to_bytes(op.size, self._order)
        try:
            read = bytes.fromhex(reply[5:].decode("ascii"))
        except ValueError:
            return b""
        return read if reply == b"OK 0x%b" % read.hex().encode() else b""

    def _written(self, op: Operation) -> bytes:
        """The bytes that a write moves; none where the verb is none of those."""
        if op.verb in SIZED_WRITES:
            return op.value.to_bytes(op.size, self._order)
        if op.verb == "memset":
            return bytes([op.value]) * op.size
        return op.data if op.verb == "write" else b""
