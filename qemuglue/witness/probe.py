"""Find out a device region's contract by reading it in a QEMU that is thrown away afterwards.

For every region in view, a few windows of eight bytes are read at every start with every size
(written, for a ROM device in ROMD mode, whose reads never reach the device): ``probing`` asks,
``explaining`` finds the contract that explains the answers. Where the device was seen to refuse
by its own rule, ``vetoes`` asks all over the region which offsets it takes. Contracts that no
host-path access can tell apart (``valid_max`` 0 and 4, say) count as one.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from qemuglue.memory.region import MemoryRegion, RegionKind
from qemuglue.memory.rules import Rules, rules_for
from qemuglue.witness.explaining import Cache, closest, explain
from qemuglue.witness.probing import Ask, Place, Probe, ask, every_size, first_windows
from qemuglue.witness.session import Session
from qemuglue.witness.vetoes import learn_veto


def learn_missing(session: Session) -> list[str]:
    """Probe every region in view without a contract. The session is not clean afterwards.

    Returns what could not be learnt, a sentence each; those regions stay unjudged. A QEMU
    that dies is raised as it is, after the region was given up.
    """
    # The true rules, also where a planted defect is being judged: contracts are facts.
    rules = rules_for(session.config.build.version_tuple)
    failures: list[str] = []
    cache: Cache = {}
    for region in session.missing_contracts():
        place = Place.of(session, region)
        if place is None:
            continue
        probes = _observe(session, place, rules)
        learned = explain(rules, probes, cache)
        if learned is None:
            why = follows_none(rules, probes)
            session.knowledge.hopeless[session.contract_key(region)] = why
            session.give_up_on(region, why)
            failures.append(f"{region.name}: {why}")
            continue
        if learned.has_veto and not writes_only(place):
            asker = partial(_ask, session, place, rules=rules)
            learned.reads = learn_veto(place, learned.contract, asker)
        session.knowledge.contracts.put(session.contract_key(region), learned)
    return failures


def follows_none(rules: Rules, probes: list[Probe]) -> str:
    """Why no contract was found, as short as it can be said."""
    if not probes:
        return "nothing of it is in view"
    if not any(probe.seen for probe in probes):
        return ("no access to it leaves a line of its own: it hands them on to others "
                "(an IOMMU does)")
    _, wrong = closest(rules, probes)
    return (f"its accesses follow no contract this model knows ({len(wrong)} of {len(probes)} "
            f"differ from the closest, first: {wrong[0]})" if wrong else
            "its refusals name different limits")


def writes_only(place: Place) -> bool:
    """Whether reads never reach the device: a ROM device in ROMD mode."""
    return place.region.kind is RegionKind.ROM_DEVICE and place.main.romd


def _observe(session: Session, place: Place, rules: Rules) -> list[Probe]:
    asks = every_size(place, first_windows(place), is_write=writes_only(place))
    return _ask(session, place, asks, rules=rules)


def _ask(
    session: Session, place: Place, asks: Iterable[Ask], *, rules: Rules
) -> list[Probe]:
    answers = ask(session, place, asks, rules)
    if answers.ended is not None:
        _give_up(session, place.region, answers.ended)
        raise answers.ended
    return list(answers.probes)


def _give_up(session: Session, region: MemoryRegion, error: Exception) -> None:
    why = f"probing it ended with: {error}"
    session.knowledge.hopeless[session.contract_key(region)] = why
