"""ADDRESS_SPACE_MEMORY and ADDRESS_SPACE_IO stand for the machine that was bound last."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from fake_mtree import FakeMtree

from qemuglue.errors import ModelError
from qemuglue.memory import AddressSpace, MemoryRegion
from qemuglue.memory.endian import Be16, Le32
from qemuglue.memory.guest_address import GuestAddress
from qemuglue.memory.machine_spaces import ADDRESS_SPACE_IO, ADDRESS_SPACE_MEMORY, bind
from qemuglue.mirror import Mirror

DATA = Path(__file__).parent.parent / "data" / "mtree"


def space(name: str) -> AddressSpace:
    return AddressSpace(name, MemoryRegion.ram(name, 0x1000))


@pytest.mark.parametrize("name", ["ADDRESS_SPACE_MEMORY", "ADDRESS_SPACE_IO"])
def test_unbound_says_what_to_do(name: str) -> None:
    ready_made = {"ADDRESS_SPACE_MEMORY": ADDRESS_SPACE_MEMORY}.get(name, ADDRESS_SPACE_IO)
    for use in (
        lambda: ready_made.load(0, Le32), lambda: ready_made.store(0, Le32(1)),
        lambda: ready_made.read(bytearray(1), 0), lambda: ready_made.write(b"x", 0),
        ready_made.memory, lambda: ready_made.space,
    ):
        with pytest.raises(ModelError, match=rf"^{name} stands for nothing.*mirror.*bind"):
            use()
    assert repr(ready_made) == f"<{name}>"


def test_bound_to_spaces_of_ones_own() -> None:
    memory, io = space("memory"), space("I/O")
    with bind(memory=memory, io=io) as binding:
        assert (binding.memory, binding.io) == (memory, io)
        ADDRESS_SPACE_MEMORY.store(GuestAddress(0x10), Le32(42))
        ADDRESS_SPACE_IO.store(GuestAddress(0x10), Be16(7))
        assert memory.read(0x10, 4) == (0, b"\x2a\0\0\0") and io.read(0x10, 2) == (0, b"\0\7")
        assert ADDRESS_SPACE_MEMORY.space is memory and ADDRESS_SPACE_IO.space is io
        assert ADDRESS_SPACE_MEMORY.load(0x10, Le32) == 42
    with pytest.raises(ModelError):
        ADDRESS_SPACE_MEMORY.load(0x10, Le32)


def test_a_machine_without_ports() -> None:
    with bind(space("memory")):
        assert ADDRESS_SPACE_MEMORY.load(0, Le32) == 0
        with pytest.raises(ModelError, match=r"ADDRESS_SPACE_IO: the machine .* has no such space"):
            ADDRESS_SPACE_IO.load(0, Le32)


def test_the_last_binding_counts_and_restores_what_was_before() -> None:
    one, two = space("one"), space("two")
    with bind(one, one):
        with bind(two):
            assert ADDRESS_SPACE_MEMORY.space is two
            with pytest.raises(ModelError):
                ADDRESS_SPACE_IO.memory()
        assert ADDRESS_SPACE_MEMORY.space is one and ADDRESS_SPACE_IO.space is one


def test_bindings_are_restored_in_any_order_and_once() -> None:
    spaces = [space(name) for name in "abc"]
    first, second, third = (bind(each) for each in spaces)
    second.restore()
    assert ADDRESS_SPACE_MEMORY.space is spaces[2]
    second.restore()
    third.restore()
    assert ADDRESS_SPACE_MEMORY.space is spaces[0]
    first.restore()
    with pytest.raises(ModelError):
        _ = ADDRESS_SPACE_MEMORY.space


def test_an_error_restores_as_well() -> None:
    with pytest.raises(ZeroDivisionError), bind(space("memory")):
        _ = 1 / 0
    with pytest.raises(ModelError):
        ADDRESS_SPACE_MEMORY.memory()


def test_every_thread_sees_the_binding() -> None:
    seen: list[object] = []
    memory = space("memory")
    with bind(memory):
        thread = threading.Thread(target=lambda: seen.append(ADDRESS_SPACE_MEMORY.space))
        thread.start()
        thread.join(10)
    assert seen == [memory]


def test_bindings_of_many_threads_are_all_kept() -> None:
    memory = space("memory")
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait(10)
        for _ in range(200):
            with bind(memory):
                assert ADDRESS_SPACE_MEMORY.space is memory

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    with pytest.raises(ModelError, match="stands for nothing"):
        _ = ADDRESS_SPACE_MEMORY.space


def test_a_mirrored_machine() -> None:
    def hmp(line: str) -> str:
        suffix = "flat" if "-f" in line else "tree"
        return (DATA / f"7.2-x86_64-q35.{suffix}").read_text().replace("\n", "\r\n")

    mirror = Mirror.take(hmp)
    with mirror.bind():
        assert ADDRESS_SPACE_MEMORY.space.name == "memory"
        assert ADDRESS_SPACE_IO.space is mirror.io
        with ADDRESS_SPACE_MEMORY.memory() as view:
            section = view.find_region(0xFED00000)
            assert section is not None and section.section.region.name == "hpet"
            assert section.len() == 0x400
        with ADDRESS_SPACE_IO.memory() as view:
            port = view.find_region(0x70)
            assert port is not None and port.section.region.name == "rtc-index"


def test_a_refreshed_mirror_stays_bound() -> None:
    root = MemoryRegion.container_of("system", 1 << 64)
    ram = MemoryRegion.ram("ram", 0x1000)
    root.add_subregion(0x1000, ram)
    fake = FakeMtree([("memory", root)])
    mirror = Mirror.take(fake.hmp)
    with mirror.bind():
        with ADDRESS_SPACE_MEMORY.memory() as view:
            assert view.find_region(0x1000) is not None
        ram.set_address(0x4000)
        assert mirror.refresh(fake.hmp).changed
        with ADDRESS_SPACE_MEMORY.memory() as view:
            assert view.find_region(0x1000) is None and view.find_region(0x4000) is not None
        with pytest.raises(ModelError, match="no such space"):
            ADDRESS_SPACE_IO.memory()
