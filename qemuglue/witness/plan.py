"""How sized accesses to one device region are judged without performing them on the model.

A plan says yes only where QEMU's next lines and its reply are exactly what the rules owe; then it
steps over those lines. Anything else (another event next, an access that nothing is known of, a
device that has to be told what reached it) is left to the general road, and nothing is consumed.
"""

from __future__ import annotations

from collections.abc import Callable

from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.region import MASK64, MemoryRegion, RegionKind
from qemuglue.witness.contracts import Veto
from qemuglue.witness.dma import Following, forwards
from qemuglue.witness.evidence import Evidence, IoRootOps
from qemuglue.witness.face import OK_REPLY, PORT_READS, PORT_WRITES, SIZED_READS, SIZED_WRITES
from qemuglue.witness.forms import Access, Form, form_of
from qemuglue.witness.verdict import Kind

#: Forms kept for single offsets of a device that refuses some of them.
MAX_EXACT = 1 << 16

#: (ports, size, is_write) -> verb
_VERBS = {
    (ports, size, is_write): verb
    for ports, is_write, verbs in (
        (False, False, SIZED_READS), (False, True, SIZED_WRITES),
        (True, False, PORT_READS), (True, True, PORT_WRITES))
    for verb, size in verbs.items()
}


class DevicePlan:
    """The plan of one region in one space; ``kind`` is its row in the verdict table.

    ``marks`` of ``reads`` and ``writes`` gets the forms that were met: what they show to
    coverage feedback is their ``feature``.
    """

    __slots__ = (
        "_base", "_contract", "_epoch", "_exact", "_following", "_forms", "_is_root", "_kind",
        "_region", "_reply", "_single", "_space", "_usable", "_veto",
    )

    def __init__(
        self, space: AddressSpace, region: MemoryRegion, kind: Kind,
        unjudgeable: Callable[[MemoryRegion], str | None], following: Following | None = None,
        *, ports: bool = False,
    ) -> None:
        self._space = space
        self._region = region
        self._kind = kind
        self._following = following
        self._base = region.absolute()
        self._single = ports and space.rules.ports_single_dispatch
        self._reply = b"OK 0x%04x" if ports else b"OK 0x%016x"
        self._is_root = isinstance(region.ops, IoRootOps)
        self._usable = (
            (region.ops is None or self._is_root) and not region.ioeventfds
            and unjudgeable(region) is None
            and region.kind not in (RegionKind.RAM_DEVICE, RegionKind.ROM_DEVICE)
            and not forwards(region) and not space.rules.blocked(False)
        )
        #: By size, direction and the low bits of the offset; by the whole offset where the
        #: device is known to refuse some.
        self._forms: dict[int, Form | None] = {}
        self._exact: dict[int, Form | None] = {}
        self._epoch = -1
        self._contract = region.contract
        self._veto: Veto | None = None

    def reads(
        self, evidence: Evidence, offset: int, size: int, reply: bytes, marks: set[Form] | None
    ) -> bool:
        """Whether the next lines and ``reply`` are what a read at ``offset`` owes."""
        form = self._form(evidence, offset, size, False)
        if form is None:
            return False
        try:
            value = int(reply[5:], 16)
        except ValueError:
            return False
        if reply != self._reply % value or value >> 8 * size:
            return False
        pos = evidence.pos
        if form.plain and evidence.text[pos] == form.plain % (
            (self._base + offset) & MASK64, value
        ):
            stop = pos + 1
        else:
            if form.swapped:
                value = int.from_bytes(value.to_bytes(size, "big"), "little")
            if value & form.fixed != form.filling:
                return False
            stop = self._met(evidence, form, offset, value, False)
            if stop == pos:
                return False
        evidence.step_to(stop, self._region if form.calls else None)
        if marks is not None:
            marks.add(form)
        return True

    def writes(
        self, evidence: Evidence, offset: int, size: int, value: int, reply: bytes,
        marks: set[Form] | None,
    ) -> bool:
        """The same for a write of ``value``."""
        form = self._form(evidence, offset, size, True)
        if form is None or reply != OK_REPLY:
            return False
        pos = evidence.pos
        if form.plain and evidence.text[pos] == form.plain % (
            (self._base + offset) & MASK64, value
        ):
            stop = pos + 1
        else:
            if form.swapped:
                value = int.from_bytes(value.to_bytes(size, "big"), "little")
            stop = self._met(evidence, form, offset, value, True)
            if stop == pos:
                return False
        evidence.step_to(stop, self._region if form.calls else None)
        if marks is not None:
            marks.add(form)
        return True

    # -- inside --------------------------------------------------------------------------------

    def _form(self, evidence: Evidence, offset: int, size: int, is_write: bool) -> Form | None:
        """The access's form under the contract as it is now: first evidence may have shown
        meanwhile that the device refuses by its own rule, or what its byte order is."""
        if self._epoch != evidence.epoch or self._region.contract is not self._contract:
            self._begin(evidence)
        veto = self._veto
        if veto is not None and veto.vetoing:
            forms, key = self._exact, offset << 5 | size << 1 | is_write
        else:
            forms, key = self._forms, (offset & 63) << 5 | size << 1 | is_write
        form = forms.get(key)
        if form is None and key not in forms:
            form = self._make(evidence, forms, key, Access(offset, size, is_write, self._single))
        return form

    def _begin(self, evidence: Evidence) -> None:
        self._epoch = evidence.epoch
        self._contract = self._region.contract
        accepts = self._contract.accepts
        self._veto = accepts if isinstance(accepts, Veto) else None
        self._forms.clear()
        self._exact.clear()

    def _make(
        self, evidence: Evidence, forms: dict[int, Form | None], key: int, access: Access
    ) -> Form | None:
        if not self._usable:
            forms[key] = None
            return None
        if self._following is not None and self._following.hears(self._region, access.is_write):
            return None
        verb = _VERBS[self._reply == b"OK 0x%04x", access.size, access.is_write]
        pointer = evidence.pointer(self._region)
        form = form_of(
            self._space.rules, self._region, access, pointer or 0,
            target_big=self._space.target_big, is_root=self._is_root,
            feature=(self._kind, verb),
        )
        if form is not None and form.calls and pointer is None:
            return None  # nobody has met it yet
        if forms is self._forms or (form is not None and len(forms) < MAX_EXACT):
            forms[key] = form
        return form

    def _met(
        self, evidence: Evidence, form: Form, offset: int, value: int, is_write: bool
    ) -> int:
        """Where the lines of ``form`` end if they come next, else where they would begin.
        ``value`` is in the device's order."""
        pos, text = evidence.pos, evidence.text
        if pos + len(form.lines) >= len(text):
            return pos
        base = self._base + offset
        at = pos
        for line in form.lines:
            if line.refused:
                owed = line.text % (offset + line.delta)
            elif line.filled:
                owed = line.text % (
                    (base + line.delta) & MASK64, (value >> line.right & line.mask) << line.left
                )
            else:
                owed = line.text % ((base + line.delta) & MASK64)
            if text[at] != owed:
                break
            at += 1
        else:
            return at
        if len(form.lines) > 1 or not line.filled:
            return pos
        # A device may return more bits than it was asked for: the event has what counts.
        part = (value >> line.right & line.mask) << line.left
        met = evidence.is_next(self._region, offset + line.delta, line.size, is_write, part)
        return pos + met
