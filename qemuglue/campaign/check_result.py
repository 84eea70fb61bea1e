"""What the check of one machine came to, as values that reports are made of."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from qemuglue.mirror import Inference, Mirror
from qemuglue.mirror.facts import NOTHING
from qemuglue.witness.account import Account
from qemuglue.witness.verdict import Tally


class Status:
    """How a check ended; the words of reports."""

    MATCH = "match"
    DIVERGED = "diverged"
    NOT_STARTED = "not-started"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Divergence:
    """One thing that went otherwise than the model says. ``kind`` is divergence, crash, hang or
    resource; ``confirmed`` is (k, n): seen again in k of n fresh QEMUs. ``program`` is the
    program text that shows it (for ``qemuglue replay``), "" for a difference of the map."""

    kind: str
    witness: str
    signature: str
    place: str
    model: tuple[str, ...]
    qemu: tuple[str, ...]
    confirmed: tuple[int, int]
    program: str = ""
    path: str = ""

    @property
    def region(self) -> str:
        """The region of ``place``, which ends "… (REGION)": its name, "the end of NAME" for an
        access that goes on behind it, "" where none is told."""
        return self.place.partition(" (")[2].removesuffix(")")

    def to_json(self) -> dict[str, Any]:
        k, n = self.confirmed
        return {
            "kind": self.kind, "witness": self.witness, "signature": self.signature,
            "place": self.place, "model_says": list(self.model), "qemu_says": list(self.qemu),
            "confirmed": {"k": k, "n": n}, "program": self.program, "path": self.path or None,
        }


@dataclass(frozen=True, slots=True)
class Known:
    """A divergence that an entry of the reviewed oddities explains, by the entry's id."""

    oddity: str
    found: Divergence


@dataclass(frozen=True, slots=True, kw_only=True)
class MapResult:
    """The mirror as it was taken. ``views`` are QEMU's; ``plain`` of them were equal before
    anything was inferred or known by name (``mirror/known.py``), ``exact`` in the end. Facts
    ``known`` by name are not among the ``inferred``. ``started_with`` is the generated image that
    the machine wanted to start ("a blank 16 KiB -bios"), "" for none."""

    spaces: int = 0
    ranges: int = 0
    views: int = 0
    exact: int = 0
    plain: int = 0
    inferred: Inference = NOTHING
    known: Inference = NOTHING
    differences: tuple[str, ...] = ()
    started_with: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """What the check of one machine on one build came to. ``reason`` says why it did not start
    or could not be done. ``ops`` is what was asked for."""

    build: str
    version: str
    machine: str
    status: str
    seed: int
    ops: int
    seconds: float
    reason: str = ""
    map: MapResult = MapResult()
    tally: Tally = field(default_factory=Tally)
    accounts: tuple[Account, ...] = ()
    divergences: tuple[Divergence, ...] = ()
    known: tuple[Known, ...] = ()
    notes: tuple[str, ...] = ()
    #: (RAM or ROM region, how its contents are seen), and the bytes of each coverage.
    ram: tuple[tuple[str, str], ...] = ()
    ram_bytes: tuple[tuple[str, int], ...] = ()
    restarts: int = 0
    deaths: int = 0
    flaky: int = 0
    defect: str = ""

    @property
    def diverged(self) -> bool:
        return bool(self.divergences)

    def without_paths(self) -> CheckResult:
        """The same, its findings not kept anywhere."""
        return replace(
            self, divergences=tuple(replace(each, path="") for each in self.divergences),
            known=tuple(replace(each, found=replace(each.found, path="")) for each in self.known),
        )


def map_result(mirror: Mirror) -> MapResult:
    """The figures of a mirror; spaces that share a view count its ranges once."""
    views = {space.root: space.view for space in mirror.spaces}
    return MapResult(
        spaces=len(mirror.spaces), ranges=sum(len(view) for view in views.values()),
        views=mirror.score.total, exact=mirror.score.exact, plain=mirror.plain.exact,
        inferred=mirror.inference, known=mirror.known,
        differences=tuple(str(difference) for difference in mirror.differences),
    )
