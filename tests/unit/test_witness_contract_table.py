"""Contract tables as values: JSON and back, read strictly; what surely changed between two."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemuglue.errors import UsageError
from qemuglue.memory import Contract
from qemuglue.witness.contract_table import (
    AcceptedRange,
    Accepts,
    Access,
    ChangeKind,
    ContractRow,
    ContractSizes,
    ContractTable,
    differences,
)

HPET_7 = Access(
    ContractSizes(4, 4), "little",
    (ContractSizes(4, 4, False, 4, 4), ContractSizes(4, 4, False, 1, 8)), probes=3,
)
HPET_10 = Access(ContractSizes(4, 8, False, 0, 8), "little")
UNKNOWN = Access(unknown="not asked")


def row(
    reads: Access, writes: Access = UNKNOWN, *, name: str = "hpet", owner: str = "/machine/d[5]",
    address: int = 0xFED00000, index: int = 0,
) -> ContractRow:
    region = f"{owner}:{name}" + (f"#{index}" if index else "")
    return ContractRow(
        region=region, name=name, owner=owner, size=0x400, kind="i/o", space="memory",
        address=address, reads=reads, writes=writes,
    )


def table(*rows: ContractRow) -> ContractTable:
    return ContractTable("x86_64/q35", "bookworm", "7.2.22", ("-device", "edu"), rows, ("a note",))


# -- JSON ----------------------------------------------------------------------------------

_SIZE = st.sampled_from([0, 1, 2, 4, 8])
_SIZES = st.builds(ContractSizes, _SIZE, _SIZE, st.booleans(), _SIZE, _SIZE, st.booleans())
_RANGES = st.builds(
    lambda size, start, count, step: AcceptedRange(size, start, start + count * step, step),
    st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**60), st.integers(0, 9), st.integers(1, 64),
)
_SPANS = st.lists(st.integers(0, 1000), max_size=6, unique=True).map(
    lambda ends: tuple(zip(sorted(ends)[::2], sorted(ends)[1::2], strict=False))
)
_TEXTS = st.lists(st.text(max_size=9), max_size=2).map(tuple)
_VETOES = st.none() | st.builds(
    Accepts, st.lists(_RANGES, max_size=3).map(tuple), st.booleans(), _SPANS,
    st.lists(_RANGES, max_size=2).map(tuple),
)
_ACCESSES = st.one_of(
    st.builds(
        Access, _SIZES, st.sampled_from(["", "little", "big"]),
        st.lists(_SIZES.map(lambda sizes: sizes.effective), max_size=3).map(tuple), _VETOES,
        st.integers(0, 99), _TEXTS,
    ),
    st.builds(lambda why, told: Access(unknown=why, evidence=told), st.text(min_size=1), _TEXTS),
)


@given(_ACCESSES, _ACCESSES)
def test_json_and_back(reads: Access, writes: Access) -> None:
    before = table(row(reads, writes), row(writes, reads, index=1))
    text = json.dumps(before.to_json())
    assert ContractTable.from_json(json.loads(text)) == before


def good() -> dict[str, Any]:
    veto = Accepts((AcceptedRange(4, 0, 8, 4),), True, ((0, 15),))
    access = Access(ContractSizes(4, 8), "big", (ContractSizes(4, 8, True, 1, 4),), veto, 7)
    return dict(table(row(access)).to_json())


def put(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Put the last of ``path`` where the others lead."""
    *way, value = path

    def change(document: dict[str, Any]) -> None:
        at: Any = document
        for step in way[:-1]:
            at = at[step]
        at[way[-1]] = value

    return change


READS = ("regions", 0, "reads")


@pytest.mark.parametrize(("change", "said"), [
    (put("kind", "other"), "its \"kind\" is not 'qemuglue contracts'"),
    (put("schema", 2), "it has schema 2, this version reads 1"),
    (put("schema", True), "'schema' must be a whole number"),
    (put("machine", None), "'machine' must be a text"),
    (put("args", [1]), "'args' must hold texts only"),
    (put("regions", {}), "'regions' must be a list"),
    (put("regions", 0, []), "regions[0]: an object is expected"),
    (put("regions", 0, "size", -1), "'size' must be from 0 to"),
    (put("regions", 0, "address", 1 << 64), "'address' must be from 0 to"),
    (put(*READS, {}), "reads: 'unknown' is missing"),
    (put("regions", 0, "writes", "unknown", ""), "neither sizes nor a reason"),
    (put(*READS, "valid_max", 3), "valid_max must be 0 or a power of two"),
    (put(*READS, "unaligned", 0), "'unaligned' must be true or false"),
    (put(*READS, "order", "pdp"), "'order' must be little, big or empty"),
    (put(*READS, "alternatives", ["valid some"]), "alternatives[0]: a text like"),
    (put(*READS, "alternatives", ["valid 3..4, impl 1..4"]), "valid_min must be 0 or a power"),
    (put(*READS, "accepts", []), "'accepts' must be an object"),
    (put(*READS, "accepts", "ranges", [[4, 0, 8]]), "four whole numbers are expected"),
    (put(*READS, "accepts", "ranges", [[3, 0, 8, 4]]), "is no range"),
    (put(*READS, "accepts", "ranges", [[4, 0, 9, 4]]), "its last offset"),
    (put(*READS, "accepts", "asked", [[0, 1], [1, 2]]), "is no span behind the one before"),
    (put(*READS, "accepts", "asked", [[0]]), "two offsets are expected"),
])
def test_what_is_no_table_is_refused_in_one_sentence(
    change: Callable[[dict[str, Any]], None], said: str
) -> None:
    document = copy.deepcopy(good())
    ContractTable.from_json(document)
    change(document)
    with pytest.raises(UsageError) as caught:
        ContractTable.from_json(document)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith("no contract table: ")


def test_a_region_twice_is_refused() -> None:
    document = good()
    document["regions"] *= 2
    with pytest.raises(UsageError, match="is there twice"):
        ContractTable.from_json(document)


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(
        st.sampled_from(["schema", "kind", "regions", "reads", "args"]), inner, max_size=3),
    max_leaves=8,
))
def test_any_json_is_a_table_or_a_sentence(document: object) -> None:
    with pytest.raises(UsageError):
        ContractTable.from_json(document)


# -- sizes ---------------------------------------------------------------------------------


def test_sizes_in_words() -> None:
    assert str(ContractSizes()) == "valid any, impl 1..4"
    assert str(ContractSizes(0, 8, True, 4, 8, True)) == "valid 1..8 unaligned, impl 4..8 unaligned"
    assert ContractSizes.of(Contract(2, 4)).contract() == Contract(2, 4)
    assert ContractSizes(2, 0).effective == ContractSizes(0, 0, False, 1, 4), "min without max"


def test_ranges() -> None:
    stride = AcceptedRange(2, 4, 12, 4)
    assert 8 in stride and 6 not in stride and 16 not in stride and "8" not in stride
    assert str(stride) == "2 at 0x4..0xc every 0x4"
    assert str(AcceptedRange(4, 0, 8, 4)) == "4 at 0x0..0x8"
    assert str(AcceptedRange(4, 8, 8, 4)) == "4 at 0x8"


# -- differences -----------------------------------------------------------------------------


def changed(a: Access, b: Access) -> list[tuple[str, str, str]]:
    return [(c.kind, c.before, c.after) for c in differences(table(row(a)), table(row(b)))]


def test_hpet_takes_eight_bytes_from_10_0_on() -> None:
    [change] = differences(table(row(HPET_7, HPET_7)), table(row(HPET_10, HPET_10)))
    assert (change.kind, change.direction) == (ChangeKind.VALID, "reads and writes")
    assert str(change) == (
        "/machine/d[5]:hpet: valid sizes of reads and writes: 4..4 -> 4..8"
    )


def test_what_cannot_be_told_apart_is_no_change() -> None:
    one = Access(ContractSizes(), "", (ContractSizes(1, 4, False, 1, 4),))
    other = Access(ContractSizes(1, 4), "little")
    assert changed(one, other) == []
    assert changed(HPET_7, UNKNOWN) == [] == changed(UNKNOWN, HPET_10)


def test_each_kind_of_change() -> None:
    base = ContractSizes(1, 4, False, 1, 4)
    assert changed(Access(base), Access(ContractSizes(1, 4, True, 1, 4))) == [
        (ChangeKind.UNALIGNED, "refused", "accepted")]
    assert changed(Access(base), Access(ContractSizes(1, 4, False, 1, 2))) == [
        (ChangeKind.IMPL, "1..4", "1..2")]
    assert changed(Access(base, "little"), Access(base, "big")) == [
        (ChangeKind.ORDER, "little", "big")]
    # Together they surely differ, though no field does alone.
    either = Access(ContractSizes(1, 1), "", (ContractSizes(0, 0, False, 1, 1),))
    assert changed(Access(ContractSizes()), Access(ContractSizes(1, 1, False, 1, 1))) == [
        (ChangeKind.VALID, "any", "1..1"), (ChangeKind.IMPL, "1..4", "1..1")]
    assert changed(Access(ContractSizes(0, 0, False, 1, 4)), either) == [
        (ChangeKind.SIZES, "valid any, impl 1..4", "valid 1..1, impl 1..4")]


def test_vetoes() -> None:
    sizes = ContractSizes()
    veto = Accepts((AcceptedRange(4, 0, 8, 4),), True, ((0, 15),))
    less = Accepts((AcceptedRange(4, 0, 4, 4),), True, ((0, 15),))
    assert changed(Access(sizes, accepts=veto), Access(sizes, accepts=less)) == [
        (ChangeKind.ACCEPTS, "accepts 4 at 0x0..0x8", "accepts 4 at 0x0..0x4")]
    [(kind, before, after)] = changed(Access(sizes), Access(sizes, accepts=Accepts()))
    assert (kind, before, after) == (
        ChangeKind.ACCEPTS, "refuses nothing of its own accord", "accepts nothing")
    assert changed(Access(sizes, accepts=veto), Access(sizes, accepts=veto)) == []
    shaky = Accepts((), True, ((0, 15),), (AcceptedRange(4, 0, 0, 4),))
    assert changed(Access(sizes, accepts=veto), Access(sizes, accepts=shaky)) == []


def test_regions_that_come_and_go_or_have_another_owner() -> None:
    old = table(row(HPET_7), row(HPET_7, name="gone", owner="/machine/a"))
    new = table(row(HPET_10, owner="/machine/d[7]"), row(HPET_10, name="new", owner="/machine/b"))
    kinds = {change.name: change.kind for change in differences(old, new)}
    assert kinds == {
        "hpet": ChangeKind.VALID, "new": ChangeKind.ADDED, "gone": ChangeKind.REMOVED,
    }


def test_namesakes_are_paired_by_place() -> None:
    old = table(
        row(HPET_7, owner="/machine/a", address=2), row(HPET_10, owner="/machine/b", address=1))
    new = table(
        row(HPET_10, owner="/machine/c", address=1), row(HPET_7, owner="/machine/e", address=2))
    assert differences(old, new) == []
