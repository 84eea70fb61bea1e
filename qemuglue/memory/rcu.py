"""RCU: readers that never wait, and what they may still see is reclaimed only behind them.

A reader brackets what it does in a *read section*. A writer publishes a new value in place of an
old one and hands the old one's end to ``call_rcu``; it comes when the *grace period* is over,
that is when every section that had begun before the call has ended. Sections that begin later
see the new value and are not waited for. (QEMU ``include/qemu/rcu.h``, ``util/rcu.c``; nothing
outside QEMU shows it.)

How it is known: the domain has a clock. The outermost entry of a section copies it into the
reader's ``epoch``, the outermost exit sets that to 0. A call moves the clock on, after the value
was published, and is stamped with it; it is due when every ``epoch`` is 0 or at least the stamp.
Attribute reads and writes that are atomic and seen in one order are all this needs; no lock is
taken by a reader. The clock is a Python integer and never overflows, so QEMU's two phases for
32-bit counters have no counterpart.

Differences from QEMU, on purpose: threads register themselves with their first section; there is
no thread that waits for the grace period and runs the callbacks. Whoever finds it over runs
them, in the order of registration, one at a time and outside any section: an outermost unlock,
``call_rcu`` outside a section, ``synchronize_rcu`` and ``drain_call_rcu``. A domain does not
survive ``fork`` while other threads use it.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator
from threading import Lock, RLock, Thread, current_thread, get_ident, local
from types import TracebackType
from typing import Any, Generic, NoReturn, TypeVar, cast

from qemuglue.errors import ModelError

T = TypeVar("T")

#: What ``synchronize_rcu`` and ``drain_call_rcu`` wait at most. A section is a few accesses, so
#: one that lasts longer is never left.
GRACE_TIMEOUT_S = 60.0
#: Callbacks run on one occasion. A callback that always registers another one would otherwise
#: keep whoever ran it for ever; what is left waits for the next occasion.
MAX_CALLBACKS = 100_000


class RcuError(ModelError):
    """RCU is used in a way that would let a reader see what was reclaimed."""


class Reader:
    """One thread's place in a domain (``struct rcu_reader_data``), got from ``Rcu.reader``.

    ``epoch`` is the clock when the outermost section was entered, 0 outside; ``inner`` counts the
    sections open besides that one, nested or overlapping. Only its own thread calls ``lock`` and
    ``unlock``. Each of their branches changes one attribute, so a signal handler or a finalizer
    that takes a section of its own in this thread may interrupt them anywhere.
    """

    __slots__ = ("_calls", "_rcu", "_waiters", "epoch", "inner", "thread")

    def __init__(self, rcu: Rcu, thread: Thread) -> None:
        self.epoch = 0
        self.inner = 0
        self.thread = thread
        self._rcu = rcu
        self._calls = rcu._calls
        self._waiters = rcu._waiters

    @property
    def depth(self) -> int:
        """The open sections; 0 outside."""
        return self.inner + 1 if self.epoch else 0

    def lock(self) -> None:
        """``rcu_read_lock``."""
        if self.epoch:
            self.inner += 1
        else:
            self.epoch = self._rcu.clock

    def unlock(self) -> None:
        """``rcu_read_unlock``; the outermost one runs the callbacks that are due.

        Raises RcuError when no section is open (QEMU asserts), and what a callback raised."""
        if self.inner:
            self.inner -= 1
        elif self.epoch:
            self.epoch = 0
            # Looked at after the epoch was cleared; a caller queues first and looks at the
            # epochs then. One of the two sees the other.
            if self._calls or self._waiters:
                self._rcu._ring()
                self._rcu._run()
        else:
            raise RcuError(f"thread {self.thread.name!r} leaves an RCU section it is not in")

    def _leave(self) -> None:
        """``unlock`` for finalizers, which must not run anybody's callbacks."""
        if self.inner:
            self.inner -= 1
        else:
            self.epoch = 0
            self._rcu._ring()


class _Presence:
    """Dies with its thread's local storage, and takes the reader out of the domain."""

    __slots__ = ("_reader",)

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def __del__(self) -> None:
        reader = self._reader
        left_open, reader.inner, reader.epoch = reader.epoch, 0, 0
        reader._rcu._unregister(reader)
        if left_open:
            warnings.warn(
                f"thread {reader.thread.name!r} ended inside an RCU section",
                ResourceWarning, stacklevel=2,
            )


class _Local(local):
    """Every thread's reader in one domain; made and registered when a thread first asks."""

    def __init__(self, rcu: Rcu) -> None:
        self.reader = Reader(rcu, current_thread())
        rcu._register(self.reader)
        self._presence = _Presence(self.reader)


class _Call:
    """A callback, or who waits, with its stamp. Made before the domain's lock is taken, so that
    no collection of garbage, and no finalizer, can start under it."""

    __slots__ = ("act", "stamp")

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act
        self.stamp = 0


class Rcu:
    """A domain: its readers wait for nobody, its callers for its readers only.

    The process has one, ``RCU``, as QEMU has; tests make their own.
    """

    def __init__(self) -> None:
        #: Moves on with every call; read by each outermost entry of a section.
        self.clock = 1
        # The clock and the queues change under _lock; nothing else is done under it.
        self._lock = RLock()
        self._calls: deque[_Call] = deque()
        self._waiters: deque[_Call] = deque()
        self._readers: tuple[Reader, ...] = ()
        self._registry_lock = RLock()
        # Roles, not locks: nobody ever waits for them. Whoever has one takes from the queue,
        # and looks once more after giving it back, for those who found it taken meanwhile.
        self._ringing = Lock()
        self._running = Lock()
        #: The thread that runs callbacks just now, 0 for none.
        self._runner = 0
        self._local = _Local(self)

    # -- readers -----------------------------------------------------------------------------

    def reader(self) -> Reader:
        """The calling thread's reader: ``lock`` and ``unlock`` without a guard, for hot paths."""
        return self._local.reader

    def held(self) -> bool:
        """Whether the calling thread is in a section."""
        return self._local.reader.epoch != 0

    def assert_held(self) -> None:
        """Raise RcuError unless the calling thread is in a section."""
        reader = self._local.reader
        if not reader.epoch:
            raise RcuError(
                f"thread {reader.thread.name!r} must be in an RCU section here: "
                "use `with RcuGuard():`"
            )

    def _register(self, reader: Reader) -> None:
        with self._registry_lock:
            self._readers = (*self._readers, reader)

    def _unregister(self, reader: Reader) -> None:
        with self._registry_lock:
            self._readers = tuple(each for each in self._readers if each is not reader)
        self._ring()

    # -- grace periods -----------------------------------------------------------------------

    def call(self, func: Callable[[], object]) -> None:
        """``call_rcu``: run ``func()`` after every section that is open now has ended.

        Outside a section, what is due is run before this returns, so call it without a lock
        that a callback takes. What callbacks raise comes out where they were run, after all the
        others have been run: itself, or several as an ExceptionGroup."""
        if not callable(func):
            raise RcuError(f"call_rcu needs something to call, not {func!r}")
        self._enqueue(self._calls, func)
        if not self._local.reader.epoch:
            self._run()

    def defer(self, func: Callable[[], object]) -> None:
        """``call`` for finalizers, which may run anywhere: nobody's callbacks are run now, due or
        not; the next unlock or call finds them."""
        self._enqueue(self._calls, func)

    def synchronize(self, timeout_s: float = GRACE_TIMEOUT_S) -> None:
        """``synchronize_rcu``: return after every section that is open now has ended.

        Raises RcuError inside a section (it would wait for itself), and after ``timeout_s``
        seconds, with the names of the threads that are still inside."""
        self._refuse_inside("synchronize_rcu")
        bell = Lock()
        bell.acquire()
        stamp = self._enqueue(self._waiters, bell.release)
        self._ring()
        if not bell.acquire(timeout=timeout_s):
            raise RcuError(f"synchronize_rcu: {self._blocking(stamp)} after {timeout_s:g} s")
        self._run()

    def drain(self, timeout_s: float = GRACE_TIMEOUT_S) -> None:
        """``drain_call_rcu``: return after every callback registered before has been run.

        Raises RcuError inside a section or a callback, and after ``timeout_s`` seconds."""
        self._refuse_inside("drain_call_rcu")
        if self._runner == get_ident():
            raise RcuError("drain_call_rcu inside a callback would wait for that callback")
        bell = Lock()
        bell.acquire()
        # Callbacks are run in order, so when this one is run the others have been.
        stamp = self._enqueue(self._calls, bell.release)
        while self._run() and bell.locked():
            pass
        if not bell.acquire(timeout=timeout_s):
            raise RcuError(f"drain_call_rcu: {self._blocking(stamp)} after {timeout_s:g} s")

    @property
    def pending(self) -> int:
        """Callbacks that wait for their grace period, or to be run after it."""
        return len(self._calls)

    def _enqueue(self, queue: deque[_Call], act: Callable[[], object]) -> int:
        call = _Call(act)
        with self._lock:
            self.clock = call.stamp = self.clock + 1
            queue.append(call)
        return call.stamp

    def _over(self) -> int:
        """Every call stamped with this or less is due, now and for ever."""
        # The clock is read first: a section that the loop does not see yet begins later than
        # every call stamped up to here, and so cannot hold what those calls reclaim.
        oldest = self.clock
        for reader in self._readers:
            epoch = reader.epoch
            if epoch and epoch < oldest:
                oldest = epoch
        return oldest

    def _due(self, queue: deque[_Call]) -> bool:
        try:
            return queue[0].stamp <= self._over()
        except IndexError:
            return False

    def _ring(self) -> None:
        """Wake everybody whose grace period is over."""
        waiters = self._waiters
        while self._due(waiters) and self._ringing.acquire(blocking=False):
            try:
                while self._due(waiters):
                    waiters.popleft().act()
            finally:
                self._ringing.release()

    def _run(self) -> bool:
        """Run the callbacks that are due, unless somebody is at it. Whether some may be left
        because of ``MAX_CALLBACKS``."""
        errors: list[Exception] = []
        left = MAX_CALLBACKS
        while left and self._due(self._calls) and self._running.acquire(blocking=False):
            self._runner = get_ident()
            try:
                left = self._run_due(left, errors)
            finally:
                self._runner = 0
                self._running.release()
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise ExceptionGroup("several RCU callbacks failed", errors)
        return not left

    def _run_due(self, left: int, errors: list[Exception]) -> int:
        calls, reader = self._calls, self._local.reader
        over = 0
        while left and calls:
            if calls[0].stamp > over:
                over = self._over()
                if calls[0].stamp > over:
                    break
            left -= 1
            act = calls.popleft().act
            try:
                act()
                if reader.epoch:
                    reader.inner = reader.epoch = 0
                    raise RcuError(f"RCU callback {act!r} left a read section open")
            except Exception as error:
                errors.append(error)
        return left

    def _refuse_inside(self, what: str) -> None:
        if self._local.reader.epoch:
            raise RcuError(f"{what} inside an RCU section would wait for that section's end")

    def _blocking(self, stamp: int) -> str:
        names = sorted(each.thread.name for each in self._readers if 0 < each.epoch < stamp)
        if not names:
            return "a callback is still running"
        return f"still in a read section: {', '.join(map(repr, names))}"


#: The process's domain.
RCU = Rcu()


class RcuGuard:
    """A read section as an object: entered on construction, left by ``release`` or at the end
    of a ``with``, exactly once, by the thread that made it.

    Guards of one thread nest and overlap in any order; the section lasts until the last one is
    released. A guard that is dropped without release leaves its section, with a ResourceWarning
    and only in its own thread, as a destructor would; anywhere else the section stays open.
    """

    __slots__ = ("__weakref__", "_active", "_reader", "rcu")

    def __init__(self, rcu: Rcu = RCU) -> None:
        self._active = False
        self.rcu = rcu
        self._reader = rcu.reader()
        self._reader.lock()
        self._active = True

    @property
    def active(self) -> bool:
        """Whether it has not been released yet."""
        return self._active

    def check(self) -> None:
        """Raise RcuError when it was released, or belongs to another thread."""
        if not self._active:
            raise RcuError("this RcuGuard was released: what was read through it may be gone")
        if self._reader is not self.rcu._local.reader:
            raise RcuError(
                f"this RcuGuard belongs to thread {self._reader.thread.name!r}, "
                f"not to {current_thread().name!r}"
            )

    def release(self) -> None:
        """Leave the section. Raises RcuError the second time and on a foreign thread."""
        self.check()
        self._active = False
        self._reader.unlock()

    def __enter__(self) -> RcuGuard:
        self.check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._active:
            self.release()

    def __del__(self) -> None:
        if not self._active:
            return
        self._active = False
        name = self._reader.thread.name
        if self._reader is self.rcu._local.reader and self._reader.epoch:
            self._reader._leave()
        warnings.warn(
            f"an RcuGuard of thread {name!r} was never released", ResourceWarning, stacklevel=2
        )

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("an RcuGuard cannot be copied: it is released exactly once")

    def __repr__(self) -> str:
        state = "active" if self._active else "released"
        return f"<RcuGuard of thread {self._reader.thread.name!r}, {state}>"


class RcuRef(Generic[T]):
    """A reference that is good as long as the guard it was got through (Rust ``&'g T``).

    Attributes, methods, ``len``, iteration, ``[]``, ``in``, ``bool``, ``==`` and ``hash`` are the
    target's; each use raises RcuError after the guard's release and on a foreign thread. What a
    use gives back is not guarded any more: a bound method, say, or an item.
    """

    __slots__ = ("_rcu_guard", "_rcu_target")

    def __init__(self, target: T, guard: RcuGuard) -> None:
        guard.check()
        self._rcu_target = target
        self._rcu_guard = guard

    def deref(self) -> T:
        """The target itself, which must not be kept beyond the section."""
        self._rcu_guard.check()
        return self._rcu_target

    def __getattr__(self, name: str) -> Any:
        self._rcu_guard.check()
        return getattr(self._rcu_target, name)

    def __len__(self) -> int:
        return len(cast(Any, self.deref()))

    def __iter__(self) -> Iterator[Any]:
        return self._checked(iter(cast(Any, self.deref())))

    def _checked(self, items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            yield item
            self._rcu_guard.check()

    def __getitem__(self, key: Any) -> Any:
        return cast(Any, self.deref())[key]

    def __contains__(self, item: object) -> bool:
        return item in cast(Any, self.deref())

    def __bool__(self) -> bool:
        return bool(self.deref())

    def __eq__(self, other: object) -> bool:
        return bool(self.deref() == (other.deref() if isinstance(other, RcuRef) else other))

    def __hash__(self) -> int:
        return hash(self.deref())

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("an RcuRef cannot be copied; copy what deref() gives")

    def __repr__(self) -> str:
        # Never raises, and does not look at what may be gone: this is for tracebacks.
        if self._rcu_guard.active:
            return f"<RcuRef to a {type(self._rcu_target).__name__}>"
        return f"<RcuRef to a {type(self._rcu_target).__name__}, its section is over>"


class RcuCell(Generic[T]):
    """Where a writer publishes a value for readers; None is the null pointer.

    Readers and writers of one cell use one domain: ``rcu``.
    """

    __slots__ = ("_lock", "_value", "rcu")

    def __init__(self, value: T | None = None, rcu: Rcu = RCU) -> None:
        self._value = value
        self._lock = Lock()
        self.rcu = rcu

    def raw_get(self) -> T | None:
        """``qatomic_rcu_read`` without a guard: for writers, and inside a section."""
        return self._value

    def get(self, guard: RcuGuard) -> RcuRef[T] | None:
        """The value, bounded by ``guard``. Raises RcuError when that is no guard of the calling
        thread, of this domain, that is still active."""
        if guard.rcu is not self.rcu:
            raise RcuError("this RcuGuard is of another domain than the cell")
        guard.check()
        value = self._value
        return None if value is None else RcuRef(value, guard)

    def set(self, new: T | None) -> T | None:
        """Publish ``new`` (``qatomic_rcu_set``) and give back the old value, which readers may
        still see: reclaim it by ``call_rcu``. Two writers never get the same old value."""
        with self._lock:
            old, self._value = self._value, new
        return old

    def __repr__(self) -> str:
        return f"<RcuCell of {type(self._value).__name__}>"


# -- the process's domain by QEMU's names ----------------------------------------------------


def rcu_read_lock() -> None:
    """Enter a section; every call needs its ``rcu_read_unlock``. ``RcuGuard`` is safer."""
    RCU.reader().lock()


def rcu_read_unlock() -> None:
    """Leave a section. Raises RcuError outside one."""
    RCU.reader().unlock()


def rcu_read_lock_held() -> bool:
    """Whether the calling thread is in a section."""
    return RCU.held()


def assert_rcu_read_lock_held() -> None:
    """Raise RcuError unless the calling thread is in a section."""
    RCU.assert_held()


def call_rcu(func: Callable[[], object]) -> None:
    """Run ``func()`` after every section that is open now has ended; see ``Rcu.call``."""
    RCU.call(func)


def synchronize_rcu(timeout_s: float = GRACE_TIMEOUT_S) -> None:
    """Return after every section that is open now has ended; see ``Rcu.synchronize``."""
    RCU.synchronize(timeout_s)


def drain_call_rcu(timeout_s: float = GRACE_TIMEOUT_S) -> None:
    """Return after every callback registered before has been run; see ``Rcu.drain``."""
    RCU.drain(timeout_s)
