"""A device's own veto: from frozen facts, else from the next line of evidence, once."""

from __future__ import annotations

from qemuglue.memory import Contract, Endian
from qemuglue.witness.contracts import AcceptsFacts, Learned, Veto, with_endian

Access = tuple[int, int, bool]


class Watched:
    """A veto over ``facts`` that counts what it asks and tells."""

    def __init__(self, facts: AcceptsFacts, refuses: set[Access] = frozenset()) -> None:  # type: ignore[assignment]
        self.learned = Learned(Contract(), accepts=facts)
        self.asked: list[Access] = []
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
