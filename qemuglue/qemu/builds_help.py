"""What a build lists by itself: the text of ``-machine help``, ``-device help`` and the like."""

from __future__ import annotations

import subprocess

from qemuglue.errors import BuildError
from qemuglue.qemu.builds import Build

#: QEMU answers in 50 ms; a first start under load takes seconds.
HELP_TIMEOUT_S = 60


def help_text(build: Build, target: str, option: str) -> str:
    """What qemu-system-``target`` says to ``option help``.

    :raise BuildError: the build has no such target, or does not answer in time.
    """
    try:
        done = subprocess.run(
            [*build.command(target), option, "help"], capture_output=True, text=True,
            errors="replace", env=build.environment(), stdin=subprocess.DEVNULL,
            timeout=HELP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise BuildError(f"{build.name}: qemu-system-{target} {option} help did not answer "
                         f"within {HELP_TIMEOUT_S} s") from None
    except OSError as error:
        raise BuildError(f"{build.name}: qemu-system-{target} cannot be started: "
                         f"{error.strerror}") from None
    return done.stdout
