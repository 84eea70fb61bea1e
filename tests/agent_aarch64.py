"""The agent for AArch64 ``virt``: a firmware image, made here word by word.

It runs at EL1 with the MMU on and all addresses below 512 GiB mapped one to one as Normal memory
in 1 GiB blocks: with the MMU off, or with Device memory, newer QEMUs trap unaligned accesses
before any device sees them. The tables are put into RAM by ``prepare``. An access that faults
leaves ESR and FAR in its record and is stepped over. Interrupts stay masked.
"""

from __future__ import annotations

import struct

from agent import END, MAILBOX, RECORD, RECORDS, Agent

#: Start of main memory of ``virt``.
RAM = 0x4000_0000
#: From the start of RAM, behind the mailbox; 512 blocks of 1 GiB.
TABLES = 0x40_0000
VECTORS, STUBS = 0x800, 0x400
STUB = 16

SCTLR, TTBR0, TCR, MAIR = (0, 1, 0, 0), (0, 2, 0, 0), (0, 2, 0, 2), (0, 10, 2, 0)
VBAR, ESR, FAR, ELR = (0, 12, 0, 0), (0, 5, 2, 0), (0, 6, 0, 0), (0, 4, 0, 1)
ISB, DSB, YIELD, ERET = 0xD503_3FDF, 0xD503_3F9F, 0xD503_203F, 0xD69F_03E0
#: Registers: the record, the mailbox, the address, the value, the op, scratch ones.
REC, BOX, ADDR, VALUE, OP, RUNG, TMP, TMP2, STUB_BASE = 19, 20, 1, 0, 2, 21, 9, 10, 22
NE, HS = 1, 2

#: TCR_EL1: 39 bits of address, 4 KiB granule, no second half, 48 physical bits.
TCR_VALUE = 25 | 1 << 23 | 5 << 32
NORMAL = 0xFF
#: Block, access flag, inner shareable, attribute 0.
BLOCK = 1 | 1 << 10 | 3 << 8

#: By op: loads of 1 to 8 bytes into VALUE, then stores.
_ACCESSES = (0x3940_0000, 0x7940_0000, 0xB940_0000, 0xF940_0000,
             0x3900_0000, 0x7900_0000, 0xB900_0000, 0xF900_0000)


def _constant(register: int, value: int) -> list[int]:
    words = [0xD280_0000 | (value & 0xFFFF) << 5 | register]
    for half in (1, 2, 3):
        if value >> 16 * half & 0xFFFF:
            words.append(
                0xF280_0000 | half << 21 | (value >> 16 * half & 0xFFFF) << 5 | register)
    return words


def _system(name: tuple[int, int, int, int], register: int, *, read: bool = False) -> int:
    op1, crn, crm, op2 = name
    return (0xD518_0000 | read << 21 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5 | register)


def _ldr(register: int, base: int, offset: int) -> int:
    return 0xF940_0000 | offset // 8 << 10 | base << 5 | register


def _str(register: int, base: int, offset: int) -> int:
    return 0xF900_0000 | offset // 8 << 10 | base << 5 | register


def _add(to: int, base: int, value: int) -> int:
    shifted = value >> 12 if value > 0xFFF else None
    if shifted is None:
        return 0x9100_0000 | value << 10 | base << 5 | to
    return 0x9140_0000 | shifted << 10 | base << 5 | to


def _cmp(left: int, right: int) -> int:
    return 0xEB00_001F | right << 16 | left << 5


def _b(here: int, to: int) -> int:
    """Indices of words."""
    return 0x1400_0000 | (to - here) & 0x3FF_FFFF


def _b_if(condition: int, here: int, to: int) -> int:
    return 0x5400_0000 | ((to - here) & 0x7_FFFF) << 5 | condition


def _start() -> tuple[list[int], int]:
    """The code from reset on, and the index of the word where the next record is taken."""
    code = [*_constant(TMP, NORMAL), _system(MAIR, TMP)]
    code += [*_constant(TMP, TCR_VALUE), _system(TCR, TMP)]
    code += [*_constant(TMP, RAM + TABLES), _system(TTBR0, TMP)]
    code += [*_constant(TMP, VECTORS), _system(VBAR, TMP), ISB]
    # SCTLR: MMU on; bit 1, which would check alignment, off.
    code += [_system(SCTLR, TMP, read=True)]
    code += [0xB240_0000 | TMP << 5 | TMP]  # orr tmp, tmp, #1
    code += [0x9240_0000 | 62 << 16 | 62 << 10 | TMP << 5 | TMP]  # and tmp, tmp, #~2
    code += [DSB, _system(SCTLR, TMP), ISB]
    code += [*_constant(BOX, RAM + MAILBOX), *_constant(STUB_BASE, STUBS)]
    wait = len(code)
    code += [_ldr(RUNG, BOX, 0), _ldr(TMP, BOX, 8), _cmp(RUNG, TMP)]
    code += [_b_if(NE, len(code), len(code) + 3), YIELD, _b(len(code) + 2, wait)]
    code += [_add(REC, BOX, RECORDS)]
    following = len(code)
    code += [_ldr(ADDR, REC, 0), _ldr(VALUE, REC, 8), _ldr(OP, REC, 16)]
    code += [*_constant(TMP, END), _cmp(OP, TMP)]
    code += [_b_if(HS, len(code), len(code) + 3)]
    code += [0x8B00_0000 | OP << 16 | 4 << 10 | STUB_BASE << 5 | TMP]  # tmp = stubs + op * 16
    code += [0xD61F_0000 | TMP << 5]  # br tmp
    code += [_str(RUNG, BOX, 8), _b(len(code) + 1, wait)]
    assert STUB == 16 and len(code) * 4 <= STUBS
    return code, following


def _stubs(following: int) -> list[int]:
    code: list[int] = []
    for number, access in enumerate(_ACCESSES):
        here = STUBS // 4 + number * STUB // 4
        stub = [access | ADDR << 5 | VALUE]
        if number < 4:
            stub.append(_str(VALUE, REC, 8))
        stub.append(_add(REC, REC, RECORD.size))
        stub.append(_b(here + len(stub), following))
        code += stub + [YIELD] * (STUB // 4 - len(stub))
    return code


def _handler() -> list[int]:
    """A synchronous exception: note it in the record and go on behind the instruction."""
    return [
        _system(ESR, TMP, read=True), _str(TMP, REC, 24),
        _system(FAR, TMP, read=True), _str(TMP, REC, 32),
        _system(ELR, TMP, read=True), _add(TMP, TMP, 4), _system(ELR, TMP), ERET,
    ]


def image() -> bytes:
    """The firmware: ``-bios`` of virt, which runs it at address 0."""
    rom = bytearray(0x1000)
    code, following = _start()
    for at, words in ((0, code), (STUBS, _stubs(following)), (VECTORS + 0x200, _handler())):
        rom[at : at + 4 * len(words)] = struct.pack(f"<{len(words)}I", *words)
    return bytes(rom)


def prepare(agent: Agent) -> None:
    """Put the page tables into RAM; before the VM runs for the first time."""
    struct.pack_into("<512Q", agent.view, TABLES, *(page << 30 | BLOCK for page in range(512)))


def one_load(addr: int) -> bytes:
    """Code for any place: load 4 bytes from ``addr``, then stay."""
    code = [*_constant(ADDR, addr), _ACCESSES[2] | ADDR << 5 | VALUE, _b(0, 0)]
    return struct.pack(f"<{len(code)}I", *code)
