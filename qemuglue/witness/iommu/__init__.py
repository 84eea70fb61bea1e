"""IOMMUs: what they make of the addresses that devices use, from their registers and tables.

An IOMMU is a decoded device (``witness.dma.device``): it is told of every write to its registers,
and reads its tables in the model's memory when a device behind it makes an access. What it does
not do: follow IOMMUs whose tables are not described here, or guess at stale translations.

``tables``            what all of them need
``intel``             QEMU's intel-iommu
``intel_registers``   its registers
``intel_walk``        its tables
``intel_queue``       its invalidation queue
``intel_faults``      how it tells of faults
``smmu``              QEMU's SMMUv3
``smmu_decode``       its stream table entries, context descriptors and event records
``smmu_walk``         its tables and its cache
``smmu_queue``        its queues and commands
``virtio``            QEMU's virtio-iommu
"""

from __future__ import annotations

import qemuglue.witness.dma  # noqa: F401 - first: it imports what is here in its own order
