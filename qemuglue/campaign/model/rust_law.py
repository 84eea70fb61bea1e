"""The Rust face against its byte-wise oracle, and against the C face of the same map."""

from __future__ import annotations

from random import Random

from qemuglue.campaign.inputs.faults import Fault
from qemuglue.campaign.model.laws import VERSIONS, RulesOf, equal
from qemuglue.campaign.model.oracle import WINDOW, Recorder
from qemuglue.campaign.model.painting import TOP, build
from qemuglue.campaign.model.rust_face import Outcome, RustOracle, outcome_of, rust_map, told
from qemuglue.errors import ModelError
from qemuglue.memory import AddressSpace, MemTxAttrs
from qemuglue.memory.attrs import UNSPECIFIED
from qemuglue.memory.endian import ENDIAN_TYPES
from qemuglue.memory.guest_address import GuestAddress
from qemuglue.memory.rust_binding import AddressSpace as RustSpace
from qemuglue.memory.rust_binding import FlatView

_ONLY_MEMORY = MemTxAttrs(memory=True)


class _Pair:
    """A random map as both faces of the model, and as the oracle."""

    def __init__(self, rng: Random, rules: RulesOf) -> None:
        root, self.base = rust_map(rng)
        target_big = rng.random() < 0.5
        region, self.made = build(root)
        self.space = AddressSpace(
            "memory", region, rules=rules(rng.choice(VERSIONS[1:])), target_big=target_big)
        self.recorder = Recorder()
        self.space.ops = self.space.observer = self.recorder
        self.rust = RustSpace(self.space)
        self.oracle = RustOracle(root, target_big=target_big)

    def equal(self, got: object, want: object, what: str) -> None:
        equal(got, want, what)
        equal(self.recorder.log, self.oracle.log, f"{what} log")


def rusting(rng: Random, rules: RulesOf) -> str:
    """Reads, writes, loads and stores by the Rust face, as its oracle has them."""
    if rng.random() < 0.3:
        return _first_part(rng, rules)
    pair = _Pair(rng, rules)
    words = ""
    with pair.rust.memory() as view:
        for _ in range(rng.randint(1, 8)):
            address = (pair.base + rng.randrange(-10, WINDOW + 4)) % TOP
            words += (_move if rng.random() < 0.5 else _one)(rng, pair, address, view)
    for node, data in pair.oracle.ram.items():
        backing = pair.made[node].backing
        equal(None if backing is None else backing.read(0, len(data)), bytes(data), "rust memory")
    return words


def _heard(face: RustSpace | FlatView, verb: str, *args: object) -> Outcome:
    """What the caller of the face hears."""
    try:
        result = getattr(face, verb)(*args)
    except ModelError as error:
        return outcome_of(error)
    if verb.startswith(("read", "write")):
        data = args[0]
        assert isinstance(data, bytes | bytearray), "the first argument is the data"
        return ("moved", len(data)) if result is None else ("moved", result)
    return ("stored",) if result is None else ("loaded", result.raw)


def _move(rng: Random, pair: _Pair, address: int, view: FlatView) -> str:
    length = rng.choice((0, 1, 2, 4, 8, rng.randrange(40)))
    memory, whole = rng.random() < 0.2, rng.random() < 0.5
    place: object = (GuestAddress(address), _ONLY_MEMORY) if memory else GuestAddress(address)
    face = view if memory or whole or rng.random() < 0.5 else pair.rust
    verb = "_slice" if whole else ""
    if rng.random() < 0.5:
        mine, theirs = bytearray(b"\xee" * length), bytearray(b"\xee" * length)
        heard = _heard(face, "read" + verb, mine, place)
        done, error = pair.oracle.rust_read(address, theirs, memory=memory)
        pair.equal((heard, mine), (told(length, done, error, whole=whole), theirs), "rust read")
    else:
        data = rng.randbytes(length)
        heard = _heard(face, "write" + verb, data, place)
        done, error = pair.oracle.rust_write(address, data, memory=memory)
        pair.equal(heard, told(length, done, error, whole=whole), "rust write")
    return str(heard[0])[0]


def _one(rng: Random, pair: _Pair, address: int, view: FlatView) -> str:
    kind = rng.choice(ENDIAN_TYPES)
    memory = rng.random() < 0.2
    place: object = (GuestAddress(address), _ONLY_MEMORY) if memory else address
    face = pair.rust if not memory and rng.random() < 0.5 else view
    if rng.random() < 0.5:
        heard = _heard(face, "load", place, kind)
        pair.equal(heard, pair.oracle.rust_load(address, kind.size, memory=memory), "rust load")
    else:
        raw = rng.randbytes(kind.size)
        value = kind.from_raw(raw)
        heard = _heard(face, "store", *((place, value) if face is pair.rust else (value, place)))
        pair.equal(heard, pair.oracle.rust_store(address, raw, memory=memory), "rust store")
    return str(heard[0])[0]


def _first_part(rng: Random, rules: RulesOf) -> str:
    """Side by side on the same map: up to the first error the Rust face does what the C face
    does, and there it ends. If C says OK, so does it."""
    seed, skip = rng.getrandbits(32), rng.randrange(-10, WINDOW + 4)
    data, is_write, memory = rng.randbytes(rng.randrange(40)), rng.random() < 0.5, \
        rng.random() < 0.5
    one, two = _Pair(Random(seed), rules), _Pair(Random(seed), rules)
    address = (one.base + skip) % TOP
    attrs = _ONLY_MEMORY if memory else UNSPECIFIED
    mine, theirs = bytearray(len(data)), bytearray(len(data))
    with one.rust.memory() as view:
        if is_write:
            heard = _heard(view, "write", data, (address, attrs))
            result = two.space.write(address, data, attrs)
        else:
            heard = _heard(view, "read", mine, (address, attrs))
            result = two.space.read_into(address, theirs, attrs)
    moved = heard[1] if heard[0] == "moved" else 0
    if not isinstance(moved, int):
        raise Fault("rust", f"moved {moved!r}")
    equal(one.recorder.log, two.recorder.log[: len(one.recorder.log)], "first part")
    equal(mine[:moved], theirs[:moved], "first part")
    if result:
        equal(moved < len(data), True, "an error ends it")
    elif moved != len(data):
        # Only what goes on beyond 2^64-1 ends here and not in C.
        equal(address + moved > TOP, True, "OK is OK")
    return f"C {result} {heard[0]}"
