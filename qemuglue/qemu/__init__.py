"""Real QEMU and its channels. It starts, asks and listens; it judges nothing.

====================  ==================================================================
``builds``            the QEMU builds on this host (``builds_apt``, ``builds_install``)
``config``            what to start: :class:`~qemuglue.qemu.config.QemuConfig`
``process``           a running QEMU, owned from start to end
``parked``            the clock runs, the CPUs sleep; ``images`` has their firmware
``qtest``             the access protocol: encode, pipeline, decode
``monitor``           QMP commands, HMP lines, events
``transcript``        QEMU's own account of every access, as text
``events``            the same as typed events
``guest_ram``         guest memory from outside: shared, or through ``/proc``
``dump``              guest memory as QEMU's ELF dump
``plugin``            a TCG plugin that records guest-CPU accesses
``libc``              the few libc calls Python lacks
====================  ==================================================================

What it does not do: no model, no comparison, no verdict. Nothing is imported here, so
that a verb which starts no QEMU pays for none of it.
"""
