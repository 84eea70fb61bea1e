"""A diff as JUnit XML: one suite, a case a machine; what a versioned type must not change fails."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from qemuglue.campaign.diff.diffing import MachineDiff, Status
from qemuglue.errors import UsageError
from qemuglue.qemu.builds import Build
from qemuglue.report.junit import require_junit

#: Characters XML 1.0 has no way to write; QEMU may print any.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
#: Text of one case; the JSON has all.
MAX_TEXT = 16 << 10


def write_diff_junit(
    path: Path, before: Build, after: Build, results: Sequence[MachineDiff]
) -> None:
    """Write ``path``, replacing what is there.

    :raise EnvironmentFailure: junitparser is not installed.
    :raise UsageError: the file cannot be written.
    """
    require_junit()
    from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

    suite = TestSuite(_clean(f"{before.name} to {after.name}"))
    for word, build in (("from", before), ("to", after)):
        suite.add_property(word, _clean(f"{build.name} (QEMU {build.version})"))
    for result in results:
        case = TestCase(_clean(result.machine), classname="qemuglue.diff", time=result.seconds)
        if result.status == Status.NOT_STARTED:
            case.result = [Skipped(_clean(result.reason))]
        elif result.status == Status.ERROR:
            case.result = [Error(_clean(result.reason), "error")]
        elif result.status == Status.BROKEN:
            told = [str(change) for change in result.errors] or [result.reason]
            failure = Failure(_clean(told[0]), "versioned machine type changed")
            failure.text = _clean("\n".join(told))
            case.result = [failure]
        case.system_out = _clean("\n".join(_notes(result)))
        suite.add_testcase(case)
    xml = JUnitXml("qemuglue diff")
    xml.add_testsuite(suite)
    xml.update_statistics()  # type: ignore[no-untyped-call]
    try:
        xml.write(str(path), pretty=True)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None


def _notes(result: MachineDiff) -> list[str]:
    changes = result.outcomes.changes if result.outcomes else ()
    return [
        *(str(change) for change in result.maps if change not in result.errors),
        *map(str, result.contracts),
        *(f"{each.operation} ({each.region}): {each.what}: {each.before} -> {each.after}"
          for each in changes),
        *result.notes,
    ]


def _clean(text: str) -> str:
    return _NOT_XML.sub("?", text)[:MAX_TEXT]
