"""What the items of fw_cfg hold, asked of a QEMU that is thrown away afterwards.

Each key is read by one DMA into RAM, then by one into nothing: QEMU copies an item in one piece
and fills what is asked for beyond its end by another, and after a failure it does no more. So
the bytes that it was refused in the second are the length of the item. Whether it may be written
is asked by writing its first byte to itself.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qemuglue.errors import QemuFailure
from qemuglue.memory.flatview import MemoryRegionSection
from qemuglue.program.operation import Operation
from qemuglue.qemu.events import Kind as EventKind
from qemuglue.witness.dma import Follower
from qemuglue.witness.dma.fw_cfg import (
    ARCH_LOCAL,
    DMA_REGION,
    ERROR,
    READ,
    SELECT,
    STRUCTURE,
    WRITE,
    FwCfg,
)
from qemuglue.witness.face import encode_all
from qemuglue.witness.probing import Place
from qemuglue.witness.session import Session, Step, marker_base

#: Bytes asked of each key at first; most items are no longer.
FIRST = 64

#: Bytes asked of an item that is longer than that and whose length nobody has told.
MORE = 4096

#: The directory of files: their number, then of each size, key, two bytes, name of 56.
DIRECTORY, ENTRY = 0x19, 64

#: A directory with more files than this is garbage.
MOST_FILES = 1 << 12

#: Files that QEMU makes anew when one of them is first selected after a reset, and those that it
#: changes whenever it is selected (``acpi_build_update``, ``smi_features_ok_callback``).
MADE_ANEW = frozenset({"etc/acpi/tables", "etc/acpi/rsdp", "etc/table-loader"})
CHANGING = frozenset({"etc/smi/features-ok"})

#: Keys whose item QEMU changes whenever it is selected: a kernel with its random seed (7.2), and
#: its set-up (``reset_rng_seed``, ``fixup_setup_data``).
CHANGING_KEYS = frozenset({0x11, 0x16})

#: An item longer than this is not asked for.
LONGEST = 1 << 20

#: Of the RAM that is written meanwhile: the structure, then the bytes.
_SCRATCH = 2 << 20


@dataclass(frozen=True, slots=True)
class _Desk:
    """Where to ask: the register, RAM for the structure and the bytes, and a hole."""

    session: Session
    place: Place
    ram: MemoryRegionSection
    start: int

    @property
    def data(self) -> int:
        return self.start + 0x1000

    def kick(self, control: int, length: int, address: int) -> list[Step]:
        """The operations that make one transfer."""
        structure = struct.pack(">IIQ", control, length, address)
        write = Operation("write", None, STRUCTURE, data=structure), self.start
        at = self.place.main.start - self.place.main.offset
        halves = [self.start >> 32, self.start & 0xFFFFFFFF]
        order = self.session.face.order
        verb = "outl" if self.place.ports else "writel"
        return [write, *(
            (Operation(verb, None, 4, value=int.from_bytes(half.to_bytes(4, "big"), order)),
             at + 4 * i) for i, half in enumerate(halves)
        )]

    def run(self, steps: Sequence[Step]) -> None:
        self.session.journal.extend(steps)
        self.session.exchange(b"".join(encode_all(steps)), len(steps))

    def bytes_at(self, addr: int, size: int) -> bytes:
        offset = addr - self.ram.start + self.ram.offset
        return self.session.ram.sources[self.ram.region].read(offset, size)

    def transfer(self, control: int, length: int, address: int) -> bool:
        """Do one; whether it succeeded."""
        self.run(self.kick(control, length, address))
        left = int.from_bytes(self.bytes_at(self.start, 4), "big")
        return not left & ERROR

    def item(self, key: int, size: int) -> bytes:
        """The first ``size`` bytes of an item, zeros behind its end."""
        self.transfer(key << 16 | SELECT | READ, size, self.data)
        return self.bytes_at(self.data, size)

    def length(self, key: int, size: int) -> int:
        """How long the item is; ``size`` if it is as long as that, longer, or not there."""
        hole = marker_base(self.session.mirror.memory.view)
        self.session.events()
        self.transfer(key << 16 | SELECT | READ, size, hole)
        return min(size, sum(
            event.size for event in self.session.events()
            if event.kind is EventKind.INVALID_WRITE and event.name is None
            and hole <= event.address < hole + size
        ))

    def writable(self, key: int) -> bool:
        """Whether its first byte can be written."""
        self.item(key, 1)
        return self.transfer(key << 16 | SELECT | WRITE, 1, self.data)


def ask_items(session: Session) -> None:
    """Learn the items of the session's fw_cfg, if it has one that nobody has asked yet. What
    QEMU does not answer stays unknown. Raises what the session's channels raise."""
    for follower in session.following.followers.values():
        device = follower.device
        known = session.knowledge.devices.setdefault(follower.owner, {})
        if isinstance(device, FwCfg) and "items" not in known:
            desk = _desk(session, follower)
            if desk is not None:
                known["items"] = dict(_items(desk, device.keys))
                known["changing"] = CHANGING_KEYS | {
                    key for name, _, key in _files(desk) if name in CHANGING}


def _desk(session: Session, follower: Follower) -> _Desk | None:
    places = [
        Place.of(session, region) for region in session.mirror.regions
        if region.name == DMA_REGION and session.following.of(region) is follower.device
    ]
    ram = max(
        (s for s in session.mirror.memory.view.sections
         if s.region in session.ram.sources and s.region.is_ram and not s.readonly
         and not s.region.readonly),
        key=lambda s: s.size, default=None,
    )
    if not places or places[0] is None or ram is None or ram.size < 2 * _SCRATCH:
        return None
    return _Desk(session, places[0], ram, ram.start + ram.size - _SCRATCH)


def _items(desk: _Desk, keys: int) -> Iterator[tuple[int, tuple[bytes | None, int, bool]]]:
    """(key, (bytes or None, size, whether it may be written)) of every item."""
    files = {key: (name, size) for name, size, key in _files(desk)}
    for key in range(keys):
        for arch in (0, ARCH_LOCAL):
            name, size = files.get(key, ("", 0)) if not arch else ("", 0)
            found = _item(desk, key | arch, name, size)
            if found is not None:
                yield key | arch, found


def _item(
    desk: _Desk, key: int, name: str, size: int
) -> tuple[bytes | None, int, bool] | None:
    if not size:
        data = desk.item(key, FIRST)
        size = desk.length(key, FIRST)
        if size == FIRST:
            data = desk.item(key, MORE)
            if not any(data):
                return None  # nothing is there, or zeros, which is the same
            size = desk.length(key, MORE)
            if size == MORE:
                return None, MORE << 10, False  # longer than was looked at
    if size > LONGEST or name in MADE_ANEW | CHANGING or key in CHANGING_KEYS:
        return None, size, False
    return desk.item(key, size), size, desk.writable(key)


def _files(desk: _Desk) -> list[tuple[str, int, int]]:
    """(name, size, key) of the files, as the directory has them."""
    count = int.from_bytes(desk.item(DIRECTORY, 4), "big")
    if not 0 < count <= MOST_FILES:
        return []
    table = desk.item(DIRECTORY, 4 + count * ENTRY)
    found: list[tuple[str, int, int]] = []
    for at in range(4, len(table), ENTRY):
        size, key = struct.unpack_from(">IH", table, at)
        name = table[at + 8 : at + ENTRY].split(b"\0")[0].decode("ascii", "replace")
        found.append((name, size, key))
    return found


def try_to_ask(session: Session) -> str:
    """``ask_items``; why it came to nothing, or ""."""
    try:
        ask_items(session)
    except QemuFailure as error:
        return f"fw_cfg: asking for its items ended with: {error}"
    return ""
