"""The target ``model``: the memory model by itself, against naive oracles; no QEMU needed."""
