"""What QEMU's virtio-blk does with guest memory in one kick, over the model's memory API.

Only the order and the kind of the accesses are QEMU's (``hw/virtio/virtio.c``
``virtqueue_split_pop``, ``virtqueue_split_fill``, ``virtqueue_split_flush``;
``hw/block/virtio-blk.c`` ``virtio_blk_handle_vq``); what each of them means is the model's.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from virtio_driver import INDIRECT, NEXT, SERIAL, WRITE, Rings

from qemuglue.memory import AddressSpace, MemTxAttrs
from qemuglue.memory.cached import MemoryRegionCache
from qemuglue.memory.endian import Le16, Le32
from qemuglue.memory.mapping import Mapping
from qemuglue.memory.region import MAX_SIZE

_GET_ID = 8
_UNSUPPORTED = 2


class Broken(Exception):
    """``virtio_error``: the device wants a reset; the message is QEMU's."""


@dataclass
class Chain:
    """One request's buffers as they were mapped."""

    head: int
    outs: list[Mapping] = field(default_factory=list)
    ins: list[Mapping] = field(default_factory=list)


class VirtioBlkModel:
    """``dma`` is the space of rings and buffers, ``bus`` that of interrupt messages, ``undo`` the
    one through which a request that cannot be mapped whole is unmapped: from 9.2 on, when each
    space got a budget for bounce buffers, to 10.1 a wrong one behind an IOMMU, where the device's
    budget was lost (``virtqueue_undo_map_desc``; a bug of QEMU's)."""

    def __init__(
        self, dma: AddressSpace, bus: AddressSpace, undo: AddressSpace | None = None
    ) -> None:
        self.dma = dma
        self.bus = bus
        self.undo = undo or dma
        self.message: tuple[int, int] | None = None
        #: Why the device is broken, as QEMU says it; "" while it is not.
        self.error = ""
        #: (number of in segments, of out segments) of every request popped.
        self.popped: list[tuple[int, int]] = []
        #: (address, bytes, is_write) of every call of ``map``.
        self.maps: list[tuple[int, int, bool]] = []
        self._caches: tuple[MemoryRegionCache, ...] = ()

    # -- the queue -----------------------------------------------------------------------------

    def start(self, rings: Rings) -> bool:
        """``virtio_init_region_cache``: whether the rings could be cached."""
        self.stop()
        self.error = ""
        self.num = rings.num
        self.last_avail = self.shadow_avail = self.used_index = 0
        caches: list[MemoryRegionCache] = []
        desc_size, avail_size, used_size = rings.sizes
        for name, addr, size, is_write in (
            ("desc", rings.desc, desc_size, False), ("used", rings.used, used_size, True),
            ("avail", rings.avail, avail_size, False),
        ):
            cache = MemoryRegionCache(self.dma, addr, size, is_write)
            caches.append(cache)
            if cache.length < size:
                self.error = f"Cannot map {name}"
                for each in caches:
                    each.destroy()
                return False
        self._caches = tuple(caches)
        self.desc, self.used, self.avail = caches
        return True

    def stop(self) -> None:
        for cache in self._caches:
            cache.destroy()
        self._caches = ()

    def kick(self) -> None:
        """``virtio_blk_handle_vq``."""
        self.popped.clear()
        self.maps.clear()
        while True:
            self._set_notification(False)
            try:
                while (chain := self._pop()) is not None:
                    self._handle(chain)
            except Broken as error:
                self.error = str(error)
            self._set_notification(True)
            if self.error or self._empty():
                return

    def _set_notification(self, enable: bool) -> None:
        _, flags = self.used.load(0, Le16)
        self.used.store(0, Le16(flags & ~1 if enable else flags | 1))
        self.used.invalidate(0, 2)

    def _empty(self) -> bool:
        if self.shadow_avail == self.last_avail:
            _, self.shadow_avail = self.avail.load(2, Le16)
        return self.shadow_avail == self.last_avail

    def _pop(self) -> Chain | None:
        if self._empty():
            return None
        _, head = self.avail.load(4 + 2 * (self.last_avail % self.num), Le16)
        self.last_avail = self.last_avail + 1 & 0xFFFF
        if head >= self.num:
            raise Broken(f"Guest says index {head} is available")
        chain = Chain(head)
        try:
            self._collect(chain)
        except Broken:
            for mapping in (*chain.outs, *chain.ins):
                self.undo.unmap(mapping, 0)
            raise
        self.popped.append((len(chain.ins), len(chain.outs)))
        return chain

    def _collect(self, chain: Chain) -> None:
        cache, index, most = self.desc, chain.head, self.num
        _, raw = cache.read(16 * index, 16)
        addr, size, flags, index = struct.unpack("<QIHH", raw)
        if flags & INDIRECT:
            if not size or size % 16:
                raise Broken("Invalid size for indirect buffer table")
            with MemoryRegionCache(self.dma, addr, size, False) as cache:
                if cache.length < size:
                    raise Broken("Cannot map indirect buffer")
                self._follow(chain, cache, size // 16, cache.read(0, 16)[1])
        else:
            self._follow(chain, cache, most, raw)

    def _follow(self, chain: Chain, cache: MemoryRegionCache, most: int, raw: bytes) -> None:
        """Map the buffers of a chain of at most ``most`` descriptors; ``raw`` is the first."""
        for _ in range(most):
            addr, size, flags, index = struct.unpack("<QIHH", raw)
            if not flags & WRITE and chain.ins:
                raise Broken("Incorrect order for descriptors")
            self._map(chain.ins if flags & WRITE else chain.outs, addr, size, bool(flags & WRITE))
            if not flags & NEXT:
                return
            if index >= most:
                raise Broken(f"Desc next is {index}")
            raw = cache.read(16 * index, 16)[1]
        raise Broken("Looped descriptor")

    def _map(self, segments: list[Mapping], addr: int, size: int, is_write: bool) -> None:
        """``virtqueue_map_desc``."""
        if not size:
            raise Broken("virtio: zero sized buffers are not allowed")
        while size:
            self.maps.append((addr, size, is_write))
            mapping = self.dma.map(addr, size, is_write)
            if mapping is None:
                raise Broken("virtio: bogus descriptor or out of resources")
            segments.append(mapping)
            addr = (addr + len(mapping)) % MAX_SIZE
            size -= len(mapping)

    def _unmap(self, chain: Chain, length: int) -> None:
        """``virtqueue_unmap_sg``."""
        for mapping in chain.ins:
            size = min(length, len(mapping))
            length -= size
            self.dma.unmap(mapping, size)
        for mapping in chain.outs:
            self.dma.unmap(mapping, len(mapping))

    # -- the disk ------------------------------------------------------------------------------

    def _handle(self, chain: Chain) -> None:
        header = b"".join(bytes(mapping.buffer) for mapping in chain.outs)
        length = sum(map(len, chain.ins))
        if not (chain.outs and chain.ins) or len(header) < 16:
            self._unmap(chain, 0)
            raise Broken("virtio-blk missing headers, or the header is too short")
        status = b"\0"
        if int.from_bytes(header[:4], "little") == _GET_ID:
            answer = (SERIAL + b"\0")[: min(length - 1, 20)]
            _scatter(chain.ins, answer)
        else:
            status = bytes([_UNSUPPORTED])
        last = chain.ins[-1]
        last.buffer[len(last) - 1 :] = status
        self._unmap(chain, length)
        at = 4 + 8 * (self.used_index % self.num)
        self.used.write(at, struct.pack("<II", chain.head, length))
        self.used.invalidate(at, 8)
        self.used_index = self.used_index + 1 & 0xFFFF
        self.used.store(2, Le16(self.used_index))
        self.used.invalidate(2, 2)
        _, flags = self.avail.load(0, Le16)
        if not flags & 1 and self.message is not None:
            addr, data = self.message
            self.bus.store(addr, Le32(data), MemTxAttrs())


def _scatter(segments: list[Mapping], data: bytes) -> None:
    """``iov_from_buf``."""
    for mapping in segments:
        part, data = data[: len(mapping)], data[len(mapping) :]
        mapping.buffer[: len(part)] = part
