"""Finding builds: by name, by path, by default; and what a build tells of itself."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from qemuglue.errors import BuildError, UsageError
from qemuglue.qemu import builds
from qemuglue.qemu.builds import DESCRIPTION, find_build, installed_builds
from qemuglue.qemu.builds_machines import parse_machine_help


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache and a PATH without QEMU, so that no build of this host is seen."""
    monkeypatch.setenv("QEMUGLUE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.delenv("QEMUGLUE_BUILD", raising=False)
    return tmp_path / "cache"


def fake_qemu(path: Path, version: str = "9.1.0", package: str = "v9.1.0-5-gabc") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\necho "QEMU emulator version {version} ({package})"\n')
    path.chmod(0o755)
    return path


def managed(cache: Path, name: str, version: str) -> Path:
    root = cache / "roots" / f"{name}-x1"
    fake_qemu(root / "usr/bin/qemu-system-x86_64", version)
    (root / DESCRIPTION).write_text(json.dumps({
        "schema": 1, "version": version, "package": "Debian 1", "groups": ["x86"],
        "binaries": {"x86_64": {"path": "usr/bin/qemu-system-x86_64", "sha256": "ab"}},
        "loader": "lib/ld.so", "library_dirs": ["lib/t", "usr/lib/t"],
        "data_dirs": ["usr/share/qemu"], "module_dir": "usr/lib/t/qemu",
    }))
    (cache / "builds").mkdir(exist_ok=True)
    (cache / "builds" / name).symlink_to(Path("..") / "roots" / root.name)
    return root


def test_managed_build_runs_from_its_own_root(cache: Path) -> None:
    root = managed(cache, "sid", "11.1.3")
    build = find_build("sid")
    assert (build.name, build.version, build.root) == ("sid", "11.1.3", root)
    assert build.version_tuple == (11, 1, 3)
    assert build.command("x86_64") == [
        f"{root}/lib/ld.so", "--inhibit-cache", "--library-path",
        f"{root}/lib/t:{root}/usr/lib/t", f"{root}/usr/bin/qemu-system-x86_64",
        "-L", f"{root}/usr/share/qemu",
    ]
    identity = build.identity()
    assert identity["sha256"] == {"x86_64": "ab"} and identity["sizes"]["x86_64"] > 0
    assert str(root) not in json.dumps(identity)


def test_managed_environment_lets_nothing_foreign_in(
    cache: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("LD_PRELOAD", "LD_LIBRARY_PATH", "QEMU_MODULE_DIR", "DISPLAY", "LC_CTYPE"):
        monkeypatch.setenv(name, "foreign")
    monkeypatch.setenv("TMPDIR", "kept")
    root = managed(cache, "sid", "11.1.3")
    environment = find_build("sid").environment()
    assert "foreign" not in environment.values()
    assert environment["TMPDIR"] == "kept"
    assert environment["QEMU_MODULE_DIR"] == f"{root}/usr/lib/t/qemu"


def test_path_build_keeps_the_callers_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "mine")
    build = find_build(fake_qemu(tmp_path / "qemu-system-arm"))
    assert build.environment()["LD_LIBRARY_PATH"] == "mine"


def test_default_is_variable_then_newest_then_path(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(BuildError, match=r"no QEMU here.*builds install.*--build PATH"):
        find_build()
    fake_qemu(tmp_path / "path/qemu-system-arm", "8.0.0")
    fake_qemu(tmp_path / "path/qemu-system-aarch64", "8.0.0")
    assert find_build().targets() == ("aarch64", "arm")
    managed(cache, "b-new", "10.0.2")
    managed(cache, "a-old", "7.2.22")  # 10 is newer than 7, though "7" > "10" as text
    assert [b.name for b in installed_builds()] == ["a-old", "b-new"]
    assert find_build().name == "b-new"
    monkeypatch.setenv("QEMUGLUE_BUILD", "a-old")
    assert find_build().name == "a-old"
    assert find_build("b-new").name == "b-new"


def test_build_tree_and_prefix(tmp_path: Path) -> None:
    tree = tmp_path / "qemu"
    fake_qemu(tree / "build/qemu-system-riscv64")
    (tree / "build/pc-bios").mkdir()
    build = find_build(tree)
    assert build.targets() == ("riscv64",)
    binary = tree / "build/qemu-system-riscv64"
    assert build.command("riscv64") == [str(binary), "-L", str(tree / "build/pc-bios")]
    assert (build.version, build.package) == ("9.1.0", "v9.1.0-5-gabc")
    fake_qemu(tmp_path / "prefix/bin/qemu-system-arm")
    assert find_build(tmp_path / "prefix").targets() == ("arm",)


def test_alias_links_and_other_files_are_no_targets(tmp_path: Path) -> None:
    binary = fake_qemu(tmp_path / "qemu-system-x86_64")
    (tmp_path / "qemu-system-amd64").symlink_to("qemu-system-x86_64")
    fake_qemu(tmp_path / "qemu-system-x86_64-microvm")
    fake_qemu(tmp_path / "qemu-system-arm").chmod(0o644)
    (tmp_path / "qemu-system-mips").mkdir()
    assert builds.binaries_in(tmp_path) == {"x86_64": binary}
    assert find_build(tmp_path / "qemu-system-amd64").targets() == ("amd64",)


def test_binary_with_another_name_is_asked_for_its_target(tmp_path: Path) -> None:
    path = fake_qemu(tmp_path / "my-qemu")
    path.write_text(path.read_text() + 'echo \'{"return": {"arch": "sparc"}}\'\n')
    assert find_build(path).targets() == ("sparc",)


@pytest.mark.parametrize(("name", "words"), [
    ("trixie", "no build 'trixie'.*installed: none.*builds install trixie.*--build PATH"),
    ("/nonexistent/qemu", "no qemu-system binary and no build tree at /nonexistent/qemu"),
    ("empty", "no qemu-system binary in .*empty"),
    ("not-executable", "is not executable"),
    ("not-qemu", "no qemu-system binary that runs here.*'oh'"),
])
def test_what_is_no_build_gets_one_sentence(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "not-executable").write_text("")
    fake_qemu(tmp_path / "not-qemu").write_text("#!/bin/sh\necho oh >&2\n")
    with pytest.raises(BuildError, match=words) as caught:
        find_build(tmp_path / name if (tmp_path / name).exists() else name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 2}', '{"schema": 1}'])
def test_damaged_description_is_reported_and_left_out(cache: Path, text: str) -> None:
    root = managed(cache, "sid", "11.1.3")
    (root / DESCRIPTION).write_text(text)
    assert installed_builds() == []
    with pytest.raises(BuildError, match="--refresh"):
        find_build("sid")


def test_link_to_nowhere_is_reported_and_left_out(cache: Path) -> None:
    root = managed(cache, "sid", "11.1.3")
    root.rename(root.with_name("gone"))
    assert installed_builds() == []
    with pytest.raises(BuildError, match=r"damaged.*--refresh"):
        find_build("sid")


def test_missing_target_says_how_to_get_it(cache: Path) -> None:
    managed(cache, "sid", "11.1.3")
    with pytest.raises(BuildError, match=r"no qemu-system-mips, only x86_64.*--targets all"):
        find_build("sid").command("mips")


def test_cache_folder_rules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("QEMUGLUE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert builds.cache_folder() == tmp_path / ".cache/qemuglue"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert builds.cache_folder() == tmp_path / "xdg/qemuglue"
    monkeypatch.setenv("QEMUGLUE_CACHE", os.fspath(tmp_path / "own"))
    assert builds.cache_folder() == tmp_path / "own"


@pytest.mark.parametrize("name", ["", "a/b", "../x", "-t", "UPPER", "a b", "x" * 60])
def test_suite_names_are_checked(name: str) -> None:
    with pytest.raises(UsageError):
        builds.parse_build_names([name])


def test_machine_help_is_parsed() -> None:
    text = (
        "Supported machines are:\n"
        "akita                Sharp SL-C1000 (Akita) PDA (PXA270) (deprecated)\n"
        "pc                   Standard PC (i440FX + PIIX, 1996) (alias of pc-i440fx-10.0)\n"
        "pc-i440fx-10.0       Standard PC (i440FX + PIIX, 1996) (default)\n"
        "s390-ccw-virtio-2.12-x  Guest\n"
        "\x00garbage\n"
    )
    found = parse_machine_help("x86_64", text)
    assert [(m.name, m.alias_of, m.default, m.deprecated, m.versioned) for m in found] == [
        ("akita", "", False, True, False),
        ("pc", "pc-i440fx-10.0", False, False, False),
        ("pc-i440fx-10.0", "", True, False, True),
        ("s390-ccw-virtio-2.12-x", "", False, False, True),
    ]
    assert found[0].description == "Sharp SL-C1000 (Akita) PDA (PXA270)"
    assert found[1].full_name == "x86_64/pc"
