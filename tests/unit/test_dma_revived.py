"""A device that was lost comes back with a reset, but what a reset leaves alone is not known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from qemuglue.errors import ModelError
from qemuglue.memory import AddressSpace, ByteBacking, MemoryRegion, RegionKind
from qemuglue.memory.rules import rules_for
from qemuglue.program.recipes.e1000e_packets import checksum
from qemuglue.witness.dma import Act, Following
from qemuglue.witness.dma.e1000e import E1000e
from qemuglue.witness.dma.e1000e_headers import Parsed, parse
from qemuglue.witness.dma.e1000e_vector import Vector, private
from qemuglue.witness.dma.edu import CMD, DST, Edu
from qemuglue.witness.dma.following import Follower
from qemuglue.witness.dma.fw_cfg import DMA_REGION, FwCfg
from qemuglue.witness.dma.items import Items
from qemuglue.witness.dma.port import ModelPort
from qemuglue.witness.dma.virtio_buffers import bounce_doubt
from qemuglue.witness.ram import RamWitness

OLD = (7, 2, 22)


def space() -> AddressSpace:
    root = MemoryRegion("root", 1 << 64, RegionKind.CONTAINER)
    root.add_subregion(0, MemoryRegion("ram", 4096, RegionKind.RAM, backing=ByteBacking(4096)))
    return AddressSpace("memory", root)


def after_reset(device: Any, why: str) -> None:
    """The device was ``lost`` for that reason ("": not at all) when the machine was reset."""
    following = Following(
        (), RamWitness(), qom_get=lambda path, name: None, version=OLD, parked=True, known={})
    following.followers["/dev"] = Follower("/dev", device, ModelPort(space()))
    device.lost = why
    following.reset()


def test_edu_stays_lost() -> None:
    """Its memory and registers survive a reset, whatever came into them."""
    edu = Edu(parked=True, version=OLD)
    after_reset(edu, "missed something")
    assert edu.lost == "missed something"


def test_half_an_address_of_fw_cfg() -> None:
    register = MemoryRegion(DMA_REGION, 8, RegionKind.IO)
    cfg = FwCfg(space(), Items({}))
    after_reset(cfg, "missed something")
    assert not cfg.lost
    assert cfg.floods(register, 4, bytes(4))  # it is not sent
    cfg.wrote(register, 4, 4, 0x100)
    assert "upper half" in cfg.lost
    after_reset(cfg, "missed something")
    cfg.wrote(register, 0, 4, 0)
    cfg.wrote(register, 4, 4, 0x100)
    assert not cfg.lost


def fragment() -> bytes:
    """TCP over IPv4, not the first part of its datagram: its bytes are no header."""
    header = bytearray.fromhex("4500002800010001400600000a0000010a000002")
    header[10:12] = checksum(header).to_bytes(2, "big")
    return (bytes(12) + b"\x08\0" + header + b"\xaa" * 30).ljust(64, b"\0")


def whole() -> bytes:
    header = bytes.fromhex("4500002800010000400600000a0000010a000002")
    return (bytes(12) + b"\x08\0" + header + bytes(12) + b"\x50\x10" + bytes(6)).ljust(64, b"\0")


def test_a_fragment_is_judged_by_a_header_that_nobody_saw() -> None:
    def of(data: bytes, before: Parsed, *, old: bool = True) -> Parsed:
        return parse(Vector([private(data)]), before, old=old)

    assert of(fragment(), Parsed()).header[13] == 0  # that of a device that has seen nothing
    with pytest.raises(ModelError, match="nobody followed"):
        of(fragment(), Parsed(stale=True))
    assert of(fragment(), Parsed(stale=True), old=False).protocol == 0
    seen = of(whole(), Parsed(stale=True))
    assert not seen.stale
    assert of(fragment(), seen).header[13] == 0x10


def test_an_e1000e_comes_back_with_less() -> None:
    device = E1000e(space(), b"\x52\x54\0\x12\x34\x56", OLD, bdf=8)
    window = MemoryRegion("e1000e-io", 0x20, RegionKind.IO)
    after_reset(device, "missed something")
    assert not device.lost
    assert device.floods(window, 4, bytes(4))
    with pytest.raises(ModelError, match="was not followed"):
        device._receiver.loop(SimpleNamespace(space=space()), Vector(), 0)
    device.wrote(window, 4, 4, 0)
    assert "not known" in device.lost
    after_reset(device, "missed something")
    device.wrote(window, 0, 4, 0)
    device.wrote(window, 4, 4, 0)
    assert not device.lost


def test_edu_is_followed_on_where_nothing_was_missed() -> None:
    edu = Edu(parked=True, version=OLD)
    edu.wrote(MemoryRegion("edu-mmio", 4096, RegionKind.IO), DST, 4, 0x40000)
    after_reset(edu, "")
    assert not edu.lost
    assert edu.registers[DST] == 0x40000 and not edu.registers[CMD]


def test_an_act_tells_what_it_stored() -> None:
    ram = MemoryRegion("ram", 4096, RegionKind.RAM, backing=ByteBacking(4096))
    stored = ((ram, 0x10, 4), (ram, 0x14, 4), *((ram, at, 1) for at in range(0x100, 0x200, 0x20)))
    assert Act("edu", (), stored).describe() == (
        "dma of edu: stored 8 bytes at ram+0x10, 1 byte at ram+0x100, 1 byte at ram+0x120, "
        "1 byte at ram+0x140, 5 times more")
    assert Act("edu").describe() == "dma of edu: stored nothing in RAM"


def test_who_holds_the_bounce_buffer_is_not_known_once_a_device_was_lost() -> None:
    """Before 9.2 there is one for all; where memory is, none is needed."""
    memory = space()
    memory.rules = rules_for(OLD)
    follower = Follower("/dev", Edu(parked=True, version=OLD), ModelPort(memory))
    follower.doubt()
    assert not bounce_doubt(memory, 0x10000, False)
    follower.device.lost = "missed something"
    follower.doubt()
    assert bounce_doubt(memory, 0x10000, False)
    assert not bounce_doubt(memory, 0, False)
    memory.rules = rules_for((10, 0, 2))
    assert not bounce_doubt(memory, 0x10000, False)
