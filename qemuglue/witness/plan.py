"""How sized accesses to one device region are judged without performing them on the model.

A plan says yes only where QEMU's next lines and its reply are exactly what the rules owe; then it
steps over those lines. Anything else (another event next, an access that nothing is known of, a
device that has to be told what reached it) is left to the general road, and nothing is consumed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.attrs import UNSPECIFIED
from qemuglue.memory.region import MASK64, MemoryRegion, RegionKind
from qemuglue.witness.contracts import Veto
from qemuglue.witness.dma import Following, forwards
from qemuglue.witness.dma.device import Stretches, apart
from qemuglue.witness.evidence import Evidence
from qemuglue.witness.face import OK_REPLY, PORT_READS, PORT_WRITES, SIZED_READS, SIZED_WRITES
from qemuglue.witness.forms import Access, Form, form_of
from qemuglue.witness.port_root import IoRootOps
from qemuglue.witness.verdict import Kind

#: Forms kept of one region: a device that refuses some offsets has one for each access.
MAX_FORMS = 1 << 16

#: Bits of an offset that decide the shape of an access (``Rules.chunk``).
_SHAPE_MASK = 63

_PORT_REPLY = b"OK 0x%04x"

#: (ports, size, is_write) -> verb
_VERBS = {
    (ports, size, is_write): verb
    for ports, is_write, verbs in (
        (False, False, SIZED_READS), (False, True, SIZED_WRITES),
        (True, False, PORT_READS), (True, True, PORT_WRITES))
    for verb, size in verbs.items()
}


ByteOrder = Literal["little", "big"]


class DevicePlan:
    """The plan of one region in one space; ``kind`` is its row in the verdict table.

    Call ``check`` before the first use and whenever the general road has been taken since: first
    evidence may have shown there that the device refuses by its own rule, or its byte order.
    ``forms`` then has what is known, by ``key``; ``mask`` has the bits of the offset that matter.
    """

    __slots__ = (
        "_contract", "_device", "_epoch", "_following", "_heeds", "_is_root", "_kind", "_reply",
        "_rules", "_single", "_space", "_usable", "_vetoing", "base", "checked", "forms", "mask",
        "region",
    )

    def __init__(
        self, space: AddressSpace, region: MemoryRegion, kind: Kind,
        unjudgeable: Callable[[MemoryRegion], str | None], following: Following | None = None,
        *, ports: bool = False,
    ) -> None:
        self._space = space
        self._rules = space.rules
        self.region = region
        self._kind = kind
        self._following = following
        self._single = ports and space.rules.ports_single_dispatch
        self._reply = _PORT_REPLY if ports else b"OK 0x%016x"
        self._is_root = isinstance(region.ops, IoRootOps)
        self._epoch = -1
        self._contract = region.contract
        self._vetoing = False
        self._usable = False
        self._device: object = None
        self._heeds: Stretches | None = None
        #: The region's address on its bus.
        self.base = 0
        #: Whatever ``check`` was last called with.
        self.checked: object = None
        #: (text of a call that is all there is, or ``b""``; the form), None: the general road.
        self.forms: dict[int, tuple[bytes, Form] | None] = {}
        self.mask = _SHAPE_MASK
        self.renew(unjudgeable)

    def serves(self, space: AddressSpace) -> bool:
        """Whether the plan was made for accesses through ``space`` by its present rules."""
        return self._space is space and self._rules is space.rules

    def renew(self, unjudgeable: Callable[[MemoryRegion], str | None]) -> None:
        """After a change of the map: forms that hold stay."""
        region = self.region
        self.base = region.absolute()
        usable = (
            (region.ops is None or self._is_root) and not region.ioeventfds
            and unjudgeable(region) is None
            and region.kind not in (RegionKind.RAM_DEVICE, RegionKind.ROM_DEVICE)
            and not forwards(region) and not self._rules.blocked(False)
        )
        device = None if self._following is None else self._following.of(region)
        self._heeds = None if self._following is None else self._following.heeds(region)
        if usable is not self._usable or device is not self._device:
            self._usable, self._device = usable, device
            self.forms = {}

    def check(self, evidence: Evidence, when: object) -> None:
        """Forget the forms if what they were made from has changed."""
        self.checked = when
        contract = self.region.contract
        veto = contract.accepts
        vetoing = isinstance(veto, Veto) and veto.vetoing
        if (
            self._epoch == evidence.epoch and contract is self._contract
            and vetoing is self._vetoing and len(self.forms) < MAX_FORMS
        ):
            return
        self._epoch, self._contract, self._vetoing = evidence.epoch, contract, vetoing
        self.mask = MASK64 if vetoing else _SHAPE_MASK
        self.forms = {}

    def find(
        self, evidence: Evidence, key: int, offset: int, size: int, is_write: bool
    ) -> tuple[bytes, Form] | None:
        """What ``forms`` should have for an access; it has from now on, if that can be said for
        good."""
        if key in self.forms:
            return None
        if not self._usable:
            self.forms[key] = None
            return None
        pointer = evidence.pointer(self.region)
        form = form_of(
            self._rules, self.region, Access(offset, size, is_write, self._single),
            pointer or 0, target_big=self._space.target_big, is_root=self._is_root,
            feature=(self._kind, _VERBS[len(self._reply) == len(_PORT_REPLY), size, is_write]),
        )
        if form is None:
            if not self._vetoing:  # else it may be learnt
                self.forms[key] = None
            return None
        if form.calls and pointer is None:
            return None  # nobody has met it yet
        found: tuple[bytes, Form] | None = (form.plain, form)
        if form.calls and self._following is not None and (
            self._following.hears(self.region, is_write)
        ):
            heard = replace(
                form, plain=b"", heard=True, quiet=form.plain if is_write else b"")
            found = (b"", heard) if form.can_be_heard else None
        self.forms[key] = found
        return found

    def ignored(self, offset: int, size: int) -> bool:
        """Whether a write there means nothing to the region's decoded device, and no ioeventfd
        may take it (a decoded device puts them there and takes them away)."""
        return apart(self._heeds, offset, size) and not self.region.ioeventfds

    def reads(
        self, evidence: Evidence, offset: int, size: int, reply: bytes, marks: set[Form] | None
    ) -> bool:
        """Whether the next lines and ``reply`` are what a read at ``offset`` owes."""
        found = self._form(evidence, offset, size, False)
        if found is None:
            return False
        try:
            value = int(reply[5:], 16)
        except ValueError:
            return False
        if reply != self._reply % value or value >> 8 * size:
            return False
        return self.met(evidence, found[1], offset, size, value, False, marks)

    def writes(
        self, evidence: Evidence, offset: int, size: int, value: int, reply: bytes,
        marks: set[Form] | None,
    ) -> bool:
        """The same for a write of ``value``."""
        found = self._form(evidence, offset, size, True)
        if found is None or reply != OK_REPLY:
            return False
        return self.met(evidence, found[1], offset, size, value, True, marks)

    def _form(
        self, evidence: Evidence, offset: int, size: int, is_write: bool
    ) -> tuple[bytes, Form] | None:
        self.check(evidence, None)
        key = (offset & self.mask) << 5 | size << 1 | is_write
        return self.forms.get(key) or self.find(evidence, key, offset, size, is_write)

    def met(
        self, evidence: Evidence, form: Form, offset: int, size: int, value: int,
        is_write: bool, marks: set[Form] | None,
    ) -> bool:
        """Whether the lines of ``form`` come next; then they are stepped over, and a decoded
        device is told: what it does at once may part model and transcript
        (``evidence.mismatch``). ``value`` is that of the operation or its reply."""
        if form.heard and self.region.ioeventfds:
            return False
        stop = self.compare(
            evidence.text, evidence.pos, form, offset, size, value, is_write)
        if stop is None:
            return False
        if form.result:
            evidence.results[form.result] += 1
        if form.heard and not (is_write and self.ignored(offset, size)):
            self._tell(evidence, form, offset, _turned(form, value, size), is_write)
            evidence.step_to(evidence.pos, self.region)
        else:
            evidence.step_to(stop, self.region if form.calls else None)
        if marks is not None:
            marks.add(form)
        return True

    def compare(
        self, text: Sequence[bytes], at: int, form: Form, offset: int, size: int, value: int,
        is_write: bool,
    ) -> int | None:
        """Where the lines of ``form`` end in ``text`` if they begin at ``at``."""
        value = _turned(form, value, size)
        if not is_write and value & form.fixed != form.filling:
            return None
        base = self.base + offset
        if at + len(form.lines) >= len(text):
            return None
        for line in form.lines:
            if line.refused:
                owed = line.text % (offset + line.delta)
            elif line.filled:
                owed = line.text % (
                    (base + line.delta) & MASK64, (value >> line.right & line.mask) << line.left
                )
            else:
                owed = line.text % ((base + line.delta) & MASK64)
            if text[at] != owed and (is_write or not line.filled or not line.holds(
                text[at], (base + line.delta) & MASK64, value
            )):
                return None
            at += 1
        return at

    def _tell(
        self, evidence: Evidence, form: Form, offset: int, value: int, is_write: bool
    ) -> None:
        """Step over the lines of a decoded device and tell it of each. What it does at once must
        come before the next line: then the general way of taking lines goes on."""
        assert self._following is not None
        at = evidence.pos
        guarded = self._space.engage(self.region)
        try:
            for line in form.lines:
                place, part = offset + line.delta, value >> line.right & line.mask
                if evidence.pos == at:
                    at += 1
                    evidence.step_to(at, self.region, settle=False)
                    self._following.heard(self.region, place, line.size, is_write, part)
                elif is_write:
                    evidence.write(self.region, place, part, line.size, UNSPECIFIED)
                else:
                    evidence.read(self.region, place, line.size, UNSPECIFIED)
        finally:
            self._space.release(self.region, guarded)


def _turned(form: Form, value: int, size: int) -> int:
    """The value in the byte order of the form's lines."""
    if form.swapped:
        return int.from_bytes(value.to_bytes(size, "big"), "little")
    return value
