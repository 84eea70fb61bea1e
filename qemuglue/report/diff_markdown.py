"""A diff on the summary page of a GitHub job: one heading, and the page of the terminal, folded."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from qemuglue.campaign.diff.diffing import MachineDiff, Status
from qemuglue.errors import UsageError
from qemuglue.qemu.builds import Build
from qemuglue.report.markdown import MAX_BYTES, VARIABLE

#: Control characters have no place in a page; the fence keeps everything else from being markup.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def append_diff(
    text: str, before: Build, after: Build, results: Sequence[MachineDiff]
) -> bool:
    """Append to the file that :data:`VARIABLE` names. False: none is named.

    :raise UsageError: the file cannot be written.
    """
    named = os.environ.get(VARIABLE, "")
    if not named:
        return False
    path = Path(named)
    try:
        room = MAX_BYTES - (path.stat().st_size if path.exists() else 0)
        with path.open("a", encoding="utf-8") as file:
            file.write(page(text, before, after, results, max_bytes=room))
    except OSError as error:
        raise UsageError(f"{VARIABLE}: {path} cannot be written: {error.strerror}") from None
    return True


def page(
    text: str, before: Build, after: Build, results: Sequence[MachineDiff], *,
    max_bytes: int = MAX_BYTES,
) -> str:
    """The block to append; ``text`` is cut where the whole would be longer. "" without room."""
    counts = Counter(result.status for result in results)
    broken = counts[Status.BROKEN]
    heading = (
        f"### qemuglue diff: {broken} versioned machine type{'s' * (broken != 1)} broken"
        if broken else "### qemuglue diff: no versioned machine type broken"
    )
    versions = f"QEMU {before.version} to {after.version}, {len(results)} machines"
    text = _UNPRINTABLE.sub("?", text)
    fence = "`" * (3 + max(map(len, re.findall("`+", text)), default=0))
    head = f"{heading}\n\n<details><summary>{versions}</summary>\n\n{fence}text\n"
    tail = f"\n{fence}\n\n</details>\n\n"
    cut = "\n… --json has all"
    room = max_bytes - len((head + tail + cut).encode())
    if room <= 0:
        return ""
    kept = text.encode()
    if len(kept) > room:
        text = kept[:room].decode("utf-8", "ignore") + cut
    return head + text.rstrip("\n") + tail
