"""``check --face``: random operations of a memory API of the field, held against a live QEMU.

=============  ===========================================================================
``check``      one machine: draw, perform, judge, perform again in a fresh QEMU
``jobs``       several machines, each in a process of its own
``draw``       which operation is next, and where
``ops``        the methods of each face, performed
``specs``      what each method owes by QEMU's account; ``specs_vm`` for vm-memory's kin
``designs``    where a face is meant to answer otherwise, by name
``ground``     what lies at an address by QEMU's own view
``run``        one QEMU with the faces on it
``telling``    outcomes in words
``result``     what it came to
``defects``    what can be planted in the faces, to see it found
=============  ===========================================================================
"""
