"""The text and the answers of QEMU's object model; the comparison is tested on real QEMU."""

from __future__ import annotations

from typing import Any

import pytest

from qemuglue.errors import ProtocolError
from qemuglue.memory import MemoryRegion
from qemuglue.mirror.identity import RegionKey
from qemuglue.qemu.qom import AT_ONCE, MAX_DEPTH, QomRegion, memory_regions, region_paths, split
from qemuglue.witness.qom import compare

TREE = """/ (container)
  /machine (pc-q35-7.2-machine)
    /fw_cfg (fw_cfg_io)
      /\\x2from@etc\\x2facpi[0] (memory-region)
    /iommu (intel-iommu)
      /bus master[0] (intel-iommu-iommu-memory-region)
    /unattached (container)
      /system[0] (memory-region)
"""
PATHS = [
    "/machine/fw_cfg/\\x2from@etc\\x2facpi[0]", "/machine/iommu/bus master[0]",
    "/machine/unattached/system[0]",
]


class FakeMonitor:
    """Answers what QEMU would, or what a test wants."""

    owners = True

    def __init__(self, tree: str = TREE, answer: object = None) -> None:
        self.tree = tree
        self.answer = answer
        self.asked: list[tuple[str, Any]] = []

    def hmp(self, line: str) -> str:
        assert line == "info qom-tree /"
        return self.tree

    def execute(self, command: str, arguments: dict[str, Any]) -> Any:
        self.asked.append((command, arguments))
        facts = {"addr": 16, "size": (1 << 64) - 1, "priority": -1, "container": ""}
        if self.answer is not None:
            return self.answer
        if command == "qom-get":
            return facts[arguments["property"]]
        properties = [{"name": name, "value": value} for name, value in facts.items()]
        return [{"properties": properties} for _ in arguments["paths"]]


def test_paths_of_regions() -> None:
    # The root itself has no name.
    assert list(region_paths(TREE.replace("/ (container)", "/ (container)", 1))) == PATHS


def test_names_are_unescaped() -> None:
    assert split(PATHS[0]) == ("/machine/fw_cfg", "/rom@etc/acpi")
    assert split(PATHS[1]) == ("/machine/iommu", "bus master")
    assert split("/a/b") == ("/a", "b")


@pytest.mark.parametrize(("tree", "told"), [
    ("", ""), ("machine\n", "line 1: no object"),
    ("/ (container)\n    /a (b)\n", "line 2: unexpected indentation"),
    ("/ (container)\n /a (b)\n", "line 2: unexpected indentation"),
    ("".join(f"{'  ' * n}/a (b)\n" for n in range(MAX_DEPTH + 2)), "unexpected indentation"),
])
def test_a_text_that_is_none(tree: str, told: str) -> None:
    if not told:
        assert not list(region_paths(tree))
        return
    with pytest.raises(ProtocolError, match=told):
        list(region_paths(tree))


@pytest.mark.parametrize(("version", "questions"), [((7, 2, 22), 12), ((10, 1), 1)])
def test_both_ways_to_ask_tell_the_same(version: tuple[int, ...], questions: int) -> None:
    monitor = FakeMonitor()
    found = memory_regions(monitor, version)  # type: ignore[arg-type]
    assert found == [QomRegion(path, 16, 1 << 64, -1, "") for path in PATHS]
    assert len(monitor.asked) == questions


def test_many_regions_are_asked_in_parts() -> None:
    tree = "/ (container)\n" + "".join(f"  /a[{n}] (memory-region)\n" for n in range(AT_ONCE + 1))
    monitor = FakeMonitor(tree)
    assert len(memory_regions(monitor, (11,))) == AT_ONCE + 1  # type: ignore[arg-type]
    assert [len(asked["paths"]) for _, asked in monitor.asked] == [AT_ONCE, 1]


@pytest.mark.parametrize("answer", [
    {}, [], [{}], [{"properties": 1}] * 3, [{"properties": [{"name": "addr"}]}] * 3,
    [{"properties": [{}]}] * 3, [None] * 3, "x",
])
def test_an_answer_that_is_none(answer: object) -> None:
    with pytest.raises(ProtocolError):
        memory_regions(FakeMonitor(answer=answer), (11,))  # type: ignore[arg-type]
    with pytest.raises(ProtocolError):
        memory_regions(FakeMonitor(answer=answer), (7, 2))  # type: ignore[arg-type]


def region(owner: str, name: str, size: int = 16) -> MemoryRegion:
    made = MemoryRegion.container_of(name, size)
    made.key = RegionKey(owner, name)
    return made


def test_owners_that_tell_no_path() -> None:
    ports = region("/machine/dma/<portio-list>", "dma-page")
    own_name = region("id=platform", "bus")
    users = region("id=rng", "bar")
    lost = region("", "lost")
    objects = [
        QomRegion("/machine/dma/dma-page[0]", 0, 16, 0, ""),
        QomRegion("/machine/unattached/device[1]/bus[0]", 0, 16, 0, ""),
        QomRegion("/machine/peripheral/rng/bar[0]", 0, 16, 0, ""),
        QomRegion("/machine/hidden/bar[0]", 0, 99, 0, ""),
    ]
    account = compare([ports, own_name, users, lost], objects)
    assert not account.differences and account.compared == 3
    assert dict(account.unjudged) == {"its owner is in no tree of objects": 1}
    [difference] = compare([own_name], [objects[0]]).differences
    assert difference.qemu == "there is none"


def test_equals_are_a_bag_and_no_size_is_one() -> None:
    ours = [region("/d", "r", size) for size in (4, 1, 4, 8)]
    theirs = [QomRegion(f"/d/r[{n}]", 0, size, 0, "") for n, size in enumerate((8, 4, 4, 0))]
    account = compare(ours, theirs)
    assert not account.differences
    assert dict(account.unjudged) == {"a size of 0 prints like one of 1": 1}
    assert len(compare(ours, theirs[:2]).differences) == 2
    assert len(compare(ours[1:], theirs[1:]).differences) == 1


def test_a_child_of_what_is_in_sight_must_be_in_sight() -> None:
    parent = region("/d", "parent")
    objects = [QomRegion("/d/parent[0]", 0, 16, 0, ""),
               QomRegion("/d/child[0]", 4, 1, 0, "/d/parent[0]"),
               QomRegion("/d/bar[0]", 0, 16, 0, ""),
               QomRegion("/d/in-bar[0]", 0, 1, 0, "/d/bar[0]")]
    [difference] = compare([parent], objects).differences
    assert difference.place == "/d:child" and difference.model == "there is none"
    assert difference.qemu == "size 0x1, priority 0, at 0x4 in /d:parent"
