"""A check as JUnit XML: a suite a build, a case a machine, for the CI systems that read it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qemuglue.campaign.check_jobs import Shown
from qemuglue.campaign.check_result import CheckResult, Divergence, Status
from qemuglue.errors import EnvironmentFailure, UsageError
from qemuglue.report.check_text import stale

if TYPE_CHECKING:
    from junitparser import Failure

#: Characters XML 1.0 has no way to write; QEMU may print any.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

#: Text of one failure; the JSON has all.
MAX_TEXT = 16 << 10


def require_junit() -> None:
    """Say at once, not after an hour's work, that the package is missing.

    :raise EnvironmentFailure: it is.
    """
    try:
        import junitparser  # noqa: F401
    except ImportError:
        raise EnvironmentFailure(
            "junitparser is not installed: `pip install 'qemuglue[report]'` brings it, --json "
            "does without"
        ) from None


def write_junit(
    path: Path, results: Sequence[CheckResult], shown: Sequence[Shown] = ()
) -> None:
    """Write ``path``, replacing what is there. An oddity that does not show any more is a case
    that was skipped, with what to do about it: nothing is wrong with QEMU there.

    :raise EnvironmentFailure: junitparser is not installed.
    :raise UsageError: the file cannot be written.
    """
    require_junit()
    from junitparser import Error, JUnitXml, Skipped, TestCase, TestSuite

    xml = JUnitXml("qemuglue check")
    for build in dict.fromkeys(result.build for result in results):
        suite = TestSuite(_clean(build))
        mine = [result for result in results if result.build == build]
        suite.add_property("version", _clean(mine[0].version))
        for result in mine:
            case = TestCase(_clean(result.machine), classname=_clean(build), time=result.seconds)
            if result.status == Status.NOT_STARTED:
                case.result = [Skipped(_clean(result.reason))]
            else:
                error = [Error(_clean(result.reason), "error")] * (result.status == Status.ERROR)
                case.result = [*error, *map(_failure, result.divergences)]
            case.system_out = _clean(_told(result))
            suite.add_testcase(case)
        for each in shown:
            if each.build == build and not each.shows:
                case = TestCase(_clean(f"oddity {each.oddity}"), classname=_clean(build))
                case.result = [Skipped(_clean(each.reason or stale(each)))]
                suite.add_testcase(case)
        xml.add_testsuite(suite)
    xml.update_statistics()  # type: ignore[no-untyped-call]
    try:
        xml.write(str(path), pretty=True)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None


def _failure(found: Divergence) -> Failure:
    k, n = found.confirmed
    lines = [
        f"{found.place} ({found.witness}, seen {k} of {n} times)",
        *(f"model says: {text}" for text in found.model),
        *(f"QEMU says:  {text}" for text in found.qemu),
        found.program,
    ]
    from junitparser import Failure

    failure = Failure(_clean(found.signature), found.kind)
    failure.text = _clean("\n".join(lines))
    return failure


def _told(result: CheckResult) -> str:
    verdicts = ", ".join(
        f"{kind}: {row}" for kind, row in result.tally.to_json()["kinds"].items()
    )
    lines = [
        f"QEMU {result.version}, seed {result.seed}: {result.map.exact} of {result.map.views} "
        f"views exact, {result.tally.total} accesses ({verdicts})",
        *(f"known: {each.oddity}: {each.found.signature} at {each.found.place}"
          for each in result.known),
        *(f"note: {note}" for note in result.notes),
    ]
    return "\n".join(lines)


def _clean(text: str) -> str:
    return _NOT_XML.sub("?", text)[:MAX_TEXT]
