"""Which virtio device a place is, and the model of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from qemuglue.memory.region import MemoryRegion, RegionKind
from qemuglue.witness.dma.device import DmaDevice, Place, Silent
from qemuglue.witness.dma.virtio_blk import Blk, Disk
from qemuglue.witness.dma.virtio_device import RESIZES, Function, Traits, VirtioDevice
from qemuglue.witness.dma.virtio_medium import medium_of
from qemuglue.witness.dma.virtio_mmio import REGION, VirtioMmio
from qemuglue.witness.dma.virtio_pci import COMMON, LEGACY, VirtioPci
from qemuglue.witness.dma.virtio_ring import (
    ACCESS_PLATFORM,
    EVENT_IDX,
    IN_ORDER,
    NOTIFICATION_DATA,
    NOTIFY_ON_EMPTY,
    PACKED,
    VERSION_1,
    Queue,
)
from qemuglue.witness.dma.virtio_rng import Rng
from qemuglue.witness.iommu.virtio import VirtioIommuPci
from qemuglue.witness.iommu.virtio import function_at as virtio_iommu

#: Property -> value; None where there is none.
_Get = Callable[[str], Any]

#: Features that are a property of the device; all others are taken as offered.
_FEATURES: Mapping[str, int] = {
    "event_idx": EVENT_IDX, "notify_on_empty": NOTIFY_ON_EMPTY, "packed": PACKED,
    "in_order": IN_ORDER, "notification_data": NOTIFICATION_DATA,
    "iommu_platform": ACCESS_PLATFORM,
}
_EVERYTHING = (1 << 64) - 1


class Opaque:
    """A kind of device whose queues are not decoded: only its registers are."""

    known = False
    starts_early = False

    def bind(self, device: VirtioDevice) -> None:
        """Nothing is asked of it."""

    def handle(self, queue: Queue) -> None:
        raise AssertionError("it is not decoded")

    def set_status(self, status: int) -> None:
        """Nothing is known of it."""

    def reset(self) -> None:
        """Nothing is known of it."""


class Undecoded(Silent):
    """A virtio device of a kind that nothing is known of: lost as soon as it is used."""


    def __init__(self, name: str) -> None:
        self.name = name
        self.lost = ""

    def wrote(self, region: MemoryRegion, offset: int, size: int, value: int) -> None:
        self.lost = "what it does with its queues is not modelled"

    def reset(self) -> None:
        """There is nothing to forget."""


class _Facts:
    """Properties of objects, asked once for all sessions of a machine."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._known: dict[tuple[str, str], Any] = place.known.setdefault("virtio", {})

    def get(self, path: str, name: str) -> Any:
        key = path, name
        if key not in self._known:
            self._known[key] = self._place.qom_get(path, name)
        return self._known[key]

    def ask(self, command: str) -> Any:
        key = "", command
        if key not in self._known:
            self._known[key] = self._place.ask(command)
        return self._known[key]


def make(place: Place) -> DmaDevice | None:
    """The model of the virtio device at ``place``; None for anything else."""
    for region in place.regions.values():
        if region.kind is RegionKind.IO and (
            region.name.startswith(COMMON) or region.name == LEGACY
        ):
            return _pci(place)
        if region.name == REGION:
            return _mmio(place)
    return None


def _pci(place: Place) -> DmaDevice | None:
    path, facts = _path(place.owner), _Facts(place)
    get = partial(facts.get, path)
    backend = f"{path}/virtio-backend"
    of_backend = partial(facts.get, backend)
    queues = _queues(of_backend)
    if queues is None:
        return Undecoded(str(get("type")))
    translated = bool(of_backend("iommu_platform"))
    memory = place.space if translated else place.memory
    traits = Traits(
        str(get("type")), place.version, queues, _offered(of_backend), bool(get("ioeventfd")),
        place.memory.target_big, place.parked,
    )
    transport, function = VirtioPci, _function(facts, backend)
    if of_backend("type") == "virtio-iommu-device":
        transport, function = VirtioIommuPci, virtio_iommu(place, path, backend)
    device = VirtioDevice(traits, function, memory)
    return transport(
        device, place.regions, place.space, vectors=int(get("vectors") or 0),
        page_per_queue=bool(get("page-per-vq")), any_size=place.version >= RESIZES,
        bdf=_bdf(get), msix_at=_msix_at(place, get),
    )


def _bdf(get: _Get) -> int | None:
    """Bus, device and function of what sits on the root bus; other buses are numbered by whoever
    programs the bridges."""
    bus, addr = get("parent_bus"), get("addr")
    root = isinstance(bus, str) and bus.rsplit("/", 1)[-1] in ("pci.0", "pcie.0")
    return addr if root and isinstance(addr, int) and 0 <= addr < 256 else None


def _msix_at(place: Place, get: _Get) -> int:
    """Where the capability of MSI-X is: behind those that name the modern regions, if any
    (``virtio_pci_device_plugged``), on a bus that is not PCI Express's own."""
    if not any(region.name.startswith(COMMON) for region in place.regions.values()):
        return 0x40
    return 0xAC if get("modern-pio-notify") else 0x98


def _mmio(place: Place) -> DmaDevice | None:
    path, facts = _path(place.owner), _Facts(place)
    get = partial(facts.get, path)
    backend = _behind(facts, path)
    if backend is None:
        return None
    of_backend = partial(facts.get, backend)
    queues = _queues(of_backend)
    if queues is None:
        return Undecoded(str(of_backend("type")))
    traits = Traits(
        str(of_backend("type")), place.version, queues, _offered(of_backend),
        bool(get("ioeventfd")) and place.version >= RESIZES, place.memory.target_big,
        place.parked,
    )
    device = VirtioDevice(traits, _function(facts, backend), place.memory)
    return VirtioMmio(device, place.regions, legacy=bool(get("force-legacy")))


def _behind(facts: _Facts, window: str) -> str | None:
    """Path of the device that is plugged into a window; None for an empty one."""
    devices = facts.ask("x-query-virtio")
    for each in devices if isinstance(devices, list) else []:
        path = each.get("path") if isinstance(each, Mapping) else None
        if isinstance(path, str) and str(facts.get(path, "parent_bus")).startswith(f"{window}/"):
            return path
    return None


def _path(owner: str) -> str:
    """The object's path; a device with an id is known by that."""
    return f"/machine/peripheral/{owner[3:]}" if owner.startswith("id=") else owner


def _offered(get: _Get) -> int:
    offered = _EVERYTHING
    for name, bit in _FEATURES.items():
        if get(name) is not True:
            offered &= ~bit
    return offered | VERSION_1


def _queues(get: _Get) -> tuple[int, ...] | None:
    """Descriptors of each queue, by the kind of device."""
    kind = get("type")
    if kind == "virtio-blk-device":
        return (int(get("queue-size")),) * int(get("num-queues"))
    if kind == "virtio-scsi-device":
        return (int(get("virtqueue_size")),) * (2 + int(get("num_queues")))
    if kind == "virtio-serial-device":
        return (128, 128, 32, 32, *(128, 128) * (int(get("max_ports")) - 1))
    if kind == "virtio-balloon-device":
        plain = not get("free-page-reporting") and not get("free-page-hint")
        return (128, 128, 128) if plain else None
    if kind == "virtio-net-device":
        return None if get("mq") else (int(get("rx_queue_size")), int(get("tx_queue_size")), 64)
    return {
        "virtio-iommu-device": (256, 256), "virtio-rng-device": (8,),
        "virtio-keyboard-device": (64, 64),
        "virtio-mouse-device": (64, 64), "virtio-tablet-device": (64, 64),
        "virtio-multitouch-device": (64, 64), "virtio-gpu-device": (64, 16),
    }.get(str(kind))


def _function(facts: _Facts, path: str) -> Function:
    get = partial(facts.get, path)
    kind = get("type")
    if kind == "virtio-rng-device":
        rng = get("rng")
        builtin = isinstance(rng, str) and facts.get(rng, "type") == "rng-builtin"
        return Rng(builtin=builtin and int(get("max-bytes") or 0) >= (1 << 63) - 1)
    if kind == "virtio-blk-device" and not get("iothread"):
        medium = medium_of(facts.ask("query-block"), path)
        if medium is not None:
            return Blk(Disk(
                medium, str(get("serial") or "").encode(), int(get("logical_block_size") or 512),
                int(get("max-discard-sectors") or 0), int(get("max-write-zeroes-sectors") or 0),
                bool(get("request-merging")),
            ))
    return Opaque()

