"""Noise is found by running a program twice, and belongs to its source."""

from __future__ import annotations

from random import Random

from qemuglue.campaign.feedback import SAMPLE, TRIALS, Stability, source_of

EVENT, NOISY = ("event", "nic_tx"), ("shape", "clock_tick 3")


def test_sources_are_events_and_registers_that_were_read() -> None:
    assert source_of(NOISY) == ("event", "clock_tick") == source_of(("event", "clock_tick"))
    assert source_of(("read", "hpet", 0xF0, 4, 17)) == ("read", "hpet", 0xF0)
    assert source_of(("write", "hpet", 0xF0, 4)) is None
    assert source_of("garbage") is None


def test_only_some_programs_with_something_new_run_twice() -> None:
    stability = Stability()
    wanted = [stability.wants({("event", str(number))}) for number in range(10 * SAMPLE)]
    assert sum(wanted) == 10
    assert not any(stability.wants({("event", str(number))}) for number in range(10 * SAMPLE))


def test_what_does_not_come_again_is_noise() -> None:
    stability, rng = Stability(), Random(1)
    for _ in range(3 * TRIALS):
        first = {EVENT, ("shape", f"clock_tick {rng.getrandbits(30)}")}
        stability.compare(first, {EVENT, ("shape", f"clock_tick {rng.getrandbits(30)}")})
    assert stability.noise == {("event", "clock_tick")}
    assert stability.trusted({EVENT, NOISY, ("write", "a", 1, 2)}) == {EVENT, ("write", "a", 1, 2)}
    for _ in range(20 * TRIALS):
        stability.compare({NOISY}, {NOISY})
    assert not stability.noise, "it was a state, not noise"


def test_a_state_used_up_now_and_then_is_no_noise() -> None:
    stability = Stability()
    for number in range(5 * TRIALS):
        stability.compare({EVENT}, {EVENT} if number % 3 else set())
    assert not stability.noise
