"""Trace events: which are chosen, what is made of a line, when one goes off."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from qemuglue.campaign import trace_events
from qemuglue.campaign.trace_events import (
    MAX_SHAPES,
    WINDOW,
    TraceEvents,
    choose,
    patterns,
    shape_of,
    words_of,
)
from qemuglue.qemu.config import VmMode

KNOWN = [
    "e1000e_core_write", "e1000e_tx_descr", "e1000e_irq_itr_set", "e1000e_rx_timer",
    "e1000_receiver_overrun", "usb_xhci_port_link", "usb_ehci_reset", "pci_cfg_write",
    "lockcnt_unlock_attempt", "resettable_reset", "memory_region_ops_read", "cpu_in",
    "bdrv_co_preadv", "virtio_notify", "hpet_ram_read", "sun4m_iommu_mem_readl",
]


def test_chosen_are_those_of_the_machine_and_no_plumbing() -> None:
    words = words_of(["e1000e", "qemu-xhci", "virtio-rng-pci", "e1000e-mmio", "cpu", "memory"])
    assert choose(KNOWN, words) == [
        "e1000e_core_write", "e1000e_irq_itr_set", "e1000e_tx_descr", "pci_cfg_write",
        "usb_xhci_port_link", "virtio_notify",
    ], "the timer is asynchronous, USB's other controller is not there"


def test_in_parked_mode_interrupts_come_by_themselves() -> None:
    words = words_of(["e1000e"])
    assert "e1000e_irq_itr_set" in choose(KNOWN, words)
    assert "e1000e_irq_itr_set" not in choose(KNOWN, words, parked=True)
    assert "e1000e_core_write" in choose(KNOWN, words, parked=True)


def test_patterns_switch_on_the_chosen_and_nothing_else() -> None:
    chosen = [name for name in KNOWN if name.startswith(("e1000e_", "usb_xhci", "pci"))]
    made = patterns(chosen, KNOWN)
    assert made == ["e1000e_*", "pci_*", "usb_xhci_*"]
    alone = patterns(["e1000e_core_write", "pci_cfg_write"], KNOWN)
    assert alone == ["e1000e_core_*", "pci_*"]


@pytest.mark.parametrize(("line", "shape"), [
    (b"e1000e_core_write Write to register 0x4, 4 byte(s), value: 0x140",
     "e1000e_core_write Write to register 3, 3 byte(s), value: 9"),
    (b"pci_cfg_write e1000e 00:04.0 @0x4 <- 0x7", "pci_cfg_write e1000e 0:3.0 @3 <- 3"),
    (b"x_y opaque 0x55d0c0ffee00 n -5", "x_y opaque * n 3"),
    (b"x_y \xff\xfe 0x" + b"f" * 400, None),
    (b"x_y 9999999999999999999999999999999999999999", "x_y *"),
])
def test_a_shape_has_widths_for_numbers(line: bytes, shape: str | None) -> None:
    made = shape_of(line)
    assert shape is None or made == shape
    assert made == shape_of(line) and made.isascii()


class FakeMonitor:
    def __init__(self) -> None:
        self.on: set[str] = set()
        self.commands: list[tuple[str, bool]] = []

    def execute(self, command: str, arguments: Any = None) -> Any:
        if command == "trace-event-get-state":
            return [{"name": name, "state": "disabled"} for name in KNOWN]
        self.commands.append((arguments["name"], arguments["enable"]))
        return {}

    def hmp(self, line: str) -> str:
        return "  dev: e1000e, id \"\"\n      bus: pcie.0\n"


def fake_session() -> Any:
    process = SimpleNamespace(monitor=FakeMonitor())
    return SimpleNamespace(process=process, device_regions=lambda: iter(()),
                           config=SimpleNamespace(target="x86_64", mode=VmMode.STOPPED))


def test_a_loud_event_goes_off_and_stays_off() -> None:
    events, session = TraceEvents(), fake_session()
    events.attach(session)
    assert set(events.names.values()) == {
        "e1000e_core_write", "e1000e_tx_descr", "e1000e_irq_itr_set"}
    assert session.process.monitor.commands == [("e1000e_*", True), ("e1000e_rx_timer", False)]
    for _ in range(2 * WINDOW):
        events.counted("e1000e_core_write")
    for _ in range(10):
        events.counted("e1000e_tx_descr")
    assert events.settle(session, WINDOW) == ["e1000e_core_write"]
    assert session.process.monitor.commands[-1] == ("e1000e_core_write", False)
    assert b"e1000e_core_write" not in events.names
    assert events.off["e1000e_core_write"] == 2.0
    again = fake_session()
    events.attach(again)
    assert ("e1000e_core_write", False) in again.process.monitor.commands
    assert b"e1000e_core_write" not in events.names


def test_a_flood_is_not_waited_for_and_a_quiet_event_stays() -> None:
    events, session = TraceEvents(), fake_session()
    events.attach(session)
    for _ in range(trace_events.FLOOD + 1):
        events.counted("e1000e_tx_descr")
    assert events.settle(session, 64) == ["e1000e_tx_descr"]
    events.counted("e1000e_core_write")
    assert events.settle(session, WINDOW) == []


def test_many_together_lose_the_loudest_first() -> None:
    events, session = TraceEvents(), fake_session()
    events.attach(session)
    for name, lines in (("e1000e_core_write", 0.9), ("e1000e_tx_descr", 0.8),
                        ("e1000e_irq_itr_set", 0.7)):
        for _ in range(int(lines * WINDOW)):
            events.counted(name)
    assert events.settle(session, WINDOW) == ["e1000e_core_write"]


def test_shapes_of_one_event_are_limited() -> None:
    events = TraceEvents()
    made = [events.shape("a", b"a word%d_x" % number) for number in range(2 * MAX_SHAPES)]
    assert sum(shape is not None for shape in made) == MAX_SHAPES
    assert events.shape("b", b"b 1") is not None


def test_a_hostile_list_of_events_is_cut_down(monkeypatch: pytest.MonkeyPatch) -> None:
    session = fake_session()
    answers: list[Any] = [17, [1, None, {"name": 3}, {"name": "e1000e_a;quit"},
                               {"name": "e1000e_b"}]]
    for answer in answers:
        monitor = session.process.monitor
        monkeypatch.setattr(monitor, "execute", lambda *a, answer=answer: answer)
        events = TraceEvents()
        events.attach(session)
        assert set(events.names) <= {b"e1000e_b"}
