"""Texts that no QEMU prints: the mirror comes to an end soon, and says what is wrong where."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from qemuglue.errors import ProtocolError
from qemuglue.mirror import Mirror, effort, identity, likeness, pairing
from qemuglue.qemu.mtree import parse_tree

#: CPU seconds; an honest run takes 0.1 to 2, what was quadratic or exponential a minute and more.
PATIENCE_S = 12

WHOLE = "0000000000000000-00000000000000ff (prio 0, i/o): "


def node(level: int, name: str, start: int = 0, last: int = 0xFF) -> str:
    return f"{'  ' * level}{start:016x}-{last:016x} (prio 0, i/o): {name}\n"


def alias(level: int, name: str, target: str, start: int = 0, size: int = 0x100) -> str:
    line = node(level, f"alias {name} @{target}", start, start + size - 1)
    return f"{line[:-1]} {0:016x}-{size - 1:016x}\n"


def view(name: str, root: str, *ranges: str, number: int = 0) -> str:
    return (f"FlatView #{number}\n AS \"{name}\", root: {root}\n Root memory region: {root}\n"
            f"{''.join(ranges)}\n")


def hmp(tree: str, flat: str) -> Callable[[str], str]:
    return lambda line: flat if "-f" in line else tree


def doubled(levels: int) -> str:
    """Containers of two aliases each to the next one: 2 ** ``levels`` regions in the end."""
    size = 1 << 40
    def body(k: int) -> str:
        both = (alias(2, f"a{k}{j}", f"c{k + 1}", 16 * j, size) for j in (0, 1))
        return node(1, f"c{k}", 0, size - 1) + ("".join(both) if k < levels else "")

    return "\n".join([
        "address-space: memory\n" + body(0),
        *(f"memory-region: c{k}\n{body(k)}" for k in range(1, levels + 1)),
    ]) + "\n"


def spaces(count: int, sort: str) -> tuple[str, str]:
    """Spaces of one name and root, and as many views that fit none of them."""
    tree = "\n".join(f"address-space: s\n{node(1, 'r')}" for _ in range(count)) + "\n"
    flat = "".join(view("s", "r", node(1, f"{sort}{k}"), number=k) for k in range(count))
    return tree, flat


@pytest.fixture(autouse=True)
def soon() -> object:
    began = time.process_time()
    yield
    assert time.process_time() - began < PATIENCE_S


# Section: cost


def test_views_that_fit_no_root_are_paired_in_print_order() -> None:
    mirror = Mirror.take(hmp(*spaces(1000, "q")))
    assert not mirror.exact
    assert mirror.score.exact == 0 and mirror.score.total == 1000
    assert sum("QEMU 0x0-0xff" in str(each) for each in mirror.differences) == 1000


@pytest.mark.parametrize("limit", [pairing.MAX_COMPARED, 0])
def test_what_fits_exactly_is_paired_whatever_the_order(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairing, "MAX_COMPARED", limit)
    tree = "\n".join(
        f"address-space: s\n{node(1, 'r')}{node(2, f'd{k}')}" for k in range(40)) + "\n"
    flat = "".join(view("s", "r", node(1, f"d{k}"), number=k) for k in reversed(range(40)))
    assert Mirror.take(hmp(tree, flat.replace('root: r\n Root memory region: r',
                                              'root: r\n Root memory region: d'))).exact is False
    views = "".join(
        f'FlatView #{k}\n AS "s", root: r\n Root memory region: d{k}\n{node(1, f"d{k}")}\n'
        for k in reversed(range(40)))
    assert Mirror.take(hmp(tree, views)).exact


def test_what_fits_best_is_paired_as_long_as_that_is_cheap(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = "\n".join(
        f"address-space: s\n{node(1, 'r')}{node(2, f'a{k}', 0, 0x7F)}{node(2, 'b', 0x80)}"
        for k in range(9)) + "\n"
    flat = "".join(view("s", "r", node(1, f"a{k}", 0, 0x7F), node(1, "c", 0x80), number=k)
                   for k in reversed(range(9)))
    assert len(Mirror.take(hmp(tree, flat)).differences) == 9
    monkeypatch.setattr(pairing, "MAX_COMPARED", 10)
    assert len(Mirror.take(hmp(tree, flat)).differences) > 9


def test_learning_ends_when_it_has_cost_enough_and_says_so() -> None:
    mirror = Mirror.take(hmp(doubled(17), view("memory", "c0", node(1, "nobody", 0, 15))))
    assert not mirror.exact
    assert str(mirror.differences[0]) == (
        f"learning was given up, it looked at more than {effort.MAX_LEARNT} regions")
    assert len(mirror.differences) > 1


def test_what_was_learnt_before_is_kept_when_learning_is_given_up(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best run that came to its end counts."""
    flat = view("memory", "c0", node(1, "c4", 0, 0xFF), node(1, "nobody", 0x100, 0x1FF))
    wrong = len(Mirror.take(hmp(doubled(4), flat)).differences)
    monkeypatch.setattr(effort, "MAX_LEARNT", 1000)
    short = Mirror.take(hmp(doubled(4), flat)).differences
    assert "given up" in str(short[0]) and len(short) - 1 == wrong


def test_drawing_ends_when_it_has_cost_enough() -> None:
    with pytest.raises(ProtocolError, match=r": line 2: the tree shows more than 1000000 regions"):
        Mirror.take(hmp(doubled(20), view("memory", "c0", node(1, "c20"))))
    deep = doubled(60)  # more than there is memory for
    with pytest.raises(ProtocolError, match=r": line 2: "):
        Mirror.take(hmp(deep, view("memory", "c0", node(1, "c20"))))


def test_the_cost_is_all_views_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effort, "MAX_DRAWN", 100)
    body = node(1, "r", 0, 0xFFF) + "".join(node(2, f"d{k}", k, k) for k in range(40))
    tree = "\n".join(f"address-space: s{k}\n{body}" for k in range(3)) + "\n"
    with pytest.raises(ProtocolError, match="line 88: the tree shows more than 100 regions"):
        Mirror.take(hmp(tree, view("s0", "r", node(1, "r"))))


def test_every_refresh_has_its_own_effort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effort, "MAX_DRAWN", 60)
    states = [f"address-space: memory\n{node(1, 'system')}{node(2, 'd', at, at)}"
              f"{node(2, 'e', 64, 64)}\n" for at in (0, 8)]
    flats = [view("memory", "system", node(1, "d", at, at), node(1, "e", 64, 64))
             for at in (0, 8)]
    mirror = Mirror.take(hmp(states[0], flats[0]))
    for k in range(100):
        assert mirror.refresh(hmp(states[~k & 1], flats[~k & 1])).predicted


def test_namesakes_by_the_thousand() -> None:
    def tree(at: int) -> str:
        rows = "".join(node(2, "x", at + 16 * k, at + 16 * k + 15) for k in range(3000))
        return f"address-space: memory\n{node(1, 'system', 0, 0xFFFFF)}{rows}\n"

    flat = view("memory", "system", node(1, "nobody"))
    mirror = Mirror.take(hmp(tree(0), flat))
    before = set(mirror.regions)
    assert not mirror.refresh(hmp(tree(8), flat)).exact
    assert set(mirror.regions) == before, "they are the same regions, moved"


def test_namesakes_are_one_region_each_however_they_are_matched(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likeness, "MAX_COMPARED", 3)
    rows = node(2, "x", 0, 15) + alias(2, "x", "t", 16, 8)
    tree = f"address-space: memory\n{node(1, 'system')}{rows}\nmemory-region: t\n{node(1, 't')}\n"
    flat = view("memory", "system", node(1, "x", 0, 15), node(1, "t", 16, 23))
    mirror = Mirror.take(hmp(tree, flat))
    x, shown = (region for region in mirror.regions if region.name == "x")
    mirror.refresh(hmp(tree.replace("fff (", "ffe (").replace("0ff (", "0fe ("), flat))
    assert [region for region in mirror.regions if region.name == "x"] == [x, shown]


def test_targets_of_one_name_by_the_thousand(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 1500
    rows = "".join(alias(2, f"a{k}", "x") for k in range(count))
    listed = "".join(f"memory-region: x\n{node(1, 'x', 0, 0xFF + k)}\n" for k in range(count))
    tree = f"address-space: memory\n{node(1, 'system')}{rows}\n{listed}"
    found = identity.identify(parse_tree(tree))
    aliases = [spec for spec in found.regions if spec.target is not None]
    assert len({spec.target for spec in aliases}) == count, "each listing is met by someone"
    assert max(len(spec.options) for spec in aliases) <= identity.MAX_OPTIONS
    assert not Mirror.take(hmp(tree, view("memory", "system", node(1, "nobody")))).exact


def test_listings_that_print_alike_by_the_thousand(monkeypatch: pytest.MonkeyPatch) -> None:
    one = f"address-space: s\n{node(1, 'r')}{node(2, 'q')}\n"
    other = f"address-space: s\n{node(1, 'b')}{node(2, 'r')}{node(3, 'q')}\n"
    text = one * 2400 + other * 2400
    monkeypatch.setattr(identity, "MAX_TWINS", 50_000)
    assert len(identity.identify(parse_tree(text)).spaces) == 4800


def test_namesakes_of_spaces_are_numbered() -> None:
    tree, flat = spaces(2000, "q")
    mirror = Mirror.take(hmp(tree + f"address-space: memory\n{node(1, 'system')}\n", flat))
    assert {"s", "s#1", "s#1999"} <= set(mirror.layout().spaces)


# Section: where it is wrong

FLAT = view("memory", "system", node(1, "system"))
HEAD = f"address-space: x\n{node(1, 'y')}\n"  # three lines
CHAIN = f"address-space: memory\n{alias(1, 'c0', 'c1')}\n" + "".join(
    f"memory-region: c{k}\n{alias(1, f'c{k}', f'c{k + 1}')}\n" for k in range(1, 70)
) + f"memory-region: c70\n{node(1, 'c70')}\n"


@pytest.mark.parametrize(("tree", "line", "what"), [
    (f"address-space: memory\n{alias(1, 'loop', 'loop')}\n"
     f"memory-region: loop\n{alias(1, 'loop', 'loop')}\n", 2, "'loop' leads in a circle"),
    (f"address-space: memory\n{alias(1, 'a', 'b')}\nmemory-region: b\n{alias(1, 'b', 'a')}\n"
     f"memory-region: a\n{alias(1, 'a', 'b')}\n", 2, "leads in a circle"),
    (f"address-space: memory\n{node(1, 's')}{node(2, 'near', 0, 7)}{alias(2, 'x', 's')}\n"
     f"memory-region: s\n{node(1, 's')}{node(2, 'near', 0, 7)}{alias(2, 'x', 's')}\n", 4,
     "alias 'x' shows 's', which it is part of itself"),
    (CHAIN, 2, "alias 'c0' leads through more than 64 aliases"),
    (f"address-space: memory\n{node(1, 's')}{alias(2, 'x', 'nobody')}\n", 3,
     "alias 'x' shows 'nobody', which is not listed"),
], ids=["self", "two", "inside", "chain", "stranger"])
def test_what_cannot_be_drawn_is_refused_with_its_line(tree: str, line: int, what: str) -> None:
    for before in (0, 1, 2, 0):  # parsed blocks are kept, and stand elsewhere each time
        with pytest.raises(ProtocolError) as caught:
            Mirror.take(hmp(HEAD * before + tree, FLAT))
        assert str(caught.value).startswith(f"info mtree -o -D: line {line + 3 * before}: alias")
        assert what in str(caught.value) and "\n" not in str(caught.value)


def test_a_refresh_tells_the_line_of_the_new_text() -> None:
    good = f"address-space: memory\n{node(1, 'system')}\n"
    mirror = Mirror.take(hmp(good, FLAT))
    with pytest.raises(ProtocolError, match="line 6: alias 'x' shows 'system', which"):
        mirror.refresh(hmp(HEAD + good.replace("\n\n", "\n" + alias(2, "x", "system") + "\n")
                           + f"memory-region: system\n{node(1, 'system')}"
                           + alias(2, "x", "system") + "\n", FLAT))


def test_lines_are_told_and_no_part_of_what_is_compared() -> None:
    text = f"address-space: a\n{node(1, 'r')}{node(2, 'd')}\n"
    one, other = parse_tree(text).spaces[0], parse_tree(HEAD + text).spaces[1]
    assert one == other and (one.line, other.line) == (1, 4)
    assert one.root is not None and one.root.line == 1
    assert one.root.children[0].line == 2


def test_no_space_of_the_machine_is_a_fault_of_the_text() -> None:
    mirror = Mirror.take(hmp(HEAD, view("x", "y", node(1, "y"))))
    with pytest.raises(ProtocolError, match=": line 1: no address space"):
        _ = mirror.memory


def test_ports_where_none_can_be_are_told_with_the_line_of_their_space() -> None:
    tree = (f"address-space: memory\n{node(1, 'm')}\n"
            f"address-space: I/O\n{node(1, 'io', 0, 1 << 20)}\n")
    flat = view("memory", "m", node(1, "m")) + view("I/O", "io", node(1, "io", 0, 1 << 20))
    mirror = Mirror.take(hmp(HEAD + tree, flat))
    with pytest.raises(ProtocolError, match=": line 8: no map of a machine: io: range 'io'"):
        mirror.layout()
