#!/usr/bin/env python3
"""Collect what every machine of some builds says, as inputs of the fuzz target ``text``::

    .venv/bin/python ci/collect_text.py OUT [BUILD …]
    .venv/bin/qemuglue-fuzz --target=text -set_cover_merge=1 corpora/text OUT

The second command keeps what reaches something new in ``corpora/text``. Each machine is started
once (about 0.3 s), one after the other; those that do not start are told on stderr.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from qemuglue.errors import QemuglueError
from qemuglue.qemu import qtest
from qemuglue.qemu.builds import Build, find_build
from qemuglue.qemu.builds_machines import Machine, machine_list
from qemuglue.qemu.config import QemuConfig
from qemuglue.qemu.process import QemuProcess

FORMS = ("", "-f", "-d", "-o", "-D", "-f -d", "-f -o", "-f -d -o", "-d -o -D", "-o -D", "-D -o")
#: What is longer is left out of the corpus; the parsers' limits are the unit tests' affair.
MAX_SIZE = 20_000
#: Ranges read from, and lines of the transcript in one input.
RANGES, LINES = 24, 60
_RANGE = re.compile(r"^  ([0-9a-f]{16})-[0-9a-f]{16} \(prio", re.MULTILINE)


def inputs(build: Build, machine: Machine) -> Iterator[bytes]:
    """The inputs that one machine gives, its letter in front (``text/parsers.PARSERS``)."""
    config = QemuConfig(build=build, target=machine.target, machine=machine.name,
                        nodefaults=False)
    with QemuProcess(config) as process:
        texts = {form: process.monitor.hmp(f"info mtree {form}".strip()) for form in FORMS}
        for form, text in texts.items():
            ends = "\r\n" if "o" in form else "\n"
            yield (b"f" if "-f" in form else b"t") + text.replace("\n", ends).encode()
        yield f"m{texts['-o -D']}\x1e{texts['-f -o']}".encode()
        answer = json.dumps({"return": texts[""], "id": "__qmp#00000"})
        yield b"j\0" + answer.encode() + b"\r\n"
        process.transcript.read_new()
        starts = list(dict.fromkeys(int(each, 16) for each in _RANGE.findall(texts["-f"])))
        for addr in starts[:6]:
            yield b"g" + process.monitor.hmp(f"gpa2hva {addr:#x}").encode()
            yield b"p\0" + process.monitor.hmp(f"xp /1xb {addr:#x}").encode()
        replies: list[bytes] = []
        for addr in starts[:RANGES]:
            for line, size in ((qtest.readb(addr), 0), (qtest.readl(addr), 0),
                               (qtest.read(addr, 5), 5), (qtest.b64read(addr, 7), 7)):
                replies.append(process.channel.exchange(line, 1, timeout_s=3))
                yield b"q" + bytes([size]) + replies[-1]
        yield b"x\x03" + b"".join(replies[:4])
        lines = process.transcript.read_new().splitlines(keepends=True)
        for start in range(0, min(len(lines), 4 * LINES), LINES):
            yield b"e" + b"".join(lines[start:start + LINES])


def main(out: Path, builds: list[str]) -> None:
    out.mkdir(parents=True, exist_ok=True)

    def keep(data: bytes) -> None:
        if len(data) <= MAX_SIZE:
            (out / hashlib.sha1(data, usedforsecurity=False).hexdigest()).write_bytes(data)

    for build in map(find_build, builds or [None]):
        for target in build.targets():
            told = subprocess.run([*build.command(target), "-machine", "help"],
                                  capture_output=True, env=build.environment(), timeout=60)
            keep(b"h" + told.stdout)
            started = 0
            for machine in machine_list(build, target):
                try:
                    if not machine.versioned:
                        for data in inputs(build, machine):
                            keep(data)
                        started += 1
                except QemuglueError as error:
                    print(f"{build.name} {machine.full_name}: {error}", file=sys.stderr)
            print(f"{build.name} {target}: {started} machines", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
