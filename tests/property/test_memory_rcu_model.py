"""RCU against a naive model: who was inside when a call was made, and who of them still is.

Three threads do one thing at a time, in an order Hypothesis chooses: take guards, release them
in any order, use plain lock and unlock, call and replace. The model knows nothing of clocks. A
callback has a set of sections that were open when it was registered; it must have been run
exactly when that set is empty: never earlier, and not one step later.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from rcu_checks import Puppet

from qemuglue.memory.rcu import Rcu, RcuCell, RcuError, RcuGuard, RcuRef, Reader

THREADS = st.integers(0, 2)


class Value:
    """What the cell holds; ``number`` raises once it was reclaimed."""

    def __init__(self, number: int) -> None:
        self._number = number
        self.reclaimed = False

    @property
    def number(self) -> int:
        assert not self.reclaimed, f"value {self._number} was reclaimed"
        return self._number


class Sections(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.rcu = Rcu()
        self.threads = [Puppet(f"t{number}") for number in range(3)]
        self.cell = RcuCell(Value(0), self.rcu)
        self.values = 1
        #: What is open: per thread its guards (each with a reference) and plain locks.
        self.guards: list[list[tuple[RcuGuard, RcuRef[Value], int]]] = [[], [], []]
        self.plain = [0, 0, 0]
        #: Per thread the number of its outermost section, None outside.
        self.outermost: list[int | None] = [None, None, None]
        self.sections = 0
        #: Per callback the outermost sections that were open; and the callbacks that were run.
        self.waits_for: list[set[int]] = []
        self.ran: list[int] = []

    def teardown(self) -> None:
        for number in range(3):
            while self.guards[number]:
                self.release(number, 0)
            while self.plain[number]:
                self.unlock(number)
        self.everything_due_was_run_in_order()
        assert self.rcu.pending == 0
        for thread in self.threads:
            thread.end()

    def _entered(self, number: int) -> None:
        if self.outermost[number] is None:
            self.outermost[number] = self.sections
            self.sections += 1

    def _left(self, number: int) -> None:
        if not self.guards[number] and not self.plain[number]:
            ended = self.outermost[number]
            assert ended is not None
            self.outermost[number] = None
            for waits in self.waits_for:
                waits.discard(ended)

    def _register(self, number: int, act: Callable[[], None]) -> None:
        mine = len(self.waits_for)
        self.waits_for.append({each for each in self.outermost if each is not None})

        def callback() -> None:
            assert not self.rcu.held()
            self.ran.append(mine)
            act()

        self.threads[number].do(lambda: self.rcu.call(callback))

    @rule(number=THREADS)
    def guard(self, number: int) -> None:
        self._entered(number)

        def take() -> tuple[RcuGuard, Any]:
            guard = RcuGuard(self.rcu)
            return guard, self.cell.get(guard)

        guard, ref = self.threads[number].do(take)
        current = self.cell.raw_get()
        assert current is not None
        self.guards[number].append((guard, ref, current.number))

    @rule(number=THREADS, which=st.integers(0, 9))
    def release(self, number: int, which: int) -> None:
        if self.guards[number]:
            guard, ref, _ = self.guards[number].pop(which % len(self.guards[number]))
            self._left(number)
            self.threads[number].do(guard.release)
            for use in (guard.release, ref.deref):
                with pytest.raises(RcuError, match="released"):
                    self.threads[number].do(use)

    @rule(number=THREADS)
    def lock(self, number: int) -> None:
        self._entered(number)
        self.plain[number] += 1
        self.threads[number].do(lambda: self.rcu.reader().lock())

    @precondition(lambda self: any(self.plain))
    @rule(number=THREADS)
    def unlock(self, number: int) -> None:
        if self.plain[number]:
            self.plain[number] -= 1
            self._left(number)
            self.threads[number].do(lambda: self.rcu.reader().unlock())

    @rule(number=THREADS)
    def call(self, number: int) -> None:
        self._register(number, lambda: None)

    @rule(number=THREADS)
    def replace(self, number: int) -> None:
        old = self.cell.set(Value(self.values))
        assert old is not None
        self.values += 1
        self._register(number, lambda: setattr(old, "reclaimed", True))

    @rule(number=THREADS)
    def wait(self, number: int) -> None:
        """A thread that would wait for others is not made to; alone it returns at once."""
        if self.outermost[number] is not None:
            for wait in (self.rcu.synchronize, self.rcu.drain):
                with pytest.raises(RcuError, match="inside an RCU section"):
                    self.threads[number].do(wait)
        elif all(each is None for each in self.outermost):
            self.threads[number].do(self.rcu.synchronize)
            self.threads[number].do(self.rcu.drain)

    @rule(number=THREADS, owner=THREADS)
    def steal(self, number: int, owner: int) -> None:
        if number != owner and self.guards[owner]:
            with pytest.raises(RcuError, match="belongs to"):
                self.threads[number].do(self.guards[owner][0][0].release)

    @invariant()
    def everything_due_was_run_in_order(self) -> None:
        due = [number for number, waits in enumerate(self.waits_for) if not waits]
        assert self.ran == due
        assert self.rcu.pending == len(self.waits_for) - len(due)

    @invariant()
    def every_reference_is_good(self) -> None:
        for number, guards in enumerate(self.guards):
            depth = len(guards) + self.plain[number]
            if guards:
                seen = self.threads[number].do(lambda g=guards: [ref.number for _, ref, _ in g])
                assert seen == [want for *_, want in guards]
            assert self.threads[number].do(self.rcu.reader).depth == depth


SETTINGS = settings(
    max_examples=60, stateful_step_count=40, deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestSections = Sections.TestCase
TestSections.settings = SETTINGS


# -- the model can tell: each of these is found -------------------------------------------------


def _one_epoch_for_all(self: Reader) -> None:
    if self.epoch:
        self.inner += 1
    self.epoch = self._rcu.clock


def _ends_with_the_first_release(self: Reader) -> None:
    self.inner = self.epoch = 0
    self._rcu._run()


def _late_by_one(self: Rcu, func: Callable[[], object]) -> None:
    self._enqueue(self._calls, func)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize(("where", "method", "wrong"), [
    (Reader, "lock", _one_epoch_for_all),
    (Reader, "unlock", _ends_with_the_first_release),
    (Rcu, "call", lambda self, func: func()),
    (Rcu, "call", _late_by_one),
    (Rcu, "_over", lambda self: self.clock),
    (Rcu, "_over", lambda self: max([r.epoch for r in self._readers if r.epoch] or [self.clock])),
    (Rcu, "_over", lambda self: 0 if any(r.epoch for r in self._readers) else self.clock),
])
def test_a_planted_defect_is_found(
    where: type, method: str, wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Sections):
        def teardown(self) -> None:
            for guards in self.guards:
                for guard, *_ in guards:
                    guard._active = False  # no word of it when it is collected, much later
            for thread in self.threads:
                thread.do(lambda: setattr(self.rcu.reader(), "epoch", 0))
                thread.end()

    monkeypatch.setattr(where, method, wrong)
    with pytest.raises((AssertionError, RcuError, pytest.fail.Exception)):
        run_state_machine_as_test(Broken, settings=settings(
            SETTINGS, max_examples=200, phases=[Phase.generate], database=None, derandomize=True,
        ))
