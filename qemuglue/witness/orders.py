"""The byte order of devices whose registers all read the same backwards, by one write.

Most registers of a board that has just been switched on are zero, and zero has no byte order.
What QEMU passes to a device of a write shows it, so in a QEMU that is thrown away afterwards
each such region is written once or twice. It is done where the CPU is big-endian: there a device
with an order of its own is the rule, and an order learnt only from the accesses that are judged
could not show the model to be wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from qemuglue.memory.region import MemoryRegion
from qemuglue.memory.rules import rules_for
from qemuglue.witness.explaining import byte_order, telling, vetoes
from qemuglue.witness.probing import Ask, Place, ask
from qemuglue.witness.session import Session

#: What is written: no two bytes are equal, and in no order are they a large number.
VALUES = {2: 0x0001, 4: 0x00010203, 8: 0x0001020304050607}


def unknown_orders(session: Session) -> Iterator[MemoryRegion]:
    """Regions whose byte order is still to be seen, and which may be written for it."""
    knowledge = session.knowledge
    for region in session.device_regions():
        key = session.contract_key(region)
        learned = knowledge.contracts.get(key)
        if (
            learned is not None and not learned.endian_known and key not in knowledge.written
            and region.size > 1 and not knowledge.barriers.always(region)
            and session.unjudgeable(region) is None
        ):
            yield region


def learn_orders(session: Session) -> bool:
    """Write what is to be written, until the map changes or QEMU ends; whether more is left.

    The session is of no further use. No region is written in a second session.
    """
    # The true rules, also where a planted defect is being judged: contracts are facts.
    rules = rules_for(session.config.build.version_tuple)
    knowledge = session.knowledge
    for region in list(unknown_orders(session)):
        key = session.contract_key(region)
        knowledge.written.add(key)
        place = Place.of(session, region)
        if place is None:
            continue
        first = -(-place.main.offset // 8) * 8
        sizes = [size for size in place.verbs if 1 < size <= place.main.size]
        asks = [Ask(first, size, True, VALUES[size]) for size in sizes]
        answers = ask(session, place, asks, rules, map_matters=True)
        learned = knowledge.contracts.get(key)
        assert learned is not None
        probes = telling(answers.probes)
        order = byte_order(rules, learned.contract, probes, vetoes(probes))
        if order is not None:
            learned.contract = replace(learned.contract, endian=order)
            learned.endian_known = True
        if answers.culprit is not None or answers.ended is not None:
            return any(True for _ in unknown_orders(session))
    return False
