"""A virtio disk on real QEMU beside the model of it: one request, everything compared.

A queue's rings are three ``MemoryRegionCache``; a ring that cannot be cached whole breaks the
device. Buffers are mapped with ``address_space_map``, piece by piece where a mapping is shorter
than asked for; the trace tells the number of pieces, and on 10.0 and later each call.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from real_stage import Stage
from virtio_driver import GET_ID, Buffer, Rings, VirtioBlk, table
from virtio_model import VirtioBlkModel

TRACE = ("virtqueue_pop", "address_space_ma*")

HEADER, ANSWER = 0x1000, 0x2000
ID = (Buffer(HEADER, 16), Buffer(ANSWER, 21, write=True))
#: Where RAM may have been written past the model's own account: through mappings and caches.
WINDOWS = ((0, 0xA_0000), (0xC_0000, 0x1_0000), (0x20_0000, 0x1_0000), (0x3FF_0000, 0x1_0000))

_POP = re.compile(r"virtqueue_pop .* in_num (\d+) out_num (\d+)")
_MAP = re.compile(r"address_space_map as:\S+ addr 0x([0-9a-f]+):([0-9a-f]+) write:(\d)")


@dataclass
class Disk:
    """The device, and the model of it."""

    on: Stage
    blk: VirtioBlk
    model: VirtioBlkModel
    iommu: bool = False

    def start(self, rings: Rings) -> list[str]:
        """Start both over ``rings``; how they differ."""
        before = len(self.on.session.process.stderr_tail(1 << 20))
        started = self.blk.start(rings, iommu=self.iommu)
        said = self.on.session.process.stderr_tail(1 << 20)[before:].strip()
        if started != self.model.start(rings):
            return [f"model: {self.model.error or 'started'}; QEMU: {said or 'started'}"]
        ring = self.model.error[: len("Cannot map xxx")].removeprefix("Cannot ")
        return [] if ring in said else [f"model: {ring}; QEMU: {said}"]

    def judge(
        self, buffers: Sequence[Buffer], rings: Rings | None = None,
        message: tuple[int, int] | None = None,
    ) -> list[str]:
        """One request of these buffers on a fresh queue, with an interrupt if ``message`` says
        (address, data); how the two differ."""
        rings = rings or Rings()
        on, model = self.on, self.model
        model.message = message
        for addr, data in (
            (HEADER, GET_ID), (ANSWER, bytes(64)), (rings.desc, table(buffers)),
            (rings.avail, struct.pack("<HHH", message is None, 1, 0)), (rings.used, bytes(12)),
        ):
            self.put(addr, data)
        if message is not None:
            self.blk.message(*message)
        found = self.start(rings)
        if found or model.error:
            return found
        found = on.judged(self.blk.kick, model.kick, WINDOWS)
        texts = "\n".join(on.texts)
        popped = [(int(a), int(b)) for a, b in _POP.findall(texts)]
        if popped != model.popped:
            found.append(f"model: {model.popped} segments; QEMU: {popped}")
        maps = [(int(a, 16), int(n, 16), w == "1") for a, n, w in _MAP.findall(texts)]
        if maps != model.maps and on.session.config.build.version_tuple >= (10,):
            found.append(f"model maps {model.maps}; QEMU: {maps}")
        if self.blk.broken != bool(model.error):
            found.append(f"model: {model.error or 'works'}; QEMU: broken {self.blk.broken}")
        return found

    def put(self, addr: int, data: bytes) -> None:
        """Bytes of RAM for both sides; behind the VGA's window they are 4 bytes apart."""
        if 0xA_0000 <= addr < 0xC_0000:
            spaced = b"".join(bytes([byte, 0, 0, 0]) for byte in data)
            self.on.prepare(self.vram + 4 * (addr - 0xA_0000), spaced)
            return
        section = self.on.memory.view.lookup(addr)
        if section.region.name == "pc.ram":
            self.on.prepare(addr, data[: section.last + 1 - addr])

    @property
    def vram(self) -> int:
        view = self.on.memory.view
        return next(s.start for s in view.sections if s.region.name == "vga.vram")

    def bad(self, cases: Sequence[tuple[object, ...]]) -> dict[str, list[str]]:
        """Complaints by case; a case is what ``judge`` takes."""
        found = {str(case): self.judge(*case) for case in cases}  # type: ignore[arg-type]
        return {case: complaints for case, complaints in found.items() if complaints}
