"""What ends a batch: by name, by value, and as learnt."""

from __future__ import annotations

import pytest
from witness_events import device

from qemuglue.memory import Contract, MemoryRegion
from qemuglue.witness.barriers import BY_VALUE, Barriers


@pytest.mark.parametrize("name", [
    "pci-conf-data", "pci-data-idx", "unin-pci-conf-data", "unin-agp-conf-data", "pci.reg",
    "pcie-mmcfg", "pcie-mmcfg-mmio", "pcie-ecam", "i8042-data",
    "acpi-ged-regs", "pl061", "riscv.sifive.test",
])
def test_every_write_to_these_is_one(name: str) -> None:
    assert Barriers().always(device(name))


@pytest.mark.parametrize("name", ["hpet", "edu-mmio", "pci-conf-idx", "port92", "pc.ram", ""])
def test_and_to_others_not(name: str) -> None:
    assert not Barriers().always(device(name))


def test_every_write_to_flash_is_one() -> None:
    flash = MemoryRegion.rom_device("virt.flash0", 0x1000, Contract())
    assert Barriers().always(flash)
    assert not Barriers().waits(flash), "it is done before the reply"


def test_who_must_be_waited_for() -> None:
    """A new map is there before the reply; a reset comes with the main loop."""
    assert not Barriers().waits(device("pci-conf-data"))
    assert Barriers().waits(device("i8042-data")) and Barriers().waits(device("port92"))


@pytest.mark.parametrize(("name", "data", "is_one"), [
    ("lpc-reset-control", b"\x06", True), ("lpc-reset-control", b"\x02", False),
    ("piix-reset-control", b"\x04", True), ("piix3-reset-control", b"\xfb", False),
    ("port92", b"\x01", True), ("port92", b"\x02", False), ("port92", b"\xfe", False),
    # Wider than the region: all its bytes reach the same callback.
    ("port92", b"\x08\x07\x06\x05", True), ("port92", b"\x08\x02\x06\x04", False),
    ("i8042-cmd", b"\xfe", True), ("i8042-cmd", b"\xf0", True), ("i8042-cmd", b"\xaa", False),
    ("acpi-cnt", b"\x00\x20", True), ("acpi-cnt", b"\x00\x1c", False),
])
def test_where_the_value_decides(name: str, data: bytes, is_one: bool) -> None:
    barriers, region = Barriers(), device(name)
    assert barriers.may(region, True) and not barriers.may(region, False)
    assert barriers.has(region, 0, len(data), data) is is_one
    assert not barriers.has(region, 0, len(data), None), "a read is none"


def test_what_a_run_taught() -> None:
    barriers, region = Barriers(), device("dev")
    assert not barriers.may(region, True)
    barriers.learn(region, 0x12, is_write=True)
    assert barriers.may(region, True) and not barriers.may(region, False)
    for offset, size, is_one in (
        (0x10, 1, True), (0x13, 1, True), (0x0C, 4, False), (0x0E, 4, True), (0x14, 4, False),
        (0x00, 0x20, True), (0x20, 1, False), (0, 0x1000, True),
        (0x2000, 0x1000, True),  # too long to look at every word of it
    ):
        assert barriers.has(region, offset, size, bytes(size)) is is_one, (offset, size)
    assert not barriers.has(region, 0x10, 4, None), "reads there are none"
    barriers.learn(region, 0x12, is_write=False)
    assert barriers.has(region, 0x10, 4, None)


def test_what_need_not_be_learnt() -> None:
    """Where every write is one, or the value decides, a word of the region says less."""
    barriers = Barriers()
    for name in ("pci-conf-data", *BY_VALUE):
        barriers.learn(device(name), 0, is_write=True)
    assert not barriers.learnt
    barriers.learn(device("port92"), 0, is_write=False)
    assert barriers.learnt, "a read of it is another matter"


def test_regions_are_known_by_key() -> None:
    barriers = Barriers()
    one, two = device("same"), device("same")
    one.key, two.key = ("/a", "same", 0), ("/b", "same", 0)
    barriers.learn(one, 0, is_write=True)
    assert barriers.may(one, True) and not barriers.may(two, True)
    again = device("same")
    again.key = ("/a", "same", 0)
    assert barriers.has(again, 0, 1, b"\0"), "another process's region of that key is the same"
