"""Readers over a map that keeps changing: nobody sees half a change, or what was reclaimed.

The stress test has real threads and no order; QEMUGLUE_STRESS=N makes it do N accesses instead
of what a few seconds allow. The step test has an order, every one: a whole transaction is made
before each line that an access executes. Both are run with planted defects, and see them.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from random import Random
from threading import Event, Thread
from time import monotonic, sleep
from typing import Any

import pytest
import rcu_checks
from rcu_checks import Puppet, at_step, puppets
from rcu_machine import BASE, PAGE, PAGES, STATES, Machine, byte_at, bytes_at

from qemuglue.errors import ModelError
from qemuglue.memory import (
    AddressSpace,
    Be16,
    CpuPath,
    FlatView,
    Le64,
    MemoryRegionCache,
    MemTxAttrs,
    Topology,
    cpu_rules_for,
)
from qemuglue.memory import rcu as rcu_module
from qemuglue.memory.attrs import UNSPECIFIED
from qemuglue.memory.flatview import FlatViewRefGuard, render
from qemuglue.memory.rcu import Rcu, RcuError, RcuGuard, Reader
from qemuglue.memory.rust_binding import AddressSpace as RustAddressSpace

READERS = 3
#: The stress test's time where no number of accesses is given, and a planted defect's: it is
#: found much sooner.
STRESS_S = 5.0
DEFECT_S = 20.0
#: A thread that does not end by itself long after it was told to.
JOIN_S = 60.0
#: So short that threads are switched in the middle of most accesses.
SWITCH_S = 1e-4

#: Between two transactions, so that the readers have most of the time.
REST_S = 0.0003

#: What is read: around each border between pages, and two longer ones.
RANGES = [(BASE + page * PAGE - 8, 16) for page in range(1, PAGES)]
RANGES += [(BASE + PAGE - 8, PAGE + 16), (BASE + 4 * PAGE - 4, 2 * PAGE + 8)]
WANTED = {(addr, n): [bytes_at(addr, n, state) for state in range(STATES)] for addr, n in RANGES}
KINDS = (Le64, Be16)
ONES = (0x0101_0101_0101_0101, 0x0101)
BYTES = [[byte_at(page, state) for state in range(STATES)] for page in range(PAGES)]


# -- the accesses; each asserts that it saw one state, one that was there during it ---------------


def by_read(machine: Machine, space: AddressSpace, rng: Random) -> None:
    addr, length = RANGES[int(rng.random() * len(RANGES))]
    since = machine.done
    result, data = space.read(addr, length)
    _judge(machine, since, result, data, WANTED[addr, length])


def by_read_into(machine: Machine, space: AddressSpace, rng: Random) -> None:
    addr, length = RANGES[int(rng.random() * len(RANGES))]
    buffer = bytearray(length)
    since = machine.done
    result = space.read_into(addr, buffer)
    _judge(machine, since, result, bytes(buffer), WANTED[addr, length])


def _judge(
    machine: Machine, since: int, result: int, data: bytes, wanted: list[bytes]
) -> None:
    assert result == 0
    until = min(machine.begun, since + STATES)
    for number in range(since, until + 1):
        if wanted[number % STATES] == data:
            return
    seen = [state for state in range(STATES) if wanted[state] == data]
    raise AssertionError(
        f"torn: {data[:8].hex()}..{data[-8:].hex()} is no state" if not seen else
        f"stale: states {seen}, but the map was in {since}..{until} (mod {STATES})"
    )


def by_load(machine: Machine, space: AddressSpace, rng: Random) -> None:
    draw = int(rng.random() * PAGES * 2)
    page, kind = draw >> 1, KINDS[draw & 1]
    since = machine.done
    result, value = space.load(BASE + page * PAGE + 8, kind)
    byte = value & 0xFF
    assert result == 0 and value == byte * ONES[draw & 1], hex(value)
    if BYTES[page][since % STATES] != byte:
        until = min(machine.begun, since + STATES)
        assert any(BYTES[page][n % STATES] == byte for n in range(since, until + 1)), (
            f"stale: page {page} reads as {byte:#x} in {since}..{until}"
        )


def by_memory(machine: Machine, space: AddressSpace, rng: Random) -> None:
    since = machine.done
    with space.memory() as view:
        state = machine.state_of(view)
        assert machine.could_be(state, since), f"stale: {state} since {since}"
        buffer = bytearray(PAGE + 16)
        for _ in range(2):
            addr = BASE + int(rng.random() * (PAGES - 2)) * PAGE + PAGE - 8
            with RcuGuard(machine.rcu):
                assert space.read_view(view, addr, buffer, UNSPECIFIED) == 0
            assert buffer == bytes_at(addr, len(buffer), state), "the view changed"
        assert machine.state_of(view) == state


def by_get_flatview(machine: Machine, space: AddressSpace, rng: Random) -> None:
    since = machine.done
    guard = RcuGuard(machine.rcu)
    with guard:
        ref = space.get_flatview(guard)
        state = machine.state_of(ref)  # type: ignore[arg-type]
        assert machine.could_be(state, since), f"stale: {state} since {since}"
        by_read(machine, space, rng)
        assert machine.state_of(ref) == state  # type: ignore[arg-type]
    with pytest.raises(RcuError):
        ref.lookup(BASE)


Access = Callable[[Machine, AddressSpace, Random], None]
ACCESSES: list[Access] = [by_read, by_read_into, by_load, by_memory, by_get_flatview]
#: The cheap ones more often.
MIX: list[Access] = [by_load] * 110 + [by_read] * 60 + [by_read_into] * 26
MIX += [by_memory, by_get_flatview] * 2


# -- with real threads -----------------------------------------------------------------------------


class Stress:
    def __init__(self, *, seconds: float, accesses: int = 0, mix: list[Access] = MIX) -> None:
        self.machine = Machine()
        self.mix = mix
        self.end = monotonic() + seconds
        self.share = -(-accesses // READERS)
        self.counts = [0] * READERS
        #: Accesses during which a transaction began.
        self.overtaken = [0] * READERS
        self.errors: list[BaseException] = []
        self.over = Event()

    def _read(self, number: int) -> None:
        rng = Random(number)
        machine, mix, done, overtaken = self.machine, self.mix, 0, 0
        try:
            while not self.over.is_set():
                for _ in range(64):
                    access = mix[int(rng.random() * len(mix))]
                    begun = machine.begun
                    access(machine, machine.spaces[done & 1], rng)
                    done += 1
                    overtaken += machine.begun != begun
                if done >= self.share if self.share else monotonic() > self.end:
                    break
        except BaseException as error:
            self.errors.append(error)
            self.over.set()
        finally:
            self.counts[number], self.overtaken[number] = done, overtaken

    def _write(self) -> None:
        try:
            while not self.over.is_set():
                self.machine.step()
                sleep(REST_S)
        except BaseException as error:
            self.errors.append(error)
            self.over.set()

    def run(self) -> None:
        """Raises the first error of any thread."""
        readers = [
            Thread(target=self._read, args=(number,), name=f"reader {number}", daemon=True)
            for number in range(READERS)
        ]
        writer = Thread(target=self._write, name="writer", daemon=True)
        before = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        try:
            for each in (*readers, writer):
                each.start()
            for each in readers:
                each.join()
            self.over.set()
            writer.join(JOIN_S)
            assert not writer.is_alive()
        finally:
            sys.setswitchinterval(before)
        if self.errors:
            raise self.errors[0]


@pytest.fixture
def reclaimed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many views were reclaimed. Only touched where callbacks run, one at a time."""
    real = FlatView._reclaim
    count = [0]

    def reclaim(self: FlatView) -> None:
        assert not self.reclaimed and not self.references
        count[0] += 1
        real(self)

    monkeypatch.setattr(FlatView, "_reclaim", reclaim)
    return count


def assert_all_reclaimed(machine: Machine, reclaimed: list[int]) -> None:
    """Every space shows another view after each transaction; each old one is reclaimed once."""
    machine.assert_only_the_current_views_are_left()
    spaces = len(machine.spaces)
    assert reclaimed[0] == len(machine.views) - spaces == spaces * machine.done


@pytest.mark.timeout(7200)
def test_readers_of_a_changing_map(
    reclaimed: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    stress = Stress(seconds=STRESS_S, accesses=int(os.environ.get("QEMUGLUE_STRESS", "0")))
    stress.run()
    machine = stress.machine
    assert_all_reclaimed(machine, reclaimed)
    with capsys.disabled():
        print(
            f"\n  {sum(stress.counts):,} accesses by {READERS} readers, "
            f"{sum(stress.overtaken):,} of them overtaken; {machine.done:,} transactions, "
            f"{reclaimed[0]:,} views reclaimed"
        )
    assert min(stress.counts) > 0 and machine.done > 0


# -- with a transaction before every line of an access ---------------------------------------------

MEMORY = {str(path) for path in Path(rcu_module.__file__).parent.glob("*.py")}
#: A writer that needs what the interrupted reader holds just there is let go on with it.
BLOCKED_S = 0.02


def by_write(machine: Machine, space: AddressSpace, rng: Random) -> None:
    """Both halves land in pages of one state."""
    mark = bytes([0xA0 + machine.done % 16])
    since = machine.done
    assert space.write(BASE + PAGE - 8, mark * 16) == 0
    states = []
    for bank, at, page in zip(machine.banks, (PAGE - 8, 0), (0, 1), strict=True):
        assert bank.backing is not None
        hits = [state for state in range(STATES)
                if bank.backing.read(state * PAGE + at, 8) == mark * 8]
        assert len(hits) == 1, f"half {page} of the write is in the pages {hits}"
        states.append(hits[0])
        bank.backing.write(hits[0] * PAGE + at, bytes([byte_at(page, hits[0])]) * 8)
    assert states[0] == states[1], f"torn: a write went to the states {states}"
    assert machine.could_be(states[0], since)


def by_rust_face(machine: Machine, space: AddressSpace, rng: Random) -> None:
    """It holds a counted view, and no section."""
    addr, length = RANGES[int(rng.random() * len(RANGES))]
    buffer = bytearray(length)
    since = machine.done
    assert RustAddressSpace(space).read(buffer, addr) == length
    _judge(machine, since, 0, bytes(buffer), WANTED[addr, length])


def by_iommu(machine: Machine, space: AddressSpace, rng: Random) -> None:
    """One dispatch: each is translated anew, to what the target space shows by then (R18)."""
    addr = BASE + int(rng.random() * PAGES) * PAGE + 32
    since = machine.done
    result, data = machine.spaces[2].read(addr, 8)
    _judge(machine, since, result, data, [bytes_at(addr, 8, state) for state in range(STATES)])
    result, value = machine.spaces[2].load(addr, Le64)
    byte = value & 0xFF
    assert result == 0 and value == byte * ONES[0] and byte in BYTES[(addr - BASE) // PAGE]


def by_iommu_otherwise(machine: Machine, space: AddressSpace, rng: Random) -> None:
    """What is not a read or a load, behind an IOMMU."""
    behind, addr = machine.spaces[2], BASE + int(rng.random() * PAGES) * PAGE + 32
    assert behind.access_valid(addr, 8, False)
    since = machine.done
    wanted = [bytes_at(addr, 8, state) for state in range(STATES)]
    mapped = behind.map(BASE + 2 * PAGE, 8, False)
    assert mapped is not None and bytes(mapped.buffer) in (b"\xc0" * 8, b"\xd0" * 8)
    behind.unmap(mapped, 0)
    assert behind.translate(addr, 8)[2] == 8 and behind.get_iotlb_entry(addr, False) is not None
    with MemoryRegionCache(behind, addr, 8, False) as cache:
        since = machine.done
        _judge(machine, since, *cache.read(0, 8), wanted)
        result, value = cache.load(0, Le64)
        assert result == 0 and value == (value & 0xFF) * ONES[0]


def by_cpu(machine: Machine, space: AddressSpace, rng: Random) -> None:
    """A CPU's load over the end of a page, from 8.1 on: both pages are of one view."""
    cpu = CpuPath(space, rules=cpu_rules_for((10, 0, 2)))
    addr = BASE + PAGE - 4
    cpu.load(addr + 0x40, 4, "little")
    since = machine.done
    outcome = cpu.load(addr, 8, "big")
    assert outcome.value is not None and not outcome.failures
    wanted = [bytes_at(addr, 8, state) for state in range(STATES)]
    _judge(machine, since, 0, outcome.value.to_bytes(8, "big"), wanted)


def every_step(access: Access, reclaimed: list[int], *, steps: int = 2) -> int:
    """``access`` with ``steps`` transactions before its first line, then before its second...
    How many lines it has."""
    wanted, total = 0, 1
    with puppets("writer") as (writer,):
        while wanted < total:
            machine = Machine(iommu=access in (by_iommu, by_iommu_otherwise))
            reclaimed[0] = 0
            for _ in range(wanted % 5):
                machine.step()
            space = machine.spaces[wanted & 1]
            waiting = [False]

            def act(number: int) -> None:
                if number == wanted:  # noqa: B023
                    waiting[0] = not _soon(writer, machine, steps)  # noqa: B023

            with at_step(act, lines=True) as count:
                access(machine, space, Random(wanted))
            if waiting[0]:
                writer.result()
            assert machine.done == machine.begun
            by_memory(machine, space, Random(wanted))
            assert_all_reclaimed(machine, reclaimed)
            total, wanted = count[0], wanted + 1
    return total


def _soon(writer: Puppet, machine: Machine, steps: int) -> bool:
    writer.start(lambda: [machine.step() for _ in range(steps)])
    end = monotonic() + BLOCKED_S
    while writer.busy:
        if monotonic() > end:
            return False
        sleep(0.0001)
    writer.result()
    return True


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rcu_checks, "TRACED", MEMORY)


@pytest.fixture
def traced_with_defects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rcu_checks, "TRACED", {*MEMORY, __file__})


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    "access", [*ACCESSES, by_write, by_cpu], ids=lambda access: access.__name__)
def test_a_transaction_before_every_line(access: Access, reclaimed: list[int]) -> None:
    assert every_step(access, reclaimed) > 20


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    "access", [by_rust_face, by_iommu, by_iommu_otherwise], ids=lambda access: access.__name__)
def test_other_ways_in(
    access: Access, reclaimed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rcu, "held", lambda self: True)  # a counted view will do as well
    assert every_step(access, reclaimed) > 20


def test_a_device_that_changes_the_map_under_its_own_access() -> None:
    machine = Machine()
    while byte_at(4, machine.done % STATES) != 0xE0:
        machine.step()
    state = machine.done % STATES
    ops = machine.device.ops
    assert ops is not None

    class Moves:
        def read(self, region: Any, offset: int, size: int, attrs: MemTxAttrs) -> tuple[int, int]:
            machine.step()
            return ops.read(region, offset, size, attrs)

        def write(self, *args: Any) -> int:
            raise AssertionError

    machine.device.ops = Moves()
    addr = BASE + 4 * PAGE - 4
    before = machine.spaces[0].memory()
    result, data = machine.spaces[0].read(addr, PAGE + 20)
    assert (result, data) == (0, bytes_at(addr, PAGE + 20, state)), "all of it by one view"
    assert machine.done > state and machine.state_of(before.view) == state
    before.release()
    machine.assert_only_the_current_views_are_left()


# -- planted defects -------------------------------------------------------------------------------


def no_section_in_load(
    self: AddressSpace, addr: int, kind: Any, attrs: MemTxAttrs = UNSPECIFIED
) -> tuple[int, int]:
    view = self.view
    return self._load(view, addr, kind.size, kind.order, attrs)


def no_section_in_read(
    self: AddressSpace, addr: int, length: int, attrs: MemTxAttrs = UNSPECIFIED
) -> tuple[int, bytes]:
    buffer = bytearray(length)
    return self.read_view(self.view, addr, buffer, attrs), bytes(buffer)


def reclaims_at_once(self: Rcu, func: Callable[[], object]) -> None:
    func()


def waits_for_nobody(self: Rcu) -> int:
    return self.clock


def commits_one_by_one(self: Topology) -> Any:
    return nullcontext()


def switches_half(self: Topology) -> None:
    """A view is shown while the second half of it is still the old one's."""
    for space in self.spaces:
        view, old = render(space.root, rcu=self.rcu), space.view
        half = len(view.sections) // 2
        mixed = FlatView(view.root, [
            *(each for each in view.sections[:half]),
            *(each for each in old.sections if each.start > view.sections[half - 1].last),
        ], rcu=self.rcu)
        space.switch(mixed)
        sleep(0)
        space.switch(view)
        mixed.unref()
        view.unref()
    self._redraw = self._eventfds = False


def looks_again_for_each_piece(
    self: AddressSpace, view: FlatView, addr: int, buffer: Any, attrs: MemTxAttrs
) -> int:
    at = result = 0
    while at < len(buffer):
        section, offset, n = self.translate_in(self.view, addr + at, len(buffer) - at, False, attrs)
        n, piece = self.read_step(section.region, offset, buffer, at, n, attrs)
        at, result = at + n, result | piece
    return result


def memory_does_not_look_again(self: AddressSpace) -> FlatViewRefGuard:
    view = self.view
    view.ref()
    return FlatViewRefGuard(view)


def memory_does_not_count(self: AddressSpace) -> Any:
    return nullcontext(self.view)


def unref_forgets(self: FlatView) -> None:
    self._count -= 1


#: (where, method, wrong, the access that must show it)
DEFECTS: list[tuple[type, str, Callable[..., Any], Access]] = [
    (AddressSpace, "load", no_section_in_load, by_load),
    (AddressSpace, "read", no_section_in_read, by_read),
    (AddressSpace, "read_view", looks_again_for_each_piece, by_read_into),
    (AddressSpace, "memory", memory_does_not_look_again, by_memory),
    (AddressSpace, "memory", memory_does_not_count, by_memory),
    (Rcu, "call", reclaims_at_once, by_get_flatview),
    (Rcu, "_over", waits_for_nobody, by_read_into),
    (Topology, "transaction", commits_one_by_one, by_read),
    (Topology, "_commit_views", switches_half, by_read),
    (FlatView, "unref", unref_forgets, by_read),
]


def no_lock(self: Reader) -> None:
    pass


def assert_is_seen(run: Callable[[], object]) -> None:
    """By an assertion of the tests or by the model's own word, in whichever thread."""
    with pytest.raises((AssertionError, ModelError, ExceptionGroup)) as error:
        run()
    print(repr(error.value)[:120])
    del error
    gc.collect()  # what was left open by it, where the warnings are expected


def stressed(seconds: float, access: Access, reclaimed: list[int]) -> None:
    stress = Stress(seconds=seconds, mix=[access])
    stress.run()
    assert_all_reclaimed(stress.machine, reclaimed)


#: These leave a gap of two lines, which threads without order meet too rarely for a test.
RARE = (memory_does_not_look_again,)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize(
    ("where", "method", "wrong", "access"),
    [each for each in DEFECTS if each[2] not in RARE],
    ids=[wrong.__name__ for _, _, wrong, _ in DEFECTS if wrong not in RARE],
)
def test_the_stress_sees_a_planted_defect(
    where: type, method: str, wrong: Callable[..., Any], access: Access,
    monkeypatch: pytest.MonkeyPatch, reclaimed: list[int],
) -> None:
    monkeypatch.setattr(where, method, wrong)
    # A view that nobody ever gives back is seen at the end only.
    seconds = 0.2 if wrong is unref_forgets else DEFECT_S
    assert_is_seen(lambda: stressed(seconds, access, reclaimed))


#: These are wrong whatever an access does, and for longer than one of its lines.
COMMITS = (commits_one_by_one, switches_half)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.usefixtures("traced_with_defects")
@pytest.mark.parametrize(
    ("where", "method", "wrong", "access"),
    [each for each in DEFECTS if each[2] not in COMMITS],
    ids=[wrong.__name__ for _, _, wrong, _ in DEFECTS if wrong not in COMMITS],
)
def test_the_steps_see_a_planted_defect(
    where: type, method: str, wrong: Callable[..., Any], access: Access,
    monkeypatch: pytest.MonkeyPatch, reclaimed: list[int],
) -> None:
    monkeypatch.setattr(where, method, wrong)
    assert_is_seen(lambda: every_step(access, reclaimed))


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.usefixtures("traced_with_defects")
@pytest.mark.parametrize(("access", "how"), [
    pytest.param(access, how, id=f"{access.__name__}-{how}")
    for how in ("stress", "steps") for access in ACCESSES
    if how == "steps" or access is not by_memory  # a gap of two lines again
])
def test_without_sections_reclaimed_views_are_met(
    access: Access, how: str, monkeypatch: pytest.MonkeyPatch, reclaimed: list[int]
) -> None:
    """The watched memory is blind here: the views themselves tell."""
    monkeypatch.setattr(Reader, "lock", no_lock)
    monkeypatch.setattr(Reader, "unlock", no_lock)
    monkeypatch.setattr(Rcu, "held", lambda self: True)
    if how == "stress":
        assert_is_seen(lambda: stressed(DEFECT_S, access, reclaimed))
    else:
        assert_is_seen(lambda: every_step(access, reclaimed))
