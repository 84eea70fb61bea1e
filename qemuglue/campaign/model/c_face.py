"""The naive oracle for the rest of the C face: fill, firmware, asking, mapping, caching.

Like ``oracle`` it walks the nodes byte by byte and reads nothing of the model's. No section of
its maps has a whole page, so every page is dispatched as a part of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeGuard

from qemuglue.campaign.model.oracle import DECODE_ERROR, OK, PAGE, Oracle, is_memory
from qemuglue.campaign.model.painting import TOP, Spot
from qemuglue.memory import RegionKind

FILL = 512
BOUNCE = 4096


def _flash(here: Spot | None) -> TypeGuard[Spot]:
    return here is not None and here.leaf.kind is RegionKind.ROM_DEVICE and here.leaf.romd


class COracle(Oracle):
    def fill(self, address: int, byte: int, length: int) -> int:
        result = OK
        for start in range(0, length, FILL):
            result |= self.write(address + start, bytes([byte]) * min(FILL, length - start))
        return result

    def load_rom(self, address: int, data: bytes) -> int:
        done = 0
        while done < len(data):
            here, left = self._at(address + done), len(data) - done
            if is_memory(here) or _flash(here):
                assert here is not None
                memory = self.bytes_of(here.leaf)
                # Only the end of its memory stops a write to flash, not the section's.
                n = 1 if is_memory(here) else min(left, len(memory) - here.offset)
                memory[here.offset : here.offset + n] = data[done : done + n]
                done += n
            else:
                done += self._chunk(address + done, left)
        return OK

    def accepts(self, address: int, length: int, is_write: bool) -> bool:
        done = 0
        while done < length:
            at, left = address + done, length - done
            here = self._at(at)
            if self._direct(here, is_write):
                if _flash(here):
                    return True
                done += 1
                continue
            size = self._chunk_by_address(at, left)
            if self._refused(here, at, size, is_write):
                return False
            done += size
        return True

    def mapped(self, address: int, length: int, is_write: bool) -> int:
        """Bytes of a mapping."""
        here = self._at(address)
        if self._direct(here, is_write):
            assert here is not None
            count = length if _flash(here) else self._contiguous(address, length)
            return min(count, len(self.bytes_of(here.leaf)) - here.offset)
        return min(self._part(address, length) if is_memory(here) else length, BOUNCE)

    def cached(self, address: int, length: int, is_write: bool) -> int:
        """Bytes of a cache."""
        here = self._at(address)
        if here is None:
            return min(length, TOP - address)
        if not self._direct(here, is_write):
            return self._part(address, length)
        if _flash(here):
            count = self._part(address, length)
            later = self._at(address + count)
            if (count < length and later is not None and later.leaf is here.leaf
                    and later.offset == here.offset + count):
                count = length
        else:
            count = self._contiguous(address, length)
        return min(count, len(self.bytes_of(here.leaf)) - here.offset)

    def cache_read(self, address: int, offset: int, length: int, is_write: bool) -> tuple[
        int, bytes
    ]:
        here = self._at(address)
        # ROM cached for writing has no pointer, but its bytes are read all the same.
        if self._direct(here, is_write) or self._direct(here, False):
            assert here is not None
            first = here.offset + offset
            return OK, bytes(self.bytes_of(here.leaf)[first : first + length])
        data, result = b"", OK
        while len(data) < length:
            spot, at = self._inside(here, address, offset + len(data))
            part, status = self._ask(spot, at, self._piece(spot, at, length - len(data)))
            data += part
            result |= status
        return result, data

    def cache_write(self, address: int, offset: int, data: bytes, is_write: bool) -> int:
        here = self._at(address)
        if self._direct(here, is_write):
            assert here is not None
            first = here.offset + offset
            self.bytes_of(here.leaf)[first : first + len(data)] = data
            return OK
        done, result = 0, OK
        while done < len(data):
            spot, at = self._inside(here, address, offset + done)
            size = self._piece(spot, at, len(data) - done)
            result |= self._tell(spot, at, data[done : done + size])
            done += size
        return result

    def cache_load(self, address: int, offset: int, size: int, is_write: bool) -> tuple[
        int, bytes
    ]:
        here = self._at(address)
        if self._direct(here, is_write) or self._direct(here, False):
            return self.cache_read(address, offset, size, is_write)
        part, status = self._ask(*self._inside(here, address, offset), size)
        return status, part

    # what it is made of

    def _direct(self, here: Spot | None, is_write: bool) -> TypeGuard[Spot]:
        return self._writable(here, False) if is_write else is_memory(here) or _flash(here)

    def _contiguous(self, address: int, limit: int) -> int:
        first, count = self._at(address), 1
        assert first is not None
        while count < limit:
            later = self._at(address + count)
            if (later is None or later.leaf is not first.leaf
                    or later.offset != first.offset + count):
                break
            count += 1
        return count

    def _part(self, address: int, limit: int) -> int:
        return min(self._left(address, limit), PAGE - address % PAGE)

    def _inside(self, here: Spot | None, address: int, offset: int) -> tuple[Spot | None, int]:
        """The place in the same region, wherever the map has it by now."""
        at = address + offset
        return (here if here is None else replace(here, offset=(here.offset + offset) % TOP)), at

    def _piece(self, here: Spot | None, at: int, left: int) -> int:
        cap, unaligned, offset = 4, False, at % TOP
        if here is not None:
            offset = here.offset
            if here.leaf.kind in (RegionKind.IO, RegionKind.ROM_DEVICE):
                cap = here.leaf.contract.valid_max or 4
                unaligned = here.leaf.contract.impl_unaligned
        return _widest(cap, left, offset, unaligned)

    def _chunk_by_address(self, address: int, left: int) -> int:
        here = self._at(address)
        cap, unaligned = 4, False
        if here is not None:
            if is_memory(here):
                left = self._part(address, left)
            elif here.leaf.kind in (RegionKind.IO, RegionKind.ROM_DEVICE):
                cap = here.leaf.contract.valid_max or 4
                unaligned = here.leaf.contract.impl_unaligned
        return _widest(cap, left, address % TOP, unaligned)


def _widest(cap: int, left: int, offset: int, unaligned: bool) -> int:
    return max(
        size for size in (1, 2, 4, 8)
        if size <= cap and size <= left and (unaligned or offset % size == 0)
    )


__all__ = ["BOUNCE", "DECODE_ERROR", "FILL", "COracle"]
