"""Decoded devices are found, told what reaches them in order, and act when it is their time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from witness_events import call, device, judged, message, space_of, unassigned

from qemuglue.memory import AddressSpace, MemoryRegion
from qemuglue.memory.attrs import OK
from qemuglue.mirror.identity import RegionKey
from qemuglue.program.operation import Operation, Place
from qemuglue.qemu.config import VmMode
from qemuglue.qemu.events import Event
from qemuglue.witness import settling
from qemuglue.witness.dma import Following
from qemuglue.witness.dma.device import DmaDevice, Port, When
from qemuglue.witness.dma.device import Place as Site
from qemuglue.witness.dma.following import MAX_ACTS, MAX_DEPTH
from qemuglue.witness.evidence import Evidence
from qemuglue.witness.ram import Coverage, RamWitness
from qemuglue.witness.settling import Settler
from qemuglue.witness.verdict import Kind as Row
from qemuglue.witness.verdict import Tally, Verdict

RAM = 0x4000

#: What the register of a ``Toy`` starts.
WRITE, READ, UNKNOWN, POKE, LOST, ENDLESS = range(1, 7)


@dataclass
class Toy:
    """A device with one register: a write of a number makes it do something once."""

    when_: When = When.NOW
    name: str = "toy"
    lost: str = ""
    target: int = 0x100
    data: bytes = b"DMA!"
    todo: list[int] = field(default_factory=list)
    log: list[tuple[Any, ...]] = field(default_factory=list)

    def wrote(self, region: MemoryRegion, offset: int, size: int, value: int) -> None:
        self.log.append(("wrote", region.name, offset, size, value))
        if value:
            self.todo.append(value)

    def was_read(self, region: MemoryRegion, offset: int, size: int, value: int) -> None:
        self.log.append(("read", region.name, offset, size, value))

    def kicks(self, region: MemoryRegion, offset: int, data: bytes) -> bool:
        return True

    def floods(self, region: MemoryRegion, offset: int, data: bytes) -> bool:
        return False

    def when(self) -> When:
        return self.when_ if self.todo else When.NEVER

    def act(self, port: Port) -> None:
        what = self.todo.pop(0)
        if what == ENDLESS:
            self.todo.append(what)
        elif what == WRITE:
            self.log.append(("wrote RAM", port.write(self.target, self.data)))
        elif what == READ:
            self.log.append(("read RAM", port.read(self.target, 4)))
        elif what == UNKNOWN:
            self.log.append(("adopts", port.unknown(
                self.target, 4, learnt=lambda data: self.log.append(("learnt", data)))))
        elif what == POKE:
            port.write(0x8000, (1).to_bytes(4, "little"))
        elif what == LOST:
            port.write(self.target, b"?")
            self.lost = "it says so"

    def reset(self) -> None:
        self.todo.clear()
        self.log.append(("reset",))


class Theirs:
    """QEMU's bytes of the RAM."""

    coverage = Coverage.SHARED

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self.data[offset : offset + size])

    def differing(self, offset: int, expected: memoryview) -> Iterator[tuple[int, int]]:
        for i in range(len(expected)):
            if self.data[offset + i] != expected[i]:
                yield i, 1

    def differing_parts(
        self, expected: memoryview, parts: Iterable[tuple[int, int]]
    ) -> list[tuple[int, int]]:
        return [(offset, size) for offset, size in parts
                if list(self.differing(offset, expected[offset : offset + size]))]

    def extents(self) -> Iterable[tuple[int, int]]:
        return [(0, len(self.data))]


class Desk:
    """RAM, a toy device at 0x8000, another device at 0x9000, and QEMU's side of it all."""

    def __init__(self, toy: Toy, *, mode: VmMode = VmMode.STOPPED) -> None:
        self.toy = toy
        self.ram = MemoryRegion.ram("ram", RAM)
        self.register, self.other = device("toy-mmio", 8), device("other", 8)
        self.space = space_of((0, self.ram), (0x8000, self.register), (0x9000, self.other))
        self.witness = RamWitness()
        self.theirs = Theirs(RAM)
        self.witness.add(self.ram, self.theirs)
        self.evidence = judged(self.space, Evidence())
        self.sites: list[Site] = []
        self.following = Following(
            (self.make,), self.witness, qom_get=lambda path, name: None, version=(10, 0),
            parked=False, known={})
        self.evidence.following = self.following
        for region in (self.ram, self.register, self.other):
            region.key = RegionKey(f"/machine/{region.name.split('-')[0]}", region.name)
        self.attach()
        self.tally = Tally()
        #: What QEMU does when its main loop comes round, one a round.
        self.rounds: list[Callable[[], object]] = []
        self.late: list[Event] = []
        self.suspicious: list[str] = []
        session = SimpleNamespace(
            following=self.following, evidence=self.evidence, ram=self.witness,
            config=SimpleNamespace(mode=mode), suspects=lambda: self.suspicious,
            process=SimpleNamespace(channel=SimpleNamespace(exchange=self.exchange)),
            events=self.events)
        self.settler = Settler(session, self.tally)  # type: ignore[arg-type]

    def attach(self, *more: AddressSpace) -> None:
        self.following.attach(
            [self.ram, self.register, self.other], [self.space, *more], self.space)

    def make(self, site: Site) -> DmaDevice | None:
        self.sites.append(site)
        return self.toy if "toy-mmio" in site.regions else None

    def exchange(self, request: bytes, replies: int) -> bytes:
        assert (request, replies) == (b"endianness\n", 1)
        if self.rounds:
            self.rounds.pop(0)()
        return b""

    def events(self) -> list[Event]:
        events, self.late = self.late, []
        return events

    def kick(self, value: int, *, then: Sequence[Event] = ()) -> None:
        self.evidence.load([call(self.register, 0, 4, value, is_write=True), *then])
        assert self.space.write(0x8000, value.to_bytes(4, "little")) == OK

    def settle(self) -> Any:
        return self.settler.settle((Operation("writel", Place(), 4, 1), 0x8000), 7)

    def row(self, verdict: Verdict) -> int:
        return self.tally.cells[Row.DMA, verdict]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "PATIENCE_S", 0.05)


# -- found -------------------------------------------------------------------------------------


def test_a_device_is_made_once_of_all_its_owner_has() -> None:
    desk = Desk(Toy())
    [made] = [site for site in desk.sites if site.owner == "/machine/toy"]
    assert dict(made.regions) == {"toy-mmio": desk.register}
    assert made.space is made.memory is desk.space
    count = len(desk.sites)
    desk.attach()
    assert len(desk.sites) == count, "nobody is asked twice about the same regions"
    assert desk.following.of(desk.register) is desk.toy
    assert desk.following.of(desk.other) is None


def test_a_device_with_a_space_of_its_own_uses_it() -> None:
    desk = Desk(Toy())
    mastered = MemoryRegion.container_of("bus master container", 1 << 64)
    mastered.key = RegionKey("/machine/toy", "bus master container")
    own = AddressSpace("toy", mastered)
    own.ops = own.observer = desk.evidence
    desk.attach(own)
    desk.kick(WRITE, then=[unassigned(0x100, 4, is_write=True)])
    assert desk.toy.log[-1] == ("wrote RAM", False), "bus mastering is off: nothing is there"
    assert desk.evidence.mismatch is None


def test_a_region_that_goes_away_is_not_followed() -> None:
    desk = Desk(Toy())
    desk.following.attach([desk.ram], [desk.space], desk.space)
    assert desk.following.of(desk.register) is None
    desk.attach()
    assert desk.following.of(desk.register) is desk.toy, "it is the same device"


# -- told --------------------------------------------------------------------------------------


def test_what_reaches_a_device_is_told_in_order() -> None:
    desk = Desk(Toy())
    desk.evidence.load([
        call(desk.register, 0, 4, 0, is_write=True), call(desk.register, 4, 2, 0x1234)])
    desk.space.write(0x8000, bytes(4))
    desk.space.read(0x8004, 2)
    assert desk.toy.log == [
        ("wrote", "toy-mmio", 0, 4, 0), ("read", "toy-mmio", 4, 2, 0x1234)]


def test_an_answer_that_is_known_is_compared() -> None:
    desk = Desk(Toy())
    desk.toy.reading = lambda region, offset, size, port: 5  # type: ignore[attr-defined]
    desk.evidence.load([call(desk.register, 0, 4, 5), call(desk.register, 0, 4, 6)])
    assert desk.space.read(0x8000, 4)[1] == b"\5\0\0\0" and desk.evidence.mismatch is None
    desk.space.read(0x8000, 4)
    assert desk.evidence.mismatch is not None
    model, seen = desk.evidence.mismatch.describe()
    assert "0x5" in model and "0x6" in seen


def test_what_does_not_match_is_not_told() -> None:
    desk = Desk(Toy())
    desk.evidence.load([call(desk.register, 0, 4, 1, is_write=True)])
    desk.space.write(0x8000, (2).to_bytes(4, "little"))
    assert desk.evidence.mismatch is not None and desk.toy.log == []


def test_a_reset_is_told_and_finds_what_was_lost() -> None:
    desk = Desk(Toy())
    desk.kick(LOST)
    assert desk.following.lost() == {"/machine/toy": "toy"}
    desk.following.reset()
    assert desk.following.lost() == {} and desk.toy.log[-1] == ("reset",)
    assert not desk.following.accessed


def test_an_access_that_was_overlooked_loses_the_device() -> None:
    desk = Desk(Toy())
    desk.kick(0)
    desk.evidence.load([call(desk.register, 0, 4, WRITE, is_write=True), message()])
    desk.evidence.skip(known=False)
    assert desk.following.lost() == {"/machine/toy": "toy"}
    desk.following.reset()
    desk.evidence.load([call(desk.register, 0, 4, WRITE, is_write=True)])
    desk.evidence.skip(known=True)
    assert desk.following.lost() == {} and desk.toy.log[-1] == ("wrote RAM", True)


def test_what_is_done_again_in_another_byte_order_is_told_once() -> None:
    """An operation is performed again where nobody has seen a device's byte order yet."""
    toy = Toy(target=0x9000, data=b"\7\0\0\0")
    desk = Desk(toy)
    lines = [call(desk.register, 0, 4, WRITE, is_write=True),
             call(desk.other, 0, 4, 7, is_write=True), call(desk.register, 4, 4, 0, is_write=True)]
    desk.evidence.load(lines)
    value = (WRITE).to_bytes(4, "little")
    assert desk.space.write(0x8000, value + b"\0\0\0\1") == OK
    assert desk.evidence.mismatch is not None, "the second register shows another number"
    desk.evidence.pos, desk.evidence.mismatch = 0, None
    assert desk.space.write(0x8000, value + bytes(4)) == OK
    desk.evidence.finish()
    assert desk.evidence.mismatch is None
    assert [each[0] for each in toy.log] == ["wrote", "wrote RAM", "wrote"]


def test_an_answer_is_asked_for_once_too() -> None:
    """It may depend on what was read before, which is told once."""
    desk = Desk(Toy())
    answers = iter([5, 6])
    desk.toy.reading = lambda *where: next(answers)  # type: ignore[attr-defined]
    desk.evidence.load([call(desk.register, 0, 4, 5), call(desk.register, 0, 4, 6)])
    desk.space.read(0x8000, 4)
    desk.evidence.pos = 0
    for _ in range(2):
        desk.space.read(0x8000, 4)
    assert desk.evidence.mismatch is None and desk.evidence.pos == 2
    assert len(desk.toy.log) == 2


def test_an_unknown_pointer_of_its_name_loses_it_too() -> None:
    desk = Desk(Toy())
    desk.evidence.load([call(desk.register, 0, 4, WRITE, is_write=True, pointer=77)])
    desk.evidence.skip(known=True)
    assert desk.following.lost() == {"/machine/toy": "toy"}


# -- acts --------------------------------------------------------------------------------------


def test_inside_the_access_before_the_next_piece() -> None:
    """The device pokes another one: its line comes before the next operation's."""
    toy = Toy(target=0x9000, data=b"\7\0\0\0")
    desk = Desk(toy)
    desk.kick(WRITE, then=[call(desk.other, 0, 4, 7, is_write=True),
                           call(desk.other, 4, 4, 5)])
    assert desk.space.read(0x9004, 4)[1] == b"\5\0\0\0"
    desk.evidence.finish()
    assert desk.evidence.mismatch is None


@pytest.mark.parametrize("lines", [0, 2])
def test_an_access_that_qemu_does_not_make_or_makes_twice(lines: int) -> None:
    toy = Toy(target=0x9000, data=b"\7\0\0\0")
    desk = Desk(toy)
    desk.evidence.lenient = True  # as the slow judge is
    desk.kick(WRITE, then=[call(desk.other, 0, 4, 7, is_write=True)] * lines)
    desk.evidence.finish()
    assert desk.evidence.mismatch is not None


def test_ram_as_predicted_matches() -> None:
    desk = Desk(Toy())
    desk.theirs.data[0x100:0x104] = b"DMA!"
    desk.kick(WRITE)
    assert desk.settle() is None
    assert desk.row(Verdict.MATCH) == 1 and desk.settler.acted


@pytest.mark.parametrize("theirs", [b"DMA", b"DMA?", b"", b"DMA!!"])
def test_ram_not_as_predicted_is_found(theirs: bytes) -> None:
    """One byte less, another byte, none at all, one too many."""
    desk = Desk(Toy())
    desk.theirs.data[0x100 : 0x100 + len(theirs)] = theirs
    desk.kick(WRITE)
    found = desk.settle()
    assert found is not None and found.what == "ram" and found.kind is Row.DMA
    assert found.index == 7 and found.region == "ram"
    assert "toy" in found.model[-1]
    assert not desk.row(Verdict.MATCH)


def test_what_nobody_can_predict_is_adopted_there_only() -> None:
    desk = Desk(Toy())
    desk.theirs.data[0x100:0x104] = b"rand"
    desk.kick(UNKNOWN)
    assert desk.settle() is None
    assert desk.row(Verdict.ADOPTED) == 1
    assert desk.toy.log[-1] == ("learnt", b"rand")
    assert desk.space.read(0x100, 4)[1] == b"rand"
    desk.theirs.data[0x104] = 1
    desk.kick(UNKNOWN)
    assert desk.settle() is not None, "a byte beside it"


def test_unknown_bytes_for_another_device_may_have_any_value() -> None:
    desk = Desk(Toy(target=0x9000))
    desk.kick(UNKNOWN, then=[call(desk.other, 0, 4, 0xABCD, is_write=True)])
    assert desk.evidence.mismatch is None and desk.toy.log[-1] == ("adopts", True)
    desk.kick(UNKNOWN, then=[call(desk.other, 0, 2, 0xABCD, is_write=True)])
    assert desk.evidence.mismatch is not None, "but not any shape"


def test_what_a_lost_device_did_is_unjudged() -> None:
    desk = Desk(Toy())
    desk.suspicious = ["toy"]
    desk.kick(LOST)
    assert desk.settle() is None
    assert desk.row(Verdict.UNJUDGED) == 2, "that it is lost, and what it did"
    assert desk.tally.reasons == {"toy: it says so": 1}
    desk.kick(WRITE)
    assert desk.toy.log[-1][0] == "wrote", "it is not told any more"


def test_a_device_that_never_ends_is_lost() -> None:
    desk = Desk(Toy())
    desk.kick(ENDLESS)
    assert str(MAX_ACTS) in desk.toy.lost


def test_devices_that_start_themselves_are_lost() -> None:
    """Each access to its own register is the next command: QEMU of old ends by its stack."""
    desk = Desk(Toy(target=0x8000, data=POKE.to_bytes(4, "little")))

    def again(port: Port) -> None:
        port.write(0x8000, POKE.to_bytes(4, "little"))

    desk.toy.act = again  # type: ignore[method-assign]
    lines = [call(desk.register, 0, 4, 4, is_write=True)] * (2 * MAX_DEPTH)
    desk.kick(4, then=lines)
    assert "again" in desk.toy.lost


# -- later -------------------------------------------------------------------------------------


def test_from_the_main_loop_is_waited_for() -> None:
    desk = Desk(Toy(When.SOON))
    desk.kick(WRITE)
    assert desk.toy.log[-1][0] == "wrote", "nothing is done inside the access"
    assert desk.settler.pending()

    def lands() -> None:
        desk.theirs.data[0x100:0x104] = b"DMA!"

    desk.rounds = [lambda: None, lambda: None, lambda: None, lands]
    assert desk.settle() is None and desk.row(Verdict.MATCH) == 1
    assert not desk.rounds and not desk.settler.pending()


def test_what_never_comes_is_found() -> None:
    desk = Desk(Toy(When.SOON))
    desk.kick(WRITE)
    found = desk.settle()
    assert found is not None and found.what == "ram"


def test_lines_of_a_late_action_are_waited_for() -> None:
    desk = Desk(Toy(When.SOON, target=0x9000, data=b"\7\0\0\0"))
    desk.kick(WRITE)
    desk.evidence.finish()

    def logs() -> None:
        desk.late.append(call(desk.other, 0, 4, 7, is_write=True))

    desk.rounds = [lambda: None, lambda: None, lambda: None, logs]
    assert desk.settle() is None and desk.evidence.mismatch is None
    desk.kick(WRITE)
    found = desk.settle()
    assert found is not None and found.what == "access" and "other" in found.model[0]


def test_a_timer_fires_only_where_time_passes() -> None:
    stopped = Desk(Toy(When.TIMER))
    stopped.kick(WRITE)
    assert not stopped.settler.pending() and stopped.settle() is None
    assert stopped.space.read(0x100, 4)[1] == bytes(4) and not stopped.tally.cells
    parked = Desk(Toy(When.TIMER), mode=VmMode.PARKED)
    parked.theirs.data[0x100:0x104] = b"DMA!"
    parked.kick(WRITE)
    assert parked.settler.pending() and parked.settle() is None
    assert parked.space.read(0x100, 4)[1] == b"DMA!" and parked.row(Verdict.MATCH) == 1


def test_late_actions_that_wake_one_another_end() -> None:
    desk = Desk(Toy(When.SOON))
    desk.kick(ENDLESS)
    desk.settle()
    assert "in a row" in desk.toy.lost
