"""Contracts recovered from what probes show, where the probed device is a simulation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from witness_events import (
    MASK64,
    Simulated,
    call,
    device,
    message,
    random_contract,
    refusal,
    remapped,
    space_of,
    unassigned,
)

from qemuglue.memory import AddressSpace, Contract, Endian, MemoryRegion, Reason
from qemuglue.memory.rules import RULES_10_0, RULES_LATEST, Rules
from qemuglue.qemu.events import Event
from qemuglue.witness.contracts import Learned
from qemuglue.witness.explaining import explain
from qemuglue.witness.face import HostFace
from qemuglue.witness.probing import Ask, Probe, Seen, _nested, _windows, own_lines

RANDOMS = st.randoms(use_true_random=False)
BASE = 0x1000


class Probed:
    """A device of ``size`` bytes whose registers read as a fixed image, and its probes."""

    def __init__(
        self, rng: Random, contract: Contract, *, size: int = 16, ports: bool = False,
        rules: Rules = RULES_10_0, target_big: bool = False,
    ) -> None:
        self.rules = rules
        self.ports = ports
        self.region = device("dev", size, contract)
        self.space = space_of((BASE, self.region), rules=rules, target_big=target_big)
        image = Random(rng.getrandbits(32)).randbytes(2 * size + 16)  # never all zeros
        # One number a register, as a device's callback would return it: its own order.
        self.simulated = Simulated(
            self.space,
            lambda region, offset, size: int.from_bytes(image[offset : offset + size], "little"),
        )
        self.face = HostFace(self.space, self.space)

    def access(self, offset: int, size: int, *, is_write: bool = False) -> tuple[
        list[Event], bytes
    ]:
        """Events of the device and the bytes that a read gives."""
        addr = BASE + offset
        data = b""
        if self.ports and self.rules.ports_single_dispatch:
            if is_write:
                self.space.store_sized(addr, 0, size, "little")
            else:
                data = self.space.load_sized(addr, size, "little")[1].to_bytes(size, "little")
        elif is_write:
            self.space.write(addr, bytes(size))
        else:
            data = self.space.read(addr, size)[1]
        return self.simulated.take(), data

    def probes(self, *, is_write: bool = False) -> Iterator[Probe]:
        """As the probe of a session makes them: a window of eight, every size."""
        single = self.ports and self.rules.ports_single_dispatch
        for offset in range(min(8, self.region.size)):
            for size in (1, 2, 4) if self.ports else (1, 2, 4, 8):
                events, data = self.access(offset, size, is_write=is_write)
                one = Ask(offset, size, is_write)
                seen = tuple(own_lines(events, self.region, BASE, one, self.region.size))
                yield Probe(offset, size, self.region.size, is_write, seen, data, single)

    def learned(self, *, is_write: bool = False) -> Learned | None:
        return explain(self.rules, list(self.probes(is_write=is_write)), {})


def follows(learned: Learned, region: MemoryRegion) -> Contract:
    """What was learnt as a contract of a region, its vetoes included."""
    def accepts(offset: int, size: int, is_write: bool) -> bool:
        return learned.accepts.get((offset, size, is_write), True)

    return replace(learned.contract, accepts=accepts if learned.accepts else None)


def same_on_the_host_path(probed: Probed, learned: Learned) -> None:
    """No access of the host path, read or write, tells the two contracts apart.

    Accesses over the end of a region are cut by its contract (R7), which only a
    probe of that end can show: they are compared where the probed window holds it and calls are
    not widened, which hides how long the access was.
    """
    ends = probed.region.size <= 8 and probed.region.contract.impl_min <= 1
    size_max = 1 << 64 if ends else probed.region.size
    other = device("dev", probed.region.size, follows(learned, probed.region))
    space = space_of((BASE, other), rules=probed.rules, target_big=probed.space.target_big)
    twin = Probed.__new__(Probed)
    twin.rules, twin.ports, twin.region, twin.space = probed.rules, probed.ports, other, space
    twin.simulated = Simulated(space, probed.simulated.value)
    for offset in range(probed.region.size):
        for size in (1, 2, 4) if probed.ports else (1, 2, 3, 4, 5, 8, 13):
            if offset + size > size_max:
                continue
            for is_write in (False, True):
                mine, data = probed.access(offset, size, is_write=is_write)
                theirs, other_data = twin.access(offset, size, is_write=is_write)
                said = f"{probed.region.contract} / {learned.contract} at {offset}, {size} bytes"
                assert plain(mine) == plain(theirs), said
                assert data == other_data, said


def plain(events: list[Event]) -> list[Event]:
    return [event._replace(mr=0) for event in events]


def known_order(learned: Learned, contract: Contract, target_big: bool) -> Learned:
    """Where no probe could tell the byte order, either will do: take the true one."""
    if learned.endian_known:
        return learned
    big = contract.big(target_big)
    order = Endian.BIG if big else Endian.LITTLE
    return replace(learned, contract=replace(learned.contract, endian=order))


@settings(max_examples=600)
@given(RANDOMS, st.sampled_from(Endian), st.booleans())
def test_a_contract_is_recovered(rng: Random, endian: Endian, target_big: bool) -> None:
    contract = random_contract(rng, endian=endian)
    probed = Probed(rng, contract, target_big=target_big)
    learned = probed.learned()
    assert learned is not None, contract
    assert not learned.accepts and not learned.has_veto
    same_on_the_host_path(probed, known_order(learned, contract, target_big))


@settings(max_examples=60)
@given(RANDOMS, st.sampled_from([RULES_10_0, RULES_LATEST]), st.sampled_from([1, 2, 4, 5, 8]))
def test_a_port_devices_contract_is_recovered(rng: Random, rules: Rules, size: int) -> None:
    contract = random_contract(rng, endian=Endian.LITTLE)
    probed = Probed(rng, contract, size=size, ports=True, rules=rules)
    learned = probed.learned()
    assert learned is not None, contract
    same_on_the_host_path(probed, known_order(learned, contract, False))


@settings(max_examples=60)
@given(RANDOMS, st.sampled_from([1, 2, 3, 4, 6, 8, 12]))
def test_a_small_device_is_told_apart_from_what_lies_behind_it(rng: Random, size: int) -> None:
    """Pieces from the region's end on belong to somebody else."""
    contract = random_contract(rng, endian=Endian.LITTLE)
    probed = Probed(rng, contract, size=size)
    learned = probed.learned()
    assert learned is not None, contract
    same_on_the_host_path(probed, known_order(learned, contract, False))


@settings(max_examples=60)
@given(RANDOMS)
def test_a_contract_seen_by_writes_only(rng: Random) -> None:
    """A ROM device's reads never reach it."""
    contract = random_contract(rng, endian=Endian.LITTLE)
    probed = Probed(rng, contract)
    learned = probed.learned(is_write=True)
    assert learned is not None and not learned.endian_known
    same_on_the_host_path(probed, known_order(learned, contract, False))


def test_a_piece_of_a_wider_access_proves_nothing() -> None:
    """Two calls of one byte may have been one accepted access of two, whose second byte alone
    the device refuses."""
    calls = [
        Probe(7, 2, 16, False, (Seen(7, 1, 1, None, 0, 0), Seen(8, 1, 2, None, 0, 0)), b"\1\2"),
        Probe(0, 1, 16, False, (Seen(0, 1, 0, "rejected", 0, 0),), b"\0"),
        Probe(3, 1, 16, False, (Seen(3, 1, 5, None, 0, 0),), b"\5"),
    ]
    learned = explain(RULES_10_0, calls, {})
    assert learned is not None
    assert learned.accepts == {(0, 1, False): False, (3, 1, False): True}


@settings(max_examples=600)
@given(RANDOMS, st.floats(0.05, 0.95))
def test_a_devices_own_veto_becomes_facts(rng: Random, share: float) -> None:
    """Whatever it refuses, what was learnt gives every probe its events again."""
    refused = {
        (offset, size, False) for offset in range(16) for size in (1, 2, 4, 8)
        if rng.random() < share
    }
    contract = random_contract(
        rng, endian=Endian.LITTLE, accepts=lambda *access: access not in refused)
    probed = Probed(rng, contract)
    probes = list(probed.probes())
    learned = explain(RULES_10_0, probes, {})
    assert learned is not None, contract
    for access, accepted in learned.accepts.items():
        assert accepted == (access not in refused)
    again = Probed.__new__(Probed)
    again.rules, again.ports = RULES_10_0, False
    again.region = device("dev", 16, follows(known_order(learned, contract, False), probed.region))
    again.space = space_of((BASE, again.region))
    again.simulated = Simulated(again.space, probed.simulated.value)
    for probe in probes:
        events, data = again.access(probe.offset, probe.size)
        one = Ask(probe.offset, probe.size)
        assert tuple(own_lines(events, again.region, BASE, one, probe.stop)) == probe.seen
        assert data == probe.data


@settings(max_examples=100)
@given(RANDOMS, st.sampled_from([Endian.LITTLE, Endian.BIG]), st.sampled_from([1, 2, 4, 8]))
def test_the_byte_order_is_learnt_or_said_to_be_unknown(
    rng: Random, endian: Endian, impl_max: int
) -> None:
    contract = Contract(valid_max=8, impl_max=impl_max, endian=endian)
    learned = Probed(rng, contract).learned()
    assert learned is not None
    if learned.endian_known:
        assert learned.contract.endian is endian
    # Byte by byte both orders give the same bytes: nothing on the host path can tell.
    assert learned.endian_known == (impl_max > 1)


def test_the_byte_order_of_accesses_made_of_several_calls_or_of_half_a_one() -> None:
    """Eight bytes as four and four; two bytes as the first half of four."""
    for shape in (Contract(valid_min=8, valid_max=8), Contract(valid_max=2, impl_min=4),
                  Contract(valid_min=8, valid_max=8, impl_max=2)):
        for endian in (Endian.LITTLE, Endian.BIG):
            learned = Probed(Random(5), replace(shape, endian=endian)).learned()
            assert learned is not None and learned.endian_known, shape
            assert learned.contract.endian is endian, shape


def test_registers_that_read_the_same_backwards_tell_no_order() -> None:
    probed = Probed(Random(1), Contract(endian=Endian.BIG))
    probed.simulated.value = lambda region, offset, size: 0
    learned = probed.learned()
    assert learned is not None and not learned.endian_known


def test_the_simplest_contract_is_taken() -> None:
    for contract, simple in (
        (Contract(), Contract()),
        (Contract(valid_max=4, impl_max=4, impl_min=1), Contract()),
        (Contract(valid_min=4, valid_max=4), Contract(valid_min=4, valid_max=4)),
        (Contract(valid_max=8, impl_max=8), Contract(valid_max=8, impl_max=8)),
        (Contract(valid_max=1), Contract(valid_max=1)),
    ):
        learned = Probed(Random(1), replace(contract, endian=Endian.LITTLE)).learned()
        assert learned is not None
        assert replace(learned.contract, endian=Endian.NATIVE) == simple, contract


def test_what_follows_no_contract_is_not_guessed() -> None:
    probed = Probed(Random(1), Contract())
    probes = list(probed.probes())
    for index, probe in enumerate(probes):
        if probe.size == 4 and probe.offset == 0:
            wrong = replace(probe.seen[0], size=2)
            probes[index] = replace(probe, seen=(wrong,))
    assert explain(RULES_10_0, probes, {}) is None


def test_two_different_limits_follow_no_contract() -> None:
    probed = Probed(Random(1), Contract(valid_min=4, valid_max=4))
    probes = list(probed.probes())
    first = next(i for i, probe in enumerate(probes) if probe.seen[0].reason == "invalid size")
    seen = replace(probes[first].seen[0], maximum=8)
    probes[first] = replace(probes[first], seen=(seen, *probes[first].seen[1:]))
    assert explain(RULES_10_0, probes, {}) is None


def test_devices_that_behave_alike_are_explained_once() -> None:
    cache: dict[object, Contract | None] = {}
    for seed in range(5):
        probed = Probed(Random(seed), Contract(valid_max=8, impl_max=8, endian=Endian.BIG))
        learned = explain(RULES_10_0, list(probed.probes()), cache)
        assert learned is not None and learned.contract.endian is Endian.BIG
    assert len(cache) == 1
    other = Probed(Random(1), Contract(valid_max=8, impl_max=4, endian=Endian.BIG))
    learned = explain(RULES_10_0, list(other.probes()), cache)
    assert learned is not None and learned.contract.impl_max == 0 and len(cache) == 2
    for contract in (Contract(), Contract(impl_min=2)):  # as many calls, of other sizes
        learned = explain(RULES_10_0, list(Probed(Random(1), contract).probes()), cache)
        assert learned is not None and learned.contract.impl_min == contract.impl_min


# -- which events are a probe's own --------------------------------------------------------------


def test_events_between_markers() -> None:
    dev = device()
    first, second = call(dev, 0, 4, 1), call(dev, 4, 4, 2)
    events = [first, unassigned(0x9000, 1), unassigned(0x7000, 1), second, message(),
              unassigned(0x9001, 1)]
    assert _windows(events, 0x9000, 2) == [[first], [unassigned(0x7000, 1), second, message()]]


def test_a_lost_marker_costs_two_accesses() -> None:
    dev = device()
    calls = [call(dev, 4 * i, 4, i) for i in range(4)]
    markers = [unassigned(0x9000 + i, 1) for i in range(4)]
    events = [event for pair in zip(calls, markers, strict=True) for event in pair]
    del events[3]
    assert _windows(events, 0x9000, 4) == [[calls[0]], None, None, [calls[3]]]
    assert _windows(events[:2], 0x9000, 3) == [[calls[0]], None, None]


def own(events: list[Event], region: MemoryRegion, one: Ask, stop: int = 0x100) -> list[int]:
    """Offsets of the lines that are the region's own."""
    return [seen.offset for seen in own_lines(events, region, region.absolute(), one, stop)]


def test_what_is_not_the_regions_own_is_left_out() -> None:
    dev, twin, other = device(), device(), device("other")
    space_of((BASE, dev), (BASE + 0x100, other), (0x9000, twin))
    mine = call(dev, 0xFC, 4, 1)
    inside, behind = Ask(0xFC, 4), Ask(0xFC, 8)
    assert own([mine, call(other, 0, 4, 2)], dev, inside) == [0xFC]
    assert own([call(other, 0, 4, 2), mine], dev, inside) == [0xFC]
    # Once it has left the region, what comes is somebody else's, a namesake's included.
    assert own([mine, call(twin, 0, 4, 2), mine], dev, behind) == [0xFC]
    assert own([mine, refusal(dev, 0, 4, Reason.UNALIGNED)], dev, behind) == [0xFC]
    assert own([unassigned(0x70, 4), mine], dev, behind) == []
    # A namesake's call right behind the end, after refusals, which name no pointer.
    refused = refusal(dev, 0xFC, 4, Reason.UNALIGNED)
    follows = call(dev, 0x100, 4, 1)._replace(mr=1)
    assert own([refused, follows], dev, behind) == [0xFC]
    over = call(dev, 0xFF, 1, 1), call(dev, 0x100, 1, 1)
    assert own([*over], dev, Ask(0xFF, 2)) == [0xFF, 0x100]
    assert own([mine, call(dev, 0xFC, 4, 1, is_write=True)], dev, inside) == [0xFC]
    [seen] = own_lines([refusal(dev, 2, 2, Reason.REJECTED)], dev, BASE, Ask(2, 2), 0x100)
    assert (seen.offset, seen.size, seen.reason) == (2, 2, "rejected")


def test_a_device_may_access_others_before_its_own_line() -> None:
    dev, other = device(), device("other")
    space_of((BASE, dev), (BASE + 0x100, other))
    events = [unassigned(0x70, 4), call(dev, 0, 4, 1), call(other, 0, 4, 2), call(dev, 4, 4, 1)]
    assert own(events, dev, Ask(0, 8)) == [0, 4]
    assert _nested(events, dev) and _nested(events[:1], dev) and _nested(events[1:3], dev)
    assert not _nested([message(), *events[3:], remapped()], dev)
    assert _nested([events[3]._replace(mr=1), events[3]], dev), "a namesake of its own"


def test_what_goes_on_behind_a_device_that_accesses_others_proves_nothing() -> None:
    probed = Probed(Random(1), Contract(endian=Endian.LITTLE), size=8)
    probes = list(probed.probes())
    crossing = next(i for i, probe in enumerate(probes) if probe.crossing and probe.size == 4)
    probes[crossing] = replace(probes[crossing], seen=())
    assert explain(RULES_10_0, probes, {}) is None
    probes[0] = replace(probes[0], nested=True)
    learned = explain(RULES_10_0, probes, {})
    assert learned is not None and learned.contract.valid_max == 0


def test_offsets_count_from_the_region_wherever_it_lies() -> None:
    dev = device("top", 0x10)
    space = AddressSpace("memory", MemoryRegion.container_of("system", 1 << 64))
    space.root.add_subregion(MASK64 - 0xF, dev)
    assert own([call(dev, 4, 4, 1)], dev, Ask(4, 4), 0x10) == [4]
