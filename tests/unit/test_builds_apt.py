"""The private apt: what it takes from the host's configuration and what it keeps out."""

from __future__ import annotations

from pathlib import Path

import pytest

from qemuglue.errors import BuildError
from qemuglue.qemu import builds_apt
from qemuglue.qemu.builds_apt import (
    PrivateApt,
    Source,
    candidates,
    host_sources,
    parse_deb822,
    parse_one_line,
)

DEB822 = """\
Types: deb deb-src
# a comment
URIs: http://mirror.example/debian http://other.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Architectures: amd64
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc

Types: deb-src
URIs: http://sources.example/
Suites: bookworm
Components: main

Enabled: no
Types: deb
URIs: http://off.example/
Suites: bookworm
Components: main
"""


def test_deb822_keeps_trust_and_drops_what_we_choose() -> None:
    first, second = parse_deb822(DEB822)
    assert (first.uri, second.uri) == ("http://mirror.example/debian", "http://other.example/debian")
    assert first.suites == ("bookworm", "bookworm-updates")
    stanza = first.stanza(["bookworm", "bookworm-backports"])
    assert stanza.splitlines() == [
        "Types: deb", "URIs: http://mirror.example/debian",
        "Suites: bookworm bookworm-backports", "Components: main",
        "Signed-By: ", " -----BEGIN PGP PUBLIC KEY BLOCK-----", " .", " abc",
    ]
    [again] = parse_deb822(stanza)
    assert again.options[0][0] == "Signed-By" and "abc" in again.options[0][1]


def test_one_line_sources() -> None:
    found = parse_one_line(
        "# deb http://off.example x main\n"
        "deb-src http://src.example x main\n"
        "deb [arch=amd64 signed-by=/k/a.gpg trusted=yes] http://m.example/ubuntu noble main "
        "universe # note\n"
        "deb http://flat.example ./\n"
    )
    assert found == [
        Source("http://m.example/ubuntu", ("noble",), ("main", "universe"),
               (("Signed-By", "/k/a.gpg"), ("Trusted", "yes"))),
        Source("http://flat.example", ("./",), ()),
    ]
    assert "Components: main universe\n" in found[0].stanza(["noble"])


def test_host_files_are_read_in_order_and_unreadable_ones_left_out(tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    (parts / "folder.sources").mkdir(parents=True)
    (parts / "b.sources").write_text(DEB822)
    (parts / "a.list").write_text("deb http://a.example s main\n")
    (parts / "c.list.save").write_text("deb http://c.example s main\n")
    config = {"sourcelist": str(tmp_path / "none"), "sourceparts": str(parts)}
    assert [s.uri.split("/")[2] for s in host_sources(config)] == [
        "a.example", "mirror.example", "other.example"]


def test_candidates_rank_the_hosts_own_archive_and_leave_third_parties_out() -> None:
    main = Source("http://m.example/debian/", ("bookworm", "bookworm-updates"), ("main",))
    again = Source("http://m.example/debian", ("bookworm-backports",), ("main",))
    security = Source("http://m.example/security", ("bookworm-security",), ("main",))
    vendor = Source("http://v.example/deb", ("nodistro",), ("main",))
    sid = Source("http://s.example/debian", ("sid",), ("main",))
    known = [vendor, security, main, sid, again]
    assert [s.uri for s in candidates("sid", known, "bookworm")] == [sid.uri, main.uri]
    assert [s.uri for s in candidates("trixie", known, "bookworm")] == [main.uri, sid.uri]
    assert candidates("bookworm-backports", known, "bookworm")[0] is again
    assert candidates("sid", [vendor, security], "bookworm") == []


def test_backports_bring_their_base_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apt = PrivateApt(tmp_path)
    monkeypatch.setattr(PrivateApt, "run", lambda self, *words: "")
    apt.use(Source("http://m.example", ("bookworm",), ("main",)), "bookworm-backports")
    assert "Suites: bookworm bookworm-backports\n" in (tmp_path / "etc/apt.sources").read_text()
    apt.use(Source("http://m.example", ("bookworm",), ("main",)), "sid")
    assert "Suites: sid\n" in (tmp_path / "etc/apt.sources").read_text()


def test_configuration_names_only_its_own_folder_and_drops_hooks(tmp_path: Path) -> None:
    PrivateApt(tmp_path)
    text = (tmp_path / "apt.conf").read_text()
    for line in (f'Dir::State "{tmp_path}/state";', f'Dir::Cache "{tmp_path}/cache";',
                 f'Dir::State::status "{tmp_path}/status";', "#clear APT::Update;",
                 "#clear DPkg::Post-Invoke;"):
        assert line in text
    assert (tmp_path / "status").read_bytes() == b""


def test_folder_that_apt_cannot_be_told_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="cannot be told to apt"):
        PrivateApt(tmp_path / 'a"b')


def test_first_error_of_apt_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "bin/apt-get"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'W: aside' >&2; echo 'E: No such suite.' >&2; exit 100\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    with pytest.raises(BuildError, match=r"^No such suite\.$"):
        PrivateApt(tmp_path / "apt").run("update")


def test_host_without_apt_is_told_what_to_do_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="no apt-get: give a QEMU of your own with --build PATH"):
        builds_apt.apt_paths()
