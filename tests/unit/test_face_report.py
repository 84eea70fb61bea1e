"""``check --face`` for people and for programs: results made by hand, no QEMU."""

from __future__ import annotations

import io
import json

from rich.console import Console

from qemuglue.campaign.check_result import Divergence, Known
from qemuglue.campaign.faces.ops import FaceOp, Outcome, told
from qemuglue.campaign.faces.result import FaceResult, FaceTally
from qemuglue.campaign.faces.run import BY_DESIGN, DIVERGED, MATCH, UNJUDGED, Judged
from qemuglue.memory.guest_address import GuestAddress
from qemuglue.memory.guest_error import InvalidBackendAddress, InvalidGuestAddress, PartialBuffer
from qemuglue.memory.memory_map import MemoryAccess
from qemuglue.report.face_json import document
from qemuglue.report.face_text import line, print_faces
from qemuglue.witness.verdict import Kind

READ = FaceOp("vm-memory", "read", 0x1000, 8)
STORE = FaceOp("rust", "store", 0x2000, 4, "Be32", b"\1\2\3\4")


def result(**changes: object) -> FaceResult:
    tally = FaceTally()
    for judged in (
        Judged(READ, Kind.RAM, MATCH), Judged(READ, Kind.RAM, MATCH),
        Judged(READ, Kind.CROSSING, BY_DESIGN, why=("first-error-ends",)),
        Judged(STORE, Kind.DEVICE, UNJUDGED, why=("the machine was reset",)),
        Judged(STORE, Kind.DEVICE, DIVERGED, what="outcome"),
    ):
        tally.note(judged)
    found = Divergence("divergence", "face", "divergence:outcome:device:rust:store",
                       f"{STORE} (hpet)", ("done",), ("InvalidBackendAddress()",), (2, 2),
                       f"{READ}\n{STORE}")
    given: dict[str, object] = {
        "build": "sid", "version": "11.1.3", "machine": "x86_64/q35", "status": "diverged",
        "faces": ("vm-memory", "rust"), "seed": 7, "ops": 5, "seconds": 1.5, "tally": tally,
        "divergences": (found,), "further": (("divergence:x", 3),), "flaky": 1,
        "left": (("fwcfg.dma", "write", "fwcfg.dma: a write may start a DMA"),),
        "known": (Known("an-oddity", found),), "defect": "store-in-bytes",
    }
    return FaceResult(**(given | changes))  # type: ignore[arg-type]


def printed(*results: FaceResult) -> str:
    out = io.StringIO()
    print_faces(results, Console(file=out, width=40), seconds=2.0, interrupted=False)
    return out.getvalue()


def test_a_line_a_machine() -> None:
    assert line(result()).plain == (
        "diverged    sid                  x86_64/q35               5 operations of 2 faces: "
        "2 match, 1 by design, 1 unjudged, 1 diverged; 1.5 s")
    assert line(result(tally=FaceTally())).plain.endswith("no operations")
    assert line(result(reason="no such thing")).plain.endswith("no such thing")


def test_the_page_cuts_nothing_off() -> None:
    page = printed(result())
    assert page.splitlines()[:4] == [
        "face       method  crossing  device  ram  match  by design  unjudged  diverged",
        "rust       store                  2                                1         1",
        "vm-memory  read           1            2      2          1",
        "all                       1       2    2      2          1         1         1",
    ]
    for text in (
        "  by design: the face is meant to answer otherwise",
        "         1  first-error-ends: the first error ends it",
        "learnt + unjudged: 1 operations, 20.0 % (more than the 2 % aimed at):",
        "         1  the machine was reset",
        "sid x86_64/q35: 0 regions are not read and 1 not written (--json says why)",
        "known: sid x86_64/q35: an-oddity: divergence:outcome:device:rust:store at ",
        "note: sid x86_64/q35: 1 suspicions that a fresh QEMU did not show again",
        "divergence:outcome:device:rust:store: sid x86_64/q35, rust store 0x2000 Be32 01020304 "
        "(hpet) (seen 2 of 2 times)",
        "  face: done\n  QEMU: InvalidBackendAddress()\n",
        "  after 1 operations before it (--seed 7)",
        "3 further divergences (--json counts them)",
        "1 machine: 1 diverged; 2 s",
        "Planted: store-in-bytes (a store to a device is not one access); it is not QEMU",
    ):
        assert text in page, text


def test_the_document() -> None:
    found = json.loads(json.dumps(document(
        [result(), result(status="match", divergences=())], seed=7, ops=5, seconds=2.0,
        interrupted=False)))
    summary = found["summary"]
    assert (found["schema"], summary["match"], summary["diverged"]) == (1, 1, 1)
    assert summary["operations"] == 10 and summary["verdicts"]["by design"] == 2
    assert summary["faces"]["rust"]["store"] == {"device": {"unjudged": 2, "diverged": 2}}
    first = found["results"][0]
    assert first["further"] == {"divergence:x": 3} and first["known"][0]["oddity"] == "an-oddity"
    assert first["left_alone"] == [{"region": "fwcfg.dma", "access": "write",
                                    "why": "fwcfg.dma: a write may start a DMA"}]
    assert first["divergences"][0]["confirmed"] == {"k": 2, "n": 2}


def test_as_a_plain_checks_result() -> None:
    plain = result().check_result()
    assert plain.machine == "x86_64/q35 (faces vm-memory, rust)" and plain.diverged
    assert "rust store: unjudged 1, diverged 1" in plain.notes


def test_operations_and_errors_as_text() -> None:
    assert str(READ) == "vm-memory read 0x1000 8 bytes"
    assert str(STORE) == "rust store 0x2000 Be32 01020304"
    assert not READ.is_write and STORE.is_write
    assert str(Outcome("read 40", bytes(40))) == f"read 40: {'00' * 32}… (40 bytes)"
    assert told(InvalidGuestAddress(GuestAddress(16))) == "InvalidGuestAddress(0x10)"
    assert told(PartialBuffer(8, 3)) == "PartialBuffer(8, 3)"
    assert told(MemoryAccess(GuestAddress(1), InvalidBackendAddress())) == (
        "MemoryAccess(0x1, InvalidBackendAddress())")
