"""Snapshots: what QEMU prints read into plain values, and those written as JSON and back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qemuglue.errors import ProtocolError, UsageError
from qemuglue.mirror.snapshot import (
    Bar,
    MapRange,
    PciFunction,
    RamBlock,
    Snapshot,
    View,
    from_json,
    owner_type,
    parse_blocks,
    parse_qom_types,
    pci_functions,
    views_of,
)
from qemuglue.qemu.mtree import Owner, parse_flat

SNAPSHOT = Snapshot(
    "x86_64/q35", "sid", "11.1.3",
    (View(("I/O", "I/O"), "io", (MapRange(0xCF9, 1, "i/o", "piix", 0, "PIIX3", True),)),
     View(("memory",), "", ())),
    (RamBlock("pc.ram", 4096, 8192),), (PciFunction("0/1e.0/02.0", "8086:100e",
                                                    (Bar(6, "mem64-pref", 65536),)),),
)


def test_json_round_trip() -> None:
    assert from_json(json.loads(json.dumps(SNAPSHOT.to_json()))) == SNAPSHOT


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("schema",), 2, "schema 1"),
        (("views",), 3, "Snapshot.views is int"),
        (("views", 0), [], "View is no object"),
        (("views", 0, "spaces"), [1], "no text"),
        (("views", 0, "ranges", 0, "start"), "0", "MapRange.start is str"),
        (("views", 0, "ranges", 0, "size"), True, "MapRange.size is bool"),
        (("views", 0, "ranges", 0, "size"), -1, "MapRange.size is -1"),
        (("blocks", 0, "name"), None, "RamBlock.name"),
        (("functions", 0, "bars", 0, "more"), 1, "Bar has"),
    ],
)
def test_a_damaged_document_is_one_sentence(path: tuple[Any, ...], value: Any, said: str) -> None:
    data = json.loads(json.dumps(SNAPSHOT.to_json()))
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(UsageError, match="snapshot") as caught:
        from_json(data)
    assert said in str(caught.value)


@pytest.mark.parametrize("data", [None, [], {}, "x", {"schema": 1}])
def test_no_snapshot_at_all(data: Any) -> None:
    with pytest.raises(UsageError):
        from_json(data)


OLD = """\
              Block Name    PSize              Offset               Used              Total
                  pc.ram    4 KiB  0x0000000000000000 0x0000000008000000 0x0000000008000000
    /rom@etc/acpi/tables    2 MiB  0x0000000009100000 0x0000000000020000 0x0000000000200000
                            4 KiB  0x0000000009300000 0x0000000000001000 0x0000000000001000
"""


def test_blocks_of_old_and_new_versions() -> None:
    expected = (RamBlock("/rom@etc/acpi/tables", 0x20000, 0x200000),
                RamBlock("pc.ram", 0x8000000, 0x8000000))
    assert parse_blocks(OLD) == expected
    lines = OLD.splitlines()
    new = [f"{lines[0]}                HVA  RO",
           *(f"{line} 0x00007f9507e00000  r{flag}" for line, flag in zip(lines[1:], "wow",
                                                                         strict=True))]
    assert parse_blocks("\n".join(new)) == expected


@pytest.mark.parametrize("text", ["", "unknown command", OLD + "garbage\n",
                                  OLD.replace("0x0000000000020000", "zzz")])
def test_blocks_that_are_none(text: str) -> None:
    with pytest.raises(ProtocolError):
        parse_blocks(text)


def test_qom_types_by_path() -> None:
    types = parse_qom_types(
        "/machine (pc-machine)\n  /unattached (container)\n    /device[3] (VGA)\n"
        "      /vga[0] (memory-region)\n  /q35 (q35-pcihost)\nnonsense\n")
    assert types["/machine/unattached/device[3]"] == "VGA"
    assert types["/machine/unattached/device[3]/vga[0]"] == "memory-region"
    assert types["/machine/q35"] == "q35-pcihost"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", ""), ("/machine", "machine"), ("/machine/unattached", ""), ("id=net0", "id=net0"),
        ("/machine/unattached/device[3]", "VGA"),
        ("/machine/unattached/device[3]/<memory-region-portio-list>", "VGA"),
        ("/machine/unattached/<memory-region-portio-list>", ""),
        ("/machine/unknown[7]/x[1]", "/machine/unknown[]/x[]"),
    ],
)
def test_owners_compare_between_builds(path: str, expected: str) -> None:
    assert owner_type(Owner(path), {"/machine/unattached/device[3]": "VGA"}) == expected


FLAT = """\
FlatView #{number}
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-000000000000ffff (prio 0, {kind}): io parent:{{obj path=/machine/unattached}}

FlatView #0
 AS "z", root: bus
 AS "a", root: bus
 Root memory region: (none)
  No rendered FlatView

"""


def test_numbers_order_and_the_new_type_are_made_alike() -> None:
    old = views_of(parse_flat(FLAT.format(number=1, kind="i/o")), {})
    new = views_of(tuple(reversed(parse_flat(FLAT.format(number=7, kind="container")))), {})
    assert old == new
    assert [view.spaces for view in old] == [("I/O",), ("a", "z")]


def function(slot: int, **more: Any) -> dict[str, Any]:
    return {"slot": slot, "function": 0, "id": {"vendor": 0x8086, "device": 0x1237},
            "regions": [], **more}


def test_pci_functions_behind_bridges() -> None:
    region = {"bar": 0, "type": "memory", "size": 4096, "mem_type_64": True, "prefetch": True}
    inner = function(2, regions=[region, {"bar": 1, "type": "io", "size": 32}])
    buses = [{"devices": [function(0x1E, pci_bridge={"devices": [inner]})]}]
    assert pci_functions(buses) == (
        PciFunction("0/1e.0", "8086:1237"),
        PciFunction("0/1e.0/02.0", "8086:1237", (Bar(0, "mem64-pref", 4096), Bar(1, "io", 32))),
    )
    assert pci_functions([]) == ()


@pytest.mark.parametrize("buses", [
    None, 7, ["x"], [{}], [{"devices": [{}]}], [{"devices": [function("x")]}],  # type: ignore[arg-type]
    [{"devices": [function(1, regions=[{"bar": 9, "type": "io", "size": 1}])]}],
    [{"devices": [function(1, regions=[{"bar": 1, "type": "io", "size": 0}])]}],
])
def test_answers_that_are_no_pci(buses: Any) -> None:
    with pytest.raises(ProtocolError):
        pci_functions(buses)


def test_bridges_without_end() -> None:
    loop = function(1)
    loop["pci_bridge"] = {"devices": [loop]}
    with pytest.raises(ProtocolError, match="bridges"):
        pci_functions([{"devices": [loop]}])
