"""Checks of the RCU domain, each of which fails by assertion when its promise is broken.

``CHECKS`` are run as they are by tests/unit/test_memory_rcu.py, and there again with one method
of the domain broken, where the named check has to fail. Threads are puppets: they do one thing
at a time and only when told, so every check is deterministic.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from threading import Thread
from types import FrameType
from typing import Any

import pytest

from qemuglue.memory import rcu as module
from qemuglue.memory.rcu import Rcu, RcuCell, RcuError, RcuGuard

#: A puppet answers in microseconds; one that does not is blocked for ever.
ANSWER_S = 5.0
#: Where a step may be interrupted: the domain itself, and the tests' broken versions of it.
TRACED = {module.__file__}


class Puppet:
    """A thread that does what it is told, one thing after the other."""

    def __init__(self, name: str) -> None:
        self._todo: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self._done: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self.thread = Thread(target=self._work, name=name, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        while (act := self._todo.get()) is not None:
            try:
                self._done.put((act(), None))
            except BaseException as error:
                self._done.put((None, error))
            act = None

    def start(self, act: Callable[[], Any]) -> None:
        """Let it begin; ``result`` waits for the end."""
        self._todo.put(act)

    def result(self) -> Any:
        try:
            value, error = self._done.get(timeout=ANSWER_S)
        except Empty:
            raise AssertionError(f"{self.thread.name} is blocked") from None
        if error is not None:
            raise error
        return value

    def do(self, act: Callable[[], Any]) -> Any:
        self.start(act)
        return self.result()

    @property
    def busy(self) -> bool:
        return self._done.empty()

    def end(self) -> None:
        self._todo.put(None)
        self.thread.join(ANSWER_S)


@contextmanager
def puppets(*names: str) -> Iterator[tuple[Puppet, ...]]:
    made = tuple(Puppet(name) for name in names)
    try:
        yield made
    finally:
        for each in made:
            each.end()


class Log:
    """Callbacks that only say that they ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def note(self, name: str) -> Callable[[], None]:
        return lambda: self.ran.append(name)


def lock(rcu: Rcu) -> None:
    rcu.reader().lock()


def unlock(rcu: Rcu) -> None:
    rcu.reader().unlock()


# -- who is waited for --------------------------------------------------------------------------


def waits_for_every_section_before_it() -> None:
    rcu, log = Rcu(), Log()
    with puppets("old", "new") as (old, new):
        old.do(lambda: lock(rcu))
        rcu.call(log.note("between"))
        new.do(lambda: lock(rcu))
        rcu.call(log.note("after"))
        assert log.ran == [] and rcu.pending == 2
        new.do(lambda: unlock(rcu))
        assert log.ran == [], "the older reader is still inside"
        old.do(lambda: unlock(rcu))
        assert log.ran == ["between", "after"] and rcu.pending == 0


def does_not_wait_for_sections_after_it() -> None:
    rcu, log = Rcu(), Log()
    with puppets("old", "new") as (old, new):
        old.do(lambda: lock(rcu))
        rcu.call(log.note("call"))
        new.do(lambda: lock(rcu))
        old.do(lambda: unlock(rcu))
        assert log.ran == ["call"], "the section of 'new' began after the call"
        new.do(lambda: unlock(rcu))


def waits_for_the_callers_own_section() -> None:
    rcu, log = Rcu(), Log()
    lock(rcu)
    rcu.call(log.note("call"))
    assert log.ran == []
    unlock(rcu)
    assert log.ran == ["call"]


def an_inner_section_does_not_end_the_outer() -> None:
    rcu, log = Rcu(), Log()
    with puppets("reader") as (reader,):
        for _ in range(3):
            reader.do(lambda: lock(rcu))
        rcu.call(log.note("call"))
        reader.do(lambda: unlock(rcu))
        reader.do(lambda: unlock(rcu))
        assert log.ran == [] and reader.do(rcu.held)
        reader.do(lambda: unlock(rcu))
        assert log.ran == ["call"] and not reader.do(rcu.held)


def an_inner_section_does_not_renew_the_outer() -> None:
    rcu, log = Rcu(), Log()
    with puppets("reader", "other") as (reader, other):
        reader.do(lambda: lock(rcu))
        rcu.call(log.note("call"))
        reader.do(lambda: lock(rcu))
        other.do(lambda: lock(rcu))
        other.do(lambda: unlock(rcu))
        assert log.ran == [], "the outer section began before the call"
        reader.do(lambda: unlock(rcu))
        reader.do(lambda: unlock(rcu))
        assert log.ran == ["call"]


def a_thread_that_ended_is_not_waited_for() -> None:
    rcu, log = Rcu(), Log()
    with puppets("reader", "waiter") as (reader, waiter):
        reader.do(lambda: lock(rcu))
        rcu.call(log.note("call"))
        waiter.start(lambda: rcu.synchronize(ANSWER_S))
        reader.do(lambda: None)
        with ended_inside():
            reader.end()
        waiter.result()
        rcu.drain(0.5)
        assert log.ran == ["call"]
        names = [each.thread.name for each in rcu._readers]
        assert "reader" not in names, "its place is given back"


@contextmanager
def ended_inside() -> Iterator[None]:
    """Swallow the warning of a thread that ends inside a section."""
    heard: list[str] = []
    before = sys.unraisablehook
    sys.unraisablehook = lambda args: heard.append(str(args.exc_value))
    try:
        yield
    finally:
        sys.unraisablehook = before
    assert any("ended inside an RCU section" in each for each in heard), heard


# -- how callbacks are run ------------------------------------------------------------------------


def callbacks_are_run_outside_sections() -> None:
    rcu = Rcu()
    seen: list[tuple[str, bool]] = []
    with puppets("leaver", "writer") as (leaver, writer):
        leaver.do(lambda: lock(rcu))
        rcu.call(lambda: seen.append(("by unlock", rcu.held())))
        leaver.do(lambda: unlock(rcu))
        assert seen == [("by unlock", False)]
        # What is due and not yet run, since nobody left a section the ordinary way ...
        leaver.do(lambda: lock(rcu))
        rcu.call(lambda: seen.append(("left over", rcu.held())))
        leaver.do(lambda: rcu.reader()._leave())
        # ... is not run by a call inside a section either.
        writer.do(lambda: lock(rcu))
        writer.do(lambda: rcu.call(lambda: seen.append(("inside", rcu.held()))))
        assert len(seen) == 1
        writer.do(lambda: unlock(rcu))
        assert seen[1:] == [("left over", False), ("inside", False)]


def callbacks_are_run_without_the_lock() -> None:
    rcu, log = Rcu(), Log()
    with puppets("other") as (other,):
        rcu.call(lambda: other.do(lambda: rcu.call(log.note("by the other"))))
        assert log.ran == ["by the other"]


def callbacks_are_run_in_order() -> None:
    rcu, log = Rcu(), Log()
    with puppets("reader") as (reader,):
        reader.do(lambda: lock(rcu))
        for name in "abc":
            rcu.call(log.note(name))
        reader.do(lambda: unlock(rcu))
    assert log.ran == ["a", "b", "c"]


def callbacks_are_run_one_at_a_time() -> None:
    rcu, log = Rcu(), Log()
    with puppets("runner", "other") as (runner, other):
        gate: SimpleQueue[None] = SimpleQueue()
        began: SimpleQueue[None] = SimpleQueue()

        def slow() -> None:
            began.put(None)
            gate.get(timeout=ANSWER_S)
            log.ran.append("slow")

        runner.start(lambda: rcu.call(slow))
        began.get(timeout=ANSWER_S)
        try:
            other.do(lambda: rcu.call(log.note("next")))
            assert log.ran == [], "a second callback while the first is still running"
        finally:
            gate.put(None)
            runner.result()
        assert log.ran == ["slow", "next"], "who ran the first runs what came meanwhile"


def what_comes_while_the_role_is_given_back_is_run() -> None:
    rcu, log = Rcu(), Log()

    class Role:
        """The role, where another thread calls just before it is given back."""

        def __init__(self) -> None:
            self.real, self.armed = rcu._running, True

        def acquire(self, blocking: bool) -> bool:
            return self.real.acquire(blocking=blocking)

        def release(self) -> None:
            if self.armed:
                self.armed = False
                other.do(lambda: rcu.call(log.note("late")))
                assert log.ran == ["first"]
            self.real.release()

    with puppets("other") as (other,):
        rcu._running = Role()  # type: ignore[assignment]
        rcu.call(log.note("first"))
        assert log.ran == ["first", "late"]


def one_that_raises_does_not_lose_the_others() -> None:
    rcu, log = Rcu(), Log()

    def bad() -> None:
        raise ValueError("bad")

    with puppets("reader") as (reader,):
        reader.do(lambda: lock(rcu))
        for act in (log.note("a"), bad, log.note("b")):
            rcu.call(act)
        with pytest.raises(ValueError, match="bad"):
            reader.do(lambda: unlock(rcu))
        assert log.ran == ["a", "b"] and rcu.pending == 0
        assert not reader.do(rcu.held)
        reader.do(lambda: lock(rcu))
        for act in (bad, log.note("c"), bad):
            rcu.call(act)
        with pytest.raises(ExceptionGroup, match="several RCU callbacks") as several:
            reader.do(lambda: unlock(rcu))
        assert len(several.value.exceptions) == 2 and log.ran == ["a", "b", "c"]
        rcu.call(log.note("d"))
        assert log.ran[-1] == "d", "the role was given back"


# -- waiting --------------------------------------------------------------------------------------


def synchronize_waits_and_wakes() -> None:
    rcu = Rcu()
    rcu.synchronize(0.5)
    with puppets("reader", "late", "waiter") as (reader, late, waiter):
        reader.do(lambda: lock(rcu))
        waiter.start(lambda: rcu.synchronize(ANSWER_S))
        while not rcu._waiters and waiter.busy:
            pass
        late.do(lambda: lock(rcu))
        reader.do(lambda: lock(rcu))
        reader.do(lambda: unlock(rcu))
        late.do(lambda: None)
        assert waiter.busy, "the reader is still inside"
        reader.do(lambda: unlock(rcu))
        waiter.result()
        late.do(lambda: unlock(rcu))


def drain_waits_and_wakes() -> None:
    rcu, log = Rcu(), Log()
    rcu.drain(0.5)
    with puppets("reader", "waiter") as (reader, waiter):
        reader.do(lambda: lock(rcu))
        rcu.call(log.note("call"))
        waiter.start(lambda: (rcu.drain(ANSWER_S), log.note("drained")()))
        while rcu.pending < 2 and waiter.busy:
            pass
        assert waiter.busy and log.ran == []
        reader.do(lambda: unlock(rcu))
        waiter.result()
        assert log.ran == ["call", "drained"]


def waiting_inside_is_refused_and_ends() -> None:
    rcu = Rcu()
    with RcuGuard(rcu):
        for wait in (rcu.synchronize, rcu.drain):
            with pytest.raises(RcuError, match="inside an RCU section"):
                wait(0.01)
    refused: list[str] = []

    def drains() -> None:
        with pytest.raises(RcuError, match="inside a callback") as error:
            rcu.drain(0.01)
        refused.append(str(error.value))

    rcu.call(drains)
    assert refused
    with puppets("sleepy") as (sleepy,):
        sleepy.do(lambda: lock(rcu))
        for wait in (rcu.synchronize, rcu.drain):
            with pytest.raises(RcuError, match=r"still in a read section: 'sleepy' after 0\.01 s"):
                wait(0.01)
        sleepy.do(lambda: unlock(rcu))
    rcu.drain(0.5)
    assert not rcu._waiters and not rcu.pending, "what gave up is cleared away"


# -- interruptions --------------------------------------------------------------------------------


@contextmanager
def at_step(act: Callable[[int], None], *, lines: bool = False) -> Iterator[list[int]]:
    """Before every bytecode (or line) of rcu.py that the calling thread executes, ``act`` with
    its number. The list says how many there were."""
    steps, busy = [0], [False]
    kind = "line" if lines else "opcode"

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        if busy[0] or frame.f_code.co_filename not in TRACED:
            return None
        frame.f_trace_opcodes = not lines
        if event == kind:
            busy[0] = True
            act(steps[0])
            busy[0] = False
            steps[0] += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield steps
    finally:
        sys.settrace(before)


def a_section_inside_any_step_of_a_section() -> None:
    """As a signal handler does, or a finalizer."""
    wanted, total = 0, 1
    while wanted < total:
        reader = Rcu().reader()
        steps = 0

        def handler(step: int) -> None:
            if steps + step == wanted:  # noqa: B023
                reader.lock()  # noqa: B023
                assert reader.epoch, "unprotected"  # noqa: B023
                reader.unlock()  # noqa: B023

        for act, depth in (
            (reader.lock, 1), (reader.lock, 2), (reader.unlock, 1), (reader.unlock, 0)
        ):
            with at_step(handler) as count:
                act()
            steps += count[0]
            assert reader.depth == depth, f"step {wanted}: {reader.depth} deep"
        total, wanted = steps, wanted + 1
    assert total > 20


class Thing:
    """What a writer replaces."""

    def __init__(self) -> None:
        self.reclaimed = False

    def reclaim(self) -> None:
        assert not self.reclaimed, "reclaimed twice"
        self.reclaimed = True


class Scene:
    """A writer that replaces one thing, and a reader that comes, looks and goes."""

    def __init__(self) -> None:
        self.rcu = Rcu()
        self.first = Thing()
        self.cell = RcuCell(self.first, self.rcu)
        self.seen: Thing | None = None

    def replace(self) -> None:
        old = self.cell.set(Thing())
        assert old is self.first
        self.rcu.call(old.reclaim)

    def come(self) -> None:
        self.rcu.reader().lock()
        self.seen = self.cell.raw_get()

    def go(self) -> None:
        assert self.seen is not None and not self.seen.reclaimed, "reclaimed under the reader"
        self.rcu.reader().unlock()


def a_writer_at_any_step_of_a_reader() -> None:
    wanted, total = 0, 1
    with puppets("writer") as (writer,):
        while wanted < total:
            scene = Scene()

            def step(number: int) -> None:
                if number == wanted:  # noqa: B023
                    writer.do(scene.replace)  # noqa: B023

            with at_step(step) as steps:
                scene.come()
                scene.go()
            total, wanted = steps[0], wanted + 1
            replaced = scene.cell.raw_get() is not scene.first
            assert scene.first.reclaimed == replaced, f"step {wanted}: lost"
    assert total > 20


def a_reader_at_any_steps_of_a_writer() -> None:
    """The reader enters before one line of the writer's and leaves before a later one."""
    enter, total = 0, 1
    with puppets("reader") as (reader,):
        while enter < total:
            leave = enter
            while leave <= total:
                scene = Scene()

                def step(number: int) -> None:
                    if number == enter:  # noqa: B023
                        reader.do(scene.come)  # noqa: B023
                    if number == leave:  # noqa: B023
                        reader.do(scene.go)  # noqa: B023

                with at_step(step, lines=True) as steps:
                    scene.replace()
                if leave >= steps[0] and scene.seen is not None:
                    reader.do(scene.go)
                assert scene.first.reclaimed, f"entered at {enter}, left at {leave}: lost"
                total, leave = steps[0], leave + 1
            enter += 1
    assert total > 10


def a_call_during_the_look_is_looked_at_again() -> None:
    rcu, log = Rcu(), Log()

    class Readers(tuple):  # type: ignore[type-arg]
        """The readers, where one enters and a writer calls just after the look at them."""

        looks = 0

        def __iter__(self) -> Iterator[Any]:
            yield from tuple.__iter__(self)
            Readers.looks += 1
            if Readers.looks == 2:
                reader.do(lambda: lock(rcu))
                writer.do(lambda: rcu.call(log.note("second")))

    with puppets("reader", "writer") as (reader, writer):
        for each in (reader, writer):
            each.do(rcu.reader)
        rcu._readers = Readers(rcu._readers)
        rcu.call(log.note("first"))
        assert Readers.looks > 2 and log.ran == ["first"]
        reader.do(lambda: unlock(rcu))
        assert log.ran == ["first", "second"]


CHECKS: dict[str, Callable[[], None]] = {
    check.__name__: check
    for check in (
        waits_for_every_section_before_it,
        does_not_wait_for_sections_after_it,
        waits_for_the_callers_own_section,
        an_inner_section_does_not_end_the_outer,
        an_inner_section_does_not_renew_the_outer,
        a_thread_that_ended_is_not_waited_for,
        callbacks_are_run_outside_sections,
        callbacks_are_run_without_the_lock,
        callbacks_are_run_in_order,
        callbacks_are_run_one_at_a_time,
        what_comes_while_the_role_is_given_back_is_run,
        one_that_raises_does_not_lose_the_others,
        synchronize_waits_and_wakes,
        drain_waits_and_wakes,
        waiting_inside_is_refused_and_ends,
        a_section_inside_any_step_of_a_section,
        a_writer_at_any_step_of_a_reader,
        a_reader_at_any_steps_of_a_writer,
        a_call_during_the_look_is_looked_at_again,
    )
}
