"""What is on a disk, as far as QEMU's block drivers tell it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

#: Bytes of a sector, whatever the size of a block.
SECTOR = 512


class Medium(Protocol):
    """A disk's contents. Sectors are of 512 bytes; ranges were checked against ``size``."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def unordered(self) -> bool:
        """Whether several requests may be completed in any order."""

    @property
    def fills(self) -> bool:
        """Whether a read fills its buffer at all."""

    def read(self, sector: int, size: int) -> bytes | None:
        """What a read gives; None if nobody knows, or the buffer stays as it is."""

    def write(self, sector: int, data: bytes) -> None:
        """A write, whole."""

    def clear(self, sector: int, size: int, zeroes: bool) -> None:
        """Discard, or make zero."""


@dataclass(frozen=True, slots=True)
class Null:
    """``null-co``: forgets what is written; a read is zeros, or leaves its buffer alone."""

    size: int
    zeroes: bool
    unordered: bool = False

    @property
    def fills(self) -> bool:
        return self.zeroes

    def read(self, sector: int, size: int) -> bytes | None:
        return bytes(size) if self.zeroes else None

    def write(self, sector: int, data: bytes) -> None:
        """It is gone."""

    def clear(self, sector: int, size: int, zeroes: bool) -> None:
        """There is nothing to clear."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """A medium of which only the size is known."""

    size: int
    unordered: bool = True
    fills: bool = True

    def read(self, sector: int, size: int) -> bytes | None:
        return None

    def write(self, sector: int, data: bytes) -> None:
        """Nobody looks at it."""

    def clear(self, sector: int, size: int, zeroes: bool) -> None:
        """Nobody looks at it."""


def medium_of(blocks: object, path: str) -> Medium | None:
    """The medium of the device at ``path``, from QMP's answer to ``query-block``; None where the
    answer does not tell, or the medium cannot be written."""
    for each in blocks if isinstance(blocks, list) else []:
        if not isinstance(each, Mapping) or each.get("qdev") != path:
            continue
        inserted = each.get("inserted")
        if not isinstance(inserted, Mapping) or inserted.get("ro"):
            return None
        image = inserted.get("image")
        size = image.get("virtual-size") if isinstance(image, Mapping) else None
        if not isinstance(size, int):
            return None
        if inserted.get("drv") != "null-co":
            return Unknown(size)
        options = _options(str(inserted.get("file", "")))
        if options.get("latency-ns"):
            return None
        return Null(size, bool(options.get("read-zeroes")))
    return None


def _options(filename: str) -> Mapping[str, Any]:
    """What ``json:{...}`` says."""
    try:
        found = json.loads(filename.removeprefix("json:"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
