"""LiveMachine: a running QEMU as a model that is really there.

::

    with LiveMachine("x86_64/q35") as live:
        live.memory.store(0x1000, Le32(42))          # the C face
        memory = live.face("vm-memory")              # or any other face of ``memory.faces``

The memory map is mirrored. RAM and ROM are QEMU's own bytes: main memory is shared with QEMU, all
else is read and written in its process. A device is asked through qtest, one sized access for each
dispatch (``live_device``). What each device takes was asked of another QEMU before, which was
thrown away (0.3 to 1 s; ``contracts`` gives what is known already); a device of which that
could not be found out is handed every access as it is, and QEMU cuts or refuses it by itself.

Nothing waits for ever. A QEMU that ends raises QemuDied from whatever was under way.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from types import TracebackType
from typing import Any

from qemuglue.errors import LaunchError, ModelError
from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.contract import UNASSIGNED_CONTRACT, Contract
from qemuglue.memory.faces import put_on
from qemuglue.memory.region import MemoryRegion, RegionKind
from qemuglue.memory.rules import Rules, rules_for
from qemuglue.mirror import Mirror
from qemuglue.qemu.backings import SharedBacking
from qemuglue.qemu.builds import Build, find_build
from qemuglue.qemu.config import QemuConfig, machine_name
from qemuglue.qemu.events import Event, parse
from qemuglue.qemu.guest_ram import ProcMem, default_ram_id
from qemuglue.qemu.process import QemuProcess
from qemuglue.witness.contracts import Contracts
from qemuglue.witness.judge import Scene, prepare
from qemuglue.witness.live_device import ANY_ACCESS, LiveDevices, LiveSpace, Told
from qemuglue.witness.oddities import avoided
from qemuglue.witness.ramsource import live_backing
from qemuglue.witness.session import Knowledge

#: Main memory where nothing is said: small, and every machine that is asked for it takes it.
DEFAULT_RAM = "64M"


class LiveMachine:
    """Use as a context manager. ``machine`` is ``TARGET/NAME``, started with ``args`` and ended at
    the end; or a QemuProcess that runs, which is left running.

    ``build`` is a Build, a build's name or path, or None for the default one. ``rules`` are those
    the model goes by (default: those of QEMU's version). ``record`` keeps what QEMU logs for
    ``told.take()``.

    :raise UsageError: no machine could be called that.
    :raise EnvironmentFailure: there is no such build, or QEMU does not start.
    :raise QemuFailure: it starts and then fails.
    """

    def __init__(
        self, machine: str | QemuProcess = "x86_64/q35", *, build: Build | str | None = None,
        args: Sequence[str] = (), ram: str | None = DEFAULT_RAM,
        contracts: Contracts | None = None, rules: Rules | None = None, record: bool = False,
    ) -> None:
        self._machine = machine
        self._build = build
        self._args = tuple(args)
        self._ram = ram
        self._known = contracts
        self._wanted_rules = rules
        self._open = ExitStack()
        self._backings: dict[MemoryRegion, SharedBacking] = {}
        self._attached: set[MemoryRegion] = set()
        self._spaces: set[AddressSpace] = set()
        self._true: dict[MemoryRegion, Contract] = {}
        self._unparsed = b""
        #: What QEMU logged of the accesses made.
        self.told = Told(kept=record)
        #: Names of RAM and ROM regions whose bytes cannot be reached from outside.
        self.unreached: set[str] = set()

    process: QemuProcess
    mirror: Mirror

    def __enter__(self) -> LiveMachine:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of QEMU's memory, and end a QEMU that was started here; idempotent. Memory that
        somebody still points at (``get_host_address``) stays mapped until he lets go of it."""
        for region in self._attached:
            region.backing = None
        for space in self._spaces:
            space.rules = space.rules  # forgets the bytes that it has at hand
        for backing in self._backings.values():
            backing.close()
        self._backings.clear()
        with suppress(BufferError):
            self._open.close()

    # -- what it is for ------------------------------------------------------------------------

    @property
    def memory(self) -> AddressSpace:
        """The guest's memory as its first CPU sees it, with the C face."""
        return self.mirror.memory

    @property
    def io(self) -> AddressSpace:
        """The guest's ports. Raises ModelError for a machine that has none."""
        if self.mirror.io is None:
            raise ModelError("this machine has no ports")
        return self.mirror.io

    def face(self, name: str, space: AddressSpace | None = None) -> Any:
        """The face of that name (``memory.faces.FACES``) on ``space`` (default: the memory), as
        its map is now. Raises UsageError for a name that no face has."""
        if self.told.remapped:
            self.refresh()
        return put_on(name, self.memory if space is None else space)

    def refresh(self) -> None:
        """Take the memory map again, after something was done that changed it. Faces made before
        keep the map that they were made with."""
        self.told.remapped = False
        self.mirror.refresh(self.process.monitor.hmp)
        self._attach()

    # -- starting ------------------------------------------------------------------------------

    def _start(self) -> None:
        if isinstance(self._machine, QemuProcess):
            self.process = self._machine
        else:
            self.process = self._launch(self._machine)
        config = self.process.config
        self.rules = self._wanted_rules or rules_for(config.build.version_tuple)
        self._avoided = avoided(config.build.version_tuple, config.full_name)
        if self._known is None:
            knowledge = Knowledge()
            prepare(Scene(config, knowledge))
            self._known = knowledge.contracts
        self._procmem = self._open.enter_context(ProcMem(self.process.pid))
        self.mirror = Mirror.take(self.process.monitor.hmp)
        self._hear()
        self._attach()

    def _launch(self, machine: str) -> QemuProcess:
        build = self._build if isinstance(self._build, Build) else find_build(self._build)
        target, name = machine_name(machine)
        ram_id = _ram_id(build, target, name) if self._ram else None
        config = QemuConfig(
            build=build, target=target, machine=name, args=self._args,
            ram=self._ram if ram_id else None, ram_id=ram_id)
        try:
            return self._open.enter_context(QemuProcess(config))
        except LaunchError:
            if config.ram is None:
                raise
        # Some boards take no size but their own.
        return self._open.enter_context(QemuProcess(replace(config, ram=None, ram_id=None)))

    # -- the model's ends ----------------------------------------------------------------------

    def _attach(self) -> None:
        """Connect the spaces to QEMU; after every change of the map."""
        true_rules = rules_for(self.process.config.build.version_tuple)
        target_big = self.process.endianness == "big"
        self.mirror.topology.rules = self.rules
        self.mirror.topology.target_big = target_big
        for space in self.mirror.spaces:
            space.rules = self.rules
            space.target_big = target_big
        memory, io = self.mirror.memory, self.mirror.io
        for reached in (memory,) if io is None else (memory, io):
            devices = LiveDevices(
                self.process, reached, true_rules, self._true, self._hear, self.told,
                ports=reached is io)
            # The mirror makes spaces without devices; these two get theirs here.
            reached.__class__ = LiveSpace
            assert isinstance(reached, LiveSpace), "it is one now"
            reached.ops = reached.live = devices
            self._spaces.add(reached)
            for section in reached.view.sections:
                self._attach_region(section.region, reached)

    def _attach_region(self, region: MemoryRegion, space: AddressSpace) -> None:
        if region in self._attached:
            return
        self._attached.add(region)
        memory = region.is_ram or region.kind is RegionKind.ROM_DEVICE
        if memory and region.kind is not RegionKind.RAM_DEVICE and space is self.mirror.memory:
            backing = live_backing(self.process, self._procmem, space, region)
            region.backing = backing
            if isinstance(backing, SharedBacking):
                self._backings[region] = backing
            if backing is None:
                self.unreached.add(region.name)
            if region.kind is not RegionKind.ROM_DEVICE:
                region.contract = UNASSIGNED_CONTRACT
        if region.kind in (
            RegionKind.IO, RegionKind.ROM_DEVICE, RegionKind.RAM_DEVICE, RegionKind.CONTAINER
        ):
            self._attach_device(region)

    def _attach_device(self, region: MemoryRegion) -> None:
        assert self._known is not None, "it is asked for first"
        why = self._avoided.why(region.name)
        if why is not None:
            region.ops = _Untouchable(f"{region.name} is not touched: {why}")
            region.contract = self._true[region] = ANY_ACCESS
            return
        learned = self._known.get(region.key)
        true = self._true[region] = ANY_ACCESS if learned is None else learned.contract
        # What the device refuses by a rule of its own QEMU says each time.
        region.contract = replace(true, accepts=None)

    def _hear(self) -> list[Event]:
        text = self._unparsed + self.process.transcript.read_new()
        self._unparsed = b""
        return parse(text)


class _Untouchable:
    """A region that ends QEMU when qtest accesses it (``oddities.toml``)."""

    def __init__(self, why: str) -> None:
        self._why = why

    def read(self, *_: object) -> tuple[int, int]:
        raise ModelError(self._why)

    def write(self, *_: object) -> int:
        raise ModelError(self._why)


def _ram_id(build: Build, target: str, machine: str) -> str | None:
    """The id of the machine's main memory, None where it takes no backend."""
    config = QemuConfig(build=build, target=target, machine="none", transcript=False)
    with QemuProcess(config) as process:
        return default_ram_id(process.monitor, machine)
