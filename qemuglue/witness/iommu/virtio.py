"""QEMU's virtio-iommu: domains, mappings and faults, told through a virtio queue.

A request is performed inside the notify. Mappings are intervals, not pages, and each access is
looked up anew: there is nothing to be stale. QEMU looks for the interval of two bytes from the
address on, so the byte before a mapping finds it too, and leads to the byte before its memory.
Where such a look-up could find two mappings, which one it finds depends on the shape of a tree,
and the device is ``lost``.
Source: ``hw/virtio/virtio-iommu.c`` of 7.2 and 10.0.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.iommu import IommuAccess, IommuTlbEntry
from qemuglue.memory.region import MASK64, MemoryRegion
from qemuglue.witness.dma.device import Place, Stretches
from qemuglue.witness.dma.virtio_buffers import scatter
from qemuglue.witness.dma.virtio_device import VirtioDevice
from qemuglue.witness.dma.virtio_pci import VirtioPci
from qemuglue.witness.dma.virtio_ring import Broken, Chain, Queue
from qemuglue.witness.iommu.tables import Bindings, functions, nowhere, on_bus_zero

#: Name of the regions that translate: the number of the region and the function follow.
_REGION = "virtio-iommu-memory-region-"
_CONFIG = "virtio-pci-device-virtio-iommu"

#: Types of request, and what is answered.
_ATTACH, _DETACH, _MAP, _UNMAP, _PROBE = 1, 2, 3, 4, 5
OK, UNSUPPORTED, DEVICE_ERROR, INVALID, RANGE, NO_ENTRY = 0, 2, 3, 4, 5, 6

#: Bytes of each request before the answer.
_SIZES = {_ATTACH: 20, _DETACH: 20, _MAP: 36, _UNMAP: 28, _PROBE: 72}

#: Bytes of properties that a probe is answered with (``VIOMMU_PROBE_SIZE``).
_PROPERTIES = 512

#: Where the configuration says that endpoints without a domain may do all.
_BYPASS = 36
_BYPASS_CONFIG = 1 << 6

#: Reasons and flags of a fault.
_UNKNOWN, _NO_DOMAIN, _NO_MAPPING = 0, 1, 2
_FAULT_READ, _FAULT_WRITE, _FAULT_ADDRESS = 1, 2, 1 << 8

#: Up to which version a reset by the driver forgets domains; later it is the machine's only.
FORGETS_UNTIL = (10,)
#: Since when detaching forgets the endpoint.
DETACHES_SINCE = (8,)
#: Since when an answer that does not fit is an error; 7.2 ends by an assertion. Which version
#: between the two changed it is not known.
CHECKS_SINCE = (10,)

#: 7.2.0 takes what follows a probe in one notify to have an answer as long as the probe's. Of
#: these it is known that they do not: 7.2.22 by measurement, 10.0.2 by its source.
SIZES_ANEW = ((7, 2, 22), (7, 3)), (CHECKS_SINCE, (1 << 16,))

#: Since when a mapping that ends before it begins is refused, whatever else is wrong. Measured:
#: 10.0.2 takes it, 11.1.3 does not.
ORDERED_SINCE = (11,)

#: Since when one notify serves no more requests than the queue has descriptors. Measured:
#: 10.0.2 goes on to whatever the driver claims, 11.1.3 stops there.
BOUNDED_SINCE = (11,)

_SEEN_IN_TWO = "which of two mappings side by side QEMU finds is not known"


@dataclass(frozen=True, slots=True)
class Mapping:
    """I/O addresses from ``low`` to ``high`` (inclusive) lead to ``phys`` on. ``flags``: 1 read,
    2 write, 4 device memory."""

    low: int
    high: int
    phys: int
    flags: int

    def meets(self, low: int, high: int) -> bool:
        return self.low <= high and low <= self.high


@dataclass(slots=True)
class Domain:
    """Mappings shared by the endpoints in it; a bypass domain has none."""

    bypass: bool
    mappings: list[Mapping]


@dataclass(frozen=True, slots=True)
class Reserved:
    """I/O addresses with a meaning of their own (inclusive); messages pass as they are."""

    low: int
    high: int
    messages: bool


class VirtioIommu:
    """The function of a virtio-iommu, see ``virtio_device.Function``."""

    known = True
    starts_early = False

    def __init__(
        self, memory: AddressSpace, version: tuple[int, ...], *, bypass: bool = True,
        granule: int = 0x1000, reserved: tuple[Reserved, ...] = (),
    ) -> None:
        self.memory = memory
        self.version = version
        self.granule = granule
        self.reserved = reserved
        self.boot_bypass = self.bypass = bypass
        self.domains: dict[int, Domain] = {}
        #: Endpoint to its domain's number; None while it has none.
        self.endpoints: dict[int, int | None] = {}
        #: Functions of bus 0 that are behind it.
        self.functions: set[int] = set()
        #: The bypass byte of the configuration as it was read or written last.
        self._shown = 0
        self._bindings = Bindings()
        self.device: VirtioDevice

    def bind(self, device: VirtioDevice) -> None:
        self.device = device

    def set_status(self, status: int) -> None:
        """Nothing depends on it."""

    def reset(self) -> None:
        """The driver resets the device."""
        if self.version < FORGETS_UNTIL:
            self._forget()

    def machine_reset(self) -> None:
        """The machine was reset."""
        self.bypass = self.boot_bypass
        self._forget()

    def _forget(self) -> None:
        self.domains.clear()
        self.endpoints.clear()

    # -- configuration -----------------------------------------------------------------------------

    def configured(self, offset: int, size: int, value: int) -> None:
        """The driver writes its configuration (``virtio_iommu_set_config``)."""
        if offset + size > _BYPASS + 4:
            return
        if offset <= _BYPASS < offset + size:
            self._shown = value >> 8 * (_BYPASS - offset) & 0xFF
        if self._shown == self.bypass:
            return
        if not self.device.features & _BYPASS_CONFIG:
            self.device.fail("cannot set config.bypass")
        elif self._shown > 1:
            self.device.fail("invalid config.bypass value")
        else:
            self.bypass = bool(self._shown)

    def looked(self) -> None:
        """The driver reads its configuration: it is as the device has it from here on."""
        self._shown = int(self.bypass)

    # -- requests ----------------------------------------------------------------------------------

    def handle(self, queue: Queue) -> None:
        """``virtio_iommu_handle_command``."""
        if queue.index:
            return
        ring, after_probe = self.device.ring, False
        anew = any(first <= self.version < stop for first, stop in SIZES_ANEW)
        most = queue.num if self.version >= BOUNDED_SINCE else 1 << 16
        for _ in range(most):
            chain = ring.pop(queue)
            if chain is None:
                return
            room = sum(map(len, chain.ins))
            if room < 4 or sum(map(len, chain.outs)) < 4:
                ring.detach(queue, chain, 0)
                raise Broken("virtio-iommu bad head/tail size")
            probe = chain.out_bytes(0, 1)[0] == _PROBE
            if (after_probe and not anew) or (
                probe and room < _PROPERTIES + 4 and self.version < CHECKS_SINCE
            ):
                self.device.lose("QEMU answers beyond what it checks")
                return
            after_probe = after_probe or probe
            answer = self._answer(chain)
            if len(answer) > room:
                scatter(chain.ins, 0, answer[:room])
                answer = bytes([DEVICE_ERROR, 0, 0, 0])
            scatter(chain.ins, 0, answer)
            ring.push(queue, chain, len(answer))
            self.device.interrupt(queue)

    def _answer(self, chain: Chain) -> bytes:
        kind = chain.out_bytes(0, 1)[0]
        size = _SIZES.get(kind)
        if size is None:
            return bytes([UNSUPPORTED, 0, 0, 0])
        data = chain.out_bytes(0, size)
        properties = b""
        status = INVALID
        if len(data) == size:
            if kind == _PROBE:
                status, properties = self._probe(data)
            else:
                status = {
                    _ATTACH: self._attach, _DETACH: self._detach, _MAP: self._map,
                    _UNMAP: self._unmap,
                }[kind](data)
        if kind == _PROBE:
            properties = properties.ljust(_PROPERTIES, b"\0")
        return properties + bytes([status, 0, 0, 0])

    def _is_there(self, endpoint: int) -> bool:
        """Whether a function has these 8 bits, on the bus of the next 8."""
        return not endpoint >> 8 & 0xFF and endpoint & 0xFF in self.functions

    def _attach(self, data: bytes) -> int:
        domain_id, endpoint, flags = struct.unpack_from("<III", data, 4)
        if flags & ~1:
            return INVALID
        if endpoint not in self.endpoints:
            if not self._is_there(endpoint):
                return NO_ENTRY
            self.endpoints[endpoint] = None
        self._leave(endpoint)
        domain = self.domains.setdefault(domain_id, Domain(bool(flags & 1), []))
        if domain.bypass != bool(flags & 1):
            return INVALID
        self.endpoints[endpoint] = domain_id
        return OK

    def _leave(self, endpoint: int) -> None:
        domain_id = self.endpoints[endpoint]
        if domain_id is not None:
            self.endpoints[endpoint] = None
            if domain_id not in self.endpoints.values():
                del self.domains[domain_id]

    def _detach(self, data: bytes) -> int:
        domain_id, endpoint = struct.unpack_from("<II", data, 4)
        if endpoint not in self.endpoints:
            return NO_ENTRY
        if self.endpoints[endpoint] is None or self.endpoints[endpoint] != domain_id:
            return INVALID
        self._leave(endpoint)
        if self.version >= DETACHES_SINCE:
            del self.endpoints[endpoint]
        return OK

    def _map(self, data: bytes) -> int:
        domain_id, low, high, phys, flags = struct.unpack_from("<IQQQI", data, 4)
        if flags & ~7 or (high < low and self.version >= ORDERED_SINCE):
            return INVALID
        domain = self.domains.get(domain_id)
        if domain is None:
            return NO_ENTRY
        if domain.bypass:
            return INVALID
        if high < low:
            self.device.lose("a mapping that ends before it begins")
            return INVALID
        if any(each.meets(low, high) for each in domain.mappings):
            return INVALID
        domain.mappings.append(Mapping(low, high, phys, flags))
        return OK

    def _unmap(self, data: bytes) -> int:
        domain_id, low, high = struct.unpack_from("<IQQ", data, 4)
        domain = self.domains.get(domain_id)
        if domain is None:
            return NO_ENTRY
        if domain.bypass:
            return INVALID
        if high < low:
            self.device.lose("an unmap that ends before it begins")
            return INVALID
        met = [each for each in domain.mappings if each.meets(low, high)]
        inside = [each for each in met if low <= each.low and each.high <= high]
        if inside and len(inside) < len(met):
            self.device.lose("which mappings an unmap finds first is not known")
            return RANGE
        for each in inside:
            domain.mappings.remove(each)
        return RANGE if len(inside) < len(met) else OK

    def _probe(self, data: bytes) -> tuple[int, bytes]:
        """(status, properties): the ranges that mean something else."""
        if not self._is_there(int.from_bytes(data[4:8], "little")):
            return NO_ENTRY, b""
        properties = b"".join(
            struct.pack("<HHB3xQQ", 1, 20, each.messages, each.low, each.high)
            for each in self.reserved)
        return (OK, properties) if len(properties) <= _PROPERTIES else (INVALID, b"")

    # -- translation -------------------------------------------------------------------------------

    def bind_regions(self, regions: Iterable[MemoryRegion], buses: object) -> None:
        """After every change of the map; see ``tables.Translates``."""
        found = functions(buses)
        self.functions.clear()
        for region in regions:
            number = region.name.rpartition("-")[2]
            if not region.name.startswith(_REGION) or not number.isdecimal():
                continue
            endpoint = on_bus_zero(found, int(number))
            if endpoint is not None:
                self.functions.add(endpoint)
            if region.container is None:
                continue  # what holds it
            if endpoint is None:
                self._bindings.bind(
                    region, lambda addr, _: nowhere(self.memory, addr),
                    lambda: "which of two functions behind bridges it serves is not known")
            else:
                self._bindings.bind(
                    region, partial(self.translate, endpoint), lambda: self.device.lost)

    def unbind_regions(self) -> None:
        self._bindings.unbind()

    def translate(self, endpoint: int, addr: int, access: IommuAccess) -> IommuTlbEntry:
        """``virtio_iommu_translate``."""
        mask = self.granule - 1
        refused = nowhere(self.memory, addr, mask)
        straight = IommuTlbEntry(self.memory, addr & ~mask, addr & ~mask, mask, access)
        if endpoint not in self.endpoints:
            return straight if self.bypass else self._fault(_UNKNOWN, 0, endpoint, addr, refused)
        for each in self.reserved:
            if each.low <= addr <= each.high:
                if each.messages:
                    return straight
                return self._fault(_NO_MAPPING, 0, endpoint, addr, refused)
        domain_id = self.endpoints[endpoint]
        if domain_id is None:
            return straight if self.bypass else self._fault(
                _NO_DOMAIN, 0, endpoint, addr, refused)
        domain = self.domains[domain_id]
        if domain.bypass:
            return straight
        met = [each for each in domain.mappings if each.meets(addr, addr + 1 & MASK64)]
        if len(met) > 1:
            self.device.lose(_SEEN_IN_TWO)
            return refused
        if not met:
            return self._fault(_NO_MAPPING, 0, endpoint, addr, refused)
        denied = access & ~met[0].flags & 3
        if denied:
            return self._fault(_NO_MAPPING, denied, endpoint, addr, refused)
        to = addr - met[0].low + met[0].phys & MASK64
        return IommuTlbEntry(self.memory, addr & ~mask, to & ~mask, mask, access)

    def _fault(
        self, reason: int, flags: int, endpoint: int, addr: int, refused: IommuTlbEntry
    ) -> IommuTlbEntry:
        """Tell the driver through the event queue, if it offers room there
        (``virtio_iommu_report_fault``)."""
        record = struct.pack("<B3xIIIQ", reason, flags | _FAULT_ADDRESS, endpoint, 0, addr)
        device = self.device

        def report() -> None:
            queue = device.queues[1]
            chain = device.ring.pop(queue)
            if chain is None:
                return
            if sum(map(len, chain.ins)) < len(record):
                device.ring.detach(queue, chain, 0)
                raise Broken("error buffer of wrong size")
            scatter(chain.ins, 0, record)
            device.ring.push(queue, chain, len(record))
            device.interrupt(queue)

        with device.ring.acting():
            device.guarded(report)
        return refused


class VirtioIommuPci(VirtioPci):
    """The device with its PCI transport."""

    hears_reads = True

    @property
    def function(self) -> VirtioIommu:
        function = self.device.function
        assert isinstance(function, VirtioIommu)
        return function

    def kicks(self, region: MemoryRegion, offset: int, data: bytes) -> bool:
        """Whether all may bypass it decides which map devices see."""
        return region.name == _CONFIG or super().kicks(region, offset, data)

    def heeds(self, region: MemoryRegion) -> Stretches | None:
        return None if region.name == _CONFIG else super().heeds(region)

    def wrote(self, region: MemoryRegion, offset: int, size: int, value: int) -> None:
        if region.name == _CONFIG:
            self.function.configured(offset, size, value)
        else:
            super().wrote(region, offset, size, value)

    def was_read(self, region: MemoryRegion, offset: int, size: int, value: int) -> None:
        if region.name == _CONFIG and offset + size <= _BYPASS + 4:
            self.function.looked()

    def reset(self) -> None:
        super().reset()
        self.function.machine_reset()

    def bind(self, regions: Iterable[MemoryRegion], buses: object) -> None:
        """See ``tables.Translates``."""
        self.function.bind_regions(regions, buses)

    def unbind(self) -> None:
        self.function.unbind_regions()


def function_at(place: Place, path: str, backend: str) -> VirtioIommu:
    """The function of the device at ``path`` with the ``backend``'s properties."""
    granule = place.qom_get(backend, "granule")
    sizes = {"4k": 0x1000, "8k": 0x2000, "16k": 0x4000, "64k": 0x1_0000, "host": mmap.PAGESIZE}
    return VirtioIommu(
        place.memory, place.version,
        bypass=place.qom_get(backend, "boot-bypass") is not False,
        granule=sizes.get(str(granule), 1 << place.memory.page_bits),
        reserved=tuple(_reserved(place, path)))


def _reserved(place: Place, path: str) -> Iterable[Reserved]:
    """Texts of the form ``LOW:HIGH:TYPE``; type 1 is for messages."""
    texts = place.qom_get(path, "reserved-regions")
    if texts is None:
        count = place.qom_get(path, "len-reserved-regions")
        texts = [place.qom_get(path, f"reserved-regions[{at}]") for at in range(int(count or 0))]
    for text in texts:
        low, high, kind = str(text).split(":")
        yield Reserved(int(low, 16), int(high, 16), kind == "1")
