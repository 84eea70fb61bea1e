"""GuestMemoryAtomic: a memory map that is replaced as a whole while others use it.

Who wants to access memory takes ``memory()``, a snapshot; who changes the map takes ``lock()``,
makes a new map and ``replace``s the old one. A snapshot taken before shows the old map for as
long as it is held; every later one shows the new. Readers never wait (``src/atomic.rs``; an
assignment of a reference is atomic in Python, which is what arc-swap is for in Rust).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from qemuglue.errors import ModelError
from qemuglue.memory.guest_address import GuestAddress
from qemuglue.memory.guest_memory.address_space import GuestAddressSpace
from qemuglue.memory.guest_memory.backend import GuestMemoryBackend
from qemuglue.memory.guest_memory.memory import GuestMemory
from qemuglue.memory.guest_memory.permissions import Permissions
from qemuglue.memory.volatile import VolatileSlice

M = TypeVar("M", bound=GuestMemory)


class _Shared(Generic[M]):
    """What the clones of one GuestMemoryAtomic share."""

    __slots__ = ("holder", "lock", "map")

    def __init__(self, map_: M) -> None:
        self.map = map_
        self.lock = threading.Lock()
        #: The thread that holds ``lock``; None while nobody does.
        self.holder: int | None = None


class GuestMemoryAtomic(GuestAddressSpace[M]):
    """A place for a map. ``clone`` is another name of the same place, for another device."""

    __slots__ = ("_shared",)

    def __init__(self, map: M) -> None:
        if not isinstance(map, GuestMemory):
            raise ModelError(f"a memory map is a GuestMemory, not {type(map).__name__}")
        self._shared = _Shared(map)

    @classmethod
    def new(cls, map: M) -> GuestMemoryAtomic[M]:
        """The constructor."""
        return GuestMemoryAtomic(map)

    def clone(self) -> Self:
        """Another name of the same place: a map replaced in one is replaced in both."""
        made = object.__new__(type(self))
        made._shared = self._shared
        return made

    def memory(self) -> GuestMemoryLoadGuard[M]:
        """The map of this moment."""
        return GuestMemoryLoadGuard(self._shared.map)

    def lock(self) -> GuestMemoryExclusiveGuard[M]:
        """The right to replace the map, which one thread has at a time: waits until others gave
        it back. Raises ModelError where the waiting thread itself holds it, and would wait for
        ever. Differs from Rust in that an exception while it is held poisons nothing: the map
        is then the old one, and whole."""
        if self._shared.holder == threading.get_ident():
            raise ModelError("this thread holds the lock of the memory map already")
        self._shared.lock.acquire()
        self._shared.holder = threading.get_ident()
        return GuestMemoryExclusiveGuard(self._shared)

    def __repr__(self) -> str:
        return f"<GuestMemoryAtomic of {self._shared.map!r}>"


class GuestMemoryLoadGuard(GuestMemory, Generic[M]):
    """A snapshot: the map that was there when it was taken, kept alive by it.

    It is that map (Rust: ``Deref``): every method of the map works on the guard, and
    ``with guard as map:`` gives the map itself.
    """

    __slots__ = ("_map",)

    def __init__(self, map: M) -> None:
        self._map: M | None = map

    def deref(self) -> M:
        """The map. Raises ModelError after ``into_inner``."""
        if self._map is None:
            raise ModelError("the guard gave its map away (into_inner)")
        return self._map

    def into_inner(self) -> M:
        """The map, for longer than the guard: the guard is used up."""
        inner = self.deref()
        self._map = None
        return inner

    def clone(self) -> Self:
        """Another guard of the same map, also where it was replaced meanwhile."""
        return type(self)(self.deref())

    def check_range(
        self, addr: GuestAddress, count: int, access: Permissions = Permissions.ReadWrite
    ) -> bool:
        return self.deref().check_range(addr, count, access)

    def get_slices(
        self, addr: GuestAddress, count: int, access: Permissions = Permissions.ReadWrite
    ) -> Iterator[VolatileSlice]:
        return self.deref().get_slices(addr, count, access)

    def physical_memory(self) -> GuestMemoryBackend[Any] | None:
        return self.deref().physical_memory()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.deref(), name)

    def __enter__(self) -> M:  # type: ignore[override]
        return self.deref()

    def __repr__(self) -> str:
        return f"<GuestMemoryLoadGuard of {self._map!r}>"


class GuestMemoryExclusiveGuard(Generic[M]):
    """The right to replace a map: ``with space.lock() as guard: guard.replace(new)``. It is given
    back by ``replace``, at the end of ``with``, by ``release`` and with the guard itself."""

    __slots__ = ("_shared",)

    def __init__(self, shared: _Shared[M]) -> None:
        self._shared: _Shared[M] | None = shared

    def replace(self, map: M) -> None:
        """Put ``map`` in the place of the old one and give the right back. Raises ModelError for
        what is no GuestMemory, and where the right was given back before."""
        if self._shared is None:
            raise ModelError("the lock of the memory map was given back already")
        if not isinstance(map, GuestMemory):
            raise ModelError(f"a memory map is a GuestMemory, not {type(map).__name__}")
        self._shared.map = map
        self.release()

    def release(self) -> None:
        """Give the right back; idempotent."""
        shared, self._shared = self._shared, None
        if shared is not None:
            shared.holder = None
            shared.lock.release()

    def __enter__(self) -> GuestMemoryExclusiveGuard[M]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()
