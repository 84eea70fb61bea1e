"""DMA on real QEMU: fw_cfg predicted to the byte, a stray write found, a wrong model seen.

A stray is planted by this process, in the file that is QEMU's memory: nothing tells the model.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random

import pytest

from qemuglue.campaign.settings import Settings, scene
from qemuglue.program.operation import Operation, Place, Program
from qemuglue.program.recipes.fw_cfg import FwCfgRecipe
from qemuglue.program.recipes.recipe import scratch_of
from qemuglue.qemu.builds import Build
from qemuglue.witness.dma.device import Port
from qemuglue.witness.dma.fw_cfg import FwCfg
from qemuglue.witness.dma.items import Item
from qemuglue.witness.judge import Kind, Scene, prepare, replay, resolve
from qemuglue.witness.lockstep import LockStep, RunEnd, Stop
from qemuglue.witness.session import Session
from qemuglue.witness.verdict import Kind as Row
from qemuglue.witness.verdict import Tally, Verdict

pytestmark = pytest.mark.qemu

READ, SKIP, SELECT, WRITE = 0x02, 0x04, 0x08, 0x10
SIGNATURE, DIRECTORY = 0x00, 0x19
STRUCTURE, BUFFER = 0x20_0000, 0x30_0000


@pytest.fixture(scope="module")
def stage(build: Build) -> Scene:
    """A PC whose PCI devices may all master the bus; what there is to learn is known."""
    made = scene(Settings(devices=("edu", "pci-testdev"), build=build.name, setup="dma"))
    assert prepare(made) == []
    return made


def transfer(
    control: int, length: int, address: int = BUFFER, *, key: int | None = None,
    at: int = STRUCTURE,
) -> list[Operation]:
    """The operations of one transfer."""
    if key is not None:
        control |= key << 16 | SELECT
    block = struct.pack(">IIQ", control, length, address)
    low = int.from_bytes(at.to_bytes(4, "big"), "little")
    return [Operation("write", Place(offset=at), 16, 0, block),
            Operation("outl", Place(offset=0x514), 4, 0),
            Operation("outl", Place(offset=0x518), 4, low)]


def read(at: int, size: int) -> Operation:
    return Operation("read", Place(offset=at), size)


def acts(tally: Tally) -> tuple[int, int]:
    """How often a device did what nobody could predict, and what was predicted."""
    return tally.cells[Row.DMA, Verdict.ADOPTED], tally.cells[Row.DMA, Verdict.MATCH]


def run_fast(session: Session, operations: list[Operation], tally: Tally) -> RunEnd:
    return LockStep(session, tally=tally).run(resolve(session.layout(), operations))


def suspected(stage: Scene, operations: list[Operation]) -> tuple[str, str]:
    """(what the slow judge finds, what a whole batch shows): both must find something."""
    program = Program(stage.config.full_name, stage.config.args, tuple(operations), setup="dma")
    found = replay(stage, program)
    with stage.session() as session:
        end = run_fast(session, operations, Tally())
    assert end.suspicion is not None, found
    return found.signature, end.suspicion.what


# -- fw_cfg ------------------------------------------------------------------------------------


def test_items_are_what_the_data_port_says(stage: Scene) -> None:
    """Learnt by DMA, read here byte by byte: another road in QEMU to the same bytes."""
    known = stage.knowledge.devices["/machine/fw_cfg"]["items"]
    small = {key: item for key, item in known.items() if item[0] is not None and item[1] <= 512}
    assert known[0][:2] == (b"QEMU", 4) and len(small) > 10
    with stage.session() as session:
        for key, (data, size, _) in small.items():
            lines = session.exchange(
                b"outw 0x510 0x%x\n" % key + b"inb 0x511\n" * (size + 2), size + 3)
            assert bytes(int(line.split()[1], 16) for line in lines[1:]) == data + bytes(2), key


def test_random_transfers_are_predicted(stage: Scene) -> None:
    """Some in batches, the first also one operation at a time: the same verdicts."""
    rng, recipe, tally, wrote = Random(4), FwCfgRecipe(), Tally(), 0
    with stage.session() as session:
        layout = session.layout()
        for number in range(30):
            scratch = scratch_of(layout, rng)
            assert scratch is not None and recipe.fits(layout)
            operations = list(recipe.operations(rng, layout, scratch))
            wrote += sum(op.verb == "outl" and op.place is not None and op.place.offset == 4
                         for op in operations)
            one = Tally()
            end = LockStep(session, tally=one).run(resolve(layout, operations))
            assert end.stop is Stop.DONE, (number, operations, end)
            tally.add(one)
            if number < 3:
                slow = Tally()
                program = Program(
                    stage.config.full_name, stage.config.args, tuple(operations), setup="dma")
                assert replay(stage, program, tally=slow).kind is Kind.NONE
                assert (slow.cells, slow.verbs) == (one.cells, one.verbs)
    adopted, predicted = acts(tally)
    assert predicted > 0.8 * wrote > 20
    assert predicted + adopted + tally.of(Verdict.UNJUDGED) >= wrote


def test_tables_made_at_the_first_look_are_learnt_then(stage: Scene) -> None:
    """ACPI's tables are adopted once, then binding, until a reset makes others."""
    known = stage.knowledge.devices["/machine/fw_cfg"]["items"]
    tables = next(key for key, (data, size, _) in known.items() if data is None and size > 4096)
    once = transfer(READ, 0x1000, key=tables)
    tally = Tally()
    with stage.session() as session:
        assert run_fast(session, [*once, *once, read(BUFFER, 64)], tally).stop is Stop.DONE
        assert acts(tally) == (1, 1)
        again = [Operation("reset", None, 0), *once, *once]
        assert run_fast(session, again, tally).stop is Stop.DONE
        assert acts(tally) == (2, 2)


# -- a wrong model -----------------------------------------------------------------------------


def forgets_its_control_word(port: Port, act: Callable[[Port], None]) -> None:
    write = port.write
    port.write = (  # type: ignore[method-assign]
        lambda addr, data, *more: addr == STRUCTURE or write(addr, data, *more))
    try:
        act(port)
    finally:
        port.write = write  # type: ignore[method-assign]


def ends_a_byte_early(port: Port, act: Callable[[Port], None]) -> None:
    write = port.write
    port.write = (  # type: ignore[method-assign]
        lambda addr, data, *more: write(addr, data[:-1] if addr == BUFFER else data, *more))
    try:
        act(port)
    finally:
        port.write = write  # type: ignore[method-assign]


def writes_a_byte_beside(port: Port, act: Callable[[Port], None]) -> None:
    act(port)
    port.write(BUFFER + 0x1001, b"\1")


def does_things_in_another_order(port: Port, act: Callable[[Port], None]) -> None:
    """The control word first: what is copied over it stays."""
    waiting = []
    write = port.write
    port.write = (  # type: ignore[method-assign]
        lambda addr, data, *more: bool(waiting.insert(0, (addr, data))) or True)
    try:
        act(port)
    finally:
        port.write = write  # type: ignore[method-assign]
    for each in waiting:
        write(*each)


@pytest.mark.parametrize("wrong", [
    forgets_its_control_word, ends_a_byte_early, writes_a_byte_beside,
    does_things_in_another_order,
])
def test_a_wrong_model_is_seen_in_both_ways(
    stage: Scene, wrong: Callable[[Port, Callable[[Port], None]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    act = FwCfg.act
    monkeypatch.setattr(
        FwCfg, "act", lambda self, port: wrong(port, lambda port: act(self, port)))
    over = wrong is does_things_in_another_order
    operations = transfer(READ, 4, STRUCTURE - 2 if over else BUFFER, key=SIGNATURE)
    assert suspected(stage, operations) == ("divergence:ram:dma:outl", "ram")


def test_wrong_lines_of_dma_to_a_device_are_seen(
    stage: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy goes to edu's registers, where each piece is a line of the transcript."""
    operations = transfer(READ, 8, 0xE000_0000, key=DIRECTORY)
    with stage.session() as session:
        assert run_fast(session, operations, Tally()).stop is Stop.DONE
    get = Item.get
    monkeypatch.setattr(
        Item, "get", lambda self, offset, size: (get(self, offset, size) or b"")[::-1])
    signature, what = suspected(stage, operations)
    assert signature.startswith("divergence:access:") and what == "access"


# -- strays ------------------------------------------------------------------------------------


def plant(session: Session, offset: int, data: bytes) -> None:
    """Change QEMU's memory behind the model's back."""
    assert session.process.ram is not None
    session.process.ram.view[offset : offset + len(data)] = data


def test_a_stray_write_is_found_while_decoded_devices_act(stage: Scene) -> None:
    """On a page that the model never wrote: after a program in which a device acted all of RAM
    is compared."""
    tally = Tally()
    with stage.session() as session:
        operations = transfer(READ, 8, key=DIRECTORY)
        assert run_fast(session, operations, tally).stop is Stop.DONE
        plant(session, 0x345_678, b"\xa5")
        end = run_fast(session, operations, tally)
    found = end.suspicion
    assert end.stop is Stop.SUSPICION and found is not None
    assert (found.what, found.kind, found.region) == ("ram", Row.DMA, "pc.ram")
    assert "pc.ram+0x345678 (1 bytes): model 00, QEMU a5" in found.model[0]
    assert "fw_cfg" in found.model[-1], "who could have done it"
    assert not tally.of(Verdict.UNJUDGED)


def test_a_stray_beside_the_buffer_is_found_at_once(stage: Scene) -> None:
    """On a page that the DMA touched it is found when the batch of the kick ends."""
    with stage.session() as session:
        plant(session, BUFFER + 8, b"\xa5")
        operations = [*transfer(READ, 8, key=DIRECTORY), *[read(0x1000, 4)] * 8]
        end = run_fast(session, operations, Tally())
    assert end.suspicion is not None and end.suspicion.index == 2


def test_a_device_that_nobody_follows_makes_a_difference_unjudged(stage: Scene) -> None:
    """The disk controller is let onto the bus, and no model decodes it: once it was accessed,
    memory that differs is nobody's proof."""
    kick, tally = transfer(READ, 8, key=DIRECTORY), Tally()
    with stage.session() as session:
        region = next(each for each in session.layout().ranges() if each.region == "ahci")
        let = [Operation("outl", Place(offset=0xCF8), 4, 0x8000_FA04),  # ICH9's AHCI, 31.2
               Operation("outl", Place(offset=0xCFC), 4, 0x7)]
        assert run_fast(session, [*let, *kick], tally).stop is Stop.DONE
        assert session.suspects() == []
        look = [Operation("readl", Place(offset=region.start), 4), *kick]
        plant(session, 0x345_678, b"\xa5")
        assert run_fast(session, look, tally).stop is Stop.DONE
        assert session.suspects() == ["ich9-ahci"]
    assert any("ich9-ahci may do DMA" in why for why in tally.reasons)
    assert tally.cells[Row.RAM, Verdict.UNJUDGED] == 1


def test_functions_may_master_the_bus(stage: Scene) -> None:
    """``setup dma``: the command register of each says so, and its own space shows RAM; not so
    that of a disk controller, which nobody decodes."""
    with stage.session() as session:
        lines = session.exchange(b"outl 0xcf8 0x8000f804\ninl 0xcfc\n", 2)  # ICH9-LPC, 31.0
        assert int(lines[1].split()[1], 16) & 0x7 == 0x7
        shows = {
            space.name: any(section.region.name == "pc.ram" for section in space.view.sections)
            for space in session.mirror.spaces
        }
        assert shows["edu"] and shows["pci-testdev"] and shows["ICH9-LPC"]
        assert not shows["ich9-ahci"]
    with scene(Settings(devices=("edu",), build=stage.config.build.name)).session() as session:
        [own_one] = [space for space in session.mirror.spaces if space.name == "edu"]
        assert not own_one.view.sections, "with setup pci it may not"
