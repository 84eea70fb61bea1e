"""QEMU's own account of what guest CPUs did: a TCG plugin, compiled here, and its records.

``build`` compiles ``access_log.c`` on first use and writes the value of ``-plugin``; ``records``
reads the plugin's lines out of QEMU's log and compares them with the trace lines around them.
This package starts no QEMU and judges no access against the model.
"""

from __future__ import annotations

from qemuglue.qemu.plugin.build import LOG_ITEM, library, plugin_argument
from qemuglue.qemu.plugin.records import Agreement, GuestAccess, agreement, parse, stream

__all__ = [
    "LOG_ITEM", "Agreement", "GuestAccess", "agreement", "library", "parse", "plugin_argument",
    "stream",
]
