"""The Rust face of the model and vm-memory 0.18 side by side: where QEMU's memory does otherwise.

What vm-memory did with a script of operations is recorded (``test_memory_guest_recorded``). Here
the same script is done to a space of the model with the same RAM at the same addresses. Every
outcome is the crate's, but for the differences that ``Why`` names; each of them occurs, and no
other.
"""

from __future__ import annotations

import enum
from collections import Counter

from test_memory_guest_recorded import GAPS, recorded
from vm_memory_script import ACCESSES, Player

from qemuglue.memory import AddressSpace, Backing, ByteBacking, MemoryRegion
from qemuglue.memory.guest_address import GuestAddress
from qemuglue.memory.guest_memory import GuestRegionCollection
from qemuglue.memory.rust_binding import AddressSpace as RustSpace
from qemuglue.memory.rust_binding import FlatView

TOP = 1 << 64


class Why(enum.Enum):
    """Why QEMU's Rust bindings do otherwise than vm-memory on plain memory."""

    HOLE = "a hole answers as a region that refuses: InvalidBackendAddress"
    MISALIGNED = "one access need not be aligned"
    SECTION = "a section's streams are those of guest memory that ends with it, no slice's"
    GAP = "what follows a short read is not put behind a gap"
    BUFFER = "a buffer that was not filled is touched behind what was read"


class ViewPlayer(Player):
    """The script done to a space of the model; ``twin`` has the memory as vm-memory has it."""

    def __init__(self) -> None:
        super().__init__(ByteBacking)
        self.twin = Player(ByteBacking, ACCESSES | GAPS)
        self.clear()

    def clear(self) -> None:
        self.root = MemoryRegion.container_of("system", TOP)
        self.rust = RustSpace(AddressSpace("memory", self.root))
        self.placed: dict[int, MemoryRegion] = {}

    def do(self, line: str) -> str:
        self.twin.do(line)
        if line == "new":
            self.clear()
        name = line.partition(" ")[0]
        if name in ("insert", "remove", "new"):
            outcome = super().do(line)
            self._follow()
            return outcome
        kept = self.mem
        try:
            with self.rust.memory() as view:
                self.mem = view  # type: ignore[assignment]
                return super().do(line) if name != "shown" else self._shown(view)
        finally:
            self.mem = kept

    def _shown(self, view: FlatView) -> str:
        return " ".join(
            f"{s.start_addr().raw_value()}:{self._backing(s.section.region).read(0, s.len()).hex()}"
            for s in view.iter()
        )

    def _follow(self) -> None:
        """The model's map becomes the collection's, over the same bytes."""
        there = {each.start_addr().raw_value(): each for each in self.mem.iter()}
        for start in set(self.placed) - set(there):
            self.root.del_subregion(self.placed.pop(start))
        for start in set(there) - set(self.placed):
            one = there[start]
            self.placed[start] = MemoryRegion.ram(f"ram{start:x}", one.len(), one.backing)
            self.root.add_subregion(start, self.placed[start])

    def alone(self, words: list[str]) -> str:
        """What a line for a region says of guest memory that has no other region. (What a stream
        fills is not shown, and what it empties was not changed: it may be asked behind that.)"""
        region = self.mem.find_region(GuestAddress(int(words[1])))
        assert region is not None
        one = Player(ByteBacking)
        one.mem = GuestRegionCollection.from_regions([region])
        start = region.start_addr().raw_value()
        line = f"{words[3]} {(start + int(words[2])) % TOP} {' '.join(words[4:])}"
        kind, _, rest = one.do(line).partition(" ")
        if kind != "InvalidGuestAddress":
            return f"{kind} {rest}".strip()
        return f"InvalidBackendAddress {rest.partition(' ')[2]}".strip()

    def as_the_twin(self) -> None:
        """After a difference: the bytes that vm-memory has."""
        for each in self.twin.mem.iter():
            region = self.placed[each.start_addr().raw_value()]
            self._backing(region).write(0, each.backing.read(0, each.len()))

    @staticmethod
    def _backing(region: MemoryRegion) -> Backing:
        assert region.backing is not None
        return region.backing


def why(player: ViewPlayer, line: str, theirs: str, ours: str) -> Why | None:
    """Which difference this is; None if it is none of those that are meant to be."""
    words = line.split(" ")
    inside = words[0] == "region"
    name = words[3] if inside else words[0]
    if name not in ACCESSES:
        return None
    if theirs.startswith("InvalidGuestAddress") and ours.startswith("InvalidBackendAddress"):
        return Why.HOLE
    if name in ("store", "load"):
        wrong = theirs == "InvalidBackendAddress" and ours.startswith("ok")
        return Why.MISALIGNED if wrong else None
    if inside and name in ("from", "from_exact", "to", "to_all", "to_vec"):
        return Why.SECTION if ours == player.alone(words) else None
    if name in GAPS:
        return Why.GAP if ours.split(" ")[0] in ("ok", "PartialBuffer") else None
    if name in ("read", "read_slice"):
        outcome = theirs.rpartition(" ")[0]
        return Why.BUFFER if outcome == ours.rpartition(" ")[0] else None
    return None


def test_every_outcome_is_that_of_vm_memory_but_for_what_is_named() -> None:
    player = ViewPlayer()
    found: Counter[Why] = Counter()
    unmeant: list[tuple[str, str, str]] = []
    for line, theirs in recorded():
        ours = player.do(line)
        if ours == theirs:
            continue
        difference = why(player, line, theirs, ours)
        if difference is None:
            unmeant.append((line, theirs, ours))
        else:
            found[difference] += 1
        player.as_the_twin()
    assert unmeant == []
    assert set(found) == set(Why), "each of them occurs"
