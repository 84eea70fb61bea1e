"""What a QEMU that ended by itself died of, as a signature that is the same on every host."""

from __future__ import annotations

import re
import signal

from qemuglue.errors import plain

#: glibc's assert: ``PROGRAM: FILE:LINE: FUNCTION: Assertion `EXPRESSION' failed.``
_LIBC = re.compile(
    r"^[^\n:]+: [^\n:]+:\d+: (?P<function>[^\n]+?): Assertion `(?P<what>[^\n]+)' failed",
    re.MULTILINE,
)
#: GLib's: ``ERROR:FILE:LINE:FUNCTION: assertion failed: (EXPRESSION)`` or ``… code should not be
#: reached``.
_GLIB = re.compile(r"^(?:Bail out! )?ERROR:[^\n:]+:\d+:(?P<function>[^\n:]+): (?P<what>[^\n]+)",
                   re.MULTILINE)
#: ``hw_error``: ``qemu: hardware error: TEXT``.
_HARDWARE = re.compile(r"^qemu: hardware error: (?P<what>[^\n]+)", re.MULTILINE)
#: ``error_abort``: ``Unexpected error in FUNCTION() at FILE:LINE:``, and what it was below.
_ERROR = re.compile(r"^Unexpected error in (?P<function>\w{1,120})\(\) at ", re.MULTILINE)
_SANITIZER = re.compile(r"ERROR: (?P<tool>\w+Sanitizer): (?P<what>[\w-]+)")
#: QEMU's own table of states: ``invalid runstate transition: 'prelaunch' -> 'suspended'``.
_STATE = re.compile(r"^[^\n]*invalid runstate transition: '(?P<old>\w+)' -> '(?P<new>\w+)'",
                    re.MULTILINE)
#: Decimal, with 0x, or as QEMU prints an address without it: 16 digits.
_NUMBER = re.compile(r"0x[0-9a-fA-F]+|\b[0-9a-fA-F]{16}\b|\b\d{2,}\b")

#: Longest name or expression kept: signatures name folders' contents and are read by people.
_LONGEST = 120


def crash_signature(stderr: str, exit_code: int | None, sent_signal: int | None) -> str:
    """``crash:assert:<function>:<expression>``, ``crash:signal:<name>``, …; no addresses,
    line numbers or paths. ``crash:error_abort:<function>`` is an error that QEMU's authors took for
    impossible. ``crash:state:<old>:<new>`` is a change of the machine's state that
    QEMU does not know."""
    sanitizer = _SANITIZER.search(stderr)
    if sanitizer is not None:
        return f"sanitizer:{sanitizer['tool'][-_LONGEST:]}:{sanitizer['what'][:_LONGEST]}"
    for pattern in (_LIBC, _GLIB):
        found = pattern.search(stderr)
        if found is not None:
            return f"crash:assert:{_function(found['function'])}:{_plain(found['what'])}"
    found = _HARDWARE.search(stderr)
    if found is not None:
        return f"crash:hw_error:{_plain(found['what'])}"
    found = _ERROR.search(stderr)
    if found is not None:
        return f"crash:error_abort:{found['function']}"
    found = _STATE.search(stderr)
    if found is not None:
        return f"crash:state:{found['old']}:{found['new']}"
    if sent_signal is not None:
        try:
            name = signal.Signals(sent_signal).name
        except ValueError:
            name = str(sent_signal)
        return f"crash:signal:{name}"
    return f"crash:exit:{exit_code}"


def _function(text: str) -> str:
    """The name alone, of ``name`` or of C++'s ``type name(types)``."""
    words = text.replace("(anonymous namespace)::", "").split("(")[0].split()
    return plain(words[-1][:_LONGEST]) if words else "unknown"


def _plain(text: str) -> str:
    text = text.removeprefix("assertion failed: ").strip()
    return plain(_NUMBER.sub("N", text)[:_LONGEST]).replace("\t", " ")
