"""R10 and R12 ``set`` on real QEMU: single accesses and fills that devices make of their own.

A PCI device's interrupt message is ``address_space_stl_le`` of 32 free bits to 64 free address
bits, both from the guest (``hw/pci/pci.c`` ``pci_msi_trigger``). fw_cfg's DMA reads its control
structure with ``address_space_read``, fills with ``address_space_set``, copies with
``address_space_write`` and ends with a word that says whether one of these failed: writes on the
host path whose MemTxResult can be seen.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest
from real_stage import VGA, Stage, stage, variant
from virtio_driver import DEVICE, DRIVE, GET_ID, Buffer, Rings, VirtioBlk, table

from qemuglue.memory import AddressSpace, MemTxAttrs
from qemuglue.memory.endian import Be32, EndianInt, Le32
from qemuglue.memory.flatview import MemoryRegionSection
from qemuglue.memory.region import MAX_SIZE
from qemuglue.memory.rules import Rules
from qemuglue.qemu.builds import Build

pytestmark = pytest.mark.qemu

#: The message table of the virtio device in the middle of the VGA's memory: 0x20 bytes of it,
#: and 8 more of the pending bits, cut that RAM's pages.
CUT = 0xE028_0000


class Sender:
    """A device that stores 4 bytes wherever it is told to."""

    def __init__(self, on: Stage) -> None:
        self.on = on
        self.blk = VirtioBlk(on.qtest, on.session.mirror)
        self.blk.master()
        self.rings = Rings()
        assert self.blk.start(self.rings)
        chain = table([Buffer(0x1000, 16), Buffer(0x2000, 21, True)])
        on.qtest.write_bytes(0x1000, GET_ID)
        on.qtest.write_bytes(self.rings.desc, chain)
        self.sent = 0
        self.blk.move_table(CUT)
        self._request()
        on.remapped()
        on.session.ram.adopt_all()

    def _request(self) -> None:
        self.sent += 1
        self.on.qtest.write_bytes(self.rings.avail, struct.pack("<HH", 0, self.sent))
        self.blk.kick()

    def judge(self, addr: int, data: int) -> list[str]:
        """The same request as ever, with the message sent to ``addr``."""
        bus = self.on.space("virtio-blk-pci")
        ram = self.on.memory
        self.blk.message(addr, data)

        def model() -> None:
            used = 4 + 8 * ((self.sent - 1) % self.rings.num)
            ram.write(self.rings.avail, struct.pack("<HH", 0, self.sent))
            ram.write(self.rings.used + used, struct.pack("<II", 0, 21))
            ram.write(self.rings.used, struct.pack("<HH", 0, self.sent))
            bus.store(addr, Le32(data), MemTxAttrs(requester_id=self.blk.slot << 3))

        return self.on.judged(self._request, model)


@pytest.fixture(scope="module")
def sender(build: Build) -> Iterator[Sender]:
    with stage(build, "edu", "pci-testdev", VGA, DEVICE, args=DRIVE) as on:
        yield Sender(on)


MESSAGES = {
    0x8000: "RAM", 0x8FFF: "RAM, over a page", 0x3FF_FFFC: "the last of RAM",
    0x3FF_FFFD: "over the end of RAM", 0x9_FFFE: "RAM, then a device",
    0xA_0000: "a device of bytes: one dispatch, four pieces",
    0xA_0002: "unaligned: refused whole; a write would be cut in two",
    0xB_FFFE: "a device, then ROM", 0xC_0000: "ROM", 0xD_FFFE: "two ROMs", 0xF_FFFE: "ROM, RAM",
    0xE000_0000: "edu", 0xE000_0006: "edu, unaligned", 0xE010_0000: "pci-testdev",
    0xE010_0001: "pci-testdev, unaligned", 0xE00F_FFFE: "two devices",
    0xFED0_00F0: "hpet", 0xFED0_00F2: "hpet, unaligned", 0xFED0_03FE: "hpet's end",
    0xFED0_0400: "nothing", 0xFEC0_0FFE: "ioapic's end", 0x1000_0001: "nothing, unaligned",
    0xFFFF_FFFE: "ROM, then beyond 4 GiB", 0x1_0000_0000: "nothing beyond 4 GiB",
    (1 << 64) - 2: "over 2^64",
    CUT - 4: "RAM before a cut page", CUT - 2: "RAM, then a device", CUT + 0x20: "RAM after it",
    CUT + 0x1E: "a device, then RAM", CUT + 0x7FE: "RAM, then a device again",
    CUT + 0x808: "RAM after both", CUT + 0xFFC: "the cut page's last",
    CUT + 0xFFE: "RAM over the end of a cut page: two parts, no memory access",
    CUT + 0x1FFE: "RAM over the end of a whole page",
}


def test_a_message_is_one_dispatch(sender: Sender) -> None:
    """R10: an ``address_space_stl_le`` is never cut, and never memory over an end of memory."""
    found = {}
    for number, addr in enumerate(MESSAGES):
        if complaints := sender.judge(addr, 0x1122_3344 + number):
            found[hex(addr), MESSAGES[addr]] = complaints
    assert found == {}


class _WholeSections(Rules):
    def dispatch_end(self, section: MemoryRegionSection, addr: int, page_bits: int) -> int:
        return section.start + section.size


class _NoEnds(Rules):
    def clamp(
        self, section: MemoryRegionSection, addr: int, length: int, page_bits: int = 12
    ) -> int:
        return length

    def dispatch_end(self, section: MemoryRegionSection, addr: int, page_bits: int) -> int:
        return MAX_SIZE


@pytest.mark.parametrize(("wrong", "seen_at"), [
    (_WholeSections, {CUT + 0xFFE}),
    (_NoEnds, {0x9_FFFE, CUT - 2, CUT + 0x7FE, CUT + 0xFFE}),
])
def test_a_wrong_rule_is_seen(sender: Sender, wrong: type[Rules], seen_at: set[int]) -> None:
    right = sender.on.session.rules
    sender.on.judge_by(variant(right, wrong))
    try:
        assert {addr for addr in seen_at if sender.judge(addr, 0x5566_7788)} == seen_at
    finally:
        sender.on.judge_by(right)


def test_a_message_that_is_cut_is_seen(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model with ``store`` as ``write``."""
    def cut(space: AddressSpace, addr: int, value: EndianInt, attrs: MemTxAttrs) -> int:
        return space.write(addr, value.raw, attrs)

    monkeypatch.setattr(AddressSpace, "store", cut)
    seen = {addr for addr in MESSAGES if sender.judge(addr, 0x0102_0304)}
    assert seen >= {0x3FF_FFFD, 0x9_FFFE, 0xA_0002, 0xE000_0006, 0xFED0_00F2, (1 << 64) - 2}
    assert not seen & {0x8000, 0xC_0000, 0xE000_0000, 0xFED0_00F0, 0xFED0_0400}


def test_a_message_in_the_wrong_order_is_seen(
    sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = AddressSpace.store

    def swapped(space: AddressSpace, addr: int, value: EndianInt, attrs: MemTxAttrs) -> int:
        return right(space, addr, Be32(int(value)), attrs)

    monkeypatch.setattr(AddressSpace, "store", swapped)
    seen = {addr for addr in MESSAGES if sender.judge(addr, 0x0102_0304)}
    assert seen >= {0x8000, 0xA_0000, 0xE000_0000, 0xE010_0000, 0xFED0_00F0}


# -- fw_cfg --------------------------------------------------------------------------------------

_ERROR, _READ, _SKIP, _SELECT = 1, 2, 4, 8
#: Items: the signature, and one that does not exist.
SIGNATURE, NOTHING = 0, 0xFFF0
_ITEMS = {SIGNATURE: b"QEMU", NOTHING: b""}


def answer(space: AddressSpace, at: int, word: int) -> None:
    """``stl_be_dma``, which is no ``address_space_stl_be`` but a write of 4 bytes."""
    space.write(at, word.to_bytes(4, "big"))


def fwcfg_model(space: AddressSpace, at: int) -> int:
    """``fw_cfg_dma_transfer``; the control word it leaves."""
    result, raw = space.read(at, 16)
    if result:
        answer(space, at, _ERROR)
        return _ERROR
    control, length, target = struct.unpack(">IIQ", raw)
    data = _ITEMS[control >> 16] if control & _SELECT else b""
    if not control & _READ:
        length = 0
    error = 0
    if length and data:
        part = data[:length]
        error = space.write(target, part)
        target, length = target + len(part), length - len(part)
    if length and not error:
        error = space.set(target, 0, length)
    left = _ERROR if error else 0
    answer(space, at, left)
    return left


@pytest.fixture(scope="module")
def dma(build: Build) -> Iterator[Stage]:
    with stage(build, "edu", "pci-testdev", VGA) as on:
        on.qtest.memset(0x3FF_F000, 0x1000, 0xA5)
        on.qtest.memset(0, 0x8000, 0xA5)
        on.session.ram.adopt_all()
        yield on


def transfer(on: Stage, at: int, words: bytes = b"") -> tuple[list[str], int]:
    """How QEMU and model differ over one transfer whose structure is at ``at``, and the control
    word that is left. ``words`` are put there first."""
    left: list[int] = []
    if words:
        on.prepare(at, words)
    register = int.from_bytes(at.to_bytes(4, "big"), "little")
    found = on.judged(
        lambda: on.qtest.outl(0x518, register),
        lambda: left.append(fwcfg_model(on.memory, at)),
    )
    return found, left[0]


def structure(item: int, target: int, length: int) -> bytes:
    return struct.pack(">IIQ", item << 16 | _SELECT | _READ, length, target)


#: target, length: whether it fails.
FILLS = {
    (0x4000, 1): False, (0x4001, 513): False, (0x3FF_FFF0, 16): False, (0x3FF_FFF0, 17): True,
    (0x9_FFF0, 32): False, (0xBFFF8, 16): True, (0xD_0000, 4): True, (0xF_FFF8, 16): True,
    (0xFED0_0100, 20): False, (0xFED0_0000, 1): True, (0xFED0_0002, 1030): True,
    (0xFECF_FFFC, 8): True, (0xFED0_03F8, 8): False, (0xFED0_03F8, 12): True,
    (0xE010_0000, 600): False, (0x1000_0001, 1100): True, (0xC_0003, 700): True,
    (0xA_0001, 1030): False, ((1 << 64) - 4, 16): True,
    (0xFECF_FE00, 516): True,  # the first piece fails, the last does not
}


@pytest.mark.parametrize("item", [NOTHING, SIGNATURE])
def test_a_fill_goes_in_pieces_of_512(dma: Stage, item: int) -> None:
    """R12 ``set``, R8: the pieces, and the OR of their results, which fw_cfg tells."""
    found = {}
    for (target, length), fails in FILLS.items():
        complaints, left = transfer(dma, 0x2000, structure(item, target, length))
        if complaints or (item == NOTHING and bool(left) != fails):
            found[hex(target), length] = complaints or ["the result"]
    assert found == {}


#: Where the structure is: how many bytes of it are in RAM.
STRUCTURES = {
    0x2000: 16, 0x2003: 16, 0x2FFE: 16, 0x3FF_FFF0: 16,
    0x3FF_FFF4: 12,       # RAM ends inside it: it cannot be read, the answer can be written
    0x3FF_FFFE: 2,        # RAM ends inside its first word: neither
    0xFED0_0100: 0, 0xFED0_0102: 0, 0xA_0002: 0, 0x1000_0000: 0, 0xC_0000: 0,
    0xFFFF_FFFC: 0,       # ROM, then nothing
}


def test_the_answer_is_a_write_of_four_bytes(dma: Stage) -> None:
    """R8: what ``include/system/dma.h`` calls ``stl_be_dma`` is cut like any byte range."""
    words = structure(SIGNATURE, 0x4000, 8)
    found = {
        hex(at): complaints for at, size in STRUCTURES.items()
        if (complaints := transfer(dma, at, words[:size])[0])
    }
    assert found == {}
    assert dma.qtest.read_bytes(0x4000, 8) == b"QEMU\0\0\0\0"
    assert dma.qtest.read_bytes(0x3FF_FFF4, 4) == bytes([0, 0, 0, _ERROR])


def test_an_answer_in_one_dispatch_is_seen(dma: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def whole(space: AddressSpace, at: int, word: int) -> None:
        space.store(at, Be32(word))

    monkeypatch.setitem(globals(), "answer", whole)
    words = structure(SIGNATURE, 0x4000, 8)
    seen = {at for at, size in STRUCTURES.items() if transfer(dma, at, words[:size])[0]}
    assert seen == {0x3FF_FFFE, 0xFED0_0102, 0xA_0002}


def _fills_whole(space: AddressSpace, addr: int, byte: int, length: int) -> int:
    return space.write(addr, bytes([byte]) * length)


def _fills_bytes(space: AddressSpace, addr: int, byte: int, length: int) -> int:
    result = 0
    for at in range(length):
        result |= space.write((addr + at) % (1 << 64), bytes([byte]))
    return result


def _last_result(space: AddressSpace, addr: int, byte: int, length: int) -> int:
    result = 0
    for at in range(0, length, 512):
        result = space.write((addr + at) % (1 << 64), bytes([byte]) * min(512, length - at))
    return result


@pytest.mark.parametrize(("wrong", "seen_at"), [
    (_fills_whole, {(0xFED0_0002, 1030), (0xC_0003, 700)}),
    (_fills_bytes, {(0xFED0_0100, 20)}),
    (_last_result, {(0xFECF_FE00, 516)}),
])
def test_a_wrong_fill_is_seen(
    dma: Stage, monkeypatch: pytest.MonkeyPatch, seen_at: set[tuple[int, int]],
    wrong: Callable[[AddressSpace, int, int, int], int],
) -> None:
    monkeypatch.setattr(AddressSpace, "set", wrong)
    seen = {case for case in seen_at if transfer(dma, 0x2000, structure(NOTHING, *case))[0]}
    assert seen == seen_at
