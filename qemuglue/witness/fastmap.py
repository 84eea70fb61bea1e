"""A view as parallel lists, for the loop that judges hundreds of thousands of accesses a second.

Only accesses that lie inside one section take this road; what it does for RAM is what
``AddressSpace`` does (the same ``Rules`` decide what is direct), only without calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.attrs import UNSPECIFIED
from qemuglue.memory.contract import Reason
from qemuglue.memory.flatview import MemoryRegionSection
from qemuglue.memory.region import MemoryRegion, RegionKind
from qemuglue.memory.rules import Piece
from qemuglue.witness.barriers import Barriers
from qemuglue.witness.contracts import Veto
from qemuglue.witness.dma import Following, forwards
from qemuglue.witness.evidence import Evidence
from qemuglue.witness.ram import TrackedBacking
from qemuglue.witness.verdict import Kind


def kind_of(section: MemoryRegionSection, *, ports: bool) -> Kind:
    """The row of the verdict table an access inside ``section`` belongs to."""
    region = section.region
    if not section.assigned or region.kind is RegionKind.RESERVATION:
        return Kind.UNASSIGNED
    if region.kind is RegionKind.ROM_DEVICE:
        return Kind.ROMD
    if region.is_ram and region.kind is not RegionKind.RAM_DEVICE:
        if region.readonly:
            return Kind.ROM
        return Kind.RO_ALIAS if section.readonly else Kind.RAM
    if not ports:
        return Kind.DEVICE
    return Kind.IO_ROOT if is_io_root(region) else Kind.PORT


def is_io_root(region: MemoryRegion) -> bool:
    """The 64 KiB root of the I/O space, which answers all-ones where no port is."""
    return region.container is None and region.name == "io"


class DevicePlan:
    """How sized accesses to one region look when each is a single call or a single refusal.

    ``reads`` and ``writes`` say yes only where QEMU did exactly that; anything else (several
    pieces, another event next, a device that vetoes, no contract) is left to the general road.
    """

    __slots__ = (
        "_base", "_big", "_contract", "_following", "_kind", "_region", "_rules", "_same_order",
        "_shapes", "_usable", "_veto",
    )

    def __init__(
        self, space: AddressSpace, region: MemoryRegion, kind: Kind,
        unjudgeable: Callable[[MemoryRegion], str | None], following: Following | None = None,
    ) -> None:
        self._region = region
        self._following = following
        self._kind = kind
        self._rules = space.rules
        self._contract = region.contract
        self._big = space.rules.big(region.contract, space.target_big)
        self._same_order = self._big == space.target_big
        self._base = region.absolute()
        #: (size, low bits of the offset, is_write) -> one call, one refusal, or neither.
        self._shapes: dict[int, str] = {}
        veto = region.contract.accepts
        self._veto = veto if isinstance(veto, Veto) else None
        self._usable = (
            region.ops is None and not region.ioeventfds and unjudgeable(region) is None
            and region.kind not in (RegionKind.RAM_DEVICE, RegionKind.ROM_DEVICE)
            and not forwards(region)
            and not space.rules.blocked(False)
        )

    def _holds(self) -> bool:
        """Whether the plan is still what the rules say: first evidence may have shown meanwhile
        that the device refuses by its own rule, or what its byte order is."""
        return self._region.contract is self._contract and not (
            self._veto is not None and self._veto.vetoing
        )

    def _shape(self, offset: int, size: int, is_write: bool) -> str:
        rules, contract = self._rules, self._region.contract
        if not self._usable or rules.chunk(contract, size, offset) != size:
            return "general"
        if self._following is not None and self._following.hears(self._region, is_write):
            return "general"
        if isinstance(contract.accepts, Veto):
            contract = replace(contract, accepts=None)
        reason = rules.refusal(contract, offset, size, is_write)
        if reason is not None:
            return "refused" if reason is Reason.REJECTED else "general"
        pieces = rules.pieces(contract, size, self._big)
        whole = len(pieces) == 1 and pieces[0] == Piece(0, size, 0)
        return "call" if whole and not self._region.is_ram else "general"

    def reads(
        self, evidence: Evidence, offset: int, size: int, reply: bytes,
        features: set[object] | None,
    ) -> bool:
        """Whether the next event and ``reply`` are what a read at ``offset`` owes."""
        key = size << 8 | (offset & 63) << 1
        shape = self._shapes.get(key)
        if shape is None:
            shape = self._shapes[key] = self._shape(offset, size, False)
        if shape == "call":
            value = evidence.is_next_read(self._region, self._base + offset, size)
            if value is None or not self._holds():
                return False
            if not self._same_order:
                value = int.from_bytes(value.to_bytes(size, "big"), "little")
        elif shape == "refused":
            if not evidence.is_next_refusal(self._region, offset, size, False):
                return False
            value = self._rules.refused_value(size)
        else:
            return False
        if reply != b"OK 0x%016x" % value:
            return False
        evidence.step_on(self._region, refused=shape == "refused")
        if features is not None:
            features.add((self._kind, "read", shape, self._region.name, size))
        return True

    def writes(
        self, evidence: Evidence, offset: int, size: int, value: int,
        features: set[object] | None,
    ) -> bool:
        """The same for a write of ``value``."""
        key = size << 8 | (offset & 63) << 1 | 1
        shape = self._shapes.get(key)
        if shape is None:
            shape = self._shapes[key] = self._shape(offset, size, True)
        if shape == "call":
            if not self._same_order:
                value = int.from_bytes(value.to_bytes(size, "big"), "little")
            if not (
                evidence.is_next_write(self._region, self._base + offset, size, value)
                and self._holds()
            ):
                return False
        elif shape == "refused":
            if not evidence.is_next_refusal(self._region, offset, size, True):
                return False
        else:
            return False
        evidence.step_on(self._region, refused=shape == "refused")
        if features is not None:
            features.add((self._kind, "write", shape, self._region.name, size))
        return True


class FastMap:
    """Entry i covers [starts[i], limits[i]) of the space; index by bisect over ``starts``.

    ``rbarrier`` and ``wbarrier`` say whether a read or a write there ends its batch: None no,
    "after" it does, "solo" it is alone in its batch, "kick" also if its decoded device says that
    it may start a DMA, "avoid" it is not sent, "learnt" it depends on the access.
    """

    __slots__ = (
        "delta", "dirty", "kinds", "limits", "plans", "rbarrier", "rdata", "read_barriers",
        "sections", "starts", "wbarrier", "wdata", "write_barriers",
    )

    def __init__(
        self, space: AddressSpace, barriers: Barriers,
        unjudgeable: Callable[[MemoryRegion], str | None], *,
        avoided: Callable[[str], str | None] = lambda name: None, ports: bool = False,
        following: Following | None = None,
    ) -> None:
        view = space.view
        rules = space.rules
        self.sections = view.cover
        self.starts = view.starts
        self.limits = [section.start + section.size for section in view.cover]
        self.delta = [
            rules.region_offset(section, section.start) - section.start for section in view.cover
        ]
        self.kinds = [kind_of(section, ports=ports) for section in view.cover]
        self.rdata: list[memoryview | None] = []
        self.wdata: list[memoryview | None] = []
        self.dirty: list[set[int]] = []
        self.plans: list[DevicePlan] = []
        self.rbarrier: list[str | None] = []
        self.wbarrier: list[str | None] = []
        for section in view.cover:
            backing = section.region.backing
            tracked = backing if isinstance(backing, TrackedBacking) else None
            readable = tracked is not None and rules.direct_read(section.region)
            writable = tracked is not None and rules.direct_write(section.region, UNSPECIFIED)
            self.rdata.append(tracked.data if tracked is not None and readable else None)
            self.wdata.append(tracked.data if tracked is not None and writable else None)
            self.dirty.append(tracked.dirty if tracked is not None else set())
            self.plans.append(
                DevicePlan(space, section.region, self.kinds[len(self.plans)], unjudgeable,
                           following)
            )
            solo = "solo" if unjudgeable(section.region) else None
            if avoided(section.region.name) is not None:
                solo = "avoid"
            decoded = following is not None and following.of(section.region) is not None
            self.rbarrier.append(solo or _barrier(barriers, section.region, False))
            self.wbarrier.append(
                solo or ("kick" if decoded else _barrier(barriers, section.region, True)))
        #: Whether there is any: most machines have none among their memory.
        self.read_barriers = any(self.rbarrier)
        self.write_barriers = any(self.wbarrier)


def _barrier(barriers: Barriers, region: MemoryRegion, is_write: bool) -> str | None:
    if is_write and barriers.always(region):
        return "after"
    return "learnt" if barriers.may(region, is_write) else None
