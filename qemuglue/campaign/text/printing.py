"""Parsed ``info mtree`` texts as text again: what a round trip is made with.

Printed as QEMU does, with an owner behind every line (``orphan`` where there is none) and an
offset behind every range, so that no end of a name can be taken for either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from qemuglue.qemu.mtree import MASK64, FlatText, Owner, TreeNode, TreeText


def print_tree(tree: TreeText) -> str:
    """The text that ``parse_tree`` makes the same value of."""
    lines: list[str] = []
    for listing in (*tree.spaces, *tree.targets):
        lines += [f"address-space: {name}" for name in listing.spaces]
        if not listing.spaces:
            lines.append(f"memory-region: {listing.name}")
        if listing.root is not None:
            lines += _nodes(listing.root)
        lines.append("")
    return _text(lines)


def print_flat(views: Iterable[FlatText]) -> str:
    """The text that ``parse_flat`` makes the same value of."""
    lines: list[str] = []
    for number, view in enumerate(views):
        lines.append(f"FlatView #{number}")
        for space in view.spaces:
            alias = "" if space.alias is None else f", alias {space.alias}"
            lines.append(f' AS "{space.name}", root: {space.root}{alias}')
        lines.append(f" Root memory region: {'(none)' if view.root is None else view.root}")
        if not view.ranges:
            lines.append("  No rendered FlatView")
        lines += [
            f"  {line.start:016x}-{line.last:016x} (prio {line.priority}, "
            f"{'nv-' * line.nonvolatile}{line.type}): {line.name} @{line.offset:016x}"
            f"{_owner(line.owner)}" for line in view.ranges
        ]
        if view.sections:
            lines += ["  Dispatch", "    Physical sections"]
            lines += [
                f"      #{each.number} @{each.start:016x}..{each.last:016x} "
                f"{each.name or '(noname)'} [x]" for each in view.sections
            ]
            lines.append("    Nodes (9 bits per level, 6 levels) ptr=[0] skip=1")
        lines.append("")
    return _text(lines)


def _nodes(root: TreeNode) -> Iterator[str]:
    stack = [(root, 1)]
    while stack:
        node, level = stack.pop()
        stack += [(child, level + 1) for child in reversed(node.children)]
        name = node.name
        if node.target is not None:
            last = (node.target_offset + node.size - 1) & MASK64
            name = f"alias {node.name} @{node.target} {node.target_offset:016x}-{last:016x}"
        yield (
            f"{'  ' * level}{node.start:016x}-{node.last:016x} (prio {node.priority}, "
            f"{'nv-' * node.nonvolatile}{node.type}): {name}"
            f"{'' if node.enabled else ' [disabled]'}{_owner(node.owner)}"
        )


def _owner(owner: Owner) -> str:
    if not owner.path and not owner.device:
        return " orphan"
    return f" owner:{{{'dev' if owner.device else 'obj'} path={owner.path}}}"


def _text(lines: list[str]) -> str:
    return "".join(f"{line}\r\n" for line in lines)
