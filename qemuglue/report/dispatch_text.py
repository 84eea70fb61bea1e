"""Where an address leads and what becomes of an access there, from the model and in words.

Nothing here decides anything: sections come from the view, cuts and refusals from ``Rules``
(R1, R3, R6, R7, R9). An access is the host's: ``address_space_read`` and ``_write``, and for
ports ``inb`` and its kin. Without a device's contract only its address can be told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qemuglue.memory import AddressSpace, Contract, MemoryRegion, RegionKind
from qemuglue.memory.attrs import UNSPECIFIED
from qemuglue.memory.contract import UNASSIGNED_CONTRACT, Endian
from qemuglue.memory.region import MASK64
from qemuglue.memory.rules import Rules
from qemuglue.mirror import type_of
from qemuglue.witness.contract_table import Accepts, ContractRow, ContractTable, veto_words
from qemuglue.witness.fastmap import is_io_root

#: The sizes a CPU or qtest has verbs for; ports have none of 8.
SIZES = (1, 2, 4, 8)
PORT_SIZES = (1, 2, 4)
#: RAM that is shown through something read-only. Who asks the region (R9) may write to it.
READ_ONLY = "read-only ram"
#: Bytes of an access that is explained; longer ones are more of the same.
MAX_SIZE = 4096

_ORDERS = {Endian.LITTLE: "little-endian", Endian.BIG: "big-endian",
           Endian.NATIVE: "byte order not seen"}
#: What accesses to memory come to, by the type of what answers.
MEMORY_WORDS = {
    "ram": "memory",
    "rom": "memory, writes are refused",
    READ_ONLY: "memory, read-only for a CPU; other writes reach it",
}

#: QEMU's ``ram_device_mem_ops`` and ``unassigned_io_ops``: known without asking a device.
_RAM_DEVICE = Contract(1, 8, True, 1, 8, True, Endian.LITTLE)
_IO_ROOT = Contract()


@dataclass(frozen=True, slots=True)
class Step:
    """One dispatch: ``size`` bytes at ``address``, ``offset`` in ``region`` (None: nobody's).

    ``what`` is ``copied`` (memory, no device is called), ``called`` with the sizes of its
    ``pieces``, ``ones`` (an unclaimed port reads all-ones and drops writes), ``refused`` for
    ``reason``, or ``unknown`` where the contract is not known: the rest of the access then.
    """

    address: int
    size: int
    region: MemoryRegion | None
    offset: int
    what: str
    pieces: tuple[int, ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        if self.what == "called":
            if len(self.pieces) == 1 and self.pieces[0] > self.size:
                return f"{self.size} as {self.pieces[0]}"
            return "+".join(map(str, self.pieces))
        if self.what == "refused":
            return f"refused ({self.reason})"
        return {"copied": "copied", "ones": "all ones", "unknown": "?"}[self.what]


@dataclass(frozen=True, slots=True)
class Direction:
    """The contract of reads, or of writes. ``contract`` is None where it is not known, and then
    ``unknown`` says why; ``accepts`` is the device's own veto."""

    contract: Contract | None
    accepts: Accepts | None = None
    unknown: str = ""


class Contracts:
    """What is known of the contracts of a machine's regions. Without a ``table`` that is what
    needs no asking: memory, and ports that nobody claims."""

    def __init__(self, table: ContractTable | None = None) -> None:
        self.probed = table is not None
        self._rows: dict[str, ContractRow] = {}
        if table is not None:
            self._rows = {row.region: row for row in table.rows}

    def of(self, region: MemoryRegion, is_write: bool) -> Direction:
        """The contract of a region that is no alias."""
        row = self._rows.get(str(region.key)) if region.key is not None else None
        if row is not None:
            access, other = (row.writes, row.reads) if is_write else (row.reads, row.writes)
            # QEMU has one declaration for both directions; only the veto sees which it is.
            sizes = access.sizes or other.sizes
            if sizes is not None:
                order = {"little": Endian.LITTLE, "big": Endian.BIG}.get(
                    access.order or other.order, Endian.NATIVE)
                return Direction(sizes.contract(order), access.accepts)
        if region.kind in (RegionKind.RAM, RegionKind.ROM, RegionKind.RESERVATION):
            return Direction(UNASSIGNED_CONTRACT)
        if region.kind is RegionKind.RAM_DEVICE:
            return Direction(_RAM_DEVICE)
        if is_io_root(region):
            return Direction(_IO_ROOT)
        if row is not None:
            return Direction(None, unknown=row.reads.unknown or row.writes.unknown)
        return Direction(None, unknown="not asked" if self.probed else "not probed")


def outcome(
    rules: Rules, known: Contract, accepts: Accepts | None, offset: int, size: int,
    is_write: bool,
) -> tuple[tuple[int, ...], str]:
    """(sizes of the calls, reason of a refusal) of one dispatch to a device (R1, R3). Of two
    halves the order depends on who is big-endian, their sizes do not."""
    if accepts is not None and not accepts(offset, size):
        return (), "rejected"
    reason = rules.refusal(known, offset, size, is_write)
    if reason is not None:
        return (), reason.value
    return tuple(piece.size for piece in rules.pieces(known, size, False)), ""


def walk(
    space: AddressSpace, addr: int, size: int, is_write: bool, contracts: Contracts, *,
    ports: bool = False,
) -> list[Step]:
    """The dispatches of one access (``flatview_read_continue``, ``flatview_write_continue``).
    ``ports``: the space is entered by ``in`` and ``out``, which some versions never cut."""
    rules, view = space.rules, space.view
    single = ports and rules.ports_single_dispatch
    steps: list[Step] = []
    done = 0
    while done < size:
        here = (addr + done) & MASK64
        section, offset, n = space.translate_in(view, here, size - done, is_write, UNSPECIFIED)
        region = section.region
        shown = region if section.assigned else None
        direct = rules.direct_write(region, UNSPECIFIED) if is_write else rules.direct_read(region)
        if direct:
            if not region.is_ram:  # R7 clamps RAM only: a ROM device ends where its memory does
                n = min(n, region.size - offset)
            steps.append(Step(here, n, shown, offset, "copied"))
            done += n
            continue
        known = contracts.of(region, is_write)
        if known.contract is None:
            steps.append(Step(here, size - done, shown, offset, "unknown"))
            break
        n = size - done if single else rules.chunk(known.contract, n, offset)
        pieces, reason = outcome(rules, known.contract, known.accepts, offset, n, is_write)
        if ports and is_io_root(region):
            steps.append(Step(here, n, shown, offset, "ones"))
        elif reason:
            steps.append(Step(here, n, shown, offset, "refused", (), reason))
        else:
            steps.append(Step(here, n, shown, offset, "called", pieces))
        done += n
    return steps


def in_words(steps: Sequence[Step]) -> str:
    """``4+4``, ``copied``, ``2, then refused (unaligned)``; another region is named."""
    words: list[str] = []
    before = steps[0].region if steps else None
    for step in steps:
        name = ""
        if step.region is not before:
            name = f" by {name_of(step.region)}"
            before = step.region
        words.append(f"{step}{name}")
    joined = words[0] if words else "nothing"
    for step, one, word in zip(steps, steps[1:], words[1:], strict=False):
        if one.what == step.what == "called" and one.region is step.region:
            joined += f"+{word}"
        elif word == str(step) and one.what != "called":
            continue  # the same again: said once
        else:
            joined += f", then {word}"
    return joined


def kind_of(region: MemoryRegion, readonly: bool) -> str:
    """The type of what answers, ``READ_ONLY`` told from ROM."""
    if readonly and region.kind is RegionKind.RAM and not region.readonly:
        return READ_ONLY
    return type_of(region)


def name_of(region: MemoryRegion | None) -> str:
    """A region's name, ``nothing`` for a hole, ``unnamed`` where QEMU gave none."""
    return "nothing" if region is None else region.name or "unnamed"


def manner(steps_by_size: Sequence[Sequence[Step]], kind: str) -> str:
    """How accesses at one address are done, for the first line: ``4-byte pieces``. ``kind`` is
    the type of what answers as a map names it, "" for nobody; only accesses that are accepted
    as a whole and stay with it count."""
    if not kind:
        return "nothing answers"
    if kind in MEMORY_WORDS:
        return MEMORY_WORDS[kind]
    first = steps_by_size[0][0]
    if first.what == "copied":
        return "reads are memory, writes go to the device"
    if first.what == "ones":
        return "no port here: reads all ones"
    if first.what == "unknown":
        return "a device, its pieces not probed"
    sizes = sorted({
        size
        for steps in steps_by_size
        if all(step.what == "called" and step.region is first.region for step in steps)
        for step in steps for size in step.pieces
    })
    if not sizes:
        reason = next((step.reason for steps in steps_by_size for step in steps if step.reason), "")
        return f"every access is refused ({reason})"
    if len(sizes) == 1:
        return f"{sizes[0]}-byte pieces"
    return f"pieces of {sizes[0]} to {sizes[-1]} bytes"


def described(contract: Contract) -> str:
    """A contract in words: ``takes 1 to 4 bytes, aligned; 4-byte pieces; little-endian``.
    What no access of the host's path can tell apart reads the same."""
    least, most = contract.valid_min or 1, contract.valid_max
    if contract is UNASSIGNED_CONTRACT:
        return "refuses every access"
    takes = "any size" if not most else f"{least} bytes" if least == most else (
        f"{least} to {most} bytes")
    low, high = contract.impl_min or 1, contract.impl_max or 4
    sizes = {max(min(size, high), low) for size in SIZES if least <= size <= (most or 8)} or {low}
    low, high = min(sizes), max(sizes)
    pieces = f"{low}-byte pieces" if low == high else f"pieces of {low} to {high} bytes"
    return (f"takes {takes}, {'unaligned too' if contract.valid_unaligned else 'aligned'}; "
            f"{pieces}; {_ORDERS[contract.endian]}")


def table(rules: Rules, contract: Contract, *, single: bool = False) -> list[list[list[Step]]]:
    """Accesses of 1, 2, 4 and 8 bytes (rows) at offsets 0 to 7 modulo 8 (columns), each as its
    dispatches (of no region); for an access that stays in the region and meets no veto of the
    device's own. More than the low three bits of an offset cannot matter to accesses of up to
    8 bytes."""
    return [
        [_cut(rules, contract, offset, size, single) for offset in range(8)] for size in SIZES
    ]


def _cut(rules: Rules, contract: Contract, offset: int, size: int, single: bool) -> list[Step]:
    steps: list[Step] = []
    done = 0
    while done < size:
        at = offset + done
        n = size - done if single else rules.chunk(contract, size - done, at)
        pieces, reason = outcome(rules, contract, None, at, n, False)
        steps.append(Step(at, n, None, at, "refused" if reason else "called", pieces, reason))
        done += n
    return steps


def offset_text(offset: int) -> str:
    """Hexadecimal, without a prefix where both notations are the same."""
    return str(offset) if offset < 10 else f"{offset:#x}"


def contract_document(contracts: Contracts, region: MemoryRegion) -> dict[str, object]:
    """What is known of a region's contract as plain data, for each direction."""
    told: dict[str, object] = {}
    for name, is_write in (("reads", False), ("writes", True)):
        known = contracts.of(region, is_write)
        contract = known.contract
        if contract is None:
            told[name] = {"unknown": known.unknown}
            continue
        told[name] = {
            "text": described(contract), "valid_min": contract.valid_min,
            "valid_max": contract.valid_max, "unaligned": contract.valid_unaligned,
            "impl_min": contract.impl_min, "impl_max": contract.impl_max,
            "endian": contract.endian.value,
            "accepts": None if known.accepts is None else veto_words(known.accepts),
        }
    return told
