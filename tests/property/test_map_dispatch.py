"""An access as the map explains it, against the byte-wise oracle and against the model."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import TOP, Oracle, build, random_contract, random_map

from qemuglue.memory import AddressSpace, MemoryRegion, RegionKind
from qemuglue.memory.rules import RULES_10_0, RULES_LATEST
from qemuglue.report.dispatch_text import SIZES, Contracts, Direction, in_words, table, walk
from qemuglue.witness.contract_table import (
    AcceptedRange,
    Accepts,
    Access,
    ContractRow,
    ContractSizes,
    ContractTable,
)

RANDOMS = st.randoms(use_true_random=False)


class Declared(Contracts):
    """Every device's contract as it was declared."""

    def of(self, region: MemoryRegion, is_write: bool) -> Direction:
        if region.kind in (RegionKind.IO, RegionKind.ROM_DEVICE):
            veto = region.contract.accepts
            return Direction(region.contract, None if veto is None else Vetoing(veto, is_write))
        return super().of(region, is_write)


class Vetoing(Accepts):
    """A veto that asks the device's own function."""

    def __init__(self, veto, is_write):
        super().__init__()
        object.__setattr__(self, "veto", veto)
        object.__setattr__(self, "is_write", is_write)

    def __call__(self, offset: int, size: int) -> bool:
        return bool(self.veto(offset, size, self.is_write))


def heard(steps, is_write: bool) -> list[tuple[object, ...]]:
    """The walk as the oracle's log has it, values left out."""
    log: list[tuple[object, ...]] = []
    for step in steps:
        name = "" if step.region is None else step.region.name
        if step.what == "refused":
            log.append(("invalid", name, step.offset, step.size, is_write, step.reason))
        elif step.what == "called":
            at = step.offset
            for size in step.pieces:
                log.append(("write" if is_write else "read", name, at % TOP, size))
                at += size
    return log


@settings(max_examples=250, deadline=None)
@given(RANDOMS, st.integers(0, 60), st.integers(1, 40), st.booleans())
def test_the_walk_is_what_the_oracle_does(
    rng: Random, skip: int, length: int, is_write: bool
) -> None:
    root, base = random_map(rng)
    space = AddressSpace("memory", build(root)[0], rules=RULES_10_0)
    oracle = Oracle(root)
    address = (base + skip) % TOP
    if is_write:
        oracle.write(address, bytes(length))
    else:
        oracle.read(address, bytearray(length))
    steps = walk(space, address, length, is_write, Declared())
    said = [event[:4] if event[0] in ("read", "write") else event for event in oracle.log]
    assert heard(steps, is_write) == said
    assert sum(step.size for step in steps) == length
    assert [step.address for step in steps] == [
        (address + sum(before.size for before in steps[:n])) % TOP for n in range(len(steps))
    ]


@settings(max_examples=100, deadline=None)
@given(RANDOMS, st.integers(0, 200), st.booleans())
def test_the_table_is_the_walk(rng: Random, offset: int, single: bool) -> None:
    """What a page looks up in its table of offsets modulo 8 is what the model does there."""
    contract = random_contract(rng)
    rules = RULES_LATEST if single else RULES_10_0
    root = MemoryRegion.container_of("ports", 1 << 16)
    device = MemoryRegion.io("device", 1 << 16, contract)
    root.add_subregion(0, device)
    space = AddressSpace("I/O", root, rules=rules)
    if contract.accepts is not None:
        return  # the table knows no vetoes
    rows = table(rules, contract, single=single)
    for size, row in zip(SIZES, rows, strict=True):
        steps = walk(space, offset, size, False, Declared(), ports=single)
        assert in_words(steps) == in_words(row[offset % 8])
        assert [step.size for step in steps] == [step.size for step in row[offset % 8]]


def test_the_probed_table_is_used() -> None:
    """Sizes hold for both directions, a veto for its own; what was not learnt stays unknown."""
    root = MemoryRegion.container_of("root", 0x1000)
    devices = {name: MemoryRegion.io(name, 0x100) for name in ("known", "mute", "new")}
    for number, (name, device) in enumerate(devices.items()):
        root.add_subregion(number * 0x100, device)
        device.key = f"/machine:{name}"
    veto = Accepts((AcceptedRange(4, 0, 8, 4),))
    rows = tuple(
        ContractRow(region=f"/machine:{name}", name=name, owner="/machine", size=0x100,
                    kind="i/o", space="memory", address=0, reads=reads, writes=writes)
        for name, reads, writes in (
            ("known", Access(ContractSizes(4, 4), "big", accepts=veto), Access(unknown="later")),
            ("mute", Access(unknown="QEMU ended"), Access(unknown="QEMU ended")),
        )
    )
    contracts = Contracts(ContractTable("t/m", "b", "1", (), rows))
    space = AddressSpace("memory", root, rules=RULES_10_0)
    said = {
        (at, is_write): in_words(walk(space, at, 8, is_write, contracts))
        for at in (0, 8, 0x100, 0x200) for is_write in (False, True)
    }
    assert said == {
        (0, False): "4+4", (0, True): "4+4",
        (8, False): "4, then refused (rejected)", (8, True): "4+4",
        (0x100, False): "?", (0x100, True): "?", (0x200, False): "?", (0x200, True): "?",
    }
    assert contracts.of(devices["mute"], False).unknown == "QEMU ended"
    assert contracts.of(devices["new"], False).unknown == "not asked"
    assert Contracts().of(devices["new"], False).unknown == "not probed"
