"""Contract tables as JSON, version 1; read strictly, since files are edited and cut off.

::

    {"schema": 1, "kind": "qemuglue contracts", "machine": "x86_64/q35", "build": "bookworm",
     "version": "7.2.22", "args": [], "notes": [],
     "regions": [
       {"region": "/machine/unattached/device[9]:hpet", "name": "hpet",
        "owner": "/machine/unattached/device[9]", "size": 1024, "kind": "i/o",
        "space": "memory", "address": 4275044352,
        "reads": {"valid_min": 4, "valid_max": 4, "unaligned": false,
                  "impl_min": 0, "impl_max": 0, "impl_unaligned": false,
                  "order": "little", "alternatives": [],
                  "accepts": null, "probes": 68, "evidence": ["…"], "unknown": ""},
        "writes": {"unknown": "not asked", "probes": 0}}]}

A direction of which nothing is known has ``unknown`` and no sizes. An alternative is a text,
``valid 1..4 unaligned, impl 1..8``. ``accepts`` is null or
``{"complete": true, "asked": [[first, last], …], "ranges": [[size, start, last, step], …],
"dynamic": […]}``.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn, TypeVar

from qemuglue.errors import UsageError
from qemuglue.witness.contract_table import (
    AcceptedRange,
    Accepts,
    Access,
    ContractRow,
    ContractSizes,
    ContractTable,
)

SCHEMA = 1
KIND = "qemuglue contracts"
_ORDERS = ("", "little", "big")
_U64 = 1 << 64

T = TypeVar("T")


def document(table: ContractTable) -> dict[str, object]:
    """The table as a JSON document."""
    return {
        "schema": SCHEMA, "kind": KIND, "machine": table.machine, "build": table.build,
        "version": table.version, "args": list(table.args), "notes": list(table.notes),
        "regions": [_row(row) for row in table.rows],
    }


def _row(row: ContractRow) -> dict[str, object]:
    return {
        "region": row.region, "name": row.name, "owner": row.owner, "size": row.size,
        "kind": row.kind, "space": row.space, "address": row.address,
        "reads": _access(row.reads), "writes": _access(row.writes),
    }


def _access(access: Access) -> dict[str, object]:
    told: dict[str, object] = {
        "unknown": access.unknown, "probes": access.probes, "evidence": list(access.evidence),
    }
    if access.sizes is None:
        return told
    sizes = access.sizes
    return {
        "valid_min": sizes.valid_min, "valid_max": sizes.valid_max,
        "unaligned": sizes.unaligned, "impl_min": sizes.impl_min,
        "impl_max": sizes.impl_max, "impl_unaligned": sizes.impl_unaligned,
        "order": access.order,
        "alternatives": [str(each) for each in access.alternatives],
        "accepts": _accepts(access.accepts), **told,
    }


def _accepts(veto: Accepts | None) -> dict[str, object] | None:
    if veto is None:
        return None
    return {
        "complete": veto.complete, "asked": [list(span) for span in veto.asked],
        "ranges": [[r.size, r.start, r.last, r.step] for r in veto.ranges],
        "dynamic": [[r.size, r.start, r.last, r.step] for r in veto.dynamic],
    }


# -- reading -------------------------------------------------------------------------------


def table_of(data: object) -> ContractTable:
    """:raise UsageError: one sentence that names what is wrong and where."""
    top = _Place(data, "the file").record()
    if top.get("kind", str) != KIND:
        top.fail(f"its \"kind\" is not {KIND!r}; `qemuglue contracts --save` writes such files")
    schema = top.get("schema", int)
    if schema != SCHEMA:
        top.fail(f"it has schema {schema}, this version reads {SCHEMA}")
    rows = tuple(_read_row(place.record()) for place in top.items("regions"))
    seen: set[str] = set()
    for row in rows:
        if row.region in seen:
            top.fail(f"region {row.region!r} is there twice")
        seen.add(row.region)
    return ContractTable(
        top.get("machine", str), top.get("build", str), top.get("version", str),
        top.strings("args"), rows, top.strings("notes"),
    )


class _Place:
    """A value and where it stands, for messages."""

    def __init__(self, value: object, where: str) -> None:
        self.value: Any = value
        self.where = where

    def fail(self, why: str) -> NoReturn:
        raise UsageError(f"no contract table: {self.where}: {why}")

    def record(self) -> _Place:
        if not isinstance(self.value, dict):
            self.fail("an object is expected")
        return self

    def get(self, name: str, kind: type[T]) -> T:
        if name not in self.value:
            self.fail(f"{name!r} is missing")
        value = self.value[name]
        if type(value) is not kind:
            self.fail(f"{name!r} must be {_NAMES[kind]}, not {value!r:.60}")
        return value

    def number(self, name: str, limit: int) -> int:
        value = self.get(name, int)
        if not 0 <= value <= limit:
            self.fail(f"{name!r} must be from 0 to {limit:#x}, not {value}")
        return value

    def items(self, name: str) -> list[_Place]:
        return [
            _Place(value, f"{self.where}, {name}[{i}]")
            for i, value in enumerate(self.get(name, list))
        ]

    def strings(self, name: str) -> tuple[str, ...]:
        values = self.get(name, list)
        if not all(isinstance(value, str) for value in values):
            self.fail(f"{name!r} must hold texts only")
        return tuple(values)

    def inner(self, name: str) -> _Place:
        return _Place(self.get(name, dict), f"{self.where}, {name}")


_NAMES: dict[type, str] = {
    str: "a text", int: "a whole number", bool: "true or false", list: "a list",
    dict: "an object",
}


def _read_row(place: _Place) -> ContractRow:
    region = place.get("region", str)
    place.where = f"region {region!r:.200}"
    return ContractRow(
        region=region, name=place.get("name", str), owner=place.get("owner", str),
        size=place.number("size", _U64), kind=place.get("kind", str),
        space=place.get("space", str), address=place.number("address", _U64 - 1),
        reads=_read_access(place.inner("reads")), writes=_read_access(place.inner("writes")),
    )


def _read_access(place: _Place) -> Access:
    unknown = place.get("unknown", str)
    probes = place.number("probes", _U64)
    evidence = place.strings("evidence")
    if "valid_min" not in place.value:
        if not unknown:
            place.fail("neither sizes nor a reason in 'unknown'")
        return Access(probes=probes, evidence=evidence, unknown=unknown)
    order = place.get("order", str)
    if order not in _ORDERS:
        place.fail(f"'order' must be little, big or empty, not {order!r}")
    sizes = _checked(place, ContractSizes(
        place.get("valid_min", int), place.get("valid_max", int), place.get("unaligned", bool),
        place.get("impl_min", int), place.get("impl_max", int),
        place.get("impl_unaligned", bool),
    ))
    others = tuple(_alternative(each) for each in place.items("alternatives"))
    return Access(
        sizes, order, others, _read_accepts(place), probes, evidence, unknown
    )


_ALTERNATIVE = re.compile(
    r"valid (?:any|([0-9]{1,2})\.\.([0-9]{1,2}))( unaligned)?, "
    r"impl ([0-9]{1,2})\.\.([0-9]{1,2})( unaligned)?"
)


def _alternative(place: _Place) -> ContractSizes:
    """What ``str(ContractSizes)`` gave."""
    found = _ALTERNATIVE.fullmatch(place.value) if isinstance(place.value, str) else None
    if not found:
        place.fail("a text like 'valid 1..4 unaligned, impl 1..8' is expected, not "
                   f"{place.value!r:.60}")
    low, high, unaligned, least, most, impl_unaligned = found.groups()
    return _checked(place, ContractSizes(
        int(low or 0), int(high or 0), bool(unaligned), int(least), int(most),
        bool(impl_unaligned),
    ))


def _checked(place: _Place, sizes: ContractSizes) -> ContractSizes:
    try:
        sizes.contract()
    except ValueError as error:
        place.fail(str(error))
    return sizes


def _read_accepts(place: _Place) -> Accepts | None:
    if "accepts" not in place.value:
        place.fail("'accepts' is missing")
    if place.value["accepts"] is None:
        return None
    inner = place.inner("accepts")
    return Accepts(
        tuple(_range(each) for each in inner.items("ranges")), inner.get("complete", bool),
        _spans(inner), tuple(_range(each) for each in inner.items("dynamic")),
    )


def _spans(place: _Place) -> tuple[tuple[int, int], ...]:
    spans: list[tuple[int, int]] = []
    for each in place.items("asked"):
        span = each.value
        if not isinstance(span, list) or [type(value) for value in span] != [int] * 2:
            each.fail("two offsets are expected, first and last")
        first, last = span
        if not (spans[-1][1] if spans else -1) < first <= last < _U64:
            each.fail(f"{span} is no span behind the one before it")
        spans.append((first, last))
    return tuple(spans)


def _range(place: _Place) -> AcceptedRange:
    values = place.value
    if not isinstance(values, list) or [type(value) for value in values] != [int] * 4:
        place.fail("four whole numbers are expected: size, start, last, step")
    size, start, last, step = values
    if size not in (1, 2, 4, 8) or not 0 <= start <= last < _U64 or step < 1:
        place.fail(f"{values} is no range: size 1, 2, 4 or 8, start up to last, step 1 or more")
    if (last - start) % step:
        place.fail(f"{values} is no range: its last offset is no multiple of the step away")
    return AcceptedRange(size, start, last, step)
