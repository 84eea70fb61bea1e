"""RCU: the checks of tests/rcu_checks.py, the same with planted defects, and the objects."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import rcu_checks
from rcu_checks import CHECKS, Log, lock, puppets, unlock

from qemuglue.errors import ModelError
from qemuglue.memory import rcu as module
from qemuglue.memory.rcu import (
    RCU,
    Rcu,
    RcuCell,
    RcuError,
    RcuGuard,
    RcuRef,
    Reader,
    assert_rcu_read_lock_held,
    call_rcu,
    drain_call_rcu,
    rcu_read_lock,
    rcu_read_lock_held,
    rcu_read_unlock,
    synchronize_rcu,
)


@pytest.mark.parametrize("name", CHECKS)
def test_check(name: str) -> None:
    CHECKS[name]()


# -- planted defects: (where, method, wrong, the checks that must notice) ---------------------

Defect = tuple[type, str, Callable[..., Any], tuple[str, ...]]
DEFECTS: list[Defect] = []


def defect(where: type, method: str, *checks: str) -> Callable[[Callable[..., Any]], None]:
    def register(wrong: Callable[..., Any]) -> None:
        DEFECTS.append((where, method, wrong, checks))
    return register


@defect(Rcu, "call", "waits_for_every_section_before_it", "waits_for_the_callers_own_section",
        "a_writer_at_any_step_of_a_reader", "a_reader_at_any_steps_of_a_writer")
def reclaims_without_waiting(self: Rcu, func: Callable[[], object]) -> None:
    func()


@defect(Rcu, "_over", "waits_for_every_section_before_it", "synchronize_waits_and_wakes",
        "a_reader_at_any_steps_of_a_writer", "drain_waits_and_wakes")
def waits_for_nobody(self: Rcu) -> int:
    return self.clock


@defect(Rcu, "_over", "waits_for_every_section_before_it")
def waits_for_the_newest_reader_only(self: Rcu) -> int:
    return max([each.epoch for each in self._readers if each.epoch], default=self.clock)


@defect(Rcu, "_over", "waits_for_every_section_before_it", "synchronize_waits_and_wakes")
def waits_for_itself_only(self: Rcu) -> int:
    return self.reader().epoch or self.clock


@defect(Rcu, "_over", "does_not_wait_for_sections_after_it", "synchronize_waits_and_wakes")
def waits_for_everybody(self: Rcu) -> int:
    return 0 if any(each.epoch for each in self._readers) else self.clock


@defect(Rcu, "_over", "a_call_during_the_look_is_looked_at_again")
def looks_at_the_clock_last(self: Rcu) -> int:
    epochs = [each.epoch for each in self._readers if each.epoch]
    return min([*epochs, self.clock])


@defect(Rcu, "_enqueue", "does_not_wait_for_sections_after_it", "synchronize_waits_and_wakes")
def does_not_move_the_clock(self: Rcu, queue: Any, act: Callable[[], object]) -> int:
    call = module._Call(act)
    call.stamp = self.clock + 1
    queue.append(call)
    self.clock += 0
    return call.stamp


@defect(Reader, "unlock", "an_inner_section_does_not_end_the_outer")
def inner_unlock_ends_the_outer(self: Reader) -> None:
    if not self.epoch:
        raise RcuError("not inside")
    self.inner = max(self.inner - 1, 0)
    self.epoch = 0
    self._rcu._run()


@defect(Reader, "lock", "an_inner_section_does_not_renew_the_outer")
def inner_lock_renews_the_outer(self: Reader) -> None:
    if self.epoch:
        self.inner += 1
    self.epoch = self._rcu.clock


@defect(Reader, "unlock", "callbacks_are_run_outside_sections")
def unlock_runs_callbacks_inside(self: Reader) -> None:
    epoch, self.epoch = self.epoch, 0
    over = self._rcu._over()
    self.epoch = epoch
    calls = self._rcu._calls
    while calls and calls[0].stamp <= over:
        calls.popleft().act()
    Reader_unlock(self)


@defect(Rcu, "call", "callbacks_are_run_outside_sections")
def call_runs_callbacks_inside(self: Rcu, func: Callable[[], object]) -> None:
    self._enqueue(self._calls, func)
    self._run()


@defect(Reader, "unlock", "waits_for_the_callers_own_section", "drain_waits_and_wakes",
        "a_reader_at_any_steps_of_a_writer")
def unlock_runs_nothing(self: Reader) -> None:
    Reader._leave(self)


@defect(Reader, "unlock", "a_writer_at_any_step_of_a_reader")
def unlock_looks_before_it_leaves(self: Reader) -> None:
    work = bool(self._calls or self._waiters)
    if self.inner:
        self.inner -= 1
        return
    self.epoch = 0
    if work:
        self._rcu._ring()
        self._rcu._run()


@defect(Rcu, "_ring", "synchronize_waits_and_wakes")
def nobody_is_woken(self: Rcu) -> None:
    pass


@defect(Rcu, "_unregister", "a_thread_that_ended_is_not_waited_for")
def ended_threads_stay(self: Rcu, reader: Reader) -> None:
    reader.epoch = 1


@defect(Rcu, "_run", "callbacks_are_run_without_the_lock")
def callbacks_under_the_lock(self: Rcu) -> bool:
    with self._lock:
        return Rcu_run(self)


@defect(Rcu, "_run", "what_comes_while_the_role_is_given_back_is_run")
def looks_only_once(self: Rcu) -> bool:
    if self._due(self._calls) and self._running.acquire(blocking=False):
        try:
            self._run_due(10, [])
        finally:
            self._running.release()
    return False


@defect(Rcu, "_run", "callbacks_are_run_one_at_a_time")
def everybody_runs(self: Rcu) -> bool:
    while self._due(self._calls):
        self._run_due(1, [])
    return False


@defect(Rcu, "_run_due", "callbacks_are_run_in_order")
def newest_first(self: Rcu, left: int, errors: list[Exception]) -> int:
    while self._calls and self._due(self._calls):
        self._calls.pop().act()
    return left


@defect(Rcu, "_run_due", "one_that_raises_does_not_lose_the_others")
def a_whole_batch_at_once(self: Rcu, left: int, errors: list[Exception]) -> int:
    batch = list(self._calls)
    self._calls.clear()
    for each in batch:
        each.act()
    return left


@defect(Rcu, "_run_due", "one_that_raises_does_not_lose_the_others")
def errors_are_swallowed(self: Rcu, left: int, errors: list[Exception]) -> int:
    return Rcu_run_due(self, left, [])


@defect(Rcu, "synchronize", "synchronize_waits_and_wakes")
def synchronize_does_not_wait(self: Rcu, timeout_s: float = 0.0) -> None:
    pass


@defect(Rcu, "drain", "drain_waits_and_wakes", "waiting_inside_is_refused_and_ends")
def drain_does_not_wait(self: Rcu, timeout_s: float = 0.0) -> None:
    self._run()


@defect(Rcu, "_refuse_inside", "waiting_inside_is_refused_and_ends")
def waits_for_its_own_section(self: Rcu, what: str) -> None:
    pass


@defect(Reader, "lock", "a_section_inside_any_step_of_a_section")
def lock_counts_for_a_moment(self: Reader) -> None:
    self.inner += 1
    if not self.epoch:
        self.epoch = self._rcu.clock
        self.inner -= 1


@defect(Reader, "lock", "a_writer_at_any_step_of_a_reader")
def lock_is_late(self: Reader) -> None:
    if not self.epoch:
        self.epoch = self._rcu.clock + 1
    else:
        self.inner += 1


Reader_unlock = Reader.unlock
Rcu_run, Rcu_run_due = Rcu._run, Rcu._run_due

CASES = [
    pytest.param(where, method, wrong, check, id=f"{wrong.__name__}-{check}")
    for where, method, wrong, checks in DEFECTS for check in checks
]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize(("where", "method", "wrong", "check"), CASES)
def test_a_planted_defect_is_seen(
    where: type, method: str, wrong: Callable[..., Any], check: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(where, method, wrong)
    monkeypatch.setattr(rcu_checks, "ANSWER_S", 0.3)
    monkeypatch.setattr(rcu_checks, "TRACED", {module.__file__, __file__})
    with pytest.raises((AssertionError, RcuError, pytest.fail.Exception, ValueError)):
        CHECKS[check]()
    # What the failed check left inside a section ends here, where the warning is expected.
    gc.collect()


def test_every_check_can_fail() -> None:
    assert {check for *_, checks in DEFECTS for check in checks} == set(CHECKS)


# -- guards -----------------------------------------------------------------------------------


def test_guards_nest_and_overlap() -> None:
    rcu, log = Rcu(), Log()
    first, second, third = RcuGuard(rcu), RcuGuard(rcu), RcuGuard(rcu)
    rcu.call(log.note("call"))
    assert rcu.reader().depth == 3 and first.active
    first.release()
    third.release()
    assert rcu.held() and log.ran == [] and not first.active and second.active
    second.release()
    assert not rcu.held() and log.ran == ["call"]


def test_a_guard_is_released_exactly_once() -> None:
    rcu = Rcu()
    outer = RcuGuard(rcu)
    guard = RcuGuard(rcu)
    guard.release()
    for use in (guard.release, guard.check, guard.__enter__):
        with pytest.raises(RcuError, match="was released"):
            use()
    assert outer.active and rcu.reader().depth == 1, "the second release left nobody's section"
    with outer as same:
        assert same is outer
        outer.release()
    assert rcu.reader().depth == 0, "the end of `with` leaves nothing twice"
    with pytest.raises(ValueError, match="inside"), RcuGuard(rcu):
        raise ValueError("inside")
    assert not rcu.held()
    with pytest.raises(RcuError, match="leaves an RCU section it is not in"):
        rcu.reader().unlock()
    assert rcu.reader().depth == 0
    assert issubclass(RcuError, ModelError)


def test_a_guard_is_bound_to_its_thread() -> None:
    rcu, log = Rcu(), Log()
    with puppets("owner", "thief") as (owner, thief):
        guard = owner.do(lambda: RcuGuard(rcu))
        rcu.call(log.note("call"))
        thief.do(lambda: lock(rcu))
        leave = partial(guard.__exit__, None, None, None)
        for use in (guard.release, guard.check, guard.__enter__, leave):
            with pytest.raises(RcuError, match="belongs to thread 'owner', not to 'thief'"):
                thief.do(use)
        assert log.ran == [] and thief.do(rcu.reader).depth == 1
        thief.do(lambda: unlock(rcu))
        assert repr(guard) == "<RcuGuard of thread 'owner', active>"
        owner.do(guard.release)
        assert log.ran == ["call"]
        assert repr(guard) == "<RcuGuard of thread 'owner', released>"


def test_a_guard_that_is_dropped_leaves_its_section() -> None:
    rcu, log = Rcu(), Log()
    guard = RcuGuard(rcu)
    rcu.call(log.note("call"))
    with pytest.warns(ResourceWarning, match="was never released"):
        del guard
    assert not rcu.held() and log.ran == [], "a finalizer runs nobody's callbacks"
    rcu.drain()
    assert log.ran == ["call"]
    with puppets("owner") as (owner,):
        kept = [owner.do(lambda: RcuGuard(rcu))]
        with pytest.warns(ResourceWarning, match="'owner' was never released"):
            kept.clear()
        assert owner.do(rcu.held), "another thread's section cannot be left from here"
        owner.do(lambda: unlock(rcu))


def test_a_guard_cannot_be_copied() -> None:
    rcu = Rcu()
    with RcuGuard(rcu) as guard:
        ref = RcuRef([1], guard)
        for thing in (guard, ref):
            for way in (copy.copy, copy.deepcopy):
                with pytest.raises(TypeError, match="cannot be copied"):
                    way(thing)
    assert not rcu.held()


# -- cells and references ---------------------------------------------------------------------


def test_a_reference_forwards_until_its_guard_is_released() -> None:
    rcu = Rcu()
    target = [3, 1, 2]
    cell = RcuCell(target, rcu)
    with RcuGuard(rcu) as guard:
        ref = cell.get(guard)
        assert ref is not None
        assert ref.deref() is target and cell.raw_get() is target
        assert len(ref) == 3 and list(ref) == [3, 1, 2] and ref[0] == 3 and ref[1:] == [1, 2]
        assert 2 in ref and 5 not in ref and bool(ref) and ref.index(1) == 1
        assert ref == [3, 1, 2] and ref == cell.get(guard) and ref != [3]
        assert repr(ref) == "<RcuRef to a list>"
        empty, word = RcuRef([], guard), RcuRef("word", guard)
        assert not empty and hash(word) == hash("word")
        with pytest.raises(AttributeError):
            ref.nothing  # noqa: B018
        with pytest.raises(AttributeError):
            ref.size = 3  # type: ignore[attr-defined]
        going = iter(ref)
        assert next(going) == 3
    uses: list[Callable[[], object]] = [
        ref.deref, lambda: ref.index, lambda: len(ref), lambda: iter(ref), lambda: ref[0],
        lambda: 1 in ref, lambda: bool(ref), lambda: ref == target, lambda: ref != target,
        lambda: hash(word), lambda: next(going), lambda: RcuRef(target, guard),
        lambda: cell.get(guard),
    ]
    for use in uses:
        with pytest.raises(RcuError, match="was released"):
            use()
    assert repr(ref) == "<RcuRef to a list, its section is over>"


def test_a_reference_is_bound_to_its_thread() -> None:
    rcu = Rcu()
    cell = RcuCell("value", rcu)
    with puppets("thief") as (thief,), RcuGuard(rcu) as guard:
        ref = cell.get(guard)
        assert ref is not None
        for use in (ref.deref, lambda: ref.upper(), lambda: cell.get(guard)):
            with pytest.raises(RcuError, match="not to 'thief'"):
                thief.do(use)


def test_a_reference_lasts_until_its_own_guard_only() -> None:
    rcu = Rcu()
    cell = RcuCell("old", rcu)
    outer, inner = RcuGuard(rcu), RcuGuard(rcu)
    of_inner = cell.get(inner)
    cell.set("new")
    of_outer = cell.get(outer)
    assert of_inner is not None and of_outer is not None
    assert of_inner.deref() == "old" and of_outer.deref() == "new"
    inner.release()
    assert of_outer == "new"
    with pytest.raises(RcuError):
        of_inner.deref()
    outer.release()


def test_a_cell() -> None:
    rcu, other = Rcu(), Rcu()
    cell: RcuCell[str] = RcuCell(rcu=rcu)
    with RcuGuard(rcu) as guard, RcuGuard(other) as foreign:
        assert cell.raw_get() is None and cell.get(guard) is None
        assert cell.set("a") is None and cell.set("b") == "a" and cell.set(None) == "b"
        with pytest.raises(RcuError, match="another domain"):
            cell.get(foreign)
    assert repr(cell) == "<RcuCell of NoneType>"


# -- the domain -------------------------------------------------------------------------------


def test_the_process_has_a_domain() -> None:
    log = Log()
    assert not rcu_read_lock_held()
    with pytest.raises(RcuError, match=r"must be in an RCU section here: use `with RcuGuard"):
        assert_rcu_read_lock_held()
    rcu_read_lock()
    assert rcu_read_lock_held() and RCU.held()
    assert_rcu_read_lock_held()
    call_rcu(log.note("call"))
    with pytest.raises(RcuError, match="inside"):
        synchronize_rcu()
    with pytest.raises(RcuError, match="inside"):
        drain_call_rcu()
    assert log.ran == []
    rcu_read_unlock()
    assert log.ran == ["call"] and not rcu_read_lock_held()
    synchronize_rcu()
    drain_call_rcu()
    with pytest.raises(RcuError, match="not in"):
        rcu_read_unlock()
    with RcuGuard() as guard:
        assert guard.rcu is RCU
        cell = RcuCell("value")
        assert cell.get(guard) == "value"


def test_domains_do_not_wait_for_each_other() -> None:
    one, two, log = Rcu(), Rcu(), Log()
    with RcuGuard(one):
        two.call(log.note("call"))
        two.synchronize(1.0)
    assert log.ran == ["call"]


def test_what_cannot_be_called_is_refused_at_once() -> None:
    rcu = Rcu()
    with pytest.raises(RcuError, match="something to call, not 3"):
        rcu.call(3)  # type: ignore[arg-type]
    assert rcu.pending == 0


def test_callbacks_may_use_the_domain() -> None:
    rcu, log = Rcu(), Log()

    def again() -> None:
        with RcuGuard(rcu):
            rcu.call(log.note("inner"))
        rcu.synchronize(1.0)
        log.ran.append("outer")

    rcu.call(again)
    assert log.ran == ["outer", "inner"]


def test_a_callback_that_stays_inside_is_put_out() -> None:
    rcu, log = Rcu(), Log()
    with RcuGuard(rcu):
        rcu.call(lambda: lock(rcu))
        rcu.call(lambda: log.ran.append(f"inside {rcu.held()}"))
        with pytest.raises(RcuError, match="left a read section open"):
            unlock(rcu)
        lock(rcu)
    assert log.ran == ["inside False"] and not rcu.held()


def test_a_callback_that_never_ends_its_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CALLBACKS", 10)
    rcu, log = Rcu(), Log()

    def again() -> None:
        log.ran.append("again")
        rcu.call(again)

    rcu.call(again)
    assert len(log.ran) == 10 and rcu.pending == 1
    rcu.drain(1.0)
    assert 10 < len(log.ran) <= 30, "what was registered before is done, and no more"


def test_an_interrupt_in_a_callback_keeps_the_others() -> None:
    rcu, log = Rcu(), Log()

    def interrupted() -> None:
        raise KeyboardInterrupt

    lock(rcu)
    rcu.call(interrupted)
    rcu.call(log.note("next"))
    with pytest.raises(KeyboardInterrupt):
        unlock(rcu)
    assert not rcu.held() and rcu.pending == 1
    rcu.drain(1.0)
    assert log.ran == ["next"]


def test_readers_come_and_go_with_their_threads() -> None:
    rcu = Rcu()
    for _ in range(3):
        with puppets("a", "b") as pair:
            readers = [each.do(rcu.reader) for each in pair]
            assert all(each.do(rcu.reader) is reader
                       for each, reader in zip(pair, readers, strict=True))
            assert len(rcu._readers) == 3
        assert len(rcu._readers) == 1
