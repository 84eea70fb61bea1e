"""GuestAddressSpace: where a memory map is to be had, whole and unchanging."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Generic, Self, TypeVar

#: What a snapshot gives: some GuestMemory.
M_co = TypeVar("M_co", covariant=True)


class GuestAddressSpace(ABC, Generic[M_co]):
    """Somewhere a map is to be had (``src/guest_memory.rs``). Every GuestMemory is one of
    itself, as references to it are in Rust; ``GuestMemoryAtomic`` is one whose map is replaced
    now and then; the model's AddressSpace (``rust_binding``) another."""

    __slots__ = ()

    @abstractmethod
    def memory(self) -> AbstractContextManager[M_co]:
        """A snapshot: ``with space.memory() as mem:`` accesses the map of this moment, whatever
        comes later."""

    def clone(self) -> Self:
        """The same for another user: whoever accesses memory has a clone."""
        return self
