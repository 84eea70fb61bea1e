"""What a QEMU died of, from the last words of real ones."""

from __future__ import annotations

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemuglue.witness.death import crash_signature

LIBC = """qemu-system-x86_64: warning: TCG doesn't support requested feature
qemu-system-x86_64: ../../hw/net/e1000e_core.c:2312: e1000e_update_interrupt_state: \
Assertion `core->delayed_causes == 0x1234abcd' failed.
"""
LIBC_CXX = """qemu-system-arm: ../disas/libvixl/code.cc:99: void vixl::Decoder::Visit(int, char*): \
Assertion `size <= 64' failed.
Aborted (core dumped)
"""
GLIB = """**
ERROR:../../system/qtest.c:460:qtest_process_command: assertion failed: (ret == 0)
Bail out! ERROR:../../system/qtest.c:460:qtest_process_command: assertion failed: (ret == 0)
"""
GLIB_VALUES = """**
ERROR:../hw/i386/x86.c:23:x86_cpu_new: assertion failed (nr == 4096): (17 == 4096)
Bail out! ERROR:../hw/i386/x86.c:23:x86_cpu_new: assertion failed (nr == 4096): (17 == 4096)
"""
UNREACHED = """**
ERROR:../hw/display/vga.c:1478:vga_get_bpp: code should not be reached
Bail out! ERROR:../hw/display/vga.c:1478:vga_get_bpp: code should not be reached
"""
HARDWARE = """qemu: hardware error: pl011_read: Bad offset 0xff8
CPU #0:
PC=0000000000000000 X00=0000000000000000
"""
HARDWARE_PLAIN = """qemu: hardware error: Unsupported short waccess. reg=0000000000012cdb
"""
STATE = "qemu-system-ppc: invalid runstate transition: 'prelaunch' -> 'suspended'\n"
ASAN = """=================================================================
==12345==ERROR: AddressSanitizer: heap-use-after-free on address 0x60e000001234 at pc 0x55d0
READ of size 8 at 0x60e000001234 thread T0
    #0 0x55d0c0de in e1000e_core ../hw/net/e1000e_core.c:99
SUMMARY: AddressSanitizer: heap-use-after-free ../hw/net/e1000e_core.c:99 in e1000e_core
"""


@pytest.mark.parametrize(("stderr", "signature"), [
    (LIBC, "crash:assert:e1000e_update_interrupt_state:core->delayed_causes == N"),
    (LIBC_CXX, "crash:assert:vixl::Decoder::Visit:size <= N"),
    (LIBC_CXX.replace("vixl::Decoder", "(anonymous namespace)::Decoder"),
     "crash:assert:Decoder::Visit:size <= N"),
    (GLIB, "crash:assert:qtest_process_command:(ret == 0)"),
    (GLIB_VALUES, "crash:assert:x86_cpu_new:assertion failed (nr == N): (N == N)"),
    (UNREACHED, "crash:assert:vga_get_bpp:code should not be reached"),
    ("Unexpected error in qemu_memfd_alloc() at util/memfd.c:143:\nqemu: no memory\n",
     "crash:error_abort:qemu_memfd_alloc"),
    (HARDWARE, "crash:hw_error:pl011_read: Bad offset N"),
    (HARDWARE_PLAIN, "crash:hw_error:Unsupported short waccess. reg=N"),
    (STATE, "crash:state:prelaunch:suspended"),
    (ASAN, "sanitizer:AddressSanitizer:heap-use-after-free"),
])
def test_last_words(stderr: str, signature: str) -> None:
    assert crash_signature(stderr, None, signal.SIGABRT) == signature


def test_without_words_it_is_the_signal_or_the_code() -> None:
    assert crash_signature("", None, signal.SIGSEGV) == "crash:signal:SIGSEGV"
    assert crash_signature("warning: nothing\n", None, signal.SIGKILL) == "crash:signal:SIGKILL"
    assert crash_signature("", None, 99) == "crash:signal:99"
    assert crash_signature("", 3, None) == "crash:exit:3"


def test_a_sanitizer_knows_better_than_the_assertion_behind_it() -> None:
    assert crash_signature(LIBC + ASAN, 1, None).startswith("sanitizer:AddressSanitizer")


def test_a_guest_cannot_pretend_an_assertion_in_the_middle_of_a_line() -> None:
    text = "e1000: guest says ERROR:a.c:1:f: assertion failed: (x)\n"
    assert crash_signature(text, None, signal.SIGSEGV) == "crash:signal:SIGSEGV"


@pytest.mark.parametrize("stderr", [LIBC, LIBC_CXX, GLIB, GLIB_VALUES, UNREACHED, HARDWARE, ASAN])
def test_the_same_death_elsewhere_has_the_same_signature(stderr: str) -> None:
    """Other addresses, lines and build folders."""
    other = (stderr.replace("../../", "/build/reproducible/").replace("../", "/usr/src/qemu/")
             .replace("0x60e", "0x71f").replace("460", "991").replace("2312", "7")
             .replace("1478", "3").replace("0x1234abcd", "0x77").replace("==12345==", "==7==")
             .replace("0xff8", "0x1000"))
    assert other != stderr
    assert crash_signature(other, None, 6) == crash_signature(stderr, None, 6)


@given(st.text(), st.integers(-70, 300))
def test_any_words_give_one_short_line(stderr: str, number: int) -> None:
    for text in (stderr, f"q: a.c:1: f(int): Assertion `{stderr}' failed\n",
                 f"q: a.c:1: {stderr}: Assertion `x' failed\n", f"ERROR:a.c:1:{stderr}: x\n",
                 f"ERROR:a.c:1:f: {stderr}\n", f"qemu: hardware error: {stderr}\n"):
        found = crash_signature(text, number, None)
        assert found.startswith(("crash:", "sanitizer:")) and "\n" not in found
        assert len(found) < 400


def test_a_flood_of_words_gives_no_flood_of_a_signature() -> None:
    for text in (f"q: a.c:1: {'f' * 10_000}(int): Assertion `{'x' * 10_000}' failed\n",
                 f"ERROR:a.c:1:{'f' * 10_000}: {'x' * 10_000}\n",
                 f"ERROR: {'A' * 10_000}Sanitizer: {'x' * 10_000}\n"):
        assert len(crash_signature(text, 1, None)) < 400
