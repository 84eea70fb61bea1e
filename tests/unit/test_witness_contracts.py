"""A device's own veto: from frozen facts, else from the next line of evidence, once."""

from __future__ import annotations

from qemuglue.memory import Contract, Endian, MemoryRegion
from qemuglue.mirror.identity import RegionKey
from qemuglue.witness.contract_table import (
    AcceptedRange,
    Accepts,
    Access,
    ContractRow,
    ContractSizes,
    ContractTable,
)
from qemuglue.witness.contracts import (
    AcceptsFacts,
    Learned,
    Veto,
    contracts_for,
    contracts_of,
    key_of,
    learned_of,
    with_endian,
)

Asking = tuple[int, int, bool]


class Watched:
    """A veto over ``facts`` that counts what it asks and tells."""

    def __init__(self, facts: AcceptsFacts, refuses: set[Asking] = frozenset()) -> None:  # type: ignore[assignment]
        self.learned = Learned(Contract(), accepts=facts)
        self.asked: list[Asking] = []
        self.told = 0
        self.refuses = set(refuses)
        self.veto = Veto(self.learned, self._refused_next, self._on_learnt)

    def _refused_next(self, offset: int, size: int, is_write: bool) -> bool:
        self.asked.append((offset, size, is_write))
        return (offset, size, is_write) in self.refuses

    def _on_learnt(self) -> None:
        self.told += 1


def test_facts_answer_without_evidence() -> None:
    watched = Watched({(0, 4, False): True, (4, 4, False): False})
    assert watched.veto(0, 4, False) and not watched.veto(4, 4, False)
    assert not watched.asked and not watched.told
    assert watched.veto.vetoing and watched.learned.has_veto


def test_a_device_that_never_refused_is_trusted_but_watched() -> None:
    watched = Watched({})
    assert watched.veto(0, 4, False)
    assert watched.asked == [(0, 4, False)]
    assert watched.learned.accepts == {}, "nothing is learnt of a device without a veto"
    assert not watched.veto.vetoing and not watched.told


def test_a_first_refusal_is_learnt_and_binding() -> None:
    watched = Watched({}, {(8, 2, True)})
    assert not watched.veto(8, 2, True)
    assert watched.told == 1 and watched.veto.vetoing and watched.learned.has_veto
    watched.refuses.clear()
    assert not watched.veto(8, 2, True), "frozen, whatever QEMU does now"
    assert watched.told == 1 and len(watched.asked) == 1


def test_of_a_device_that_refuses_acceptance_is_learnt_too() -> None:
    watched = Watched({(8, 2, True): False})
    assert watched.veto(8, 2, False), "reads and writes are different facts"
    assert watched.learned.accepts[8, 2, False] and watched.told == 1
    watched.refuses.add((8, 2, False))
    assert watched.veto(8, 2, False), "and frozen"
    assert watched.told == 1


def test_facts_outlive_the_process() -> None:
    watched = Watched({}, {(8, 2, True)})
    watched.veto(8, 2, True)
    again = Veto(watched.learned, lambda *access: False, lambda: None)
    assert again.vetoing and not again(8, 2, True)


def test_only_facts_of_refusal_make_a_veto() -> None:
    assert not Learned(Contract()).has_veto
    assert not Learned(Contract(), accepts={(0, 4, False): True}).has_veto
    assert Learned(Contract(), accepts={(0, 4, False): True, (4, 4, False): False}).has_veto


def test_the_byte_order_alone_is_changed() -> None:
    contract = Contract(valid_min=2, valid_max=8, impl_max=8)
    assert with_endian(contract, True).endian is Endian.BIG
    assert with_endian(with_endian(contract, True), False) == Contract(
        valid_min=2, valid_max=8, impl_max=8, endian=Endian.LITTLE)


def asked_all_over() -> Learned:
    """Reads of four at 0 and 8 of sixteen bytes are accepted, all asked."""
    veto = Accepts((AcceptedRange(4, 0, 8, 8),), True, ((0, 15),))
    return Learned(Contract(), reads=veto)


def test_what_was_asked_all_over_is_binding_without_evidence() -> None:
    watched = Watched({}, {(0, 4, False)})
    watched.learned.reads = asked_all_over().reads
    veto = Veto(watched.learned, watched._refused_next, watched._on_learnt)
    assert veto.vetoing and veto(0, 4, False) and not veto(4, 4, False)
    assert not watched.asked and not watched.told


def test_the_other_direction_is_guessed_and_checked() -> None:
    watched = Watched({}, {(4, 4, True)})
    watched.learned.reads = asked_all_over().reads
    veto = Veto(watched.learned, watched._refused_next, watched._on_learnt)
    assert veto(0, 4, True) and not veto(4, 4, True)
    assert len(watched.asked) == 2 and not watched.told, "as expected: nothing new was learnt"
    assert veto(12, 4, True), "QEMU is right about what was guessed"
    assert watched.told == 1
    assert watched.learned.accepts == {(0, 4, True): True, (4, 4, True): False,
                                       (12, 4, True): True}


def test_without_evidence_nothing_is_frozen() -> None:
    learned = asked_all_over()
    told: list[int] = []
    veto = Veto(learned, lambda *access: None, lambda: told.append(1))
    assert veto(0, 4, True) and not veto(4, 4, True)
    assert not learned.accepts and not told


def row(**known: object) -> ContractRow:
    told: dict[str, object] = {
        "region": "/machine/a:b:dev#2", "name": "dev", "owner": "/machine/a:b", "size": 16,
        "kind": "i/o", "space": "memory", "address": 0, "reads": Access(unknown="not asked"),
        "writes": Access(unknown="not asked"), **known,
    }
    return ContractRow(**told)  # type: ignore[arg-type]


def test_a_row_as_the_judge_takes_it() -> None:
    sizes = ContractSizes(4, 8, False, 4, 8)
    veto = asked_all_over().reads
    known = row(reads=Access(sizes, "", accepts=veto), writes=Access(sizes, "big"))
    learned = learned_of(known)
    assert learned is not None and learned.endian_known and learned.has_veto
    assert learned.contract == sizes.contract(Endian.BIG)
    assert learned.told(4, 4, False) is False and learned.told(4, 4, True) is None
    assert learned.guess(4, 4, True), "writes were asked and refused nothing"
    assert key_of(known) == RegionKey("/machine/a:b", "dev", 2)
    table = ContractTable("x/y", "b", "1", (), (known, row(region="/machine/a:b:dev")))
    contracts = contracts_of(table)
    assert len(contracts) == 1 and contracts.get(key_of(known)) is not None


def test_writes_alone_tell_a_contract_too() -> None:
    learned = learned_of(row(writes=Access(ContractSizes(), "")))
    assert learned is not None and not learned.endian_known and not learned.has_veto
    assert learned_of(row()) is None


def region_at(owner: str, name: str, size: int, address: int) -> MemoryRegion:
    region = MemoryRegion.io(name, size)
    region.key = RegionKey(owner, name)
    region.addr = address
    return region


def test_a_table_of_another_build_is_matched_by_name_and_place() -> None:
    four, eight = (Access(ContractSizes(size, size)) for size in (4, 8))

    def at(device: int, address: int, access: Access, name: str = "uart") -> ContractRow:
        owner = f"/machine/unattached/device[{device}]"
        return row(region=f"{owner}:{name}", name=name, owner=owner, address=address,
                   reads=access, writes=access)

    table = ContractTable("x/y", "old", "1", (), (
        at(1, 0x2000, eight), at(2, 0x1000, four), at(3, 0, four, "hpet"), at(4, 0, four, "odd"),
    ))
    low, high = (region_at(f"/machine/unattached/device[{n}]", "uart", 16, address)
                 for n, address in ((7, 0x1000), (8, 0x2000)))
    same = region_at("/machine/unattached/device[3]", "hpet", 16, 0x5000)
    resized = region_at("/machine/unattached/device[9]", "odd", 32, 0)
    found = contracts_for(table, [high, same, low, resized])
    sizes = [None if learned is None else learned.contract.valid_max
             for learned in map(found.get, (low.key, high.key, same.key, resized.key))]
    assert sizes == [4, 8, 4, None]
    # One more of that name: which is which cannot be told.
    third = region_at("/machine/unattached/device[10]", "uart", 16, 0x3000)
    assert contracts_for(table, [high, low, third]).get(low.key) is None
