"""One address explained: who answers there, how it is accessed, and what lies beneath.

``0xfed00004 -> hpet + 4, 4-byte pieces`` and what stands behind that line, as text and as JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qemuglue.errors import UsageError
from qemuglue.memory import AddressSpace, MemoryRegionSection
from qemuglue.memory.region import MASK64
from qemuglue.mirror.shadow import Claim, claims
from qemuglue.mirror.views import owner_of
from qemuglue.report.dispatch_text import (
    MAX_SIZE,
    PORT_SIZES,
    SIZES,
    Contracts,
    Step,
    described,
    in_words,
    kind_of,
    manner,
    name_of,
    offset_text,
    walk,
)
from qemuglue.witness.contract_table import veto_words

#: Other spaces whose answer is told beside.
MAX_ELSEWHERE = 8

_DIRECTIONS = {"read": (False,), "write": (True,)}


@dataclass(frozen=True, slots=True)
class Question:
    """``A[,SIZE][,read|write]`` as it was asked. ``place`` is a number, or NAME or NAME+OFFSET
    where ``address`` is None; ``space`` is "" where none was named."""

    place: str
    address: int | None
    size: int | None
    writes: tuple[bool, ...]

    @property
    def sizes(self) -> tuple[int, ...] | None:
        return None if self.size is None else (self.size,)


def question(text: str) -> Question:
    """Read ``A[,SIZE][,read|write]``. Raises UsageError."""
    place, *rest = [word.strip() for word in text.split(",")]
    writes: tuple[bool, ...] | None = None
    size: int | None = None
    for word in rest:
        number = number_of(word)
        if word in _DIRECTIONS and writes is None:
            writes = _DIRECTIONS[word]
        elif number is not None and size is None and writes is None:
            size = number
        else:
            raise UsageError(f"{text!r}: {word!r} is no size and neither read nor write; "
                             "write ADDRESS[,SIZE][,read|write]")
    if size is not None and not 1 <= size <= MAX_SIZE:
        raise UsageError(f"{text!r}: an access of 1 to {MAX_SIZE} bytes can be explained")
    address = number_of(place)
    if address is not None and address > MASK64:
        raise UsageError(f"{text!r}: addresses end at {MASK64:#x}")
    if not place:
        raise UsageError(f"{text!r} has no address; write ADDRESS[,SIZE][,read|write]")
    return Question(place, address, size, writes or (False, True))


def number_of(text: str) -> int | None:
    """A number as programs write them, 0x1f or 31; None for anything else."""
    try:
        return int(text, 16) if text.lower().startswith("0x") else int(text, 10)
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class Access:
    """One access and its dispatches."""

    size: int
    is_write: bool
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is at ``address`` of ``space``. ``here`` are the claims over it, topmost first, pure
    containers included; ``names`` the spaces that show this view."""

    names: tuple[str, ...]
    address: int
    section: MemoryRegionSection
    here: tuple[Claim, ...]
    accesses: tuple[Access, ...]
    contract: str
    headline: str

    @property
    def top(self) -> Claim | None:
        return next((claim for claim in self.here if claim.answers), None)

    @property
    def beneath(self) -> tuple[Claim, ...]:
        """What would answer if the one on top did not."""
        return tuple(claim for claim in self.here if claim.answers)[1:]

    @property
    def containers(self) -> tuple[Claim, ...]:
        return tuple(claim for claim in self.here if not claim.answers)

    def offset(self, claim: Claim) -> int:
        """Where in a claim's region the address leads."""
        return claim.offset + self.address - claim.start


def explain(
    space: AddressSpace, names: Sequence[str], asked: Question, address: int,
    contracts: Contracts, *, ports: bool = False,
) -> Explanation:
    """Explain ``address`` of ``space`` from the model alone."""
    section = space.view.lookup(address)
    sizes = asked.sizes or (PORT_SIZES if ports else SIZES)
    accesses = tuple(
        Access(size, is_write, tuple(walk(space, address, size, is_write, contracts, ports=ports)))
        for is_write in asked.writes for size in sizes
    )
    here = tuple(claim for claim in claims(space.view.root)
                 if claim.start <= address <= claim.last)
    return Explanation(
        tuple(names), address, section, here, accesses, _contract(section, contracts),
        headline(space, address, contracts, ports=ports, sizes=sizes),
    )


def headline(
    space: AddressSpace, address: int, contracts: Contracts, *, ports: bool = False,
    sizes: Sequence[int] = SIZES,
) -> str:
    """``0xfed00004 -> hpet + 4, 4-byte pieces``."""
    section = space.view.lookup(address)
    if not section.assigned:
        return f"{address:#x} -> nothing answers"
    steps = [walk(space, address, size, False, contracts, ports=ports) for size in sizes]
    offset = section.offset + address - section.start
    how = manner(steps, kind_of(section.region, section.readonly))
    return f"{address:#x} -> {name_of(section.region)} + {offset_text(offset)}, {how}"


def _contract(section: MemoryRegionSection, contracts: Contracts) -> str:
    kind = kind_of(section.region, section.readonly)
    if not section.assigned or section.region.is_ram:
        return ""
    known = contracts.of(section.region, kind == "romd")
    if known.contract is None:
        return known.unknown if contracts.probed else "not probed (--contracts asks the device)"
    veto = f"; {veto_words(known.accepts)}" if known.accepts is not None else ""
    return described(known.contract) + veto


def locate(place: str, spaces: Sequence[AddressSpace]) -> tuple[AddressSpace, int]:
    """Where NAME or NAME+OFFSET is seen first in ``spaces``. Raises UsageError."""
    name, sign, rest = place.rpartition("+")
    offset = number_of(rest.strip()) if sign else None
    for wanted, at in ((place, 0), (name.strip(), offset)):
        if at is None:
            continue
        for space in spaces:
            for section in space.view.sections:
                if section.region.name == wanted and (
                    section.offset <= at < section.offset + section.size or wanted == place
                ):
                    inside = max(at - section.offset, 0)
                    return space, section.start + inside
    raise UsageError(f"nothing here shows {place!r}; give an address such as 0xfed00004, or a "
                     "region's name with +OFFSET (`qemuglue map MACHINE` lists them)")


# Section: text and JSON


def lines(found: Explanation) -> list[str]:
    """The explanation for people, the headline first."""
    section = found.section
    said = [found.headline]

    def add(word: str, rest: str) -> None:
        said.append(f"  {word:<9} {rest}")

    kind = kind_of(section.region, section.readonly)
    where = f"{', '.join(dict.fromkeys(found.names))}: {section.start:#x} to {section.last:#x}"
    if section.assigned:
        where += f", {kind}"
        if owner_of(section.region):
            where += f", {owner_of(section.region)}"
    add("in", where)
    if found.top is not None and found.top.aliases:
        add("seen by", "alias " + ", then ".join(alias.name for alias in found.top.aliases))
    said += _accesses(found)
    if found.contract:
        add("contract", found.contract)
    for claim in found.beneath:
        add("beneath", f"{name_of(claim.region)} + {offset_text(found.offset(claim))}")
    if found.containers:
        add("inside", ", ".join(f"{name_of(claim.region)} + {offset_text(found.offset(claim))}"
                                for claim in found.containers))
    return said


def _accesses(found: Explanation) -> list[str]:
    """Reads beside writes, a line for each size."""
    columns = {
        is_write: {access.size: in_words(access.steps)
                   for access in found.accesses if access.is_write == is_write}
        for is_write in (False, True)
    }
    sizes = sorted({access.size for access in found.accesses})
    wide = max([len(words) for words in columns[False].values()], default=0) + 3
    if all(len(set(column.values())) <= 1 for column in columns.values()) and len(sizes) > 1:
        said = [f"{verb} {next(iter(column.values()))}"
                for verb, column in (("reads", columns[False]), ("writes", columns[True]))
                if column]
        return [f"  {'access':<9} {', '.join(said)}"]
    both = bool(columns[False] and columns[True])
    return [
        f"  {f'{size} byte' + 's' * (size != 1):<9} "
        + (f"read {columns[False][size]:<{wide if both else 0}}" if columns[False] else "")
        + (f"write {columns[True][size]}" if columns[True] else "")
        for size in sizes
    ]


def document(found: Explanation) -> dict[str, Any]:
    """The explanation as plain data; addresses and offsets are hexadecimal texts."""
    section, top = found.section, found.top
    return {
        "address": f"{found.address:#x}", "spaces": list(dict.fromkeys(found.names)),
        "text": found.headline,
        "start": f"{section.start:#x}", "last": f"{section.last:#x}",
        "region": section.region.name if section.assigned else None,
        "offset": None if top is None else f"{found.offset(top):#x}",
        "type": kind_of(section.region, section.readonly) if section.assigned else None,
        "owner": owner_of(section.region) if section.assigned else None,
        "aliases": [] if top is None else [alias.name for alias in top.aliases],
        "contract": found.contract or None,
        "accesses": [
            {
                "size": access.size, "write": access.is_write, "text": in_words(access.steps),
                "dispatches": [
                    {
                        "address": f"{step.address:#x}", "size": step.size,
                        "region": None if step.region is None else step.region.name,
                        "offset": f"{step.offset:#x}", "what": step.what,
                        "pieces": list(step.pieces), "reason": step.reason or None,
                    }
                    for step in access.steps
                ],
            }
            for access in found.accesses
        ],
        "beneath": [{"region": claim.region.name, "offset": f"{found.offset(claim):#x}"}
                    for claim in found.beneath],
        "containers": [{"region": claim.region.name, "offset": f"{found.offset(claim):#x}"}
                       for claim in found.containers],
    }
