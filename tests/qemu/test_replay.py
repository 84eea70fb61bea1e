"""``qemuglue replay``: what it takes, what it tells, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qemuglue.campaign.explorer import Explorer
from qemuglue.campaign.findings import read_finding
from qemuglue.campaign.settings import Settings, scene
from qemuglue.cli.main import main
from qemuglue.program.text import parse
from qemuglue.qemu.builds import Build

pytestmark = pytest.mark.qemu

CLEAN = """# qemuglue program 1
machine x86_64/q35
args -device edu
setup pci
readl edu-mmio+0x0
writeq pc.ram+0x1000 0x1122334455667788
readw hpet+0x3
inb 0x9000
"""
#: A sized read over the end of flash ends every QEMU so far; a person may ask for it.
CRASH = """# qemuglue program 1
machine x86_64/q35
args -blockdev driver=null-co,node-name=flash,size=1048576,read-zeroes=on -machine pflash0=flash
readl @0xfff00000
readl @0xfffffffd
readl @0x0
"""
#: The power management block, then soft off.
OFF = """outl 0xcf8 0x8000f840
outl 0xcfc 0x601
outl 0xcf8 0x8000f844
outb 0xcfc 0x80
outw 0x604 0x2000
readl 0x0
"""
KEYS = ["schema", "file", "kind", "signature", "build", "version", "machine", "mode",
        "operations", "performed", "verdicts", "verdict", "stderr"]
WRONG = "ports-read-zero"


class Replay:
    """One command line; ``said`` and ``told`` are what it left on stderr and stdout."""

    def __init__(self, capsys: pytest.CaptureFixture[str], build: Build) -> None:
        self.capsys = capsys
        self.build = build
        self.told = self.said = ""

    def __call__(self, *words: str | Path, build: str | None = None) -> int:
        named = ["--build", build if build is not None else self.build.name]
        if build == "":
            named = []
        code = main(["replay", *map(str, words), *named])
        self.told, self.said = self.capsys.readouterr()
        return code

    def json(self, *words: str | Path) -> Any:
        self.code = self(*words, "--json")
        return json.loads(self.told)


@pytest.fixture
def replay(capsys: pytest.CaptureFixture[str], newest_build: Build) -> Replay:
    return Replay(capsys, newest_build)


@pytest.fixture(scope="module")
def finding(newest_build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finding made by a model with one rule wrong."""
    folder = tmp_path_factory.mktemp("findings")
    settings = Settings(devices=("edu",), build=newest_build.name, defect=WRONG)
    explorer = Explorer(scene(settings), folder, seed=3, defect=WRONG)
    try:
        explorer.start()
        assert not explorer.execute(parse(CLEAN))
    finally:
        explorer.close()
    [path] = explorer.progress.findings
    return Path(path)


# -- what it takes ---------------------------------------------------------------------------


def test_a_program_that_is_clean(
    build: Build, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    replay = Replay(capsys, build)
    file = tmp_path / "clean.qg"
    file.write_text(CLEAN)
    document = replay.json(file)
    assert replay.code == 0
    assert list(document) == KEYS
    assert (document["kind"], document["signature"], document["schema"]) == ("none", "", 1)
    assert (document["file"], document["machine"]) == ("clean.qg", "x86_64/q35")
    assert (document["build"], document["version"]) == (build.name, build.version)
    assert (document["operations"], document["performed"]) == (4, 4)
    assert document["verdicts"]["verbs"] == {"inb": 1, "readl": 1, "readw": 1, "writeq": 1}
    assert document["verdict"] == {"index": None, "error": ""}
    kinds = document["verdicts"]["kinds"]
    assert sum(row.get("match", 0) for row in kinds.values()) == 4, kinds


def test_what_people_read(replay: Replay, tmp_path: Path) -> None:
    file = tmp_path / "clean.qg"
    file.write_text(CLEAN)
    assert replay(file) == 0
    lines = replay.told.splitlines()
    assert lines[0].startswith("clean.qg: 4 operations on x86_64/q35, ")
    [first] = [line for line in lines if line.startswith("     0  ")]
    assert first.split() == ["0", "readl", "edu-mmio+0x0", "0xe0000000"]
    assert "          QEMU says:  reply OK 0x00000000010000ed" in lines
    assert "          model says: read of 4 at edu-mmio+0x0" in lines
    assert lines[-1] == "nothing found: 4 match"


def test_a_long_program_shows_its_end(replay: Replay, tmp_path: Path) -> None:
    file = tmp_path / "long.qg"
    file.write_text("# qemuglue program 1\nmachine x86_64/q35\n" + "readb @0x0\n" * 60)
    assert replay(file) == 0
    assert "… 36 operations before (--all-steps shows them)" in replay.told
    assert replay.told.count("readb") == 24
    assert replay(file, "--all-steps") == 0
    assert replay.told.count("readb") == 60 and "before" not in replay.told


def test_a_qtest_script(replay: Replay, tmp_path: Path) -> None:
    file = tmp_path / "script"
    file.write_text("outb 0x70 0x0\ninb 0x71\nclock_step\n")
    document = replay.json(file, "--machine", "x86_64/q35")
    assert (replay.code, document["operations"]) == (0, 2)
    assert "clock_step" in replay.said, "what was left out is said"
    file.write_text("cat << EOF | qemu-system-x86_64 -M q35 -device edu -qtest stdio\n"
                    "readb 0x0\nEOF\n")
    assert replay.json(file)["machine"] == "x86_64/q35"


def test_more_than_one_file(replay: Replay, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(CLEAN)
    documents = replay.json(tmp_path / "a", tmp_path / "b")
    assert [each["file"] for each in documents] == ["a", "b"]


def test_arguments_of_ones_own(replay: Replay, tmp_path: Path) -> None:
    file = tmp_path / "p.qg"
    file.write_text("# qemuglue program 1\nmachine x86_64/q35\nsetup pci\nreadl edu-mmio+0x0\n")
    assert replay(file) == 2 and "edu-mmio" in replay.said
    assert replay(file, "--qemu-args", "-device edu") == 0


# -- findings --------------------------------------------------------------------------------------


def test_a_finding_is_seen_again(replay: Replay, finding: Path) -> None:
    recorded = read_finding(finding)
    document = replay.json(finding)
    assert replay.code == 1
    assert (document["kind"], document["signature"]) == ("divergence", recorded.signature)
    assert recorded.signature == "divergence:reply:port-root:inb"
    assert document["verdict"]["index"] == 3
    assert document["verdict"]["model_says"][-1] == "reply OK 0x0000"
    assert document["verdict"]["qemu_says"][-1] == "reply OK 0x00ff"
    assert dict(recorded.details) == document["verdict"]
    assert replay(finding) == 1
    assert replay.told.splitlines()[-1].endswith("(the same as recorded)")


def test_a_finding_knows_its_build(replay: Replay, finding: Path) -> None:
    assert replay(finding, build="") == 1
    assert f", {replay.build.name} (QEMU" in replay.told


def test_a_finding_that_is_gone(replay: Replay, finding: Path) -> None:
    """The model is right where no defect is planted."""
    assert replay(finding, "--defect", "") == 0
    assert "was not seen again" in replay.told
    assert replay(finding, "--defect", "refused-ones") == 1
    assert "(recorded: divergence:reply:port-root:inb)" in replay.told


def test_one_finding_among_many_files(replay: Replay, finding: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_text(CLEAN)
    documents = replay.json(finding, tmp_path / "a")
    assert replay.code == 1, "the worst counts, wherever it stands"
    assert [each["kind"] for each in documents] == ["divergence", "none"]


# -- ends of QEMU --------------------------------------------------------------------------------


def test_a_crash(build: Build, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    replay = Replay(capsys, build)
    file = tmp_path / "crash.qg"
    file.write_text(CRASH)
    document = replay.json(file)
    assert replay.code == 1
    assert (document["kind"], document["signature"]) == ("crash", "crash:signal:SIGSEGV")
    assert document["verdict"]["index"] == 1
    assert document["verdict"]["error"] == "QEMU was ended by SIGSEGV"
    assert replay(file) == 1
    lines = replay.told.splitlines()
    assert lines[-2:] == ["          QEMU says:  QEMU was ended by SIGSEGV",
                          "crash at operation 1: crash:signal:SIGSEGV"]
    assert "readl @0xfffffffd" in lines[-3], "the one that did it is the last one told"


def test_a_guest_that_switches_itself_off_is_no_crash(replay: Replay, tmp_path: Path) -> None:
    file = tmp_path / "off"
    file.write_text(OFF)
    document = replay.json(file, "--machine", "x86_64/q35")
    assert replay.code == 0
    assert (document["kind"], document["verdict"]["index"]) == ("shutdown", 4)
    assert replay(file, "--machine", "x86_64/q35") == 0
    assert "switched the machine off at operation 4" in replay.told


# -- what it refuses -------------------------------------------------------------------------------


def refused(replay: Replay, *words: str | Path, build: str | None = None) -> str:
    """One sentence on stderr, nothing on stdout, exit code 2."""
    assert replay(*words, build=build) == 2, replay.told
    assert replay.told == "", "stdout is for results"
    assert replay.said.startswith("qemuglue replay: ") and replay.said.count("\n") == 1
    assert "Traceback" not in replay.said
    return replay.said.removeprefix("qemuglue replay: ").rstrip("\n")


def test_files_that_it_cannot_use(replay: Replay, tmp_path: Path) -> None:
    assert refused(replay, tmp_path / "no") == f"{tmp_path / 'no'}: No such file or directory"
    assert "program.qg is missing" in refused(replay, tmp_path)
    garbage = tmp_path / "garbage"
    garbage.write_bytes(bytes(range(256)))
    assert "is not text" in refused(replay, garbage)
    empty = tmp_path / "empty"
    empty.write_text("")
    assert "no operation in it" in refused(replay, empty, "--machine", "x86_64/q35")
    script = tmp_path / "script"
    script.write_text("readb 0x0\n")
    assert "--machine TARGET/NAME" in refused(replay, script)
    program = tmp_path / "p.qg"
    program.write_text("# qemuglue program 1\nmachine x86_64/q35\nreadx @0\n")
    assert "line 3: unknown verb 'readx'" in refused(replay, program)


def test_a_broken_finding(replay: Replay, finding: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "program.qg").write_text(CLEAN)
    assert "finding.json is missing" in refused(replay, broken)
    raw = (finding / "finding.json").read_bytes()
    (broken / "finding.json").write_bytes(raw[: len(raw) // 2])
    assert "truncated or not JSON" in refused(replay, broken)
    (broken / "finding.json").write_bytes(raw.replace(replay.build.name.encode(), b"gone"))
    assert "was found on build 'gone'" in refused(replay, broken, build="")


def test_machines_builds_and_defects_that_are_not_there(replay: Replay, tmp_path: Path) -> None:
    file = tmp_path / "p.qg"
    file.write_text(CLEAN)
    assert "has no machine x86_64/nosuch" in refused(replay, file, "--machine", "x86_64/nosuch")
    assert "has no qemu-system-nosuch" in refused(replay, file, "--machine", "nosuch/q35")
    assert "TARGET/NAME" in refused(replay, file, "--machine", "q35")
    assert "no build 'nosuch'" in refused(replay, file, build="nosuch")
    assert "no build" in refused(replay, file, build=str(tmp_path / "nothing"))
    assert "no defect 'nosuch'" in refused(replay, file, "--defect", "nosuch")
    assert "not a valid device" in refused(replay, file, "--qemu-args", "-device nosuch")
    assert "--nosuch" in refused(replay, file, "--nosuch")


def test_a_region_that_the_machine_does_not_have(replay: Replay, tmp_path: Path) -> None:
    file = tmp_path / "p.qg"
    file.write_text("# qemuglue program 1\nmachine x86_64/q35\nreadl nosuch+0x0\n")
    assert "no region 'nosuch' in memory" in refused(replay, file)


def test_what_a_device_stored_by_itself_is_told(replay: Replay, tmp_path: Path) -> None:
    path = tmp_path / "dma.qg"
    path.write_text("""# qemuglue program 1
machine x86_64/q35
args -device edu
mode parked
setup dma
writel edu-mmio+0x80 0x40000
writel edu-mmio+0x88 0x300000
writel edu-mmio+0x90 0x8
writel edu-mmio+0x98 0x3
""")
    assert replay(path) == 0
    assert "model says: dma of edu: stored 8 bytes at pc.ram+0x300000" in replay.told
