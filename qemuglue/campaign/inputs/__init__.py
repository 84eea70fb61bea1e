"""Targets without a machine: bytes go in, and nothing wrong may come out.

``text`` gives them to the parsers of QEMU's words, ``model`` to the algebra of the memory model. A
``subject`` says what one of them is; ``faults`` what is found and recorded; ``engine`` is one
process of it and ``campaign`` the parent of several.
"""
