"""The agent for x86 PCs: a 64 KiB firmware image, made here byte by byte.

It enters long mode with all addresses below 512 GiB mapped one to one by 1 GiB pages, whose
tables are in the image itself (accessed and dirty already, so the CPU never writes them), and
then works off the mailbox (see ``agent``). The CPU must have 1 GiB pages: ``-cpu max``.
Interrupts stay off. x86 never faults on a failed access, so the fault words stay 0.
"""

from __future__ import annotations

import struct

from agent import END, MAILBOX, RECORD, RECORDS

SIZE = 0x1_0000
BASE = 0x1_0000_0000 - SIZE
TABLES, GDT, GDT_POINTER, REAL, LONG, STUBS = 0, 0x2000, 0x2100, 0x3000, 0x4000, 0x5000
#: Room for the instructions of one kind of access.
STUB = 32

PRESENT_WRITABLE_ACCESSED = 0x23
DIRTY_LARGE = 0xC0
CODE64, DATA = 0x08, 0x10


def _tables() -> bytes:
    top = struct.pack("<Q", BASE + 0x1000 | PRESENT_WRITABLE_ACCESSED).ljust(0x1000, b"\0")
    pages = [page << 30 | PRESENT_WRITABLE_ACCESSED | DIRTY_LARGE for page in range(512)]
    return top + struct.pack("<512Q", *pages)


def _real_mode() -> bytes:
    """From reset to long mode."""
    code = bytearray.fromhex("fa")  # cli
    code += bytes.fromhex("2e660f0116") + struct.pack("<H", GDT_POINTER)  # lgdt cs:[…]
    code += bytes.fromhex("0f20e0 0c20 0f22e0")  # cr4 |= PAE
    code += b"\x66\xb8" + struct.pack("<I", BASE + TABLES) + bytes.fromhex("0f22d8")  # cr3
    code += bytes.fromhex("66b9800000c0 0f32 80cc01 0f30")  # EFER |= LME
    code += bytes.fromhex("0f20c0 660d01000080 0f22c0")  # cr0 |= PG | PE
    code += b"\x66\xea" + struct.pack("<IH", BASE + LONG, CODE64)  # jmp far
    return bytes(code)


def _long_mode() -> tuple[bytes, int]:
    """Set up, then the loop, and where in it the next record is taken. rbx: mailbox, rsi:
    record, r8: number rung, r9: stubs."""
    code = bytearray.fromhex("b810000000 8ed8 8ec0 8ed0")  # ds = es = ss = 0x10
    code += b"\xbb" + struct.pack("<I", MAILBOX)  # mov ebx
    code += b"\x41\xb9" + struct.pack("<I", BASE + STUBS)  # mov r9d
    wait = len(code)
    code += bytes.fromhex("488b03 483b4308 7504 f390 ebf3")  # until [rbx] != [rbx+8]: pause
    code += bytes.fromhex("4989c0")  # mov r8, rax
    code += bytes.fromhex("488db3") + struct.pack("<I", RECORDS)  # lea rsi, [rbx+RECORDS]
    following = len(code)
    code += bytes.fromhex("488b3e 488b4608 488b4e10")  # rdi, rax, rcx = record
    code += bytes.fromhex("83f9") + bytes((END,))  # cmp ecx, END
    code += bytes.fromhex("7309")  # jae done
    code += bytes.fromhex("c1e105 4c01c9 ffe1")  # jmp r9 + rcx * STUB
    code += b"\x90"
    # done:
    code += bytes.fromhex("4c894308")  # mov [rbx+8], r8
    code += b"\xeb" + struct.pack("<b", wait - len(code) - 2)
    return bytes(code), BASE + LONG + following


#: By op: MOV, then MOVBE, between rax and [rdi]; a load fills all of rax (MOVBE of 2 bytes does
#: not: rax is cleared before). A single byte has no order.
_ACCESSES = (
    "0fb607", "0fb707", "8b07", "488b07",
    "8807", "668907", "8907", "488907",
    "0fb607", "31c0660f38f007", "0f38f007", "480f38f007",
    "8807", "660f38f107", "0f38f107", "480f38f107",
)


def _stubs(following: int) -> bytes:
    code = b""
    for number, access in enumerate(_ACCESSES):
        stub = bytes.fromhex(access)
        if number % 8 < 4:
            stub += bytes.fromhex("48894608")  # mov [rsi+8], rax
        stub += bytes.fromhex("4883c6") + bytes((RECORD.size,))  # add rsi, RECORD.size
        here = BASE + STUBS + number * STUB + len(stub)
        stub += b"\xe9" + struct.pack("<i", following - here - 5)  # jmp next
        code += stub.ljust(STUB, b"\xf4")
    return code


def image() -> bytes:
    """The firmware: ``-bios`` of q35, pc and microvm."""
    rom = bytearray(SIZE)

    def put(at: int, data: bytes) -> None:
        assert not any(rom[at : at + len(data)]) and at + len(data) <= SIZE
        rom[at : at + len(data)] = data

    put(TABLES, _tables())
    put(GDT, struct.pack("<QQQ", 0, 0x0020_9B00_0000_0000, 0x00CF_9300_0000_FFFF))
    put(GDT_POINTER, struct.pack("<HI", 23, BASE + GDT))
    put(REAL, _real_mode())
    loop, following = _long_mode()
    put(LONG, loop)
    put(STUBS, _stubs(following))
    put(0xFFF0, b"\xe9" + struct.pack("<H", (REAL - 0xFFF3) & 0xFFFF))
    return bytes(rom)
