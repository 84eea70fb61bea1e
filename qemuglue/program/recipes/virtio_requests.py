"""Requests on a virtqueue: for a disk, and for random numbers."""

from __future__ import annotations

from random import Random

from qemuglue.program.operation import Operation, Place
from qemuglue.program.recipes.recipe import Scratch, ram_write
from qemuglue.program.recipes.virtio_rings import Buffer, Rings
from qemuglue.program.verbs import ADDRESS_MASK, MAX_LENGTH

_IN, _OUT, _FLUSH, _SCSI, _GET_ID, _DISCARD, _ZEROES = 0, 1, 4, 2, 8, 11, 13
_KINDS = (_IN, _IN, _IN, _OUT, _OUT, _FLUSH, _GET_ID, _DISCARD, _ZEROES, _SCSI, 3, 5, 16, 18,
          0x80000000, 99)

#: Requests that a device may be told of beyond those that were made. It does them all, the ring
#: round and round: where its writes are refused each is some sixty lines of transcript.
AHEAD = (1, 100, 300)


def disk_requests(
    rng: Random, scratch: Scratch, rings: Rings, count: int, *, wrong: bool
) -> list[Operation]:
    """``count`` requests for a disk, made available."""
    ops: list[Operation] = []
    for _ in range(count):
        twist = rng if wrong and rng.random() < 0.5 else None
        ops += _disk_request(rng, scratch, rings, twist)
    ops.append(_publish(rng, rings, wrong=wrong))
    return ops


def random_requests(
    rng: Random, scratch: Scratch, rings: Rings, count: int, *, wrong: bool
) -> list[Operation]:
    """``count`` requests for random numbers, made available."""
    ops: list[Operation] = []
    for _ in range(count):
        twist = rng if wrong and rng.random() < 0.5 else None
        buffers = [_buffer(rng, scratch, write=True) for _ in range(rng.choice((1, 1, 2, 3)))]
        if rng.random() < 0.1:
            buffers.insert(0, _buffer(rng, scratch, write=False))
        ops += rings.chain(scratch, buffers, indirect=rng.random() < 0.2, twist=twist)
    ops.append(_publish(rng, rings, wrong=wrong))
    return ops


def _publish(rng: Random, rings: Rings, *, wrong: bool) -> Operation:
    ahead = rng.choice(AHEAD) if wrong and rng.random() < 0.1 else 0
    return rings.publish(1 if rng.random() < 0.1 else 0, ahead)


def _buffer(rng: Random, scratch: Scratch, *, write: bool) -> Buffer:
    size = rng.choice((1, 3, 4, 8, 16, 64, rng.randint(1, 300)))
    return Buffer(scratch.take(size), size, write)


def _disk_request(
    rng: Random, scratch: Scratch, rings: Rings, twist: Random | None
) -> list[Operation]:
    kind = rng.choice(_KINDS)
    sector = rng.choice((0, 1, 7, rng.randrange(2048), 2047, 2048, 1 << 40, (1 << 64) - 1))
    header = scratch.take(16, rng.choice((1, 16)))
    ops = [ram_write(header, rings.pack("II", kind, rng.choice((0, 0, 1)))),
           ram_write(header + 8, rings.pack("Q", sector))]
    buffers = _split(rng, Buffer(header, 16))
    if kind & ~0x80000000 in (_IN, _OUT):
        size = 512 * rng.choice((0, 1, 1, 2, 3, 8)) + rng.choice((0, 0, 0, 0, 0, 1, 511))
        size = min(size, MAX_LENGTH)
        if size:
            data = Buffer(scratch.take(size, rng.choice((1, 512))), size, kind & 1 == 0)
            ops.append(Operation("memset", _at(data.addr), size, rng.randrange(256)))
            buffers += _split(rng, data)
    elif kind in (_DISCARD, _ZEROES):
        buffers += _range(rng, scratch, rings, ops)
    elif kind in (_SCSI, 3):
        buffers += [_buffer(rng, scratch, write=False)] * rng.choice((0, 1))
        buffers += [_buffer(rng, scratch, write=True) for _ in range(rng.choice((0, 2, 2, 3)))]
    elif rng.random() < 0.7:
        size = rng.choice((5, 19, 20, 21, 60, 128))
        buffers += _split(rng, Buffer(scratch.take(size), size, True))
    status = Buffer(scratch.take(1), 1, True)
    if twist is None or twist.random() < 0.8:
        buffers.append(status)
    return ops + rings.chain(scratch, buffers, indirect=rng.random() < 0.3, twist=twist)


def _range(
    rng: Random, scratch: Scratch, rings: Rings, ops: list[Operation]
) -> list[Buffer]:
    """The range of a discard or of zeroes to be written."""
    at = scratch.take(16)
    ops.append(ram_write(at, rings.pack("Q", rng.choice((0, 1, 2047, 2048, 1 << 50)))))
    count = rng.choice((0, 1, 8, 2048, 4194304, 0xFFFFFFFF))
    ops.append(ram_write(at + 8, rings.pack("II", count, rng.choice((0, 0, 1, 2)))))
    return _split(rng, Buffer(at, rng.choice((16, 16, 16, 16, 15, 17)), False))


def _split(rng: Random, buffer: Buffer) -> list[Buffer]:
    """The buffer in one piece or in several."""
    if rng.random() < 0.7 or buffer.size < 2:
        return [buffer]
    cut = rng.randint(1, buffer.size - 1)
    return [
        Buffer(buffer.addr, cut, buffer.write),
        Buffer(buffer.addr + cut, buffer.size - cut, buffer.write),
    ]


def _at(addr: int) -> Place:
    return Place(None, 0, addr & ADDRESS_MASK)
