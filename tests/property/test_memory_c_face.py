"""Fill, firmware, asking, mapping, caching and IOMMUs against the naive oracle."""

from __future__ import annotations

from random import Random

from c_oracle import COracle
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import TOP, Recorder, build, random_map

from qemuglue.memory import (
    AddressSpace,
    IommuAccess,
    IommuTlbEntry,
    MemoryRegion,
    MemoryRegionCache,
    MemTxAttrs,
    RegionKind,
)
from qemuglue.memory.endian import endian_class
from qemuglue.memory.rules import RULES_10_0

RANDOMS = st.randoms(use_true_random=False)


class Pair:
    """One random map twice: the model's space and the oracle, with the same device."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        root, self.base = random_map(rng)
        target_big = rng.random() < 0.5
        region, self.made = build(root)
        self.recorder = Recorder()
        self.space = AddressSpace("memory", region, rules=RULES_10_0, target_big=target_big)
        self.space.ops = self.space.observer = self.recorder
        self.oracle = COracle(root, target_big=target_big)

    def address(self) -> int:
        return (self.base + self.rng.randrange(-10, 50)) % TOP

    def equal(self, got: object, want: object, what: str) -> None:
        assert got == want, f"{what}: got {got}, want {want}"
        assert self.recorder.log == self.oracle.log, what
        for node, data in self.oracle.ram.items():
            backing = self.made[node].backing
            assert backing is not None, node.name
            assert backing.read(0, len(data)) == data, f"{what}: {node.name}"


@settings(max_examples=150, deadline=None)
@given(RANDOMS)
def test_fill_and_firmware(rng: Random) -> None:
    pair = Pair(rng)
    for _ in range(6):
        address, length = pair.address(), rng.choice((0, 1, rng.randrange(30), 520))
        if rng.random() < 0.5:
            byte = rng.randrange(256)
            pair.equal(pair.space.set(address, byte, length),
                       pair.oracle.fill(address, byte, length), f"set {address:#x}+{length}")
        else:
            data = rng.randbytes(length % 64)
            pair.equal(pair.space.write_rom(address, data), pair.oracle.load_rom(address, data),
                       f"write_rom {address:#x}+{len(data)}")


@settings(max_examples=200, deadline=None)
@given(RANDOMS)
def test_asking(rng: Random) -> None:
    pair = Pair(rng)
    for _ in range(12):
        address, length, is_write = pair.address(), rng.randrange(24), rng.random() < 0.5
        pair.equal(pair.space.access_valid(address, length, is_write),
                   pair.oracle.accepts(address, length, is_write),
                   f"valid {address:#x}+{length} {is_write}")


@settings(max_examples=200, deadline=None)
@given(RANDOMS)
def test_mapping(rng: Random) -> None:
    pair = Pair(rng)
    space, oracle = pair.space, pair.oracle
    for _ in range(8):
        address, length, is_write = pair.address(), rng.randrange(1, 30), rng.random() < 0.5
        what = f"map {address:#x}+{length} {is_write}"
        mapped = space.map(address, length, is_write)
        assert mapped is not None
        n = oracle.mapped(address, length, is_write)
        if not is_write:
            want = bytearray(n)
            oracle.read(address, want)
            pair.equal((len(mapped), bytes(mapped.buffer)), (n, want), what)
            space.unmap(mapped, rng.randrange(n + 1))
            pair.equal(None, None, f"un{what}")
            continue
        pair.equal(len(mapped), n, what)
        accessed, data = rng.randrange(n + 1), rng.randbytes(n)
        mapped.buffer[:accessed] = data[:accessed]
        space.unmap(mapped, accessed)
        oracle.write(address, data[:accessed])
        pair.equal(space.bounce_buffer_size, 0, f"un{what} {accessed}")


@settings(max_examples=200, deadline=None)
@given(RANDOMS)
def test_caching(rng: Random) -> None:
    pair = Pair(rng)
    space, oracle = pair.space, pair.oracle
    for _ in range(5):
        address, length, is_write = pair.address(), rng.randrange(1, 30), rng.random() < 0.5
        what = f"cache {address:#x}+{length} {is_write}"
        with MemoryRegionCache(space, address, length, is_write) as cache:
            pair.equal(cache.length, oracle.cached(address, length, is_write), what)
            for _ in range(4):
                offset = rng.randrange(cache.length)
                n = rng.randrange(cache.length - offset + 1)
                inside = f"{what}: {offset}+{n}"
                if rng.random() < 0.4:
                    pair.equal(cache.read(offset, n),
                               oracle.cache_read(address, offset, n, is_write), f"read {inside}")
                elif rng.random() < 0.5:
                    kind = endian_class(rng.choice((1, 2, 4, 8)), rng.choice(("little", "big")))
                    if kind.size > cache.length - offset:
                        continue
                    status, data = oracle.cache_load(address, offset, kind.size, is_write)
                    pair.equal(cache.load(offset, kind),
                               (status, int(kind.from_raw(data))), f"load {inside} {kind}")
                elif is_write:
                    data = rng.randbytes(n)
                    pair.equal(cache.write(offset, data),
                               oracle.cache_write(address, offset, data, True), f"write {inside}")


class Scatter:
    """An IOMMU of 8-byte pages at random places."""

    def __init__(self, rng: Random, target: AddressSpace, base: int) -> None:
        self.target = target
        self.pages = {
            page: ((base + 8 * rng.randrange(-1, 6)) % TOP & ~7,
                   rng.choice((IommuAccess.RW, IommuAccess.RW, IommuAccess.RO, IommuAccess.WO,
                               IommuAccess.NONE)))
            for page in range(5)
        }

    def translate(
        self, region: MemoryRegion, addr: int, access: IommuAccess, index: int
    ) -> IommuTlbEntry:
        place, perm = self.pages.get(addr // 8, (0, IommuAccess.NONE))
        return IommuTlbEntry(self.target, addr & ~7, place, 7, perm)

    def attrs_to_index(self, region: MemoryRegion, attrs: MemTxAttrs) -> int:
        return 0


@settings(max_examples=150, deadline=None)
@given(RANDOMS)
def test_an_access_through_an_iommu_is_one_access_for_each_page(rng: Random) -> None:
    pair = Pair(rng)
    iommu = Scatter(rng, pair.space, pair.base)
    root = MemoryRegion.container_of("bus", TOP)
    root.add_subregion(0x1000, MemoryRegion.iommu("iommu", 0x100, iommu))
    root.add_subregion(0x2000, MemoryRegion("claimed", 8, RegionKind.RESERVATION))
    bus = AddressSpace("bus", root, rules=RULES_10_0, target_big=pair.space.target_big)
    bus.ops = bus.observer = recorder = Recorder()
    nowhere = AddressSpace("nowhere", MemoryRegion.container_of("none", TOP), rules=RULES_10_0)
    pair.space.ops = pair.space.observer = nowhere.observer = direct = Recorder()
    bus.ops = bus.observer = recorder
    for _ in range(6):
        start, length, is_write = rng.randrange(40), rng.randrange(1, 24), rng.random() < 0.5
        data, result, want = rng.randbytes(length), 0, b""
        before = _memory(pair)
        got = bus.write(0x1000 + start, data) if is_write else bus.read(0x1000 + start, length)
        after = _memory(pair)
        _restore(pair, before)
        at = start
        while at < start + length:
            n = min(8 - at % 8, start + length - at)
            place, perm = iommu.pages.get(at // 8, (0, IommuAccess.NONE))
            allowed = perm & (IommuAccess.WO if is_write else IommuAccess.RO)
            space, where = (pair.space, place + at % 8) if allowed else (nowhere, at)
            if is_write:
                result |= space.write(where, data[at - start : at - start + n])
            else:
                status, part = space.read(where, n)
                result, want = result | status, want + part
            at += n
        assert got == (result if is_write else (result, want)), f"{start}+{length} {is_write}"
        assert after == _memory(pair)
        assert recorder.log == direct.log


def _memory(pair: Pair) -> dict[str, bytes]:
    return {
        region.name: region.backing.read(0, region.size)
        for region in pair.made.values() if region.backing is not None
    }


def _restore(pair: Pair, contents: dict[str, bytes]) -> None:
    for region in pair.made.values():
        if region.backing is not None:
            region.backing.write(0, contents[region.name])
