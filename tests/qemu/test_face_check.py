"""``qemuglue check --face``: faces match QEMU, planted defects do not, designs are named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from qemuglue.campaign.faces.check import check_faces
from qemuglue.campaign.faces.defects import (
    FACE_DEFECTS,
    NOT_SHOWN,
    planted,
    shown_model_defects,
)
from qemuglue.campaign.faces.designs import DESIGNS
from qemuglue.campaign.faces.ground import Ground
from qemuglue.campaign.faces.ops import METHODS, FaceOp
from qemuglue.campaign.faces.result import FaceResult
from qemuglue.campaign.faces.run import BY_DESIGN, DIVERGED, MATCH, UNJUDGED, FaceRun, Judged
from qemuglue.campaign.faces.specs import SPECS, expected
from qemuglue.campaign.settings import ask_ram_id
from qemuglue.cli.main import main
from qemuglue.errors import UsageError
from qemuglue.memory.faces import FACES
from qemuglue.memory.guest_memory.region import GuestRegion
from qemuglue.memory.rules import Rules, rules_for
from qemuglue.qemu.builds import Build
from qemuglue.qemu.config import QemuConfig
from qemuglue.witness.judge import Scene, prepare
from qemuglue.witness.session import Knowledge

pytestmark = pytest.mark.qemu

#: Operations in which a planted defect must show.
MOST_OPS = 3000


def scene_of(build: Build) -> Scene:
    """q35 with a device whose accesses are cut into pieces."""
    config = QemuConfig(build=build, target="x86_64", machine="q35", ram="64M",
                        ram_id=ask_ram_id(build, "x86_64", "q35"), args=("-device", "pci-testdev"))
    scene = Scene(config, Knowledge(), "pci")
    assert not prepare(scene)
    return scene


@pytest.fixture(scope="module")
def run(build: Build) -> Iterator[FaceRun]:
    with FaceRun(scene_of(build), tuple(FACES)) as found:
        yield found


@pytest.fixture(scope="module")
def newest(newest_build: Build) -> Iterator[FaceRun]:
    with FaceRun(scene_of(newest_build), tuple(FACES)) as found:
        yield found


def told(result: FaceResult) -> str:
    return "\n".join(map(str, (result.status, result.reason, *result.divergences)))


# Section: what is right


@pytest.mark.parametrize("machine", ["x86_64/q35", "aarch64/virt", "ppc/mac99"])
def test_every_face_matches(build: Build, machine: str) -> None:
    result = check_faces(build, machine, tuple(FACES), ops=600, seed=3)
    assert result.status == "match" and not result.flaky and not result.deaths, told(result)
    tally = result.tally
    assert tally.total == 600 and tally.of(verdict=MATCH) > 450
    assert tally.soft_share < 0.04 and not tally.of(verdict=DIVERGED)
    assert {face for face, _ in tally.rows()} == set(FACES)
    assert {"ram", "device", "crossing", "unassigned"} <= set(tally.kinds())


def test_the_same_seed_gives_the_same_check(newest_build: Build) -> None:
    first, again, other = (
        check_faces(newest_build, "x86_64/microvm", ("vm-memory",), ops=150, seed=seed)
        for seed in (5, 5, 6)
    )
    assert first.tally.to_json() == again.tally.to_json() != other.tally.to_json()


def test_every_method_has_its_account() -> None:
    assert {face: set(each) for face, each in METHODS.items()} == {
        face: set(each) for face, each in SPECS.items()}
    assert set(METHODS) == set(FACES)


# Section: what is wrong


def first_divergence(run: FaceRun, faces: tuple[str, ...]) -> Judged | None:
    rng = Random(7)
    for _ in range(MOST_OPS):
        op = run.drawer.draw(rng)
        if op.face not in faces:
            continue
        judged = run.step(op)
        if judged.verdict == DIVERGED:
            return judged
        if rng.random() < 0.02 and run.check_ram():
            return run.stray(judged, ("a byte",))
    return None


@pytest.mark.parametrize("name", FACE_DEFECTS)
def test_a_planted_defect_of_a_face_is_found(run: FaceRun, name: str) -> None:
    defect = FACE_DEFECTS[name]
    try:
        with defect.plant():
            run.stand()
            found = first_divergence(run, defect.faces)
    finally:
        run.resync()
        run.stand()
    assert found is not None and found.op.face in defect.faces
    assert found.signature.startswith(f"divergence:{found.what}:")


@pytest.mark.parametrize("name", shown_model_defects())
def test_a_planted_defect_of_the_model_shows_through_a_face(newest: FaceRun, name: str) -> None:
    rules = planted(name, tuple(FACES)).rules
    right = rules_for(newest.session.config.build.version_tuple)
    assert rules is not None
    try:
        newest.go_by(rules(right))
        assert first_divergence(newest, tuple(FACES)) is not None
    finally:
        newest.resync()
        newest.go_by(right)


def test_a_refusal_that_qemu_denies_is_found(newest: FaceRun) -> None:
    """Face and account both miss a region: QEMU, asked whether nothing is there, does not."""
    ram = max(newest.session.mirror.memory.view.sections, key=lambda s: s.region.is_ram * s.size)
    right = Ground.find
    region = GuestRegion.last_addr

    def find(self: Ground, addr: int, *, reserved: bool = False) -> object:
        section = right(self, addr, reserved=reserved)
        return None if section is not None and section.start == ram.start else section

    op = FaceOp("vm-memory", "read_slice", ram.start + 64, 4)
    Ground.find = find  # type: ignore[method-assign, assignment]
    GuestRegion.last_addr = lambda self: (  # type: ignore[method-assign]
        self.start_addr() if self.start_addr().raw_value() == ram.start else region(self))
    try:
        newest.stand()
        judged = newest.step(op)
    finally:
        Ground.find = right  # type: ignore[method-assign]
        GuestRegion.last_addr = region  # type: ignore[method-assign]
        newest.stand()
    assert (judged.verdict, judged.what) == (DIVERGED, "refusal")
    assert newest.step(op).verdict == MATCH


# Section: what is by design


def places(run: FaceRun) -> dict[str, int]:
    """Addresses that the designs need."""
    sections = {s.region.name: s for s in run.session.mirror.memory.view.sections}
    ram = run.session.mirror.memory.view.lookup(0)
    return {"ram": 0x1000, "border": ram.last + 1, "hpet": sections["hpet"].start,
            "ioapic": sections["ioapic"].start,
            "rom": sections["pc.bios"].start}


#: Design -> the operations that show it: face, method, place, offset, size, type.
SHOWN: dict[str, list[tuple[str, str, str, int, int, str]]] = {
    "one-region": [
        ("memory-map", "read_obj", "border", -2, 4, "Le32"),
        ("memory-map", "read", "border", -2, 4, ""),
        ("accessor", "write_obj", "border", -1, 2, "Be16"),
        ("vm-memory", "load", "border", -2, 4, "Le32"),
        ("rust", "load", "border", -2, 4, "Le32"),
    ],
    "aligned-only": [
        ("aligned", "read_obj", "ram", 1, 4, "Le32"),
        ("vm-memory", "store", "ram", 2, 4, "Be32"),
        ("memory-map", "load", "ram", 1, 2, "Le16"),
    ],
    "atomic-only": [
        ("aligned", "read_atomic", "rom", 0, 4, "Le32"),
    ],
    "one-access": [
        ("accessor", "read_buffer", "hpet", 2, 4, ""),
        ("rust", "load", "hpet", 2, 4, "Le32"),
        ("memory-map", "read_obj", "hpet", 2, 4, "Le32"),
    ],
    "first-error-ends": [
        ("vm-memory", "read", "hpet", 0x3FC, 8, ""),
        ("rust", "read_slice", "hpet", 0x3F8, 12, ""),
    ],
    "host-elsewhere": [
        ("vm-memory", "get_host_address", "rom", 0, 8, ""),
        ("rust", "get_host_address", "ram", 0, 8, ""),
        ("memory-map", "get_host_address", "rom", 0, 8, ""),
    ],
    "cut-by-qtest": [
        ("rust", "load", "ioapic", 0, 8, "Le64"),
        ("vm-memory", "store", "ioapic", 0, 8, "Be64"),
        ("accessor", "read_volatile", "ioapic", 0, 8, "LeSize"),
    ],
}


def test_every_design_is_shown() -> None:
    assert {*SHOWN, "no-wrap", "rom-device-end"} == set(DESIGNS)


def test_beyond_a_rom_device_nothing_is_read(newest_build: Build) -> None:
    """QEMU ends with SIGSEGV where qtest does that; no face lets it come so far."""
    config = QemuConfig(build=newest_build, target="aarch64", machine="virt", ram="64M",
                        ram_id=ask_ram_id(newest_build, "aarch64", "virt"))
    scene = Scene(config, Knowledge())
    prepare(scene)
    with FaceRun(scene, tuple(FACES)) as run:
        section = next(s for s in run.session.mirror.memory.view.sections if s.romd)
        for face, method in (("rust", "load"), ("vm-memory", "load"), ("accessor", "read_obj"),
                             ("memory-map", "read_obj"), ("vm-memory", "read_obj")):
            judged = run.step(FaceOp(face, method, section.last - 1, 4, "Le32"))
            if face == "rust":
                assert (judged.verdict, judged.why) == (BY_DESIGN, ("rom-device-end",))
            else:
                assert judged.verdict in (BY_DESIGN, MATCH), judged


def test_nothing_wraps_for_axaddrspace(newest: FaceRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """No machine has memory at the last address: it is put there."""
    ram = newest.session.mirror.memory.view.lookup(0)
    top = replace(ram, start=(1 << 64) - ram.size)
    ground = Ground(newest.session)
    monkeypatch.setattr(ground, "find", lambda addr, reserved=False: top)
    op = FaceOp("accessor", "read_buffer", (1 << 64) - 2, 4)
    assert expected(ground, op).told == "AddressOverflow(0xfffffffffffffffe, 4)"
    assert ground.designs == {"no-wrap"}


@pytest.mark.parametrize("design", SHOWN)
def test_a_design_is_told_by_its_name(newest: FaceRun, design: str) -> None:
    where = places(newest)
    for face, method, place, offset, size, cls in SHOWN[design]:
        data = bytes(size) if METHODS[face][method].is_write else b""
        op = FaceOp(face, method, where[place] + offset, size, cls, data)
        judged = newest.step(op)
        if design == "cut-by-qtest":
            assert judged.verdict == UNJUDGED and "cut-by-qtest" in judged.why[0], op
        else:
            assert judged.verdict == BY_DESIGN and design in judged.why, (op, judged)


# Section: the command


def test_the_command(newest_build: Build, capsys: pytest.CaptureFixture[str],
                     tmp_path: Path) -> None:
    words = ["check", "x86_64/q35", "--build", newest_build.name, "--ops", "200", "--seed", "1"]
    junit = tmp_path / "faces.xml"
    assert main([*words, "--face", "accessor", "--face", "rust", "--junit", str(junit)]) == 0
    out = capsys.readouterr()
    assert out.err.startswith("seed 1\n")
    assert "200 operations of 2 faces" in out.out and "read_buffer" in out.out
    assert "1 machine: 1 match" in out.out
    assert 'name="x86_64/q35 (faces accessor, rust)"' in junit.read_text()
    assert main([*words, "--face", "all", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == 1 and found["summary"]["match"] == 1
    assert found["summary"]["operations"] == 200 and set(found["designs"]) == set(DESIGNS)
    assert set(found["results"][0]["tally"]["faces"]) == set(FACES)


def test_the_command_finds_what_is_planted(
    newest_build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["check", "x86_64/q35", "--build", newest_build.name, "--seed", "1", "--ops", "60"]
    assert main([*words, "--face", "memory-map", "--defect", "last-byte-lost"]) == 1
    out = capsys.readouterr().out
    assert "divergence:outcome:" in out and "(seen 2 of 2 times)" in out
    assert "  face: " in out and "  QEMU: " in out
    assert "Planted: last-byte-lost (an access ends a byte before its region)" in out
    assert main([*words, "--face", "vm-memory", "--defect", "rom-writable", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["summary"]["diverged"] == 1 and found["results"][0]["divergences"]


def test_usage(newest_build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*words: str) -> str:
        assert main(["check", "--build", newest_build.name, *words]) == 2
        return capsys.readouterr().err

    assert "no face 'c'; there are vm-memory, aligned" in refused("--face", "c")
    assert "give 1 to" in refused("--face", "rust", "--ops", "0")
    assert "--qom does not go with --face" in refused("--face", "rust", "--qom")
    assert "no machine x86_64/none-such" in refused("--face", "rust", "x86_64/none-such")
    for name, why in (("stops-at-error", "no face shows"), ("fill-short", "no defect of the"),
                      ("line-lost", "no defect of the"), ("nothing", "with --face there are")):
        assert why in refused("--face", "rust", "--defect", name)
    for name in NOT_SHOWN:
        with pytest.raises(UsageError, match="no face shows"):
            planted(name, tuple(FACES))
    assert "is not in rust or accessor; it shows with --face memory-map" in refused(
        "--face", "rust", "--face", "accessor", "--defect", "last-byte-lost")
    assert not planted("", ()).name


def test_a_device_that_no_contract_explains_diverges(
    newest_build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a check without faces: what the probe gave up on is not left out in silence."""
    whole = Rules.pieces
    monkeypatch.setattr(Rules, "pieces", lambda *args: whole(*args)[:1])
    result = check_faces(newest_build, "x86_64/microvm", ["rust"], ops=20, seed=1)
    assert result.status == "diverged"
    assert {each.signature for each in result.divergences} == {"divergence:contract"}
    assert "pic" in {each.region for each in result.divergences}
