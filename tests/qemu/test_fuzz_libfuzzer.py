"""``qemuglue-fuzz`` as libFuzzer executable: every mode that starts further processes works."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qemuglue.campaign.feedback import has_atheris
from qemuglue.campaign.findings import read_finding
from qemuglue.program.codec import encode
from qemuglue.program.layout import Layout
from qemuglue.program.text import parse
from qemuglue.qemu.builds import Build

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(not has_atheris(), reason="Atheris is not installed"),
]

ROOT = Path(__file__).parents[2]
SEEDS = ROOT / "corpora" / "access"
SCRIPT = Path(sys.executable).parent / "qemuglue-fuzz"


def fuzz(
    build: Build, cwd: Path, *words: str, target: str = "access", script: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run it in ``cwd``; as the console script, or as the thin script beside the sources."""
    start = [str(SCRIPT), f"--target={target}"]
    if script:
        start = [sys.executable, str(ROOT / "fuzz" / f"{target}_fuzzer.py")]
    return subprocess.run(
        [*start, f"--build={build.name}", *words], cwd=cwd, capture_output=True, text=True,
        timeout=110, check=False,
    )


def test_a_few_runs(build: Build, tmp_path: Path) -> None:
    # The first folder is where libFuzzer writes: never the project's own seeds.
    (tmp_path / "c").mkdir()
    done = fuzz(build, tmp_path, "-runs=20", "c", str(SEEDS))
    assert done.returncode == 0, done.stderr
    assert "cov: " in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("script", [False, True])
def test_merge_writes_files(newest_build: Build, tmp_path: Path, script: bool) -> None:
    (tmp_path / "into").mkdir()
    done = fuzz(newest_build, tmp_path, "--qemu-args=-name 'a b'", "-merge=1", "into",
                str(SEEDS), script=script)
    assert done.returncode == 0, done.stderr
    merged = {path.read_bytes() for path in (tmp_path / "into").iterdir()}
    assert len(merged) >= 4, done.stderr
    assert merged <= {path.read_bytes() for path in SEEDS.iterdir()}


def test_fork_mode_fuzzes(newest_build: Build, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    done = fuzz(newest_build, tmp_path, "-fork=2", "-runs=50", "c", str(SEEDS))
    assert done.returncode == 0, done.stderr
    assert "oom/timeout/crash: 0/0/0" in done.stderr
    assert len(list((tmp_path / "c").iterdir())) >= 4


def test_jobs_each_do_their_runs(newest_build: Build, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    done = fuzz(newest_build, tmp_path, "-jobs=2", "-workers=2", "-runs=20", "c", str(SEEDS))
    assert done.returncode == 0, done.stderr
    for log in ("fuzz-0.log", "fuzz-1.log"):
        # More where the other job had put inputs into the corpus before this one read it.
        done_runs = re.search(r"Done (\d+) runs", (tmp_path / log).read_text(errors="replace"))
        assert done_runs is not None and int(done_runs[1]) >= 20


def test_a_finding_is_a_crash_file(newest_build: Build, tmp_path: Path) -> None:
    done = fuzz(newest_build, tmp_path, "-runs=500", target="canary", script=True)
    assert done.returncode == 77, done.stderr
    [crash] = tmp_path.glob("crash-*")
    [folder] = (tmp_path / "findings").iterdir()
    finding = read_finding(folder)
    assert (finding.kind, finding.defect) == ("divergence", "alignment-ignored")
    assert finding.signature in done.stdout + done.stderr
    assert (folder / "input.bin").read_bytes() == crash.read_bytes()


def test_a_crash_file_is_minimised(newest_build: Build, tmp_path: Path) -> None:
    # One unaligned access to nothing is what the defect needs; the zeros are ballast.
    program = parse("# qemuglue program 1\nmachine x86_64/q35\nreadl @0x123456789b\n")
    crash = tmp_path / "crash"
    crash.write_bytes(encode(program, Layout({})).ljust(49, b"\0"))
    # libFuzzer goes on as long as it finds something smaller, each time in a new process with a
    # new QEMU: one smaller file is enough here. It dies with its process group.
    process = subprocess.Popen(
        [str(SCRIPT), "--target=canary", f"--build={newest_build.name}", "-minimize_crash=1",
         "-runs=200", "crash"],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until = time.monotonic() + 60
        smaller: list[Path] = []
        while not smaller and process.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
            smaller = list(tmp_path.glob("minimized-from-*"))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert smaller and 0 < smaller[0].stat().st_size < 49
    again = fuzz(newest_build, tmp_path, smaller[0].name, target="canary")
    assert again.returncode == 77, "the smaller file shows the finding too"


def test_keep_going_records_and_goes_on(newest_build: Build, tmp_path: Path) -> None:
    done = fuzz(newest_build, tmp_path, "--keep-going", "--out=o", "-runs=15", target="canary")
    assert done.returncode == 0, done.stderr
    assert "Done 15 runs" in done.stderr
    assert list((tmp_path / "o" / "findings").iterdir())
    assert not list(tmp_path.glob("crash-*"))


@pytest.mark.parametrize("words", [
    ("--build=/no/such/qemu",), ("--device=nosuch",), ("--target=nosuch",), ("--nosuch",),
    ("--device=nosuch", "-merge=1", "into", str(SEEDS)), ("--machine=x86_64/nosuch",),
])
def test_a_wrong_environment_is_one_sentence_and_no_crash_file(
    newest_build: Build, tmp_path: Path, words: tuple[str, ...]
) -> None:
    (tmp_path / "into").mkdir()
    done = fuzz(newest_build, tmp_path, *words)
    assert done.returncode == 2, done.stderr
    said = [line for line in done.stderr.splitlines() if not line.startswith("INFO: ")]
    assert len(said) == 1 and said[0].startswith("qemuglue-fuzz: "), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["into"]
