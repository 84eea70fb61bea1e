"""README.md says what is so: its Python runs, its programs parse, its verbs and files exist."""

import argparse
import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from qemuglue.campaign.targets import TARGETS
from qemuglue.cli.main import join_qemu_args, load_verb, verbs
from qemuglue.program import parse_text

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "README.md").read_text(encoding="utf-8")
CHANGES = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.M | re.S)

#: A command line, or part of one: up to the end of the line, a backtick or a comment.
_COMMAND = re.compile(r"(?<![\w./-])qemuglue ([^`\n#]+)")


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


def commands() -> list[str]:
    """What stands behind `qemuglue` in shell blocks and between backticks."""
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", PAGE, flags=re.M | re.S))
    found = [text for source in (*blocks("sh"), *spans) for text in _COMMAND.findall(source)]
    assert len(found) > 15, "the pattern finds no commands any more"
    return [text.strip() for text in found]


def test_python_blocks_run_and_print_what_is_said():
    said = blocks("output")
    assert len(blocks("python")) == len(said) > 0
    names: dict[str, object] = {"__name__": "readme"}  # a block goes on where the last one ended
    for source, expected in zip(blocks("python"), said, strict=True):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(source, "README.md", "exec"), names)
        assert printed.getvalue() == expected


def test_program_examples_parse():
    assert len(blocks("qg")) >= 2
    for text in blocks("qg"):
        program = parse_text(text)
        assert program.canonical_text() == text, "an example is in canonical form"


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_commands_are_accepted(command):
    verb, *words = join_qemu_args(shlex.split(command))
    if verb in ("VERB", "--help"):
        return
    assert verb in verbs()
    if not words:
        return
    module = load_verb(verb)
    parser = argparse.ArgumentParser(prog=f"qemuglue {verb}", exit_on_error=False)
    module.add_arguments(parser)
    mentioned = {word.partition("=")[0] for word in words if word.startswith("--")}
    try:
        parser.parse_args(words)
    except (argparse.ArgumentError, SystemExit) as error:
        # In the text a mention may leave out what the verb must have (`machines --start` is whole,
        # `map --tree` is not); its options must be there all the same.
        if not mentioned or not mentioned <= _options(parser):
            pytest.fail(f"qemuglue {command}: {error}")


def _options(parser: argparse.ArgumentParser) -> set[str]:
    return {name for action in parser._actions for name in action.option_strings}


def test_every_verb_has_a_row():
    table = re.findall(r"^\| `(\w+)` \|.*\| `qemuglue (\w+)[^|]*\|$", PAGE, re.M)
    assert [left for left, _ in table] == [right for _, right in table]
    assert {verb for verb, _ in table} == set(verbs())


def test_the_targets_named_exist():
    named = re.findall(r"qemuglue fuzz (\w+)", PAGE) + re.findall(r"--target=(\w+)", PAGE)
    assert set(named) <= set(TARGETS) and set(named) == set(TARGETS)


def test_links_lead_somewhere():
    links = re.findall(r"\[[^\]]+\]\(([^)]+)\)", PAGE)
    assert links and not [link for link in links if not (ROOT / link).exists()]


def test_scripts_named_exist_and_can_be_run():
    named = set(re.findall(r"\bci/(\w+)", PAGE + CHANGES))
    there = {
        path.name for path in (ROOT / "ci").iterdir()
        if path.is_file() and path.stat().st_mode & 0o100
    }
    assert named == there


def test_every_room_is_on_the_map():
    rooms = {path.parent.name for path in (ROOT / "qemuglue").glob("*/__init__.py")}
    named = set(re.findall(r"^\| \[qemuglue/(\w+)\]", PAGE, re.M))
    assert named == rooms


def test_no_path_of_one_machine():
    assert not re.search(r"/(root|home|work)/|\bhttps?://(?!www\.gnu\.org)", PAGE + CHANGES)


def test_changelog_has_this_version():
    import qemuglue

    assert f"\n## {qemuglue.__version__}\n" in CHANGES
