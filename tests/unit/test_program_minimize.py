"""The minimiser: what it finds, what it costs, when it stops, and that it never lies."""

from itertools import count
from random import Random

import pytest
from test_program_layout import q35

from qemuglue.program import (
    Budget,
    Operation,
    Place,
    Program,
    Stop,
    generate,
    minimize,
)

CAUSE_A = Operation("writel", Place("hpet", 0, 0x10), 4, 0xDEAD0001)
CAUSE_B = Operation("readq", Place("hpet", 0, 0x20), 8)


def planted(n=500, a=123, b=401):
    operations = list(generate(Random(1), q35(), n))
    operations[a], operations[b] = CAUSE_A, CAUSE_B
    return Program("x86_64/q35", (), tuple(operations))


def in_order(program):
    """A write to hpet+0x10 with bit 0 set, and later any read of hpet+0x20."""
    armed = False
    for op in program.operations:
        if op.place == CAUSE_A.place and op.value & 1:
            armed = True
        elif armed and op.place == CAUSE_B.place and not op.info.is_write:
            return True
    return False


def test_finds_two_among_five_hundred():
    runs = count()
    result = minimize(planted(), lambda program: next(runs) >= 0 and in_order(program))
    assert result.program.operations == (
        Operation("writeb", CAUSE_A.place, 1, 1), Operation("readb", CAUSE_B.place, 1))
    assert result.stop is Stop.MINIMAL and result.sound
    assert result.tries == next(runs), "every run is counted"
    assert result.tries < 100
    assert result.program.machine == "x86_64/q35"


def test_same_input_same_result():
    assert minimize(planted(), in_order) == minimize(planted(), in_order)


@pytest.mark.parametrize(("op", "predicate", "smallest"), [
    # Data shrinks to the length and the byte that matter.
    (Operation("write", Place(), 9, 0, b"abcdefghi"),
     lambda op: op.data[2:3] == b"c", Operation("write", Place(), 3, 0, b"\0\0c")),
    (Operation("read", Place(), 4096), lambda op: op.size > 100, Operation("read", Place(), 101)),
    # A width that matters stays.
    (Operation("writeq", Place(), 8, 0xFF00), lambda op: op.size > 2 and op.value & 0x100,
     Operation("writel", Place(), 4, 0x100)),
    (Operation("memset", Place(), 64, 0xFF), lambda op: op.value, Operation("memset", Place(),
                                                                            1, 1)),
    (Operation("outl", Place(), 4, 7), lambda op: op.verb.startswith("out"),
     Operation("outb", Place(), 1, 0)),
    (Operation("reset", None, 0), lambda op: op.verb == "reset", Operation("reset", None, 0)),
])
def test_shrinks_arguments(op, predicate, smallest):
    program = Program("a/b", (), (op,))
    result = minimize(program, lambda p: len(p.operations) == 1
                      and bool(predicate(p.operations[0])))
    assert result.program.operations == (smallest,)
    assert result.stop is Stop.MINIMAL


def test_what_does_not_reproduce():
    result = minimize(planted(), lambda program: False, Budget(confirm=3))
    assert (result.program, result.stop, result.tries) == (planted(), Stop.NOT_REPRODUCED, 3)
    assert not result.sound


def test_flaky_from_the_start():
    answers = iter([True, False, True])
    result = minimize(planted(), lambda program: next(answers), Budget(confirm=3))
    assert (result.program, result.stop) == (planted(), Stop.FLAKY)
    assert (result.confirmed, result.runs, result.sound) == (2, 3, False)


def test_flaky_result_is_never_called_minimised():
    """Something else fires by chance on small programs: the last confirmation tells."""
    rng = Random(3)
    result = minimize(
        planted(), lambda p: in_order(p) if len(p.operations) > 250 else rng.random() < 0.3,
        Budget(confirm=5))
    assert result.stop is Stop.FLAKY and not result.sound
    assert result.confirmed < 5


def test_budget_of_tries():
    result = minimize(planted(), in_order, Budget(tries=20, confirm=1))
    assert result.stop is Stop.TRIES and result.sound
    assert result.tries == 21, "the last confirmation comes on top"
    assert in_order(result.program)
    assert 2 < len(result.program.operations) < 450


def test_budget_of_time():
    ticks = count()
    result = minimize(planted(), in_order, Budget(expired=lambda: next(ticks) > 30))
    assert result.stop is Stop.TIME and in_order(result.program)


def test_never_tries_the_same_program_twice():
    seen = []
    minimize(planted(60, 20, 40), lambda p: seen.append(p.sha1()) or in_order(p))
    middle = seen[2:-2]
    assert len(middle) == len(set(middle))


def test_errors_of_the_predicate_pass_through():
    def broken(program):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        minimize(planted(), broken)
