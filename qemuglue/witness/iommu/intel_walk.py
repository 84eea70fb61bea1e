"""Root table, context table and second-level tables of QEMU's intel-iommu, legacy mode.

A walk gives an entry, or a :class:`Fault` with the reason that QEMU records. Source:
``vtd_dev_to_context_entry`` and ``vtd_iova_to_slpte`` in ``hw/i386/intel_iommu.c``; the masks are
those of ``intel_iommu_internal.h``.
"""

from __future__ import annotations

from dataclasses import dataclass

from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.region import MASK64
from qemuglue.witness.iommu.tables import PAGE, bits, word, words

#: Addresses that are interrupts; nothing may be translated into them.
INTERRUPTS = range(0xFEE0_0000, 0xFEF0_0000)

#: Fault reasons (``VTDFaultReason``).
NO_ROOT, NO_CONTEXT, BAD_CONTEXT, BEYOND_WIDTH, NO_WRITE, NO_READ = 1, 2, 3, 4, 5, 6
BAD_ENTRY, BAD_ROOT_TABLE, BAD_CONTEXT_TABLE, ROOT_RESERVED, CONTEXT_RESERVED = 7, 8, 9, 10, 11
ENTRY_RESERVED, INTO_INTERRUPTS, SM_INTO_INTERRUPTS = 12, 0xE, 0x87

#: Faults that a context entry can silence; all others are always recorded
#: (``vtd_qualified_faults``). 7.2 to 10.0 name CONTEXT_ENTRY_RSVD in no line of that table.
QUALIFIED = frozenset({
    NO_CONTEXT, BAD_CONTEXT, BEYOND_WIDTH, NO_WRITE, NO_READ, BAD_ENTRY, ENTRY_RESERVED,
    INTO_INTERRUPTS, SM_INTO_INTERRUPTS,
})

PRESENT, FPD = 1, 2
#: Translation types of a context entry.
MULTI_LEVEL, DEVICE_TLB, PASS_THROUGH = 0, 1, 2

READ, WRITE, LARGE, SNOOP, TRANSIENT = 1, 2, 1 << 7, 1 << 11, 1 << 62
#: Bits that an entry may have and QEMU ignores.
_IGNORED = 0xBFF0_0000_0000_0000


@dataclass(frozen=True, slots=True)
class Fault:
    """The translation ends with this reason; ``silenced`` if a context entry asks for that."""

    reason: int
    silenced: bool = False


@dataclass(frozen=True, slots=True)
class Features:
    """What the command line decides: properties of ``-device intel-iommu``."""

    width: int = 39
    pass_through: bool = True
    device_tlb: bool = False
    snoop: bool = False
    #: Whether bit 62 of a page's entry may be set.
    transient: bool = False
    scalable: bool = False
    translation: bool = True

    @property
    def address_mask(self) -> int:
        return (1 << self.width) - 1

    def has_level(self, level: int) -> bool:
        """Whether tables of so many levels are supported (``vtd_is_sl_level_supported``)."""
        return self.translation and (level == 3 or (level == 4 and self.width >= 48))


@dataclass(frozen=True, slots=True)
class Context:
    """A context entry."""

    low: int
    high: int

    @property
    def type(self) -> int:
        return bits(self.low, 2, 2)

    @property
    def silences(self) -> bool:
        return bool(self.low & FPD)

    @property
    def levels(self) -> int:
        return 2 + (self.high & 7)

    @property
    def domain(self) -> int:
        return bits(self.high, 8, 16)

    @property
    def table(self) -> int:
        return self.low & -PAGE & MASK64


@dataclass(frozen=True, slots=True)
class Leaf:
    """The last entry of a walk, and what all entries on the way allow."""

    entry: int
    level: int
    reads: bool
    writes: bool

    @property
    def mask(self) -> int:
        """The low bits of its page."""
        return page_mask(self.level)


def page_mask(level: int) -> int:
    """The low bits of a page that an entry of this level stands for."""
    return (1 << 12 + 9 * (level - 1)) - 1


def find_context(
    memory: AddressSpace, root: int, requester: int, features: Features
) -> Context | Fault:
    """The context entry of a requester (``vtd_dev_to_context_entry``)."""
    width = ~features.address_mask & MASK64
    pair = words(memory, root + 16 * (requester >> 8), 2)
    if pair is None:
        return Fault(BAD_ROOT_TABLE)
    low, high = pair
    if not low & PRESENT:
        return Fault(NO_ROOT)
    if high or low & (0xFFE | width):
        return Fault(ROOT_RESERVED)
    pair = words(memory, (low & -PAGE) + 16 * (requester & 0xFF), 2)
    if pair is None:
        return Fault(BAD_CONTEXT_TABLE)
    context = Context(*pair)
    silenced = context.silences
    if not context.low & PRESENT:
        return Fault(NO_CONTEXT, silenced)
    if context.high & 0xFFFF_FFFF_FF00_0080 or context.low & (0xFF0 | width):
        return Fault(CONTEXT_RESERVED, silenced)
    known = {MULTI_LEVEL: True, DEVICE_TLB: features.device_tlb,
             PASS_THROUGH: features.pass_through}
    if not features.has_level(context.levels) or not known.get(context.type, False):
        return Fault(BAD_CONTEXT, silenced)
    return context


def reserved(entry: int, level: int, features: Features) -> int:
    """The bits of an entry that must be zero and are not (``vtd_slpte_nonzero_rsvd``)."""
    mask = 0x800 | ~(features.address_mask | _IGNORED) & MASK64
    page = level == 1
    if level == 4:
        mask |= LARGE
    elif level > 1 and entry & LARGE:
        mask |= page_mask(level) & ~0x7FF
        page = True
    if page and features.transient:
        mask &= ~TRANSIENT
    if page and (features.snoop or features.scalable):
        mask &= ~SNOOP
    return entry & mask


def walk(
    memory: AddressSpace, context: Context, addr: int, is_write: bool, features: Features
) -> Leaf | Fault:
    """The second-level tables, from the context entry down (``vtd_iova_to_slpte``)."""
    limit = min(30 + 9 * (context.high & 7), features.width)
    if addr >> limit:
        return Fault(BEYOND_WIDTH)
    table, level = context.table, context.levels
    reads = writes = True
    while True:
        entry = word(memory, table + 8 * bits(addr, 12 + 9 * (level - 1), 9))
        if entry is None or entry == MASK64:  # what QEMU takes for a failed read
            return Fault(BAD_CONTEXT if level == context.levels else BAD_ENTRY)
        reads, writes = reads and bool(entry & READ), writes and bool(entry & WRITE)
        if not entry & (WRITE if is_write else READ):
            return Fault(NO_WRITE if is_write else NO_READ)
        if reserved(entry, level, features):
            return Fault(ENTRY_RESERVED)
        if level == 1 or entry & LARGE:
            leaf = Leaf(entry, level, reads, writes)
            break
        table, level = entry & -PAGE & features.address_mask, level - 1
    start = leaf.entry & -PAGE & features.address_mask
    if start < INTERRUPTS.stop and start + leaf.mask >= INTERRUPTS.start:
        return Fault(SM_INTO_INTERRUPTS if features.scalable else INTO_INTERRUPTS)
    return leaf
