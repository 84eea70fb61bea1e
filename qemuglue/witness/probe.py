"""Find out a device region's contract by reading it in a QEMU that is thrown away afterwards.

For every region in view, a few windows of eight bytes are read at every start with every size
(written, for a ROM device in ROMD mode, whose reads never reach the device): ``probing`` asks,
``explaining`` finds the contract that explains the answers. Where the device was seen to refuse
by its own rule, ``vetoes`` asks all over the region which offsets it takes. Contracts that no
host-path access can tell apart (``valid_max`` 0 and 4, say) count as one.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

from qemuglue.errors import QemuFailure
from qemuglue.memory.region import MemoryRegion, RegionKind
from qemuglue.memory.rules import Rules, rules_for
from qemuglue.witness.explaining import Cache, closest, explain
from qemuglue.witness.probing import (
    Answers,
    Ask,
    Place,
    Probe,
    ask,
    every_size,
    first_windows,
)
from qemuglue.witness.session import Session
from qemuglue.witness.vetoes import learn_veto


def learn_missing(session: Session) -> list[str]:
    """Probe every region in view without a contract. The session is not clean afterwards.

    Returns what could not be learnt, a sentence each; those regions stay unjudged. A QEMU
    that dies is raised as it is: the next session leaves the place out where it died (the eight
    bytes around it), so a region costs as many QEMUs as it has windows, and is given up when
    none of them is left.
    """
    # The true rules, also where a planted defect is being judged: contracts are facts.
    rules = rules_for(session.config.build.version_tuple)
    failures: list[str] = []
    cache: Cache = {}
    for region in session.missing_contracts():
        place = Place.of(session, region)
        if place is None:
            continue
        key = session.contract_key(region)
        asks = _not_deadly(session, key, every_size(
            place, first_windows(place), is_write=writes_only(place)))
        answers = ask(session, place, asks, rules)
        if answers.ended is not None:
            _remember(session, key, asks, answers)
            raise answers.ended
        probes = list(answers.probes)
        ports = Place.as_ports(session, region) if rules.ports_single_dispatch else None
        if ports is not None and not place.ports:  # one dispatch tells more than pieces do
            inside = ports.main.offset + ports.main.size
            asks = _not_deadly(session, key, (
                one for one in every_size(ports, first_windows(ports), is_write=False)
                if one.offset + one.size <= inside))
            answers = ask(session, ports, asks, rules)
            probes += answers.probes
        learned = explain(rules, probes, cache)
        if learned is None:
            why = follows_none(rules, probes, region)
            session.knowledge.hopeless[key] = why
            session.give_up_on(region, why)
            failures.append(f"{region.name}: {why}")
            continue
        session.knowledge.contracts.put(key, learned)
        if answers.ended is not None:  # the ports of it did; the memory has told enough
            raise answers.ended
        if learned.has_veto and not writes_only(place):
            asker = _Asker(session, place, rules)
            learned.reads = learn_veto(place, learned.contract, asker)
            if asker.ended is not None:  # what is not known will be learnt on first evidence
                raise asker.ended
    return failures


def _not_deadly(session: Session, key: Hashable, asks: Iterable[Ask]) -> list[Ask]:
    """Without those where an earlier QEMU ended."""
    deadly = session.knowledge.deadly.get(key, frozenset())
    return [one for one in asks if one.offset >> 3 not in deadly]


def _remember(session: Session, key: Hashable, asks: Sequence[Ask], answers: Answers) -> None:
    """The place that ended QEMU; without it there may be nothing left to ask."""
    culprit = answers.culprit
    if culprit is not None:
        known = session.knowledge.deadly.get(key, frozenset())
        session.knowledge.deadly[key] = known | {culprit.offset >> 3}
    if culprit is None or not _not_deadly(session, key, asks):
        session.knowledge.hopeless[key] = f"probing it ended with: {answers.ended}"


#: How the reason begins where the model's rules are at their end: a defect of them, or QEMU
#: does not what its rules are.
NO_CONTRACT = "its accesses follow no contract this model knows"

#: What the model says instead, for people.
A_CONTRACT = ("sizes and alignments that are accepted, and calls of sizes that the device "
              "implements (R1, R3, R6)")


def follows_none(rules: Rules, probes: list[Probe], region: MemoryRegion | None) -> str:
    """Why no contract was found, as short as it can be said."""
    if not probes:
        return "nothing of it is in view"
    if region is not None and region.kind is RegionKind.RAM_DEVICE:
        return "it is memory behind callbacks of QEMU's own, which are not followed"
    if region is not None and _nests_namesake(region):
        return "it has a namesake inside or around it, and QEMU's texts do not tell them apart"
    if not any(probe.seen for probe in probes):
        return ("no access to it leaves a line of its own: it hands them on to others "
                "(an IOMMU does)")
    _, wrong = closest(rules, probes)
    return (f"{NO_CONTRACT} ({len(wrong)} of {len(probes)} "
            f"differ from the closest, first: {wrong[0]})" if wrong else
            f"{NO_CONTRACT}: its refusals name different limits")


def _nests_namesake(region: MemoryRegion) -> bool:
    around = region.container
    near = [*region.subregions, *([] if around is None else [around])]
    return any(each.name == region.name for each in near)


def writes_only(place: Place) -> bool:
    """Whether reads never reach the device: a ROM device in ROMD mode."""
    return place.region.kind is RegionKind.ROM_DEVICE and place.main.romd


class _Asker:
    """Makes accesses until QEMU ends; then there are no more answers."""

    def __init__(self, session: Session, place: Place, rules: Rules) -> None:
        self.ended: QemuFailure | None = None
        self._session = session
        self._place = place
        self._rules = rules

    def __call__(self, asks: list[Ask]) -> tuple[Probe, ...]:
        if self.ended is not None:
            return ()
        answers = ask(self._session, self._place, asks, self._rules)
        self.ended = answers.ended
        return answers.probes
