"""Ours and vm-memory 0.18 itself: what the crate did is recorded, operation by operation.

``tests/data/vm_memory/outcomes.txt`` was written by the program beside it, linked with vm-memory at
commit 6de1c4b and built with overflow checks; ``tests/vm_memory_script.py`` tells how.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from guest_regions import Remote
from vm_memory_script import ACCESSES, Access, Player, pieces_of, script, told

from qemuglue.memory import Backing, ByteBacking, SparseBacking
from qemuglue.memory.bytes import Bytes
from qemuglue.memory.guest_error import PartialBuffer
from qemuglue.memory.guest_memory import GuestRegion, GuestRegionCollection

RECORDED = Path(__file__).parent.parent / "data" / "vm_memory" / "outcomes.txt"
BACKINGS: list[Callable[[int], Backing]] = [ByteBacking, SparseBacking, Remote]


def recorded() -> list[tuple[str, str]]:
    """(line of the script, outcome)."""
    lines = RECORDED.read_text(encoding="ascii").splitlines()[1:]
    return [(line, outcome) for line, _, outcome in (each.partition(" => ") for each in lines)]


def filled_as_the_crate(exact: bool) -> Access:
    """``read_volatile_from`` with the gap that vm-memory 0.18 leaves behind a short read."""

    def access(mem: Bytes[Any], at: Any, words: list[str]) -> str:
        assert isinstance(mem, GuestRegionCollection)
        source, count = pieces_of(words), int(words[0])

        def call() -> int | None:
            done = sum(
                piece.read_volatile_from(0, source, piece.len())
                for piece in mem.get_slices(at, count).stop_on_error()
            )
            if exact and done != count:
                raise PartialBuffer(count, done)
            return None if exact else done

        return f"{told(call)} left {len(source.left_over)}"

    return access


GAPS = {"pieces": filled_as_the_crate(False), "pieces_exact": filled_as_the_crate(True)}


def differences(player: Player) -> list[tuple[str, str, str]]:
    """(line, vm-memory's outcome, ours), the first of each program alone: what follows one would
    be of other bytes."""
    found: list[tuple[str, str, str]] = []
    off = False
    for line, outcome in recorded():
        off = off and line != "new"
        ours = "" if off else player.do(line)
        if not off and ours != outcome:
            found.append((line, outcome, ours))
            off = True
    return found


@pytest.mark.parametrize("backing", BACKINGS, ids=lambda each: each.__name__)
def test_every_outcome_is_that_of_vm_memory(backing: Callable[[int], Backing]) -> None:
    """With the crate's way after a short read in the place of ours, to the last byte."""
    assert differences(Player(backing, ACCESSES | GAPS)) == []


def test_ours_differs_behind_a_short_read_and_nowhere_else() -> None:
    found = differences(Player(ByteBacking))
    assert found, "the record has short reads before the end of the access"
    for line, outcome, ours in found:
        name, _, count, pieces = line.split(" ")
        assert name in GAPS
        lengths = [len(each) // 2 for each in pieces.split(",") if each != "-"]
        assert min(lengths) < int(count), "a piece that did not fill its slice"
        # Ours takes no more of the stream than the crate, and says no more than it put in a row.
        assert int(ours.split(" ")[-1]) >= int(outcome.split(" ")[-1])


def test_the_record_is_of_the_script_and_shows_every_outcome() -> None:
    """As many operations of each kind as the test is worth, and the errors that they can have."""
    header = RECORDED.read_text(encoding="ascii").splitlines()[0].split(" ")
    lines = recorded()
    assert [line for line, _ in lines] == script(int(header[2]), int(header[3]))
    kinds: dict[str, Counter[str]] = {}
    for line, outcome in lines:
        words = line.split(" ")
        name = f"region {words[3]}" if words[0] == "region" else words[0]
        kinds.setdefault(name, Counter())[outcome.split(" ")[0]] += 1
    for name in ACCESSES:
        own = {"ok", "InvalidGuestAddress"}
        own |= {"PartialBuffer"} if name in ("write_slice", "read_slice", "write_obj", "read_obj",
                                             "from_exact", "to_all") else set()
        own |= {"InvalidBackendAddress"} if name in ("store", "load") else set()
        own |= {"IOError"} if name in ("to", "to_all") else set()
        assert own <= set(kinds[name]), name
    assert {"CallbackOutOfRange", "ok"} <= set(kinds["try_access"])
    assert {"NoMemoryRegion", "ok"} <= set(kinds["remove"])
    assert {"MemoryRegionOverlap", "ok"} <= set(kinds["insert"])
    assert {"InvalidBackendAddress", "ok"} <= set(kinds["get_slice"])
    assert "panic" in kinds["align_up"] and "panic" in kinds["unchecked_sub"]


def test_a_defect_would_be_seen() -> None:
    """The record is worth something: a memory that forgets one byte of a slice differs."""

    class Forgetful(Player):
        def do(self, line: str) -> str:
            outcome = super().do(line)
            if line.startswith("write_slice") and outcome.startswith("ok"):
                region = next(self.mem.iter(), None)
                if isinstance(region, GuestRegion):
                    region.backing.write(0, b"\0")
            return outcome

    assert len(differences(Forgetful(ByteBacking, ACCESSES | GAPS))) > 5
