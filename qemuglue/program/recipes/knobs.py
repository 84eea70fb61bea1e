"""Chipset registers that move or hide parts of the memory map, as data.

Sources: QEMU's ``hw/pci-host/{i440fx,q35,pam}.c``, ``hw/isa/{lpc_ich9,piix}.c``,
``hw/acpi/piix4.c``, and the data sheets they name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from qemuglue.program.recipes.pci import Function
from qemuglue.program.verbs import IO, MEMORY

#: (space, start, size): where something shows or does not.
Spot = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Which:
    """The function a knob belongs to, by slot and number."""

    slot: int
    number: int

    def means(self, function: Function) -> bool:
        return (function.bus, function.slot, function.number) == (0, self.slot, self.number)


@dataclass(frozen=True, slots=True)
class Knob:
    """``values`` are what is written to ``size`` bytes at ``register``, a common one more than
    once; ``place`` says of a value where to look. ``ecam``: it opens the ECAM window."""

    function: Which
    register: int
    size: int
    values: tuple[int, ...]
    place: Callable[[int], Spot]
    ecam: bool = False


#: Both halves of a shadow register: 0 shows PCI, 1 RAM for reads, 2 RAM for writes, 3 RAM.
_PAM = (0x00, 0x33, 0x11, 0x22, 0x13, 0x31, 0x30, 0x03, 0x10, 0x02)
_SMRAM = (0x02, 0x0A, 0x4A, 0x42, 0x2A, 0x6A)


def _fixed(space: str, start: int, size: int) -> Callable[[int], Spot]:
    return lambda value: (space, start, size)


def _base(space: str, mask: int, size: int) -> Callable[[int], Spot]:
    return lambda value: (space, value & mask, size)


def _pam(function: Which, first: int) -> Iterator[Knob]:
    """Seven registers: the BIOS area, then 32 KiB each from 0xc0000 on (``init_pam``)."""
    yield Knob(function, first, 1, (0x00, 0x10, 0x20, 0x30), _fixed(MEMORY, 0xF0000, 0x10000))
    for number in range(6):
        start = 0xC0000 + 0x8000 * number
        yield Knob(function, first + 1 + number, 1, _PAM, _fixed(MEMORY, start, 0x8000))


def _ecam_place(value: int) -> Spot:
    """PCIEXBAR: bits 2:1 are 256, 128 or 64 MiB (``mch_update_pciexbar``)."""
    size = 256 >> min(value >> 1 & 3, 2)
    return MEMORY, value & 0xF000_0000, size << 20


def knobs_of(functions: Sequence[Function]) -> tuple[Knob, ...]:
    """Those of the chipset these functions belong to; none for a machine that is no PC."""
    if any(Which(0x1F, 0).means(each) and each.kind == 0x0601 for each in functions):
        return _q35()
    if any(Which(1, 3).means(each) and each.kind == 0x0680 for each in functions):
        return _i440fx()
    return ()


def _q35() -> tuple[Knob, ...]:
    host, lpc, smbus = Which(0, 0), Which(0x1F, 0), Which(0x1F, 3)
    return (
        *_pam(host, 0x90),
        Knob(host, 0x9D, 1, _SMRAM, _fixed(MEMORY, 0xA0000, 0x20000)),
        Knob(host, 0x9E, 1, (0x00, 0x01, 0x03, 0x05, 0x81, 0x80),
             _fixed(MEMORY, 0x3F0_0000, 0x10_0000)),
        Knob(host, 0x60, 4, (0xB000_0001, 0xE000_0001, 0xB000_0003, 0xE000_0005, 0xC000_0001, 0),
             _ecam_place, ecam=True),
        # ACPI's ports: where, and whether at all.
        Knob(lpc, 0x40, 4, (0x601, 0xB01, 0xC001, 0x1, 0x601), _base(IO, 0xFF80, 0x80)),
        Knob(lpc, 0x44, 1, (0x80, 0x00), _fixed(IO, 0x600, 0x80)),
        Knob(lpc, 0xF0, 4, (0xFED1_C001, 0xFED1_C000, 0xE000_0001, 0xFEC0_0001),
             _base(MEMORY, 0xFFFF_C000, 0x4000)),
        Knob(smbus, 0x40, 1, (0, 1), _fixed(IO, 0xC040, 0x40)),
    )


def _i440fx() -> tuple[Knob, ...]:
    host, power = Which(0, 0), Which(1, 3)
    return (
        *_pam(host, 0x59),
        Knob(host, 0x72, 1, _SMRAM, _fixed(MEMORY, 0xA0000, 0x20000)),
        Knob(power, 0x40, 4, (0x601, 0xB01, 0xC001, 0x1), _base(IO, 0xFFC0, 0x40)),
        Knob(power, 0x80, 1, (0, 1), _fixed(IO, 0x600, 0x40)),
        Knob(power, 0x90, 4, (0xB101, 0xC001, 0x701), _base(IO, 0xFFC0, 0x40)),
        Knob(power, 0xD2, 1, (0, 1, 9), _fixed(IO, 0xB100, 0x40)),
    )
