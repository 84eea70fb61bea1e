"""Programs that change the memory map and, between the changes, touch what has moved.

A :class:`Topology` draws like ``generate.Generator`` (``operations(rng, n)``). It knows the
registers by which a guest moves things: base addresses, command bits, option ROMs and bridge
windows of PCI functions, the shadow and SMM registers of PC chipsets and their fixed ports, the
ECAM window, flash commands, the VGA modes, ACPI's CPU hot-plug registers. After a change it looks
at the old place, the new one, what lies there otherwise, and both sides of every border.

At least a fifth of the operations are writes that change the map (a write behind the selection of
its register, several to one register in a row), unless what it thinks is switched on is not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from qemuglue.program.generate import DEFAULT_WEIGHTS, Generator, Weights, swarm
from qemuglue.program.layout import Layout
from qemuglue.program.operation import Operation, Place
from qemuglue.program.recipes.knobs import Knob, knobs_of
from qemuglue.program.recipes.pci import (
    BRIDGE_CONTROL,
    BUSES,
    COMMAND,
    CONFIG_ADDRESS,
    CONFIG_DATA,
    HOST,
    IO_RANGE,
    MEMORY_RANGE,
    PREFETCH_RANGE,
    ROM_BAR,
    Bar,
    Config,
    Function,
    windows,
)
from qemuglue.program.verbs import ADDRESS_MASK, IO, MEMORY, PORT_MAX

#: Places a program remembers having touched or moved: the newest are looked at most.
MAX_PLACES = 12
#: Chance that an ordinary operation is drawn where anything is, not where things move.
ANYWHERE = 0.04
#: A bridge's secondary bus has one device whose registers nobody has told of; it is given these.
_BEHIND = (Bar(0, 0x1000, -1, MEMORY), Bar(1, 0x100, -1, IO), Bar(2, 0x10_0000, -1, MEMORY))
#: Decode ports and memory; no bus mastering, so that no device acts by itself.
_DECODE = 3

_READS = {MEMORY: {1: "readb", 2: "readw", 4: "readl", 8: "readq"},
          IO: {1: "inb", 2: "inw", 4: "inl"}}
_WRITES = {MEMORY: {1: "writeb", 2: "writew", 4: "writel", 8: "writeq"},
           IO: {1: "outb", 2: "outw", 4: "outl"}}
#: What turns an Intel flash chip into a device and back (``pflash_cfi01.c``).
_FLASH_COMMANDS = (0x90, 0x98, 0x70, 0x20, 0x40, 0xE8, 0xFF, 0xFF, 0xFF, 0x50, 0xF0, 0xAA)


@dataclass(slots=True)
class _State:
    """What one program has done so far, as far as it can be known without asking QEMU."""

    rng: Random
    made: list[Operation] = field(default_factory=list)
    at: dict[tuple[Function, int], int] = field(default_factory=dict)
    command: dict[Function, int] = field(default_factory=dict)
    #: (space, start, size), newest last.
    places: deque[tuple[str, int, int]] = field(
        default_factory=lambda: deque(maxlen=MAX_PLACES))

    def saw(self, space: str, start: int, size: int) -> None:
        self.places.append((space, start & (PORT_MAX if space == IO else ADDRESS_MASK), size))


class Topology:
    """``functions`` are those of ``pci.functions_of``; ``machine`` is ``TARGET/NAME``."""

    name = "change the memory map and look at what moved"

    def __init__(
        self, layout: Layout, functions: Sequence[Function] = (), machine: str = "",
        weights: Weights = DEFAULT_WEIGHTS, only: Sequence[str] = (),
    ) -> None:
        self.layout = layout
        self.functions = tuple(functions)
        self.machine = machine
        self.weights = weights
        self.config = Config(layout)
        self._window = windows(machine)
        self._anywhere = Generator(layout, weights)
        self._knobs = knobs_of(functions)
        self._with_bars = [each for each in functions if each.bars]
        self._bridges = [each for each in functions if each.is_bridge]
        self._fixed = [(each.start, each.size) for each in layout.ranges(MEMORY)
                       if each.kind in ("device", "ram", "rom", "romd")]
        self._flash = [each for each in layout.ranges(MEMORY) if each.kind == "romd"]
        ports = {each.region for each in layout.ranges(IO)}
        self._vga = "vga" in ports
        self._hotplug = "acpi-cpu-hotplug" in ports
        table: dict[str, tuple[float, bool, Callable[[_State], None]]] = {
            "bar": (10, bool(self._with_bars), self._move),
            "command": (4, bool(self._with_bars), self._switch),
            "knob": (6, bool(self._knobs), self._turn),
            "bridge": (4, bool(self._bridges), self._bridge),
            "flash": (4, bool(self._flash), self._mode),
            "vga": (1.5, self._vga, self._display),
            "hotplug": (0.2, self._hotplug, self._hot_plug),
        }
        #: Ways to change the map of this machine, by name, with their weights.
        self.ways = {name: weight for name, (weight, there, _) in table.items()
                     if there and (not only or name in only)
                     and (self.config or name in ("flash", "vga", "hotplug"))}
        self._acts = [table[name][2] for name in self.ways]

    def fits(self, layout: Layout) -> bool:
        """Whether there is anything to change."""
        return bool(self.ways)

    def wild(self, rng: Random) -> Topology:
        """The same with about half of its ways, and wild weights for what is ordinary."""
        kept = [name for name in self.ways if rng.random() < 0.5] or list(self.ways)
        return Topology(self.layout, self.functions, self.machine, swarm(rng, self.weights), kept)

    def operations(self, rng: Random, n: int) -> tuple[Operation, ...]:
        """``n`` valid operations; accesses of any kind where there is nothing to change."""
        if not self.ways:
            return self._anywhere.operations(rng, n)
        state = _State(rng)
        for function in self._with_bars:
            for bar in function.bars:
                if bar.address >= 0:
                    state.at[function, bar.number] = bar.address
                    state.command[function] = _DECODE
        while len(state.made) < n:
            rng.choices(self._acts, list(self.ways.values()))[0](state)
            if rng.random() < 0.5:
                self._look(state, 1)
        return tuple(state.made[:n])

    # -- looking ---------------------------------------------------------------------------------

    def _look(self, state: _State, count: int) -> None:
        """Ordinary accesses, most of them where things are, were or begin."""
        rng = state.rng
        for _ in range(count):
            if not state.places or rng.random() < ANYWHERE:
                state.made += self._anywhere.operations(rng, 1)
                continue
            newest = min(int(rng.expovariate(0.6)), len(state.places) - 1)
            space, start, size = state.places[-1 - newest]
            state.made.append(self._access(rng, space, start, size))

    def _access(self, rng: Random, space: str, start: int, size: int) -> Operation:
        width = rng.choice((1, 2, 4, 4) if space == IO else (1, 2, 4, 4, 8))
        edge = rng.choice((start, start + size))
        addr = rng.choice((
            start + rng.randrange(size) & -width, start + rng.randrange(min(size, 64)) & -width,
            edge - rng.randint(0, width), edge, edge - width,
        )) & (PORT_MAX if space == IO else ADDRESS_MASK)
        # By name where the map at first has one: such a program can be read, and shortened.
        place = self.layout.place_of(addr, space) if rng.random() < 0.1 else Place(None, 0, addr)
        if rng.random() < 0.7:
            return Operation(_READS[space][width], place, width)
        value = rng.getrandbits(8 * width) if rng.random() < 0.7 else 0
        return Operation(_WRITES[space][width], place, width, value)

    # -- PCI -------------------------------------------------------------------------------------

    def _write(self, state: _State, function: Function, register: int, size: int, value: int,
               *, selected: bool = False) -> None:
        if not selected:
            state.made += self.config.select(function, register)
        state.made.append(self.config.write(function, register, size, value))

    def _decoded(self, state: _State, function: Function) -> None:
        """Have the function decode, mostly, so that where its registers are matters."""
        if state.command.get(function, 0) & _DECODE != _DECODE and state.rng.random() < 0.9:
            self._write(state, function, COMMAND, 2, _DECODE)
            state.command[function] = _DECODE

    def _move(self, state: _State, function: Function | None = None) -> None:
        """One base address, a few values in a row, with looks between them."""
        rng = state.rng
        function = function or rng.choice(self._with_bars)
        bar = rng.choice(function.bars)
        self._decoded(state, function)
        register = bar.register(function.is_bridge)
        state.made += self.config.select(function, register)
        for _ in range(rng.randint(1, 4)):
            old = state.at.get((function, bar.number))
            if old is not None:
                state.saw(bar.space, old, bar.size)
            new = self._address(state, bar)
            flag = 1 if bar.number == ROM_BAR and rng.random() < 0.8 else 0
            self._write(state, function, register, 4, new & 0xFFFF_FFFF | flag, selected=True)
            state.at[function, bar.number] = new & -bar.size
            state.saw(bar.space, new & -bar.size, bar.size)
            self._look(state, rng.choice((0, 1, 1, 2)))
        if bar.wide and rng.random() < 0.3:
            high = rng.choice((0, 0, 1, 0xFFFF_FFFF, 0x80))
            self._write(state, function, register + 4, 4, high)
            state.saw(bar.space, (high << 32) + state.at[function, bar.number], bar.size)
            self._look(state, 1)

    def _address(self, state: _State, bar: Bar) -> int:
        """Where to put a base address: free, over another's, over what cannot be moved, off.
        Never over the ports that configure: nothing could be moved any more."""
        at = self._somewhere(state, bar)
        masked = at & -bar.size & PORT_MAX
        if bar.space == IO and masked <= CONFIG_DATA + 3 and masked + bar.size > CONFIG_ADDRESS:
            return self._window[2]
        return at

    def _somewhere(self, state: _State, bar: Bar) -> int:
        rng = state.rng
        low, last = self._window[2:] if bar.space == IO else self._window[:2]
        draw = rng.random()
        others = [(at, size) for space, at, size in state.places if space == bar.space]
        if draw < 0.30 and others:  # beside, over, and half over something
            at, size = rng.choice(others)
            return max(0, at + rng.choice((-bar.size, 0, 0, size, size // 2, bar.size)))
        if draw < 0.40:
            return rng.choice((0xFFFF_FFFF, 0, last + 1 - bar.size))
        if draw < 0.52 and bar.space == MEMORY:
            at, size = rng.choice(self._fixed)
            return at + rng.randrange(size) if rng.random() < 0.5 else max(0, at - bar.size // 2)
        if draw < 0.52:
            return rng.choice((0x3C0, 0x600, 0xCC0, 0xFF80, 0x1000, 0x0))
        places = max(1, (last + 1 - low) // bar.size)
        return low + rng.randrange(min(places, 8)) * bar.size

    def _switch(self, state: _State) -> None:
        """Decoding on and off, and bus mastering for a moment in which nothing is touched."""
        rng = state.rng
        function = rng.choice(self._with_bars)
        places = [(bar.space, state.at[function, bar.number], bar.size)
                  for bar in function.bars if (function, bar.number) in state.at]
        state.made += self.config.select(function, COMMAND)
        for _ in range(rng.randint(2, 4)):
            value = rng.choice((0, 1, 2, 3, 3))
            if rng.random() < 0.15:
                self._write(state, function, COMMAND, 2, _DECODE | 4, selected=True)
                value = _DECODE
            self._write(state, function, COMMAND, 2, value, selected=True)
            state.command[function] = value
            if places:
                state.saw(*rng.choice(places))
            self._look(state, rng.choice((0, 1, 1, 2)))
        self._decoded(state, function)

    def _bridge(self, state: _State) -> None:
        """A bridge's buses and windows, and the device behind it."""
        rng = state.rng
        bridge = rng.choice(self._bridges)
        bus = 1 + self._bridges.index(bridge) % 200
        if state.command.get(bridge) is None or rng.random() < 0.1:
            self._write(state, bridge, BUSES, 4, bus << 16 | bus << 8)
            self._write(state, bridge, COMMAND, 2, _DECODE)
            state.command[bridge] = _DECODE
        start = self._window[0] + rng.randrange(0, 0x100) * 0x10_0000
        draw = rng.randrange(6)
        if draw < 3:
            register = rng.choice((MEMORY_RANGE, MEMORY_RANGE, PREFETCH_RANGE))
            state.made += self.config.select(bridge, register)
            for _ in range(rng.randint(1, 3)):
                last = start + rng.choice((0, 0x10_0000, 0x80_0000, -0x10_0000))
                value = (start >> 16 & 0xFFF0) | (last >> 16 & 0xFFF0) << 16
                self._write(state, bridge, register, 4, value, selected=True)
                state.saw(MEMORY, start, 0x10_0000)
                self._look(state, rng.choice((0, 1)))
        elif draw < 4:
            first = rng.choice((0xC, 0xD, 0x1, 0xF)) << 4
            self._write(state, bridge, IO_RANGE, 2, first | rng.choice((first, 0xF0, 0x00)) << 8)
            state.saw(IO, first << 8, 0x1000)
        elif draw < 5:
            self._write(state, bridge, BRIDGE_CONTROL, 2, rng.choice((0, 8, 0x18, 0)))
            state.saw(MEMORY, 0xA0000, 0x20000)
        self._look(state, 1)
        self._move(state, Function(bus, 0, 0, 0x00FF, _BEHIND))

    def _turn(self, state: _State) -> None:
        """A register of the chipset, a few values in a row."""
        rng = state.rng
        knob: Knob = rng.choice(self._knobs)
        function = next((each for each in self.functions if knob.function.means(each)), HOST)
        state.made += self.config.select(function, knob.register)
        for _ in range(rng.randint(2, 4)):
            value = rng.choice(knob.values)
            self._write(state, function, knob.register, knob.size, value, selected=True)
            state.saw(*knob.place(value))
            self._look(state, rng.choice((0, 1, 1)))
        if knob.ecam and rng.random() < 0.7:
            self._by_window(state)

    def _by_window(self, state: _State) -> None:
        """A base address moved through the ECAM window that has just been opened."""
        rng = state.rng
        if not self._with_bars:
            return
        function = rng.choice(self._with_bars)
        bar = rng.choice(function.bars)
        base = next((start for space, start, size in reversed(state.places)
                     if space == MEMORY and size >= 64 << 20), 0xB000_0000)
        register = bar.register(function.is_bridge)
        addr = base + (function.slot << 15 | function.number << 12) + register
        for _ in range(rng.randint(1, 3)):
            new = self._address(state, bar) & -bar.size
            state.made.append(Operation("writel", Place(None, 0, addr & ADDRESS_MASK), 4,
                                        new & 0xFFFF_FFFF))
            state.at[function, bar.number] = new
            state.saw(bar.space, new, bar.size)
            self._look(state, rng.choice((0, 1)))

    # -- the rest --------------------------------------------------------------------------------

    def _mode(self, state: _State) -> None:
        """Flash: commands that make it a device, and one that makes it memory again."""
        rng = state.rng
        chip = rng.choice(self._flash)
        at = chip.start + (rng.randrange(chip.size) & -0x1000)
        for _ in range(rng.randint(1, 3)):
            value = rng.choice(_FLASH_COMMANDS)
            width = rng.choice((1, 2, 4))
            both = value * 0x0001_0001 & (1 << 8 * width) - 1
            state.made.append(Operation(_WRITES[MEMORY][width], Place(None, 0, at), width, both))
            state.saw(MEMORY, at, 0x40)
            self._look(state, rng.choice((0, 1)))
        state.made.append(Operation("writeb", Place(None, 0, at), 1, 0xFF))

    def _display(self, state: _State) -> None:
        """VGA: chained or planar, one of four windows at 0xa0000."""
        rng = state.rng
        index, register = rng.choice(((0x3C4, 4), (0x3CE, 6)))
        state.made.append(Operation("outb", Place(None, 0, index), 1, register))
        for _ in range(rng.randint(1, 4)):
            state.made.append(
                Operation("outb", Place(None, 0, index + 1), 1, rng.choice((0, 2, 4, 8, 0xC, 0xE))))
            state.saw(MEMORY, rng.choice((0xA0000, 0xB0000, 0xB8000)), 0x8000)
            self._look(state, rng.choice((0, 1)))

    def _hot_plug(self, state: _State) -> None:
        """A zero to ACPI's legacy CPU hot-plug bitmap puts other registers in its place."""
        rng = state.rng
        start = next(each.start for each in self.layout.ranges(IO)
                     if each.region == "acpi-cpu-hotplug")
        state.made.append(Operation("outb", Place(None, 0, start), 1, 0))
        state.saw(IO, start, 12)
        self._look(state, rng.randint(1, 3))
