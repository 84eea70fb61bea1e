"""The mirror against made-up machines, whose truth is known, and against damaged texts.

Machines come from a seed; the runs are the same every time (``derandomize``), because whether
a random machine can be told apart at all is a question of chance for a few in a thousand.
"""

from __future__ import annotations

from random import Random

from fake_mtree import Machine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qemuglue.errors import ProtocolError
from qemuglue.memory import MemoryRegion, render
from qemuglue.mirror import Mirror
from qemuglue.mirror.order import arrange
from qemuglue.qemu.mtree import TREE_COMMAND, parse_flat, parse_tree

MODERATE = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
SEEDS = st.integers(0, (1 << 32) - 1)


def made(seed: int, *, unique: bool) -> Machine:
    rng = Random(seed)
    return Machine(rng, regions=rng.randrange(3, 25), unique=unique, labels=rng.random() < 0.5)


def sections_of(root: MemoryRegion) -> list[tuple[int, int, str, int, bool, bool]]:
    return [
        (s.start, s.size, s.region.name, s.offset, s.readonly, s.nonvolatile)
        for s in render(root).sections
    ]


def check_truth(machine: Machine, mirror: Mirror) -> None:
    """The mirror's views are the machine's, judged by the tree and not by its text."""
    truth = sorted((name, sections_of(root)) for name, root in machine.fake.spaces)
    views = sorted(
        (space.name, [
            (s.start, s.size, s.region.name, s.offset, s.readonly, s.nonvolatile)
            for s in space.view.sections
        ])
        for space in mirror.spaces
    )
    assert views == truth


@MODERATE
@given(SEEDS)
def test_machines_with_different_names_are_mirrored_exactly(seed: int) -> None:
    machine = made(seed, unique=True)
    mirror = Mirror.take(machine.fake.hmp)
    assert mirror.exact, [str(difference) for difference in mirror.differences]
    check_truth(machine, mirror)


@MODERATE
@given(SEEDS)
def test_a_mirror_that_calls_itself_exact_is(seed: int) -> None:
    """Four names and two owners for everything: not all can be told apart, none may lie."""
    machine = made(seed, unique=False)
    try:
        mirror = Mirror.take(machine.fake.hmp)
        for _ in range(3):
            if not mirror.exact:
                assert mirror.differences and mirror.score.exact <= mirror.score.total
                return
            check_truth(machine, mirror)
            machine.change()
            mirror.refresh(machine.fake.hmp)
    except ProtocolError:
        return  # the names lead an alias to itself; said, not guessed


@MODERATE
@given(SEEDS)
def test_refresh_follows_every_change_and_keeps_the_objects(seed: int) -> None:
    machine = made(seed, unique=True)
    mirror = Mirror.take(machine.fake.hmp)
    objects = {region.name: region for region in mirror.regions}
    for _ in range(5):
        machine.change()
        result = mirror.refresh(machine.fake.hmp)
        assert result.exact == mirror.exact
        assert result.predicted == (not result.differences)
        if mirror.exact:
            check_truth(machine, mirror)
        for region in mirror.regions:
            assert objects.setdefault(region.name, region) is region


def test_nearly_every_change_is_predicted() -> None:
    """Facts learnt in one state predict the next: what is not predicted is seen first then."""
    changed = predicted = exact = 0
    for seed in range(150):
        machine = made(seed, unique=True)
        mirror = Mirror.take(machine.fake.hmp)
        for _ in range(5):
            machine.change()
            result = mirror.refresh(machine.fake.hmp)
            changed += result.changed
            predicted += result.changed and result.predicted
            exact += result.changed and result.exact
    assert changed > 400 and exact == changed
    assert predicted >= 0.95 * changed


@MODERATE
@given(SEEDS)
def test_what_is_printed_is_what_is_read(seed: int) -> None:
    machine = made(seed, unique=True)
    roots = {id(root): root for _, root in machine.fake.spaces}
    tree = parse_tree(machine.fake.tree())
    assert len(tree.spaces) == len(roots)
    by_name = {region.name: region for region in (*machine.regions, *roots.values())}
    for listing in (*tree.spaces, *tree.targets):
        nodes = [listing.root]
        for node in nodes:
            assert node is not None
            region = by_name[node.name]
            assert (node.addr, node.size, node.priority, node.enabled) == (
                region.addr, region.size, region.priority, region.enabled
            )
            assert node.target == (None if region.alias is None else region.alias.name)
            nodes.extend(node.children)


@MODERATE
@given(SEEDS, st.data())
def test_damaged_texts_raise_one_error_or_are_told(seed: int, data: st.DataObject) -> None:
    machine = made(seed, unique=False)
    rng = Random(seed)

    def hmp(line: str) -> str:
        text = machine.fake.hmp(line)
        return damaged(text, rng) if rng.random() < 0.7 else text

    try:
        mirror = Mirror.take(hmp)
        mirror.refresh(hmp)
    except ProtocolError as error:
        assert "\n" not in str(error) and len(str(error)) < 400


def damaged(text: str, rng: Random) -> str:
    """Lines lost, doubled, swapped or moved in depth; characters changed; the end cut off."""
    lines = text.split("\n")
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(lines))
        what = rng.randrange(6)
        if what == 0:
            del lines[at]
            lines = lines or [""]
        elif what == 1:
            lines.insert(at, rng.choice(lines))
        elif what == 2:
            lines[at] = "  " + lines[at]
        elif what == 3 and lines[at]:
            spot = rng.randrange(len(lines[at]))
            lines[at] = lines[at][:spot] + rng.choice("0f (@:{\x00é") + lines[at][spot + 1:]
        elif what == 4:
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        else:
            lines = lines[: rng.randrange(1, len(lines) + 1)]
    return "\n".join(lines)


@MODERATE
@given(st.text(max_size=300))
def test_any_text_is_refused_in_one_sentence(text: str) -> None:
    for parse in (parse_tree, parse_flat):
        try:
            parse(text)
        except ProtocolError as error:
            assert error.channel.startswith("info mtree")


@MODERATE
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers()), max_size=12, unique=True),
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=12),
)
def test_arranging_respects_all_pairs_or_says_they_contradict(
    items: list[tuple[int, int]], numbers: list[tuple[int, int]]
) -> None:
    pairs = {
        (items[a], items[b]) for a, b in numbers
        if a != b and max(a, b) < len(items) and items[a][0] == items[b][0]
    }
    order = arrange(items, lambda item: item[0], pairs)
    if order is None:
        assert pairs
        return
    assert sorted(order) == sorted(items)
    assert [item[0] for item in order] == sorted((item[0] for item in items), reverse=True)
    assert all(order.index(first) < order.index(second) for first, second in pairs)
    assert order == arrange(order, lambda item: item[0], pairs), "arranging again changes it"


def test_the_commands_are_in_the_order_every_version_takes() -> None:
    assert TREE_COMMAND.split() == ["info", "mtree", "-o", "-D"]
