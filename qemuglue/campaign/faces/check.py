"""The check of one machine through the faces: random operations, each held against QEMU.

The machine is started as ``check`` starts it, and what its devices take is asked of another QEMU.
Then the operations are performed and judged one by one (``faces.run``). What parts is performed
again in a fresh QEMU: alone, and if that does not show it with all that came before it. Divergences
that a fresh QEMU does not show are counted as flaky, never reported.

An access that ends QEMU is a finding, unless it is a known oddity; its region is left out from then
on, and counted.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from random import Random

from qemuglue.campaign.check_result import Divergence, Known, Status
from qemuglue.campaign.checking import DEFAULT_OPS, MAX_OPS, PATIENCE_S
from qemuglue.campaign.contracting import CPU_SPACE
from qemuglue.campaign.faces.defects import Planted, planted
from qemuglue.campaign.faces.ops import FaceOp
from qemuglue.campaign.faces.result import FaceResult, FaceTally
from qemuglue.campaign.faces.run import DIVERGED, UNJUDGED, FaceRun, Judged
from qemuglue.campaign.settings import DEFAULT_RAM, ask_ram_id
from qemuglue.campaign.starting import start_machine
from qemuglue.errors import LaunchError, QemuFailure, QemuglueError, UsageError
from qemuglue.memory.faces import find_face
from qemuglue.memory.rules import rules_for
from qemuglue.qemu.builds import Build
from qemuglue.qemu.config import QemuConfig, VmMode, machine_name
from qemuglue.witness.judge import Kind as End
from qemuglue.witness.judge import Scene, failure_judgement, prepare
from qemuglue.witness.oddities import known_as
from qemuglue.witness.probe import A_CONTRACT, NO_CONTRACT
from qemuglue.witness.session import Knowledge

#: All of RAM is compared after so many operations.
RAM_EVERY = 64

#: Fresh QEMUs in which a divergence is performed again.
CONFIRM_TRIES = 2

#: Divergences of one signature that are confirmed and reported; further ones are counted.
MAX_ALIKE = 2

#: Divergences reported; a face that is wrong in one place shows it in many.
MAX_REPORTED = 12

#: Ends of QEMU before a machine is given up.
MAX_DEATHS = 24

_ENDS = {End.CRASH: "crash", End.HANG: "hang", End.RESOURCE: "resource"}


def check_faces(
    build: Build, machine: str, faces: Sequence[str], *, args: Sequence[str] = (),
    ops: int = DEFAULT_OPS, seed: int = 0, defect: str = "",
) -> FaceResult:
    """Check ``TARGET/NAME`` through ``faces``. Never raises for what QEMU does.

    :raise UsageError: there is no such machine, face or defect, or too many operations.
    :raise BuildError: the build has no binary for the target.
    """
    if not 1 <= ops <= MAX_OPS:
        raise UsageError(f"{ops} operations; give 1 to {MAX_OPS}")
    for name in faces:
        find_face(name)
    target, _ = machine_name(machine)
    build.binary(target)
    return _FaceCheck(build, machine, tuple(faces), tuple(args), ops, seed,
                      planted(defect, faces)).run()


class _FaceCheck:
    """One check while it is made."""

    def __init__(
        self, build: Build, machine: str, faces: tuple[str, ...], args: tuple[str, ...], ops: int,
        seed: int, defect: Planted,
    ) -> None:
        self.build = build
        self.machine = machine
        self.faces = faces
        self.args = args
        self.ops = ops
        self.seed = seed
        self.defect = defect
        right = rules_for(build.version_tuple)
        #: What the faces go by; what is held against them is always right.
        self.rules = None if defect.rules is None else defect.rules(right)
        self.rng = Random(f"{seed}/{machine}/{','.join(faces)}")
        self.tally = FaceTally()
        self.divergences: list[Divergence] = []
        self.known: list[Known] = []
        self.notes: list[str] = []
        self.alike: Counter[str] = Counter()
        self.further: Counter[str] = Counter()
        self.fatal: dict[str, str] = {}
        self.left: tuple[tuple[str, str, str], ...] = ()
        self.restarts = self.deaths = self.flaky = 0
        self.start_s = time.monotonic()

    def run(self) -> FaceResult:
        """Everything, in order."""
        try:
            try:
                scene = self._scene()
            except LaunchError as error:
                return self._result(Status.NOT_STARTED, _reason(error))
            if scene is None:
                self.notes.append("no CPU: there is no address space to make accesses in")
                return self._result(Status.MATCH)
            self.scene = scene
            self._prepare(scene)
            with self._planted():
                self._perform()
        except (QemuglueError, OSError) as error:
            if type(error) is UsageError and not self.tally.total:
                raise
            return self._result(Status.ERROR, _reason(error))
        return self._result(Status.DIVERGED if self.divergences else Status.MATCH)

    def _result(self, status: str, reason: str = "") -> FaceResult:
        return FaceResult(
            build=self.build.name, version=self.build.version, machine=self.machine,
            status=status, faces=self.faces, seed=self.seed, ops=self.ops, reason=reason,
            seconds=round(time.monotonic() - self.start_s, 3), tally=self.tally,
            divergences=tuple(self.divergences), further=tuple(sorted(self.further.items())),
            known=tuple(self.known), notes=tuple(dict.fromkeys(self.notes)), left=self.left,
            restarts=self.restarts, deaths=self.deaths, flaky=self.flaky,
            defect=self.defect.name,
        )

    def _prepare(self, scene: Scene) -> None:
        """Learn what the devices take. One whose answers no contract gives is a divergence, as
        in a check without faces: the rules that the faces stand on are not QEMU's there."""
        for failure in prepare(scene):
            if NO_CONTRACT not in failure:
                self.notes.append(failure)
                continue
            name, _, why = failure.partition(": ")
            self.divergences.append(Divergence(
                "divergence", "contract", "divergence:contract", f"a device ({name})",
                (A_CONTRACT,), (why,), (1, 1)))

    def _planted(self) -> AbstractContextManager[None]:
        return nullcontext() if self.defect.face is None else self.defect.face.plant()

    def _scene(self) -> Scene | None:
        """The machine that operations are made on; None without a CPU, whose space it is that
        qtest enters."""
        target, name = machine_name(self.machine)
        ram_id = ask_ram_id(self.build, target, name) or None
        config, mirror = start_machine(QemuConfig(
            build=self.build, target=target, machine=name, args=self.args,
            ram=DEFAULT_RAM if ram_id else None, ram_id=ram_id, mode=VmMode.STOPPED))
        if not mirror.exact:
            self.notes.append("the mirror is not exact: " + str(mirror.differences[0]))
        if CPU_SPACE not in {space.name for space in mirror.spaces}:
            return None
        names = {region.name for region in mirror.regions}
        return Scene(config, Knowledge(), "pci" if "pci-conf-data" in names else "")

    # -- operations ----------------------------------------------------------------------------

    @property
    def _go_on(self) -> bool:
        return (
            self.tally.total < self.ops and self.deaths < MAX_DEATHS
            and time.monotonic() - self.start_s < PATIENCE_S
        )

    def _perform(self) -> None:
        """One QEMU after the other, until enough was done."""
        while self._go_on:
            history: list[FaceOp] = []
            with self._fresh() as run:
                self.left = run.untouched.left()
                try:
                    self._perform_in(run, history)
                except QemuFailure as error:
                    self._ended(run, history, error)
                self.notes += run.notes
            self.restarts += 1
        self.restarts -= 1
        if self.tally.total < self.ops:
            self.notes.append(f"stopped after {self.tally.total} operations: QEMU ended "
                              f"{self.deaths} times")

    def _fresh(self) -> FaceRun:
        run = FaceRun(self.scene, self.faces, self.rules)
        run.fatal = self.fatal
        return run

    def _perform_in(self, run: FaceRun, history: list[FaceOp]) -> None:
        while self._go_on:
            op = run.drawer.draw(self.rng)
            history.append(op)
            judged = run.step(op)
            if judged.verdict == DIVERGED:
                judged = self._diverged(run, history, judged)
            self.tally.note(judged)
            if len(history) % RAM_EVERY == 0 or not self._go_on:
                stray = run.check_ram()
                if stray:
                    self._diverged(run, history, run.stray(judged, stray))

    def _diverged(self, run: FaceRun, history: Sequence[FaceOp], judged: Judged) -> Judged:
        """Report it if a fresh QEMU shows it too; what it counts as in the end."""
        run.resync()
        signature = judged.signature
        if self.alike[signature] >= MAX_ALIKE or len(self.divergences) >= MAX_REPORTED:
            self.further[signature] += 1
            return judged
        times, alone = self._confirm(history, signature)
        if not times:
            self.flaky += 1
            return judged.unjudged("a fresh QEMU did not show the divergence again")
        self.alike[signature] += 1
        shown = [history[-1]] if alone else history
        self.divergences.append(Divergence(
            "divergence", "face", signature, f"{judged.op} ({judged.region or 'unassigned'})",
            judged.face, judged.qemu, (times, CONFIRM_TRIES), "\n".join(map(str, shown)),
        ))
        return judged

    def _confirm(self, history: Sequence[FaceOp], signature: str) -> tuple[int, bool]:
        """(times that fresh QEMUs showed it, whether the last operation alone does)."""
        for ops in ([history[-1]], history):
            times = sum(self._shows(ops, signature) for _ in range(CONFIRM_TRIES))
            if times or len(history) == 1:
                return times, ops is not history
        return 0, False

    def _shows(self, ops: Sequence[FaceOp], signature: str) -> bool:
        try:
            with self._fresh() as run:
                for op in ops:
                    judged = run.step(op)
                    if judged.verdict == DIVERGED and judged.signature == signature:
                        return True
                stray = run.check_ram()
                return bool(stray) and run.stray(judged, stray).signature == signature
        except QemuFailure:
            return False

    # -- ends ----------------------------------------------------------------------------------

    def _ended(self, run: FaceRun, history: Sequence[FaceOp], error: QemuFailure) -> None:
        """QEMU ended, hung or flooded a limit at the last operation, or behind it."""
        self.deaths += 1
        if not history:
            raise error
        op, found = history[-1], failure_judgement(run.session, error)
        region = run.region_of(op)
        self.tally.note(Judged(op, run.kind_of(op), UNJUDGED, why=(
            "QEMU was switched off" if found.kind is End.SHUTDOWN else "QEMU ended at it",)))
        self.fatal[region] = f"left out: an access to {region} ended QEMU ({found.signature})"
        self.notes.append(self.fatal[region])
        if found.kind not in _ENDS:
            return
        shown: Sequence[FaceOp] = history[-1:]
        times = sum(self._ends(shown, found.signature) for _ in range(CONFIRM_TRIES))
        if not times:
            shown = history
            times = sum(self._ends(shown, found.signature) for _ in range(CONFIRM_TRIES))
        told = Divergence(
            _ENDS[found.kind], "process", found.signature, f"{op} ({region})",
            ("QEMU goes on",), (found.error or found.signature,), (times, CONFIRM_TRIES),
            "\n".join(map(str, shown)),
        )
        oddity = known_as(self.build.version_tuple, self.machine, found.signature, region)
        if oddity:
            self.known.append(Known(oddity, told))
        elif times:
            self.divergences.append(told)
        else:
            self.flaky += 1

    def _ends(self, history: Sequence[FaceOp], signature: str) -> bool:
        run = self._fresh()
        run.fatal = {}
        with run:
            try:
                for op in history:
                    run.step(op)
            except QemuFailure as error:
                return failure_judgement(run.session, error).signature == signature
        return False


def _reason(error: Exception) -> str:
    """QEMU's own words, where it said any."""
    said = [line.strip() for line in getattr(error, "stderr", "").splitlines() if line.strip()]
    text = str(error)
    return text if not said or said[-1] in text else f"{text}: {said[-1]}"
