"""Programs: sequences of operations for one machine. Pure; this room knows no QEMU and no clock.

What is here, by verb: read and write programs (``text``, ``codec``, ``qtest_script``; the two
formats of our own are described in FORMAT.md), make them (``generate``), change them
(``mutate``), shrink them (``minimize``). ``Layout`` says where regions are; the mirror fills it.

What is not: performing an operation (the qemu room), knowing what it should do (memory), and
comparing the two (witness).
"""

from qemuglue.program.codec import decode, encode
from qemuglue.program.generate import (
    DEFAULT_WEIGHTS,
    Generator,
    Weights,
    crosses,
    generate,
    generate_resolved,
    swarm,
)
from qemuglue.program.layout import Layout, Range
from qemuglue.program.minimize import Budget, Minimized, Stop, minimize
from qemuglue.program.mutate import MutateOptions, Mutator, crossover, mutate
from qemuglue.program.operation import Operation, Place, Program, recast, validate
from qemuglue.program.qtest_script import Script, format_command, format_script, parse_script
from qemuglue.program.text import Repair, parse_lenient
from qemuglue.program.text import format as format_text
from qemuglue.program.text import parse as parse_text
from qemuglue.program.verbs import IO, MAX_LENGTH, MEMORY, VERBS, Kind, VerbInfo

__all__ = [  # noqa: RUF022  (ordered by importance)
    # What a program is.
    "Program", "Operation", "Place", "VERBS", "VerbInfo", "Kind", "validate", "recast",
    "MEMORY", "IO", "MAX_LENGTH",
    # Where its places are.
    "Layout", "Range",
    # Reading and writing it.
    "parse_text", "parse_lenient", "Repair", "format_text", "decode", "encode",
    "parse_script", "Script", "format_script", "format_command",
    # Making, changing and shrinking it.
    "generate", "generate_resolved", "Generator", "Weights", "DEFAULT_WEIGHTS", "swarm",
    "crosses", "mutate", "Mutator", "MutateOptions", "crossover",
    "minimize", "Minimized", "Budget", "Stop",
]
