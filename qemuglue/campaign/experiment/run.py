"""One run of one arm, in a process of its own.

The product's own campaign code runs; around it, the transcript's text goes to the recording
first, and the same trace events are on in every arm. The model is imported here under Atheris'
instrumentation, so nothing may import it earlier.
"""

from __future__ import annotations

import importlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qemuglue.campaign.experiment.arms import ARMS, SETUPS
from qemuglue.campaign.experiment.recording import Recording

if TYPE_CHECKING:
    from qemuglue.campaign.settings import Settings


def run(name: str, arm: str, seed: int, programs: int, build: str, out: Path, result: Path) -> None:
    """One arm with one seed; ``result`` is written at its end."""
    engine, feedback, switches = ARMS[arm]
    if engine == "atheris":
        atheris: Any = importlib.import_module("atheris")
        with atheris.instrument_imports(include=["qemuglue.memory"]):
            import qemuglue.memory  # noqa: F401
    from qemuglue.campaign.settings import Settings

    settings = Settings(
        devices=SETUPS[name], engine=engine, feedback=feedback, seed=seed, programs=programs,
        build=build, out=str(out / f"{name}.{arm}.{seed}"),
    )
    run_one(settings, switches, result)


def run_one(settings: Settings, switches: Sequence[str], result: Path) -> None:
    """Run one arm with one seed in this process, and write ``result`` at its end."""
    from qemuglue.campaign import libfuzzer, worker
    from qemuglue.campaign.trace_events import TraceEvents
    from qemuglue.qemu.transcript import Transcript
    from qemuglue.witness.session import Session

    recording = Recording()
    sizes: dict[str, int] = {}
    listening = [False]
    began = time.monotonic()
    read_new = Transcript.read_new

    def read(self: Transcript, *, final: bool = False) -> bytes:
        keep, self.listener = self.listener, None
        try:
            text = read_new(self, final=final)
        finally:
            self.listener = keep
        if listening[0]:
            recording.hear(text, sizes)
        return text if keep is None else keep(text)

    Transcript.read_new = read  # type: ignore[method-assign]
    start, close, perform = worker.Work.start, worker.Work.close, worker.Work.perform

    def on_start(self: worker.Work) -> Any:
        inner = self.explorer.on_session
        events = TraceEvents(settings.devices)

        def attach(session: Session) -> None:
            for region in session.device_regions():
                sizes[region.name] = max(sizes.get(region.name, 0), region.size)
            if inner is not None:
                inner(session)
            events.attach(session)
            if inner is None or settings.feedback == "transcript":
                listener = session.process.transcript.listener
                names = events.names
                session.process.transcript.listener = lambda text: _without(
                    text if listener is None else listener(text), names)
            listening[0] = True

        self.explorer.on_session = attach
        return start(self)

    def on_perform(self: worker.Work, program: Any, data: bytes = b"") -> bool:
        clean = perform(self, program, data)
        done = self.explorer.progress.programs
        if done % 50 == 0:
            recording.note(done)
        return clean

    def on_close(self: worker.Work) -> None:
        progress = self.explorer.progress
        recording.note(progress.programs)
        found = recording.to_json()
        close(self)
        found |= {
            "programs": progress.programs, "seconds": round(time.monotonic() - began, 1),
            "judged": progress.tally.total, "restarts": progress.restarts,
            "findings": sorted(progress.signatures), "flaky": progress.flaky,
        }
        result.write_text(json.dumps(found), encoding="utf-8")

    worker.Work.start = on_start  # type: ignore[method-assign]
    worker.Work.close = on_close  # type: ignore[method-assign]
    worker.Work.perform = on_perform  # type: ignore[method-assign]
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    settings.save(out / "settings.json")
    if settings.engine == "random":
        from qemuglue.campaign.status import StatusWriter

        if "even" in switches:
            worker.PHASE = 1 << 60
        work = worker.Work(settings, StatusWriter(-1))
        work.start()
        worker.run_random(work)
        work.close()
        return
    _switch(switches)
    corpus = out / "corpus"
    corpus.mkdir(exist_ok=True)
    null = os.open(os.devnull, os.O_WRONLY)
    libfuzzer.main([
        libfuzzer.__file__, f"--settings={out / 'settings.json'}", f"--status-fd={null}",
        "--keep-going", f"-seed={settings.seed + 1}", f"-max_len={1 + 24 * settings.operations}",
        "-len_control=0", "-timeout=3600", "-verbosity=0", "-close_fd_mask=0", str(corpus),
    ])


def _switch(switches: Sequence[str]) -> None:
    """Leave out parts of the feedback."""
    from qemuglue.campaign import feedback, steering

    if "no-hints" in switches:
        steering.Steering.hints = None  # type: ignore[assignment]
    if "once" in switches:
        feedback.Stability.wants = lambda self, facts: False  # type: ignore[method-assign]
    if "no-counters" in switches:
        feedback.Feedback.feed = lambda self, features: None  # type: ignore[method-assign]
        feedback.Stability.wants = lambda self, facts: False  # type: ignore[method-assign]


def _without(text: bytes, names: dict[bytes, str]) -> bytes:
    """Text without the lines of those events."""
    lines = text.split(b"\n")
    kept = [line for line in lines if line.split(b" ", 1)[0] not in names]
    return text if len(kept) == len(lines) else b"\n".join(kept)
