"""vm-memory's guest memory: regions, what is made of them, and who may replace it.

Names, methods and rules are those of vm-memory 0.18; every region lives in a ``Backing``, so that
the same code runs over plain bytes, mapped memory, another process's memory and devices. This
package does not read files or map memory: who has a file gives its backing.

Three traits were renamed at 0.18. Code and texts written for older versions mean:

==========================  ==============================  ===================================
up to 0.17                  from 0.18, and here             what it is
==========================  ==============================  ===================================
``GuestMemory``             ``GuestMemoryBackend``          regions, and nothing between them
                                                            and their addresses
``IoMemory``                ``GuestMemory``                 memory behind addresses that may be
                                                            translated, with permissions
``GuestMemoryMmap``'s own   ``GuestRegionCollection``'s     insert, remove, find (the generic
methods (to 0.16)                                           collection is of 0.17)
``Bytes::read_from`` …      ``read_volatile_from`` …        streams (gone since 0.17)
``GuestMemory::try_access`` ``get_slices``                  piece by piece (deprecated, kept)
==========================  ==============================  ===================================

====================  ======================================================================
``region``            GuestMemoryRegion, and GuestRegion over a Backing
``backend``           GuestMemoryBackend: regions and their slices
``collection``        GuestRegionCollection: the sorted set, and its errors
``memory``            GuestMemory: ``Bytes`` over whatever has slices
``address_space``     GuestAddressSpace: where a map is to be had
``atomic``            GuestMemoryAtomic: a map that is replaced while others use it
``mmap``              GuestMemoryMmap and its regions, with their errors
``file_offset``       a file and where in it
``permissions``       what an access wants and a mapping grants
``iotlb``, ``iommu``  translation, and what it remembers
``iommu_memory``      GuestMemory behind an IOMMU
``model_iommu``       an Iommu that translates as an IOMMU region of the model does
====================  ======================================================================
"""

from qemuglue.memory.guest_memory.address_space import GuestAddressSpace
from qemuglue.memory.guest_memory.atomic import (
    GuestMemoryAtomic,
    GuestMemoryExclusiveGuard,
    GuestMemoryLoadGuard,
)
from qemuglue.memory.guest_memory.backend import (
    GuestMemoryBackend,
    GuestMemoryBackendSliceIterator,
)
from qemuglue.memory.guest_memory.collection import (
    GuestRegionCollection,
    GuestRegionCollectionError,
    MemoryRegionOverlap,
    NoMemoryRegion,
    UnsortedMemoryRegions,
)
from qemuglue.memory.guest_memory.file_offset import FileOffset
from qemuglue.memory.guest_memory.iommu import (
    CannotResolve,
    Fragmented,
    Iommu,
    IommuMisconfigured,
    TranslationError,
)
from qemuglue.memory.guest_memory.iommu_memory import IommuMemory
from qemuglue.memory.guest_memory.iotlb import (
    Iotlb,
    IotlbFails,
    IotlbIterator,
    IovaRange,
    MappedRange,
)
from qemuglue.memory.guest_memory.mapped_file import BackingFile, MappableFile
from qemuglue.memory.guest_memory.memory import GuestMemory, stop_on_error
from qemuglue.memory.guest_memory.mmap import (
    GuestMemoryMmap,
    GuestRegionMmap,
    MmapRegion,
    MmapRegionBuilder,
)
from qemuglue.memory.guest_memory.mmap_error import (
    FromRangesCollection,
    FromRangesError,
    FromRangesMmapRegion,
    InvalidGuestRegion,
    InvalidPointer,
    MapFixed,
    MappingPastEof,
    Mmap,
    MmapRegionError,
)
from qemuglue.memory.guest_memory.model_iommu import ModelIommu
from qemuglue.memory.guest_memory.permissions import Permissions
from qemuglue.memory.guest_memory.region import (
    GuestMemoryRegion,
    GuestMemoryRegionBytes,
    GuestRegion,
)

__all__ = [
    "BackingFile",
    "CannotResolve",
    "FileOffset",
    "Fragmented",
    "FromRangesCollection",
    "FromRangesError",
    "FromRangesMmapRegion",
    "GuestAddressSpace",
    "GuestMemory",
    "GuestMemoryAtomic",
    "GuestMemoryBackend",
    "GuestMemoryBackendSliceIterator",
    "GuestMemoryExclusiveGuard",
    "GuestMemoryLoadGuard",
    "GuestMemoryMmap",
    "GuestMemoryRegion",
    "GuestMemoryRegionBytes",
    "GuestRegion",
    "GuestRegionCollection",
    "GuestRegionCollectionError",
    "GuestRegionMmap",
    "InvalidGuestRegion",
    "InvalidPointer",
    "Iommu",
    "IommuMemory",
    "IommuMisconfigured",
    "Iotlb",
    "IotlbFails",
    "IotlbIterator",
    "IovaRange",
    "MapFixed",
    "MappableFile",
    "MappedRange",
    "MappingPastEof",
    "MemoryRegionOverlap",
    "Mmap",
    "MmapRegion",
    "MmapRegionBuilder",
    "MmapRegionError",
    "ModelIommu",
    "NoMemoryRegion",
    "Permissions",
    "TranslationError",
    "UnsortedMemoryRegions",
    "stop_on_error",
]
