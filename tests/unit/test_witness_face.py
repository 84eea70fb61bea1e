"""What each qtest verb means on the model, and the line QEMU is sent for it."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from witness_events import Simulated, device, space_of

from qemuglue.errors import ModelError
from qemuglue.memory import AddressSpace, ByteBacking, Contract, MemoryRegion, render
from qemuglue.memory.attrs import DECODE_ERROR, OK
from qemuglue.memory.rules import RULES_10_0, RULES_LATEST, Rules
from qemuglue.program.generate import Generator
from qemuglue.program.layout import Layout, Range
from qemuglue.program.operation import Operation, Place
from qemuglue.qemu import qtest
from qemuglue.witness.face import HostFace, encode, encode_all
from qemuglue.witness.session import MARKERS, marker_base


def face(rules: Rules = RULES_10_0, *, big: bool = False) -> tuple[HostFace, Simulated]:
    """RAM of 4 KiB at 0, a device at 0x8000; ports with a device at 0x60."""
    ram = MemoryRegion.ram("ram", 0x1000, ByteBacking(0x1000))
    memory = space_of((0, ram), (0x8000, device("dev")), rules=rules, target_big=big)
    root = MemoryRegion.io("io", 0x10000, Contract())
    root.add_subregion(0x60, device("kbd", 4))
    io = AddressSpace("I/O", root, rules=rules, target_big=big)
    simulated = Simulated(io, lambda region, offset, size: (0x44332211 >> 8 * offset)
                          & ((1 << 8 * size) - 1))
    memory.ops = memory.observer = simulated
    return HostFace(memory, io), simulated


def do(face: HostFace, verb: str, addr: int, size: int, value: int = 0, data: bytes = b"") -> bytes:
    return face.perform(Operation(verb, None, size, value, data), addr).reply


def test_sized_verbs_take_and_give_numbers_in_target_order() -> None:
    for big in (False, True):
        it, _ = face(big=big)
        assert do(it, "writel", 0x10, 4, 0x11223344) == b"OK"
        assert do(it, "readl", 0x10, 4) == b"OK 0x0000000011223344"
        first = 0x11 if big else 0x44
        assert do(it, "readb", 0x10, 1) == b"OK 0x%016x" % first
        assert do(it, "readw", 0x10, 2) == b"OK 0x%016x" % (0x1122 if big else 0x3344)
        assert do(it, "read", 0x10, 4) == (b"OK 0x11223344" if big else b"OK 0x44332211")
        do(it, "writeq", 0x20, 8, 0x0102030405060708)
        assert do(it, "readq", 0x20, 8) == b"OK 0x0102030405060708"


def test_byte_strings() -> None:
    it, _ = face()
    assert do(it, "write", 0x10, 3, data=b"abc") == b"OK"
    assert do(it, "read", 0x10, 4) == b"OK 0x61626300"
    assert do(it, "memset", 0x10, 3, 0x7F) == b"OK"
    assert do(it, "read", 0x10, 4) == b"OK 0x7f7f7f00"


def test_the_reply_says_ok_whatever_happened() -> None:
    it, _ = face()
    for op in (Operation("readl", None, 4), Operation("writel", None, 4, 9),
               Operation("read", None, 4), Operation("memset", None, 4, 1)):
        outcome = it.perform(op, 0x5000)
        assert outcome.result == DECODE_ERROR and outcome.reply.startswith(b"OK"), op
    assert it.perform(Operation("readl", None, 4), 0x5000).reply == b"OK 0x%016x" % 0
    assert it.perform(Operation("readl", None, 4), 0).result == OK


def test_ports_are_little_endian_numbers_of_four_digits() -> None:
    for rules in (RULES_10_0, RULES_LATEST):
        it, _ = face(rules)
        assert do(it, "inb", 0x60, 1) == b"OK 0x0011"
        assert do(it, "inw", 0x60, 2) == b"OK 0x2211"
        assert do(it, "inl", 0x60, 4) == b"OK 0x44332211"
        assert do(it, "outl", 0x60, 4, 5) == b"OK"


def test_an_unaligned_port_access_is_cut_or_refused_whole() -> None:
    """From 11 on it is one dispatch, which this device does not take."""
    it, simulated = face(RULES_10_0)
    assert do(it, "inw", 0x61, 2) == b"OK 0x3322"
    assert [event.size for event in simulated.take()] == [1, 1]
    it, simulated = face(RULES_LATEST)
    assert do(it, "inw", 0x61, 2) == b"OK 0x0000"
    [event] = simulated.take()
    assert (event.size, event.refusal is not None) == (2, True)
    assert do(it, "outw", 0x61, 2, 5) == b"OK"
    [event] = simulated.take()
    assert (event.size, event.refusal is not None) == (2, True)


def test_it_is_an_error_of_ours_to_send_what_is_no_host_path_verb() -> None:
    it, _ = face()
    with pytest.raises(AssertionError):
        it.perform(Operation("ldb", None, 1), 0)
    with pytest.raises(AssertionError):
        HostFace(it.memory, None).perform(Operation("inb", None, 1), 0x60)


LAYOUT = Layout({
    "memory": [Range(0, 0x1000, "ram", 0, 0, "ram", "memory"),
               Range(0x8000, 0x100, "dev", 0, 0, "device", "memory")],
    "io": [Range(0x60, 4, "kbd", 0, 0, "device", "io")],
})


@given(st.integers(0, 1 << 32))
def test_both_encoders_send_what_the_channel_would(seed: int) -> None:
    """The table of lines agrees with the validating encoders of the channel."""
    operations = [op for op in Generator(LAYOUT).operations(Random(seed), 40)
                  if op.verb != "reset"]
    steps = [(op, LAYOUT.address_of(op) or 0) for op in operations]
    lines = encode_all(steps)
    assert lines == [encode(op, addr) for op, addr in steps]
    for (op, addr), line in zip(steps, lines, strict=True):
        maker = getattr(qtest, op.verb)
        if op.verb == "write":
            assert line == maker(addr, op.data)
        elif op.verb == "memset":
            assert line == maker(addr, op.size, op.value)
        elif op.verb == "read":
            assert line == maker(addr, op.size)
        elif op.info.is_write:
            assert line == maker(addr, op.value)
        else:
            assert line == maker(addr)


def test_encoded_lines_are_what_qtest_reads() -> None:
    place = Place(None, 0, 0)
    assert encode(Operation("memset", place, 16, 0xAB), 0x20) == b"memset 0x20 0x10 0xab\n"
    assert encode(Operation("write", place, 2, 0, b"\x01\x02"), 0) == b"write 0x0 0x2 0x0102\n"
    assert encode(Operation("outb", place, 1, 6), 0xCF9) == b"outb 0xcf9 0x6\n"


def test_markers_go_where_nothing_is() -> None:
    root = MemoryRegion.container_of("system", 1 << 64)
    root.add_subregion(0, device("low", 1 << 32))
    root.add_subregion(1 << 40, device("high", 1 << 40))
    view = render(root)
    base = marker_base(view)
    assert base % MARKERS == 0
    for addr in (base, base + MARKERS - 1):
        assert not view.lookup(addr).assigned
    full = MemoryRegion.container_of("system", 1 << 64)
    full.add_subregion(0, device("all", (1 << 64) - 0x1000))
    with pytest.raises(ModelError, match="markers"):
        marker_base(render(full))
