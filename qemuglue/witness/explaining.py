"""Explaining: the contract that gives every probe just the lines it left.

What the transcript shows is compared with what the model's own rules make of each candidate
contract; the simplest candidate that explains everything is taken. The others that explain
everything too are its alternatives: no access that was made can tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

from qemuglue.memory.contract import Contract, Endian
from qemuglue.memory.rules import Rules
from qemuglue.witness.contract_table import ContractSizes
from qemuglue.witness.contracts import AcceptsFacts, Learned
from qemuglue.witness.probing import Probe

#: A candidate: sizes as declared; the order is the order of preference. A smallest call that is
#: larger than the largest one works (R3) and comes last.
_CANDIDATES = tuple(sorted(
    (
        (valid_max, unaligned, impl_min, impl_max, impl_unaligned)
        for impl_unaligned, unaligned, impl_min, impl_max, valid_max in product(
            (False, True), (False, True), (0, 2, 4, 8), (0, 1, 2, 8), (0, 1, 2, 8)
        )
    ),
    key=lambda candidate: candidate[2] > (candidate[3] or 4),
))

#: What was found for probes of the same shape: most devices of a machine behave alike.
Cache = dict[object, Contract | None]


def explain(rules: Rules, probes: Sequence[Probe], cache: Cache) -> Learned | None:
    """The contract that explains the probes, or None."""
    probes = telling(probes)
    facts = vetoes(probes)
    shape = _shape(probes)
    if shape not in cache:
        cache[shape] = next(_fitting(rules, probes, facts), None)
    contract = cache[shape]
    if contract is None:
        return None
    if facts:
        for probe in probes:
            facts.update(_accepted(probe))
    order = byte_order(rules, contract, probes, facts)
    if order is None:
        return Learned(contract, False, facts)
    return Learned(replace(contract, endian=order), True, facts)


def byte_order(
    rules: Rules, contract: Contract, probes: Sequence[Probe], facts: AcceptsFacts
) -> Endian | None:
    """The byte order that the values of the probes show; None if they show none, or two."""
    orders = {big for probe in probes for big in _orders(rules, contract, probe, facts)}
    if len(orders) != 1:
        return None
    return Endian.BIG if orders.pop() else Endian.LITTLE


def alternatives(
    rules: Rules, probes: Sequence[Probe], contract: Contract
) -> tuple[ContractSizes, ...]:
    """Other contracts that explain the probes, in QEMU's defaults' own terms, sorted."""
    probes = telling(probes)
    facts = vetoes(probes)
    mine = ContractSizes.of(contract).effective
    found = {ContractSizes.of(each).effective for each in _fitting(rules, probes, facts)}
    # Unset and 1 to 4 cut alike, and no dispatch that is not cut is larger.
    found |= {replace(each, valid_min=1, valid_max=4) for each in found if not each.valid_max}
    return tuple(sorted(
        each for each in found if each != mine and each.impl_min <= each.impl_max
    ))


def closest(rules: Rules, probes: Sequence[Probe]) -> tuple[Contract, list[Probe]]:
    """The candidate that explains the most, and the probes it does not explain."""
    probes = telling(probes)
    facts = vetoes(probes)
    best: tuple[Contract, list[Probe]] | None = None
    for candidate in _candidates(probes):
        wrong = [probe for probe in probes if not _fits(rules, candidate, probe, facts)]
        if best is None or len(wrong) < len(best[1]):
            best = candidate, wrong
    assert best is not None
    return best


def telling(probes: Sequence[Probe]) -> Sequence[Probe]:
    """The probes whose lines are surely all known: where a device accesses others on its own,
    nobody can tell its doing from what lies behind its end."""
    if any(probe.nested for probe in probes):
        return [probe for probe in probes if not probe.crossing]
    return probes


def vetoes(probes: Sequence[Probe]) -> AcceptsFacts:
    """The dispatches that the device itself was seen to refuse."""
    return {
        (seen.offset, seen.size, probe.is_write): False
        for probe in probes for seen in probe.seen if seen.reason == "rejected"
    }


def _shape(probes: Sequence[Probe]) -> object:
    return tuple(
        (probe.offset & 7, probe.size, probe.is_write, probe.single,
         min(probe.stop - probe.offset, 16),
         tuple((s.offset - probe.offset, s.size, s.reason, s.minimum, s.maximum)
               for s in probe.seen))
        for probe in probes
    )


def _candidates(probes: Sequence[Probe]) -> Iterator[Contract]:
    limits = {
        (seen.minimum, seen.maximum)
        for probe in probes for seen in probe.seen if seen.reason == "invalid size"
    }
    minimum, declared = min(limits) if limits else (0, 0)
    for valid_max, unaligned, impl_min, impl_max, impl_unaligned in _CANDIDATES:
        if declared:
            if valid_max:
                continue  # declared: no need to guess
            valid_max = declared
        yield Contract(minimum, valid_max, unaligned, impl_min, impl_max, impl_unaligned)


def _fitting(
    rules: Rules, probes: Sequence[Probe], facts: AcceptsFacts
) -> Iterator[Contract]:
    limits = {
        (seen.minimum, seen.maximum)
        for probe in probes for seen in probe.seen if seen.reason == "invalid size"
    }
    if len(limits) > 1:
        return
    ordered = sorted(probes, key=lambda probe: (-probe.size, probe.offset))
    for candidate in _candidates(probes):
        if all(_fits(rules, candidate, probe, facts) for probe in ordered):
            yield candidate


def _chunk(rules: Rules, contract: Contract, probe: Probe, at: int) -> int:
    left = probe.offset + probe.size - at
    return left if probe.single else rules.chunk(contract, left, at)


def _expected(
    rules: Rules, contract: Contract, probe: Probe, facts: AcceptsFacts
) -> Iterator[tuple[int, int, str | None]]:
    """(offset, size, refusal) of each line the probe should have left for this region."""
    at = probe.offset
    while at < min(probe.offset + probe.size, probe.stop):
        n = _chunk(rules, contract, probe, at)
        if facts.get((at, n, probe.is_write)) is False:
            yield at, n, "rejected"
        else:
            reason = rules.refusal(contract, at, n, probe.is_write)
            if reason is not None:
                yield at, n, reason.value
            else:
                for piece in rules.pieces(contract, n, False):
                    yield at + piece.delta, piece.size, None
        at += n


def _fits(rules: Rules, contract: Contract, probe: Probe, facts: AcceptsFacts) -> bool:
    count = 0
    for expected in _expected(rules, contract, probe, facts):
        if count >= len(probe.seen):
            return False
        seen = probe.seen[count]
        if (seen.offset, seen.size, seen.reason) != expected:
            return False
        count += 1
    return count == len(probe.seen)


def _accepted(probe: Probe) -> Iterator[tuple[tuple[int, int, bool], bool]]:
    """The dispatch that was surely accepted, of a device that vetoes others. The trace shows
    calls only, and a call may be a piece of a wider dispatch: nothing is sure but a probe that
    was one call."""
    if (
        len(probe.seen) == 1 and probe.seen[0].reason is None and not probe.crossing
    ):
        yield (probe.offset, probe.size, probe.is_write), True


# -- byte order ----------------------------------------------------------------------------


def _orders(
    rules: Rules, contract: Contract, probe: Probe, facts: AcceptsFacts
) -> Iterator[bool]:
    """Whether the device is big-endian, if this probe's values can tell."""
    if probe.crossing or probe.size == 1:
        return
    fits = []
    for big in (False, True):
        if probe.is_write:
            fits.append(_moved(rules, contract, probe, facts, big))
            continue
        data = _assemble(rules, contract, probe, facts, big)
        if data is None:
            return
        fits.append(probe.data == data)
    if fits[0] != fits[1]:
        yield fits[1]


def _assemble(
    rules: Rules, contract: Contract, probe: Probe, facts: AcceptsFacts, big: bool
) -> bytes | None:
    """The bytes the probe should have given if the device were of this byte order."""
    seen = iter(probe.seen)
    data = b""
    while len(data) < probe.size:
        at = probe.offset + len(data)
        n = _chunk(rules, contract, probe, at)
        refused = facts.get((at, n, False)) is False or rules.refusal(contract, at, n, False)
        value = 0
        if refused:
            next(seen, None)
        else:
            for piece in rules.pieces(contract, n, big):
                found = next(seen, None)
                if found is None:
                    return None
                part = found.value
                value |= part << piece.shift if piece.shift >= 0 else part >> -piece.shift
        value &= (1 << n * 8) - 1
        data += value.to_bytes(n, "big" if big else "little")
    return data


def _moved(
    rules: Rules, contract: Contract, probe: Probe, facts: AcceptsFacts, big: bool
) -> bool:
    """Whether the values passed to the device are those of a device of this byte order."""
    seen = iter(probe.seen)
    done = 0
    while done < probe.size:
        at = probe.offset + done
        n = _chunk(rules, contract, probe, at)
        if facts.get((at, n, True)) is False or rules.refusal(contract, at, n, True):
            next(seen, None)
        else:
            value = int.from_bytes(probe.data[done : done + n], "big" if big else "little")
            for piece in rules.pieces(contract, n, big):
                found = next(seen, None)
                part = value >> piece.shift if piece.shift >= 0 else value << -piece.shift
                if found is None or found.value != part & ((1 << piece.size * 8) - 1):
                    return False
        done += n
    return True
