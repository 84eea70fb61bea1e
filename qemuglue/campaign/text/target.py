"""The fuzz target ``text``: QEMU's words are untrusted, whatever channel they come by.

The first byte of an input chooses the parser (``text/parsers.PARSERS``), the rest is the text.
It needs no QEMU. Whatever text: a value or a ProtocolError of one sentence, in a time and with
a memory in proportion; anything else is a finding with the signature
``text:PARSER:WHAT``, WHAT being the exception that escaped, the rule that was broken, or
``slow``.
"""

from __future__ import annotations

from functools import partial

from qemuglue.campaign.inputs.subject import Fact, Subject
from qemuglue.campaign.text.damage import MAX_SIZE, damaged
from qemuglue.campaign.text.parsers import chosen, run_parser

NAME = "text"

_NODE = b"  0000000000000000-00000000000000ff (prio 0, i/o): "
_TREE = (b"address-space: memory\n" + _NODE + b"system orphan\n  " + _NODE.replace(b"0ff", b"07f")
         + b"alias a @b 0000000000000000-000000000000007f\n\nmemory-region: b\n" + _NODE + b"b\n\n")
_FLAT = (b'FlatView #0\n AS "memory", root: system\n Root memory region: system\n'
         b"  0000000000000000-000000000000007f (prio 0, i/o): b\n\n")
#: One input for each parser: enough to begin with where there is no corpus.
SEEDS = (
    b"t" + _TREE, b"f" + _FLAT, b"m" + _TREE + b"\x1e" + _FLAT,
    b"ememory_region_ops_read cpu -1 mr 0x1 addr 0x2 value 0x3 size 1 name 'a'\n",
    b"eInvalid read at addr 0x82, size 2, region 'edu', reason: invalid size (min:4 max:8)\n",
    b"q\x01OK 0x00", b"q\x00OK", b"x\x01OK\nOK 0x0000000000000000\n",
    b'j\0{"return": "text", "id": "__qmp#00000"}\r\n', b"hq35 a board (alias of pc-q35)\n",
    b"vQEMU emulator version 10.0.2 (Debian 1:10.0.2)\n",
    b"gHost virtual address for 0x1000 (pc.ram) is 0x7f0000001000\n",
    b"p\x000000000000001000: 0x00\n", b"d\x7fELF\x02\x01\x01", b"rqg_limit 5\n",
    b"sERROR:hw/a.c:1:f: assertion failed: (a)\n",
)


def _chosen(data: bytes) -> tuple[str, partial[Fact]]:
    name, parse = chosen(data)
    return name, partial(run_parser, name, parse)


SUBJECT = Subject(NAME, _chosen, SEEDS, damaged, MAX_SIZE)
