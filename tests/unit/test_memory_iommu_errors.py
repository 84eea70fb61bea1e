"""The ways in which an IOMMU does not translate: their data, and how they reach who accesses."""

from __future__ import annotations

import pickle

import pytest

from qemuglue.memory.backing import ByteBacking
from qemuglue.memory.guest_address import GuestAddress
from qemuglue.memory.guest_error import GuestMemoryError, IommuError
from qemuglue.memory.guest_memory.collection import GuestRegionCollection
from qemuglue.memory.guest_memory.iommu import (
    CannotResolve,
    Fragmented,
    Iommu,
    IommuMisconfigured,
    TranslationError,
)
from qemuglue.memory.guest_memory.iommu_memory import IommuMemory
from qemuglue.memory.guest_memory.iotlb import IotlbIterator, IovaRange
from qemuglue.memory.guest_memory.permissions import Permissions
from qemuglue.memory.guest_memory.region import GuestRegion

MEMORY = GuestRegionCollection.from_regions([GuestRegion(0x4000, ByteBacking(128))])


class Failing(Iommu):
    """Translates nothing."""

    def __init__(self, error: TranslationError) -> None:
        self.error = error

    def translate(self, iova: GuestAddress, length: int, access: Permissions) -> IotlbIterator:
        raise self.error


@pytest.mark.parametrize(("error", "fields", "words"), [
    (CannotResolve(IovaRange(GuestAddress(0x1000), 0x20), "because"),
     {"iova_range": IovaRange(GuestAddress(0x1000), 0x20), "reason": "because"},
     "I/O addresses 0x1000+0x20 cannot be translated: because"),
    (Fragmented(IovaRange(GuestAddress(0x1000), 0x20), 7),
     {"iova_range": IovaRange(GuestAddress(0x1000), 0x20), "continuous_length": 7},
     "only the first 0x7 bytes of I/O addresses 0x1000+0x20 are in one piece"),
    (IommuMisconfigured("no table"), {"reason": "no table"},
     "the IOMMU is not set up to translate: no table"),
])
def test_every_way_to_fail_has_its_data_and_reaches_the_caller(
    error: TranslationError, fields: dict[str, object], words: str
) -> None:
    assert {name: getattr(error, name) for name in fields} == fields and str(error) == words
    memory = IommuMemory(MEMORY, Failing(error))
    with pytest.raises(IommuError) as caught:
        memory.read(bytearray(4), GuestAddress(0x1000))
    assert caught.value.error is error and str(caught.value) == words
    assert isinstance(caught.value, GuestMemoryError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again.error) is type(error) and str(again) == words
    assert {name: getattr(again.error, name) for name in fields} == fields
    assert not memory.check_range(GuestAddress(0x1000), 4, Permissions.Read)
