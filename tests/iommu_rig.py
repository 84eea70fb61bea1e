"""A virtio disk behind an IOMMU on real QEMU, with the product's model of the IOMMU beside it.

The disk is the source of DMA: its rings and its header lie where the addresses stay what they
are; the buffers of its requests and its interrupt messages go anywhere. Everything is compared:
the transcript piece by piece, all of RAM, and what the IOMMU's registers say of its faults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random
from typing import Any

from real_stage import Stage
from virtio_disk import Disk
from virtio_driver import Buffer, Rings, VirtioBlk
from virtio_model import VirtioBlkModel

from qemuglue.errors import QemuFailure
from qemuglue.memory import AddressSpace
from qemuglue.memory.attrs import UNSPECIFIED
from qemuglue.memory.region import MAX_SIZE
from qemuglue.witness.dma.device import Place, When
from qemuglue.witness.dma.port import ModelPort

#: Versions that unmap a request which could not be mapped whole in another space (an oddity).
UNDO_BUG = ((9, 2), (10, 2))


class Rig(Disk):
    """``iommu`` is the model; ``region`` its registers; ``identity`` the ranges of addresses
    that stay what they are, so that the test can fill rings and headers."""

    identity: tuple[tuple[int, int], ...] = ((0x1000, 0x2000), (0x20_0000, 0x1_0000))

    def __init__(
        self, on: Stage, blk: VirtioBlk, make: Callable[[Place], Any], name: str
    ) -> None:
        self.on, self.blk, self.uses_iommu = on, blk, True
        [self.region] = [each for each in on.session.mirror.regions if each.name == name]
        version = on.session.config.build.version_tuple
        made = make(Place(
            owner=str(self.region.key.owner), regions={name: self.region}, space=self.system,
            memory=self.system, version=version, qom_get=self._qom_get, ask=self._ask,
            parked=False, known={},
        ))
        assert made is not None
        self.device = made
        self.port = ModelPort(self.system)
        self.follow()
        space = on.space("virtio-blk-pci")
        undo = self.system if UNDO_BUG[0] <= version < UNDO_BUG[1] else space
        super().__init__(on, blk, VirtioBlkModel(space, space, undo), iommu=True)

    @property
    def system(self) -> AddressSpace:
        return self.on.space("memory")

    def _qom_get(self, path: str, name: str) -> Any:
        try:
            return self.on.session.process.monitor.execute(
                "qom-get", {"path": path, "property": name})
        except QemuFailure:
            return None

    def _ask(self, command: str) -> object:
        return self.on.session.process.monitor.execute(command)

    def follow(self) -> None:
        """The map changed."""
        self.device.unbind()
        self.on.remapped()
        self.device.bind(self.on.session.mirror.regions, self._ask("query-pci"))

    # -- registers -----------------------------------------------------------------------------

    @property
    def base(self) -> int:
        return self.region.absolute()

    def write(self, offset: int, value: int, size: int = 4) -> list[str]:
        """A register, on both sides; how they differ."""
        qtest = self.on.qtest
        send = {1: qtest.writeb, 2: qtest.writew, 4: qtest.writel, 8: qtest.writeq}[size]
        changed: list[bool] = []

        def act() -> None:
            send(self.base + offset, value)

        def model() -> None:
            evidence = self.on.session.evidence
            self.on.session.evidence.write(self.region, offset, value, size, UNSPECIFIED)
            self.device.wrote(self.region, offset, size, value)
            while self.device.when() is When.NOW:
                self.device.act(self.port)
            evidence.finish()
            changed.append(evidence.topology)

        found = self.on.judged(act, model)
        if changed[-1]:
            self.follow()
        return found

    def read(self, offset: int, size: int = 4) -> int:
        """A register; the model looks at what it says."""
        value = (self.on.qtest.readl if size == 4 else self.on.qtest.readq)(self.base + offset)
        self.on.session.events()
        self.device.was_read(self.region, offset, size, value)
        return value

    # -- memory --------------------------------------------------------------------------------

    def put(self, addr: int, data: bytes) -> None:
        """Bytes at an address that stays what it is; others are left alone."""
        if any(start <= addr < start + size for start, size in self.identity):
            super().put(addr, data)

    def fill(self, addr: int, data: bytes) -> None:
        """Bytes of the system's memory, on both sides."""
        self.on.prepare(addr, data)

    def words(self, addr: int, values: Iterable[int]) -> None:
        self.fill(addr, b"".join(value.to_bytes(8, "little") for value in values))


def request(
    rng: Random, edges: list[int], header: int, answer: int
) -> tuple[tuple[Buffer, ...], Rings, tuple[int, int] | None]:
    """A request with buffers, and perhaps a message, around a few of ``edges``: what is accessed
    twice may be found in a cache."""
    edges = rng.choices(edges, k=3)

    def place(size: int) -> int:
        return (rng.choice(edges) + rng.choice((0, -1, -3, -8, -size, 0x80, 0xFF0))) % MAX_SIZE

    buffers = [Buffer(header, 16)]
    for _ in range(rng.randrange(3)):
        size = rng.choice((1, 3, 8, 16, 64, 300, 4097))
        buffers.append(Buffer(place(size), size))
    left = 21
    while left:
        size = min(left, rng.choice((1, 4, 7, 8, 21)))
        left -= size
        at = answer if rng.random() < 0.3 else place(size)
        buffers.append(Buffer(at, size, write=True))
    message = (place(4), rng.getrandbits(32)) if rng.random() < 0.7 else None
    return tuple(buffers), Rings(), message
