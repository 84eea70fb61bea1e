"""Is a machine as new again after a restart, a snapshot, a reset? Measured, per machine.

A *picture* of a machine is its memory map, what every device region answers when it is read, and
what is in RAM. Pictures of two fresh processes tell what no two agree on (clocks, seeds): that is
*volatile*, and named. Then, for each way back into the first state, a random program is performed,
the state is brought back, and the picture must be that of a fresh process, but for what is
volatile. That reads have side effects does no harm: each picture is the last thing that happens in
its state, and its reads are always the same.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Final

from qemuglue.campaign.restoring import Method, Stand
from qemuglue.errors import EnvironmentFailure, QemuFailure, UsageError
from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.region import RegionKind
from qemuglue.mirror import Mirror
from qemuglue.program.generate import Generator
from qemuglue.program.layout import Layout
from qemuglue.program.verbs import IO, MEMORY
from qemuglue.qemu.guest_ram import ProcMem
from qemuglue.qemu.process import QemuProcess
from qemuglue.qemu.qtest import QtestDied, QtestHang
from qemuglue.witness.face import encode
from qemuglue.witness.judge import Scene, resolve
from qemuglue.witness.oddities import Avoided
from qemuglue.witness.ram import PAGE, ram_regions
from qemuglue.witness.ramsource import source_for
from qemuglue.witness.session import Step

#: Programs between two pictures of one way back.
ROUNDS: Final = 3

#: Operations of such a program: enough to leave traces in most devices of a board.
OPERATIONS: Final = 400

#: Reads of one region: its beginning word by word, then places spread over the rest.
FIRST_READS, SPREAD_READS = 32, 32

#: Processes that may die under a picture's reads or a program; the region is left out then.
MAX_DEATHS = 16

#: Two fresh pictures are at least this far apart, so that a clock of seconds has moved.
APART_S = 1.1

#: Differences listed of one way back; more of them say nothing new.
MAX_LISTED = 8

#: A line of the map: space, start, size, region, offset, kind.
Line = tuple[str, int, int, str, int, str]


@dataclass(frozen=True, slots=True)
class Picture:
    """``map``; what reads of (region, "memory" or "io", address) answered; digests of the pages
    of RAM that are not zero, by (region, number)."""

    map: frozenset[Line]
    registers: Mapping[tuple[str, str, int], bytes]
    ram: Mapping[tuple[str, int], bytes]

    def differing(self, other: Picture) -> set[object]:
        """Keys of everything in which the two differ."""
        found: set[object] = set(self.map ^ other.map)
        found.update(_parted(self.registers, other.registers))
        found.update(_parted(self.ram, other.ram))
        return found


def _parted(ours: Mapping[Any, bytes], theirs: Mapping[Any, bytes]) -> set[Any]:
    return {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}


@dataclass(slots=True)
class Verdict:
    """One way back on one machine. ``clean`` holds for ``rounds`` programs; ``why`` says what was
    not as new, or why the way is closed. ``seconds`` is one restoring, on average."""

    method: Method
    clean: bool = False
    rounds: int = 0
    why: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(slots=True)
class Cleanness:
    """What was found of one machine. ``volatile`` are names of what no two processes agree on;
    ``left_out`` regions whose reads end QEMU."""

    machine: str
    build: str
    mode: str
    verdicts: dict[Method, Verdict] = field(default_factory=dict)
    volatile: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    ranges: int = 0
    registers: int = 0
    pages: int = 0


def cleanness(
    stage: Scene, *, methods: Sequence[Method] = tuple(Method), rounds: int = ROUNDS,
    seed: int = 0, sleep: Callable[[float], None] = time.sleep,
) -> Cleanness:
    """Look at every way back. ``seed`` draws the programs.

    :raise QemuFailure: the machine does not even start.
    """
    return _Look(stage, rounds, seed, sleep).run(methods)


def refuse_unclean(stage: Scene, method: Method) -> None:
    """Look at one way back.

    :raise UsageError: the machine is not as new after it; says what differs.
    """
    verdict = cleanness(stage, methods=(method,)).verdicts[method]
    if not verdict.clean:
        raise UsageError(
            f"{stage.config.full_name} is not as new after a {method.value} "
            f"({verdict.why[0]}); use --state fresh"
        )


class _Look:
    """The work of :func:`cleanness`."""

    def __init__(
        self, stage: Scene, rounds: int, seed: int, sleep: Callable[[float], None]
    ) -> None:
        self._stage = stage
        # Nobody reads its transcript here.
        self._config = replace(stage.config, transcript=False)
        self._rounds = rounds
        self._seed = seed
        self._sleep = sleep
        #: Regions whose reads end QEMU, and those that a program ended it in.
        self._deadly: set[str] = set()
        self._ending: set[str] = set()
        self._deaths = 0
        self._setup: list[Step] = []
        self._layout: Layout
        self._avoided: Avoided

    def run(self, methods: Sequence[Method]) -> Cleanness:
        config = self._config
        found = Cleanness(config.full_name, config.build.name, config.mode.value)
        with self._stage.session() as session:
            self._setup = list(session.setup_steps)
            self._layout = session.layout()
            self._avoided = session.avoided
        new, volatile = self._fresh(found)
        for method in methods:
            self._deaths = 0
            found.verdicts[method] = self._verdict(method, new, volatile)
        found.volatile = sorted({_name(key) for key in volatile})
        found.left_out = sorted(self._deadly)
        return found

    def _fresh(self, found: Cleanness) -> tuple[Picture, set[object]]:
        """The picture of a fresh process, and in what another one differs."""
        while True:
            known = len(self._deadly)
            with Stand(self._config, self._setup, Method.FRESH) as stand:
                first = self._picture(stand)
                self._sleep(APART_S)
                volatile: set[object] = set()
                for _ in range(2):
                    volatile |= _widened(first.differing(self._picture(stand)))
            if len(self._deadly) == known:  # else the first picture has what the last has not
                found.ranges, found.registers = len(first.map), len(first.registers)
                found.pages = len(first.ram)
                return first, volatile

    def _verdict(self, method: Method, new: Picture, volatile: set[object]) -> Verdict:
        verdict = Verdict(method)
        spent, restored = 0.0, 0
        with Stand(self._config, self._setup, method) as stand:
            try:
                stand.clean()
                for number in range(self._rounds):
                    self._perform(stand, Random(f"{self._seed} {number}"))
                    start = time.perf_counter()
                    stand.clean()
                    spent, restored = spent + time.perf_counter() - start, restored + 1
                    differing = new.differing(self._picture(stand, cleaned=True)) - volatile
                    differing -= {key for key in differing if self._is_deadly(key)}
                    verdict.rounds += 1
                    if method is Method.FRESH:  # by definition; only the map must not differ
                        volatile |= _widened(differing)
                        differing = {key for key in differing if _is_line(key)}
                    if differing:
                        verdict.why = _listed(differing)
                        break
            except (EnvironmentFailure, QemuFailure) as error:
                verdict.why = [str(error)]
        verdict.clean = not verdict.why
        verdict.seconds = spent / restored if restored else 0.0
        return verdict

    def _is_deadly(self, key: object) -> bool:
        return isinstance(key, tuple) and key[0] in self._deadly

    # -- a program -----------------------------------------------------------------------------

    def _perform(self, stand: Stand, rng: Random) -> None:
        """A random program, unless QEMU dies of it: then as far as it goes, and another one."""
        operations = Generator(self._layout).operations(rng, OPERATIONS)
        process = stand.clean()
        for op, addr in resolve(self._layout, operations):
            if op.verb == "reset" or self._untouchable(op.verb, addr):
                continue
            try:
                process.channel.exchange(encode(op, addr), 1)
            except (QtestDied, QtestHang):
                self._ending.add(self._region(op.verb, addr))
                self._died()
                stand.drop()
                process = stand.clean()

    def _region(self, verb: str, addr: int) -> str:
        space = IO if verb.startswith(("in", "out")) else MEMORY
        return self._layout.range_at(addr, space).region

    def _untouchable(self, verb: str, addr: int) -> bool:
        region = self._region(verb, addr)
        return bool(region) and (
            region in self._ending or self._avoided.why(region) is not None)

    def _died(self) -> None:
        self._deaths += 1
        if self._deaths > MAX_DEATHS:
            raise EnvironmentFailure(
                f"{self._config.full_name} ended {MAX_DEATHS} times while it was looked at")

    # -- a picture -----------------------------------------------------------------------------

    def _picture(self, stand: Stand, *, cleaned: bool = False) -> Picture:
        """Of the first state (``cleaned``: it has just been brought back). A read that ends QEMU
        puts its region on the list of those left out, and the picture is taken anew."""
        while True:
            process = stand.clean() if not cleaned else stand.current()
            mirror = Mirror.take(process.monitor.hmp)
            ram = _ram(process, mirror)
            registers: dict[tuple[str, str, int], bytes] = {}
            region = ""
            try:
                for space, region, reads in self._reads(mirror):
                    lines = _answers(process, space, reads)
                    registers.update(
                        ((region, space, addr), line)
                        for addr, line in zip(reads, lines, strict=True))
                return Picture(_map(mirror), registers, ram)
            except (QtestDied, QtestHang):
                self._deadly.add(region)
                self._died()
                stand.drop()
                cleaned = False

    def _reads(self, mirror: Mirror) -> list[tuple[str, str, list[int]]]:
        """(space, region, addresses) of the reads of a picture, in a fixed order."""
        found = []
        for name, space in ((MEMORY, mirror.memory), (IO, mirror.io)):
            for section in space.view.sections if space is not None else ():
                region = section.region
                if region.kind not in (RegionKind.IO, RegionKind.RAM_DEVICE):
                    continue
                if region.name in self._deadly or self._avoided.why(region.name) is not None:
                    continue
                places = _places(name, section.start, section.size)
                if places:
                    found.append((name, region.name, places))
        return found


def _places(space: str, start: int, size: int) -> list[int]:
    step = 1 if space == IO else 4
    count = size // step
    chosen = set(range(min(count, FIRST_READS)))
    chosen.update(count * each // SPREAD_READS for each in range(SPREAD_READS))
    return [start + step * each for each in sorted(chosen) if each < count]


def _answers(process: QemuProcess, space: str, reads: list[int]) -> list[bytes]:
    word = b"inb 0x%x\n" if space == IO else b"readl 0x%x\n"
    request = b"".join(word % addr for addr in reads)
    return process.channel.exchange(request, len(reads)).splitlines()


def _map(mirror: Mirror) -> frozenset[Line]:
    spaces: list[AddressSpace] = list(mirror.spaces)
    return frozenset(
        (space.name, each.start, each.size, each.region.name, each.offset, each.region.kind.value)
        for space in spaces for each in space.view.sections
    )


def _ram(process: QemuProcess, mirror: Mirror) -> dict[tuple[str, int], bytes]:
    """Digests of the pages that are not zero; regions that cannot be read have none."""
    pages: dict[tuple[str, int], bytes] = {}
    with ProcMem(process.pid) as memory:
        for region in ram_regions(mirror.memory.view):
            source = source_for(process, memory, mirror.memory, region)
            for offset, size in source.extents() if source is not None else ():
                assert source is not None
                data = source.read(offset, size)
                for at in range(0, len(data), PAGE):
                    page = data[at : at + PAGE]
                    if page.count(0) != len(page):
                        digest = hashlib.blake2b(page, digest_size=8).digest()
                        pages[region.name, (offset + at) // PAGE] = digest
    return pages


def _is_line(key: object) -> bool:
    """Whether what differs is the map."""
    return isinstance(key, tuple) and len(key) == 6


def _widened(keys: set[object]) -> set[object]:
    """With the other half of a register of 8 bytes: that of a clock moves on more slowly."""
    found = set(keys)
    for key in keys:
        if isinstance(key, tuple) and len(key) == 3 and key[1] == MEMORY:
            found.add((key[0], key[1], key[2] ^ 4))
    return found


# Section: words


def _name(key: object) -> str:
    """What differs, by its kind and region."""
    assert isinstance(key, tuple)
    if _is_line(key):
        return f"map: {key[3]}"
    return f"register: {key[0]}" if len(key) == 3 else f"RAM: {key[0]}"


def _words(key: object) -> str:
    """One difference in full."""
    assert isinstance(key, tuple)
    if _is_line(key):
        return f"map: {key[3]} at {key[1]:#x} of {key[0]}"
    if len(key) == 3:
        return f"register: {key[0]} at {key[2]:#x}"
    return f"RAM: {key[0]}+{key[1] * PAGE:#x}"


def _listed(differing: set[object]) -> list[str]:
    """The first of each kind and region, then how many there are."""
    first: dict[str, str] = {}
    for words, name in sorted((_words(key), _name(key)) for key in differing):
        first.setdefault(name, words)
    listed = list(first.values())[:MAX_LISTED]
    if len(differing) > len(listed):
        listed.append(f"{len(differing):,} differences in all")
    return listed
