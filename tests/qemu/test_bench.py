"""``qemuglue bench`` measures; how fast is not for a test to say."""

from __future__ import annotations

import json

import pytest

from qemuglue.cli.main import main
from qemuglue.qemu.builds import Build

pytestmark = pytest.mark.qemu

ROWS = ["RAM", "device reads", "device writes", "mix"]
WORDS = ["bench", "--operations", "2000", "--rounds", "1", "--seed", "1"]


def test_it_measures_ram_and_devices(
    newest_build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*WORDS, "--build", newest_build.name, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["build"]) == (1, newest_build.name)
    assert [rate["what"] for rate in document["rates"]] == ROWS
    for rate in document["rates"]:
        assert rate["operations"] == 2000
        assert min(rate["judged_per_s"], rate["counted_per_s"], rate["share"]) > 0
    assert document["bulk"]["bytes"] >= 64 << 20
    assert min(document["bulk"].values()) > 0


def test_what_people_read(newest_build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "--build", newest_build.name]) == 0
    told = capsys.readouterr().out
    assert "medians of 1 rounds of 2,000 operations" in told
    *_, ram, reads, writes, mix, bulk = told.splitlines()
    assert [line[:14].strip() for line in (ram, reads, writes, mix)] == ROWS
    assert bulk.startswith("all RAM, 64 MiB: compared at ") and "memcmp" in bulk


def test_a_machine_that_is_not_there(
    newest_build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*WORDS, "--build", newest_build.name, "--machine", "x86_64/nosuch"]) == 2
    assert "has no machine" in capsys.readouterr().err
