"""IommuMemory: guest memory at I/O addresses, with an IOMMU between them and the physical ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Generic, Self, TypeVar

from qemuglue.memory.bitmap import NO_BITMAP, Bitmap
from qemuglue.memory.guest_address import GuestAddress
from qemuglue.memory.guest_error import GuestAddressOverflow, IommuError
from qemuglue.memory.guest_memory.backend import GuestMemoryBackend
from qemuglue.memory.guest_memory.iommu import Iommu, TranslationError
from qemuglue.memory.guest_memory.iotlb import MappedRange
from qemuglue.memory.guest_memory.memory import GuestMemory
from qemuglue.memory.guest_memory.permissions import Permissions
from qemuglue.memory.volatile import VolatileSlice

M = TypeVar("M", bound=GuestMemoryBackend[Any])
I = TypeVar("I", bound=Iommu)  # noqa: E741 - the crate's name for it


class IommuMemory(GuestMemory, Generic[M, I]):
    """``backend`` as it is seen through ``iommu`` (vm-memory 0.18, ``src/iommu.rs``).

    While the IOMMU is enabled an address is an I/O address: the IOMMU is asked for all of an
    access before any of it is done, and what it refuses is IommuError, nothing moved. What it
    allows and the backend does not have is the backend's error, at the *physical* address, and
    what was moved before stays moved. While it is disabled this is ``backend``, and permissions
    mean nothing.

    Two bitmaps remember what is written, never both: while the IOMMU is enabled ``bitmap``, at
    the I/O address, and while it is not the backend's own, at the place in the region. That is
    what vhost-user wants. The slices of an access know to which they belong for as long as they
    are held.

    Differs from QEMU's ``address_space_rw`` behind an IOMMU in all of this: that translates page
    by page while it goes, drops what is refused and does the rest, and marks the memory that is
    written, not the address it was reached at.
    """

    __slots__ = ("_backend", "_bitmap", "_iommu", "_use_iommu")

    def __init__(
        self, backend: M, iommu: I, use_iommu: bool = True, bitmap: Bitmap = NO_BITMAP
    ) -> None:
        self._backend = backend
        self._iommu = iommu
        self._use_iommu = use_iommu
        self._bitmap = bitmap

    @classmethod
    def new(cls, backend: M, iommu: I, use_iommu: bool, bitmap: Bitmap) -> Self:
        """The same as the constructor."""
        return cls(backend, iommu, use_iommu, bitmap)

    def with_replaced_backend(self, new_backend: M) -> Self:
        """Another one over ``new_backend``. IOMMU and bitmap are shared between the two; whether
        the IOMMU is enabled is each one's own from now on."""
        return type(self)(new_backend, self._iommu, self._use_iommu, self._bitmap)

    def clone(self) -> Self:
        """Another one over the same backend; see ``with_replaced_backend``."""
        return self.with_replaced_backend(self._backend)

    def bitmap(self) -> Bitmap:
        """What was written at which I/O address while the IOMMU was enabled."""
        return self._bitmap

    def set_iommu_enabled(self, enabled: bool) -> None:
        """Enable or disable the IOMMU, for accesses that begin from now on."""
        self._use_iommu = enabled

    def get_iommu_enabled(self) -> bool:
        """Whether the IOMMU is enabled."""
        return self._use_iommu

    def iommu(self) -> I:
        """The IOMMU, also while it is disabled."""
        return self._iommu

    def get_backend(self) -> M:
        """The physical memory, also while the IOMMU is enabled."""
        return self._backend

    def physical_memory(self) -> M | None:
        """The physical memory while the IOMMU is disabled; None while it is enabled."""
        return None if self._use_iommu else self._backend

    def check_range(self, addr: GuestAddress, count: int, access: Permissions) -> bool:
        """Whether the IOMMU allows ``access`` to all of the range and there is memory behind it;
        disabled, whether there is memory. To ask an IOMMU may change what it knows."""
        if not self._use_iommu:
            return self._backend.check_range(addr, count)
        try:
            translated = self._iommu.translate(addr, count, access)
        except TranslationError:
            return False
        return all(self._backend.check_range(each.base, each.length) for each in translated)

    def get_slices(
        self, addr: GuestAddress, count: int, access: Permissions
    ) -> Iterator[VolatileSlice]:
        """As ``GuestMemory``. The range is translated here and now, whenever the slices are
        taken; raises IommuError."""
        if not self._use_iommu:
            return self._backend.get_slices(addr, count)
        try:
            translated = self._iommu.translate(addr, count, access)
        except TranslationError as error:
            raise IommuError(error) from error
        return self._slices(addr, translated)

    def _slices(
        self, iova: GuestAddress, translated: Iterable[MappedRange]
    ) -> Iterator[VolatileSlice]:
        # A generator that raises has ended: there is nothing behind the first error.
        for each in translated:
            for piece in self._backend.get_slices(each.base, each.length):
                here = piece.replace_bitmap(self._bitmap.slice_at(iova.raw_value()))
                iova, over = iova.overflowing_add(piece.len())
                # Only an IOMMU that answers with more than it was asked for gets here.
                if over and iova.raw_value():
                    raise GuestAddressOverflow
                yield here

    def __repr__(self) -> str:
        state = "on" if self._use_iommu else "off"
        return f"<IommuMemory {state}: {self._iommu!r} before {self._backend!r}>"
