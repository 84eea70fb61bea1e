"""qemuglue: what a QEMU memory access should have done, and whether it did.

It launches real QEMU, mirrors its memory tree into a Python model, performs accesses in
QEMU and in the model, and compares. The rooms, each importing only from those before it:

=============  =========================================================================
``errors``     the one error tree
``memory``     the model: QEMU's memory API as executable rules; pure
``program``    sequences of operations: text, bytes, generation, mutation; pure
``qemu``       real QEMU and its channels: builds, process, qtest, monitor, transcript
``mirror``     ``info mtree`` text into a model, kept equal to the running QEMU
``witness``    lock-step comparison: predict, perform, collect accounts, judge
``campaign``   targets, feedback, corpus, findings, resume
``report``     terminal, JSON, JUnit
``cli``        one module a verb
=============  =========================================================================
"""

__version__ = "0.1.0"
