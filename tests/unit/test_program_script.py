"""qtest scripts as people paste them."""

import pytest

from qemuglue.errors import ProgramError
from qemuglue.program import Operation, Place, Program, format_script, parse_script

REPORT = """Hello,
this crashes:

$ cat << EOF | FOO=1 ./build/qemu-system-x86_64 -display none -machine accel=qtest, -m \\
512M -M q35,hpet=off -nodefaults --device 'edu' -S -qtest-log none -qtest stdio 2>&1 | tee log
outl 0xcf8 0x80000810

[R +0.012345] outw 0xcfc 0x12345
[S +0.012399] OK
# a comment
clock_step
endianness
write 0x10 0x4 0xdead
b64write 0x10 0x4 3q2+7w==
b64read 0x10 4
memset 0 0x1001 010
EOF

outl 0 0
Thanks
"""


def at(address):
    return Place(None, 0, address)


def test_report():
    script = parse_script(REPORT)
    assert script.program == Program(
        "x86_64/q35", ("-m", "512M", "-machine", "hpet=off", "-nodefaults", "-device", "edu"),
        (
            Operation("outl", at(0xCF8), 4, 0x80000810),
            Operation("outw", at(0xCFC), 2, 0x2345),
            Operation("write", at(0x10), 4, 0, b"\xde\xad\0\0"),
            Operation("write", at(0x10), 4, 0, b"\xde\xad\xbe\xef"),
            Operation("read", at(0x10), 4),
            Operation("memset", at(0), 4096, 8),
            Operation("memset", at(0x1000), 1, 8),
        ))
    assert [note.line for note in script.notes] == [8, 11, 12, 13, 16]


@pytest.mark.parametrize(("command", "machine"), [
    ("cat <<EOF | qemu-system-aarch64 -machine type=virt,accel=qtest -qtest stdio", "aarch64/virt"),
    ("cat <<'EOF' | $QEMU -M microvm -qtest stdio", "i386/microvm"),
    ("cat <<-EOF | ${QEMU_PATH} -qtest stdio", "i386/none"),
    ("/usr/bin/qemu-system-i386 -qtest stdio > /dev/null << \"EOF\"", "i386/pc"),
    ("cat <<EOF > script.qtest", "i386/none"),
    ("cat <<EOF | timeout 5 qemu-system-x86_64 -qtest stdio -M q35 && echo fine", "x86_64/q35"),
])
def test_wrappers(command, machine):
    script = parse_script(f"{command}\nreadb 0\nEOF\n", machine="i386/none", args=("-x",))
    assert script.program.machine == machine
    assert len(script.program.operations) == 1
    # Arguments given from outside go with a machine given from outside.
    assert script.program.args == (("-x",) if machine == "i386/none" else ())


@pytest.mark.parametrize(("line", "complaint"), [
    ("outl 0x10000 0", "ports go from 0"),
    ("read 0 0", "makes qtest assert"),
    ("read 0", "takes 2 words"),
    ("readq", "takes 1 words"),
    ("readq 08", "not a number"),
    ("readq -1", "not a number"),
    ("readq 0x10000000000000000", "wider than 64 bits"),
    ("write 0 4 0xdea", "even number"),
    ("write 0 4 dead", "0x and"),
    ("write 0 0xffffffffffff 0xde", "give at most"),
    ("b64write 0 4 3q2+", "3 bytes of data for a length of 4"),
    ("b64write 0 4 !", "not base64"),
    ("quit", "unknown qtest command"),
    ("reset", "unknown qtest command"),
])
def test_what_would_end_qemu_is_refused(line, complaint):
    text = f"readb 0\n{line}\nreadb 1\n"
    with pytest.raises(ProgramError, match=complaint) as caught:
        parse_script(text, "a/b")
    assert caught.value.line == 2
    script = parse_script(text, "a/b", strict=False)
    assert [op.place.offset for op in script.program.operations] == [0, 1]
    assert [note.line for note in script.notes] == [2]


def test_nothing_to_do_is_left_out():
    script = parse_script("memset 0 0 0\nwrite 0 0 0x00\nb64read 0 0\n", "a/b")
    assert script.program.operations == () and len(script.notes) == 3


def test_long_strings_wrap_like_qemu():
    script = parse_script("read 0xfffffffffffff000 0x2000\n", "a/b")
    assert [op.place.offset for op in script.program.operations] == [0xFFFF_FFFF_FFFF_F000, 0]


def test_machine_must_be_known():
    for text in ("readb 0\n", "cat << E | $QEMU -M pc -qtest stdio\nreadb 0\nE\n",
                 "cat << E | qemu-system-arm -qtest stdio\nreadb 0\nE\n"):
        with pytest.raises(ProgramError, match="which machine"):
            parse_script(text)
    with pytest.raises(ProgramError, match="close its quotes"):
        parse_script("cat << E | qemu-system-arm -M 'virt\nE\n")


def test_export_and_back():
    operations = (
        Operation("readq", at(0xFFFF_FFFF_FFFF_FFF8), 8),
        Operation("writew", Place("hpet", 0, 4), 2, 0x1234),
        Operation("read", at(0), 3), Operation("write", at(0), 2, 0, b"\0\1"),
        Operation("memset", at(0), 5, 0xAB), Operation("inb", at(0x70), 1),
        Operation("outl", at(0xCF8), 4, 5), Operation("reset", None, 0),
    )
    program = Program("x86_64/q35", ("-device", "edu"), operations, "parked")
    text = format_script(program, lambda op: op.place.offset + (0x1000 if op.place.region else 0))
    assert text.splitlines()[3:] == [
        "readq 0xfffffffffffffff8", "writew 0x1004 0x1234", "read 0x0 0x3",
        "write 0x0 0x2 0x0001", "memset 0x0 0x5 0xab", "inb 0x70", "outl 0xcf8 0x5",
        "# qemuglue reset",
    ]
    back = parse_script(text)
    assert back.notes == ()
    assert back.program.replace(operations=()) == program.replace(operations=())
    assert back.program.operations[2:] == operations[2:]
    with pytest.raises(ProgramError, match="no address"):
        format_script(program, lambda op: None)
