"""QEMU's words, damaged: every parser gives a value or one sentence, in bounded time and memory."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from qemuglue.campaign.inputs.faults import InputFault
from qemuglue.campaign.text.damage import DAMAGES
from qemuglue.campaign.text.target import SEEDS, SUBJECT
from qemuglue.errors import ProtocolError, ResourceError
from qemuglue.mirror import Mirror
from qemuglue.qemu import events, mtree, qtest
from qemuglue.qemu.builds import parse_version
from qemuglue.qemu.builds_machines import parse_machine_help
from qemuglue.qemu.mtree import TREE_COMMAND, parse_flat, parse_tree

ROOT = Path(__file__).parent.parent.parent
DATA = ROOT / "tests" / "data" / "mtree"
CORPUS = sorted((ROOT / "corpora" / "text").iterdir())

BASE = "0000000000000000-00000000000000ff (prio 0, i/o): "


def alias(name: str, target: str) -> str:
    return f"{BASE}alias {name} @{target} 0000000000000000-00000000000000ff orphan"


def block(title: str, *lines: str) -> str:
    return "".join(f"{line}\r\n" for line in (title, *lines, ""))


# --- damage ---------------------------------------------------------------------------


def test_the_corpus_is_bytes_only_and_small() -> None:
    assert len(CORPUS) > 200
    assert sum(path.stat().st_size for path in CORPUS) < 1_500_000
    assert all(re.fullmatch("[0-9a-f]{40}", path.name) for path in CORPUS)


@pytest.mark.parametrize("part", range(4))
def test_every_input_of_the_corpus_gives_an_answer(part: int) -> None:
    for path in CORPUS[part::4]:
        SUBJECT.run(path.read_bytes())


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: chr(seed[0]))
def test_every_damage_to_every_parser(seed: bytes, name: str) -> None:
    for number in range(12):
        text = DAMAGES[name](seed[1:], Random(f"{name}/{number}"))
        SUBJECT.run(seed[:1] + text)


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: chr(seed[0]))
def test_every_truncation_of_every_seed(seed: bytes) -> None:
    for size in range(len(seed)):
        SUBJECT.run(seed[:size])


FORMS: list[tuple[Callable[[str], object], str]] = [
    (parse_tree, "11.1-hexagon-V66G_1024.tree"), (parse_flat, "11.1-hexagon-V66G_1024.flat"),
    (parse_flat, "11.1-x86_64-microvm.dispatch"),
]


def _first_blocks(text: str, limit: int = 2500) -> str:
    """Whole blocks from the front, as many as fit, at least one."""
    stop = text.rfind("\n\n", 0, limit) + 2
    return text[: stop if stop > 1 else text.find("\n\n") + 2]


@pytest.mark.parametrize(("parse", "name"), FORMS)
@pytest.mark.parametrize("plain", [False, True], ids=["owners", "plain"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_a_text_of_each_form_cut_at_every_byte(
    parse: Callable[[str], object], name: str, plain: bool, ends: str
) -> None:
    text = _first_blocks((DATA / name).read_text())
    if plain:
        text = re.sub(r" (?:owner|parent):\{[^}]*\}| orphan", "", text)
    text = text.replace("\n", ends)
    assert parse(text)
    passed = 0
    for cut in range(len(text)):
        try:
            parse(text[:cut])
            passed += 1
        except ProtocolError as error:
            assert re.match(r"info mtree \S.*?: line \d+: ", str(error))
    # Only at the end of a block does QEMU's text not tell that it goes on.
    assert passed <= text.count(2 * ends)


def test_trees_of_every_flag_form_are_read_or_refused_with_a_reason() -> None:
    hidden = block("address-space: a", f"    {BASE}child of a disabled one")
    with pytest.raises(ProtocolError, match=r"line 2: unexpected indentation .*without -D"):
        parse_tree(hidden)
    refused = "mtree: extraneous characters at the end of line\r\nTry \"help mtree\"\r\n"
    with pytest.raises(ProtocolError, match="line 1: no answer to this command: 'mtree: extra"):
        parse_tree(refused)
    view = (DATA / "11.1-x86_64-microvm.dispatch").read_text()
    with pytest.raises(ProtocolError, match=r"line \d+: not a node of a dispatch tree"):
        parse_flat(view.replace("\t", "\tx", 1))


BAD_TREES = [
    ("a priority of 33 bits", f"  {BASE}x".replace("prio 0", "prio 2147483648"), "not a region"),
    ("a size and another", "  " + alias("a", "b").replace("00000ff or", "000007f or"),
     "an alias that shows more or less than its size"),
    ("many ways to cut", f"  {BASE}alias" + " @" * 50 + " 0000000000000000-00000000000000ff",
     "not a region"),
    ("an address of 65 bits", f"  1{BASE}x", "not a region"),
    ("a tab in a name", f"  {BASE}x\ty", r"control character '\\t'"),
    ("an escape in a name", f"  {BASE}x\x1b[2J", r"control character '\\x1b'"),
    ("a C1 escape", f"  {BASE}x\x9b2J", r"control character '\\x9b'"),
    ("text from right to left", f"  {BASE}x\u202ey", r"control character '\\u202e'"),
    ("half a character", f"  {BASE}x\ud800", r"control character '\\ud800'"),
    ("NUL", f"  {BASE}\x00", r"control character '\\x00'"),
    ("CR in a line", f"  {BASE}x\ry", r"control character '\\r'"),
    ("an owner that is none", f"  {BASE}x owner:{{}}\r\n  {BASE}y", "2 roots"),
    ("digits of another script", f"  {BASE}x".replace("prio 0", "prio \u0663"), "not a region"),
]


@pytest.mark.parametrize(("line", "reason"), [case[1:] for case in BAD_TREES],
                         ids=[case[0] for case in BAD_TREES])
def test_a_bad_line_is_refused_with_its_reason(line: str, reason: str) -> None:
    with pytest.raises(ProtocolError, match=rf"info mtree -o -D: line [12]: {reason}") as caught:
        parse_tree(block("address-space: a", line))
    assert str(caught.value).isprintable()


def test_limits_of_lines_and_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mtree, "MAX_SPACES", 3)
    many = block(*[f"address-space: {n}" for n in range(4)], f"  {BASE}x")
    with pytest.raises(ProtocolError, match="line 1: more than 3 address spaces"):
        parse_tree(many)
    views = block("FlatView #0", *[f' AS "{n}", root: x' for n in range(4)],
                  " Root memory region: x", f"  {BASE}x")
    with pytest.raises(ProtocolError, match="line 1: more than 3 address spaces"):
        parse_flat(views)
    monkeypatch.setattr(mtree, "MAX_LINES", 3)
    with pytest.raises(ProtocolError, match="line 4: more than 3 lines"):
        parse_tree(many)


def test_the_cache_is_bounded_in_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    mtree._listing.clear()
    monkeypatch.setattr(mtree, "CACHED_LINES", 20)
    for number in range(50):
        parse_tree(block("address-space: a", f"  {BASE}name {number}", f"    {BASE}x"))
    kept = mtree._listing._known
    assert sum(map(len, kept)) <= 20 and len(kept) == 6


# --- cycles -----------------------------------------------------------------------------

S = f"  {BASE}s orphan"
CYCLES = {
    "an alias of itself": block("address-space: m", "  " + alias("a", "a"))
    + block("memory-region: a", "  " + alias("a", "a")),
    "two aliases of each other": block("address-space: m", "  " + alias("a", "b"))
    + block("memory-region: b", "  " + alias("b", "a"))
    + block("memory-region: a", "  " + alias("a", "b")),
    "a region that shows itself": block("address-space: m", S, "    " + alias("x", "s"))
    + block("memory-region: s", S, "    " + alias("x", "s")),
    "a chain of 70": block("address-space: m", "  " + alias("c0", "c1"))
    + "".join(block(f"memory-region: c{n}", "  " + alias(f"c{n}", f"c{n + 1}"))
              for n in range(1, 70)) + block("memory-region: c70", f"  {BASE}c70"),
    "an alias of nothing": block("address-space: m", S, "    " + alias("x", "nobody")),
}


@pytest.mark.parametrize("name", CYCLES)
def test_cycles_are_refused_in_one_sentence(name: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        Mirror.take(lambda line: CYCLES[name])
    assert caught.value.channel == TREE_COMMAND
    assert str(caught.value).isprintable() and len(str(caught.value)) < 200


def test_a_region_listed_inside_itself_is_another_of_its_name() -> None:
    tree = block("address-space: memory", S, "  " + S, "    " + S)
    flat = block("FlatView #0", ' AS "memory", root: s', " Root memory region: s",
                 f"  {BASE}s orphan")
    mirror = Mirror.take(lambda line: tree if line == TREE_COMMAND else flat)
    assert mirror.exact and len(mirror.regions) == 3


# --- size -------------------------------------------------------------------------------

#: Each in a process of its own, so that its peak of memory is its own. The line itself takes
#: 100 MB, the interpreter with the package 40.
_HUGE = """
import re, sys
from qemuglue.errors import ProtocolError
from qemuglue.qemu import events, mtree, qtest_lines
from qemuglue.qemu.builds_machines import parse_machine_help
from qemuglue.qemu.guest_ram import parse_gpa2hva
from qemuglue.qemu.plugin import records
N = 100_000_000
cases = {
    "tree": (lambda: "x" * N, mtree.parse_tree),
    "tree-spaces": (lambda: "address-space: " + " @" * (N // 2), mtree.parse_tree),
    "flat": (lambda: "FlatView #0" * (N // 11), mtree.parse_flat),
    "events": (lambda: b"x" * (N - 1) + b"\\n", events.parse),
    "events-almost": (lambda: b"memory_region_ops_read cpu -1 mr 0x1 addr 0x1 value 0x1 size 1 "
                      b"name '" + b"h" * N + b"\\n", events.parse),
    "events-starts": (lambda: b"memory_region_ops_read cpu -1 " * (N // 30) + b"\\n",
                      events.parse),
    "value": (lambda: b"OK 0x" + b"0" * N, qtest_lines.parse_value),
    "hex": (lambda: b"OK 0x" + b"0" * N, lambda line: qtest_lines.parse_hex(line, 5)),
    "base64": (lambda: b"OK " + b"A" * N, lambda line: qtest_lines.parse_base64(line, 5)),
    "ok": (lambda: b"OK" * (N // 2), qtest_lines.parse_ok),
    "machines": (lambda: "pc " + " " * N + "x", lambda text: parse_machine_help("a", text)),
    "gpa2hva": (lambda: "Host virtual address for 0x0 (" + "a" * N, parse_gpa2hva),
    "plugin": (lambda: b"qg_access " * (N // 10) + b"\\n", lambda c: list(records.stream(c))),
}
for name in sys.argv[1:]:
    make, parse = cases[name]
    text = make()
    try:
        parse(text)
        said = "a value"
    except ProtocolError as error:
        said = str(error)[:60]
    # Not ru_maxrss: that one remembers the process this one was forked from.
    peak = int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) >> 10
    print(name, peak, said, sep="|")
    del text
"""
_KINDS = (
    ("tree", "tree-spaces", "flat"), ("events", "events-almost", "events-starts"),
    ("value", "hex", "ok", "machines", "gpa2hva", "plugin"),
)


@pytest.mark.parametrize("names", _KINDS, ids=lambda names: names[0])
def test_a_line_of_100_mb_takes_300_mb_and_no_minutes(names: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-c", _HUGE, *names], capture_output=True, text=True,
                          timeout=120, check=True)
    told = [line.split("|") for line in done.stdout.splitlines()]
    assert [name for name, *_ in told] == list(names)
    for name, peak_mb, said in told:
        assert int(peak_mb) < 300, (name, peak_mb)
        assert name.startswith(("events", "machines", "plugin")) or ": " in said, (name, said)


#: Shorter times tell nothing.
_FLOOR_S = 100e-6


def _fastest(work: Callable[[], object]) -> float:
    best = 1e9
    for _ in range(5):
        start = time.thread_time()
        work()
        best = min(best, time.thread_time() - start)
    return max(best, _FLOOR_S)


def _refused(parse: Callable[[str], object], text: str) -> Callable[[], None]:
    def work() -> None:
        mtree._listing.clear()
        mtree._view_at.clear()
        with contextlib.suppress(ProtocolError):
            parse(text)

    return work


@pytest.mark.parametrize("piece", [
    " @", " @x ", " KVM", " owner:{dev path=", " owner:{dev path=}", " [disabled]", " orphan",
    " @0000000000000000", " 0000000000000000-00000000000000ff", " [a]", ", alias ", '", root: ',
    "  ", " parent:{obj path=/}", "\ufffd",
])
@pytest.mark.parametrize("end", ["", "x", " owner:{dev path=/x}"])
def test_no_line_takes_time_with_the_square_of_its_length(piece: str, end: str) -> None:
    """Eight times the length takes eight times as long, whatever is repeated in the line; with
    the square it is sixty-four times."""
    longer, shorter = _texts(piece, end, 3800), _texts(piece, end, 3800 // 8)
    for (parse, text), (_, start) in zip(longer, shorter, strict=True):
        growth = _fastest(_refused(parse, text)) / _fastest(_refused(parse, start))
        assert growth < 32, text[:200]


def _texts(piece: str, end: str, length: int) -> list[tuple[Callable[[str], object], str]]:
    """Each kind of line with the piece repeated up to that length."""
    run = (piece * length)[: length - len(end)] + end
    tree = block("address-space: a", f"  {BASE}{run}", f"    {BASE}alias {run}")
    name = f"  {BASE}alias x @y{run} 0000000000000000-00000000000000ff{end}"
    flat = block("FlatView #0", ' AS "a", root: x', " Root memory region: x", f"  {BASE}{run}")
    space = block("FlatView #0", f' AS "{run}', " Root memory region: x", f"  {BASE}x")
    dispatch = flat[:-2] + "\r\n".join([
        "  Dispatch", "    Physical sections", "      #0 @0000000000000000..00000000000000ff "
        + run, "    Nodes (", "", ""])
    return [(parse_tree, tree), (parse_tree, block("address-space: a", name)),
            (parse_flat, flat), (parse_flat, space), (parse_flat, dispatch)]


def test_a_million_lines() -> None:
    with pytest.raises(ProtocolError, match=r"line 400001: more than 400000 lines"):
        parse_tree("address-space: a\n" + "x\n" * 1_000_000)
    with pytest.raises(ProtocolError, match=r"line 400001: more than"):
        parse_flat("FlatView #0\n\n" * 500_000)
    with pytest.raises(ResourceError, match=r"^the transcript of a batch .* of 2000000 lines$"):
        events.parse(b"\n" * 2_000_001)


# --- the transcript ---------------------------------------------------------------------

RECORD = b"memory_region_ops_read cpu -1 mr 0x1 addr 0x2 value 0x3 size %b name '%b'\n"


@pytest.mark.parametrize("size", [b"0", b"9", b"16", b"99", b"9" * 30])
def test_a_size_no_access_has_makes_no_record(size: bytes) -> None:
    [event] = events.parse(RECORD % (size, b"a"))
    assert event.kind is events.Kind.OTHER and event.value == 0


def test_names_hold_nothing_a_terminal_obeys() -> None:
    [event] = events.parse(RECORD % (b"1", b"a\x1b[2J\xc2\x9b\xff\x00"))
    assert event.name == "a\\x1b[2J\\x9b\\xff\\x00"
    [event] = events.parse(b"device: \x1b]0;t\x07\n")
    assert event.text == "device: \\x1b]0;t\\x07"


def test_a_record_behind_a_long_text_without_newline_is_found() -> None:
    for size in (5_000, 3_000_000):
        first, second = events.parse(b"x" * size + RECORD % (b"4", b"a"))
        assert first.kind is events.Kind.OTHER and first.text.endswith(f"{size} bytes")
        assert second == events.parse(RECORD % (b"4", b"a"))[0]


def test_a_chunk_larger_than_a_slice_gives_the_same_events() -> None:
    text = b"".join(RECORD % (b"4", b"n%d" % n) for n in range(30_000))
    assert len(text) > 2 * events._SLICE_BYTES
    whole = events.parse(text)
    assert [event.name for event in whole] == [f"n{n}" for n in range(30_000)]
    assert events.parse(text[:-1]) == whole


# --- other words ------------------------------------------------------------------------


def test_other_words() -> None:
    [machine] = parse_machine_help("a", "pc  a\x1b[2J board (default) (alias of x)\n")
    assert (machine.description, machine.alias_of) == ("a\\x1b[2J board", "x") and machine.default
    assert parse_machine_help("a", "pc " + "x" * 2000) == []
    assert parse_version("9" * 5000)[0] == 999_999_999
    with pytest.raises(ProtocolError) as caught:
        qtest.parse_value(b"OK \x1b[2J\n")
    assert str(caught.value).isprintable()


def test_an_error_is_one_printable_sentence() -> None:
    error = ProtocolError("two\nlines \x1b[2J\ud800 " + "x" * 5000, channel="QMP")
    assert str(error).startswith("QMP: two lines \\x1b[2J\\ud800 x") and len(str(error)) < 1000
    assert str(ResourceError(what="a\x07", limit=1)).isprintable()


def test_a_fault_has_a_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    from qemuglue.campaign.text import parsers as text_parsers

    def broken(text: str) -> object:
        raise RecursionError("too deep")

    monkeypatch.setattr(text_parsers, "parse_tree", broken)
    with pytest.raises(InputFault) as caught:
        SUBJECT.run(b"tx")
    assert caught.value.signature == "text:tree:RecursionError"
