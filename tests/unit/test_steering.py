"""What is told to libFuzzer, by mode; and that a noisy fact is not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from qemuglue.campaign import steering as module
from qemuglue.campaign.feedback import SAMPLE, TRIALS
from qemuglue.campaign.settings import Settings
from qemuglue.campaign.steering import Steering
from qemuglue.errors import UsageError
from qemuglue.program.operation import Operation, Place, Program

PROGRAM = Program("x86_64/q35", (), (Operation("inb", Place(None, 0, 1), 1),), "stopped", "")


class FakeFeedback:
    def __init__(self) -> None:
        self.fed: list[set[object]] = []

    def feed(self, features: set[object]) -> None:
        self.fed.append(set(features))


class FakeWork:
    """Each run reaches what ``script`` says next."""

    def __init__(self, mode: str) -> None:
        self.settings = Settings(feedback=mode)
        self.role = SimpleNamespace(index=0)
        self.over = False
        self.explorer: Any = SimpleNamespace(features={"shape"}, on_session=None, layout=None)
        self.steering: Steering
        self.runs = 0

    def perform(self, program: Program, data: bytes) -> bool:
        self.runs += 1
        reach = self.steering.reach
        if reach is not None:
            reach.facts |= {("write", "a", self.runs // 2, 4), ("event", "nic_tx"),
                            ("shape", f"clock_tick {self.runs}")}
        return True


@pytest.fixture
def steer(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(module, "Feedback", FakeFeedback)

    def make(mode: str) -> tuple[Steering, FakeWork, Any]:
        work = FakeWork(mode)
        made = Steering(work)  # type: ignore[arg-type]
        work.steering = made
        return made, work, made._feedback

    return make


def test_none_tells_nothing_and_listens_to_nothing(steer: Any) -> None:
    steering, work, feedback = steer("none")
    assert steering.perform(PROGRAM, b"")
    assert feedback.fed == [] and work.explorer.on_session is None
    assert steering.hints is None and steering.describe() == ""


@pytest.mark.parametrize("mode", ["transcript", "all"])
def test_facts_and_shapes_are_told(steer: Any, mode: str) -> None:
    steering, work, feedback = steer(mode)
    steering.perform(PROGRAM, b"")
    assert feedback.fed[0] >= {"shape", ("event", "nic_tx")}
    assert work.explorer.on_session is not None and steering.hints is not None
    assert (steering.trace is not None) == (mode == "all")


def test_noise_is_found_by_second_runs_and_not_told(steer: Any) -> None:
    steering, work, feedback = steer("all")
    for _ in range(3 * SAMPLE * TRIALS):
        steering.perform(PROGRAM, b"")
    assert work.runs > 3 * SAMPLE * TRIALS, "some ran twice"
    assert not any(str(fact).count("clock_tick") for fact in feedback.fed[-1])
    assert ("event", "nic_tx") in feedback.fed[-1]
    assert "noise that does not count: event clock_tick" in steering.describe()


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(UsageError, match="no feedback 'some'; use one of all"):
        Settings(feedback="some")


def test_settings_of_before_there_was_feedback_are_read() -> None:
    data = Settings(feedback="none").to_json()
    assert Settings.from_json(data).feedback == "none"
    del data["feedback"]
    assert Settings.from_json(data).feedback == "all"
