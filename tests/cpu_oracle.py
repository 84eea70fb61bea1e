"""A naive oracle for the guest CPU's path: pages by asking each of their bytes, accesses in words.

Written apart from ``qemuglue.memory.cpu_path``, over the byte-wise ``oracle``.
"""

from __future__ import annotations

from random import Random

from oracle import (
    DECODE_ERROR,
    MEMORY,
    TOP,
    Node,
    Oracle,
    Spot,
    device_status,
    device_value,
    random_contract,
)

from qemuglue.memory import Contract, Endian, RegionKind

#: (address, size, is_write, result) of a piece that failed.
Failed = tuple[int, int, bool, int]
DEVICES = (RegionKind.IO, RegionKind.ROM_DEVICE)


class Undefined(Exception):
    """QEMU's TLB cannot hold the page."""


class CpuOracle(Oracle):
    """``old`` is QEMU 7.2. ``log`` and ``ram`` are what a Recorder and the backings hold."""

    def __init__(
        self, root: Node, *, page: int, old: bool, faults: bool, target_big: bool = False
    ) -> None:
        super().__init__(root, target_big=target_big)
        self.page = page
        self.old = old
        self.faults = faults
        self.failed: list[Failed] = []

    # -- pages -------------------------------------------------------------------------------

    def page_kind(self, address: int) -> str:
        """"shared", "nothing", "memory", "romd" or "device"."""
        start = address % TOP // self.page * self.page
        spots = [self._at(start + i) for i in range(self.page)]
        first = spots[0]
        if all(here is None for here in spots):
            return "nothing"
        if first is None or any(
            here is None or not first.carried_on_by(here, distance)
            for distance, here in enumerate(spots) if distance
        ):
            return "shared"
        memory = first.leaf.kind in MEMORY
        if first.offset % self.page and not (memory and self.old):
            raise Undefined
        if memory:
            return "memory"
        return "romd" if first.leaf.kind is RegionKind.ROM_DEVICE and first.leaf.romd else "device"

    def crosses(self, address: int, size: int) -> bool:
        return address // self.page != (address + size - 1) // self.page

    # -- accesses ----------------------------------------------------------------------------

    def cpu_load(self, address: int, size: int, order: str) -> int | None:
        """What the guest gets; None after a fault."""
        self.failed = []
        kind = self.page_kind(address)
        if not self.old:
            self.page_kind(address + size - 1)
            return self._load_new(address, size, order)
        straight = kind in ("memory", "romd") and not self.crosses(address, size)
        if not address % size or straight:
            found = self._whole(address, size, order)
            return None if found is None else _number(found, order)
        low = address - address % size
        first = self._whole(low, size, order)
        second = None if first is None else self._whole(low + size, size, order)
        if first is None or second is None:
            return None
        # What the devices gave beyond their size lies over their neighbours.
        skip = address - low
        answer = [*first[skip:], *[0] * size][:size]
        for at, byte in enumerate(second):
            if size - skip + at < size:
                answer[size - skip + at] |= byte
        return _number(bytes(answer), order)

    def cpu_store(self, address: int, data: bytes) -> bool:
        """False after a fault."""
        self.failed = []
        kind = self.page_kind(address)
        if not self.old:
            self.page_kind(address + len(data) - 1)
        elif address % len(data) and (kind != "memory" or self.crosses(address, len(data))):
            return all(self._put(address + i, data[i : i + 1]) for i in range(len(data)))
        if len(data) == 2 and self.crosses(address, 2):
            return self._put(address, data[:1]) and self._put(address + 1, data[1:])
        return self._put(address, data)

    def _whole(self, address: int, size: int, order: str) -> bytes | None:
        """7.2: an aligned load, or one of memory. May be more bytes than asked for, which is
        seen only where the guest's order is the device's, or there is but one byte."""
        kind = self.page_kind(address)
        here = self._at(address)
        if kind in ("memory", "romd"):
            assert here is not None
            return bytes(self.bytes_of(here.leaf)[here.offset : here.offset + size])
        data, result = self._ask_page(kind, address, size)
        if not self._passes(address, size, False, result):
            return None
        if order == "big":
            return data[:size] if size > 1 else data[::-1]
        return data

    def _load_new(self, address: int, size: int, order: str) -> int | None:
        answer = [0] * size
        done = 0
        while done < size:
            at = address + done
            kind = self.page_kind(at)
            if kind in ("memory", "romd"):
                here = self._at(at)
                assert here is not None
                answer[done] |= self.bytes_of(here.leaf)[here.offset]
                done += 1
                continue
            n = self._piece(at, size - done)
            data, result = self._ask_page(kind, at, n)
            for place, byte in enumerate(data[:n]):
                answer[done + place] |= byte
            # Of a single byte's load, the further bytes lie over those before it.
            lone = size == 1 or (size == 2 and self.crosses(address, 2))
            for place, byte in enumerate(data[1:] if n == 1 and not lone else b"", 1):
                if done - place >= 0:
                    answer[done - place] |= byte
            done += n
            if not self._passes(at, n, False, result):
                return None
        return _number(bytes(answer), order)

    def _put(self, address: int, data: bytes) -> bool:
        done = 0
        while done < len(data):
            at = address + done
            kind = self.page_kind(at)
            if kind == "memory":
                here = self._at(at)
                assert here is not None
                if not here.readonly:
                    self.bytes_of(here.leaf)[here.offset] = data[done]
                done += 1
                continue
            n = self._piece(at, len(data) - done)
            result = self._tell_page(kind, at, data[done : done + n], data[done:])
            done += n
            if not self._passes(at, n, True, result):
                return False
        return True

    def _piece(self, address: int, left: int) -> int:
        """Within the page, the widest that is aligned and leaves an even rest of its kind."""
        here = min(left, self.page - address % self.page)
        return max(n for n in (1, 2, 4, 8) if address % n == 0 and here % n == 0)

    def _passes(self, address: int, size: int, is_write: bool, result: int) -> bool:
        if result:
            self.failed.append((address % TOP, size, is_write, result))
        return not (result and self.faults)

    # -- a dispatch --------------------------------------------------------------------------

    def _ask_page(self, kind: str, address: int, size: int) -> tuple[bytes, int]:
        """The bytes, more than ``size`` where a little-endian device gives more."""
        if kind != "shared":
            return self._ask_all(self._at(address), address, size)
        if not self._allowed(address, size, False):
            return bytes(size), DECODE_ERROR
        buffer = bytearray(size)
        result = self.read(address, buffer)
        return (bytes(size) if result else bytes(buffer)), result

    def _ask_all(self, here: Spot | None, address: int, size: int) -> tuple[bytes, int]:
        data, result = self._ask(here, address, size)
        if here is None or here.leaf.kind not in DEVICES or result & DECODE_ERROR:
            return data, result
        contract = here.leaf.contract
        piece, _ = self._steps(contract, size)
        if piece <= size or self._order(contract) == "big":
            return data, result
        value = device_value(here.offset, piece) % (1 << 8 * piece)
        return value.to_bytes(piece, "little"), result

    def _tell_page(self, kind: str, address: int, data: bytes, rest: bytes) -> int:
        """``rest`` begins with ``data``, and goes on with what is to be stored behind it."""
        if kind == "shared":
            if not self._allowed(address, len(data), True):
                return DECODE_ERROR
            return self.write(address, data)
        here = self._at(address)
        if here is None or here.leaf.kind not in DEVICES:
            return self._tell(here, address, data)
        contract = here.leaf.contract
        piece, _ = self._steps(contract, len(data))
        if piece <= len(data) or self._order(contract) == "big":
            return self._tell(here, address, data)
        if self._refused(here, address, len(data), True):
            return DECODE_ERROR
        value = int.from_bytes(rest[:piece], "little")
        self.log.append(("write", here.leaf.name, here.offset, piece, value))
        return device_status(here.offset)

    def _allowed(self, address: int, size: int, is_write: bool) -> bool:
        """Steps by the bus address, judged by the offset; both lines of a refusal."""
        done = 0
        while done < size:
            here, left = self._at(address + done), size - done
            if self._straight(here, is_write):
                assert here is not None
                done += self._left(address + done, left) if here.leaf.kind in MEMORY else left
                continue
            cap, unaligned = 4, False
            if here is not None and here.leaf.kind in DEVICES:
                cap = here.leaf.contract.valid_max or 4
                unaligned = here.leaf.contract.impl_unaligned
            elif here is not None and here.leaf.kind in MEMORY:
                left = self._left(address + done, left)
            at = (address + done) % TOP
            n = max(n for n in (1, 2, 4, 8)
                    if n <= cap and n <= left and (unaligned or at % n == 0))
            if self._refused(here, address + done, n, is_write):
                self.log.append(
                    ("invalid", "", address % self.page, size, is_write, "rejected"))
                return False
            done += n
        return True

    def _straight(self, here: Spot | None, is_write: bool) -> bool:
        if here is None:
            return False
        if here.leaf.kind is RegionKind.ROM_DEVICE:
            return here.leaf.romd and not is_write
        return here.leaf.kind in MEMORY and not (is_write and not self._writable(here, False))


def _number(data: bytes, order: str) -> int:
    return int.from_bytes(data, order)  # type: ignore[arg-type]


def _contract(rng: Random) -> Contract:
    """Any, or one that takes every access and widens many."""
    if rng.random() < 0.5:
        return random_contract(rng)
    return Contract(impl_min=rng.choice((0, 2, 4, 8)), endian=rng.choice(list(Endian)))


def paged_map(rng: Random, page: int) -> tuple[Node, int]:
    """A map of regions around page borders, and the address where it starts."""
    base = rng.choice((0, 0x1000, TOP - 8 * page))
    root = Node("system", TOP, RegionKind.CONTAINER)
    root.add(TOP // 2, 0, Node("far", 16, RegionKind.RAM))
    kinds = (RegionKind.RAM, RegionKind.RAM, RegionKind.ROM, RegionKind.ROM_DEVICE,
             RegionKind.IO, RegionKind.IO, RegionKind.IO, RegionKind.RESERVATION,
             RegionKind.ALIAS, RegionKind.ALIAS, RegionKind.ALIAS)
    here: list[Node] = []
    for index in range(rng.randrange(2, 9)):
        kind = rng.choice(kinds)
        whole = rng.random() < 0.6
        size = rng.randrange(1, 4) * page if whole else rng.randrange(1, 2 * page)
        start = rng.randrange(0, 8) * page if whole else rng.randrange(0, 8 * page)
        start = min(start, 8 * page - size)
        if kind is RegionKind.ALIAS and here:
            offset = rng.choice((0, 0, page, rng.randrange(0, page)))
            node = Node(f"alias{index}", size, kind, target=rng.choice(here),
                        target_offset=offset, readonly=rng.random() < 0.5)
        else:
            kind = RegionKind.RAM if kind is RegionKind.ALIAS else kind
            node = Node(f"{kind.name}{index}", size, kind, contract=_contract(rng),
                        romd=rng.random() < 0.7, readonly=rng.random() < 0.2)
            here.append(node)
        root.add(base + start, rng.randrange(-1, 2), node)
    return root, base
