"""Stream table entries and context descriptors of QEMU's SMMUv3, and what versions differ in.

Source: ``smmu_find_ste``, ``decode_ste``, ``decode_ste_s2_cfg`` and ``decode_cd`` in
``hw/arm/smmuv3.c`` of 7.2 and 10.0; the fields are those of ``smmuv3-internal.h``. Everything is
little-endian.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from qemuglue.witness.iommu.tables import bits

#: Event types (``SMMUEventType``).
BAD_STREAM, STE_FETCH, BAD_STE, CD_FETCH, BAD_CD, WALK_ABORT = 2, 3, 4, 9, 10, 11
TRANSLATION, ADDRESS_SIZE, ACCESS, PERMISSION = 0x10, 0x11, 0x12, 0x13

#: Address bits of tables and queues.
BASE_MASK = 0xF_FFFF_FFFF_FFC0

#: Bits of a stream id that the table can have (``SMMU_IDR1_SIDSIZE``).
STREAM_BITS = 16

#: Output address bits, by the field that says so; QEMU has 44 (``SMMU_IDR5_OAS``).
_SIZES = (32, 36, 40, 42, 44, 48)
OUTPUT_BITS = 44

STAGE_1, STAGE_2, NESTED = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Features:
    """What a version has. ``old`` is the code of before stage 2 (7.2): no access flag, no check
    of the output's size, no word on the class of a fault, an upper range that is told by zeros,
    and no GBPA register."""

    stage1: bool = True
    stage2: bool = False
    old: bool = False
    #: The low bits of the machine's smallest page.
    page_mask: int = 0xFFF


@dataclass(frozen=True, slots=True)
class Event:
    """Something that goes into the event queue. ``addr`` and ``addr2`` as the record has them;
    ``walk`` for those of a table walk, which tell the device's address and whether what was
    refused ``reads``."""

    type: int
    addr2: int = 0
    addr: int = 0
    walk: bool = False
    reads: bool = False
    fault_class: int = 0
    stage2: bool = False


@dataclass(frozen=True, slots=True)
class Tables:
    """One of the two ranges of stage 1; ``size`` is TSZ and 0 where the range is disabled."""

    disabled: bool = True
    base: int = 0
    size: int = 0
    granule: int = 0
    #: Whether the tables' own permissions are ignored.
    flat: bool = False


@dataclass(frozen=True, slots=True)
class Stage2:
    """The second stage of a stream."""

    vmid: int = -1
    size: int = 0
    start: int = 0
    granule: int = 0
    base: int = 0
    output: int = 0
    no_access_faults: bool = False
    records: bool = False


@dataclass(frozen=True, slots=True)
class Stream:
    """What a stream's entries say, as QEMU keeps it; ``asid`` is -1 where there is no stage 1."""

    aborts: bool = False
    bypasses: bool = False
    stage: int = 0
    asid: int = -1
    output: int = 0
    top_byte: int = 0
    no_access_faults: bool = False
    records: bool = False
    tables: tuple[Tables, Tables] = (Tables(), Tables())
    second: Stage2 = field(default_factory=Stage2)
    descriptor: int = 0


def split(data: bytes) -> tuple[int, ...]:
    """Words of 4 bytes."""
    return tuple(
        int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4))


def decode_stream(data: bytes, features: Features) -> Stream | Event | None:
    """A stream table entry of 64 bytes; None where QEMU ends by an assertion (AArch32)."""
    word = split(data)
    config = bits(word[0], 1, 3)
    if not word[0] & 1:
        return Event(BAD_STE)
    if not config & 4:
        return Stream(aborts=True)
    if config == 4:
        return Stream(bypasses=True)
    stage = config & 3
    if (stage & STAGE_1 and not features.stage1) or (stage & STAGE_2 and not features.stage2):
        return Event(BAD_STE)
    second: Stage2 | None = Stage2(bits(word[4], 0, 16) if features.stage2 else -1)
    if stage & STAGE_2:
        if not bits(word[5], 19, 1):
            return None
        second = _second(word)
    if second is None or bits(word[1], 27, 5) or bits(word[2], 27, 1):
        return Event(BAD_STE)
    return Stream(
        stage=stage, second=second, output=OUTPUT_BITS if stage & STAGE_2 else 0,
        descriptor=bits(word[1], 0, 16) << 32 | word[0] & 0xFFFF_FFC0)


def shift_of(level: int, granule: int) -> int:
    """Bits of an address below the index of a level."""
    return granule + (3 - level) * (granule - 3)


def start_level(start: int, granule: int) -> int:
    """The level that a second stage begins at."""
    return (2 if granule == 12 else 3) - start


def _second(word: tuple[int, ...]) -> Stage2 | None:
    """The second stage of an entry; None if it cannot be."""
    granule = {0: 12, 1: 16, 2: 14}.get(bits(word[5], 14, 2))
    start, size = bits(word[5], 6, 2), bits(word[5], 0, 6)
    if granule is None or start == 3:
        return None
    output = _SIZES[min(bits(word[5], 16, 3), 4)]
    base = bits(word[7], 0, 16) << 32 | word[6] & 0xFFFF_FFF0
    lowest = 64 - output if granule == 16 else max(64 - output, 16)
    if base >> output or size > 39 or size < lowest:
        return None
    above = shift_of(start_level(start, granule) - 1, granule)
    if ((1 << 64 - size) - 1 >> above) + 1 > 16:
        return None
    if bits(word[5], 20, 1) or bits(word[5], 25, 1):
        return None
    return Stage2(
        bits(word[4], 0, 16), size, start, granule, base, output,
        bool(bits(word[5], 21, 1)), bool(bits(word[5], 26, 1)))


def decode_context(data: bytes, stream: Stream, features: Features) -> Stream | Event | None:
    """``stream`` with what a context descriptor of 64 bytes adds, its tables' bases as they
    stand there; None where QEMU ends by an assertion (an output size that is none)."""
    word = split(data)
    flags = word[1]
    valid = bits(word[0], 31, 1) and bits(flags, 9, 1) and bits(flags, 14, 1)
    if not valid or bits(flags, 12, 1) or bits(flags, 10, 2):
        return Event(BAD_CD)
    size = bits(flags, 0, 3)
    if size >= len(_SIZES):
        if not features.old:
            return None
        output = OUTPUT_BITS
    else:
        output = min(OUTPUT_BITS, _SIZES[size])
    found: list[Tables] = []
    for index in (0, 1):
        tables = _tables(word, index, output)
        if tables is None:
            return Event(BAD_CD)
        found.append(tables)
    return Stream(
        stage=stream.stage, asid=bits(flags, 16, 16), output=output, top_byte=bits(flags, 6, 2),
        no_access_faults=bool(bits(flags, 3, 1)), records=bool(bits(flags, 13, 1)),
        tables=(found[0], found[1]), second=stream.second, descriptor=stream.descriptor)


def _tables(word: tuple[int, ...], index: int, output: int) -> Tables | None:
    field_ = word[0] >> 16 * index
    if bits(field_, 14, 1):
        return Tables()
    size = bits(field_, 0, 6)
    granule = ((12, 16, 14, 0), (0, 14, 12, 16))[index][bits(field_, 6, 2)]
    base = bits(word[2 * index + 3], 0, 19) << 32 | word[2 * index + 2] & ~0xF
    if not 16 <= size <= 39 or not granule or bits(word[0], 15, 1) or base >> output:
        return None
    return Tables(False, base, size, granule, bool(bits(word[2 * index + 2], 1, 1)))


def record(event: Event, stream_id: int, addr: int) -> bytes:
    """The 32 bytes of an event's record; ``addr`` is the device's."""
    word = [0] * 8
    word[0], word[1] = event.type, stream_id
    where = event.addr
    if event.walk:
        word[3] = event.reads << 3 | event.stage2 << 7 | event.fault_class << 8
        where = addr
    word[4], word[5] = where & 0xFFFF_FFFF, where >> 32 & 0xFFFF_FFFF
    word[6], word[7] = event.addr2 & 0xFFFF_FFFF, event.addr2 >> 32 & 0xFFFF_FFFF
    return b"".join(each.to_bytes(4, "little") for each in word)
