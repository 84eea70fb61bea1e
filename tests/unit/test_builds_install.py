"""Installing: all or nothing, one at a time, quick when there is nothing to do."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

import pytest

from qemuglue.errors import BuildError, UsageError
from qemuglue.qemu import builds_install, builds_root
from qemuglue.qemu.builds import binaries_in, find_build, installed_builds
from qemuglue.qemu.builds_install import install


class FakeArchive:
    """Stands in for apt and dpkg: what was asked for, and what fails."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str]]] = []
        self.broken: set[str] = set()
        self.failure: BaseException | None = None

    def download(self, apt: Any, suite: str, packages: list[str], progress: Any) -> list[Path]:
        self.asked.append((suite, packages))
        if suite in self.broken:
            raise BuildError(f"no suite {suite}")
        return [Path(f"{package}_1.deb") for package in packages]

    def unpack(self, archives: list[Path], root: Path) -> None:
        folder = root / "usr/bin"
        folder.mkdir(parents=True)
        for name in [*(a.stem.split("_")[0] for a in archives), "qemu-img", "other"]:
            (folder / name).write_text("")
            (folder / name).chmod(0o755)
        (root / "usr/share/doc/x").mkdir(parents=True)

    def describe(self, root: Path) -> dict[str, Any]:
        if self.failure is not None:
            raise self.failure
        names = {t: {"path": str(p.relative_to(root)), "sha256": ""}
                 for t, p in binaries_in(root / "usr/bin").items()}
        return {"schema": 1, "version": "9.0.0", "package": "", "binaries": names, "loader": "ld",
                "library_dirs": [], "data_dirs": [], "module_dir": None}


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeArchive:
    fake = FakeArchive()
    monkeypatch.setenv("QEMUGLUE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(builds_install, "apt_paths", lambda: {})
    monkeypatch.setattr(builds_install, "_download", fake.download)
    monkeypatch.setattr(builds_install, "_unpack", fake.unpack)
    monkeypatch.setattr(builds_install, "describe", fake.describe)
    return fake


def left(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "cache/roots").iterdir())


def test_install_then_nothing_to_do(
    archive: FakeArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    [result] = install(["sid"])
    assert result.fresh and result.build is not None
    assert result.build.targets() == ("arm", "x86")
    root = result.build.root
    assert root is not None and left(tmp_path) == [root.name]
    assert {p.name for p in (root / "usr/bin").iterdir()} == {"qemu-system-arm", "qemu-system-x86"}
    assert not (root / "usr/share/doc").exists()

    def gone() -> dict[str, str]:
        raise BuildError("no apt")

    monkeypatch.setattr(builds_install, "apt_paths", gone)  # offline and without apt
    [again] = install(["sid"], ["arm"])
    assert not again.fresh and again.build == find_build("sid")
    assert len(archive.asked) == 1
    with pytest.raises(BuildError, match="no apt"):
        install(["sid"], ["mips"])


def test_suite_that_cannot_be_had_is_left_out(archive: FakeArchive, tmp_path: Path) -> None:
    archive.broken = {"nosuch"}
    lines: list[str] = []
    bad, good = install(["nosuch", "sid"], progress=lines.append)
    assert bad.build is None and bad.reason == "no suite nosuch"
    assert good.build is not None
    assert any("nosuch: cannot be had: no suite nosuch" in line for line in lines)
    assert [b.name for b in installed_builds()] == ["sid"]


def test_targets_are_added_and_kept(archive: FakeArchive, tmp_path: Path) -> None:
    install(["sid"], ["x86"])
    old = find_build("sid").root
    install(["sid"], ["mips"])
    assert archive.asked[-1] == ("sid", ["qemu-system-x86", "qemu-system-mips"])
    assert find_build("sid").targets() == ("mips", "x86")
    # A QEMU may run from the old root: it goes with the next install, not with this one.
    assert old is not None and old.exists()
    install(["sid"], ["all"])
    assert archive.asked[-1] == ("sid", ["qemu-system"])
    assert not old.exists()
    install(["sid"], ["rx"])
    assert len(archive.asked) == 3  # `all` has every group
    install(["sid"], refresh=True)
    assert archive.asked[-1] == ("sid", ["qemu-system"])


@pytest.mark.parametrize("failure", [BuildError("needs libx"), OSError(28, "no space")])
def test_failure_leaves_nothing_and_keeps_the_old_build(
    archive: FakeArchive, tmp_path: Path, failure: BaseException,
) -> None:
    [first] = install(["sid"], ["x86"])
    archive.failure = failure
    [second] = install(["sid"], ["arm"])
    assert second.build is None and second.reason
    assert find_build("sid") == first.build
    assert first.build is not None and first.build.root is not None
    assert left(tmp_path) == [first.build.root.name]


def test_interrupt_leaves_nothing_half_done(archive: FakeArchive, tmp_path: Path) -> None:
    archive.failure = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        install(["sid"])
    assert left(tmp_path) == [] and installed_builds() == []


def test_what_a_killed_install_left_is_swept(archive: FakeArchive, tmp_path: Path) -> None:
    roots = tmp_path / "cache/roots"
    (roots / ".tmp-sid-abc/usr").mkdir(parents=True)
    (roots / ".tmp-link-x").symlink_to("nowhere")
    (roots / "sid-unnamed").mkdir()
    [result] = install(["sid"])
    assert result.build is not None and result.build.root is not None
    assert left(tmp_path) == [result.build.root.name]


def test_only_one_install_at_a_time(
    archive: FakeArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(builds_install, "LOCK_TIMEOUT_S", 0.3)
    lines: list[str] = []
    (tmp_path / "cache").mkdir()
    with (tmp_path / "cache/install.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(BuildError, match="another install"):
            install(["sid"], progress=lines.append)
    assert lines == ["waiting for another install to end"]
    assert install(["sid"])[0].build is not None


@pytest.mark.parametrize("group", ["", "X86", "../a", "--allow", "a b"])
def test_group_names_are_checked(archive: FakeArchive, group: str) -> None:
    with pytest.raises(UsageError):
        install(["sid"], [group])
    assert archive.asked == []


def test_cache_that_cannot_be_made(
    archive: FakeArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QEMUGLUE_CACHE", str(tmp_path / "file/cache"))
    with pytest.raises(BuildError, match="set QEMUGLUE_CACHE"):
        install(["sid"])


# Section: a path as seen from inside a root


def test_links_stay_inside_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "usr/lib/t").mkdir(parents=True)
    (root / "usr/lib/t/ld.so").write_text("")
    (root / "lib64").symlink_to("usr/lib64")
    (root / "usr/lib64").mkdir()
    (root / "usr/lib64/relative").symlink_to("../lib/t/ld.so")
    (root / "usr/lib64/absolute").symlink_to("/usr/lib/t/ld.so")
    (root / "usr/lib64/above").symlink_to("../../../../usr/lib/t/ld.so")
    (root / "usr/lib64/loop").symlink_to("loop")
    (root / "usr/lib64/host").symlink_to("/bin/sh")
    for name in ("relative", "absolute", "above"):
        assert builds_root.resolve_inside(root, f"/lib64/{name}") == root / "usr/lib/t/ld.so"
    for name in ("loop", "host", "missing"):
        with pytest.raises(BuildError, match="not in the unpacked packages"):
            builds_root.resolve_inside(root, f"/lib64/{name}")


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fELF", b"\x7fELF" + bytes(200)])
def test_what_is_no_program_names_no_loader(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "qemu-system-x"
    path.write_bytes(content)
    with pytest.raises(BuildError):
        builds_root.interpreter(path)
