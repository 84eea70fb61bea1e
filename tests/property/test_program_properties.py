"""Algebra of programs: what holds for every program, text, byte string and layout."""

from dataclasses import replace
from random import Random

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qemuglue.errors import ProgramError
from qemuglue.program import (
    IO,
    MEMORY,
    VERBS,
    Budget,
    Kind,
    Layout,
    Operation,
    Place,
    Program,
    Range,
    crossover,
    decode,
    encode,
    format_script,
    format_text,
    generate_resolved,
    minimize,
    mutate,
    parse_lenient,
    parse_script,
    parse_text,
    swarm,
)
from qemuglue.program.verbs import MODES, SETUPS
from qemuglue.program.words import quote_name, split_place, unquote_name

U64 = st.integers(0, (1 << 64) - 1)
CHARS = st.one_of(st.characters(codec=None), st.sampled_from('"\\#+:@ 0x\ud800\n'))
NAMES = st.one_of(st.sampled_from(["pc.ram", "hpet", "system 00.0", "/rom@etc/acpi", "1", "@2"]),
                  st.text(CHARS, min_size=1, max_size=12))
ARGS = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=12)


@st.composite
def places(draw, space):
    if draw(st.booleans()):
        return Place(None, 0, draw(U64 if space == MEMORY else st.integers(0, 0xFFFF)))
    named = draw(st.one_of(st.none(), NAMES)) if space == MEMORY else None
    assume(named not in (MEMORY, IO))
    return Place(draw(NAMES), draw(st.integers(0, 0xFFFF)), draw(U64), named)


@st.composite
def operations(draw):
    info = draw(st.sampled_from(list(VERBS.values())))
    if info.space is None:
        return Operation(info.name, None, 0)
    place = draw(places(info.space))
    if info.kind is Kind.BYTES and info.is_write:
        data = draw(st.binary(min_size=1, max_size=40))
        return Operation(info.name, place, len(data), 0, data)
    size = info.size or draw(st.integers(1, 4096))
    limit = 0xFF if info.kind is Kind.FILL else (1 << 8 * size) - 1
    value = draw(st.integers(0, limit)) if info.is_write else 0
    return Operation(info.name, place, size, value)


PROGRAMS = st.builds(
    Program, st.sampled_from(["x86_64/q35", "arm/xlnx-zcu102"]),
    st.lists(ARGS, max_size=4).map(tuple),
    st.lists(operations(), max_size=8).map(tuple), st.sampled_from(MODES),
    st.sampled_from(SETUPS))


@st.composite
def views(draw, space, room):
    """Ranges in order: a few regions, shown in pieces, some bytes more than once."""
    ranges, at = [], 0
    for _ in range(draw(st.integers(0, 8))):
        at += draw(st.sampled_from([0, 0, 1, 7, 64, room // 16]))
        size = draw(st.sampled_from([1, 2, 3, 8, 16, 200, room // 8]))
        if at + size > room:
            break
        ranges.append(Range(
            at, size, draw(st.sampled_from(["a", "b", "io", ""])), draw(st.integers(0, 1)),
            draw(st.integers(0, 20)), draw(st.sampled_from(["ram", "rom", "device", "odd"])),
            space))
        at += size
    if ranges and draw(st.booleans()):  # the last range reaches the end of the space
        last = ranges[-1]
        ranges[-1] = replace(last, size=room - last.start, offset=0)
    return ranges


@st.composite
def layouts(draw):
    return Layout({MEMORY: draw(views(MEMORY, 1 << 64)), IO: draw(views(IO, 1 << 16))})


@given(PROGRAMS)
def test_text_round_trip(program):
    text = format_text(program)
    assert parse_text(text) == program
    assert parse_lenient(text) == (program, ())
    assert format_text(parse_text(text)) == text


WORDS = st.one_of(
    st.sampled_from(["machine", "args", "mode", "parked", "setup", "pci", "a/b", "hpet",
                     "hpet+0x4", "@0x10", "16", "0x100", "4", "0xdead", '"a b"#1+3', "nvme:x+1",
                     "#", "", "09", "-1"]),
    st.sampled_from(list(VERBS)), st.text(CHARS, max_size=6))
LINES = st.one_of(st.just("# qemuglue program 1"), st.just("machine a/b"),
                  operations().map(lambda op: Program("a/b", (), (op,)).canonical_text()
                                   .splitlines()[-1]),
                  st.lists(WORDS, max_size=4).map(" ".join))
HEADS = st.sampled_from(
    ["", "# qemuglue program 1\n", "# qemuglue program 1\nmachine a/b\n"])
TEXTS = st.tuples(HEADS,
                  st.lists(LINES, max_size=6).map("\n".join)).map("".join)


@settings(max_examples=400)
@given(TEXTS)
def test_strict_accepts_so_lenient_reads_the_same(text):
    program, repairs = parse_lenient(text, machine="z/z")
    program.validate()
    assert parse_text(format_text(program)) == program
    try:
        strict = parse_text(text)
    except ProgramError as error:
        assert repairs, f"strict refuses ({error}), lenient sees nothing wrong"
    else:
        assert (program, repairs) == (strict, ())


@given(st.text(CHARS, min_size=1))
def test_every_name_has_one_spelling(name):
    word = quote_name(name)
    assert unquote_name(word) == name
    assert word.isascii() and word.isprintable()
    assert split_place(f"{word}:{word}#3+0x5").region == name
    assert split_place(f"{word}:{word}#3+0x5").space == name


@given(layouts(), st.binary(max_size=24 * 12), st.integers(0, 12))
def test_decode_is_total_and_encode_its_inverse(layout, data, max_ops):
    program = decode(data, layout, "a/b", max_ops=max_ops).validate()
    assert program == decode(data, layout, "a/b", max_ops=max_ops)
    assert len(program.operations) == min(max_ops, (max(len(data) - 1, 0) + 23) // 24)
    assert parse_text(format_text(program)) == program
    back = decode(encode(program, layout), layout, "a/b")
    assert len(back.operations) == len(program.operations)
    for op, again in zip(program.operations, back.operations, strict=True):
        assert layout.address_of(again) == layout.address_of(op)
        assert replace(again, place=None) == replace(op, place=None)


@given(layouts(), U64)
def test_places_lead_back(layout, address):
    for space, last in ((MEMORY, (1 << 64) - 1), (IO, 0xFFFF)):
        interesting = {address & last, 0, last}
        for each in layout.ranges(space):
            interesting |= {each.start, each.last, (each.start + each.last) // 2}
        for at in interesting:
            assert layout.resolve(layout.place_of(at, space), space) == at


@given(layouts(), st.sampled_from(["a", "b"]), st.integers(0, 1), st.integers(0, 40))
def test_resolve_against_a_search_of_every_range(layout, region, index, offset):
    shown = [each for each in layout.ranges() if (each.region, each.index) == (region, index)]
    addresses = [each.start + offset - each.offset for each in shown
                 if each.offset <= offset < each.offset + each.size]
    if addresses:
        expected = min(addresses)
    elif shown:
        expected = (shown[0].start - shown[0].offset + offset) % (1 << 64)
    else:
        expected = None
    assert layout.resolve(Place(region, index, offset), strict=False) == expected


@given(layouts(), st.integers(), st.booleans())
def test_generated_operations_are_valid_and_resolved(layout, seed, wild):
    weights = {"weights": swarm(Random(seed))} if wild else {}
    made = generate_resolved(Random(seed), layout, 30, **weights)
    assert made == generate_resolved(Random(seed), layout, 30, **weights)
    program = Program("a/b", (), tuple(op for op, _ in made)).validate()
    assert [layout.address_of(op) for op in program.operations] == [each for _, each in made]


@given(layouts(), PROGRAMS, PROGRAMS, st.integers())
def test_mutants_are_programs(layout, program, other, seed):
    mutant = mutate(Random(seed), program, layout)
    assert mutant == mutate(Random(seed), program, layout)
    assert parse_text(format_text(mutant)) == mutant
    child = crossover(Random(seed), program, other)
    assert set(child.operations) <= {*program.operations, *other.operations}


@given(PROGRAMS)
def test_script_round_trip(program):
    resolved = program.replace(operations=tuple(
        op if op.place is None else replace(
            op, place=Place(None, 0, op.place.offset & (0xFFFF if op.info.space == IO else ~0)))
        for op in program.operations))
    text = format_script(program, lambda op: resolved.operations[
        program.operations.index(op)].place.offset)
    assert parse_script(text).program == resolved
    assert parse_script(text).notes == ()


SCRIPT_WORDS = st.sampled_from([
    "readb", "read", "write", "b64write", "memset", "outl", "clock_step", "0", "0x4", "010", "-1",
    "0xdead", "AAAA", "cat", "<<", "EOF", "|", "qemu-system-i386", "-M", "pc", "-qtest", "'", "\\",
    "# qemuglue", "machine", "args", "mode", "setup", "reset", "a/b", "\n", "2>&1", ">", "$X"])


@settings(max_examples=300)
@given(st.lists(st.one_of(SCRIPT_WORDS, st.just("\n"), st.text(CHARS, max_size=5)), max_size=30))
def test_any_script_is_read_or_refused(words):
    for strict in (True, False):
        try:
            parse_script(" ".join(words), "z/z", strict=strict).program.validate()
        except ProgramError:
            continue


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(2, 120), st.data())
def test_minimiser_finds_any_planted_pair(seed, n, data):
    layout = Layout({})
    operations = [op for op, _ in generate_resolved(Random(seed), layout, n)]
    first, second = sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=2, max_size=2)))
    cause = (Operation("inb", Place(None, 0, 0x1111), 1),
             Operation("inb", Place(None, 0, 0x2222), 1))
    operations[first], operations[second] = cause

    def shows(program):
        kept = [op for op in program.operations if op in cause]
        return cause in [tuple(kept[at:at + 2]) for at in range(len(kept))]

    result = minimize(Program("a/b", (), tuple(operations)), shows, Budget(confirm=1))
    assert result.program.operations == cause and result.sound
