"""Reading the plugin's lines and comparing them with trace events; no QEMU."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemuglue.qemu.plugin.records import (
    MAX_KEPT,
    MAX_LINE,
    DeviceEvent,
    GuestAccess,
    LogEnd,
    Match,
    agreement,
    end_of_log,
    parse,
    stream,
)

LINE = (
    b"qg_access cpu 1 insn 0xea4c5 load size 4 order little vaddr 0xb0000010 paddr 0x10 io 1 "
    b"value 0xff name 'mmcfg'\n"
)
RECORD = GuestAccess(
    cpu=1, instruction=0xEA4C5, store=False, size=4, big_endian=False, virtual=0xB000_0010,
    physical=0x10, is_io=True, value=0xFF, name="mmcfg",
)
UNKNOWN = (
    b"qg_access cpu 0 insn 0x0 store size 16 order big vaddr 0xffffffffffffffff paddr none io none"
    b" value none name none\n"
)
EVENT = (
    b"memory_region_ops_read cpu 0 mr 0x55aa addr 0xfed00000 value 0x98000000a2 size 4 name 'h'\n"
)


def test_all_fields_are_read() -> None:
    assert parse(LINE) == [RECORD]
    (access,) = parse(UNKNOWN)
    assert access.store and access.big_endian and access.size == 16
    assert (access.physical, access.is_io, access.value, access.name) == (None,) * 4
    assert access.virtual == (1 << 64) - 1


def test_a_trace_value_is_masked_to_its_size() -> None:
    assert list(stream(EVENT)) == [
        DeviceEvent("ops", 0, False, 0x55AA, 0xFED0_0000, 4, 0xA2, "h"),
    ]


def test_a_name_with_every_kind_of_byte() -> None:
    (access,) = parse(LINE.replace(b"mmcfg", rb"a\x27 b\x5c\x0a\xc3\xa9\xff"))
    assert access.name == "a' b\\\né\\xff"


@pytest.mark.parametrize("bad", [
    LINE[:-1],  # the last line may be cut
    LINE.replace(b"0xff ", b"0x1ffffffff "),  # more than its size holds
    LINE.replace(b"size 4", b"size 3"),
    LINE.replace(b"vaddr 0x", b"vaddr 0x00000000000000000"),
    LINE.replace(b"mmcfg'", b"mmcfg' more"),
    LINE.replace(b"mmcfg", b"mm'cfg"),
    LINE.replace(b"mmcfg", b"mm\\cfg"),
    LINE.replace(b"mmcfg", b"m\xe9"),
    LINE.replace(b"io 1", b"io 2"),
    LINE.replace(b"io 1", b"io none"),  # with a physical address, and the other way round
    LINE.replace(b"paddr 0x10", b"paddr none"),
    LINE.replace(b"mmcfg", b"m" * MAX_LINE),
    b"memory_region_ops_read cpu 0 mr 0x1 addr 0x0 value 0x0 size 4 name '" + LINE,
    b"memory_region_ops_read cpu 0 mr 0x1 addr 0x0 value 0x0 size 3 name 'x'\n",
])
def test_what_is_not_quite_a_record_is_none(bad: bytes) -> None:
    assert parse(bad) == []
    assert parse(bad.rstrip(b"\n") + b"\n" + LINE)[-1] == RECORD


def test_a_record_glued_behind_a_text_is_found() -> None:
    text = b"edu: bad register 0x88"
    assert list(stream(text + LINE + text + EVENT)) == [RECORD, *stream(EVENT)]


def test_the_plugins_own_words_on_its_silence() -> None:
    assert end_of_log(LINE) == LogEnd(None, None, None)
    assert end_of_log(b"qg_limit 7\n" + LINE + b"qg_end seen 9 printed 7\n") == LogEnd(7, 9, 7)
    assert end_of_log(b"qg_end seen 9 printed 7") == LogEnd(None, None, None)


pieces = st.lists(
    st.one_of(
        st.binary(max_size=40), st.just(LINE), st.just(UNKNOWN), st.just(EVENT), st.just(b"\n"),
        st.builds(
            lambda line, at, byte: line[:at] + bytes([byte]) + line[at + 1:],
            st.sampled_from([LINE, EVENT]), st.integers(0, 90), st.integers(0, 255),
        ),
    ),
    max_size=8,
).map(b"".join)


@given(pieces)
def test_any_bytes_are_read_without_an_error_and_records_keep_their_bounds(chunk: bytes) -> None:
    for item in stream(chunk):
        assert item.size in {1, 2, 4, 8, 16, 32, 64, 128}
        assert item.value is None or 0 <= item.value < 1 << 8 * item.size
    end_of_log(chunk)
    agreement(stream(chunk), physical=False)


@given(pieces, pieces)
def test_a_log_cut_at_a_newline_reads_the_same(first: bytes, second: bytes) -> None:
    first += b"\n"
    assert parse(first) + parse(second) == parse(first + second)


# Agreement


def access(address: int, size: int, *, store: bool = False, value: int | None = None,
           cpu: int = 0, io: bool | None = True, big: bool = False) -> GuestAccess:
    return GuestAccess(cpu, 0, store, size, big, address, address, io, value, "r")


def event(address: int, size: int, value: int = 0, *, store: bool = False, cpu: int = 0,
          kind: str = "ops", name: str = "r") -> DeviceEvent:
    return DeviceEvent(kind, cpu, store, 1, address, size, value, name)


Item = GuestAccess | DeviceEvent

BASE = 0xFED0_0000
CASES: list[tuple[list[Item], Match]] = [
    # one event for one access
    ([event(BASE, 4, 7), access(BASE, 4, value=7)], Match.EXACT),
    ([event(BASE, 4, 7), access(BASE, 4)], Match.EXACT),
    # two events make up one, in the byte order of the access
    ([event(BASE, 1, 0x34), event(BASE + 1, 1, 0x12), access(BASE, 2, value=0x1234)], Match.SPLIT),
    ([event(BASE, 1, 0x12), event(BASE + 1, 1, 0x34), access(BASE, 2, value=0x1234, big=True)],
     Match.SPLIT),
    # 7.2's unaligned load: both aligned words, in one piece or in several
    ([event(BASE, 4, 0x44332211), event(BASE + 4, 4, 0x88776655),
      access(BASE + 1, 4, value=0x55443322)], Match.WIDER),
    ([event(BASE + i, 1) for i in range(8)] + [access(BASE + 1, 4)], Match.WIDER),
    # a shared page: its own line before or behind that of the region in it, or alone
    ([event(BASE + 8, 4, 7), event(8, 4, 7, kind="subpage"), access(BASE + 8, 4, value=7)],
     Match.EXACT),
    ([event(8, 4, 7, kind="subpage"), access(BASE + 8, 4, value=7)], Match.SHARED),
    ([access(BASE, 4)], Match.SILENT),
    ([event(BASE, 2), access(BASE, 4)], Match.PARTIAL),
    ([event(BASE, 4, 7), access(BASE, 4, value=8)], Match.VALUE),
    # not its events: another direction, another CPU, another address, in front of another record
    ([event(BASE, 4, store=True), access(BASE, 4)], Match.SILENT),
    ([event(BASE, 4, cpu=1), access(BASE, 4)], Match.SILENT),
    ([event(BASE + 4, 4), access(BASE, 4)], Match.SILENT),
    ([event(BASE, 4), access(0, 4, io=False), access(BASE, 4)], Match.SILENT),
    # an unaligned store takes in nothing around it
    ([event(BASE, 1, store=True), access(BASE + 1, 4, store=True)], Match.SILENT),
]


@pytest.mark.parametrize(("items", "match"), CASES)
def test_one_record_is_judged(items: list[Item], match: Match) -> None:
    judged = agreement(items, physical=True)
    assert judged.matches == {match: 1}
    assert judged.disagreed == len(judged.differences) == (
        match in (Match.SILENT, Match.PARTIAL, Match.VALUE))
    assert judged.swapped == 0
    events = sum(isinstance(item, DeviceEvent) for item in items)
    if match is Match.SILENT:
        assert judged.lone_count == len(judged.lone) == events
    else:
        assert judged.lone_count == 0


def test_values_of_the_other_byte_order_are_counted_apart() -> None:
    items: list[Item] = [event(BASE, 4, 0x78563412), access(BASE, 4, value=0x12345678)]
    judged = agreement(items, physical=True)
    assert (judged.matches, judged.values, judged.swapped) == ({Match.EXACT: 1}, 0, 1)


def test_the_address_is_the_one_asked_for() -> None:
    record = GuestAccess(0, 0, False, 4, False, 0x1000, BASE, True, None, "r")
    assert agreement([event(BASE, 4), record], physical=True).disagreed == 0
    assert agreement([event(BASE, 4), record], physical=False).disagreed == 1


def test_what_no_record_claims_is_counted_by_kind() -> None:
    items: list[Item] = [
        event(0x70, 1), event(0xFFFE, 2), event(BASE, 4, cpu=-1), event(BASE, 4, name="x"),
        access(BASE, 4), event(0xFFFF, 2), access(0, 4, io=None),
    ]
    judged = agreement(items, physical=True)
    assert (judged.ports, judged.not_cpu, judged.unknown) == (2, 1, 1)
    assert judged.lone == (event(0xFFFF, 2),)
    assert judged.names == {("r", "x"): 1}
    assert agreement(items, physical=True, last_port=-1).lone_count == 3


def test_an_access_at_the_top_of_the_address_space() -> None:
    last = (1 << 64) - 4
    items: list[Item] = [event(last, 4), access(last, 4), event(0, 4), access(0, 4)]
    assert agreement(items, physical=True).matches == {Match.EXACT: 2}


def test_long_lists_are_counted_whole_and_kept_in_part() -> None:
    pair: list[Item] = [event(BASE, 4), access(0, 4)]
    items = pair * (MAX_KEPT + 5)
    judged = agreement(items, physical=True)
    assert judged.lone_count == judged.disagreed == MAX_KEPT + 5
    assert len(judged.lone) == len(judged.differences) == MAX_KEPT
