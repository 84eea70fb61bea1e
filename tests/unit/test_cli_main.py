"""The command line's frame: verbs, exit codes, one-sentence errors."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from qemuglue.cli import common, main
from qemuglue.errors import LaunchError, QemuDied, UsageError


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], int]], None]:
    """Puts a verb of our own, with all shared options, in the place of ``map``."""

    def put(run: Callable[[Any], int]) -> None:
        def add_arguments(parser: argparse.ArgumentParser) -> None:
            parser.add_argument("machine", nargs="?")
            common.add_build(parser, repeatable=True)
            common.add_qemu_args(parser)
            common.add_json(parser)
            common.add_seed(parser)

        module = SimpleNamespace(HELP="A test.", add_arguments=add_arguments, run=run)
        monkeypatch.setattr(main, "load_verb", lambda name: module)

    return put


def test_options_work_behind_the_verb(verb: Any) -> None:
    seen: list[argparse.Namespace] = []
    verb(lambda args: seen.append(args) or 1)
    words = ["map", "x86_64/q35", "--build", "a", "--build", "b", "--qemu-args", "-S",
             "--qemu-args", "-device 'e du'", "--seed", "0x10", "--debug", "--json"]
    assert main.main(words) == 1
    [args] = seen
    assert (args.machine, args.build, args.seed, args.json) == ("x86_64/q35", ["a", "b"], 16, True)
    assert args.qemu_args == ["-S", "-device", "e du"]
    assert main.main(["--debug", "map"]) == 1
    assert seen[1].build == [] and seen[1].qemu_args == []


@pytest.mark.parametrize("words", [
    ["map", "--nosuch"], ["map", "--bui", "x"], ["map", "--seed", "x"], ["map", "--seed", "-1"],
    ["map", "--seed", str(1 << 64)], ["map", "--qemu-args", "'"], ["map", "--qemu-args"],
    ["map", "a", "b"],
])
def test_wrong_usage_is_one_sentence(
    verb: Any, capsys: pytest.CaptureFixture[str], words: list[str],
) -> None:
    verb(lambda args: 0)
    assert main.main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("qemuglue map: ") and err.count("\n") == 1


def test_errors_become_exit_codes(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    refused = LaunchError("QEMU refused to start", stderr="a\nqemu: no such device\n")
    for error, code, words in (
        (UsageError("give a\nmachine"), 2, "qemuglue map: give a machine\n"),
        (refused, 2, "qemuglue map: QEMU refused to start: qemu: no such device\n"),
        (QemuDied(signal=9), 2, "qemuglue map: QEMU was ended by SIGKILL\n"),
        (PermissionError(13, "Permission denied", "x.qg"), 2,
         "qemuglue map: x.qg: Permission denied\n"),
        (ZeroDivisionError("oh"), 2, "qemuglue map: internal error, please report it: "
         "ZeroDivisionError: oh (--debug shows where)\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ):
        def run(args: Any, error: BaseException = error) -> int:
            raise error

        verb(run)
        assert main.main(["map"]) == code
        assert capsys.readouterr().err == words


def test_debug_shows_the_traceback(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def run(args: Any) -> int:
        raise UsageError("oh")

    verb(run)
    assert main.main(["map", "--debug"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and err.endswith("qemuglue map: oh\n")


def test_help_lists_only_verbs_that_are_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(main.VERBS, "no-such-module", "text")
    assert main.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "  doctor" in out and "no-such-module" not in out
    assert main.main([]) == 2
    assert main.main(["no-such-module"]) == 2
    assert main.main(["os"]) == 2  # a module of that name exists, a verb does not
    err = capsys.readouterr().err
    assert "no verb 'no-such-module'; there are doctor" in err


@pytest.mark.parametrize("name", list(main.verbs()))
def test_every_verb_keeps_the_form(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = main.load_verb(name)
    assert module.HELP and name == module.NAME
    assert main.main([name, "--help"]) == 0
    assert main.main(["help", name]) == 0
    assert f"usage: qemuglue {name}" in capsys.readouterr().out


def test_help_imports_no_verb_and_nothing_heavy() -> None:
    code = ("import sys; from qemuglue.cli.main import main; main(['--help']); "
            "print([m for m in ('rich', 'jinja2', 'atheris', 'hypothesis', 'elftools', 'qemu.qmp',"
            " 'qemuglue.cli.doctor') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_reader_that_stops_is_no_traceback() -> None:
    code = "import sys; from qemuglue.cli.main import main; sys.exit(main(['--help']))"
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -c \"{code}\" | true; echo ${{PIPESTATUS[0]}}"],
        capture_output=True, text=True, timeout=60)
    assert done.stderr == "" and done.stdout in ("0\n", "141\n")


def test_doctor_and_builds_speak_json(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("QEMUGLUE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("QEMUGLUE_BUILD", raising=False)
    assert main.main(["doctor", "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    status = {check["name"]: check["status"] for check in document["checks"]}
    assert not document["ok"]
    assert status["default build"] == "missing"
    assert (status["apt"], status["python"]) == ("limited", "ok")
    assert main.main(["builds", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["builds"] == []
    assert main.main(["builds", "install", "sid", "--json"]) == 2
    assert "--build PATH" in capsys.readouterr().err
