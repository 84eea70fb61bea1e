"""What is known to be odd in QEMU: a reviewed file, ``oddities.toml``, with a reason for each.

A finding that an entry explains is counted as known and listed with the entry's id; a region of
kind ``avoid`` is never touched. Each entry carries the smallest program that shows it, which
``check`` performs on the builds and machines in its scope: an entry that does not show any more is
reported, so that the file cannot outlive QEMU's own mending.

Keys of an ``[[oddity]]``, all texts unless said otherwise:

``id``        unique; lower-case letters, digits and dashes
``what``      one sentence: what QEMU does
``why``       the reason, with QEMU's function or file
``kind``      ``crash``, ``hang`` or ``divergence`` (a finding), or ``avoid`` (never touched: what
              is reached there only qtest can reach; a campaign would meet nothing else)
``builds``    versions concerned: ">=7.2,<10.1" (parts joined by commas, each >= or <), or a list
              of beginnings, ["7.2", "10.0"] (7.2 means every 7.2.x); "*" is every version
``machines``  list of globs over TARGET/NAME
``match``     table ``signature`` and ``region``, globs: the finding this explains. ``region`` is
              the region's name, or "the end of NAME" for an access that goes on behind it (two
              globs are parted by "|"); left out, it is "*". ``signature`` is also what the
              program must show.
``regions``   kind ``avoid``: list of globs over region names
``program``   program text (``.qg``) that shows it, on a machine in scope
``test``      in place of ``program`` and ``match``, where no such program can show it: the test
              that does, ``tests/…/test_x.py::test_y``. Such an entry explains no finding.
``upstream``  where it is known to QEMU's authors, else "unknown"

Globs are those of a shell (``*``, ``?``, ``[…]``), upper and lower case apart.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from qemuglue.errors import ProgramError, UsageError
from qemuglue.program.operation import Program
from qemuglue.program.text import parse

#: The reviewed file.
FILE: Final = Path(__file__).with_name("oddities.toml")

KINDS: Final = ("crash", "hang", "divergence", "avoid")

_REQUIRED: Final = {"id", "what", "why", "kind", "builds", "machines", "upstream"}
_ALLOWED: Final = _REQUIRED | {"match", "regions", "program", "test"}
_ID: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_BOUND: Final = re.compile(r"(>=|<)(\d+(?:\.\d+)*)")
_VERSION: Final = re.compile(r"\d+(\.\d+)*")
_TEST: Final = re.compile(r"tests/[\w/]+\.py::\w+")


@dataclass(frozen=True, slots=True)
class Versions:
    """A set of QEMU versions: from ``first`` (inclusive) up to ``limit`` (not inclusive), or
    those that begin like one of ``like``."""

    text: str
    first: tuple[int, ...] = ()
    limit: tuple[int, ...] | None = None
    like: tuple[tuple[int, ...], ...] = ()

    def __contains__(self, version: tuple[int, ...]) -> bool:
        if self.like:
            return any(version[:len(each)] == each for each in self.like)
        return version >= self.first and (self.limit is None or version < self.limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Oddity:
    """One entry. ``signature`` and ``region`` are globs over a finding's; ``program`` is None
    where only ``test`` shows it."""

    id: str
    what: str
    why: str
    kind: str
    builds: Versions
    machines: tuple[str, ...]
    signature: str
    region: str
    regions: tuple[str, ...]
    program: Program | None
    test: str
    upstream: str

    def in_scope(self, version: tuple[int, ...], machine: str) -> bool:
        """Whether the entry is about ``TARGET/NAME`` of this QEMU version."""
        return version in self.builds and _matches(machine, self.machines)

    def explains(self, signature: str, region: str) -> bool:
        """Whether a finding is this one. A finding's signature begins with its kind."""
        return self.program is not None and (
            fnmatchcase(signature, self.signature)
            and any(fnmatchcase(region, each) for each in self.region.split("|")))


class Avoided:
    """Regions that are not touched on one machine."""

    def __init__(self, oddities: tuple[Oddity, ...]) -> None:
        self._oddities = oddities
        self._known: dict[str, str | None] = {}

    def why(self, region: str) -> str | None:
        """Why the region of this name is not touched; None: it may be."""
        if region not in self._known:
            self._known[region] = next(
                (f"{each.what} ({each.id})" for each in self._oddities
                 if _matches(region, each.regions)), None)
        return self._known[region]


@lru_cache(maxsize=1)
def standard() -> tuple[Oddity, ...]:
    """The entries of the reviewed file, in its order."""
    return load(FILE)


@lru_cache(maxsize=256)
def avoided(version: tuple[int, ...], machine: str) -> Avoided:
    """What is not touched on ``TARGET/NAME`` of a QEMU version."""
    return Avoided(tuple(
        each for each in standard() if each.kind == "avoid" and each.in_scope(version, machine)))


def known_as(
    version: tuple[int, ...], machine: str, signature: str, region: str
) -> str:
    """The id of the entry that explains a finding on ``TARGET/NAME``, "" if none does."""
    return next(
        (each.id for each in standard()
         if each.in_scope(version, machine) and each.explains(signature, region)), "")


@lru_cache(maxsize=64)
def reason(oddity_id: str) -> str:
    """The sentence that stands in the table of reasons for what is not done because of an entry."""
    return next(f"{each.what} ({each.id})" for each in standard() if each.id == oddity_id)


# Section: reading


def load(path: Path) -> tuple[Oddity, ...]:
    """Read and check a file of oddities.

    :raise UsageError: it is not TOML, or an entry is not as described above; one sentence that
        names the entry.
    """
    try:
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except ValueError as error:  # TOML's errors and Unicode's are both of this kind
        raise UsageError(f"{path.name} is not TOML: {error}") from None
    entries = document.pop("oddity", [])
    if document:
        raise UsageError(f"{path.name}: unknown key {next(iter(document))!r}; every entry is an "
                         "[[oddity]]")
    if not isinstance(entries, list):
        raise UsageError(f"{path.name}: write [[oddity]], with two brackets")
    found: dict[str, Oddity] = {}
    for number, entry in enumerate(entries, 1):
        name = entry.get("id") if isinstance(entry, dict) else None
        who = f"{path.name}: oddity {name if isinstance(name, str) and name else f'{number}'!s}"
        try:
            oddity = _oddity(entry)
        except ProgramError as error:
            raise UsageError(f"{who}: its program: {error}") from None
        except UsageError as error:
            raise UsageError(f"{who}: {error}") from None
        if oddity.id in found:
            raise UsageError(f"{who}: this id is there twice")
        found[oddity.id] = oddity
    return tuple(found.values())


def _oddity(entry: object) -> Oddity:
    if not isinstance(entry, Mapping):
        raise UsageError("write [[oddity]] and keys below it")
    keys = entry.keys()
    if keys - _ALLOWED:
        raise UsageError(f"unknown key {min(keys - _ALLOWED)!r}; there are "
                         f"{', '.join(sorted(_ALLOWED))}")
    if _REQUIRED - keys:
        raise UsageError(f"no {min(_REQUIRED - keys)!r}")
    kind = _text(entry, "kind")
    if kind not in KINDS:
        raise UsageError(f"kind {kind!r}; there are {', '.join(KINDS)}")
    if not _ID.fullmatch(_text(entry, "id")):
        raise UsageError("its id is not lower-case letters, digits and single dashes")
    regions = _texts(entry, "regions") if "regions" in entry else ()
    if bool(regions) != (kind == "avoid"):
        raise UsageError("regions are for kind 'avoid', and it needs them")
    if ("program" in entry) == ("test" in entry):
        raise UsageError("give the program that shows it or, where none can, the test")
    if ("program" in entry) != ("match" in entry):
        raise UsageError("a program needs match, which says what it shows, and match a program")
    signature, region = _match(entry.get("match", {"signature": kind + ":"}))
    oddity = Oddity(
        id=entry["id"], what=_text(entry, "what"), why=_text(entry, "why"), kind=kind,
        builds=_versions(entry["builds"]), machines=_texts(entry, "machines"),
        signature=signature, region=region, regions=regions,
        program=parse(_text(entry, "program")) if "program" in entry else None,
        test=_text(entry, "test") if "test" in entry else "", upstream=_text(entry, "upstream"),
    )
    _check(oddity)
    return oddity


def _match(value: object) -> tuple[str, str]:
    if not isinstance(value, Mapping) or "signature" not in value or value.keys() - {
            "signature", "region"}:
        raise UsageError("match is a table of signature and, perhaps, region")
    return _text(value, "signature"), _text(value, "region") if "region" in value else "*"


def _check(oddity: Oddity) -> None:
    """What the parts say together."""
    if oddity.kind != "avoid" and not oddity.signature.startswith(oddity.kind + ":"):
        raise UsageError(f"match.signature must begin with {oddity.kind + ':'!r}, its kind")
    if oddity.test and not _TEST.fullmatch(oddity.test):
        raise UsageError(f"test {oddity.test!r} is not tests/…/test_x.py::test_y")
    program = oddity.program
    if program is None:
        return
    if not program.operations:
        raise UsageError("its program has no operation")
    if not _matches(program.machine, oddity.machines):
        raise UsageError(f"its program is for {program.machine}, which is not in machines")


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry[key]
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{key} is not a text with something in it")
    return value.strip()


def _texts(entry: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = entry[key]
    if not isinstance(value, list) or not value or not all(
            isinstance(each, str) and each for each in value):
        raise UsageError(f"{key} is not a list of texts with something in it")
    return tuple(value)


def _versions(value: object) -> Versions:
    wrong = UsageError(f"builds {value!r}: write \">=7.2,<10.1\", \"*\" or [\"7.2\", \"10.0\"]")
    if value == "*":
        return Versions("*")
    if isinstance(value, list):
        if not value or not all(isinstance(v, str) and _VERSION.fullmatch(v) for v in value):
            raise wrong
        return Versions(", ".join(value), like=tuple(map(_numbers, value)))
    if not isinstance(value, str):
        raise wrong
    first: tuple[int, ...] = ()
    limit: tuple[int, ...] | None = None
    for part in value.split(","):
        bound = _BOUND.fullmatch(part.strip())
        if bound is None or (bound[1] == "<" and limit) or (bound[1] == ">=" and first):
            raise wrong
        if bound[1] == "<":
            limit = _numbers(bound[2])
        else:
            first = _numbers(bound[2])
    if limit is not None and first >= limit:
        raise UsageError(f"builds {value!r}: there is no such version")
    return Versions(value, first, limit)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def _matches(name: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, each) for each in globs)
