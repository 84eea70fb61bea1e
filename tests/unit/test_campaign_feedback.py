"""The counters fed to libFuzzer, and the private names of Atheris that they rest on."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from qemuglue.campaign import feedback as module
from qemuglue.campaign.feedback import Feedback, has_atheris, regions_of
from qemuglue.witness.verdict import Kind

SHAPE = (Kind.DEVICE, "readq", (("hpet", 4, None), ("hpet", 4, "unaligned")), 2)


def test_a_shape_has_the_same_number_in_every_process() -> None:
    code = ("from qemuglue.campaign.feedback import shape_id;"
            "from qemuglue.witness.verdict import Kind;"
            "print(shape_id((Kind.DEVICE, 'readq', (('hpet', 4, None),), 2)))")
    seen = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True,
                       env={"PYTHONHASHSEED": seed}).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1


def test_regions_are_those_of_the_pieces() -> None:
    assert set(regions_of(SHAPE)) == {"hpet"}
    assert set(regions_of((Kind.RAM, "readb"))) == set()
    assert set(regions_of("garbage")) == set()


class FakeAtheris(SimpleNamespace):
    """Counts as the real one does: through the attribute, not a kept reference."""

    def __init__(self) -> None:
        super().__init__(reserved=0, hits=[])
        self._trace_branch = lambda counter: None

    def _reserve_counter(self) -> int:
        self.reserved += 1
        return int(self.reserved)

    def fuzz(self) -> None:
        self._trace_branch = self.hits.append


def test_each_fact_counts_once_fuzzing_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeAtheris()
    monkeypatch.setattr(module, "_atheris", lambda: fake)
    feedback = Feedback(counters=16)
    assert fake.reserved == 17
    fake.fuzz()
    feedback.feed({SHAPE, (Kind.RAM, "readb")})
    feedback.feed({SHAPE})
    assert len(fake.hits) == 3
    assert set(fake.hits) <= set(range(1, 17)), "the spare counter is dead and must not be used"
    assert fake.hits[-1] in fake.hits[:2]


def test_without_atheris_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_atheris", lambda: None)
    Feedback().feed({SHAPE})
    assert not has_atheris()


#: Fuzzed with the counters alone (no Python is instrumented), a magic of 4 bytes is found only
#: if libFuzzer really minds them.
MAGIC = """
import sys, atheris
from qemuglue.campaign.feedback import Feedback
feedback = Feedback(64)
def one(data):
    n = 0
    while n < 4 and data[n:n + 1] == b"QGLU"[n:n + 1]:
        n += 1
    feedback.feed({("prefix", n)})
    if n == 4:
        raise AssertionError("magic")
atheris.Setup(["x", "-runs=400000", "-seed=1", "-max_len=8", "-max_total_time=60"], one)
atheris.Fuzz()
"""


@pytest.mark.skipif(not has_atheris(), reason="Atheris is not installed")
def test_libfuzzer_minds_the_counters(tmp_path: object) -> None:
    done = subprocess.run([sys.executable, "-c", MAGIC], capture_output=True, text=True,
                          cwd=str(tmp_path), timeout=100, check=False)
    assert done.returncode == 77, done.stderr[-2000:]
    assert "UUdMVQ==" in done.stderr  # libFuzzer prints the input in base64


@pytest.mark.skipif(not has_atheris(), reason="Atheris is not installed")
def test_without_the_counters_the_magic_stays_hidden(tmp_path: object) -> None:
    blind = MAGIC.replace('feedback.feed({("prefix", n)})', "pass")
    done = subprocess.run([sys.executable, "-c", blind], capture_output=True, text=True,
                          cwd=str(tmp_path), timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
