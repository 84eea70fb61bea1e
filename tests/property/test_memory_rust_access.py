"""The Rust face against its byte-wise oracle, and against the C face."""

from __future__ import annotations

from random import Random
from typing import ClassVar

from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import TOP, WINDOW, Recorder, build
from rust_oracle import Outcome, RustOracle, outcome_of, rust_map, told

from qemuglue.errors import ModelError
from qemuglue.memory import AddressSpace, MemTxAttrs
from qemuglue.memory.attrs import UNSPECIFIED
from qemuglue.memory.bytes import ByteValued
from qemuglue.memory.endian import ENDIAN_TYPES
from qemuglue.memory.guest_address import GuestAddress, MemoryRegionAddress
from qemuglue.memory.rules import RULES_10_0, RULES_LATEST
from qemuglue.memory.rust_binding import AddressSpace as RustSpace
from qemuglue.memory.rust_binding import FlatView, MemoryRegionSection

RANDOMS = st.randoms(use_true_random=False)
ONLY_MEMORY = MemTxAttrs(memory=True)


def odd_type(width: int) -> type[ByteValued]:
    """A type no single access can have."""

    class Odd:
        size: ClassVar[int] = width

        def __init__(self, raw: bytes) -> None:
            self.raw = raw

        @classmethod
        def from_raw(cls, data: bytes) -> Odd:
            return cls(bytes(data))

    return Odd


TYPES = (*ENDIAN_TYPES, *ENDIAN_TYPES, odd_type(3), odd_type(16))


class Pair:
    """A random map as both faces of the model, and as the oracle."""

    def __init__(self, rng: Random) -> None:
        root, self.base = rust_map(rng)
        target_big = rng.random() < 0.5
        region, self.made = build(root)
        rules = rng.choice((RULES_10_0, RULES_LATEST))
        self.space = AddressSpace("memory", region, rules=rules, target_big=target_big)
        self.recorder = Recorder()
        self.space.ops = self.space.observer = self.recorder
        self.rust = RustSpace(self.space)
        self.oracle = RustOracle(root, target_big=target_big)

    def memory(self) -> list[bytes]:
        return [
            region.backing.read(0, region.size)
            for region in self.made.values() if region.backing is not None
        ]

    def check(self, got: object, want: object, what: str) -> None:
        assert got == want, what
        assert self.recorder.log == self.oracle.log, what


def attempt(face: RustSpace | FlatView | MemoryRegionSection, verb: str, *args: object) -> Outcome:
    """What the caller of the face hears."""
    try:
        result = getattr(face, verb)(*args)
    except ModelError as error:
        return outcome_of(error)
    if verb.startswith(("read", "write")):
        length = len(args[0])  # type: ignore[arg-type]
        return ("moved", length) if result is None else ("moved", result)
    return ("stored",) if result is None else ("loaded", result.raw)


def move(rng: Random, pair: Pair, address: int, view: FlatView) -> None:
    """One read or write of a byte range, by both."""
    length = rng.choice((0, 1, 2, 4, 8, rng.randrange(0, 40)))
    memory = rng.random() < 0.2
    whole = rng.random() < 0.5
    place: object = (GuestAddress(address), ONLY_MEMORY) if memory else GuestAddress(address)
    face = view if memory or whole or rng.random() < 0.5 else pair.rust
    verb = "_slice" if whole else ""
    if rng.random() < 0.5:
        mine, theirs = bytearray(b"\xee" * length), bytearray(b"\xee" * length)
        got: object = attempt(face, "read" + verb, mine, place), mine
        done, error = pair.oracle.rust_read(address, theirs, memory=memory)
        want: object = told(length, done, error, whole=whole), theirs
    else:
        data = rng.randbytes(length)
        got = attempt(face, "write" + verb, data, place)
        done, error = pair.oracle.rust_write(address, data, memory=memory)
        want = told(length, done, error, whole=whole)
    pair.check(got, want, f"{verb} {address:#x}+{length} memory {memory}")


def single(rng: Random, pair: Pair, address: int, view: FlatView) -> None:
    """One store or load, by both."""
    cls = rng.choice(TYPES)
    memory = rng.random() < 0.2
    place: object = (GuestAddress(address), ONLY_MEMORY) if memory else address
    whole_space = not memory and rng.random() < 0.5
    if rng.random() < 0.5:
        got = attempt(pair.rust, "load", place, cls) if whole_space else (
            attempt(view, "load", place, cls))
        want = pair.oracle.rust_load(address, cls.size, memory=memory)
    else:
        raw = rng.randbytes(cls.size)
        value = cls.from_raw(raw)
        got = attempt(pair.rust, "store", place, value) if whole_space else (
            attempt(view, "store", value, place))
        want = pair.oracle.rust_store(address, raw, memory=memory)
    pair.check(got, want, f"{cls.__name__} at {address:#x} memory {memory}")


@settings(max_examples=300, deadline=None)
@given(RANDOMS)
def test_random_accesses_to_random_maps(rng: Random) -> None:
    pair = Pair(rng)
    with pair.rust.memory() as view:
        for _ in range(10):
            address = (pair.base + rng.randrange(-10, WINDOW + 4)) % TOP
            (move if rng.random() < 0.5 else single)(rng, pair, address, view)
    for node, data in pair.oracle.ram.items():
        backing = pair.made[node].backing
        assert backing is not None and backing.read(0, len(data)) == data, node.name


@settings(max_examples=100, deadline=None)
@given(RANDOMS)
def test_a_section_is_its_part_of_the_view(rng: Random) -> None:
    """The sections are those of the map by the oracle's spots, and an access to one is the same
    access to the view, cut at the section's end."""
    pair, other = Pair(rng), None
    with pair.rust.memory() as view:
        for section in view:
            first, last = section.start_addr().value, section.last_addr().value
            here = pair.oracle._at(first)
            assert here is not None and here.offset == section.section.offset
            assert last - first + 1 == section.len()
            for offset in {0, section.len() - 1}:
                found = view.to_region_addr(first + offset)
                assert found is not None and found[1] == MemoryRegionAddress(offset)
                assert found[0].start_addr() == section.start_addr()
            offset, length = rng.randrange(section.len()), rng.randrange(0, 24)
            room = min(length, section.len() - offset)
            mine, theirs = bytearray(b"\xee" * length), bytearray(b"\xee" * length)
            got = attempt(section, "read", mine, MemoryRegionAddress(offset))
            done, error = pair.oracle.rust_read(first + offset, other := bytearray(theirs[:room]))
            theirs[:room] = other
            want = told(room, done, error, whole=False)
            pair.check((got, mine), (want, theirs), f"{section} {offset}+{length}")
            assert section.check_address(section.len() - 1 if section.len() < TOP else 0)
            if section.len() < TOP:
                assert section.check_address(section.len()) is None


@settings(max_examples=100, deadline=None)
@given(RANDOMS, st.integers(-10, WINDOW + 4), st.integers(0, 40))
def test_ranges_are_covered_as_their_bytes_are(rng: Random, skip: int, length: int) -> None:
    pair = Pair(rng)
    address = (pair.base + skip) % TOP
    here = [pair.oracle._at(address + at) is not None for at in range(length)]
    with pair.rust.memory() as view:
        assert view.check_range(address, length) == all(here)
        if length:
            assert view.address_in_range(address) == here[0]
            assert (view.check_address(address) == GuestAddress(address)) == here[0]
            assert (view.find_region(address) is not None) == here[0]
            onward = address + length - 1
            assert view.checked_offset(address, length - 1) == (
                GuestAddress(onward) if here[-1] and onward < TOP else None
            )


@settings(max_examples=150, deadline=None)
@given(RANDOMS, st.integers(-10, WINDOW + 4), st.binary(max_size=40), st.booleans(), st.booleans())
def test_the_rust_face_does_the_first_part_of_what_c_does(
    rng: Random, skip: int, data: bytes, is_write: bool, memory: bool
) -> None:
    """Side by side on the same map: up to the first error they do the same, and there the Rust
    face ends. If C says OK, so does it."""
    seed = rng.random()
    one, two = Pair(Random(seed)), Pair(Random(seed))
    address = (one.base + skip) % TOP
    attrs = ONLY_MEMORY if memory else UNSPECIFIED
    with one.rust.memory() as view:
        if is_write:
            heard = attempt(view, "write", data, (address, attrs))
            result = two.space.write(address, data, attrs)
        else:
            mine, theirs = bytearray(len(data)), bytearray(len(data))
            heard = attempt(view, "read", mine, (address, attrs))
            result = two.space.read_into(address, theirs, attrs)
    moved = heard[1] if heard[0] == "moved" else 0
    assert isinstance(moved, int)
    assert one.recorder.log == two.recorder.log[: len(one.recorder.log)]
    if not is_write:
        assert mine[:moved] == theirs[:moved]
    if result == 0:
        # Only what goes on beyond 2^64-1 ends here and not in C.
        assert moved == len(data) or address + moved > TOP
        if moved == len(data):
            assert one.recorder.log == two.recorder.log and one.memory() == two.memory()
    else:
        assert moved < len(data)
