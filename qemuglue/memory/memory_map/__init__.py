"""The first rust-vmm memory model: a map from guest addresses to mappings, and bytes over it.

Source: the seed of vm-memory (Paolo Bonzini, rust-vmm 2019-02-11, on RFC v2 of memory-model) and
the code it came from (Firecracker's ``memory_model`` crate). Two parts, as the seed asks: a very
simple ``MemoryMap``, and one contract for bytes that a mapping (by offset) and guest memory (by
address) share. It does not know devices or a FlatView: a region here is bytes of any Backing.

====================  ======================================================================
``region_map``        MemoryMap: ``do_in_region``, ``do_in_region_partial``; RegionMap
``lookup``            which region an address is in: the protocol
``linear``            one after the other
``bisected``          binary search
``radix``             radix tree
``contract``          MapBytes: ``Bytes`` and the exact streams
``mapping``           MemoryMapping: MapBytes by offset
``guest_memory``      GuestMemory: MapBytes by guest address
``error``             what can go wrong
====================  ======================================================================

Names that changed, and what became of them::

    first model               seed               vm-memory 0.18             here
    write_slice (mapping)     write_slice        write                      write
    write_slice_at_addr       write_slice        write                      both
    write_obj_at_addr         write_obj          write_obj                  both
    read_obj_from_addr        read_obj           read_obj                   both
    read_to_memory            read_to_memory     read_exact_volatile_from   both
    write_from_memory         write_from_memory  write_all_volatile_to      both
    end_addr (exclusive)                         last_addr (inclusive)      both
    do_in_region              do_in_region       get_slice                  do_in_region
    do_in_region_partial      (the same)         try_access, get_slices     do_in_region_partial

What is different from vm-memory 0.18 (``guest_memory``), each tested side by side:

- ``write`` and ``read`` end with their region. 0.18 goes on in the next one if it adjoins (address
  0 adjoins the last). So ``write_slice`` across two regions is PartialBuffer here and done there.
- ``write_obj`` and ``read_obj`` across the end of a region are InvalidGuestAddressRange and move
  nothing. 0.18 goes on in the next region, and in a hole tells PartialBuffer and leaves the part
  it wrote.
- ``store`` and ``load`` there are InvalidGuestAddressRange as well; 0.18: InvalidBackendAddress.
- An exact stream across the end of a region takes nothing from its source; 0.18 goes on, and in
  a hole has taken what fitted. A stream that ends early is MemoryAccess around ReadFromSource,
  which tells how much was moved.
- A stream of no bytes, and ``write_slice_at_addr`` of none, are refused in a hole; 0.18 does
  nothing there for an empty one of anything, and so do ``write`` and ``read`` here.
- A region's own error is MemoryAccess, which tells the address; 0.18 passes it on.
- Unsorted regions are MemoryRegionOverlap; 0.18 has UnsortedMemoryRegions for them.
"""

from qemuglue.memory.memory_map.bisected import BisectLookup
from qemuglue.memory.memory_map.contract import MapBytes
from qemuglue.memory.memory_map.error import (
    InvalidAddress,
    InvalidGuestAddressRange,
    InvalidRange,
    MemoryAccess,
    MemoryMapError,
    MemoryMappingFailed,
    MemoryRegionOverlap,
    NoMemoryRegions,
    ReadFromSource,
    WriteToDestination,
)
from qemuglue.memory.memory_map.guest_memory import GuestMemory
from qemuglue.memory.memory_map.linear import LinearLookup
from qemuglue.memory.memory_map.lookup import Lookup, LookupMaker, Span
from qemuglue.memory.memory_map.mapping import MemoryMapping
from qemuglue.memory.memory_map.radix import RadixLookup
from qemuglue.memory.memory_map.region_map import MemoryMap, MemoryRegion, RegionMap

__all__ = [
    "BisectLookup",
    "GuestMemory",
    "InvalidAddress",
    "InvalidGuestAddressRange",
    "InvalidRange",
    "LinearLookup",
    "Lookup",
    "LookupMaker",
    "MapBytes",
    "MemoryAccess",
    "MemoryMap",
    "MemoryMapError",
    "MemoryMapping",
    "MemoryMappingFailed",
    "MemoryRegion",
    "MemoryRegionOverlap",
    "NoMemoryRegions",
    "RadixLookup",
    "ReadFromSource",
    "RegionMap",
    "Span",
    "WriteToDestination",
]
