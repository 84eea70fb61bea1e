"""The set-up that makes PCI devices answer, from a made-up ``query-pci``."""

from __future__ import annotations

from typing import Any

import pytest

from qemuglue.errors import ProtocolError
from qemuglue.program.recipes.pci import windows
from qemuglue.witness.pci import pci_setup

MEMORY_WINDOW, IO_WINDOW = windows("x86_64/q35")[:2], windows("x86_64/q35")[2:]


class FakeMonitor:
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def execute(self, command: str) -> Any:
        assert command == "query-pci"
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def region(bar: int, size: int, kind: str = "memory", **more: object) -> dict[str, object]:
    return {"bar": bar, "type": kind, "size": size, "address": -1, **more}


def pci_device(slot: int, *regions: dict[str, object], function: int = 0, cls: int = 0xFF) -> Any:
    return {"slot": slot, "function": function, "class_info": {"class": cls},
            "regions": list(regions)}


def set_up(*devices: Any, machine: str = "x86_64/q35") -> list[tuple[int, int]]:
    """(configuration address without its enable bit, value written)."""
    ops = pci_setup(FakeMonitor([{"bus": 0, "devices": list(devices)}]), machine)  # type: ignore[arg-type]
    words = [(op.place.offset, op.value) for op in ops if op.place is not None]
    assert [port for port, _ in words] == [0xCF8, 0xCFC] * (len(words) // 2)
    assert all(op.verb == "outl" for op in ops)
    assert all(value & 1 << 31 for port, value in words if port == 0xCF8)
    return [(address & 0x7FFFFFFF, value)
            for (_, address), (_, value) in zip(words[::2], words[1::2], strict=True)]


def test_a_device_gets_its_place_and_is_switched_on() -> None:
    assert set_up(pci_device(3, region(0, 0x100000))) == [
        (3 << 11 | 0x10, MEMORY_WINDOW[0]),
        (3 << 11 | 0x04, 0x3),
    ]


def test_bus_mastering_stays_off() -> None:
    written = set_up(pci_device(3, region(0, 0x1000)), pci_device(4))
    assert [value for address, value in written if address & 0xFF == 4] == [0x3, 0x3]


def test_devices_may_master_the_bus_if_asked() -> None:
    devices = [pci_device(3, region(0, 0x1000)), pci_device(4, cls=0x0601)]
    monitor = FakeMonitor([{"bus": 0, "devices": devices}])
    ops = pci_setup(monitor, "x86_64/q35", masters=True)  # type: ignore[arg-type]
    assert [op.value for op in ops if op.place is not None and op.place.offset == 0xCFC] == [
        MEMORY_WINDOW[0], 0x7, 0x7]


def test_windows_are_filled_in_order_and_aligned() -> None:
    written = set_up(
        pci_device(1, region(0, 0x1000), region(1, 0x20, "io")),
        pci_device(2, region(0, 0x4000), region(2, 0x100, "io")),
        pci_device(3, region(5, 0x1000), function=1),
    )
    assert written == [
        (1 << 11 | 0x10, MEMORY_WINDOW[0]), (1 << 11 | 0x14, IO_WINDOW[0]), (1 << 11 | 0x04, 3),
        (2 << 11 | 0x10, MEMORY_WINDOW[0] + 0x4000), (2 << 11 | 0x18, IO_WINDOW[0] + 0x100),
        (2 << 11 | 0x04, 3),
        (3 << 11 | 1 << 8 | 0x24, MEMORY_WINDOW[0] + 0x8000), (3 << 11 | 1 << 8 | 0x04, 3),
    ]


def test_the_high_half_of_a_64_bit_address_is_zero() -> None:
    assert set_up(pci_device(1, region(4, 0x4000, mem_type_64=True)))[:2] == [
        (1 << 11 | 0x20, MEMORY_WINDOW[0]), (1 << 11 | 0x24, 0)]


def test_what_is_left_as_it_is() -> None:
    assert set_up(pci_device(0, region(0, 0x1000), cls=0x0604)) == [], "a bridge"
    assert set_up(pci_device(1, region(6, 0x1000))) == [(1 << 11 | 4, 3)], "a ROM"
    assert set_up(pci_device(1, region(0, 0))) == [(1 << 11 | 4, 3)], "no size"
    assert set_up(pci_device(1, region(0, 1 << 30))) == [(1 << 11 | 4, 3)], "it does not fit"
    assert set_up(pci_device(1, region(0, 1 << 30), region(1, 0x1000)))[0][1] == MEMORY_WINDOW[0]


@pytest.mark.parametrize("answer", [
    [], {}, None, ProtocolError("The command query-pci has not been found", channel="QMP"),
])
def test_machines_without_pci(answer: Any) -> None:
    assert pci_setup(FakeMonitor(answer), "x86_64/q35") == ()  # type: ignore[arg-type]


def test_only_boards_that_are_known_are_set_up() -> None:
    answer = [{"bus": 0, "devices": [pci_device(1, region(0, 0x1000))]}]
    assert pci_setup(FakeMonitor(answer), "aarch64/raspi3b") == ()  # type: ignore[arg-type]
    assert pci_setup(FakeMonitor(answer), "i386/pc") != ()  # type: ignore[arg-type]
