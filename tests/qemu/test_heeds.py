"""What a decoded device says it does not heed means nothing to its model: on real machines, every
region of every decoded device, random writes before and after a program set the device up."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from qemuglue.campaign.settings import Settings, scene
from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.region import MemoryRegion
from qemuglue.qemu.builds import Build
from qemuglue.witness.dma.device import DmaDevice, Stretches, apart
from qemuglue.witness.judge import prepare
from qemuglue.witness.session import Session

pytestmark = pytest.mark.qemu

DEVICES = ("edu", "pci-testdev", "virtio-rng-pci", "e1000e")
WRITES = 400


@pytest.fixture(scope="module")
def session(build: Build) -> Iterator[Session]:
    made = scene(Settings(devices=DEVICES, build=build.name, setup="dma"))
    prepare(made)
    with made.session() as session:
        yield session


def state_of(thing: object, seen: dict[int, int]) -> object:
    """All that can be reached from ``thing``, as something that can be compared."""
    if isinstance(thing, str | bytes | bytearray | int | float | None):
        return bytes(thing) if isinstance(thing, bytearray) else thing
    if id(thing) in seen or isinstance(thing, AddressSpace):
        return "met", seen.get(id(thing), -1)
    seen[id(thing)] = len(seen)
    if isinstance(thing, dict):
        return [(state_of(key, seen), state_of(value, seen)) for key, value in thing.items()]
    if isinstance(thing, list | tuple):
        return [state_of(each, seen) for each in thing]
    if isinstance(thing, set | frozenset):
        return sorted(map(repr, thing))
    if isinstance(thing, MemoryRegion):
        return thing.name, len(thing.ioeventfds), thing.contract
    slots = [name for cls in type(thing).__mro__ for name in getattr(cls, "__slots__", ())]
    names = sorted({*getattr(thing, "__dict__", ()), *slots})
    if callable(thing) or not names:
        return type(thing).__name__
    return [(name, state_of(getattr(thing, name, None), seen)) for name in names]


def heeded(
    device: DmaDevice, region: MemoryRegion, stretches: Stretches, rng: Random
) -> list[tuple[int, int, int]]:
    """Writes outside ``stretches`` that change the device's model, or kick it, after all."""
    found = []
    if apart(stretches, region.size - 1, 1):
        device.wrote(region, region.size - 1, 1, 0)  # it may make an empty record of a queue
    for _ in range(WRITES):
        size = rng.choice((1, 2, 4, 8))
        offset = rng.choice((rng.randrange(region.size), rng.randrange(min(region.size, 0x100))))
        value = rng.choice((0, 1, 0xFA, (1 << 8 * size) - 1, rng.getrandbits(8 * size)))
        if offset + size > region.size or not apart(stretches, offset, size):
            continue
        before = state_of(device, {}), device.when(), device.lost
        kicks = device.kicks(region, offset, value.to_bytes(size, "little"))
        device.wrote(region, offset, size, value)
        if kicks or (state_of(device, {}), device.when(), device.lost) != before:
            found.append((offset, size, value))
    return found


def test_what_is_not_heeded_changes_nothing(session: Session) -> None:
    rng, said = Random(5), set()
    for follower in session.following.followers.values():
        for region in session.device_regions():
            if session.following.of(region) is not follower.device:
                continue
            stretches = session.following.heeds(region)
            if stretches is None:
                continue
            said.add(region.name)
            assert not heeded(follower.device, region, stretches, rng), region.name
    assert {"edu-mmio", "pci-testdev-mmio", "virtio-pci-isr-virtio-rng",
            "virtio-pci-common-virtio-rng", "virtio-pci-device-virtio-rng"} <= said


@pytest.mark.parametrize("name", [
    "edu-mmio", "pci-testdev-mmio", "virtio-pci-common-virtio-rng",
])
def test_nothing_heeded_would_be_found_out(session: Session, name: str) -> None:
    [region] = [each for each in session.device_regions() if each.name == name]
    device = session.following.of(region)
    assert device is not None
    assert heeded(device, region, (), Random(5))
