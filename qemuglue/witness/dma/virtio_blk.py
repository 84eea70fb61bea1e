"""virtio-blk: what the disk reads from guest memory and writes there, request by request.

Requests that need the medium go to the block layer together: neighbours in order of their sector
are merged, and each is completed from the main loop. Source: QEMU ``hw/block/virtio-blk.c``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from qemuglue.witness.dma.device import When
from qemuglue.witness.dma.virtio_buffers import Unfollowed, gather, scatter
from qemuglue.witness.dma.virtio_device import VirtioDevice
from qemuglue.witness.dma.virtio_medium import SECTOR, Medium
from qemuglue.witness.dma.virtio_ring import Broken, Chain, Queue

OK, IO_ERROR, UNSUPPORTED, ZONE_INVALID = 0, 1, 2, 3

IN, FLUSH, SCSI, GET_ID, DISCARD, WRITE_ZEROES = 0, 4, 2, 8, 11, 13
_OUT, _BARRIER = 1, 0x8000_0000
#: Zoned devices (since 8.1); here none is.
_ZONE_REPORT: Final = 16
_ZONES = frozenset({14, 16, 18, 20, 22, 24, 26})
_ZONES_SINCE = (8, 1)

#: Releases from which the size of the answer to a command of SCSI is looked at: 11.0.2, and
#: 10.0.11 of its series (measured: 10.0.2 does not, 11.1.3 does).
_CHECKS_ANSWER, _CHECKS_ANSWER_10_0, _SCSI_ANSWER = (11, 0, 2), (10, 0, 11), 16

_HEADER, _ID = 16, 20
#: Requests collected before they go to the block layer (``VIRTIO_BLK_MAX_MERGE_REQS``).
_MOST_MERGED = 32
_MOST_SECTORS = 0x7FFF_FFFF >> 9
_MOST_IOV = 1024
#: A report of zones has at least a header and one zone, beside the status.
_SHORTEST_REPORT = 64 + 64 + 1


@dataclass(slots=True)
class Request:
    """One request: ``size`` counts the data."""

    queue: Queue
    chain: Chain
    kind: int
    sector: int
    #: Bytes the device may write, status included.
    in_size: int
    size: int = 0

    @property
    def parts(self) -> int:
        """Segments of its data (``qiov.niov``)."""
        chain = self.chain
        return len(chain.outs) if self.kind & _OUT else len(chain.ins)


@dataclass(frozen=True, slots=True)
class Disk:
    """What a disk is made of."""

    medium: Medium
    serial: bytes
    block: int = SECTOR
    most_discard: int = _MOST_SECTORS
    most_zeroes: int = _MOST_SECTORS
    merging: bool = True


class Blk:
    """The function of a virtio disk."""

    known = True
    starts_early = True

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.device: VirtioDevice
        self._collected: list[Request] = []
        #: Requests under way, those the block layer got together in one list.
        self._flying: list[list[Request]] = []
        self._waiting: list[Queue] = []

    def bind(self, device: VirtioDevice) -> None:
        self.device = device

    def set_status(self, status: int) -> None:
        """Only the write cache depends on it."""

    def reset(self) -> None:
        self._collected.clear()
        self._flying.clear()
        self._waiting.clear()

    def handle(self, queue: Queue) -> None:
        """``virtio_blk_handle_vq``."""
        ring = self.device.ring
        suppress = queue.notification
        while True:
            if suppress:
                ring.set_notification(queue, False)
            self._take_all(queue)
            if suppress:
                ring.set_notification(queue, True)
            if ring.empty(queue):
                break
        self._submit()
        if self._flying:
            self.device.later(When.SOON, self._finish)

    def _take_all(self, queue: Queue) -> None:
        ring = self.device.ring
        while True:
            try:
                chain = ring.pop(queue)
            except Broken as error:
                self.device.fail(str(error))
                return
            if chain is None:
                return
            try:
                self._request(queue, chain)
            except Broken as error:
                self.device.fail(str(error))
                ring.detach(queue, chain, 0)
                return

    # -- one request -----------------------------------------------------------------------------

    def _request(self, queue: Queue, chain: Chain) -> None:
        """``virtio_blk_handle_request``."""
        if not (chain.outs and chain.ins):
            raise Broken("virtio-blk missing headers")
        header = chain.out_bytes(0, _HEADER)
        if len(header) < _HEADER:
            raise Broken("virtio-blk request outhdr too short")
        order = self._order
        request = Request(
            queue, chain, int.from_bytes(header[:4], order), int.from_bytes(header[8:], order),
            sum(map(len, chain.ins)),
        )
        what = request.kind & ~(_OUT | _BARRIER)
        if what == IN:
            self._transfer(request)
        elif what == FLUSH:
            if self._collected and self._collected[0].kind & _OUT:
                self._submit()
            self._flying.append([request])
        elif what == SCSI:
            self._scsi(request)
        elif what == GET_ID:
            room = min(request.in_size - 1, _ID)
            scatter(chain.ins, 0, (self.disk.serial + b"\0")[:room])
            self._complete(request, OK)
        elif what in (DISCARD & ~_OUT, WRITE_ZEROES & ~_OUT):
            self._range(request)
        else:
            if what == _ZONE_REPORT and request.in_size < _SHORTEST_REPORT and self._zones:
                self.device.fail("in buffer too small for zone report")
                self._complete(request, ZONE_INVALID)
            else:
                self._complete(request, UNSUPPORTED)

    @property
    def _order(self) -> Literal["little", "big"]:
        return "big" if self.device.big else "little"

    @property
    def _zones(self) -> bool:
        return self.device.version >= _ZONES_SINCE

    def _transfer(self, request: Request) -> None:
        """A read or a write of sectors: refused at once, or collected."""
        is_write = bool(request.kind & _OUT)
        outs = sum(map(len, request.chain.outs))
        request.size = outs - _HEADER if is_write else request.in_size - 1
        if not self._fits(request.sector, request.size):
            self._complete(request, IO_ERROR)
            return
        collected = self._collected
        if collected and (
            len(collected) == _MOST_MERGED or is_write != bool(collected[0].kind & _OUT)
            or not self.disk.merging
        ):
            self._submit()
        self._collected.append(request)

    def _fits(self, sector: int, size: int) -> bool:
        """``virtio_blk_sect_range_ok``."""
        disk = self.disk
        sectors = size // SECTOR
        total = disk.medium.size // SECTOR
        return not (
            sectors > _MOST_SECTORS or sector & (disk.block // SECTOR - 1) or size % disk.block
            or sector > total or sectors > total - sector
        )

    def _scsi(self, request: Request) -> None:
        """Commands of SCSI are not taken any more; an answer says so, four bytes at the beginning
        of the last buffer but one, however short that is (11.1.3 looks at its size)."""
        chain = request.chain
        if len(chain.outs) < 2 or len(chain.ins) < 3:
            self._complete(request, IO_ERROR)
            return
        answer = chain.ins[-2]
        version = self.device.version
        checks = version >= _CHECKS_ANSWER or _CHECKS_ANSWER_10_0 <= version < (10, 1)
        if checks and len(answer) != _SCSI_ANSWER:
            self._complete(request, IO_ERROR)
            return
        if len(answer) < 4 and answer.bounced:
            raise Unfollowed("QEMU writes beyond a bounce buffer (virtio_blk_handle_scsi)")
        answer.write(0, (255).to_bytes(4, self._order))
        self._complete(request, UNSUPPORTED)

    def _range(self, request: Request) -> None:
        """Discard, or write zeroes (``virtio_blk_handle_discard_write_zeroes``)."""
        chain, order = request.chain, self._order
        outs = sum(map(len, chain.outs)) - _HEADER
        if not request.kind & _OUT or outs > 16:
            self._complete(request, UNSUPPORTED)
            return
        if outs < 16:
            raise Broken("virtio-blk discard/write_zeroes header too short")
        header = gather(chain.outs, _HEADER, 16)
        sector = int.from_bytes(header[:8], order)
        count, flags = (int.from_bytes(header[at : at + 4], order) for at in (8, 12))
        zeroes = request.kind & ~_BARRIER == WRITE_ZEROES
        most = self.disk.most_zeroes if zeroes else self.disk.most_discard
        if count > most or not self._fits(sector, count * SECTOR):
            self._complete(request, IO_ERROR)
        elif flags & ~1 or (flags and not zeroes):
            self._complete(request, UNSUPPORTED)
        else:
            request.sector, request.size = sector, count * SECTOR
            self.disk.medium.clear(sector, count * SECTOR, zeroes)
            self._flying.append([request])

    # -- the block layer -------------------------------------------------------------------------

    def _submit(self) -> None:
        """``virtio_blk_submit_multireq``."""
        collected, self._collected = self._collected, []
        for merged in _merged(collected):
            for request in merged:
                self._move(request)
            self._flying.append(merged)

    def _move(self, request: Request) -> None:
        """The data of one request."""
        medium, chain = self.disk.medium, request.chain
        if request.kind & _OUT:
            medium.write(request.sector, gather(chain.outs, _HEADER, request.size))
            return
        data = medium.read(request.sector, request.size)
        if data is not None:
            scatter(chain.ins, 0, data)
            return
        left = request.size
        for segment in chain.ins:
            n = min(left, len(segment))
            left -= n
            if n and segment.told:
                raise Unfollowed("it reads what nobody knows into a device")
            if n and medium.fills and not segment.bounced:
                assert self.device.port is not None
                self.device.port.unknown(segment.addr, n)

    def _finish(self) -> None:
        """Everything under way is completed; what was given to the block layer last is first,
        as its bottom halves are a stack (``aio_bh_poll``)."""
        flying, self._flying = self._flying, []
        if self.disk.medium.unordered and len(flying) > 1:
            raise Unfollowed("several requests of a disk are completed in any order")
        for merged in reversed(flying):
            for request in merged:
                self._complete(request, OK)

    def _complete(self, request: Request, status: int) -> None:
        """``virtio_blk_req_complete``."""
        device = self.device
        last = request.chain.ins[-1]
        last.write(len(last) - 1, bytes([status]))
        device.ring.push(request.queue, request.chain, request.in_size)
        if device.version >= (9,) or not device.ioeventfd_started:
            device.interrupt(request.queue)
        elif request.queue not in self._waiting:  # ``virtio_blk_data_plane_notify``
            if not self._waiting:
                device.later(When.SOON, self._interrupt)
            self._waiting.append(request.queue)

    def _interrupt(self) -> None:
        waiting, self._waiting = self._waiting, []
        for queue in waiting:
            self.device.interrupt(queue)


def _merged(collected: Sequence[Request]) -> Iterator[list[Request]]:
    """Requests in order of their sector, each with those that follow it without a gap."""
    ordered = sorted(collected, key=lambda request: request.sector)
    group: list[Request] = []
    following = parts = 0
    for request in ordered:
        if group and (following != request.sector or parts > _MOST_IOV - request.parts):
            yield group
            group = []
        if not group:
            following, parts = request.sector, 0
        group.append(request)
        following += request.size // SECTOR
        parts += request.parts
    if group:
        yield group
