"""What a program reached, from the transcript's text; and where the guide points then."""

from __future__ import annotations

from collections import Counter
from random import Random
from types import SimpleNamespace
from typing import Any

from qemuglue.campaign.drawing import Plain
from qemuglue.campaign.guide import MAX_REGISTERS, Guide
from qemuglue.campaign.guided import Guided
from qemuglue.campaign.reach import EXACT_VALUES, Reach, names_of
from qemuglue.campaign.trace_events import TraceEvents
from qemuglue.program.layout import Layout, Range
from qemuglue.program.operation import Place, validate

LAYOUT = Layout({
    "memory": [Range(0, 0x10000, "pc.ram", 0, 0, "ram", "memory"),
               Range(0x20000, 0x1000, "hpet", 0, 0, "device", "memory"),
               Range(0x30000, 0x20000, "nic", 0, 0, "device", "memory")],
    "io": [Range(0x70, 2, "rtc", 0, 0, "device", "io")],
})
READ = (b"memory_region_ops_read cpu -1 mr 0x55d0 addr 0x%x value 0x%x size %d name '%s'\n")
WRITE = READ.replace(b"ops_read", b"ops_write")


def reach(*names: str) -> Reach:
    trace = TraceEvents()
    trace.names = {name.encode(): name for name in names}
    return Reach(lambda: LAYOUT, trace=trace, guide=Guide())


def test_states_are_region_offset_size_and_outcome() -> None:
    it = reach()
    text = (READ % (0x20010, 0xFFFFFFFFFF, 4, b"hpet") + WRITE % (0x71, 5, 1, b"rtc")
            + b"Invalid read at addr 0x3, size 8, region 'hpet', reason: unaligned\n"
            + b"Invalid write at addr 0xFFFF00, size 1, region '(null)', reason: rejected\n")
    assert it.take(text) == text
    assert it.facts == {
        ("read", "hpet", 0x10, 4, 0xFFFFFFFF), ("write", "rtc", 1, 1),
        ("refused", False, "hpet", 3, 8, "unaligned"),
        ("refused", True, "(null)", 24, 1, "rejected"),
    }


def test_values_are_exact_until_there_are_many() -> None:
    it = reach()
    for value in range(100, 100 + 3 * EXACT_VALUES):
        it.take(READ % (0x20000, value, 4, b"hpet"))
    classes = {fact[4] for fact in it.facts}
    assert len(classes) == EXACT_VALUES + 2, "then by their width: 7 bits or 8"
    assert {-7, -8} <= classes


def test_lines_of_trace_events_are_taken_out_and_nothing_else() -> None:
    it = reach("nic_tx", "nic_reset")
    noise = b"nic: guest error without a newline" + READ % (0x20000, 1, 4, b"hpet")
    other = b"nic_rx of nobody's\n" + b"nic_txx 1\n" + b"\xff\xfe\n"
    text = WRITE % (0x30004, 1, 4, b"nic") + b"nic_tx len 60\n" + noise + b"nic_reset\n" + other
    assert it.take(text) == WRITE % (0x30004, 1, 4, b"nic") + noise + other
    assert names_of(it.facts) == {"nic_tx", "nic_reset"}
    assert ("shape", "nic_tx len 6") in it.facts


def test_any_bytes_are_survived() -> None:
    it, rng = reach("a"), Random(1)
    parts = [READ % (0x20000, 1, 4, b"hpet"), b"a 1\n", b"Invalid read at addr 0x", b"\n", b"'",
             b"memory_region_ops_write", b"\x00\xff", b" " * 30, b"0x" + b"f" * 40]
    for _ in range(500):
        text = b"".join(rng.choices(parts, k=rng.randint(0, 9)))
        left = it.take(text)
        assert [line for line in text.split(b"\n") if line.split(b" ")[0] != b"a"] \
            == left.split(b"\n")


def test_a_program_begins_with_nothing() -> None:
    it = reach()
    it.take(READ % (0x20000, 1, 4, b"hpet"))
    it.begin()
    assert it.facts == set()
    it.end(64)


def test_the_guide_learns_registers_values_and_events() -> None:
    it = reach("nic_tx")
    guide = it.guide
    assert guide is not None
    assert guide.register(Random(1)) is None and guide.region(Random(1)) is None
    for number in range(40):
        it.take(READ % (0x20000, 7, 4, b"hpet"))
        it.take(WRITE % (0x30000 + 4 * number, 1, 4, b"nic") + b"nic_tx len %d\n" % (1 << number))
    regions = Counter(guide.region(Random(seed)) for seed in range(300))
    assert regions["memory", "nic", 0] > 250, "it shows something new each time"
    assert guide.value(Random(1), "memory", Place("hpet", 0, 0)) == 7
    assert guide.value(Random(1), "memory", Place("nic", 0, 0)) == 7, "values travel"
    found = guide.register(Random(1))
    assert found is not None and found[0] == "memory" and found[2] == 4
    assert guide.knows("memory", Place("nic", 0, 4))
    assert not guide.knows("memory", Place("nic", 0, 6))


def test_a_region_without_yield_is_left_for_others() -> None:
    guide = Guide()
    for number in range(2000):
        guide.accessed(("io", Place("rtc", 0, 0)), 1, 5, ("read", "rtc", 0, 1, 5))
        if number < 100:
            guide.accessed(("memory", Place("nic", 0, number)), 1, None, ("write", number))
    drawn = Counter(guide.region(Random(seed)) for seed in range(300))
    assert drawn["memory", "nic", 0] > 290


def test_the_guide_is_bounded() -> None:
    guide = Guide()
    for number in range(MAX_REGISTERS + 100):
        guide.accessed(("memory", Place(f"r{number % 9000}", 0, number)), 4, number, number)
    assert len(guide._registers) == MAX_REGISTERS
    assert len(guide._regions) <= 4096


def test_guided_operations_are_valid_and_go_where_it_points() -> None:
    it = reach()
    assert it.guide is not None
    for number in range(200):
        it.take(READ % (0x30000 + 4 * number, number, 4, b"nic"))
    it.take(READ % (0x70, 1, 1, b"rtc"))
    guided = Guided(LAYOUT, Plain(LAYOUT), it.guide)
    ops = guided.operations(Random(1), 500)
    assert len(ops) == 500 and [validate(op) for op in ops]
    regions = Counter(op.place.region for op in ops if op.place is not None)
    assert regions["nic"] > 250
    assert regions["pc.ram"] > 5, "the target's own draws go on"
    assert guided.operations(Random(1), 20) == ops[:20]
    assert len(guided.wild(Random(2)).operations(Random(1), 30)) == 30


def test_attach_listens_and_settles(monkeypatch: Any) -> None:
    it = Reach(lambda: LAYOUT)
    transcript = SimpleNamespace(listener=None)
    session: Any = SimpleNamespace(process=SimpleNamespace(transcript=transcript))
    it.attach(session)
    assert transcript.listener is not None
    assert transcript.listener(b"x\n") == b"x\n"
    it.end(10)
