"""The text of `info mtree`: real texts of three versions, and texts that are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from qemuglue.errors import ProtocolError
from qemuglue.qemu import mtree
from qemuglue.qemu.mtree import Owner, parse_flat, parse_tree

DATA = Path(__file__).parent.parent / "data" / "mtree"
TREES = sorted(DATA.glob("*.tree"))


def text_of(name: str) -> str:
    """A stored text with the line ends QEMU sends."""
    return (DATA / name).read_text().replace("\n", "\r\n")


def tree_of(*lines: str) -> str:
    return "\r\n".join(["address-space: memory", *lines, "", ""])


def flat_of(*lines: str) -> str:
    return "\r\n".join([
        "FlatView #0", ' AS "memory", root: system', " Root memory region: system", *lines, "", "",
    ])


NODE = "  0000000000000000-00000000000000ff (prio 0, i/o): system"
RANGE = "  0000000000000000-00000000000000ff (prio 0, i/o): system"


@pytest.mark.parametrize("path", TREES, ids=lambda path: path.stem)
def test_reads_every_line_of_a_real_tree(path: Path) -> None:
    tree = parse_tree(text_of(path.name))
    nodes = [node for listing in (*tree.spaces, *tree.targets) for node in below(listing.root)]
    lines = [line for line in path.read_text().splitlines() if line.startswith("  ")]
    assert len(nodes) == len(lines)
    for node, line in zip(nodes, lines, strict=True):
        assert line.strip().startswith(f"{node.start:016x}-{node.last:016x} (prio {node.priority}")
        assert node.name in line and node.enabled == ("[disabled]" not in line)


@pytest.mark.parametrize("path", TREES, ids=lambda path: path.stem)
def test_reads_every_line_of_a_real_flat_view(path: Path) -> None:
    name = path.with_suffix(".flat").name
    views = parse_flat(text_of(name))
    lines = [line for line in (DATA / name).read_text().splitlines() if " (prio " in line]
    assert sum(len(view.ranges) for view in views) == len(lines)


def below(node: mtree.TreeNode | None) -> list[mtree.TreeNode]:
    return [] if node is None else [node, *[x for child in node.children for x in below(child)]]


def test_tree_of_a_real_machine() -> None:
    tree = parse_tree(text_of("11.1-x86_64-q35.tree"))
    [memory] = [listing for listing in tree.spaces if "memory" in listing.spaces]
    assert memory.spaces == ("cpu-memory-0", "memory")
    assert memory.root is not None and memory.root.size == 1 << 64
    ram = memory.root.children[0]
    assert (ram.name, ram.target, ram.target_offset, ram.type) == (
        "ram-below-4g", "pc.ram", 0, "ram"
    )
    hpet = next(node for node in memory.root.children if node.name == "hpet")
    assert hpet.start == hpet.addr == 0xFED0_0000 and hpet.size == 0x400 and hpet.enabled
    assert hpet.owner == Owner("/machine/unattached/device[5]", True)
    assert {listing.name for listing in tree.targets} == {
        "system", "pc.ram", "pc.bios", "pci", "smram",
    }
    portio = next(n for listing in tree.spaces for n in below(listing.root) if n.name == "dma-page")
    assert portio.owner.path.endswith("/<memory-region-portio-list>")


def test_flat_view_with_its_dispatch_tree() -> None:
    views = parse_flat(text_of("11.1-x86_64-microvm.dispatch"))
    io = next(view for view in views if view.spaces[0].name == "I/O")
    assert io.ranges[0].name == "io" and io.sections[0].name == ""
    assert io.sections[0].last == (1 << 64) - 1
    assert [s.number for s in io.sections] == list(range(len(io.sections)))
    assert {r.name for r in io.ranges} <= {s.name for s in io.sections}


def test_a_view_of_nothing() -> None:
    views = parse_flat(text_of("7.2-x86_64-q35.flat"))
    [nothing] = [view for view in views if not view.ranges]
    assert nothing.root is None
    assert {space.name for space in nothing.spaces} == {"mch", "ICH9-LPC", "ich9-ahci", "ICH9-SMB"}


# (line, what is checked of the node)
LINES = [
    ("  0000000000000000-ffffffffffffffff (prio -5, nv-ram): system", {
        "size": 1 << 64, "priority": -5, "nonvolatile": True, "type": "ram"}),
    ("  0000000000001000-0000000000001000 (prio 0, romd): system [disabled]", {
        "addr": 0x1000, "size": 1, "enabled": False}),
    ("[DETECTED OVERFLOW!]   ffffffffffffff00-00000000000000ff (prio 0, i/o): system", {
        "size": 0x200, "start": 0xFFFF_FFFF_FFFF_FF00}),
    ("  0000000000000000-00000000000000ff (prio 0, i/o): a [*] name: with (things) orphan", {
        "name": "a [*] name: with (things)", "owner": Owner()}),
    ("  0000000000000000-00000000000000ff (prio 0, i/o): x owner:{dev id=net0}", {
        "owner": Owner("id=net0", True)}),
    ("  0000000000000000-00000000000000ff (prio 0, i/o):  parent:{obj path=/machine}", {
        "name": "", "owner": Owner("/machine", False)}),
    ("  0000000000000000-00000000000000ff (prio 0, ram): alias bus master @pc ram "
     "0000000000000100-00000000000001ff", {
         "name": "bus master", "target": "pc ram", "target_offset": 0x100, "also": ()}),
    ("  0000000000000000-00000000000000ff (prio 0, ram): alias a @b @c "
     "0000000000000100-00000000000001ff", {
         "name": "a @b", "target": "c", "also": (("a", "b @c"),)}),
]


@pytest.mark.parametrize(("line", "wanted"), LINES)
def test_node_lines(line: str, wanted: dict[str, object]) -> None:
    node = parse_tree(tree_of(line)).spaces[0].root
    assert node is not None
    assert {name: getattr(node, name) for name in wanted} == wanted


def test_addresses_of_children_are_relative_and_wrap() -> None:
    root = parse_tree(tree_of(
        "  fffffffffffff000-00000000000000ff (prio 0, i/o): system",
        "    0000000000000010-000000000000001f (prio 0, i/o): inside",
    )).spaces[0].root
    assert root is not None and root.children[0].addr == 0x1010


def test_spaces_without_a_root_and_without_owners() -> None:
    tree = parse_tree("address-space: empty\r\n\r\naddress-space: a\r\naddress-space: b\r\n"
                      + NODE + "\r\n\r\n")
    assert tree.spaces[0].root is None
    assert tree.spaces[1].spaces == ("a", "b")


def test_ranges() -> None:
    [view] = parse_flat(flat_of(
        "  0000000000000000-00000000000000ff (prio 1, nv-ram): a b @0000000000000010"
        " owner:{dev path=/x} KVM KVM",
        "  0000000000000100-00000000000001ff (prio 0, i/o): name KVM",
    ))
    first, second = view.ranges
    assert (first.name, first.offset, first.nonvolatile) == ("a b", 0x10, True)
    assert first.owner == Owner("/x", True)
    assert (second.name, second.offset) == ("name", 0)


# (text, number of the wrong line)
WRONG_TREES = [
    ("", 1),
    ("extraneous characters at the end of line\r\n\r\n", 1),
    (tree_of("nonsense"), 2),
    (tree_of(NODE, "      0000000000000000-00000000000000ff (prio 0, i/o): too deep"), 3),
    (tree_of(NODE, "   0000000000000000-00000000000000ff (prio 0, i/o): odd indent"), 3),
    (tree_of(NODE, "0000000000000000-00000000000000ff (prio 0, i/o): no indent"), 3),
    (tree_of(NODE, NODE), 1),
    (tree_of(NODE.replace("i/o", "soup")), 2),
    (tree_of(NODE.replace("prio 0", "prio 99999999999999")), 2),
    (tree_of(NODE.replace("ff (", "fg (")), 2),
    (tree_of(NODE + "\r"), 2),
    (tree_of(NODE) + "address-space: x\r\n" + NODE, 5),
    (tree_of(NODE) + "memory-region: x\r\n" + NODE + "\r\n\r\n", 4),
    (tree_of(NODE) + "memory-region: system\r\n\r\n", 4),
    (tree_of(NODE) + "memory-region: system\r\n" + NODE + "\r\n\r\naddress-space: b\r\n\r\n", 7),
    (tree_of("  " + "x" * (mtree.MAX_LINE + 1)), 2),
    (tree_of(*["  " * depth + NODE for depth in range(mtree.MAX_DEPTH + 1)]),
     mtree.MAX_DEPTH + 2),
]


@pytest.mark.parametrize(("text", "line"), WRONG_TREES)
def test_what_is_no_tree_is_refused_with_its_line(text: str, line: int) -> None:
    with pytest.raises(ProtocolError, match=rf"info mtree -o -D: line {line}: "):
        parse_tree(text)


WRONG_FLATS = [
    ("", 1),
    ("FlatView 0\r\n\r\n", 1),
    ("FlatView #0\r\n\r\n", 1),
    (flat_of(), 4),
    (flat_of("nonsense"), 4),
    (flat_of(RANGE, RANGE), 5),
    (flat_of(RANGE.replace("00ff (", "00fx (")), 4),
    (flat_of("  0000000000000100-00000000000000ff (prio 0, i/o): backwards"), 4),
    (flat_of(RANGE, "  Dispatch"), 5),
    (flat_of(RANGE, "  Dispatch", "    Physical sections", "      #1 nonsense"), 7),
    (flat_of(RANGE)[:-2], 5),
]


@pytest.mark.parametrize(("text", "line"), WRONG_FLATS)
def test_what_is_no_flat_view_is_refused_with_its_line(text: str, line: int) -> None:
    with pytest.raises(ProtocolError, match=rf"info mtree -f -o: line {line}: "):
        parse_flat(text)


def test_the_line_is_right_in_a_later_block() -> None:
    good = tree_of(NODE)
    parse_tree(good)
    with pytest.raises(ProtocolError, match="line 6: "):
        parse_tree(good + "address-space: b\r\n" + NODE + "\r\n  nonsense\r\n\r\n")


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mtree, "MAX_NODES", 3)
    many = tree_of(NODE, *["  " + NODE] * 4)
    with pytest.raises(ProtocolError, match="more than 3 regions"):
        parse_tree(many)
    monkeypatch.setattr(mtree, "MAX_TEXT", 10)
    with pytest.raises(ProtocolError, match="more than 10 characters"):
        parse_tree(many)


def test_a_text_cut_anywhere_inside_a_block_is_refused() -> None:
    text = text_of("11.1-hexagon-V66G_1024.tree").replace("\r\n", "\n")
    refused = 0
    for cut in range(1, len(text)):
        whole_blocks = text[:cut].endswith("\n\n")
        if whole_blocks:
            parse_tree(text[:cut])
        else:
            with pytest.raises(ProtocolError):
                parse_tree(text[:cut])
            refused += 1
    assert refused > 400
