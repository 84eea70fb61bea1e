"""Feedback on real QEMU: events fire and are told, judging does not notice, a flood goes off."""

from __future__ import annotations

from functools import partial
from random import Random

import pytest

from qemuglue.campaign.drawing import Plain
from qemuglue.campaign.guide import Guide
from qemuglue.campaign.guided import Guided
from qemuglue.campaign.reach import Fact, Reach, names_of
from qemuglue.campaign.settings import Settings, scene
from qemuglue.campaign.trace_events import WINDOW, TraceEvents
from qemuglue.program.generate import Generator
from qemuglue.program.layout import Layout
from qemuglue.qemu.builds import Build
from qemuglue.witness.judge import Scene, prepare, resolve
from qemuglue.witness.lockstep import LockStep, Stop
from qemuglue.witness.verdict import Tally

pytestmark = pytest.mark.qemu

PROGRAMS = 8


@pytest.fixture(scope="module")
def scenes() -> dict[str, Scene]:
    """Contracts are learnt once a build."""
    return {}


def scene_of(build: Build, scenes: dict[str, Scene]) -> Scene:
    if build.name not in scenes:
        scenes[build.name] = scene(Settings(devices=("e1000e",), build=build.name))
        prepare(scenes[build.name])
    return scenes[build.name]


def _same(layout: Layout) -> Layout:
    return layout


def run(where: Scene, reach: Reach | None) -> tuple[Tally, list[set[Fact]]]:
    """The same programs in a QEMU of their own; verdicts, and facts of each program."""
    tally = Tally()
    facts: list[set[Fact]] = []
    with where.session() as session:
        layout = session.layout()
        if reach is not None:
            reach.attach(session)
        generator, rng = Generator(layout), Random(7)
        for _ in range(PROGRAMS):
            if reach is not None:
                reach.begin()
            steps = resolve(layout, generator.operations(rng, 64))
            end = LockStep(session, tally=tally).run(steps)
            assert end.stop is Stop.DONE, end
            if reach is not None:
                facts.append(set(reach.facts))
                reach.end(64)
    return tally, facts


def test_judging_does_not_notice_and_the_same_program_reaches_the_same(
    build: Build, scenes: dict[str, Scene]
) -> None:
    where = scene_of(build, scenes)
    run(where, None)  # so that what is learnt only once is
    plain, _ = run(where, None)
    traces = [TraceEvents(("e1000e",)), TraceEvents(("e1000e",))]
    told = []
    with where.session() as session:
        layout = session.layout()
    for trace in traces:
        watched, facts = run(where, Reach(partial(_same, layout), trace=trace))
        assert watched.cells == plain.cells, "with its events on, every verdict is the same"
        told.append(facts)
    assert told[0] == told[1], "nothing here comes and goes by itself"
    names = names_of(set().union(*told[0]))
    assert any(name.startswith("e1000e_") for name in names)
    assert len(names) > 15, sorted(names)
    assert not any(name.startswith(("memory_region", "flatview", "qemu_")) for name in names)


def test_a_loud_event_goes_off_in_qemu_itself(build: Build, scenes: dict[str, Scene]) -> None:
    trace = TraceEvents(("e1000e",))
    with scene_of(build, scenes).session() as session:
        trace.attach(session)
        loud = "e1000e_core_write"

        def state() -> str:
            answer = session.process.monitor.execute("trace-event-get-state", {"name": loud})
            return str(answer[0]["state"])

        assert state() == "enabled"
        for _ in range(2 * WINDOW):
            trace.counted(loud)
        assert trace.settle(session, WINDOW) == [loud]
        assert state() == "disabled"


def test_guided_programs_show_more_than_drawn_ones(
    build: Build, scenes: dict[str, Scene]
) -> None:
    """What the experiment shows at length, on a few programs: a guide that points nowhere, or
    facts that name the wrong register, would show no more than drawing does."""
    where = scene_of(build, scenes)
    shown = []
    for guided in (False, True):
        with where.session() as session:
            layout, guide = session.layout(), Guide()
            reach = Reach(partial(_same, layout), guide=guide)
            reach.attach(session)
            drawing = Guided(layout, Plain(layout), guide) if guided else Plain(layout)
            rng = Random(3)
            for _ in range(2 * PROGRAMS):
                steps = resolve(layout, drawing.operations(rng, 64))
                assert LockStep(session).run(steps).stop is Stop.DONE
            shown.append(len({fact[:4] for fact in reach.facts}))
    assert shown[1] > 1.2 * shown[0], shown
