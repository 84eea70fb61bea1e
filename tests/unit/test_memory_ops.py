"""Callbacks: plain ones, ones that see the attributes, and who may veto."""

from __future__ import annotations

import pytest
from rule_checks import invalids, io, space_of

from qemuglue.errors import ModelError
from qemuglue.memory import (
    AddressSpace,
    Contract,
    Le16,
    Le32,
    MemoryRegion,
    MemTxAttrs,
    OpsTable,
)
from qemuglue.memory.attrs import UNSPECIFIED
from qemuglue.memory.rules import RULES_10_0

TOP = 1 << 64
Calls = list[tuple[object, ...]]


def over(ops: OpsTable, contract: Contract | None = None) -> AddressSpace:
    root = MemoryRegion.container_of("system", TOP)
    root.add_subregion(0x1000, MemoryRegion.io("dev", 0x100, contract or Contract(), ops))
    return AddressSpace("memory", root)


def test_plain_callbacks_are_always_ok() -> None:
    calls: Calls = []

    def write(offset: int, value: int, size: int) -> None:
        calls.append((offset, value, size))

    space = over(OpsTable(read_plain=lambda offset, size: offset + size, write_plain=write))
    assert space.load(0x1010, Le16) == (0, 0x12)
    assert space.store(0x1010, Le32(7)) == 0 and calls == [(0x10, 7, 4)]


def test_callbacks_with_attributes_see_them_and_may_fail() -> None:
    calls: Calls = []

    def read(offset: int, size: int, attrs: MemTxAttrs) -> tuple[int, int]:
        calls.append((offset, size, attrs.requester_id))
        return 1, 0xFFFF

    def write(offset: int, value: int, size: int, attrs: MemTxAttrs) -> int:
        calls.append((offset, value, size, attrs.requester_id))
        return 4

    space = over(OpsTable(read_with_attrs=read, write_with_attrs=write))
    who = MemTxAttrs(requester_id=9)
    assert space.load(0x1010, Le16, who) == (1, 0xFFFF), "the value comes with the error"
    assert space.store(0x1010, Le16(7), who) == 4
    assert calls == [(0x10, 2, 9), (0x10, 7, 2, 9)]


def test_a_plain_callback_goes_before_one_with_attributes() -> None:
    space = over(OpsTable(
        read_plain=lambda offset, size: 1, read_with_attrs=lambda offset, size, attrs: (1, 2),
        write_plain=lambda offset, value, size: None,
        write_with_attrs=lambda offset, value, size, attrs: 1,
    ))
    assert space.load(0x1000, Le16) == (0, 1) and space.store(0x1000, Le16(0)) == 0


def test_each_direction_chooses_for_itself() -> None:
    space = over(OpsTable(
        read_plain=lambda offset, size: 1,
        write_with_attrs=lambda offset, value, size, attrs: 1,
    ))
    assert space.load(0x1000, Le16) == (0, 1) and space.store(0x1000, Le16(0)) == 1


def test_a_direction_without_a_callback_is_an_error() -> None:
    space = over(OpsTable())
    with pytest.raises(ModelError, match="'dev' has no read callback"):
        space.load(0x1000, Le16)
    with pytest.raises(ModelError, match="'dev' has no write callback"):
        space.store(0x1000, Le16(0))


def test_pieces_go_on_after_an_error_and_results_are_ored() -> None:
    results = {0: 1, 2: 0, 4: 2, 6: 0}
    space = over(
        OpsTable(
            read_with_attrs=lambda offset, size, attrs: (results[offset], offset + 1),
            write_with_attrs=lambda offset, value, size, attrs: results[offset],
        ),
        Contract(valid_max=8, impl_min=2, impl_max=2),
    )
    assert space.load_sized(0x1000, 8, "little") == (3, 0x0007000500030001)
    assert space.store_sized(0x1000, 0, 8, "little") == 3


def test_a_veto_may_look_at_who_asks() -> None:
    seen: Calls = []

    def accepts(offset: int, size: int, is_write: bool, attrs: MemTxAttrs) -> bool:
        seen.append((offset, size, is_write, attrs))
        return attrs.secure

    region = io(Contract(accepts_attrs=accepts))
    space, device = space_of(RULES_10_0, (0, region))
    secure = MemTxAttrs(secure=True)
    assert space.read(4, 4, secure)[0] == space.write(4, bytes(4), secure) == 0
    assert space.read(4, 4)[0] == space.write(4, bytes(4)) == 2
    assert invalids(device.log) == [(4, 4, False, "rejected"), (4, 4, True, "rejected")]
    assert seen == [
        (4, 4, False, secure), (4, 4, True, secure), (4, 4, False, UNSPECIFIED),
        (4, 4, True, UNSPECIFIED),
    ]
    assert space.access_valid(4, 4, False, secure) and not space.access_valid(4, 4, False)


def test_both_vetoes_must_agree() -> None:
    region = io(Contract(
        accepts=lambda offset, size, is_write: offset == 0,
        accepts_attrs=lambda offset, size, is_write, attrs: size == 4,
    ))
    space, _ = space_of(RULES_10_0, (0, region))
    assert [space.read(at, size)[0] for at, size in ((0, 4), (4, 4), (0, 2))] == [0, 2, 2]


@pytest.mark.parametrize(("field", "value"), [
    ("space", 4), ("space", -1), ("requester_id", 1 << 16), ("pid", 256), ("address_type", 2),
])
def test_attributes_have_widths(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{field} is"):
        MemTxAttrs(**{field: value})
    assert getattr(MemTxAttrs(**{field: 1}), field) == 1


def test_a_device_without_callbacks_answers_0() -> None:
    root = MemoryRegion.container_of("system", TOP)
    root.add_subregion(0, MemoryRegion.io("dumb", 4))
    root.add_subregion(8, MemoryRegion.ram("ram", 4))
    space = AddressSpace("memory", root)
    assert space.load(0, Le32) == (0, 0) and space.store(0, Le32(1)) == 0
