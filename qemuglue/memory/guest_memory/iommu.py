"""Iommu: what turns an I/O address into addresses of physical memory, and how that fails.

::

    ModelError
    └── TranslationError
        ├── CannotResolve       some of the range leads nowhere (iova_range, reason)
        ├── Fragmented          the range is not one piece behind it (iova_range, continuous_length)
        └── IommuMisconfigured  nothing can be translated (reason)

Names and fields are those of ``iommu::Error`` in vm-memory 0.18 (``src/iommu.rs``). An access
through an ``IommuMemory`` raises them as ``IommuError``, which is a GuestMemoryError.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from qemuglue.errors import ModelError
from qemuglue.memory.guest_address import GuestAddress
from qemuglue.memory.guest_memory.iotlb import IotlbIterator, IovaRange, MappedRange
from qemuglue.memory.guest_memory.permissions import Permissions


class TranslationError(ModelError):
    """Root of these errors; never raised itself."""


class CannotResolve(TranslationError):
    """``iova_range``, the access or the part of it that is at fault, cannot be translated.
    ``reason`` is for people."""

    def __init__(self, iova_range: IovaRange, reason: str) -> None:
        self.iova_range = iova_range
        self.reason = reason
        super().__init__(iova_range, reason)

    def __str__(self) -> str:
        return f"I/O addresses {self.iova_range} cannot be translated: {self.reason}"


class Fragmented(TranslationError):
    """``iova_range`` was to be one piece of physical memory, and only its first
    ``continuous_length`` bytes are. Nothing in the crate raises it; ``Iommu.translate_whole``
    does here."""

    def __init__(self, iova_range: IovaRange, continuous_length: int) -> None:
        self.iova_range = iova_range
        self.continuous_length = continuous_length
        super().__init__(iova_range, continuous_length)

    def __str__(self) -> str:
        return (
            f"only the first {self.continuous_length:#x} bytes of I/O addresses"
            f" {self.iova_range} are in one piece"
        )


class IommuMisconfigured(TranslationError):
    """The IOMMU is set up in a way that lets it translate nothing. ``reason`` is for people."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)

    def __str__(self) -> str:
        return f"the IOMMU is not set up to translate: {self.reason}"


class Iommu(ABC):
    """Translates I/O addresses.

    Most keep an ``Iotlb``, answer from that, ask whoever knows all mappings (a vhost-user front
    end, tables in guest memory) for what it lacks, and answer from it again. Several threads may
    translate at once.
    """

    @abstractmethod
    def translate(
        self, iova: GuestAddress, length: int, access: Permissions
    ) -> IotlbIterator:
        """The ranges of physical memory that ``length`` bytes at ``iova`` are, all of them
        allowed for ``access``. Raises TranslationError, and then nothing is to be accessed."""

    def translate_whole(
        self, iova: GuestAddress, length: int, access: Permissions
    ) -> MappedRange:
        """The one range that ``length`` bytes, at least 1, at ``iova`` are; the crate has the
        error for that, not the method. Ranges that follow each other are taken for one. Raises
        Fragmented, and what ``translate`` does."""
        if length < 1:
            raise ModelError("no bytes are no range of memory")
        found = self.translate(iova, length, access)
        first = next(found)
        size = first.length
        for each in found:
            if each.base != first.base.overflowing_add(size)[0]:
                raise Fragmented(IovaRange(iova, length), size)
            size += each.length
        return MappedRange(first.base, size)
