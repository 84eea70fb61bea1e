"""The fast road says yes only where the general road would too; and what the map of it holds."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from witness_events import (
    Simulated,
    call,
    device,
    following_of,
    judged,
    message,
    random_contract,
    refusal,
    remapped,
    space_of,
    unassigned,
    written,
)

from qemuglue.memory import (
    UNASSIGNED,
    AddressSpace,
    ByteBacking,
    Contract,
    Endian,
    IoEventFd,
    MemoryRegion,
    Reason,
    RegionKind,
)
from qemuglue.memory.contract import UNASSIGNED_CONTRACT
from qemuglue.memory.rules import RULES_7_2, RULES_10_0, RULES_LATEST, Rules
from qemuglue.program.operation import Operation
from qemuglue.qemu.events import Event, Kind, Lines, Refusal
from qemuglue.witness.barriers import Barriers
from qemuglue.witness.contracts import Contracts, Learned, Veto
from qemuglue.witness.dma import Following, fw_cfg
from qemuglue.witness.evidence import Evidence
from qemuglue.witness.face import SIZED_READS, SIZED_WRITES, HostFace
from qemuglue.witness.fastmap import DevicePlan, FastMap, kind_of
from qemuglue.witness.ram import TrackedBacking
from qemuglue.witness.verdict import Kind as Row

RANDOMS = st.randoms(use_true_random=False)
BASE = 0x1000
SIZE = 0x40


class Road:
    """A device at BASE, seen by both roads; ``truth`` is a QEMU that obeys ``true``."""

    def __init__(
        self, rng: Random, rules: Rules, *, target_big: bool, endian: Endian,
        veto: bool = False,
    ) -> None:
        self.rng = rng
        self.contract = random_contract(rng, endian=endian)
        self.true_device = device("dev", SIZE, self.contract)
        self.true_space = space_of((BASE, self.true_device), rules=rules, target_big=target_big)
        self.truth = Simulated.seeded(self.true_space, rng)
        self.true_face = HostFace(self.true_space, None)
        self.region = device("dev", SIZE, self.contract)
        self.space = space_of((BASE, self.region), rules=rules, target_big=target_big)
        self.evidence = judged(self.space, Evidence())
        self.face = HostFace(self.space, None)
        if veto:
            self.region.contract = Contract(
                **{name: getattr(self.contract, name) for name in (
                    "valid_min", "valid_max", "valid_unaligned", "impl_min", "impl_max",
                    "impl_unaligned", "endian")},
                accepts=Veto(Learned(self.contract), lambda *_: False, lambda: None),
            )
        self._bind()

    def _bind(self) -> None:
        """Let the evidence meet the region once: the fast road knows only pointers it has
        seen."""
        pointer = self._pointer()
        self.evidence._binds(call(self.region, 0, 4, 0, pointer=pointer), self.region)

    def _pointer(self) -> int:
        return id(self.true_device)

    def plan(self, kind: Row = Row.DEVICE) -> DevicePlan:
        return DevicePlan(self.space, self.region, kind, lambda region: None)

    def happens(self, op: Operation, addr: int) -> tuple[list[Event], bytes]:
        """What QEMU does: events and reply."""
        reply = self.true_face.perform(op, addr).reply
        return self.truth.take(), reply

    def fast(
        self, plan: DevicePlan, op: Operation, addr: int, events: list[Event], reply: bytes
    ) -> tuple[bool, int, bool]:
        """(yes?, events consumed, map changed?)."""
        self.evidence.load(Lines(written(events)))
        if op.verb in SIZED_READS:
            yes = plan.reads(self.evidence, addr - BASE, op.size, reply, None)
        else:
            yes = plan.writes(self.evidence, addr - BASE, op.size, op.value, reply, None)
        return yes, self.evidence.pos, self.evidence.topology

    def general(
        self, op: Operation, addr: int, events: list[Event], reply: bytes
    ) -> tuple[bool, int, bool]:
        """The same by the model performing the operation."""
        self.evidence.load(Lines(written(events)))
        self.evidence.op_addr, self.evidence.op_size = addr, op.size
        self.evidence.swallowed = False
        outcome = self.face.perform(op, addr)
        if self.evidence.pos < len(self.evidence.events):
            self.evidence.settle()
        yes = self.evidence.mismatch is None and outcome.reply == reply
        return yes, self.evidence.pos, self.evidence.topology


def draw_access(rng: Random) -> tuple[Operation, int]:
    verbs = SIZED_READS if rng.random() < 0.5 else SIZED_WRITES
    verb = rng.choice(list(verbs))
    size = verbs[verb]
    value = rng.getrandbits(8 * size) if verb in SIZED_WRITES else 0
    offset = rng.randrange(SIZE - size + 1)
    if rng.random() < 0.5:
        offset &= -size
    return Operation(verb, None, size, value), BASE + offset


def disturb(rng: Random, road: Road, events: list[Event]) -> list[Event]:
    """The events with something wrong, or with something more."""
    events = list(events)
    kind = rng.randrange(9)
    at = rng.randrange(len(events)) if events else 0
    if kind == 0 and events:
        del events[at]
    elif kind == 1:
        events.insert(at, rng.choice([
            message(), remapped(), unassigned(0x9000, 4),
            call(road.region, 0, 4, 0, pointer=5),
        ]))
    elif kind == 2 and len(events) > 1:
        events.reverse()
    elif events:
        event = events[at]
        change: dict[str, object] = rng.choice([
            {"address": event.address ^ 1 << rng.randrange(8)},
            {"size": rng.choice([1, 2, 4, 8])},
            {"value": event.value ^ 1},
            {"mr": event.mr ^ 8},
            {"name": "vde"},
            {"kind": rng.choice([Kind.READ, Kind.WRITE, Kind.INVALID_READ,
                                 Kind.INVALID_WRITE])},
            {"refusal": Refusal(rng.choice(list(Reason)), 0, 0)},
        ])
        events[at] = event._replace(**change)  # type: ignore[arg-type]
    return events


@settings(max_examples=400)
@given(RANDOMS, st.sampled_from([RULES_7_2, RULES_10_0, RULES_LATEST]), st.booleans(),
       st.sampled_from(Endian), st.booleans())
def test_a_yes_of_the_fast_road_is_a_yes_of_the_general_one(
    rng: Random, rules: Rules, target_big: bool, endian: Endian, veto: bool
) -> None:
    road = Road(rng, rules, target_big=target_big, endian=endian, veto=veto)
    plan = road.plan()
    for _ in range(8):
        op, addr = draw_access(rng)
        events, reply = road.happens(op, addr)
        yes, consumed, remap = road.fast(plan, op, addr, events, reply)
        general = road.general(op, addr, events, reply)
        assert general == (True, len(events), False), "the general road knows the truth"
        if yes:
            assert (consumed, remap) == (len(events), False)
        wrong = disturb(rng, road, events)
        if rng.random() < 0.3:
            reply = reply[:-1] + (b"0" if reply[-1:] == b"1" else b"1")
        said = road.fast(plan, op, addr, wrong, reply)
        if said[0]:
            assert said == road.general(op, addr, wrong, reply), (op, hex(addr), wrong, reply)
        else:
            assert said[1] == 0, "what it does not judge it does not consume"


@settings(max_examples=200)
@given(RANDOMS, st.booleans(), st.sampled_from(Endian))
def test_the_fast_road_takes_every_access_in_one_section(
    rng: Random, target_big: bool, endian: Endian
) -> None:
    """It would be sound, and useless, to always say no."""
    road = Road(rng, RULES_10_0, target_big=target_big, endian=endian)
    plan = road.plan()
    for _ in range(8):
        op, addr = draw_access(rng)
        events, reply = road.happens(op, addr)
        assert road.fast(plan, op, addr, events, reply)[0], (road.contract, op, events)


def test_a_region_nobody_met_yet_takes_the_general_road() -> None:
    road = Road(Random(1), RULES_10_0, target_big=False, endian=Endian.LITTLE)
    road.evidence.new_process()
    op = Operation("readb", None, 1)
    road.region.contract = road.true_device.contract = Contract()
    plan = road.plan()
    events, reply = road.happens(op, BASE)
    assert not road.fast(plan, op, BASE, events, reply)[0]
    assert road.general(op, BASE, events, reply)[0]
    assert road.fast(plan, op, BASE, events, reply)[0], "it is bound now"


def test_unassigned_memory_is_one_refusal() -> None:
    region = UNASSIGNED
    space = space_of()
    plan = DevicePlan(space, region, Row.UNASSIGNED, lambda each: None)
    evidence = judged(space, Evidence())
    zero = b"OK 0x%016x" % 0
    evidence.load(Lines(written([unassigned(0x9000, 4)])))
    assert plan.reads(evidence, 0x9000, 4, zero, None) and evidence.pos == 1
    evidence.load(Lines(written([unassigned(0x9000, 4)])))
    assert not plan.reads(evidence, 0x9000, 4, b"OK 0x%016x" % 1, None)
    assert not plan.reads(evidence, 0x9004, 4, zero, None)
    assert not plan.reads(evidence, 0x9000, 2, zero, None)
    assert not plan.writes(evidence, 0x9000, 4, 0, b"OK", None)
    assert evidence.pos == 0
    evidence.load(Lines(written([unassigned(0x9000, 4, is_write=True)])))
    assert not plan.writes(evidence, 0x9000, 4, 1, b"FAIL", None)
    assert plan.writes(evidence, 0x9000, 4, 1, b"OK", None)
    evidence.load(Lines(written([unassigned(0x9000, 4), unassigned(0x9004, 4)])))
    assert plan.reads(evidence, 0x9000, 8, zero, None), "eight bytes are two refusals"
    assert evidence.pos == 2
    evidence.load(Lines(written([unassigned(0x9000, 4), unassigned(0x9008, 4)])))
    assert not plan.reads(evidence, 0x9000, 8, zero, None) and evidence.pos == 0


def test_a_new_flat_view_after_the_access_is_noticed() -> None:
    road = Road(Random(1), RULES_10_0, target_big=False, endian=Endian.LITTLE)
    road.region.contract = road.true_device.contract = Contract()
    op = Operation("writeb", None, 1, 5)
    events, reply = road.happens(op, BASE)
    assert road.fast(road.plan(), op, BASE, [*events, remapped()], reply) == (True, 1, True)
    assert road.fast(road.plan(), op, BASE, [*events, *events, remapped()], reply)[2] is False


# -- who takes no fast road ------------------------------------------------------------------


def one_call(
    region: MemoryRegion, space: AddressSpace, why: str | None = None,
    following: Following | None = None,
) -> bool:
    """Whether a plan for ``region`` takes a plain one-byte read."""
    evidence = judged(space, Evidence())
    evidence._binds(call(region, 0, 1, 0), region)
    evidence.load(Lines(written([call(region, 0, 1, 5)])))
    plan = DevicePlan(space, region, Row.DEVICE, lambda each: why, following)
    return plan.reads(evidence, 0, 1, b"OK 0x%016x" % 5, None)


def test_who_takes_the_general_road_always() -> None:
    plain = device()
    space = space_of((BASE, plain))
    assert one_call(plain, space)
    assert not one_call(plain, space, "its contract is not known")
    eventfds = device()
    eventfds.ioeventfds = (IoEventFd(0, 1),)
    own = device()
    own.ops = Evidence()
    veto = device()
    veto.contract = Contract(
        accepts=Veto(Learned(Contract(), accepts={(8, 1, False): False}), lambda *_: False,
                     lambda: None))
    ramd = MemoryRegion("ramd", 0x100, RegionKind.RAM_DEVICE, contract=Contract())
    ram = MemoryRegion.ram("ram", 0x100)
    ram.contract = Contract()
    for region in (eventfds, own, veto, ramd, ram):
        assert not one_call(region, space_of((BASE, region))), region


def test_a_decoded_device_is_told_of_what_is_judged_here() -> None:
    region = device("fwcfg.dma", contract=Contract())
    space = space_of((BASE, region))
    following = following_of(space, fw_cfg.make)
    evidence = judged(space, Evidence())
    evidence._binds(call(region, 0, 4, 0), region)
    plan = DevicePlan(space, region, Row.DEVICE, lambda each: None, following)
    [follower] = following.followers.values()
    assert isinstance(follower.device, fw_cfg.FwCfg)

    def write(value: int, shown: int) -> bool:
        evidence.load(Lines(written([call(region, 0, 4, shown, is_write=True)])))
        return plan.writes(evidence, 0, 4, value, b"OK", None)

    assert write(0x12, 0x12) and follower.device.address == 0x12 << 32
    assert not write(0x34, 0x35) and follower.device.address == 0x12 << 32
    assert not write(1 << 31, 1), "nothing is told twice"
    region.ioeventfds = (IoEventFd(0, 4),)
    assert not write(0x56, 0x56), "QEMU would have swallowed it"


def test_a_veto_seen_meanwhile_ends_the_fast_road() -> None:
    """The plan was made while the device was not known to refuse anything."""
    learned = Learned(Contract())
    region = device()
    space = space_of((BASE, region))
    evidence = judged(space, Evidence())
    region.contract = Contract(accepts=Veto(
        learned, lambda *access: evidence.refused_next(region, *access), lambda: None))
    evidence._binds(call(region, 0, 1, 0), region)
    plan = DevicePlan(space, region, Row.DEVICE, lambda each: None)
    evidence.load(Lines(written([refusal(region, 8, 1, Reason.REJECTED)])))
    assert space.read(BASE + 8, 1)[0] and learned.accepts == {(8, 1, False): False}
    events = [call(region, 8, 1, 5)]
    evidence.load(Lines(written(events)))
    space.read(BASE + 8, 1)
    assert evidence.mismatch is not None, "it was refused once, and that is binding"
    evidence.load(Lines(written(events)))
    assert not plan.reads(evidence, 8, 1, b"OK 0x%016x" % 5, None)
    evidence.load(Lines(written([refusal(region, 8, 1, Reason.REJECTED)])))
    assert plan.reads(evidence, 8, 1, b"OK 0x%016x" % 0, None), "the fact is frozen"
    evidence.load(Lines(written([call(region, 9, 1, 5)])))
    assert not plan.reads(evidence, 9, 1, b"OK 0x%016x" % 5, None), "here nothing is known"


def test_a_byte_order_learnt_meanwhile_ends_the_old_plan() -> None:
    region = device(contract=Contract())
    space = space_of((BASE, region))
    evidence = judged(space, Evidence())
    evidence._binds(call(region, 0, 2, 0), region)
    plan = DevicePlan(space, region, Row.DEVICE, lambda each: None)
    events = [call(region, 0, 2, 0x0102)]
    evidence.load(Lines(written(events)))
    assert plan.reads(evidence, 0, 2, b"OK 0x%016x" % 0x0102, None)
    region.contract = Contract(endian=Endian.BIG)
    evidence.load(Lines(written(events)))
    assert HostFace(space, None).perform(
        Operation("readw", None, 2), BASE).reply == b"OK 0x%016x" % 0x0201
    evidence.load(Lines(written(events)))
    assert not plan.reads(evidence, 0, 2, b"OK 0x%016x" % 0x0102, None)


# -- the map -----------------------------------------------------------------------------------


def ram_of(name: str, size: int, *, rom: bool = False) -> MemoryRegion:
    kind = RegionKind.ROM if rom else RegionKind.RAM
    return MemoryRegion(name, size, kind, backing=TrackedBacking(size),
                        contract=UNASSIGNED_CONTRACT)


def sample() -> tuple[AddressSpace, dict[str, MemoryRegion]]:
    ram, rom = ram_of("ram", 0x2000), ram_of("rom", 0x1000, rom=True)
    romd = MemoryRegion.rom_device("flash", 0x1000, Contract(), backing=TrackedBacking(0x1000))
    view = MemoryRegion.alias_of("pam", ram, 0x800, 0x400)
    view.set_readonly(True)
    dev, config = device("dev"), device("pci-conf-data", 4)
    space = space_of((0, ram), (0x4000, rom), (0x6000, romd), (0x8000, view), (0x9000, dev),
                     (0xA000, config))
    return space, {"ram": ram, "rom": rom, "romd": romd, "dev": dev, "config": config}


def test_the_map_covers_every_address_once() -> None:
    space, _ = sample()
    fast = FastMap(space, Barriers(), lambda region: None)
    assert fast.starts[0] == 0 and fast.limits[-1] == 1 << 64
    assert fast.limits[:-1] == fast.starts[1:]
    rows = [kind for kind in fast.kinds if kind is not Row.UNASSIGNED]
    assert rows == [Row.RAM, Row.ROM, Row.ROMD, Row.RO_ALIAS, Row.DEVICE, Row.DEVICE]


def test_what_is_direct_is_what_the_rules_say() -> None:
    space, regions = sample()
    fast = FastMap(space, Barriers(), lambda region: None)
    at = {section.start: i for i, section in enumerate(fast.sections)}

    def data(region: MemoryRegion) -> memoryview:
        assert isinstance(region.backing, TrackedBacking)
        return region.backing.data

    ram, rom, romd = data(regions["ram"]), data(regions["rom"]), data(regions["romd"])
    for start, readable, writable in (
        (0, ram, ram), (0x4000, rom, None), (0x6000, romd, None),
        (0x8000, ram, ram),  # R9: a read-only alias of RAM is written all the same
        (0x9000, None, None),
    ):
        assert fast.rdata[at[start]] is readable, hex(start)
        assert fast.wdata[at[start]] is writable, hex(start)
    assert 0x8000 + fast.delta[at[0x8000]] == 0x800, "the alias shows its target from there"
    assert 0x9004 + fast.delta[at[0x9000]] == 4


def test_memory_without_a_tracked_backing_is_not_direct() -> None:
    ram = MemoryRegion.ram("ram", 0x1000, ByteBacking(0x1000))
    fast = FastMap(space_of((0, ram)), Barriers(), lambda region: "not covered")
    assert fast.rdata[0] is None and fast.wdata[0] is None
    assert fast.rbarrier[0] == fast.wbarrier[0] == "solo"


def test_barriers_of_the_map() -> None:
    kick, odd = device("fwcfg.dma"), device("vmport")
    reset, odd_one = device("port92", 1), device("odd")
    learnt = device("dev")
    space = space_of((0, device("pci-conf-data", 4)), (0x100, kick), (0x1000, odd),
                     (0x2000, reset), (0x3000, odd_one), (0x4000, learnt))
    barriers = Barriers()
    barriers.learn(learnt, 0x10, is_write=False)
    following = following_of(space, fw_cfg.make, only=kick)
    fast = FastMap(space, barriers, lambda region: "why" if region is odd_one else None,
                   avoided={"vmport": "no CPU"}.get, following=following)
    at = {section.start: i for i, section in enumerate(fast.sections)}
    table = {start: (fast.rbarrier[i], fast.wbarrier[i]) for start, i in at.items()}
    assert table[0] == (None, "after")
    assert table[0x100] == (None, "kick")
    assert table[0x1000] == ("avoid", "avoid")
    assert table[0x2000] == (None, "learnt"), "the value decides"
    assert table[0x3000] == ("solo", "solo")
    assert table[0x4000] == ("learnt", None)
    assert fast.read_barriers and fast.write_barriers
    plain = FastMap(space_of((0, device())), Barriers(), lambda region: None)
    assert not plain.read_barriers and not plain.write_barriers


@pytest.mark.parametrize(("region", "ports", "row"), [
    (device(), False, Row.DEVICE),
    (device(), True, Row.PORT),
    (MemoryRegion.reservation("hole", 0x10), False, Row.UNASSIGNED),
    (MemoryRegion("ramd", 0x10, RegionKind.RAM_DEVICE), False, Row.DEVICE),
    (ram_of("ram", 0x10), False, Row.RAM),
    (ram_of("rom", 0x10, rom=True), False, Row.ROM),
])
def test_rows_of_the_verdict_table(region: MemoryRegion, ports: bool, row: Row) -> None:
    section = space_of((0, region)).view.cover[0]
    assert kind_of(section, ports=ports) is row


def test_the_root_of_the_ports_has_a_row_of_its_own() -> None:
    root = MemoryRegion.io("io", 0x10000)
    space = AddressSpace("I/O", root)
    assert FastMap(space, Barriers(), lambda region: None, ports=True).kinds[0] is Row.IO_ROOT
    named = device("io", 0x10)
    root.add_subregion(0x20, named)
    space.update()
    rows = FastMap(space, Barriers(), lambda region: None, ports=True).kinds
    assert rows[1] is Row.PORT, "a device called io is one"


def test_contracts_are_kept_by_key() -> None:
    known = Contracts()
    learned = Learned(Contract())
    known.put("a", learned)
    assert known.get("a") is learned and known.get("b") is None and len(known) == 1
