"""What to start: one frozen description of a QEMU process.

Everything a finding needs to start the same QEMU again is in :class:`QemuConfig`; the
process module turns it into a command line and nothing else does.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from qemuglue.errors import UsageError

if TYPE_CHECKING:
    from qemuglue.qemu.builds import Build

_MACHINE: Final = re.compile(r"([A-Za-z0-9_]+)/([A-Za-z0-9_.+-]+)")
_SIZE: Final = re.compile(r"([0-9]+)([bBkKmMgGtT]?)")
_UNITS: Final = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_RAM_ID: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")  # QEMU's id_wellformed()


class VmMode(enum.Enum):
    """What the guest's CPUs do while the harness works; recorded in every finding."""

    STOPPED = "stopped"
    """``-S``: no instruction runs and the virtual clock stands still, so timers never fire."""
    PARKED = "parked"
    """The machine runs and its CPUs sleep, so timers fire (``qemu/parked.py``)."""


def machine_name(full_name: str) -> tuple[str, str]:
    """Split ``"x86_64/q35"`` into target and machine; :class:`UsageError` otherwise.

    A machine's name has no comma here, so machine options cannot slip in: those go to
    ``args``.
    """
    found = _MACHINE.fullmatch(full_name)
    if not found:
        raise UsageError(
            f"{full_name!r} is not a machine: write TARGET/NAME, for example x86_64/q35",
        )
    return found[1], found[2]


def parse_size(text: str) -> int:
    """Bytes of a size in QEMU's ``-m`` form: ``64M``, ``1G``; without a unit, MiB."""
    found = _SIZE.fullmatch(text)
    if not found or not int(found[1]):
        raise UsageError(f"{text!r} is not a size: write for example 64M or 1G")
    return int(found[1]) * _UNITS[found[2].lower() or "m"]


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuConfig:
    """One QEMU process to start.

    ``args`` are appended to the command line as they are. ``ram`` is the size of main
    memory (``None``: the machine's default). With ``ram`` and ``ram_id`` and
    ``shared_ram``, main memory is a file shared with this process; ``ram_id`` must be the
    machine's own id for it (``default-ram-id`` of QMP ``query-machines``, ``pc.ram`` on
    q35), because QEMU names the memory region after it. ``plugin`` is the value of
    ``-plugin``; ``extra_trace`` are further ``-trace`` patterns for the transcript.

    ``nodefaults`` leaves out the devices QEMU adds on its own for a person at a screen
    (VGA, network card, serial ports, CD drive); devices soldered to the board stay.
    Switch it off to see the machine exactly as a plain command line gives it.
    ``transcript`` off starts QEMU without any trace, for measuring and for maps. ``owners``
    off asks for memory maps without the owners of regions, where printing them is QEMU's end.
    """

    build: Build
    target: str
    machine: str
    args: tuple[str, ...] = ()
    ram: str | None = None
    ram_id: str | None = None
    shared_ram: bool = True
    mode: VmMode = VmMode.STOPPED
    plugin: str | None = None
    extra_trace: tuple[str, ...] = ()
    nodefaults: bool = True
    transcript: bool = True
    owners: bool = True

    def __post_init__(self) -> None:
        machine_name(self.full_name)
        if self.ram is not None:
            parse_size(self.ram)
        if self.ram_id is not None and not _RAM_ID.fullmatch(self.ram_id):
            raise UsageError(f"{self.ram_id!r} is not an id QEMU takes for a memory backend")
        for pattern in self.extra_trace:
            if not pattern or not re.fullmatch(r"[A-Za-z0-9_*?]+", pattern):
                raise UsageError(f"{pattern!r} is not a trace event pattern")

    @property
    def full_name(self) -> str:
        """``TARGET/NAME``, as :func:`machine_name` takes it."""
        return f"{self.target}/{self.machine}"

    @property
    def ram_bytes(self) -> int | None:
        """Size of main memory in bytes; ``None`` is the machine's default."""
        return None if self.ram is None else parse_size(self.ram)

    @property
    def has_shared_ram(self) -> bool:
        """Whether main memory is asked for as a file shared with this process."""
        return self.shared_ram and self.ram is not None and self.ram_id is not None
