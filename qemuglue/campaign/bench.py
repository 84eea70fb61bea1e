"""How fast operations are judged, beside a client that sends the same bytes and looks at nothing.

Both run in turn with the transcript on, each on a QEMU of its own (the model does not follow what
nobody judges), so their ratio holds while absolute rates drift with the host. The client's
batches are encoded beforehand and it keeps one batch ahead, as the judge does; it waits for the
replies and counts them. The judge encodes, sends, predicts, compares replies and transcript, and
compares at the end of a round the pages of RAM that were written.

The bulk comparison is that of all of guest RAM with the model's, beside libc's ``memcmp`` of as
many bytes of the same memory.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from statistics import median

from qemuglue.program.generate import Generator
from qemuglue.program.operation import Operation, Place
from qemuglue.witness.face import encode
from qemuglue.witness.fastmap import FastMap
from qemuglue.witness.judge import Scene, prepare
from qemuglue.witness.lockstep import BATCH, LockStep, Stop
from qemuglue.witness.ram import TrackedBacking
from qemuglue.witness.session import Session, Step
from qemuglue.witness.verdict import Kind

_READS = (("readb", 1), ("readw", 2), ("readl", 4), ("readq", 8))
_WRITES = (("writeb", 1), ("writew", 2), ("writel", 4), ("writeq", 8))

#: Times a bulk comparison is repeated: it takes some 10 ms.
BULK_ROUNDS = 15

#: Operations drawn for one of the mix that is kept, at most.
DRAWS = 4


@dataclass(frozen=True, slots=True)
class Rate:
    """Operations a second, medians over the rounds."""

    what: str
    operations: int
    judged: float
    counted: float
    #: Judged as a share of counted: the median of the rounds' own ratios.
    share: float


@dataclass(frozen=True, slots=True)
class BulkRate:
    """Seconds for comparing ``size`` bytes of guest RAM with the model's, of ``memcmp``, and the
    median of their ratios."""

    size: int
    compare_s: float
    memcmp_s: float
    ratio: float


def measure(
    scene: Scene, *, operations: int, rounds: int, seed: int
) -> tuple[list[Rate], BulkRate | None]:
    """Rates on the scene's machine, and the bulk comparison where its RAM is shared with us;
    raises what a session raises."""
    prepare(scene)
    rates = []
    for what, draw in (
        ("RAM", ram_steps), ("device reads", device_reads), ("device writes", device_writes),
        ("mix", mixed_steps),
    ):
        # What one row does to devices is not the next one's.
        with scene.session() as session, scene.session() as other:
            steps = draw(session, Random(seed), operations)
            rates.append(_rate(what, session, other, steps, rounds))
    with scene.session() as session:
        return rates, measure_bulk(session)


# -- operations --------------------------------------------------------------------------------


def ram_steps(session: Session, rng: Random, count: int) -> list[Step]:
    """Sized reads and writes, half and half, evenly over RAM, inside its ranges."""
    fast = session.fast
    ranges = [i for i, kind in enumerate(fast.kinds) if kind is Kind.RAM]
    weights = [fast.limits[i] - fast.starts[i] for i in ranges]
    return [
        _step(rng, fast, i, _READS if rng.random() < 0.5 else _WRITES)
        for i in rng.choices(ranges, weights, k=count)
    ]


def device_reads(session: Session, rng: Random, count: int) -> list[Step]:
    """Aligned reads of four bytes, evenly over the device regions."""
    return [_step(rng, session.fast, i, _READS[2:3], align=True)
            for i in rng.choices(_devices(session), k=count)]


def device_writes(session: Session, rng: Random, count: int) -> list[Step]:
    """Aligned writes of four bytes that end no batch (most that change the map, reset the
    machine or start a DMA do), as far as there are any."""
    lockstep = LockStep(session)
    found: list[Step] = []
    for i in rng.choices(_devices(session), k=DRAWS * count):
        op, addr = _step(rng, session.fast, i, _WRITES[2:3], align=True)
        if len(found) < count and not lockstep.ends_batch(op, addr):
            found.append((op, addr))
    return found


def mixed_steps(session: Session, rng: Random, count: int) -> list[Step]:
    """What a campaign draws with its usual weights, ports, byte strings and accesses that cross
    from one region into the next included; less what ends a batch."""
    lockstep = LockStep(session)
    found: list[Step] = []
    for op, addr in Generator(session.layout()).resolved(rng, DRAWS * count):
        if len(found) < count and addr is not None and not lockstep.ends_batch(op, addr):
            found.append((op, addr))
    return found


def _devices(session: Session) -> list[int]:
    fast = session.fast
    return [
        i for i, kind in enumerate(fast.kinds)
        if kind is Kind.DEVICE and session.unjudgeable(fast.sections[i].region) is None
        and fast.limits[i] - fast.starts[i] >= 0x10
    ]


def _step(
    rng: Random, fast: FastMap, i: int, verbs: Sequence[tuple[str, int]], *, align: bool = False
) -> Step:
    verb, size = rng.choice(verbs)
    addr = rng.randrange(fast.starts[i], fast.limits[i] - size + 1)
    if align:
        addr &= -size
    value = rng.getrandbits(8 * size) if verb.startswith("write") else 0
    return Operation(verb, Place(None, 0, addr), size, value), addr


# -- rates -------------------------------------------------------------------------------------


def _rate(
    what: str, session: Session, other: Session, steps: list[Step], rounds: int
) -> Rate:
    """Judged on ``session``, counted on ``other``."""
    batches = [
        (b"".join(encode(*step) for step in steps[at : at + BATCH]), len(steps[at : at + BATCH]))
        for at in range(0, len(steps), BATCH)
    ]
    judged, counted = [], []
    for number in range(rounds + 1):
        counted_s = _timed(lambda: _count(other, batches))
        other.process.transcript.read_new()
        judged_s = _timed(lambda: _judge(session, steps))
        if number:  # the first round warms caches
            counted.append(len(steps) / counted_s)
            judged.append(len(steps) / judged_s)
    share = median(a / b for a, b in zip(judged, counted, strict=True))
    return Rate(what, len(steps), median(judged), median(counted), share)


def _count(session: Session, batches: Sequence[tuple[bytes, int]]) -> None:
    """Send everything and count what comes back, one batch ahead."""
    channel = session.process.channel
    flying = 0
    for request, count in batches:
        channel.send(request, count)
        if flying:
            channel.collect(flying)
        flying = count
    channel.collect(flying)


def _judge(session: Session, steps: Sequence[Step]) -> None:
    end = LockStep(session).run(steps)
    assert end.stop is Stop.DONE, f"the benchmark found something: {end}"


def _timed(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


# -- bulk --------------------------------------------------------------------------------------


def measure_bulk(session: Session) -> BulkRate | None:
    """Compare all of RAM, every byte of which was written; None where it is not shared."""
    shared = session.process.ram
    if shared is None:
        return None
    shared.view[:] = b"\x5a" * shared.size
    session.ram.adopt_all()
    backing = next(
        region.backing for region, source in session.ram.sources.items()
        if region.name == session.process.config.ram_id
    )
    assert isinstance(backing, TrackedBacking)
    pairs = []
    with shared.view[:] as theirs, memoryview(backing.data)[:] as ours:
        compare = _memcmp(theirs, ours)
        for number in range(BULK_ROUNDS + 1):
            plain_s, judged_s = _timed(compare), _timed(lambda: _compare(session))
            if number:
                pairs.append((judged_s, plain_s))
        del compare
    return BulkRate(
        shared.size, median(a for a, _ in pairs), median(b for _, b in pairs),
        median(a / b for a, b in pairs),
    )


def _compare(session: Session) -> None:
    found = session.ram.check_all()
    assert not found, f"the benchmark found something: {found}"


def _memcmp(left: memoryview, right: memoryview) -> Callable[[], None]:
    """libc's, of two buffers of one size."""
    memcmp = ctypes.CDLL(None).memcmp
    memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    size = len(left)
    both = [(ctypes.c_char * size).from_buffer(each) for each in (left, right)]

    def compare() -> None:
        assert memcmp(ctypes.addressof(both[0]), ctypes.addressof(both[1]), size) == 0

    return compare
