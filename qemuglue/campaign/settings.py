"""Settings: everything that decides what a campaign does, as one value that travels.

A campaign hands its settings to its workers as a JSON file; ``qemuglue-fuzz`` makes them of its
options. The same settings and seed draw the same programs.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from qemuglue.campaign.defects import Defect
from qemuglue.campaign.devices import CLOCKED, MASTERS, check, choose, with_id
from qemuglue.campaign.faults import Fault
from qemuglue.campaign.feedback import DEFAULT_FEEDBACK, FEEDBACKS
from qemuglue.campaign.planted import PLANTED
from qemuglue.campaign.starting import start_machine
from qemuglue.campaign.targets import DEFAULT_TARGET, disk_for, find_target
from qemuglue.errors import UsageError
from qemuglue.memory.rules import Rules, rules_for
from qemuglue.mirror import Mirror
from qemuglue.program.operation import Operation, Program
from qemuglue.program.verbs import MAX_OPERATIONS, MODES, SETUPS
from qemuglue.qemu.builds import Build, find_build
from qemuglue.qemu.config import QemuConfig, VmMode, machine_name, parse_size
from qemuglue.qemu.guest_ram import default_ram_ids
from qemuglue.qemu.parked import PARKED
from qemuglue.qemu.process import QemuProcess
from qemuglue.witness.face import HostFace
from qemuglue.witness.judge import Scene
from qemuglue.witness.session import Knowledge

SCHEMA = 1

ENGINES = ("atheris", "random")

#: Operations of one program: enough for state to matter, few enough to read in a finding.
DEFAULT_OPERATIONS = 64

#: Main memory. Small, because it is compared whole now and then, and has every boundary.
DEFAULT_RAM = "64M"

#: More workers than this on one host is a typing error.
MAX_JOBS = 1024

#: A settings file beyond this is not one of ours.
MAX_JSON = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """``machine`` is ``TARGET/NAME``; ``devices`` are values of ``-device``; ``qemu_args`` words
    behind them. ``build`` is what ``find_build`` takes ("" is the default build); ``seconds``
    and ``programs`` limit the run (0: no limit); ``operations`` is the length of a program.
    ``out`` is the campaign's folder. ``feedback`` says what of QEMU steers the Atheris engine
    (``feedback.FEEDBACKS``). ``ram_id`` is filled in by :func:`resolve`."""

    target: str = DEFAULT_TARGET
    machine: str = "x86_64/q35"
    devices: tuple[str, ...] = ()
    qemu_args: tuple[str, ...] = ()
    build: str = ""
    seconds: float = 0.0
    programs: int = 0
    jobs: int = 1
    engine: str = "random"
    out: str = "."
    seed: int = 0
    defect: str = ""
    operations: int = DEFAULT_OPERATIONS
    ram: str = DEFAULT_RAM
    ram_id: str = ""
    mode: str = "stopped"
    setup: str = "pci"
    feedback: str = DEFAULT_FEEDBACK

    def __post_init__(self) -> None:
        find_target(self.target)
        machine_name(self.machine)
        parse_size(self.ram)
        for name, value, known in (
            ("engine", self.engine, ENGINES), ("mode", self.mode, MODES),
            ("set-up", self.setup, SETUPS), ("feedback", self.feedback, FEEDBACKS),
        ):
            if value not in known:
                given = ", ".join(word for word in known if word)
                raise UsageError(f"no {name} {value!r}; use one of {given}")
        if self.defect and self.defect not in PLANTED:
            raise UsageError(f"no defect {self.defect!r}; there are {', '.join(PLANTED)}")
        if not 1 <= self.operations <= MAX_OPERATIONS:
            raise UsageError(f"{self.operations} operations; give 1 to {MAX_OPERATIONS}")
        if not 1 <= self.jobs <= MAX_JOBS:
            raise UsageError(f"{self.jobs} jobs; give 1 to {MAX_JOBS}")
        # Written so that a NaN does not pass either.
        if not (0 <= self.seconds < 1e9 and self.programs >= 0):
            raise UsageError("a campaign lasts from 0 to 1e9 seconds, and 0 or more programs")

    # -- derived -------------------------------------------------------------------------------

    @property
    def args(self) -> tuple[str, ...]:
        """The words that the devices and further arguments add to QEMU's command line."""
        words = [word for device in self.devices for word in ("-device", device)]
        return (*words, *self.qemu_args)

    @property
    def findings(self) -> Path:
        """Where findings are recorded."""
        return Path(self.out) / "findings"

    @property
    def corpus(self) -> Path:
        """Inputs worth keeping; bytes only."""
        return Path(self.out) / "corpus"

    def program(self, operations: tuple[Operation, ...]) -> Program:
        """A program of these operations for this machine."""
        return Program(self.machine, self.args, operations, self.mode, self.setup)

    def describe(self) -> str:
        """The machine with what is plugged into it, as a person would name it."""
        words = [self.machine, *self.devices]
        extra = f" {shlex.join(self.qemu_args)}" if self.qemu_args else ""
        return " + ".join(words) + extra

    def replace(self, **changes: Any) -> Settings:
        return dataclasses.replace(self, **changes)

    @classmethod
    def of_target(
        cls, name: str, *, machine: str = "", devices: Sequence[str] | None = None,
        build: str = "", seed: int = 0, qemu_args: Sequence[str] = (),
    ) -> Settings:
        """A target's own settings. Its devices belong to its machine: another one comes without
        them. ``devices`` replace them; the target ``device`` chooses one by the seed. The disk
        of the target is there for whatever device names it, unless ``qemu_args`` bring one.

        :raise UsageError: there is no such target, or the build has no such device.
        """
        target = find_target(name)
        own = not machine or machine == target.machine
        given = target.devices if own else ()
        can = own or machine in PARKED
        setup, mode = target.setup, target.mode if can else "stopped"
        if devices is not None:
            given = tuple(devices)
        if target.draws == "device":
            given = _one_device(build, machine or target.machine, given, seed)
            setup = setup if given[0].startswith(MASTERS) else "pci"
            mode = "parked" if can and given[0].startswith(CLOCKED) else mode
        return cls(
            target=target.name, machine=machine or target.machine, devices=given, build=build,
            qemu_args=(*disk_for(given, qemu_args), *qemu_args), seed=seed,
            defect=target.defect, operations=target.operations, mode=mode, setup=setup,
        )

    # -- JSON ----------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """JSON types only; :meth:`from_json` gives the settings back."""
        known = {name: getattr(self, name) for name in NAMES}
        lists = {name: list(value) for name, value in known.items() if isinstance(value, tuple)}
        return {"schema": SCHEMA, **known, **lists}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Settings:
        """Raises UsageError for what :meth:`to_json` did not make."""
        try:
            if data["schema"] != SCHEMA:
                raise UsageError(f"settings of schema {data['schema']}, not {SCHEMA}")
            values: dict[str, Any] = {}
            data = {"feedback": DEFAULT_FEEDBACK, **data}  # a campaign of before there was one
            for name, kind in NAMES.items():
                value = data[name]
                if kind is tuple:
                    if not isinstance(value, list) or not all(
                        isinstance(word, str) for word in value
                    ):
                        raise TypeError(name)
                    value = tuple(value)
                elif kind is float:
                    value = float(value)
                elif not isinstance(value, kind) or isinstance(value, bool):
                    raise TypeError(name)
                values[name] = value
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"no settings of a campaign: {error}") from None
        return cls(**values)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Settings:
        """Raises UsageError naming the file when it is missing or not one of ours."""
        try:
            with path.open("rb") as file:
                raw = file.read(MAX_JSON + 1)
            if len(raw) > MAX_JSON:
                raise UsageError("it is larger than 1 MiB")
            data = json.loads(raw)
            if not isinstance(data, dict):
                raise UsageError("it is not a JSON object")
            return cls.from_json(data)
        except OSError as error:
            raise UsageError(f"settings file {path}: {error.strerror}") from None
        except (ValueError, RecursionError, UsageError) as error:
            raise UsageError(f"settings file {path}: {error}") from None


def _one_device(
    build: str, machine: str, devices: tuple[str, ...], seed: int
) -> tuple[str, ...]:
    """The device that is fuzzed first, with its id; what it needs behind it."""
    target, _ = machine_name(machine)
    found = find_build(build or None)
    if not devices:
        return (with_id(choose(found, target, seed)),)
    check(found, target, devices[0])
    return (with_id(devices[0]), *devices[1:])


#: Every field with its type: what the JSON form carries.
NAMES: dict[str, type] = {
    each.name: tuple if isinstance(each.default, tuple) else type(each.default)
    for each in fields(Settings)
}


# Section: from settings to something that runs


@lru_cache(maxsize=64)
def _ram_ids(build: Build, target: str) -> dict[str, str | None]:
    config = QemuConfig(build=build, target=target, machine="none", transcript=False)
    with QemuProcess(config) as process:
        return default_ram_ids(process.monitor)


def ask_ram_id(build: Build, target: str, machine: str) -> str:
    """The id of the machine's main memory, "" where it takes no backend. One QEMU without a
    machine is started for the answers of all machines of the target.

    :raise UsageError: this QEMU has no such machine.
    """
    known = _ram_ids(build, target)
    if machine not in known:
        raise UsageError(
            f"build {build.name} (QEMU {build.version}) has no machine {target}/{machine}; "
            f"`qemuglue machines --build {build.name} --target {target}` lists them"
        )
    return known[machine] or ""


def resolve(settings: Settings) -> Settings:
    """The settings with ``ram_id`` filled in, and a managed build named even where it was only
    the default: what is installed meanwhile must not split the workers.

    :raise EnvironmentFailure: there is no such build, or QEMU does not start.
    :raise UsageError: it has no such machine.
    """
    build = find_build(settings.build or None)
    target, machine = machine_name(settings.machine)
    ram_id = settings.ram_id or ask_ram_id(build, target, machine)
    return settings.replace(ram_id=ram_id, build=build.name if build.root else settings.build)


def rules_of(settings: Settings, build: Build) -> tuple[Rules, type[HostFace]]:
    """The rules and the face to judge by; with a planted defect, one of them is wrong."""
    rules = rules_for(build.version_tuple)
    if not settings.defect:
        return rules, HostFace
    defect = PLANTED[settings.defect]
    if isinstance(defect, Fault):
        return rules, HostFace
    if defect.rules is not None:
        rules = defect.rules(**{each.name: getattr(rules, each.name) for each in fields(rules)})
    return rules, defect.face


def scene(settings: Settings, knowledge: Knowledge | None = None) -> Scene:
    """The scene that the settings describe. A machine that takes no memory backend keeps its
    own RAM size: some refuse any other.

    :raise EnvironmentFailure: there is no such build.
    """
    settings = resolve(settings)
    build = find_build(settings.build or None)
    target, machine = machine_name(settings.machine)
    rules, face = rules_of(settings, build)
    config = QemuConfig(
        build=build, target=target, machine=machine, args=settings.args,
        ram=settings.ram if settings.ram_id else None, ram_id=settings.ram_id or None,
        mode=VmMode(settings.mode), transcript=True,
    )
    if target not in _ANY_RAM:
        config = _starting(config)
    planted = PLANTED.get(settings.defect)
    tamper = planted.attach if isinstance(planted, Fault) else None
    mirror = planted.mirror if isinstance(planted, Defect) else Mirror
    return Scene(config, knowledge or Knowledge(), settings.setup, rules, face, tamper, mirror)


#: Targets whose machines take any RAM size; a board of another may want its own.
_ANY_RAM = ("x86_64", "i386")


@lru_cache(maxsize=64)
def _starting(config: QemuConfig) -> QemuConfig:
    """The configuration with a RAM size that the machine takes."""
    return start_machine(config)[0]
