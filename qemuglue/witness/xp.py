"""HMP ``xp`` as a witness: the one host-side read whose failure shows.

``xp /1xb|h|w|g ADDR`` is ``address_space_read`` on the first CPU's space (``memory_dump`` in
``monitor/hmp-cmds.c``) and prints ``Cannot access memory`` where the MemTxResult is not OK, so
it tells what a qtest reply hides. It really reads devices: the transcript shows the pieces, and
they are judged by the model as for any access.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from qemuglue.errors import ProtocolError
from qemuglue.memory.attrs import OK
from qemuglue.memory.flatview import FlatView, MemoryRegionSection
from qemuglue.memory.region import MASK64, MemoryRegion
from qemuglue.witness.account import Account
from qemuglue.witness.fastmap import kind_of
from qemuglue.witness.judging import MISTAKEN, MODE_CHANGED, mode_changed
from qemuglue.witness.session import Session
from qemuglue.witness.translation import describe
from qemuglue.witness.verdict import Kind

WITNESS = "xp"

#: Reads of one check: half a millisecond each.
MAX_READS = 600

#: Size in bytes -> xp's letter.
LETTERS = {1: "b", 2: "h", 4: "w", 8: "g"}

#: A device may have its say on the monitor between the address and the value, in whole lines.
_LINE = re.compile(
    r"([0-9a-fA-F]+):(?:[^\n]*\n)* (?:0x([0-9a-fA-F]{1,16})|(Cannot access memory))")


@dataclass(frozen=True, slots=True)
class Read:
    """``size`` bytes (1, 2, 4 or 8) from ``addr`` on, which may wrap at 2^64."""

    addr: int
    size: int


def parse_xp(text: str, read: Read) -> int | None:
    """The value, None for a failed read; ProtocolError for any other answer."""
    found = _LINE.fullmatch(text.strip())
    if found is None or int(found[1], 16) != read.addr:
        raise ProtocolError("not an answer to xp", channel="HMP", text=text[:200])
    if found[3]:
        return None
    value = int(found[2], 16)
    if value >> read.size * 8:
        raise ProtocolError(f"more than {read.size} bytes", channel="HMP", text=text[:200])
    return value


def check_xp(
    session: Session, rng: Random, *, limit: int = MAX_READS,
    avoid: Callable[[Read], str] = lambda read: "",
) -> Account:
    """Read a sample of all kinds of places and compare success, value and pieces.

    ``avoid`` gives the reason why a read must not be made, or "". Devices see the reads, so
    the session is not as it was. Raises what the monitor raises.
    """
    account = Account(WITNESS)
    session.evidence.lenient = True
    session.events()  # what came before is nobody's evidence
    for read in sample(session.mirror.memory.view, rng, limit):
        sections = touched(session.mirror.memory.view, read)
        why = _unjudgeable(session, sections) or avoid(read)
        if why:
            account.unjudged[why] += 1
            continue
        text = session.process.monitor.hmp(f"xp /1x{LETTERS[read.size]} {read.addr:#x}")
        account.compared += 1
        _judge(session, read, sections, parse_xp(text, read), account)
        evidence = session.evidence
        if evidence.replaced is not None:
            session.replaced(evidence.replaced)
            evidence.replaced = None
        if evidence.topology:
            session.refresh()
        if account.full:
            break
    return account


def sample(view: FlatView, rng: Random, limit: int) -> list[Read]:
    """At most ``limit`` reads: every kind of section by turns, each at its ends, across them
    and inside, in every size."""
    kinds: dict[Kind, list[MemoryRegionSection]] = {}
    for section in view.cover:
        kinds.setdefault(kind_of(section, ports=False), []).append(section)
    chosen: dict[Read, None] = {}
    rounds = 0
    while len(chosen) < limit and rounds < 2 * limit:
        for sections in kinds.values():
            section = rng.choice(sections)
            size = rng.choice((1, 2, 4, 8))
            chosen.setdefault(Read(_address(section, size, rng) & MASK64, size))
            rounds += 1
    return list(chosen)[:limit]


def _address(section: MemoryRegionSection, size: int, rng: Random) -> int:
    """Where a read of ``size`` bytes that has to do with the section starts."""
    inside = section.start + rng.randrange(section.size)
    return rng.choice((
        section.start, section.last + 1 - size, inside, inside & -size,
        section.start - rng.randrange(size), section.last + 1 - rng.randint(1, size),
        section.start + rng.randrange(min(section.size, 64)),
    ))


def touched(view: FlatView, read: Read) -> list[MemoryRegionSection]:
    """The sections the bytes lie in."""
    found: list[MemoryRegionSection] = []
    for addr in range(read.addr, read.addr + read.size):
        section = view.lookup(addr & MASK64)
        if not found or found[-1] is not section:
            found.append(section)
    return found


def _unjudgeable(session: Session, sections: Sequence[MemoryRegionSection]) -> str | None:
    for section in sections:
        why = session.unjudgeable(section.region)
        if why is not None:
            return why
    return None


def _judge(
    session: Session, read: Read, sections: Sequence[MemoryRegionSection], seen: int | None,
    account: Account,
) -> None:
    """The read on the model, its devices answering from the transcript of this very read."""
    evidence = session.evidence
    evidence.load(session.events())
    evidence.op_addr, evidence.op_size = read.addr, read.size
    evidence.targets = {section.region.name for section in sections}
    session.learnt_now = evidence.mistaken = False
    result, data = session.mirror.memory.read(read.addr, read.size)
    called = evidence.pos > 0
    if evidence.mismatch is None:
        evidence.finish()
    if evidence.replaced is not None:
        account.unjudged["a namesake took the region's place"] += 1
        return
    place = f"{describe(sections[0], read.addr)}, {read.size} bytes"
    felt = evidence.topology and mode_changed(sections)
    if evidence.mismatch is not None:
        if felt:
            account.unjudged[MODE_CHANGED] += 1
        else:
            account.differs(place, *evidence.mismatch.describe())
        return
    if evidence.mistaken:
        account.unjudged[MISTAKEN] += 1
        return
    if session.learnt_now:
        account.unjudged["first evidence of a contract"] += 1
        return
    if seen is None and result == OK and called:
        # A device may fail an access it was given; the transcript does not show that.
        account.unjudged["a device refused the access by its own result"] += 1
        return
    model = None if result != OK else session.face.value_of(data)
    if model == seen:
        return
    if felt:
        account.unjudged[MODE_CHANGED] += 1
        return
    both = model is not None and seen is not None
    if not (both and any(_order_unknown(session, section.region) for section in sections)):
        account.differs(place, _words(model, read), _words(seen, read))


def _order_unknown(session: Session, region: MemoryRegion) -> bool:
    """Whether nobody has seen yet which byte order the device has."""
    learned = session.knowledge.contracts.get(session.contract_key(region))
    return learned is not None and not learned.endian_known


def _words(value: int | None, read: Read) -> str:
    return "a failed read" if value is None else f"{value:#0{2 + 2 * read.size}x}"
